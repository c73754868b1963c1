"""A byte copy of the medium of a frozen arena mounts with nothing to recover."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from crashsim.arena import Arena, contents, everything
from t4_cluster.cluster_help import Other, eventually

import nova_mp
from nova_mp.core import segment
from nova_mp.tools.dump import dump
from nova_mp.tools.fsck import check, format_report

WRITER = """
import itertools, os, sys, nova_mp
own = sys.argv[2]
fs = nova_mp.attach(sys.argv[1])
fs.mkdir(f"/{own}")
print("begun", flush=True)
for number in itertools.count():
    path = f"/{own}/{number % 7}"
    fs.write_bytes(path, os.urandom(number * 37 % 20000))
    fs.rename(path, f"/{own}/moved{number % 5}")
    fs.setxattr(f"/{own}", "user.number", b"%d" % number)
    if number % 3 == 0:
        fs.unlink(f"/{own}/moved{number % 5}")
"""


@pytest.fixture
def engine(arena_prefix: str) -> Iterator[nova_mp.Engine]:
    name = f"{arena_prefix}frozen-copy"
    nova_mp.mkfs(name, "32MiB", 2)
    try:
        started = nova_mp.start(name)
        yield started
        started.stop(force=True)
    finally:
        nova_mp.destroy(name, force=True)


def copy_of(name: str) -> bytes:
    with segment.attach_pmem(name) as pmem:
        return bytes(pmem.buf)


def progress(fs: Any, own: str) -> int:
    return int(fs.getxattr(f"/{own}", "user.number")) if fs.listxattr(f"/{own}") else -1


def test_a_copy_of_a_frozen_arena_needs_no_recovery(engine: nova_mp.Engine) -> None:
    copies = []
    with (
        nova_mp.attach(engine.name) as fs,
        Other(WRITER, engine.name, "one") as one,
        Other(WRITER, engine.name, "two") as two,
    ):
        assert (one.hear(), two.hear()) == ("begun", "begun")
        for number in range(5):
            fs.snapshots.create(f"before{number}")
            goals = {own: progress(fs, own) + 5 for own in ("one", "two")}
            eventually(
                "the writers go on",
                lambda goals=goals: all(progress(fs, own) >= goals[own] for own in goals),
            )
            with fs.frozen(30.0):
                assert nova_mp.status(engine.name)["not_stopped"] == []
                image = copy_of(engine.name)
                # Nothing moves, though both writers would like to.
                assert copy_of(engine.name) == image
                copies.append(image)
    for image in copies:
        report = check(image)
        assert report.ok, format_report(report)
        assert not report.warnings, format_report(report)
        assert not any(row["committed"] for row in dump(image, "journal")), "a journal to redo"
        assert_mounts_whole(image)


def assert_mounts_whole(image: bytes) -> None:
    mounted = Arena(image=image)
    try:
        assert mounted.recovery["lists"] == "rebuilt"
        found = everything(mounted.fs)
        names = [row[0] for key, row in sorted(found.items()) if key]
        assert names == [f"before{number}" for number in range(len(names))]
        for own in ("one", "two"):
            assert f"/{own}" in found[0]
        blocks = mounted.fs.stats()["blocks"]
        assert blocks["free"] + blocks["held"] + blocks["live"] + blocks["head"] == blocks["total"]
        again = mounted.crash()
        assert everything(again.fs) == found
        assert contents(again.fs) == found[0]
        again.close()
    finally:
        mounted.close()


def test_the_copy_holds_what_the_frozen_arena_shows(engine: nova_mp.Engine) -> None:
    with nova_mp.attach(engine.name) as fs:
        for number in range(40):
            fs.write_bytes(f"/file{number % 9}", b"%d" % number * 3000)
            if number % 10 == 0:
                fs.snapshots.create(None)
        with fs.frozen(30.0):
            image = copy_of(engine.name)
        # Nobody else is attached, so this is still what was there while it was frozen.
        wanted = everything(fs)
    mounted = Arena(image=image)
    try:
        assert everything(mounted.fs) == wanted
    finally:
        mounted.close()

"""Checking an arena by its name while it is mounted: its PMEM changes while it is read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from t0_layout.builder import ROOT, K, Sample

from nova_mp.core import segment
from nova_mp.tools.fsck import check


@pytest.fixture
def name() -> Iterator[str]:
    """Name of an arena with a PMEM segment and a DRAM segment, but without an engine."""
    name = f"t0-{os.getpid()}"
    yield name
    segment.pmem_path(name).unlink(missing_ok=True)
    segment.dram_path(name).unlink(missing_ok=True)


def store(name: str, sample: Sample, *, mounted: bool) -> Path:
    path = segment.pmem_path(name)
    path.write_bytes(sample.finish(state=K["MOUNT_DIRTY"]))
    if mounted:
        segment.dram_path(name).write_bytes(bytes(4096))
    return path


def test_crashed_arena(name: str) -> None:
    store(name, Sample(), mounted=False)
    report = check(name)
    assert report.ok and not report.notes
    assert report.statistics["arena"]["state"] == "crashed"
    assert report.statistics["arena"]["name"] == name


def test_mounted_arena(name: str) -> None:
    path = store(name, Sample(), mounted=True)
    report = check(name)
    assert report.ok and "in flight" in report.notes[0]
    assert report.statistics["arena"]["state"] == "mounted"
    assert check(path).notes  # the segment's path names the arena as well


def test_damage_that_stays_is_reported(name: str) -> None:
    sample = Sample()
    sample.new_inode(0o100644)
    store(name, sample, mounted=True)
    assert check(name).codes() == {"FSCK-607"}


def test_operation_in_flight_is_not_reported(name: str) -> None:
    """An inode without a name yet is found in the first pass, and has its name in the second."""
    sample = Sample()
    ino = sample.new_inode(0o100644)
    path = store(name, sample, mounted=True)
    done = {"logs": 0}

    def progress(stage: str, at: int, total: int) -> None:
        done["logs"] += stage == "logs" and at == total
        if done["logs"] == 1:
            sample.dentry(ROOT, b"late", ino, 0o100644)
            with open(path, "r+b") as stream:  # the mapping that is being checked stays
                stream.write(sample.data)
            done["logs"] += 1

    report = check(name, progress=progress)
    assert report.ok and not report.counts
    assert any("passes" in note for note in report.notes)


def test_frozen_check_copies_while_frozen(name: str) -> None:
    sample = Sample()
    path = store(name, sample, mounted=True)
    events: list[str] = []

    @contextmanager
    def frozen() -> Iterator[None]:
        events.append("frozen")
        yield
        with open(path, "r+b") as stream:
            stream.write(bytes(len(sample.data)))
        events.append("thawed")

    report = check(name, frozen=frozen)
    assert report.ok and events == ["frozen", "thawed"]
    assert report.statistics["arena"]["state"] == "frozen"

"""The plain-Python checker on arenas of the native core: running, crashed, clean, and damaged.

A seeded run of operations on one `Core`; at points between operations the PMEM is copied, which is
what a power failure would leave on a medium without a cache. The copy must be consistent, must
mount, and the checker and the core must agree on every free block.
"""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from nova_mp.tools.dump import dump
from nova_mp.tools.fsck import check, format_report

core = pytest.importorskip("nova_mp.core.fs", reason="the core is not built")

MIB = 1 << 20
SIZE = 24 * MIB
SEEDS = range(6)
STEPS = 400
OPS = "create create write write write append truncate unlink rename link chmod xattr mkdir rmdir"
OPS += " symlink snapshot snapshot_delete reclaim gc burst"


class Arena:
    """PMEM and DRAM in anonymous memory, mounted, with one `Core`."""

    def __init__(self, image: bytes | None = None, cpus: int = 2) -> None:
        self.pmem = mmap.mmap(-1, SIZE)
        self.pm = memoryview(self.pmem)
        if image is None:
            core.format_arena(self.pm, cpus=cpus, label="real")
        else:
            self.pm[:] = image
        base, limit = core.dram_geometry(SIZE, cpus)
        self.fd = os.memfd_create("t2-fsck")
        os.ftruncate(self.fd, limit)
        os.posix_fallocate(self.fd, 0, base)
        self.dram = mmap.mmap(self.fd, limit)
        self.dr = memoryview(self.dram)
        self.recovery = core.mount(self.pm, self.dr, self.fd, cpus=cpus)
        self.fs = core.Core(self.pm, self.dr, self.fd, role="coordinator")

    def image(self) -> bytes:
        """A copy of the medium as it is now."""
        return bytes(self.pm)

    def unmount(self) -> bytes:
        """Unmount in order; gives back a copy of the clean medium."""
        self.fs.close()
        core.unmount(self.pm, self.dr)
        return self.image()

    def free(self) -> int:
        """Free blocks as the core counts them."""
        return int(self.fs.stats()["blocks"]["free"])

    def close(self) -> None:
        """Drop everything, as a power failure does; memory goes with the last reference to it."""
        self.fs.close()
        os.close(self.fd)


@contextmanager
def arena(image: bytes | None = None, cpus: int = 2) -> Iterator[Arena]:
    opened = Arena(image, cpus)
    try:
        yield opened
    finally:
        opened.close()


class Actor:
    """Runs random operations; a refused one (no space, not empty, gone) counts as done."""

    def __init__(self, opened: Arena, seed: int) -> None:
        self.arena = opened
        self.fs = opened.fs
        self.rng = random.Random(seed)
        self.counter = 0
        self.log: list[str] = []

    def paths(self, kind: int) -> list[str]:
        found, stack = [], ["/"]
        while stack:
            directory = stack.pop()
            if kind == 4:
                found.append(directory)
            for name, _, dtype in self.fs.scan(directory):
                path = f"{directory.rstrip('/')}/{name}"
                if dtype == kind and kind != 4:
                    found.append(path)
                if dtype == 4:
                    stack.append(path)
        return sorted(found)

    def new_path(self) -> str:
        self.counter += 1
        directory = self.rng.choice(self.paths(4))
        name = f"n{self.counter}" + "x" * self.rng.choice((0, 0, 0, 30, 120, 240))
        return f"{directory.rstrip('/')}/{name}"

    def step(self) -> None:
        name = self.rng.choice(OPS.split())
        self.log.append(name)
        try:
            getattr(self, f"do_{name}")()
        except OSError as error:
            self.log[-1] += f" -> {error}"

    def file(self) -> str:
        return self.rng.choice(self.paths(8) or [self.make_file()])

    def make_file(self) -> str:
        path = self.new_path()
        self.fs.open(path, "wb").close()
        return path

    def do_create(self) -> None:
        self.make_file()

    def do_write(self) -> None:
        with self.fs.open(self.file(), "r+b") as file:
            size = self.rng.choice((1, 100, 4096, 8192, 5000, 40000))
            file.pwrite(self.rng.randbytes(size), self.rng.randrange(100_000))

    def do_append(self) -> None:
        with self.fs.open(self.file(), "ab") as file:
            file.write(self.rng.randbytes(self.rng.choice((10, 4096))))

    def do_truncate(self) -> None:
        self.fs.truncate(self.file(), self.rng.choice((0, 1, 4096, 6000, 50_000)))

    def do_unlink(self) -> None:
        self.fs.unlink(self.file())

    def do_rename(self) -> None:
        target = self.new_path() if self.rng.random() < 0.6 else self.file()
        source = self.file() if self.rng.random() < 0.7 else self.rng.choice(self.paths(4))
        self.fs.rename(source, target)

    def do_link(self) -> None:
        self.fs.link(self.file(), self.new_path())

    def do_symlink(self) -> None:
        self.fs.symlink("target" * self.rng.randrange(1, 200), self.new_path())

    def do_chmod(self) -> None:
        self.fs.chmod(self.file(), self.rng.choice((0o600, 0o644)))

    def do_xattr(self) -> None:
        path, name = self.file(), self.rng.choice(("user.a", "user.b"))
        if self.rng.random() < 0.3:
            self.fs.removexattr(path, name)
        else:
            self.fs.setxattr(path, name, self.rng.randbytes(self.rng.choice((0, 5, 900))))

    def do_mkdir(self) -> None:
        self.fs.make_dir(self.new_path())

    def do_rmdir(self) -> None:
        self.fs.rmdir(self.rng.choice(self.paths(4)))

    def do_snapshot(self) -> None:
        self.fs.snapshot_create(None)

    def do_snapshot_delete(self) -> None:
        if table := self.fs.snapshot_table():
            self.fs.snapshot_delete(self.rng.choice(table)["epoch_id"])

    def do_reclaim(self) -> None:
        self.fs.reclaim(self.rng.choice((1, 10, 10000)))

    def do_burst(self) -> None:
        """Enough entries in one log that garbage collection has pages to give back."""
        path, directory = self.file(), self.rng.choice(self.paths(4)).rstrip("/")
        for number in range(self.rng.choice((10, 150))):
            self.fs.setxattr(path, "user.a", b"%d" % number)
            with self.fs.open(path, "r+b") as file:
                file.pwrite(b"%d" % number, number % 7 * 4096)
            self.fs.symlink("burst", f"{directory}/burst")
            self.fs.unlink(f"{directory}/burst")
        if self.rng.random() < 0.5:
            self.fs.removexattr(path, "user.a")

    def do_gc(self) -> None:
        before = everything(self.fs)
        self.fs.gc()
        assert everything(self.fs) == before

    def settle(self) -> None:
        while self.fs.reclaim(10000):
            continue


def contents(fs: Any) -> dict[str, Any]:
    """What a file system, or a snapshot, shows: by path, attributes and data."""
    found: dict[str, Any] = {}
    stack = ["/"]
    while stack:
        directory = stack.pop()
        for name, ino, dtype in fs.scan(directory):
            path = f"{directory.rstrip('/')}/{name}"
            status = fs.lstat(path)
            shown = (ino, status.st_mode, status.st_nlink, status.st_mtime_ns)
            if dtype == 4:
                stack.append(path)
                found[path] = shown
            elif dtype == 10:
                found[path] = (*shown, fs.readlink(path))
            else:
                with fs.open(path, "rb") as file:
                    data = file.read()
                xattrs = {key: fs.getxattr(path, key) for key in fs.listxattr(path)}
                found[path] = (*shown, status.st_size, data, xattrs)
    return found


def everything(fs: Any) -> dict[int, dict[str, Any]]:
    """Contents of the live file system (as 0) and of every snapshot, by its id."""
    found = {0: contents(fs)}
    for info in fs.snapshot_table():
        with fs.snapshot_open(info["epoch_id"]) as snapshot:
            found[info["epoch_id"]] = contents(snapshot)
    return found


def assert_clean(image: bytes, actor: Actor, free: int | None = None) -> dict[str, Any]:
    report = check(image, free_blocks=free)
    assert report.ok, "\n".join([*actor.log[-20:], format_report(report)])
    return report.statistics


@pytest.mark.parametrize("seed", SEEDS)
def test_every_state_between_operations_is_consistent(seed: int) -> None:
    with arena() as opened:
        actor = Actor(opened, seed)
        for step in range(STEPS):
            actor.step()
            if step % 40 == 0:
                assert_clean(opened.image(), actor)
        actor.settle()
        assert_clean(opened.image(), actor, opened.free())


@pytest.mark.parametrize("seed", SEEDS)
def test_crash_and_clean_mount_agree_with_the_checker(seed: int) -> None:
    with arena() as opened:
        actor = Actor(opened, seed + 100)
        for _ in range(STEPS):
            actor.step()
        crashed = opened.image()
        held = everything(opened.fs)
        tree = dump(crashed, "tree")
        actor.settle()
        clean = opened.unmount()
        report = check(clean)
        assert report.ok and not report.warnings, format_report(report)
        assert report.statistics["arena"]["state"] == "clean"
        assert dump(clean, "superblock")["copies"][0]["lists_saved"] == 1
        assert report.statistics["blocks"]["list"] >= report.statistics["snapshots"]["count"]
    for image, state in ((crashed, "crashed"), (clean, "clean")):
        assert check(image).statistics["arena"]["state"] == state
        with arena(image, cpus=3) as again:
            assert again.recovery["clean"] == (state == "clean")
            actor = Actor(again, seed)
            actor.settle()
            assert_clean(again.image(), actor, again.free())
            assert dump(again.image(), "tree") == tree
            assert everything(again.fs) == held
            for _ in range(30):
                actor.step()
            actor.settle()
            assert_clean(again.image(), actor, again.free())


def test_open_files_that_are_deleted() -> None:
    with arena() as opened:
        actor = Actor(opened, 0)
        before = opened.fs.open("/orphan", "w+b")
        before.write(b"x" * 20_000)
        opened.fs.snapshot_create("with")
        before.pwrite(b"y" * 5000, 0)
        opened.fs.unlink("/orphan")
        before.pwrite(b"z" * 5000, 8192)
        after = opened.fs.open("/unseen", "w+b")
        after.write(b"x" * 20_000)
        opened.fs.unlink("/unseen")
        report = check(opened.image())
        assert report.ok, format_report(report)
        assert report.statistics["inodes"]["orphans"] == 1
        assert report.statistics["inodes"]["kept_for_snapshots"] == 1
        crashed = opened.image()
        before.close()
        after.close()
        actor.settle()
        assert_clean(opened.image(), actor, opened.free())
    with arena(crashed) as again:
        actor = Actor(again, 0)
        actor.settle()
        statistics = assert_clean(again.image(), actor, again.free())
        assert statistics["inodes"]["orphans"] == 0


def test_all_space_comes_back() -> None:
    with arena() as opened:
        actor = Actor(opened, 7)
        for _ in range(STEPS):
            actor.step()
        for info in opened.fs.snapshot_table():
            opened.fs.snapshot_delete(info["epoch_id"])
        for path in (*actor.paths(8), *actor.paths(10)):
            opened.fs.unlink(path)
        for path in sorted(actor.paths(4), key=len, reverse=True):
            if path != "/":
                opened.fs.rmdir(path)
        actor.settle()
        blocks = assert_clean(opened.image(), actor, opened.free())["blocks"]
        assert blocks["data"] == blocks["held"] == blocks["orphan"] == 0

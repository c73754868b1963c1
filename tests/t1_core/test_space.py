"""A full arena: a clear error, nothing half done, and all of it back after deleting."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any

import pytest

import nova_mp
from nova_mp.client.attached import AttachedFileSystem
from nova_mp.client.base import FileSystem

SMALL_BYTES = 16 << 20
# What the root's log may have grown by; it is collected later, and does not grow without bound.
LOG_BLOCKS = 48


@pytest.fixture(scope="module", params=["attached", "remote"])
def small(request: pytest.FixtureRequest, private_places: None, arena_prefix: str) -> Iterator[Any]:
    """A file system in an arena that is soon full."""
    name = f"{arena_prefix}small-{request.param}"
    nova_mp.mkfs(name, size=SMALL_BYTES, cpus=2)
    try:
        with nova_mp.start(name) as engine:
            connect = nova_mp.attach if request.param == "attached" else nova_mp.connect
            with connect(engine.name) as fs:
                # Inode tables stay once they are made, so they are made before anything is counted.
                for path in fill(fs, 4096):
                    fs.unlink(path)
                yield fs
    finally:
        nova_mp.destroy(name)


@pytest.fixture
def free_before(small: FileSystem) -> Iterator[int]:
    """Free blocks before the test; what it takes must be back after."""
    before = small.statvfs("/").f_bfree
    yield before
    for entry in list(small.scandir("/")):
        if entry.is_dir(follow_symlinks=False):
            small.rmtree(entry.path)
        else:
            small.unlink(entry.path)
    assert before - small.statvfs("/").f_bfree < LOG_BLOCKS


def no_space(error: OSError) -> bool:
    return error.errno == errno.ENOSPC


def fill(fs: FileSystem, chunk: int = 1 << 16) -> list[str]:
    """Write files until nothing fits any more; their names."""
    made: list[str] = []
    while True:
        name = f"/fill{len(made)}"
        try:
            fs.write_bytes(name, bytes([len(made) % 251 + 1]) * chunk)
        except OSError as error:
            assert no_space(error)
            if fs.exists(name):
                fs.unlink(name)
            return made
        made.append(name)


@pytest.mark.parametrize("chunk", [4096, 1 << 16, 1 << 20])
def test_data_until_it_is_full(small: FileSystem, free_before: int, chunk: int) -> None:
    made = fill(small, chunk)
    # A file takes its blocks and one for its log.
    assert len(made) * (chunk + 4096) > SMALL_BYTES * 0.85
    for number, name in enumerate(made):
        assert small.read_bytes(name) == bytes([number % 251 + 1]) * chunk
    for name in made[::2]:
        small.unlink(name)
    again = small.write_bytes("/again", b"a" * chunk)
    assert again == chunk
    assert small.read_bytes("/again") == b"a" * chunk
    assert small.read_bytes(made[1]) == bytes([2]) * chunk


def test_a_write_that_does_not_fit_changes_nothing(small: FileSystem, free_before: int) -> None:
    small.write_bytes("/f", b"0123456789" * 1000)
    fill(small)
    with small.open("/f", "r+b") as file:
        with pytest.raises(OSError) as caught:
            file.pwrite(bytes(SMALL_BYTES), 5000)
        assert no_space(caught.value)
        assert file.stat().st_size == 10_000
        assert file.pread(20_000, 0) == b"0123456789" * 1000
    with small.open("/f", "ab") as file:
        with pytest.raises(OSError) as caught:
            file.write(bytes(SMALL_BYTES))
        assert no_space(caught.value)
        assert file.stat().st_size == 10_000


def test_full_means_full_for_everything(small: FileSystem, free_before: int) -> None:
    """Whatever fails for want of space leaves the tree as it was; deleting always works."""
    small.mkdir("/d")
    made = fill(small, 4096)
    before = sorted(small.listdir("/"))
    failed = 0
    for number in range(2000):
        for action in (
            lambda number=number: small.mkdir(f"/d/dir{number}"),
            lambda number=number: small.symlink("x" * 200, f"/d/link{number}"),
            lambda number=number: small.open(f"/d/file{number}", "xb").close(),
        ):
            try:
                action()
            except OSError as error:
                assert no_space(error)
                failed += 1
        if failed > 10:
            break
    assert failed > 10
    assert sorted(small.listdir("/")) == before
    for name in made:
        small.unlink(name)
    small.rmtree("/d")
    assert small.listdir("/") == []


def test_overwriting_when_full(small: FileSystem, free_before: int) -> None:
    """An overwrite needs room for the new blocks; it is done whole or not at all."""
    small.write_bytes("/f", b"old!" * 16384)
    fill(small, 4096)
    with small.open("/f", "r+b") as file:
        try:
            file.pwrite(b"new!" * 16384, 0)
            expected = b"new!"
        except OSError as error:
            assert no_space(error)
            expected = b"old!"
        assert file.pread(1 << 20, 0) == expected * 16384


def test_fallocate_reserves(small: FileSystem, free_before: int) -> None:
    with small.open("/f", "w+b") as file:
        with pytest.raises(OSError) as caught:
            file.fallocate(0, 4 * SMALL_BYTES)
        assert no_space(caught.value)
        file.fallocate(0, 1 << 20)
        fill(small)
        assert file.stat().st_size == 1 << 20
        assert file.pread(10, 12345) == bytes(10)


def test_snapshots_hold_space_until_deleted(small: FileSystem, free_before: int) -> None:
    small.write_bytes("/f", os.urandom(4 << 20))
    snapshot = small.snapshots.create()
    small.unlink("/f")
    assert free_before - small.statvfs("/").f_bfree >= 1024
    made = fill(small)
    small.snapshots.delete(snapshot)
    small.snapshots.wait(timeout=30)
    small.write_bytes("/g", bytes(3 << 20))
    assert small.stat("/g").st_size == 3 << 20
    assert made


@pytest.mark.parametrize("size", [1 << 30, 1 << 40, (1 << 43) - (1 << 20)])
def test_what_can_never_fit_takes_nothing(small: FileSystem, free_before: int, size: int) -> None:
    """No index is made for blocks that there are not: memory for it is everybody's."""
    with small.open("/file", "w+b") as file:
        file.write(b"here")
        before = small.stats()["dram"]["bytes_used"]
        with pytest.raises(OSError, match="No space") as raised:
            file.fallocate(0, size)
        assert no_space(raised.value)
        with pytest.raises(OSError, match="No space"):
            file.pwrite(bytes(2 * SMALL_BYTES), size)
        file.truncate(size)
        if isinstance(small, AttachedFileSystem):
            with pytest.raises(OSError, match="No space"):
                file.mmap()
        assert small.stats()["dram"]["bytes_used"] <= before + (64 << 10)
        file.seek(0)
        assert file.read(5) == b"here\0"

"""One file in or out: what is replaced, what is written into, what a failure leaves behind."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nova_mp.client.base import FileSystem
from nova_mp.client.places import InArena, Machine, Place
from nova_mp.client.transfer import CHUNK_BYTES, Item, ItemCopier, Progress

preadv = os.preadv


class Enough(Exception):
    """Raised by a callback of progress."""


def stop(progress: Progress) -> None:
    raise Enough


@pytest.mark.parametrize("size", [10, 3 << 20])
def test_a_failed_copy_leaves_what_was_there(fs: FileSystem, tmp_path: Path, size: int) -> None:
    """Of a small file it is the write that fails, of a large one the second chunk."""
    (tmp_path / "new").write_bytes(bytes(size))
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "link").symlink_to("old")
    fs.write_bytes("/new", bytes(size))
    fs.write_bytes("/old", b"old")
    fs.symlink("old", "/link")
    with pytest.MonkeyPatch.context() as patch:
        if size < CHUNK_BYTES:
            patch.setattr(Place, "_in_place_of", broken_rename(Place._in_place_of))
        for target in ("old", "link"):
            with pytest.raises(Enough):
                fs.put(tmp_path / "new", f"/{target}", progress=stop)
            with pytest.raises(Enough):
                fs.get("/new", tmp_path / target, progress=stop)
    assert fs.read_bytes("/link") == (tmp_path / "link").read_bytes() == b"old"
    assert sorted(fs.listdir("/")) == sorted(os.listdir(tmp_path)) == ["link", "new", "old"]


def broken_rename(in_place_of: Any) -> Any:
    """As it is, but something goes wrong before the rename."""

    @contextmanager
    def replacement(self: Place, goal: Any, name: Any) -> Iterator[None]:
        with in_place_of(self, goal, name):
            yield
            raise Enough

    return replacement


def test_a_copy_replaces_what_a_link_leads_to(fs: FileSystem, tmp_path: Path) -> None:
    """It gets the source's mode and times, and keeps its owner."""
    for size in (10, 3 << 20):
        new = os.urandom(size)
        (tmp_path / "new").write_bytes(new)
        os.chmod(tmp_path / "new", 0o640)
        os.utime(tmp_path / "new", ns=(5, 1_234_567_891))
        fs.put(tmp_path / "new", "/new")
        for place in (tmp_path / "d", Path("/d")):
            on: Any = os if place.is_relative_to(tmp_path) else fs
            on.mkdir(place) if size == 10 else on.unlink(place / "old")
            with open(place / "old", "w") if on is os else fs.open(place / "old", "w"):
                pass
            if os.geteuid() == 0:
                on.chown(place / "old", 1234, 4321)
            owner = on.stat(place / "old").st_uid, on.stat(place / "old").st_gid
            if size == 10:
                on.symlink("d/old", place.parent / "link")
            if on is os:
                fs.get("/new", tmp_path / "link")
            else:
                fs.put(tmp_path / "new", "/link")
            status = on.stat(place / "old")
            assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o640, 1_234_567_891)
            assert (status.st_uid, status.st_gid) == owner
            assert on.listdir(place) == ["old"]
            assert on.readlink(place.parent / "link") == "d/old"
        assert fs.read_bytes("/link") == (tmp_path / "link").read_bytes() == new


def test_copies_of_long_names(fs: FileSystem, tmp_path: Path) -> None:
    name = "\u00fc" * 127 + "x"
    for _again in range(2):
        (tmp_path / name).write_bytes(b"long")
        fs.put(tmp_path / name, f"/{name}")
        (tmp_path / name).unlink()
        fs.get(f"/{name}", tmp_path / name)
    assert fs.listdir("/") == os.listdir(tmp_path) == [name]


def test_a_copy_in_a_directory_that_cannot_be_changed(fs: FileSystem, tmp_path: Path) -> None:
    """The file is written in place; a new one cannot be made."""

    def opened(self: Place, path: Any, flags: int, mode: int = 0o600) -> Any:
        if flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, "no", path)
        return original(self, path, flags)

    (tmp_path / "old").write_bytes(b"older and longer")
    inode = (tmp_path / "old").stat().st_ino
    fs.write_bytes("/new", b"new")
    fs.chmod("/new", 0o604)
    original = Machine._open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Machine, "_open", opened)
        fs.get("/new", tmp_path / "old")
        with pytest.raises(PermissionError) as caught:
            fs.get("/new", tmp_path / "other")
    assert caught.value.filename == str(tmp_path / "other")
    assert (tmp_path / "old").read_bytes() == b"new"
    status = (tmp_path / "old").stat()
    assert (status.st_ino, stat.S_IMODE(status.st_mode)) == (inode, 0o604)


def test_a_pipe_is_written_into(fs: FileSystem, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    before = pipe.stat()
    with fs.open("/sparse", "wb") as file:
        file.pwrite(b"begin", 100_000)
        file.truncate(3 << 20)
    fs.chmod("/sparse", 0o666)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    fs.get("/sparse", pipe)
    reader.join(20)
    assert found == [fs.read_bytes("/sparse")]
    # One that goes away makes the copy fail, which leaves the pipe alone.
    reader = threading.Thread(target=lambda: os.close(os.open(pipe, os.O_RDONLY)))
    reader.start()
    with pytest.raises(BrokenPipeError):
        fs.get("/sparse", pipe)
    reader.join(20)
    after = pipe.stat()
    assert (after.st_mode, after.st_ino) == (before.st_mode, before.st_ino)


def test_a_descriptor_is_written_into(fs: FileSystem, tmp_path: Path) -> None:
    """As by /dev/stdout: the file stays the one that is open."""
    fs.write_bytes("/f", b"text")
    with open(tmp_path / "out", "w+b") as out:
        (tmp_path / "link").symlink_to(f"/proc/self/fd/{out.fileno()}")
        before = os.fstat(out.fileno())
        fs.chmod("/f", 0o606)
        fs.get("/f", tmp_path / "link")
        assert out.read() == b"text"
        assert os.fstat(out.fileno()).st_mode == before.st_mode
    assert sorted(os.listdir(tmp_path)) == ["link", "out"]


def test_put_reads_to_the_end(
    fs: FileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads may be short, and files of /proc say nothing about their size."""
    (tmp_path / "f").write_bytes(os.urandom(200_000))
    monkeypatch.setattr(
        os, "preadv", lambda number, buffers, offset: preadv(number, [buffers[0][:70_001]], offset)
    )
    fs.put(tmp_path / "f", "/f")
    assert fs.read_bytes("/f") == (tmp_path / "f").read_bytes()
    status = os.stat(tmp_path / "f")
    for size in (0, 1000, 4 << 20):
        told = SimpleNamespace(
            st_size=size,
            st_blocks=8 if size == 1000 else 0,
            st_nlink=1,
            st_mode=status.st_mode,
            st_atime_ns=1,
            st_mtime_ns=1,
        )
        ItemCopier(Machine(), InArena(fs)).copy_file(Item(tmp_path / "f", "/g", told))
        assert fs.read_bytes("/g") == (tmp_path / "f").read_bytes()


def test_put_skips_holes(fs: FileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def counted(number: int, buffers: list[Any], offset: int) -> int:
        read.append(preadv(number, buffers, offset))
        return read[-1]

    for tail in (0, 1 << 20):
        with open(tmp_path / "sparse", "wb") as file:
            os.pwrite(file.fileno(), b"a", 10 << 20)
            os.pwrite(file.fileno(), b"b", 20 << 20)
            file.truncate((20 << 20) + 1 + tail)
        monkeypatch.setattr(os, "preadv", counted)
        final = fs.put(tmp_path / "sparse", "/sparse")
        assert final.bytes_done == final.bytes_total == (20 << 20) + 1 + tail
        assert sum(read) < 2 << 20
        status = fs.stat("/sparse")
        assert (status.st_size, status.st_blocks) == (final.bytes_total, 16)
        with fs.open("/sparse") as file:
            assert [file.pread(2, at << 20) for at in (0, 10)] == [b"\0\0", b"a\0"]
            assert file.pread(1, 20 << 20) == b"b"
        # Where nobody knows of holes, zeros tell.
        monkeypatch.setattr(os, "lseek", no_seek)
        monkeypatch.setattr(os, "preadv", preadv)
        fs.put(tmp_path / "sparse", "/again")
        monkeypatch.undo()
        assert fs.stat("/again").st_size == final.bytes_total
        assert fs.stat("/again").st_blocks * 512 < 1 << 20
        read.clear()


def no_seek(number: int, offset: int, whence: int) -> int:
    raise OSError(errno.EINVAL, "no idea of holes")


def test_links_are_made_to_what_was_copied_only(fs: FileSystem, tmp_path: Path) -> None:
    """Not to a copy that was overwritten since, nor in place of the copy itself."""
    for name, text in (("a", "a"), ("b", "b")):
        (tmp_path / name).write_text(text)
        os.link(tmp_path / name, tmp_path / f"{name}2")
    fs.mkdir("/d")
    copier = ItemCopier(Machine(), InArena(fs))

    def copy(source: str, target: str) -> None:
        copier.copy_file(Item(tmp_path / source, target, os.stat(tmp_path / source)))

    copy("a", "/d/f")
    copy("b", "/d/f")
    copy("a2", "/d/g")
    assert (fs.read_bytes("/d/f"), fs.read_bytes("/d/g")) == (b"b", b"a")
    copy("a", "/d/g")
    assert fs.read_bytes("/d/g") == b"a"
    assert sorted(fs.listdir("/d")) == ["f", "g"]
    copy("a2", "/d/h")
    fs.unlink("/d/h")
    fs.write_bytes("/d/g", b"another's")
    fs.unlink("/d/g")
    copy("a2", "/d/i")
    assert fs.read_bytes("/d/i") == b"a"
    copy("a", "/d/f")
    assert fs.stat("/d/f").st_ino == fs.stat("/d/i").st_ino
    assert fs.read_bytes("/d/f") == b"a"

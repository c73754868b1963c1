"""What users get wrong, or leave to chance: types, names, ends, and whose it is."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from model.differential import Action, errno_of

import nova_mp
from nova_mp.client.base import FileSystem

TOO_LONG = "n" * 256


def test_arguments_of_wrong_types(fs: FileSystem) -> None:
    fs.write_bytes("/file", b"")
    bad: list[Action] = [
        lambda fs: fs.mkdir("/new", "x"),
        lambda fs: fs.chmod("/file", 6.5),
        lambda fs: fs.chown("/file", "root", 0),
        lambda fs: fs.truncate("/file", 1.0),
        lambda fs: fs.truncate("/file", None),
        lambda fs: fs.setxattr("/file", "user.a", 3),
        lambda fs: fs.utime("/file", [1, 2]),
        lambda fs: fs.utime("/file", (1,)),
        lambda fs: fs.utime("/file", ns=(1.0, 2)),
        lambda fs: fs.symlink(None, "/link"),
        lambda fs: fs.snapshots.create(5),
        lambda fs: fs.snapshots.get(None),
        lambda fs: fs.snapshots.delete(1.5),
        lambda fs: fs.snapshots.open(True),
        lambda fs: fs.freeze(True),
    ]
    before = fs.stat("/file")
    for action in bad:
        with pytest.raises(TypeError):
            action(fs)
    for seconds in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ValueError, match="seconds"):
            fs.freeze(seconds)
    with pytest.raises(OverflowError):
        fs.chown("/file", -2, 0)
    assert fs.listdir("/") == ["file"]
    assert fs.stat("/file") == before
    fs.chown("/file", 2**32 - 2, -1)
    assert fs.stat("/file").st_uid == 2**32 - 2


def test_extended_attributes_that_cannot_be(fs: FileSystem) -> None:
    fs.write_bytes("/file", b"")
    for name, code in {
        "": errno.ERANGE, "user." + "n" * 300: errno.ERANGE, "user.": errno.EINVAL,
        "other.name": errno.EOPNOTSUPP, "plain": errno.EOPNOTSUPP,
    }.items():
        for action in (
            lambda name=name: fs.setxattr("/file", name, b"v"),
            lambda name=name: fs.getxattr("/file", name),
            lambda name=name: fs.removexattr("/file", name),
        ):
            assert errno_of(action) == code, name
    assert errno_of(lambda: fs.setxattr("/file", "user.a", b"v", 8)) == errno.EINVAL
    with pytest.raises(ValueError, match="null"):
        fs.setxattr("/file", "user.a\0b", b"v")
    assert fs.listxattr("/file") == []


def test_whole_seconds_are_whole(fs: FileSystem) -> None:
    fs.write_bytes("/file", b"")
    for second in (31, 32, 1_234_567_891, 1_763_000_001, -7):
        fs.utime("/file", (second, second))
        assert fs.stat("/file").st_mtime == second


def test_a_closed_file_system_does_nothing(engine: Any) -> None:
    for way in (nova_mp.attach, nova_mp.connect):
        fs = way(engine.name)
        fs.close()
        actions: list[Action] = [
            lambda fs: fs.snapshots.create("leaked"),
            lambda fs: fs.snapshots.wait(),
            lambda fs: fs.freeze(),
            lambda fs: fs.unfreeze(),
            lambda fs: fs.stat("/"),
        ]
        for action in actions:
            with pytest.raises(ValueError, match="closed"):
                action(fs)
    with nova_mp.attach(engine.name) as fs:
        assert "leaked" not in [snapshot.name for snapshot in fs.snapshots.list()]
        assert not fs.stats()["frozen"]


def test_an_expired_freeze_spares_that_of_another(engine: Any) -> None:
    with nova_mp.attach(engine.name) as fs, nova_mp.connect(engine.name) as other:
        with fs.frozen(0.05):
            until = time.monotonic() + 10
            while fs.stats()["frozen"] and time.monotonic() < until:
                time.sleep(0.01)
            other.freeze(20.0)
        assert fs.stats()["frozen"]
        other.unfreeze()


def test_walking_past_links_that_lead_nowhere(fs: FileSystem) -> None:
    fs.makedirs("/dir/sub")
    fs.symlink("self", "/dir/self")
    fs.symlink(TOO_LONG, "/dir/long")
    fs.symlink("missing", "/dir/dangling")
    found = list(fs.walk("/dir", followlinks=True))
    assert [(where, dirs, sorted(files)) for where, dirs, files in found] == [
        ("/dir", ["sub"], ["dangling", "long", "self"]), ("/dir/sub", [], []),
    ]


def test_a_view_is_closed_by_whoever_opened_it(fs: FileSystem) -> None:
    """Not by a forked child; and, if nobody closes it, with the last reference."""
    fs.write_bytes("/file", b"then")
    snapshot = fs.snapshots.create()
    view = fs.snapshots.open(snapshot)
    pid = os.fork()
    if pid == 0:
        view.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert errno_of(lambda: fs.snapshots.delete(snapshot)) == errno.EBUSY
    assert view.read_bytes("/file") == b"then"
    del view
    gc.collect()
    # A finalizer of a remote view leaves the message to the next request.
    fs.exists("/")
    fs.snapshots.delete(snapshot)


@pytest.mark.parametrize(
    "name", ["", "12", "a/b", "a@b", "a\0b", "a\nb", "\x1b[1m", " a", "a ", "-a", "\udcff"]
)
def test_names_that_no_snapshot_can_have(fs: FileSystem, name: str) -> None:
    before = len(fs.snapshots)
    with pytest.raises(ValueError, match="snapshot's name"):
        fs.snapshots.create(name)
    assert len(fs.snapshots) == before


@pytest.mark.parametrize("kind", "rwxa")
def test_every_spelling_of_a_mode(fs: FileSystem, kind: str) -> None:
    for plus in ("", "+"):
        for letters in itertools.permutations(kind + "b" + plus):
            fs.write_bytes("/there", b"x")
            path = "/new" if kind == "x" else "/there"
            with fs.open(path, "".join(letters)) as file:
                assert file.readable() == (kind == "r" or bool(plus))
                assert file.writable() == (kind != "r" or bool(plus))
            if kind == "x":
                fs.unlink(path)


def test_text_files_have_the_operations_of_binary_ones(fs: FileSystem) -> None:
    with fs.open("/text", "w+", encoding="utf-8") as file:
        file.write("h\u00e9llo")
        assert file.pread(3, 0) == b"h\xc3\xa9"
        assert file.stat().st_size == 6
        assert file.pwrite(b"J", 0) == 1
        file.fallocate(0, 4096)
        file.fsync()
        buffer = bytearray(3)
        assert file.preadinto(buffer, 3) == 3
        assert buffer == b"llo"
        file.truncate(6)
    snapshot = fs.snapshots.create()
    with fs.snapshots.open(snapshot) as view, view.open("/text", "r", encoding="utf-8") as file:
        assert file.pread(1, 0) == b"J"
        assert file.read() == "J\u00e9llo"
    fs.snapshots.delete(snapshot)


def test_errors_of_open_files_name_the_file(fs: FileSystem) -> None:
    with fs.open("/named", "w+b") as file:
        for action in (
            lambda: file.pread(1, -1),
            lambda: file.pwrite(b"", -1),
            lambda: file.seek(-1),
            lambda: file.truncate(-1),
            lambda: file.fallocate(0, 0),
            lambda: file.fallocate(0, 1 << 40),
        ):
            with pytest.raises(OSError, match="/named") as raised:
                action()
            assert raised.value.filename == "/named"


def test_positions_are_whole_and_have_an_end(fs: FileSystem) -> None:
    with fs.open("/position", "w+b") as file:
        actions: list[Callable[[], Any]] = [
            lambda: file.seek(1.0),
            lambda: file.pread(1.0, 0),
            lambda: file.pread(1, 0.0),
            lambda: file.pwrite(b"x", 0.0),
            lambda: file.truncate(1.0),
            lambda: file.fallocate(0, 1.0),
            lambda: file.fallocate("0", 1),
        ]
        for action in actions:
            with pytest.raises(TypeError):
                action()
        with pytest.raises(OverflowError):
            file.seek(1 << 70)
        assert file.seek((1 << 63) - 1) == (1 << 63) - 1
        with pytest.raises(OSError, match="Invalid"):
            file.seek(1, os.SEEK_CUR)

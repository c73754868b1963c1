"""Defects 33 to 41 of NOVA: what has to respect epochs, and did not. 1 to 24 are in `t2_crash`."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from crashsim.arena import MIB, Arena, arena, contents
from t2_crash.defects_help import exact, get, ids, put, same, state

from nova_mp import NoSuchSnapshot
from nova_mp.tools.image import BLOCK_BYTES


@pytest.fixture
def a() -> Iterator[Arena]:
    with arena(8 * MIB) as opened:
        yield opened


def test_defect_33_fallocate_over_old_data(a: Arena) -> None:
    """fallocate put zeroed blocks over data that a snapshot shares with the file."""
    data = b"old!" * 4096
    put(a.fs, "/file", data)
    made = a.fs.snapshot_create(None)
    with a.fs.open("/file", "r+b") as file:
        file.fallocate(0, 8 * BLOCK_BYTES)
    grown = a.fs.stat("/file")
    assert grown.st_size == 8 * BLOCK_BYTES
    assert grown.st_blocks == 8 * BLOCK_BYTES // 512
    assert get(a.fs, "/file") == data + bytes(4 * BLOCK_BYTES)
    with a.fs.snapshot_open(made) as view:
        assert get(view, "/file") == data
        assert view.stat("/file").st_blocks == 4 * BLOCK_BYTES // 512
    exact(a)


def test_defect_34_truncate_inside_a_page(a: Arena) -> None:
    """truncate zeroed the rest of the last page in place, in the snapshot too."""
    put(a.fs, "/file", b"x" * 6000)
    made = a.fs.snapshot_create(None)
    a.fs.truncate("/file", 5000)
    a.fs.truncate("/file", 7000)
    assert get(a.fs, "/file") == b"x" * 5000 + bytes(2000)
    with a.fs.snapshot_open(made) as view:
        assert get(view, "/file") == b"x" * 6000


def test_defect_35_rename_to_another_directory(a: Arena) -> None:
    """Renaming a directory changed its '..' in place, in the snapshot too."""
    for path in ("/from", "/to", "/from/moved", "/from/moved/in"):
        a.fs.make_dir(path)
    made = a.fs.snapshot_create(None)
    before = contents(a.fs)
    a.fs.rename("/from/moved", "/to/moved")
    assert a.fs.stat("/to/moved/..").st_ino == a.fs.stat("/to").st_ino
    with arena(image=a.image()) as crashed:
        for opened in (a, crashed):
            with opened.fs.snapshot_open(made) as view:
                assert view.stat("/from/moved/..").st_ino == view.stat("/from").st_ino
                assert (view.stat("/from").st_nlink, view.stat("/to").st_nlink) == (3, 2)
                same(contents(view), before)


def test_defect_36_attributes_of_today(a: Arena) -> None:
    """A snapshot showed today's mode, owner, links and size; and looking into one wrote to PMEM."""
    put(a.fs, "/file", b"data")
    a.fs.symlink("file", "/link")
    a.fs.setxattr("/file", "user.old", b"1")
    a.fs.utime("/file", ns=(1, 2))
    made = a.fs.snapshot_create(None)
    before = contents(a.fs)
    a.fs.chmod("/file", 0o600)
    a.fs.chown("/file", 7, 8)
    a.fs.link("/file", "/second")
    a.fs.truncate("/file", 1)
    a.fs.utime("/file", ns=(3, 4))
    a.fs.setxattr("/file", "user.old", b"2")
    a.fs.unlink("/link")
    image = a.image()
    for _ in range(2):
        with a.fs.snapshot_open(made) as view:
            same(contents(view), before)
    assert a.image() == image, "looking into a snapshot has changed the medium"


def test_defect_37_log_space_comes_back(a: Arena) -> None:
    """Metadata entries of past epochs stayed for ever, with no snapshot left that needs them."""
    put(a.fs, "/file", b"data")
    a.settle()
    a.fs.gc()
    start = a.fs.stats()["blocks"]
    for number in range(1500):
        a.fs.chmod("/file", 0o600 + number % 64)
        if number % 2:
            a.fs.snapshot_create(None)
    assert a.fs.stats()["blocks"]["live"] > start["live"] + 10
    for epoch_id in ids(a.fs):
        a.fs.snapshot_delete(epoch_id)
    a.settle()
    a.fs.gc()
    end = a.fs.stats()["blocks"]
    # One page of the file's log, and one of the log of the snapshots.
    assert end["live"] <= start["live"] + 2
    assert end["held"] == 0
    exact(a)


def test_defect_38_unlinked_file_with_newer_blocks(a: Arena) -> None:
    """An unlinked file kept all its blocks, those written after the snapshot as well."""
    put(a.fs, "/file", b"o" * (10 * BLOCK_BYTES))
    a.fs.snapshot_create(None)
    put(a.fs, "/file", b"n" * (100 * BLOCK_BYTES), 10 * BLOCK_BYTES)
    put(a.fs, "/file", b"n" * (5 * BLOCK_BYTES))
    free = a.free()
    a.fs.unlink("/file")
    a.settle()
    assert a.free() - free >= 105
    assert a.fs.stats()["blocks"]["held"] == 10
    exact(a)


def test_defect_39_crash_look_and_unmount(a: Arena) -> None:
    """After a crash, mounting a snapshot and unmounting, what only snapshots had was free."""
    put(a.fs, "/gone", b"gone" * 3000)
    put(a.fs, "/kept", b"then" * 3000)
    made = a.fs.snapshot_create(None)
    a.fs.unlink("/gone")
    put(a.fs, "/kept", b"now." * 3000)
    a.settle()
    wanted = state(a)
    with arena(image=a.image()) as crashed:
        with crashed.fs.snapshot_open(made) as view:
            assert get(view, "/gone") == b"gone" * 3000
        again = crashed.image()
        clean = crashed.unmount()
    for image in (again, clean):
        with arena(image=image) as third:
            same(state(third), wanted)
            exact(third)


def test_defect_40_views_cannot_be_written(a: Arena) -> None:
    """Snapshots could be mounted writable, or though they did not exist, or not beside another."""
    a.fs.make_dir("/folder")
    put(a.fs, "/file", b"data")
    made = [a.fs.snapshot_create(None) for _ in range(2)]
    image = a.image()
    first, second = map(a.fs.snapshot_open, made)
    writes: list[Callable[[Any], Any]] = [
        lambda view: view.os_open("/new", os.O_CREAT | os.O_WRONLY),
        lambda view: view.os_open("/file", os.O_RDWR),
        lambda view: view.open("/file", "wb"),
        lambda view: view.truncate("/file", 0),
        lambda view: view.make_dir("/new"),
        lambda view: view.rmdir("/folder"),
        lambda view: view.unlink("/file"),
        lambda view: view.rename("/file", "/new"),
        lambda view: view.link("/file", "/new"),
        lambda view: view.symlink("file", "/new"),
        lambda view: view.chmod("/file", 0),
        lambda view: view.chown("/file", 1, 1),
        lambda view: view.utime("/file"),
        lambda view: view.setxattr("/file", "user.x", b""),
        lambda view: view.removexattr("/file", "user.x"),
    ]
    for view, write in itertools.product((first, second), writes):
        with pytest.raises(OSError, match="Read-only") as caught:
            write(view)
        assert caught.value.errno == errno.EROFS
    for missing in (0, made[-1] + 1):
        with pytest.raises(NoSuchSnapshot):
            a.fs.snapshot_open(missing)
    with pytest.raises(OSError, match="open") as caught:
        a.fs.snapshot_delete(made[0])
    assert caught.value.errno == errno.EBUSY
    first.close()
    second.close()
    assert a.image() == image


def test_defect_41_names_with_the_same_hash(a: Arena) -> None:
    """Names were told apart by a 64-bit hash alone: of two with the same, one could not be made."""
    # h * 131 + byte gives the same for both pairs; so for all of their combinations.
    pairs = (b"\x41\xc8", b"\x42\x45")
    names = [b"".join(each) for each in itertools.product(pairs, repeat=7)]

    def hash131(name: bytes) -> int:
        value = 0
        for byte in name:
            value = value * 131 + byte & (1 << 64) - 1
        return value

    assert len({hash131(name) for name in names}) == 1
    for number, name in enumerate(names):
        put(a.fs, os.fsdecode(b"/" + name), b"%d" % number)
    assert a.fs.lstat(b"/" + names[0]).st_ino != a.fs.lstat(b"/" + names[1]).st_ino
    made = a.fs.snapshot_create(None)
    for name in names[::2]:
        a.fs.unlink(b"/" + name)
    a.fs.rename(b"/" + names[1], b"/" + names[0])
    with arena(image=a.image()) as crashed:
        for opened in (a, crashed):
            assert set(map(os.fsencode, opened.fs.listdir("/"))) == {names[0], *names[3::2]}
            assert get(opened.fs, os.fsdecode(b"/" + names[0])) == b"1"
            assert not opened.fs.exists(b"/" + names[2])
            with opened.fs.snapshot_open(made) as view:
                for number, name in enumerate(names):
                    assert get(view, os.fsdecode(b"/" + name)) == b"%d" % number

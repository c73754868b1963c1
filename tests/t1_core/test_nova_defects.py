"""Defects 25 to 41 of NOVA: of mapped files (to 32), and what has to respect epochs, and did not.

1 to 24 are in `t2_crash`.
"""

from __future__ import annotations

import errno
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from crashsim.arena import MIB, Arena, arena, contents
from crashsim.death import fork, wait
from t2_crash.defects_help import exact, get, ids, put, same, state, together

from nova_mp import NoSuchSnapshot
from nova_mp.core import fs as core
from nova_mp.tools.image import BLOCK_BYTES


@pytest.fixture
def a() -> Iterator[Arena]:
    with arena(8 * MIB) as opened:
        yield opened


def mapped(fs: Any, path: str = "/file") -> Any:
    with fs.os_open(path, os.O_RDWR) as file:
        return file.mmap()


def seen(fs: Any, epoch_id: int, path: str = "/file") -> bytes:
    with fs.snapshot_open(epoch_id) as view:
        return get(view, path)


def test_defect_25_fault_and_snapshot_wait_for_each_other(a: Arena) -> None:
    """A fault held what the snapshot needed, and waited for the snapshot."""
    put(a.fs, "/file", bytes(32 * BLOCK_BYTES))
    done = threading.Event()

    def storer() -> None:
        with mapped(a.fs) as m, memoryview(m) as view:
            for number in itertools.count():
                view[number % 32 * BLOCK_BYTES] = number & 255
                if done.is_set():
                    return

    def taker() -> None:
        try:
            for _ in range(40):
                a.fs.snapshot_delete(a.fs.snapshot_create(None))
        finally:
            done.set()

    together(storer, taker, storer)
    exact(a)


def test_defect_26_unmapping_beside_snapshots(a: Arena) -> None:
    """Unmapping took two locks in the other order; the list of mappings was walked without one."""
    put(a.fs, "/file", bytes(8 * BLOCK_BYTES))
    done = threading.Event()

    def mapper() -> None:
        while not done.is_set():
            with mapped(a.fs) as m, memoryview(m) as view:
                view[5000] = 1

    def taker() -> None:
        try:
            for _ in range(40):
                a.fs.snapshot_delete(a.fs.snapshot_create(None))
        finally:
            done.set()

    together(mapper, taker, mapper)
    assert a.fs.slots()[0]["mappings"] == 0
    exact(a)


def test_defect_27_interrupted_wait(a: Arena) -> None:
    """A signal ended the wait of a store that was held back, and the store went on in the freeze.

    Here whoever stores waits for its page, signals or not.
    """
    put(a.fs, "/file", bytes(8 * BLOCK_BYTES))
    ready = os.pipe()

    def storer() -> None:
        signal.signal(signal.SIGUSR1, lambda *_: None)
        fs = core.Core(a.pm, a.dram, a.memory.fd)
        view = memoryview(mapped(fs))
        os.write(ready[1], b".")
        for number in itertools.count(1):
            view[number % 8 * BLOCK_BYTES] = number & 255

    pid = fork(storer)
    assert os.read(ready[0], 1) == b"."
    for _ in range(20):
        a.fs.freeze()
        first = a.image()
        for _ in range(20):
            os.kill(pid, signal.SIGUSR1)
        assert a.image() == first
        a.fs.unfreeze()
    os.kill(pid, signal.SIGKILL)
    assert wait(pid) == -signal.SIGKILL
    a.fs.reap()
    for end in ready:
        os.close(end)
    exact(a)


def test_defect_28_stores_of_the_kernel(a: Arena) -> None:
    """Pages that the kernel stored to for a system call were not copied for the snapshot."""
    put(a.fs, "/file", b"old." * 4096)
    if a.fs.mmap_protection != "userfaultfd":
        pytest.skip("userfaultfd is for user mode only here; then such a call fails")
    with mapped(a.fs) as m, memoryview(m) as view:
        made = a.fs.snapshot_create(None)
        left, right = os.pipe()
        os.write(right, b"n" * 10000)
        with open(left, "rb", buffering=0) as source:
            assert source.readinto(view[3000:13000]) == 10000
        os.close(right)
        assert get(a.fs, "/file")[3000:13000] == b"n" * 10000
        assert seen(a.fs, made) == b"old." * 4096
    exact(a)


def test_defect_29_once_protected_always_slow(a: Arena) -> None:
    """A mapping that was protected once took the slow path for every fault until it was closed."""
    put(a.fs, "/file", bytes(64 * BLOCK_BYTES))

    def faults() -> int:
        return int(a.fs.stats()["counters"]["map_faults"])

    with mapped(a.fs) as m, memoryview(m) as view:
        for _ in range(3):
            a.fs.snapshot_create(None)
            before = faults()
            for turn in range(50):
                for page in range(64):
                    view[page * BLOCK_BYTES] = turn
            assert 0 < faults() - before <= 64, "a page faults once after a snapshot"
    exact(a)


def test_defect_30_windows_over_newer_pages(a: Arena) -> None:
    """Copying ahead stopped at the first page that had been copied already: the rest was lost."""
    put(a.fs, "/file", b"o" * (64 * BLOCK_BYTES))
    with mapped(a.fs) as m, memoryview(m) as view:
        made = a.fs.snapshot_create(None)
        for page in range(3, 64, 7):
            view[page * BLOCK_BYTES] = ord("n")
        for page in range(64):
            view[page * BLOCK_BYTES : (page + 1) * BLOCK_BYTES] = b"N" * BLOCK_BYTES
        assert seen(a.fs, made) == b"o" * (64 * BLOCK_BYTES)
        assert a.fs.stats()["counters"]["preserved_pages"] == 64
    exact(a)


def test_defect_31_first_store_after_a_snapshot(a: Arena) -> None:
    """The first store after a snapshot got a page of zeros, no copy: live data was lost."""
    data = os.urandom(16 * BLOCK_BYTES)
    put(a.fs, "/file", data)
    with mapped(a.fs) as m, memoryview(m) as view:
        for page in range(16):
            made = a.fs.snapshot_create(None)
            before = bytes(view)
            view[page * BLOCK_BYTES + 100] ^= 255
            put(a.fs, "/file", b"w", page * BLOCK_BYTES + 200)
            now = bytearray(before)
            now[page * BLOCK_BYTES + 100] ^= 255
            now[page * BLOCK_BYTES + 200] = ord("w")
            assert bytes(view) == get(a.fs, "/file") == now
            assert seen(a.fs, made) == before
    with arena(image=a.image()) as crashed:
        assert get(crashed.fs, "/file") == now
        same(state(crashed), state(a))


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Python threads take turns much more often than usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty_threads")
def test_defect_32_writes_and_stores_have_one_cut(a: Arena) -> None:
    """A snapshot could hold a later store without an earlier write, or the other way round."""
    put(a.fs, "/file", bytes(2 * BLOCK_BYTES))
    put(a.fs, "/written", bytes(8))
    done = threading.Event()

    def changer() -> None:
        with (
            a.fs.os_open("/written", os.O_RDWR) as file,
            mapped(a.fs) as m,
            memoryview(m) as view,
        ):
            for number in itertools.count(1):
                value = number.to_bytes(8, "little")
                view[:8] = value
                file.pwrite(value, 0)
                view[BLOCK_BYTES : BLOCK_BYTES + 8] = value
                if done.is_set():
                    return

    def taker() -> None:
        try:
            for _ in range(500):
                made = a.fs.snapshot_create(None)
                stored, written = seen(a.fs, made), seen(a.fs, made, "/written")
                values = [
                    int.from_bytes(part, "little")
                    for part in (stored[:8], written, stored[BLOCK_BYTES : BLOCK_BYTES + 8])
                ]
                assert values[0] >= values[1] >= values[2] >= values[0] - 1, values
                a.fs.snapshot_delete(made)
                a.fs.reclaim(1000)
        finally:
            done.set()

    together(changer, taker)
    exact(a)


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

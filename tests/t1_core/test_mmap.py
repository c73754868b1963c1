"""Mapped files: the buffer, several mappings of one file, and system calls that store there.

`test_mmap_files.py` has what else is done to mapped files, `test_mmap_snapshots.py` what snapshots
keep of them; `test_mmap_model.py` random sequences. Deaths are in `tests/t2_crash`.
"""

from __future__ import annotations

import errno
import gc
import os
import socket
import struct
import threading
from typing import Any

import pytest
from crashsim.arena import Arena
from crashsim.death import fork, wait
from crashsim.mapped import close_all, mapped, rests, shown, tick
from t2_crash.defects_help import get, ids, put, together

from nova_mp.core import fs as core
from nova_mp.tools.image import BLOCK_BYTES

# --------------------------------------------------------------------------------- the buffer


def test_it_is_a_buffer(protected: Arena) -> None:
    fs = protected.fs
    put(fs, "/file", bytes(range(256)) * 40)
    with mapped(fs, "/file") as m, memoryview(m) as view:
        assert (view.nbytes, view.format, view.itemsize, view.readonly) == (10240, "B", 1, False)
        assert view.c_contiguous and len(m) == 10240 and m.writable and not m.closed
        assert bytes(view) == get(fs, "/file")
        struct.pack_into("<Q", m, 4090, 0x0102030405060708)
        assert struct.unpack_from("<Q", m, 4090) == (0x0102030405060708,)
        view[-3:] = b"end"
        assert "10240 bytes, rw" in repr(m)
        assert get(fs, "/file")[4090:4098] == bytes(range(8, 0, -1))
        assert get(fs, "/file").endswith(b"end")
    assert m.closed and "closed" in repr(m)
    with pytest.raises(ValueError, match="closed"):
        memoryview(m)


def test_arrays(a: Arena) -> None:
    numpy = pytest.importorskip("numpy")
    put(a.fs, "/file", bytes(8 * BLOCK_BYTES))
    with mapped(a.fs, "/file") as m:
        array = numpy.frombuffer(m, dtype="<u4")
        array[:] = range(len(array))
        made = a.fs.snapshot_create(None)
        array += 1
        old = numpy.frombuffer(shown(a.fs, made), dtype="<u4")
        assert (array == old + 1).all() and old[0] == 0
        with pytest.raises(BufferError):
            m.close()
        del array
    assert get(a.fs, "/file")[:4] == b"\1\0\0\0"


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 1), (1, 5000), (4095, 2), (4096, 4096), (5000, None), (12287, 1)]
)
def test_parts_of_a_file(a: Arena, offset: int, length: int | None) -> None:
    data = os.urandom(12288)
    put(a.fs, "/file", data)
    end = 12288 if length is None else offset + length
    made = a.fs.snapshot_create(None)
    with mapped(a.fs, "/file", offset, length) as m, memoryview(m) as view:
        assert bytes(view) == data[offset:end]
        view[:] = b"s" * (end - offset)
    assert get(a.fs, "/file") == data[:offset] + b"s" * (end - offset) + data[end:]
    assert shown(a.fs, made) == data
    rests(a)


def test_holes_get_blocks(a: Arena) -> None:
    put(a.fs, "/file", b"x", 40 * BLOCK_BYTES)
    put(a.fs, "/file", b"y", 10 * BLOCK_BYTES)
    made = a.fs.snapshot_create(None)
    with mapped(a.fs, "/file", 0, 30 * BLOCK_BYTES) as m, memoryview(m) as view:
        assert a.fs.stat("/file").st_blocks == 31 * 8
        assert bytes(view[: 10 * BLOCK_BYTES]) == bytes(10 * BLOCK_BYTES)
        view[5 * BLOCK_BYTES] = 7
    assert get(a.fs, "/file")[5 * BLOCK_BYTES] == 7
    assert shown(a.fs, made)[: 10 * BLOCK_BYTES] == bytes(10 * BLOCK_BYTES)
    rests(a)


def test_read_only(a: Arena) -> None:
    put(a.fs, "/file", b"data")
    with a.fs.open("/file", "rb") as file:
        with pytest.raises(PermissionError):
            file.mmap()
        m = file.mmap(writable=False)
    with m, memoryview(m) as view:
        assert view.readonly and bytes(view) == b"data" and not m.writable
        with pytest.raises(TypeError):
            view[0] = 1
        with (
            open("/dev/zero", "rb", buffering=0) as zeros,
            pytest.raises((BufferError, TypeError), match=r"read-only|read-write"),
        ):
            zeros.readinto(m)  # type: ignore[arg-type]
        put(a.fs, "/file", b"DA")
        assert bytes(view) == b"DAta"
        m.flush()


def test_what_cannot_be_mapped(a: Arena) -> None:
    put(a.fs, "/file", b"data")
    put(a.fs, "/empty", b"")
    with a.fs.open("/file", "r+b") as file:
        for offset, length in (
            (4, None),
            (0, 5),
            (3, 2),
            (-1, None),
            (0, 0),
            (0, -1),
            (1 << 40, 1),
        ):
            with pytest.raises(ValueError, match=r"past the end|negative"):
                file.mmap(offset, length)
    with pytest.raises(ValueError, match="closed"):
        file.mmap()
    with a.fs.open("/empty", "r+b") as file, pytest.raises(ValueError, match="past the end"):
        file.mmap()
    with pytest.raises(TypeError, match=r"File\.mmap"):
        core.Mapping()
    slot = a.fs.slots()[0]
    assert slot["mappings"] == 0
    rests(a)


def test_closing_with_exports_closes_nothing(a: Arena) -> None:
    put(a.fs, "/file", bytes(20000))
    first, second = mapped(a.fs, "/file"), mapped(a.fs, "/file", 5000)
    view = memoryview(second)
    for each in (second.close, a.fs.close):
        with pytest.raises(BufferError):
            each()
    assert not first.closed and not second.closed and not a.fs.closed
    view[0] = 9
    assert get(a.fs, "/file")[5000] == 9
    view.release()
    first.close()
    second.close()
    second.close()
    with pytest.raises(ValueError, match="closed"):
        second.flush()
    rests(a)


def test_flush_ranges(a: Arena) -> None:
    put(a.fs, "/file", bytes(20000))
    with mapped(a.fs, "/file", 100) as m:
        for offset, length in ((0, None), (0, 0), (19900, None), (10, 19890), (5000, 1)):
            m.flush(offset, length)
        for offset, length in ((-1, None), (19901, None), (0, 19901), (1, -1)):
            with pytest.raises(ValueError, match="out of bounds"):
                m.flush(offset, length)


def test_forgotten_mappings(protected: Arena) -> None:
    """One that nobody refers to is unmapped; also when it is found in a cycle."""
    fs = protected.fs
    put(fs, "/file", bytes(20000))

    class Owner:
        def __init__(self) -> None:
            self.mapping = mapped(fs, "/file")
            self.itself = self

    mapped(fs, "/file")
    Owner()
    gc.collect()
    assert fs.slots()[0]["mappings"] == 0
    fs.truncate("/file", 1)
    assert fs.stat("/file").st_blocks == 8
    rests(protected)


def test_a_process_collected_with_its_mappings(a: Arena) -> None:
    put(a.fs, "/file", bytes(20000))
    used = a.fs.stats()["dram"]

    def leave() -> None:
        fs = core.Core(a.pm, a.dram, a.memory.fd)
        holder: dict[str, Any] = {"mapping": mapped(fs, "/file"), "fs": fs}
        holder["itself"] = holder
        memoryview(holder["mapping"])[0] = 1

    leave()
    gc.collect()
    assert len({slot["slot"] for slot in a.fs.slots()}) == 1
    a.fs.snapshot_create(None)
    a.fs.truncate("/file", 1)
    assert a.fs.stat("/file").st_blocks == 8
    assert a.fs.stats()["dram"].keys() == used.keys()
    rests(a)


# ------------------------------------------------------------------------- several of one file


def test_several_mappings_of_one_file(protected: Arena) -> None:
    fs = protected.fs
    put(fs, "/file", bytes(30000))
    views = [memoryview(mapped(fs, "/file", offset)) for offset in (0, 5000, 0)]
    for number in range(20):
        made = fs.snapshot_create(None)
        at = 5000 + number * 1000
        before = bytes(views[0])
        views[number % 3][at - (5000 if number % 3 == 1 else 0)] = number + 1
        assert views[0][at] == views[1][at - 5000] == views[2][at] == number + 1
        assert shown(fs, made) == before
    for view in views:
        mapping = view.obj
        view.release()
        mapping.close()
    rests(protected)


def test_another_process(protected: Arena) -> None:
    """Both see the other's stores at once; each keeps what a snapshot has from both."""
    fs = protected.fs
    put(fs, "/file", bytes(8 * BLOCK_BYTES))
    down, up = os.pipe(), os.pipe()

    def other() -> None:
        mine = core.Core(protected.pm, protected.dram, protected.memory.fd)
        view = memoryview(mapped(mine, "/file"))
        for number in range(10):
            os.write(up[1], b".")
            assert os.read(down[0], 1) == b"."
            assert view[number] == number + 1
            view[5000 + number] = number + 1
        os.write(up[1], b".")
        os._exit(0)

    pid = fork(other)
    view = memoryview(mapped(fs, "/file"))
    made = []
    for number in range(10):
        tick(up[0])
        made.append((fs.snapshot_create(None), bytes(view)))
        view[number] = number + 1
        os.write(down[1], b".")
    tick(up[0])
    assert wait(pid) == 0
    assert bytes(view[:10]) == bytes(view[5000:5010]) == bytes(range(1, 11))
    for epoch_id, before in made:
        assert shown(fs, epoch_id) == before
    fs.reap()
    view.release()
    close_all(fs)
    for end in (*down, *up):
        os.close(end)
    rests(protected)


def test_a_fragmented_file_gets_few_pieces(a: Arena) -> None:
    for number in range(1, 512):
        # From its end, between blocks of another file: no two pages follow one another.
        put(a.fs, "/file", b"%d" % number, (512 - number) * BLOCK_BYTES)
        put(a.fs, "/other", b"x", number * BLOCK_BYTES)
    a.fs.utime("/file", ns=(1, 2))
    before, times = get(a.fs, "/file"), a.fs.stat("/file")
    made = a.fs.snapshot_create(None)
    areas = len(maps())
    with mapped(a.fs, "/file", BLOCK_BYTES) as m, memoryview(m) as view:
        assert len(maps()) - areas < 100
        assert bytes(view) == before[BLOCK_BYTES:]
        assert a.fs.stat("/file").st_mtime_ns == 2
        assert a.fs.stat("/file").st_ctime_ns == times.st_ctime_ns
        view[0] = 1
    assert shown(a.fs, made) == before
    rests(a)


def maps() -> list[str]:
    with open("/proc/self/maps") as file:
        return file.readlines()


def test_threads_that_map_at_once(protected: Arena) -> None:
    """Each has a record of its own: what one closes is not what another has mapped."""
    fs = protected.fs
    for number in range(4):
        put(fs, f"/file{number}", bytes(20000))
    fs.snapshot_create(None)

    def body(number: int) -> None:
        for turn in range(40):
            with mapped(fs, f"/file{number}") as m, memoryview(m) as view:
                view[turn * 400] = turn + 1
                assert fs.slots()[0]["mappings"] >= 1

    together(*(lambda number=number: body(number) for number in range(4)))  # type: ignore[misc]
    assert fs.slots()[0]["mappings"] == 0
    for number in range(4):
        assert get(fs, f"/file{number}")[::400][:40] == bytes(range(1, 41))
    rests(protected)


def test_threads_that_store(protected: Arena) -> None:
    fs = protected.fs
    put(fs, "/file", bytes(64 * BLOCK_BYTES))
    view = memoryview(mapped(fs, "/file"))
    done = threading.Event()

    def storer(number: int) -> None:
        turn = 0
        while not done.is_set():
            turn += 1
            for page in range(number, 64, 2):
                struct.pack_into("<Q", view, page * BLOCK_BYTES + 8 * number, turn)

    def taker() -> None:
        try:
            for _ in range(12):
                made = fs.snapshot_create(None)
                first, second = shown(fs, made), shown(fs, made)
                assert first == second
                if len(ids(fs)) > 3:
                    fs.snapshot_delete(ids(fs)[1])
        finally:
            done.set()

    together(taker, lambda: storer(0), lambda: storer(1))
    view.release()
    close_all(fs)
    rests(protected)


# ------------------------------------------------------------------------------- the kernel stores


def test_system_calls_store(a: Arena) -> None:
    """Faults that the kernel raises, while it copies for a system call, are resolved too."""
    if a.fs.slots() and not kernel_faults(a):
        pytest.skip("userfaultfd is for user mode only here")
    fs = a.fs
    put(fs, "/file", b"old." * 8192)
    put(fs, "/source", b"src." * 2048)
    left, right = socket.socketpair()
    m = mapped(fs, "/file")
    view = memoryview(m)
    made = fs.snapshot_create(None)
    with left, right:
        left.sendall(b"sock" * 1000)
        got = 0
        while got < 4000:
            got += right.recv_into(view[5000 + got : 9000])
    with open("/dev/zero", "rb", buffering=0) as zeros:
        assert zeros.readinto(view[12000:13000]) == 1000
    with fs.open("/source", "rb") as file:
        assert file.readinto(view[20000:28192]) == 8192
    with fs.open("/file", "rb") as file:
        assert file.preadinto(view[30000:31000], 5000) == 1000
    with fs.snapshot_open(made) as snapshot, snapshot.open("/file", "rb") as file:
        assert file.preadinto(view[:1000], 20000) == 1000
    now = get(fs, "/file")
    assert now[:1000] == b"old." * 250
    assert now[5000:9000] == b"sock" * 1000 and now[12000:13000] == bytes(1000)
    assert now[20000:28192] == b"src." * 2048 and now[30000:31000] == b"sock" * 250
    assert shown(fs, made) == b"old." * 8192
    view.release()
    m.close()
    rests(a)


def kernel_faults(a: Arena) -> bool:
    put(a.fs, "/probe", b"x")
    with mapped(a.fs, "/probe"):
        return bool(a.fs.slots()[0]["protection"] == "userfaultfd")


def test_the_signal_handler_does_not_catch_system_calls(
    a: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit of the fallback: such a call fails, and nothing is stored."""
    monkeypatch.setenv("NOVA_MP_MMAP_PROTECTION", "signal")
    put(a.fs, "/file", b"old." * 2048)
    with mapped(a.fs, "/file") as m, memoryview(m) as view:
        assert a.fs.slots()[0]["protection"] == "mprotect"
        a.fs.snapshot_create(None)
        with (
            open("/dev/zero", "rb", buffering=0) as zeros,
            pytest.raises(OSError, match="address") as caught,
        ):
            zeros.readinto(view[:100])
        assert caught.value.errno == errno.EFAULT
        view[0] = 1
        with a.fs.open("/file", "rb") as file:
            assert file.readinto(view[4096:4100]) == 4
    assert get(a.fs, "/file")[:2] == b"\1l"

"""Mapped files: the buffer, coherence with everything else that files do, and what snapshots keep.

What dies in the middle of this is in `tests/t2_crash/test_mapped_deaths.py`; random sequences are
in `test_mmap_model.py`.
"""

from __future__ import annotations

import errno
import gc
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from crashsim.arena import MIB, Arena, arena
from crashsim.death import fork, wait
from crashsim.medium import replay
from t2_crash.defects_help import exact, get, ids, put, same, sound, state, together

from nova_mp.core import fs as core
from nova_mp.tools.image import BLOCK_BYTES

SECONDS = 30.0
PROTECTIONS = ("userfaultfd", "signal")


@pytest.fixture
def a() -> Iterator[Arena]:
    with arena(16 * MIB) as opened:
        yield opened
        gc.collect()


@pytest.fixture(params=PROTECTIONS)
def protected(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Arena]:
    """An arena, with each kind of write protection."""
    if request.param == "signal":
        monkeypatch.setenv("NOVA_MP_MMAP_PROTECTION", "signal")
    with arena(16 * MIB) as opened:
        yield opened


def mapped(fs: Any, path: str, offset: int = 0, length: int | None = None) -> Any:
    with fs.os_open(path, os.O_RDWR) as file:
        return file.mmap(offset, length)


def shown(fs: Any, epoch_id: int, path: str = "/file") -> bytes:
    with fs.snapshot_open(epoch_id) as view:
        return get(view, path)


def rests(a: Arena) -> None:
    """Everything is accounted for, now, after a crash, and after a clean restart."""
    a.settle()
    exact(a)
    wanted = state(a)
    with arena(image=a.image()) as crashed:
        same(state(crashed), wanted)
        crashed.settle()
        exact(crashed)
        clean = crashed.unmount()
    sound(clean)
    with arena(image=clean) as again:
        assert again.recovery["clean"]
        same(state(again), wanted)


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
            pytest.raises((BufferError, TypeError), match="read-only|read-write"),
        ):
            zeros.readinto(m)  # type: ignore[arg-type]
        put(a.fs, "/file", b"DA")
        assert bytes(view) == b"DAta"
        m.flush()


def test_what_cannot_be_mapped(a: Arena) -> None:
    put(a.fs, "/file", b"data")
    put(a.fs, "/empty", b"")
    with a.fs.open("/file", "r+b") as file:
        for offset, length in ((4, None), (0, 5), (3, 2), (-1, None), (0, 0), (0, -1), (1 << 40, 1)):
            with pytest.raises(ValueError, match="past the end|negative"):
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


def tick(fd: int) -> None:
    """Wait for a byte of another process."""
    ready, _, _ = select.select([fd], [], [], SECONDS)
    assert ready, "the other process does not answer"
    assert os.read(fd, 1) == b"."


def close_all(fs: Any) -> None:
    gc.collect()
    for mapping in list(fs.mappings):
        mapping.close()


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
            for page in range(number, 64, 4):
                struct.pack_into("<Q", view, page * BLOCK_BYTES + 8 * number, turn)

    def taker() -> None:
        try:
            for _ in range(60):
                made = fs.snapshot_create(None)
                first, second = shown(fs, made), shown(fs, made)
                assert first == second
                if len(ids(fs)) > 3:
                    fs.snapshot_delete(ids(fs)[1])
        finally:
            done.set()

    together(taker, *(lambda number=number: storer(number) for number in range(4)))  # type: ignore[misc]
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


# ------------------------------------------------------------------------------------- coherence


def test_reads_and_writes_agree_with_stores(protected: Arena) -> None:
    fs = protected.fs
    put(fs, "/file", b"." * 20000)
    with fs.open("/file", "r+b") as file, file.mmap() as m, memoryview(m) as view:
        file.pwrite(b"written", 4093)
        assert bytes(view[4093:4100]) == b"written"
        view[8190:8196] = b"stored"
        assert file.pread(6, 8190) == b"stored"
        made = fs.snapshot_create(None)
        before = get(fs, "/file")
        file.pwrite(b"WRITTEN", 4093)
        view[8190:8196] = b"STORED"
        file.pwrite(bytes(view[:5000]), 10000)
        assert shown(fs, made) == before
        assert bytes(view) == get(fs, "/file")
    rests(protected)


def test_growing_while_mapped(a: Arena) -> None:
    put(a.fs, "/file", b"x" * 5000)
    with a.fs.open("/file", "r+b") as file, file.mmap() as m, memoryview(m) as view:
        file.pwrite(b"y" * 3000, 20000)
        file.truncate(50000)
        file.fallocate(50000, 8192)
        view[4999] = ord("z")
        wanted = b"x" * 4999 + b"z" + bytes(15000) + b"y" * 3000 + bytes(35192)
        assert get(a.fs, "/file") == wanted
        with file.mmap() as whole, memoryview(whole) as all_of_it:
            assert bytes(all_of_it) == wanted
    rests(a)


def test_shrinking_while_mapped(protected: Arena) -> None:
    """Blocks stay under the mapping, and show zeros when the file grows over them again."""
    fs = protected.fs
    put(fs, "/file", b"x" * 40000)
    made = fs.snapshot_create(None)
    m = mapped(fs, "/file")
    view = memoryview(m)
    fs.truncate("/file", 5000)
    assert get(fs, "/file") == b"x" * 5000
    assert bytes(view[5000:]) == bytes(35000)
    view[6000] = view[30000] = 1
    assert get(fs, "/file") == b"x" * 5000
    second = fs.snapshot_create(None)
    fs.truncate("/file", 20000)
    assert get(fs, "/file") == b"x" * 5000 + bytes(15000)
    put(fs, "/file", b"end", 35000)
    assert get(fs, "/file") == b"x" * 5000 + bytes(30000) + b"end"
    fs.truncate("/file", 100)
    view[200] = 1
    exact(protected)
    view.release()
    m.close()
    assert fs.stat("/file").st_blocks == 8
    fs.truncate("/file", 40000)
    assert get(fs, "/file") == b"x" * 100 + bytes(39900)
    assert shown(fs, made) == b"x" * 40000
    assert shown(fs, second) == b"x" * 5000
    rests(protected)


@pytest.mark.parametrize("grow", ["write", "append", "truncate", "fallocate", "map"])
@pytest.mark.parametrize("snapshots", [False, True])
@pytest.mark.parametrize("collected", [False, True])
def test_growing_after_a_crash(a: Arena, grow: str, snapshots: bool, collected: bool) -> None:
    """Power fails while pages lie past the end of a mapped file: they never come to light."""
    data = b"x" * 3_000_000
    put(a.fs, "/file", data)
    m = mapped(a.fs, "/file")
    view = memoryview(m)
    made = a.fs.snapshot_create(None) if snapshots else 0
    a.fs.truncate("/file", 5000)
    view[5000:] = b"p" * 2_995_000
    if collected:
        with a.fs.open("/file", "r+b") as file:
            for number in range(300):
                a.fs.chmod("/file", 0o600 + number % 8)
                file.pwrite(b"x", number)
        a.fs.gc()
    with arena(image=a.image()) as crashed:
        fs = crashed.fs
        sound(crashed.image())
        assert get(fs, "/file") == b"x" * 5000
        with fs.open("/file", "r+b") as file:
            if grow == "write":
                file.pwrite(b"e", 2_999_999)
            elif grow == "append":
                with fs.open("/file", "ab") as end:
                    end.write(b"e")
                file.truncate(3_000_000)
            elif grow == "truncate":
                file.truncate(3_000_000)
            elif grow == "fallocate":
                file.fallocate(2_000_000, 1_000_000)
            else:
                with file.mmap():
                    file.truncate(3_000_000)
        wanted = bytearray(b"x" * 5000 + bytes(2_995_000))
        if grow == "write":
            wanted[-1:] = b"e"
        elif grow == "append":
            wanted[5000:5001] = b"e"
        assert get(fs, "/file") == wanted
        if made:
            assert shown(fs, made) == data
        rests(crashed)
    view.release()
    m.close()
    rests(a)


def test_a_hole_written_behind_a_truncation(a: Arena) -> None:
    """What says the size again, once the log is collected, does not hide that it was cut."""
    put(a.fs, "/file", b"x" * 40000, 4096)
    with a.fs.open("/file", "r+b") as file:
        m = file.mmap(8192, 20000)
        file.truncate(9000)
        with memoryview(m) as view:
            view[5000:] = b"p" * 15000
        file.pwrite(b"h", 0)
        for number in range(300):
            file.pwrite(b"%d" % number, 0)
        a.fs.gc()
        with arena(image=a.image()) as crashed:
            crashed.fs.truncate("/file", 40000)
            assert get(crashed.fs, "/file")[9000:] == bytes(31000)
            rests(crashed)
        m.close()
    rests(a)


def test_removed_and_renamed_while_mapped(protected: Arena) -> None:
    fs = protected.fs
    put(fs, "/file", b"f" * 20000)
    put(fs, "/second", b"s" * 20000)
    made = fs.snapshot_create(None)
    first, second = mapped(fs, "/file"), mapped(fs, "/second")
    views = [memoryview(m) for m in (first, second)]
    fs.rename("/second", "/file")
    fs.snapshot_create(None)
    views[0][:5] = b"gone!"
    views[1][:5] = b"there"
    assert get(fs, "/file") == b"there" + b"s" * 15000 + b"s" * 4995
    fs.unlink("/file")
    views[1][10000] = 1
    put(fs, "/new", b"n" * 2_000_000)
    assert bytes(views[0]) == b"gone!" + b"f" * 19995
    for view in views:
        view.release()
    exact(protected)
    first.close()
    second.close()
    assert shown(fs, made) == b"f" * 20000
    assert shown(fs, made, "/second") == b"s" * 20000
    rests(protected)
    for epoch_id in ids(fs):
        fs.snapshot_delete(epoch_id)
    rests(protected)
    assert fs.stats()["blocks"]["held"] == 0


def test_a_removed_file_that_is_mapped_when_power_fails(a: Arena) -> None:
    put(a.fs, "/file", b"f" * 20000)
    a.fs.snapshot_create(None)
    m = mapped(a.fs, "/file")
    a.fs.unlink("/file")
    with memoryview(m) as view:
        view[:] = b"g" * 20000
    with arena(image=a.image()) as crashed:
        assert crashed.fs.listdir("/") == []
        rests(crashed)
    m.close()
    rests(a)


# ------------------------------------------------------------------------------------- snapshots


def test_views_beside_stores(protected: Arena) -> None:
    """What a view has indexed before a store is not what it shows after it."""
    fs = protected.fs
    data = os.urandom(64 * BLOCK_BYTES)
    put(fs, "/file", data)
    m = mapped(fs, "/file")
    view = memoryview(m)
    made = fs.snapshot_create(None)
    done = threading.Event()
    with fs.snapshot_open(made) as snapshot, snapshot.open("/file", "rb") as file:
        assert file.pread(10, 0) == data[:10]

        def reader() -> None:
            while not done.is_set():
                assert file.pread(len(data), 0) == data

        def storer() -> None:
            try:
                for turn in range(20):
                    for page in range(64):
                        view[page * BLOCK_BYTES : (page + 1) * BLOCK_BYTES] = (
                            bytes([turn]) * BLOCK_BYTES
                        )
                    if turn % 4 == 3:
                        fs.snapshot_create(None)
            finally:
                done.set()

        together(reader, storer, reader)
    view.release()
    m.close()
    rests(protected)


@pytest.mark.parametrize("live_first", [False, True])
def test_a_snapshots_file_is_mapped(protected: Arena, live_first: bool) -> None:
    fs = protected.fs
    data = os.urandom(20 * BLOCK_BYTES + 100)
    put(fs, "/file", data)
    live = mapped(fs, "/file") if live_first else None
    made = fs.snapshot_create(None)
    with fs.snapshot_open(made) as snapshot:
        with snapshot.open("/file", "rb") as file:
            with pytest.raises(OSError, match="Read-only") as caught:
                file.mmap(writable=True)
            assert caught.value.errno == errno.EROFS
            whole, part = file.mmap(), file.mmap(5000, 10000)
    live = live or mapped(fs, "/file")
    with memoryview(live) as view:
        view[:] = bytes(len(data))
        fs.snapshot_create(None)
        view[:] = b"\1" * len(data)
    put(fs, "/file", b"\2" * 30000)
    with memoryview(whole) as old, memoryview(part) as old_part:
        assert old.readonly and bytes(old) == data and bytes(old_part) == data[5000:15000]
        # The view was closed, but what is mapped keeps the snapshot.
        with pytest.raises(OSError, match="open"):
            fs.snapshot_delete(made)
        fs.unlink("/file")
        assert bytes(old) == data
    live.close()
    exact(protected)
    whole.close()
    part.close()
    fs.snapshot_delete(made)
    rests(protected)


def test_a_sparse_file_of_a_snapshot(a: Arena) -> None:
    put(a.fs, "/file", b"x" * 5000, 20000)
    made = a.fs.snapshot_create(None)
    with a.fs.snapshot_open(made) as snapshot, snapshot.open("/file", "rb") as file:
        for offset, length in ((0, None), (100, 200), (19999, 2)):
            with file.mmap(offset, length) as m, memoryview(m) as view:
                end = 25000 if length is None else offset + length
                assert bytes(view) == (bytes(20000) + b"x" * 5000)[offset:end]
    rests(a)


@pytest.mark.parametrize("order", ["oldest", "newest", "middle"])
def test_snapshots_deleted_in_any_order(a: Arena, order: str) -> None:
    put(a.fs, "/file", bytes(30 * BLOCK_BYTES))
    m = mapped(a.fs, "/file")
    view = memoryview(m)
    kept = {}
    for number in range(12):
        made = a.fs.snapshot_create(None)
        kept[made] = bytes(view)
        for page in range(number % 3, 30, 1 + number % 4):
            view[page * BLOCK_BYTES + number] = number + 1
        if number == 6:
            a.fs.gc()
    while kept:
        there = sorted(kept)
        gone = there[{"oldest": 0, "newest": -1, "middle": len(there) // 2}[order]]
        free, foretold = a.free(), a.fs.snapshot_frees([gone])
        a.fs.snapshot_delete(gone)
        a.settle()
        assert (a.free() - free) * BLOCK_BYTES == foretold
        del kept[gone]
        a.fs.gc()
        exact(a)
        for epoch_id, data in kept.items():
            assert shown(a.fs, epoch_id) == data
        with arena(image=a.image()) as crashed:
            same(state(crashed), state(a))
    assert a.fs.stats()["blocks"]["held"] == 0
    view.release()
    m.close()
    rests(a)


def test_logs_are_collected(a: Arena) -> None:
    """Fast and thorough, beside snapshots that need the copies, and without."""
    put(a.fs, "/file", bytes(40 * BLOCK_BYTES))
    m = mapped(a.fs, "/file")
    view = memoryview(m)
    kept = {}
    for number in range(150):
        made = a.fs.snapshot_create(None)
        if number % 50 == 25:
            kept[made] = bytes(view)
        for page in range(40):
            view[page * BLOCK_BYTES] = number
        if made not in kept:
            a.fs.snapshot_delete(made)
            a.fs.reclaim(1000)
    counters = a.fs.stats()["counters"]
    assert counters["gc_fast_pages"] or counters["gc_thorough_pages"], counters
    for epoch_id, data in kept.items():
        assert shown(a.fs, epoch_id) == data
    a.settle()
    exact(a)
    view.release()
    m.close()
    rests(a)
    for epoch_id in kept:
        a.fs.snapshot_delete(epoch_id)
    a.settle()
    a.fs.gc()
    # The log of 40 pages' preservation, at most, is what is left.
    assert a.fs.stats()["blocks"]["held"] == 0
    rests(a)


# ------------------------------------------------------------------------------------------ fork


def test_a_child_inherits(protected: Arena) -> None:
    """Child and parent store, snapshots keep what both had; each unmaps for itself."""
    fs = protected.fs
    put(fs, "/file", bytes(20000))
    m, cut = mapped(fs, "/file"), None
    view = memoryview(m)
    down, up = os.pipe(), os.pipe()

    def child() -> None:
        for number in range(5):
            os.write(up[1], b".")
            assert os.read(down[0], 1) == b"."
            view[100 + number] = number + 1
        os.write(up[1], b".")
        assert os.read(down[0], 1) == b"."
        view.release()
        m.close()
        fs.close()

    fs.snapshot_create(None)
    pid = fork(child)
    for number in range(5):
        tick(up[0])
        before = bytes(view)
        made = fs.snapshot_create(None)
        view[number] = 9
        os.write(down[1], b".")
        if number:
            assert shown(fs, made) == before
    tick(up[0])
    view.release()
    m.close()
    fs.truncate("/file", 5000)
    assert fs.stat("/file").st_blocks == 5 * 8, "the child has it mapped"
    os.write(down[1], b".")
    assert wait(pid) == 0
    fs.reap()
    assert fs.stat("/file").st_blocks == 2 * 8
    assert cut is None and get(fs, "/file")[:105] == b"\t" * 5 + bytes(95) + bytes(range(1, 6))
    for end in (*down, *up):
        os.close(end)
    rests(protected)


def test_a_child_inherits_what_was_cut(protected: Arena) -> None:
    """Also pages past the end of a file are the child's as they are the parent's."""
    fs = protected.fs
    put(fs, "/file", b"x" * 40000)
    m = mapped(fs, "/file")
    view = memoryview(m)
    fs.truncate("/file", 100)
    up, down = os.pipe(), os.pipe()

    def child() -> None:
        os.write(up[1], b".")
        assert os.read(down[0], 1) == b"."
        assert not m.closed
        view[50] = view[30000] = ord("c")
        view.release()
        m.close()

    pid = fork(child)
    view.release()
    m.close()
    tick(up[0])
    put(fs, "/other", b"o" * 1_000_000)
    made = fs.snapshot_create(None)
    os.write(down[1], b".")
    assert wait(pid) == 0
    fs.reap()
    assert get(fs, "/other") == b"o" * 1_000_000
    assert get(fs, "/file") == b"x" * 50 + b"c" + b"x" * 49
    assert shown(fs, made) == b"x" * 100
    for end in (*down, *up):
        os.close(end)
    rests(protected)


def test_a_child_inherits_a_snapshots_file(a: Arena) -> None:
    put(a.fs, "/file", b"x" * 40000)
    made = a.fs.snapshot_create(None)
    with a.fs.snapshot_open(made) as snapshot, snapshot.open("/file", "rb") as file:
        m = file.mmap()
    up, down = os.pipe(), os.pipe()

    def child() -> None:
        os.write(up[1], b".")
        assert os.read(down[0], 1) == b"."
        with memoryview(m) as view:
            assert bytes(view) == b"x" * 40000
        m.close()

    pid = fork(child)
    m.close()
    tick(up[0])
    with mapped(a.fs, "/file") as live, memoryview(live) as view:
        view[:] = bytes(40000)
        with pytest.raises(OSError, match="open"):
            a.fs.snapshot_delete(made)
        os.write(down[1], b".")
        assert wait(pid) == 0
    a.fs.reap()
    a.fs.snapshot_delete(made)
    for end in (*down, *up):
        os.close(end)
    rests(a)


def test_a_process_that_executes_another_program(a: Arena) -> None:
    """It keeps its number, and has nothing mapped any more: snapshots do not wait for it."""
    put(a.fs, "/file", bytes(20000))
    up, down = os.pipe(), os.pipe()
    for end in (down[0], up[1]):
        os.set_inheritable(end, True)

    def other() -> None:
        mine = core.Core(a.pm, a.dram, a.memory.fd)
        memoryview(mapped(mine, "/file"))[0] = 1
        script = f"printf . >&{up[1]}; read line <&{down[0]}"
        os.execv("/bin/sh", ["/bin/sh", "-c", script])

    pid = fork(other)
    tick(up[0])
    made = a.fs.snapshot_create(None)
    assert shown(a.fs, made)[0] == 1
    os.write(down[1], b"\n")
    assert wait(pid) == 0
    a.fs.reap()
    for end in (*down, *up):
        os.close(end)
    rests(a)


# ----------------------------------------------------------------------------- frozen, and traced


def test_nothing_changes_while_frozen(protected: Arena) -> None:
    """Another process stores as fast as it can; and one that maps meanwhile waits."""
    fs = protected.fs
    put(fs, "/file", bytes(64 * BLOCK_BYTES))
    up = os.pipe()

    def other() -> None:
        mine = core.Core(protected.pm, protected.dram, protected.memory.fd)
        view = memoryview(mapped(mine, "/file"))
        number = 0
        while True:
            number += 1
            struct.pack_into("<Q", view, number % 64 * BLOCK_BYTES, number)
            if number % 100_000 == 1:
                os.write(up[1], b".")

    pid = fork(other)
    tick(up[0])
    for turn in range(10):
        fs.freeze(timeout=SECONDS)
        first = protected.image()
        second = protected.image()
        assert first == second, "a copied arena changes while it is frozen"
        fs.unfreeze()
        tick(up[0])
        if turn == 5:
            fs.snapshot_create(None)
    os.kill(pid, 9)
    assert wait(pid) == -9
    fs.reap()
    for end in up:
        os.close(end)
    rests(protected)


def test_a_trace_has_what_is_flushed() -> None:
    """Replayed, it gives the arena byte for byte: copies, entries, and flushed stores."""
    with arena(4 * MIB) as opened:
        fs = opened.fs
        put(fs, "/file", bytes(30 * BLOCK_BYTES))
        image = opened.image()
        fs.trace_start()
        with mapped(fs, "/file", 100) as m, memoryview(m) as view:
            for number in range(30):
                fs.snapshot_create(None)
                view[number * 4000 : number * 4000 + 50] = bytes([number + 1]) * 50
                m.flush(number * 4000, 50)
                if number % 7 == 3:
                    put(fs, "/file", b"w" * 5000, number * 300)
                    fs.truncate("/file", 20 * BLOCK_BYTES)
                    fs.truncate("/file", 30 * BLOCK_BYTES)
            view[:] = b"e" * len(view)
            m.flush()
        replayed = replay(image, fs.trace_stop())
        assert replayed == opened.image()


def test_flushed_stores_survive_a_power_failure(a: Arena) -> None:
    from crashsim.medium import Medium, events

    put(a.fs, "/file", bytes(10 * BLOCK_BYTES))
    medium = Medium(a.image())
    a.fs.trace_start()
    with mapped(a.fs, "/file") as m, memoryview(m) as view:
        made = a.fs.snapshot_create(None)
        view[5000:15000] = b"f" * 10000
        m.flush(5000, 10000)
        for event in events(a.fs.trace_stop()):
            medium.feed(event)
    with arena(image=bytes(medium.image)) as again:
        assert get(again.fs, "/file")[5000:15000] == b"f" * 10000
        assert shown(again.fs, made) == bytes(10 * BLOCK_BYTES)
        rests(again)


# -------------------------------------------------------------------------------- without space


def test_no_space_for_what_a_snapshot_needs() -> None:
    """The process that stores is stopped with a word why, and nothing is lost; others go on."""
    with arena(4 * MIB) as opened:
        fs = opened.fs
        put(fs, "/file", b"d" * (200 * BLOCK_BYTES))
        fs.snapshot_create("kept")
        from t2_crash.defects_help import fill

        fill(fs)

        def other() -> None:
            mine = core.Core(opened.pm, opened.dram, opened.memory.fd)
            view = memoryview(mapped(mine, "/file"))
            for page in range(200):
                view[page * BLOCK_BYTES] = ord("n")

        assert wait(fork(other)) == -7, "SIGBUS"
        fs.reap()
        with fs.snapshot_open(ids(fs)[0]) as view:
            assert get(view, "/file") == b"d" * (200 * BLOCK_BYTES)
        exact(opened)
        fs.unlink("/fill")
        assert wait(fork(other)) == 0
        fs.reap()
        assert get(fs, "/file")[::BLOCK_BYTES] == b"n" * 200
        rests(opened)

"""Mapped files and snapshots, forks, frozen arenas, traces, and full arenas."""

from __future__ import annotations

import errno
import faulthandler
import os
import signal
import struct
import sys
import threading

import pytest
from crashsim.arena import MIB, Arena, arena
from crashsim.death import fork, wait
from crashsim.mapped import SECONDS, mapped, rests, shown, tick
from crashsim.medium import Medium, events, replay
from t2_crash.defects_help import exact, fill, get, ids, put, same, state, together

from nova_mp.core import fs as core
from nova_mp.tools.image import BLOCK_BYTES

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
    with fs.snapshot_open(made) as snapshot, snapshot.open("/file", "rb") as file:
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
    m = mapped(fs, "/file")
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
    assert get(fs, "/file")[:105] == b"\t" * 5 + bytes(95) + bytes(range(1, 6))
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
        script = f"import os; os.write({up[1]}, b'.'); os.read({down[0]}, 1)"
        os.execv(sys.executable, [sys.executable, "-c", script])

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
    os.kill(pid, signal.SIGKILL)
    assert wait(pid) == -signal.SIGKILL
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
        fill(fs)

        def other() -> None:
            # Its end is expected; where it was need not be printed.
            faulthandler.disable()
            mine = core.Core(opened.pm, opened.dram, opened.memory.fd)
            view = memoryview(mapped(mine, "/file"))
            for page in range(200):
                view[page * BLOCK_BYTES] = ord("n")

        assert wait(fork(other)) == -signal.SIGBUS
        fs.reap()
        with fs.snapshot_open(ids(fs)[0]) as view:
            assert get(view, "/file") == b"d" * (200 * BLOCK_BYTES)
        exact(opened)
        fs.unlink("/fill")
        assert wait(fork(other)) == 0
        fs.reap()
        assert get(fs, "/file")[::BLOCK_BYTES] == b"n" * 200
        rests(opened)

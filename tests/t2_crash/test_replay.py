"""Replaying a trace gives the arena byte for byte: no store to PMEM bypasses the door (PMEM-3)."""

from __future__ import annotations

import os
from typing import Any

import pytest
from crashsim.arena import MIB, arena
from crashsim.medium import COPY_NT, FENCE, FLUSH, STORE, Medium, events, replay
from model.driver import Driver

SEED = int(os.environ.get("NOVA_MP_SEED", "1"))
RUNS, STEPS = 6, 1000


def first_difference(left: bytes, right: bytes) -> str:
    at = next(i for i in range(len(left)) if left[i] != right[i])
    return f"first at {at:#x}: {left[at : at + 8].hex()}, replayed {right[at : at + 8].hex()}"


def assert_replays(image: bytes, trace: bytes, after: bytes) -> None:
    replayed = replay(image, trace)
    assert replayed == after, first_difference(after, replayed)


@pytest.mark.parametrize("run", range(RUNS))
def test_random_operations_replay(run: int) -> None:
    """Everything that the driver can do. A mount stores before there is a `Core` to trace it."""
    driver = Driver(SEED * 100 + run, 4 * MIB)
    twin = driver.twin
    for name, weight in driver.weights.items():
        # Every operation, in every run; those that need another `Core` come between the traces.
        driver.weights[name] = 0 if name in ("crash", "remount") else max(weight, 2)
    done: set[str] = set()
    try:
        for part in range(4):
            image = twin.arena.image()
            twin.arena.fs.trace_start()
            for _ in range(STEPS // 4):
                driver.step()
                done.add(driver.last())
            twin.compare()
            trace = twin.arena.fs.trace_stop()
            assert_replays(image, trace, twin.arena.image())
            (twin.crash if part % 2 else twin.remount)(1 + part)
            twin.compare()
    finally:
        twin.close()
    assert driver.weights.keys() - done <= {"crash", "remount", ""}, driver.weights.keys() - done


def test_closing_replays() -> None:
    """Also what happens while open files of deleted names are let go."""
    with arena(2 * MIB) as opened:
        fs = opened.fs
        files = [fs.open(f"/{number}", "w+b") for number in range(5)]
        image = opened.image()
        fs.trace_start()
        for number, file in enumerate(files):
            file.write(b"x" * 10_000)
            fs.unlink(f"/{number}")
            fs.snapshot_create(None)
            file.pwrite(b"y" * 5000, 3000)
            file.close()
        assert_replays(image, fs.trace_stop(), opened.image())


def test_garbage_collection_replays() -> None:
    with arena(4 * MIB) as opened:
        fs = opened.fs
        fs.open("/file", "xb").close()
        image = opened.image()
        fs.trace_start()
        with fs.open("/file", "r+b") as file:
            for number in range(400):
                file.pwrite(b"%d" % number, number % 9 * 4096)
                fs.symlink("x", f"/{number % 3}")
                fs.unlink(f"/{number % 3}")
                if number % 100 == 50:
                    fs.snapshot_create(None)
        fs.gc()
        for info in fs.snapshot_table():
            fs.snapshot_delete(info["epoch_id"])
        opened.settle()
        fs.gc()
        counters = fs.stats()["counters"]
        assert_replays(image, fs.trace_stop(), opened.image())
        assert counters["gc_fast_pages"] and counters["gc_thorough_pages"], counters


def test_nothing_is_left_unfenced_by_what_commits() -> None:
    """After an operation has returned, only hints may be in the cache: it survives without them."""
    with arena(2 * MIB) as opened:
        fs: Any = opened.fs
        medium = Medium(opened.image())
        fs.trace_start()
        with fs.open("/file", "xb") as file:
            file.write(b"data" * 3000)
        kinds = set()
        for event in events(fs.trace_stop()):
            kinds.add(event.kind)
            medium.feed(event)
        assert kinds == {STORE, COPY_NT, FLUSH, FENCE}
        with arena(image=bytes(medium.image)) as again, again.fs.open("/file", "rb") as file:
            assert file.read() == b"data" * 3000


def test_a_trace_is_exclusive_and_ends() -> None:
    with arena(2 * MIB) as opened:
        fs = opened.fs
        fs.trace_start()
        with pytest.raises(RuntimeError):
            fs.trace_start()
        assert fs.trace_stop() == b""
        with pytest.raises(RuntimeError):
            fs.trace_stop()
        fs.make_dir("/untraced")
        fs.trace_start()
        assert fs.listdir("/") == ["untraced"]
        assert list(events(fs.trace_stop())) == []

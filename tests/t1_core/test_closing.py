"""Closing while other threads work: they finish or are refused, and nobody touches what is gone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from crashsim.death import SharedArena, audit, ended

import nova_mp

THREADS = 4
ROUNDS = 20
DATA = b"x" * 70_000


@pytest.fixture
def shared() -> Iterator[SharedArena]:
    opened = SharedArena(32 << 20)
    yield opened
    with opened.attach() as fs:
        fs.reap()
        assert len(fs.slots()) == 1
        audit(fs, opened)
    opened.close()


def write(fs: Any, number: int) -> None:
    with fs.open(f"/{number}", "wb") as file:
        file.write(DATA)


def read(fs: Any, number: int) -> None:
    with fs.open("/shared", "rb") as file:
        assert len(file.read()) == len(DATA)


def view(fs: Any, number: int) -> None:
    for row in fs.snapshot_table():
        with fs.snapshot_open(row["epoch_id"]) as opened, opened.open("/shared") as file:
            assert len(file.read()) == len(DATA)


WORK: dict[str, Callable[[Any, int], Any]] = {
    "write": write,
    "read": read,
    "list": lambda fs, number: fs.listdir("/"),
    "view": view,
    "table": lambda fs, number: fs.snapshot_table(),
    "statistics": lambda fs, number: (fs.stats(), fs.slots(), fs.statvfs()),
}


def while_busy(work: Callable[[int], Any], close: Callable[[], Any]) -> list[BaseException]:
    """What ended the threads that work on and on when `close` was called after the first round."""
    errors: list[BaseException] = []
    begun = threading.Barrier(THREADS + 1)

    def run(number: int) -> None:
        try:
            work(number)
            begun.wait()
            while True:
                work(number)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    begun.wait()
    close()
    ended(*threads)
    return errors


@pytest.mark.parametrize("kind", WORK)
def test_threads_in_the_middle_of_something(shared: SharedArena, kind: str) -> None:
    with shared.attach() as fs:
        with fs.open("/shared", "wb") as file:
            file.write(DATA)
        fs.snapshot_create(None)
    for _ in range(ROUNDS):
        fs = shared.attach()
        errors = while_busy(lambda number, fs=fs: WORK[kind](fs, number), fs.close)
        assert len(errors) == THREADS
        assert all(isinstance(error, ValueError) for error in errors), errors
        assert fs.closed


def test_threads_that_flush_a_mapping(shared: SharedArena) -> None:
    with shared.attach() as fs, fs.open("/file", "w+b") as file:
        file.write(DATA)
        for _ in range(ROUNDS):
            mapping = file.mmap()
            errors = while_busy(lambda number, m=mapping: m.flush(), mapping.close)
            assert all(isinstance(error, ValueError) for error in errors), errors


def test_paths_that_close_the_file_system(shared: SharedArena) -> None:
    """What runs in between, as the __fspath__ of a caller's path, may do anything."""

    class Path:
        def __fspath__(self) -> str:
            fs.close()
            return "/file"

    for call in ("stat", "unlink", "make_dir", "listdir", "rmdir", "readlink"):
        fs = shared.attach()
        with pytest.raises(ValueError, match="closed"):
            getattr(fs, call)(Path())
    for call in ("rename", "link"):
        fs = shared.attach()
        with pytest.raises(ValueError, match="closed"):
            getattr(fs, call)("/other", Path())
    fs = shared.attach()
    with pytest.raises(ValueError, match="closed"):
        fs.open(Path(), "wb")


def test_what_a_power_failure_leaves_its_caller(arena_prefix: str, private_places: None) -> None:
    """The caller lives on, and reaches nothing of the arena any more."""
    name = f"{arena_prefix}power"
    nova_mp.mkfs(name, "32MiB", 2)
    try:
        nova_mp.start(name)
        fs = nova_mp.attach(name)
        file = fs.open("/file", "w+b")
        file.write(DATA)
        mapping = file.mmap()
        cells = memoryview(mapping)
        cells[0] = 1
        opened = fs.snapshots.open(fs.snapshots.create().epoch_id)
        cells[1] = 2
        mapping.flush()
        nova_mp.crash(name)
        actions: list[Callable[[], Any]] = [
            lambda: fs.write_bytes("/late", b"late"),
            lambda: file.pwrite(b"late", 0),
            lambda: opened.read_bytes("/file"),
            mapping.flush,
            fs.snapshots.create,
            fs.freeze,
        ]
        for action in actions:
            with pytest.raises(ValueError, match="closed"):
                action()
        # It is memory of this process alone now.
        assert bytes(cells[:4]) == bytes(4)
        cells[0] = 9
        with nova_mp.start(name), nova_mp.attach(name) as again:
            assert again.read_bytes("/file") == b"\1\2" + DATA[2:]
            assert not again.exists("/late")
        cells.release()
        mapping.close()
        opened.close()
        file.close()
        fs.close()
    finally:
        nova_mp.destroy(name, force=True)

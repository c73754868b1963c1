"""Who is dead and who is not, who attaches and who leaves: each slot has one owner at a time."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from crashsim.arena import MIB
from crashsim.death import SharedArena, audit, ended, fork, settle, wait

import nova_mp
from nova_mp.core import fs as core
from nova_mp.core import process

BLOCK = 4096


@pytest.fixture
def shared() -> Iterator[SharedArena]:
    opened = SharedArena()
    yield opened
    with opened.attach() as fs:
        fs.reap()
        settle(fs)
        audit(fs, opened)
    opened.close()


def create(fs: Any, path: str, data: bytes) -> None:
    with fs.os_open(path, os.O_CREAT | os.O_RDWR) as file:
        file.pwrite(data, 0)


def test_nobody_is_dead_for_want_of_a_descriptor(shared: SharedArena) -> None:
    """A waiter that cannot look at /proc waits; it does not repair who holds the lock."""
    told, tell = os.pipe()

    def writer() -> None:
        fs = shared.attach()
        file = fs.os_open("/file", os.O_CREAT | os.O_RDWR)
        os.write(tell, b".")
        while True:
            file.pwrite(b"w" * 2 * MIB, 0)

    def waiter() -> None:
        fs = shared.attach()
        create(fs, "/mine", b"m")
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        held = []
        with pytest.raises(OSError, match="Too many"):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        os.write(tell, b".")
        fs.truncate("/file", 5)
        for number in held:
            os.close(number)
        fs.close()

    pids = [fork(writer)]
    try:
        assert os.read(told, 1) == b"."
        with shared.attach() as fs:
            look_at_a_stopped_holder(fs, pids, told, waiter)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(told)
        os.close(tell)


def look_at_a_stopped_holder(
    fs: Any, pids: list[int], told: int, waiter: Callable[[], None]
) -> None:
    """Stop the process in `pids` while it holds a lock; what `waiter` does then has to wait."""
    (victim,) = pids
    while True:
        os.kill(victim, signal.SIGSTOP)
        os.waitpid(victim, os.WUNTRACED)
        (row,) = [row for row in fs.slots() if row["pid"] == victim]
        if row["locks"] and row["epoch_id"]:
            break
        os.kill(victim, signal.SIGCONT)
    pids.append(fork(waiter))
    assert os.read(told, 1) == b"."
    # Time enough for many looks at the holder, which come every 20 ms.
    time.sleep(0.3)
    (row,) = [row for row in fs.slots() if row["pid"] == victim]
    assert row["locks"], "the lock is still that of a process that lives"
    assert os.waitpid(pids[1], os.WNOHANG) == (0, 0)
    os.kill(victim, signal.SIGCONT)
    assert wait(pids.pop()) == 0


def test_a_slot_is_refused_whose_owner_could_not_be_told(shared: SharedArena) -> None:
    def child() -> None:
        fs = shared.attach()
        create(fs, "/child", b"c")
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        held = []
        errors: list[OSError] = []

        def thread() -> None:
            try:
                fs.stat("/child")
            except OSError as error:
                errors.append(error)

        with pytest.raises(OSError, match="Too many"):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        other = threading.Thread(target=thread)
        other.start()
        other.join()
        assert "file descriptor" in str(errors[0])
        for number in held:
            os.close(number)
        assert fs.stat("/child").st_size == 1
        fs.close()

    assert wait(fork(child)) == 0


def test_a_process_lives_as_long_as_a_thread_of_it(shared: SharedArena) -> None:
    """Its first thread may have ended."""
    with shared.attach() as fs:
        create(fs, "/mapped", b"m" * 16 * BLOCK)
    told, tell = os.pipe()

    def child() -> None:
        fs = shared.attach()
        mapping = fs.os_open("/mapped", os.O_RDWR).mmap()
        fs.unlink("/mapped")
        view = memoryview(mapping)

        def store() -> None:
            os.write(tell, b".")
            while True:
                view[:] = b"s" * len(view)

        threading.Thread(target=store).start()
        ctypes.CDLL(None).pthread_exit(None)

    pid = fork(child)
    assert os.read(told, 1) == b"."
    deadline = time.monotonic() + 10
    while True:
        with open(f"/proc/{pid}/stat") as status:
            if status.read().rpartition(")")[2].split()[0] == "Z":
                break
        assert time.monotonic() < deadline
    with shared.attach() as fs:
        assert fs.reap() == []
        create(fs, "/new", b"n" * 30 * BLOCK)
        with fs.os_open("/new", os.O_RDONLY) as file:
            assert set(file.pread(30 * BLOCK, 0)) == {ord("n")}
        os.kill(pid, signal.SIGKILL)
        pidfd = os.pidfd_open(pid)
        select.select([pidfd], [], [], 10)
        os.waitpid(pid, 0)
        os.close(pidfd)
        assert {row["pid"] for row in fs.reap()} == {pid}
    os.close(told)
    os.close(tell)


def test_who_attaches_while_the_arena_is_unmounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state was looked at before; then comes the unmount; then the slot is taken."""
    shared = SharedArena()
    look = process._umask

    def unmounted_meanwhile() -> int:
        core.unmount(shared.pm, shared.dram, shared.fd)
        return int(look())

    monkeypatch.setattr(process, "_umask", unmounted_meanwhile)
    with pytest.raises(nova_mp.EngineNotRunning, match="being stopped"):
        shared.attach()
    monkeypatch.undo()
    assert core.read_superblock(shared.pm)["mount_state"] == "clean"
    shared.close()


def test_whoever_closes_gives_back_each_slot_once(shared: SharedArena) -> None:
    """The one that attached may have ended, and another thread closes, even one of its name."""
    with shared.attach("coordinator") as watch:
        before = watch.slots()
        free = watch.stats()["blocks"]["free"]
        for round_nr in range(4):
            attached: list[Any] = []

            def attach(path: str = f"/{round_nr}", attached: list[Any] = attached) -> None:
                fs = shared.attach()
                attached.append(fs)
                create(fs, path, b"1" * BLOCK)
                with fs.os_open(path, os.O_RDWR) as file:
                    file.pwrite(b"2" * BLOCK, 0)
                fs.unlink(path)

            def close(attached: list[Any] = attached) -> None:
                attached[0].exists("/")
                attached[0].close()

            for work in (attach, close):
                thread = threading.Thread(target=work)
                thread.start()
                ended(thread)
            assert watch.slots()[1:] == [] and len(watch.slots()) == len(before)
        assert watch.reap() == []
        settle(watch)
        assert abs(watch.stats()["blocks"]["free"] - free) <= 3, "but for the root's log"


def test_an_interrupted_close_can_be_made_up_for(shared: SharedArena) -> None:
    with shared.attach("coordinator") as watch:
        fs = shared.attach()
        file = fs.os_open("/file", os.O_CREAT | os.O_RDWR)
        file.pwrite(b"1", 0)
        fs.unlink("/file")
        watch.freeze()

        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        old = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        try:
            with pytest.raises(KeyboardInterrupt):
                fs.close()
        finally:
            signal.signal(signal.SIGALRM, old)
            watch.unfreeze()
        assert not fs.closed
        fs.close()
        assert fs.closed
        assert len(watch.slots()) == 1


def test_a_deleted_file_that_no_memory_was_left_for() -> None:
    """Its last handle is closed when DRAM is full: what a snapshot needs of it is not lost."""
    size = 48 * MIB
    shared = SharedArena(size)
    shared.close()
    base, _ = core.dram_geometry(size, 1)
    pages = 3000
    fd = os.memfd_create("little-dram")
    limit = core.dram_geometry(size, 1)[1]
    os.ftruncate(fd, limit)
    dram = memoryview(mmap.mmap(fd, limit))
    core.mount(shared.pm, dram, fd, cpus=1, dram_limit=base + MIB)
    with core.Core(shared.pm, dram, fd) as fs, core.Core(shared.pm, dram, fd) as other:
        file = fs.os_open("/big", os.O_CREAT | os.O_RDWR)
        for page in range(pages):
            file.pwrite(b"%08d" % page * 512, page * 7919 % pages * BLOCK)
        before = file.pread(pages * BLOCK, 0)
        epoch_id = fs.snapshot_create(None)
        other.unlink("/big")
        names = []
        with pytest.raises(OSError, match=r"No space|shared memory"):
            while True:
                names.append(f"/sparse{len(names)}")
                with other.os_open(names[-1], os.O_CREAT | os.O_RDWR) as sparse:
                    for step in range(200):
                        sparse.pwrite(b"x", step * 2 * MIB)
        file.close()
        for name in names:
            if other.exists(name):
                other.unlink(name)
    core.unmount(shared.pm, dram, fd)
    os.close(fd)
    again = SharedArena(image=shared.image())
    with again.attach("coordinator") as fs:
        settle(fs)
        audit(fs, again)
        create(fs, "/new", os.urandom(8 * MIB))
        view = fs.snapshot_open(epoch_id)
        with view.open("/big") as kept:
            assert kept.read() == before
        view.close()
    again.close()

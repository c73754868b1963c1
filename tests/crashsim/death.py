"""Processes that die in the middle of something, and what must be true afterwards.

`SharedArena` lies in memory that forked children share; a child works on it with a `Core` of its
own and is killed. `audit` then holds the arena against the plain-Python checker: every block has
one owner, and the engine's counts are those that the logs leave.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from nova_mp.core import fs as core
from nova_mp.tools.fsck import check, format_report

MIB = 1 << 20


def _segment(name: str, size: int, reserve: int) -> tuple[int, memoryview]:
    fd = os.memfd_create(name)
    os.ftruncate(fd, size)
    os.posix_fallocate(fd, 0, reserve)
    return fd, memoryview(mmap.mmap(fd, size))


class SharedArena:
    """PMEM and DRAM in memory shared with children, mounted; no process is attached at first."""

    def __init__(self, size: int = 8 * MIB, image: Any = None, *, cpus: int = 2) -> None:
        size = size if image is None else len(image)
        self.cpus = cpus
        self.pm_fd, self.pm = _segment("death-pmem", size, size)
        if image is None:
            core.format_arena(self.pm, cpus=cpus, label="death")
        else:
            self.pm[:] = image
        base, limit = core.dram_geometry(size, cpus)
        self.fd, self.dram = _segment("death-dram", limit, base)
        self.recovery = core.mount(self.pm, self.dram, self.fd, cpus=cpus)

    def copy(self) -> SharedArena:
        """The same memory once more: what one process does to it does not change the other."""
        other = SharedArena.__new__(SharedArena)
        other.cpus, other.recovery = self.cpus, self.recovery
        used = os.fstat(self.fd).st_blocks * 512
        other.pm_fd, other.pm = _segment("death-pmem", len(self.pm), len(self.pm))
        other.fd, other.dram = _segment("death-dram", len(self.dram), used)
        other.pm[:] = self.pm
        other.dram[:used] = self.dram[:used]
        return other

    def attach(self, role: str = "client", cpu: int | None = None) -> Any:
        """A `Core` of the calling process."""
        return core.Core(self.pm, self.dram, self.fd, role=role, cpu=cpu)

    def image(self) -> bytes:
        """A copy of the medium as the CPU sees it now."""
        return bytes(self.pm)

    def close(self) -> None:
        """Let go of the descriptors; the memory goes with the last reference to it."""
        os.close(self.fd)
        os.close(self.pm_fd)

    def remount(self) -> SharedArena:
        """Unmount in order, and mount again what is on the medium."""
        core.unmount(self.pm, self.dram)
        image = self.image()
        self.close()
        return SharedArena(image=image, cpus=self.cpus)


def fork(function: Callable[..., None], *args: Any) -> int:
    """Run `function` in a child and end the child with it; the child's process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        # Other threads of the test runner hold nothing that the child needs.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _run(function, args)
    return pid


def _run(function: Callable[..., None], args: tuple[Any, ...]) -> NoReturn:
    code = 1
    # A session of its own, as any program has. Linux weighs sessions against each other
    # (autogroup), and while one is full of processes that wake each other all the time, it may
    # let a waking process of another wait for seconds.
    os.setsid()
    try:
        function(*args)
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def wait(pid: int, seconds: float = 30.0) -> int:
    """How a child ended: its exit code, or minus the signal.

    Raises TimeoutError, and kills the child, if that takes longer than so many seconds.
    """
    fd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if not poll.poll(seconds * 1000):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise TimeoutError(f"child {pid} did not end within {seconds} s")
    finally:
        os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def ended(*threads: threading.Thread, seconds: float = 30.0) -> None:
    """Wait until the kernel has seen the last of `threads`: a moment after they can be joined."""
    until = time.monotonic() + seconds
    for thread in threads:
        thread.join(seconds)
        while os.path.exists(f"/proc/self/task/{thread.native_id}"):
            assert time.monotonic() < until, f"{thread} has not ended"
            os.sched_yield()


def settle(fs: Any) -> None:
    """Do all the cleaner's work."""
    while fs.reclaim(10000):
        continue


def audit(fs: Any, arena: SharedArena) -> dict[str, int]:
    """Assert that nothing is lost or doubled; nobody may be working. Blocks by kind."""
    for slot in fs.slots():
        assert slot["locks"] == 0 and slot["epoch_id"] == 0, f"not at rest: {slot}"
    settle(fs)
    stats = fs.stats()
    blocks = stats["blocks"]
    report = check(arena.image(), free_blocks=blocks["free"])
    assert report.ok, format_report(report)
    found: dict[str, int] = report.statistics["blocks"]
    assert blocks["held"] == found["held"], (blocks, found)
    assert stats["snapshots"]["backlog"] == 0
    inodes = report.statistics["inodes"]
    shown = sum(inodes.values()) - 1  # the root is not counted as used
    assert inodes["orphans"] == 0, inodes
    assert stats["inodes"]["used"] == shown, (stats["inodes"], inodes)
    return found


def timed(function: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    """Seconds that a call takes, and what it returns."""
    start = time.monotonic()
    result = function(*args)
    return time.monotonic() - start, result

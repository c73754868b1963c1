"""Telling processes apart: a process id alone is reused, with its start time it is unique.

A zombie (dead, not yet waited for by its parent) counts as dead here: it runs nothing any more.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
from functools import cache

_PR_SET_NAME = 15


@cache
def host() -> str:
    """Identity of this machine's process ids: the kernel's boot id and the pid namespace."""
    with open("/proc/sys/kernel/random/boot_id") as stream:
        return f"{stream.read().strip()}/{os.readlink('/proc/self/ns/pid')}"


def _stat_fields(pid: int) -> list[bytes]:
    with open(f"/proc/{pid}/stat", "rb") as stream:
        # The command's name is in parentheses and may hold anything, parentheses too.
        return stream.read().rpartition(b")")[2].split()


def start_ticks(pid: int) -> int:
    """Start time of a live process in clock ticks since boot; 0 if there is none (or a zombie)."""
    try:
        fields = _stat_fields(pid)
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in (b"Z", b"X", b"x") else int(fields[19])


def stopped(pid: int) -> bool:
    """Whether a process is stopped, by a signal (SIGSTOP, Ctrl-Z) or a debugger."""
    try:
        return _stat_fields(pid)[0] in (b"T", b"t")
    except (FileNotFoundError, ProcessLookupError):
        return False


def alive(pid: int, ticks: int) -> bool:
    """Whether the process `pid` that started at `ticks` still runs."""
    return pid > 0 and ticks != 0 and start_ticks(pid) == ticks


def open_pidfd(pid: int, ticks: int | None = None) -> int | None:
    """A pidfd of a process, readable once it is dead; None if it is dead already.

    With `ticks` it is certain to be the process that started then.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    # Checked after opening, so the descriptor cannot be of a later process with the same id.
    if start_ticks(pid) != ticks if ticks is not None else start_ticks(pid) == 0:
        os.close(pidfd)
        return None
    return pidfd


def wait_dead(pidfds: list[int], timeout: float) -> bool:
    """Wait up to `timeout` seconds until the processes of all `pidfds` are dead."""
    poller = select.poll()
    for pidfd in pidfds:
        poller.register(pidfd, select.POLLIN)
    left = len(pidfds)
    while left:
        ready = poller.poll(max(0.0, timeout) * 1000)
        if not ready:
            return False
        for pidfd, _ in ready:
            poller.unregister(pidfd)
            left -= 1
    return True


def kill_and_wait(processes: list[tuple[int, int]], timeout: float = 10.0) -> bool:
    """SIGKILL the processes given as (pid, start ticks) and wait until they are dead."""
    pidfds = []
    try:
        for pid, ticks in processes:
            pidfd = open_pidfd(pid, ticks)
            if pidfd is not None:
                pidfds.append(pidfd)
                try:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        return wait_dead(pidfds, timeout)
    finally:
        for pidfd in pidfds:
            os.close(pidfd)


def set_title(title: str) -> None:
    """Name this process as `ps -o comm` and `top` show it (at most 15 bytes are kept)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NAME, title.encode()[:15], 0, 0, 0)


def set_command_line(text: str) -> None:
    """Show `text` as this process's command line, in the room that its first one took.

    For forked processes: they would all show their parent's. What does not fit is cut off.
    """
    start, end = map(int, _stat_fields(os.getpid())[45:47])
    room = end - start - 1
    if room > 0:
        # The last byte stays NUL: else the kernel reads on, into the environment.
        ctypes.memmove(start, text.encode()[:room].ljust(room, b"\0"), room)

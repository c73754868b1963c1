"""Stops a process after each of its instructions, to see what it has done to shared memory by then.

A traced child is stepped through an operation (`PTRACE_SINGLESTEP`). Where an instruction changed
the arena, the arena is copied: the copy is what others would find if the child had been killed just
there. In the copy the child counts as dead, because its slot is given another start time.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from collections.abc import Callable, Iterator
from typing import Any

from crashsim.death import SharedArena, fork

TRACEME, PEEKUSER, SINGLESTEP = 0, 3, 9
RIP = 128  # of the user area
START_TIME = 24  # of nv_slot: after state, pid, tid, role, cpu, parent
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long
_libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


def _ptrace(request: int, pid: int) -> None:
    if _libc.ptrace(request, pid, None, None) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


# First opcode bytes of instructions that may store to memory: with a ModRM byte, of one byte and of
# two (after 0F); and those without one. Vector extensions count as stores whatever they do.
_STORES = frozenset(
    b"\x00\x01\x08\x09\x10\x11\x18\x19\x20\x21\x28\x29\x30\x31\x80\x81\x83\x86\x87\x88\x89"
    b"\xc0\xc1\xc6\xc7\xd0\xd1\xd2\xd3\xf6\xf7\xfe\xff"
)
_STORES_0F = frozenset(
    b"\x11\x13\x17\x29\x2b\x7e\x7f\xab\xb0\xb1\xb3\xba\xbb\xc0\xc1\xc3\xc7\xd6\xe7"
)
_STRINGS = frozenset(b"\xa4\xa5\xaa\xab\xc4\xc5\x62")
_PREFIXES = frozenset(b"\x66\xf0\xf2\xf3" + bytes(range(0x40, 0x50)))


def may_store(code: bytes) -> bool:
    """May this x86-64 instruction store to memory other than the stack?"""
    at = 0
    while code[at] in _PREFIXES:
        at += 1
    opcode = code[at]
    if opcode in _STRINGS:
        return True
    if opcode == 0x0F:
        at += 1
        if code[at] not in _STORES_0F:
            return False
    elif opcode not in _STORES:
        return False
    modrm = code[at + 1]
    if modrm >> 6 == 3:
        return False
    return not (modrm & 7 == 4 and code[at + 2] & 7 == 4 and code[at - 1] & 0xF1 != 0x41)


def possible() -> bool:
    """May this process trace a child?"""

    def traced() -> None:
        _ptrace(TRACEME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)

    pid = fork(traced)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSTOPPED(status):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return True
    return False


class _Watched:
    """A part of memory, and what was in it when it was last looked at."""

    def __init__(self, memory: memoryview) -> None:
        self.size = len(memory)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self.seen = ctypes.create_string_buffer(bytes(memory), self.size)

    def changed(self) -> bool:
        return bool(_libc.memcmp(self.address, self.seen, self.size))

    def look(self) -> None:
        ctypes.memmove(self.seen, self.address, self.size)


def bury(dram: memoryview, pid: int) -> None:
    """Make the slots of a process those of an earlier one of the same number: a dead one."""
    mark = struct.pack("<III", pid << 2 | 2, pid, pid)
    text = bytes(dram[: 4 << 20])
    at = text.find(mark)
    assert at >= 0, "no slot of the process found: has its layout changed?"
    while at >= 0:
        (start,) = struct.unpack_from("<Q", dram, at + START_TIME)
        struct.pack_into("<Q", dram, at + START_TIME, start + 1)
        at = text.find(mark, at + 1)


def states(arena: SharedArena, used: int, act: Callable[[], Callable[[], Any]]) -> Iterator[int]:
    """Step a child through an operation; yields the child's pid wherever the arena has changed.

    `act` prepares, in the child, and gives back the operation. `used` bytes of DRAM are watched.
    """

    def traced() -> None:
        call = act()
        _ptrace(TRACEME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        call()
        os.kill(os.getpid(), signal.SIGKILL)

    pid = fork(traced)
    try:
        status = os.waitpid(pid, 0)[1]
        assert os.WIFSTOPPED(status), status
        watched = [_Watched(arena.pm), _Watched(arena.dram[:used])]
        known: dict[int, bool] = {}
        last = 0
        while True:
            rip = _libc.ptrace(PEEKUSER, pid, RIP, None)
            stores = known.get(rip)
            if stores is None:
                stores = known[rip] = may_store(ctypes.string_at(rip, 15))
            _ptrace(SINGLESTEP, pid)
            status = os.waitpid(pid, 0)[1]
            if not os.WIFSTOPPED(status) or os.WSTOPSIG(status) != signal.SIGTRAP:
                return
            # A string instruction stops after each round: one state of it will do.
            if stores and rip != last and any([part.changed() for part in watched]):
                last = rip
                for part in watched:
                    part.look()
                yield pid
    finally:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass

"""All attachments of this process to arenas: what a fork, or the end of an arena, does to them."""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from typing import Any

cores: weakref.WeakSet[Any] = weakref.WeakSet()
"""The open `Process` objects."""

_keys = itertools.count(1)
# One fork at a time; and a pipe that the child of a fork closes when it is ready.
_forking = threading.Lock()
_handover: list[int] = []


def fresh_key() -> int:
    """A name of an attachment, for the threads that remember their contexts."""
    return next(_keys)


def abandon_arena(dram_fd: int) -> None:
    """This process's attachments to the arena of a DRAM segment are closed, as if it had died."""
    for core in list(cores):
        core.abandon_if(os.fstat(dram_fd))


def _before_fork() -> None:
    _forking.acquire()
    for core in list(cores):
        core._before_fork()
    _handover.extend(os.pipe() if any(core.mappings for core in cores) else ())


def _after_fork_in_child() -> None:
    try:
        for core in list(cores):
            core._after_fork()
    finally:
        while _handover:
            os.close(_handover.pop())
        _forking.release()


def _after_fork_in_parent() -> None:
    # What the child inherited as mapped stays in place for it only once it has said so itself.
    try:
        if _handover:
            os.close(_handover.pop())
            os.read(_handover[0], 1)
            os.close(_handover.pop())
    finally:
        _forking.release()


os.register_at_fork(
    before=_before_fork,
    after_in_child=_after_fork_in_child,
    after_in_parent=_after_fork_in_parent,
)

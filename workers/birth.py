"""How the engine's processes come to be: the supervisor forks them.

Only the supervisor is started with `python -m`. It imports what all of them run, once, and forks:
so a child is there in milliseconds, and shares the pages of code and modules with its siblings
instead of loading a hundred copies. What makes that safe: the supervisor has no threads, no ZeroMQ
context and no open file system when it forks, and a child keeps none of its parent's descriptors
(a child that held the lock file's would keep a killed engine from being started again).
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NoReturn


@dataclass(frozen=True, slots=True)
class Born:
    """A child that runs: its pid, and a descriptor that is readable once it is dead."""

    pid: int
    pidfd: int

    def kill(self) -> None:
        """SIGKILL it; nothing happens if it is dead already."""
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return

    def bury(self) -> int:
        """Wait for its end and close the descriptor: its exit status, or minus the signal."""
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.pidfd)
        return status


def prepare() -> None:
    """Keep the collector from touching, and so copying, what children are to share."""
    gc.collect()
    gc.freeze()


def fork(body: Callable[[], int], keep: int, output: int, signals: Iterable[int]) -> Born:
    """Fork a child that exits with what `body` returns.

    Of the caller's descriptors it has `keep`, and `output` as its standard output and error.
    `signals` are those that the caller handles; in the child they are as in a new process.
    """
    # A signal to the child must not be taken for one to its parent, whose handlers it still has.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        pid = os.fork()
        if pid == 0:
            _live(body, keep, output, signals, blocked)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return Born(pid, os.pidfd_open(pid))


def _live(
    body: Callable[[], int],
    keep: int,
    output: int,
    signals: Iterable[int],
    blocked: Iterable[int],
) -> NoReturn:
    """The child's life. It ends here: nothing of the parent's is to be finished in a child."""
    status = 1
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in signals:
            signal.signal(number, signal.SIG_DFL)
        _keep_only(keep, output)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        status = body()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _keep_only(keep: int, output: int) -> None:
    os.dup2(output, 1)
    os.dup2(output, 2)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    # The parent's objects stay, unused, and never close these numbers once more: see `_live`.
    os.closerange(3, keep)
    os.closerange(keep + 1, 1 + max(int(name) for name in os.listdir("/proc/self/fd")))

"""Client processes and the pipes to them: started together, told things, ended in any case."""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

from nova_mp.errors import NovaError

# After being asked to end, a client has this long before it is killed.
GRACE_S = 5.0


class ClientFailed(NovaError):
    """A client process reported an error, or died."""


class SharedNumbers:
    """Unsigned 64-bit numbers, zero at first, in memory that clients of a pool can be given."""

    def __init__(self, count: int, fd: int | None = None) -> None:
        self.count = count
        self.fd = os.memfd_create("numbers", 0) if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, 8 * count)
        self._map = mmap.mmap(self.fd, 8 * count)
        self._numbers = memoryview(self._map).cast("Q")

    def __getitem__(self, index: int) -> int:
        return self._numbers[index]

    def __setitem__(self, index: int, value: int) -> None:
        self._numbers[index] = value

    def tolist(self) -> list[int]:
        """All of them now, one after the other."""
        return self._numbers.tolist()

    def __reduce__(self) -> tuple[Any, ...]:
        # A client inherits the descriptor under its number.
        return SharedNumbers, (self.count, self.fd)

    def close(self) -> None:
        """Give the memory back; clients keep theirs."""
        self._numbers.release()
        self._map.close()
        os.close(self.fd)


class Pool:
    """Processes that run ``main(pipe, *arguments)`` and answer (verb, values) messages.

    As a context manager: on leaving, those that still run are terminated. Replies come as
    ("ok", result) or ("error", text); a process may send ("note", value) at any time before its
    reply, which goes to ``on_note``.
    """

    def __init__(
        self,
        main: Callable[..., None],
        arguments: Sequence[tuple[Any, ...]],
        on_note: Callable[[int, Any], None] | None = None,
    ) -> None:
        self._on_note = on_note
        self.pipes: list[Connection] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        try:
            for values in arguments:
                self._start(main, values)
        except BaseException:
            self.close()
            raise

    def _start(self, main: Callable[..., None], values: tuple[Any, ...]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            inherited = [value.fd for value in values if isinstance(value, SharedNumbers)]
            process = subprocess.Popen(
                [sys.executable, "-m", "nova_mp.bench.process", str(theirs.fileno())],
                # Programs of their own, to the scheduler as well; see docs/ARCHITECTURE.md.
                start_new_session=True,
                stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(), *inherited),
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self.processes.append(process)
        self.pipes.append(Connection(ours.detach()))
        try:
            self.pipes[-1].send((main, values))
        except OSError as error:
            raise self._dead(len(self.pipes) - 1) from error

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def post(self, verb: str, *values: Any) -> None:
        """Tell all processes the same; `collect` gets their replies."""
        for index in range(len(self.pipes)):
            self.post_one(index, verb, *values)

    def post_one(self, index: int, verb: str, *values: Any) -> None:
        """Tell one process something."""
        try:
            self.pipes[index].send((verb, values))
        except OSError as error:
            raise self._dead(index) from error

    def collect(self, timeout: float, tick: Callable[[], None] | None = None) -> list[Any]:
        """One reply of each process, in their order.

        ``timeout`` is in seconds for all of them together. ``tick`` is called about ten times a
        second. Raises ClientFailed when one reports an error, dies or is late.
        """
        deadline = time.monotonic() + timeout
        waiting = {pipe: index for index, pipe in enumerate(self.pipes)}
        replies: list[Any] = [None] * len(self.pipes)
        while waiting:
            left = deadline - time.monotonic()
            if left <= 0:
                late = ", ".join(str(index) for index in sorted(waiting.values()))
                raise ClientFailed(f"no answer from client {late} within {timeout:g} s")
            for ready in wait(list(waiting), min(left, 0.1)):
                index = waiting[ready]  # type: ignore[index]
                kind, value = self._receive(index)
                if kind == "note":
                    if self._on_note is not None:
                        self._on_note(index, value)
                    continue
                if kind == "error":
                    raise ClientFailed(f"client {index}: {value}")
                replies[index] = value
                del waiting[ready]  # type: ignore[arg-type]
            if tick is not None:
                tick()
        return replies

    def call(self, verb: str, *values: Any, timeout: float = 60.0) -> list[Any]:
        """`post` and `collect`."""
        self.post(verb, *values)
        return self.collect(timeout)

    def _receive(self, index: int) -> tuple[str, Any]:
        try:
            kind, value = self.pipes[index].recv()
        except (EOFError, OSError) as error:
            raise self._dead(index) from error
        return kind, value

    def _dead(self, index: int) -> ClientFailed:
        process = self.processes[index]
        with suppress(subprocess.TimeoutExpired):
            process.wait(1.0)
        return ClientFailed(f"client {index} died (exit code {process.returncode})")

    def close(self) -> None:
        """Close the pipes, which ends the processes, and terminate those that stay."""
        for pipe in self.pipes:
            pipe.close()
        deadline = time.monotonic() + GRACE_S
        for process in self.processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.pipes.clear()
        self.processes.clear()

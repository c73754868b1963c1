"""Client processes and the pipes to them: started together, told things, ended in any case."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

from nova_mp.errors import NovaError

# A fork would copy our ZeroMQ sockets and mappings into the client; a fresh interpreter has none.
_CONTEXT = multiprocessing.get_context("spawn")
# After being asked to end, a client has this long before it is killed.
GRACE_S = 5.0


class ClientFailed(NovaError):
    """A client process reported an error, or died."""


def shared_numbers(count: int) -> Any:
    """``count`` unsigned 64-bit zeros in memory that clients of a pool can be given."""
    return _CONTEXT.RawArray("Q", count)


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
        self.processes: list[Any] = []
        for index, values in enumerate(arguments):
            ours, theirs = _CONTEXT.Pipe()
            process = _CONTEXT.Process(
                target=main, args=(theirs, *values), name=f"bench-client-{index}", daemon=True
            )
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

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
        process.join(1.0)
        return ClientFailed(f"client {index} died (exit code {process.exitcode})")

    def close(self) -> None:
        """Close the pipes, which ends the processes, and terminate those that stay."""
        for pipe in self.pipes:
            pipe.close()
        deadline = time.monotonic() + GRACE_S
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        self.pipes.clear()
        self.processes.clear()

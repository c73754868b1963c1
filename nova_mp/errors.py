"""What errno cannot say.

File operations raise `OSError` subclasses with `errno` and `filename`, as `os` does. Everything
about arenas, engines and the control path is a `NovaError`, which names the cause (`reason`) and
what the user can do about it (`remedy`). Errors with a close errno are `OSError` subclasses too, so
a caller that only knows `os` still catches them.
"""

from __future__ import annotations

import errno
from typing import Any


class NovaError(Exception):
    """An error of an arena or its engine: `reason` says why, `remedy` what to do about it."""

    reason: str
    remedy: str
    errno_value: int | None = None

    def __init__(self, reason: str, remedy: str = "") -> None:
        if self.errno_value is None:
            super().__init__(reason)
        else:
            super().__init__(self.errno_value, reason)
        self.reason = reason
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.reason}; {self.remedy}" if self.remedy else self.reason

    def __reduce__(self) -> tuple[Any, ...]:
        # OSError pickles itself as (errno, text), which is not what our constructors take.
        return type(self), (self.reason, self.remedy)


class CorruptArena(NovaError):
    """The arena's contents fail a check (magic number, checksum, impossible value)."""


class VersionMismatch(NovaError):
    """The arena, or the other side of a connection, speaks a version this package does not."""


class ArenaNotFound(NovaError, FileNotFoundError):
    """No arena of this name exists."""

    errno_value = errno.ENOENT


class ArenaExists(NovaError, FileExistsError):
    """An arena of this name, or the file that should back it, exists already."""

    errno_value = errno.EEXIST


class ArenaBusy(NovaError, OSError):
    """The arena cannot do this while it is in use (`errno` is `EBUSY`)."""

    errno_value = errno.EBUSY


class NotEnoughMemory(NovaError, OSError):
    """The machine cannot hold a segment of this size (`errno` is `ENOSPC`)."""

    errno_value = errno.ENOSPC


class EngineNotRunning(NovaError, ConnectionError):
    """The arena has no running engine, or the engine went away during the call."""

    errno_value = errno.ECONNREFUSED


class EngineRunning(NovaError):
    """The arena's engine runs, and this needs it to be stopped."""


class EngineFailed(NovaError):
    """The engine could not start, or a process of it failed."""


class NoSuchSnapshot(NovaError, FileNotFoundError):
    """The arena holds no snapshot of this id or name."""

    errno_value = errno.ENOENT


class SlotsExhausted(NovaError, OSError):
    """Every process slot of the arena is taken (`errno` is `EAGAIN`)."""

    errno_value = errno.EAGAIN


class ProtocolError(NovaError):
    """A message is malformed: unknown type, missing field, wrong type, too large."""


class Timeout(NovaError, TimeoutError):
    """No answer in the time the caller allowed; the request may or may not take effect later."""

    errno_value = errno.ETIMEDOUT


class AccessRefused(NovaError, PermissionError):
    """The engine does not let this client in, or it is not the engine that was expected."""

    errno_value = errno.EACCES


class Frozen(NovaError, OSError):
    """The file system is frozen by another holder (`errno` is `EBUSY`)."""

    errno_value = errno.EBUSY


NOVA_ERRORS: dict[str, type[NovaError]] = {
    error.__name__: error
    for error in (
        NovaError,
        CorruptArena,
        VersionMismatch,
        ArenaNotFound,
        ArenaExists,
        ArenaBusy,
        NotEnoughMemory,
        EngineNotRunning,
        EngineRunning,
        EngineFailed,
        NoSuchSnapshot,
        SlotsExhausted,
        ProtocolError,
        Timeout,
        AccessRefused,
        Frozen,
    )
}

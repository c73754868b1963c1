"""What goes into the state machines (events) and what comes out of them (instructions).

Times are seconds of one monotonic clock. A `peer` is where a reply goes: the routing id that the
process's socket gave to the sender. Nobody changes any of them; the four that make up a file
operation are not frozen, because making a frozen one takes three times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

TICK_S = 0.2
"""How often the coordinator looks for dead processes and past deadlines."""

# ------------------------------------------------------------------------------------- events


@dataclass(slots=True)
class Request:
    """A message from a client, with its payload frames.

    `oldest` is the lowest sequence number that the client waited for when it sent this, or None
    if it waited for nothing else.
    """

    peer: bytes
    request_id: bytes
    message: Any
    now: float
    payload: Sequence[Any] = ()
    oldest: int | None = None


@dataclass(frozen=True, slots=True)
class Malformed:
    """Frames from a client that are no message; `error` says why."""

    peer: bytes
    request_id: bytes
    error: BaseException


@dataclass(slots=True)
class Answered:
    """What RunFileOp came to: the reply, an ErrorReply when it failed, and its payload."""

    peer: bytes
    request_id: bytes
    message: Any
    payload: Sequence[Any]
    keep: bool


@dataclass(frozen=True, slots=True)
class JobDone:
    """The running job ended: with `result`, or with `error`."""

    result: Any
    error: BaseException | None
    now: float


@dataclass(frozen=True, slots=True)
class StatusRead:
    """What QueryStatus asked for; `stats` and `slots` as the core gives them."""

    token: int
    stats: dict[str, Any]
    slots: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""

    now: float


@dataclass(frozen=True, slots=True)
class HolderDied:
    """A watched process is dead."""

    pid: int
    now: float


@dataclass(frozen=True, slots=True)
class Subscribed:
    """Somebody subscribed to the events, and does not know the current state."""


@dataclass(frozen=True, slots=True)
class ProcessesChanged:
    """The supervisor says which processes the engine has; one of them may have died."""

    processes: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class EpochSeen:
    """The coordinator published its state."""

    incarnation: str
    deletions: int
    frozen: bool
    now: float


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """The core's reclaim came back with `left` entries still to do."""

    left: int
    now: float


@dataclass(frozen=True, slots=True)
class QuitAsked:
    """The supervisor wants this process to finish and leave."""

    now: float


@dataclass(frozen=True, slots=True)
class Drained:
    """After QuitAsked: no request is left in the socket, or no more time to look."""


# ------------------------------------------------------------------------------- instructions


@dataclass(slots=True)
class Send:
    """Send a reply, with its payload frames."""

    peer: bytes
    request_id: bytes
    message: Any
    payload: Sequence[Any] = ()


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish an event."""

    message: Any


@dataclass(frozen=True, slots=True)
class RunJob:
    """Run a core operation in the job thread, then step with JobDone.

    `kind` is snapshot_create(name), snapshot_delete(epoch_id, defer), freeze(timeout_s) or
    unfreeze(). `asked`: somebody asked for it, and the log says so.
    """

    kind: str
    arguments: tuple[Any, ...]
    asked: bool = True


@dataclass(frozen=True, slots=True)
class QueryStatus:
    """Read the core's stats and slots, then step with StatusRead."""

    token: int


@dataclass(frozen=True, slots=True)
class Reap:
    """Repair and free the slots of dead processes."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Watch a process of this machine; step with HolderDied when it dies, or is dead already."""

    pid: int


@dataclass(frozen=True, slots=True)
class Unwatch:
    """Watch it no more."""

    pid: int


@dataclass(frozen=True, slots=True)
class AskStop:
    """Tell the supervisor that somebody asked the engine to stop."""

    force: bool


@dataclass(slots=True)
class RunFileOp:
    """Hand a file operation to the file-operation server, then step with Answered.

    `keep` comes back there: whether the reply must be remembered.
    """

    peer: bytes
    request_id: bytes
    message: Any
    payload: Sequence[Any]
    keep: bool


@dataclass(frozen=True, slots=True)
class DropSession:
    """Close everything that a session has open."""

    peer: bytes


@dataclass(frozen=True, slots=True)
class Reclaim:
    """Call the core's reclaim with `budget` entries, then step with Reclaimed."""

    budget: int


@dataclass(frozen=True, slots=True)
class Report:
    """Send a message to the coordinator, unasked."""

    message: Any


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Step with Tick at the time `at`, instead of at an earlier timer's; None: no timer."""

    at: float | None


@dataclass(frozen=True, slots=True)
class Exit:
    """Leave the arena and exit."""

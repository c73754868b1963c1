"""Messages of the control path, and the registry that every message joins.

A message is a frozen dataclass with slots whose fields are plain data. The decorator
`message("type-name")` makes it one and registers it, with checks compiled from its annotations, so
that decoding refuses what does not fit before any code sees it. Field types are bool, int, float,
str, bytes, `X | None`, `tuple[X, ...]` and `dict[str, Any]`. File operations register theirs in
`fileops.py`.

`docs/PROTOCOL.md` says who sends which message where, and what answers it.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from nova_mp import errors
from nova_mp.errors import ProtocolError

VERSION = 3
"""Version of the protocol; another one is refused. Any change of a message increments it."""

STR_CHARACTERS_MAX = 64 << 10
REASON_CHARACTERS_MAX = 1000
BYTES_MAX = 1 << 20
ITEMS_MAX = 1 << 20

T = TypeVar("T")
Check = Callable[[Any], bool]
_SIMPLE: dict[Any, Check] = {
    bool: lambda value: type(value) is bool,
    int: lambda value: type(value) is int,
    float: lambda value: type(value) in (int, float) and math.isfinite(value),
    str: lambda value: type(value) is str and len(value) <= STR_CHARACTERS_MAX,
    bytes: lambda value: type(value) is bytes and len(value) <= BYTES_MAX,
    type(None): lambda value: value is None,
    Any: lambda value: True,
}


def _compile(annotation: Any) -> Check:
    """The check for one field annotation; raises TypeError for what messages cannot hold."""
    if annotation in _SIMPLE:
        return _SIMPLE[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        checks = tuple(_compile(argument) for argument in arguments)
        return lambda value: any(check(value) for check in checks)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        if arguments[0] is int:
            # Without a call for each: some messages have hundreds of numbers.
            return lambda value: (
                type(value) is tuple and len(value) <= ITEMS_MAX and set(map(type, value)) <= {int}
            )
        item = _compile(arguments[0])
        return lambda value: (
            type(value) is tuple and len(value) <= ITEMS_MAX and all(map(item, value))
        )
    if origin is dict and arguments[0] is str:
        item = _compile(arguments[1])
        return lambda value: (
            type(value) is dict
            and len(value) <= ITEMS_MAX
            and all(type(key) is str for key in value)
            and all(map(item, value.values()))
        )
    raise TypeError(f"a message field cannot be {annotation}")


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a registered message; `default` is MISSING when it must be sent."""

    name: str
    annotation: str
    check: Check
    default: Any


@dataclass(frozen=True, slots=True)
class Registration:
    """A registered message: its type name on the wire, its class, its fields in order.

    `names` are those of the fields, `values_of` reads them from a message and `pick` from a map
    that has them all. `plain` has the fields' types if these alone say whether values fit, else it
    is None: then `Field.check` has to look at each.
    """

    type_name: str
    cls: type
    fields: tuple[Field, ...]
    names: tuple[str, ...]
    values_of: Callable[[Any], tuple[Any, ...]]
    pick: Callable[[dict[str, Any]], tuple[Any, ...]]
    plain: tuple[type, ...] | None


def _tuple_of(getter: Callable[..., Any], names: tuple[str, ...]) -> Callable[[Any], Any]:
    """A getter of several things that gives a tuple for one and for none too."""
    if not names:
        return lambda source: ()
    if len(names) == 1:
        single = getter(*names)
        return lambda source: (single(source),)
    several: Callable[[Any], Any] = getter(*names)
    return several


def _registration(type_name: str, cls: type, fields: tuple[Field, ...]) -> Registration:
    hints = typing.get_type_hints(cls)
    names = tuple(field.name for field in fields)
    types_of = tuple(hints[name] for name in names)
    return Registration(
        type_name,
        cls,
        fields,
        names,
        _tuple_of(operator.attrgetter, names),
        _tuple_of(operator.itemgetter, names),
        types_of if all(kind in (int, bool) for kind in types_of) else None,
    )


MISSING = dataclasses.MISSING
_by_name: dict[str, Registration] = {}
_by_class: dict[type, Registration] = {}


@typing.dataclass_transform(frozen_default=True)
def message(type_name: str) -> Callable[[type[T]], type[T]]:
    """Class decorator: make a frozen dataclass with slots of it and register it as `type_name`."""

    def register(cls: type[T]) -> type[T]:
        made: Any = dataclass(frozen=True, slots=True)(cls)
        hints = typing.get_type_hints(made)
        found = tuple(
            Field(field.name, str(field.type), _compile(hints[field.name]), field.default)
            for field in dataclasses.fields(made)
        )
        if type_name in _by_name:
            raise TypeError(f"two messages are called {type_name!r}")
        if clash := {"t", "v", "id"} & {field.name for field in found}:
            raise TypeError(f"message {type_name!r} may not have a field {clash.pop()!r}")
        _by_name[type_name] = _by_class[made] = _registration(type_name, made, found)
        return made

    return register


def registration(cls: type) -> Registration:
    """How messages of class `cls` are encoded; raises ProtocolError if it is none."""
    try:
        return _by_class[cls]
    except KeyError:
        raise ProtocolError(f"{cls.__name__} is not a message") from None


def registration_by_name(type_name: Any) -> Registration:
    """How messages of type `type_name` are decoded; raises ProtocolError if there is none."""
    try:
        return _by_name[type_name]
    except (KeyError, TypeError):
        # What cannot be looked up at all is unknown too.
        raise ProtocolError(f"unknown message type {type_name!r:.80}") from None


def registrations() -> tuple[Registration, ...]:
    """Every message registered so far, by type name."""
    return tuple(_by_name[name] for name in sorted(_by_name))


# ------------------------------------------------------------------------------- any process


@message("done")
class Done:
    """Reply: the request was carried out and has nothing to tell."""


@message("error")
class ErrorReply:
    """Reply: the request failed. `kind` names an error of nova_mp.errors or a built-in one."""

    kind: str
    reason: str
    remedy: str = ""
    errno: int | None = None
    filename: str | bytes | None = None
    filename2: str | bytes | None = None


@message("ping")
class Ping:
    """Request: are you there? Clients send it to a worker to keep their session."""


@message("pong")
class Pong:
    """Reply to ping."""

    engine_id: str


@message("hello")
class Hello:
    """Request: who are you? Opens a session at a worker.

    `host` and `pid` name the sender's process (see `nova_mp.cluster.identity`), so that a session
    ends when its process dies; they are empty and 0 when the sender is on another machine.
    """

    package_version: str
    host: str = ""
    pid: int = 0
    title: str = ""


@message("hello-reply")
class HelloReply:
    """Reply to hello. `cpu` is the worker's CPU, or -1 from the coordinator.

    `host` names the engine's machine as Hello does the client's: on the same one the client's
    process is watched, from another one it keeps its session by Ping.
    """

    arena: str
    engine_id: str
    package_version: str
    cpus: int
    cpu: int
    media: str
    coordinator: str
    events: str
    workers: tuple[str, ...]
    host: str = ""


# -------------------------------------------------------------------------------- coordinator


@message("status")
class Status:
    """Request: everything `nova-mp status` shows."""


@message("status-reply")
class StatusReply:
    """Reply to status. `processes`, `slots` and `stats` hold plain data; times are ns."""

    arena: str
    engine_id: str
    state: str
    cpus: int
    media: str
    started_ns: int
    epoch_id: int
    deletions: int
    reclaim_left: int
    freeze_holder: int | None
    processes: tuple[dict[str, Any], ...]
    slots: tuple[dict[str, Any], ...]
    stats: dict[str, Any]


@message("snapshot-create")
class SnapshotCreate:
    """Request: take a snapshot; not begun any more when `timeout_s` has passed in the queue."""

    name: str | None = None
    timeout_s: float = 30.0


@message("snapshot-created")
class SnapshotCreated:
    """Reply to snapshot-create, and event: the snapshot is complete. Its id is `epoch_id`."""

    epoch_id: int
    name: str | None


@message("snapshot-delete")
class SnapshotDelete:
    """Request: delete a snapshot; not begun any more when `timeout_s` has passed in the queue.

    One that is open is refused as busy, or, with `defer`, deleted once nobody has it open.
    """

    epoch_id: int
    timeout_s: float = 30.0
    defer: bool = False


@message("snapshot-deleted")
class SnapshotDeleted:
    """Reply to snapshot-delete, and event: the snapshot is gone; `deletions` counts such events.

    In a reply, `deferred` says that it is not gone yet, but will be; the event follows then.
    """

    epoch_id: int
    deletions: int
    deferred: bool = False


@message("snapshot-wait")
class SnapshotWait:
    """Request: answer when the cleaner has nothing left to free, or `timeout_s` has passed."""

    timeout_s: float = 30.0


@message("freeze")
class Freeze:
    """Request: let running operations finish and hold back new ones.

    Fails when they have not finished after `timeout_s`. The freeze ends at unfreeze, after
    `lease_s` seconds (0: no limit), or when the process `pid` of `host` dies (0: none to watch).
    """

    timeout_s: float = 30.0
    lease_s: float = 0.0
    host: str = ""
    pid: int = 0


@message("unfreeze")
class Unfreeze:
    """Request: let operations go on. It is no error when nothing is frozen."""


@message("stop")
class Stop:
    """Request: stop the engine in an orderly way.

    Refused as busy while clients are attached, unless `force`: then they get a short while to
    leave; if they do not, the volatile state stays for the next start to adopt.
    """

    force: bool = False


@message("reclaim-report")
class ReclaimReport:
    """From the cleaner to the coordinator: `left` list entries remain after `deletions`."""

    incarnation: str
    deletions: int
    left: int


# ------------------------------------------------------------------------------------- events


@message("epoch")
class EpochEvent:
    """Event: the current state. Sent at every change of it and to each new subscriber."""

    incarnation: str
    epoch_id: int
    deletions: int
    frozen: bool


@message("stopping")
class StoppingEvent:
    """Event: the engine stops."""

    engine_id: str


# ------------------------------------------------------------------------------------- worker


@message("worker-stats")
class WorkerStats:
    """Request: a worker's counters."""


@message("worker-stats-reply")
class WorkerStatsReply:
    """Reply to worker-stats: requests answered, of them failed, sessions open now."""

    cpu: int
    pid: int
    requests: int
    failed: int
    malformed: int
    sessions: int


@message("bye")
class Bye:
    """Request: end my session; its open files are closed."""


# ------------------------------------------------- supervisor and the processes it started


@message("child-ready")
class ChildReady:
    """From a child to the supervisor: it is in service."""

    title: str
    pid: int


@message("child-failed")
class ChildFailed:
    """From a child to the supervisor: it cannot start or go on, and exits."""

    title: str
    reason: str
    remedy: str = ""


@message("stop-requested")
class StopRequested:
    """From the coordinator to the supervisor: somebody asked the engine to stop."""

    force: bool


@message("quit")
class Quit:
    """From the supervisor to a child: finish what you do, leave, and exit."""


@message("processes")
class Processes:
    """From the supervisor to the coordinator: the processes of the engine, after a change."""

    processes: tuple[dict[str, Any], ...]


# ------------------------------------------------------------------------------------- errors


def error_reply(error: BaseException) -> ErrorReply:
    """The message that carries `error` to another process."""
    kind = type(error).__name__
    if isinstance(error, errors.NovaError):
        return ErrorReply(kind, _short(error.reason), error.remedy)
    if isinstance(error, OSError) and error.errno is not None:
        names = [
            name if type(name) in (str, bytes) and _SIMPLE[type(name)](name) else None
            for name in (error.filename, error.filename2)
        ]
        reason = _short(error.strerror or "")
        return ErrorReply("OSError", reason, "", error.errno, names[0], names[1])
    if kind in _BUILTIN:
        return ErrorReply(kind, _short(str(error)))
    return ErrorReply("RuntimeError", _short(f"{kind}: {error}"))


def _short(reason: str) -> str:
    """A reason as it fits a message and a terminal: some quote what was sent, whatever its size."""
    if len(reason) <= REASON_CHARACTERS_MAX:
        return reason
    return f"{reason[:REASON_CHARACTERS_MAX]}..."


SESSION_UNKNOWN = ErrorReply("SessionUnknown", "this client has not said hello", "say hello first")
"""Reply to one who may have talked to a process that died, and forgot him with all that he did."""


def session_unknown(reply: Any) -> bool:
    """Whether a reply says that the sender of the request is not known."""
    return isinstance(reply, ErrorReply) and reply.kind == SESSION_UNKNOWN.kind


_BUILTIN: dict[str, type[Exception]] = {
    cls.__name__: cls
    for cls in (
        ValueError,
        TypeError,
        KeyError,
        OverflowError,
        NotImplementedError,
        MemoryError,
        RuntimeError,
    )
}


def error_of(reply: ErrorReply) -> Exception:
    """The exception that `reply` carries, to be raised in the process that asked."""
    if reply.kind in errors.NOVA_ERRORS:
        return errors.NOVA_ERRORS[reply.kind](reply.reason, reply.remedy)
    if reply.errno is not None:
        # OSError picks the subclass (FileNotFoundError, ...) by errno.
        return OSError(reply.errno, reply.reason, reply.filename, None, reply.filename2)
    return _BUILTIN.get(reply.kind, RuntimeError)(reply.reason)

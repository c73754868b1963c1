"""What the coordinator keeps of requests: who asked, what runs and waits, which replies it gave."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from nova_mp.errors import Timeout
from nova_mp.protocol import messages as m
from nova_mp.protocol.codec import client_of

REPLIES_REMEMBERED = 4096

REQUESTS_MAX = 1024
"""Requests that may wait for something at a time; without a limit memory would be the limit."""

CLIENTS_REMEMBERED = 4096

TIMEOUT_MAX_S = 86_400.0
"""The longest that anything may wait, whatever its sender says."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What the engine is called and where it listens; goes into replies as it is."""

    arena: str
    engine_id: str
    incarnation: str
    package_version: str
    cpus: int
    media: str
    started_ns: int
    host: str
    coordinator: str
    events: str
    workers: tuple[str, ...]

    def hello(self) -> m.HelloReply:
        """The reply to a greeting."""
        return m.HelloReply(
            arena=self.arena,
            engine_id=self.engine_id,
            package_version=self.package_version,
            cpus=self.cpus,
            cpu=-1,
            media=self.media,
            coordinator=self.coordinator,
            events=self.events,
            workers=self.workers,
            host=self.host,
        )


@dataclass(slots=True)
class Job:
    """A change that somebody asked for; nobody did if it has no request id."""

    request_id: bytes | None
    message: Any
    deadline: float

    def timeout(self, now: float) -> float:
        """Seconds that it may still take."""
        return min(max(0.0, self.deadline - now), TIMEOUT_MAX_S)


@dataclass(slots=True)
class Freeze:
    """A freeze, from its beginning to the end of the thaw; pid 0: no holder to watch."""

    pid: int
    lease_s: float
    ends: float = float("inf")
    holder_died: bool = False


@dataclass(slots=True)
class Waiter:
    """Somebody who waits for the cleaner."""

    request_id: bytes
    deadline: float


@dataclass(slots=True)
class Question:
    """Somebody who waits for a look at the arena; `stop` if that is to decide about a stop."""

    request_id: bytes
    stop: m.Stop | None


@dataclass(slots=True)
class Memory:
    """Requests in flight (their peers), the replies of past ones, and clients; oldest first."""

    in_flight: dict[bytes, list[bytes]] = field(default_factory=dict)
    replies: OrderedDict[bytes, Any] = field(default_factory=OrderedDict)
    clients: OrderedDict[bytes, None] = field(default_factory=OrderedDict)

    def greet(self, request_id: bytes) -> None:
        """A client says hello."""
        self.clients[client_of(request_id)] = None
        while len(self.clients) > CLIENTS_REMEMBERED:
            self.clients.popitem(last=False)

    def knows(self, request_id: bytes) -> bool:
        """Whether the client of a request has said hello to this coordinator."""
        client = client_of(request_id)
        if client in self.clients:
            self.clients.move_to_end(client)
        return client in self.clients

    @property
    def full(self) -> bool:
        """Whether no more requests may come in."""
        return len(self.in_flight) >= REQUESTS_MAX

    def remember(self, request_id: bytes, reply: Any) -> None:
        """Keep a reply, and forget the oldest."""
        self.replies[request_id] = reply
        while len(self.replies) > REPLIES_REMEMBERED:
            self.replies.popitem(last=False)


def late(message: Any) -> Timeout:
    """The error for a job that was never begun."""
    what = {m.SnapshotCreate: "snapshot was not begun", m.SnapshotDelete: "deletion was not begun"}
    return Timeout(
        f"the {what.get(type(message), 'freeze was not begun')} in time",
        "the arena may be frozen: see nova-mp status",
    )

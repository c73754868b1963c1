"""What a worker decides: who has a session, which request is new, when it may leave.

A session begins with hello. It ends with bye, with the death of its process (on this machine), or,
if its process cannot be watched, when nothing was heard from it for SESSION_IDLE_S. Whatever it has
open is closed then. A request of an unknown session is refused as "SessionUnknown": its sender may
have talked to a worker that died, with all that was open there.

    SERVING --quit--> DRAINING (answers what has arrived) --drained--> STOPPED

Invariants
- WORKER-1: a file operation runs only in a session that is open.
- WORKER-2: an operation that changes something runs once for each request id; a repeated request
  gets the reply that is remembered, as long as it is among the last REPLIES_REMEMBERED.
- WORKER-3: a process is watched exactly while a session of it is open.
"""

from __future__ import annotations

import enum
import os
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nova_mp.cluster.machine import Machine, require, table
from nova_mp.cluster.vocabulary import (
    Answered,
    Drained,
    DropSession,
    Exit,
    HolderDied,
    Malformed,
    QuitAsked,
    Request,
    RunFileOp,
    Send,
    Tick,
    Unwatch,
    Watch,
)
from nova_mp.errors import ProtocolError, SlotsExhausted
from nova_mp.protocol import fileops
from nova_mp.protocol import messages as m

REPLIES_REMEMBERED = 256
"""Replies remembered for each session: twice what a client may have on its way at a time."""

SESSIONS_MAX = 4096
"""A session costs kilobytes, and somebody who opens them without end must not take all memory."""

SESSION_IDLE_S = 120.0
"""Clients that cannot be watched send a Ping several times in this long."""

TICK_S = 10.0


class State(enum.Enum):
    """States of a worker; see the head of this file."""

    SERVING = "serving"
    DRAINING = "draining"
    STOPPED = "stopped"


@dataclass(slots=True)
class _Session:
    pid: int
    last_heard: float
    running: set[bytes] = field(default_factory=set)
    replies: OrderedDict[bytes, tuple[Any, Sequence[Any]]] = field(default_factory=OrderedDict)


class Worker(Machine):
    """The state machine of a worker process."""

    def __init__(self, greeting: m.HelloReply) -> None:
        """`greeting` is what hello is answered with; its `host` names this machine."""
        super().__init__()
        self.state = State.SERVING
        self.greeting = greeting
        self._sessions: dict[bytes, _Session] = {}
        self._watched: Counter[int] = Counter()
        self.requests = 0
        self.failed = 0
        self.malformed = 0

    # --------------------------------------------------------------------------------- requests

    def _on_request(self, event: Request) -> None:
        message = event.message
        self.requests += 1
        if type(message) is m.Hello:
            self._open(event)
            return
        if type(message) is m.WorkerStats:
            self.emit(Send(event.peer, event.request_id, self._stats()))
            return
        session = self._sessions.get(event.peer)
        if session is None:
            self.emit(Send(event.peer, event.request_id, m.SESSION_UNKNOWN))
            return
        session.last_heard = event.now
        if type(message) is m.Ping:
            self.emit(Send(event.peer, event.request_id, m.Pong(self.greeting.engine_id)))
        elif type(message) is m.Bye:
            self._drop(event.peer)
        elif not event.request_id:
            self._refuse(event.peer, event.request_id, ProtocolError("request without an id"))
        elif type(message) in fileops.REPLIES:
            self._run(session, event)
        else:
            name = type(message).__name__
            error = ProtocolError(f"a worker does not answer {name}")
            self._refuse(event.peer, event.request_id, error)

    def _run(self, session: _Session, event: Request) -> None:
        ident = event.request_id
        remembered = session.replies.get(ident)
        if remembered is not None:
            self.emit(Send(event.peer, ident, *remembered))
        elif ident not in session.running:
            keep = type(event.message) not in fileops.RETRYABLE
            session.running.add(ident)
            self.emit(RunFileOp(event.peer, ident, event.message, event.payload, keep))

    def _on_answered(self, event: Answered) -> None:
        if type(event.message) is m.ErrorReply:
            self.failed += 1
        session = self._sessions.get(event.peer)
        if session is not None:
            session.running.discard(event.request_id)
            if event.keep:
                session.replies[event.request_id] = (event.message, event.payload)
                if len(session.replies) > REPLIES_REMEMBERED:
                    session.replies.popitem(last=False)
        self.emit(Send(event.peer, event.request_id, event.message, event.payload))

    def _on_malformed(self, event: Malformed) -> None:
        self.malformed += 1
        self._refuse(event.peer, event.request_id, event.error)

    def _refuse(self, peer: bytes, request_id: bytes, error: BaseException) -> None:
        self.emit(Send(peer, request_id, m.error_reply(error)))

    def _stats(self) -> m.WorkerStatsReply:
        return m.WorkerStatsReply(
            cpu=self.greeting.cpu,
            pid=os.getpid(),
            requests=self.requests,
            failed=self.failed,
            malformed=self.malformed,
            sessions=len(self._sessions),
        )

    # --------------------------------------------------------------------------------- sessions

    def _open(self, event: Request) -> None:
        hello = event.message
        session = self._sessions.get(event.peer)
        if session is None and len(self._sessions) >= SESSIONS_MAX:
            error = SlotsExhausted("the worker has all the sessions it can have", "try again later")
            self._refuse(event.peer, event.request_id, error)
            return
        self.emit(Send(event.peer, event.request_id, self.greeting))
        if session is not None:
            session.last_heard = event.now
            return
        pid = hello.pid if hello.host == self.greeting.host else 0
        self._sessions[event.peer] = _Session(pid, event.now)
        if pid:
            self._watched[pid] += 1
            if self._watched[pid] == 1:
                self.emit(Watch(pid))

    def _drop(self, peer: bytes) -> None:
        session = self._sessions.pop(peer)
        self.emit(DropSession(peer))
        if session.pid:
            self._watched[session.pid] -= 1
            if not self._watched[session.pid]:
                del self._watched[session.pid]
                self.emit(Unwatch(session.pid))

    def _on_process_died(self, event: HolderDied) -> None:
        for peer in [peer for peer, session in self._sessions.items() if session.pid == event.pid]:
            self._drop(peer)

    def _on_tick(self, event: Tick) -> None:
        silent_since = event.now - SESSION_IDLE_S
        for peer, session in list(self._sessions.items()):
            if not session.pid and session.last_heard < silent_since:
                self._drop(peer)

    # ------------------------------------------------------------------------------------ leave

    def _on_quit(self, event: QuitAsked) -> None:
        if self.state is State.SERVING:
            self.state = State.DRAINING

    def _on_drained(self, event: Drained) -> None:
        for peer in list(self._sessions):
            self._drop(peer)
        self.state = State.STOPPED
        self.emit(Exit())

    # ------------------------------------------------------------------------------- invariants

    def validate(self) -> None:
        """Check that no session is left after the end; the rest is in `validate_all`.

        Only what costs nothing is checked on each request: a worker steps twice an operation.
        """
        require(self.state is not State.STOPPED or not self._sessions, "a session outlived its end")

    def validate_all(self) -> None:
        """Check WORKER-2 and WORKER-3; it looks at every session."""
        watched = Counter(session.pid for session in self._sessions.values() if session.pid)
        require(watched == self._watched, "WORKER-3: watched processes and sessions differ")
        for session in self._sessions.values():
            require(len(session.replies) <= REPLIES_REMEMBERED, "WORKER-2: too many replies")
            require(not (session.running & session.replies.keys()), "WORKER-2: answered twice")

    TRANSITIONS = table(
        {
            **{
                (state, event): (method, state)
                for event, method in (
                    (Request, "_on_request"),
                    (Answered, "_on_answered"),
                    (Malformed, "_on_malformed"),
                    (HolderDied, "_on_process_died"),
                    (Tick, "_on_tick"),
                )
                for state in (State.SERVING, State.DRAINING)
            },
            ((State.SERVING, State.DRAINING), QuitAsked): ("_on_quit", State.DRAINING),
            (State.DRAINING, Drained): ("_on_drained", State.STOPPED),
        }
    )

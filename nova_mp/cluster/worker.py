"""What a worker decides: who has a session, which request is new, when it may leave.

A session begins with hello. It ends with bye, with the death of its process (on this machine), or,
if its process cannot be watched, when nothing was heard from it for SESSION_IDLE_S. Whatever it has
open is closed then. A request of an unknown session is refused as "SessionUnknown": its sender may
have talked to a worker that died, with all that was open there.

File operations of a session are numbered, and begun in that order. A connection that breaks loses
some messages and not those behind them, so what comes behind a gap is dropped without an answer:
its sender will miss the reply and send all of them again. Numbers that a client gave up are no gap:
"o" in a request says from where on it still waits, and a request without it waits for itself alone.

A request that comes again is one whose reply was lost. The replies to changes are remembered until
the client says that it has them. The reply to a question is remembered only if other requests were
on their way with it; else the question is asked once more, unless the session has made a change
since then, which the reply would show too early.

    SERVING --quit--> DRAINING (answers what has arrived) --drained--> STOPPED

Invariants
- WORKER-1: a file operation runs only in a session that is open.
- WORKER-2: an operation that changes something runs once for each request id; a repeated request
  gets the reply that is remembered, as long as it is among the last REPLIES_REMEMBERED.
- WORKER-3: a process is watched exactly while a session of it is open.
- WORKER-4: no operation of a session begins before one with a lower number, nor is any left out
  that the client still waits for.
"""

from __future__ import annotations

import enum
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nova_mp.cluster.machine import InvariantBroken, Machine, require, table
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
from nova_mp.errors import ProtocolError, SlotsExhausted, Timeout
from nova_mp.protocol import codec, fileops
from nova_mp.protocol import messages as m

REPLIES_REMEMBERED = 256
"""Replies remembered for each session: twice what a client may have on its way at a time."""

SESSIONS_MAX = 4096
"""A session costs kilobytes, and somebody who opens them without end must not take all memory."""

REMEMBERED_BYTES_MAX = 1 << 20
"""Payload of remembered replies of one session. Only questions have any; beyond this they are not
remembered, and a lost one is asked again."""

KEPT_IDLE_S = 60.0
"""A client that missed a reply asks for it long before this; its payload is not kept any longer."""

SESSION_IDLE_S = 120.0
"""Clients that cannot be watched send a Ping several times in this long."""

TICK_S = 10.0

_TOO_LATE = Timeout(
    "the reply was lost with the connection, and cannot be given any more", "look, and ask again"
)


class State(enum.Enum):
    """States of a worker; see the head of this file."""

    SERVING = "serving"
    DRAINING = "draining"
    STOPPED = "stopped"


# A member of an enumeration is looked up by a function, several times for each request otherwise.
_STOPPED = State.STOPPED


@dataclass(slots=True)
class _Session:
    pid: int
    last_heard: float
    # By sequence number, in the order in which they ended.
    running: set[int] = field(default_factory=set)
    replies: dict[int, tuple[Any, Sequence[Any]]] = field(default_factory=dict)
    kept_bytes: int = 0
    # The number that begins next, that of the last change, and the lowest still waited for.
    next: int = 0
    last_change: int = -1
    oldest: int = 0


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
        self.requests += 1
        session = self._sessions.get(event.peer)
        kind = type(event.message)
        if session is not None and kind in fileops.REPLIES:
            session.last_heard = event.now
            if event.request_id:
                self._run(session, event)
            else:
                self._refuse(event.peer, b"", ProtocolError("request without an id"))
        elif kind is m.Hello:
            self._open(event)
        elif kind is m.WorkerStats:
            self.emit(Send(event.peer, event.request_id, self._stats()))
        elif session is None:
            self.emit(Send(event.peer, event.request_id, m.SESSION_UNKNOWN))
        else:
            session.last_heard = event.now
            self._answer(event)

    def _answer(self, event: Request) -> None:
        """A request in a session that is no file operation."""
        message = event.message
        if type(message) is m.Ping:
            self.emit(Send(event.peer, event.request_id, m.Pong(self.greeting.engine_id)))
        elif type(message) is m.Bye:
            self._drop(event.peer)
        else:
            name = type(message).__name__
            error = ProtocolError(f"a worker does not answer {name}")
            self._refuse(event.peer, event.request_id, error)

    def admit(
        self, peer: bytes, request_id: bytes, kind: type, oldest: int | None, now: float
    ) -> bool | None:
        """What `step(Request)` decides about the usual request, without making events of it.

        That is the next file operation, of type `kind`, of an open session: it is to be run at
        once. Gives back whether `answered` must be told the reply, or None: nothing is decided,
        and `step` has to be asked.
        """
        session = self._sessions.get(peer)
        if session is None or kind not in fileops.REPLIES or not request_id:
            return None
        sequence = codec.sequence_of(request_id)
        pipelined = oldest is not None
        if oldest is None:
            oldest = sequence
        if sequence != session.next and (sequence < session.next or oldest < sequence):
            return None
        self.requests += 1
        session.last_heard = now
        if oldest > session.oldest:
            self._settle(session, oldest)
        session.next = sequence + 1
        if kind in fileops.RETRYABLE:
            return pipelined
        session.last_change = sequence
        return True

    def answered(
        self, peer: bytes, request_id: bytes, reply: Any, payload: Sequence[Any], keep: bool
    ) -> None:
        """What an operation came to that `admit` let run."""
        if type(reply) is m.ErrorReply:
            self.failed += 1
        session = self._sessions.get(peer)
        if keep and session is not None:
            self._remember(session, codec.sequence_of(request_id), reply, payload)

    def _run(self, session: _Session, event: Request) -> None:
        """Decide about any file operation of an open session."""
        sequence = codec.sequence_of(event.request_id)
        oldest = sequence if event.oldest is None else event.oldest
        if oldest > session.oldest:
            self._settle(session, oldest)
        if sequence > session.next:
            return
        again = type(event.message) in fileops.RETRYABLE
        if sequence < session.next:
            self._repeat(session, event, sequence, again)
            return
        session.next = sequence + 1
        if not again:
            session.last_change = sequence
        session.running.add(sequence)
        keep = not again or event.oldest is not None
        self.emit(RunFileOp(event.peer, event.request_id, event.message, event.payload, keep))

    def _repeat(self, session: _Session, event: Request, sequence: int, again: bool) -> None:
        """A request that was begun before has come again."""
        ident = event.request_id
        remembered = session.replies.get(sequence)
        if remembered is not None:
            self.emit(Send(event.peer, ident, *remembered))
        elif sequence in session.running:
            return
        elif again and session.last_change < sequence:
            session.running.add(sequence)
            self.emit(RunFileOp(event.peer, ident, event.message, event.payload, True))
        else:
            self._refuse(event.peer, ident, _TOO_LATE)

    def _settle(self, session: _Session, oldest: int) -> None:
        """The client waits for nothing before `oldest`: it has those replies, or gave them up."""
        session.oldest = oldest
        session.next = max(session.next, oldest)
        for sequence in [number for number in session.replies if number < oldest]:
            self._forget(session, sequence)

    def _forget(self, session: _Session, sequence: int) -> None:
        _reply, payload = session.replies.pop(sequence)
        if payload:
            session.kept_bytes -= sum(map(len, payload))

    def _remember(
        self, session: _Session, sequence: int, reply: Any, payload: Sequence[Any]
    ) -> None:
        size = sum(map(len, payload)) if payload else 0
        if session.kept_bytes + size > REMEMBERED_BYTES_MAX:
            return
        session.replies[sequence] = (reply, payload)
        session.kept_bytes += size
        if len(session.replies) > REPLIES_REMEMBERED:
            self._forget(session, next(iter(session.replies)))

    def _on_answered(self, event: Answered) -> None:
        session = self._sessions.get(event.peer)
        if session is not None:
            session.running.discard(codec.sequence_of(event.request_id))
        self.answered(event.peer, event.request_id, event.message, event.payload, event.keep)
        self.emit(Send(event.peer, event.request_id, event.message, event.payload))

    def _on_malformed(self, event: Malformed) -> None:
        self.malformed += 1
        session = self._sessions.get(event.peer)
        ident = event.request_id
        if session is not None and ident and codec.sequence_of(ident) == session.next:
            # It is answered, so what comes behind it need not wait for it.
            session.next += 1
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
            elif session.kept_bytes and session.last_heard < event.now - KEPT_IDLE_S:
                for sequence in [n for n, kept in session.replies.items() if kept[1]]:
                    self._forget(session, sequence)

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
        if self._sessions and self.state is _STOPPED:
            raise InvariantBroken("a session outlived its end")

    def validate_all(self) -> None:
        """Check WORKER-2 and WORKER-3; it looks at every session."""
        watched = Counter(session.pid for session in self._sessions.values() if session.pid)
        require(watched == self._watched, "WORKER-3: watched processes and sessions differ")
        for session in self._sessions.values():
            require(len(session.replies) <= REPLIES_REMEMBERED, "WORKER-2: too many replies")
            require(not (session.running & session.replies.keys()), "WORKER-2: answered twice")
            begun = session.running | session.replies.keys()
            require(all(n < session.next for n in begun), "WORKER-4: begun out of order")
            kept = sum(len(part) for _, payload in session.replies.values() for part in payload)
            require(kept == session.kept_bytes <= REMEMBERED_BYTES_MAX, "bytes kept differ")

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

"""What the coordinator decides: one change of the arena at a time, freezes with a lease, replies.

Requests that change something (snapshot create and delete, freeze, unfreeze) become jobs. One job
runs at a time, in the process's job thread, because the core's snapshot operations must not
overlap; the others wait in a queue. While frozen only the thaw runs: a snapshot would change the
medium that the holder of the freeze was promised to be at rest.

    SERVING --freeze begins--> FREEZING --done--> FROZEN --unfreeze, lease, death--> THAWING
       ^                          | failed                                             |
       +--------------------------+----------------------------------------------------+
    any --stop or quit--> STOPPING (thaws if needed, lets the running job finish) --> STOPPED

A deletion that was deferred, because somebody had the snapshot open, is tried again at each tick,
as a job that nobody asked for. The core knows the mark as well, so a new coordinator finds it.

Invariants
- COORD-1: at most one job runs, and none but a thaw while FROZEN.
- COORD-2: each change is made once: its request is in flight or the reply is remembered. Only
  clients that said hello to this coordinator make changes: an earlier one's memory is lost.
- COORD-3: a queued job whose time has passed is never begun.
- COORD-4: FROZEN has a freeze, and no other state but FREEZING and THAWING has one.
- COORD-5: at most REQUESTS_MAX requests wait for anything.
"""

from __future__ import annotations

import enum
import errno
import os
from collections import deque
from collections.abc import Iterable
from typing import Any

from nova_mp.cluster.ledger import (
    Freeze,
    Identity,
    Job,
    Memory,
    Question,
    Waiter,
    late,
)
from nova_mp.cluster.machine import Machine, require, table
from nova_mp.cluster.vocabulary import (
    AskStop,
    Exit,
    HolderDied,
    JobDone,
    ProcessesChanged,
    Publish,
    QueryStatus,
    QuitAsked,
    Reap,
    Request,
    RunJob,
    Send,
    StatusRead,
    Subscribed,
    Tick,
    Unwatch,
    Watch,
)
from nova_mp.errors import (
    ArenaBusy,
    EngineNotRunning,
    Frozen,
    NoSuchSnapshot,
    ProtocolError,
    SlotsExhausted,
    Timeout,
)
from nova_mp.protocol import messages as m

REAP_S = 0.5
"""How often slots of clients that died are looked for: that reads a file of /proc for each slot.
Who waits for a dead one's lock does not wait for this."""


class State(enum.Enum):
    """States of the coordinator; see the head of this file."""

    SERVING = "serving"
    FREEZING = "freezing"
    FROZEN = "frozen"
    THAWING = "thawing"
    STOPPING = "stopping"
    STOPPED = "stopped"


_JOB_MESSAGES = (m.SnapshotCreate, m.SnapshotDelete, m.Freeze)
_CHANGES = (*_JOB_MESSAGES, m.Unfreeze)
_QUESTION_REPLIES = (m.HelloReply, m.Pong, m.StatusReply)


class Coordinator(Machine):
    """The state machine of the coordinator process."""

    def __init__(
        self,
        identity: Identity,
        epoch_id: int,
        frozen: bool = False,
        deferred: Iterable[int] = (),
    ) -> None:
        """`frozen`: the arena was left frozen by a coordinator that died; its lease is unknown,
        so it is thawed first. `deferred`: snapshots that it was to delete when they are closed."""
        super().__init__()
        self.identity = identity
        self.state = State.SERVING
        self.epoch_id = epoch_id
        self.deletions = 0
        self.reclaim_left = -1
        self.deferred = set(deferred)
        self.processes: tuple[dict[str, Any], ...] = ()
        self._reap_at = 0.0
        self._inherited_freeze = frozen
        self._queue: deque[Job] = deque()
        self._running: Job | None = None
        self._thawing = False
        self._freeze: Freeze | None = None
        self._unfreezers: list[bytes] = []
        self._waiters: list[Waiter] = []
        self._questions: dict[int, Question] = {}
        self._next_token = 1
        self._memory = Memory()
        self._quitting = False

    def start(self) -> list[Any]:
        """Instructions for the moment the process has come up."""
        self.emit(Reap())
        if self._inherited_freeze:
            self._freeze = Freeze(0, 0.0)
            self._thaw()
        out, self._out = self._out, []
        return out

    # ------------------------------------------------------------------ requests and replies

    def _on_request(self, event: Request) -> None:
        message, ident = event.message, event.request_id
        if isinstance(message, m.ReclaimReport):
            self._on_reclaim_report(message)
            return
        if not ident:
            error = ProtocolError(f"{type(message).__name__} without a request id")
            self.emit(Send(event.peer, b"", m.error_reply(error)))
            return
        if ident in self._memory.replies:
            self.emit(Send(event.peer, ident, self._memory.replies[ident]))
            return
        if ident in self._memory.in_flight:
            peers = self._memory.in_flight[ident]
            if event.peer not in peers:
                peers.append(event.peer)
            return
        if self._memory.full:
            busy = SlotsExhausted("too many requests wait for the coordinator", "try again later")
            self.emit(Send(event.peer, ident, m.error_reply(busy)))
            return
        if isinstance(message, _CHANGES) and not self._memory.knows(ident):
            self.emit(Send(event.peer, ident, m.SESSION_UNKNOWN))
            return
        self._memory.in_flight[ident] = [event.peer]
        try:
            self._begin(event)
        except (ProtocolError, OSError, EngineNotRunning) as error:
            self._reply(ident, m.error_reply(error))

    def _begin(self, event: Request) -> None:
        message, ident = event.message, event.request_id
        if isinstance(message, m.Hello):
            self._memory.greet(ident)
            self._reply(ident, self.identity.hello())
        elif isinstance(message, m.Ping):
            self._reply(ident, m.Pong(self.identity.engine_id))
        elif isinstance(message, m.Status):
            self._ask(ident, None)
        elif self.state in (State.STOPPING, State.STOPPED):
            raise EngineNotRunning("the engine is stopping", "start it again once it has stopped")
        elif isinstance(message, m.Stop):
            self._ask(ident, message)
        elif isinstance(message, m.SnapshotWait):
            deadline = event.now + message.timeout_s
            self._waiters.append(Waiter(ident, deadline))
            self._answer_waiters(event.now)
        elif isinstance(message, m.Unfreeze):
            self._begin_unfreeze(ident)
        elif isinstance(message, _JOB_MESSAGES):
            if isinstance(message, m.Freeze) and self._freeze_is_near():
                raise Frozen("the file system is frozen already", "unfreeze it first")
            self._queue.append(Job(ident, message, event.now + message.timeout_s))
            self._run_next(event.now)
        else:
            raise ProtocolError(f"the coordinator does not answer {type(message).__name__}")

    def _reply(self, request_id: bytes, message: Any) -> None:
        """Answer everybody who sent this request, and remember the answer."""
        for peer in self._memory.in_flight.pop(request_id):
            self.emit(Send(peer, request_id, message))
        if isinstance(message, _QUESTION_REPLIES):
            # Asked again, a question may as well get a new answer; and these can be large.
            return
        self._memory.remember(request_id, message)

    def _answer(self, job: Job, message: Any) -> None:
        """Reply to whoever asked for a job; what the coordinator does by itself nobody hears of."""
        if job.request_id is not None:
            self._reply(job.request_id, message)

    # ------------------------------------------------------------------------ status and stop

    def _ask(self, request_id: bytes, stop: m.Stop | None) -> None:
        token, self._next_token = self._next_token, self._next_token + 1
        self._questions[token] = Question(request_id, stop)
        if stop is not None:
            # A process that has just died does not keep the engine from stopping.
            self.emit(Reap())
        self.emit(QueryStatus(token))

    def _on_status_read(self, event: StatusRead) -> None:
        question = self._questions.pop(event.token)
        if question.stop is None:
            self._reply(question.request_id, self._status(event))
            return
        slots = sorted((s["pid"], s["title"]) for s in event.slots if s["role"] == "client")
        # A process may have attached it more than once, under several titles or none.
        clients = dict(slots)
        if clients and not question.stop.force:
            shown = ", ".join(f"{pid} ({title})" if title else f"{pid}"
                              for pid, title in clients.items())
            error = ArenaBusy(
                f"processes are attached: {shown}",
                f"let them close it, or stop it all the same:"
                f" nova-mp stop {self.identity.arena} --force",
            )
            self._reply(question.request_id, m.error_reply(error))
            return
        self._reply(question.request_id, m.Done())
        if self.state is not State.STOPPING:
            self.emit(AskStop(question.stop.force))
            self._begin_stopping()

    def _status(self, event: StatusRead) -> m.StatusReply:
        own = self.identity
        return m.StatusReply(
            arena=own.arena,
            engine_id=own.engine_id,
            state=self.state.value,
            cpus=own.cpus,
            media=own.media,
            started_ns=own.started_ns,
            epoch_id=self.epoch_id,
            deletions=self.deletions,
            reclaim_left=self.reclaim_left,
            freeze_holder=self._freeze.pid if self._freeze else None,
            processes=self.processes,
            slots=event.slots,
            stats=event.stats,
        )

    def _begin_stopping(self) -> None:
        """Take in nothing new; what is frozen thaws, or workers could never finish."""
        self.emit(Publish(m.StoppingEvent(self.identity.engine_id)))
        was, self.state = self.state, State.STOPPING
        stopping = m.error_reply(EngineNotRunning("the engine is stopping", "start it again"))
        while self._queue:
            self._answer(self._queue.popleft(), stopping)
        for waiter in self._waiters:
            self._reply(waiter.request_id, stopping)
        self._waiters.clear()
        if was is State.FROZEN:
            self._thaw()

    def _on_quit(self, event: QuitAsked) -> None:
        self._quitting = True
        if self.state is not State.STOPPING:
            self._begin_stopping()
        self._exit_when_idle()

    def _exit_when_idle(self) -> None:
        if self._quitting and self._running is None and not self._thawing:
            self.state = State.STOPPED
            self.emit(Exit())

    # --------------------------------------------------------------------------------- freeze

    def _freeze_is_near(self) -> bool:
        """Frozen, being frozen, or about to be: a second freeze is refused, not queued."""
        queued = any(isinstance(job.message, m.Freeze) for job in self._queue)
        return self.state in (State.FREEZING, State.FROZEN) or queued

    def _begin_unfreeze(self, request_id: bytes) -> None:
        if self.state is State.THAWING:
            self._unfreezers.append(request_id)
        elif self.state is State.FROZEN:
            self._unfreezers.append(request_id)
            self._thaw()
        else:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def _thaw(self) -> None:
        if self._freeze and self._freeze.pid:
            self.emit(Unwatch(self._freeze.pid))
        if self.state is not State.STOPPING:
            self.state = State.THAWING
        self._thawing = True
        self.emit(RunJob("unfreeze", ()))

    def _on_holder_died(self, event: HolderDied) -> None:
        if self._freeze is None or self._freeze.pid != event.pid:
            return
        self._freeze.holder_died = True
        if self.state is State.FROZEN:
            self._thaw()

    # ----------------------------------------------------------------------------------- jobs

    def _run_next(self, now: float) -> None:
        while self._queue and self._running is None and self.state is State.SERVING:
            job = self._queue.popleft()
            if job.deadline < now:
                self._answer(job, m.error_reply(late(job.message)))
                continue
            self._running = job
            message = job.message
            if isinstance(message, m.SnapshotCreate):
                self.emit(RunJob("snapshot_create", (message.name,)))
            elif isinstance(message, m.SnapshotDelete):
                arguments = (message.epoch_id, message.defer)
                self.emit(RunJob("snapshot_delete", arguments, job.request_id is not None))
            else:
                self.state = State.FREEZING
                self._freeze = Freeze(message.pid, message.lease_s)
                if message.pid and message.host == self.identity.host:
                    self.emit(Watch(message.pid))
                else:
                    self._freeze.pid = 0
                self.emit(RunJob("freeze", (job.timeout(now),)))

    def _on_job_done(self, event: JobDone) -> None:
        if self._thawing:
            self._on_thawed(event)
        else:
            self._on_request_done(event)
        self._run_next(event.now)
        self._exit_when_idle()

    def _on_thawed(self, event: JobDone) -> None:
        self._thawing = False
        self._freeze = None
        reply = m.error_reply(event.error) if event.error else m.Done()
        for request_id in self._unfreezers:
            self._reply(request_id, reply)
        self._unfreezers.clear()
        if self.state is State.THAWING:
            self.state = State.SERVING
        self._publish_epoch()

    def _on_request_done(self, event: JobDone) -> None:
        job, self._running = self._running, None
        require(job is not None, "COORD-1: a job ended that did not run")
        assert job is not None
        message = job.message
        if isinstance(message, m.Freeze):
            self._on_frozen(job, event)
        elif isinstance(message, m.SnapshotDelete):
            self._on_deleted(job, message, event)
        elif event.error is not None:
            self._answer(job, m.error_reply(event.error))
        else:
            # The snapshot's id is the epoch that it closed.
            self.epoch_id = event.result + 1
            created = m.SnapshotCreated(event.result, message.name)
            self._answer(job, created)
            self.emit(Publish(created))
            self._publish_epoch()

    def _on_deleted(self, job: Job, message: m.SnapshotDelete, event: JobDone) -> None:
        epoch_id = message.epoch_id
        if event.error is not None:
            if isinstance(event.error, NoSuchSnapshot):
                self.deferred.discard(epoch_id)
            self._answer(job, m.error_reply(event.error))
        elif not event.result:
            self.deferred.add(epoch_id)
            self._answer(job, m.SnapshotDeleted(epoch_id, self.deletions, deferred=True))
        else:
            self.deferred.discard(epoch_id)
            self.deletions += 1
            self.reclaim_left = -1
            deleted = m.SnapshotDeleted(epoch_id, self.deletions)
            self._answer(job, deleted)
            self.emit(Publish(deleted))
            self._publish_epoch()

    def _try_deferred(self) -> None:
        """Queue the deletions that were deferred; those that are still open stay deferred."""
        if self.state is State.SERVING and self._running is None and not self._queue:
            self._queue.extend(
                Job(None, m.SnapshotDelete(epoch_id, defer=True), float("inf"))
                for epoch_id in sorted(self.deferred)
            )

    def _on_frozen(self, job: Job, event: JobDone) -> None:
        freeze = self._freeze
        require(freeze is not None, "COORD-4: frozen without a freeze")
        assert freeze is not None
        if event.error is not None:
            if freeze.pid:
                self.emit(Unwatch(freeze.pid))
            self._freeze = None
            if self.state is State.FREEZING:
                self.state = State.SERVING
            error = event.error
            if isinstance(error, TimeoutError):
                error = Timeout(error.strerror or str(error), "see what it does, or wait longer")
            self._answer(job, m.error_reply(error))
            return
        self._answer(job, m.Done())
        if self.state is State.STOPPING or freeze.holder_died:
            self._thaw()
            return
        if freeze.lease_s > 0:
            freeze.ends = event.now + freeze.lease_s
        self.state = State.FROZEN
        self._publish_epoch()

    # ---------------------------------------------------------------------- cleaner and events

    def _on_reclaim_report(self, report: m.ReclaimReport) -> None:
        """The cleaner may speak of an earlier coordinator, or of before the last deletion."""
        if report.incarnation == self.identity.incarnation and report.deletions == self.deletions:
            self.reclaim_left = report.left
            self._answer_waiters(None)

    def _answer_waiters(self, now: float | None) -> None:
        waiting, self._waiters = self._waiters, []
        for waiter in waiting:
            if self.reclaim_left == 0:
                self._reply(waiter.request_id, m.Done())
            elif now is not None and waiter.deadline <= now:
                error = Timeout(
                    "the cleaner has not finished in time", "wait longer, or see nova-mp status"
                )
                self._reply(waiter.request_id, m.error_reply(error))
            else:
                self._waiters.append(waiter)

    def _publish_epoch(self) -> None:
        frozen = self.state is State.FROZEN
        incarnation = self.identity.incarnation
        self.emit(Publish(m.EpochEvent(incarnation, self.epoch_id, self.deletions, frozen)))

    def _on_subscribed(self, event: Subscribed) -> None:
        self._publish_epoch()

    def _on_processes(self, event: ProcessesChanged) -> None:
        here = {row["pid"] for row in event.processes}
        gone = any(row["pid"] not in here for row in self.processes)
        self.processes = event.processes
        if gone:
            # While the engine starts this comes twice for each worker, and nobody has died.
            self.emit(Reap())

    def _on_tick(self, event: Tick) -> None:
        if self._reap_at <= event.now:
            self._reap_at = event.now + REAP_S
            self.emit(Reap())
        self._answer_waiters(event.now)
        for job in [job for job in self._queue if job.deadline < event.now]:
            self._queue.remove(job)
            self._answer(job, m.error_reply(late(job.message)))
        self._try_deferred()
        self._run_next(event.now)
        if self.state is State.FROZEN and self._freeze and self._freeze.ends <= event.now:
            self._thaw()

    # ----------------------------------------------------------------------------- invariants

    def validate(self) -> None:
        """Check COORD-1, COORD-2 and COORD-4."""
        require(not (self._running and self._thawing), "COORD-1: two jobs run")
        require(
            self.state is not State.FROZEN or self._running is None, "COORD-1: a job while frozen"
        )
        memory = self._memory
        require(not (memory.in_flight.keys() & memory.replies.keys()), "COORD-2: answered twice")
        jobs = [*self._queue, *([self._running] if self._running else [])]
        owners = [job.request_id for job in jobs if job.request_id is not None]
        owners += [waiter.request_id for waiter in self._waiters]
        owners += [question.request_id for question in self._questions.values()]
        owners += self._unfreezers
        require(sorted(owners) == sorted(memory.in_flight), "COORD-2: a request was lost")
        has = self._freeze is not None
        if self.state in (State.FROZEN, State.FREEZING, State.THAWING):
            require(has, f"COORD-4: {self.state} without a freeze")
        if self.state in (State.SERVING, State.STOPPED):
            require(not has, f"COORD-4: {self.state} with a freeze")

    TRANSITIONS = table(
        {
            (State.SERVING, Request): ("_on_request", (State.SERVING, State.FREEZING)),
            (State.FREEZING, Request): ("_on_request", State.FREEZING),
            (State.FROZEN, Request): ("_on_request", (State.FROZEN, State.THAWING)),
            (State.THAWING, Request): ("_on_request", State.THAWING),
            ((State.STOPPING, State.STOPPED), Request): (
                "_on_request",
                (State.STOPPING, State.STOPPED),
            ),
            (State.SERVING, JobDone): ("_on_job_done", (State.SERVING, State.FREEZING)),
            (State.FREEZING, JobDone): (
                "_on_job_done",
                (State.FROZEN, State.SERVING, State.FREEZING, State.THAWING),
            ),
            (State.THAWING, JobDone): ("_on_job_done", (State.SERVING, State.FREEZING)),
            (State.STOPPING, JobDone): ("_on_job_done", (State.STOPPING, State.STOPPED)),
            (
                (State.SERVING, State.FREEZING, State.FROZEN, State.THAWING, State.STOPPING),
                StatusRead,
            ): (
                "_on_status_read",
                (State.SERVING, State.FREEZING, State.FROZEN, State.THAWING, State.STOPPING),
            ),
            (State.STOPPED, StatusRead): ("_on_status_read", State.STOPPED),
            (State.FROZEN, Tick): ("_on_tick", (State.FROZEN, State.THAWING)),
            (State.FROZEN, HolderDied): ("_on_holder_died", (State.FROZEN, State.THAWING)),
            **{
                (state, event): (method, state)
                for event, method in ((Tick, "_on_tick"), (HolderDied, "_on_holder_died"))
                for state in State
                if state is not State.FROZEN
            },
            **{
                (state, event): (method, state)
                for event, method in (
                    (Subscribed, "_on_subscribed"),
                    (ProcessesChanged, "_on_processes"),
                )
                for state in State
            },
            (tuple(State), QuitAsked): ("_on_quit", (State.STOPPING, State.STOPPED)),
        }
    )

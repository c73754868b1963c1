"""The coordinator's decisions, event by event and in random order."""

from __future__ import annotations

import errno
import random
from typing import Any

import pytest

from nova_mp.cluster import ledger
from nova_mp.cluster import vocabulary as v
from nova_mp.cluster.coordinator import Coordinator, State
from nova_mp.cluster.ledger import Identity
from nova_mp.cluster.machine import InvariantBroken, UnexpectedEvent
from nova_mp.errors import NoSuchSnapshot
from nova_mp.protocol import messages as m
from nova_mp.protocol.codec import request_id

OWN = Identity(
    arena="a",
    engine_id="engine",
    incarnation="one",
    package_version="0",
    cpus=1,
    media="dram",
    started_ns=0,
    host="here",
    coordinator="ipc://c",
    events="ipc://e",
    workers=("ipc://w",),
)
CLIENT = b"c" * 16
UNKNOWN = m.SESSION_UNKNOWN


def machine(epoch_id: int = 1) -> Coordinator:
    made = Coordinator(OWN, epoch_id)
    made.start()
    ask(made, m.Hello("0"), 10**9)
    return made


def ask(
    coordinator: Coordinator, message: Any, number: int, now: float = 0.0, peer: bytes = b"p"
) -> list[Any]:
    return coordinator.step(v.Request(peer, request_id(CLIENT, number), message, now))


def done(coordinator: Coordinator, result: Any = None, error: Any = None, now: float = 0.0) -> Any:
    return coordinator.step(v.JobDone(result, error, now))


def sent(instructions: list[Any]) -> list[Any]:
    return [i.message for i in instructions if isinstance(i, v.Send)]


def jobs(instructions: list[Any]) -> list[str]:
    return [i.kind for i in instructions if isinstance(i, v.RunJob)]


def published(instructions: list[Any]) -> list[Any]:
    return [i.message for i in instructions if isinstance(i, v.Publish)]


def frozen(lease_s: float = 0.0, pid: int = 0) -> Coordinator:
    coordinator = machine()
    ask(coordinator, m.Freeze(1.0, lease_s, "here" if pid else "", pid), 1000)
    done(coordinator)
    assert coordinator.state is State.FROZEN
    return coordinator


def test_a_snapshot_is_one_job_one_reply_and_two_events() -> None:
    coordinator = machine(epoch_id=7)
    assert jobs(ask(coordinator, m.SnapshotCreate("x"), 1)) == ["snapshot_create"]
    out = done(coordinator, 7)
    assert sent(out) == [m.SnapshotCreated(7, "x")]
    assert published(out) == [m.SnapshotCreated(7, "x"), m.EpochEvent("one", 8, 0, False)]


def test_changes_wait_for_each_other_in_order() -> None:
    coordinator = machine()
    assert jobs(ask(coordinator, m.SnapshotCreate("x"), 1)) == ["snapshot_create"]
    assert jobs(ask(coordinator, m.SnapshotDelete(1), 2)) == []
    assert jobs(ask(coordinator, m.SnapshotCreate("y"), 3)) == []
    assert jobs(done(coordinator, 1)) == ["snapshot_delete"]
    assert jobs(done(coordinator, True)) == ["snapshot_create"]


def test_a_request_sent_twice_is_done_once() -> None:
    coordinator = machine()
    ask(coordinator, m.SnapshotCreate("x"), 1, peer=b"old")
    # While it runs: no second job, and the sender's new connection gets the reply, too.
    assert ask(coordinator, m.SnapshotCreate("x"), 1, peer=b"new") == []
    out = done(coordinator, 1)
    assert [i.peer for i in out if isinstance(i, v.Send)] == [b"old", b"new"]
    # After it ran: the remembered reply, and no job.
    out = ask(coordinator, m.SnapshotCreate("x"), 1)
    assert sent(out) == [m.SnapshotCreated(1, "x")]
    assert jobs(out) == []


def test_a_failure_is_remembered_like_a_success() -> None:
    coordinator = machine()
    ask(coordinator, m.SnapshotDelete(9), 1)
    first = sent(done(coordinator, error=NoSuchSnapshot("no snapshot 9", "list them")))
    assert first[0].kind == "NoSuchSnapshot"
    assert sent(ask(coordinator, m.SnapshotDelete(9), 1)) == first
    assert coordinator.deletions == 0


def test_a_deferred_deletion_is_tried_at_each_tick_until_it_is_done() -> None:
    coordinator = machine(epoch_id=5)
    out = ask(coordinator, m.SnapshotDelete(3, defer=True), 1)
    assert out == [v.RunJob("snapshot_delete", (3, True))]
    out = done(coordinator, False)
    assert sent(out) == [m.SnapshotDeleted(3, 0, deferred=True)]
    assert published(out) == [], "it is not gone yet"
    again = v.RunJob("snapshot_delete", (3, True), asked=False)
    for now in (1.0, 2.0):
        assert again in coordinator.step(v.Tick(now))
        assert done(coordinator, False, now=now) == []
    assert again in coordinator.step(v.Tick(3.0))
    out = done(coordinator, True, now=3.0)
    assert published(out) == [m.SnapshotDeleted(3, 1), m.EpochEvent("one", 5, 1, False)]
    assert sent(out) == []
    assert jobs(coordinator.step(v.Tick(4.0))) == []


def test_a_deferred_deletion_waits_for_a_thaw_and_ends_when_it_is_gone() -> None:
    coordinator = Coordinator(OWN, 5, deferred=(3,))
    coordinator.start()
    ask(coordinator, m.Hello("0"), 10**9)
    ask(coordinator, m.Freeze(), 1)
    done(coordinator)
    assert jobs(coordinator.step(v.Tick(1.0))) == []
    ask(coordinator, m.Unfreeze(), 2)
    done(coordinator)
    assert jobs(coordinator.step(v.Tick(2.0))) == ["snapshot_delete"]
    # Somebody was quicker.
    assert done(coordinator, error=NoSuchSnapshot("no snapshot 3", "list them")) == []
    assert jobs(coordinator.step(v.Tick(3.0))) == []


def test_while_frozen_only_the_thaw_runs() -> None:
    coordinator = frozen()
    assert jobs(ask(coordinator, m.SnapshotCreate("x"), 1)) == []
    assert jobs(ask(coordinator, m.Unfreeze(), 2)) == ["unfreeze"]
    out = done(coordinator)
    assert sent(out) == [m.Done()]
    assert jobs(out) == ["snapshot_create"]


def test_a_second_freeze_is_refused_in_every_phase() -> None:
    coordinator = machine()
    ask(coordinator, m.SnapshotCreate(None), 1)
    ask(coordinator, m.Freeze(), 2)
    phases = []
    for number in (3, 4, 5):
        assert sent(ask(coordinator, m.Freeze(), number))[0].kind == "Frozen"
        phases.append(coordinator.state)
        if coordinator.state is not State.FROZEN:
            done(coordinator, 1)
    assert phases == [State.SERVING, State.FREEZING, State.FROZEN]


def test_unfreeze_of_what_is_not_frozen_is_an_error() -> None:
    reply = sent(ask(machine(), m.Unfreeze(), 1))[0]
    assert (reply.kind, reply.errno) == ("OSError", errno.EINVAL)


def test_a_freeze_ends_with_its_lease() -> None:
    coordinator = frozen(lease_s=5.0)
    assert jobs(coordinator.step(v.Tick(4.9))) == []
    assert jobs(coordinator.step(v.Tick(5.0))) == ["unfreeze"]
    assert coordinator.state is State.THAWING


def test_a_freeze_ends_with_its_holder() -> None:
    coordinator = frozen(pid=42)
    out = coordinator.step(v.HolderDied(42, 1.0))
    assert jobs(out) == ["unfreeze"]


def test_a_holder_that_dies_while_freezing_leaves_nothing_frozen() -> None:
    coordinator = machine()
    out = ask(coordinator, m.Freeze(1.0, 0.0, "here", 42), 1)
    assert out == [v.Watch(42), v.RunJob("freeze", (1.0,))]
    assert jobs(coordinator.step(v.HolderDied(42, 0.5))) == []
    assert jobs(done(coordinator)) == ["unfreeze"]


def test_a_holder_of_another_machine_is_not_watched() -> None:
    out = ask(machine(), m.Freeze(1.0, 0.0, "elsewhere", 42), 1)
    assert not any(isinstance(i, v.Watch) for i in out)


def test_a_freeze_that_fails_leaves_the_queue_going() -> None:
    coordinator = machine()
    ask(coordinator, m.Freeze(), 1)
    ask(coordinator, m.SnapshotCreate(None), 2)
    out = done(coordinator, error=TimeoutError(errno.ETIMEDOUT, "busy"))
    assert (sent(out)[0].kind, sent(out)[0].reason) == ("Timeout", "busy")
    assert jobs(out) == ["snapshot_create"]


def test_a_freeze_left_by_a_dead_coordinator_is_thawed() -> None:
    coordinator = Coordinator(OWN, 1, frozen=True)
    assert jobs(coordinator.start()) == ["unfreeze"]
    done(coordinator)
    assert coordinator.state is State.SERVING


def test_what_waited_too_long_is_never_begun() -> None:
    coordinator = frozen()
    ask(coordinator, m.SnapshotCreate("late", timeout_s=1.0), 1)
    out = coordinator.step(v.Tick(1.5))
    assert sent(out)[0].kind == "Timeout"
    ask(coordinator, m.Unfreeze(), 2)
    assert jobs(done(coordinator)) == []


def test_wait_ends_when_the_cleaner_has_nothing_left_of_the_last_deletion() -> None:
    coordinator = machine()
    ask(coordinator, m.SnapshotDelete(1), 1)
    done(coordinator, True)
    assert ask(coordinator, m.SnapshotWait(10.0), 2) == []

    def report(incarnation: str, deletions: int, left: int) -> list[Any]:
        message = m.ReclaimReport(incarnation, deletions, left)
        return sent(coordinator.step(v.Request(b"cleaner", b"", message, 0.0)))

    assert report("one", 0, 0) == [], "that is about an earlier deletion"
    assert report("zero", 1, 0) == [], "that is about an earlier coordinator"
    assert report("one", 1, 5) == []
    assert report("one", 1, 0) == [m.Done()]
    assert sent(ask(coordinator, m.SnapshotWait(10.0), 3)) == [m.Done()]


def test_wait_ends_with_its_time() -> None:
    coordinator = machine()
    ask(coordinator, m.SnapshotWait(1.0), 1)
    assert sent(coordinator.step(v.Tick(0.5))) == []
    assert sent(coordinator.step(v.Tick(1.0)))[0].kind == "Timeout"


def client_slot(pid: int) -> dict[str, Any]:
    return {"pid": pid, "role": "client", "title": "numbers"}


def test_stop_is_refused_while_clients_are_attached() -> None:
    coordinator = machine()
    assert ask(coordinator, m.Stop(), 1) == [v.Reap(), v.QueryStatus(1)]
    out = coordinator.step(v.StatusRead(1, {}, (client_slot(7), {**client_slot(8), "role": "x"})))
    reply = sent(out)[0]
    assert reply.kind == "ArenaBusy"
    assert "7 (numbers)" in reply.reason
    assert "8" not in reply.reason
    assert coordinator.state is State.SERVING


def test_forced_stop_thaws_and_refuses_what_waits() -> None:
    coordinator = frozen()
    ask(coordinator, m.SnapshotCreate("x"), 1)
    ask(coordinator, m.Stop(force=True), 2)
    out = coordinator.step(v.StatusRead(1, {}, (client_slot(7),)))
    assert v.AskStop(True) in out
    assert jobs(out) == ["unfreeze"]
    assert m.StoppingEvent("engine") in published(out)
    assert [reply.kind for reply in sent(out) if isinstance(reply, m.ErrorReply)] == [
        "EngineNotRunning"
    ]
    assert coordinator.step(v.QuitAsked(0.0)) == []
    assert v.Exit() in done(coordinator)
    assert coordinator.state is State.STOPPED


def test_quit_waits_for_the_running_job() -> None:
    coordinator = machine()
    ask(coordinator, m.SnapshotCreate("x"), 1)
    assert v.Exit() not in coordinator.step(v.QuitAsked(0.0))
    out = done(coordinator, 1)
    assert sent(out) == [m.SnapshotCreated(1, "x")]
    assert out[-1] == v.Exit()


def test_a_new_subscriber_hears_the_current_state() -> None:
    assert published(machine(5).step(v.Subscribed())) == [m.EpochEvent("one", 5, 0, False)]


def test_a_message_for_somebody_else_is_refused() -> None:
    assert sent(ask(machine(), m.Bye(), 1))[0].kind == "ProtocolError"
    out = machine().step(v.Request(b"p", b"", m.SnapshotCreate(), 0.0))
    assert sent(out)[0].kind == "ProtocolError", "without an id it could be done twice"


def test_an_event_that_cannot_be_is_a_fault() -> None:
    with pytest.raises(InvariantBroken):
        done(machine())
    with pytest.raises(UnexpectedEvent):
        machine().step(object())


class Model:
    """What the coordinator must be, said the short way: jobs one by one, each id once."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.coordinator = machine()
        self.now = 0.0
        self.running: str | None = None
        self.is_frozen = False
        self.jobs_of: dict[int, int] = {}
        self.replies: dict[int, set[Any]] = {}

    def check(self, instructions: list[Any]) -> None:
        for instruction in instructions:
            if isinstance(instruction, v.RunJob):
                assert self.running is None, "two jobs at a time"
                assert instruction.kind == "unfreeze" or not self.is_frozen
                self.running = instruction.kind
            elif isinstance(instruction, v.QueryStatus):
                slots = (client_slot(1),) if self.rng.random() < 0.9 else ()
                self.check(self.coordinator.step(v.StatusRead(instruction.token, {}, slots)))
            elif isinstance(instruction, v.Send) and instruction.request_id:
                number = int.from_bytes(instruction.request_id[16:], "big")
                self.replies.setdefault(number, set()).add(repr(instruction.message))

    def finish_job(self) -> None:
        kind, self.running = self.running, None
        failed = kind != "unfreeze" and self.rng.random() < 0.2
        error = OSError(errno.EIO, "no") if failed else None
        if not failed and kind in ("freeze", "unfreeze"):
            self.is_frozen = kind == "freeze"
        result = {
            "snapshot_create": self.coordinator.epoch_id,
            "snapshot_delete": self.rng.random() < 0.7,
        }.get(str(kind))
        self.check(done(self.coordinator, None if failed else result, error, self.now))

    def random_event(self) -> None:
        self.now += self.rng.random()
        pick = self.rng.random()
        if pick < 0.35 and self.running:
            self.finish_job()
        elif pick < 0.45:
            self.check(self.coordinator.step(v.Tick(self.now)))
        elif pick < 0.5:
            self.check(self.coordinator.step(v.HolderDied(42, self.now)))
        else:
            number = self.rng.randrange(200)
            kinds = (
                m.SnapshotCreate("n", 3.0),
                m.SnapshotDelete(1, 3.0, number % 4 < 2),
                m.Freeze(1.0, self.rng.choice((0.0, 2.0)), "here", self.rng.choice((0, 42))),
                m.Unfreeze(),
                m.SnapshotWait(2.0),
                m.Stop(),
            )
            # The same number is always the same request, as a client would send it.
            self.check(ask(self.coordinator, kinds[number % len(kinds)], number, self.now))


@pytest.mark.parametrize("seed", range(40))
def test_random_events_keep_the_invariants(seed: int) -> None:
    model = Model(random.Random(seed))
    for _ in range(300):
        if model.coordinator.state in (State.STOPPING, State.STOPPED):
            break
        model.random_event()
    model.check(model.coordinator.step(v.QuitAsked(model.now)))
    while model.running:
        model.finish_job()
    assert model.coordinator.state is State.STOPPED
    assert all(len(replies) == 1 for replies in model.replies.values()), "one id, two outcomes"


def test_only_so_many_requests_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "REQUESTS_MAX", 3)
    coordinator = frozen()
    for number in range(3):
        assert sent(ask(coordinator, m.SnapshotCreate(str(number)), number)) == []
    (busy,) = sent(ask(coordinator, m.SnapshotCreate("late"), 3))
    assert (busy.kind, m.error_of(busy).errno) == ("SlotsExhausted", errno.EAGAIN)
    assert ask(coordinator, m.SnapshotCreate("0"), 0) == [], "the same again is none more"
    out = coordinator.step(v.Tick(1000.0))
    assert [reply.kind for reply in sent(out)] == ["Timeout"] * 3
    assert sent(ask(coordinator, m.SnapshotCreate("late"), 3, now=1000.0)) == []


def test_nobody_waits_for_ever() -> None:
    coordinator = machine()
    (run,) = ask(coordinator, m.Freeze(timeout_s=1e300), 1)
    assert run.arguments == (ledger.TIMEOUT_MAX_S,)


def test_a_new_coordinator_makes_no_changes_for_an_old_ones_clients() -> None:
    coordinator = Coordinator(OWN, 1)
    coordinator.start()
    for message in (m.SnapshotCreate(), m.SnapshotDelete(1), m.Freeze(), m.Unfreeze()):
        assert ask(coordinator, message, 1) == [v.Send(b"p", request_id(CLIENT, 1), UNKNOWN)]
    assert sent(ask(coordinator, m.Ping(), 2)) == [m.Pong("engine")]
    ask(coordinator, m.Hello("0"), 3)
    assert jobs(ask(coordinator, m.SnapshotCreate(), 1)) == ["snapshot_create"]


def test_only_so_many_clients_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "CLIENTS_REMEMBERED", 2)
    coordinator = machine()
    for number in range(2):
        ident = request_id(bytes([number]) * 16, 1)
        coordinator.step(v.Request(b"q", ident, m.Hello("0"), 0.0))
    assert sent(ask(coordinator, m.SnapshotCreate(), 1)) == [UNKNOWN]
    assert len(coordinator._memory.clients) == 2

"""How long a worker looks for the next request: learnt from when requests come."""

from __future__ import annotations

import pytest

from nova_mp.workers import busypoll
from nova_mp.workers.busypoll import FIRST_NS, LONGEST_NS, BusyPoll


class Clock:
    """Time that passes by `step_ns` at each look at it; a message comes at `due_ns`."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.step_ns = 1000
        self.due_ns: int | None = None

    def monotonic_ns(self) -> int:
        self.now_ns += self.step_ns
        return self.now_ns

    def ready(self) -> bool:
        return self.due_ns is not None and self.now_ns >= self.due_ns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(busypoll, "time", made)
    return made


def request_after(clock: Clock, poll: BusyPoll, gap_ns: int) -> bool:
    """A request that comes `gap_ns` after the last; whether it was seen before the sleep."""
    clock.due_ns = clock.now_ns + gap_ns
    seen = poll.look()
    if not seen:
        clock.now_ns = max(clock.now_ns, clock.due_ns)
        poll.woken()
    clock.due_ns = None
    return seen


def test_requests_in_quick_succession_are_waited_for(clock: Clock) -> None:
    poll = BusyPoll(clock.ready, cores=2)
    seen = [request_after(clock, poll, 90_000) for _ in range(10)]
    assert seen == [False] * 3 + [True] * 7
    assert FIRST_NS < 90_000 < poll.budget_ns <= LONGEST_NS


def test_rare_requests_are_not(clock: Clock) -> None:
    poll = BusyPoll(clock.ready, cores=2)
    for _ in range(10):
        request_after(clock, poll, 90_000)
    assert not request_after(clock, poll, 10 * LONGEST_NS)
    assert poll.budget_ns == 0
    began = clock.now_ns
    assert not poll.look()
    assert clock.now_ns - began <= 2 * clock.step_ns, "it does not look at all"
    assert not any(request_after(clock, poll, 10 * LONGEST_NS) for _ in range(10))


def test_the_look_is_bounded(clock: Clock) -> None:
    poll = BusyPoll(clock.ready, cores=2)
    for gap_ns in range(LONGEST_NS // 2, 3 * LONGEST_NS, LONGEST_NS // 7):
        began = clock.now_ns
        poll.look()
        assert clock.now_ns - began <= LONGEST_NS + 4 * clock.step_ns
        clock.now_ns = began + gap_ns
        poll.woken()
        assert 0 <= poll.budget_ns <= LONGEST_NS


def test_on_one_core_nobody_looks(clock: Clock) -> None:
    poll = BusyPoll(clock.ready, cores=1)
    assert not any(request_after(clock, poll, 30_000) for _ in range(10))
    assert poll.budget_ns == 0

"""The supervisor's decisions: order of the start and of the end, restarts, failures."""

from __future__ import annotations

import random
from typing import Any

import pytest

from nova_mp.cluster import supervisor as s
from nova_mp.cluster.vocabulary import Exit, SetTimer, Tick
from nova_mp.protocol import messages as m

TITLES = ["coordinator", "worker-0", "worker-1", "cleaner"]


class Engine:
    """A supervisor machine with its processes played by the test."""

    def __init__(self) -> None:
        self.machine = s.Supervisor(2)
        self.now = 0.0
        self.pid = 100
        self.live: dict[str, int] = {}
        self.told_to_quit: list[str] = []
        self.killed: list[str] = []
        self.reports: list[Any] = []
        self.unmounts: list[s.Unmount] = []
        self.timer: float | None = None
        self.exited = False

    def step(self, event: Any) -> None:
        pending = self.machine.step(event)
        while pending:
            instruction = pending.pop(0)
            if isinstance(instruction, s.Spawn):
                title = instruction.role.title
                assert title not in self.live, "it runs already"
                self.pid += 1
                self.live[title] = self.pid
                spawned = s.Spawned(title, self.pid, 1, self.now)
                pending += self.machine.step(spawned)
            elif isinstance(instruction, s.Tell) and isinstance(instruction.message, m.Quit):
                self.told_to_quit.append(instruction.title)
            elif isinstance(instruction, s.Kill):
                self.killed.append(instruction.title)
            elif isinstance(instruction, s.ReportReady | s.ReportFailed):
                self.reports.append(instruction)
            elif isinstance(instruction, s.Unmount):
                assert not self.live, "unmounted under somebody's feet"
                self.unmounts.append(instruction)
            elif isinstance(instruction, SetTimer):
                self.timer = instruction.at
            elif isinstance(instruction, Exit):
                self.exited = True

    def ready(self, title: str) -> None:
        self.step(s.Ready(title, self.now))

    def die(self, title: str, status: int = -9) -> None:
        del self.live[title]
        self.step(s.Exited(title, status, self.now))

    def fire_timer(self) -> None:
        assert self.timer is not None
        self.now = max(self.now, self.timer)
        self.step(Tick(self.now))


@pytest.fixture
def mounted() -> Engine:
    engine = Engine()
    engine.step(s.Mounted(0.0))
    return engine


@pytest.fixture
def running(mounted: Engine) -> Engine:
    for title in TITLES:
        mounted.ready(title)
    return mounted


def test_it_is_ready_when_everybody_is(mounted: Engine) -> None:
    assert sorted(mounted.live) == sorted(TITLES)
    for title in TITLES:
        assert mounted.reports == []
        mounted.ready(title)
    assert mounted.reports == [s.ReportReady()]


def test_a_child_that_fails_fails_the_start_and_ends_the_rest(mounted: Engine) -> None:
    mounted.ready("coordinator")
    mounted.step(s.Failed("worker-0", "no such CPU", "choose another"))
    mounted.die("worker-0", 1)
    assert mounted.reports == [s.ReportFailed("no such CPU", "choose another")]
    for title in list(mounted.live):
        mounted.die(title, 0)
    assert mounted.unmounts == [s.Unmount(True)]
    mounted.step(s.Unmounted(True))
    assert mounted.exited
    assert mounted.machine.exit_status == 1
    assert len(mounted.reports) == 1


def test_a_child_that_never_comes_up_fails_the_start(mounted: Engine) -> None:
    mounted.ready("coordinator")
    mounted.fire_timer()
    (report,) = mounted.reports
    assert "worker-0, worker-1, cleaner" in report.reason


def test_a_dead_child_is_started_again_at_once_then_with_pauses(running: Engine) -> None:
    pauses = []
    for _ in range(9):
        running.die("worker-0")
        if "worker-0" not in running.live:
            assert running.timer is not None
            pauses.append(running.timer - running.now)
            running.fire_timer()
        else:
            pauses.append(0.0)
        running.ready("worker-0")
    assert pauses == pytest.approx([0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])
    running.now += s.HEALTHY_S
    running.die("worker-0")
    assert "worker-0" in running.live, "it was healthy for long enough to be trusted again"
    restarts = {row["title"]: row["restarts"] for row in running.machine.processes()}
    assert restarts == {"coordinator": 0, "worker-0": 10, "worker-1": 0, "cleaner": 0}


def test_the_end_goes_front_first_then_workers_then_memory(running: Engine) -> None:
    running.step(s.StopAsked(False, 0.0))
    assert sorted(running.told_to_quit) == ["cleaner", "coordinator"]
    running.die("cleaner", 0)
    assert running.unmounts == []
    running.die("coordinator", 0)
    assert sorted(running.told_to_quit)[2:] == ["worker-0", "worker-1"]
    running.die("worker-0", 0)
    running.die("worker-1", 0)
    assert running.unmounts == [s.Unmount(False)]
    running.step(s.Unmounted(True))
    assert running.exited
    assert running.machine.exit_status == 0


def test_whoever_does_not_leave_is_killed(running: Engine) -> None:
    running.step(s.StopAsked(True, 0.0))
    running.die("coordinator", 0)
    running.fire_timer()
    assert running.killed == ["cleaner"]
    running.die("cleaner")
    running.fire_timer()
    assert running.killed == ["cleaner", "worker-0", "worker-1"]


def test_nothing_is_restarted_during_the_end(running: Engine) -> None:
    running.die("worker-0")
    running.die("worker-0")
    running.step(s.StopAsked(False, 0.0))
    assert "worker-0" not in running.live
    running.die("coordinator", 0)
    running.die("cleaner", 0)
    running.die("worker-1", 0)
    assert running.unmounts == [s.Unmount(False)]


def test_a_stop_during_the_start_ends_it(mounted: Engine) -> None:
    mounted.step(s.StopAsked(True, 0.0))
    for title in list(mounted.live):
        mounted.die(title, 0)
    assert isinstance(mounted.reports[0], s.ReportFailed)
    assert len(mounted.unmounts) == 1


@pytest.mark.parametrize("seed", range(30))
def test_random_deaths_and_a_stop_always_end_well(seed: int) -> None:
    rng = random.Random(seed)
    engine = Engine()
    engine.step(s.Mounted(0.0))
    for _ in range(rng.randrange(80)):
        engine.now += rng.random()
        choice = rng.random()
        if choice < 0.6 and engine.live:
            engine.ready(rng.choice(sorted(engine.live)))
        elif choice < 0.7 and engine.live:
            engine.die(rng.choice(sorted(engine.live)))
        elif engine.timer is not None:
            engine.fire_timer()
    engine.step(s.StopAsked(rng.random() < 0.5, engine.now))
    while engine.live:
        if rng.random() < 0.2 and engine.timer is not None:
            engine.fire_timer()
        title = rng.choice(sorted(engine.live))
        if title in engine.told_to_quit or title in engine.killed:
            engine.die(title, 0)
    assert len(engine.unmounts) == 1
    assert len(engine.reports) <= 1

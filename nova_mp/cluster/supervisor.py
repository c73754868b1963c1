"""What the supervisor decides: what to start, what to restart and when, and the order of the end.

    MOUNTING --mounted--> STARTING --all children ready--> RUNNING
       |                     |                                |  stop asked or signalled
       |                     | a child fails                  v
       |                     +-------------------------> ENDING_FRONT: coordinator, cleaner leave
       | cannot mount                                         v
       v                                                 ENDING_WORKERS: workers drain and leave
    STOPPED <------------------ UNMOUNTING <------------------+

The coordinator leaves first, because it thaws a frozen file system, without which workers could
not finish. A child that dies in RUNNING is started again: at once the first time, then after pauses
that double, until it has stayed up for HEALTHY_S. A child that does not leave in LEAVE_S is killed.

Invariants
- SUPER-1: a child is in exactly one of: not started, starting, ready, leaving, dead.
- SUPER-2: nothing is unmounted while a child lives.
- SUPER-3: whoever waits for the start hears of it exactly once.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from nova_mp.cluster.machine import Machine, require, table
from nova_mp.cluster.vocabulary import Exit, SetTimer, Tick
from nova_mp.protocol import messages as m

BACKOFF_S = 0.1
BACKOFF_MAX_S = 5.0
HEALTHY_S = 10.0
LEAVE_S = 10.0
START_S = 60.0
START_CHILD_S = 1.0
"""All children together have START_S, and this much more for each, to come up."""


class State(enum.Enum):
    """States of the supervisor; see the head of this file."""

    MOUNTING = "mounting"
    STARTING = "starting"
    RUNNING = "running"
    ENDING_FRONT = "ending-front"
    ENDING_WORKERS = "ending-workers"
    UNMOUNTING = "unmounting"
    STOPPED = "stopped"


class ChildState(enum.Enum):
    """States of a child process."""

    ABSENT = "absent"
    STARTING = "starting"
    READY = "ready"
    LEAVING = "leaving"


@dataclass(frozen=True, slots=True)
class Role:
    """What a child is: its title, the module that it runs, its CPU (workers; else -1)."""

    title: str
    module: str
    cpu: int = -1


def roles(cpus: int) -> list[Role]:
    """Every child of an engine with `cpus` workers, in the order in which they are started."""
    workers = [Role(f"worker-{cpu}", "fs_worker", cpu) for cpu in range(cpus)]
    return [Role("coordinator", "coordinator"), *workers, Role("cleaner", "cleaner")]


# ------------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Mounted:
    """The arena is mounted, or the volatile state of a killed engine was adopted."""

    now: float


@dataclass(frozen=True, slots=True)
class Spawned:
    """The process that Spawn asked for runs."""

    title: str
    pid: int
    ticks: int
    now: float


@dataclass(frozen=True, slots=True)
class Ready:
    """A child says that it is in service."""

    title: str
    now: float


@dataclass(frozen=True, slots=True)
class Failed:
    """A child says that it cannot go on, and why."""

    title: str
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Exited:
    """A child is dead; `status` is its exit status, or minus the signal that killed it."""

    title: str
    status: int
    now: float


@dataclass(frozen=True, slots=True)
class StopAsked:
    """The coordinator passes on a request to stop, or a signal came."""

    force: bool
    now: float


@dataclass(frozen=True, slots=True)
class Unmounted:
    """The end of Unmount: `clean`, or left for the next start to adopt."""

    clean: bool


# ------------------------------------------------------------------------------- instructions


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a child process, then step with Spawned."""

    role: Role


@dataclass(frozen=True, slots=True)
class Tell:
    """Send a message to a child over its control channel; it may be gone already."""

    title: str
    message: Any


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL a child."""

    title: str


@dataclass(frozen=True, slots=True)
class SaveRecord:
    """Write the engine record with these (title, pid, start ticks)."""

    ready: bool
    children: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class ReportReady:
    """Tell whoever waits for the start that the engine is in service."""


@dataclass(frozen=True, slots=True)
class ReportFailed:
    """Tell whoever waits for the start that it failed."""

    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Unmount:
    """Unmount the arena, or leave it if clients stay (`force`: give them a while), then step with
    Unmounted."""

    force: bool


# -------------------------------------------------------------------------------------- state


@dataclass(slots=True)
class _Child:
    role: Role
    state: ChildState = ChildState.ABSENT
    pid: int = 0
    ticks: int = 0
    since: float = 0.0
    starts: int = 0
    failures: int = 0
    respawn_at: float | None = None
    kill_at: float | None = None
    reason: tuple[str, str] = ("", "")


class Supervisor(Machine):
    """The state machine of the supervisor process."""

    def __init__(self, cpus: int) -> None:
        super().__init__()
        self.state = State.MOUNTING
        self._children = {role.title: _Child(role) for role in roles(cpus)}
        self._force = False
        self._reported = False
        self._start_by: float | None = None
        self.exit_status = 0

    # ------------------------------------------------------------------------------------ start

    def _on_mounted(self, event: Mounted) -> None:
        self.state = State.STARTING
        self._start_by = event.now + self._start_limit_s()
        for child in self._children.values():
            self._spawn(child)
        self._set_timer()

    def _start_limit_s(self) -> float:
        return START_S + START_CHILD_S * len(self._children)

    def _spawn(self, child: _Child) -> None:
        child.state = ChildState.STARTING
        child.respawn_at = None
        child.starts += 1
        child.reason = ("", "")
        self.emit(Spawn(child.role))

    def _on_spawned(self, event: Spawned) -> None:
        child = self._children[event.title]
        child.pid, child.ticks, child.since = event.pid, event.ticks, event.now
        self._changed()

    def _on_ready(self, event: Ready) -> None:
        child = self._children[event.title]
        if child.state is not ChildState.STARTING:
            return
        child.state, child.since = ChildState.READY, event.now
        everybody = all(c.state is ChildState.READY for c in self._children.values())
        if self.state is State.STARTING and everybody:
            self.state = State.RUNNING
            self._start_by = None
            self._reported = True
            self._changed()
            self.emit(ReportReady())
        else:
            self._changed()
        self._set_timer()

    def _on_failed(self, event: Failed) -> None:
        self._children[event.title].reason = (event.reason, event.remedy)

    def _give_up_start(self, reason: str, remedy: str, now: float) -> None:
        self.emit(ReportFailed(reason, remedy))
        self._reported = True
        self.exit_status = 1
        self._force = True
        self._end_front(now)

    # ----------------------------------------------------------------------------------- deaths

    def _on_exited(self, event: Exited) -> None:
        child = self._children[event.title]
        was_leaving = child.state is ChildState.LEAVING
        if child.state is ChildState.READY and event.now - child.since >= HEALTHY_S:
            child.failures = 0
        child.state, child.pid, child.ticks, child.kill_at = ChildState.ABSENT, 0, 0, None
        if self.state is State.STARTING:
            reason, remedy = child.reason
            self._give_up_start(
                reason or f"{event.title} ended with status {event.status}",
                remedy or "see the engine's log",
                event.now,
            )
        elif self.state is State.RUNNING and not was_leaving:
            pause = 0.0 if not child.failures else BACKOFF_S * 2 ** (child.failures - 1)
            child.failures = min(child.failures + 1, 16)
            if pause == 0.0:
                self._spawn(child)
            else:
                child.respawn_at = event.now + min(pause, BACKOFF_MAX_S)
        self._changed()
        self._go_on_ending(event.now)
        self._set_timer()

    def _on_tick(self, event: Tick) -> None:
        for child in self._children.values():
            if child.respawn_at is not None and child.respawn_at <= event.now:
                self._spawn(child)
            if child.kill_at is not None and child.kill_at <= event.now:
                child.kill_at = None
                self.emit(Kill(child.role.title))
        if self._start_by is not None and self._start_by <= event.now:
            self._start_by = None
            late = [t for t, c in self._children.items() if c.state is not ChildState.READY]
            reason = f"{', '.join(late)} did not come up in {self._start_limit_s():.0f} s"
            self._give_up_start(reason, "see the engine's log", event.now)
        self._set_timer()

    # -------------------------------------------------------------------------------------- end

    def _on_stop(self, event: StopAsked) -> None:
        self._force = self._force or event.force
        if self.state is State.MOUNTING:
            self.state = State.UNMOUNTING
            self.emit(Unmount(self._force))
        elif self.state in (State.STARTING, State.RUNNING):
            if not self._reported:
                self._reported = True
                self.emit(ReportFailed("the engine was stopped while it started", ""))
            self._end_front(event.now)
        self._set_timer()

    def _end_front(self, now: float) -> None:
        self.state = State.ENDING_FRONT
        self._start_by = None
        for child in self._children.values():
            child.respawn_at = None
        self._dismiss([c for c in self._children.values() if c.role.cpu < 0], now)
        self._go_on_ending(now)

    def _dismiss(self, children: list[_Child], now: float) -> None:
        for child in children:
            if child.state is not ChildState.ABSENT:
                child.state = ChildState.LEAVING
                child.kill_at = now + LEAVE_S
                self.emit(Tell(child.role.title, m.Quit()))

    def _go_on_ending(self, now: float) -> None:
        if self.state is State.ENDING_FRONT and not self._alive(front=True):
            self.state = State.ENDING_WORKERS
            self._dismiss([c for c in self._children.values() if c.role.cpu >= 0], now)
        if self.state is State.ENDING_WORKERS and not self._alive(front=False):
            self.state = State.UNMOUNTING
            self.emit(Unmount(self._force))

    def _alive(self, front: bool) -> bool:
        return any(
            child.state is not ChildState.ABSENT and (child.role.cpu < 0) == front
            for child in self._children.values()
        )

    def _on_unmounted(self, event: Unmounted) -> None:
        self.state = State.STOPPED
        self.emit(Exit())

    # ---------------------------------------------------------------------------------- helpers

    def _changed(self) -> None:
        """Keep the engine record, and the coordinator's view of the processes, up to date."""
        live = [c for c in self._children.values() if c.pid]
        children = tuple((c.role.title, c.pid, c.ticks) for c in live)
        self.emit(SaveRecord(self.state is State.RUNNING, children))
        if self._children["coordinator"].state is ChildState.READY:
            self.emit(Tell("coordinator", m.Processes(self.processes())))

    def processes(self) -> tuple[dict[str, Any], ...]:
        """The children as plain data: {title, pid, state, cpu, restarts}."""
        return tuple(
            {
                "title": child.role.title,
                "pid": child.pid,
                "state": child.state.value,
                "cpu": child.role.cpu,
                "restarts": max(0, child.starts - 1),
            }
            for child in self._children.values()
        )

    def _set_timer(self) -> None:
        times = [self._start_by]
        for child in self._children.values():
            times += [child.respawn_at, child.kill_at]
        pending = [at for at in times if at is not None]
        self.emit(SetTimer(min(pending) if pending else None))

    def validate(self) -> None:
        """Check SUPER-1 (as far as pids go) and SUPER-2."""
        for child in self._children.values():
            title = child.role.title
            if child.state is ChildState.ABSENT:
                require(child.pid == 0 and child.kill_at is None, f"SUPER-1: {title} is dead")
            else:
                require(child.respawn_at is None, f"SUPER-1: {title} lives and would be respawned")
            if self.state in (State.UNMOUNTING, State.STOPPED):
                require(child.state is ChildState.ABSENT, f"SUPER-2: {title} lives")

    _ENDING = (State.ENDING_FRONT, State.ENDING_WORKERS, State.UNMOUNTING)
    _ALL = (State.STARTING, State.RUNNING, State.ENDING_FRONT, State.ENDING_WORKERS)
    TRANSITIONS = table(
        {
            (State.MOUNTING, Mounted): ("_on_mounted", State.STARTING),
            **{(state, Spawned): ("_on_spawned", state) for state in _ALL},
            (State.STARTING, Ready): ("_on_ready", (State.STARTING, State.RUNNING)),
            (State.RUNNING, Ready): ("_on_ready", State.RUNNING),
            (State.ENDING_FRONT, Ready): ("_on_ready", State.ENDING_FRONT),
            (State.ENDING_WORKERS, Ready): ("_on_ready", State.ENDING_WORKERS),
            **{(state, Failed): ("_on_failed", state) for state in _ALL},
            (State.STARTING, Exited): ("_on_exited", _ENDING),
            (State.RUNNING, Exited): ("_on_exited", State.RUNNING),
            (State.ENDING_FRONT, Exited): ("_on_exited", _ENDING),
            (State.ENDING_WORKERS, Exited): ("_on_exited", _ENDING),
            (State.STARTING, Tick): ("_on_tick", (State.STARTING, *_ENDING)),
            (State.RUNNING, Tick): ("_on_tick", State.RUNNING),
            **{(state, Tick): ("_on_tick", state) for state in (State.MOUNTING, *_ENDING)},
            ((State.STARTING, State.RUNNING), StopAsked): ("_on_stop", _ENDING),
            (State.MOUNTING, StopAsked): ("_on_stop", State.UNMOUNTING),
            **{(state, StopAsked): ("_on_stop", state) for state in (*_ENDING, State.STOPPED)},
            (State.UNMOUNTING, Unmounted): ("_on_unmounted", State.STOPPED),
        }
    )

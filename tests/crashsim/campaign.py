"""Two campaigns on a besieged engine: death at each failpoint, and deaths at random moments."""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import nova_mp
from crashsim.customers import REMOTE
from crashsim.engine import CLIENTS, CPUS, LIMIT_S, Siege, until
from nova_mp.protocol import identity

SOURCES = Path(__file__).resolve().parents[2] / "nova_mp" / "core"
ROLES = ("client", "worker", "coordinator", "cleaner", "supervisor")
PASSES_S = 1.5
"""How long a process is given to pass a failpoint; not every role passes each."""

REMOUNT_EVERY = 4
"""Deaths between two clean stops, after which nobody is restarted with a pause any more."""

Report = Callable[[str], None]


def failpoints() -> list[str]:
    """All failpoints in the sources."""
    pattern = re.compile(r'fail_point\(\w+, "([\w.]+)"\)')
    return sorted(
        {name for path in SOURCES.glob("*.pyx") for name in pattern.findall(path.read_text())}
    )


def dies(pid: int, seconds: float) -> bool:
    """Whether a process dies within so many seconds."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return identity.wait_dead([fd], seconds)
    finally:
        os.close(fd)


# ---------------------------------------------------------------------------------- failpoints


class Failpoints:
    """Kills each role at each failpoint that it passes."""

    def __init__(self, siege: Siege, patience_s: float = PASSES_S) -> None:
        self._siege = siege
        self._patience_s = patience_s
        self._deaths = 0
        self.passed: dict[str, list[str]] = {}

    def run(self, cases: list[tuple[str, str]], report: Report) -> None:
        """Each case is a role and a failpoint."""
        for number, (role, point) in enumerate(cases):
            nth = self._siege.rng.randrange(1, 4)
            report(f"{number + 1}/{len(cases)} {role} at {point}:{nth}")
            die = self._supervisor_dies if role == "supervisor" else self._one_dies
            if die(role, point, nth):
                self.passed.setdefault(role, []).append(point)
                self._siege.check()
                self._deaths += 1
                if self._deaths % REMOUNT_EVERY == 0:
                    self._siege.remount()

    def _one_dies(self, role: str, point: str, nth: int) -> bool:
        siege = self._siege
        title, pid = self._victim(role)
        with siege.attached() as fs:
            arm(fs, pid, point, nth)
            died = self._waits_for(pid, provoked=role == "coordinator")
            if not died and fs.disarm_failpoint():
                return False
            assert dies(pid, LIMIT_S)
        if role == "client":
            siege.mourn(0)
            siege.survive()
            siege.look_at_dead([0])
            siege.hire(0)
        else:
            served = [n for n, kind in enumerate(CLIENTS) if kind == REMOTE]
            cut_off = tuple(n for n in served if title == f"worker-{n % CPUS}")
            siege.survive(cut_off)
            until(f"{title} is replaced", lambda: siege.replaced(title, pid))
        siege.survive()
        return True

    def _victim(self, role: str) -> tuple[str, int]:
        if role == "client":
            return "client", self._siege.pids[0]
        title = f"worker-{self._siege.rng.randrange(CPUS)}" if role == "worker" else role
        found = until(f"{title} is there", lambda: self._siege.children().get(title))
        return title, int(found)

    def _waits_for(self, pid: int, provoked: bool) -> bool:
        """Whether the victim dies. The coordinator repairs the dead, so some have to die."""
        siege = self._siege
        deadline = time.monotonic() + self._patience_s
        while time.monotonic() < deadline:
            if dies(pid, siege.rng.uniform(0.05, 0.2)):
                return True
            if provoked:
                siege.kill_client(3)
                siege.look_at_dead([3])
                siege.hire(3)
        return False

    def _supervisor_dies(self, role: str, point: str, nth: int) -> bool:
        """The engine is killed, then a client; who adopts what is left dies while repairing it."""
        siege = self._siege
        pid = siege.pids[0]
        with siege.attached() as fs:
            slot_of(fs, pid)
            kill_all(siege.children())
            # Who repairs a death at some point mostly comes by that point as well.
            arm(fs, pid, point, nth)
            if not dies(pid, PASSES_S):
                fs.disarm_failpoint()
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            siege.mourn(0)
            siege.survive(tuple(n for n, kind in enumerate(CLIENTS) if kind == REMOTE))
            died = start_dies(siege, point)
        siege.start() if died else None
        siege.survive()
        siege.look_at_dead([0])
        siege.hire(0)
        return died


def arm(fs: Any, pid: int, point: str, nth: int) -> None:
    """Let a process die at a failpoint."""
    fs.arm_failpoint(point, nth, slot_of(fs, pid))


def slot_of(fs: Any, pid: int) -> int:
    """The process slot of a process, which may be about to attach."""

    def found() -> list[int]:
        rows = [row for row in fs.slots() if row["pid"] == pid and not row["thread"]]
        return [row["slot"] for row in rows]

    return int(until(f"process {pid} is attached", found)[0])


def start_dies(siege: Siege, point: str) -> bool:
    """Whether a supervisor that dies at the failpoint does so while it starts."""
    os.environ["NOVA_MP_FAILPOINT"] = f"supervisor/{point}"
    try:
        siege.start()
    except nova_mp.EngineFailed:
        return True
    finally:
        del os.environ["NOVA_MP_FAILPOINT"]
    return False


def kill_all(children: dict[str, int]) -> None:
    """SIGKILL processes of an engine, the supervisor first, and wait until they are dead."""
    for pid in children.values():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for title, pid in children.items():
        assert dies(pid, LIMIT_S), f"{title} does not die"


# ------------------------------------------------------------------------------- random moments


class Kills:
    """Kills whoever it is at random moments."""

    WEIGHTS: ClassVar[dict[str, int]] = {
        "client": 40, "keeper": 5, "worker": 24, "coordinator": 10, "cleaner": 10,
        "supervisor": 5, "engine": 3, "everything": 2, "stop": 1,
    }  # fmt: skip
    CHECK_EVERY = 10
    REMOUNT_EVERY = 40

    def __init__(self, siege: Siege) -> None:
        self._siege = siege
        self.killed: dict[str, int] = {}

    def run(self, count: int, report: Report) -> None:
        """So many kills, with checks in between and in the end."""
        siege = self._siege
        for number in range(1, count + 1):
            role = siege.rng.choices(list(self.WEIGHTS), list(self.WEIGHTS.values()))[0]
            report(f"{number}/{count} {role}")
            time.sleep(siege.rng.uniform(0.0, 0.1))
            getattr(self, f"_{role}")()
            self.killed[role] = self.killed.get(role, 0) + 1
            if number % self.CHECK_EVERY == 0 or number == count:
                siege.check()
            if number % self.REMOUNT_EVERY == 0 or number == count:
                siege.remount()
                siege.survive()
        siege.check()

    def _client(self) -> None:
        self._kill_client(self._siege.rng.randrange(len(CLIENTS)))

    def _keeper(self) -> None:
        self._kill_client(self._siege.keeper)

    def _kill_client(self, number: int) -> None:
        self._siege.kill_client(number)
        self._siege.look_at_dead([number])
        self._siege.hire(number)

    def _worker(self) -> None:
        self._child(f"worker-{self._siege.rng.randrange(CPUS)}")

    def _coordinator(self) -> None:
        self._child("coordinator")

    def _cleaner(self) -> None:
        self._child("cleaner")

    def _child(self, title: str) -> None:
        siege = self._siege
        pid = until(f"{title} is there", lambda: siege.children().get(title))
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def _supervisor(self) -> None:
        siege = self._siege
        kill_all({"supervisor": siege.children()["supervisor"]})
        siege.start()

    def _engine(self) -> None:
        kill_all(self._siege.children())
        self._siege.start()

    def _everything(self) -> None:
        """What is on the medium is all that is left."""
        siege = self._siege
        everybody = list(range(len(siege.pids)))
        for pid in siege.pids:
            os.kill(pid, signal.SIGKILL)
        kill_all(siege.children())
        for number in everybody:
            siege.mourn(number)
        siege.start()
        siege.look_at_dead(everybody)
        siege.staff()

    def _stop(self) -> None:
        """The supervisor dies while it stops the engine."""
        self._siege.remount(self._cut_stop)

    def _cut_stop(self) -> None:
        siege = self._siege
        children = siege.children()

        def stop() -> None:
            with suppress(nova_mp.NovaError):
                nova_mp.stop(siege.name)

        stopping = threading.Thread(target=stop)
        stopping.start()
        time.sleep(siege.rng.uniform(0.0, 0.15))
        with suppress(ProcessLookupError):
            os.kill(children["supervisor"], signal.SIGKILL)
        stopping.join()


def cases(seed: int, count: int = 0) -> list[tuple[str, str]]:
    """(role, failpoint) of all there are, or `count` of them drawn at random."""
    every = [(role, point) for role in ROLES for point in failpoints()]
    return random.Random(seed).sample(every, count) if count else every

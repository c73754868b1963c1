"""The core against the tiny model: random operations, crashes and mounts, compared at every step.

Hypothesis finds short examples of a failure; the seeded driver is fast and looks at long runs. With
NOVA_MP_TORTURE=1 both do twenty times as much; NOVA_MP_SEED chooses other runs of the driver.
"""

from __future__ import annotations

import os

import pytest
from crashsim.arena import MIB
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from model.driver import OFFSETS, SIZES, Driver
from model.twin import Twin

TORTURE = os.environ.get("NOVA_MP_TORTURE", "0") not in ("", "0")
SEED = int(os.environ.get("NOVA_MP_SEED", "1"))
SETTLE_EVERY = 10

numbers = st.integers(0, 63)
sizes = st.one_of(st.sampled_from(SIZES), st.integers(0, 70_000))
offsets = st.one_of(st.sampled_from(OFFSETS), st.integers(0, 300_000))
cpus = st.integers(1, 4)
times = st.integers(0, 1 << 62)


class FileSystemMachine(RuleBasedStateMachine):
    """Rules are the operations of `Twin`; it compares outcomes, the invariants compare the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.twin: Twin | None = None

    @initialize(cpus=cpus)
    def mount(self, cpus: int) -> None:
        self.twin = Twin(4 * MIB, cpus)

    @property
    def pair(self) -> Twin:
        assert self.twin is not None
        return self.twin

    def teardown(self) -> None:
        if self.twin is not None:
            self.twin.close()

    @invariant()
    def nothing_differs(self) -> None:
        if self.twin is not None:
            self.twin.compare()
            self.steps += 1

    @invariant()
    def blocks_add_up(self) -> None:
        if self.twin is not None:
            self.twin.audit(settle=self.steps % SETTLE_EVERY == 0)

    # -- names

    @rule(where=numbers, name=numbers)
    def create(self, where: int, name: int) -> None:
        self.pair.create(where, name)

    @rule(where=numbers, name=numbers)
    def mkdir(self, where: int, name: int) -> None:
        self.pair.mkdir(where, name)

    @rule(where=numbers, name=numbers, size=st.integers(0, 5000))
    def symlink(self, where: int, name: int, size: int) -> None:
        self.pair.symlink(where, name, size)

    @rule(at=numbers, where=numbers, name=numbers)
    def link(self, at: int, where: int, name: int) -> None:
        self.pair.link(at, where, name)

    @rule(at=numbers)
    def unlink(self, at: int) -> None:
        self.pair.unlink(at)

    @rule(at=numbers)
    def rmdir(self, at: int) -> None:
        self.pair.rmdir(at)

    @rule(at=numbers, where=numbers, name=numbers, noreplace=st.booleans())
    def rename(self, at: int, where: int, name: int, noreplace: bool) -> None:
        self.pair.rename(at, where, name, noreplace)

    # -- files

    @rule(at=numbers, offset=offsets, size=sizes)
    def write(self, at: int, offset: int, size: int) -> None:
        self.pair.write(at, offset, size)

    @rule(at=numbers, size=sizes)
    def append(self, at: int, size: int) -> None:
        self.pair.append(at, size)

    @rule(at=numbers, size=offsets)
    def truncate(self, at: int, size: int) -> None:
        self.pair.truncate(at, size)

    @rule(at=numbers, offset=offsets, length=sizes.filter(bool))
    def fallocate(self, at: int, offset: int, length: int) -> None:
        self.pair.fallocate(at, offset, length)

    # -- attributes

    @rule(at=numbers, mode=st.integers(0, 0o7777))
    def chmod(self, at: int, mode: int) -> None:
        self.pair.chmod(at, mode)

    @rule(at=numbers, uid=numbers, gid=numbers)
    def chown(self, at: int, uid: int, gid: int) -> None:
        self.pair.chown(at, uid, gid)

    @rule(at=numbers, atime=times, mtime=times)
    def utime(self, at: int, atime: int, mtime: int) -> None:
        self.pair.utime(at, atime, mtime)

    @rule(at=numbers, name=numbers, size=st.integers(0, 3799))
    def setxattr(self, at: int, name: int, size: int) -> None:
        self.pair.setxattr(at, name, size)

    @rule(at=numbers, name=numbers)
    def removexattr(self, at: int, name: int) -> None:
        self.pair.removexattr(at, name)

    # -- open files

    @rule(at=numbers)
    def hold(self, at: int) -> None:
        self.pair.hold(at)

    @precondition(lambda self: self.twin and self.twin.held)
    @rule(at=numbers, offset=offsets, size=sizes)
    def held_write(self, at: int, offset: int, size: int) -> None:
        self.pair.held_write(at, offset, size)

    @precondition(lambda self: self.twin and self.twin.held)
    @rule(at=numbers, size=offsets)
    def held_truncate(self, at: int, size: int) -> None:
        self.pair.held_truncate(at, size)

    @precondition(lambda self: self.twin and self.twin.held)
    @rule(at=numbers)
    def let_go(self, at: int) -> None:
        self.pair.let_go(at)

    # -- snapshots

    @rule(named=st.booleans())
    def snapshot(self, named: bool) -> None:
        self.pair.snapshot(named)

    @precondition(lambda self: self.twin and self.twin.model.snapshots)
    @rule(at=numbers)
    def snapshot_delete(self, at: int) -> None:
        self.pair.snapshot_delete(at)

    @precondition(lambda self: self.twin and self.twin.model.snapshots)
    @rule(at=numbers)
    def view(self, at: int) -> None:
        self.pair.view(at)

    @precondition(lambda self: self.twin and self.twin.views)
    @rule(at=numbers)
    def view_close(self, at: int) -> None:
        self.pair.view_close(at)

    # -- background work, crashes, mounts

    @rule()
    def gc(self) -> None:
        self.pair.gc()

    @rule(budget=st.integers(1, 50))
    def reclaim(self, budget: int) -> None:
        self.pair.reclaim(budget)

    @rule(at=numbers, count=st.integers(1, 70))
    def burst(self, at: int, count: int) -> None:
        self.pair.burst(at, count)

    @rule(cpus=cpus)
    def crash(self, cpus: int) -> None:
        self.pair.crash(cpus)

    @rule(cpus=cpus)
    def remount(self, cpus: int) -> None:
        self.pair.remount(cpus)


TestFileSystemMachine = pytest.mark.slow(FileSystemMachine.TestCase)
TestFileSystemMachine.settings = settings(
    max_examples=2000 if TORTURE else 100, stateful_step_count=50
)


@pytest.mark.parametrize("run", range(200 if TORTURE else 10))
def test_seeded_run(run: int) -> None:
    """1,000 operations; `python -m model.driver --seed SEED` in tests/ runs one again."""
    Driver(SEED * 10_000 + run).run(1000)


@pytest.mark.parametrize("run", range(100 if TORTURE else 5))
def test_seeded_run_without_space(run: int) -> None:
    """In the smallest arena, whose space runs out: a refused operation changes nothing."""
    driver = Driver(SEED * 10_000 + run, 2 * MIB)
    driver.weights.update(create=6, append=6, write=6, unlink=3, truncate=1, snapshot_delete=1)
    driver.twin.create(0, 0)
    while not driver.twin.refused:
        driver.twin.append(0, 40_000)
    driver.run(800, compare_every=10)

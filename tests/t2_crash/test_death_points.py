"""Death at each failpoint of the core, and death of whoever repairs that; debug builds only.

A child runs an operation and kills itself at the failpoint. Survivors go on within a second, and
find the operation done or not begun, every block accounted for, and the same once mounted again. In
the second test the repairer dies as well, at every failpoint that repairing passes.
"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from crashsim.death import SharedArena, fork, wait
from crashsim.operations import OPERATIONS, prepared, verify

core = pytest.importorskip("nova_mp.core.fs", reason="the core is not built")

pytestmark = pytest.mark.skipif(not core.DEBUG_BUILD, reason="failpoints are in the debug build")

SOURCES = Path(__file__).resolve().parents[2] / "nova_mp" / "core"
SECONDS = 20.0

# Which operations pass a failpoint; `name*n` means its n-th passage.
POINTS: dict[str, tuple[str, ...]] = {
    "alloc.announced": (
        "overwrite", "append to a full log", "create", "symlink", "collect garbage", "store",
        "map a sparse file",
    ),
    "alloc.announced*2": ("append to a full log", "symlink"),
    "alloc.bits_set": (
        "create in a full inode table", "overwrite", "append to a full log", "collect garbage",
        "store",
    ),
    "alloc.kept_taken": ("overwrite a page",),
    "clean.released": ("reclaim", "reclaim what another snapshot needs"),
    "close.cell_cleared": ("close a deleted file", "write to a deleted file"),
    "create.applied": ("create", "create in a full directory", "mkdir", "symlink"),
    "dir.switched": ("create in a full directory", "rename a directory"),
    "fault.preserved": ("store", "store into a removed file"),
    "fault.resolved": ("store", "store into a removed file"),
    "free.bits_cleared": (
        "overwrite", "truncate", "unlink", "close a deleted file", "collect garbage", "reclaim",
    ),
    "free.bits_cleared*2": ("append to a full log", "reclaim"),
    "free.dropped": ("leave",),
    "free.kept": ("overwrite a page", "append to a full log", "unlink", "reclaim"),
    "gc.before_switch": ("collect garbage", "collect garbage under snapshots"),
    "gc.retargeted": ("collect garbage", "collect garbage under snapshots"),
    "gc.switched": ("collect garbage", "collect garbage under snapshots"),
    "inode.cells_set": (
        "overwrite", "overwrite under a snapshot", "truncate", "unlink under a snapshot",
        "rename over", "write to a deleted file", "store", "store into a removed file",
        "unmap a cut file", "map beside a snapshot's",
    ),
    "inode.pages_released": (
        "unlink", "unlink under a snapshot", "rmdir", "rename over in place",
        "close a deleted file",
    ),
    "inode.slot_freed": ("unlink", "rmdir", "rename over", "close a deleted file", "reclaim"),
    "inode.slot_taken": ("create", "mkdir", "symlink"),
    "inode.state_freed": ("unlink", "rmdir", "rename over", "close a deleted file", "reclaim"),
    "journal.applied": (
        "create", "symlink", "link", "unlink one of two names", "rename over", "rename a directory",
    ),
    "journal.before_commit": ("create", "mkdir", "symlink", "link", "unlink", "rename over"),
    "journal.committed": (
        "create", "symlink", "link", "unlink under a snapshot", "rename over under a snapshot",
        "rename a directory",
    ),
    "list.appended": (
        "overwrite under a snapshot", "truncate under a snapshot", "unlink under a snapshot",
        "rename over under a snapshot", "reclaim what another snapshot needs", "store",
        "truncate a mapped file", "map beside a snapshot's",
    ),
    "list.appended*2": ("truncate under a snapshot", "unlink under a snapshot"),
    "list.page_linked": (
        "overwrite under a snapshot", "truncate under a snapshot", "unlink under a snapshot",
        "rename over under a snapshot", "reclaim what another snapshot needs",
    ),
    "list.page_ready": (
        "overwrite under a snapshot", "truncate under a snapshot", "unlink under a snapshot",
        "rename over under a snapshot", "reclaim what another snapshot needs",
    ),
    "log.before_commit": (
        "overwrite", "truncate under a snapshot", "chmod", "setxattr", "removexattr",
        "create a snapshot", "store", "flush", "unmap a cut file", "map a sparse file",
    ),
    "log.committed": (
        "extend", "truncate under a snapshot", "setxattr", "write to a deleted file",
        "create a snapshot", "store", "unmap a cut file", "map beside a snapshot's",
        "map a sparse file",
    ),
    "log.page_linked": ("append to a full log",),
    "log.page_unlinked": ("unlink", "rmdir", "close a deleted file", "reclaim"),
    "mmap.before_store": ("write to a mapped file",),
    "mmap.copied": (
        "store", "store into a removed file", "write to a mapped file", "truncate a mapped file",
    ),
    "mmap.counted": ("map", "map a sparse file", "map beside a snapshot's"),
    "mmap.entry_appended": (
        "store", "store into a removed file", "write to a mapped file", "truncate a mapped file",
    ),
    "mmap.moved": ("map beside a snapshot's",),
    "mmap.preserved": ("store", "store into a removed file", "truncate a mapped file"),
    "mmap.truncated": ("truncate a mapped file", "extend a cut file"),
    "open.cell_set": ("create", "create in a full directory", "open"),
    "rename.source_applied": (
        "rename", "rename over", "rename over in place", "rename over under a snapshot",
        "rename a directory",
    ),
    "snapshot.before_grace": (
        "create a snapshot", "create a second snapshot", "create a snapshot of a mapped file",
    ),
    "snapshot.committed": (
        "create a snapshot", "create a second snapshot", "create a snapshot of a mapped file",
    ),
    "snapshot.deleted": ("delete a snapshot",),
    "snapshot.epoch_persisted": (
        "create a snapshot", "create a second snapshot", "create a snapshot of a mapped file",
    ),
    "snapshot.in_table": ("create a snapshot", "create a second snapshot"),
    "snapshot.list_queued": ("delete a snapshot",),
    "snapshot.out_of_table": ("delete a snapshot",),
    "snapshot.spliced": ("delete a snapshot",),
    "stores.held": ("create a snapshot of a mapped file",),
    "stores.protected": ("create a snapshot of a mapped file",),
    "unlink.name_gone": ("unlink", "unlink under a snapshot", "unlink one of two names", "rmdir"),
    "write.applied": ("overwrite", "append to a full log", "overwrite under a snapshot"),
    "write.data_copied": ("extend", "truncate", "symlink", "write to a deleted file"),
    "write.entry_appended": ("overwrite", "truncate", "symlink", "write to a deleted file"),
}  # fmt: skip

EVERY = os.environ.get("NOVA_MP_EXHAUSTIVE", "") not in ("", "0")
CASES = [(point, name) for point, names in POINTS.items() for name in names]
# Deaths that leave most to repair; each takes a second repairer through all failpoints.
RICH = [
    ("clean.released", "reclaim"),
    ("close.cell_cleared", "close a deleted file"),
    ("dir.switched", "create in a full directory"),
    ("alloc.kept_taken", "overwrite a page"),
    ("free.bits_cleared", "truncate"),
    ("free.dropped", "leave"),
    ("free.kept", "overwrite a page"),
    ("gc.before_switch", "collect garbage"),
    ("gc.switched", "collect garbage under snapshots"),
    ("inode.cells_set", "unlink under a snapshot"),
    ("inode.cells_set", "store"),
    ("journal.before_commit", "symlink"),
    ("journal.committed", "rename over under a snapshot"),
    ("mmap.entry_appended", "truncate a mapped file"),
    ("snapshot.committed", "create a second snapshot"),
    ("snapshot.committed", "create a snapshot of a mapped file"),
    ("snapshot.deleted", "delete a snapshot"),
    ("write.entry_appended", "overwrite"),
]
NESTED = CASES if EVERY else RICH
# What begins an operation is nothing that repairing it passes.
BEGINNINGS = ("create.", "log.", "open.", "rename.", "unlink.", "write.", "inode.slot_taken")


def failpoints() -> set[str]:
    """All failpoints in the sources."""
    pattern = re.compile(r'fail_point\(\w+, "([\w.]+)"\)')
    return {name for path in SOURCES.glob("*.pyx") for name in pattern.findall(path.read_text())}


def die(arena: SharedArena, point: str, name: str) -> None:
    """In a child: run the operation until the failpoint kills."""
    place, _, nth = point.partition("*")
    operation = OPERATIONS[name]
    fs = arena.attach("coordinator")
    handle = operation.ready(fs)
    fs.arm_failpoint(place, int(nth or 1))
    operation.act(fs, handle)


def repair(arena: SharedArena, point: str) -> None:
    """In a child: repair what the dead left, and die of it."""
    fs = arena.attach("supervisor")
    fs.arm_failpoint(point)
    fs.reap()


def dead_at(point: str, name: str) -> SharedArena:
    arena = prepared(OPERATIONS[name])
    ended = wait(fork(die, arena, point, name), SECONDS)
    assert ended == -signal.SIGKILL, f"'{name}' does not pass {point} ({ended})"
    return arena


def survive(arena: SharedArena, name: str, dead: int) -> None:
    """Verify in a child, so that what fails there is a failure, and not the end of the tests."""
    assert wait(fork(verify, arena, name, dead), SECONDS) == 0


def test_every_failpoint_is_in_the_table() -> None:
    assert {point.partition("*")[0] for point in POINTS} == failpoints()


@pytest.mark.parametrize(("point", "name"), CASES)
def test_death(point: str, name: str) -> None:
    arena = dead_at(point, name)
    survive(arena, name, 1)
    arena.close()


@pytest.mark.parametrize(("point", "name"), NESTED)
def test_death_of_the_repairer(point: str, name: str, capfd: Any) -> None:
    arena = dead_at(point, name)
    died = []
    for second in sorted(failpoints()):
        if second.startswith(BEGINNINGS) and not EVERY and second != "log.page_unlinked":
            continue
        copy = arena.copy()
        ended = wait(fork(repair, copy, second), SECONDS)
        assert ended in (0, -signal.SIGKILL), f"the repairer failed before {second}: {ended}"
        if ended:
            died.append(second)
            survive(copy, name, 2)
        copy.close()
    arena.close()
    print(f"repairing after {point} passes {died}")


def test_a_create_that_died_leaves_no_memory_taken() -> None:
    """With so many CPUs a snapshot's descriptor is a whole page, so that it can be counted."""

    def create() -> None:
        fs = arena.attach("coordinator")
        fs.arm_failpoint("log.before_commit")
        fs.snapshot_create(None)

    arena = SharedArena(cpus=16)
    with arena.attach("supervisor") as fs:
        fs.snapshot_create(None)
        used = fs.stats()["dram"]["bytes_used"]
        assert wait(fork(create), SECONDS) == -signal.SIGKILL
        fs.reap()
        assert len(fs.snapshot_table()) == 1
        assert fs.stats()["dram"]["bytes_used"] == used
    arena.close()

"""The kernel's ways to a snapshot, beside nova_mp's, on the same bytes in the same run.

Each is the call itself, without a command around it: btrfs's and XFS's ioctls, `os.fork`,
`shutil.copyfile`. A peer that this machine cannot offer is reported with the reason; nothing is
installed. Images lie on tmpfs, behind a loop device; both are gone afterwards.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
import signal
import statistics
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from .arena import temporary_arena
from .job import ArenaSpec
from .peers import scratch_directory
from .pool import Pool
from .snapload import (
    NovaSource,
    Taker,
    Writer,
    lay_out,
    percentile,
    spread,
    ticker_main,
    time_creates,
    touch_all,
)

if TYPE_CHECKING:
    from .snapcases import SnapshotPlan

KINDS = ("btrfs", "xfs", "fork", "copy")
EVERY_NS = 100_000_000
REPEATS_MAX = 3
WAYS = {
    "nova_mp": "snapshots.create()",
    "btrfs": "BTRFS_IOC_SNAP_CREATE, loop device on tmpfs",
    "xfs": "FICLONE (cp --reflink) of one file, loop device on tmpfs",
    "fork": "os.fork() of a process with the bytes in private memory",
    "copy": "shutil.copyfile on tmpfs; the writer waits",
}
_SNAP_CREATE, _SUBVOL_CREATE, _SNAP_DESTROY = 0x50009401, 0x5000940E, 0x5000940F
_FICLONE = 0x40049409
_MKFS = {"btrfs": ["mkfs.btrfs", "-q"], "xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"]}


def missing(kind: str) -> str | None:
    """Why this machine has no such peer, or None if it has."""
    if kind not in _MKFS:
        return None
    known = {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()}
    if kind not in known:
        return f"this kernel has no {kind}"
    if _tool(_MKFS[kind][0]) is None:
        return f"{_MKFS[kind][0]} is not installed"
    if os.geteuid() or not os.path.exists("/dev/loop-control"):
        return "mounting needs root and loop devices"
    return None


def _tool(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))


@contextmanager
def mounted(kind: str, data_bytes: int) -> Iterator[str]:
    """A new file system of this kind, in an image on tmpfs; unmounted and removed in the end."""
    with scratch_directory("/dev/shm") as where:
        image, point = f"{where}/image", f"{where}/mount"
        os.mkdir(point)
        with open(image, "wb") as file:
            # Sparse: what is not written takes no memory. XFS wants 300 MB at the least.
            file.truncate((1 << 30) + data_bytes * 12)
        command = [_tool(_MKFS[kind][0]) or "", *_MKFS[kind][1:], image]
        subprocess.run(command, check=True, capture_output=True, text=True)
        mount = ["mount", "-t", kind, "-o", "loop", image, point]
        subprocess.run(mount, check=True, capture_output=True, text=True)
        try:
            yield point
        finally:
            # This also gives the loop device back, which mount made for itself.
            subprocess.run(["umount", point], check=True, capture_output=True, text=True)


# ------------------------------------------------------------------------------------ takers


@dataclass(frozen=True, slots=True)
class Source:
    """What a ticker's process is given: how to take snapshots under ``where``, a mount."""

    kind: str
    where: str

    def open(self) -> Taker:
        """A taker of this process."""
        return Btrfs(self.where) if self.kind == "btrfs" else Reflink(self.where)


class Btrfs:
    """Snapshots of the subvolume ``live`` of a mounted btrfs."""

    def __init__(self, where: str) -> None:
        self.top = os.open(where, os.O_RDONLY)
        self.live = os.open(f"{where}/live", os.O_RDONLY)
        self.next = 0

    def take(self) -> str:
        """The name of a new snapshot."""
        self.next += 1
        name = f"snapshot-{os.getpid()}-{self.next}"
        fcntl.ioctl(self.top, _SNAP_CREATE, subvolume_arguments(name, self.live))
        return name

    def drop(self, taken: str) -> None:
        """Delete it."""
        fcntl.ioctl(self.top, _SNAP_DESTROY, subvolume_arguments(taken))

    def settle(self) -> None:
        """Left to the kernel: there is more than enough space."""

    def close(self) -> None:
        """Close the directories."""
        os.close(self.live)
        os.close(self.top)


def subvolume_arguments(name: str, fd: int = 0) -> bytearray:
    """struct btrfs_ioctl_vol_args: a descriptor and a name."""
    return bytearray(struct.pack("=q4088s", fd, name.encode()))


class Reflink:
    """Clones of the file ``live/data``: what `cp --reflink` asks for."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.source = os.open(f"{where}/live/data", os.O_RDONLY)
        self.next = 0

    def take(self) -> str:
        """The path of a new clone."""
        self.next += 1
        path = f"{self.where}/clone-{os.getpid()}-{self.next}"
        with open(path, "xb", buffering=0) as file:
            fcntl.ioctl(file.fileno(), _FICLONE, self.source)
        return path

    def drop(self, taken: str) -> None:
        """Remove it."""
        os.unlink(taken)

    def settle(self) -> None:
        """Nothing is left."""

    def close(self) -> None:
        """Close the source."""
        os.close(self.source)


class Copy:
    """Copies of the file ``live/data``."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.next = 0

    def take(self) -> str:
        """The path of a new copy."""
        self.next += 1
        path = f"{self.where}/copy-{os.getpid()}-{self.next}"
        shutil.copyfile(f"{self.where}/live/data", path)
        return path

    def drop(self, taken: str) -> None:
        """Remove it."""
        os.unlink(taken)

    def settle(self) -> None:
        """Nothing is left."""

    def close(self) -> None:
        """Nothing is held."""


class Fork:
    """Children that keep this process's memory as it was."""

    def take(self) -> int:
        """The pid of a child that waits to be killed."""
        pid = os.fork()
        if pid == 0:
            while True:
                signal.pause()
        return pid

    def drop(self, taken: int) -> None:
        """Kill it, and take it away."""
        os.kill(taken, signal.SIGKILL)
        os.waitpid(taken, 0)

    def settle(self) -> None:
        """Nothing is left."""

    def close(self) -> None:
        """Nothing is held."""


# ------------------------------------------------------------------------------ measurements



def measure(kind: str, plan: SnapshotPlan) -> dict[str, Any]:
    """Create latency and a writer's slowdown of one way; or the reason why it is missing."""
    row: dict[str, Any] = {"kind": kind, "way": WAYS[kind], "data_bytes": plan.peer_bytes}
    reason = missing(kind)
    if reason:
        return row | {"missing": reason}
    try:
        return row | {"missing": None, **_MEASURES[kind](plan)}
    except subprocess.CalledProcessError as error:
        return row | {"missing": f"{error.cmd[0]}: {error.stderr.strip()}"}


def _nova(plan: SnapshotPlan) -> dict[str, Any]:
    size = plan.peer_bytes * (plan.keep + 4) + (64 << 20)
    with (
        temporary_arena(ArenaSpec(size, 2), "peer") as arena, arena.attach() as file_system,
        ExitStack() as stack,
    ):
        touch_all(file_system)
        file = stack.enter_context(closing(file_system.open("/data", "x+b")))
        return _beside(plan, file.pwrite, NovaSource(arena.name),
                       lambda: file_system.snapshots.wait(60.0))


def _btrfs(plan: SnapshotPlan) -> dict[str, Any]:
    with mounted("btrfs", plan.peer_bytes) as where:
        top = os.open(where, os.O_RDONLY)
        try:
            fcntl.ioctl(top, _SUBVOL_CREATE, subvolume_arguments("live"))
        finally:
            os.close(top)
        return _on_files(plan, where, "btrfs")


def _xfs(plan: SnapshotPlan) -> dict[str, Any]:
    with mounted("xfs", plan.peer_bytes) as where:
        os.mkdir(f"{where}/live")
        return _on_files(plan, where, "xfs")


def _on_files(plan: SnapshotPlan, where: str, kind: str) -> dict[str, Any]:
    fd = os.open(f"{where}/live/data", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        # Writeback of what one measurement dirtied is not to fall into the next.
        return _beside(plan, partial(os.pwrite, fd), Source(kind, where), partial(os.fsync, fd))
    finally:
        os.close(fd)


def _beside(
    plan: SnapshotPlan, write: Any, source: Any, settle: Callable[[], None]
) -> dict[str, Any]:
    """Snapshots by another process, beside the writer in this one."""
    lay_out(write, plan.peer_bytes)
    settle()
    with Pool(ticker_main, [(source,)]) as pool:
        pool.collect(60.0)

        def window(writer: Writer, ticking: bool) -> dict[str, Any]:
            start = monotonic_ns()
            if ticking:
                pool.post("tick", start, EVERY_NS, start + plan.window_ns, plan.keep)
            calls, took = writer.run(plan.window_ns)
            latencies = pool.collect(120.0)[0]["latencies"] if ticking else []
            settle()
            return {"rate": calls * 1e9 / took, "latencies": latencies}

        with closing(source.open()) as taker:
            found = _idle(plan, write, taker)
        found |= _slowdown(plan, write, window)
        pool.call("finish")
    return found


def _inside(plan: SnapshotPlan, write: Any, taker: Any) -> dict[str, Any]:
    """Snapshots by the writer itself, between two writes: it waits for each."""

    def window(writer: Writer, ticking: bool) -> dict[str, Any]:
        latencies: list[int] = []
        held: list[Any] = []
        due = monotonic_ns() + EVERY_NS

        def between() -> None:
            nonlocal due
            began = monotonic_ns()
            if began < due:
                return
            held.append(taker.take())
            latencies.append(monotonic_ns() - began)
            if len(held) > plan.keep:
                taker.drop(held.pop(0))
            due += EVERY_NS

        try:
            calls, took = writer.run(plan.window_ns, between if ticking else None)
        finally:
            for taken in held:
                taker.drop(taken)
        return {"rate": calls * 1e9 / took, "latencies": latencies}

    lay_out(write, plan.peer_bytes)
    return _idle(plan, write, taker) | _slowdown(plan, write, window)


def _idle(plan: SnapshotPlan, write: Any, taker: Any) -> dict[str, Any]:
    time_creates(taker, 1, 0)
    created, dropped = time_creates(taker, plan.peer_creates, plan.create_time_ns)
    return {"create": spread(created), "delete": spread(dropped)}


def _slowdown(plan: SnapshotPlan, write: Any, window: Any) -> dict[str, Any]:
    writer = Writer(write, plan.peer_bytes, plan.seed)
    writer.run(plan.window_ns // 2)
    without: list[float] = []
    beside: list[float] = []
    latencies: list[int] = []
    for _ in range(min(plan.repeats, REPEATS_MAX)):
        without.append(window(writer, False)["rate"])
        found = window(writer, True)
        beside.append(found["rate"])
        latencies += found["latencies"]
    return {
        "writes_per_second": statistics.median(without),
        "writes_beside_per_second": statistics.median(beside),
        "ratio": statistics.median(b / a for a, b in zip(without, beside, strict=True)),
        "create_beside": spread(latencies), "create_beside_p50": percentile(latencies, 50),
    }


def fork_main(pipe: Connection, plan: SnapshotPlan) -> None:
    """A small process that holds the bytes, so that it is they that fork has to deal with."""
    with mmap.mmap(-1, plan.peer_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:

        def write(data: bytes, offset: int) -> None:
            memory[offset : offset + len(data)] = data

        pipe.send(("ok", _inside(plan, write, Fork())))
    with suppress(EOFError):
        pipe.recv()


def _fork(plan: SnapshotPlan) -> dict[str, Any]:
    with Pool(fork_main, [(plan,)]) as pool:
        return dict(pool.collect(300.0)[0])


def _copy(plan: SnapshotPlan) -> dict[str, Any]:
    with scratch_directory("/dev/shm") as where:
        os.mkdir(f"{where}/live")
        fd = os.open(f"{where}/live/data", os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            return _inside(plan, partial(os.pwrite, fd), Copy(where))
        finally:
            os.close(fd)


_MEASURES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "nova_mp": _nova, "btrfs": _btrfs, "xfs": _xfs, "fork": _fork, "copy": _copy,
}

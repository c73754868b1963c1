"""The state of an arena and its engine, seen from outside, even when the coordinator hangs."""

from __future__ import annotations

from typing import Any

from nova_mp import config
from nova_mp.client.control import ControlClient
from nova_mp.core import segment
from nova_mp.errors import EngineNotRunning, EngineRunning, Timeout
from nova_mp.protocol import identity


def live_record(name: str) -> config.EngineRecord | None:
    """The record of arena `name`'s engine, if its supervisor lives."""
    record = config.read_engine_record(name)
    if record is not None and identity.alive(record.pid, record.start_ticks):
        return record
    return None


def check_reachable(name: str) -> None:
    """Raise EngineRunning if arena `name` has an engine whose runtime folder is another one."""
    if config.engine_elsewhere(name):
        raise EngineRunning(
            f"the engine of arena '{name}' has another runtime folder than {config.runtime_root()}",
            config.ELSEWHERE_REMEDY,
        )


def status(name: str) -> dict[str, Any]:
    """State of an arena and its engine, as plain data; sizes in bytes, times in ns since 1970.

    `state` is "running" (or "freezing", "frozen", "thawing", "stopping"), "hanging" (the
    coordinator does not answer), "unreachable" (its runtime folder is another one), "starting",
    "stopped" (unmounted clean) or "crashed" (the next start recovers it). A running engine adds
    `pid`, `processes`, `slots` and `stats`, with the statistics of its last recovery in
    `stats["recovery"]`. `not_stopped` are the slots whose operations a freeze still waits for;
    `suspended` are processes that a signal has stopped, for whom others may have to wait.

    Raises ArenaNotFound, CorruptArena, VersionMismatch.
    """
    from nova_mp.core import fs

    with segment.attach_pmem(name) as pmem:
        found = dict(fs.read_superblock(pmem.buf))
    entry = segment.registered(name)
    found["name"] = name
    found["backing"] = f"file:{entry.path}" if entry else "shm"
    record = live_record(name)
    if record is None:
        found["state"] = "stopped" if found["mount_state"] == "clean" else "crashed"
        if config.engine_elsewhere(name):
            found["state"] = "unreachable"
        return found
    address = config.endpoints(name, record.cpus).coordinator
    found.update(pid=record.pid, media=record.media, address=address, tcp_address=record.tcp)
    found["state"] = "starting"
    if record.ready:
        try:
            _ask_coordinator(record, found)
        except EngineNotRunning:
            return found
        except Timeout:
            _look_without_coordinator(record, found)
        found["suspended"] = _suspended(record, found["slots"])
    return found


def _ask_coordinator(record: config.EngineRecord, found: dict[str, Any]) -> None:
    """Add what the coordinator says of the engine; Timeout if it does not answer, or cannot."""
    if any(title == "coordinator" and identity.stopped(pid) for title, pid, _ in record.children):
        raise Timeout("the coordinator is stopped")
    with ControlClient(record.name, timeout=10.0) as control:
        reply = control.status()
    shown = ("engine_id", "started_ns", "epoch_id", "deletions", "reclaim_left")
    found.update({key: getattr(reply, key) for key in shown})
    found["state"] = "running" if reply.state == "serving" else reply.state
    found["freeze_holder"] = reply.freeze_holder
    found["processes"] = list(reply.processes)
    found["slots"] = list(reply.slots)
    freezing = found["state"] in ("freezing", "frozen")
    found["not_stopped"] = [slot for slot in reply.slots if freezing and slot["epoch_id"]]
    found["stats"] = reply.stats


def _look_without_coordinator(record: config.EngineRecord, found: dict[str, Any]) -> None:
    """Add what can be seen in the shared memory and in the engine's record."""
    from nova_mp.core import fs

    with (
        segment.attach_pmem(record.name) as pmem,
        segment.attach_dram(record.name) as dram,
        fs.Core(pmem.buf, dram.buf, dram.fd, role="supervisor", title="status") as core,
    ):
        found["slots"], found["stats"] = core.slots(), core.stats()
    found.update(state="hanging", engine_id=record.engine_id, started_ns=record.started_ns)
    found["not_stopped"] = []
    found["processes"] = [
        {"title": title, "pid": pid, "state": "suspended" if identity.stopped(pid) else "unknown"}
        for title, pid, _ in record.children
    ]


def _suspended(
    record: config.EngineRecord, slots: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """{title, pid} of the engine's and of attached processes that a signal has stopped."""
    titles = {int(slot["pid"]): str(slot["title"] or slot["role"]) for slot in slots}
    titles[record.pid] = "supervisor"
    titles.update({pid: title for title, pid, _ in record.children})
    return [
        {"title": title, "pid": pid} for pid, title in titles.items() if identity.stopped(pid)
    ]

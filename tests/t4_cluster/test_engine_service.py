"""A running engine: restarts, requests, events, freezes, malformed messages, idleness."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import psutil
import pytest
import zmq
from t4_cluster.cluster_help import attached, eventually, kill, processes

import nova_mp
from nova_mp import config
from nova_mp.client.control import ControlClient
from nova_mp.cluster import log
from nova_mp.protocol import codec
from nova_mp.protocol import messages as m

_numbers = itertools.count()
BUSY = (
    "__import__('threading').Thread(daemon=True, target=lambda:"
    " [fs.write_bytes('/busy', bytes(1 << 20)) for _ in iter(int, 1)]).start()"
)


@pytest.fixture(scope="module")
def engine(arena_prefix: str) -> Iterator[nova_mp.Engine]:
    """One engine of two CPUs for the tests that leave it as they found it."""
    name = f"{arena_prefix}serves"
    nova_mp.mkfs(name, "64MiB", cpus=2)
    yield nova_mp.start(name)
    nova_mp.stop(name)
    nova_mp.destroy(name)


@pytest.fixture
def control(engine: nova_mp.Engine) -> Iterator[ControlClient]:
    with ControlClient(engine.name, timeout=10.0) as client:
        yield client


class Raw:
    """A DEALER socket that sends whatever it is told to."""

    def __init__(self, address: str) -> None:
        self.socket: Any = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(address)

    def exchange(self, frames: list[Any]) -> Any:
        self.socket.send_multipart(frames)
        return self.reply()

    def reply(self, timeout_s: float = 10.0) -> Any:
        assert self.socket.poll(int(timeout_s * 1000)), "no reply"
        return codec.decode(self.socket.recv_multipart()).message

    def silent(self, for_s: float) -> bool:
        return not self.socket.poll(int(for_s * 1000))

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.socket.close()


def snapshots(fs: Any) -> list[int]:
    return [snapshot.epoch_id for snapshot in fs.snapshots.list()]


def restarted(name: str, title: str, before: int) -> bool:
    """Whether `title` is another process than `before`, and in service."""
    rows = nova_mp.status(name).get("processes", ())
    return any(
        row["title"] == title and row["pid"] not in (0, before) and row["state"] == "ready"
        for row in rows
    )


@pytest.mark.parametrize("title", ["worker-1", "coordinator", "cleaner"])
def test_a_killed_child_is_started_again(engine: nova_mp.Engine, title: str) -> None:
    before = processes(engine.name)[title]
    kill(before)
    eventually(f"{title} comes back", lambda: restarted(engine.name, title, before))
    with nova_mp.connect(engine.name, cpu=1) as fs:
        fs.write_bytes("/back", title.encode())
        snapshot = fs.snapshots.create()
        fs.snapshots.delete(snapshot.epoch_id)
        fs.snapshots.wait(10.0)
        assert fs.read_bytes("/back") == title.encode()


def test_a_request_sent_twice_is_done_once(engine: nova_mp.Engine) -> None:
    with Raw(engine.address) as raw, nova_mp.attach(engine.name) as fs:
        before = snapshots(fs)
        frames = codec.encode(m.SnapshotCreate("twice"), codec.request_id(b"r" * 16, 1))
        assert raw.exchange(frames) == m.SESSION_UNKNOWN
        hello = codec.encode(m.Hello("0"), codec.request_id(b"r" * 16, 2))
        assert isinstance(raw.exchange(hello), m.HelloReply)
        first, second = raw.exchange(frames), raw.exchange(frames)
        assert isinstance(first, m.SnapshotCreated)
        assert second == first
        assert snapshots(fs) == [*before, first.epoch_id]
        fs.snapshots.delete("twice")


@pytest.mark.parametrize("place", ["coordinator", "worker"])
def test_malformed_messages_harm_nobody(engine: nova_mp.Engine, place: str) -> None:
    address = engine.address if place == "coordinator" else engine.worker_addresses[0]
    ident = codec.request_id(b"e" * 16, 1)
    half = codec.encode(m.SnapshotCreate("x"), ident)[0][:-3]
    wrong = codec.encode(m.Quit(), ident)
    with Raw(address) as raw:
        for frames in ([b""], [b"rubbish"], [half], [b"", b"", b""], [os.urandom(5000)]):
            assert raw.exchange(frames).kind in ("ProtocolError", "VersionMismatch")
        assert isinstance(raw.exchange(wrong), m.ErrorReply)
        hello = codec.encode(m.Hello("0"), codec.request_id(b"e" * 16, 2))
        assert isinstance(raw.exchange(hello), m.HelloReply)


def test_a_message_too_large_ends_the_connection_only(engine: nova_mp.Engine) -> None:
    with Raw(engine.address) as raw:
        raw.socket.send_multipart([bytes(2 << 20)])
        assert raw.silent(0.3)
    with ControlClient(engine.name) as control:
        assert control.hello().arena == engine.name


def test_hello_tells_where_everything_is(control: ControlClient, engine: nova_mp.Engine) -> None:
    hello = control.hello()
    assert hello.arena == engine.name
    assert hello.workers == engine.worker_addresses
    assert hello.cpus == 2
    assert hello.package_version == nova_mp.__version__


def test_snapshot_errors_come_back_as_they_are(control: ControlClient) -> None:
    epoch_id = control.snapshot_create("named")
    with pytest.raises(FileExistsError):
        control.snapshot_create("named")
    control.snapshot_delete(epoch_id)
    with pytest.raises(nova_mp.NoSuchSnapshot):
        control.snapshot_delete(epoch_id)
    control.snapshot_wait(10.0)
    assert control.status().reclaim_left == 0


def test_an_open_snapshot_is_not_deleted(engine: nova_mp.Engine) -> None:
    with nova_mp.attach(engine.name) as fs:
        fs.write_bytes("/open", b"then")
        snapshot = fs.snapshots.create()
        with fs.snapshots.open(snapshot.epoch_id) as view:
            fs.write_bytes("/open", b"now")
            with pytest.raises(OSError, match="open") as caught:
                fs.snapshots.delete(snapshot.epoch_id)
            assert caught.value.errno == errno.EBUSY
            assert view.read_bytes("/open") == b"then"
        fs.snapshots.delete(snapshot.epoch_id)


@pytest.mark.parametrize("way", ["attach", "connect"])
def test_a_deferred_deletion_happens_at_the_last_close(engine: nova_mp.Engine, way: str) -> None:
    with attached(engine.name) as other, getattr(nova_mp, way)(engine.name) as fs:
        fs.write_bytes("/deferred", b"then")
        snapshot = fs.snapshots.create("deferred")
        other.say("setattr(sys, 'view', fs.snapshots.open('deferred'))")
        assert other.hear() == "None"
        view = fs.snapshots.open(snapshot)
        assert fs.snapshots.get(snapshot).opens == 2
        fs.unlink("/deferred")
        assert fs.snapshots.delete("deferred", defer=True) is False
        shown = fs.snapshots.get(snapshot)
        assert shown.deferred
        assert shown.exclusive_bytes == fs.snapshots.frees([snapshot, "deferred"]) > 0
        with pytest.raises(nova_mp.NoSuchSnapshot, match="nobody has it open"):
            fs.snapshots.open(snapshot)
        assert view.read_bytes("/deferred") == b"then"
        view.close()
        assert snapshot.epoch_id in snapshots(fs), "the other process still has it open"
        # The last who has it open dies, instead of closing it.
        kill(other.pid)
        eventually("it is deleted", lambda: snapshot.epoch_id not in snapshots(fs), 5.0)
        with pytest.raises(nova_mp.NoSuchSnapshot):
            fs.snapshots.frees([snapshot])
        fs.snapshots.wait(10.0)


def test_a_new_coordinator_finds_deferred_deletions(engine: nova_mp.Engine) -> None:
    with nova_mp.attach(engine.name) as fs:
        snapshot = fs.snapshots.create()
        with fs.snapshots.open(snapshot):
            assert fs.snapshots.delete(snapshot, defer=True) is False
            before = processes(engine.name)["coordinator"]
            kill(before)
            eventually("it is back", lambda: restarted(engine.name, "coordinator", before))
            assert snapshot.epoch_id in snapshots(fs)
        eventually("it is deleted", lambda: snapshot.epoch_id not in snapshots(fs), 5.0)


def test_freeze_names_who_has_not_stopped(engine: nova_mp.Engine, control: ControlClient) -> None:
    assert nova_mp.status(engine.name)["not_stopped"] == []
    with attached(engine.name) as other:
        other.say(BUSY)
        assert other.hear() == "None"
        for _ in range(1000):
            # Stopped in the middle of an operation, sooner or later.
            kill(other.pid, signal.SIGSTOP)
            eventually("it has stopped", lambda: psutil.Process(other.pid).status() == "stopped")
            row = next(s for s in control.status().slots if s["pid"] == other.pid and s["thread"])
            if row["epoch_id"]:
                break
            kill(other.pid, signal.SIGCONT)
        assert row["epoch_id"], "never met in an operation"
        with ThreadPoolExecutor(1) as pool:
            freezing = pool.submit(ControlClient(engine.name).freeze, 1.0)
            eventually("it is freezing", lambda: control.status().state == "freezing")
            found = nova_mp.status(engine.name)
            assert [(s["pid"], s["op"]) for s in found["not_stopped"]] == [(other.pid, row["op"])]
            with pytest.raises(nova_mp.Timeout, match=str(other.pid)):
                freezing.result()
        assert control.status().state == "serving", "a freeze that fails leaves nothing frozen"


def test_freeze_holds_operations_back(control: ControlClient, engine: nova_mp.Engine) -> None:
    with attached(engine.name) as other:
        control.freeze(5.0)
        assert control.status().state == "frozen"
        other.say("fs.write_bytes('/cold', b'x')")
        with pytest.raises(nova_mp.Frozen):
            control.freeze(5.0)
        with nova_mp.attach(engine.name) as fs:
            assert not fs.exists("/cold")
            control.unfreeze()
            assert other.hear() == "1"
            assert fs.read_bytes("/cold") == b"x"
        other.end()
    with pytest.raises(OSError, match="Invalid argument"):
        control.unfreeze()


def thawed(control: ControlClient) -> bool:
    return control.status().state == "serving"


def test_a_freeze_ends_with_its_lease(control: ControlClient) -> None:
    control.freeze(5.0, lease=0.3)
    eventually("it thaws", lambda: thawed(control), 3.0)


def test_a_freeze_ends_with_its_holder(control: ControlClient, engine: nova_mp.Engine) -> None:
    with attached(engine.name) as other:
        other.say("fs.freeze(60.0)")
        assert other.hear() == "None"
        assert control.status().freeze_holder == other.pid
        kill(other.pid)
        eventually("it thaws", lambda: thawed(control), 3.0)


def test_a_freeze_ends_with_its_coordinator(control: ControlClient, engine: nova_mp.Engine) -> None:
    control.freeze(60.0)
    before = processes(engine.name)["coordinator"]
    kill(before)
    eventually("it comes back", lambda: restarted(engine.name, "coordinator", before))
    eventually("it thaws", lambda: thawed(control), 3.0)


def test_a_snapshot_that_waits_for_a_thaw_gives_up_in_time(control: ControlClient) -> None:
    control.freeze(20.0)
    count = len(control.status().slots)
    with pytest.raises(nova_mp.Timeout):
        control.snapshot_create("late", timeout=0.3)
    control.unfreeze()
    with pytest.raises(nova_mp.NoSuchSnapshot):
        control.snapshot_delete(10**9)
    assert len(control.status().slots) == count


def test_a_dead_client_gives_back_its_slot(engine: nova_mp.Engine, control: ControlClient) -> None:
    def pids() -> set[int]:
        return {slot["pid"] for slot in control.status().slots}

    with attached(engine.name) as other:
        assert other.pid in pids()
        kill(other.pid)
        other.popen.wait()
        eventually("its slot is free", lambda: other.pid not in pids(), 3.0)


def test_events_are_published(engine: nova_mp.Engine, control: ControlClient) -> None:
    with closing(zmq.Context.instance().socket(zmq.SUB)) as subscriber:
        subscriber.setsockopt(zmq.LINGER, 0)
        subscriber.setsockopt(zmq.SUBSCRIBE, b"")
        subscriber.connect(config.endpoints(engine.name, engine.cpus).events)

        def event() -> Any:
            assert subscriber.poll(5000), "no event"
            return codec.decode(subscriber.recv_multipart()[1:]).message

        # A new subscriber hears the current state, so it misses nothing.
        current = event()
        assert isinstance(current, m.EpochEvent)
        epoch_id = control.snapshot_create("heard")
        assert epoch_id == current.epoch_id
        assert event() == m.SnapshotCreated(epoch_id, "heard")
        assert event().epoch_id == epoch_id + 1
        control.snapshot_delete(epoch_id)
        assert event() == m.SnapshotDeleted(epoch_id, current.deletions + 1)


def cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as stream:
        fields = stream.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_an_idle_engine_is_idle(engine: nova_mp.Engine, control: ControlClient) -> None:
    control.snapshot_wait(10.0)
    pids = processes(engine.name)
    time.sleep(0.5)
    before = {title: cpu_seconds(pid) for title, pid in pids.items()}
    time.sleep(2.0)
    used = {title: cpu_seconds(pid) - before[title] for title, pid in pids.items()}
    assert sum(used.values()) <= 0.1, f"CPU seconds in 2 s: {used}"


def test_processes_are_named(engine: nova_mp.Engine) -> None:
    names = {}
    for title, pid in processes(engine.name).items():
        with open(f"/proc/{pid}/comm") as stream:
            names[title] = stream.read().strip()
    assert names == {
        "supervisor": "nova-supervisor",
        "coordinator": "nova-coord",
        "worker-0": "nova-worker-0",
        "worker-1": "nova-worker-1",
        "cleaner": "nova-cleaner",
    }


def test_workers_have_cores_of_their_own_where_there_are_enough(arena_prefix: str) -> None:
    mine = os.sched_getaffinity(0)
    for cpus in (1, len(mine)):
        name = f"{arena_prefix}pinned{cpus}"
        nova_mp.mkfs(name, "32MiB", cpus)
        try:
            with nova_mp.start(name) as engine:
                pids = [row["pid"] for row in engine.status()["processes"]
                        if row["title"].startswith("worker")]
                places = [os.sched_getaffinity(pid) for pid in pids]
        finally:
            nova_mp.destroy(name, force=True)
        assert len(places) == cpus
        if len(mine) >= 2 * cpus:
            assert all(len(place) == 1 and place < mine for place in places)
            assert len(set.union(*places)) == cpus, "no two on one core"
        else:
            assert places == [mine] * cpus


def test_the_log_is_one_object_a_line(engine: nova_mp.Engine) -> None:
    lines = (config.runtime_path(engine.name) / "engine.log").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert all({"time", "level", "process", "pid", "event"} <= entry.keys() for entry in entries)
    assert {"mounted", "ready", "serving"} <= {entry["event"] for entry in entries}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", entries[0]["time"])


def test_whoever_waits_for_a_dead_engine_hears_of_it_at_once(arena_prefix: str) -> None:
    name = f"{arena_prefix}dies{next(_numbers)}"
    nova_mp.mkfs(name, "32MiB", cpus=1)
    nova_mp.start(name)
    try:
        with ControlClient(name, timeout=60.0) as control:
            kill(processes(name)["coordinator"], signal.SIGSTOP)
            timer = threading.Timer(0.5, nova_mp.crash, [name])
            timer.start()
            begin = time.monotonic()
            with pytest.raises(nova_mp.EngineNotRunning):
                control.hello()
            assert time.monotonic() - begin < 10.0
            timer.join()
    finally:
        nova_mp.destroy(name, force=True)


def test_the_log_has_levels_and_a_limit(
    engine: nova_mp.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config.runtime_path(engine.name) / "engine.log"

    def lines(event: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in path.read_text().splitlines()]
        return [line for line in found if line["event"] == event]

    monkeypatch.setattr(log, "LINES_MAX", 3)
    monkeypatch.setattr(log, "LINES_WINDOW_S", 1e9)
    many = log.EngineLog(engine.name, "test")
    many.debug("unimportant")
    for number in range(10):
        many.info("many", number=number)
    many._window_ends = 0.0
    many.error("last")
    many.close()
    assert not lines("unimportant")
    assert [line["number"] for line in lines("many")] == [0, 1, 2]
    assert lines("last")[0]["lines_left_out"] == 7
    monkeypatch.setenv("NOVA_MP_LOG_LEVEL", "debug")
    talkative = log.EngineLog(engine.name, "test")
    talkative.debug("unimportant")
    talkative.close()
    assert len(lines("unimportant")) == 1

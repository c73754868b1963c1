"""Processes that are killed or stopped: who waits hears why, and nothing is done twice."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest
from t4_cluster.cluster_help import eventually, kill, processes
from t4_cluster.test_cli_engine import COMMAND, ok, on_a_terminal, run
from t4_cluster.test_engine_service import restarted

import nova_mp
from nova_mp.client import connection
from nova_mp.client.control import ControlClient

KILLS = 3


@pytest.fixture(scope="module")
def engine(arena_prefix: str) -> Iterator[nova_mp.Engine]:
    """An engine of two CPUs, whose processes come back after each test."""
    name = f"{arena_prefix}live"
    nova_mp.mkfs(name, "64MiB", cpus=2)
    yield nova_mp.start(name)
    nova_mp.stop(name)
    nova_mp.destroy(name)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """SIGSTOP a process for a block."""
    kill(pid, signal.SIGSTOP)
    try:
        eventually("it stops", lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
        yield
    finally:
        kill(pid, signal.SIGCONT)


def replace(name: str, title: str) -> None:
    """Kill a process of the engine and wait for the one that takes its place."""
    before = processes(name)[title]
    kill(before)
    eventually(f"{title} comes back", lambda: restarted(name, title, before))


def test_a_stopped_worker(engine: nova_mp.Engine) -> None:
    pid = processes(engine.name)["worker-0"]
    with (
        nova_mp.connect(engine.name, cpu=0, timeout=1.5) as fs,
        nova_mp.connect(engine.name, cpu=1) as other,
        fs.open("/stopped", "ab") as file,
    ):
        file.write(b"before ")
        with stopped(pid):
            with pytest.raises(nova_mp.Timeout, match="nova-mp status"):
                file.write(b"during ")
            assert nova_mp.status(engine.name)["suspended"] == [{"title": "worker-0", "pid": pid}]
            assert f"kill -CONT {pid}" in ok("status", engine.name)
            # Only those who need it wait for it.
            other.write_bytes("/other", b"served")
            assert other.read_bytes("/other") == b"served"
        assert nova_mp.status(engine.name)["suspended"] == []
        fs._connection.timeout = 30.0
        file.write(b"after")
        # What timed out may have been done, but not more than once.
        assert fs.read_bytes("/stopped") in (b"before during after", b"before after")


def test_a_stopped_coordinator(engine: nova_mp.Engine) -> None:
    pid = processes(engine.name)["coordinator"]
    with nova_mp.connect(engine.name, cpu=0) as fs, stopped(pid):
        with pytest.raises(nova_mp.Timeout, match="nova-mp status"):
            ControlClient(engine.name, timeout=0.5).hello()
        found = nova_mp.status(engine.name)
        assert found["state"] == "hanging"
        assert found["suspended"] == [{"title": "coordinator", "pid": pid}]
        assert {row["role"] for row in found["slots"]} >= {"worker", "coordinator", "cleaner"}
        assert "hanging" in ok("status", engine.name)
        # File operations do not need it.
        fs.write_bytes("/without", b"it")
        assert fs.read_bytes("/without") == b"it"
    assert nova_mp.status(engine.name)["state"] == "running"


def test_appends_while_workers_die(engine: nova_mp.Engine) -> None:
    """What returned is there once; what failed is there once, or not."""
    done = threading.Event()
    returned: list[int] = []
    unknown: list[int] = []

    def append() -> None:
        with nova_mp.connect(engine.name, cpu=0) as fs:
            number, file = 0, None
            while not done.is_set():
                number += 1
                try:
                    file = file or fs.open("/appended", "ab")
                    file.write(b"%8d" % number)
                    returned.append(number)
                except OSError as error:
                    assert isinstance(error, nova_mp.EngineNotRunning) or (
                        error.errno == errno.ESTALE
                    )
                    unknown.append(number)
                    file = None

    thread = threading.Thread(target=append)
    thread.start()
    for _ in range(KILLS):
        more = len(returned) + 50
        eventually("it goes on", lambda limit=more: len(returned) > limit)
        replace(engine.name, "worker-0")
    done.set()
    thread.join(60)
    assert not thread.is_alive()
    with nova_mp.attach(engine.name) as fs:
        data = fs.read_bytes("/appended")
    found = [int(data[at : at + 8]) for at in range(0, len(data), 8)]
    assert found == sorted(set(found)), "something was done twice"
    assert set(returned) <= set(found) <= set(returned) | set(unknown)
    assert len(unknown) <= 2 * KILLS


def test_snapshots_while_coordinators_die(engine: nova_mp.Engine) -> None:
    done = threading.Event()
    returned: list[int] = []
    unknown: list[BaseException] = []

    def take() -> None:
        with ControlClient(engine.name) as control:
            while not done.is_set():
                try:
                    returned.append(control.snapshot_create())
                except nova_mp.EngineNotRunning as error:
                    unknown.append(error)

    with ControlClient(engine.name) as control, nova_mp.attach(engine.name) as fs:
        before = {snapshot.epoch_id for snapshot in fs.snapshots.list()}
        thread = threading.Thread(target=take)
        thread.start()
        for _ in range(KILLS):
            more = len(returned) + 5
            eventually("it goes on", lambda limit=more: len(returned) > limit)
            replace(engine.name, "coordinator")
        done.set()
        thread.join(60)
        assert not thread.is_alive()
        found = {snapshot.epoch_id for snapshot in fs.snapshots.list()} - before
        assert len(returned) == len(set(returned))
        assert set(returned) <= found
        # A request of which nobody knows what became of it took one snapshot at most.
        assert len(found) - len(returned) <= len(unknown) <= KILLS
        for epoch_id in found:
            control.snapshot_delete(epoch_id)


def test_an_idle_client_keeps_its_files_open(
    engine: nova_mp.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another machine: its process is not watched there, and its pings keep the session."""
    monkeypatch.setattr("nova_mp.protocol.identity.host", lambda: "another machine")
    monkeypatch.setattr(connection, "KEEP_ALIVE_S", 0.1)
    with nova_mp.connect(engine.name, cpu=0) as fs, fs.open("/idle", "wb") as file:
        sent = [channel._stamp for channel in tuple(fs._connection._idle)]
        eventually(
            "it pings",
            lambda: any(c._stamp > max(sent) + 2 for c in tuple(fs._connection._idle)),
        )
        file.write(b"still open")
        assert fs.read_bytes("/idle") == b"still open"


@pytest.fixture
def watching(engine: nova_mp.Engine) -> Iterator[Callable[..., Any]]:
    """Starts `status --watch`; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        command = [*COMMAND, "status", engine.name, "--watch", "0.1", *words]
        started.append(
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_watching_as_json(engine: nova_mp.Engine, watching: Callable[..., Any]) -> None:
    process = watching("--json")
    with nova_mp.attach(engine.name, cpu=1, title="busy") as fs:
        for _ in range(2):
            seen = len("x")
            for number in range(200):
                fs.write_bytes("/watched", b"x" * 5000)
                seen += len(fs.read_bytes("/watched")) + number
            look = json.loads(process.stdout.readline())
            assert (look["output_version"], look["name"]) == (1, engine.name)
            assert [row["cpu"] for row in look["cpus"]] == [0, 1]
        row = next(row for row in look["processes"] if row["title"] == "busy")
        assert (row["pid"], row["state"]) == (os.getpid(), "attached")
        assert row["operations_per_s"] > 0
        assert row["written_bytes_per_s"] > 0
        assert {"worker-0", "worker-1", "coordinator", "cleaner"} <= {
            row["title"] for row in look["processes"]
        }
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert all(json.loads(line)["command"] == "status" for line in out.splitlines())


def test_watching_as_text(engine: nova_mp.Engine, watching: Callable[..., Any]) -> None:
    process = watching()
    heads = [process.stdout.readline() for _ in range(3)]
    assert f"{engine.name} is running" in heads[0]
    assert "OPS/S" in heads[2]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert run("status", "--watch", "1").returncode == 2
    assert run("status", f"{engine.name}-none", "--watch", "1").returncode == 1


def test_watching_on_a_terminal(engine: nova_mp.Engine) -> None:
    code, drawn = on_a_terminal("status", engine.name, "--watch", "0.1", interrupt_at="OPS/S")
    assert code == 0
    assert "OPS/S" in drawn
    assert "\x1b[" in drawn
    assert "Traceback" not in drawn

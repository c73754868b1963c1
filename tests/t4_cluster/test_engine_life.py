"""Engines come up, are alone, end in an orderly way or not, and come up again."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import tempfile
import threading
from collections.abc import Iterator

import pytest
from t4_cluster.cluster_help import (
    Other,
    assert_nothing_left,
    attached,
    eventually,
    kill,
    processes,
)

import nova_mp
from nova_mp import config
from nova_mp.client.control import ControlClient
from nova_mp.core import segment
from nova_mp.protocol import identity

_numbers = itertools.count()


@pytest.fixture
def name(arena_prefix: str) -> Iterator[str]:
    """A new arena of two CPUs; its engine, if a test leaves one, is ended."""
    name = f"{arena_prefix}life{next(_numbers)}"
    nova_mp.mkfs(name, "32MiB", cpus=2)
    yield name
    if segment.pmem_exists(name):
        nova_mp.destroy(name, force=True)


def test_start_and_stop_leave_a_clean_arena_and_nothing_else(name: str) -> None:
    engine = nova_mp.start(name)
    pids = processes(name)
    assert sorted(pids) == ["cleaner", "coordinator", "supervisor", "worker-0", "worker-1"]
    assert engine.status()["state"] == "running"
    engine.stop()
    assert_nothing_left(name, pids)
    assert nova_mp.status(name)["state"] == "stopped"
    engine.stop()


def test_an_engine_is_a_context_manager(name: str) -> None:
    with nova_mp.start(name) as engine, nova_mp.attach(engine.name) as fs:
        fs.write_bytes("/a", b"kept")
    assert nova_mp.status(name)["state"] == "stopped"
    with nova_mp.start(name), nova_mp.attach(name) as fs:
        assert fs.read_bytes("/a") == b"kept"


def test_an_arena_has_one_engine(name: str) -> None:
    with nova_mp.start(name):
        pids = processes(name)
        with pytest.raises(nova_mp.EngineRunning):
            nova_mp.start(name)
        with pytest.raises(nova_mp.EngineRunning):
            nova_mp.destroy(name)
        assert processes(name) == pids


def test_an_engine_with_another_runtime_folder_is_seen(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a login with XDG_RUNTIME_DIR, and of cron without."""
    with nova_mp.start(name):
        with nova_mp.attach(name) as fs:
            fs.write_bytes("/a", b"kept")
        pids = processes(name)
        with monkeypatch.context() as patch, tempfile.TemporaryDirectory(prefix="nv") as other:
            patch.setenv("NOVA_MP_RUNTIME_DIR", other)
            assert nova_mp.status(name)["state"] == "unreachable"
            for refused in (nova_mp.start, nova_mp.destroy, nova_mp.crash):
                with pytest.raises(nova_mp.EngineRunning, match="another runtime folder") as found:
                    refused(name)
                assert "NOVA_MP_RUNTIME_DIR" in found.value.remedy
            with pytest.raises(nova_mp.EngineRunning):
                nova_mp.destroy(name, force=True)
            for unreached in (nova_mp.stop, nova_mp.connect, nova_mp.attach):
                with pytest.raises(nova_mp.EngineNotRunning, match="is not in"):
                    unreached(name)
        assert processes(name) == pids
        with nova_mp.attach(name) as fs:
            assert fs.read_bytes("/a") == b"kept"


def test_of_starts_at_the_same_time_one_wins(name: str) -> None:
    outcomes: list[object] = []

    def start() -> None:
        try:
            outcomes.append(nova_mp.start(name))
        except nova_mp.EngineRunning as error:
            outcomes.append(error)

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engines = [outcome for outcome in outcomes if isinstance(outcome, nova_mp.Engine)]
    assert len(outcomes) == 3
    assert len(engines) == 1
    engines[0].stop()


def test_without_an_engine_everything_says_so(name: str, arena_prefix: str) -> None:
    for call in (nova_mp.attach, nova_mp.connect, nova_mp.stop, nova_mp.Engine, ControlClient):
        with pytest.raises(nova_mp.EngineNotRunning, match="nova-mp start"):
            call(name)
        with pytest.raises(nova_mp.ArenaNotFound):
            call(f"{arena_prefix}none")
    with pytest.raises(nova_mp.ArenaNotFound):
        nova_mp.start(f"{arena_prefix}none")
    with pytest.raises(nova_mp.ArenaExists):
        nova_mp.mkfs(name, "32MiB")
    with pytest.raises(ValueError, match="bad medium"):
        nova_mp.start(name, media="tape")


def test_a_start_that_fails_tells_why_and_leaves_nothing(name: str) -> None:
    with segment.attach_pmem(name) as pmem:
        pmem.buf[:8192] = bytes(8192)
    with pytest.raises(nova_mp.CorruptArena):
        nova_mp.start(name)
    assert processes(name) == {}
    assert not segment.dram_exists(name)
    with pytest.raises(nova_mp.CorruptArena):
        nova_mp.start(name)


def test_stop_is_refused_while_somebody_is_attached(name: str) -> None:
    engine = nova_mp.start(name)
    with attached(name) as other:
        with pytest.raises(nova_mp.ArenaBusy, match=rf"{other.pid} \(other\)") as caught:
            engine.stop()
        assert caught.value.errno == errno.EBUSY
        assert engine.status()["state"] == "running"
        other.end()
    engine.stop()
    assert nova_mp.status(name)["state"] == "stopped"


def test_a_forced_stop_leaves_the_attached_what_they_have(name: str) -> None:
    engine = nova_mp.start(name)
    pids = processes(name)
    with attached(name) as other:
        other.say("fs.write_bytes('/a', b'before')")
        other.hear()
        engine.stop(force=True)
        assert not any(identity.start_ticks(pid) for pid in pids.values())
        assert nova_mp.status(name)["state"] == "crashed"
        with pytest.raises(nova_mp.ArenaBusy, match=str(other.pid)):
            nova_mp.destroy(name)
        # Its file system goes on; the next engine takes over what it works on.
        other.say("fs.write_bytes('/b', b'between')")
        other.hear()
        nova_mp.start(name)
        with nova_mp.attach(name) as fs:
            assert fs.read_bytes("/a") + fs.read_bytes("/b") == b"beforebetween"
            fs.write_bytes("/c", b"after")
        other.say("fs.read_bytes('/c')")
        assert other.hear() == "b'after'"
        other.end()
    nova_mp.stop(name)
    assert nova_mp.status(name)["state"] == "stopped"


def test_volatile_state_is_adopted_while_somebody_is_attached(name: str) -> None:
    nova_mp.start(name)
    with attached(name) as other:
        before = segment.dram_path(name).stat().st_ino
        for pid in processes(name).values():
            kill(pid)
        other.say("fs.write_bytes('/a', b'alone')")
        other.hear()
        with nova_mp.start(name), nova_mp.attach(name) as fs:
            assert segment.dram_path(name).stat().st_ino == before
            assert fs.read_bytes("/a") == b"alone"
            other.end()


def test_volatile_state_that_nobody_uses_is_dropped(name: str) -> None:
    nova_mp.start(name)
    with nova_mp.attach(name) as fs:
        fs.write_bytes("/a", b"logged")
    before = segment.dram_path(name).stat().st_ino
    for pid in processes(name).values():
        kill(pid)
    assert nova_mp.status(name)["state"] == "crashed"
    with nova_mp.start(name), nova_mp.attach(name) as fs:
        assert segment.dram_path(name).stat().st_ino != before
        assert fs.read_bytes("/a") == b"logged"


def test_children_leave_when_their_supervisor_is_killed(name: str) -> None:
    nova_mp.start(name)
    pids = processes(name)
    kill(pids.pop("supervisor"))
    eventually(
        "the children leave", lambda: not any(identity.start_ticks(p) for p in pids.values())
    )
    with nova_mp.start(name) as engine:
        assert engine.status()["state"] == "running"


def test_a_crash_is_a_power_failure(name: str) -> None:
    nova_mp.start(name)
    pids = processes(name)
    with attached(name) as other:
        other.say("fs.write_bytes('/a', b'x' * 100_000)")
        other.hear()
        nova_mp.crash(name)
        assert other.popen.wait(5) == -signal.SIGKILL
    assert_nothing_left(name, pids)
    assert nova_mp.status(name)["state"] == "crashed"
    with nova_mp.start(name) as engine, nova_mp.attach(name) as fs:
        assert fs.read_bytes("/a") == b"x" * 100_000
        assert engine.status()["stats"]["recovery"]["clean"] is False
    nova_mp.crash(name)
    assert nova_mp.status(name)["state"] == "stopped", "a stopped arena has nothing to lose"


def test_a_crash_spares_its_caller(name: str) -> None:
    nova_mp.start(name)
    fs = nova_mp.attach(name)
    fs.write_bytes("/a", b"mine")
    nova_mp.crash(name)
    fs.close()
    with nova_mp.start(name), nova_mp.attach(name) as again:
        assert again.read_bytes("/a") == b"mine"


def test_destroy_removes_everything(name: str) -> None:
    nova_mp.start(name).stop()
    nova_mp.destroy(name)
    assert not segment.pmem_exists(name)
    assert not config.runtime_path(name).exists()
    with pytest.raises(nova_mp.ArenaNotFound):
        nova_mp.destroy(name)


def test_an_arena_in_a_file_survives_everything(arena_prefix: str, tmp_path: object) -> None:
    name, file = f"{arena_prefix}filed", f"{tmp_path}/arena"
    nova_mp.mkfs(name, "32MiB", cpus=1, backing=f"file:{file}")
    with nova_mp.start(name), nova_mp.attach(name) as fs:
        fs.write_bytes("/a", b"in a file")
    assert nova_mp.status(name)["backing"] == f"file:{file}"
    with nova_mp.start(name), nova_mp.attach(name) as fs:
        assert fs.read_bytes("/a") == b"in a file"
    nova_mp.destroy(name)
    assert not os.path.exists(file)


FOREGROUND = """
import sys
from nova_mp.cluster.launcher import run_foreground
status = run_foreground(sys.argv[1], on_ready=lambda engine: print("ready", flush=True))
print("status", status, flush=True)
"""


def test_interrupting_a_foreground_engine_leaves_nothing(name: str) -> None:
    with Other(FOREGROUND, name) as other:
        assert other.hear() == "ready"
        pids = processes(name)
        kill(other.pid, signal.SIGINT)
        assert other.hear() == "status 0"
        assert other.end() == 0
    assert_nothing_left(name, pids)
    assert nova_mp.status(name)["state"] == "stopped"


def test_a_foreground_engine_ends_with_whoever_started_it(name: str) -> None:
    with Other(FOREGROUND, name) as other:
        assert other.hear() == "ready"
        pids = processes(name)
        kill(other.pid)
    eventually("the engine stops", lambda: not any(identity.start_ticks(p) for p in pids.values()))
    assert_nothing_left(name, pids)
    assert nova_mp.status(name)["state"] == "stopped"


def test_sigterm_stops_an_engine_in_order(name: str) -> None:
    nova_mp.start(name)
    pids = processes(name)
    kill(pids["supervisor"], signal.SIGTERM)
    eventually("the engine stops", lambda: not identity.start_ticks(pids["supervisor"]))
    assert_nothing_left(name, pids)
    assert nova_mp.status(name)["state"] == "stopped"

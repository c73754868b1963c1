"""Jobs and the demo on real arenas, small: that they run, verify, and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from nova_mp.bench.job import JobError
from nova_mp.bench.micro import targets
from nova_mp.bench.run import run_job

LOAD = """
[arena]
size = "64MiB"
cpus = 2
[snapshots]
every = "20ms"
keep = 3
[[clients]]
name = "mixed"
count = 2
mode = "attached"
mix = { read = 60, write = 30, stat = 5, create = 4, rename = 1 }
files = 2
file_size = "256KiB"
[[clients]]
name = "remote"
count = 1
mode = "remote"
mix = { read = 50, write = 50 }
file_size = "256KiB"
rate = 200
[[peers]]
kind = "tmpfs"
[run]
warmup = "50ms"
duration = "300ms"
repeats = 2
verify = true
"""

MICRO = """
[arena]
size = "64MiB"
[run]
repeats = 7
[[cases]]
name = "write"
operation = "pwrite"
working_set = "256KiB"
operations = 256
target = 0.001
[[cases]]
name = "read"
operation = "preadinto"
working_set = "256KiB"
operations = 256
[[cases]]
name = "create"
operation = "create"
operations = 64
[[cases]]
name = "stat"
operation = "stat"
operations = 64
target = 1e9
[scaling]
operations = 2000
[memory]
size = "16MiB"
large_share = 1.0
[recovery]
size = "64MiB"
files = 2000
target = 1
"""


CROWD = """
[arena]
size = "64MiB"
cpus = 4
[footprint]
idle = "100ms"
start_s = 1e9
idle_share = 1e-9
[crowd]
processes = [1, 3]
window = "50ms"
repeats = 3
working_set = "64KiB"
target = 1e-9
[[clients]]
name = "remote"
count = 4
mode = "remote"
mix = { read = 50, write = 50 }
file_size = "64KiB"
[run]
warmup = "10ms"
duration = "100ms"
repeats = 1
verify = true
"""


def segments() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith("nova_mp")}


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Any:
    before = segments()
    yield
    mine = f"-{os.getpid()}."
    assert not {name for name in segments() - before if mine in name or f"peer{mine[:-1]}-" in name}


def test_a_verified_load_with_snapshots_and_a_peer(tmp_path: Path) -> None:
    job = tmp_path / "load.toml"
    job.write_text(LOAD, encoding="utf-8")
    seen: list[str] = []
    result = run_job(
        job, out=tmp_path / "r.json", html=tmp_path / "r.html",
        progress=lambda label, done, total: seen.append(label),
    )
    assert json.loads((tmp_path / "r.json").read_text()) == json.loads(json.dumps(result))
    assert "</html>" in (tmp_path / "r.html").read_text()
    assert [group["name"] for group in result["groups"]] == ["mixed", "remote"]
    assert result["total"]["operations"] == sum(g["operations"] for g in result["groups"])
    assert result["groups"][1]["operations"] == 2 * 60
    assert result["snapshots"]["created"] > 0
    assert result["snapshots"]["kept"] == 3
    assert result["verify"]["snapshots"] == 3
    assert result["verify"]["errors"] == 0
    assert result["peers"][0]["file_system"] == "tmpfs"
    assert result["peers"][0]["ratio"] > 0
    assert seen[-1] == "done"


def test_a_micro_benchmark_with_all_its_parts(tmp_path: Path) -> None:
    job = tmp_path / "micro.toml"
    job.write_text(MICRO, encoding="utf-8")
    result = run_job(job, out=tmp_path / "r.json", html=tmp_path / "r.html")
    assert [case["met"] for case in result["cases"]] == [True, None, None, False]
    assert result["scaling"]["nova_mp"]["one_per_second"] > 0
    assert result["memory"]["small_files"]["files"] > 500
    assert result["memory"]["large_file"]["dram_share"] < 1
    assert len(result["recovery"]["runs"]) == 3
    assert result["targets"]["met"] == 3
    assert result["targets"]["missed"] == 1
    assert len(targets(result)) == 4


def test_many_workers_and_many_processes(tmp_path: Path) -> None:
    job = tmp_path / "crowd.toml"
    job.write_text(CROWD, encoding="utf-8")
    result = run_job(job, out=tmp_path / "r.json", html=tmp_path / "r.html")
    footprint, crowd = result["footprint"], result["crowd"]
    assert footprint["workers"] == 4
    assert 0 < footprint["worker_bytes_median"] <= footprint["worker_bytes"]
    assert [row["processes"] for row in crowd["nova_mp"]] == [1, 3]
    assert all(rate > 0 for row in crowd["nova_mp"] + crowd["peer"] for rate in row["runs"])
    wanted = ["start, seconds", "idle engine, cores", "3 processes over 1"]
    assert [row["name"] for row in result["targets"]] == wanted
    assert result["load"]["verify"]["errors"] == 0
    assert "</html>" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize("table", ["[crowd]\nprocesses = [3]", "[footprint]\nidel = '1s'"])
def test_a_crowd_job_that_does_not_fit_says_where(table: str, tmp_path: Path) -> None:
    job = tmp_path / "crowd.toml"
    job.write_text(table, encoding="utf-8")
    with pytest.raises(JobError, match=r"crowd\.processes|footprint has unknown keys: idel"):
        run_job(job)


def demo_command(*more: str) -> list[str]:
    tree = str(Path(json.__file__).parent.parent / "email")
    return [sys.executable, "-m", "nova_mp.bench.demo", "--json", "--clients", "2", "--cpus", "2",
            "--size", "256MiB", "--tree", tree, *more]


def test_the_demo(tmp_path: Path) -> None:
    done = subprocess.run(
        demo_command("--seconds", "1"), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    result = json.loads(done.stdout)
    assert result["passed"]
    assert len(result["checks"]) >= 4
    assert result["nova_mp"]["snapshots"]["taken"] > 0
    assert result["tmpfs"]["mutate"]["operations"] > 0


def clients_of(process: psutil.Process) -> list[psutil.Process]:
    found = []
    for one in process.children():
        # One that has just ended may be gone, or a zombie, by the time it is looked at.
        with suppress(psutil.Error):
            if "nova_mp.bench.process" in one.cmdline():
                found.append(one)
    return found


@pytest.mark.parametrize("what", ["interrupt", "kill a client"])
def test_a_demo_that_is_stopped_leaves_nothing(what: str) -> None:
    process = subprocess.Popen(
        demo_command("--seconds", "3"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    name = f"nova_mp.demo-{process.pid}.pmem"
    parent = psutil.Process(process.pid)
    clients: list[psutil.Process] = []
    deadline = time.monotonic() + 90
    # First the clients work on tmpfs; those that come after the arena was made work on it.
    while not (Path("/dev/shm", name).exists() and len(clients) == 2):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
        clients = clients_of(parent)
    if what == "interrupt":
        process.send_signal(signal.SIGINT)
    else:
        clients[0].kill()
    out, error = process.communicate(timeout=60)
    assert process.returncode == (1 if what == "kill a client" else 130), out + error
    assert ("died" if what == "kill a client" else "interrupted") in error
    assert not [name for name in segments() if f"-{process.pid}" in name]
    # One that was only just being started ends by itself when it finds nobody at its pipe.
    assert not psutil.wait_procs(clients, 30)[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda it: it.name)
def test_a_benchmark_that_is_stopped_leaves_nothing(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "nova_mp.cli.main", "bench", "run", "quick.toml"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    parent = psutil.Process(process.pid)
    clients: list[psutil.Process] = []
    deadline = time.monotonic() + 90
    while not clients:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
        clients = clients_of(parent)
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else 143), out + error
    assert "Traceback" not in error
    assert not [name for name in segments() if f"-{process.pid}" in name]
    # One that was only just being started ends by itself when it finds nobody at its pipe.
    assert not psutil.wait_procs(clients, 30)[1]

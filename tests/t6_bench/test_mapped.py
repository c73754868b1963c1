"""The mapped-file benchmark, shrunk: that all its parts run, and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nova_mp.bench import mapped
from nova_mp.bench.mapview import sheets
from nova_mp.bench.run import run_job
from nova_mp.errors import NovaError

SMALL = """
[mapped_bench]
large = "8MiB"
small = "2MiB"
repeats = 1
first_stores = 64
snapshots = 5
every = "10ms"
[targets]
freeze_ms_per_gib = 1e9
first_store_us = 1e-9
rewrite = 1e-9
steady = 1e9
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "mapped.toml"
    path.write_text(SMALL)
    return path


def test_a_small_run(job: Path, tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    before = set(os.listdir("/dev/shm"))
    result = run_job(job, out=tmp_path / "out.json", html=tmp_path / "out.html")
    mine = {name for name in os.listdir("/dev/shm") if f"-{os.getpid()}" in name}
    assert mine <= before
    rows = {row["kind"]: row for row in result["rows"]}
    assert list(rows) == ["nova_mp", *mapped.KINDS]
    for kind in ("nova_mp", "signal", "fork", "copy"):
        assert rows[kind]["freeze"]["p50"] > 0
        assert rows[kind]["first"]["count"] == 64
        assert rows[kind]["pause"]["count"] == 5
    assert [row["met"] for row in result["targets"]] == [True, False, True, False]
    assert json.loads((tmp_path / "out.json").read_text())["kind"] == "mapped"
    assert [sheet.title.split()[0] for sheet in sheets(result)] == ["A", "Stores", "Targets"]
    assert "Targets" in (tmp_path / "out.html").read_text()


def test_an_interrupted_run_leaves_nothing(job: Path) -> None:
    pytest.importorskip("numpy")
    job.write_text(SMALL.replace("repeats = 1\n", "repeats = 1000\n"))
    process = subprocess.Popen(
        [sys.executable, "-m", "nova_mp.cli.main", "bench", "run", str(job)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )
    deadline = time.monotonic() + 60
    while not list(Path("/dev/shm").glob(f"nova_mp-peer-{process.pid}-*/*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in errors) == (130, False), errors
    assert not [name for name in os.listdir("/dev/shm") if f"-{process.pid}" in name]


def test_a_pause_belongs_to_the_snapshot_before_it() -> None:
    stores = [(5, 3), (12, 9), (13, 2), (30, 50), (95, 10)]
    assert mapped.longest(stores, [10, 40, 100]) == [9, 50, 10]
    assert mapped.longest([], [10]) == [0]


def test_without_numpy_it_says_so(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "find_spec", lambda name: None)
    with pytest.raises(NovaError, match="numpy, which is not installed"):
        mapped.run_mapped(job)

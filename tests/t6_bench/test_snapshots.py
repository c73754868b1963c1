"""The snapshot benchmark, shrunk: that all its parts run, and leave nothing behind."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nova_mp.bench import snapcases, snappeers
from nova_mp.bench.run import run_job
from nova_mp.bench.snapload import percentile, spread
from nova_mp.bench.snapview import sheets

SMALL = """
[snapshot_bench]
cpus = [2]
creates = 5
create_time = "200ms"
small = "1MiB"
large = "4MiB"
working_sets = ["256KiB"]
every = ["20ms", "5ms"]
window = "150ms"
repeats = 1
count = 60
entries = 1024
peer_data = "1MiB"
peer_creates = 3
[targets]
size_ratio = 1e9
overwrite = { 20ms = 1e-9 }
count_ratio = 1e-9
cleaned_per_second = 1
"""


def left_over() -> set[str]:
    """Segments and peers' directories of this process, and mounts below them."""
    mine = f"-{os.getpid()}"
    names = {name for name in os.listdir("/dev/shm") if mine in name}
    return names | {line for line in Path("/proc/mounts").read_text().splitlines() if mine in line}


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Any:
    before = left_over()
    yield
    assert left_over() <= before


@pytest.fixture
def less_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapcases, "COLD_BYTES", 1 << 20)
    monkeypatch.setattr(snappeers, "EVERY_NS", 20_000_000)


@pytest.mark.usefixtures("less_work")
def test_a_run_with_all_its_parts(tmp_path: Path) -> None:
    job = tmp_path / "snapshots.toml"
    job.write_text(SMALL, encoding="utf-8")
    seen: list[str] = []
    result = run_job(
        job, out=tmp_path / "r.json", html=tmp_path / "r.html",
        progress=lambda label, done, total: seen.append(label),
    )
    assert json.loads((tmp_path / "r.json").read_text()) == json.loads(json.dumps(result))
    page = (tmp_path / "r.html").read_text()
    assert "missed" in page
    assert [load["writers"] for load in result["create"][0]["loads"]] == [0, 2]
    assert result["create"][0]["loads"][-1]["writes_per_second"] > 0
    assert result["create"][0]["deletes"]["many"]["p50"] > 0
    assert result["overwrite"][0]["cases"][0]["snapshots"] > 0
    assert 0 <= result["overwrite"][0]["cases"][1]["recorded_share"] <= 1
    assert result["cleaner"][0]["entries"] == 1024
    assert [row["kind"] for row in result["peers"]] == ["nova_mp", *snappeers.KINDS]
    for row in result["peers"]:
        assert row["missing"] or row["create"]["p50"] > 0
        assert row["missing"] == snappeers.missing(row["kind"])
    verdicts = {row["name"]: row["met"] for row in result["targets"]}
    assert verdicts["overwrites of 256 KiB, every 20ms"]
    assert not verdicts["create, 60 over 10 snapshots, core"]
    assert len(verdicts) == 7
    assert len(list(sheets(result))) == 8
    assert seen[-1] == "done"


def test_the_large_arena_shrinks_with_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def available(cpus: int) -> dict[str, int]:
        return {"memory_available_bytes": 1 << 30}

    monkeypatch.setattr(snapcases, "describe", available)
    assert snapcases.fitting_bytes(1 << 20, 1 << 20) == 1 << 20
    assert snapcases.fitting_bytes(8 << 30, 1 << 20) <= 512 << 20


def test_a_missing_peer_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(snappeers, "_tool", lambda name: None)
    for kind in ("btrfs", "xfs"):
        assert snappeers.missing(kind) in (f"mkfs.{kind} is not installed",
                                           f"this kernel has no {kind}")
    assert snappeers.missing("fork") is None


def test_percentiles() -> None:
    assert percentile([3, 1, 2], 50) == 2
    assert percentile(range(1, 101), 99) == 99
    assert spread([])["max"] == 0

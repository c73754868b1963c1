"""The echo benchmark, shrunk: that its parts run, are reported, and leave nothing behind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nova_mp.bench import echo
from nova_mp.bench.run import run_job

SMALL = """
[echo]
payload = "4KiB"
depth = 8
calls = 40
single_calls = 5
repeats = 2
[targets]
pipelined = 1e-9
round_trip = 1e-9
"""


@pytest.mark.slow
def test_all_of_it(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text(SMALL)
    page, out = tmp_path / "page.html", tmp_path / "out.json"
    result = run_job(job, out=out, html=page)
    assert json.loads(out.read_text()) == json.loads(json.dumps(result))
    assert [row["met"] for row in result["targets"]] == [True, False]
    for way in ("round_trip", "pipelined"):
        assert {len(runs) for runs in result[way]["runs_ns"].values()} == {2}
        assert all(ns > 0 for ns in result[way]["ns"].values())
    assert "Round trip" in page.read_text()
    assert [sheet.title for sheet in echo.sheets(result)] == ["Round trip", "Pipelined", "Targets"]
    assert not [name for name in os.listdir("/dev/shm") if f"echo-{os.getpid()}" in name]

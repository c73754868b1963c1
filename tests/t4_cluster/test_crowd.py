"""Hundreds of remote clients come and go, some are killed: nobody else notices, nothing leaks.

NOVA_MP_FULL makes it 300 clients for a minute, 50 of them killed, and looks at fairness as well.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from crowd.customers import Crowd
from socketfuzz.attack import resident_bytes
from t4_cluster.cluster_help import eventually, processes

import nova_mp
from nova_mp.client.control import ControlClient
from nova_mp.core import segment
from nova_mp.tools import fsck

FULL = bool(os.environ.get("NOVA_MP_FULL"))
SEED = int(os.environ.get("NOVA_MP_SEED") or random.SystemRandom().randrange(1 << 31))
CPUS = 2
CROWD = (
    Crowd(25, 10, 50, 60.0, CPUS, SEED) if FULL else Crowd(4, 8, 6, 3.0, CPUS, SEED)
)
UNFAIRNESS_MAX = 1.5
GROWTH_BYTES_MAX = 16 << 20
TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture
def engine(arena_prefix: str) -> Iterator[nova_mp.Engine]:
    name = f"{arena_prefix}crowd"
    nova_mp.mkfs(name, "128MiB", cpus=CPUS)
    try:
        with nova_mp.start(name) as started:
            yield started
        report = fsck.check(name)
        assert report.ok, fsck.format_report(report)
    finally:
        nova_mp.destroy(name, force=True)


def let_in(name: str, crowd: Crowd) -> dict[str, Any]:
    """Run a crowd to its end; its figures."""
    paths = [str(Path(nova_mp.__file__).parents[1]), str(TESTS)]
    done = subprocess.run(
        [sys.executable, "-m", "crowd.customers", name, json.dumps(asdict(crowd))],
        stdout=subprocess.PIPE,
        text=True,
        timeout=crowd.seconds + 300,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    return dict(json.loads(done.stdout))


def holdings(engine: nova_mp.Engine) -> dict[str, Any]:
    """What the engine has taken: slots, descriptors, sessions' memory, segments, blocks."""
    with ControlClient(engine.name) as control:
        control.snapshot_wait(30.0)
        status = control.status()
    blocks, inodes = status.stats["blocks"], status.stats["inodes"]
    return {
        "slots": len(status.slots),
        "descriptors": {
            title: len(os.listdir(f"/proc/{pid}/fd"))
            for title, pid in processes(engine.name).items()
        },
        "segments": sorted(path.name for path in segment.SHM.glob(f"nova_mp.{engine.name}*")),
        "blocks": (blocks["free"], blocks["live"], blocks["held"]),
        "inodes": inodes["used"],
    }


def empty(engine: nova_mp.Engine) -> None:
    """Remove what the crowd left, files of the dead too."""
    with nova_mp.attach(engine.name) as fs:
        if fs.exists("/crowd"):
            fs.rmtree("/crowd")
        fs.mkdir("/crowd")


@pytest.mark.slow
def test_a_crowd(engine: nova_mp.Engine) -> None:
    print(f"replay with NOVA_MP_SEED={SEED}")
    # Memory that as many clients take once, and the allocator keeps, is taken first.
    empty(engine)
    warm = replace(CROWD, seconds=CROWD.seconds / 6, seed=SEED + 1)
    assert not [t["error"] for t in let_in(engine.name, warm)["survivors"] if t["error"]]
    empty(engine)
    before, pids = holdings(engine), processes(engine.name)
    sizes = {title: resident_bytes(pid) for title, pid in pids.items()}

    found = let_in(engine.name, CROWD)
    errors = [tally["error"] for tally in found["survivors"] if tally["error"]]
    assert not errors, errors
    assert found["killed"] == CROWD.victims
    assert len(found["survivors"]) == CROWD.processes * CROWD.clients_each
    assert processes(engine.name) == pids, "somebody of the engine died"

    operations = [tally["operations"] for tally in found["survivors"]]
    rates = [t["operations"] / t["connected_s"] for t in found["survivors"] if t["connected_s"]]
    grown = {title: resident_bytes(pid) - sizes[title] for title, pid in pids.items()}
    print(
        f"{len(operations)} clients: {sum(operations) / CROWD.seconds:,.0f} operations/s in"
        f" {sum(tally['visits'] for tally in found['survivors']):,} visits;"
        f" max/min of operations {max(operations) / max(1, min(operations)):.2f},"
        f" of operations a second connected {max(rates) / min(rates):.2f};"
        f" grown by {({title: f'{size >> 10} KiB' for title, size in grown.items()})}"
    )
    assert min(operations) > 0
    if FULL:
        assert max(operations) / min(operations) <= UNFAIRNESS_MAX
    empty(engine)
    eventually("all is given back", lambda: holdings(engine) == before, 30.0)
    assert max(grown.values()) < GROWTH_BYTES_MAX, grown

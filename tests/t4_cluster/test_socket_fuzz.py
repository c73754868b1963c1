"""Mutated messages to every socket that listens: nobody dies, hangs or grows, and nobody minds.

NOVA_MP_FULL makes it a million messages for each socket; NOVA_MP_SEED replays a run.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest
from socketfuzz.attack import (
    BATCH,
    Requests,
    assert_events,
    dealer,
    raw_bytes,
    resident_bytes,
    subscriptions,
)
from t4_cluster.cluster_help import Other, processes

import nova_mp
from nova_mp import config
from nova_mp.tools import fsck

FULL = bool(os.environ.get("NOVA_MP_FULL"))
COUNT = 1_000_000 if FULL else 20_000
WARM_UP = COUNT // 5
GROWTH_BYTES_MAX = 32 << 20
SEED = int(os.environ.get("NOVA_MP_SEED") or random.SystemRandom().randrange(1 << 31))

# One who means well, beside it all: writes, reads back, takes a snapshot now and then.
WELL_BEHAVED = """
import sys, threading, nova_mp
fs = nova_mp.connect(sys.argv[1], cpu=0, timeout=60.0)
done = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), done.set()), daemon=True).start()
print("ready", flush=True)
count = 0
while not done.wait(0.01):
    data = str(count).encode() * 500
    fs.write_bytes("/well-behaved", data)
    assert fs.read_bytes("/well-behaved") == data
    if count % 200 == 0:
        fs.snapshots.delete(fs.snapshots.create().epoch_id)
    count += 1
fs.close()
print(count, flush=True)
"""


@pytest.fixture(scope="module")
def engine(arena_prefix: str) -> Iterator[nova_mp.Engine]:
    name = f"{arena_prefix}fuzz"
    nova_mp.mkfs(name, "256MiB", cpus=1)
    try:
        with nova_mp.start(name) as started:
            with nova_mp.attach(name) as fs:
                fs.mkdir("/fuzz")
            yield started
        report = fsck.check(name)
        assert report.ok, fsck.format_report(report)
    finally:
        nova_mp.destroy(name, force=True)


def places(engine: nova_mp.Engine) -> dict[str, str]:
    """Every address that a process of the engine listens at."""
    found = config.endpoints(engine.name, engine.cpus)
    return {"coordinator": found.coordinator, "worker": found.workers[0], "events": found.events}


@pytest.mark.parametrize("place", ["coordinator", "worker", "events"])
@pytest.mark.slow
def test_mutated_messages(engine: nova_mp.Engine, place: str) -> None:
    print(f"replay with NOVA_MP_SEED={SEED}")
    address = places(engine)[place]
    before = processes(engine.name)
    with Other(WELL_BEHAVED, engine.name) as other:
        assert other.hear() == "ready"
        with dealer(address if place != "events" else places(engine)["coordinator"]) as socket:
            attack = Requests(socket, SEED) if place != "events" else None
            sizes: dict[str, int] = {}
            for at in range(0, COUNT, BATCH):
                if attack is not None:
                    attack.send(BATCH)
                else:
                    subscriptions(address, SEED + at, BATCH)
                if at == WARM_UP:
                    sizes = {title: resident_bytes(pid) for title, pid in before.items()}
            if attack is not None:
                attack.close()
        other.popen.stdin.close()  # type: ignore[union-attr]
        assert int(other.hear()) > 0
        assert other.end() == 0
    assert processes(engine.name) == before, "somebody died"
    grown = {title: resident_bytes(pid) - sizes[title] for title, pid in before.items()}
    print({title: f"{size / 1024:.0f} KiB" for title, size in grown.items()})
    assert max(grown.values()) < GROWTH_BYTES_MAX, grown


def test_connections_that_do_not_speak_our_language(engine: nova_mp.Engine) -> None:
    before = processes(engine.name)
    for address in places(engine).values():
        raw_bytes(address, SEED, 2000 if FULL else 200)
    with nova_mp.connect(engine.name) as fs:
        assert isinstance(fs.listdir("/"), list)
        assert fs.snapshots.create() is not None
    assert_events(places(engine)["events"])
    assert processes(engine.name) == before

"""Remote reads beside a bare ZeroMQ echo of as many bytes: what the engine adds to its sockets.

A job file with an [echo] table. The echo is one process with a ROUTER socket on `ipc`, which sends
back what it gets, and clients with DEALER sockets, a message of one frame each way for a call; the
loops hold nothing else, frame by frame, which is faster than pyzmq's multipart calls. The reads go
through the public API to one worker. Clients are the same processes for both, and take turns.

- *round trip*: one client, one call after the other;
- *pipelined*: all clients, each with `depth` calls on their way. Reads are `fs.pipeline()` blocks
  of `depth` calls; the echo keeps `depth` messages under way all the time.

Beside it stands the echo of a server that is asked by a short message, as a read is ("fetch").
Where the clock starts: before the first call of a run, until after the last, in each client, which
all begin at one instant.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import zmq

import nova_mp
from nova_mp.config import parse_size

from .arena import temporary_arena
from .environment import describe
from .job import NO_KEYS, ArenaSpec, Table, number, read_tables, table, whole
from .loadclient import wait_until
from .pool import Pool
from .snapview import Sheet
from .timing import collector_off
from .units import show_ns, show_rate

Progress = Callable[[str, float, float], None]
OUTPUT_VERSION = 1
LEAD_NS = 30_000_000
FILE_BLOCKS = 64
ASKING_BYTES = 96
PATH = "/echo"
SUBJECTS = ("nova_mp", "echo", "fetch")
_SNDMORE = int(zmq.SNDMORE)


@dataclass(frozen=True, slots=True)
class EchoPlan:
    """The [echo] table, and [targets]."""

    payload_bytes: int
    clients: int
    depth: int
    calls: int
    single_calls: int
    repeats: int
    pipelined_target: float | None
    round_trip_target: float | None


def is_echo(path: Path) -> bool:
    """Whether a job file is one for this module."""
    return "echo" in read_tables(path)


def load_echo(path: Path) -> EchoPlan:
    """The plan of a job file; raises JobError for the first thing wrong."""
    top = Table(read_tables(path), path.name)
    keys = Table(top.take("echo", table), "echo")
    wanted = Table(top.take("targets", table, NO_KEYS), "targets")
    plan = EchoPlan(
        payload_bytes=keys.take("payload", parse_size, 4096),
        clients=keys.take("clients", whole(1, 128), 2),
        depth=keys.take("depth", whole(2, 4096), 64),
        calls=keys.take("calls", whole(1), 20_000),
        single_calls=keys.take("single_calls", whole(1), 2000),
        repeats=keys.take("repeats", whole(1, 1001), 9),
        pipelined_target=wanted.take("pipelined", number, 0.0) or None,
        round_trip_target=wanted.take("round_trip", number, 0.0) or None,
    )
    keys.done()
    wanted.done()
    top.take("name", str, "")
    top.take("title", str, "")
    top.done()
    return plan


# ----------------------------------------------------------------------------------- processes


def server_main(pipe: Connection, address: str, payload_bytes: int) -> None:
    """The echo: what is short is answered by a whole payload; an empty message ends it."""
    answer = os.urandom(payload_bytes)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind(address)
        pipe.send(("ok", None))
        receive, send = router.recv, router.send
        while True:
            peer, payload = receive(), receive()
            if len(payload) < payload_bytes:
                if not payload:
                    return
                payload = answer
            send(peer, _SNDMORE)
            send(payload)


def client_main(pipe: Connection, arena: str, address: str, plan: EchoPlan, seed: int) -> None:
    """One client of both: answers ("run", subject, calls, depth, start) with seconds a call."""
    chance = random.Random(seed)
    size = plan.payload_bytes
    with (
        nova_mp.connect(arena, cpu=0) as fs,
        fs.open(PATH) as file,
        zmq.Context() as context,
        context.socket(zmq.DEALER) as dealer,
    ):
        dealer.connect(address)
        pipe.send(("ok", None))
        while True:
            try:
                verb, values = pipe.recv()
            except EOFError:
                return
            if verb != "run":
                pipe.send(("ok", None))
                continue
            subject, calls, depth, start = values
            offsets = [chance.randrange(FILE_BLOCKS) * size for _ in range(calls)]
            with collector_off():
                wait_until(start)
                began = time.perf_counter_ns()
                if subject == "nova_mp":
                    _read(fs, file, size, offsets, depth)
                else:
                    payload = bytes(size if subject == "echo" else min(ASKING_BYTES, size - 1))
                    _echo(dealer, payload, calls, depth)
                took = time.perf_counter_ns() - began
            pipe.send(("ok", took / calls))


def _read(fs: Any, file: Any, size: int, offsets: list[int], depth: int) -> None:
    if depth == 1:
        for offset in offsets:
            file.pread(size, offset)
        return
    for at in range(0, len(offsets), depth):
        with fs.pipeline() as batch:
            results = [batch.pread(file, size, offset) for offset in offsets[at : at + depth]]
            for result in results:
                result.result()


def _echo(dealer: Any, payload: bytes, calls: int, depth: int) -> None:
    send, receive = dealer.send, dealer.recv
    ahead = min(depth, calls)
    for _ in range(ahead):
        send(payload)
    for _ in range(calls - ahead):
        receive()
        send(payload)
    for _ in range(ahead):
        receive()


# --------------------------------------------------------------------------------- measurement


@contextmanager
def _server(plan: EchoPlan) -> Iterator[str]:
    """The echo's process; its address."""
    with tempfile.TemporaryDirectory(prefix="nova-echo-") as folder:
        address = f"ipc://{folder}/echo.sock"
        with Pool(server_main, [(address, plan.payload_bytes)]) as pool:
            pool.collect(30.0)
            try:
                yield address
            finally:
                with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
                    dealer.setsockopt(zmq.LINGER, 1000)
                    dealer.connect(address)
                    dealer.send(b"")


def run_echo(path: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Run it and return the result; raises NovaError or OSError when an arena cannot be made."""
    plan = load_echo(path)
    report = progress or (lambda label, done, total: None)
    runs: dict[str, dict[str, list[float]]] = {
        way: {subject: [] for subject in SUBJECTS} for way in ("round_trip", "pipelined")
    }
    environment = describe(cpus=1, processes=plan.clients)
    spec = ArenaSpec(max(64 << 20, 8 * FILE_BLOCKS * plan.payload_bytes), 1)
    with temporary_arena(spec, "echo") as arena, _server(plan) as address:
        with arena.attach() as fs:
            fs.write_bytes(PATH, os.urandom(FILE_BLOCKS * plan.payload_bytes))
        arguments = [(arena.name, address, plan, seed) for seed in range(plan.clients)]
        with Pool(client_main, arguments) as pool:
            pool.collect(30.0)
            for repeat in range(plan.repeats + 1):
                report("echo and reads", repeat, plan.repeats + 1)
                # The first round warms up, uncounted; then the order turns each time.
                order = SUBJECTS if repeat % 2 else SUBJECTS[::-1]
                for subject in order:
                    found = _round(pool, plan, subject)
                    for way, value in found.items() if repeat else ():
                        runs[way][subject].append(value)
    report("done", 1, 1)
    result: dict[str, Any] = {
        "output_version": OUTPUT_VERSION, "kind": "echo", "name": path.stem,
        "job": read_tables(path), "environment": environment,
        "round_trip": _compare(runs["round_trip"]), "pipelined": _compare(runs["pipelined"]),
    }
    result["targets"] = _judge(result, plan)
    return result


def _round(pool: Pool, plan: EchoPlan, subject: str) -> dict[str, float]:
    """ns of a round trip of one client, and ns a call of all clients together, pipelined."""
    start = time.monotonic_ns() + LEAD_NS
    pool.post_one(0, "run", subject, plan.single_calls, 1, start)
    for index in range(1, plan.clients):
        pool.post_one(index, "rest")
    alone = pool.collect(120.0)[0]
    start = time.monotonic_ns() + LEAD_NS
    pool.post("run", subject, plan.calls, plan.depth, start)
    together = pool.collect(120.0)
    return {"round_trip": alone, "pipelined": 1 / sum(1 / one for one in together)}


def _compare(runs: dict[str, list[float]]) -> dict[str, Any]:
    """Medians in ns a call, and how many times an echo's time a read takes."""
    found: dict[str, Any] = {"runs_ns": runs}
    found["ns"] = {subject: statistics.median(values) for subject, values in runs.items()}
    for peer in SUBJECTS[1:]:
        ratios = [ours / theirs for ours, theirs in zip(runs["nova_mp"], runs[peer], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        ratio = found["ns"]["nova_mp"] / found["ns"][peer]
        found[peer] = {"ratio": ratio, "low": low, "high": high}
    return found


def _judge(result: dict[str, Any], plan: EchoPlan) -> list[dict[str, Any]]:
    found = []
    if plan.pipelined_target is not None:
        value = 1 / result["pipelined"]["echo"]["ratio"]
        found.append({
            "name": "pipelined reads, of the echo's rate", "value": value,
            "target": plan.pipelined_target, "low_is_good": False,
            "met": value >= plan.pipelined_target,
        })
    if plan.round_trip_target is not None:
        value = result["round_trip"]["echo"]["ratio"]
        found.append({
            "name": "round trip of a read, of the echo's", "value": value,
            "target": plan.round_trip_target, "low_is_good": True,
            "met": value <= plan.round_trip_target,
        })
    return found


def sheets(result: dict[str, Any]) -> Iterator[Sheet]:
    """The result as tables, for the terminal and for the page."""
    trip, piped = result["round_trip"], result["pipelined"]
    yield Sheet(
        "Round trip", "one client; times of the echo, and quartiles of neighbouring runs",
        ("", "a call", "read / this", "quartiles"),
        [(subject, show_ns(trip["ns"][subject]), *_ratio(trip, subject, False))
         for subject in SUBJECTS],
    )
    yield Sheet(
        "Pipelined", "all clients; share of the echo's rate, and quartiles of neighbouring runs",
        ("", "calls", "read / this", "quartiles"),
        [(subject, show_rate(1e9 / piped["ns"][subject]), *_ratio(piped, subject, True))
         for subject in SUBJECTS],
    )
    if result["targets"]:
        yield Sheet(
            "Targets", "", ("target", "measured", "wanted", ""),
            [(row["name"], f"{row['value']:.3g}",
              f"at {'most' if row['low_is_good'] else 'least'} {row['target']:g}",
              "met" if row["met"] else "missed") for row in result["targets"]],
        )


def _ratio(found: dict[str, Any], subject: str, of_rates: bool) -> tuple[str, str]:
    if subject not in found:
        return "", ""
    ratio, low, high = (found[subject][key] for key in ("ratio", "low", "high"))
    if of_rates:
        ratio, low, high = 1 / ratio, 1 / high, 1 / low
    return f"{ratio:.2f}", f"{low:.2f} to {high:.2f}"

"""The processes of a crowd: `python -m crowd.customers NAME '{...}'` prints its figures as JSON.

One process imports what is needed and forks the others, so that hundreds of clients are there in
a second. Each survivor's process has several clients, a thread each; each victim has a process of
its own, which is killed at a moment that the seed decides. A client connects, works for a visit on
files of its own, verifies what it reads, disconnects, and comes again.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

import nova_mp

BLOCK_BYTES = 4096
BLOCKS = 8
VISIT_OPERATIONS = (20, 200)
PAUSE_S = 0.05


@dataclass(frozen=True)
class Crowd:
    """How many come, for how long (seconds), and how many of them are killed meanwhile."""

    processes: int
    clients_each: int
    victims: int
    seconds: float
    cpus: int
    seed: int


@dataclass
class Tally:
    """What one client did: operations, visits, the time that it was connected, and its errors."""

    operations: int = 0
    visits: int = 0
    connected_s: float = 0.0
    error: str = ""


def work(name: str, crowd: Crowd, number: int, until: float, tally: Tally) -> None:
    """One client's life."""
    chance = random.Random(crowd.seed * 1000 + number)
    path = f"/crowd/{number}"
    pause = threading.Event()
    try:
        while time.monotonic() < until:
            begin = time.monotonic()
            with nova_mp.connect(name, cpu=number % crowd.cpus, timeout=60.0) as fs:
                visit(fs, path, chance, tally, until)
            tally.visits += 1
            tally.connected_s += time.monotonic() - begin
            pause.wait(chance.random() * PAUSE_S)
    except Exception as error:
        # Told at the end: whoever fails is one error, and the others go on.
        tally.error = f"{type(error).__name__}: {error}"


def visit(fs: Any, path: str, chance: random.Random, tally: Tally, until: float) -> None:
    """Work on one file: writes, and reads that find what was written."""
    with fs.open(path, "w+b") as file:
        held: dict[int, bytes] = {}
        for number in range(chance.randrange(*VISIT_OPERATIONS)):
            block = chance.randrange(BLOCKS)
            if number % 3 == 0:
                held[block] = chance.randbytes(8) * (BLOCK_BYTES // 8)
                file.pwrite(held[block], block * BLOCK_BYTES)
            elif number % 3 == 1:
                found = file.pread(BLOCK_BYTES, block * BLOCK_BYTES)
                # What was never written is a hole, or behind the end.
                assert found.strip(b"\0") == held.get(block, b"").strip(b"\0"), "read what was not"
            else:
                assert file.stat().st_size % BLOCK_BYTES == 0
            tally.operations += 1
            if time.monotonic() >= until:
                return


def customers(name: str, crowd: Crowd, numbers: range, until: float) -> list[Tally]:
    """Several clients in this process, a thread each."""
    tallies = [Tally() for _ in numbers]
    threads = [
        threading.Thread(target=work, args=(name, crowd, number, until, tally))
        for number, tally in zip(numbers, tallies, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tallies


def fork(name: str, crowd: Crowd, numbers: range, until: float) -> tuple[int, int]:
    """A process with these clients: its pid, and where its figures can be read."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    status = 1
    os.setsid()
    try:
        tallies = [asdict(tally) for tally in customers(name, crowd, numbers, until)]
        os.write(writer, json.dumps(tallies).encode())
        status = 0
    finally:
        os._exit(status)


def gather(name: str, crowd: Crowd) -> dict[str, Any]:
    """Let the crowd in, kill the victims, and add up what the others say."""
    until = time.monotonic() + crowd.seconds
    survivors = []
    for at in range(crowd.processes):
        first = at * crowd.clients_each
        survivors.append(fork(name, crowd, range(first, first + crowd.clients_each), until))
    first = crowd.processes * crowd.clients_each
    endless = until + 3600.0
    victims = [
        fork(name, crowd, range(number, number + 1), endless)
        for number in range(first, first + crowd.victims)
    ]
    chance = random.Random(crowd.seed)
    deaths = sorted(chance.uniform(0.1, 0.95) * crowd.seconds for _ in victims)
    start, clock = until - crowd.seconds, threading.Event()
    for (pid, reader), at in zip(victims, deaths, strict=True):
        clock.wait(max(0.0, start + at - time.monotonic()))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
    tallies: list[dict[str, Any]] = []
    for pid, reader in survivors:
        with os.fdopen(reader) as stream:
            said = stream.read()
        os.waitpid(pid, 0)
        tallies += json.loads(said) if said else [{"error": f"process {pid} died"}]
    return {"survivors": tallies, "killed": len(victims)}


if __name__ == "__main__":
    print(json.dumps(gather(sys.argv[1], Crowd(**json.loads(sys.argv[2])))), flush=True)

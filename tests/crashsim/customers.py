"""What works on an engine while its processes are killed: clients with load, and a snapshot keeper.

Each is forked by the test and lives until it is killed or told to stop. An attached client is to
notice nothing, whatever dies. A remote one may hear that nobody knows whether its request was
carried out: it looks, and what it finds must be the one or the other.
"""

from __future__ import annotations

import random
import signal
import time
from typing import Any

import nova_mp
from crashsim.arena import differences
from crashsim.load import (
    DELETING,
    DOUBTS,
    DOUBTS_MAX,
    IDS,
    KINDS,
    LIVE,
    STOP,
    Board,
    Model,
    Op,
    choose,
    clock_ns,
    expect,
    files,
    perform,
)

PATIENCE_S = 20.0
"""How long an engine that was killed may take to be there again."""

ATTACHED, REMOTE = "attached", "remote"


def reach(name: str, kind: str, cpu: int, board: Board) -> Any:
    """A file system of the engine; waits for one that is being started again."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            if kind == ATTACHED:
                return nova_mp.attach(name, cpu, title="customer")
            return nova_mp.connect(name, cpu, timeout=5.0, title="customer")
        except (nova_mp.NovaError, OSError):
            if board.words[STOP] or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def work(
    name: str, kind: str, cpus: int, number: int, seed: int, model: Model, board: Board
) -> None:
    """Life of client `number`, whose files are `model` now."""
    cpu = number % cpus
    # Ctrl-C is for the test, which then kills its clients.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    fs = reach(name, kind, cpu, board)
    rng = random.Random(seed)
    record = board.record(number)
    while record[DOUBTS] < DOUBTS_MAX:
        op = choose(rng, number, model)
        after = expect(model, op)
        board.rest(record)
        start = clock_ns()
        try:
            perform(fs, op)
        except (nova_mp.NovaError, OSError):
            if kind == ATTACHED:
                raise
            fs, found = _look(fs, name, cpu, number, board)
            start = clock_ns()
            after = _settle(found, model, op, after)
            if after is model:
                board.undone(record)
        board.called(record, start, KINDS.index(op[0]))
        model = after
    fs.close()


def _look(fs: Any, name: str, cpu: int, number: int, board: Board) -> tuple[Any, Model]:
    """A new connection, and the files as they are, once somebody answers."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        fs.close()
        fs = reach(name, REMOTE, cpu, board)
        try:
            return fs, files(fs, number)
        except (nova_mp.NovaError, OSError):
            if board.words[STOP] or time.monotonic() > deadline:
                raise


def _settle(found: Model, before: Model, op: Op, after: Model) -> Model:
    """Which of the two it is; fails if it is neither."""
    if found == after:
        return after
    lines = differences(found, before)
    assert not lines, f"{op[:3]} was done by half: {lines}, {differences(found, after)}"
    return before


def keep(name: str, seed: int, number: int, board: Board) -> None:
    """Life of the keeper: takes, browses and deletes snapshots through the coordinator."""
    rng = random.Random(seed)
    record = board.record(number)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    fs = reach(name, ATTACHED, 0, board)
    while True:
        board.rest(record)
        start = clock_ns()
        try:
            _keep_once(fs, rng, board.snapshots)
        except (nova_mp.NovaError, OSError):
            # The coordinator, or all of the engine, died; what became of it is seen in the table.
            fs.close()
            fs = reach(name, ATTACHED, 0, board)
            start = clock_ns()
        board.called(record, start, 100)
        time.sleep(rng.uniform(0.0, 0.01))


def _keep_once(fs: Any, rng: random.Random, ids: memoryview) -> None:
    held = [k for k in range(IDS) if ids[2 * k + 1] == LIVE]
    what = rng.choice(("create", "delete", "delete", "open"))
    if what == "create" and len(held) < 5:
        free = next(k for k in range(IDS) if ids[2 * k + 1] == 0)
        ids[2 * free] = fs.snapshots.create().epoch_id
        ids[2 * free + 1] = LIVE
    elif what == "delete" and held:
        gone = rng.choice(held)
        ids[2 * gone + 1] = DELETING
        fs.snapshots.delete(ids[2 * gone])
        ids[2 * gone + 1] = 0
    elif what == "open" and held:
        with fs.snapshots.open(ids[2 * rng.choice(held)]) as view:
            view.listdir("/shared")

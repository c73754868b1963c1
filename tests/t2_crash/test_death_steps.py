"""Death at any instruction: operations are stepped through, and die wherever they changed memory.

What the arena is after each instruction that stored to it is what a survivor would find there. A
few of these states, chosen by NOVA_MP_SEED, in each of some operations; NOVA_MP_EXHAUSTIVE=1 looks
at all of them, for some 15 minutes.
"""

from __future__ import annotations

import os
import platform
import random
import secrets
from collections.abc import Callable
from typing import Any

import pytest
from crashsim.death import fork, wait
from crashsim.operations import OPERATIONS, prepared, verify
from crashsim.steps import bury, possible, states

core = pytest.importorskip("nova_mp.core.fs", reason="the core is not built")

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or not possible(), reason="processes cannot be stepped here"
)

SEED = int(os.environ.get("NOVA_MP_SEED") or secrets.randbits(31))
EVERY = os.environ.get("NOVA_MP_EXHAUSTIVE", "") not in ("", "0")
STRIDE = 16  # of the states, one in so many is looked at
AT_ONCE = 3  # operations, of all that there are
# A thread of its own that resolves faults cannot be stepped together with the one that acts.
STEPPED = sorted(name for name, operation in OPERATIONS.items() if not operation.threads)


def step_through(name: str, rng: random.Random) -> int:
    """Survive deaths in one operation; how many."""
    operation = OPERATIONS[name]
    arena = prepared(operation)
    with arena.attach() as fs:
        used = fs.stats()["dram"]["bytes_reserved"] + (2 << 20)
    os.posix_fallocate(arena.fd, 0, used)

    def act() -> Callable[[], Any]:
        fs = arena.attach("coordinator")
        handle = operation.ready(fs)
        return lambda: operation.act(fs, handle)

    deaths = 0
    for number, pid in enumerate(states(arena, used, act)):
        if not EVERY and rng.randrange(STRIDE):
            continue
        copy = arena.copy()
        bury(copy.dram, pid)
        ended = wait(fork(verify, copy, name))
        assert ended == 0, f"death in '{name}' at state {number}; NOVA_MP_SEED={SEED}"
        copy.close()
        deaths += 1
    arena.close()
    return deaths


@pytest.mark.parametrize("name", STEPPED if EVERY else ["a few"])
def test_death_at_any_instruction(name: str) -> None:
    print(f"replay with NOVA_MP_SEED={SEED}")
    rng = random.Random(SEED)
    names = [name] if EVERY else rng.sample(STEPPED, AT_ONCE)
    assert sum(step_through(one, rng) for one in names) > 0

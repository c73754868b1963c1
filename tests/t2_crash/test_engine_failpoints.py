"""A loaded engine whose processes die at failpoints drawn at random; debug builds only.

All of them, for every role: `make torture`. NOVA_MP_SEED replays a failure's draw.
"""

from __future__ import annotations

import os
import secrets

import pytest
from crashsim import campaign
from crashsim.engine import LIMIT_S, siege

core = pytest.importorskip("nova_mp.core.fs", reason="the core is not built")

pytestmark = pytest.mark.skipif(not core.DEBUG_BUILD, reason="failpoints are in the debug build")

SEED = int(os.environ.get("NOVA_MP_SEED") or secrets.randbits(31))
CASES = 8
# Rarer ones a loaded machine may not get to in the time that each is given.
CERTAIN = [("client", "log.committed")]


def test_deaths_at_failpoints(arena_prefix: str) -> None:
    print(f"replay with NOVA_MP_SEED={SEED}")
    with siege(f"{arena_prefix}points", SEED) as besieged:
        certain = campaign.Failpoints(besieged, LIMIT_S)
        certain.run(CERTAIN, print)
        campaign.Failpoints(besieged).run(campaign.cases(SEED, CASES), print)
    missed = [(role, at) for role, at in CERTAIN if at not in certain.passed.get(role, ())]
    assert not missed, f"nobody came to {missed}"

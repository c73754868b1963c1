"""Processes of a loaded engine killed at random moments; `make torture` kills a thousand."""

from __future__ import annotations

import os
import secrets

from crashsim import campaign
from crashsim.engine import siege

SEED = int(os.environ.get("NOVA_MP_SEED") or secrets.randbits(31))
KILLS = 25


def test_kills_at_random_moments(arena_prefix: str) -> None:
    print(f"replay with NOVA_MP_SEED={SEED}")
    with siege(f"{arena_prefix}kills", SEED) as besieged:
        campaign.Kills(besieged).run(KILLS, print)

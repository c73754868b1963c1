"""Runs the tests again and again, each time with new random seeds, until one fails or time is up.

Prints what replays a failure. Random operations come from Hypothesis, whose seed is given here, and
from generators that take theirs from NOVA_MP_SEED.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEVELS = ("t1_core", "t2_crash", "t3_state", "t4_cluster")


def command(seed: int, jobs: int) -> tuple[dict[str, str], list[str]]:
    """What one round runs: additions to the environment, and the command line."""
    levels = [f"tests/{level}" for level in LEVELS if (ROOT / "tests" / level).is_dir()]
    pytest = [sys.executable, "-m", "pytest", "-q", "-x", "-n", str(jobs), "--dist", "loadfile"]
    # Thousands of examples are one test: that it takes long does not mean that it hangs.
    pytest += ["-o", "faulthandler_timeout=3600"]
    environment = {"NOVA_MP_SEED": str(seed), "NOVA_MP_TORTURE": "1"}
    return environment, [*pytest, f"--hypothesis-seed={seed}", *levels]


def main() -> int:
    """Run rounds; returns 1 at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, help="one round with this seed")
    options = parser.parse_args()
    deadline = time.monotonic() + options.minutes * 60
    rounds = 0
    while True:
        seed = secrets.randbits(31) if options.seed is None else options.seed
        added, words = command(seed, options.jobs)
        done = subprocess.run(words, cwd=ROOT, env={**os.environ, **added}, check=False)
        rounds += 1
        if done.returncode:
            settings = " ".join(f"{key}={value}" for key, value in added.items())
            print(f"round {rounds} failed; again: {settings} {shlex.join(words)}")
            return 1
        print(f"round {rounds} with seed {seed} passed")
        if options.seed is not None or time.monotonic() > deadline:
            return 0


if __name__ == "__main__":
    sys.exit(main())

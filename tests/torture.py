"""Kills the processes of a loaded engine: at each failpoint (debug build), and at random moments.

Prints what it does, the seed, and in the end what was killed; a failure prints what replays it (the
same operations and victims, not the same moments). `make torture` runs both campaigns.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEBUG = os.environ.get("NOVA_MP_DEBUG", "") not in ("", "0")
sys.path[0:1] = [
    *([str(ROOT / "build" / "debug")] if DEBUG else []),
    str(ROOT),
    str(ROOT / "tests"),
]

from crashsim import campaign  # noqa: E402
from crashsim.engine import Siege, siege  # noqa: E402


class Progress:
    """One line that changes, on a terminal; elsewhere a line from time to time."""

    EVERY_S = 10.0

    def __init__(self) -> None:
        self.last = ""
        self._terminal = sys.stderr.isatty()
        self._next = 0.0

    def __call__(self, text: str) -> None:
        """Say what comes next."""
        self.last = text
        if self._terminal:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + self.EVERY_S
            print(text, file=sys.stderr, flush=True)


def run(options: argparse.Namespace, progress: Progress) -> None:
    """Run the campaign; raises AssertionError when something is not as it must be."""
    with siege(f"torture-{os.getpid()}", options.seed) as besieged:
        if options.campaign == "failpoints":
            _failpoints(besieged, options, progress)
        else:
            kills = campaign.Kills(besieged)
            kills.run(options.count or 1000, progress)
            print(f"\nkilled: {kills.killed}")
        attached, remote = (took / 1e6 for took in besieged.longest)
        print(f"longest operation: {attached:.0f} ms attached, {remote:.0f} ms remote")


def _failpoints(besieged: Siege, options: argparse.Namespace, progress: Progress) -> None:
    wanted = campaign.cases(options.seed, options.count)
    wanted = [case for case in wanted if options.role in (None, case[0])]
    wanted = [case for case in wanted if options.point in (None, case[1])]
    deaths = campaign.Failpoints(besieged)
    deaths.run(wanted, progress)
    print()
    for role, points in deaths.passed.items():
        print(f"{role}: died at {len(points)} failpoints: {' '.join(points)}")
    left = {point for _, point in wanted} - {p for ps in deaths.passed.values() for p in ps}
    print(f"passed by nobody: {' '.join(sorted(left)) or 'none'}")


def main() -> int:
    """Run one campaign; returns 1 if it finds something, 130 if it is interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("campaign", choices=("failpoints", "kills"))
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--count", type=int, default=0, help="deaths (default: all, or 1000)")
    parser.add_argument("--role", choices=campaign.ROLES, help="failpoints: only of this role")
    parser.add_argument("--point", choices=campaign.failpoints(), help="only this one")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = secrets.randbits(31)
    words = [*sys.argv[1:], *([] if "--seed" in sys.argv else ["--seed", str(options.seed)])]
    debug = "NOVA_MP_DEBUG=1 " if DEBUG else ""
    print(f"{debug}python tests/torture.py {shlex.join(words)}", flush=True)
    folder = tempfile.mkdtemp(prefix="nv")
    os.environ["NOVA_MP_RUNTIME_DIR"] = f"{folder}/run"
    os.environ["NOVA_MP_STATE_DIR"] = f"{folder}/state"
    # Whoever ends this politely gets what Ctrl-C does: nothing is left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    progress = Progress()
    failed = False
    start = time.monotonic()
    try:
        run(options, progress)
    except KeyboardInterrupt:
        print(f"\ninterrupted at {progress.last}")
        return 130
    except BaseException:
        failed = True
        print(f"\nfailed at {progress.last}; the engine's log is in {folder}")
        raise
    finally:
        if not failed:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"0 violations in {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A seeded driver of the twin: thousands of random operations, compared from time to time.

python -m model.driver --seed 5 --steps 3000        (from the folder tests/)
"""

from __future__ import annotations

import argparse
import random
import time
import traceback
from collections.abc import Callable
from typing import Any

from crashsim.arena import MIB

from model.twin import Twin

SIZES = (1, 100, 4095, 4096, 4097, 8192, 5000, 20000, 40000)
OFFSETS = (0, 0, 1, 100, 4000, 4096, 8192, 12288, 20000, 65536, 100_000)
BIG = 1 << 16


class Driver:
    """Random operations on a twin. The seed decides everything."""

    def __init__(self, seed: int, size: int = 8 * MIB) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.twin = Twin(size, cpus=self.rng.choice((1, 2, 3)))
        self.weights = dict(self._weights())
        # Each run has its own taste, so that rare mixtures come up.
        for name in self.weights:
            self.weights[name] *= self.rng.choice((0, 0.3, 1, 1, 1, 3))

    def _weights(self) -> list[tuple[str, float]]:
        return [
            *[(name, 6) for name in ("create", "write", "unlink")],
            *[(name, 3) for name in ("append", "truncate", "rename", "held_write")],
            *[(name, 2) for name in ("link", "mkdir", "rmdir", "symlink", "setxattr", "hold")],
            *[(name, 1.5) for name in ("removexattr", "let_go", "snapshot", "snapshot_delete")],
            *[(name, 1) for name in ("chmod", "utime", "fallocate", "held_truncate", "reclaim")],
            *[(name, 0.5) for name in ("chown", "view", "view_close", "gc", "burst")],
            *[(name, 0.15) for name in ("crash", "remount")],
        ]

    def number(self) -> int:
        return self.rng.randrange(BIG)

    def arguments(self, name: str) -> tuple[Any, ...]:
        """Arguments for one call of a twin's operation."""
        rng, n = self.rng, self.number
        offset, size = rng.choice(OFFSETS) + rng.choice((0, 0, n() % 300)), rng.choice(SIZES)
        makers: dict[str, Callable[[], tuple[Any, ...]]] = {
            "write": lambda: (n(), offset, size),
            "held_write": lambda: (n(), offset, size),
            "fallocate": lambda: (n(), offset, size),
            "append": lambda: (n(), size),
            "truncate": lambda: (n(), rng.choice((0, offset, size))),
            "held_truncate": lambda: (n(), rng.choice((0, offset, size))),
            "create": lambda: (n(), n()),
            "mkdir": lambda: (n(), n()),
            "symlink": lambda: (n(), n(), n()),
            "link": lambda: (n(), n(), n()),
            "rename": lambda: (n(), n(), n(), rng.random() < 0.1),
            "chmod": lambda: (n(), rng.choice((0o600, 0o644, 0o755, 0o4711))),
            "chown": lambda: (n(), n() % 100, n() % 100),
            "utime": lambda: (n(), n() * 10**12, n() * 10**12 + 1),
            "setxattr": lambda: (n(), n(), rng.choice((0, 3, 500, 3700))),
            "removexattr": lambda: (n(), n()),
            "snapshot": lambda: (rng.random() < 0.5,),
            "reclaim": lambda: (rng.choice((1, 10, 1000)),),
            "burst": lambda: (n(), rng.choice((5, 60))),
            "crash": lambda: (rng.choice((1, 2, 3)),),
            "remount": lambda: (rng.choice((1, 2, 3)),),
            "gc": lambda: (),
        }
        return makers[name]() if name in makers else (n(),)

    def step(self) -> None:
        """One operation."""
        names = list(self.weights)
        name = self.rng.choices(names, [self.weights[name] for name in names])[0]
        getattr(self.twin, name)(*self.arguments(name))

    def last(self) -> str:
        """Name of the operation that was done last."""
        return self.twin.log[-1].split()[0] if self.twin.log else ""

    def run(self, steps: int, compare_every: int = 20, audit_every: int = 200) -> None:
        """Steps, with comparisons in between and at the end. A failure tells what led to it."""
        try:
            for number in range(1, steps + 1):
                self.step()
                if number % compare_every == 0 or self.last() in ("crash", "remount"):
                    self.twin.compare()
                if number % audit_every == 0:
                    self.twin.audit()
            self.twin.compare()
            self.twin.audit()
        except Exception as error:
            error.add_note(f"seed {self.seed}, step {number}; the last of them:")
            error.add_note("\n".join(self.twin.log[-15:]))
            raise
        finally:
            self.twin.close()


def main() -> None:
    """Run seeds, one after the other, until time is up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--compare", type=int, default=20)
    parser.add_argument("--audit", type=int, default=200)
    parser.add_argument("--mib", type=int, default=8)
    options = parser.parse_args()
    for seed in range(options.seed, options.seed + options.seeds):
        start = time.perf_counter()
        driver = Driver(seed, options.mib * MIB)
        try:
            driver.run(options.steps, options.compare, options.audit)
        except Exception:
            traceback.print_exc()
        else:
            took = time.perf_counter() - start
            print(
                f"seed {seed}: {options.steps} steps, {driver.twin.refused} refused, {took:.1f} s"
            )


if __name__ == "__main__":
    main()

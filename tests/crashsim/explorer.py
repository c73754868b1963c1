"""The crash explorer: power fails at every fence of every operation, and each state is examined.

Structure  `Explorer` runs operations on an arena, each with a trace of its own. At each fence of it
           (and at the end) it builds states that the medium could be in, and for each: the checker
           finds nothing, the arena mounts, live tree and snapshots are whole, the core's free
           blocks are those that the logs leave.
Invariants
    CRASH-1  What a state shows is what was there before the operation in flight, or after it.
    CRASH-2  An operation that has returned is there.
    CRASH-3  What a mounted state shows survives another crash, and the arena works.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from crashsim.arena import Arena, Memory, differences, everything
from crashsim.medium import FENCE, LINE, Medium, events
from nova_mp.tools.fsck import check, format_report

Operation = Callable[[Any], Any]
CPUS = (1, 2, 3)


class Lost(AssertionError):
    """A state that must not be. `str` tells what is wrong, and how to get it again."""


class Explorer:
    """Explores one run. `singles` and `subsets` bound the states of a fence, `every` the checker.

    The checker is slow, so it looks at every `every`-th state; the others are mounted and compared.
    """

    def __init__(
        self, arena: Arena, seed: int, *, singles: int = 4, subsets: int = 4, every: int = 4
    ) -> None:
        self.arena = arena
        self.rng = random.Random(seed)
        self.seed = seed
        self.singles, self.subsets, self.every = singles, subsets, every
        self.medium = Medium(arena.image())
        self.memory = Memory(len(self.medium.image), max(CPUS))
        self.memory.users = 1
        self.shown = everything(arena.fs)
        self.counts: Counter[str] = Counter()
        self.name = ""
        self.fence = 0

    def close(self) -> None:
        """Give the memory back in which states are mounted."""
        self.memory.drop()

    def __enter__(self) -> Explorer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def run(self, name: str, operation: Operation) -> None:
        """Run one operation, and explore the crashes in it."""
        self.name, self.fence = name, 0
        before = self.shown
        self.arena.fs.trace_start()
        try:
            operation(self.arena.fs)
        finally:
            trace = self.arena.fs.trace_stop()
        after = everything(self.arena.fs)
        recent: set[int] = set()
        self.counts["operations"] += 1
        for event in events(trace):
            if event.kind == FENCE:
                self.fence += 1
                self.counts["fences"] += 1
                self._explore(recent, [before, after])
                recent.clear()
            elif event.data:
                last = (event.offset + event.length - 1) // LINE
                recent.update(range(event.offset // LINE, last + 1))
            self.medium.feed(event)
        # It has returned: nothing but its outcome will do, whatever of the rest got through.
        self.fence = -1
        self._explore(recent, [after])
        self.shown = after

    def _explore(self, recent: set[int], allowed: list[Any]) -> None:
        seen = set()
        for name, choices in self.medium.choices(self.rng, recent, self.singles, self.subsets):
            lines = self.medium.state(choices)
            state = frozenset(lines.items())
            if state in seen:
                continue
            seen.add(state)
            self.counts["states"] += 1
            image = bytearray(self.medium.image)
            for line, data in lines.items():
                image[line * LINE : (line + 1) * LINE] = data
            try:
                self.examine(image, allowed)
            except Exception as error:
                raise Lost(
                    f"{self.name}, fence {self.fence}, {name}, seed {self.seed}: "
                    f"{type(error).__name__}: {error}"
                ) from error

    def examine(self, image: bytearray, allowed: list[Any]) -> None:
        """A state of the medium: it must be sound, and show one of what is allowed."""
        number = self.counts["states"]
        checked = number % self.every == 0
        if checked:
            self.counts["checked"] += 1
            report = check(image)
            assert report.ok, format_report(report)
        mounted = Arena(image=image, cpus=self.rng.choice(CPUS), memory=self.memory)
        try:
            found = everything(mounted.fs)
            if found not in allowed:
                lines = [differences(found, wanted) for wanted in allowed]
                raise AssertionError("\n  or ".join("; ".join(line[:6]) for line in lines))
            self.counts["before" if found == allowed[0] else "after"] += 1
            if checked:
                mounted.settle()
                report = check(mounted.image(), free_blocks=mounted.free())
                assert report.ok, format_report(report)
            if number % (self.every * 4) == 0:
                mounted = self._use(mounted, found)
        finally:
            mounted.close()

    def _use(self, mounted: Arena, found: Any) -> Arena:
        """CRASH-3: crash again, work, unmount, mount."""
        self.counts["used"] += 1
        mounted = mounted.crash()
        assert everything(mounted.fs) == found, "another mount shows something else"
        fs = mounted.fs
        for number in range(4):
            fs.make_dir(f"/used-{number}")
            with fs.open(f"/used-{number}/file", "xb") as file:
                file.write(b"%d" % number * 5000)
        fs.gc()
        shown = everything(fs)
        mounted.settle()
        free = mounted.free()
        mounted = mounted.remount()
        assert mounted.recovery["clean"]
        assert everything(mounted.fs) == shown, "what was written after the crash is not there"
        report = check(mounted.image(), free_blocks=mounted.free())
        assert report.ok, format_report(report)
        assert mounted.free() == free, f"{free} blocks free, then {mounted.free()}"
        return mounted

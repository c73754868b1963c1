"""Looking for the next request for a moment before sleeping: adaptive busy polling.

A client that makes one call after another sends the next one some microseconds after the reply. A
worker that has gone to sleep by then is woken first, and on an idle core that takes longer than a
read does. How long it pays to look is learnt from what comes, as KVM's halt polling learns it: a
request that woke the worker soon after it fell asleep makes the time longer, one that was long in
coming sets it to nothing. So a worker that nobody asks does not look at all, and one that is asked
now and then looks no longer than LONGEST_NS for a request.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

LONGEST_NS = 200_000
"""Longest look. A wake-up, and what an idle core's sleep costs, stays below it."""

FIRST_NS = 25_000
"""The first look after none."""


class BusyPoll:
    """When to look for a request, and for how long; `ready` says whether one is there."""

    def __init__(self, ready: Callable[[], object], cores: int) -> None:
        self._ready = ready
        # Whoever looks on the only core keeps the client from sending what he looks for.
        self._longest_ns = LONGEST_NS if cores > 1 else 0
        self._began_ns = 0
        self.budget_ns = 0

    def look(self) -> bool:
        """Whether a request is there, now or within the time that looking is worth."""
        if self._ready():
            return True
        self._began_ns = began = time.monotonic_ns()
        if not self.budget_ns:
            return False
        until = began + self.budget_ns
        while time.monotonic_ns() < until:
            if self._ready():
                return True
            os.sched_yield()
        return False

    def woken(self) -> None:
        """A request ended the sleep that followed the last `look`."""
        if time.monotonic_ns() - self._began_ns > self._longest_ns:
            self.budget_ns = 0
        else:
            self.budget_ns = min(self._longest_ns, max(FIRST_NS, 2 * self.budget_ns))

"""What the cleaner decides: when to reclaim, and when everything is reclaimed.

It reclaims once when it starts (an earlier cleaner may have died half-way) and after every
deletion that the coordinator publishes. It reports to the coordinator how much is left, which is
what `snapshots.wait()` waits for. When a pass makes no progress (somebody still reads what is to be
freed) it tries again after a pause.

    RECLAIMING --nothing left--> IDLE --deletion--> RECLAIMING
        | no progress            ^
        +--> PAUSED --pause over-+--> RECLAIMING
    any --quit--> STOPPED (from RECLAIMING when the call under way has come back)

Invariants
- CLEAN-1: one reclaim call at a time.
- CLEAN-2: "0 left" is reported only for a pass that began after that deletion was seen.
"""

from __future__ import annotations

import enum

from nova_mp.cluster.machine import Machine, require, table
from nova_mp.cluster.vocabulary import (
    EpochSeen,
    Exit,
    QuitAsked,
    Reclaim,
    Reclaimed,
    Report,
    SetTimer,
    Tick,
)
from nova_mp.protocol.messages import ReclaimReport

BUDGET = 2000
"""Entries of one reclaim call: some milliseconds, so that a quit is seen soon."""

PAUSE_S = 0.1
PAUSE_MAX_S = 2.0


class State(enum.Enum):
    """States of the cleaner; see the head of this file."""

    RECLAIMING = "reclaiming"
    PAUSED = "paused"
    IDLE = "idle"
    STOPPED = "stopped"


class Cleaner(Machine):
    """The state machine of the cleaner process."""

    def __init__(self) -> None:
        super().__init__()
        self.state = State.IDLE
        self._seen = ("", -1, False)
        self._pass = self._seen
        self._calling = False
        self._again = False
        self._left: int | None = None
        self._pause_s = PAUSE_S
        self._quitting = False

    def start(self) -> list[object]:
        """Instructions for the moment the process has come up."""
        self._begin_pass()
        out, self._out = self._out, []
        return out

    def _begin_pass(self) -> None:
        self._pass, self._again, self._left = self._seen, False, None
        self._call()

    def _call(self) -> None:
        self._calling = True
        self.state = State.RECLAIMING
        self.emit(Reclaim(BUDGET))

    def _report(self, left: int) -> None:
        incarnation, deletions, _ = self._pass
        if incarnation:
            self.emit(Report(ReclaimReport(incarnation, deletions, left)))

    def _on_epoch(self, event: EpochSeen) -> None:
        # A thaw counts as well: while frozen the core reclaims nothing.
        seen = (event.incarnation, event.deletions, event.frozen)
        if seen == self._seen:
            return
        self._seen = seen
        self._pause_s = PAUSE_S
        if self.state is State.RECLAIMING:
            self._again = True
        else:
            self.emit(SetTimer(None))
            self._begin_pass()

    def _on_reclaimed(self, event: Reclaimed) -> None:
        self._calling = False
        if self._quitting:
            self.state = State.STOPPED
            self.emit(Exit())
        elif event.left == 0:
            self._report(0)
            self._pause_s = PAUSE_S
            if self._again:
                self._begin_pass()
            else:
                self.state = State.IDLE
        elif self._left is None or event.left < self._left:
            self._left = event.left
            self._call()
        elif self._again:
            # A deletion since this pass began may be what makes progress possible.
            self._begin_pass()
        else:
            self._report(event.left)
            self.state = State.PAUSED
            self.emit(SetTimer(event.now + self._pause_s))
            self._pause_s = min(2 * self._pause_s, PAUSE_MAX_S)

    def _on_tick(self, event: Tick) -> None:
        self._begin_pass()

    def _ignore(self, event: object) -> None:
        """A timer that was replaced by an event, or an event after the end."""

    def _on_quit(self, event: QuitAsked) -> None:
        self._quitting = True
        if not self._calling:
            self.state = State.STOPPED
            self.emit(Exit())

    def validate(self) -> None:
        """Check CLEAN-1."""
        require(
            self._calling == (self.state is State.RECLAIMING), "CLEAN-1: calls and state differ"
        )

    TRANSITIONS = table(
        {
            ((State.IDLE, State.PAUSED), EpochSeen): (
                "_on_epoch",
                (State.IDLE, State.PAUSED, State.RECLAIMING),
            ),
            (State.RECLAIMING, EpochSeen): ("_on_epoch", State.RECLAIMING),
            (State.RECLAIMING, Reclaimed): (
                "_on_reclaimed",
                (State.IDLE, State.PAUSED, State.RECLAIMING, State.STOPPED),
            ),
            (State.PAUSED, Tick): ("_on_tick", State.RECLAIMING),
            (State.IDLE, Tick): ("_ignore", State.IDLE),
            (State.RECLAIMING, Tick): ("_ignore", State.RECLAIMING),
            (State.STOPPED, (Tick, EpochSeen, QuitAsked)): ("_ignore", State.STOPPED),
            ((State.IDLE, State.PAUSED), QuitAsked): ("_on_quit", State.STOPPED),
            (State.RECLAIMING, QuitAsked): ("_on_quit", State.RECLAIMING),
        }
    )

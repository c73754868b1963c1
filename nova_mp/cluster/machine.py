"""What the engine's state machines share.

A machine decides and does no I/O: `step(event)` changes its state and returns the instructions
that its process carries out, in order. Time is a field of the events (seconds of a monotonic
clock), so every run can be replayed. The transition table names, for each state and event, the
method that decides and the states it may lead to; `step` holds the machine to it, and calls
`validate()` after each event.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar


class UnexpectedEvent(RuntimeError):
    """The table has no transition for this event in this state: a fault in the process."""


class InvariantBroken(AssertionError):
    """A machine's `validate()` found what must not be."""


def require(condition: bool, what: str) -> None:
    """Raise InvariantBroken unless `condition` holds; unlike `assert` it stays on with -O."""
    if not condition:
        raise InvariantBroken(what)


@dataclass(frozen=True, slots=True)
class Transition:
    """`method` decides; afterwards the machine is in one of the states `leads_to`."""

    method: str
    leads_to: tuple[enum.Enum, ...]


def table(
    rows: Mapping[tuple[Any, Any], tuple[str, Any]],
) -> dict[tuple[enum.Enum, type], Transition]:
    """A transition table from {(states, events): (method, states it may lead to)}.

    Each place of the key may be one or a tuple of several.
    """
    made: dict[tuple[enum.Enum, type], Transition] = {}
    for (states, events), (method, leads_to) in rows.items():
        after = leads_to if isinstance(leads_to, tuple) else (leads_to,)
        for state in states if isinstance(states, tuple) else (states,):
            for event in events if isinstance(events, tuple) else (events,):
                if (state, event) in made:
                    raise ValueError(f"two transitions for {state} and {event.__name__}")
                made[state, event] = Transition(method, after)
    return made


class Machine:
    """Base of the machines; a subclass sets TRANSITIONS and its first `state`."""

    TRANSITIONS: ClassVar[dict[tuple[enum.Enum, type], Transition]] = {}
    state: Any

    def __init__(self) -> None:
        self._out: list[Any] = []
        # The rows of the table for one state, looked up once for as long as the state stays.
        self._rows_of: enum.Enum | None = None
        self._rows: dict[type, tuple[Callable[[Any], None], Transition]] = {}

    def step(self, event: Any) -> list[Any]:
        """Take in one event; gives back the instructions to carry out, in order."""
        if self.state is not self._rows_of:
            self._look_up_rows()
        row = self._rows.get(type(event))
        if row is None:
            raise UnexpectedEvent(f"{type(self).__name__}: {event!r} in {self.state}")
        decide, transition = row
        decide(event)
        if self.state not in transition.leads_to:
            raise InvariantBroken(
                f"{transition.method} led to {self.state}, not one of {transition.leads_to}"
            )
        self.validate()
        out, self._out = self._out, []
        return out

    def _look_up_rows(self) -> None:
        self._rows = {
            event: (getattr(self, transition.method), transition)
            for (state, event), transition in self.TRANSITIONS.items()
            if state is self.state
        }
        self._rows_of = self.state

    def emit(self, instruction: Any) -> None:
        """Add an instruction to what the running `step` returns."""
        self._out.append(instruction)

    def validate(self) -> None:
        """Raise InvariantBroken if the machine's own invariants do not hold."""

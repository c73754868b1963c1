"""What a snapshot may hold, given what each client did and when.

Each client is a sequence of operations on paths that only it touches; each operation sets one or
two paths to a new value (a file's length and checksum, or absent), at one instant between the
moments before and after its call. A snapshot is a map of all paths to values, taken at one instant
between the moments before and after `create`. It is right if and only if there is one number of
operations per client, the *cut*, so that

- ORACLE-1: the snapshot holds, for each client, exactly what its first `cut` operations left:
  nothing half done, nothing missing, nothing extra, and no operation without those before it;
- ORACLE-2: every operation that had returned before `create` was called is within the cut;
- ORACLE-3: no operation that began after `create` had returned is within it;
- ORACLE-4: if an operation is within its client's cut, so is every operation of any other client
  that had returned before it began.

`History` is what a client records, `check_snapshot` decides. Times are CLOCK_MONOTONIC, in ns,
which all processes of a machine share.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Value = tuple[int, int] | None
"""A file's (length in bytes, CRC32), or None where there is no such file."""

_NONE = 0xFFFFFFFF


class Violation(Exception):
    """A state that no moment of the clients' work can explain; the text names the evidence."""


@dataclass(slots=True)
class History:
    """The operations of one client, in order. Compact: a demo makes hundreds of thousands."""

    paths: list[str] = field(default_factory=list)
    index_of: dict[str, int] = field(default_factory=dict)
    began: array[int] = field(default_factory=lambda: array("q"))
    ended: array[int] = field(default_factory=lambda: array("q"))
    # Per operation two assignments: path index (or _NONE), length, checksum; length -1 is absent.
    targets: array[int] = field(default_factory=lambda: array("I"))
    lengths: array[int] = field(default_factory=lambda: array("q"))
    checksums: array[int] = field(default_factory=lambda: array("I"))

    def __len__(self) -> int:
        return len(self.began)

    def record(
        self, began: int, ended: int, path: str, value: Value,
        other: str | None = None, other_value: Value = None,
    ) -> None:
        """Add an operation that set ``path`` to ``value`` (and ``other`` to ``other_value``)."""
        self.began.append(began)
        self.ended.append(ended)
        self._assign(path, value)
        self._assign(other, other_value)

    def _assign(self, path: str | None, value: Value) -> None:
        length, checksum = value or (-1, 0)
        self.targets.append(_NONE if path is None else self._index(path))
        self.lengths.append(length)
        self.checksums.append(checksum)

    def _index(self, path: str) -> int:
        found = self.index_of.get(path)
        if found is None:
            found = self.index_of[path] = len(self.paths)
            self.paths.append(path)
        return found

    def assignments(self, operation: int) -> list[tuple[str, Value]]:
        """What one operation set."""
        found: list[tuple[str, Value]] = []
        for at in (2 * operation, 2 * operation + 1):
            if self.targets[at] != _NONE:
                length = self.lengths[at]
                value = None if length < 0 else (length, self.checksums[at])
                found.append((self.paths[self.targets[at]], value))
        return found

    def returned_before(self, instant: int) -> int:
        """How many operations had returned before ``instant``."""
        return bisect_left(self.ended, instant)

    def begun_by(self, instant: int) -> int:
        """How many operations had begun by ``instant``."""
        return bisect_right(self.began, instant)


class Replay:
    """The state of one client's paths after its first ``at`` operations; moves forward only."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.at = 0
        self.state: dict[str, tuple[int, int]] = {}

    def advance(self, count: int) -> None:
        """Go on to the state after ``count`` operations."""
        if count < self.at:
            raise ValueError(f"cannot go back from operation {self.at} to {count}")
        for operation in range(self.at, count):
            for path, value in self.history.assignments(operation):
                if value is None:
                    self.state.pop(path, None)
                else:
                    self.state[path] = value
        self.at = count

    def matches(self, found: Mapping[str, tuple[int, int]], high: int) -> tuple[list[int], str]:
        """The counts from here to ``high`` after which the state is exactly ``found``.

        The state itself does not move. With them comes a description of the first difference at
        the count that came nearest, for when there is none.
        """
        wrong = {path for path, value in self.state.items() if found.get(path) != value}
        wrong |= found.keys() - self.state.keys()
        fitting = [] if wrong else [self.at]
        nearest, near_at, near_wrong = len(wrong), self.at, set(wrong)
        changed: dict[str, Value] = {}
        for operation in range(self.at, high):
            for path, value in self.history.assignments(operation):
                changed[path] = value
                if found.get(path) == value:
                    wrong.discard(path)
                else:
                    wrong.add(path)
            if not wrong:
                fitting.append(operation + 1)
            if len(wrong) < nearest:
                nearest, near_at, near_wrong = len(wrong), operation + 1, set(wrong)
        return fitting, self._describe(found, near_at, near_wrong)

    def _describe(self, found: Mapping[str, tuple[int, int]], at: int, wrong: set[str]) -> str:
        if not wrong:
            return ""
        expected = dict(self.state)
        for operation in range(self.at, at):
            for path, value in self.history.assignments(operation):
                if value is None:
                    expected.pop(path, None)
                else:
                    expected[path] = value
        path = min(wrong)
        return (
            f"{len(wrong)} paths differ from the state after {at} operations; {path}:"
            f" {show(found.get(path))} instead of {show(expected.get(path))}"
        )


def show(value: Value) -> str:
    """A value for people."""
    return "absent" if value is None else f"{value[0]} bytes with CRC32 {value[1]:08x}"


@dataclass(frozen=True, slots=True)
class Taken:
    """A snapshot: its id, and the moments before and after the call that created it."""

    epoch_id: int
    began: int
    ended: int


class Oracle:
    """Checks snapshots against the histories of all clients, in the order they were taken."""

    def __init__(self, histories: Sequence[History]) -> None:
        self.histories = histories
        self.replays = [Replay(history) for history in histories]
        self.owner: dict[str, int] = {}
        for client, history in enumerate(histories):
            for path in history.paths:
                if self.owner.setdefault(path, client) != client:
                    raise ValueError(f"two clients worked on {path}")

    def check(self, taken: Taken, found: Mapping[str, tuple[int, int]]) -> list[int]:
        """The cut that explains a snapshot's files; raises Violation when there is none.

        Snapshots must come in the order of their ``began``; each costs what was done since the
        last one, plus one look at each file.
        """
        parts = self._by_client(found)
        choices: list[list[int]] = []
        for client, (history, replay) in enumerate(zip(self.histories, self.replays, strict=True)):
            replay.advance(history.returned_before(taken.began))
            fitting, difference = replay.matches(parts[client], history.begun_by(taken.ended))
            if not fitting:
                raise Violation(
                    f"snapshot {taken.epoch_id}, client {client}: no count from {replay.at} to"
                    f" {history.begun_by(taken.ended)} of its operations explains it:"
                    f" {difference}"
                )
            choices.append(fitting)
        return self._consistent(taken, choices)

    def check_final(self, found: Mapping[str, tuple[int, int]]) -> None:
        """Check the live state after all operations returned; raises Violation."""
        parts = self._by_client(found)
        for client, (history, replay) in enumerate(zip(self.histories, self.replays, strict=True)):
            replay.advance(len(history))
            fitting, difference = replay.matches(parts[client], len(history))
            if not fitting:
                raise Violation(f"live files of client {client}: {difference}")

    def _by_client(
        self, found: Mapping[str, tuple[int, int]]
    ) -> list[dict[str, tuple[int, int]]]:
        parts: list[dict[str, tuple[int, int]]] = [{} for _ in self.histories]
        for path, value in found.items():
            client = self.owner.get(path)
            if client is None:
                raise Violation(f"{path}: nobody ever made such a file")
            parts[client][path] = value
        return parts

    def _consistent(self, taken: Taken, choices: list[list[int]]) -> list[int]:
        """The smallest cut of the fitting counts that ORACLE-4 allows.

        What one client's cut demands of another's only grows with it, so raising the cuts step by
        step from the smallest finds the least solution, if there is one.
        """
        cut = [fitting[0] for fitting in choices]
        moved = True
        while moved:
            moved = False
            for later, count in enumerate(cut):
                if not count:
                    continue
                began = self.histories[later].began[count - 1]
                for earlier, fitting in enumerate(choices):
                    demanded = self.histories[earlier].returned_before(began)
                    if earlier == later or cut[earlier] >= demanded:
                        continue
                    at = bisect_left(fitting, demanded)
                    if at == len(fitting):
                        raise Violation(
                            f"snapshot {taken.epoch_id}: holds operation {count} of client {later},"
                            f" but not operation {demanded} of client {earlier}, which had returned"
                            " before that one began"
                        )
                    cut[earlier] = fitting[at]
                    moved = True
        return cut

"""The demo's judge must pass every state that can be explained, and none that cannot."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_mp.bench.oracle import History, Oracle, Taken, Violation

CLIENTS = 3


class World:
    """Clients that work in turns on one clock, and the whole truth about it."""

    def __init__(self, seed: int, operations: int = 60) -> None:
        self.random = random.Random(seed)
        self.histories = [History() for _ in range(CLIENTS)]
        self.state: dict[str, tuple[int, int]] = {}
        self.states = [dict(self.state)]
        self.order: list[int] = []
        self.clock = 0
        for number in range(operations):
            self.step(self.random.randrange(CLIENTS), number)

    def step(self, client: int, number: int) -> None:
        """One operation, at one instant between its beginning and its end."""
        mine = [path for path in self.state if path.startswith(f"/{client}-")]
        kind = self.random.choice(["create", "write", "rename", "unlink"]) if mine else "create"
        path = self.random.choice(mine) if mine else ""
        began = self.clock = self.clock + 10
        ended = began + 5
        value = (number, self.random.getrandbits(32))
        history = self.histories[client]
        match kind:
            case "create":
                path = f"/{client}-{number}"
                history.record(began, ended, path, value)
                self.state[path] = value
            case "write":
                history.record(began, ended, path, value)
                self.state[path] = value
            case "rename":
                moved = self.state.pop(path)
                history.record(began, ended, path, None, f"/{client}-{number}", moved)
                self.state[f"/{client}-{number}"] = moved
            case "unlink":
                history.record(began, ended, path, None)
                del self.state[path]
        self.clock = ended
        self.order.append(client)
        self.states.append(dict(self.state))

    def taken_after(self, count: int, slack: int = 0) -> Taken:
        """A snapshot whose call spans ``slack`` operations on either side of ``count``."""
        instant = count * 15 + 5
        return Taken(count, instant - slack * 15, instant + slack * 15)

    def cut_after(self, count: int) -> list[int]:
        return [self.order[:count].count(client) for client in range(CLIENTS)]


@given(st.integers(0, 10_000), st.integers(0, 60), st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_every_moment_of_the_truth_passes(seed: int, count: int, slack: int) -> None:
    world = World(seed)
    Oracle(world.histories).check(world.taken_after(count, slack), world.states[count])


def test_the_cut_is_found() -> None:
    world = World(7)
    for count in range(0, 61, 5):
        oracle = Oracle(world.histories)
        assert oracle.check(world.taken_after(count), world.states[count]) == world.cut_after(count)


def test_snapshots_in_order_share_one_oracle() -> None:
    world = World(8)
    oracle = Oracle(world.histories)
    for count in range(61):
        oracle.check(world.taken_after(count, slack=1), world.states[count])
    oracle.check_final(world.states[60])


@given(st.integers(0, 10_000), st.integers(5, 60), st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_snapshot_never_passes(seed: int, count: int, data: st.DataObject) -> None:
    world = World(seed)
    found = dict(world.states[count])
    kinds = ["content", "length", "missing"] if found else []
    kind = data.draw(st.sampled_from([*kinds, "extra", "foreign"]))
    path = data.draw(st.sampled_from(sorted(found))) if found else ""
    match kind:
        case "content":
            found[path] = (found[path][0], found[path][1] ^ 1)
        case "length":
            found[path] = (found[path][0] + 1_000, found[path][1])
        case "missing":
            del found[path]
        case "extra":
            gone = sorted({p for state in world.states for p in state} - found.keys())
            if not gone:
                return
            found[gone[0]] = (99_999, 0)
        case "foreign":
            found["/nobody"] = (1, 1)
    with pytest.raises(Violation):
        # A file that is missing may be an overlapping operation's doing; a wrong byte never is.
        slack = 2 if kind in ("content", "length", "foreign") else 0
        Oracle(world.histories).check(world.taken_after(count, slack), found)


def two_writes() -> tuple[History, History]:
    """Client 0 writes and returns; then client 1 writes."""
    first, second = History(), History()
    first.record(0, 1, "/a", (1, 1))
    second.record(2, 3, "/b", (1, 1))
    first.record(10, 11, "/a", (2, 2))
    second.record(20, 21, "/b", (2, 2))
    return first, second


def test_an_operation_that_returned_before_the_call_is_in() -> None:
    with pytest.raises(Violation, match="no count"):
        Oracle(two_writes()).check(Taken(1, 30, 40), {"/a": (2, 2), "/b": (1, 1)})


def test_an_operation_that_began_after_the_return_is_not_in() -> None:
    with pytest.raises(Violation, match="no count"):
        Oracle(two_writes()).check(Taken(1, 4, 9), {"/a": (2, 2), "/b": (1, 1)})


def test_an_overlapping_operation_may_be_in_or_not() -> None:
    for found in ({"/a": (1, 1), "/b": (1, 1)}, {"/a": (2, 2), "/b": (1, 1)}):
        Oracle(two_writes()).check(Taken(1, 5, 15), found)


def test_a_later_operation_needs_an_earlier_one_of_another_client() -> None:
    found = {"/a": (1, 1), "/b": (2, 2)}
    with pytest.raises(Violation, match="had returned before that one began"):
        Oracle(two_writes()).check(Taken(1, 5, 30), found)


def test_a_later_operation_needs_an_earlier_one_of_the_same_client() -> None:
    history = History()
    history.record(0, 1, "/a", (1, 1))
    history.record(2, 3, "/b", (1, 1))
    with pytest.raises(Violation, match="no count"):
        Oracle([history]).check(Taken(1, -5, 30), {"/b": (1, 1)})


def test_a_rename_is_whole() -> None:
    history = History()
    history.record(0, 1, "/a", (1, 1))
    history.record(5, 6, "/a", None, "/b", (1, 1))
    taken = Taken(1, 4, 7)
    for good in ({"/a": (1, 1)}, {"/b": (1, 1)}):
        Oracle([history]).check(taken, good)
    for torn in ({}, {"/a": (1, 1), "/b": (1, 1)}):
        with pytest.raises(Violation):
            Oracle([history]).check(taken, torn)


def test_an_ambiguous_cut_is_chosen_so_that_it_is_consistent() -> None:
    """Make and remove leave the same state; only the larger count explains the other client."""
    first, second = History(), History()
    first.record(0, 1, "/a", (1, 1))
    first.record(2, 3, "/a", None)
    second.record(5, 6, "/b", (1, 1))
    assert Oracle([first, second]).check(Taken(1, -1, 9), {"/b": (1, 1)}) == [2, 1]


def test_a_lost_final_write_is_seen() -> None:
    oracle = Oracle(two_writes())
    with pytest.raises(Violation, match="live files of client 1"):
        oracle.check_final({"/a": (2, 2), "/b": (1, 1)})
    Oracle(two_writes()).check_final({"/a": (2, 2), "/b": (2, 2)})


def test_two_clients_on_one_path_are_refused() -> None:
    first, second = History(), History()
    first.record(0, 1, "/a", (1, 1))
    second.record(0, 1, "/a", (1, 1))
    with pytest.raises(ValueError, match="two clients"):
        Oracle([first, second])

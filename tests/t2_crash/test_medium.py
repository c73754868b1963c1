"""The model of the medium itself: what a fence makes persistent, and what a crash may leave."""

from __future__ import annotations

import random

import pytest
from crashsim.medium import (
    ALL,
    COPY_NT,
    FENCE,
    FLUSH,
    LINE,
    RECORD,
    STORE,
    Choice,
    Event,
    Medium,
    changed_lines,
    events,
    replay,
)

SIZE = 4 * LINE


def store(offset: int, data: bytes, kind: int = STORE) -> Event:
    return Event(kind, offset, len(data), data)


def fed(*given: Event) -> Medium:
    medium = Medium(bytes(SIZE))
    for event in given:
        medium.feed(event)
    return medium


def test_a_store_is_persistent_once_flushed_and_fenced() -> None:
    fence, flush = Event(FENCE, 0, 0), Event(FLUSH, 0, 8)
    for given, there in (
        ([], b"\0"),
        ([fence], b"\0"),
        ([flush], b"\0"),
        ([fence, flush], b"\0"),
        ([flush, fence], b"a"),
    ):
        medium = fed(store(0, b"a" * 8), *given)
        assert medium.image[:8] == there * 8
        assert bool(medium.pending) == (there == b"\0")


def test_what_was_stored_after_the_flush_is_not() -> None:
    given = [store(0, b"a" * 8), Event(FLUSH, 0, 8), store(8, b"b" * 8), Event(FENCE, 0, 0)]
    medium = fed(*given)
    assert medium.image[:16] == b"a" * 8 + bytes(8)
    assert medium.line(0, Choice(1))[:16] == b"a" * 8 + b"b" * 8


def test_a_copy_past_the_cache_needs_no_flush() -> None:
    medium = fed(store(32, b"n" * 100, COPY_NT))
    assert set(medium.pending) == {0, 1, 2}
    medium.feed(Event(FENCE, 0, 0))
    assert medium.image[32:132] == b"n" * 100 and not medium.pending


def test_a_line_holds_a_prefix_of_its_stores() -> None:
    medium = fed(store(0, b"1" * 8), store(8, b"2" * 8), store(0, b"3" * 8))
    found = {medium.line(0, Choice(count))[:16] for count in range(4)}
    parts = (bytes(16), b"1" * 8 + bytes(8), b"1" * 8 + b"2" * 8, b"3" * 8 + b"2" * 8)
    assert found == set(parts)


def test_a_long_store_may_tear_between_words_only() -> None:
    medium = fed(store(4, b"x" * 20))
    for words in range(256):
        line = medium.line(0, Choice(0, words))
        for at, low in ((0, 4), (8, 8), (16, 16)):
            assert line[low : at + 8] in (bytes(at + 8 - low), b"x" * (at + 8 - low))
        assert line[24:] == bytes(LINE - 24)


def test_every_state_lies_between_none_and_all() -> None:
    medium = fed(*(store(number * 8, bytes([number + 1]) * 8) for number in range(20)))
    everything = medium.state({line: Choice(ALL) for line in medium.pending})
    names = set()
    for name, choices in medium.choices(random.Random(1), {0, 1, 2}, singles=9, subsets=50):
        names.add(name)
        for line, data in medium.state(choices).items():
            for at in range(0, LINE, 8):
                assert data[at : at + 8] in (bytes(8), everything[line][at : at + 8])
    assert {"none", "all", "only line 0x0", "all but line 0x40", "random 49"} <= names


def test_traces_are_parsed_and_replayed() -> None:
    trace = RECORD.pack(8, 4, STORE, 0) + b"abcd" + RECORD.pack(8, 4, FLUSH, 0)
    trace += RECORD.pack(0, 0, FENCE, 0)
    assert [event.kind for event in events(trace)] == [STORE, FLUSH, FENCE]
    after = replay(bytes(SIZE), trace)
    assert after[8:12] == b"abcd" and changed_lines(bytes(SIZE), after) == [0]
    for damaged in (trace[:-1], trace + b"\0", RECORD.pack(0, 0, 9, 0)):
        with pytest.raises(ValueError, match="trace"):
            list(events(damaged))

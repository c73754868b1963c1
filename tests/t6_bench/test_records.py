"""Self-describing blocks: each kind of damage is seen, and a snapshot must be a prefix."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_mp.bench.records import Recorder, RecordError, check_prefix

BLOCKS = 8


def recorder(block_bytes: int = 256) -> Recorder:
    return Recorder(client=3, blocks_per_file=BLOCKS, block_bytes=block_bytes, seed=1)


def test_a_record_is_what_it_says() -> None:
    subject = recorder()
    first = bytes(subject.fill(1, 2))
    second = bytes(subject.fill(1, 2))
    assert first != second
    assert subject.inspect(first, 1, 2) == 1
    assert subject.check(second, 1, 2) == 2
    with pytest.raises(RecordError, match="holds write 1, the latest was 2"):
        subject.check(first, 1, 2)


@given(st.integers(0, 255), st.integers(0, 255))
@settings(max_examples=300, deadline=None)
def test_no_flipped_byte_passes(at: int, flip: int) -> None:
    subject = recorder()
    data = subject.fill(0, 0)
    damaged = bytearray(data)
    damaged[at] ^= flip
    if flip == 0:
        subject.check(damaged, 0, 0)
    else:
        with pytest.raises(RecordError):
            subject.check(damaged, 0, 0)


@pytest.mark.parametrize("cut", [64, 512, 1024, 4000, 4095])
def test_a_torn_block_is_seen(cut: int) -> None:
    subject = recorder(4096)
    old = bytes(subject.fill(0, 0))
    new = bytes(subject.fill(0, 0))
    with pytest.raises(RecordError, match="torn"):
        subject.inspect(new[:cut] + old[cut:], 0, 0)


def test_a_record_of_another_place_is_seen() -> None:
    subject = recorder()
    data = bytes(subject.fill(0, 1))
    with pytest.raises(RecordError, match="holds a record of client 3 file 0 block 1"):
        subject.inspect(data, 0, 2)
    other = Recorder(4, BLOCKS, 256, 1)
    with pytest.raises(RecordError, match="holds a record of client 3"):
        other.inspect(data, 0, 1)


def test_zeros_and_short_blocks_are_seen() -> None:
    with pytest.raises(RecordError, match="not a record"):
        recorder().inspect(bytes(256), 0, 0)
    with pytest.raises(RecordError, match="100 bytes instead of 256"):
        recorder().inspect(bytes(100), 0, 0)


def test_too_small_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 64 bytes"):
        recorder(32)


def after(history: list[int], count: int) -> dict[int, int]:
    return {position: index for index, position in enumerate(history[:count], 1)}


HISTORIES = st.lists(st.integers(0, 5), min_size=1, max_size=40)


@given(HISTORIES, st.data())
@settings(max_examples=200, deadline=None)
def test_every_prefix_passes(history: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(history)))
    assert check_prefix(array("Q", history), after(history, count), 0, len(history)) == count


@given(HISTORIES, st.data())
@settings(max_examples=200, deadline=None)
def test_a_prefix_without_one_of_its_writes_fails(
    history: list[int], data: st.DataObject
) -> None:
    """One position holds an older write, or none, beside the newest write of another one."""
    found = after(history, len(history))
    newest = max(found.values())
    position = data.draw(st.sampled_from(sorted(found)))
    if found[position] == newest:
        return
    older = [n for n, p in enumerate(history, 1) if p == position and n < found[position]]
    if older:
        found[position] = older[-1]
    else:
        del found[position]
    with pytest.raises(RecordError, match="missing"):
        check_prefix(array("Q", history), found, 0, len(history))


def test_the_bounds_hold() -> None:
    history = array("Q", [0, 1, 0])
    with pytest.raises(RecordError, match="began after"):
        check_prefix(history, {0: 3, 1: 2}, 0, 2)
    with pytest.raises(RecordError, match="missing"):
        check_prefix(history, {0: 1, 1: 2}, 3, 3)

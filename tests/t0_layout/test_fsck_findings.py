"""Every finding of the checker: one damage, or more, that must be reported under its code."""

from __future__ import annotations

import pytest
from t0_layout.builder import BLOCK, ROOT, K, Sample, make_entry
from t0_layout.damages import (
    DAMAGES,
    NEXT_OFF,
    Damage,
    copies_differ,
    journal_checksum,
    journal_length,
    needed_entries,
    one_copy,
    save_lists,
)

from nova_mp.tools import image, logs
from nova_mp.tools.findings import CODES
from nova_mp.tools.frozen import FrozenImage
from nova_mp.tools.fsck import Checker, check

DIRTY = K["MOUNT_DIRTY"]


def test_sample_is_clean() -> None:
    report = check(Sample().data)
    assert report.ok and not report.counts, report.as_dict()
    assert report.statistics["snapshots"] == {"count": 2}
    blocks = report.statistics["blocks"]
    assert sum(blocks.values()) == 2 * blocks["total"]
    # Snapshot 1 holds page 1 and 2 of `a` and the page of `old`; snapshot 2 holds page 1 of `a`.
    assert blocks["held"] == 4 and blocks["data"] == 2


def test_good_saved_list_is_clean() -> None:
    sample = Sample()
    save_lists(sample, needed_entries(sample))
    report = check(sample.data)
    assert not report.counts, report.as_dict()
    assert report.statistics["blocks"]["list"] == 4


@pytest.mark.parametrize(
    ("code", "alone", "function"),
    DAMAGES,
    ids=[f"{code}-{function.__name__}" for code, _, function in DAMAGES],
)
def test_damage_is_found(code: str, alone: bool, function: Damage) -> None:
    sample = Sample()
    function(sample)
    report = check(sample.data)
    assert code in report.codes(), report.as_dict()
    if alone:
        assert report.codes() == {code}, report.as_dict()


def test_free_blocks_are_compared() -> None:
    data = Sample().data
    free = check(data).statistics["blocks"]["free"]
    assert check(data, free_blocks=free).ok
    assert check(data, free_blocks=free + 1).codes() == {"FSCK-705"}


def test_exclusive_blocks_are_compared() -> None:
    """The first has page 1 of `a`, and a dead inode's page and log; page 2 the second needs too."""
    sample = Sample()
    good = {sample.first: 3, sample.second: 1}
    assert check(sample.data, exclusive=good).ok
    for epoch, count in good.items():
        assert check(sample.data, exclusive={**good, epoch: count - 1}).codes() == {"FSCK-811"}


def test_every_code_has_a_damage() -> None:
    assert {code for code, _, _ in DAMAGES} | {"FSCK-705", "FSCK-811"} == set(CODES)


@pytest.mark.parametrize("function", [one_copy, journal_length, journal_checksum, copies_differ])
def test_what_a_crash_leaves_is_no_error(function: Damage) -> None:
    sample = Sample()
    sample.finish(state=DIRTY)
    function(sample)
    if function is copies_differ:
        sample.finish(state=DIRTY, sequence=9)
        sample.data[:512] = Sample().finish(state=DIRTY)[:512]
    assert check(sample.data).ok


def test_crash_between_snapshot_and_epoch_is_no_error() -> None:
    sample = Sample()
    sample.snapshot()
    sample.create(ROOT, b"in the new epoch")
    sample.finish(state=DIRTY, epoch_id=sample.epoch - 1)
    assert check(sample.data).ok


def test_committed_journal_is_redone() -> None:
    """A name without its inode is an error, unless a journal is about to make the inode valid."""
    sample = Sample()
    ino = sample.create(ROOT, b"new")
    sample.set_inode(ino, state=K["INODE_FREE"])
    sample.finish(state=DIRTY)
    assert check(sample.data).codes() == {"FSCK-601"}
    before = bytes(sample.data)
    sample.journal(1, [(sample.inode_off(ino), K["INODE_VALID"])])
    report = check(sample.data)
    assert report.ok and report.statistics["arena"]["journals_redone"] == 1
    assert bytes(sample.data[sample.inode_off(ino) :][:8]) == bytes(8) != before[:8]


def test_dirty_reserve_pages_are_counted() -> None:
    sample = Sample()
    page = sample.new_log_page(sample.a)
    head = sample.peek(sample.inode_off(sample.a) + 16)
    sample.poke(head + NEXT_OFF, "Q", page * BLOCK)
    report = check(sample.data)
    assert not report.counts
    assert report.statistics["blocks"]["reserve"] == 1


def test_stores_through_a_mapping_keep_the_old_contents() -> None:
    sample = Sample()
    ino = sample.create(ROOT, b"mapped")
    live = sample.write(ino, 0)
    sample.snapshot(b"before")
    preserved = sample.alloc()
    fields = {
        "epoch_id": sample.epoch,
        "pgoff": 0,
        "block_nr": live,
        "num_pages": 1,
        "kept_block_nr": preserved,
    }
    sample.append(ino, make_entry(logs.MMAP_WRITE, **fields))
    sample.finish()
    checker = Checker(image.Image(sample.data))
    checker.run()
    assert not checker.report.counts
    assert checker.blocks.describe(preserved) == f"a snapshot's view of inode {ino}"
    assert checker.blocks.describe(live) == f"the data of inode {ino}"


def test_frozen_copy_is_checked_like_the_arena() -> None:
    sample = Sample()
    sample.finish(state=DIRTY)
    whole = check(sample.data)
    copy = FrozenImage(image.Image(sample.data, name="running", live=True))
    sample.data[:] = bytes(len(sample.data))  # the copy does not depend on the arena any more
    report = Checker(copy).run()
    assert report.ok and not report.notes
    assert report.statistics["blocks"] == whole.statistics["blocks"]
    assert report.statistics["arena"]["state"] == "frozen"

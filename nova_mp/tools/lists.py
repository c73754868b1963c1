"""Saved snapshot lists: what a clean unmount left in PMEM so that mount need not rebuild it.

Structure  A snapshot's info entry names a page of 128 `nv_snapshot_nvmm_list`, one a CPU; each
           names a chain of list pages with 127 `nv_list_entry` and a tail. They count only in a
           cleanly unmounted arena whose superblock says that they were saved.
Invariants FMT-13: they are intact (SAVE-1) and as long as they say (SNAP-5), and hold exactly what
           the logs say that snapshots need, each thing once (SNAP-3); an entry stands in the list
           of the oldest snapshot that needs it (SNAP-2).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nova_mp.tools.blocks import HELD, LIST, Blocks
from nova_mp.tools.findings import Report
from nova_mp.tools.image import (
    BLOCK_BYTES,
    LIST_ENTRY,
    LIST_TAIL,
    NVMM_LIST,
    Image,
    K,
    crc32c,
)
from nova_mp.tools.logs import Entry
from nova_mp.tools.replay import Replayed, Snapshots

TAIL_OFF = K["LIST_ENTRIES"] * LIST_ENTRY.size


class _Lists:
    def __init__(
        self,
        image: Image,
        states: dict[int, Replayed],
        snapshots: Snapshots,
        blocks: Blocks,
        report: Report,
    ) -> None:
        self.image = image
        self.states = states
        self.snapshots = snapshots
        self.blocks = blocks
        self.report = report
        self.listed = bytearray(blocks.total)
        self.listed_inodes: set[int] = set()

    def _take(self, offset: int, epoch: int, where: str) -> bytes | None:
        nr, rest = divmod(offset, BLOCK_BYTES)
        if rest or not self.image.data_range(nr):
            self.report.error("FSCK-805", f"page at {offset:#x}", where)
            return None
        if self.blocks.kinds[nr] == LIST:
            self.report.error("FSCK-805", f"page at {offset:#x} is linked twice", where)
            return None
        self.blocks.claim(nr, LIST, epoch)
        return self.image.page(nr)

    def check(self, info: Entry) -> None:
        """Check the lists of one snapshot."""
        epoch = info.epoch_id
        offset = info.fields["nvmm_page_off"]
        if not offset:
            self.report.error("FSCK-805", "no lists, though all were saved", f"snapshot {epoch}")
            return
        table = self._take(offset, epoch, f"snapshot {epoch}")
        for cpu in range(K["MAX_CPUS"] if table else 0):
            assert table is not None
            where = f"snapshot {epoch} list {cpu}"
            data = table[cpu * NVMM_LIST.size : (cpu + 1) * NVMM_LIST.size]
            head = NVMM_LIST.decode(data)
            if not any(head.values()):
                continue
            if head["csum"] != crc32c(data[:24]):
                self.report.error("FSCK-805", "checksum of the list's head", where)
                continue
            for entry in self._entries(head, epoch, where):
                self._entry(entry, epoch, where)

    def _entries(self, head: dict[str, Any], epoch: int, where: str) -> Iterator[dict[str, Any]]:
        offset, pages, last = head["head_off"], 0, 0
        while offset:
            page = self._take(offset, epoch, where)
            if page is None:
                return
            tail = LIST_TAIL.decode(page, TAIL_OFF)
            count = tail["num_entries"]
            if tail["magic"] != K["MAGIC_LIST_PAGE"]:
                what = f"page at {offset:#x}: magic {tail['magic']:#x}"
                self.report.error("FSCK-805", what, where)
                return
            if count > K["LIST_ENTRIES"]:
                what = f"page at {offset:#x} says {count} entries"
                self.report.error("FSCK-808", what, where)
                return
            if tail["epoch_id"] != epoch or tail["csum"] != crc32c(page[: count * LIST_ENTRY.size]):
                what = f"page at {offset:#x}: checksum, or of snapshot {tail['epoch_id']}"
                self.report.error("FSCK-805", what, where)
                return
            yield from (LIST_ENTRY.decode(page, nr * LIST_ENTRY.size) for nr in range(count))
            pages, last, offset = pages + 1, offset, tail["next_page_off"]
        if (pages, last) != (head["num_pages"], head["tail_off"]):
            self.report.error("FSCK-808", f"{pages} pages, it says {head['num_pages']}", where)

    def _entry(self, entry: dict[str, Any], epoch: int, where: str) -> None:
        number, count = entry["nvmm"], entry["num_pages"]
        created, deleted = entry["create_epoch_id"], entry["delete_epoch_id"]
        if entry["entry_type"] == K["SS_INODE"]:
            state = self.states.get(number)
            if state is None or (state.create_epoch_id, state.delete_epoch_id) != (
                created,
                deleted,
            ):
                self.report.error("FSCK-806", f"inode {number} did not die so", where)
            elif number in self.listed_inodes:
                self.report.error("FSCK-809", f"inode {number} is listed twice", where)
            self.listed_inodes.add(number)
        elif entry["entry_type"] != K["SS_FILE_WRITE"]:
            self.report.error("FSCK-805", f"entry type {entry['entry_type']}", where)
            return
        elif not self.image.data_range(number, count):
            self.report.error("FSCK-805", f"blocks {number} + {count}", where)
            return
        else:
            self._blocks(number, count, where)
        if self.snapshots.first(created) != epoch or epoch >= deleted:
            what = f"what lived in epochs {created} to {deleted} is in another snapshot's list"
            self.report.error("FSCK-806", what, where)

    def _blocks(self, first: int, count: int, where: str) -> None:
        for nr in range(first, first + count):
            if self.blocks.kinds[nr] != HELD:
                owner = self.blocks.describe(nr)
                self.report.error("FSCK-806", f"block {nr} belongs to {owner}", where)
            elif self.listed[nr]:
                self.report.error("FSCK-809", f"block {nr} is listed twice", where)
            self.listed[nr] = 1

    def check_missing(self) -> None:
        """Report what snapshots need and no list holds: the next mount would take it for free."""
        for nr, kind in enumerate(self.blocks.kinds):
            if kind == HELD and not self.listed[nr]:
                self.report.error("FSCK-809", "no list holds it", f"block:{nr}")
        for ino, state in self.states.items():
            needed = self.snapshots.needed(state.create_epoch_id, state.delete_epoch_id)
            if needed and ino not in self.listed_inodes:
                self.report.error("FSCK-809", "no list holds it", f"inode:{ino}")


def check_saved_lists(
    image: Image,
    infos: list[Entry],
    snapshots: Snapshots,
    states: dict[int, Replayed],
    blocks: Blocks,
    report: Report,
) -> None:
    """Check the saved lists of all snapshots (`infos`) of a cleanly unmounted arena."""
    lists = _Lists(image, states, snapshots, blocks, report)
    for info in infos:
        lists.check(info)
    lists.check_missing()

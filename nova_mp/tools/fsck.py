"""The checker: reads an arena without the native core and says which invariants it breaks.

Structure  superblock -> journals (redone in an overlay) -> inode tables -> snapshots -> every log
           -> names and links, now and in every snapshot -> saved lists -> block accounting. Each
           step uses what the ones before it found.
Invariants
    CHK-1  The arena is only read.
    CHK-2  Whatever the image holds, `check` reports and does not raise.
    CHK-3  Nothing of the native core is used, so that its mistakes are not repeated here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from nova_mp.tools.blocks import DATA, HELD, LOG, ORPHAN, RESERVE, TABLE, Blocks
from nova_mp.tools.findings import CODES, Finding, Report, format_report
from nova_mp.tools.frozen import FrozenImage
from nova_mp.tools.image import (
    BLOCK_BYTES,
    DTYPES,
    TYPE_DIRECTORY,
    TYPE_MASK,
    Image,
    ImageError,
    K,
    Source,
    inode_csum,
    open_image,
    redo_journals,
)
from nova_mp.tools.lists import check_saved_lists
from nova_mp.tools.logs import SNAPSHOT_INFO, TYPE_NAMES, Entry, Log, LogReader
from nova_mp.tools.replay import BLOCK_MASK, Replayed, Replayer, Snapshots, read_snapshots
from nova_mp.tools.tree import TreeChecker

__all__ = ["CODES", "Checker", "Finding", "Report", "check", "format_report"]

Progress = Callable[[str, int, int], None]
"""Called as progress(stage, done, total) from time to time."""

PROGRESS_EVERY = 512
LIVE_PASSES = 4
ENDLESS = (1 << 64) - 1
TYPE_TITLES = {4: "directories", 8: "files", 10: "symlinks"}


class Checker:
    """One pass over one image. `run` fills `report`; `blocks` then knows every block's owner."""

    def __init__(
        self,
        image: Image,
        *,
        progress: Progress | None = None,
        free_blocks: int | None = None,
        exclusive: Mapping[int, int] | None = None,
    ) -> None:
        self.image = image
        self.report = Report()
        self.progress = progress or (lambda stage, done, total: None)
        self.free_blocks = free_blocks
        self.exclusive = exclusive
        self.super: dict[str, Any] = {}
        self.clean = False
        self.newest_epoch = ENDLESS
        self.inodes: dict[int, dict[str, Any]] = {}
        self.snapshots = Snapshots([])
        self.live_snapshots: list[Entry] = []
        self.states: dict[int, Replayed] = {}
        self.blocks = Blocks(0, self.report)
        self.entries: Counter[int] = Counter()
        self._left: list[tuple[int, int, list[int]]] = []
        self._orphan_data: list[tuple[int, list[int]]] = []

    def run(self) -> Report:
        """Check everything; gives back the report."""
        if not self._superblock():
            return self.report
        self.blocks = Blocks(self.image.blocks, self.report)
        # Mount drops a torn journal: records and commit word may persist in any order (JRN-1).
        torn = self.report.error if self.clean else self.report.warning
        redone = redo_journals(self.image, torn, self.report.error)
        if redone and self.clean:
            self.report.warning("FSCK-504", f"{redone} committed journals", "journal")
        self._tables()
        self._snapshots()
        self._logs()
        TreeChecker(self.states, self.snapshots, self.report).run()
        if self.clean and self.super["lists_saved"]:
            infos = self.live_snapshots
            check_saved_lists(
                self.image, infos, self.snapshots, self.states, self.blocks, self.report
            )
        self._claim_left()
        self._statistics(redone)
        return self.report

    # -- superblock

    def _superblock(self) -> bool:
        """Whether the checker knows enough of the arena to go on."""
        report, image = self.report, self.image
        copies = image.superblocks()
        named = [copy for copy in copies if copy.has_magic]
        if not named:
            report.error("FSCK-101", f"{image.size_bytes} bytes", "superblock")
            return False
        valid = sorted((c for c in named if c.valid), key=lambda copy: -copy.fields["sequence"])
        self.super = (valid or named)[0].fields
        if self.super["version"] != K["FORMAT_VERSION"]:
            report.error("FSCK-104", f"version {self.super['version']}", "superblock")
            return False
        self.clean = bool(valid) and self.super["mount_state"] == K["MOUNT_CLEAN"]
        self.clean = self.clean and not (image.live or image.frozen)
        if self.super["lists_saved"] and self.super["mount_state"] == K["MOUNT_DIRTY"]:
            report.error("FSCK-810", f"lists_saved {self.super['lists_saved']}", "superblock")
        if not valid:
            report.error("FSCK-102", "neither copy matches its checksum", "superblock")
        elif len(valid) < len(copies):
            bad = next(copy for copy in copies if not copy.valid)
            # A crash while a copy was being stored leaves it damaged, also when the other one still
            # says that the arena is clean; the next mount mends it.
            report.warning("FSCK-103", "it does not match its checksum", f"block:{bad.block_nr}")
        elif self.clean and valid[0].fields != valid[1].fields:
            numbers = [copy.fields["sequence"] for copy in copies]
            report.warning("FSCK-106", f"sequences {numbers[0]} and {numbers[1]}", "superblock")
        return self._geometry()

    def _geometry(self) -> bool:
        report, image, fields = self.report, self.image, self.super
        if fields["mount_state"] not in (K["MOUNT_CLEAN"], K["MOUNT_DIRTY"]):
            report.error("FSCK-107", f"mount_state {fields['mount_state']}", "superblock")
        if fields["block_bytes"] != BLOCK_BYTES or not 1 <= fields["cpus"] <= K["MAX_CPUS"]:
            what = f"block_bytes {fields['block_bytes']}, cpus {fields['cpus']}"
            report.error("FSCK-105", what, "superblock")
        size = fields["size_bytes"]
        if size % BLOCK_BYTES or size // BLOCK_BYTES < K["MIN_BLOCKS"] or size > image.size_bytes:
            what = f"size_bytes {size} in a segment of {image.size_bytes}"
            report.error("FSCK-105", what, "superblock")
        else:
            image.limit(size // BLOCK_BYTES)
        return image.blocks > K["DATA_NR"]

    # -- inode tables and snapshots

    def _tables(self) -> None:
        for table in range(K["MAX_CPUS"]):
            self.progress("inode tables", table, K["MAX_CPUS"])
            for chunk, nr in self.image.chunks(table, self.report.error):
                for block in range(nr, nr + K["CHUNK_BLOCKS"]):
                    self.blocks.claim(block, TABLE, table)
                for ino, inode in self.image.chunk_inodes(table, chunk, nr):
                    if self._inode(ino, inode):
                        self.inodes[ino] = inode
        for ino, what in ((K["ROOT_INO"], "root"), (K["SNAPSHOT_INO"], "snapshot")):
            if ino not in self.inodes:
                self.report.error("FSCK-306", f"the {what} inode is missing", f"inode:{ino}")
        limit = self.super["inode_limit"]
        used = sum(not inode["delete_epoch_id"] for inode in self.inodes.values())
        if limit and used > limit + K["FIRST_FREE_INO"]:
            self.report.warning("FSCK-307", f"{used} inodes, limit {limit}", "superblock")

    def _inode(self, ino: int, inode: dict[str, Any]) -> bool:
        """Check an inode slot in use; whether it can be treated as an inode at all."""
        error, where = self.report.error, f"inode:{ino}"
        if inode["state"] != K["INODE_VALID"]:
            error("FSCK-301", f"state {inode['state']:#x}", where)
            return False
        if inode["csum"] != inode_csum(inode):
            error("FSCK-302", f"checksum {inode['csum']:#010x}", where)
        if inode["ino"] != ino:
            error("FSCK-303", f"it says {inode['ino']}", where)
            inode["ino"] = ino
        if inode["mode"] & TYPE_MASK not in DTYPES and ino != K["SNAPSHOT_INO"]:
            error("FSCK-304", f"mode {inode['mode']:#o}", where)
            return False
        if ino == K["ROOT_INO"] and inode["mode"] & TYPE_MASK != TYPE_DIRECTORY:
            error("FSCK-306", "the root is not a directory", where)
        if ino < K["FIRST_FREE_INO"] and ino not in (K["ROOT_INO"], K["SNAPSHOT_INO"]):
            error("FSCK-306", "it has no purpose in this version", where)
        return True

    def _snapshots(self) -> None:
        error = self.report.error
        inode = self.inodes.get(K["SNAPSHOT_INO"])
        # The log's own epochs tell what the current epoch is, so they cannot be checked against it.
        log = LogReader(self.image, error).read(inode) if inode else Log()
        self.live_snapshots = read_snapshots(log, error)
        self.snapshots = Snapshots([entry.epoch_id for entry in self.live_snapshots])
        if inode:
            self._claim_log(inode, log, LOG)
        infos = [entry.epoch_id for entry in log.entries if entry.kind == SNAPSHOT_INFO]
        newest = max(infos, default=0)
        epoch = self.super["epoch_id"]
        # Between a create's info entry and the superblock's new epoch, a crash leaves them equal.
        if newest > epoch or (newest == epoch and self.clean):
            error("FSCK-108", f"epoch {epoch}, snapshot {newest}", "superblock")
        self.newest_epoch = ENDLESS if self.image.live else max(epoch, newest + 1)

    # -- logs

    def _logs(self) -> None:
        reader = LogReader(self.image, self.report.error, self.newest_epoch)
        replayer = Replayer(self.snapshots, self.report.error)
        total = len(self.inodes)
        for done, (ino, inode) in enumerate(self.inodes.items()):
            if done % PROGRESS_EVERY == 0:
                self.progress("logs", done, total)
            if ino == K["SNAPSHOT_INO"]:
                continue
            self._inode_epochs(inode)
            log = reader.read(inode)
            self.entries.update(entry.kind for entry in log.entries)
            state = replayer.replay(inode, log)
            self.states[ino] = state
            self._claim_inode(inode, log, state, replayer)
            # Names and links are checked later; pages are not needed again, and there are many.
            state.pages, state.held_blocks = {}, []
        self.progress("logs", total, total)
        if self.exclusive is not None:
            self._exclusive(replayer.exclusive)

    def _exclusive(self, found: Counter[int]) -> None:
        """Compare what only one snapshot needs with what the engine counts."""
        assert self.exclusive is not None
        for epoch in self.snapshots.ids:
            if self.exclusive.get(epoch, 0) != found[epoch]:
                what = f"{self.exclusive.get(epoch, 0)}, the logs leave {found[epoch]}"
                self.report.error("FSCK-811", what, f"snapshot {epoch}")

    def _inode_epochs(self, inode: dict[str, Any]) -> None:
        created, deleted = inode["create_epoch_id"], inode["delete_epoch_id"]
        if created > self.newest_epoch or (deleted and not created <= deleted <= self.newest_epoch):
            what = f"created {created}, deleted {deleted}, current {self.newest_epoch}"
            self.report.error("FSCK-305", what, f"inode:{inode['ino']}")

    def _claim_log(self, inode: dict[str, Any], log: Log, kind: int) -> None:
        ino = inode["ino"]
        if kind == LOG:
            for nr in log.pages:
                self.blocks.claim(nr, LOG, ino)
        else:
            self._left.append((kind, ino, log.pages))
        if log.reserve:
            self._left.append((RESERVE, ino, log.reserve))

    def _claim_inode(
        self, inode: dict[str, Any], log: Log, state: Replayed, replayer: Replayer
    ) -> None:
        ino, deleted = state.ino, state.delete_epoch_id
        for nr in state.held_blocks:
            self.blocks.claim(nr, HELD, ino)
        if not deleted:
            self._claim_log(inode, log, LOG)
            for mapped in state.pages.values():
                self.blocks.claim(mapped & BLOCK_MASK, DATA, ino)
            last = max(state.pages, default=-1)
            if last >= -(-state.size // BLOCK_BYTES) and not state.past_end:
                what = f"page {last} of a file of {state.size} bytes"
                self.report.error("FSCK-703", what, f"inode:{ino}")
        elif self.snapshots.needed(state.create_epoch_id, deleted):
            # Kept for snapshots: pages that none needs were freed when it was deleted.
            self._claim_log(inode, log, LOG)
            replayer.count(state.create_epoch_id, deleted, len(log.pages))
        else:
            # Open though deleted, or kept for a snapshot that is gone, and not yet cleaned up. In
            # the second case some of its data may have been freed long ago, and be another's.
            self._claim_log(inode, log, ORPHAN)
            self._orphan_data.append((ino, [m & BLOCK_MASK for m in state.pages.values()]))
            if self.clean:
                self.report.warning("FSCK-706", f"deleted in epoch {deleted}", f"inode:{ino}")

    def _claim_left(self) -> None:
        """Claims that give way to others: reserves (free after a crash) and dead inodes."""
        for kind, owner, numbers in self._left:
            for nr in numbers:
                if not self.blocks.claim_left(nr, kind, owner):
                    what = (
                        f"inode {owner} also has it, and it belongs to {self.blocks.describe(nr)}"
                    )
                    self.report.warning("FSCK-704", what, f"block:{nr}")
        for owner, numbers in self._orphan_data:
            for nr in numbers:
                self.blocks.claim_left(nr, ORPHAN, owner)

    # -- sums

    def _state(self) -> str:
        if self.image.live:
            return "mounted"
        if self.image.frozen:
            return "frozen"
        return "clean" if self.clean else "crashed"

    def _statistics(self, redone: int) -> None:
        image, states = self.image, self.states.values()
        types = Counter(
            TYPE_TITLES[DTYPES[state.file_type]]
            for state in states
            if not state.delete_epoch_id and state.file_type in DTYPES
        )
        blocks = self.blocks.count()
        if self.free_blocks is not None and self.free_blocks != blocks["free"]:
            what = f"the engine counts {self.free_blocks}, the logs leave {blocks['free']}"
            self.report.error("FSCK-705", what, "arena")
        dead = [state for state in states if state.delete_epoch_id]
        kept = sum(self.snapshots.needed(s.create_epoch_id, s.delete_epoch_id) for s in dead)
        self.report.statistics = {
            "arena": {
                "name": image.name,
                "size_bytes": image.blocks * BLOCK_BYTES,
                "epoch_id": self.super["epoch_id"],
                "state": self._state(),
                "journals_redone": redone,
            },
            "inodes": {
                **{title: types[title] for title in TYPE_TITLES.values()},
                "kept_for_snapshots": kept,
                "orphans": len(dead) - kept,
            },
            "entries": {TYPE_NAMES[kind]: count for kind, count in sorted(self.entries.items())},
            "snapshots": {"count": len(self.snapshots.ids)},
            "blocks": blocks,
        }


def check(
    source: Source,
    *,
    progress: Progress | None = None,
    free_blocks: int | None = None,
    exclusive: Mapping[int, int] | None = None,
    frozen: Callable[[], AbstractContextManager[Any]] | None = None,
) -> Report:
    """Check an arena: `source` is its name, the path of an image, or a buffer with its bytes.

    The arena may be clean, crashed (committed journals are redone in memory only) or mounted. A
    mounted arena changes while it is read, so what looks wrong is looked at again, and only what
    stays is reported. To be certain, give `frozen`, which makes a context manager that keeps the
    file system still (`FileSystem.frozen`): its structures are copied while it is held, and checked
    after that (copying takes about an eighth of the whole). `free_blocks`, if given, is what the
    engine counts as free, to be compared with what the logs leave; `exclusive` how many blocks it
    counts as needed by one snapshot only, by the snapshot's id.

    Raises FileNotFoundError if there is no such arena or file, and nothing for its contents.
    """
    checker = partial(Checker, progress=progress, free_blocks=free_blocks, exclusive=exclusive)
    try:
        with open_image(source) as image:
            if frozen is not None and image.live:
                with frozen():
                    copy = FrozenImage(image)
                return _check_image(copy, checker)
            return _check_image(image, checker)
    except ImageError as error:
        report = Report()
        report.error("FSCK-101", str(error), "superblock")
        return report


def _check_image(image: Image, checker: Callable[[Image], Checker]) -> Report:
    report = checker(image).run()
    if not image.live:
        return report
    report.notes.append("the arena is mounted: findings may be operations in flight")
    passes = 1
    while report.counts and passes < LIVE_PASSES:
        # Busy inodes can look wrong twice in a row; what is really wrong stays so in every pass.
        image.forget_overlay()
        again = checker(image).run()
        passes += 1
        again.notes = report.notes
        again.errors = [finding for finding in again.errors if finding in report.errors]
        again.warnings = [finding for finding in again.warnings if finding in report.warnings]
        again.counts = Counter(finding.code for finding in [*again.errors, *again.warnings])
        report = again
    if passes > 1:
        report.notes.append(f"only what {passes} passes found is reported")
    return report

"""What a log says: an inode's attributes, names, pages, now and in every snapshot, in one pass.

Structure  `Snapshots` answers whether something that lived in the epochs [created, superseded) is
           needed by a snapshot: snapshot S holds what was there when epoch S was closed, so it
           needs it iff created <= S < superseded. A `Replayer` goes through a log once; whatever
           an entry supersedes is kept in `held_blocks` or `past_names` if a snapshot needs it,
           and is forgotten if none does.
Invariants FMT-11: everything superseded and needed is still there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from nova_mp.tools.image import BLOCK_BYTES, DTYPES, TYPE_DIRECTORY, TYPE_MASK, K, Note
from nova_mp.tools.logs import (
    DENTRY,
    LINK_CHANGE,
    MMAP_WRITE,
    REMOVED,
    SETATTR,
    SNAPSHOT_INFO,
    WRITE,
    XATTR,
    Entry,
    Log,
)

FOREVER = 1 << 64  # superseding epoch of what has not been superseded
BLOCK_BITS = 28  # a mapped page is epoch << 28 | block, as block numbers take 28 bits (LAY)
BLOCK_MASK = (1 << BLOCK_BITS) - 1
assert K["MAX_BLOCKS"] == 1 << BLOCK_BITS


class Snapshots:
    """The ids of the snapshots that exist, ascending."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = sorted(ids)

    def needed(self, created: int, superseded: int) -> bool:
        """Whether a snapshot needs what lived in the epochs [created, superseded)."""
        at = bisect_left(self.ids, created)
        return at < len(self.ids) and self.ids[at] < superseded

    def first(self, epoch: int) -> int | None:
        """The oldest snapshot that is not older than `epoch`."""
        at = bisect_left(self.ids, epoch)
        return self.ids[at] if at < len(self.ids) else None

    def only(self, created: int, superseded: int) -> int | None:
        """The snapshot that needs what lived in these epochs, if it is one and no more."""
        at = bisect_left(self.ids, created)
        if at == len(self.ids) or self.ids[at] >= superseded:
            return None
        if at + 1 < len(self.ids) and self.ids[at + 1] < superseded:
            return None
        return self.ids[at]

    def last_before(self, epoch: int) -> int:
        """The newest snapshot older than `epoch`; 0 if there is none."""
        at = bisect_left(self.ids, epoch)
        return self.ids[at - 1] if at else 0


@dataclass(slots=True)
class Name:
    """A name in a directory: the inode, its type, and the epochs in which it was there."""

    name: bytes
    ino: int
    dtype: int
    created: int
    superseded: int = FOREVER


@dataclass(slots=True)
class Replayed:
    """An inode as its log says, with what snapshots need of its past.

    `pages` maps a file page to epoch << 28 | block; `held_blocks` are blocks that snapshots need;
    `links` is the history of the link count as (epoch, links).
    """

    ino: int
    create_epoch_id: int
    delete_epoch_id: int
    mode: int
    size: int = 0
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    atime_ns: int = 0
    pages: dict[int, int] = field(default_factory=dict)
    held_blocks: list[int] = field(default_factory=list)
    names: dict[bytes, Name] = field(default_factory=dict)
    past_names: list[Name] = field(default_factory=list)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    links: list[tuple[int, int]] = field(default_factory=list)
    intact: bool = True
    past_end: bool = False
    """Cut while it was mapped: pages past its end may be there until the last unmapping."""

    @property
    def file_type(self) -> int:
        """S_IFMT part of the mode."""
        return self.mode & TYPE_MASK

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return self.mode & TYPE_MASK == TYPE_DIRECTORY

    @property
    def nlink(self) -> int:
        """Links today; a directory's are counted: itself, its name and its subdirectories."""
        if self.is_directory:
            directory = DTYPES[TYPE_DIRECTORY]
            return 2 + sum(name.dtype == directory for name in self.names.values())
        return self.links[-1][1] if self.links else 0


class Replayer:
    """Replays logs of one image in the light of its snapshots."""

    def __init__(self, snapshots: Snapshots, note: Note) -> None:
        self.snapshots = snapshots
        self.note = note
        self.exclusive: Counter[int] = Counter()

    def replay(self, inode: dict[str, Any], log: Log) -> Replayed:
        """State of `inode` after its log."""
        deleted = inode["delete_epoch_id"]
        state = Replayed(inode["ino"], inode["create_epoch_id"], deleted, inode["mode"])
        state.intact = log.intact
        # An orphan is written to after its last unlink; snapshots see none of that.
        end = deleted or FOREVER
        highest = -1  # no page above it is mapped, so that a truncate that grows costs nothing
        for entry in log.entries:
            kind = entry.kind
            if kind == WRITE:
                self._write(state, entry, end)
                highest = max(highest, entry.fields["pgoff"] + entry.fields["num_pages"] - 1)
            elif kind == DENTRY:
                self._dentry(state, entry, end)
            elif kind == SETATTR:
                highest = self._setattr(state, entry, end, highest)
            elif kind == LINK_CHANGE:
                state.ctime_ns = entry.fields["ctime_ns"]
                state.links.append((entry.epoch_id, entry.fields["nlink"]))
            elif kind == XATTR:
                state.ctime_ns = entry.fields["ctime_ns"]
                if entry.flags & REMOVED:
                    state.xattrs.pop(entry.name, None)
                else:
                    state.xattrs[entry.name] = entry.value
            elif kind == MMAP_WRITE:
                self._mmap_write(state, entry, end)
                highest = max(highest, entry.fields["pgoff"] + entry.fields["num_pages"] - 1)
        if deleted:
            self._bury(state, deleted)
        return state

    def _supersede(self, state: Replayed, mapped: int, epoch: int) -> None:
        if self.snapshots.needed(mapped >> BLOCK_BITS, epoch):
            state.held_blocks.append(mapped & BLOCK_MASK)
            self.count(mapped >> BLOCK_BITS, epoch, 1)

    def count(self, created: int, superseded: int, blocks: int) -> None:
        """Blocks that lived in these epochs, for the snapshot that is the only one to need them."""
        only = self.snapshots.only(created, superseded)
        if only is not None:
            self.exclusive[only] += blocks

    def _write(self, state: Replayed, entry: Entry, end: int) -> None:
        fields = entry.fields
        first, count = fields["pgoff"], fields["num_pages"]
        epoch = entry.epoch_id
        mapped = epoch << BLOCK_BITS | fields["block_nr"]
        pages = state.pages
        if pages:
            for page in range(first, first + count):
                old = pages.get(page)
                if old is not None:
                    self._supersede(state, old, min(epoch, end))
        if count == 1:
            pages[first] = mapped
        else:
            blocks = range(mapped, mapped + count)
            pages.update(zip(range(first, first + count), blocks, strict=True))
        state.past_end |= fields["size"] < state.size
        state.size = fields["size"]
        state.mtime_ns = state.ctime_ns = fields["mtime_ns"]

    def _setattr(self, state: Replayed, entry: Entry, end: int, highest: int) -> int:
        fields = entry.fields
        cut = fields["size"] < state.size
        state.past_end = not entry.flags & K["ENTRY_FLAG_SIZE"] and (state.past_end or cut)
        for name in ("mode", "uid", "gid", "size", "mtime_ns", "ctime_ns", "atime_ns"):
            setattr(state, name, fields[name])
        state.links.append((entry.epoch_id, fields["nlink"]))
        kept = -(-state.size // BLOCK_BYTES)
        if entry.flags & K["ENTRY_FLAG_SIZE"] and kept <= highest:
            epoch = min(entry.epoch_id, end)
            for page in [page for page in state.pages if page >= kept]:
                self._supersede(state, state.pages.pop(page), epoch)
            return kept - 1
        return highest

    def _mmap_write(self, state: Replayed, entry: Entry, end: int) -> None:
        """Pages stay where they are, and are stored to there; the copies keep what they held."""
        fields = entry.fields
        for index in range(fields["num_pages"]):
            page = fields["pgoff"] + index
            block = fields["block_nr"] + index
            old = state.pages.get(page)
            if old is not None and old & BLOCK_MASK == block:
                kept = (old >> BLOCK_BITS << BLOCK_BITS) | (fields["kept_block_nr"] + index)
                self._supersede(state, kept, min(entry.epoch_id, end))
            elif old is not None:
                self._supersede(state, old, min(entry.epoch_id, end))
            state.pages[page] = entry.epoch_id << BLOCK_BITS | block

    def _dentry(self, state: Replayed, entry: Entry, end: int) -> None:
        state.mtime_ns = state.ctime_ns = entry.fields["mtime_ns"]
        old = state.names.pop(entry.name, None)
        if old is not None:
            old.superseded = min(entry.epoch_id, end)
            if self.snapshots.needed(old.created, old.superseded):
                state.past_names.append(old)
        if not entry.flags & REMOVED:
            if old is not None:
                self.note("FSCK-605", f"name {entry.name!r}", f"inode:{state.ino}")
            state.names[entry.name] = Name(entry.name, entry.ino, entry.dtype, entry.epoch_id)

    def _bury(self, state: Replayed, deleted: int) -> None:
        """A dead inode: what it still had is superseded by its deletion."""
        for mapped in state.pages.values():
            self._supersede(state, mapped, deleted)
        if state.names:
            self.note("FSCK-609", f"{len(state.names)} names are left", f"inode:{state.ino}")
        for name in state.names.values():
            name.superseded = deleted
            if self.snapshots.needed(name.created, deleted):
                state.past_names.append(name)
        state.names = {}


def read_snapshots(log: Log, note: Note) -> list[Entry]:
    """Info entries of the snapshots that exist, out of the snapshot inode's log, ascending."""
    live: list[Entry] = []
    newest = 0
    names: set[bytes] = set()
    for entry in log.entries:
        if entry.kind != SNAPSHOT_INFO:
            continue
        where = f"inode:{K['SNAPSHOT_INO']} entry {entry.offset:#x}"
        if entry.epoch_id <= newest:
            note("FSCK-801", f"snapshot {entry.epoch_id} follows {newest}", where)
        newest = max(newest, entry.epoch_id)
        if entry.fields["deleted"]:
            continue
        if entry.name and entry.name in names:
            note("FSCK-807", f"name {entry.name!r}", where)
        names.add(entry.name)
        live.append(entry)
    return live

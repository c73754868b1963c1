"""Reading an inode's log: pages from head to tail, entries with everything that can be checked.

Structure  A log is a chain of pages of 63 slots and a page tail. Entries go from the head to
           `log_tail_off`; an entry that does not fit in the rest of its page is preceded by
           ENTRY_NEXT_PAGE. Pages linked behind the tail's page are the log's reserve.
Invariants The rules FMT-5 to FMT-7 of docs/FORMAT.md are checked here; what breaks them goes to the
           `Note` that the caller gives, and a damaged entry is left out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nova_mp.tools.image import (
    BLOCK_BYTES,
    DENTRY_INO_BITS,
    DTYPES,
    LINE_BYTES,
    LOG_END,
    PAGE_TAIL,
    STRUCTS,
    TYPE_DIRECTORY,
    TYPE_FILE,
    TYPE_MASK,
    TYPE_SYMLINK,
    Image,
    K,
    Note,
    Record,
    crc32c,
)

WRITE = K["ENTRY_WRITE"]
DENTRY = K["ENTRY_DENTRY"]
SETATTR = K["ENTRY_SETATTR"]
LINK_CHANGE = K["ENTRY_LINK_CHANGE"]
MMAP_WRITE = K["ENTRY_MMAP_WRITE"]
SNAPSHOT_INFO = K["ENTRY_SNAPSHOT_INFO"]
NEXT_PAGE = K["ENTRY_NEXT_PAGE"]
XATTR = K["ENTRY_XATTR"]

TYPE_NAMES = {
    K[name]: name.removeprefix("ENTRY_").lower()
    for name in K
    if name.startswith("ENTRY_") and not name.startswith("ENTRY_FLAG_")
}
_RECORDS = {
    WRITE: Record("nv_write_entry"),
    DENTRY: Record("nv_dentry"),
    SETATTR: Record("nv_setattr_entry"),
    LINK_CHANGE: Record("nv_link_change_entry"),
    MMAP_WRITE: Record("nv_mmap_write_entry"),
    SNAPSHOT_INFO: Record("nv_snapshot_info"),
    XATTR: Record("nv_xattr_entry"),
}
_HEADER = struct.Struct(STRUCTS["nv_entry_header"].format)
_NAME_OFF = STRUCTS["nv_dentry"].offset("name")  # also of snapshot-info names and xattr data
_EVERYWHERE = {SETATTR, LINK_CHANGE, XATTR}
_ALLOWED = {
    TYPE_FILE: _EVERYWHERE | {WRITE, MMAP_WRITE},
    TYPE_SYMLINK: _EVERYWHERE | {WRITE},
    TYPE_DIRECTORY: _EVERYWHERE | {DENTRY},
}
_SNAPSHOT_LOG = _EVERYWHERE | {SNAPSHOT_INFO}
REMOVED = K["ENTRY_FLAG_REMOVED"]


@dataclass(slots=True)
class Entry:
    """One log entry: its type, epoch, arena offset and fields; `name` and `value` as bytes."""

    kind: int
    flags: int
    epoch_id: int
    offset: int
    fields: dict[str, Any]
    name: bytes = b""
    value: bytes = b""

    @property
    def ino(self) -> int:
        """Of a dentry: the inode that it names."""
        return int(self.fields["ino"]) & ((1 << DENTRY_INO_BITS) - 1)

    @property
    def dtype(self) -> int:
        """Of a dentry: the file type as in dirent's DT_*."""
        return int(self.fields["ino"]) >> DENTRY_INO_BITS


@dataclass(slots=True)
class Log:
    """A log as read: entries, its page numbers, and those of the reserve behind the tail."""

    entries: list[Entry] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    reserve: list[int] = field(default_factory=list)
    intact: bool = True


def _name_extent(kind: int, name_len: int, page: bytes, offset: int) -> int:
    """Bytes of name and value together."""
    if kind == XATTR:
        at = offset + STRUCTS["nv_xattr_entry"].offset("value_len")
        return name_len + int(struct.unpack_from("<I", page, at)[0])
    return name_len


def entry_slots(kind: int, extent: int) -> int:
    """Slots that an entry of this type takes, with `extent` bytes of name and value."""
    if kind in (DENTRY, SNAPSHOT_INFO, XATTR):
        return -(-(_NAME_OFF + extent) // LINE_BYTES)
    return 1


def entry_csum(data: bytes) -> int:
    """Checksum that the whole entry in `data` should carry: volatile fields are left out."""
    kind, flags, _slots, name_len, _csum, _epoch = _HEADER.unpack_from(data)
    head = data[:4]
    if kind in (WRITE, MMAP_WRITE):
        return crc32c(head + data[8:48])
    if kind == DENTRY:
        end = _NAME_OFF + name_len
        # aux_epoch_id of an added name is written when it is removed; of a removed one, never.
        return crc32c(head + (data[8:end] if flags & REMOVED else data[8:32] + data[40:end]))
    if kind == SNAPSHOT_INFO:
        return crc32c(head + data[8:24] + data[40 : _NAME_OFF + name_len])
    if kind == XATTR:
        end = _NAME_OFF + _name_extent(kind, name_len, data, 0)
        return crc32c(head + (data[8:end] if flags & REMOVED else data[8:24] + data[32:end]))
    return crc32c(head + data[8:LINE_BYTES])


def _blocks_in_range(entry: Entry, image: Image) -> bool:
    fields = entry.fields
    if entry.kind not in (WRITE, MMAP_WRITE) or not fields["num_pages"]:
        return True
    if entry.kind == MMAP_WRITE and not image.data_range(
        fields["kept_block_nr"], fields["num_pages"]
    ):
        return False
    return image.data_range(fields["block_nr"], fields["num_pages"])


def _impossible(entry: Entry) -> str:
    """What is wrong with an entry whose checksum is right; "" if nothing."""
    fields = entry.fields
    if entry.kind in (WRITE, MMAP_WRITE):
        if not fields["num_pages"]:
            return "no pages"
        if fields["pgoff"] + fields["num_pages"] >= 1 << 52:
            return f"file page {fields['pgoff']}"
    elif entry.kind == SETATTR:
        if fields["mode"] & TYPE_MASK not in DTYPES:
            return f"mode {fields['mode']:#o}"
    elif entry.kind == XATTR:
        if not entry.name or b"\0" in entry.name:
            return f"attribute name {entry.name!r}"
    elif entry.kind == SNAPSHOT_INFO and fields["deleted"] > 1:
        return f"deleted is {fields['deleted']}"
    return ""


class LogReader:
    """Reads logs of one image; `note` gets what is wrong with them.

    `newest_epoch` is the newest epoch that an entry may carry.
    """

    def __init__(self, image: Image, note: Note, newest_epoch: int = (1 << 64) - 1) -> None:
        self.image = image
        self.note = note
        self.newest_epoch = newest_epoch

    def read(self, inode: dict[str, Any]) -> Log:
        """The log of `inode` (fields of an inode slot)."""
        log = Log()
        where = f"inode:{inode['ino']}"
        head, tail = inode["log_head_off"], inode["log_tail_off"]
        if head == 0 and tail == 0:
            return log
        if head % BLOCK_BYTES or tail % LINE_BYTES or tail % BLOCK_BYTES > LOG_END or not head:
            self.note("FSCK-406", f"head {head:#x}, tail {tail:#x}", where)
            log.intact = False
            return log
        allowed = _ALLOWED.get(inode["mode"] & TYPE_MASK, _EVERYWHERE)
        if inode["ino"] == K["SNAPSHOT_INO"]:
            allowed = _SNAPSHOT_LOG
        tail_nr, tail_end = divmod(tail, BLOCK_BYTES)
        nr = head // BLOCK_BYTES
        seen: set[int] = set()
        while True:
            page = self._page(nr, seen, inode["ino"], where)
            if page is None:
                log.intact = False
                return log
            end = tail_end if nr == tail_nr else LOG_END
            log.entries.extend(self._entries(nr, page, end, allowed, log, where))
            log.pages.append(nr)
            next_off = PAGE_TAIL.decode(page, K["LOG_TAIL_OFF"])["next_page_off"]
            if nr == tail_nr:
                self._read_reserve(next_off, log, inode["ino"])
                return log
            if next_off % BLOCK_BYTES:
                self.note("FSCK-401", f"page at {next_off:#x}", where)
                log.intact = False
                return log
            if next_off == 0:
                self.note("FSCK-405", f"tail {tail:#x}, the chain ends with block {nr}", where)
                log.intact = False
                return log
            nr = next_off // BLOCK_BYTES

    def _page(self, nr: int, seen: set[int], ino: int, where: str) -> bytes | None:
        if nr in seen:
            self.note("FSCK-404", f"block {nr} is linked twice", where)
            return None
        seen.add(nr)
        if not self.image.data_range(nr):
            self.note("FSCK-401", f"block {nr}", where)
            return None
        page = self.image.page(nr)
        tail = PAGE_TAIL.decode(page, K["LOG_TAIL_OFF"])
        if tail["magic"] != K["MAGIC_LOG_PAGE"]:
            self.note("FSCK-402", f"block {nr} has magic {tail['magic']:#x}", where)
            return None
        if tail["ino"] != ino:
            self.note("FSCK-403", f"block {nr} names inode {tail['ino']}", where)
        return page

    def _read_reserve(self, next_off: int, log: Log, ino: int) -> None:
        """Follow the pages behind the tail while they look like pages of this log.

        Nothing there is an error: after a crash mount these pages are free, and hold anything.
        """
        seen = set(log.pages)
        while next_off and next_off % BLOCK_BYTES == 0:
            nr = next_off // BLOCK_BYTES
            if nr in seen or not self.image.data_range(nr):
                return
            tail = PAGE_TAIL.decode(self.image.page(nr), K["LOG_TAIL_OFF"])
            if tail["magic"] != K["MAGIC_LOG_PAGE"] or tail["ino"] != ino:
                return
            seen.add(nr)
            log.reserve.append(nr)
            next_off = tail["next_page_off"]

    def _entries(
        self, nr: int, page: bytes, end: int, allowed: set[int], log: Log, where: str
    ) -> Iterator[Entry]:
        offset = 0
        newest = log.entries[-1].epoch_id if log.entries else 0
        while offset < end:
            kind, flags, slots, name_len, csum, epoch = _HEADER.unpack_from(page, offset)
            place = f"{where} entry {nr * BLOCK_BYTES + offset:#x}"
            if kind == NEXT_PAGE:
                return  # only its type is stored: the rest of the slot is left as it was
            if kind not in _RECORDS:
                self.note("FSCK-412", f"type {kind}", place)
                log.intact = False
                return  # its size cannot be trusted either, so the rest of the page is lost
            extent = _name_extent(kind, name_len, page, offset)
            if slots != entry_slots(kind, extent) or offset + slots * LINE_BYTES > end:
                self.note("FSCK-413", f"{TYPE_NAMES[kind]} of {slots} slots", place)
                log.intact = False
                return
            data = page[offset : offset + slots * LINE_BYTES]
            offset += slots * LINE_BYTES
            if csum != entry_csum(data):
                self.note("FSCK-411", f"{TYPE_NAMES[kind]} entry", place)
                log.intact = False
                continue
            entry = _decode(kind, flags, epoch, nr * BLOCK_BYTES + offset - len(data), data)
            wrong = "" if kind in allowed else f"{TYPE_NAMES[kind]} entry"
            if wrong:
                self.note("FSCK-412", wrong, place)
            elif not _blocks_in_range(entry, self.image):
                wrong = f"blocks {entry.fields['block_nr']} + {entry.fields['num_pages']}"
                self.note("FSCK-701", wrong, place)
            elif wrong := _impossible(entry):
                self.note("FSCK-416", f"{TYPE_NAMES[kind]} entry: {wrong}", place)
            if wrong:
                log.intact = False
                continue
            if epoch < newest:
                self.note("FSCK-414", f"epoch {epoch} after {newest}", place)
            elif epoch > self.newest_epoch:
                self.note("FSCK-415", f"epoch {epoch}, current {self.newest_epoch}", place)
            newest = max(newest, epoch)
            yield entry


def _decode(kind: int, flags: int, epoch: int, offset: int, data: bytes) -> Entry:
    entry = Entry(kind, flags, epoch, offset, _RECORDS[kind].decode(data))
    if kind in (DENTRY, SNAPSHOT_INFO, XATTR):
        end = _NAME_OFF + data[3]
        entry.name = data[_NAME_OFF:end]
        if kind == XATTR:
            entry.value = data[end : end + entry.fields["value_len"]]
    return entry

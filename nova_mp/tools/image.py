"""An arena's PMEM as the plain-Python tools read it: blocks, records, checksums.

Structure  `open_image` maps a source read-only; `Image` hands out blocks as bytes, with the records
           of committed journals laid over them, so that a crashed arena is seen as the next mount
           would make it, and nothing is ever written.
Invariants
    IMG-1  Only `layout_fields` knows an offset, a size or a number of the format.
    IMG-2  No content of an image makes these functions raise anything but ImageError.
"""

from __future__ import annotations

import mmap
import os
import struct
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from nova_mp.core import layout_fields, segment

K = layout_fields.constants()
STRUCTS = layout_fields.structs()

BLOCK_BYTES = K["BLOCK_BYTES"]
LINE_BYTES = K["LINE_BYTES"]
LOG_END = K["LOG_SLOTS"] * LINE_BYTES  # offset in a log page where no entry can start any more
TYPE_DIRECTORY, TYPE_FILE, TYPE_SYMLINK = 0o040000, 0o100000, 0o120000
TYPE_MASK = 0o170000
DTYPES = {TYPE_DIRECTORY: 4, TYPE_FILE: 8, TYPE_SYMLINK: 10}  # as dirent's DT_*
DENTRY_INO_BITS = 56

Note = Callable[[str, str, str], None]  # code, message, where
Source = bytes | bytearray | memoryview | mmap.mmap | str | os.PathLike[str]


class ImageError(ValueError):
    """The source cannot be read as an arena at all: no arena, or no such object in it."""


# ----------------------------------------------------------------------------------- checksums


def _shift_byte(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value


@cache
def _crc_table() -> array[int]:
    # Two bytes a step halve the time of the loop; the table of 65536 words costs 20 ms, once.
    small = [_shift_byte(value) for value in range(256)]
    table = array("I", bytes(4 * 65536))
    for value in range(65536):
        first = small[value & 0xFF]
        table[value] = small[(first ^ (value >> 8)) & 0xFF] ^ (first >> 8)
    return table


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of `data`: initial value and final xor are all ones."""
    table = _crc_table()
    crc = 0xFFFFFFFF
    odd = len(data) & 1
    for pair in struct.unpack_from(f"<{len(data) // 2}H", data):
        crc = (crc >> 16) ^ table[(crc ^ pair) & 0xFFFF]
    if odd:
        # Shifting the last byte of an odd length by hand saves a second table.
        crc = _shift_byte(crc ^ data[-1])
    return crc ^ 0xFFFFFFFF


# ------------------------------------------------------------------------------------- records


class Record:
    """Decoder of one packed struct: `decode` gives its fields by name."""

    __slots__ = ("_codec", "_names", "size")

    def __init__(self, name: str) -> None:
        declared = STRUCTS[name]
        self._codec = struct.Struct(declared.format)
        self._names = tuple(field.name for field in declared.fields)
        self.size = declared.size

    def decode(self, data: bytes, offset: int = 0) -> dict[str, Any]:
        """Fields of the struct at `offset` in `data`."""
        return dict(zip(self._names, self._codec.unpack_from(data, offset), strict=True))


SUPERBLOCK = Record("nv_superblock")
TABLE_HEAD = Record("nv_table_head")
CHUNK_HEADER = Record("nv_chunk_header")
INODE = Record("nv_inode")
PAGE_TAIL = Record("nv_log_page_tail")
JOURNAL_RECORD = Record("nv_journal_record")
LIST_ENTRY = Record("nv_list_entry")
LIST_TAIL = Record("nv_list_page_tail")
NVMM_LIST = Record("nv_snapshot_nvmm_list")


def superblock_csum(data: bytes) -> int:
    """Checksum that the superblock in `data` should carry."""
    offset = STRUCTS["nv_superblock"].offset("csum")
    return crc32c(data[:offset] + bytes(4) + data[offset + 4 : SUPERBLOCK.size])


def inode_csum(inode: dict[str, Any]) -> int:
    """Checksum that an inode with these fields should carry."""
    return crc32c(
        struct.pack(
            "<QQQII",
            inode["ino"],
            inode["create_epoch_id"],
            inode["birth_time_ns"],
            inode["generation"],
            inode["mode"],
        )
    )


def chunk_csum(magic: int, table: int, chunk: int) -> int:
    """Checksum that a chunk header with these fields should carry."""
    return crc32c(struct.pack("<III", magic, table, chunk))


def ino_of(table: int, chunk: int, slot: int) -> int:
    """Inode number of a slot."""
    return chunk << K["INO_CHUNK_SHIFT"] | table << K["INO_SLOT_BITS"] | slot


def slot_of(ino: int) -> tuple[int, int, int]:
    """Table, chunk and slot of an inode number."""
    table = ino >> K["INO_SLOT_BITS"] & ((1 << K["INO_TABLE_BITS"]) - 1)
    return table, ino >> K["INO_CHUNK_SHIFT"], ino & ((1 << K["INO_SLOT_BITS"]) - 1)


# --------------------------------------------------------------------------------------- image


@dataclass(frozen=True)
class Superblock:
    """One superblock copy: where it is, what it says, and what is wrong with it."""

    block_nr: int
    fields: dict[str, Any]
    has_magic: bool
    valid: bool


class Image:
    """A read-only arena image with virtually redone journals.

    `blocks` is the number of whole blocks; `live` says that an engine may be changing the image,
    `frozen` that it was copied from a mounted arena while that was frozen.
    """

    def __init__(self, buffer: Any, *, name: str = "", live: bool = False) -> None:
        self._view = memoryview(buffer).cast("B").toreadonly()
        self.name = name
        self.live = live
        self.frozen = False
        self.size_bytes = len(self._view)
        self.blocks = self.size_bytes // BLOCK_BYTES
        self._overlay: dict[int, bytearray] = {}

    def close(self) -> None:
        """Let go of the buffer."""
        self._view.release()

    def limit(self, blocks: int) -> None:
        """Treat the arena as `blocks` long: the segment may be longer than the arena."""
        self.blocks = min(blocks, self.size_bytes // BLOCK_BYTES)

    def page(self, nr: int) -> bytes:
        """Contents of block `nr`: a copy, so that a running engine cannot change it under us."""
        if not 0 <= nr < self.blocks:
            raise ImageError(f"block {nr} is outside the arena of {self.blocks} blocks")
        if nr in self._overlay:
            return bytes(self._overlay[nr])
        return self.stored(nr)

    def stored(self, nr: int) -> bytes:
        """Contents of block `nr` on the medium itself."""
        return bytes(self._view[nr * BLOCK_BYTES : (nr + 1) * BLOCK_BYTES])

    def word(self, offset: int) -> int:
        """The 8-byte word at arena offset `offset`."""
        page = self.page(offset // BLOCK_BYTES)
        return int.from_bytes(page[offset % BLOCK_BYTES :][:8], "little")

    def lay_over(self, offset: int, value: int) -> None:
        """Pretend that the word at `offset` were `value`; the image itself is not touched."""
        nr = offset // BLOCK_BYTES
        page = self._overlay.setdefault(nr, bytearray(self.page(nr)))
        struct.pack_into("<Q", page, offset % BLOCK_BYTES, value)

    def forget_overlay(self) -> None:
        """See the medium as it is: for another look at an arena that changes."""
        self._overlay.clear()

    def data_range(self, nr: int, count: int = 1) -> bool:
        """Whether `count` blocks from `nr` lie in the area that the allocator hands out."""
        return count > 0 and K["DATA_NR"] <= nr and nr + count <= self.blocks - 1

    # -- superblock

    def superblock_at(self, nr: int) -> Superblock:
        """The superblock copy in block `nr`, judged by magic and checksum."""
        data = self.page(nr)
        fields = SUPERBLOCK.decode(data)
        magic = fields["magic"] == K["MAGIC_SUPERBLOCK"]
        return Superblock(nr, fields, magic, magic and fields["csum"] == superblock_csum(data))

    def superblocks(self) -> list[Superblock]:
        """Both copies; the second is the last block of the arena that a valid first one names."""
        if self.blocks < 2:
            return []
        first = self.superblock_at(K["SUPERBLOCK_OFF"] // BLOCK_BYTES)
        last = self.blocks - 1
        if first.valid:
            last = min(first.fields["size_bytes"] // BLOCK_BYTES - 1, last)
        return [first, self.superblock_at(max(last, 1))]

    def superblock(self) -> dict[str, Any]:
        """Fields of the copy that counts: the valid one with the larger sequence.

        Raises ImageError if neither is valid or the version is unknown.
        """
        copies = [copy for copy in self.superblocks() if copy.valid]
        if not copies:
            raise ImageError("no valid superblock")
        fields = max(copies, key=lambda copy: copy.fields["sequence"]).fields
        if fields["version"] != K["FORMAT_VERSION"]:
            raise ImageError(f"format version {fields['version']} is unknown")
        return fields

    # -- journals

    def journal(self, cpu: int) -> tuple[int, int, list[tuple[int, int]]]:
        """CPU's journal: record count, checksum that it should have, and its records."""
        data = self.page(K["JOURNALS_NR"] + cpu)
        (commit,) = struct.unpack_from("<Q", data)
        count = commit & 0xFFFFFFFF
        start = STRUCTS["nv_journal"].offset("records")
        if commit == 0 or count > K["JOURNAL_WORDS"]:
            return count, commit >> 32, []
        size = JOURNAL_RECORD.size
        records = [JOURNAL_RECORD.decode(data, start + size * nr) for nr in range(count)]
        return count, commit >> 32, [(each["word_off"], each["value"]) for each in records]

    def journal_csum(self, cpu: int, count: int) -> int:
        """Checksum of the first `count` records of a CPU's journal."""
        start = STRUCTS["nv_journal"].offset("records")
        data = self.page(K["JOURNALS_NR"] + cpu)
        return crc32c(data[start : start + JOURNAL_RECORD.size * count])

    # -- inode tables

    def chunks(self, table: int, note: Note) -> Iterator[tuple[int, int]]:
        """(number, first block) of each chunk of an inode table; findings go to `note`."""
        offset = K["TABLE_HEADS_NR"] * BLOCK_BYTES + table * TABLE_HEAD.size
        chunk_off = self.word(offset)
        seen: set[int] = set()
        number = 0
        while chunk_off:
            where = f"table:{table} chunk {number}"
            nr, rest = divmod(chunk_off, BLOCK_BYTES)
            if rest or not self.data_range(nr, K["CHUNK_BLOCKS"]):
                note("FSCK-201", f"chunk at {chunk_off:#x}", where)
                return
            if nr in seen:
                note("FSCK-204", f"chunk at {chunk_off:#x} closes a cycle", where)
                return
            seen.add(nr)
            header = CHUNK_HEADER.decode(self.page(nr))
            magic, found_table, found = header["magic"], header["table"], header["chunk"]
            if magic != K["MAGIC_CHUNK"] or header["csum"] != chunk_csum(magic, found_table, found):
                note("FSCK-202", f"chunk at {chunk_off:#x}: magic {magic:#x}", where)
                return
            if (found_table, found) != (table, number) or number >= K["MAX_CHUNKS"]:
                note("FSCK-203", f"it says table {found_table}, chunk {found}", where)
                return
            yield number, nr
            number += 1
            chunk_off = header["next_chunk_off"]

    def chunk_inodes(self, table: int, chunk: int, nr: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """(inode number of the slot, fields) of the slots of a chunk whose state is not FREE."""
        per_page = BLOCK_BYTES // INODE.size
        for index in range(K["CHUNK_BLOCKS"]):
            page = self.page(nr + index)
            states = struct.unpack_from(f"<{BLOCK_BYTES // 8}Q", page)[:: INODE.size // 8]
            for place, state in enumerate(states):
                slot = index * per_page + place
                if slot and state != K["INODE_FREE"]:
                    yield ino_of(table, chunk, slot), INODE.decode(page, place * INODE.size)

    def inode(self, ino: int) -> dict[str, Any]:
        """Fields of inode `ino`; raises ImageError if its slot does not exist."""
        table, chunk, slot = slot_of(ino)
        if 0 < slot < K["CHUNK_SLOTS"]:
            for number, nr in self.chunks(table, ignore):
                if number == chunk:
                    offset = slot * INODE.size
                    return INODE.decode(self.page(nr + offset // BLOCK_BYTES), offset % BLOCK_BYTES)
        raise ImageError(f"no inode {ino}: its slot is in no inode table")


def ignore(code: str, message: str, where: str) -> None:
    """A `Note` for readers that only want what is readable."""


def redo_journals(image: Image, torn: Note, note: Note) -> int:
    """Lay the committed journals of all CPUs over the image; gives back how many there were.

    A mount does the same to the medium. Torn journals go to `torn`, impossible ones to `note`;
    neither store anything.
    """
    redone = 0
    for cpu in range(K["MAX_CPUS"]):
        count, csum, records = image.journal(cpu)
        where = f"journal:{cpu}"
        if count == 0 and csum == 0:
            continue
        if not records:
            torn("FSCK-501", f"{count} records", where)
            continue
        if csum != image.journal_csum(cpu, count):
            torn("FSCK-502", f"{count} records with checksum {csum:#010x}", where)
            continue
        bad = [offset for offset, _ in records if not _journaled(image, offset)]
        if bad:
            note("FSCK-503", f"word at {bad[0]:#x}", where)
            continue
        for offset, value in records:
            image.lay_over(offset, value)
        redone += 1
    return redone


def _journaled(image: Image, offset: int) -> bool:
    heads = K["TABLE_HEADS_NR"] <= offset // BLOCK_BYTES < K["JOURNALS_NR"]
    return offset % 8 == 0 and (heads or image.data_range(offset // BLOCK_BYTES))


# -------------------------------------------------------------------------------------- source


def locate(source: str | os.PathLike[str]) -> tuple[Path, str]:
    """File of the arena `source` and the arena's name ("" for a plain image file).

    `source` is an arena's name, or a path (anything with a slash in it, and any `PathLike`).
    Raises FileNotFoundError (ArenaNotFound for a name) if there is none.
    """
    text = os.fspath(source)
    if isinstance(source, str) and "/" not in text:
        path = segment.pmem_path(text)
        if not path.exists():
            raise segment.missing_arena(text)
        return path, text
    path = Path(text)
    if path.parent == segment.SHM and path.name.startswith("nova_mp.") and path.suffix == ".pmem":
        return path, path.name.removeprefix("nova_mp.").removesuffix(".pmem")
    return path, ""


@contextmanager
def open_image(source: Source) -> Iterator[Image]:
    """Open a buffer, an image file or an arena (by its name) for reading.

    Raises FileNotFoundError if there is none, and ImageError if it is smaller than a block.
    """
    if not isinstance(source, str | os.PathLike):
        image = Image(source)
        try:
            yield image
        finally:
            image.close()
        return
    path, name = locate(source)
    with open(path, "rb") as stream:
        if os.fstat(stream.fileno()).st_size < BLOCK_BYTES:
            raise ImageError(f"{path} is smaller than a block")
        with mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            image = Image(mapped, name=name, live=bool(name) and segment.dram_exists(name))
            try:
                yield image
            finally:
                image.close()

"""Builds small arenas byte by byte, after docs/FORMAT.md, so that tools are tested without a core.

The builder never uses a block again and collects no garbage: every arena it makes is valid, and a
test then damages one thing in it.
"""

from __future__ import annotations

import struct
from typing import Any

from nova_mp.core import layout_fields
from nova_mp.tools import image, logs

K = layout_fields.constants()
STRUCTS = layout_fields.structs()
BLOCK = K["BLOCK_BYTES"]
LINE = K["LINE_BYTES"]
DIRECTORY, FILE, SYMLINK = 0o040755, 0o100644, 0o120777
ROOT, SNAPSHOTS = K["ROOT_INO"], K["SNAPSHOT_INO"]
STRUCT_OF = {
    logs.WRITE: "nv_write_entry",
    logs.DENTRY: "nv_dentry",
    logs.SETATTR: "nv_setattr_entry",
    logs.LINK_CHANGE: "nv_link_change_entry",
    logs.MMAP_WRITE: "nv_mmap_write_entry",
    logs.SNAPSHOT_INFO: "nv_snapshot_info",
    logs.XATTR: "nv_xattr_entry",
}


def pack(name: str, **fields: Any) -> bytes:
    """A struct with the given fields; the others are zero."""
    declared = STRUCTS[name]
    data = bytearray(declared.size)
    for key, value in fields.items():
        field = next(field for field in declared.fields if field.name == key)
        struct.pack_into("<" + field.code, data, field.offset, value)
    return bytes(data)


def make_entry(kind: int, name: bytes = b"", value: bytes = b"", **fields: Any) -> bytes:
    """A log entry with its size and checksum; `name` and `value` go on over more slots."""
    if kind == logs.XATTR:
        fields["value_len"] = len(value)
    slots = logs.entry_slots(kind, len(name) + len(value))
    data = bytearray(
        pack(STRUCT_OF[kind], entry_type=kind, slots=slots, name_len=len(name), **fields)
    ).ljust(slots * LINE, b"\0")
    if name or value:
        data[40 : 40 + len(name) + len(value)] = name + value
    return seal(data)


def seal(data: bytes | bytearray) -> bytes:
    """The entry with the checksum that its contents call for."""
    return bytes(data[:4]) + struct.pack("<I", logs.entry_csum(bytes(data))) + bytes(data[8:])


class Builder:
    """An arena under construction. `finish` gives its bytes; `offsets[ino]` its entries' places."""

    def __init__(self, blocks: int = 768, cpus: int = 2) -> None:
        self.data = bytearray(blocks * BLOCK)
        self.blocks = blocks
        self.cpus = cpus
        self.epoch = 1
        self.clock = 1_700_000_000_000_000_000
        self.next_block = K["DATA_NR"]
        self.next_slot: dict[int, int] = {}
        self.chunks: dict[tuple[int, int], int] = {}
        self.offsets: dict[int, list[int]] = {}
        self.children: dict[int, dict[bytes, tuple[int, int]]] = {}
        self.links: dict[int, int] = {}
        self.sizes: dict[int, int] = {}
        self.pages: dict[int, dict[int, int]] = {}
        for table in range(cpus):
            self.add_chunk(table)
        self.next_slot[0] = K["FIRST_FREE_INO"]
        self.new_inode(DIRECTORY, ino=ROOT)
        self.new_inode(FILE, ino=SNAPSHOTS)

    # -- bytes

    def poke(self, offset: int, fmt: str, *values: Any) -> None:
        """Store little-endian values at an arena offset."""
        struct.pack_into("<" + fmt, self.data, offset, *values)

    def peek(self, offset: int, fmt: str = "Q") -> Any:
        """The value at an arena offset."""
        return struct.unpack_from("<" + fmt, self.data, offset)[0]

    def put(self, offset: int, data: bytes) -> None:
        """Store bytes at an arena offset."""
        self.data[offset : offset + len(data)] = data

    def reseal(self, offset: int) -> None:
        """Give the log entry at `offset` the checksum that it should have."""
        size = self.data[offset + 2] * LINE
        self.put(offset, seal(self.data[offset : offset + size]))

    def set_entry(self, offset: int, struct_name: str, /, **fields: Any) -> None:
        """Change fields of the log entry at `offset`, with its checksum."""
        self.set_fields(offset, struct_name, **fields)
        self.reseal(offset)

    def set_fields(self, offset: int, struct_name: str, /, **fields: Any) -> None:
        """Change fields of the struct at `offset`; its checksum stays as it was."""
        for key, value in fields.items():
            field = next(f for f in STRUCTS[struct_name].fields if f.name == key)
            self.poke(offset + field.offset, field.code, value)

    def alloc(self, count: int = 1) -> int:
        """The next `count` free blocks."""
        nr = self.next_block
        self.next_block += count
        assert self.next_block < self.blocks, "arena too small for this test"
        return nr

    def now(self) -> int:
        """A time that grows."""
        self.clock += 1000
        return self.clock

    # -- inodes and logs

    def add_chunk(self, table: int) -> int:
        """Append a chunk to an inode table; gives back its first block."""
        number = sum(t == table for t, _ in self.chunks)
        nr = self.alloc(K["CHUNK_BLOCKS"])
        magic = K["MAGIC_CHUNK"]
        csum = image.chunk_csum(magic, table, number)
        header = pack("nv_chunk_header", magic=magic, csum=csum, table=table, chunk=number)
        self.put(nr * BLOCK, header)
        if number:
            link = self.chunks[table, number - 1] * BLOCK
            link += STRUCTS["nv_chunk_header"].offset("next_chunk_off")
        else:
            link = self.head_off(table)
        self.poke(link, "Q", nr * BLOCK)
        self.chunks[table, number] = nr
        self.next_slot.setdefault(table, 1)
        return nr

    def head_off(self, table: int) -> int:
        """Offset of the word that leads to the first chunk of a table."""
        return K["TABLE_HEADS_NR"] * BLOCK + table * STRUCTS["nv_table_head"].size

    def inode_off(self, ino: int) -> int:
        """Arena offset of an inode."""
        table, chunk, slot = image.slot_of(ino)
        return self.chunks[table, chunk] * BLOCK + slot * K["INODE_BYTES"]

    def set_inode(self, ino: int, /, **fields: Any) -> None:
        """Change fields of an inode, and give it the checksum that it should have."""
        offset = self.inode_off(ino)
        self.set_fields(offset, "nv_inode", **fields)
        now = image.INODE.decode(bytes(self.data[offset : offset + K["INODE_BYTES"]]))
        self.set_fields(offset, "nv_inode", csum=image.inode_csum(now))

    def new_inode(self, mode: int, *, table: int = 0, ino: int = 0) -> int:
        """An inode with a log of one setattr entry (the snapshot inode's is empty)."""
        if not ino:
            ino = image.ino_of(table, 0, self.next_slot[table])
            self.next_slot[table] += 1
        head = self.new_log_page(ino)
        self.set_inode(
            ino,
            state=K["INODE_VALID"],
            ino=ino,
            log_head_off=head * BLOCK,
            log_tail_off=head * BLOCK,
            create_epoch_id=self.epoch,
            birth_time_ns=self.now(),
            generation=1,
            mode=mode,
        )
        self.offsets[ino] = []
        self.links[ino], self.sizes[ino], self.pages[ino] = 1, 0, {}
        if mode == DIRECTORY:
            self.children[ino] = {}
        if ino != SNAPSHOTS:
            self.setattr(ino, mode=mode)
        return ino

    def new_log_page(self, ino: int) -> int:
        """An empty log page, not yet linked."""
        nr = self.alloc()
        tail = pack("nv_log_page_tail", magic=K["MAGIC_LOG_PAGE"], ino=ino)
        self.put(nr * BLOCK + K["LOG_TAIL_OFF"], tail)
        return nr

    def append(self, ino: int, entry: bytes) -> int:
        """Append an entry and commit the tail; gives back the entry's offset."""
        word = self.inode_off(ino) + STRUCTS["nv_inode"].offset("log_tail_off")
        tail = self.peek(word)
        page, used = tail // BLOCK * BLOCK, tail % BLOCK
        if used + len(entry) > K["LOG_SLOTS"] * LINE:
            if used < K["LOG_SLOTS"] * LINE:
                self.data[tail] = logs.NEXT_PAGE
            tail = self.new_log_page(ino) * BLOCK
            self.poke(page + K["LOG_TAIL_OFF"], "Q", tail)
        self.put(tail, entry)
        self.poke(word, "Q", tail + len(entry))
        self.offsets[ino].append(tail)
        return tail

    # -- operations

    def setattr(self, ino: int, *, mode: int, flags: int = 0) -> int:
        """Log all attributes; gives back the entry's offset."""
        now = self.now()
        fields = {"size": self.sizes[ino], "mtime_ns": now, "ctime_ns": now, "atime_ns": now}
        entry = make_entry(
            logs.SETATTR,
            flags=flags,
            epoch_id=self.epoch,
            mode=mode,
            nlink=self.links[ino],
            uid=1000,
            gid=100,
            **fields,
        )
        return self.append(ino, entry)

    def dentry(self, directory: int, name: bytes, ino: int, mode: int, *, flags: int = 0) -> int:
        """Log a name; gives back the entry's offset."""
        word = image.DTYPES[mode & image.TYPE_MASK] << image.DENTRY_INO_BITS | ino
        aux = self.epoch if flags else 0
        entry = make_entry(
            logs.DENTRY,
            name,
            flags=flags,
            epoch_id=self.epoch,
            ino=word,
            mtime_ns=self.now(),
            aux_epoch_id=aux,
        )
        if flags:
            self.children[directory].pop(name, None)
        else:
            self.children[directory][name] = (ino, mode)
        return self.append(directory, entry)

    def create(self, directory: int, name: bytes, mode: int = FILE, *, table: int = 0) -> int:
        """A new inode with a name."""
        ino = self.new_inode(mode, table=table)
        self.dentry(directory, name, ino, mode)
        return ino

    def link(self, ino: int, directory: int, name: bytes) -> None:
        """Another name for a file."""
        self.links[ino] += 1
        self.dentry(directory, name, ino, FILE)
        self.link_change(ino)

    def link_change(self, ino: int) -> int:
        """Log today's link count."""
        entry = make_entry(
            logs.LINK_CHANGE, epoch_id=self.epoch, ctime_ns=self.now(), nlink=self.links[ino]
        )
        return self.append(ino, entry)

    def unlink(self, directory: int, name: bytes) -> None:
        """Remove a name, and the inode with its last one: kept if it is older than this epoch."""
        ino, mode = self.children[directory][name]
        self.dentry(directory, name, ino, mode, flags=K["ENTRY_FLAG_REMOVED"])
        self.links[ino] -= 1
        if self.links[ino]:
            self.link_change(ino)
        elif self.peek(self.inode_off(ino) + 32) < self.epoch:
            self.set_inode(ino, delete_epoch_id=self.epoch)
        else:
            self.set_inode(ino, state=K["INODE_FREE"])

    def write(self, ino: int, pgoff: int, count: int = 1, *, extra: int = 0) -> int:
        """Write whole pages, less `extra` bytes, to new blocks; gives back the first block."""
        nr = self.alloc(count)
        for index in range(count):
            self.put((nr + index) * BLOCK, bytes([nr + index & 0xFF]) * BLOCK)
        self.sizes[ino] = max(self.sizes[ino], (pgoff + count) * BLOCK - extra)
        self.log_write(ino, pgoff, nr, count)
        return nr

    def log_write(self, ino: int, pgoff: int, nr: int, count: int = 1) -> int:
        """Log a write of given blocks; gives back the entry's offset."""
        self.pages[ino].update({pgoff + index: nr + index for index in range(count)})
        entry = make_entry(
            logs.WRITE,
            epoch_id=self.epoch,
            pgoff=pgoff,
            block_nr=nr,
            num_pages=count,
            size=self.sizes[ino],
            mtime_ns=self.now(),
        )
        return self.append(ino, entry)

    def truncate(self, ino: int, size: int) -> int:
        """Cut a file off (or grow it); gives back the entry's offset."""
        self.sizes[ino] = size
        kept = -(-size // BLOCK)
        self.pages[ino] = {p: nr for p, nr in self.pages[ino].items() if p < kept}
        return self.setattr(ino, mode=FILE, flags=K["ENTRY_FLAG_SIZE"])

    def xattr(self, ino: int, name: bytes, value: bytes, *, flags: int = 0) -> int:
        """Set or remove an extended attribute; gives back the entry's offset."""
        fields = {"flags": flags, "epoch_id": self.epoch, "ctime_ns": self.now()}
        return self.append(ino, make_entry(logs.XATTR, name, value, **fields))

    def snapshot(self, name: bytes = b"") -> int:
        """Take a snapshot; gives back its id. The epoch moves on."""
        entry = make_entry(logs.SNAPSHOT_INFO, name, epoch_id=self.epoch, create_time_ns=self.now())
        self.append(SNAPSHOTS, entry)
        self.epoch += 1
        return self.epoch - 1

    def info_off(self, snapshot: int) -> int:
        """Offset of a snapshot's info entry."""
        return next(off for off in self.offsets[SNAPSHOTS] if self.peek(off + 8) == snapshot)

    def delete_snapshot(self, snapshot: int) -> None:
        """Mark a snapshot deleted."""
        at = STRUCTS["nv_snapshot_info"].offset("deleted")
        self.poke(self.info_off(snapshot) + at, "Q", 1)

    def journal(self, cpu: int, records: list[tuple[int, int]]) -> int:
        """A committed journal; gives back its offset."""
        offset = (K["JOURNALS_NR"] + cpu) * BLOCK
        data = b"".join(struct.pack("<QQ", *record) for record in records)
        self.put(offset + STRUCTS["nv_journal"].offset("records"), data)
        self.poke(offset, "II", len(records), image.crc32c(data))
        return offset

    def finish(self, *, state: int = K["MOUNT_CLEAN"], **fields: Any) -> bytearray:
        """Write both superblocks; gives back the arena (which may be changed further)."""
        values = {
            "magic": K["MAGIC_SUPERBLOCK"],
            "version": K["FORMAT_VERSION"],
            "block_bytes": BLOCK,
            "sequence": 7,
            "size_bytes": self.blocks * BLOCK,
            "epoch_id": self.epoch,
            "create_time_ns": 1_700_000_000_000_000_000,
            "mount_count": 1,
            "mount_state": state,
            "cpus": self.cpus,
            "uuid": bytes(range(16)),
            "label": b"built",
            **fields,
        }
        data = pack("nv_superblock", **values)
        data = data[:4] + struct.pack("<I", image.superblock_csum(data)) + data[8:]
        self.put(K["SUPERBLOCK_OFF"], data)
        self.put((self.blocks - 1) * BLOCK, data)
        return self.data


class Sample(Builder):
    """Files, directories, links, attributes and two snapshots, with something in every struct."""

    def __init__(self) -> None:
        super().__init__()
        self.docs = self.create(ROOT, b"docs", DIRECTORY)
        self.deep = self.create(self.docs, b"deep", DIRECTORY, table=1)
        self.a = self.create(ROOT, b"a")
        self.old_block = self.write(self.a, 0, 3, extra=100)
        self.old = self.create(self.deep, b"old", table=1)
        self.old_data = self.write(self.old, 0)
        self.long = self.create(self.docs, b"n" * 255)
        self.link(self.a, self.docs, b"hard")
        self.symlink = self.create(ROOT, b"sym", SYMLINK)
        self.write(self.symlink, 0, extra=BLOCK - 20)
        self.xattr(self.a, b"user.colour", b"green" * 30)
        self.first = self.snapshot(b"first")
        self.newer_block = self.write(self.a, 1)
        self.unlink(self.docs, b"hard")
        self.unlink(self.deep, b"old")
        self.second = self.snapshot()
        self.truncate(self.a, BLOCK)
        self.xattr(self.a, b"user.colour", b"", flags=K["ENTRY_FLAG_REMOVED"])
        for number in range(80):  # more than one log page
            self.create(self.deep, b"file-%d" % number)
        self.third = self.snapshot(b"x" * 100)
        gone, _ = self.children[self.deep][b"file-7"]
        self.unlink(self.deep, b"file-7")
        self.delete_snapshot(self.third)
        self.set_inode(gone, state=K["INODE_FREE"])
        self.finish()

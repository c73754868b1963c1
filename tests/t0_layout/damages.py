"""Damages to a good arena, by the code of the finding that each must be reported under."""

from __future__ import annotations

import struct
from collections.abc import Callable

from t0_layout.builder import (
    BLOCK,
    DIRECTORY,
    FILE,
    LINE,
    ROOT,
    SNAPSHOTS,
    STRUCTS,
    SYMLINK,
    K,
    Sample,
)

from nova_mp.tools import image, logs

NEXT_OFF = K["LOG_TAIL_OFF"] + STRUCTS["nv_log_page_tail"].offset("next_page_off")
Damage = Callable[[Sample], None]
DAMAGES: list[tuple[str, bool, Damage]] = []


def damage(*codes: str, alone: bool = False) -> Callable[[Damage], Damage]:
    """Register a damage for each code; with `alone`, nothing else may be reported."""

    def register(function: Damage) -> Damage:
        DAMAGES.extend((code, alone, function) for code in codes)
        return function

    return register


def first_entry(b: Sample, ino: int, kind: int) -> int:
    return next(off for off in b.offsets[ino] if b.data[off] == kind)


# -- superblock


@damage("FSCK-101", alone=True)
def no_magic(b: Sample) -> None:
    b.poke(0, "I", 1)
    b.poke((b.blocks - 1) * BLOCK, "I", 1)


@damage("FSCK-102", alone=True)
def both_copies(b: Sample) -> None:
    for start in (0, (b.blocks - 1) * BLOCK):
        b.data[start + 300] ^= 1


@damage("FSCK-103", alone=True)
def one_copy(b: Sample) -> None:
    b.data[200] ^= 1


@damage("FSCK-104", alone=True)
def version(b: Sample) -> None:
    b.finish(version=99)


@damage("FSCK-105", alone=True)
def no_cpus(b: Sample) -> None:
    b.finish(cpus=0)


@damage("FSCK-105")
def larger_than_its_segment(b: Sample) -> None:
    b.finish(size_bytes=b.blocks * BLOCK * 2)


@damage("FSCK-106", alone=True)
def copies_differ(b: Sample) -> None:
    before = bytes(b.data[:512])
    b.finish(sequence=8)
    b.put(0, before)


@damage("FSCK-107", alone=True)
def mount_state(b: Sample) -> None:
    b.finish(state=3)


@damage("FSCK-108")
def epoch_behind(b: Sample) -> None:
    b.finish(epoch_id=b.third)


# -- inode tables and inodes


@damage("FSCK-201")
def chunk_outside(b: Sample) -> None:
    b.poke(b.head_off(1), "Q", 5 * BLOCK)


@damage("FSCK-201")
def chunk_unaligned(b: Sample) -> None:
    b.poke(b.head_off(0), "Q", b.chunks[0, 0] * BLOCK + 64)


@damage("FSCK-202")
def chunk_header(b: Sample) -> None:
    b.data[b.chunks[1, 0] * BLOCK + 8] ^= 2


@damage("FSCK-203", "FSCK-702")
def chunk_of_another_table(b: Sample) -> None:
    b.poke(b.head_off(5), "Q", b.chunks[0, 0] * BLOCK)
    nr = b.chunks[0, 0]
    b.poke(b.head_off(1), "Q", nr * BLOCK)
    # A header of table 5 in the middle of the other table's chunk.
    inside = (nr + 1) * BLOCK
    csum = image.chunk_csum(K["MAGIC_CHUNK"], 5, 0)
    b.poke(inside, "IIIIQ", K["MAGIC_CHUNK"], csum, 5, 0, 0)
    b.poke(b.head_off(5), "Q", inside)


@damage("FSCK-204", alone=True)
def chunk_cycle(b: Sample) -> None:
    nr = b.chunks[0, 0] * BLOCK
    b.poke(nr + STRUCTS["nv_chunk_header"].offset("next_chunk_off"), "Q", nr)


@damage("FSCK-301")
def inode_state(b: Sample) -> None:
    b.set_inode(b.a, state=17)


@damage("FSCK-302", alone=True)
def inode_checksum(b: Sample) -> None:
    b.set_fields(b.inode_off(b.a), "nv_inode", generation=9)


@damage("FSCK-303", alone=True)
def inode_number(b: Sample) -> None:
    b.set_inode(b.a, ino=b.a + 1)


@damage("FSCK-304")
def inode_mode(b: Sample) -> None:
    b.set_inode(b.a, mode=0o020644)


@damage("FSCK-305")
def born_tomorrow(b: Sample) -> None:
    b.set_inode(b.symlink, create_epoch_id=1000)


@damage("FSCK-305")
def dead_before_birth(b: Sample) -> None:
    late = b.create(ROOT, b"late")
    b.unlink(ROOT, b"late")
    b.set_inode(late, state=K["INODE_VALID"], delete_epoch_id=1)


@damage("FSCK-306")
def no_root(b: Sample) -> None:
    b.set_inode(ROOT, state=K["INODE_FREE"])


@damage("FSCK-306")
def no_snapshot_inode(b: Sample) -> None:
    b.set_inode(SNAPSHOTS, state=K["INODE_FREE"])


@damage("FSCK-306")
def reserved_in_use(b: Sample) -> None:
    b.new_inode(FILE, ino=9)


@damage("FSCK-307", alone=True)
def too_many_inodes(b: Sample) -> None:
    b.finish(inode_limit=10)


# -- logs


@damage("FSCK-401")
def log_outside(b: Sample) -> None:
    b.set_inode(b.a, log_head_off=BLOCK)


@damage("FSCK-401")
def log_link_unaligned(b: Sample) -> None:
    head = b.peek(b.inode_off(b.deep) + 16)
    b.poke(head + NEXT_OFF, "Q", head + 8)


@damage("FSCK-402")
def log_page_magic(b: Sample) -> None:
    b.poke(b.peek(b.inode_off(b.a) + 16) + NEXT_OFF + 8, "I", 0)


@damage("FSCK-403", alone=True)
def log_page_owner(b: Sample) -> None:
    b.poke(b.peek(b.inode_off(b.a) + 16) + NEXT_OFF + 16, "Q", b.long)


@damage("FSCK-404")
def log_cycle(b: Sample) -> None:
    head = b.peek(b.inode_off(b.deep) + 16)
    b.poke(head + NEXT_OFF, "Q", head)


@damage("FSCK-405")
def tail_elsewhere(b: Sample) -> None:
    b.set_inode(b.a, log_tail_off=b.peek(b.inode_off(b.symlink) + 24))


@damage("FSCK-406")
def tail_unaligned(b: Sample) -> None:
    b.set_inode(b.a, log_tail_off=b.peek(b.inode_off(b.a) + 24) + 8)


@damage("FSCK-411", alone=True)
def entry_checksum(b: Sample) -> None:
    b.data[first_entry(b, b.symlink, logs.WRITE) + 40] ^= 1


@damage("FSCK-412")
def entry_type(b: Sample) -> None:
    b.data[first_entry(b, b.a, logs.WRITE)] = 99


@damage("FSCK-412")
def dentry_in_a_file(b: Sample) -> None:
    b.children[b.a] = {}
    b.dentry(b.a, b"x", b.long, FILE)


@damage("FSCK-413")
def entry_size(b: Sample) -> None:
    b.data[first_entry(b, b.a, logs.WRITE) + 2] = 2


@damage("FSCK-413")
def entry_across_tail(b: Sample) -> None:
    # The tail stands in the middle of a name of five slots.
    word = b.inode_off(b.docs) + 24
    long = next(off for off in b.offsets[b.docs] if b.data[off + 3] == 255)
    b.poke(word, "Q", long + LINE)


@damage("FSCK-414", alone=True)
def epochs_go_back(b: Sample) -> None:
    b.epoch = 1
    b.setattr(b.symlink, mode=SYMLINK)
    b.epoch = 3
    b.setattr(b.symlink, mode=SYMLINK)
    b.epoch = 2
    b.setattr(b.symlink, mode=SYMLINK)


@damage("FSCK-415", alone=True)
def entry_from_the_future(b: Sample) -> None:
    b.epoch = 50
    b.setattr(b.symlink, mode=SYMLINK)


@damage("FSCK-416")
def write_of_no_pages(b: Sample) -> None:
    b.set_entry(first_entry(b, b.a, logs.WRITE), "nv_write_entry", num_pages=0)


@damage("FSCK-416")
def setattr_without_type(b: Sample) -> None:
    b.set_entry(first_entry(b, b.a, logs.SETATTR), "nv_setattr_entry", mode=0)


@damage("FSCK-416")
def attribute_without_name(b: Sample) -> None:
    b.xattr(b.a, b"", b"v")


@damage("FSCK-701")
def blocks_outside(b: Sample) -> None:
    b.set_entry(first_entry(b, b.a, logs.WRITE), "nv_write_entry", block_nr=b.blocks - 2)


# -- journals


@damage("FSCK-501", alone=True)
def journal_length(b: Sample) -> None:
    b.poke(b.journal(0, [(b.inode_off(b.a), 1)]), "I", 5000)


@damage("FSCK-502", alone=True)
def journal_checksum(b: Sample) -> None:
    b.data[b.journal(3, [(b.inode_off(b.a), 1)]) + 20] ^= 1


@damage("FSCK-503", alone=True)
def journal_aims_at_the_superblock(b: Sample) -> None:
    b.journal(3, [(16, 1)])


@damage("FSCK-504", alone=True)
def journal_in_a_clean_arena(b: Sample) -> None:
    b.journal(1, [(b.inode_off(b.a), K["INODE_VALID"])])


# -- names


@damage("FSCK-601")
def name_to_nowhere(b: Sample) -> None:
    b.dentry(ROOT, b"nowhere", 200, FILE)


@damage("FSCK-602")
def name_to_the_dead(b: Sample) -> None:
    b.dentry(ROOT, b"ghost", b.old, FILE)


@damage("FSCK-603")
def wrong_type(b: Sample) -> None:
    b.create(ROOT, b"odd", FILE)
    last = b.offsets[ROOT][-1]
    ino, _ = b.children[ROOT][b"odd"]
    b.set_entry(last, "nv_dentry", ino=4 << image.DENTRY_INO_BITS | ino)


@damage("FSCK-603")
def inode_younger_than_its_name(b: Sample) -> None:
    b.set_inode(b.symlink, create_epoch_id=b.epoch)


@damage("FSCK-604", alone=True)
def dot_dot(b: Sample) -> None:
    b.create(ROOT, b"..", FILE)


@damage("FSCK-604", alone=True)
def slash(b: Sample) -> None:
    b.create(ROOT, b"a/b", FILE)


@damage("FSCK-605", "FSCK-607")
def name_twice(b: Sample) -> None:
    b.create(ROOT, b"twice")
    b.create(ROOT, b"twice")


@damage("FSCK-606", alone=True)
def directory_with_two_parents(b: Sample) -> None:
    b.dentry(ROOT, b"again", b.deep, DIRECTORY)


@damage("FSCK-606")
def directory_cycle(b: Sample) -> None:
    b.dentry(b.deep, b"up", b.docs, DIRECTORY)
    b.dentry(ROOT, b"docs", b.docs, DIRECTORY, flags=K["ENTRY_FLAG_REMOVED"])


@damage("FSCK-607", alone=True)
def lost_file(b: Sample) -> None:
    b.new_inode(FILE)


@damage("FSCK-607", alone=True)
def lost_tree(b: Sample) -> None:
    lost = b.new_inode(DIRECTORY)
    b.create(lost, b"child")


@damage("FSCK-608", alone=True)
def link_count(b: Sample) -> None:
    b.links[b.symlink] = 2
    b.link_change(b.symlink)


@damage("FSCK-609")
def dead_directory_with_names(b: Sample) -> None:
    b.set_inode(b.deep, delete_epoch_id=b.epoch)
    b.dentry(b.docs, b"deep", b.deep, DIRECTORY, flags=K["ENTRY_FLAG_REMOVED"])


# -- blocks


@damage("FSCK-702", alone=True)
def block_of_two_files(b: Sample) -> None:
    other = b.create(ROOT, b"other")
    b.sizes[other] = BLOCK
    b.log_write(other, 0, b.write(b.create(ROOT, b"one"), 0))


@damage("FSCK-702", alone=True)
def data_in_a_log(b: Sample) -> None:
    other = b.create(ROOT, b"other")
    b.sizes[other] = BLOCK
    b.log_write(other, 0, b.peek(b.inode_off(b.a) + 16) // BLOCK)


@damage("FSCK-703", alone=True)
def pages_past_the_end(b: Sample) -> None:
    other = b.create(ROOT, b"other")
    b.write(other, 0, 4)
    b.set_entry(b.offsets[other][-1], "nv_write_entry", size=BLOCK)


@damage("FSCK-704")
def dead_inode_without_its_log(b: Sample) -> None:
    dead = b.create(ROOT, b"dead")
    b.unlink(ROOT, b"dead")
    b.set_inode(dead, state=K["INODE_VALID"], delete_epoch_id=b.epoch)
    other = b.create(ROOT, b"other")
    b.sizes[other] = BLOCK
    b.log_write(other, 0, b.peek(b.inode_off(dead) + 16) // BLOCK)


@damage("FSCK-706", alone=True)
def dead_inode_left(b: Sample) -> None:
    dead = b.create(ROOT, b"dead")
    b.unlink(ROOT, b"dead")
    b.set_inode(dead, state=K["INODE_VALID"], delete_epoch_id=b.epoch)


# -- snapshots


@damage("FSCK-801")
def snapshot_twice(b: Sample) -> None:
    b.snapshot()
    b.epoch -= 1
    b.snapshot()
    b.finish()


@damage("FSCK-802", alone=True)
def block_of_a_snapshot_used_again(b: Sample) -> None:
    other = b.create(ROOT, b"other")
    b.sizes[other] = BLOCK
    b.log_write(other, 0, b.old_block + 1)


@damage("FSCK-803")
def inode_of_a_snapshot_freed(b: Sample) -> None:
    b.set_inode(b.old, state=K["INODE_FREE"])


@damage("FSCK-803")
def inode_of_a_snapshot_used_again(b: Sample) -> None:
    b.set_inode(b.old, create_epoch_id=3, delete_epoch_id=3)


@damage("FSCK-804", alone=True)
def links_in_a_snapshot(b: Sample) -> None:
    # As if garbage collection had dropped the entry that the first snapshot needs.
    offset = first_entry(b, b.a, logs.LINK_CHANGE)
    b.set_entry(offset, "nv_link_change_entry", nlink=1)


@damage("FSCK-807", alone=True)
def snapshots_of_one_name(b: Sample) -> None:
    b.snapshot(b"first")
    b.finish()


def list_entry(kind: str, number: int, count: int, created: int, superseded: int) -> bytes:
    return struct.pack("<BBHIQQQ", K[kind], 0, 0, count, number, created, superseded)


def needed_entries(b: Sample) -> dict[int, list[bytes]]:
    """What the lists of the two snapshots hold."""
    return {
        b.first: [
            list_entry("SS_FILE_WRITE", b.old_block + 1, 1, b.first, b.second),
            list_entry("SS_FILE_WRITE", b.old_block + 2, 1, b.first, b.third),
            list_entry("SS_FILE_WRITE", b.old_data, 1, b.first, b.second),
            list_entry("SS_INODE", b.old, 1, b.first, b.second),
        ],
        b.second: [list_entry("SS_FILE_WRITE", b.newer_block, 1, b.second, b.third)],
    }


def save_lists(b: Sample, lists: dict[int, list[bytes]], **tail: int) -> int:
    """Save lists, each as CPU 3's; gives back a list page. `tail` goes into the pages' tails."""
    page = 0
    for snapshot, entries in lists.items():
        table, page = b.alloc(), b.alloc()
        data = b"".join(entries)
        b.put(page * BLOCK, data)
        fields = {
            "magic": K["MAGIC_LIST_PAGE"],
            "num_entries": len(entries),
            "epoch_id": snapshot,
            "csum": image.crc32c(data),
            **tail,
        }
        b.set_fields(page * BLOCK + BLOCK - 32, "nv_list_page_tail", **fields)
        head = struct.pack("<QQQ", 1, page * BLOCK, page * BLOCK)
        for cpu in range(K["MAX_CPUS"]):
            fields_of = head if cpu == 3 else bytes(24)
            csum = struct.pack("<Q", image.crc32c(fields_of))
            b.put(table * BLOCK + cpu * 32, fields_of + csum)
        at = STRUCTS["nv_snapshot_info"].offset("nvmm_page_off")
        b.poke(b.info_off(snapshot) + at, "Q", table * BLOCK)
    b.finish(lists_saved=1)
    return page


@damage("FSCK-805")
def list_page_magic(b: Sample) -> None:
    save_lists(b, needed_entries(b), magic=5)


@damage("FSCK-805")
def list_page_checksum(b: Sample) -> None:
    save_lists(b, needed_entries(b), csum=5)


@damage("FSCK-805")
def list_head_checksum(b: Sample) -> None:
    page = save_lists(b, needed_entries(b))
    b.data[(page - 1) * BLOCK + 9 * 32] ^= 1


@damage("FSCK-805", alone=True)
def list_cycle(b: Sample) -> None:
    page = save_lists(b, needed_entries(b))
    b.poke(page * BLOCK + BLOCK - 32, "Q", page * BLOCK)


@damage("FSCK-805")
def lists_missing(b: Sample) -> None:
    b.finish(lists_saved=1)


@damage("FSCK-806", alone=True)
def list_of_a_free_block(b: Sample) -> None:
    lists = needed_entries(b)
    lists[b.first].append(list_entry("SS_FILE_WRITE", b.blocks - 5, 1, b.first, b.second))
    save_lists(b, lists)


@damage("FSCK-809", alone=True)
def block_listed_twice(b: Sample) -> None:
    lists = needed_entries(b)
    lists[b.first] *= 2
    save_lists(b, lists)


@damage("FSCK-809", alone=True)
def list_lacks_a_block(b: Sample) -> None:
    lists = needed_entries(b)
    lists[b.first].pop(0)
    save_lists(b, lists)


@damage("FSCK-809", alone=True)
def list_lacks_an_inode(b: Sample) -> None:
    lists = needed_entries(b)
    lists[b.first].pop()
    save_lists(b, lists)


@damage("FSCK-806", alone=True)
def entry_in_another_snapshots_list(b: Sample) -> None:
    lists = needed_entries(b)
    lists[b.second].append(lists[b.first].pop(1))
    save_lists(b, lists)


@damage("FSCK-806")
def list_of_an_inode_that_lives(b: Sample) -> None:
    lists = needed_entries(b)
    lists[b.first].append(list_entry("SS_INODE", b.a, 1, b.first, b.second))
    save_lists(b, lists)


@damage("FSCK-808")
def list_page_with_too_many_entries(b: Sample) -> None:
    save_lists(b, needed_entries(b), num_entries=200)


@damage("FSCK-808", alone=True)
def list_of_other_pages_than_it_says(b: Sample) -> None:
    page = save_lists(b, needed_entries(b))
    # The head in the page before, that of CPU 3, with its checksum.
    head = struct.pack("<QQQ", 2, page * BLOCK, page * BLOCK)
    b.put((page - 1) * BLOCK + 3 * 32, head + struct.pack("<Q", image.crc32c(head)))


@damage("FSCK-810", alone=True)
def lists_of_an_arena_in_use(b: Sample) -> None:
    b.finish(state=K["MOUNT_DIRTY"], lists_saved=1)

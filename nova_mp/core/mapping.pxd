# Files whose blocks processes have mapped: stored to in place, preserved for snapshots first.
#
# Purpose    A mapping shows the blocks themselves, so as long as a file is mapped (`maps` of its
#            header) nothing moves them. What an older snapshot needs of a page is copied before the
#            first store after that snapshot, and a log entry (ENTRY_MMAP_WRITE) says so: the file
#            keeps its block, the snapshot gets the copy. So no other process has to change what it
#            has mapped.
# Locks      The inode's lock, with an epoch announced.
# Invariants
#   MAP-4  A page is stored to in place only if its entry is of the current epoch, or if no snapshot
#          needs what it held; else its contents are preserved, and the entry is committed, first.
#   MAP-5  While a file is mapped, no page of it changes its block or loses it: writes go in place,
#          a truncation leaves pages past the end (INODE_PAST_END) to the last unmapping.
#   MAP-6  `preserved` of the header grows with each such entry, before the page changes: a reader
#          of a snapshot who finds it unchanged has read what the snapshot holds.
#   MAP-7  A block that is mapped through a snapshot is not the live file's while that is mapped:
#          mapping one of the two gives the live file, or the snapshot, a copy.
#   MAP-8  Writes to a mapped file are as stores: a power failure, or the writer's death, may leave
#          a part of one.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from nova_mp.core.dram cimport nv_ctx, nv_inode_header, nv_map

cdef struct nv_run:                  # PRIVATE. Pages that follow one another in file and arena
    uint64_t page
    uint64_t block                   # 0: a hole
    uint64_t pages

cdef enum:
    MAP_COUNTED = 4                  # nv_map flag: `maps` (view_maps) of the header includes it

cdef int preserve_pages(nv_ctx* c, nv_inode_header* h, uint64_t ino, uint64_t first,
                        uint64_t end) noexcept nogil
cdef int64_t mapped_write(nv_ctx* c, nv_inode_header* h, uint64_t ino, const uint8_t* src,
                          uint64_t n, uint64_t offset) noexcept nogil
cdef int mapped_truncate(nv_ctx* c, nv_inode_header* h, uint64_t ino, uint64_t size) noexcept nogil
cdef int zero_past_end(nv_ctx* c, nv_inode_header* h, uint64_t ino, uint64_t size) noexcept nogil
cdef int map_prepare(nv_ctx* c, nv_inode_header* h, nv_map* m, uint64_t first,
                     uint64_t end) noexcept nogil
cdef void map_count(nv_inode_header* h, nv_map* m, bint on) noexcept nogil
cdef uint64_t map_runs(nv_ctx* c, nv_inode_header* h, uint64_t first, uint64_t end, nv_run* runs,
                       uint64_t room) noexcept nogil
cdef int map_flush(nv_ctx* c, nv_inode_header* h, uint64_t ino, uint64_t first, uint64_t end,
                   bint stamp) noexcept nogil
cdef int resolve_pages(nv_ctx* c, uint64_t ino, uint32_t generation, uint64_t first, uint64_t end,
                       uint64_t* block) noexcept nogil
cdef void recount_maps(nv_ctx* c, nv_inode_header* h, uint64_t ino) noexcept nogil

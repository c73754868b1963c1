# Sparse arrays of 8-byte words, in DRAM: what a file's pages, a directory's hash table and the
# chunks of an inode table are found with.
#
# Structure  A root word: node offset (64-aligned) | log2 of the capacity in its low 6 bits.
#            Capacity 1 is the word beside the root; 8, 64 and 512 words are one node; above that,
#            nodes of 512 pointers over nodes of 512. So a file of one page costs nothing, and a
#            large one 8 bytes a page.
# Words      File page: block_nr << 34 | reference of its write entry. Directory: tag << 34 |
#            reference of the dentry. A reference is log block << 6 | slot. 0 = nothing there.
# Locks      The inode's lock (a table's: its CPU's inode lock). Readers are optimistic: they check
#            every offset against the segment's size, and the inode's seq afterwards.
# Invariants
#   IDX-1  Each store leaves a tree that can be walked: nodes are filled before they are linked, and
#          unlinked before they are freed.
#   IDX-2  A node that readers may be in is freed only after the inode's seq has moved.

from libc.stdint cimport uint8_t, uint64_t
from nova_mp.core.arch cimport nv_load64
from nova_mp.core.dram cimport nv_ctx, nv_index, nv_inode_header

cdef enum:
    REF_BITS = 34
    REF_MASK = 0x3FFFFFFFF
    INDEX_MAX_LOG2 = 45

cdef int index_reserve(nv_ctx* c, nv_inode_header* h, nv_index* ix, uint64_t first,
                       uint64_t last) noexcept nogil
cdef uint64_t* index_cell(nv_ctx* c, nv_index* ix, uint64_t pos) noexcept nogil
cdef uint64_t index_next(nv_ctx* c, nv_index* ix, uint64_t pos, uint64_t end) noexcept nogil
cdef void index_prune(nv_ctx* c, nv_index* ix, uint64_t start) noexcept nogil


cdef inline uint64_t index_get(const uint8_t* base, uint64_t limit, const nv_index* ix,
                               uint64_t pos) noexcept nogil:
    cdef uint64_t root = nv_load64(&ix.root)
    cdef uint64_t log2 = root & 63
    cdef uint64_t off = root - log2
    if log2 == 0:
        return nv_load64(&ix.inline_word) if pos == 0 else 0
    if pos >> log2:
        return 0
    while log2 > 9:
        log2 -= 9
        if off > limit - 4096:
            return 0
        off = nv_load64(<const uint64_t*>(base + off) + (pos >> log2))
        if off == 0:
            return 0
        pos &= (<uint64_t>1 << log2) - 1
    if off > limit - 4096:
        return 0
    return nv_load64(<const uint64_t*>(base + off) + pos)


cdef inline uint64_t make_ref(uint64_t entry_off) noexcept nogil:
    return entry_off >> 6


cdef inline uint64_t ref_off(uint64_t word) noexcept nogil:
    return (word & REF_MASK) << 6


cdef inline uint64_t word_block(uint64_t word) noexcept nogil:
    return word >> REF_BITS

# Allocators: bitmaps in regions; the arena's blocks, in a region for each CPU.
#
# Structure  The truth is a bitmap (DRAM-3). A region is a range of it with a free count, a cursor
#            and a ring of hints: extents freed lately, taken again newest first, because their
#            lines are still in the cache. Hints may be stale; the bitmap decides.
# Locks      A region's own lock, a leaf of the lock order.
# Invariants
#   ALLOC-1  A slot's intent (pend_*, dpend_*) names an extent before its bits are set and until
#            something committed or linked refers to it; at most one of each kind at a time.
#   ALLOC-2  A slot's intent (rel_*) names an extent before its bits are cleared; the intent shrinks
#            under the region's lock, so a repairer never clears bits that another has set since.
#   ALLOC-3  Ordinary operations leave `reserve` units in each region to those that give space back.
#   ALLOC-4  No two regions share a word of the bitmap: each is changed under its own lock, by plain
#            stores of whole words.
#   ALLOC-5  A slot's `keep_block` is in use in the bitmap, and nobody's. It comes from an announced
#            release and goes into an announced allocation, without a lock; both name it until that
#            is done, and a repairer looks there first (keep_settle). Whoever overwrites a page at a
#            time takes the block that it gave back the time before, whatever else goes on.

from libc.stdint cimport uint32_t, uint64_t
from nova_mp.core.arch cimport nv_fence_release
from nova_mp.core.dram cimport nv_ctx, nv_region, nv_slot

cdef uint64_t blocks_alloc(nv_ctx* c, uint64_t want, uint64_t link_off,
                           uint64_t* got) noexcept nogil
cdef uint64_t blocks_alloc_run(nv_ctx* c, uint64_t want, uint64_t link_off) noexcept nogil
cdef void blocks_free(nv_ctx* c, uint64_t block, uint64_t n) noexcept nogil
cdef void blocks_free_announced(nv_ctx* c) noexcept nogil
cdef void keep_settle(nv_slot* s) noexcept nogil
cdef void keep_drop(nv_ctx* c) noexcept nogil
cdef uint64_t kept_blocks(nv_ctx* c, nv_region* r) noexcept nogil
cdef bint blocks_in_use(nv_ctx* c, uint64_t block, uint64_t n) noexcept nogil
cdef int blocks_mark(nv_ctx* c, uint64_t block, uint64_t n) noexcept nogil
cdef uint64_t blocks_free_count(nv_ctx* c) noexcept nogil
cdef bint blocks_fit(nv_ctx* c, uint64_t pages, uint64_t have) noexcept nogil
cdef void regions_init(nv_ctx* c) noexcept nogil
cdef void region_recount(nv_ctx* c, nv_region* r, uint64_t* bitmap) noexcept nogil
cdef void region_repair(nv_ctx* c, nv_region* r) noexcept nogil

cdef void bits_set(uint64_t* bitmap, uint64_t start, uint64_t n) noexcept nogil
cdef void bits_clear(uint64_t* bitmap, uint64_t start, uint64_t n) noexcept nogil
cdef uint64_t bits_run(uint64_t* bitmap, uint64_t start, uint64_t most, int used) noexcept nogil
cdef uint64_t region_find(nv_region* r, uint64_t* bitmap, uint64_t want,
                          uint64_t* start) noexcept nogil
cdef void region_hint(nv_region* r, uint64_t start, uint64_t n) noexcept nogil


cdef inline void pend_done(nv_ctx* c) noexcept nogil:
    c.slot.pend_len = 0


cdef inline void release_fill(nv_slot* s, uint64_t extent) noexcept nogil:
    # What is going to be released, before it is announced: blocks, and nothing else to it yet.
    s.rel_extent = extent
    s.rel_create_epoch = 0
    s.rel_delete_epoch = 0
    s.rel_ino = 0
    s.rel_link_off = 0
    s.rel_pages = 0
    s.rel_undo = 0


cdef inline void release_announce(nv_slot* s) noexcept nogil:
    nv_fence_release()
    s.rel_state = 1


cdef inline uint64_t* block_bitmap(nv_ctx* c) noexcept nogil:
    return <uint64_t*>(c.dram + c.hdr.block_bitmap_off)


cdef inline uint64_t region_available(nv_ctx* c, nv_region* r) noexcept nogil:
    # ALLOC-3.
    cdef uint64_t keep = 0 if c.privileged else r.reserve
    return r.free - keep if r.free > keep else 0

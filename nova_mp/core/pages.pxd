# Pages of the DRAM segment, and slabs of 64 and 512 bytes in them.
#
# Structure  Pages are a region (alloc.pxd) that grows with the segment; a slab page is a CPU's.
# Locks      The region's lock; the slab lock of a CPU for its slab pages. Leaves of the lock order.
# Invariants ALLOC-1 and ALLOC-3 (alloc.pxd), with dpend_*.

from libc.stdint cimport uint32_t, uint64_t
from nova_mp.core.dram cimport nv_ctx, nv_page_desc

cdef uint64_t dram_alloc(nv_ctx* c, uint64_t n_bytes, uint64_t link_off) noexcept nogil
cdef void dram_free(nv_ctx* c, uint64_t off, uint64_t n_bytes) noexcept nogil
cdef void slab_repair(nv_ctx* c, uint32_t cpu) noexcept nogil
cdef void pages_repair(nv_ctx* c) noexcept nogil
cdef void dpend_repair(nv_ctx* c) noexcept nogil


cdef inline void dpend_done(nv_ctx* c) noexcept nogil:
    c.slot.dpend_off = 0


cdef inline uint64_t* page_bitmap(nv_ctx* c) noexcept nogil:
    return <uint64_t*>(c.dram + c.hdr.page_bitmap_off)


cdef inline nv_page_desc* page_desc(nv_ctx* c, uint64_t page) noexcept nogil:
    return <nv_page_desc*>(c.dram + c.hdr.page_desc_off) + page

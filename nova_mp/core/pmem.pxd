# The arena: offset <-> pointer, and the one door for stores, flushes and fences.
#
# Purpose    Every store to PMEM in the project goes through the functions declared here. That is
#            where write-backs are issued, media timing is emulated and the persistence trace is
#            taken.
# Invariants
#   PMEM-1  No other module writes through a pointer into PMEM.
#   PMEM-2  A word that commits something is stored by pm_store64 and persisted before the operation
#           returns; what it commits was persisted before it.
#   PMEM-3  Replaying a complete trace over the image taken at its start gives the arena byte for
#           byte.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from nova_mp.core.dram cimport nv_arena, nv_ctx, nv_trace
from nova_mp.core.layout cimport BLOCK_SHIFT, nv_superblock

cdef enum:
    TRACE_STORE = 1
    TRACE_COPY_NT = 2
    TRACE_FLUSH = 3
    TRACE_FENCE = 4

cdef void trace_add(nv_ctx* c, uint32_t kind, uint64_t off, uint64_t n) noexcept nogil
cdef void flush_slow(nv_ctx* c, uint64_t off, uint64_t n) noexcept nogil
cdef void fence_slow(nv_ctx* c) noexcept nogil
cdef void pm_read_delay(nv_ctx* c, uint64_t n) noexcept nogil
cdef void pm_copy(nv_ctx* c, uint64_t off, const void* src, uint64_t n) noexcept nogil
cdef void pm_copy_data(nv_ctx* c, uint64_t off, const void* src, uint64_t n) noexcept nogil
cdef void pm_zero(nv_ctx* c, uint64_t off, uint64_t n) noexcept nogil
cdef void pm_store64(nv_ctx* c, uint64_t off, uint64_t value) noexcept nogil
cdef void pm_store32(nv_ctx* c, uint64_t off, uint32_t value) noexcept nogil
cdef void pm_store16(nv_ctx* c, uint64_t off, uint16_t value) noexcept nogil
cdef bint superblock_valid(const nv_superblock* sb) noexcept nogil
cdef const nv_superblock* superblock_newest(nv_ctx* c) noexcept nogil
cdef void superblock_write(nv_ctx* c, nv_superblock* sb) noexcept nogil
cdef void fail_point(nv_ctx* c, const char* name) noexcept nogil


cdef inline void pm_flush(nv_ctx* c, uint64_t off, uint64_t n) noexcept nogil:
    # A DRAM medium needs no write-back: losing power loses all of it anyway.
    if c.a.media_mode or c.a.trace != NULL:
        flush_slow(c, off, n)


cdef inline void pm_fence(nv_ctx* c) noexcept nogil:
    if c.a.media_mode or c.a.trace != NULL:
        fence_slow(c)


cdef inline void pm_persist(nv_ctx* c, uint64_t off, uint64_t n) noexcept nogil:
    pm_flush(c, off, n)
    pm_fence(c)


cdef inline void pm_adopt(nv_ctx* c, uint64_t off, uint64_t n) noexcept nogil:
    # What a mapping stored at `off` is persistent at the next fence. The one kind of store that
    # does not come through here; a trace has it from now on.
    if c.a.trace != NULL:
        trace_add(c, TRACE_STORE, off, n)
    pm_flush(c, off, n)


cdef inline uint64_t block_off(uint64_t nr) noexcept nogil:
    return nr << BLOCK_SHIFT


cdef inline uint64_t pm_word(nv_ctx* c, uint64_t off) noexcept nogil:
    return (<uint64_t*>(c.pm + off))[0]

# Holding stores into mappings back, in all processes at once, from outside.
#
# Purpose    A snapshot's cut through what is mapped: of two stores, one after the other, it never
#            holds the later without the earlier, in whatever pages and processes they are.
# Structure  A process lists its mappings in DRAM (nv_map). Whoever takes a snapshot or freezes the
#            arena protects them all: with the process's userfaultfd, of which it takes a copy, or,
#            where that is not permitted, by asking a thread of the process. Stores then fault, and
#            a thread of the storing process resolves each (faults.pyx).
# Locks      snapshot_lock, to change the tables and to hold stores back. `hold` names who does, as
#            a lock word would: it is cleared in a dead holder's name (repair.pyx).
# Invariants
#   MAP-1  A mapping that is not in its process's table admits no stores.
#   MAP-2  While `hold` is set no fault is being resolved: `faulting` announces one, and is taken
#          back if `hold` is found set. So from the moment that everything is protected until the
#          epoch has moved, no store succeeds.
#   MAP-3  A page is made writable only while `faulting` is announced, after what older snapshots
#          need of it was preserved (MAP-4).
#   MAP-9  A part of a mapping whose bit in `writable` is clear has no page that admits stores: the
#          bit is set before one of its pages is made writable, and cleared once all are protected.

from libc.stdint cimport int32_t, uint32_t, uint64_t
from nova_mp.core.dram cimport nv_ctx, nv_map, nv_map_page

cdef enum:
    PROTECT_NS = 2000000000          # then a process that is late makes the snapshot fail

cdef int stores_hold(nv_ctx* c) noexcept nogil
cdef void stores_release(nv_ctx* c) noexcept nogil
cdef bint fault_enter(nv_ctx* c) noexcept nogil
cdef void fault_leave(nv_ctx* c) noexcept nogil
cdef void hold_wait(nv_ctx* c, uint64_t ns) noexcept nogil
cdef nv_map* map_find(nv_ctx* c, uint64_t page_off, uint64_t at) noexcept nogil
cdef void map_touched(nv_map* m, uint64_t page, uint64_t end) noexcept nogil
cdef uint64_t map_writable(nv_map* m, uint64_t page, uint64_t* end) noexcept nogil
cdef void map_protected(nv_map* m) noexcept nogil


cdef inline nv_map_page* map_page(nv_ctx* c, uint64_t off) noexcept nogil:
    return <nv_map_page*>(c.dram + off)

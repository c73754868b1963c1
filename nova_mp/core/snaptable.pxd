# The snapshot table: descriptors sorted by id, and the epoch check that asks it.
#
# Structure  An array of (id, descriptor) in DRAM; an element that was taken out keeps its id, so
#            the array stays sorted, until half of it is dead and it is squeezed.
# Locks      snapshot_lock to change it; anybody reads it under snap_seq.
# Invariants see snapshot.pxd (SNAP-1, SNAP-4).

from libc.stdint cimport uint32_t, uint64_t
from nova_mp.core.dram cimport nv_ctx, nv_list_head, nv_snapshot

cdef nv_snapshot* snap_needed_by(nv_ctx* c, uint64_t create_epoch_id,
                                 uint64_t delete_epoch_id) noexcept nogil
cdef bint snap_any_before(nv_ctx* c, uint64_t epoch_id) noexcept nogil
cdef nv_snapshot* snap_find(nv_ctx* c, uint64_t epoch_id) noexcept nogil
cdef nv_snapshot* snap_at(nv_ctx* c, uint32_t position) noexcept nogil
cdef uint64_t snap_id_after(nv_ctx* c, uint64_t epoch_id) noexcept nogil
cdef uint64_t descriptor_new(nv_ctx* c) noexcept nogil
cdef int table_room(nv_ctx* c) noexcept nogil
cdef void table_insert(nv_ctx* c, uint64_t descriptor_off, uint64_t info_off) noexcept nogil
cdef void table_remove(nv_ctx* c, uint64_t descriptor_off) noexcept nogil
cdef void table_repair(nv_ctx* c) noexcept nogil
cdef uint64_t descriptor_bytes(nv_ctx* c) noexcept nogil
cdef uint64_t snap_id_before(nv_ctx* c, uint64_t epoch_id) noexcept nogil


cdef inline nv_list_head* list_of(nv_snapshot* s, uint32_t cpu) noexcept nogil:
    return <nv_list_head*>(s + 1) + cpu

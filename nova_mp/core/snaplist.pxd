# Per-CPU snapshot lists: what was superseded since, and is still needed.
#
# Structure  A list is a chain of DRAM pages of LIST_ENTRIES entries; a page's tail counts them.
#            Pages come from the slot's spares, which an operation reserves before it commits.
# Locks      The snap_lock of the CPU.
# Invariants see snapshot.pxd (SNAP-2, SNAP-3, SNAP-5); besides:
#   LIST-1  A list's `exclusive` counts the blocks that no later snapshot needs: entries with a
#           delete epoch up to the next snapshot's id. Appends keep it; a delete marks its
#           predecessor for counting again, which the next reader does.

from libc.stdint cimport uint32_t, uint64_t
from nova_mp.core.dram cimport nv_ctx, nv_list_head, nv_snapshot
from nova_mp.core.layout cimport nv_list_entry, nv_list_page_tail

cdef void release_announced(nv_ctx* c) noexcept nogil
cdef void release_blocks(nv_ctx* c, uint64_t block, uint64_t n, uint64_t create_epoch_id,
                         uint64_t delete_epoch_id) noexcept nogil
cdef bint record_inode(nv_ctx* c, uint64_t ino, uint32_t log_pages, uint64_t create_epoch_id,
                       uint64_t delete_epoch_id) noexcept nogil
cdef int spare_reserve(nv_ctx* c, uint64_t entries) noexcept nogil
cdef void spare_drop(nv_ctx* c) noexcept nogil
cdef void list_append(nv_ctx* c, nv_snapshot* target, nv_list_entry* entry) noexcept nogil
cdef uint64_t snap_exclusive(nv_ctx* c, nv_snapshot* s) noexcept nogil
cdef uint64_t snap_frees(nv_ctx* c, nv_snapshot* s, const uint64_t* left, uint64_t n) noexcept nogil
cdef void list_repair(nv_ctx* c, uint32_t cpu) noexcept nogil


cdef inline nv_list_page_tail* list_tail(nv_ctx* c, uint64_t page_off) noexcept nogil:
    return <nv_list_page_tail*>(c.dram + page_off + 4064)


cdef inline nv_list_entry* list_entries(nv_ctx* c, uint64_t page_off) noexcept nogil:
    return <nv_list_entry*>(c.dram + page_off)

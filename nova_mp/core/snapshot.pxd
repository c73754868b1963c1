# Snapshots: the table, the epoch check, the per-CPU lists; create and delete. It records what a
# snapshot holds; blocks that no snapshot needs are handed to the allocator, lists of deleted
# snapshots to the cleaner (reclaim.pyx).
#
# Structure  A snapshot is an info entry in SNAPSHOT_INO's log; in DRAM a descriptor with one list
#            head a CPU, and an element of a table sorted by id. A list entry says: these blocks
#            (this inode) were born in epoch e and superseded in epoch d. Snapshot S needs them iff
#            e <= S < d; the entry stands in the list of the oldest live such S.
# Locks      snapshot_lock: create, delete, open. snap_lock of a CPU: its part of all lists and its
#            queue to the cleaner. The table is read under snap_seq.
# Invariants
#   SNAP-1  A snapshot is in the table before epoch_id + 1 is published: whoever sees the new epoch
#           finds the snapshot.
#   SNAP-2  A list entry (e, d) stands in the list of the oldest live snapshot S >= e, and S < d; or
#           in the queue to the cleaner.
#   SNAP-3  Target lookup and append happen under one hold of the CPU's snap_lock; delete takes a
#           snapshot out of the table before it takes each snap_lock to move the lists. So no append
#           reaches a list that has been moved.
#   SNAP-4  "Not needed" is final: snapshots created later have ids >= d.
#   SNAP-5  num_pages is the number of pages linked from head to tail; a page's entries are counted
#           in its tail.

from libc.stdint cimport uint32_t, uint64_t
from nova_mp.core.dram cimport nv_ctx, nv_inode_header

cdef int snap_create(nv_ctx* c, const char* name, uint32_t name_len,
                     uint64_t* epoch_id) noexcept nogil
cdef int snap_delete(nv_ctx* c, uint64_t epoch_id, bint defer) noexcept nogil
cdef void snap_create_finish(nv_ctx* c) noexcept nogil
cdef void snap_delete_finish(nv_ctx* c, uint64_t descriptor_off) noexcept nogil
cdef nv_inode_header* snapshot_header(nv_ctx* c) noexcept nogil
cdef uint64_t snapshot_inode_off(nv_ctx* c) noexcept nogil

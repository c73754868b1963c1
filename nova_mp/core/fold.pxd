# Inodes of snapshots: each one's log, folded up to the snapshot's epoch, on demand.
#
# Structure  Private to the process: attributes, a page index (file pages to block numbers), names
#            of a directory, extended attributes. Whoever builds one holds the snapshot open, so
#            nothing that it can reach is freed.
# Locks      The inode's lock to build one, because garbage collection moves entries; none to read.
#            Names and values are copied under the lock and become Python objects without it
#            (SYNC-5).

from libc.stdint cimport uint8_t, uint64_t
from nova_mp.core.dram cimport nv_ctx, nv_index
from nova_mp.core.file cimport nv_attr

cdef struct nv_copies:               # PRIVATE. Entries of a log, one after the other
    uint8_t* at
    uint64_t used
    uint64_t room


cdef class SnapshotInode:
    cdef nv_attr attr
    cdef nv_index pages
    cdef uint64_t preserved          # the header's, when `pages` was last brought up to date
    cdef dict names
    cdef dict xattrs


cdef int build(nv_ctx* c, SnapshotInode node, uint64_t epoch_id, nv_copies* named) noexcept nogil
cdef int renew(nv_ctx* c, SnapshotInode node, uint64_t epoch_id) noexcept nogil
cdef void copy_pages(nv_ctx* c, SnapshotInode node, char* to, uint64_t n,
                     uint64_t offset) noexcept nogil
cdef object keep_named(SnapshotInode node, nv_copies* named)

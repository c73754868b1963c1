# New blocks for a file: the part of the write path between lock and commit.
#
# Locks      The inode's lock, and an announced epoch.
# Invariants see file.pxd (FILE-1, FILE-2).

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from nova_mp.core.dram cimport nv_ctx, nv_inode_header
from nova_mp.core.layout cimport nv_setattr_entry

cdef const uint8_t* old_page(nv_ctx* c, nv_inode_header* h, uint64_t page) noexcept nogil
cdef int append_data(nv_ctx* c, nv_inode_header* h, const uint8_t* src, uint64_t n, uint64_t offset,
                     uint64_t size, uint64_t now) noexcept nogil
cdef void setattr_entry(nv_ctx* c, nv_inode_header* h, nv_setattr_entry* e) noexcept nogil

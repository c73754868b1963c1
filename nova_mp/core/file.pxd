# Read and write path of files.
#
# A write reads as one column: lock, announce the epoch, reserve, then per extent allocate data
# blocks, fill partial blocks, copy to PMEM, append write entry; commit log tail; assign write
# entries and release old blocks; end, unlock. Nothing of it is visible before the commit, all of it
# after.
#
# Invariants
#   FILE-1  Bytes of the last page past the file's size are zero, so growing shows zeros.
#   FILE-2  A data block that is referred to by a committed entry is never written again.
#   FILE-3  A read is consistent: it gives what one moment held, for up to READ_ATOMIC bytes.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from nova_mp.core.dram cimport nv_ctx, nv_inode_header, nv_map

cdef enum:
    READ_ATOMIC = 4194304
    ATTR_MODE = 1
    ATTR_UID = 2
    ATTR_GID = 4
    ATTR_ATIME = 8
    ATTR_MTIME = 16

cdef struct nv_attr:                 # PRIVATE. Attributes of an inode at one moment
    uint64_t ino
    uint64_t size
    uint64_t mtime_ns
    uint64_t ctime_ns
    uint64_t atime_ns
    uint64_t birth_time_ns
    uint64_t blocks
    uint32_t mode
    uint32_t nlink
    uint32_t uid
    uint32_t gid
    uint32_t generation

cdef int64_t file_write(nv_ctx* c, uint64_t ino, uint32_t generation, const uint8_t* src,
                        uint64_t n, uint64_t offset, bint append, uint64_t* at) noexcept nogil
cdef int64_t file_read(nv_ctx* c, uint64_t ino, uint32_t generation, uint8_t* dst, uint64_t n,
                       uint64_t offset) noexcept nogil
cdef int file_truncate(nv_ctx* c, uint64_t ino, uint32_t generation, uint64_t size) noexcept nogil
cdef int map_forget(nv_ctx* c, nv_map* m) noexcept nogil
cdef int file_fallocate(nv_ctx* c, uint64_t ino, uint32_t generation, uint64_t offset,
                        uint64_t length) noexcept nogil
cdef int file_setattr(nv_ctx* c, uint64_t ino, uint32_t generation, uint32_t mask,
                      const nv_attr* attr) noexcept nogil
cdef int file_getattr(nv_ctx* c, uint64_t ino, uint32_t generation, nv_attr* attr) noexcept nogil

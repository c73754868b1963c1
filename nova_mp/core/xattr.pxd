# Extended attributes: log entries with name and value inline, found by scanning the log of an inode
# whose header says that it has some. Garbage collection keeps such logs short.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from nova_mp.core.dram cimport nv_ctx
from nova_mp.core.layout cimport nv_xattr_entry

cdef int64_t xattr_get(nv_ctx* c, uint64_t ino, uint32_t generation, const char* name,
                       uint32_t name_len, uint8_t* value) noexcept nogil
cdef int64_t xattr_list(nv_ctx* c, uint64_t ino, uint32_t generation, uint8_t* names,
                        uint64_t room) noexcept nogil
cdef int xattr_set(nv_ctx* c, uint64_t ino, uint32_t generation, const char* name,
                   uint32_t name_len,
                   const uint8_t* value, uint64_t value_len, int flags) noexcept nogil
cdef uint64_t xattr_last(nv_ctx* c, uint64_t first, uint64_t tail, const uint8_t* name,
                         uint32_t name_len, uint64_t up_to_epoch_id) noexcept nogil

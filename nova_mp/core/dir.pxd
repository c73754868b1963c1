# Hash table of a directory: open addressing with linear probing over the inode's word index.
#
# Structure  A cell is 0 (never used), DIR_TOMB (deleted), or tag << 34 | reference of a dentry in
#            the log. The tag is 29 bits of the name's hash; its low bits say where probing starts,
#            so that growing needs no names. Equal tags are told apart by the names in the dentries.
# Locks      The directory's lock; lookups are optimistic under its seq.
# Invariants
#   DIR-1  At least a quarter of the cells has never been used, so every probe ends.
#   DIR-2  Cells are reserved before an operation commits: applying its dentries cannot fail.

from libc.stdint cimport uint32_t, uint64_t
from nova_mp.core.dram cimport nv_ctx, nv_inode_header
from nova_mp.core.layout cimport nv_dentry

cdef enum:
    DIR_TOMB = 1
    DIR_TAG_BITS = 29
    DT_DIR = 4
    DT_REG = 8
    DT_LNK = 10
    INO_MASK = 0x00FFFFFFFFFFFFFF

cdef uint64_t dir_lookup(nv_ctx* c, nv_inode_header* h, const char* name,
                         uint32_t name_len) noexcept nogil
cdef int dir_reserve(nv_ctx* c, nv_inode_header* h, uint32_t names) noexcept nogil
cdef void dir_add(nv_ctx* c, nv_inode_header* h, uint64_t dentry_off) noexcept nogil
cdef uint64_t dir_remove(nv_ctx* c, nv_inode_header* h, const char* name,
                         uint32_t name_len) noexcept nogil
cdef void dir_retarget(nv_ctx* c, nv_inode_header* h, uint64_t new_off) noexcept nogil
cdef void build_finish(nv_ctx* c) noexcept nogil
cdef void dir_recount(nv_ctx* c, nv_inode_header* h) noexcept nogil


cdef inline nv_dentry* dentry_at(nv_ctx* c, uint64_t off) noexcept nogil:
    return <nv_dentry*>(c.pm + off)


cdef inline uint64_t dentry_ino(const nv_dentry* d) noexcept nogil:
    return d.ino & INO_MASK


cdef inline uint32_t dentry_type(const nv_dentry* d) noexcept nogil:
    return <uint32_t>(d.ino >> 56)

# Mount: building DRAM from PMEM, clean or after a crash; the logs are the truth.
#
# Steps      superblock -> journals -> inode tables -> snapshot inode (the snapshot table) -> every
#            other inode, one log after the other -> dead inodes -> snapshot lists' blocks -> free
#            counts -> superblock marked dirty.
# Invariants
#   REC-1  Every block has one owner: head, chunk, log, live data, or snapshot list. A second owner
#          is corruption, and the mount is refused.
#   REC-2  The epoch is larger than every snapshot's id.
#   REC-3  Recovery stores nothing that a crash during recovery could turn into a loss: it applies
#          committed journals, frees dead inodes that nothing needs, and cuts what lies behind
#          tails.

from libc.stdint cimport uint32_t, uint64_t
from nova_mp.core.dram cimport nv_arena, nv_ctx

cdef struct nv_mount_error:          # PRIVATE. Why a mount was refused
    const char* what
    uint64_t where

cdef void dram_format(nv_arena* a, uint32_t cpus, uint64_t limit_bytes) noexcept nogil
cdef int recover(nv_ctx* c, nv_mount_error* error) noexcept nogil
cdef int arena_format(nv_ctx* c, uint32_t cpus, uint64_t inode_limit, const char* label,
                      const unsigned char* uuid) noexcept nogil
cdef uint64_t base_bytes(uint64_t pm_bytes, uint64_t limit_bytes, uint32_t cpus) noexcept nogil

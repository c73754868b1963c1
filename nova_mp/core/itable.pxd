# Inode tables: where inodes are, in PMEM and in DRAM; taking and freeing their slots.
#
# Structure  ino = chunk << 16 | table << 9 | slot. A chunk is 64 KiB of slots in PMEM and 64 KiB of
#            headers in DRAM.
# Locks      A table's bitmap is guarded by the inode_lock of CPU table % cpus.
# Invariants
#   INO-4  A dead inode's slot is freed in this order: state word, log pages, table bit.

from libc.stdint cimport uint32_t, uint64_t
from nova_mp.core.dram cimport nv_chunk, nv_ctx, nv_inode_header, table_at
from nova_mp.core.index cimport index_get
from nova_mp.core.layout cimport (CHUNK_SLOTS, INODE_BYTES, INO_CHUNK_SHIFT, INO_SLOT_BITS,
                                  MAX_CPUS, nv_inode)

cdef enum:
    PI_STATE = 0                     # offsets of words in nv_inode
    PI_LOG_HEAD = 16
    PI_LOG_TAIL = 24
    PI_DELETE_EPOCH = 40

cdef int chunk_attach(nv_ctx* c, uint32_t table, uint32_t chunk, uint64_t pmem_off) noexcept nogil
cdef void chunk_format(nv_ctx* c, uint64_t pmem_off, uint32_t table, uint32_t chunk) noexcept nogil
cdef int slot_alloc(nv_ctx* c, uint64_t* ino) noexcept nogil
cdef void slot_free(nv_ctx* c, uint64_t ino) noexcept nogil
cdef void inodes_repair(nv_ctx* c, uint32_t cpu) noexcept nogil
cdef void unlink_block(nv_ctx* c, uint64_t link_off, uint64_t page_off,
                       uint64_t next_off) noexcept nogil
cdef void inode_destroy(nv_ctx* c, uint64_t ino) noexcept nogil


cdef inline uint64_t chunk_off_of(nv_ctx* c, uint64_t ino) noexcept nogil:
    # DRAM offset of the headers of an inode's chunk, 0 if there is no such chunk.
    cdef uint64_t table = (ino >> INO_SLOT_BITS) & (MAX_CPUS - 1)
    cdef uint64_t off = index_get(c.dram, c.a.dram_bytes, &table_at(c, <uint32_t>table).chunks,
                                  ino >> INO_CHUNK_SHIFT)
    return off if off <= c.a.dram_bytes - CHUNK_SLOTS * INODE_BYTES else 0


cdef inline nv_inode_header* header_of(nv_ctx* c, uint64_t ino) noexcept nogil:
    # NULL if the number is outside all tables.
    cdef uint64_t off = chunk_off_of(c, ino)
    if off == 0 or (ino & (CHUNK_SLOTS - 1)) == 0:
        return NULL
    return <nv_inode_header*>(c.dram + off + (ino & (CHUNK_SLOTS - 1)) * INODE_BYTES)


cdef inline uint64_t inode_off(nv_ctx* c, uint64_t ino) noexcept nogil:
    # PMEM offset of an existing inode.
    cdef uint64_t off = chunk_off_of(c, ino)
    return (<nv_chunk*>(c.dram + off)).pmem_off + (ino & (CHUNK_SLOTS - 1)) * INODE_BYTES


cdef inline nv_inode* inode_at(nv_ctx* c, uint64_t ino) noexcept nogil:
    return <nv_inode*>(c.pm + inode_off(c, ino))

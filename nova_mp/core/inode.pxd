# Inodes: tables, headers, and applying a log to DRAM.
#
# Structure  ino = chunk << 16 | table << 9 | slot. A chunk is 64 KiB of slots in PMEM and 64 KiB of
#            headers in DRAM. What an inode holds is its log, folded: every operation appends,
#            commits, and then applies its own entries by the same code that rebuilds an inode at
#            mount and that finishes the operation of a dead process.
# Locks      A header's lock; a table's bitmap is guarded by the inode_lock of CPU table % cpus.
# Invariants
#   INO-1  Applying is idempotent and goes left to right: doing it again from any point is harmless.
#   INO-2  Applying cannot fail: index nodes, directory cells and list pages are reserved before the
#          commit.
#   INO-3  A page run that is superseded is announced (rel_*), its entry's dead epoch is recorded,
#          its cells change, and only then are its blocks released.
#   INO-4  A dead inode's slot is freed in this order: state word, log pages, table bit.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from nova_mp.core.dram cimport INODE_DEAD, nv_chunk, nv_ctx, nv_inode_header, table_at
from nova_mp.core.index cimport index_get
from nova_mp.core.layout cimport (CHUNK_SLOTS, INODE_BYTES, INO_CHUNK_SHIFT, INO_SLOT_BITS,
                                  MAX_CPUS, nv_inode)
from nova_mp.core.log cimport page_of
from nova_mp.core.sync cimport RANK_DIR, RANK_FILE

cdef enum:
    PI_STATE = 0                     # offsets of words in nv_inode
    PI_LOG_HEAD = 16
    PI_LOG_TAIL = 24
    PI_DELETE_EPOCH = 40
    S_IFMT = 0o170000
    S_IFDIR = 0o040000
    S_IFREG = 0o100000
    S_IFLNK = 0o120000
    GC_FIRST_PAGES = 4               # logs shorter than this are left alone

cdef int inode_new(nv_ctx* c, uint32_t mode, uint32_t uid, uint32_t gid,
                   uint64_t* ino) noexcept nogil
cdef void inode_abandon(nv_ctx* c, uint64_t ino) noexcept nogil
cdef int evict_reserve(nv_ctx* c, nv_inode_header* h) noexcept nogil
cdef void evict(nv_ctx* c, nv_inode_header* h, uint64_t ino) noexcept nogil
cdef void inode_destroy(nv_ctx* c, uint64_t ino) noexcept nogil
cdef void inodes_repair(nv_ctx* c, uint32_t cpu) noexcept nogil
cdef uint64_t run_count(nv_ctx* c, nv_inode_header* h, uint64_t first, uint64_t end) noexcept nogil
cdef int apply_entries(nv_ctx* c, nv_inode_header* h, uint64_t ino, uint64_t first,
                       uint64_t tail) noexcept nogil
cdef void tx_undo(nv_ctx* c) noexcept nogil
cdef int inode_lock(nv_ctx* c, uint64_t ino, uint32_t generation,
                    nv_inode_header** header) noexcept nogil
cdef void tx_apply(nv_ctx* c, nv_inode_header* h, uint32_t nr) noexcept nogil
cdef void finish_release(nv_ctx* c) noexcept nogil
cdef int rebuild(nv_ctx* c, nv_inode_header* h, uint64_t ino, uint64_t* entries) noexcept nogil
cdef int chunk_attach(nv_ctx* c, uint32_t table, uint32_t chunk, uint64_t pmem_off) noexcept nogil
cdef void chunk_format(nv_ctx* c, uint64_t pmem_off, uint32_t table, uint32_t chunk) noexcept nogil
cdef void unlink_block(nv_ctx* c, uint64_t link_off, uint64_t page_off,
                       uint64_t next_off) noexcept nogil


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


cdef inline uint64_t rank_of(nv_inode_header* h, uint64_t ino) noexcept nogil:
    return (<uint64_t>RANK_DIR if h.mode & S_IFMT == S_IFDIR else <uint64_t>RANK_FILE) + ino


cdef inline void gc_wanted(nv_ctx* c, nv_inode_header* h, uint64_t ino) noexcept nogil:
    # Collecting waits until the operation has returned: the boundary starts it.
    if h.log_pages >= h.gc_pages:
        c.gc_ino = ino


cdef inline uint64_t effective_epoch(nv_ctx* c, nv_inode_header* h, uint64_t ino,
                                     uint64_t epoch_id) noexcept nogil:
    # When what is superseded now ceased to be visible: no snapshot after an inode's last unlink
    # shows it, even while it is open.
    cdef uint64_t deleted
    if h.flags & INODE_DEAD:
        deleted = inode_at(c, ino).delete_epoch_id
        if deleted and deleted < epoch_id:
            return deleted
    return epoch_id

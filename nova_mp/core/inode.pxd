# Inodes: making them, applying a log to DRAM, rebuilding, taking them apart.
#
# Structure  What an inode holds is its log, folded: every operation appends, commits, and then
#            applies its own entries by the same code that rebuilds an inode at mount and that
#            finishes the operation of a dead process.
# Locks      A header's lock.
# Invariants
#   INO-1  Applying is idempotent and goes left to right: doing it again from any point is harmless.
#   INO-2  Applying cannot fail: index nodes, directory cells and list pages are reserved before the
#          commit.
#   INO-3  A page run that is superseded is announced (rel_*), its entry's dead epoch is recorded,
#          its cells change, and only then are its blocks released.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from nova_mp.core.dram cimport INODE_DEAD, nv_ctx, nv_inode_header
from nova_mp.core.layout cimport (ENTRY_MMAP_WRITE, ENTRY_WRITE, nv_mmap_write_entry,
                                  nv_write_entry)
from nova_mp.core.itable cimport inode_at
from nova_mp.core.sync cimport RANK_DIR, RANK_FILE

cdef enum:
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
cdef uint64_t run_count(nv_ctx* c, nv_inode_header* h, uint64_t first, uint64_t end) noexcept nogil
cdef int apply_entries(nv_ctx* c, nv_inode_header* h, uint64_t ino, uint64_t first,
                       uint64_t tail) noexcept nogil
cdef void tx_undo(nv_ctx* c) noexcept nogil
cdef int inode_lock(nv_ctx* c, uint64_t ino, uint32_t generation,
                    nv_inode_header** header) noexcept nogil
cdef void tx_apply(nv_ctx* c, nv_inode_header* h, uint32_t nr) noexcept nogil
cdef void finish_release(nv_ctx* c) noexcept nogil
cdef int rebuild(nv_ctx* c, nv_inode_header* h, uint64_t ino, uint64_t* entries) noexcept nogil


cdef inline uint64_t rank_of(nv_inode_header* h, uint64_t ino) noexcept nogil:
    return (<uint64_t>RANK_DIR if h.mode & S_IFMT == S_IFDIR else <uint64_t>RANK_FILE) + ino


cdef inline void gc_wanted(nv_ctx* c, nv_inode_header* h, uint64_t ino) noexcept nogil:
    # Collecting waits until the operation has returned: the boundary starts it.
    if h.log_pages >= h.gc_pages:
        c.gc_ino = ino


cdef inline uint64_t blocks_brought(const nv_write_entry* e) noexcept nogil:
    # First of the `num_pages` blocks that came with an entry; 0 if it is of another kind.
    if e.entry_type == ENTRY_WRITE:
        return e.block_nr
    if e.entry_type == ENTRY_MMAP_WRITE:
        return (<const nv_mmap_write_entry*>e).kept_block_nr
    return 0


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

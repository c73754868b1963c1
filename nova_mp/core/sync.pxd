# Locks that name their owner, seqlocks, epochs and grace periods, process slots.
#
# Purpose    Everything that keeps processes apart, and that tells who died where.
# Structure  A lock is one word: 0, or its owner's slot number + 1 (DRAM-2). A slot lists the locks
#            its thread holds or is about to take. Whoever waits longer than a moment asks whether
#            the owner still lives, and if not, has its slot repaired (repair.pyx) as if it were
#            the dead thread itself. Why not pthread's robust mutexes: docs/decisions/0001.
# Lock order reap lock, rename lock, clean lock, snapshot lock | directories by inode number | files
#            by inode number | journal | inode tables | snapshot list | slab | blocks | DRAM pages.
#            Debug builds assert it.
# Invariants
#   SYNC-1  A slot names a lock before its word is taken and until after it is given back.
#   SYNC-2  An operation reads the epoch only while it holds all its inode locks, announces it in
#           its slot, and reads it again: if it moved, it starts over. So epochs never go back in a
#           log.
#   SYNC-3  A slot's announced epoch is 0 exactly when its thread is in no operation.
#   SYNC-4  No code stores to a caller's memory while it holds a lock or has announced an epoch.
#   SYNC-5  Nobody waits for the GIL while it holds a lock or has announced an epoch: who has the
#           GIL may be waiting for that lock, or store to a page whose fault waits for it.

from libc.stdint cimport uint32_t, uint64_t
from nova_mp.core.arch cimport (NV_DEBUG_BUILD, nv_fence_acquire, nv_fence_release, nv_load32,
                                nv_store32)
from nova_mp.core.dram cimport nv_arena, nv_ctx, nv_inode_header, nv_slot

cdef enum:
    RANK_REAP = 1
    RANK_RENAME = 2
    RANK_CLEAN = 3
    RANK_SNAPSHOT = 4
    RANK_DIR = 0x0100000000000000
    RANK_FILE = 0x0200000000000000
    RANK_JOURNAL = 0x0300000000000001
    RANK_INODES = 0x0300000000000002
    RANK_LIST = 0x0300000000000003
    RANK_SLAB = 0x0300000000000004
    RANK_BLOCKS = 0x0300000000000005
    RANK_PAGES = 0x0300000000000006

cdef int lock_take(nv_ctx* c, uint32_t* word, uint64_t rank) noexcept nogil
cdef void lock_drop(nv_ctx* c, uint32_t* word) noexcept nogil
cdef void lock_drop_all(nv_ctx* c, uint32_t down_to) noexcept nogil
cdef int repair_lock_take(nv_ctx* c, bint may_wait) noexcept nogil
cdef void repair_lock_drop(nv_ctx* c) noexcept nogil

cdef int op_begin(nv_ctx* c, int op) noexcept nogil
cdef void op_end(nv_ctx* c) noexcept nogil
cdef void gate_wait(nv_ctx* c, uint64_t ns) noexcept nogil
cdef int grace_wait(nv_ctx* c, uint64_t epoch_id, uint64_t timeout_ns) noexcept nogil

cdef int slot_take(nv_arena* a, uint32_t role, uint32_t cpu, uint32_t parent,
                   const char* title) noexcept nogil
cdef void slot_give_back(nv_ctx* c, nv_slot* s) noexcept nogil
cdef bint slot_dead(nv_slot* s) noexcept nogil
cdef void ctx_init(nv_ctx* c, nv_arena* a, uint32_t slot_nr) noexcept nogil


cdef inline void seq_begin(nv_inode_header* h) noexcept nogil:
    # Odd while the header changes. A repairer may find it odd already and leaves it so.
    nv_store32(&h.seq, h.seq | 1)
    nv_fence_release()


cdef inline void seq_end(nv_inode_header* h) noexcept nogil:
    nv_store32(&h.seq, (h.seq | 1) + 1)


cdef inline uint32_t seq_read(nv_inode_header* h) noexcept nogil:
    return nv_load32(&h.seq)


cdef inline bint seq_same(nv_inode_header* h, uint32_t seq) noexcept nogil:
    nv_fence_acquire()
    return nv_load32(&h.seq) == seq


cdef inline bint without(nv_ctx* c, uint32_t protection) noexcept nogil:
    # Debug builds can do without a protection (NOVA_MP_WITHOUT), so that tests show its need.
    return NV_DEBUG_BUILD and c.a.without == protection

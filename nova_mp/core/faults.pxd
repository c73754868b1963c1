# Resolving stores into write-protected mappings: one native thread in each process that maps.
#
# Structure  A process keeps a private list of its mappings, and a thread with a process slot of its
#            own that never needs the GIL. The kernel (or the SIGSEGV handler) tells it of a fault,
#            it preserves what snapshots need of the page, makes it writable, the store goes on.
#            A page at a time when stores are scattered; then the thread follows the storing one
#            to its processor, since waking another costs more than all the rest. When stores come
#            in order, windows double, and the thread goes on ahead of the stores, elsewhere, by as
#            many pages as have been stored to in order, or twice as many.
# Locks      `mutex` guards the private list, from the lookup of a fault's mapping until its pages
#            are writable; it is let go of while stores are held back or the arena is frozen.
# Invariants see stores.pxd (MAP-2, MAP-3) and mapping.pxd (MAP-4).

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from nova_mp.core.dram cimport nv_arena, nv_ctx, nv_map, nv_slot

cdef extern from "uffd.h" nogil:
    ctypedef unsigned long pthread_t
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct cpu_set_t:
        pass
    struct nv_fault:
        uint32_t state
        uint32_t tid
        uint64_t at
    enum:
        NV_FAULTS
        NV_PROTECT_NONE
        NV_PROTECT_UFFD
        NV_PROTECT_UFFD_USER
        NV_PROTECT_SIGNAL

cdef struct nv_mapped:               # PRIVATE. One writable mapping of this process
    uint64_t at
    uint64_t pages
    uint64_t ino
    uint64_t pgoff
    uint64_t next_page               # where a store in order comes next
    uint64_t window                  # pages made writable by the last fault
    uint64_t run                     # pages before next_page that were made so in order
    uint64_t epoch_id                # of the last fault
    nv_map* record
    uint32_t generation

cdef struct nv_faults:               # PRIVATE. What a process needs to resolve its faults
    pthread_mutex_t mutex
    pthread_t thread
    nv_arena* a
    nv_slot* process
    nv_mapped* items
    uint64_t count
    uint64_t room
    uint32_t cpu
    uint32_t ready                   # 0 starting, 1 running, 2 could not start
    uint32_t stopping
    int fd                           # userfaultfd, or -1
    int stop                         # eventfd
    int protection                   # NV_PROTECT_*
    int cpu_now                      # where the thread is kept, or -1
    uint32_t looks                   # faults until it is looked again where the stores come from
    uint64_t last_ns                 # of the last fault
    uint64_t ahead_at                # the address after the last window made writable in order
    uint64_t ahead_pages             # how many more to go ahead of the stores
    uint64_t spin_until_ns
    cpu_set_t cpus                   # where the thread may run
    nv_fault posted[64]              # by the SIGSEGV handler

cdef int protection_of(nv_faults* f) noexcept nogil
cdef nv_faults* faults_start(nv_arena* a, nv_slot* process, bint signals, int* error) noexcept nogil
cdef void faults_stop(nv_faults* f) noexcept nogil
cdef void faults_forget(nv_faults* f) noexcept nogil
cdef int faults_add(nv_ctx* c, nv_faults* f, nv_map* m, uint8_t* at, uint64_t pages) noexcept nogil
cdef void faults_disown(nv_faults* f) noexcept nogil
cdef void faults_remove(nv_faults* f, uint64_t at) noexcept nogil

# Everything that frees in the background: garbage in logs, lists of deleted snapshots.
#
# Fast GC takes pages out of a log of which no entry is needed. Thorough GC copies the entries that
# are needed into a shorter chain and switches the log's head, one 8-byte store. An entry is needed
# if DRAM refers to it, if a snapshot lies between its epoch and the one that superseded it, or if
# replaying the log without it would bring back what it took away.
#
# Locks      The inode's lock for its log; clean_lock for the lists' queue (one cleaner at a time).
# Invariants
#   GC-1  The tail page is never collected, so an operation's appended entries stay where they are.
#   GC-2  An add and its removal are judged by the same snapshots: a pass during which a snapshot
#         went away is given up.
#   GC-3  Hints (invalid_entries) only say where to look; every entry is verified before it goes.
#   GC-4  An entry of a deleted snapshot's list is either released for good or appended to the
#         list of the next snapshot that needs it, by the same code that writers use.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from nova_mp.core.dram cimport nv_ctx, nv_inode_header

cdef int gc_inode(nv_ctx* c, uint64_t ino) noexcept nogil
cdef void gc_continue(nv_ctx* c) noexcept nogil
cdef int64_t clean_lists(nv_ctx* c, uint64_t budget) noexcept nogil
cdef uint64_t clean_done_blocks(nv_ctx* c, uint32_t cpu_nr) noexcept nogil
cdef uint64_t clean_backlog(nv_ctx* c) noexcept nogil
cdef int gc_all(nv_ctx* c) noexcept nogil

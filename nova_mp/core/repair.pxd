# Finishing or undoing what a dead thread was in the middle of.
#
# Structure  The repairer acts under the dead thread's slot: what it locks is locked in the dead
#            one's name and what it announces is announced there, so if it dies too, the next one
#            goes on.
#              A  leaf locks (CPU structures) are put in order and freed. Takes no lock: always
#                 safe.
#              B  the operation is completed (if it committed) or undone, its inode locks are
#                 freed. Takes leaf locks only: for a caller that holds none of them.
#              C  handles of a dead process are closed, its slot is freed. For the reaper.
# Invariants
#   REP-1  Whether an operation committed is read from PMEM: the log tail moved, or it did not.
#   REP-2  Every phase can be run again from its start.
#   REP-3  What it decides by is written back before anything is done for it: the dead thread may
#          not have come to that.

from libc.stdint cimport uint32_t
from nova_mp.core.dram cimport nv_ctx

cdef int repair_slot(nv_ctx* c, uint32_t owner) noexcept nogil
cdef int reap_slot(nv_ctx* c, uint32_t nr) noexcept nogil

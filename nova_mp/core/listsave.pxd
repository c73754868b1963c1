# Saving snapshot lists in PMEM at a clean unmount, restoring them at the next mount.
#
# Structure  A snapshot's info entry points to a page of MAX_CPUS nv_snapshot_nvmm_list, one a CPU,
#            each with the first and last of a chain of list pages as they are in DRAM. List heads
#            and pages carry checksums. The superblock says whether all lists were saved.
# Invariants
#   SAVE-1  Saved lists are an optimisation: whenever one is missing or damaged, all are rebuilt
#           from the logs, with the same result.
#   SAVE-2  They are used once: before a mount returns, and so before any block of theirs can be
#           used again, nothing refers to them any more.

from nova_mp.core.dram cimport nv_ctx

cdef bint lists_save(nv_ctx* c) noexcept nogil
cdef bint lists_restore(nv_ctx* c) noexcept nogil
cdef void lists_forget(nv_ctx* c) noexcept nogil

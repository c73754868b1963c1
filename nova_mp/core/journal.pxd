# Redo journal: one page a CPU, for operations that commit in several logs at once.
#
# Structure  Up to JOURNAL_WORDS pairs (where, what) and one commit word: count and checksum of the
#            pairs. Storing the commit word commits; then the words are stored in place, then the
#            commit word is cleared. Applying is idempotent, so recovery applies what it finds.
# Locks      journal_lock of the CPU, held from commit to clear.
# Invariants
#   JRN-1  Pairs and commit word may persist in any order: the checksum tells a torn journal, which
#          counts as empty.
#   JRN-2  The journal is cleared, and that persisted, before any lock of the operation is given
#          back: a later plain store to the same word can never be undone by an old journal.

from libc.stdint cimport uint32_t, uint64_t
from nova_mp.core.dram cimport nv_ctx

cdef struct nv_words:                # PRIVATE. A transaction being put together
    uint32_t n
    uint64_t off[16]
    uint64_t value[16]

cdef void words_add(nv_words* w, uint64_t off, uint64_t value) noexcept nogil
cdef void journal_commit(nv_ctx* c, nv_words* w) noexcept nogil
cdef int journal_recover(nv_ctx* c, uint32_t cpu) noexcept nogil

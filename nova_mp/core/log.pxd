# Inode logs: chains of 4 KiB log pages, entries appended in 64-byte slots, one word commits.
#
# Structure  An inode (in PMEM) points to the first page and to the end of the committed log.
#            Entries never cross a page; ENTRY_NEXT_PAGE, or a full page, sends the reader to the
#            next one.
# Locks      The inode's lock. A transaction (nv_tx, in the slot) says how far an operation
#            appended.
# Invariants
#   LOG-1  What lies before the committed tail never changes, but for volatile fields, a snapshot
#          info's `deleted` word, and whole pages replaced by garbage collection.
#   LOG-2  Epochs never go back along a log.
#   LOG-3  Every page of a chain carries its owner's inode number.
#   LOG-4  Everything before the tail was persisted before the tail was stored.

from libc.stdint cimport uint32_t, uint64_t
from nova_mp.core.dram cimport nv_ctx, nv_inode_header, nv_tx
from nova_mp.core.layout cimport nv_entry_header, nv_log_page_tail, LOG_SLOTS, LOG_TAIL_OFF

cdef uint32_t entry_csum(const void* entry) noexcept nogil
cdef bint entry_valid(const void* entry) noexcept nogil
cdef uint64_t log_first_page(nv_ctx* c, uint64_t ino, uint64_t link_off) noexcept nogil
cdef uint64_t log_new_page(nv_ctx* c, uint64_t ino, uint64_t link_off) noexcept nogil
cdef void tx_open(nv_ctx* c, uint64_t ino, uint64_t tail) noexcept nogil
cdef int log_room(nv_ctx* c, nv_inode_header* h, nv_tx* t, uint32_t slots) noexcept nogil
cdef uint64_t log_append(nv_ctx* c, nv_tx* t, void* entry) noexcept nogil
cdef void log_write_entry(nv_ctx* c, uint64_t off, void* entry) noexcept nogil
cdef void log_commit(nv_ctx* c, uint64_t tail_word_off, uint64_t tail) noexcept nogil
cdef void log_entry_dead(nv_ctx* c, uint64_t entry_off, uint64_t dead_epoch_id) noexcept nogil


cdef inline uint64_t page_of(uint64_t off) noexcept nogil:
    return off & ~<uint64_t>4095


cdef inline nv_log_page_tail* page_tail(nv_ctx* c, uint64_t off) noexcept nogil:
    return <nv_log_page_tail*>(c.pm + page_of(off) + LOG_TAIL_OFF)


cdef inline uint32_t slot_of(uint64_t off) noexcept nogil:
    return <uint32_t>((off & 4095) >> 6)


cdef inline uint64_t log_position(nv_ctx* c, uint64_t pos, uint64_t tail) noexcept nogil:
    # Where the entry at or after `pos` really stands; `tail` at the end of the log.
    while pos != tail:
        if slot_of(pos) < LOG_SLOTS and (<nv_entry_header*>(c.pm + pos)).entry_type != 7:
            return pos
        pos = page_tail(c, pos).next_page_off
    return tail

"""Appending to inode logs, checksums of entries, the commit of a log tail."""

from libc.errno cimport ENOSPC
from libc.string cimport memset
from nova_mp.core.alloc cimport blocks_alloc, pend_done
from nova_mp.core.arch cimport nv_assert, nv_crc32c, nv_fence_release
from nova_mp.core.dram cimport MAX_TX, nv_slot
from nova_mp.core.layout cimport (ENTRY_DENTRY, ENTRY_FLAG_REMOVED, ENTRY_LINK_CHANGE,
                                  ENTRY_MMAP_WRITE, ENTRY_NEXT_PAGE, ENTRY_SETATTR,
                                  ENTRY_SNAPSHOT_INFO, ENTRY_WRITE, ENTRY_XATTR, LINE_BYTES,
                                  MAGIC_LOG_PAGE, nv_xattr_entry)
from nova_mp.core.pmem cimport (block_off, fail_point, pm_copy, pm_fence, pm_flush, pm_persist,
                                pm_store16, pm_store64)
from libc.stdint cimport uint8_t, uint16_t


cdef uint32_t entry_csum(const void* entry) noexcept nogil:
    # CRC32C over the entry in order, without the csum itself and without volatile fields (LAY-2).
    cdef const uint8_t* p = <const uint8_t*>entry
    cdef uint32_t crc = nv_crc32c(0xFFFFFFFF, p, 4)
    cdef bint removed = p[1] & ENTRY_FLAG_REMOVED
    if p[0] == ENTRY_WRITE or p[0] == ENTRY_MMAP_WRITE:
        crc = nv_crc32c(crc, p + 8, 40)
    elif p[0] == ENTRY_DENTRY:
        crc = nv_crc32c(crc, p + 8, 32 if removed else 24)
        crc = nv_crc32c(crc, p + 40, p[3])
    elif p[0] == ENTRY_SNAPSHOT_INFO:
        crc = nv_crc32c(crc, p + 8, 16)
        crc = nv_crc32c(crc, p + 40, p[3])
    elif p[0] == ENTRY_XATTR:
        crc = nv_crc32c(crc, p + 8, 24 if removed else 16)
        crc = nv_crc32c(crc, p + 32, 8 + <uint64_t>p[3] + (<nv_xattr_entry*>p).value_len)
    else:
        crc = nv_crc32c(crc, p + 8, 56)
    return ~crc


cdef bint entry_valid(const void* entry) noexcept nogil:
    # Loading an entry: type and size are sane, the checksum holds.
    cdef const nv_entry_header* e = <const nv_entry_header*>entry
    cdef uint32_t need = 1
    if e.entry_type < ENTRY_WRITE or e.entry_type > ENTRY_XATTR or e.entry_type == ENTRY_NEXT_PAGE:
        return False
    if e.entry_type == ENTRY_DENTRY or e.entry_type == ENTRY_SNAPSHOT_INFO:
        need = (40 + e.name_len + 63) // 64
    elif e.entry_type == ENTRY_XATTR:
        if (<nv_xattr_entry*>e).value_len > 4096:
            return False
        need = (40 + e.name_len + (<nv_xattr_entry*>e).value_len + 63) // 64
    if e.slots != need or need > LOG_SLOTS:
        return False
    return e.csum == entry_csum(entry)


cdef uint64_t log_new_page(nv_ctx* c, uint64_t ino, uint64_t link_off) noexcept nogil:
    # An empty log page as the slot's pending block, to be linked at `link_off`. 0: no space.
    cdef uint64_t got = 0
    cdef uint64_t block = blocks_alloc(c, 1, link_off, &got)
    cdef nv_log_page_tail tail
    if block == 0:
        return 0
    memset(&tail, 0, sizeof(tail))
    tail.magic = MAGIC_LOG_PAGE
    tail.ino = ino
    pm_copy(c, block_off(block) + LOG_TAIL_OFF, &tail, sizeof(tail))
    pm_persist(c, block_off(block) + LOG_TAIL_OFF, sizeof(tail))
    return block_off(block)


cdef uint64_t log_first_page(nv_ctx* c, uint64_t ino, uint64_t link_off) noexcept nogil:
    # The first page of a new inode's log, linked. 0: no space.
    cdef uint64_t page = log_new_page(c, ino, link_off)
    if page:
        pm_store64(c, link_off, page)
        pm_flush(c, link_off, 8)
        pend_done(c)
    return page


cdef void tx_open(nv_ctx* c, uint64_t ino, uint64_t tail) noexcept nogil:
    cdef nv_slot* s = c.slot
    cdef nv_tx* t = &s.tx[s.ntx]
    nv_assert(s.ntx < MAX_TX, "too many logs in one operation", s.ntx)
    t.ino = ino
    t.old_tail = tail
    t.cur_tail = tail
    nv_fence_release()
    s.ntx += 1


cdef int log_room(nv_ctx* c, nv_inode_header* h, nv_tx* t, uint32_t slots) noexcept nogil:
    # Makes `slots` contiguous slots available at t.cur_tail, on the next page if need be.
    cdef uint64_t pos = t.cur_tail
    cdef nv_log_page_tail* tail = page_tail(c, pos)
    cdef uint64_t tail_off = page_of(pos) + LOG_TAIL_OFF
    cdef uint64_t page
    cdef uint8_t marker = ENTRY_NEXT_PAGE
    nv_assert(tail.magic == MAGIC_LOG_PAGE and tail.ino == t.ino, "tail outside its log", <long>pos)
    if slot_of(pos) + slots <= LOG_SLOTS:
        return 0
    page = tail.next_page_off
    if page == 0:
        page = log_new_page(c, t.ino, tail_off)
        if page == 0:
            return -ENOSPC
        pm_store64(c, tail_off, page)
        pm_flush(c, tail_off, 8)
        h.log_pages += 1
        pend_done(c)
        fail_point(c, "log.page_linked")
    else:
        # Left by an operation that was rolled back, maybe one that died before it wrote this back.
        pm_flush(c, tail_off, 8)
        pm_store16(c, page + LOG_TAIL_OFF + 12, 0)
        pm_store16(c, page + LOG_TAIL_OFF + 14, 0)
        pm_store64(c, page + LOG_TAIL_OFF + 24, 0)
    if slot_of(pos) < LOG_SLOTS:
        pm_copy(c, pos, &marker, 1)
        pm_flush(c, pos, 1)
    t.cur_tail = page
    return 0


cdef uint64_t log_append(nv_ctx* c, nv_tx* t, void* entry) noexcept nogil:
    # Appends behind t.cur_tail, where log_room() made space; not yet committed. Offset of the
    # entry.
    cdef uint64_t off = t.cur_tail
    cdef uint64_t tail_off = page_of(off) + LOG_TAIL_OFF
    log_write_entry(c, off, entry)
    pm_store16(c, tail_off + 12, <uint16_t>(page_tail(c, off).num_entries + 1))
    nv_fence_release()
    t.cur_tail = off + (<nv_entry_header*>entry).slots * LINE_BYTES
    return off


cdef void log_write_entry(nv_ctx* c, uint64_t off, void* entry) noexcept nogil:
    cdef nv_entry_header* e = <nv_entry_header*>entry
    e.csum = entry_csum(entry)
    pm_copy(c, off, entry, e.slots * LINE_BYTES)
    pm_flush(c, off, e.slots * LINE_BYTES)


cdef void log_commit(nv_ctx* c, uint64_t tail_word_off, uint64_t tail) noexcept nogil:
    # THE commit point of an operation on one log.
    pm_fence(c)
    fail_point(c, "log.before_commit")
    pm_store64(c, tail_word_off, tail)
    pm_persist(c, tail_word_off, 8)
    fail_point(c, "log.committed")


cdef void log_entry_dead(nv_ctx* c, uint64_t entry_off, uint64_t dead_epoch_id) noexcept nogil:
    # Counts one entry of its page as superseded: a hint for fast garbage collection.
    cdef nv_log_page_tail* tail = page_tail(c, entry_off)
    cdef uint64_t tail_off = page_of(entry_off) + LOG_TAIL_OFF
    if tail.dead_epoch_id < dead_epoch_id:
        pm_store64(c, tail_off + 24, dead_epoch_id)
    pm_store16(c, tail_off + 14, <uint16_t>(tail.invalid_entries + 1))

"""Appending entries that give a file new blocks: allocating, filling, logging."""

from libc.errno cimport ENOSPC
from libc.string cimport memset
from nova_mp.core.alloc cimport blocks_alloc, pend_done
from nova_mp.core.arch cimport nv_file_time_ns
from nova_mp.core.dram cimport nv_slot
from nova_mp.core.index cimport index_cell, word_block
from nova_mp.core.layout cimport (BLOCK_BYTES, BLOCK_SHIFT, ENTRY_SETATTR, ENTRY_WRITE,
                                  nv_write_entry)
from nova_mp.core.log cimport log_append, log_room
from nova_mp.core.pmem cimport block_off, fail_point, pm_copy_data, pm_zero


cdef const uint8_t* old_page(nv_ctx* c, nv_inode_header* h, uint64_t page) noexcept nogil:
    # Contents of a page before the operation, NULL for a hole. Under the lock.
    cdef uint64_t* cell = index_cell(c, &h.index, page)
    if cell == NULL or cell[0] == 0:
        return NULL
    return c.pm + block_off(word_block(cell[0]))


cdef void fill_part(nv_ctx* c, const uint8_t* old, uint64_t to_off, uint64_t start,
                    uint64_t n) noexcept nogil:
    # Bytes start.. of a new block, from the old contents of its page.
    if n == 0:
        return
    if old == NULL:
        pm_zero(c, to_off + start, n)
    else:
        pm_copy_data(c, to_off + start, old + start, n)


cdef void fill_extent(nv_ctx* c, nv_inode_header* h, uint64_t block, uint64_t first_page,
                      uint64_t pages,
                      const uint8_t* src, uint64_t n, uint64_t offset) noexcept nogil:
    # New blocks for file pages first_page..: the part of [offset, offset + n) that lies there from
    # `src` (zeros if NULL), the rest of partial pages from what was there before.
    cdef uint64_t start = first_page << BLOCK_SHIFT
    cdef uint64_t end = start + (pages << BLOCK_SHIFT)
    cdef uint64_t to = block_off(block)
    cdef uint64_t from_offset = offset if offset > start else start
    cdef uint64_t to_offset = offset + n if offset + n < end else end
    cdef uint64_t rest = to_offset & (BLOCK_BYTES - 1)
    if from_offset > start:
        fill_part(c, old_page(c, h, first_page), to, 0, from_offset - start)
    if src == NULL:
        pm_zero(c, to + (from_offset - start), to_offset - from_offset)
    else:
        pm_copy_data(c, to + (from_offset - start), src + (from_offset - offset),
                     to_offset - from_offset)
    if rest:
        fill_part(c, old_page(c, h, first_page + pages - 1), to + ((pages - 1) << BLOCK_SHIFT),
                  rest, BLOCK_BYTES - rest)


cdef int append_data(nv_ctx* c, nv_inode_header* h, const uint8_t* src, uint64_t n, uint64_t offset,
                     uint64_t size, uint64_t now) noexcept nogil:
    # Allocates, fills and appends write entries for [offset, offset + n) to the operation's last
    # log. -ENOSPC leaves the undoing to the caller.
    cdef nv_slot* s = c.slot
    cdef nv_write_entry e
    cdef uint64_t page = offset >> BLOCK_SHIFT
    cdef uint64_t end = (offset + n + BLOCK_BYTES - 1) >> BLOCK_SHIFT
    cdef uint64_t block, got = 0
    memset(&e, 0, sizeof(e))
    e.entry_type = ENTRY_WRITE
    e.slots = 1
    e.epoch_id = c.epoch_id
    e.size = size
    e.mtime_ns = now
    while page < end:
        if log_room(c, h, &s.tx[s.ntx - 1], 1):
            return -ENOSPC
        block = blocks_alloc(c, end - page, 0, &got)
        if block == 0:
            return -ENOSPC
        fill_extent(c, h, block, page, got, src, n, offset)
        fail_point(c, "write.data_copied")
        e.pgoff = page
        e.block_nr = <uint32_t>block
        e.num_pages = <uint32_t>got
        log_append(c, &s.tx[s.ntx - 1], &e)
        fail_point(c, "write.entry_appended")
        pend_done(c)
        page += got
    return 0


cdef void setattr_entry(nv_ctx* c, nv_inode_header* h, nv_setattr_entry* e) noexcept nogil:
    # An entry that says what the header says.
    memset(e, 0, sizeof(nv_setattr_entry))
    e.entry_type = ENTRY_SETATTR
    e.slots = 1
    e.epoch_id = c.epoch_id
    e.mode = h.mode
    e.nlink = h.nlink
    e.uid = h.uid
    e.gid = h.gid
    e.size = h.size
    e.mtime_ns = h.mtime_ns
    e.ctime_ns = nv_file_time_ns()
    e.atime_ns = h.atime_ns

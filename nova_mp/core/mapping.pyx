"""Preserving what snapshots need, and writing, truncating and flushing files that are mapped."""

from libc.errno cimport EINVAL, ENOSPC
from libc.string cimport memset
from nova_mp.core.alloc cimport blocks_alloc, blocks_alloc_run, blocks_fit, pend_done
from nova_mp.core.arch cimport nv_file_time_ns
from nova_mp.core.dram cimport (CNT_MAP_FAULTS, CNT_PRESERVED, DRAM_PAGE, INODE_PAST_END,
                                MAP_INHERITED, MAP_RECORDS, MAP_SNAPSHOT, NV_FROZEN, OP_MMAP,
                                SLOT_FREE, count, slot_at)
from nova_mp.core.extent cimport append_data, setattr_entry
from nova_mp.core.index cimport (REF_BITS, index_cell, index_get, index_next, index_reserve,
                                 ref_off, word_block)
from nova_mp.core.inode cimport effective_epoch, inode_lock, run_count, tx_apply, tx_undo
from nova_mp.core.itable cimport PI_LOG_TAIL, inode_off
from nova_mp.core.layout cimport (BLOCK_BYTES, BLOCK_SHIFT, ENTRY_MMAP_WRITE, ENTRY_WRITE,
                                  nv_entry_header, nv_mmap_write_entry, nv_setattr_entry,
                                  nv_write_entry)
from nova_mp.core.log cimport log_append, log_commit, log_room, tx_open
from nova_mp.core.pmem cimport block_off, fail_point, pm_adopt, pm_copy_data, pm_fence, pm_zero
from nova_mp.core.snaplist cimport spare_reserve
from nova_mp.core.snaptable cimport snap_needed_by
from nova_mp.core.stores cimport map_page
from nova_mp.core.sync cimport lock_drop, op_begin, op_end, seq_begin, seq_end

cdef extern from "<errno.h>":
    enum: ESTALE

cdef enum:
    MOVE_PAGES = 2048                # moved at a time: 8 MiB
    MOVE_FROM_RUNS = 64              # a file in fewer pieces than this is mapped as it is
    MOVE_RUN_PAGES = 256             # likewise one whose pieces are 1 MiB on average


cdef inline void commit_log(nv_ctx* c, nv_inode_header* h, uint64_t ino) noexcept nogil:
    # Commits and applies the operation's only log, and lets another transaction begin.
    log_commit(c, inode_off(c, ino) + PI_LOG_TAIL, c.slot.tx[0].cur_tail)
    tx_apply(c, h, 0)
    c.slot.ntx = 0


# ---- preserving ---------------------------------------------------------------------------------

cdef inline bint word_needed(nv_ctx* c, uint64_t word, uint64_t epoch_id) noexcept nogil:
    # Does a snapshot need what the page holds now?
    cdef uint64_t born = (<nv_entry_header*>(c.pm + ref_off(word))).epoch_id
    return born < epoch_id and snap_needed_by(c, born, epoch_id) != NULL


cdef uint64_t next_needed(nv_ctx* c, nv_inode_header* h, uint64_t pos, uint64_t end,
                          uint64_t epoch_id, uint64_t* n) noexcept nogil:
    # The next pages that have to be preserved: `n` of them, of one entry; `end` if there are none.
    cdef uint64_t word
    pos = index_next(c, &h.index, pos, end)
    while pos < end:
        word = index_cell(c, &h.index, pos)[0]
        n[0] = 1
        while pos + n[0] < end and index_get(c.dram, c.a.dram_bytes, &h.index,
                                             pos + n[0]) == word + (n[0] << REF_BITS):
            n[0] += 1
        if word_needed(c, word, epoch_id):
            return pos
        pos = index_next(c, &h.index, pos + n[0], end)
    return end


cdef int append_kept(nv_ctx* c, nv_inode_header* h, uint64_t pos, uint64_t n) noexcept nogil:
    # Copies of pages pos.., and the entries that tell of them.
    cdef nv_mmap_write_entry e
    cdef uint64_t word = index_cell(c, &h.index, pos)[0]
    cdef uint64_t block, got = 0
    memset(&e, 0, sizeof(e))
    e.entry_type = ENTRY_MMAP_WRITE
    e.slots = 1
    e.epoch_id = c.epoch_id
    e.create_epoch_id = (<nv_entry_header*>(c.pm + ref_off(word))).epoch_id
    while n:
        if log_room(c, h, &c.slot.tx[0], 1):
            return -ENOSPC
        block = blocks_alloc(c, n, 0, &got)
        if block == 0:
            return -ENOSPC
        pm_copy_data(c, block_off(block), c.pm + block_off(word_block(word)), got << BLOCK_SHIFT)
        fail_point(c, "mmap.copied")
        e.pgoff = pos
        e.block_nr = <uint32_t>word_block(word)
        e.num_pages = <uint32_t>got
        e.kept_block_nr = <uint32_t>block
        log_append(c, &c.slot.tx[0], &e)
        fail_point(c, "mmap.entry_appended")
        pend_done(c)
        count(c, CNT_PRESERVED, got)
        pos += got
        word += got << REF_BITS
        n -= got
    return 0


cdef int preserve_pages(nv_ctx* c, nv_inode_header* h, uint64_t ino, uint64_t first,
                        uint64_t end) noexcept nogil:
    # MAP-4, for all pages in [first, end) that are there. 0, or -ENOSPC with nothing done.
    cdef uint64_t epoch_id = effective_epoch(c, h, ino, c.epoch_id)
    cdef uint64_t n = 0
    cdef uint64_t pos
    if c.hdr.snap_live == 0:
        return 0
    pos = next_needed(c, h, first, end, epoch_id, &n)
    if pos >= end:
        return 0
    # A run of an entry may be cut anywhere, by what the copies' blocks are found in.
    if spare_reserve(c, run_count(c, h, first, end) + (end - first)):
        return -ENOSPC
    tx_open(c, ino, h.log_tail_off)
    while pos < end:
        if append_kept(c, h, pos, n):
            tx_undo(c)
            return -ENOSPC
        pos = next_needed(c, h, pos + n, end, epoch_id, &n)
    commit_log(c, h, ino)
    fail_point(c, "mmap.preserved")
    return 0


cdef uint64_t one_piece(nv_ctx* c, nv_inode_header* h, uint64_t first, uint64_t end) noexcept nogil:
    # The first block of pages [first, end) if their blocks follow one another; else 0.
    cdef nv_run run
    cdef uint64_t n = map_runs(c, h, first, end, &run, 1)
    return run.block if n == 1 else 0


cdef int resolve_pages(nv_ctx* c, uint64_t ino, uint32_t generation, uint64_t first, uint64_t end,
                       uint64_t* block) noexcept nogil:
    # For a fault, inside fault_enter() and fault_leave(): after this the pages may be stored to.
    # 0, NV_FROZEN or -errno. Unless it is NULL, `block` gets what one_piece() finds.
    cdef nv_inode_header* h = NULL
    cdef int rc = inode_lock(c, ino, generation, &h)
    if rc:
        return rc
    rc = op_begin(c, OP_MMAP)
    if rc == 0:
        rc = preserve_pages(c, h, ino, first, end)
        if block != NULL:
            block[0] = one_piece(c, h, first, end)
        count(c, CNT_MAP_FAULTS, 1)
        op_end(c)
    lock_drop(c, &h.lock)
    return rc


# ---- in place -----------------------------------------------------------------------------------

cdef void store_in_place(nv_ctx* c, nv_inode_header* h, const uint8_t* src, uint64_t n,
                         uint64_t offset) noexcept nogil:
    # Into the blocks that are there; zeros if `src` is NULL. Readers of the file see all or nothing
    # of it, those of a mapping do not.
    cdef uint64_t within, bytes, word
    seq_begin(h)
    while n:
        within = offset & (BLOCK_BYTES - 1)
        bytes = BLOCK_BYTES - within
        if bytes > n:
            bytes = n
        word = index_get(c.dram, c.a.dram_bytes, &h.index, offset >> BLOCK_SHIFT)
        if word:
            if src == NULL:
                pm_zero(c, block_off(word_block(word)) + within, bytes)
            else:
                pm_copy_data(c, block_off(word_block(word)) + within, src, bytes)
        if src != NULL:
            src += bytes
        offset += bytes
        n -= bytes
    pm_fence(c)
    seq_end(h)


cdef int append_size(nv_ctx* c, nv_inode_header* h, uint64_t size) noexcept nogil:
    # An entry with a new size and time, to the log that is open.
    cdef nv_setattr_entry e
    setattr_entry(c, h, &e)
    e.mtime_ns = e.ctime_ns
    e.size = size
    if log_room(c, h, &c.slot.tx[0], 1):
        return -ENOSPC
    log_append(c, &c.slot.tx[0], &e)
    return 0


cdef int fill_holes(nv_ctx* c, nv_inode_header* h, uint64_t first, uint64_t end,
                    uint64_t size) noexcept nogil:
    # Zeroed blocks for all holes in [first, end), appended to the log that is open.
    cdef uint64_t now = nv_file_time_ns()
    cdef uint64_t* cell
    cdef uint64_t hole_end
    while first < end:
        cell = index_cell(c, &h.index, first)
        if cell[0]:
            first += 1
            continue
        hole_end = index_next(c, &h.index, first, end)
        if append_data(c, h, NULL, (hole_end - first) << BLOCK_SHIFT, first << BLOCK_SHIFT, size,
                       now):
            return -ENOSPC
        first = hole_end
    return 0


cdef int zero_past_end(nv_ctx* c, nv_inode_header* h, uint64_t ino, uint64_t size) noexcept nogil:
    # A mapped file grows to `size`: pages that were left past its end show zeros from there on.
    cdef uint64_t first = h.size >> BLOCK_SHIFT
    cdef uint64_t end = (size + BLOCK_BYTES - 1) >> BLOCK_SHIFT
    cdef int rc
    if not h.flags & INODE_PAST_END or size <= h.size:
        return 0
    rc = preserve_pages(c, h, ino, first, end)
    if rc == 0:
        store_in_place(c, h, NULL, size - h.size, h.size)
    return rc


cdef int64_t mapped_write(nv_ctx* c, nv_inode_header* h, uint64_t ino, const uint8_t* src,
                          uint64_t n, uint64_t offset) noexcept nogil:
    # MAP-8. All that can fail comes before the first byte is stored.
    cdef uint64_t page = offset >> BLOCK_SHIFT
    cdef uint64_t end = (offset + n + BLOCK_BYTES - 1) >> BLOCK_SHIFT
    cdef uint64_t size = h.size if h.size > offset + n else offset + n
    cdef int rc = 0 if blocks_fit(c, end - page, h.blocks) else -ENOSPC
    if rc == 0:
        rc = index_reserve(c, h, &h.index, page, end - 1)
    if rc == 0:
        rc = zero_past_end(c, h, ino, size)
    if rc == 0:
        rc = preserve_pages(c, h, ino, page, end)
    if rc:
        return -ENOSPC
    tx_open(c, ino, h.log_tail_off)
    if fill_holes(c, h, page, end, h.size) or append_size(c, h, size):
        tx_undo(c)
        return -ENOSPC
    commit_log(c, h, ino)
    fail_point(c, "mmap.before_store")
    store_in_place(c, h, src, n, offset)
    return <int64_t>n


cdef int mapped_truncate(nv_ctx* c, nv_inode_header* h, uint64_t ino, uint64_t size) noexcept nogil:
    # MAP-5: smaller, but for its pages, which become zeros; or larger.
    cdef uint64_t old_size = h.size
    cdef uint64_t end = last_page_end(c, h)
    cdef int rc = zero_past_end(c, h, ino, size)
    if rc == 0 and size < old_size:
        rc = preserve_pages(c, h, ino, size >> BLOCK_SHIFT, end)
    if rc:
        return rc
    tx_open(c, ino, h.log_tail_off)
    rc = append_size(c, h, size)
    if rc:
        tx_undo(c)
        return rc
    commit_log(c, h, ino)
    fail_point(c, "mmap.truncated")
    if size < old_size and size < end << BLOCK_SHIFT:
        store_in_place(c, h, NULL, (end << BLOCK_SHIFT) - size, size)
    return 0


cdef int map_flush(nv_ctx* c, nv_inode_header* h, uint64_t ino, uint64_t first, uint64_t end,
                   bint stamp) noexcept nogil:
    # Everything that was stored to pages [first, end) is persistent after this; with `stamp` the
    # file's times say that it changed.
    cdef uint64_t pos = index_next(c, &h.index, first, end)
    cdef int rc
    while pos < end:
        pm_adopt(c, block_off(word_block(index_cell(c, &h.index, pos)[0])), BLOCK_BYTES)
        pos = index_next(c, &h.index, pos + 1, end)
    pm_fence(c)
    if not stamp:
        return 0
    tx_open(c, ino, h.log_tail_off)
    rc = append_size(c, h, h.size)
    if rc:
        tx_undo(c)
        return rc
    commit_log(c, h, ino)
    return 0


# ---- mapping ------------------------------------------------------------------------------------

cdef uint64_t map_runs(nv_ctx* c, nv_inode_header* h, uint64_t first, uint64_t end, nv_run* runs,
                       uint64_t room) noexcept nogil:
    # The pieces of pages [first, end); as many of them as there is room for are stored.
    cdef uint64_t n = 0
    cdef uint64_t block, pages
    while first < end:
        block = word_block(index_get(c.dram, c.a.dram_bytes, &h.index, first))
        if block == 0:
            pages = index_next(c, &h.index, first, end) - first
        else:
            pages = 1
            while first + pages < end and word_block(index_get(
                    c.dram, c.a.dram_bytes, &h.index, first + pages)) == block + pages:
                pages += 1
        if n < room:
            runs[n].page = first
            runs[n].block = block
            runs[n].pages = pages
        n += 1
        first += pages
    return n


cdef uint64_t alloc_long(nv_ctx* c, uint64_t want, uint64_t* got) noexcept nogil:
    # A long run of blocks rather than the one used last.
    cdef uint64_t n = want
    cdef uint64_t block
    while n >= MOVE_RUN_PAGES // 4:
        block = blocks_alloc_run(c, n, 0)
        if block:
            got[0] = n
            return block
        n //= 2
    return blocks_alloc(c, want, 0, got)


cdef int move_pages(nv_ctx* c, nv_inode_header* h, uint64_t ino, uint64_t first,
                    uint64_t end) noexcept nogil:
    # New blocks, in long runs, for those of pages [first, end) that are there.
    cdef nv_write_entry e
    cdef nv_setattr_entry times
    cdef uint64_t block, i, n, got = 0
    if spare_reserve(c, run_count(c, h, first, end) + (end - first)):
        return -ENOSPC
    memset(&e, 0, sizeof(e))
    e.entry_type = ENTRY_WRITE
    e.slots = 1
    e.epoch_id = c.epoch_id
    e.size = h.size
    e.mtime_ns = h.mtime_ns
    tx_open(c, ino, h.log_tail_off)
    first = index_next(c, &h.index, first, end)
    while first < end:
        n = 1
        while first + n < end and index_get(c.dram, c.a.dram_bytes, &h.index, first + n):
            n += 1
        block = 0
        if log_room(c, h, &c.slot.tx[0], 1) == 0:
            block = alloc_long(c, n, &got)
        if block == 0:
            tx_undo(c)
            return -ENOSPC
        for i in range(got):
            pm_copy_data(c, block_off(block + i),
                         c.pm + block_off(word_block(index_cell(c, &h.index, first + i)[0])),
                         BLOCK_BYTES)
        fail_point(c, "mmap.moved")
        e.pgoff = first
        e.block_nr = <uint32_t>block
        e.num_pages = <uint32_t>got
        log_append(c, &c.slot.tx[0], &e)
        pend_done(c)
        first = index_next(c, &h.index, first + got, end)
    if log_room(c, h, &c.slot.tx[0], 1):
        tx_undo(c)
        return -ENOSPC
    # Nothing changed that anybody could see, the times neither.
    setattr_entry(c, h, &times)
    times.ctime_ns = h.ctime_ns
    log_append(c, &c.slot.tx[0], &times)
    commit_log(c, h, ino)
    return 0


cdef uint64_t last_page_end(nv_ctx* c, nv_inode_header* h) noexcept nogil:
    cdef uint64_t end = 0
    cdef uint64_t pos = index_next(c, &h.index, 0, <uint64_t>-1)
    while pos != <uint64_t>-1:
        end = pos + 1
        pos = index_next(c, &h.index, end, <uint64_t>-1)
    return end


cdef int unshare(nv_ctx* c, nv_inode_header* h, uint64_t ino) noexcept nogil:
    # MAP-7: no page of the file keeps a block that a snapshot shares with it.
    cdef uint64_t epoch_id = effective_epoch(c, h, ino, c.epoch_id)
    cdef uint64_t end = last_page_end(c, h)
    cdef uint64_t n = 0
    cdef uint64_t pos = next_needed(c, h, 0, end, epoch_id, &n)
    cdef int rc = 0
    while pos < end and rc == 0:
        if n > MOVE_PAGES:
            n = MOVE_PAGES
        rc = move_pages(c, h, ino, pos, pos + n)
        pos = next_needed(c, h, pos + n, end, epoch_id, &n)
    return rc


cdef int map_live(nv_ctx* c, nv_inode_header* h, uint64_t ino, uint64_t first,
                  uint64_t end) noexcept nogil:
    # A block for every page, in pieces that are few enough, none of them mapped through a snapshot.
    cdef uint64_t runs, step
    cdef int rc = 0 if blocks_fit(c, end - first, h.blocks) else -ENOSPC
    if rc == 0:
        rc = index_reserve(c, h, &h.index, first, end - 1)
    if rc:
        return rc
    tx_open(c, ino, h.log_tail_off)
    rc = fill_holes(c, h, first, end, h.size)
    if rc:
        tx_undo(c)
        return rc
    if c.slot.tx[0].cur_tail != c.slot.tx[0].old_tail:
        commit_log(c, h, ino)
    c.slot.ntx = 0
    if h.maps:
        return 0
    if h.view_maps:
        rc = unshare(c, h, ino)
        if rc:
            return rc
    runs = map_runs(c, h, first, end, NULL, 0)
    if runs > MOVE_FROM_RUNS + (end - first) // MOVE_RUN_PAGES:
        while first < end and rc == 0:
            # Many pieces are a burden, no error: without space for new ones it stays as it is.
            step = end - first if end - first < MOVE_PAGES else MOVE_PAGES
            rc = move_pages(c, h, ino, first, first + step)
            first += step
    return 0


cdef void map_count(nv_inode_header* h, nv_map* m, bint on) noexcept nogil:
    # Under the inode's lock. The record is the truth, the header's count is the sum over all.
    if (m.flags & MAP_COUNTED != 0) == on:
        return
    m.flags ^= MAP_COUNTED
    if m.flags & MAP_SNAPSHOT:
        h.view_maps += 1 if on else -1
    else:
        h.maps += 1 if on else -1


cdef int map_prepare(nv_ctx* c, nv_inode_header* h, nv_map* m, uint64_t first,
                     uint64_t end) noexcept nogil:
    # MAP-5 and MAP-7 hold for pages [first, end) after this, and until map_count(…, False).
    cdef int rc = 0
    if m.flags & MAP_INHERITED:
        # The parent, who waits, has it mapped; if it died, nothing may be as it was.
        if (h.view_maps if m.flags & MAP_SNAPSHOT else h.maps) == 0:
            rc = -ESTALE
    elif m.flags & MAP_SNAPSHOT:
        if h.maps:
            rc = preserve_pages(c, h, m.ino, first, end)
    elif end << BLOCK_SHIFT > (h.size + BLOCK_BYTES - 1 & ~<uint64_t>(BLOCK_BYTES - 1)):
        rc = -EINVAL
    else:
        rc = map_live(c, h, m.ino, first, end)
    if rc == 0:
        map_count(h, m, True)
        fail_point(c, "mmap.counted")
    return rc


cdef void recount_maps(nv_ctx* c, nv_inode_header* h, uint64_t ino) noexcept nogil:
    # Repair: the sum over the records of all processes.
    cdef uint64_t off
    cdef nv_map* m
    cdef uint32_t i, k
    h.maps = 0
    h.view_maps = 0
    for i in range(c.hdr.slot_high):
        if slot_at(c, i).state == SLOT_FREE or slot_at(c, i).parent:
            continue
        off = slot_at(c, i).map_head
        # A process that leaves meanwhile gives its pages back, when they have no records any more.
        while off and off < c.a.dram_bytes and not off & (DRAM_PAGE - 1):
            for k in range(MAP_RECORDS):
                m = &map_page(c, off).maps[k]
                if m.ino == ino and m.flags & MAP_COUNTED:
                    if m.flags & MAP_SNAPSHOT:
                        h.view_maps += 1
                    else:
                        h.maps += 1
            off = map_page(c, off).next_off

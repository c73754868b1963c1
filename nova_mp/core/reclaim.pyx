"""Log garbage collection, fast and thorough, and the cleaning of deleted snapshots' lists."""

from libc.errno cimport ENOSPC
from libc.string cimport memcmp, memcpy
from libc.stdint cimport uint8_t, uint16_t
from nova_mp.core.alloc cimport (blocks_free, blocks_free_announced, pend_done, release_announce,
                                 release_fill)
from nova_mp.core.pages cimport dram_free
from nova_mp.core.arch cimport nv_fence_release, nv_load32, nv_monotonic_ns
from nova_mp.core.dir cimport dentry_at, dir_lookup, dir_retarget
from nova_mp.core.dram cimport (CNT_CLEANED, CNT_GC_FAST, CNT_GC_THOROUGH, DRAM_PAGE, INODE_DEAD,
                                INODE_IN_LIST, NV_FROZEN, OP_CLEAN, OP_GC, count, cpu_at, nv_chunk,
                                nv_cpu, nv_slot, table_at)
from nova_mp.core.index cimport REF_BITS, index_cell, make_ref, ref_off, word_block, REF_MASK
from nova_mp.core.inode cimport GC_FIRST_PAGES, blocks_brought, inode_lock
from nova_mp.core.itable cimport (PI_LOG_HEAD, chunk_off_of, inode_at, inode_destroy, inode_off,
                                  unlink_block)
from nova_mp.core.layout cimport (BLOCK_SHIFT, CHUNK_SLOTS, ENTRY_DENTRY, ENTRY_FLAG_REMOVED,
                                  ENTRY_FLAG_SIZE, ENTRY_LINK_CHANGE, ENTRY_MMAP_WRITE,
                                  ENTRY_NEXT_PAGE, ENTRY_SETATTR, ENTRY_SNAPSHOT_INFO, ENTRY_WRITE,
                                  ENTRY_XATTR, INO_CHUNK_SHIFT, INO_SLOT_BITS, LINE_BYTES,
                                  LOG_SLOTS, LOG_TAIL_OFF, MAX_CPUS, SNAPSHOT_INO, SS_FILE_WRITE,
                                  SS_INODE, nv_dentry, nv_entry_header, nv_list_entry,
                                  nv_list_page_tail, nv_mmap_write_entry, nv_setattr_entry,
                                  nv_snapshot_info, nv_write_entry, nv_xattr_entry)
from nova_mp.core.log cimport log_new_page, log_position, page_of, page_tail, slot_of
from nova_mp.core.pmem cimport (fail_point, pm_copy, pm_fence, pm_flush, pm_persist, pm_store16,
                                pm_store64, pm_word)
from nova_mp.core.snaplist cimport list_entries, list_tail, release_announced, spare_reserve
from nova_mp.core.snaptable cimport snap_any_before, snap_find, snap_needed_by
from nova_mp.core.sync cimport (RANK_CLEAN, RANK_LIST, RANK_SNAPSHOT, lock_drop, lock_take,
                                op_begin, op_end, seq_begin, seq_end)

cdef enum:
    HINTS_OFF = 48                   # of what is volatile in entries that bring blocks

cdef struct nv_pass:                 # PRIVATE. One thorough pass over a log
    nv_inode_header* h
    uint64_t ino
    uint64_t head
    uint64_t tail                    # committed tail
    uint64_t stop                    # its page: kept as it is
    uint64_t last_setattr
    uint64_t last_link_change
    uint64_t kept_end                # file pages that kept write entries reach to
    uint64_t page                    # new page being filled, 0 if none yet
    uint32_t slot
    uint32_t entries
    uint64_t new_pages


# ---- what is needed -----------------------------------------------------------------------------

cdef bint between(nv_ctx* c, uint64_t create_epoch_id, uint64_t delete_epoch_id) noexcept nogil:
    return create_epoch_id < delete_epoch_id and snap_needed_by(c, create_epoch_id,
                                                                delete_epoch_id) != NULL


cdef bint write_live(nv_ctx* c, nv_inode_header* h, uint64_t off) noexcept nogil:
    cdef nv_write_entry* e = <nv_write_entry*>(c.pm + off)
    cdef uint64_t i
    cdef uint64_t* cell
    for i in range(e.num_pages):
        cell = index_cell(c, &h.index, e.pgoff + i)
        if cell != NULL and cell[0] & <uint64_t>REF_MASK == make_ref(off):
            return True
    return False


cdef bint dentry_live(nv_ctx* c, nv_inode_header* h, uint64_t off) noexcept nogil:
    cdef nv_dentry* d = dentry_at(c, off)
    return dir_lookup(c, h, <const char*>d.name, d.name_len) == off


cdef bint size_needed(nv_ctx* c, nv_inode_header* h, uint64_t off) noexcept nogil:
    # Entries about preserved pages tell no size. So a write whose pages they all took over may be
    # the one that tells it, now or as of some snapshot.
    cdef nv_entry_header* e = <nv_entry_header*>(c.pm + off)
    cdef nv_entry_header* n
    cdef uint64_t pos = log_position(c, off + e.slots * LINE_BYTES, h.log_tail_off)
    while pos != h.log_tail_off:
        n = <nv_entry_header*>(c.pm + pos)
        if n.entry_type == ENTRY_WRITE or n.entry_type == ENTRY_SETATTR:
            return between(c, e.epoch_id, n.epoch_id)
        pos = log_position(c, pos + n.slots * LINE_BYTES, h.log_tail_off)
    return True


cdef bint write_needed(nv_ctx* c, nv_inode_header* h, uint64_t off) noexcept nogil:
    # An entry about preserved pages also tells older snapshots where their copies are.
    cdef nv_write_entry* e = <nv_write_entry*>(c.pm + off)
    if write_live(c, h, off) or between(c, e.epoch_id, e.dead_epoch_id):
        return True
    if e.entry_type == ENTRY_MMAP_WRITE:
        return between(c, (<nv_mmap_write_entry*>e).create_epoch_id, e.epoch_id)
    return size_needed(c, h, off)


cdef bint dentry_needed(nv_ctx* c, nv_inode_header* h, uint64_t off) noexcept nogil:
    cdef nv_dentry* d = dentry_at(c, off)
    if d.flags & ENTRY_FLAG_REMOVED:
        return between(c, d.aux_epoch_id, d.epoch_id)
    return dentry_live(c, h, off) or between(c, d.epoch_id, d.aux_epoch_id)


cdef uint64_t superseded_by(nv_ctx* c, nv_pass* p, uint64_t off) noexcept nogil:
    # Epoch of the next entry that says again all that this one says; 0 if there is none.
    cdef nv_entry_header* e = <nv_entry_header*>(c.pm + off)
    cdef nv_entry_header* n
    cdef uint64_t pos
    cdef bint same
    if e.entry_type == ENTRY_SETATTR and off == p.last_setattr:
        return 0
    pos = log_position(c, off + e.slots * LINE_BYTES, p.tail)
    while pos != p.tail:
        n = <nv_entry_header*>(c.pm + pos)
        same = n.entry_type == ENTRY_SETATTR and e.entry_type != ENTRY_XATTR
        if n.entry_type == ENTRY_LINK_CHANGE and e.entry_type == ENTRY_LINK_CHANGE:
            same = True
        if n.entry_type == ENTRY_XATTR and e.entry_type == ENTRY_XATTR:
            same = (n.name_len == e.name_len
                    and memcmp((<nv_xattr_entry*>n).data, (<nv_xattr_entry*>e).data,
                               n.name_len) == 0)
        if same:
            return n.epoch_id
        pos = log_position(c, pos + n.slots * LINE_BYTES, p.tail)
    return 0


cdef bint stamp_needed(nv_ctx* c, nv_pass* p, uint64_t off) noexcept nogil:
    # Is this the entry that tells, now or as of some snapshot, when the inode last changed?
    cdef nv_entry_header* e = <nv_entry_header*>(c.pm + off)
    cdef nv_entry_header* n
    cdef uint64_t pos = log_position(c, off + e.slots * LINE_BYTES, p.tail)
    while pos != p.tail:
        n = <nv_entry_header*>(c.pm + pos)
        if (e.entry_type != ENTRY_DENTRY or n.entry_type == ENTRY_DENTRY
                or n.entry_type == ENTRY_SETATTR):
            return between(c, e.epoch_id, n.epoch_id)
        pos = log_position(c, pos + n.slots * LINE_BYTES, p.tail)
    return True


cdef bint needed(nv_ctx* c, nv_pass* p, uint64_t off) noexcept nogil:
    cdef nv_entry_header* e = <nv_entry_header*>(c.pm + off)
    cdef uint64_t epoch_id, pages
    if blocks_brought(<nv_write_entry*>e):
        return write_needed(c, p.h, off)
    if e.entry_type == ENTRY_DENTRY:
        return dentry_needed(c, p.h, off) or stamp_needed(c, p, off)
    if e.entry_type == ENTRY_SNAPSHOT_INFO:
        return (<nv_snapshot_info*>e).deleted == 0
    if e.entry_type == ENTRY_XATTR and e.flags & ENTRY_FLAG_REMOVED:
        return between(c, (<nv_xattr_entry*>e).aux_epoch_id, e.epoch_id) or stamp_needed(c, p, off)
    if e.entry_type == ENTRY_SETATTR and e.flags & ENTRY_FLAG_SIZE:
        # A truncation that cut an entry which is kept: without it the cut pages would come back.
        pages = ((<nv_setattr_entry*>e).size + 4095) >> BLOCK_SHIFT
        if p.kept_end > pages:
            return True
    if (e.entry_type != ENTRY_SETATTR and e.entry_type != ENTRY_LINK_CHANGE
            and e.entry_type != ENTRY_XATTR):
        return True
    epoch_id = superseded_by(c, p, off)
    return epoch_id == 0 or between(c, e.epoch_id, epoch_id) or stamp_needed(c, p, off)


# ---- fast ---------------------------------------------------------------------------------------

cdef bint page_useless(nv_ctx* c, nv_inode_header* h, uint64_t page) noexcept nogil:
    # Removals and attributes stay for the thorough pass: dropping one alone could undo it.
    cdef uint64_t pos = page
    cdef nv_entry_header* e
    if page_tail(c, page).invalid_entries < page_tail(c, page).num_entries:
        return False
    while slot_of(pos) < LOG_SLOTS:
        e = <nv_entry_header*>(c.pm + pos)
        if e.entry_type == ENTRY_NEXT_PAGE:
            break
        if blocks_brought(<nv_write_entry*>e):
            if write_needed(c, h, pos):
                return False
        elif e.entry_type == ENTRY_DENTRY and not e.flags & ENTRY_FLAG_REMOVED:
            if dentry_needed(c, h, pos):
                return False
        else:
            return False
        pos += e.slots * LINE_BYTES
    return True


cdef void gc_fast(nv_ctx* c, nv_inode_header* h, uint64_t ino) noexcept nogil:
    cdef uint64_t link_off = inode_off(c, ino) + PI_LOG_HEAD
    cdef uint64_t stop = page_of(h.log_tail_off - 1)
    cdef uint64_t page = pm_word(c, link_off)
    cdef uint64_t following
    while page != stop and page:
        following = page_tail(c, page).next_page_off
        if page_useless(c, h, page):
            unlink_block(c, link_off, page, following)
            h.log_pages -= 1
            count(c, CNT_GC_FAST, 1)
        else:
            link_off = page + LOG_TAIL_OFF
        page = following


# ---- thorough -----------------------------------------------------------------------------------

cdef int next_new_page(nv_ctx* c, nv_pass* p) noexcept nogil:
    # The first page is named by the slot until the switch, the others by their predecessor.
    cdef uint64_t link_off = p.page + LOG_TAIL_OFF if p.page else 0
    cdef uint64_t page = log_new_page(c, p.ino, link_off)
    cdef uint8_t marker = ENTRY_NEXT_PAGE
    if page == 0:
        return -ENOSPC
    if p.page:
        if p.slot < LOG_SLOTS:
            pm_copy(c, p.page + p.slot * LINE_BYTES, &marker, 1)
        pm_store16(c, p.page + LOG_TAIL_OFF + 12, <uint16_t>p.entries)
        pm_store64(c, link_off, page)
        pm_flush(c, p.page, 4096)
    else:
        c.slot.gc_head = page
    pend_done(c)
    p.page = page
    p.slot = 0
    p.entries = 0
    p.new_pages += 1
    return 0


cdef int copy_entry(nv_ctx* c, nv_pass* p, uint64_t off) noexcept nogil:
    cdef nv_entry_header* e = <nv_entry_header*>(c.pm + off)
    cdef uint64_t end
    if (p.page == 0 or p.slot + e.slots > LOG_SLOTS) and next_new_page(c, p):
        return -ENOSPC
    pm_copy(c, p.page + p.slot * LINE_BYTES, e, e.slots * LINE_BYTES)
    p.slot += e.slots
    p.entries += 1
    if blocks_brought(<nv_write_entry*>e):
        end = (<nv_write_entry*>e).pgoff + (<nv_write_entry*>e).num_pages
        if end > p.kept_end:
            p.kept_end = end
    return 0


cdef int copy_needed(nv_ctx* c, nv_pass* p) noexcept nogil:
    # Fills the new chain from all pages before the tail page.
    cdef uint64_t pos = log_position(c, p.head, p.tail)
    cdef nv_entry_header* e
    while pos != p.tail:
        e = <nv_entry_header*>(c.pm + pos)
        if e.entry_type == ENTRY_SETATTR:
            p.last_setattr = pos
        pos = log_position(c, pos + e.slots * LINE_BYTES, p.tail)
    pos = log_position(c, p.head, p.tail)
    while pos != p.tail and page_of(pos) != p.stop:
        e = <nv_entry_header*>(c.pm + pos)
        if needed(c, p, pos) and copy_entry(c, p, pos):
            return -ENOSPC
        pos = log_position(c, pos + e.slots * LINE_BYTES, p.tail)
    return 0


cdef void retarget(nv_ctx* c, nv_inode_header* h, uint64_t ino, uint64_t first,
                   uint64_t stop) noexcept nogil:
    # DRAM refers to the copies from now on. Several entries may tell of one block of a page, if it
    # was preserved, or freed and taken again: a cell's own is the one that is the same. Idempotent.
    cdef uint64_t pos = log_position(c, first, h.log_tail_off)
    cdef nv_entry_header* e
    cdef nv_write_entry* w
    cdef uint64_t i
    cdef uint64_t* cell
    while pos != h.log_tail_off and page_of(pos) != stop:
        e = <nv_entry_header*>(c.pm + pos)
        if blocks_brought(<nv_write_entry*>e):
            w = <nv_write_entry*>e
            for i in range(w.num_pages):
                cell = index_cell(c, &h.index, w.pgoff + i)
                if (cell != NULL and cell[0] and word_block(cell[0]) == w.block_nr + i
                        and memcmp(c.pm + ref_off(cell[0]), w, HINTS_OFF) == 0):
                    cell[0] = (<uint64_t>w.block_nr + i) << REF_BITS | make_ref(pos)
        elif e.entry_type == ENTRY_DENTRY and not e.flags & ENTRY_FLAG_REMOVED:
            dir_retarget(c, h, pos)
        elif e.entry_type == ENTRY_SNAPSHOT_INFO and (<nv_snapshot_info*>e).deleted == 0:
            if snap_find(c, e.epoch_id) != NULL:
                snap_find(c, e.epoch_id).info_off = pos
        pos = log_position(c, pos + e.slots * LINE_BYTES, h.log_tail_off)


cdef void free_chain(nv_ctx* c, bint given_up) noexcept nogil:
    # Frees the pages from gc_old to gc_stop, exclusive. If it is the new chain that is freed, its
    # head moves along: a repairer starts from there.
    cdef nv_slot* s = c.slot
    cdef uint64_t following
    while s.gc_old != s.gc_stop and s.gc_old:
        following = page_tail(c, s.gc_old).next_page_off
        if following == 0:
            following = s.gc_stop
        release_fill(s, (s.gc_old >> BLOCK_SHIFT) << 32 | 1)
        s.rel_undo = following
        release_announce(s)
        blocks_free_announced(c)
        if given_up:
            s.gc_head = following
        s.gc_old = following
        nv_fence_release()
        s.rel_state = 0


cdef void gc_continue(nv_ctx* c) noexcept nogil:
    # From the switched head to the freed old chain, or, if it was not switched, freeing the new
    # one. Also done by a repairer: c.slot.gc_* tell which.
    cdef nv_slot* s = c.slot
    cdef uint64_t ino = s.gc_ino
    cdef uint64_t head
    cdef bint given_up
    cdef nv_inode_header* h = NULL
    if ino == 0:
        return
    h = <nv_inode_header*>(c.dram + chunk_off_of(c, ino) + (ino & (CHUNK_SLOTS - 1)) * 128)
    head = pm_word(c, inode_off(c, ino) + PI_LOG_HEAD)
    given_up = head != (s.gc_head if s.gc_head else s.gc_stop)
    if s.undo_off:
        s.gc_old = s.undo_off
        if given_up:
            s.gc_head = s.undo_off
        nv_fence_release()
        s.undo_off = 0
    elif not given_up:
        seq_begin(h)
        if s.gc_head:
            retarget(c, h, ino, s.gc_head, s.gc_stop)
        seq_end(h)
        fail_point(c, "gc.retargeted")
    else:
        s.gc_old = s.gc_head
    free_chain(c, given_up)
    s.gc_ino = 0
    s.gc_head = 0
    h.log_pages = 1
    head = pm_word(c, inode_off(c, ino) + PI_LOG_HEAD)
    while head != page_of(h.log_tail_off - 1):
        h.log_pages += 1
        head = page_tail(c, head).next_page_off


cdef void gc_thorough(nv_ctx* c, nv_inode_header* h, uint64_t ino) noexcept nogil:
    cdef nv_slot* s = c.slot
    cdef nv_pass p
    cdef uint32_t table_seq = nv_load32(&c.hdr.snap_seq)
    cdef uint64_t head_word = inode_off(c, ino) + PI_LOG_HEAD
    cdef int rc
    p.h = h
    p.ino = ino
    p.head = pm_word(c, head_word)
    p.tail = h.log_tail_off
    p.stop = page_of(h.log_tail_off - 1)
    p.last_setattr = 0
    p.kept_end = 0
    p.page = 0
    p.slot = 0
    p.entries = 0
    p.new_pages = 0
    if p.head == p.stop:
        return
    s.gc_head = 0
    s.gc_old = p.head
    s.gc_stop = p.stop
    s.undo_off = 0
    nv_fence_release()
    s.gc_ino = ino
    rc = copy_needed(c, &p)
    if (rc == 0 and p.new_pages + 1 < h.log_pages and not table_seq & 1
            and nv_load32(&c.hdr.snap_seq) == table_seq):
        if p.page:
            pm_store16(c, p.page + LOG_TAIL_OFF + 12, <uint16_t>p.entries)
            if p.slot < LOG_SLOTS:
                write_marker(c, p.page + p.slot * LINE_BYTES)
            pm_store64(c, p.page + LOG_TAIL_OFF, p.stop)
            pm_flush(c, p.page, 4096)
        pm_fence(c)
        fail_point(c, "gc.before_switch")
        pm_store64(c, head_word, s.gc_head if s.gc_head else p.stop)
        pm_persist(c, head_word, 8)
        fail_point(c, "gc.switched")
        count(c, CNT_GC_THOROUGH, h.log_pages - p.new_pages - 1)
    elif p.page:
        # Given up: the new chain must end where free_chain stops.
        pm_store64(c, p.page + LOG_TAIL_OFF, p.stop)
    gc_continue(c)


cdef void write_marker(nv_ctx* c, uint64_t off) noexcept nogil:
    cdef uint8_t marker = ENTRY_NEXT_PAGE
    pm_copy(c, off, &marker, 1)


cdef int gc_inode(nv_ctx* c, uint64_t ino) noexcept nogil:
    # One pass over the log of an inode, if it still is long.
    cdef nv_inode_header* h = NULL
    cdef int rc
    if ino == SNAPSHOT_INO:
        rc = lock_take(c, &c.hdr.snapshot_lock, RANK_SNAPSHOT)
        if rc:
            return rc
    rc = inode_lock(c, ino, 0, &h)
    if rc == 0:
        rc = op_begin(c, OP_GC)
        if rc == 0:
            if (not h.flags & INODE_IN_LIST and (h.opens or not h.flags & INODE_DEAD)
                    and h.log_pages > 1):
                c.privileged = 1
                gc_fast(c, h, ino)
                gc_thorough(c, h, ino)
                c.privileged = 0
                h.gc_pages = h.log_pages * 2 if h.log_pages * 2 > GC_FIRST_PAGES else GC_FIRST_PAGES
            op_end(c)
        lock_drop(c, &h.lock)
    if ino == SNAPSHOT_INO:
        lock_drop(c, &c.hdr.snapshot_lock)
    return rc


cdef int gc_all(nv_ctx* c) noexcept nogil:
    # After snapshots went away: every log of more than one page, since what pinned it may be gone.
    cdef uint32_t table
    cdef uint64_t chunk, first_ino, off, slot
    cdef nv_inode_header* h
    cdef int rc
    for table in range(MAX_CPUS):
        for chunk in range(table_at(c, table).num_chunks):
            first_ino = chunk << INO_CHUNK_SHIFT | <uint64_t>table << INO_SLOT_BITS
            off = chunk_off_of(c, first_ino)
            for slot in range(1, CHUNK_SLOTS):
                h = <nv_inode_header*>(c.dram + off + slot * 128)
                if h.mode and h.log_pages > 1 and not h.flags & INODE_DEAD:
                    rc = gc_inode(c, first_ino | slot)
                    if rc == NV_FROZEN:
                        return rc
    return 0


# ---- lists of deleted snapshots -----------------------------------------------------------------

cdef void clean_entry(nv_ctx* c, uint64_t page, uint32_t i) noexcept nogil:
    # GC-4. The page's cursor moves past the entry before its announcement ends: `step` tells a
    # repairer where the cursor belongs.
    cdef nv_slot* s = c.slot
    cdef nv_list_entry* e = &list_entries(c, page)[i]
    s.step = i + 1
    release_fill(s, e.nvmm << 32 | e.num_pages)
    if e.entry_type == SS_INODE:
        s.rel_extent = e.num_pages
        s.rel_ino = e.nvmm
    s.rel_create_epoch = e.create_epoch_id
    s.rel_delete_epoch = e.delete_epoch_id
    release_announce(s)
    release_announced(c)
    fail_point(c, "clean.released")
    if s.rel_ino and s.rel_state == 1:
        s.evict_ino = s.rel_ino
    list_tail(c, page).padding = i + 1
    s.rel_ino = 0
    s.rel_state = 0
    if s.evict_ino:
        inode_destroy(c, s.evict_ino)


cdef void pop_page(nv_ctx* c, nv_cpu* cpu) noexcept nogil:
    cdef uint64_t page = cpu.clean_head
    cdef nv_list_page_tail* tail = list_tail(c, page)
    cdef uint64_t blocks = 0
    cdef uint32_t i
    for i in range(tail.num_entries):
        if list_entries(c, page)[i].entry_type == SS_FILE_WRITE:
            blocks += list_entries(c, page)[i].num_pages
    lock_take(c, &cpu.snap_lock, RANK_LIST)
    if cpu.clean_tail == page:
        cpu.clean_tail = 0
    cpu.clean_head = tail.next_page_off
    cpu.held_blocks -= blocks
    cpu.list_pages -= 1
    lock_drop(c, &cpu.snap_lock)
    dram_free(c, page, DRAM_PAGE)


cdef uint64_t clean_done_blocks(nv_ctx* c, uint32_t cpu_nr) noexcept nogil:
    # Blocks of entries that were cleaned in a page that is not finished: held no more, though
    # held_blocks counts them until the page goes.
    cdef uint64_t page = cpu_at(c, cpu_nr).clean_head
    cdef uint64_t n = 0
    cdef uint32_t i
    if page:
        for i in range(list_tail(c, page).padding):
            if list_entries(c, page)[i].entry_type == SS_FILE_WRITE:
                n += list_entries(c, page)[i].num_pages
    return n


cdef int clean_page(nv_ctx* c, nv_cpu* cpu, uint64_t* budget) noexcept nogil:
    # The queue's first page. 0; -ENOSPC without memory to carry entries over; NV_FROZEN.
    cdef uint64_t page = cpu.clean_head
    cdef nv_list_page_tail* tail = list_tail(c, page)
    cdef int rc = op_begin(c, OP_CLEAN)
    if rc:
        return rc
    c.slot.arg = page
    c.privileged = 1
    while rc == 0 and tail.padding < tail.num_entries and budget[0]:
        rc = spare_reserve(c, 1)
        if rc == 0:
            clean_entry(c, page, tail.padding)
            count(c, CNT_CLEANED, 1)
            budget[0] -= 1
    if rc == 0 and tail.padding >= tail.num_entries:
        pop_page(c, cpu)
    c.privileged = 0
    c.slot.arg = 0
    op_end(c)
    return rc


cdef int64_t clean_lists(nv_ctx* c, uint64_t budget) noexcept nogil:
    # Up to `budget` entries; how many are left, or an error.
    cdef uint32_t i
    cdef uint64_t start = nv_monotonic_ns()
    cdef int rc = lock_take(c, &c.hdr.clean_lock, RANK_CLEAN)
    if rc:
        return rc
    for i in range(c.hdr.cpus):
        while rc == 0 and budget and cpu_at(c, i).clean_head:
            rc = clean_page(c, cpu_at(c, i), &budget)
    c.hdr.clean_ns += nv_monotonic_ns() - start
    lock_drop(c, &c.hdr.clean_lock)
    return rc if rc else <int64_t>clean_backlog(c)


cdef uint64_t clean_backlog(nv_ctx* c) noexcept nogil:
    # Entries that wait; read without locks, exact when nothing moves.
    cdef uint64_t n = 0, page
    cdef uint32_t i
    cdef uint64_t limit
    for i in range(c.hdr.cpus):
        page = cpu_at(c, i).clean_head
        limit = c.hdr.limit_bytes // DRAM_PAGE
        while page and limit:
            n += list_tail(c, page).num_entries - list_tail(c, page).padding
            page = list_tail(c, page).next_page_off
            limit -= 1
    return n

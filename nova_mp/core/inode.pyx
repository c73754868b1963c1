"""Inode tables, applying entries to DRAM, rebuilding and taking inodes apart."""

from libc.errno cimport ENOSPC
from libc.string cimport memset
from nova_mp.core.alloc cimport blocks_free_announced, pend_done, release_announce, release_fill
from nova_mp.core.arch cimport nv_crc32c, nv_fence_release, nv_file_time_ns, nv_store64
from nova_mp.core.dir cimport dentry_at, dir_add, dir_lookup, dir_remove, dir_reserve
from nova_mp.core.dram cimport (INODE_HAS_XATTR, INODE_IN_LIST, INODE_PAST_END, OP_CLEAN, nv_slot,
                                nv_tx)
from nova_mp.core.index cimport (REF_BITS, index_cell, index_next, index_prune, index_reserve,
                                 make_ref, ref_off, word_block)
from nova_mp.core.itable cimport (PI_LOG_HEAD, PI_LOG_TAIL, header_of, inode_destroy, inode_off,
                                  slot_alloc, slot_free)
from nova_mp.core.layout cimport (BLOCK_BYTES, BLOCK_SHIFT, ENTRY_DENTRY, ENTRY_FLAG_REMOVED,
                                  ENTRY_FLAG_SIZE, ENTRY_LINK_CHANGE, ENTRY_MMAP_WRITE,
                                  ENTRY_SETATTR, ENTRY_XATTR, LINE_BYTES, LOG_TAIL_OFF,
                                  MAGIC_LOG_PAGE, nv_dentry, nv_entry_header, nv_inode,
                                  nv_link_change_entry, nv_mmap_write_entry, nv_setattr_entry,
                                  nv_write_entry, nv_xattr_entry)
from nova_mp.core.log cimport (entry_valid, log_entry_dead, log_first_page, log_position,
                               log_write_entry, page_tail, slot_of)
from nova_mp.core.pmem cimport (fail_point, pm_copy, pm_flush, pm_persist, pm_store16, pm_store32,
                                pm_store64, pm_word)
from nova_mp.core.snaplist cimport record_inode, release_announced, spare_reserve
from nova_mp.core.sync cimport lock_drop, lock_take, seq_begin, seq_end

cdef extern from "<errno.h>":
    enum: EUCLEAN
    enum: ESTALE


# ---- making inodes ------------------------------------------------------------------------------

cdef int inode_new(nv_ctx* c, uint32_t mode, uint32_t uid, uint32_t gid,
                   uint64_t* ino) noexcept nogil:
    # A complete inode with its first entry, still INODE_FREE: the caller's journal makes it valid
    # together with the dentry. On error nothing is left.
    cdef nv_inode pi
    cdef nv_setattr_entry entry
    cdef nv_inode_header* h
    cdef uint64_t off, page
    cdef uint64_t now = nv_file_time_ns()
    cdef int rc = slot_alloc(c, ino)
    if rc:
        return rc
    fail_point(c, "inode.slot_taken")
    off = inode_off(c, ino[0])
    h = header_of(c, ino[0])
    memset(&pi, 0, sizeof(pi))
    pi.ino = ino[0]
    pi.create_epoch_id = c.epoch_id
    pi.birth_time_ns = now
    pi.generation = (<nv_inode*>(c.pm + off)).generation + 1
    pi.mode = mode
    pi.csum = inode_csum(&pi)
    pm_copy(c, off, &pi, sizeof(pi))
    page = log_first_page(c, ino[0], off + PI_LOG_HEAD)
    if page == 0:
        slot_free(c, ino[0])
        return -ENOSPC
    memset(&entry, 0, sizeof(entry))
    entry.entry_type = ENTRY_SETATTR
    entry.slots = 1
    entry.epoch_id = c.epoch_id
    entry.mode = mode
    entry.nlink = 2 if mode & S_IFMT == S_IFDIR else 1
    entry.uid = uid
    entry.gid = gid
    entry.mtime_ns = now
    entry.ctime_ns = now
    entry.atime_ns = now
    log_write_entry(c, page, &entry)
    pm_store16(c, page + LOG_TAIL_OFF + 12, 1)
    pm_store64(c, off + PI_LOG_TAIL, page + LINE_BYTES)
    pm_flush(c, off, sizeof(pi))
    header_init(h, pi.generation)
    h.log_tail_off = page + LINE_BYTES
    h.log_pages = 1
    apply_setattr(c, h, ino[0], &entry)
    seq_end(h)
    return 0


cdef uint32_t inode_csum(const nv_inode* pi) noexcept nogil:
    # Over what never changes: ino; create epoch; birth time and generation; mode.
    cdef uint32_t crc = nv_crc32c(0xFFFFFFFF, &pi.ino, 8)
    crc = nv_crc32c(crc, &pi.create_epoch_id, 8)
    crc = nv_crc32c(crc, &pi.birth_time_ns, 12)
    return ~nv_crc32c(crc, &pi.mode, 4)


cdef void header_init(nv_inode_header* h, uint32_t generation) noexcept nogil:
    # Lock and seq live on: readers may still look at the header of the slot's last life.
    seq_begin(h)
    memset(<char*>h + 8, 0, sizeof(nv_inode_header) - 8)
    h.generation = generation
    h.gc_pages = GC_FIRST_PAGES


cdef uint64_t undo_entry(nv_ctx* c, uint64_t pos, uint64_t tail) noexcept nogil:
    # Gives back the data blocks of the entry at `pos`; the position of the next one.
    cdef nv_slot* s = c.slot
    cdef nv_write_entry* e = <nv_write_entry*>(c.pm + pos)
    cdef uint64_t next_pos = log_position(c, pos + e.slots * LINE_BYTES, tail)
    cdef uint64_t block = blocks_brought(e)
    if block:
        if s.pend_len and s.pend_block == block:
            pend_done(c)
        release_fill(s, block << 32 | e.num_pages)
        s.rel_undo = next_pos
        release_announce(s)
        blocks_free_announced(c)
    s.undo_off = next_pos
    nv_fence_release()
    s.rel_state = 0
    return next_pos


cdef void inode_abandon(nv_ctx* c, uint64_t ino) noexcept nogil:
    # An inode that never became valid: its log's data blocks, its log pages, its slot.
    cdef uint64_t off = inode_off(c, ino)
    cdef nv_inode* pi = <nv_inode*>(c.pm + off)
    cdef nv_slot* s = c.slot
    cdef uint64_t pos
    if pi.log_head_off and pi.log_tail_off:
        # undo_off: where a repairer who died in this came to.
        pos = log_position(c, s.undo_off if s.undo_off else pi.log_head_off, pi.log_tail_off)
        while pos != pi.log_tail_off:
            pos = undo_entry(c, pos, pi.log_tail_off)
        pm_store64(c, off + PI_LOG_TAIL, 0)
        s.undo_off = 0
    inode_destroy(c, ino)


# ---- taking inodes apart ------------------------------------------------------------------------

cdef uint64_t run_count(nv_ctx* c, nv_inode_header* h, uint64_t first, uint64_t end) noexcept nogil:
    # Runs of contiguous blocks of one entry in the file pages first..end-1: list entries at most.
    cdef uint64_t n = 0
    cdef uint64_t pos = index_next(c, &h.index, first, end)
    cdef uint64_t word, last_word = 0, last_pos = 0
    while pos < end:
        word = index_cell(c, &h.index, pos)[0]
        if n == 0 or pos != last_pos + 1 or word != last_word + (<uint64_t>1 << REF_BITS):
            n += 1
        last_pos = pos
        last_word = word
        pos = index_next(c, &h.index, pos + 1, end)
    return n


cdef int evict_reserve(nv_ctx* c, nv_inode_header* h) noexcept nogil:
    if c.hdr.snap_live == 0:
        return 0
    if h.mode & S_IFMT == S_IFDIR:
        return spare_reserve(c, 1)
    return spare_reserve(c, 1 + run_count(c, h, 0, <uint64_t>-1))


cdef void evict(nv_ctx* c, nv_inode_header* h, uint64_t ino) noexcept nogil:
    # A dead inode that nobody has open. Its pages are released one run at a time, each by its own
    # age, so a snapshot pins no block that it cannot see; the log stays while a snapshot needs it.
    # evict_reserve() came first. Under the inode's lock, with an epoch announced.
    cdef nv_inode* pi = inode_at(c, ino)
    c.slot.evict_ino = ino
    seq_begin(h)
    if h.mode & S_IFMT == S_IFDIR:
        drop_table(c, h)
    else:
        release_pages(c, h, ino, 0, pi.delete_epoch_id)
    seq_end(h)
    fail_point(c, "inode.pages_released")
    if h.flags & INODE_IN_LIST or record_inode(
            c, ino, h.log_pages, pi.create_epoch_id, pi.delete_epoch_id):
        h.flags |= INODE_IN_LIST
        nv_fence_release()
        c.slot.evict_ino = 0
        c.slot.rel_state = 0
        c.slot.rel_ino = 0
    else:
        inode_destroy(c, ino)


cdef void drop_table(nv_ctx* c, nv_inode_header* h) noexcept nogil:
    cdef uint64_t cells = <uint64_t>1 << h.dir_log2 if h.dir_log2 else 0
    h.dir_log2 = 0
    if cells:
        index_prune(c, &h.index, 0)
    h.blocks = 0
    h.tombs = 0


# ---- applying entries ---------------------------------------------------------------------------

cdef void set_cells(nv_ctx* c, nv_inode_header* h) noexcept nogil:
    # The announced run's cells take their new words; idempotent.
    cdef nv_slot* s = c.slot
    cdef uint64_t i
    cdef uint64_t* cell
    for i in range(s.rel_pages):
        cell = index_cell(c, &h.index, s.rel_pgoff + i)
        if cell != NULL:
            nv_store64(cell, s.rel_new + (i << REF_BITS) if s.rel_new else 0)


cdef void supersede_run(nv_ctx* c, nv_inode_header* h, uint64_t ino, uint64_t pgoff, uint64_t n,
                        uint64_t old, uint64_t new, uint64_t gone,
                        uint64_t epoch_id) noexcept nogil:
    # INO-3: pages pgoff.. (n of them), words old.., become new.. (or nothing); blocks gone.. go.
    cdef nv_slot* s = c.slot
    cdef uint64_t entry_off = ref_off(old)
    cdef nv_write_entry* e = <nv_write_entry*>(c.pm + entry_off)
    release_fill(s, gone << 32 | n)
    s.rel_create_epoch = e.epoch_id
    s.rel_delete_epoch = epoch_id
    s.rel_file = ino
    s.rel_pgoff = pgoff
    s.rel_pages = n
    s.rel_new = new
    # Before the announcement, which a repairer goes on from: it does not know the entry.
    if e.dead_epoch_id < epoch_id:
        pm_store64(c, entry_off + 56, epoch_id)
    release_announce(s)
    set_cells(c, h)
    fail_point(c, "inode.cells_set")
    release_announced(c)
    pm_store32(c, entry_off + 48, e.invalid_pages + <uint32_t>n)
    if e.invalid_pages == e.num_pages:
        log_entry_dead(c, entry_off, epoch_id)
    s.rel_state = 0
    s.rel_pages = 0
    if new == 0:
        h.blocks -= <uint32_t>n


cdef void finish_release(nv_ctx* c) noexcept nogil:
    # Repair: the context acts as a dead process whose rel_* was announced.
    cdef nv_slot* s = c.slot
    if s.rel_state == 0:
        return
    if s.rel_pages:
        set_cells(c, header_of(c, s.rel_file))
    if s.rel_link_off and pm_word(c, s.rel_link_off) == (s.rel_extent >> 32) << BLOCK_SHIFT:
        s.rel_state = 0              # still linked: whoever continues will unlink it
        return
    if s.rel_state == 1:
        release_announced(c)
    if s.rel_ino and s.rel_state == 2:
        header_of(c, s.rel_ino).flags |= INODE_IN_LIST
    elif s.rel_ino and s.op == OP_CLEAN:
        s.evict_ino = s.rel_ino      # nothing needs the deleted inode any more
    if s.rel_undo:
        s.undo_off = s.rel_undo
    s.rel_state = 0
    s.rel_pages = 0


cdef void release_pages(nv_ctx* c, nv_inode_header* h, uint64_t ino, uint64_t first,
                        uint64_t epoch_id) noexcept nogil:
    # Truncation: everything from page `first` on is superseded in `epoch_id`.
    cdef uint64_t pos = index_next(c, &h.index, first, <uint64_t>-1)
    cdef uint64_t n, word
    cdef uint64_t* cell
    while pos != <uint64_t>-1:
        word = index_cell(c, &h.index, pos)[0]
        n = 1
        cell = index_cell(c, &h.index, pos + n)
        while cell != NULL and cell[0] == word + (n << REF_BITS):
            n += 1
            cell = index_cell(c, &h.index, pos + n)
        supersede_run(c, h, ino, pos, n, word, 0, word_block(word), epoch_id)
        pos = index_next(c, &h.index, pos + n, <uint64_t>-1)
    index_prune(c, &h.index, first)


cdef void apply_write(nv_ctx* c, nv_inode_header* h, uint64_t ino, uint64_t off) noexcept nogil:
    # Assign write entry: the pages' cells refer to it, what they referred to is released. Pages
    # that were preserved stay where they are, and the copies are released to the snapshots.
    cdef nv_write_entry* e = <nv_write_entry*>(c.pm + off)
    cdef uint64_t page = e.pgoff
    cdef uint64_t end = page + e.num_pages
    cdef uint64_t word = <uint64_t>e.block_nr << REF_BITS | make_ref(off)
    cdef uint64_t epoch_id = effective_epoch(c, h, ino, e.epoch_id)
    cdef uint64_t n, old, gone
    cdef uint64_t* cell
    while page < end:
        cell = index_cell(c, &h.index, page)
        old = cell[0]
        n = 1
        if old == 0:
            nv_store64(cell, word)
            h.blocks += 1
        elif old != word:
            while page + n < end:
                cell = index_cell(c, &h.index, page + n)
                if cell[0] != old + (n << REF_BITS):
                    break
                n += 1
            gone = word_block(old)
            if e.entry_type == ENTRY_MMAP_WRITE and gone == word_block(word):
                gone = (<nv_mmap_write_entry*>e).kept_block_nr + (page - e.pgoff)
            supersede_run(c, h, ino, page, n, old, word, gone, epoch_id)
        page += n
        word += n << REF_BITS
    if e.entry_type == ENTRY_MMAP_WRITE:
        h.preserved += 1
        return
    if e.size < h.size:
        # While rebuilding: the truncation of a mapped file came before, and was said again later.
        h.flags |= INODE_PAST_END
    h.size = e.size
    h.mtime_ns = e.mtime_ns
    h.ctime_ns = e.mtime_ns


cdef void apply_setattr(nv_ctx* c, nv_inode_header* h, uint64_t ino,
                        nv_setattr_entry* e) noexcept nogil:
    h.mode = e.mode
    if e.mode & S_IFMT != S_IFDIR:
        h.nlink = e.nlink
    elif h.nlink == 0:
        h.nlink = 2                  # subdirectories add to it, one dentry at a time
    h.uid = e.uid
    h.gid = e.gid
    h.mtime_ns = e.mtime_ns
    h.ctime_ns = e.ctime_ns
    h.atime_ns = e.atime_ns
    if e.mode & S_IFMT != S_IFDIR:
        if e.flags & ENTRY_FLAG_SIZE:
            h.flags &= ~<uint8_t>INODE_PAST_END
        elif e.size < h.size:
            h.flags |= INODE_PAST_END
        h.size = e.size
        if e.flags & ENTRY_FLAG_SIZE:
            release_pages(c, h, ino, (e.size + BLOCK_BYTES - 1) >> BLOCK_SHIFT,
                          effective_epoch(c, h, ino, e.epoch_id))


cdef void apply_dentry(nv_ctx* c, nv_inode_header* h, uint64_t off) noexcept nogil:
    cdef nv_dentry* d = dentry_at(c, off)
    cdef uint64_t gone
    if d.flags & ENTRY_FLAG_REMOVED:
        # The epoch first: garbage collection must know it as soon as the name is gone.
        gone = dir_lookup(c, h, <const char*>d.name, d.name_len)
        if gone:
            pm_store64(c, gone + 32, d.epoch_id)
            dir_remove(c, h, <const char*>d.name, d.name_len)
            log_entry_dead(c, gone, d.epoch_id)
    else:
        dir_add(c, h, off)
    h.mtime_ns = d.mtime_ns
    h.ctime_ns = d.mtime_ns


cdef int apply_prepare(nv_ctx* c, nv_inode_header* h, uint64_t off) noexcept nogil:
    # Rebuilding only: what operations reserve before they commit (INO-2).
    cdef nv_write_entry* w = <nv_write_entry*>(c.pm + off)
    if blocks_brought(w):
        if index_reserve(c, NULL, &h.index, w.pgoff, w.pgoff + w.num_pages - 1):
            return -ENOSPC
        return spare_reserve(c, w.num_pages)
    if w.entry_type == ENTRY_DENTRY and not w.flags & ENTRY_FLAG_REMOVED:
        return dir_reserve(c, h, 1)
    if w.entry_type == ENTRY_SETATTR and w.flags & ENTRY_FLAG_SIZE and c.hdr.snap_live:
        return spare_reserve(c, run_count(c, h, 0, <uint64_t>-1))
    return 0


cdef void reset_hints(nv_ctx* c, uint64_t off) noexcept nogil:
    # LAY-2: volatile fields are computed again while rebuilding. Stored only where they differ, so
    # that a mount does not dirty the whole log.
    cdef nv_entry_header* e = <nv_entry_header*>(c.pm + off)
    cdef nv_write_entry* w = <nv_write_entry*>e
    if blocks_brought(w):
        if w.invalid_pages:
            pm_store32(c, off + 48, 0)
        if w.dead_epoch_id:
            pm_store64(c, off + 56, 0)
    elif e.entry_type == ENTRY_DENTRY and not e.flags & ENTRY_FLAG_REMOVED:
        if (<nv_dentry*>e).aux_epoch_id:
            pm_store64(c, off + 32, 0)
    elif e.entry_type == ENTRY_XATTR and not e.flags & ENTRY_FLAG_REMOVED:
        if (<nv_xattr_entry*>e).aux_epoch_id:
            pm_store64(c, off + 24, 0)


cdef int apply_entries(nv_ctx* c, nv_inode_header* h, uint64_t ino, uint64_t first,
                       uint64_t tail) noexcept nogil:
    # Folds the entries in [first, tail) into the header. The caller made seq odd.
    cdef uint64_t pos = log_position(c, first, tail)
    cdef nv_entry_header* e
    while pos != tail:
        e = <nv_entry_header*>(c.pm + pos)
        if blocks_brought(<nv_write_entry*>e):
            apply_write(c, h, ino, pos)
        elif e.entry_type == ENTRY_DENTRY:
            apply_dentry(c, h, pos)
        elif e.entry_type == ENTRY_SETATTR:
            apply_setattr(c, h, ino, <nv_setattr_entry*>e)
        elif e.entry_type == ENTRY_LINK_CHANGE:
            if h.mode & S_IFMT != S_IFDIR:
                h.nlink = (<nv_link_change_entry*>e).nlink
            h.ctime_ns = (<nv_link_change_entry*>e).ctime_ns
        elif e.entry_type == ENTRY_XATTR:
            h.flags |= INODE_HAS_XATTR
            h.ctime_ns = (<nv_xattr_entry*>e).ctime_ns
        pos = log_position(c, pos + e.slots * LINE_BYTES, tail)
    h.log_tail_off = tail
    return 0


# ---- operations on logs -------------------------------------------------------------------------

cdef int inode_lock(nv_ctx* c, uint64_t ino, uint32_t generation,
                    nv_inode_header** header) noexcept nogil:
    # Locks an inode by number; -ESTALE if that life of it is over. Generation 0 admits any.
    cdef nv_inode_header* h = header_of(c, ino)
    cdef int rc
    if h == NULL:
        return -ESTALE
    rc = lock_take(c, &h.lock, rank_of(h, ino))
    if rc:
        return rc
    if h.mode == 0 or (generation and h.generation != generation):
        lock_drop(c, &h.lock)
        return -ESTALE
    header[0] = h
    return 0


cdef void tx_apply(nv_ctx* c, nv_inode_header* h, uint32_t nr) noexcept nogil:
    # After the commit: what was appended to log `nr` of the operation becomes visible.
    cdef nv_tx* t = &c.slot.tx[nr]
    seq_begin(h)
    apply_entries(c, h, t.ino, t.old_tail, t.cur_tail)
    seq_end(h)
    gc_wanted(c, h, t.ino)


cdef void tx_undo(nv_ctx* c) noexcept nogil:
    # Before the commit: the data blocks of everything that was appended are given back. What was
    # appended stays where it is, behind the tail, and will be overwritten.
    cdef nv_slot* s = c.slot
    cdef uint64_t pos
    cdef uint32_t i
    for i in range(s.ntx):
        if s.tx[i].cur_tail == s.tx[i].old_tail:
            continue                 # nothing appended, or undone by a repairer who died later
        pos = log_position(c, s.undo_off if s.undo_off else s.tx[i].old_tail, s.tx[i].cur_tail)
        while pos != s.tx[i].cur_tail:
            pos = undo_entry(c, pos, s.tx[i].cur_tail)
        s.tx[i].cur_tail = s.tx[i].old_tail
        nv_fence_release()
        s.undo_off = 0
    s.ntx = 0


# ---- rebuild ------------------------------------------------------------------------------------

cdef bint page_sane(nv_ctx* c, uint64_t page, uint64_t ino) noexcept nogil:
    if page & 4095 or page == 0 or page > c.a.pm_bytes - 2 * BLOCK_BYTES:
        return False
    return page_tail(c, page).magic == MAGIC_LOG_PAGE and page_tail(c, page).ino == ino


cdef int rebuild_page(nv_ctx* c, nv_inode_header* h, uint64_t ino, uint64_t page, uint64_t tail,
                      uint64_t* entries, uint64_t* last_epoch) noexcept nogil:
    # Checks and applies the entries of one log page up to `tail`.
    cdef uint64_t pos = page
    cdef uint64_t next_pos
    cdef nv_entry_header* e
    cdef uint32_t n = 0
    cdef uint64_t tail_off = page + LOG_TAIL_OFF
    if page_tail(c, page).invalid_entries:
        pm_store16(c, tail_off + 14, 0)
    if page_tail(c, page).dead_epoch_id:
        pm_store64(c, tail_off + 24, 0)
    while pos != tail and slot_of(pos) < 63:
        e = <nv_entry_header*>(c.pm + pos)
        if e.entry_type == 7:
            break
        if (slot_of(pos) + e.slots > 63 or not entry_valid(e) or e.epoch_id < last_epoch[0]):
            return -EUCLEAN
        last_epoch[0] = e.epoch_id
        reset_hints(c, pos)
        if apply_prepare(c, h, pos):
            return -ENOSPC
        next_pos = pos + e.slots * LINE_BYTES
        apply_entries(c, h, ino, pos, next_pos)
        pos = next_pos
        n += 1
    if page_tail(c, page).num_entries != n:
        pm_store16(c, tail_off + 12, <unsigned short>n)
    entries[0] += n
    return 0


cdef int rebuild(nv_ctx* c, nv_inode_header* h, uint64_t ino, uint64_t* entries) noexcept nogil:
    # One inode from its log, at mount. -EUCLEAN if the log cannot be right.
    cdef nv_inode* pi = inode_at(c, ino)
    cdef uint64_t page = pi.log_head_off
    cdef uint64_t tail = pi.log_tail_off
    cdef uint64_t last_epoch = 0
    cdef uint64_t limit = c.hdr.num_blocks
    cdef int rc
    if pi.csum != inode_csum(pi) or pi.ino != ino or not page_sane(c, page, ino):
        return -EUCLEAN
    header_init(h, pi.generation)
    h.mode = pi.mode
    if pi.mode & S_IFMT == S_IFDIR:
        h.nlink = 2
    if pi.delete_epoch_id:
        h.flags |= INODE_DEAD
    while True:
        h.log_pages += 1
        limit -= 1
        rc = rebuild_page(c, h, ino, page, tail, entries, &last_epoch)
        if rc:
            return rc
        # A tail at the very start of the next page does not occur: tails follow entries.
        if tail > page and tail <= page + LOG_TAIL_OFF:
            break
        page = page_tail(c, page).next_page_off
        if limit == 0 or not page_sane(c, page, ino):
            return -EUCLEAN
    if page_tail(c, page).next_page_off:
        pm_store64(c, page + LOG_TAIL_OFF, 0)
        pm_persist(c, page + LOG_TAIL_OFF, 8)
    h.gc_pages = h.log_pages * 2 if h.log_pages * 2 > GC_FIRST_PAGES else GC_FIRST_PAGES
    if pi.delete_epoch_id:
        h.nlink = 0
    seq_end(h)
    return 0

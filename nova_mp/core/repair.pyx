"""Repair of dead threads' slots."""

from libc.stdint cimport uint64_t
from nova_mp.core.alloc cimport (keep_drop, keep_settle, pend_done, region_repair, release_announce,
                                 release_fill)
from nova_mp.core.pages cimport dpend_repair, dram_free, page_bitmap, pages_repair, slab_repair
from nova_mp.core.arch cimport nv_fence_release, nv_load32, nv_store64
from nova_mp.core.dir cimport build_finish, dir_recount
from nova_mp.core.dram cimport (CELL_SNAPSHOT, CNT_REPAIRS, DRAM_PAGE, INODE_DEAD, LOCK_OWNER,
                                NV_FROZEN, OPEN_CELLS, OP_CLEAN, OP_NONE, OP_SNAPSHOT_CREATE,
                                INODE_IN_LIST, MAP_RECORDS, OP_SNAPSHOT_DELETE, SLOT_ACTIVE,
                                SLOT_FREE, count, cpu_at, nv_cpu, nv_inode_header, nv_slot,
                                nv_snapshot, nv_tx, slot_at)
from nova_mp.core.index cimport index_next, index_prune
from nova_mp.core.inode cimport (S_IFDIR, S_IFMT, blocks_brought, evict, evict_reserve,
                                 finish_release, inode_abandon, tx_undo)
from nova_mp.core.itable cimport (PI_LOG_HEAD, header_of, inode_at, inode_destroy, inode_off,
                                  inodes_repair)
from nova_mp.core.journal cimport journal_recover
from nova_mp.core.layout cimport (BLOCK_SHIFT, INODE_VALID, LINE_BYTES, SNAPSHOT_INO,
                                  nv_snapshot_info, nv_write_entry)
from nova_mp.core.log cimport log_position, page_of, page_tail
from nova_mp.core.file cimport map_forget
from nova_mp.core.mapping cimport recount_maps
from nova_mp.core.namei cimport handle_close, recount_opens, unlinked
from nova_mp.core.pmem cimport block_off, pm_persist, pm_word
from nova_mp.core.reclaim cimport gc_continue
from nova_mp.core.snaplist cimport list_repair, list_tail, spare_drop
from nova_mp.core.snapshot cimport snap_create_finish, snap_delete_finish
from nova_mp.core.snaptable cimport descriptor_bytes, snap_at, snap_find, table_repair
from nova_mp.core.stores cimport map_page, stores_release
from nova_mp.core.sync cimport (RANK_JOURNAL, RANK_REAP, RANK_SNAPSHOT, ctx_init, lock_drop,
                                lock_drop_all, lock_take, repair_lock_drop, repair_lock_take,
                                seq_end, slot_dead, slot_give_back)


# ---- A: leaf locks ------------------------------------------------------------------------------

cdef inline bint held(nv_ctx* d, uint32_t* word) noexcept nogil:
    return nv_load32(word) & LOCK_OWNER == d.id


cdef void repair_leaves(nv_ctx* d) noexcept nogil:
    # From the innermost outwards: each is in order before it is freed.
    cdef uint32_t i
    cdef nv_cpu* cpu
    if held(d, &d.hdr.snapshot_lock) and nv_load32(&d.hdr.snap_seq) & 1:
        table_repair(d)
    if held(d, &d.hdr.pages.lock):
        pages_repair(d)
        lock_drop(d, &d.hdr.pages.lock)
    for i in range(d.hdr.cpus):
        cpu = cpu_at(d, i)
        if held(d, &cpu.blocks.lock):
            region_repair(d, &cpu.blocks)
            lock_drop(d, &cpu.blocks.lock)
        if held(d, &cpu.slab_lock):
            slab_repair(d, i)
            lock_drop(d, &cpu.slab_lock)
        if held(d, &cpu.snap_lock):
            list_repair(d, i)
            lock_drop(d, &cpu.snap_lock)
        if held(d, &cpu.inode_lock):
            inodes_repair(d, i)
            lock_drop(d, &cpu.inode_lock)
        if held(d, &cpu.journal_lock):
            journal_recover(d, i)
            lock_drop(d, &cpu.journal_lock)


# ---- B: the operation ---------------------------------------------------------------------------

cdef bint appended(nv_ctx* d, uint64_t block) noexcept nogil:
    # Does an entry that the operation appended refer to the block?
    cdef nv_tx* t
    cdef nv_write_entry* e
    cdef uint64_t pos
    cdef uint32_t i
    for i in range(d.slot.ntx):
        t = &d.slot.tx[i]
        pos = log_position(d, t.old_tail, t.cur_tail)
        while pos != t.cur_tail:
            e = <nv_write_entry*>(d.pm + pos)
            if blocks_brought(e) == block:
                return True
            pos = log_position(d, pos + e.slots * LINE_BYTES, t.cur_tail)
    return False


cdef void repair_pending(nv_ctx* d) noexcept nogil:
    # Blocks that were taken and that nothing refers to go back.
    cdef nv_slot* s = d.slot
    cdef uint64_t block = s.pend_block
    cdef uint64_t n = s.pend_len
    if n == 0:
        return
    if s.pend_link_off:
        if pm_word(d, s.pend_link_off) == block_off(block):
            n = 0
    elif (s.gc_ino and s.gc_head == block_off(block)) or appended(d, block):
        n = 0
    if n and s.rel_state == 0:
        # Announced as released before it stops being pending: then a repairer after us, who finds
        # both, knows that it is the same extent.
        release_fill(s, block << 32 | n)
        release_announce(s)
        nv_fence_release()
    pend_done(d)


cdef bint committed(nv_ctx* d) noexcept nogil:
    # REP-1. Logs of one operation commit together, so the first one tells.
    cdef nv_tx* t = &d.slot.tx[0]
    if d.slot.ntx == 0 or t.ino == 0:
        return False
    return pm_word(d, inode_off(d, t.ino) + 24) != t.old_tail


cdef void repair_create(nv_ctx* d) noexcept nogil:
    # An inode that was being made: complete once its state word is set.
    cdef nv_slot* s = d.slot
    cdef uint64_t ino = s.new_ino
    if inode_at(d, ino).ino == ino and inode_at(d, ino).state == INODE_VALID:
        s.new_ino = 0
        return
    if s.ntx and s.tx[0].ino == ino and not committed(d):
        tx_undo(d)
    s.ntx = 0
    inode_abandon(d, ino)


cdef void repair_snapshot(nv_ctx* d) noexcept nogil:
    cdef nv_slot* s = d.slot
    cdef nv_snapshot* snapshot
    cdef uint64_t descriptor
    if s.op == OP_SNAPSHOT_CREATE:
        if committed(d):
            snap_create_finish(d)
        elif s.arg:
            # What is still pending goes once nothing refers to it: dpend_repair().
            descriptor = s.arg
            s.arg = 0
            if descriptor != s.dpend_off:
                dram_free(d, descriptor, descriptor_bytes(d))
        s.ntx = 0
    elif s.op == OP_SNAPSHOT_DELETE and s.arg:
        snapshot = <nv_snapshot*>(d.dram + s.arg)
        if (<nv_snapshot_info*>(d.pm + snapshot.info_off)).deleted:
            snap_delete_finish(d, s.arg)


cdef void persist_intent(nv_ctx* d) noexcept nogil:
    # REP-3. What the dead thread stored last decides what is done here, and with the blocks that
    # are freed for it. It may have died before it wrote that back, and nobody else would.
    cdef nv_slot* s = d.slot
    cdef uint32_t i
    for i in range(s.ntx):
        if s.tx[i].ino:
            pm_persist(d, inode_off(d, s.tx[i].ino), LINE_BYTES)
    if s.new_ino:
        pm_persist(d, inode_off(d, s.new_ino), LINE_BYTES)
    if s.evict_ino:
        pm_persist(d, inode_off(d, s.evict_ino), LINE_BYTES)
    if s.gc_ino:
        pm_persist(d, inode_off(d, s.gc_ino), LINE_BYTES)
    if s.pend_link_off:
        pm_persist(d, s.pend_link_off, 8)
    if s.op == OP_SNAPSHOT_DELETE and s.arg:
        pm_persist(d, (<nv_snapshot*>(d.dram + s.arg)).info_off, LINE_BYTES)


cdef void repair_operation(nv_ctx* d) noexcept nogil:
    cdef nv_slot* s = d.slot
    cdef bint cleaning = s.op == OP_CLEAN and s.arg and (s.rel_state or s.evict_ino)
    cdef nv_inode_header* h
    cdef uint32_t i
    if cleaning:
        list_tail(d, s.arg).padding = s.step
        nv_fence_release()
    persist_intent(d)
    repair_pending(d)
    finish_release(d)
    if s.gc_ino:
        gc_continue(d)
    if s.op == OP_SNAPSHOT_CREATE or s.op == OP_SNAPSHOT_DELETE:
        repair_snapshot(d)
    if s.new_ino and s.evict_ino == 0:
        repair_create(d)
    if committed(d):
        for i in range(s.ntx):
            # An inode that is being taken apart was applied before; pages of its log may have been
            # freed since, and hold somebody else's by now.
            if s.tx[i].ino and s.tx[i].ino != s.evict_ino:
                unlinked(d, header_of(d, s.tx[i].ino), s.tx[i].ino, i)
    else:
        tx_undo(d)
    if s.evict_ino:
        h = header_of(d, s.evict_ino)
        if inode_at(d, s.evict_ino).state == INODE_VALID and not cleaning:
            evict(d, h, s.evict_ino)
        else:
            inode_destroy(d, s.evict_ino)


cdef void recount(nv_ctx* d, nv_inode_header* h, uint64_t ino) noexcept nogil:
    # Counters of an inode that was locked when its holder died.
    cdef uint64_t pos, page
    if h.mode & S_IFMT == S_IFDIR:
        dir_recount(d, h)
        if h.flags & INODE_DEAD:
            h.nlink = 0
    else:
        h.blocks = 0
        pos = index_next(d, &h.index, 0, <uint64_t>-1)
        while pos != <uint64_t>-1:
            h.blocks += 1
            pos = index_next(d, &h.index, pos + 1, <uint64_t>-1)
    h.log_pages = 1
    page = inode_at(d, ino).log_head_off
    while page != page_of(h.log_tail_off - 1) and page:
        h.log_pages += 1
        page = page_tail(d, page).next_page_off
    recount_opens(d, h, ino)
    recount_maps(d, h, ino)


cdef uint64_t ino_of_lock(nv_ctx* d, uint64_t lock_off) noexcept nogil:
    # Inode number of a header's lock word, 0 if it is another kind of lock. Headers are found by
    # their chunk: its descriptor, at the chunk's start, names table and number.
    cdef uint64_t ino, table, chunk, off
    for table in range(128):
        chunk = 0
        while True:
            off = chunk_dram(d, table, chunk)
            if off == 0:
                break
            if lock_off >= off and lock_off < off + 65536:
                ino = chunk << 16 | table << 9 | (lock_off - off) >> 7
                return ino
            chunk += 1
    return 0


cdef inline uint64_t chunk_dram(nv_ctx* d, uint64_t table, uint64_t chunk) noexcept nogil:
    cdef nv_inode_header* h = header_of(d, chunk << 16 | table << 9 | 1)
    return <uint64_t>(<char*>h - <char*>d.dram) - 128 if h != NULL else 0


cdef void evict_forgotten(nv_ctx* d, nv_inode_header* h, uint64_t ino) noexcept nogil:
    # The dead thread closed a deleted file for the last time, and got no further.
    if (h.flags & INODE_DEAD and h.opens == 0 and not h.flags & INODE_IN_LIST
            and evict_reserve(d, h) == 0):
        evict(d, h, ino)


cdef void recount_views(nv_ctx* d) noexcept nogil:
    # The holder of the snapshot lock died: how many views each snapshot has, from all cells.
    cdef nv_snapshot* s
    cdef uint64_t page
    cdef uint64_t* cells
    cdef uint32_t i, k
    for i in range(d.hdr.snap_count):
        if snap_at(d, i) != NULL:
            snap_at(d, i).opens = 0
    for i in range(d.hdr.slot_high):
        page = 0
        if slot_at(d, i).state != SLOT_FREE and slot_at(d, i).parent == 0:
            page = slot_at(d, i).open_head
        while page:
            cells = <uint64_t*>(d.dram + page)
            for k in range(OPEN_CELLS):
                if cells[k] & <uint64_t>CELL_SNAPSHOT:
                    s = snap_find(d, cells[k] & ~<uint64_t>CELL_SNAPSHOT)
                    if s != NULL:
                        s.opens += 1
            page = cells[OPEN_CELLS]


cdef void free_inode_locks(nv_ctx* d) noexcept nogil:
    cdef nv_slot* s = d.slot
    cdef uint32_t* word
    cdef uint64_t ino
    while s.nlocks:
        word = <uint32_t*>(d.dram + s.locks[s.nlocks - 1])
        if not held(d, word):
            s.nlocks -= 1
            continue
        ino = ino_of_lock(d, s.locks[s.nlocks - 1])
        if ino and (<nv_inode_header*>word).mode:
            recount(d, <nv_inode_header*>word, ino)
            evict_forgotten(d, <nv_inode_header*>word, ino)
        if word == &d.hdr.snapshot_lock:
            recount_views(d)
        if ino and nv_load32(&(<nv_inode_header*>word).seq) & 1:
            seq_end(<nv_inode_header*>word)
        lock_drop(d, word)


cdef int repair_slot(nv_ctx* c, uint32_t owner) noexcept nogil:
    # Frees the locks of a dead thread. A caller that holds leaf locks gets phase A only, which is
    # enough to free the leaf lock that it waits for.
    cdef nv_ctx d
    cdef uint32_t n = c.slot.nlocks
    # The last of the locks is the one that is waited for, unless it is held and the caller waits
    # for something else (lookup() for the table of snapshots).
    cdef bint leaves_only = c.in_repair or (
        n >= 2 and c.ranks[n - 2] >= <uint64_t>RANK_JOURNAL) or (
        n >= 1 and c.ranks[n - 1] >= <uint64_t>RANK_JOURNAL
        and held(c, <uint32_t*>(c.dram + c.slot.locks[n - 1])))
    if not c.in_repair and repair_lock_take(c, not leaves_only):
        return 0
    if slot_dead(slot_at(c, owner - 1)) and slot_at(c, owner - 1).state & 3 == SLOT_ACTIVE:
        ctx_init(&d, c.a, owner - 1)
        d.epoch_id = d.slot.epoch_id
        d.in_repair = 1
        d.privileged = 1
        repair_leaves(&d)
        if not leaves_only:
            keep_settle(d.slot)
        if not leaves_only and (d.slot.nlocks or d.slot.epoch_id or d.slot.pend_len
                                or d.slot.dpend_off):
            repair_operation(&d)
            dpend_repair(&d)
            if d.slot.build_phase:
                build_finish(&d)
            stores_release(&d)
            # Once a lock is free others write there: a repairer after us, if we die in this, must
            # not find the transaction any more.
            d.slot.ntx = 0
            nv_fence_release()
            free_inode_locks(&d)
            spare_drop(&d)
            d.slot.op = OP_NONE
            d.slot.arg = 0
            d.slot.undo_off = 0
            nv_store64(&d.slot.epoch_id, 0)
            count(c, CNT_REPAIRS, 1)
        if not leaves_only and d.slot.keep_block | d.slot.rel_state:
            finish_release(&d)       # it died between operations, giving the block back
            keep_drop(&d)
    if not c.in_repair:
        repair_lock_drop(c)
    return 0


# ---- C: the process -----------------------------------------------------------------------------

cdef int close_cell(nv_ctx* c, uint64_t* cell) noexcept nogil:
    cdef nv_snapshot* s
    if not cell[0] & <uint64_t>CELL_SNAPSHOT:
        return handle_close(c, cell)
    lock_take(c, &c.hdr.snapshot_lock, RANK_SNAPSHOT)
    s = snap_find(c, cell[0] & ~<uint64_t>CELL_SNAPSHOT)
    if s != NULL and s.opens:
        s.opens -= 1
    cell[0] = 0
    lock_drop(c, &c.hdr.snapshot_lock)
    return 0


cdef int close_table(nv_ctx* c, nv_slot* s) noexcept nogil:
    cdef uint64_t page = s.open_head
    cdef uint64_t* cells
    cdef uint32_t k
    cdef int rc
    while page:
        cells = <uint64_t*>(c.dram + page)
        for k in range(OPEN_CELLS):
            if cells[k]:
                rc = close_cell(c, &cells[k])
                if rc:
                    return rc
        s.open_head = cells[OPEN_CELLS]
        dram_free(c, page, DRAM_PAGE)
        page = s.open_head
    return 0


cdef int close_maps(nv_ctx* c, nv_slot* s) noexcept nogil:
    # What a dead process had mapped. Its memory is gone, only the records are left.
    cdef uint64_t page
    cdef uint32_t k
    cdef int rc = 0
    while s.map_head and rc == 0:
        page = s.map_head
        for k in range(MAP_RECORDS):
            if map_page(c, page).maps[k].ino and rc == 0:
                rc = map_forget(c, &map_page(c, page).maps[k])
        if rc == 0:
            # Whoever holds stores back reads the tables under this lock.
            lock_take(c, &c.hdr.snapshot_lock, RANK_SNAPSHOT)
            s.map_head = map_page(c, page).next_off
            lock_drop(c, &c.hdr.snapshot_lock)
            dram_free(c, page, DRAM_PAGE)
    return rc


cdef int reap_slot(nv_ctx* c, uint32_t nr) noexcept nogil:
    # For a caller that holds no locks. 1: freed a dead slot; 0: it lives; NV_FROZEN: try again
    # later. The reaper closes in its own name: the dead slot holds no locks any more, and others
    # would take locks held in its name for a dead man's.
    cdef nv_slot* s = slot_at(c, nr)
    cdef uint64_t page
    cdef int rc = 0
    if s == c.slot or not slot_dead(s):
        return 0
    if s.state & 3 == SLOT_ACTIVE:
        repair_slot(c, nr + 1)
    lock_take(c, &c.hdr.reap_lock, RANK_REAP)
    if slot_dead(s):
        if s.state & 3 == SLOT_ACTIVE:
            rc = close_maps(c, s)
            if rc == 0:
                rc = close_table(c, s)
            if s.keep_block:
                rc = NV_FROZEN       # whoever repairs it just now goes on
            while rc == 0 and s.spare_head:
                page = s.spare_head
                s.spare_head = list_tail(c, page).next_page_off
                dram_free(c, page, DRAM_PAGE)
        # Under the lock of repairers: one that found the thread dead must not meet its successor.
        if rc == 0 and repair_lock_take(c, True) == 0:
            if slot_dead(s) and s.nlocks == 0 and s.epoch_id == 0:
                slot_give_back(c, s)
                rc = 1
            repair_lock_drop(c)
    lock_drop(c, &c.hdr.reap_lock)
    return rc

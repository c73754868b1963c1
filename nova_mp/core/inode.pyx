"""Inode tables, applying entries to DRAM, rebuilding and taking inodes apart."""

from libc.errno cimport ENOSPC
from libc.string cimport memset
from nova_mp.core.alloc cimport (blocks_alloc_run, blocks_free, blocks_free_announced, dpend_done,
                                 dram_alloc, pend_done)
from nova_mp.core.arch cimport (nv_check, nv_crc32c, nv_ctz64, nv_fence_release, nv_file_time_ns,
                                nv_popcount64, nv_store64)
from nova_mp.core.dir cimport dentry_at, dir_add, dir_lookup, dir_remove, dir_reserve
from nova_mp.core.dram cimport (INODE_HAS_XATTR, INODE_IN_LIST, cpu_at, dram_off, nv_cpu, nv_slot,
                                nv_table, nv_tx)
from nova_mp.core.index cimport (REF_BITS, index_cell, index_next, index_prune, index_reserve,
                                 make_ref, ref_off, word_block)
from nova_mp.core.layout cimport (BLOCK_BYTES, BLOCK_SHIFT, CHUNK_BLOCKS, ENTRY_DENTRY,
                                  ENTRY_FLAG_REMOVED, ENTRY_FLAG_SIZE, ENTRY_LINK_CHANGE,
                                  ENTRY_SETATTR, ENTRY_WRITE, ENTRY_XATTR, FIRST_FREE_INO,
                                  INODE_FREE, INODE_VALID, LINE_BYTES, LOG_TAIL_OFF, MAGIC_CHUNK,
                                  MAGIC_LOG_PAGE, MAX_CHUNKS, nv_chunk_header, nv_dentry,
                                  nv_entry_header, nv_link_change_entry, nv_log_page_tail,
                                  nv_setattr_entry, nv_write_entry, nv_xattr_entry)
from nova_mp.core.log cimport (entry_valid, log_entry_dead, log_first_page, log_position,
                               log_write_entry, page_tail, slot_of)
from nova_mp.core.pmem cimport (block_off, fail_point, pm_copy, pm_flush, pm_persist, pm_store16,
                                pm_store32, pm_store64, pm_word, pm_zero)
from nova_mp.core.snapshot cimport record_inode, release_announced, release_blocks, spare_reserve
from nova_mp.core.sync cimport RANK_INODES, lock_drop, lock_take, seq_begin, seq_end

cdef extern from "<errno.h>":
    enum: EUCLEAN
    enum: ESTALE


# ---- inode tables -------------------------------------------------------------------------------

cdef int chunk_attach(nv_ctx* c, uint32_t table, uint32_t chunk, uint64_t pmem_off) noexcept nogil:
    # Headers for a chunk that is in PMEM.
    cdef nv_table* t = table_at(c, table)
    cdef nv_chunk* d
    cdef uint64_t off
    cdef int rc = index_reserve(c, NULL, &t.chunks, chunk, chunk)
    if rc:
        return rc
    off = dram_alloc(c, CHUNK_SLOTS * INODE_BYTES, dram_off(c, index_cell(c, &t.chunks, chunk)))
    if off == 0:
        return -ENOSPC
    d = <nv_chunk*>(c.dram + off)
    d.pmem_off = pmem_off
    d.table = table
    d.chunk = chunk
    d.bitmap[0] = 1                  # slot 0 is the header
    if table == 0 and chunk == 0:
        d.bitmap[0] = (<uint64_t>1 << FIRST_FREE_INO) - 1
    nv_store64(index_cell(c, &t.chunks, chunk), off)
    dpend_done(c)
    t.num_chunks = chunk + 1
    t.last_link_off = pmem_off + 16
    return 0


cdef void chunk_format(nv_ctx* c, uint64_t pmem_off, uint32_t table, uint32_t chunk) noexcept nogil:
    # An empty chunk, persistent, not linked yet.
    cdef nv_chunk_header header
    memset(&header, 0, sizeof(header))
    header.magic = MAGIC_CHUNK
    header.table = table
    header.chunk = chunk
    header.csum = ~nv_crc32c(nv_crc32c(0xFFFFFFFF, &header.magic, 4), &header.table, 8)
    pm_zero(c, pmem_off, CHUNK_BLOCKS * BLOCK_BYTES)
    pm_copy(c, pmem_off, &header, sizeof(header))
    pm_persist(c, pmem_off, sizeof(header))


cdef int chunk_add(nv_ctx* c, uint32_t table) noexcept nogil:
    # Under the CPU's inode_lock: one more chunk for a table.
    cdef nv_table* t = table_at(c, table)
    cdef uint32_t chunk = t.num_chunks
    cdef uint64_t link_off = t.last_link_off
    cdef uint64_t block
    cdef int rc
    if chunk >= MAX_CHUNKS:
        return -ENOSPC
    block = blocks_alloc_run(c, CHUNK_BLOCKS, link_off)
    if block == 0:
        return -ENOSPC
    chunk_format(c, block_off(block), table, chunk)
    rc = chunk_attach(c, table, chunk, block_off(block))
    if rc:
        pend_done(c)
        blocks_free(c, block, CHUNK_BLOCKS)
        return rc
    pm_store64(c, link_off, block_off(block))
    pm_persist(c, link_off, 8)
    pend_done(c)
    return 0


cdef int find_slot(nv_ctx* c, uint32_t table, uint64_t* ino) noexcept nogil:
    cdef nv_table* t = table_at(c, table)
    cdef nv_chunk* d
    cdef uint32_t k
    cdef int i
    while True:
        for k in range(t.free_hint, t.num_chunks):
            d = <nv_chunk*>(c.dram + chunk_off_of(c, <uint64_t>k << INO_CHUNK_SHIFT
                                                  | <uint64_t>table << INO_SLOT_BITS))
            for i in range(8):
                if ~d.bitmap[i]:
                    t.free_hint = k
                    ino[0] = (<uint64_t>k << INO_CHUNK_SHIFT | <uint64_t>table << INO_SLOT_BITS
                              | <uint64_t>(i * 64 + nv_ctz64(~d.bitmap[i])))
                    return 0
        t.free_hint = t.num_chunks
        if chunk_add(c, table):
            return -ENOSPC


cdef uint64_t inodes_used(nv_ctx* c) noexcept nogil:
    cdef uint64_t n = 0
    cdef uint32_t i
    for i in range(c.hdr.cpus):
        n += cpu_at(c, i).inodes_used
    return n


cdef int slot_alloc(nv_ctx* c, uint64_t* ino) noexcept nogil:
    # The CPU's own table; when that finds no room for a chunk, the other tables of the CPU.
    cdef nv_cpu* cpu = cpu_at(c, c.cpu)
    cdef nv_chunk* d
    cdef uint32_t table = c.cpu
    cdef uint64_t bit
    cdef int rc
    cdef int nowait = c.nowait
    if c.hdr.inode_limit and inodes_used(c) >= c.hdr.inode_limit:
        return -ENOSPC
    c.nowait = 0
    lock_take(c, &cpu.inode_lock, RANK_INODES)
    c.nowait = nowait
    rc = find_slot(c, table, ino)
    while rc and table + c.hdr.cpus < MAX_CPUS:
        table += c.hdr.cpus
        if table_at(c, table).num_chunks:
            rc = find_slot(c, table, ino)
    if rc == 0:
        d = <nv_chunk*>(c.dram + chunk_off_of(c, ino[0]))
        bit = ino[0] & (CHUNK_SLOTS - 1)
        c.slot.new_ino = ino[0]
        nv_fence_release()
        d.bitmap[bit >> 6] |= <uint64_t>1 << (bit & 63)
        cpu.inodes_used += 1
    lock_drop(c, &cpu.inode_lock)
    return rc


cdef void slot_free(nv_ctx* c, uint64_t ino) noexcept nogil:
    # The last step of destroying (INO-4): the intent ends under the lock that guards the bit.
    cdef uint32_t table = <uint32_t>((ino >> INO_SLOT_BITS) & (MAX_CPUS - 1))
    cdef nv_cpu* cpu = cpu_at(c, table % c.hdr.cpus)
    cdef nv_chunk* d = <nv_chunk*>(c.dram + chunk_off_of(c, ino))
    cdef uint64_t bit = ino & (CHUNK_SLOTS - 1)
    cdef uint32_t i
    cdef int nowait = c.nowait
    if c.a.rebuild:
        c.slot.evict_ino = 0
        return
    c.nowait = 0
    lock_take(c, &cpu.inode_lock, RANK_INODES)
    c.nowait = nowait
    nv_check((d.bitmap[bit >> 6] >> (bit & 63)) & 1, "freeing a free inode", <long>ino)
    d.bitmap[bit >> 6] &= ~(<uint64_t>1 << (bit & 63))
    cpu.inodes_used -= 1
    if d.chunk < table_at(c, table).free_hint:
        table_at(c, table).free_hint = d.chunk
    # The slot may be somebody else's as soon as the lock is gone: nothing of ours may refer to it.
    for i in range(c.slot.ntx):
        if c.slot.tx[i].ino == ino:
            c.slot.tx[i].ino = 0
    c.slot.evict_ino = 0
    c.slot.new_ino = 0
    lock_drop(c, &cpu.inode_lock)


cdef void inodes_repair(nv_ctx* c, uint32_t cpu_nr) noexcept nogil:
    # The context acts as the dead owner of the CPU's inode_lock: finish setting or clearing the bit
    # that was under way, count again.
    cdef nv_slot* s = c.slot
    cdef nv_chunk* d
    cdef uint64_t used = 0
    cdef uint32_t table = cpu_nr
    cdef uint64_t chunk, bit
    cdef int i
    if s.new_ino and s.evict_ino == 0:
        d = <nv_chunk*>(c.dram + chunk_off_of(c, s.new_ino))
        bit = s.new_ino & (CHUNK_SLOTS - 1)
        d.bitmap[bit >> 6] |= <uint64_t>1 << (bit & 63)
    while table < MAX_CPUS:
        for chunk in range(table_at(c, table).num_chunks):
            d = <nv_chunk*>(c.dram + chunk_off_of(c, chunk << INO_CHUNK_SHIFT
                                                  | <uint64_t>table << INO_SLOT_BITS))
            if s.pend_len == CHUNK_BLOCKS and d.pmem_off == block_off(s.pend_block):
                # In DRAM already, so it is finished rather than undone.
                pm_store64(c, s.pend_link_off, d.pmem_off)
                pm_persist(c, s.pend_link_off, 8)
            for i in range(8):
                used += nv_popcount64(d.bitmap[i])
            used -= 1
        if table_at(c, table).num_chunks and table == 0:
            used -= FIRST_FREE_INO - 1
        table_at(c, table).free_hint = 0
        table += c.hdr.cpus
    cpu_at(c, cpu_nr).inodes_used = used


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


cdef void inode_abandon(nv_ctx* c, uint64_t ino) noexcept nogil:
    # An inode that never became valid: its log's data blocks, its log pages, its slot.
    cdef uint64_t off = inode_off(c, ino)
    cdef nv_inode* pi = <nv_inode*>(c.pm + off)
    cdef nv_write_entry* e
    cdef uint64_t pos
    if pi.log_head_off and pi.log_tail_off:
        pos = log_position(c, pi.log_head_off, pi.log_tail_off)
        while pos != pi.log_tail_off:
            e = <nv_write_entry*>(c.pm + pos)
            if e.entry_type == ENTRY_WRITE:
                if c.slot.pend_len and c.slot.pend_block == e.block_nr:
                    pend_done(c)
                blocks_free(c, e.block_nr, e.num_pages)
            pos = log_position(c, pos + e.slots * LINE_BYTES, pi.log_tail_off)
        pm_store64(c, off + PI_LOG_TAIL, 0)
    inode_destroy(c, ino)


# ---- taking inodes apart ------------------------------------------------------------------------

cdef void unlink_block(nv_ctx* c, uint64_t link_off, uint64_t page_off,
                       uint64_t next_off) noexcept nogil:
    # Takes a log page out of its chain (the word at link_off refers to it) and frees it.
    cdef nv_slot* s = c.slot
    s.rel_extent = (page_off >> BLOCK_SHIFT) << 32 | 1
    s.rel_link_off = link_off
    s.rel_undo = 0
    s.rel_ino = 0
    s.rel_pages = 0
    s.rel_create_epoch = 0
    s.rel_delete_epoch = 0
    nv_fence_release()
    s.rel_state = 1
    pm_store64(c, link_off, next_off)
    pm_persist(c, link_off, 8)
    fail_point(c, "log.page_unlinked")
    blocks_free_announced(c)
    s.rel_state = 0


cdef void inode_destroy(nv_ctx* c, uint64_t ino) noexcept nogil:
    # INO-4. Idempotent up to the last step; the caller has announced evict_ino or new_ino.
    cdef nv_inode_header* h = header_of(c, ino)
    cdef uint64_t off = inode_off(c, ino)
    cdef uint64_t page
    pm_store64(c, off + PI_STATE, INODE_FREE)
    pm_persist(c, off, 8)
    fail_point(c, "inode.state_freed")
    seq_begin(h)
    h.mode = 0
    h.flags = 0
    seq_end(h)
    page = 0 if c.a.rebuild else pm_word(c, off + PI_LOG_HEAD)
    while page:
        unlink_block(c, off + PI_LOG_HEAD, page, page_tail(c, page).next_page_off)
        page = pm_word(c, off + PI_LOG_HEAD)
    slot_free(c, ino)


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
    if h.flags & INODE_IN_LIST or record_inode(c, ino, pi.create_epoch_id, pi.delete_epoch_id):
        h.flags |= INODE_IN_LIST
        c.slot.evict_ino = 0
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
                        uint64_t old, uint64_t new, uint64_t epoch_id) noexcept nogil:
    # INO-3: pages pgoff.. (n of them), words old.., become new.. (or nothing); their blocks go.
    cdef nv_slot* s = c.slot
    cdef uint64_t entry_off = ref_off(old)
    cdef nv_write_entry* e = <nv_write_entry*>(c.pm + entry_off)
    s.rel_extent = word_block(old) << 32 | n
    s.rel_create_epoch = e.epoch_id
    s.rel_delete_epoch = epoch_id
    s.rel_ino = 0
    s.rel_link_off = 0
    s.rel_undo = 0
    s.rel_file = ino
    s.rel_pgoff = pgoff
    s.rel_pages = n
    s.rel_new = new
    nv_fence_release()
    s.rel_state = 1
    if e.dead_epoch_id < epoch_id:
        pm_store64(c, entry_off + 56, epoch_id)
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
        supersede_run(c, h, ino, pos, n, word, 0, epoch_id)
        pos = index_next(c, &h.index, pos + n, <uint64_t>-1)
    index_prune(c, &h.index, first)


cdef void apply_write(nv_ctx* c, nv_inode_header* h, uint64_t ino, uint64_t off) noexcept nogil:
    # Assign write entry: the pages' cells refer to it, what they referred to is released.
    cdef nv_write_entry* e = <nv_write_entry*>(c.pm + off)
    cdef uint64_t page = e.pgoff
    cdef uint64_t end = page + e.num_pages
    cdef uint64_t word = <uint64_t>e.block_nr << REF_BITS | make_ref(off)
    cdef uint64_t epoch_id = effective_epoch(c, h, ino, e.epoch_id)
    cdef uint64_t n, old
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
            supersede_run(c, h, ino, page, n, old, word, epoch_id)
        page += n
        word += n << REF_BITS
    h.size = e.size
    h.mtime_ns = e.mtime_ns
    h.ctime_ns = e.mtime_ns


cdef void apply_setattr(nv_ctx* c, nv_inode_header* h, uint64_t ino,
                        nv_setattr_entry* e) noexcept nogil:
    h.mode = e.mode
    if e.mode & S_IFMT != S_IFDIR or h.nlink == 0:
        h.nlink = e.nlink
    h.uid = e.uid
    h.gid = e.gid
    h.mtime_ns = e.mtime_ns
    h.ctime_ns = e.ctime_ns
    h.atime_ns = e.atime_ns
    if e.mode & S_IFMT != S_IFDIR:
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
    if w.entry_type == ENTRY_WRITE:
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
    if e.entry_type == ENTRY_WRITE:
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
        if e.entry_type == ENTRY_WRITE:
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
    cdef nv_write_entry* e
    cdef uint64_t pos, next_pos
    cdef uint32_t i
    for i in range(s.ntx):
        pos = log_position(c, s.undo_off if s.undo_off else s.tx[i].old_tail, s.tx[i].cur_tail)
        while pos != s.tx[i].cur_tail:
            e = <nv_write_entry*>(c.pm + pos)
            next_pos = log_position(c, pos + e.slots * LINE_BYTES, s.tx[i].cur_tail)
            if e.entry_type == ENTRY_WRITE:
                if s.pend_len and s.pend_block == e.block_nr:
                    pend_done(c)
                s.rel_extent = <uint64_t>e.block_nr << 32 | e.num_pages
                s.rel_link_off = 0
                s.rel_ino = 0
                s.rel_pages = 0
                s.rel_undo = next_pos
                nv_fence_release()
                s.rel_state = 1
                blocks_free_announced(c)
            s.undo_off = next_pos
            s.rel_state = 0
            pos = next_pos
        s.undo_off = 0
        s.tx[i].cur_tail = s.tx[i].old_tail
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

"""Inode tables: chunks of slots, taking and freeing slots."""

from libc.errno cimport ENOSPC
from libc.string cimport memset
from nova_mp.core.alloc cimport (blocks_alloc_run, blocks_free, blocks_free_announced, pend_done,
                                 release_announce, release_fill)
from nova_mp.core.pages cimport dpend_done, dram_alloc
from nova_mp.core.arch cimport (nv_check, nv_crc32c, nv_ctz64, nv_fence_release, nv_popcount64,
                                nv_store64)
from nova_mp.core.dram cimport CNT_STEALS, count, cpu_at, dram_off, nv_cpu, nv_slot, nv_table
from nova_mp.core.index cimport index_cell, index_reserve
from nova_mp.core.layout cimport (BLOCK_BYTES, BLOCK_SHIFT, CHUNK_BLOCKS, FIRST_FREE_INO,
                                  INODE_FREE, MAGIC_CHUNK, MAX_CHUNKS, nv_chunk_header)
from nova_mp.core.log cimport page_tail
from nova_mp.core.pmem cimport (block_off, fail_point, pm_copy, pm_persist, pm_store64, pm_word,
                                pm_zero)
from nova_mp.core.sync cimport RANK_INODES, lock_drop, lock_take, seq_begin, seq_end


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


cdef int find_slot(nv_ctx* c, uint32_t table, bint grow, uint64_t* ino) noexcept nogil:
    # A free slot of one table, which gets another chunk if it has none and may grow.
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
        if not grow or chunk_add(c, table):
            return -ENOSPC


cdef uint64_t inodes_used(nv_ctx* c) noexcept nogil:
    cdef uint64_t n = 0
    cdef uint32_t i
    for i in range(c.hdr.cpus):
        n += cpu_at(c, i).inodes_used
    return n


cdef int slot_take_from(nv_ctx* c, uint32_t cpu_nr, uint64_t* ino) noexcept nogil:
    # A slot of a CPU's first table; when that finds no room for a chunk, of its other tables. Those
    # of another CPU do not grow for us.
    cdef nv_cpu* cpu = cpu_at(c, cpu_nr)
    cdef nv_chunk* d
    cdef uint32_t table = cpu_nr
    cdef uint64_t bit
    cdef int rc
    cdef bint grow = cpu_nr == c.cpu
    cdef int nowait = c.nowait
    c.nowait = 0
    lock_take(c, &cpu.inode_lock, RANK_INODES)
    c.nowait = nowait
    rc = find_slot(c, table, grow, ino)
    while rc and table + c.hdr.cpus < MAX_CPUS:
        table += c.hdr.cpus
        if table_at(c, table).num_chunks:
            rc = find_slot(c, table, grow, ino)
    if rc == 0:
        d = <nv_chunk*>(c.dram + chunk_off_of(c, ino[0]))
        bit = ino[0] & (CHUNK_SLOTS - 1)
        if pm_word(c, inode_off(c, ino[0]) + PI_LOG_HEAD):
            # Of the inode that was here before: its log is somebody else's by now, and whoever
            # finds us dead before the new inode is written looks here.
            pm_store64(c, inode_off(c, ino[0]) + PI_LOG_HEAD, 0)
        nv_fence_release()
        c.slot.new_ino = ino[0]
        nv_fence_release()
        d.bitmap[bit >> 6] |= <uint64_t>1 << (bit & 63)
        cpu.inodes_used += 1
    lock_drop(c, &cpu.inode_lock)
    return rc


cdef int slot_alloc(nv_ctx* c, uint64_t* ino) noexcept nogil:
    # The CPU's own; when there is no room for a chunk any more, one that another CPU has left.
    cdef uint32_t i
    cdef int rc
    if c.hdr.inode_limit and inodes_used(c) >= c.hdr.inode_limit:
        return -ENOSPC
    rc = slot_take_from(c, c.cpu, ino)
    for i in range(1, c.hdr.cpus):
        if rc == 0:
            break
        rc = slot_take_from(c, (c.cpu + i) % c.hdr.cpus, ino)
        if rc == 0:
            count(c, CNT_STEALS, 1)
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
    fail_point(c, "inode.slot_freed")
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
    # Taking a slot is finished; freeing one begins again, the intent ends with it.
    cdef uint64_t ino = s.evict_ino if s.evict_ino else s.new_ino
    if ino:
        d = <nv_chunk*>(c.dram + chunk_off_of(c, ino))
        bit = ino & (CHUNK_SLOTS - 1)
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
            table_at(c, table).last_link_off = d.pmem_off + 16
        if table_at(c, table).num_chunks and table == 0:
            used -= FIRST_FREE_INO - 1
        table_at(c, table).free_hint = 0
        table += c.hdr.cpus
    cpu_at(c, cpu_nr).inodes_used = used


cdef void unlink_block(nv_ctx* c, uint64_t link_off, uint64_t page_off,
                       uint64_t next_off) noexcept nogil:
    # Takes a log page out of its chain (the word at link_off refers to it) and frees it.
    cdef nv_slot* s = c.slot
    release_fill(s, (page_off >> BLOCK_SHIFT) << 32 | 1)
    s.rel_link_off = link_off
    release_announce(s)
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

"""Snapshot lists across a clean restart."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset
from nova_mp.core.alloc cimport blocks_alloc, pend_done
from nova_mp.core.pages cimport dram_free
from nova_mp.core.arch cimport nv_crc32c
from nova_mp.core.dram cimport DRAM_PAGE, cpu_at, nv_list_head, nv_snapshot
from nova_mp.core.layout cimport (BLOCK_BYTES, DATA_NR, LIST_ENTRIES, LOG_TAIL_OFF, MAGIC_LIST_PAGE,
                                  MAX_CPUS, nv_list_entry, nv_list_page_tail, nv_snapshot_nvmm_list)
from nova_mp.core.pmem cimport block_off, pm_copy, pm_flush, pm_persist, pm_store64
from nova_mp.core.snaplist cimport list_append, list_entries, list_tail, spare_drop, spare_reserve
from nova_mp.core.snaptable cimport list_of, snap_at

cdef enum:
    NVMM_PAGE = 32                   # offset of nvmm_page_off in an info entry


cdef uint32_t head_csum(const nv_snapshot_nvmm_list* head) noexcept nogil:
    return ~nv_crc32c(0xFFFFFFFF, head, 24)


cdef uint64_t page_new(nv_ctx* c) noexcept nogil:
    # A block for good: the DRAM that knows of it is dropped right after saving.
    cdef uint64_t got = 0
    cdef uint64_t block = blocks_alloc(c, 1, 0, &got)
    pend_done(c)
    return block_off(block)


cdef bint save_list(nv_ctx* c, nv_list_head* list, uint64_t epoch_id,
                    nv_snapshot_nvmm_list* head) noexcept nogil:
    cdef nv_list_page_tail tail
    cdef uint64_t page = list.head_off
    cdef uint64_t off
    memset(head, 0, sizeof(nv_snapshot_nvmm_list))
    while page:
        off = page_new(c)
        if off == 0:
            return False
        tail = list_tail(c, page)[0]
        tail.next_page_off = 0
        tail.magic = MAGIC_LIST_PAGE
        tail.epoch_id = epoch_id
        tail.padding = 0
        tail.csum = ~nv_crc32c(0xFFFFFFFF, c.dram + page, tail.num_entries * sizeof(nv_list_entry))
        pm_copy(c, off, c.dram + page, LOG_TAIL_OFF)
        pm_copy(c, off + LOG_TAIL_OFF, &tail, sizeof(tail))
        pm_flush(c, off, BLOCK_BYTES)
        if head.tail_off:
            pm_store64(c, head.tail_off + LOG_TAIL_OFF, off)
            pm_flush(c, head.tail_off + LOG_TAIL_OFF, 8)
        else:
            head.head_off = off
        head.tail_off = off
        head.num_pages += 1
        page = list_tail(c, page).next_page_off
    head.csum = head_csum(head)
    return True


cdef bint save_snapshot(nv_ctx* c, nv_snapshot* s) noexcept nogil:
    cdef nv_snapshot_nvmm_list heads[MAX_CPUS]
    cdef uint64_t off = page_new(c)
    cdef uint32_t i
    if off == 0:
        return False
    memset(heads, 0, sizeof(heads))
    for i in range(MAX_CPUS):
        heads[i].csum = head_csum(&heads[i])
    for i in range(c.hdr.cpus):
        if not save_list(c, list_of(s, i), s.epoch_id, &heads[i]):
            return False
    pm_copy(c, off, heads, sizeof(heads))
    pm_persist(c, off, sizeof(heads))
    pm_store64(c, s.info_off + NVMM_PAGE, off)
    pm_flush(c, s.info_off + NVMM_PAGE, 8)
    return True


cdef bint lists_save(nv_ctx* c) noexcept nogil:
    # At unmount, when nothing runs any more and the cleaner has nothing left. False: no space,
    # nothing is saved (the next mount rebuilds).
    cdef uint32_t i
    for i in range(c.hdr.snap_count):
        if snap_at(c, i) != NULL and not save_snapshot(c, snap_at(c, i)):
            lists_forget(c)
            return False
    return True


cdef void lists_forget(nv_ctx* c) noexcept nogil:
    # SAVE-2.
    cdef uint32_t i
    cdef uint64_t word
    for i in range(c.hdr.snap_count):
        if snap_at(c, i) == NULL:
            continue
        word = snap_at(c, i).info_off + NVMM_PAGE
        if (<uint64_t*>(c.pm + word))[0]:
            pm_store64(c, word, 0)
            pm_persist(c, word, 8)


cdef inline bint sane(nv_ctx* c, uint64_t off) noexcept nogil:
    return (off & (BLOCK_BYTES - 1) == 0 and off >= block_off(DATA_NR)
            and off <= c.a.pm_bytes - 2 * BLOCK_BYTES)


cdef bint restore_list(nv_ctx* c, nv_snapshot* s, const nv_snapshot_nvmm_list* head) noexcept nogil:
    cdef uint64_t off = head.head_off
    cdef uint64_t pages = 0
    cdef nv_list_page_tail* tail
    cdef uint32_t k
    while off:
        if not sane(c, off) or pages == head.num_pages:
            return False
        tail = <nv_list_page_tail*>(c.pm + off + LOG_TAIL_OFF)
        if (tail.magic != MAGIC_LIST_PAGE or tail.epoch_id != s.epoch_id
                or tail.num_entries > LIST_ENTRIES
                or tail.csum != ~nv_crc32c(0xFFFFFFFF, c.pm + off,
                                           tail.num_entries * sizeof(nv_list_entry))):
            return False
        for k in range(tail.num_entries):
            if spare_reserve(c, 1):
                return False
            list_append(c, s, <nv_list_entry*>(c.pm + off) + k)
        pages += 1
        off = tail.next_page_off
    return pages == head.num_pages


cdef bint restore_snapshot(nv_ctx* c, nv_snapshot* s) noexcept nogil:
    cdef uint64_t off = (<uint64_t*>(c.pm + s.info_off + NVMM_PAGE))[0]
    cdef nv_snapshot_nvmm_list* heads = <nv_snapshot_nvmm_list*>(c.pm + off)
    cdef uint32_t cpu = c.cpu
    cdef uint32_t i
    cdef bint good = sane(c, off)
    for i in range(MAX_CPUS):
        # A mount with fewer CPUs spreads the lists over those there are.
        if good and heads[i].csum == head_csum(&heads[i]):
            c.cpu = i % c.hdr.cpus
            good = restore_list(c, s, &heads[i])
        else:
            good = False
    c.cpu = cpu
    return good


cdef void drop_lists(nv_ctx* c) noexcept nogil:
    cdef nv_list_head* list
    cdef uint64_t page
    cdef uint32_t i, k
    for k in range(c.hdr.cpus):
        cpu_at(c, k).held_blocks = 0
        cpu_at(c, k).list_pages = 0
        for i in range(c.hdr.snap_count):
            if snap_at(c, i) == NULL:
                continue
            list = list_of(snap_at(c, i), k)
            page = list.head_off
            memset(list, 0, sizeof(nv_list_head))
            while page:
                list.head_off = list_tail(c, page).next_page_off
                dram_free(c, page, DRAM_PAGE)
                page = list.head_off


cdef bint lists_restore(nv_ctx* c) noexcept nogil:
    # SAVE-1: all or nothing. The table is complete.
    cdef uint32_t i
    for i in range(c.hdr.snap_count):
        if snap_at(c, i) != NULL and not restore_snapshot(c, snap_at(c, i)):
            drop_lists(c)
            return False
    return True

"""Appending to, counting and repairing per-CPU snapshot lists."""

from libc.errno cimport ENOSPC
from libc.string cimport memset
from nova_mp.core.alloc cimport blocks_free_announced, release_announce, release_fill
from nova_mp.core.pages cimport dpend_done, dram_alloc, dram_free
from nova_mp.core.arch cimport (nv_check, nv_fence_acquire, nv_fence_release, nv_load32,
                                nv_load64)
from nova_mp.core.dram cimport (CNT_LIST_APPENDS, DRAM_PAGE, OP_SNAPSHOT_DELETE, REBUILD_RESTORED,
                                count, cpu_at, dram_off, nv_cpu, nv_slot, slot_at)
from nova_mp.core.layout cimport LIST_ENTRIES, MAGIC_LIST_PAGE, SS_FILE_WRITE, SS_INODE
from nova_mp.core.pmem cimport fail_point
from nova_mp.core.snaptable cimport list_of, snap_find, snap_id_after, snap_needed_by
from nova_mp.core.sync cimport RANK_LIST, lock_drop, lock_take


cdef int spare_reserve(nv_ctx* c, uint64_t entries) noexcept nogil:
    # List pages for `entries` appends, kept by the slot. An operation calls this after it announced
    # its epoch and before it commits; a snapshot that appears later cannot need what it supersedes.
    cdef nv_slot* s = c.slot
    cdef uint64_t pages, off
    if c.hdr.snap_live == 0:
        return 0
    # Each list that is touched may need a page of its own besides the full ones.
    pages = entries // LIST_ENTRIES + (entries if entries < c.hdr.snap_live else c.hdr.snap_live)
    while s.spare_count < pages:
        off = dram_alloc(c, DRAM_PAGE, dram_off(c, &s.spare_head))
        if off == 0:
            return -ENOSPC
        list_tail(c, off).magic = MAGIC_LIST_PAGE
        list_tail(c, off).next_page_off = s.spare_head
        s.spare_head = off
        s.spare_count += 1
        dpend_done(c)
    return 0


cdef void spare_drop(nv_ctx* c) noexcept nogil:
    cdef nv_slot* s = c.slot
    cdef uint64_t off
    while s.spare_head:
        off = s.spare_head
        s.spare_head = list_tail(c, off).next_page_off
        dram_free(c, off, DRAM_PAGE)
    s.spare_count = 0


cdef inline uint64_t data_blocks(const nv_list_entry* entry) noexcept nogil:
    # A dead inode's log pages count for what deleting frees, but are no data that a list holds.
    return entry.num_pages if entry.entry_type == SS_FILE_WRITE else 0


cdef void list_append(nv_ctx* c, nv_snapshot* target, nv_list_entry* entry) noexcept nogil:
    # Under the CPU's snap_lock. SNAP-5.
    cdef nv_slot* s = c.slot
    cdef nv_cpu* cpu = cpu_at(c, c.cpu)
    cdef nv_list_head* list = list_of(target, c.cpu)
    cdef nv_list_page_tail* tail
    cdef uint64_t following = snap_id_after(c, target.epoch_id)
    cdef uint64_t page = list.tail_off
    s.list_off = dram_off(c, list)
    if page == 0 or list_tail(c, page).num_entries == LIST_ENTRIES:
        page = s.spare_head
        nv_check(page != 0, "no page for a snapshot list", <long>s.spare_count)
        tail = list_tail(c, page)
        # Linked first, then no spare any more: whoever finishes this needs the page.
        s.spare_next = tail.next_page_off
        nv_fence_release()
        s.spare_page = page
        nv_fence_release()
        tail.next_page_off = 0
        tail.num_entries = 0
        tail.padding = 0
        fail_point(c, "list.page_ready")
        nv_fence_release()
        if list.tail_off:
            list_tail(c, list.tail_off).next_page_off = page
        else:
            list.head_off = page
        nv_fence_release()
        fail_point(c, "list.page_linked")
        s.spare_head = s.spare_next
        s.spare_count -= 1
        nv_fence_release()
        s.spare_page = 0
        list.tail_off = page
        list.num_pages += 1
        cpu.list_pages += 1
    tail = list_tail(c, page)
    list_entries(c, page)[tail.num_entries] = entry[0]
    nv_fence_release()
    tail.num_entries += 1
    fail_point(c, "list.appended")
    list.blocks += data_blocks(entry)
    cpu.held_blocks += data_blocks(entry)
    if following == 0 or entry.delete_epoch_id <= following:
        list.exclusive += entry.num_pages
    cpu.appends += 1
    count(c, CNT_LIST_APPENDS, 1)


cdef void release_announced(nv_ctx* c) noexcept nogil:
    # What rel_* names is superseded: record it for the oldest snapshot that needs it, or free it.
    # rel_state is 2 when that is done.
    cdef nv_slot* s = c.slot
    cdef nv_cpu* cpu
    cdef nv_snapshot* target
    cdef nv_list_entry entry
    cdef int nowait = c.nowait
    if s.rel_create_epoch < s.rel_delete_epoch and c.hdr.snap_live:
        cpu = cpu_at(c, c.cpu)
        s.list_off = 0
        c.nowait = 0
        lock_take(c, &cpu.snap_lock, RANK_LIST)
        c.nowait = nowait
        target = snap_needed_by(c, s.rel_create_epoch, s.rel_delete_epoch)
        if target != NULL:
            memset(&entry, 0, sizeof(entry))
            entry.entry_type = SS_FILE_WRITE
            entry.num_pages = <uint32_t>s.rel_extent
            entry.nvmm = s.rel_extent >> 32
            entry.create_epoch_id = s.rel_create_epoch
            entry.delete_epoch_id = s.rel_delete_epoch
            if s.rel_ino:
                entry.entry_type = SS_INODE
                entry.nvmm = s.rel_ino
            if c.a.rebuild != REBUILD_RESTORED:
                list_append(c, target, &entry)
            s.rel_state = 2
        lock_drop(c, &cpu.snap_lock)
    if s.rel_state == 1 and s.rel_ino == 0:
        blocks_free_announced(c)


cdef void release_blocks(nv_ctx* c, uint64_t block, uint64_t n, uint64_t create_epoch_id,
                         uint64_t delete_epoch_id) noexcept nogil:
    cdef nv_slot* s = c.slot
    release_fill(s, block << 32 | n)
    s.rel_create_epoch = create_epoch_id
    s.rel_delete_epoch = delete_epoch_id
    release_announce(s)
    release_announced(c)
    s.rel_state = 0


cdef bint record_inode(nv_ctx* c, uint64_t ino, uint32_t log_pages, uint64_t create_epoch_id,
                       uint64_t delete_epoch_id) noexcept nogil:
    # True if a snapshot needs the deleted inode: it is in that snapshot's list now, and the caller
    # ends the announcement (rel_state) once the inode's header says so.
    cdef nv_slot* s = c.slot
    release_fill(s, log_pages)
    s.rel_create_epoch = create_epoch_id
    s.rel_delete_epoch = delete_epoch_id
    s.rel_ino = ino
    release_announce(s)
    release_announced(c)
    if s.rel_state == 2:
        return True
    s.rel_state = 0
    s.rel_ino = 0
    return False


cdef void recount_list(nv_ctx* c, nv_list_head* list, uint64_t following, uint64_t* held,
                       uint64_t* pages) noexcept nogil:
    cdef uint64_t page = list.head_off
    cdef nv_list_entry* e
    cdef uint32_t i
    list.num_pages = 0
    list.tail_off = 0
    list.blocks = 0
    list.exclusive = 0
    while page:
        list.num_pages += 1
        list.tail_off = page
        for i in range(list_tail(c, page).num_entries):
            e = &list_entries(c, page)[i]
            list.blocks += data_blocks(e)
            if following == 0 or e.delete_epoch_id <= following:
                list.exclusive += e.num_pages
        page = list_tail(c, page).next_page_off
    held[0] += list.blocks
    pages[0] += list.num_pages


cdef void spare_repair(nv_ctx* c) noexcept nogil:
    # A spare page on its way into a list: it is in it, or it is the first spare still.
    cdef nv_slot* s = c.slot
    cdef uint64_t page
    if s.spare_page and s.spare_page == s.spare_head:
        page = (<nv_list_head*>(c.dram + s.list_off)).head_off
        while page and page != s.spare_page:
            page = list_tail(c, page).next_page_off
        if page:
            s.spare_head = s.spare_next
        else:
            list_tail(c, s.spare_page).next_page_off = s.spare_next
    s.spare_page = 0


cdef bint queued(nv_ctx* c, uint64_t page, uint64_t wanted) noexcept nogil:
    # Is a list that is being spliced in the cleaner's queue already?
    while page and page != wanted:
        page = list_tail(c, page).next_page_off
    return page != 0


cdef nv_snapshot* being_deleted(nv_ctx* c, uint32_t cpu_nr) noexcept nogil:
    # The snapshot that is out of the table while its list of this CPU is not in the queue; NULL if
    # there is none. It cannot go on before the CPU's snap_lock is free.
    cdef nv_slot* s
    cdef nv_snapshot* deleted
    cdef nv_list_head* list
    cdef uint64_t off
    cdef uint32_t i
    for i in range(c.hdr.slot_high):
        s = slot_at(c, i)
        off = nv_load64(&s.arg)
        if s.op != OP_SNAPSHOT_DELETE or off == 0:
            continue
        deleted = <nv_snapshot*>(c.dram + off)
        list = list_of(deleted, cpu_nr)
        # A list that is there, of a deletion that has not ended: so the descriptor is no other's.
        if (nv_load64(&list.head_off) and nv_load64(&s.arg) == off
                and snap_find(c, deleted.epoch_id) == NULL
                and not queued(c, cpu_at(c, cpu_nr).clean_head, list.head_off)):
            return deleted
    return NULL


cdef void recount_lists(nv_ctx* c, uint32_t cpu_nr, uint64_t* held, uint64_t* pages) noexcept nogil:
    # All lists of one CPU, under its snap_lock. Others may change the table meanwhile; then it is
    # done again, because a snapshot that is taken out would be counted twice, or not at all.
    cdef nv_snapshot* s
    cdef uint32_t seq
    while True:
        seq = nv_load32(&c.hdr.snap_seq)
        held[0] = 0
        pages[0] = 0
        s = snap_needed_by(c, 0, <uint64_t>-1)
        while s != NULL:
            recount_list(c, list_of(s, cpu_nr), snap_id_after(c, s.epoch_id), held, pages)
            s = snap_needed_by(c, s.epoch_id + 1, <uint64_t>-1)
        s = being_deleted(c, cpu_nr)
        if s != NULL:
            recount_list(c, list_of(s, cpu_nr), 0, held, pages)
        nv_fence_acquire()
        if nv_load32(&c.hdr.snap_seq) == seq and seq & 1 == 0:
            return


cdef void list_repair(nv_ctx* c, uint32_t cpu_nr) noexcept nogil:
    # The context acts as the dead owner of the CPU's snap_lock. Everything but the pages' links and
    # entries is computed again; an append that was under way is finished or not begun.
    cdef nv_slot* s = c.slot
    cdef nv_cpu* cpu = cpu_at(c, cpu_nr)
    cdef nv_list_head* list
    cdef nv_list_head queue
    cdef nv_list_entry* last
    cdef uint64_t page, held = 0, pages = 0, spares = 0
    spare_repair(c)
    recount_lists(c, cpu_nr, &held, &pages)
    memset(&queue, 0, sizeof(queue))
    queue.head_off = cpu.clean_head
    recount_list(c, &queue, 0, &held, &pages)
    cpu.clean_tail = queue.tail_off
    cpu.held_blocks = held
    cpu.list_pages = pages
    if s.rel_state == 1 and s.list_off:
        list = <nv_list_head*>(c.dram + s.list_off)
        page = list.tail_off
        if page and list_tail(c, page).num_entries:
            last = &list_entries(c, page)[list_tail(c, page).num_entries - 1]
            if (last.create_epoch_id == s.rel_create_epoch
                    and last.delete_epoch_id == s.rel_delete_epoch
                    and last.nvmm == (s.rel_ino if s.rel_ino else s.rel_extent >> 32)):
                s.rel_state = 2
    page = s.spare_head
    while page:
        spares += 1
        page = list_tail(c, page).next_page_off
    s.spare_count = spares


cdef uint64_t snap_exclusive(nv_ctx* c, nv_snapshot* s) noexcept nogil:
    # Blocks that deleting `s` alone frees (LIST-1). Under the snapshot lock. Counters, except after
    # a neighbour was deleted: then its lists are counted once more.
    cdef uint64_t following = snap_id_after(c, s.epoch_id)
    cdef uint64_t n = 0, held = 0, pages = 0
    cdef uint32_t i
    cdef uint32_t recount = s.recount
    s.recount = 0
    for i in range(c.hdr.cpus):
        lock_take(c, &cpu_at(c, i).snap_lock, RANK_LIST)
        if recount:
            recount_list(c, list_of(s, i), following, &held, &pages)
        n += list_of(s, i).exclusive
        lock_drop(c, &cpu_at(c, i).snap_lock)
    return n


cdef uint64_t kept_by(const uint64_t* left, uint64_t n, uint64_t epoch_id) noexcept nogil:
    # The oldest of the sorted ids `left` that is not older than `epoch_id`; 0 if there is none.
    cdef uint64_t low = 0, high = n, mid
    while low < high:
        mid = (low + high) // 2
        if left[mid] < epoch_id:
            low = mid + 1
        else:
            high = mid
    return left[low] if low < n else 0


cdef uint64_t snap_frees(nv_ctx* c, nv_snapshot* s, const uint64_t* left,
                         uint64_t n) noexcept nogil:
    # Blocks in the lists of `s` that are needed by none of the `n` snapshots `left`, which stay.
    # Under the snapshot lock; reads all entries.
    cdef nv_list_entry* e
    cdef uint64_t page, keeper, blocks = 0
    cdef uint32_t i, k
    for i in range(c.hdr.cpus):
        lock_take(c, &cpu_at(c, i).snap_lock, RANK_LIST)
        page = list_of(s, i).head_off
        while page:
            for k in range(list_tail(c, page).num_entries):
                e = &list_entries(c, page)[k]
                keeper = kept_by(left, n, e.create_epoch_id)
                if keeper == 0 or keeper >= e.delete_epoch_id:
                    blocks += e.num_pages
            page = list_tail(c, page).next_page_off
        lock_drop(c, &cpu_at(c, i).snap_lock)
    return blocks

"""Snapshot table, epoch check, per-CPU lists, create and delete."""

from libc.errno cimport EBUSY, EEXIST, ENAMETOOLONG, ENOENT, ENOSPC
from libc.stdint cimport uint8_t
from libc.string cimport memcmp, memcpy, memset
from nova_mp.core.alloc cimport blocks_free_announced, dpend_done, dram_alloc, dram_free
from nova_mp.core.arch cimport (nv_assert, nv_check, nv_fence_acquire, nv_fence_release,
                                nv_file_time_ns, nv_futex_wake, nv_load32, nv_load64,
                                nv_monotonic_ns, nv_pause, nv_store32, nv_store64, nv_xchg64)
from nova_mp.core.dram cimport (CNT_LIST_APPENDS, DRAM_PAGE, OP_SNAPSHOT_CREATE, OP_SNAPSHOT_DELETE,
                                count, cpu_at, dram_off, nv_chunk, nv_cpu, nv_slot, nv_snap_ref,
                                table_at)
from nova_mp.core.index cimport index_get
from nova_mp.core.layout cimport (ENTRY_SNAPSHOT_INFO, INODE_BYTES, LIST_ENTRIES, MAGIC_LIST_PAGE,
                                  NAME_MAX_BYTES, SNAPSHOT_INO, SS_FILE_WRITE, SS_INODE, nv_inode,
                                  nv_snapshot_info, nv_superblock)
from nova_mp.core.log cimport log_append, log_commit, log_room, tx_open
from nova_mp.core.pmem cimport (fail_point, pm_persist, pm_store64, superblock_newest,
                                superblock_write)
from nova_mp.core.sync cimport (RANK_FILE, RANK_LIST, RANK_SNAPSHOT, grace_wait, lock_drop,
                                lock_take, op_begin, op_end)

cdef enum:
    TAIL_WORD = 24                   # of log_tail_off in nv_inode
    GRACE_NS = 60000000000           # after a minute a stopped process is reported, and waited for


# ---- table --------------------------------------------------------------------------------------

cdef inline nv_snap_ref* refs(nv_ctx* c) noexcept nogil:
    return <nv_snap_ref*>(c.dram + c.hdr.snap_table_off)


cdef uint32_t first_at_least(nv_snap_ref* table, uint32_t n, uint64_t epoch_id) noexcept nogil:
    cdef uint32_t low = 0, high = n, mid
    # Overwrites mostly meet data of the last few epochs: look at the end before halving.
    if n > 4 and table[n - 4].epoch_id < epoch_id:
        low = n - 3
    while low < high:
        mid = (low + high) // 2
        if table[mid].epoch_id < epoch_id:
            low = mid + 1
        else:
            high = mid
    return low


cdef uint64_t lookup(nv_ctx* c, uint64_t epoch_id, uint64_t below,
                     uint64_t* found_id) noexcept nogil:
    # Descriptor of the oldest live snapshot S with epoch_id <= S < below; 0 if none. Optimistic.
    cdef uint32_t seq, n, i
    cdef uint64_t off, newest
    cdef nv_snap_ref* table
    while True:
        newest = nv_load64(&c.hdr.snap_newest)
        if newest < epoch_id or epoch_id >= below:
            return 0
        seq = nv_load32(&c.hdr.snap_seq)
        if seq & 1:
            nv_pause()
            continue
        n = nv_load32(&c.hdr.snap_count)
        off = nv_load64(&c.hdr.snap_table_off)
        if off + n * sizeof(nv_snap_ref) > c.a.dram_bytes:
            continue
        table = <nv_snap_ref*>(c.dram + off)
        i = first_at_least(table, n, epoch_id)
        while i < n and nv_load64(&table[i].off) == 0:
            i += 1
        off = 0
        if i < n and table[i].epoch_id < below:
            off = nv_load64(&table[i].off)
            found_id[0] = table[i].epoch_id
        nv_fence_acquire()
        if nv_load32(&c.hdr.snap_seq) == seq:
            return off


cdef nv_snapshot* snap_needed_by(nv_ctx* c, uint64_t create_epoch_id,
                                 uint64_t delete_epoch_id) noexcept nogil:
    # The epoch check: the oldest snapshot that needs what was born in `create_epoch_id` and
    # superseded in `delete_epoch_id`, or NULL. The pointer is good while the caller holds a
    # snap_lock or the snapshot lock; as a yes or no it is good at any time (SNAP-4).
    cdef uint64_t found = 0
    cdef uint64_t off = lookup(c, create_epoch_id, delete_epoch_id, &found)
    return <nv_snapshot*>(c.dram + off) if off else NULL


cdef bint snap_any_before(nv_ctx* c, uint64_t epoch_id) noexcept nogil:
    return snap_needed_by(c, 0, epoch_id) != NULL


cdef nv_snapshot* snap_find(nv_ctx* c, uint64_t epoch_id) noexcept nogil:
    return snap_needed_by(c, epoch_id, epoch_id + 1)


cdef uint64_t snap_id_after(nv_ctx* c, uint64_t epoch_id) noexcept nogil:
    # Id of the oldest live snapshot newer than `epoch_id`, 0 if there is none.
    cdef uint64_t found = 0
    return found if lookup(c, epoch_id + 1, <uint64_t>-1, &found) else 0


cdef nv_snapshot* snap_at(nv_ctx* c, uint32_t position) noexcept nogil:
    # Under the snapshot lock: element of the table, NULL where one was taken out or past the end.
    if position >= c.hdr.snap_count or refs(c)[position].off == 0:
        return NULL
    return <nv_snapshot*>(c.dram + refs(c)[position].off)


cdef void table_seq(nv_ctx* c, bint begin) noexcept nogil:
    if begin:
        nv_store32(&c.hdr.snap_seq, c.hdr.snap_seq | 1)
        nv_fence_release()
    else:
        nv_store32(&c.hdr.snap_seq, (c.hdr.snap_seq | 1) + 1)


cdef int table_room(nv_ctx* c) noexcept nogil:
    # Room for one more element, so that inserting cannot fail.
    cdef uint64_t old = c.hdr.snap_table_off
    cdef uint64_t old_bytes = c.hdr.snap_capacity * sizeof(nv_snap_ref)
    cdef uint64_t n_bytes = old_bytes * 2 if old_bytes else DRAM_PAGE
    cdef uint64_t off
    if c.hdr.snap_count < c.hdr.snap_capacity:
        return 0
    off = dram_alloc(c, n_bytes, dram_off(c, &c.hdr.snap_table_off))
    if off == 0:
        return -ENOSPC
    memcpy(c.dram + off, c.dram + old, c.hdr.snap_count * sizeof(nv_snap_ref))
    table_seq(c, True)
    nv_store64(&c.hdr.snap_table_off, off)
    c.hdr.snap_capacity = <uint32_t>(n_bytes // sizeof(nv_snap_ref))
    table_seq(c, False)
    dpend_done(c)
    if old_bytes:
        dram_free(c, old, old_bytes)
    return 0


cdef inline uint64_t descriptor_bytes(nv_ctx* c) noexcept nogil:
    cdef uint64_t n = sizeof(nv_snapshot) + c.hdr.cpus * sizeof(nv_list_head)
    return 512 if n <= 512 else (n + DRAM_PAGE - 1) // DRAM_PAGE * DRAM_PAGE


cdef uint64_t descriptor_new(nv_ctx* c) noexcept nogil:
    # Pending in the slot (c.slot.arg will refer to it) until dpend_done().
    return dram_alloc(c, descriptor_bytes(c), dram_off(c, &c.slot.arg))


cdef void table_insert(nv_ctx* c, uint64_t descriptor_off, uint64_t info_off) noexcept nogil:
    # Idempotent. `info_off` refers to a committed info entry, newer than all in the table.
    cdef nv_snapshot_info* info = <nv_snapshot_info*>(c.pm + info_off)
    cdef nv_snapshot* s = <nv_snapshot*>(c.dram + descriptor_off)
    cdef uint32_t n = c.hdr.snap_count
    if n and refs(c)[n - 1].epoch_id == info.epoch_id:
        return
    s.epoch_id = info.epoch_id
    s.info_off = info_off
    s.create_time_ns = info.create_time_ns
    refs(c)[n].epoch_id = info.epoch_id
    refs(c)[n].off = descriptor_off
    nv_fence_release()
    nv_store32(&c.hdr.snap_count, n + 1)
    c.hdr.snap_live += 1
    nv_store64(&c.hdr.snap_newest, info.epoch_id)


cdef void table_remove(nv_ctx* c, uint64_t descriptor_off) noexcept nogil:
    # Idempotent. Squeezes the table when half of it is dead, so deleting stays O(1) on average.
    cdef nv_snap_ref* table = refs(c)
    cdef uint32_t n = c.hdr.snap_count
    cdef uint32_t i, kept = 0
    cdef uint64_t newest = 0
    table_seq(c, True)
    for i in range(n):
        if table[i].off == descriptor_off:
            table[i].off = 0
            break
    c.hdr.snap_live = 0
    for i in range(n):
        if table[i].off:
            c.hdr.snap_live += 1
            newest = table[i].epoch_id
    if n > 2 * c.hdr.snap_live + 64:
        for i in range(n):
            if table[i].off:
                table[kept] = table[i]
                kept += 1
        c.hdr.snap_count = kept
    nv_store64(&c.hdr.snap_newest, newest)
    table_seq(c, False)


# ---- lists --------------------------------------------------------------------------------------

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


cdef void list_append(nv_ctx* c, nv_list_head* list, nv_list_entry* entry) noexcept nogil:
    # Under the CPU's snap_lock. SNAP-5.
    cdef nv_slot* s = c.slot
    cdef nv_cpu* cpu = cpu_at(c, c.cpu)
    cdef nv_list_page_tail* tail
    cdef uint64_t page = list.tail_off
    s.list_off = dram_off(c, list)
    if page == 0 or list_tail(c, page).num_entries == LIST_ENTRIES:
        page = s.spare_head
        nv_check(page != 0, "no page for a snapshot list", <long>s.spare_count)
        tail = list_tail(c, page)
        s.spare_head = tail.next_page_off
        s.spare_count -= 1
        tail.next_page_off = 0
        tail.num_entries = 0
        tail.padding = 0
        if list.tail_off:
            list_tail(c, list.tail_off).next_page_off = page
        else:
            list.head_off = page
        list.tail_off = page
        list.num_pages += 1
        cpu.list_pages += 1
        fail_point(c, "list.page_linked")
    tail = list_tail(c, page)
    list_entries(c, page)[tail.num_entries] = entry[0]
    nv_fence_release()
    tail.num_entries += 1
    fail_point(c, "list.appended")
    list.blocks += entry.num_pages
    cpu.held_blocks += entry.num_pages
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
                entry.num_pages = 0
                entry.nvmm = s.rel_ino
            list_append(c, list_of(target, c.cpu), &entry)
            s.rel_state = 2
        lock_drop(c, &cpu.snap_lock)
    if s.rel_state == 1 and s.rel_ino == 0:
        blocks_free_announced(c)


cdef void release_blocks(nv_ctx* c, uint64_t block, uint64_t n, uint64_t create_epoch_id,
                         uint64_t delete_epoch_id) noexcept nogil:
    cdef nv_slot* s = c.slot
    s.rel_extent = block << 32 | n
    s.rel_create_epoch = create_epoch_id
    s.rel_delete_epoch = delete_epoch_id
    s.rel_ino = 0
    s.rel_link_off = 0
    s.rel_undo = 0
    s.rel_pages = 0
    nv_fence_release()
    s.rel_state = 1
    release_announced(c)
    s.rel_state = 0


cdef bint record_inode(nv_ctx* c, uint64_t ino, uint64_t create_epoch_id,
                       uint64_t delete_epoch_id) noexcept nogil:
    # True if a snapshot needs the deleted inode: it is in that snapshot's list now.
    cdef nv_slot* s = c.slot
    cdef bint recorded
    s.rel_extent = 0
    s.rel_create_epoch = create_epoch_id
    s.rel_delete_epoch = delete_epoch_id
    s.rel_ino = ino
    s.rel_link_off = 0
    s.rel_undo = 0
    s.rel_pages = 0
    nv_fence_release()
    s.rel_state = 1
    release_announced(c)
    recorded = s.rel_state == 2
    s.rel_state = 0
    s.rel_ino = 0
    return recorded


cdef void recount_list(nv_ctx* c, nv_list_head* list, uint64_t* held,
                       uint64_t* pages) noexcept nogil:
    cdef uint64_t page = list.head_off
    cdef uint32_t i
    list.num_pages = 0
    list.tail_off = 0
    list.blocks = 0
    while page:
        list.num_pages += 1
        list.tail_off = page
        for i in range(list_tail(c, page).num_entries):
            list.blocks += list_entries(c, page)[i].num_pages
        page = list_tail(c, page).next_page_off
    held[0] += list.blocks
    pages[0] += list.num_pages


cdef void list_repair(nv_ctx* c, uint32_t cpu_nr) noexcept nogil:
    # The context acts as the dead owner of the CPU's snap_lock. Everything but the pages' links and
    # entries is computed again; an append that was under way is finished or not begun.
    cdef nv_slot* s = c.slot
    cdef nv_cpu* cpu = cpu_at(c, cpu_nr)
    cdef nv_list_head* list
    cdef nv_list_head queue
    cdef nv_list_entry* last
    cdef uint64_t page, held = 0, pages = 0, spares = 0
    cdef uint32_t i
    for i in range(c.hdr.snap_count):
        if snap_at(c, i) != NULL:
            recount_list(c, list_of(snap_at(c, i), cpu_nr), &held, &pages)
    memset(&queue, 0, sizeof(queue))
    queue.head_off = cpu.clean_head
    recount_list(c, &queue, &held, &pages)
    cpu.clean_tail = queue.tail_off
    cpu.held_blocks = held
    cpu.list_pages = pages
    if s.rel_state == 1 and s.list_off:
        list = <nv_list_head*>(c.dram + s.list_off)
        page = list.tail_off
        if page == s.spare_head and page:
            s.spare_head = 0         # linked already, its old chain is lost: a few spare pages leak
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


# ---- create and delete --------------------------------------------------------------------------

cdef nv_inode_header* snapshot_header(nv_ctx* c) noexcept nogil:
    cdef uint64_t chunk = index_get(c.dram, c.a.dram_bytes, &table_at(c, 0).chunks, 0)
    return <nv_inode_header*>(c.dram + chunk + SNAPSHOT_INO * INODE_BYTES)


cdef uint64_t snapshot_inode_off(nv_ctx* c) noexcept nogil:
    cdef uint64_t chunk = index_get(c.dram, c.a.dram_bytes, &table_at(c, 0).chunks, 0)
    return (<nv_chunk*>(c.dram + chunk)).pmem_off + SNAPSHOT_INO * INODE_BYTES


cdef bint name_taken(nv_ctx* c, const char* name, uint32_t name_len) noexcept nogil:
    cdef nv_snapshot_info* info
    cdef uint32_t i
    for i in range(c.hdr.snap_count):
        if snap_at(c, i) == NULL:
            continue
        info = <nv_snapshot_info*>(c.pm + snap_at(c, i).info_off)
        if info.name_len == name_len and memcmp(info.name, name, name_len) == 0:
            return True
    return False


cdef int append_info(nv_ctx* c, nv_inode_header* h, const char* name,
                     uint32_t name_len) noexcept nogil:
    cdef uint8_t buffer[320]
    cdef nv_snapshot_info* info = <nv_snapshot_info*>buffer
    cdef int rc
    memset(buffer, 0, sizeof(buffer))
    info.entry_type = ENTRY_SNAPSHOT_INFO
    info.slots = <uint8_t>((40 + name_len + 63) // 64)
    info.name_len = <uint8_t>name_len
    info.epoch_id = c.epoch_id
    info.create_time_ns = nv_file_time_ns()
    memcpy(buffer + 40, name, name_len)
    tx_open(c, SNAPSHOT_INO, h.log_tail_off)
    rc = log_room(c, h, &c.slot.tx[0], info.slots)
    if rc == 0:
        log_append(c, &c.slot.tx[0], info)
    return rc


cdef int create_locked(nv_ctx* c, nv_inode_header* h, const char* name,
                       uint32_t name_len) noexcept nogil:
    # Under the snapshot lock and the snapshot inode's. 0, or an error that left nothing behind.
    cdef uint64_t descriptor
    cdef int rc
    if name_len and name_taken(c, name, name_len):
        return -EEXIST
    rc = table_room(c)
    if rc:
        return rc
    descriptor = descriptor_new(c)
    if descriptor == 0:
        return -ENOSPC
    c.slot.arg = descriptor
    dpend_done(c)
    rc = append_info(c, h, name, name_len)
    if rc:
        c.slot.arg = 0
        dram_free(c, descriptor, descriptor_bytes(c))
        return rc
    log_commit(c, snapshot_inode_off(c) + TAIL_WORD, c.slot.tx[0].cur_tail)
    fail_point(c, "snapshot.committed")
    snap_create_finish(c)
    return 0


cdef void snap_create_finish(nv_ctx* c) noexcept nogil:
    # From the committed info entry to the published epoch; idempotent, also done by a repairer.
    cdef nv_inode_header* h = snapshot_header(c)
    cdef uint64_t tail = (<nv_inode*>(c.pm + snapshot_inode_off(c))).log_tail_off
    cdef uint64_t epoch_id = c.epoch_id
    cdef nv_superblock sb
    cdef uint64_t info_off
    cdef uint32_t slots
    if tail != h.log_tail_off:
        # The entry is the last one before the tail; entries do not cross pages.
        info_off = c.slot.tx[0].old_tail
        slots = <uint32_t>((tail - info_off) >> 6)
        if (tail ^ info_off) >> 12 or slots == 0 or slots > 5:
            info_off = tail & ~<uint64_t>4095
        if c.slot.arg:
            table_insert(c, c.slot.arg, info_off)
        h.log_tail_off = tail
        h.blocks += 1
    fail_point(c, "snapshot.in_table")
    sb = superblock_newest(c)[0]
    if sb.epoch_id <= epoch_id:
        sb.epoch_id = epoch_id + 1
        superblock_write(c, &sb)
    fail_point(c, "snapshot.epoch_persisted")
    if nv_load64(&c.hdr.gate) >> 1 <= epoch_id:
        nv_xchg64(&c.hdr.gate, (epoch_id + 1) << 1 | (nv_load64(&c.hdr.gate) & 1))
    c.slot.arg = 0


cdef int snap_create(nv_ctx* c, const char* name, uint32_t name_len,
                     uint64_t* epoch_id) noexcept nogil:
    # Returns when the snapshot is complete: no operation of its epoch is under way any more.
    cdef nv_inode_header* h = snapshot_header(c)
    cdef uint64_t start = nv_monotonic_ns()
    cdef int rc
    if name_len > NAME_MAX_BYTES:
        return -ENAMETOOLONG
    lock_take(c, &c.hdr.snapshot_lock, RANK_SNAPSHOT)
    lock_take(c, &h.lock, <uint64_t>RANK_FILE + SNAPSHOT_INO)
    c.privileged = 1
    rc = op_begin(c, OP_SNAPSHOT_CREATE)
    if rc == 0:
        epoch_id[0] = c.epoch_id
        rc = create_locked(c, h, name, name_len)
        op_end(c)
        if rc == 0:
            fail_point(c, "snapshot.before_grace")
            while grace_wait(c, epoch_id[0], GRACE_NS):
                pass
            c.hdr.snapshot_creates += 1
            c.hdr.snapshot_create_ns += nv_monotonic_ns() - start
    c.privileged = 0
    lock_drop(c, &h.lock)
    lock_drop(c, &c.hdr.snapshot_lock)
    return rc


cdef void splice(nv_ctx* c, nv_snapshot* s, uint32_t cpu_nr) noexcept nogil:
    # Moves one CPU's list to the cleaner's queue. The list's head is cleared last: a repairer that
    # still finds it set does all of this again.
    cdef nv_cpu* cpu = cpu_at(c, cpu_nr)
    cdef nv_list_head* list = list_of(s, cpu_nr)
    if list.head_off == 0:
        return
    if cpu.clean_tail != list.tail_off:
        if cpu.clean_tail:
            list_tail(c, cpu.clean_tail).next_page_off = list.head_off
        else:
            cpu.clean_head = list.head_off
        cpu.clean_tail = list.tail_off
    list.tail_off = 0
    list.num_pages = 0
    list.blocks = 0
    list.head_off = 0


cdef void snap_delete_finish(nv_ctx* c, uint64_t descriptor_off) noexcept nogil:
    # From the committed deletion to the queued lists; idempotent, also done by a repairer.
    cdef nv_snapshot* s = <nv_snapshot*>(c.dram + descriptor_off)
    cdef uint32_t i
    s.deleted = 1
    table_remove(c, descriptor_off)
    fail_point(c, "snapshot.out_of_table")
    for i in range(c.hdr.cpus):
        lock_take(c, &cpu_at(c, i).snap_lock, RANK_LIST)
        splice(c, s, i)
        lock_drop(c, &cpu_at(c, i).snap_lock)
        fail_point(c, "snapshot.spliced")
    c.hdr.clean_bell += 1
    c.slot.arg = 0
    dram_free(c, descriptor_off, descriptor_bytes(c))


cdef int snap_delete(nv_ctx* c, uint64_t epoch_id) noexcept nogil:
    # Takes the snapshot away; the cleaner frees what nothing else needs.
    cdef nv_inode_header* h = snapshot_header(c)
    cdef uint64_t start = nv_monotonic_ns()
    cdef nv_snapshot* s
    cdef uint64_t word
    cdef int rc
    lock_take(c, &c.hdr.snapshot_lock, RANK_SNAPSHOT)
    lock_take(c, &h.lock, <uint64_t>RANK_FILE + SNAPSHOT_INO)
    s = snap_find(c, epoch_id)
    if s == NULL:
        rc = -ENOENT
    elif s.opens:
        rc = -EBUSY
    else:
        rc = op_begin(c, OP_SNAPSHOT_DELETE)
    if rc == 0:
        c.slot.arg = dram_off(c, s)
        word = s.info_off + 24
        pm_store64(c, word, 1)
        pm_persist(c, word, 8)
        fail_point(c, "snapshot.deleted")
        h.blocks -= 1
        snap_delete_finish(c, c.slot.arg)
        op_end(c)
        c.hdr.snapshot_deletes += 1
        c.hdr.snapshot_delete_ns += nv_monotonic_ns() - start
    lock_drop(c, &h.lock)
    lock_drop(c, &c.hdr.snapshot_lock)
    return rc

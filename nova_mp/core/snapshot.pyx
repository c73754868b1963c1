"""Creating and deleting snapshots."""

from libc.errno cimport EBUSY, EEXIST, ENAMETOOLONG, ENOENT, ENOSPC
from libc.stdint cimport uint8_t
from libc.string cimport memcmp, memcpy, memset
from nova_mp.core.pages cimport dpend_done, dram_free
from nova_mp.core.arch cimport (nv_fence_release, nv_file_time_ns, nv_load64, nv_monotonic_ns,
                                nv_xchg64)
from nova_mp.core.dram cimport (OP_SNAPSHOT_CREATE, OP_SNAPSHOT_DELETE, cpu_at, dram_off, nv_chunk,
                                nv_cpu, nv_list_head, nv_snapshot, table_at)
from nova_mp.core.index cimport index_get
from nova_mp.core.layout cimport (ENTRY_SNAPSHOT_INFO, INODE_BYTES, NAME_MAX_BYTES, SNAPSHOT_INO,
                                  nv_inode, nv_snapshot_info, nv_superblock)
from nova_mp.core.log cimport log_append, log_commit, log_room, tx_open
from nova_mp.core.pmem cimport (fail_point, pm_persist, pm_store64, superblock_newest,
                                superblock_write)
from nova_mp.core.snaplist cimport list_tail
from nova_mp.core.snaptable cimport (descriptor_bytes, descriptor_new, list_of, snap_at, snap_find,
                                     snap_id_before, table_insert, table_remove, table_room)
from nova_mp.core.stores cimport stores_hold, stores_release
from nova_mp.core.sync cimport (RANK_FILE, RANK_LIST, RANK_SNAPSHOT, grace_wait, lock_drop,
                                lock_take, op_begin, op_end)

cdef enum:
    TAIL_WORD = 24                   # of log_tail_off in nv_inode
    GRACE_NS = 60000000000           # after a minute a stopped process is reported, and waited for


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
    # Before the epoch is read, until after it has moved: stores into mappings wait in between.
    rc = stores_hold(c)
    if rc == 0:
        rc = op_begin(c, OP_SNAPSHOT_CREATE)
    if rc == 0:
        epoch_id[0] = c.epoch_id
        rc = create_locked(c, h, name, name_len)
        op_end(c)
    stores_release(c)
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
    # Moves one CPU's list to the cleaner's queue. The list's head is cleared as soon as it is
    # queued, its end after that: a repairer who finds the head set does all of this again, and sees
    # by the end whether it is queued.
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
        fail_point(c, "snapshot.list_queued")
    nv_fence_release()
    list.head_off = 0
    nv_fence_release()
    list.tail_off = 0
    list.num_pages = 0
    list.blocks = 0
    list.exclusive = 0


cdef void snap_delete_finish(nv_ctx* c, uint64_t descriptor_off) noexcept nogil:
    # From the committed deletion to the queued lists; idempotent, also done by a repairer.
    cdef nv_snapshot* s = <nv_snapshot*>(c.dram + descriptor_off)
    cdef nv_snapshot* before
    cdef uint32_t i
    s.deleted = 1
    before = snap_find(c, snap_id_before(c, s.epoch_id))
    table_remove(c, descriptor_off)
    if before != NULL:
        # LIST-1: what it shared with the deleted one may be its own now.
        before.recount = 1
    fail_point(c, "snapshot.out_of_table")
    for i in range(c.hdr.cpus):
        lock_take(c, &cpu_at(c, i).snap_lock, RANK_LIST)
        splice(c, s, i)
        lock_drop(c, &cpu_at(c, i).snap_lock)
        fail_point(c, "snapshot.spliced")
    c.hdr.clean_bell += 1
    c.slot.arg = 0
    dram_free(c, descriptor_off, descriptor_bytes(c))


cdef int snap_delete(nv_ctx* c, uint64_t epoch_id, bint defer) noexcept nogil:
    # Takes the snapshot away; the cleaner frees what nothing else needs. While it is open: -EBUSY,
    # or with `defer` a mark, and 1; the coordinator deletes it once the last view is closed.
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
    elif s.opens and defer:
        s.deferred = 1
        rc = 1
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

"""The snapshot table and the epoch check."""

from libc.errno cimport ENOSPC
from libc.string cimport memcpy
from nova_mp.core.pages cimport dpend_done, dram_alloc, dram_free
from nova_mp.core.arch cimport (nv_fence_acquire, nv_fence_release, nv_load32, nv_load64, nv_pause,
                                nv_store32, nv_store64)
from nova_mp.core.dram cimport (DRAM_PAGE, LOCK_OWNER, dram_off, nv_snap_ref, slot_at)
from nova_mp.core.sync cimport slot_dead
from nova_mp.core.layout cimport nv_snapshot_info


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
    cdef uint32_t seq, n, i, owner, spins = 0
    cdef uint64_t off, newest
    cdef nv_snap_ref* table
    while True:
        newest = nv_load64(&c.hdr.snap_newest)
        if newest < epoch_id or epoch_id >= below:
            return 0
        seq = nv_load32(&c.hdr.snap_seq)
        if seq & 1:
            # Whoever changes the table may have died in it.
            spins += 1
            owner = nv_load32(&c.hdr.snapshot_lock) & LOCK_OWNER
            if spins % 4096 == 0 and owner and owner != c.id and slot_dead(slot_at(c, owner - 1)):
                c.a.repair(c, owner)
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


cdef uint64_t descriptor_bytes(nv_ctx* c) noexcept nogil:
    cdef uint64_t n = sizeof(nv_snapshot) + c.hdr.cpus * sizeof(nv_list_head)
    return 512 if n <= 512 else (n + DRAM_PAGE - 1) // DRAM_PAGE * DRAM_PAGE


cdef uint64_t descriptor_new(nv_ctx* c) noexcept nogil:
    # Pending in the slot (c.slot.arg will refer to it) until dpend_done().
    return dram_alloc(c, descriptor_bytes(c), dram_off(c, &c.slot.arg))


cdef void table_count(nv_ctx* c) noexcept nogil:
    # Snapshots there are, and the newest of them, from the table.
    cdef nv_snap_ref* table = refs(c)
    cdef uint64_t newest = 0
    cdef uint32_t i, live = 0
    for i in range(c.hdr.snap_count):
        if table[i].off:
            live += 1
            newest = table[i].epoch_id
    c.hdr.snap_live = live
    nv_store64(&c.hdr.snap_newest, newest)


cdef void table_insert(nv_ctx* c, uint64_t descriptor_off, uint64_t info_off) noexcept nogil:
    # Idempotent. `info_off` refers to a committed info entry, newer than all in the table.
    cdef nv_snapshot_info* info = <nv_snapshot_info*>(c.pm + info_off)
    cdef nv_snapshot* s = <nv_snapshot*>(c.dram + descriptor_off)
    cdef uint32_t n = c.hdr.snap_count
    if n and refs(c)[n - 1].epoch_id == info.epoch_id:
        table_count(c)               # the first to insert it died before it counted
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
    table_seq(c, True)
    for i in range(n):
        if table[i].off == descriptor_off:
            table[i].off = 0
            break
    # In one store: operations size their reservations by it without asking for the seq.
    table_count(c)
    if n > 2 * c.hdr.snap_live + 64:
        for i in range(n):
            if table[i].off:
                table[kept] = table[i]
                kept += 1
        c.hdr.snap_count = kept
    table_seq(c, False)


cdef void table_repair(nv_ctx* c) noexcept nogil:
    # The holder of the snapshot lock died while it changed the table. Takes no lock, so readers
    # who wait for an even seq under a lock of theirs go on. A squeeze that stopped halfway left
    # elements twice, or mixed: the descriptor tells whether an element is whole.
    cdef nv_snap_ref* table = refs(c)
    cdef uint32_t i, kept = 0
    for i in range(c.hdr.snap_count):
        if table[i].off == 0 or (kept and table[kept - 1].epoch_id == table[i].epoch_id):
            continue
        if (<nv_snapshot*>(c.dram + table[i].off)).epoch_id == table[i].epoch_id:
            table[kept] = table[i]
            kept += 1
    c.hdr.snap_count = kept
    table_count(c)
    table_seq(c, False)


cdef uint64_t snap_id_before(nv_ctx* c, uint64_t epoch_id) noexcept nogil:
    # Id of the newest live snapshot older than `epoch_id`, 0 if there is none. Under the snapshot
    # lock.
    cdef uint32_t i = first_at_least(refs(c), c.hdr.snap_count, epoch_id)
    while i > 0:
        i -= 1
        if refs(c)[i].off:
            return refs(c)[i].epoch_id
    return 0

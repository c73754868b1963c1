"""What the engine's processes do: snapshots, cleaning, freezing, reaping; statistics for all."""

import errno as _errno
import operator
import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EBUSY, ENOENT, ENOMEM, EPERM, ETIMEDOUT
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset, strdup

from nova_mp import errors
from nova_mp.core.alloc cimport kept_blocks
from nova_mp.core.arch cimport nv_futex_wake, nv_load64, nv_store32, nv_xchg64
from nova_mp.core.arena cimport recovery_stats
from nova_mp.core.boundary cimport decode, raise_errno
from nova_mp.core.boundary import COUNTERS, MEDIA, OPERATIONS, ROLES
from nova_mp.core.dram cimport (CNT_COUNT, DRAM_PAGE, MAP_RECORDS, NV_FROZEN, OP_COUNT, ROLE_CLIENT,
                                SLOT_ACTIVE, SLOT_BYTES, SLOT_FREE, cpu_at, nv_cpu, nv_ctx,
                                nv_dram_header, nv_slot, nv_snapshot, nv_trace, slot_at)
from nova_mp.core.faults cimport protection_of
from nova_mp.core.layout cimport BLOCK_BYTES, DATA_NR
from nova_mp.core.reclaim cimport clean_backlog, clean_done_blocks, clean_lists, gc_all
from nova_mp.core.repair cimport reap_slot
from nova_mp.core.snaplist cimport snap_exclusive, snap_frees
from nova_mp.core.snapshot cimport snap_create, snap_delete
from nova_mp.core.snaptable cimport list_of, snap_at, snap_find
from nova_mp.core.stores cimport map_page, stores_hold, stores_release
from nova_mp.core.sync cimport RANK_SNAPSHOT, grace_wait, lock_drop, lock_take


# How a process write-protects what it has mapped; see uffd.h. "user" does not catch the stores of
# system calls, and neither does "mprotect".
PROTECTION = {1: "userfaultfd", 2: "userfaultfd (user)", 3: "mprotect"}

cdef struct nv_row:                  # what the table tells of a snapshot
    uint64_t epoch_id
    uint64_t create_time_ns
    uint64_t list_pages
    uint64_t exclusive               # blocks
    uint64_t listed                  # blocks
    uint32_t opens
    uint32_t deferred
    uint8_t name_len
    char name[255]


# ---- the table of snapshots, read under its lock ------------------------------------------------

cdef void read_row(nv_ctx* c, nv_snapshot* s, nv_row* row) noexcept nogil:
    cdef const uint8_t* info = c.pm + s.info_off
    cdef uint32_t i
    row.epoch_id = s.epoch_id
    row.create_time_ns = s.create_time_ns
    row.exclusive = snap_exclusive(c, s)
    row.opens = s.opens
    row.deferred = s.deferred
    row.list_pages = 0
    row.listed = 0
    for i in range(c.hdr.cpus):
        row.list_pages += list_of(s, i).num_pages
        row.listed += list_of(s, i).blocks
    row.name_len = info[3]
    memcpy(row.name, info + 40, info[3])


cdef uint64_t read_table(nv_ctx* c, uint64_t only, nv_row* rows, uint64_t room) noexcept nogil:
    # How many rows there are, oldest first, or, unless it is 0, of `only`; all of them in `rows` if
    # there is room.
    cdef nv_snapshot* s
    cdef uint64_t n = 0
    cdef uint32_t i
    lock_take(c, &c.hdr.snapshot_lock, RANK_SNAPSHOT)
    if only:
        s = snap_find(c, only)
        if s != NULL:
            read_row(c, s, rows)
            n = 1
    else:
        for i in range(c.hdr.snap_count):
            s = snap_at(c, i)
            if s == NULL:
                continue
            if n < room:
                read_row(c, s, &rows[n])
            n += 1
    lock_drop(c, &c.hdr.snapshot_lock)
    return n


cdef int64_t frees(nv_ctx* c, const uint64_t* wanted, uint64_t n_wanted,
                   uint64_t* missing) noexcept nogil:
    # Blocks that deleting the snapshots `wanted`, sorted ids, frees. -ENOMEM, or -ENOENT if one is
    # `missing`.
    cdef uint64_t* left
    cdef uint64_t n = 0, k = 0
    cdef int64_t blocks = 0
    cdef uint32_t i
    lock_take(c, &c.hdr.snapshot_lock, RANK_SNAPSHOT)
    left = <uint64_t*>malloc((c.hdr.snap_count + 1) * 8)
    if left == NULL:
        blocks = -ENOMEM
        n_wanted = 0
    else:
        for i in range(c.hdr.snap_count):
            if snap_at(c, i) == NULL:
                continue
            while k < n_wanted and wanted[k] < snap_at(c, i).epoch_id:
                k += 1
            if k == n_wanted or wanted[k] != snap_at(c, i).epoch_id:
                left[n] = snap_at(c, i).epoch_id
                n += 1
    for k in range(n_wanted):
        if snap_find(c, wanted[k]) == NULL:
            missing[0] = wanted[k]
            blocks = -ENOENT
            break
        blocks += <int64_t>snap_frees(c, snap_find(c, wanted[k]), left, n)
    lock_drop(c, &c.hdr.snapshot_lock)
    free(left)
    return blocks


cdef class Admin(Process):
    """The part of `Core` that works on the arena as a whole."""

    # -- snapshots (the coordinator's part)

    def snapshot_create(self, name=None):
        """Takes a snapshot; returns its id once it is complete. Called by the coordinator only."""
        cdef nv_ctx* c = self.ctx()
        cdef bytes text
        cdef const char* p
        cdef uint32_t n
        cdef uint64_t epoch_id = 0
        cdef int rc
        if name is not None and (not name.isprintable() or name.strip() != name
                                 or name[:1] in ("", "-") or name.isdigit()
                                 or not set(name).isdisjoint("/@")):
            raise ValueError("a snapshot's name is printable text, no number, without '/' and '@', "
                             f"and begins with no '-': {name!r}")
        text = (name or "").encode()
        p = PyBytes_AS_STRING(text)
        n = PyBytes_GET_SIZE(text)
        c.away = 1
        with nogil:
            rc = snap_create(c, p, n, &epoch_id)
        c.away = 0
        if rc == NV_FROZEN:
            raise OSError(_errno.EBUSY, "the arena is frozen", name)
        if rc == -EPERM or rc == -ETIMEDOUT:
            raise _unprotected(c, rc)
        if rc:
            raise_errno(rc, name, None)
        return epoch_id

    def snapshot_delete(self, epoch_id, bint defer=False):
        """Deletes a snapshot; the cleaner frees what it alone held.

        While it is open: OSError(EBUSY), or with `defer` a mark; the coordinator then deletes it
        once no view is open. Returns True if it is deleted, False if that was deferred.
        """
        cdef nv_ctx* c = self.ctx()
        cdef uint64_t wanted = operator.index(epoch_id)
        cdef int rc
        c.away = 1
        with nogil:
            rc = snap_delete(c, wanted, defer)
        c.away = 0
        if rc == -ENOENT:
            raise errors.NoSuchSnapshot(f"no snapshot {epoch_id}", "list the snapshots there are")
        if rc == NV_FROZEN:
            raise OSError(_errno.EBUSY, "the arena is frozen", str(epoch_id))
        if rc == -EBUSY:
            raise OSError(_errno.EBUSY, "the snapshot is open", str(epoch_id))
        if rc < 0:
            raise_errno(rc, str(epoch_id), None)
        if c.gc_ino:
            self.collect(c)
        return rc == 0

    def snapshot_frees(self, ids):
        """Bytes that deleting these snapshots together would free; NoSuchSnapshot if one is gone.

        Exact for data and for the logs of deleted files; log space of files that live on comes on
        top.
        """
        cdef nv_ctx* c = self.ctx()
        cdef uint64_t missing = 0, i
        cdef uint64_t* sorted_ids
        cdef uint64_t n
        cdef int64_t rc
        wanted = sorted({operator.index(epoch_id) for epoch_id in ids})
        n = len(wanted)
        sorted_ids = <uint64_t*>malloc((n + 1) * 8)
        if sorted_ids == NULL:
            raise MemoryError
        try:
            for i in range(n):
                sorted_ids[i] = wanted[i]
            c.away = 1
            with nogil:
                rc = frees(c, sorted_ids, n, &missing)
            c.away = 0
        finally:
            free(sorted_ids)
        if rc == -ENOENT:
            raise errors.NoSuchSnapshot(f"no snapshot {missing}", "list the snapshots there are")
        if rc < 0:
            raise MemoryError
        return rc * BLOCK_BYTES

    def snapshot_table(self, only=None):
        """The snapshots, oldest first, as dicts; with `only` that one alone, if it is there."""
        cdef nv_ctx* c = self.ctx()
        cdef uint64_t wanted = 0 if only is None else operator.index(only)
        cdef uint64_t room = 1 if wanted else c.hdr.snap_live + 16
        cdef uint64_t n = 0, i
        cdef nv_row* rows
        if only is not None and not wanted:
            return []
        while True:
            rows = <nv_row*>malloc(room * sizeof(nv_row))
            if rows == NULL:
                raise MemoryError
            try:
                c.away = 1
                with nogil:
                    n = read_table(c, wanted, rows, room)
                c.away = 0
                if n <= room:
                    return [_describe(&rows[i]) for i in range(n)]
            finally:
                free(rows)
            room = n + 16

    def snapshot_open(self, epoch_id):
        """A read-only view of a snapshot, which cannot be deleted while the view is open."""
        from nova_mp.core.view import SnapshotCore
        return SnapshotCore(self, operator.index(epoch_id))

    def reclaim(self, uint64_t budget=10000):
        """Cleans up to `budget` entries of deleted snapshots' lists; returns how many are left.

        After the last snapshot the logs are collected as well.
        """
        cdef nv_ctx* c = self.ctx()
        cdef int64_t rc
        c.away = 1
        with nogil:
            rc = clean_lists(c, budget)
        c.away = 0
        if rc == NV_FROZEN:
            return clean_backlog(c)
        if rc < 0:
            raise_errno(rc, None, None)
        if rc == 0 and c.hdr.snap_live == 0 and self.collected_bell != c.hdr.clean_bell:
            # Nothing pins entries any more. While snapshots remain, logs are collected as they
            # grow.
            self.collected_bell = c.hdr.clean_bell
            c.away = 1
            with nogil:
                gc_all(c)
            c.away = 0
        return rc

    def gc(self):
        """Collects garbage in every log that has more than one page."""
        cdef nv_ctx* c = self.ctx()
        c.away = 1
        with nogil:
            gc_all(c)
        c.away = 0

    def freeze(self, double timeout=5.0):
        """Lets running operations finish, new ones wait. TimeoutError names who did not finish."""
        cdef nv_ctx* c = self.ctx()
        cdef uint64_t ns = <uint64_t>(timeout * 1e9)
        cdef int late, rc
        gate = nv_load64(&c.hdr.gate)
        if gate & 1:
            raise OSError(_errno.EBUSY, "the arena is frozen already")
        nv_xchg64(&c.hdr.gate, gate | 1)
        c.away = 1
        with nogil:
            late = grace_wait(c, <uint64_t>-1 >> 1, ns)
        c.away = 0
        if late:
            pid = slot_at(c, late - 1).pid
            self.unfreeze()
            raise TimeoutError(_errno.ETIMEDOUT, f"process {pid} did not finish its operation")
        c.away = 1
        with nogil:
            # Stores into mappings fault from now on, and faults wait for the gate.
            lock_take(c, &c.hdr.snapshot_lock, RANK_SNAPSHOT)
            rc = stores_hold(c)
            stores_release(c)
            lock_drop(c, &c.hdr.snapshot_lock)
        c.away = 0
        if rc:
            self.unfreeze()
            raise _unprotected(c, rc)

    def unfreeze(self):
        """Lets operations go on. Harmless when nothing is frozen."""
        cdef nv_ctx* c = self.ctx()
        nv_xchg64(&c.hdr.gate, nv_load64(&c.hdr.gate) & ~<uint64_t>1)
        c.hdr.gate_futex += 1
        c.away = 1
        with nogil:
            nv_futex_wake(&c.hdr.gate_futex, 0x7FFFFFFF)
        c.away = 0

    @property
    def mmap_protection(self):
        """How snapshots and this process's stores into mapped files are kept apart.

        "userfaultfd"; "userfaultfd (user)" or "mprotect" where the kernel does not permit that:
        then a system call that stores into a mapping, such as readinto() of a socket, can fail with
        EFAULT, and with "mprotect" a suspended process that has files mapped makes snapshots fail.
        """
        return PROTECTION[protection_of(self.faults)]

    # -- processes

    def _choose_cpu(self, cpu):
        cdef nv_dram_header* h = self.arena.hdr
        cdef nv_slot* base = <nv_slot*>(self.arena.dram + h.slots_off)
        cdef nv_slot* s
        cdef uint32_t i
        if cpu is not None:
            if not 0 <= cpu < h.cpus:
                raise ValueError(f"cpu must be 0 to {h.cpus - 1}, not {cpu}")
            return cpu
        load = [0] * h.cpus
        for i in range(h.slot_high):
            s = <nv_slot*>(<char*>base + i * SLOT_BYTES)
            if s.state & 3 == SLOT_ACTIVE and s.role == ROLE_CLIENT and s.cpu < h.cpus:
                load[s.cpu] += 1
        return load.index(min(load))

    def reap(self):
        """Repairs and frees slots of dead processes and threads; returns what was done."""
        cdef nv_ctx* c = self.ctx()
        cdef uint32_t i
        cdef int rc
        result = []
        for i in range(c.hdr.slot_high):
            if slot_at(c, i).state == SLOT_FREE or slot_at(c, i) == c.slot:
                continue
            pid, tid, role = slot_at(c, i).pid, slot_at(c, i).tid, slot_at(c, i).role
            op, thread = slot_at(c, i).op, slot_at(c, i).parent != 0
            c.away = 1
            with nogil:
                rc = reap_slot(c, i)
            c.away = 0
            if rc == 1:
                result.append({"slot": i, "pid": pid, "tid": tid, "role": _role_name(role),
                               "op": OPERATIONS[op] if op < len(OPERATIONS) else "?",
                               "thread": thread})
        return result

    def slots(self):
        """Every process slot in use, as dicts."""
        cdef nv_ctx* c = self.ctx()
        cdef nv_slot* s
        cdef uint32_t i
        result = []
        for i in range(c.hdr.slot_high):
            s = slot_at(c, i)
            if s.state & 3 != SLOT_ACTIVE:
                continue
            result.append({
                "slot": i, "pid": s.pid, "tid": s.tid, "role": _role_name(s.role), "cpu": s.cpu,
                "thread": s.parent != 0,
                "title": (<bytes>s.title[:24]).split(b"\0")[0].decode(errors="replace"),
                "epoch_id": s.epoch_id, "op": OPERATIONS[s.op] if s.op < len(OPERATIONS) else "?",
                "mappings": _mappings(c, s), "protection": PROTECTION.get(s.map_protection),
                "locks": s.nlocks, "operations": sum(s.counters[k] for k in range(OP_COUNT)),
                **{name: s.counters[k] for name, k in COUNTERS.items()},
            })
        return result

    def stats(self):
        """Space, inodes, CPUs, snapshots, recovery and counters of the arena, as a dict."""
        cdef nv_ctx* c = self.ctx()
        cdef nv_dram_header* h = c.hdr
        cpus = [_cpu_stats(c, i) for i in range(h.cpus)]
        free_blocks = sum(cpu["free_blocks"] for cpu in cpus)
        held = sum(cpu["held_blocks"] for cpu in cpus)
        used = sum(cpu["inodes"] for cpu in cpus)
        head = DATA_NR + 1
        names = [f"op_{name}" for name in OPERATIONS] + list(COUNTERS)
        return {
            "epoch_id": nv_load64(&h.gate) >> 1,
            "frozen": bool(nv_load64(&h.gate) & 1),
            "media": {value: name for name, value in MEDIA.items()}[h.media_mode],
            "blocks": {
                "size": BLOCK_BYTES, "total": h.num_blocks, "head": head, "free": free_blocks,
                "held": held, "live": h.num_blocks - head - free_blocks - held,
                "reserved": sum(cpu_at(c, i).blocks.reserve for i in range(h.cpus)),
            },
            "inodes": {"used": used, "limit": h.inode_limit},
            "cpus": cpus,
            "counters": {name: sum(cpu["counters"][name] for cpu in cpus) for name in names},
            "snapshots": {
                "count": h.snap_live, "creates": h.snapshot_creates,
                "create_ns": h.snapshot_create_ns,
                "deletes": h.snapshot_deletes, "delete_ns": h.snapshot_delete_ns,
                "backlog": clean_backlog(c), "clean_ns": h.clean_ns,
                "cleaned": sum(cpu["counters"]["cleaned"] for cpu in cpus),
                "appends": sum(cpu["counters"]["list_appends"] for cpu in cpus),
                "list_pages": sum(cpu["list_pages"] for cpu in cpus),
            },
            "recovery": recovery_stats(h),
            "dram": {
                "bytes_used": (h.pages_reserved - h.pages.free) * DRAM_PAGE,
                "bytes_reserved": h.pages_reserved * DRAM_PAGE,
                "bytes_limit": h.limit_bytes,
            },
        }

    # -- failpoints

    def arm_failpoint(self, str name, int nth=1, slot=None):
        """Debug builds: this process kills itself at the nth passage of a failpoint from now on.

        With `slot` the process that holds that process slot does; one at a time can be armed so.
        """
        cdef nv_dram_header* h = self.arena.hdr
        cdef bytes text = name.encode()
        if slot is None:
            free(self.arena.failpoint)
            self.arena.failpoint = strdup(text)
            self.arena.failpoint_count = nth
            return
        if len(text) >= sizeof(h.doomed_at):
            raise ValueError(f"no failpoint has so long a name: {name!r}")
        nv_store32(&h.doomed, 0)
        memset(h.doomed_at, 0, sizeof(h.doomed_at))
        memcpy(h.doomed_at, <const char*>text, len(text))
        h.doomed_passages = nth
        nv_store32(&h.doomed, slot + 1)

    def disarm_failpoint(self):
        """Nobody is to die any more of what another process armed; True if somebody was to."""
        cdef bint armed = self.arena.hdr.doomed != 0
        nv_store32(&self.arena.hdr.doomed, 0)
        return armed

    # -- persistence trace

    def trace_start(self):
        """From now on this process's stores, flushes and fences are recorded."""
        cdef nv_trace* t = <nv_trace*>calloc(1, sizeof(nv_trace))
        if t == NULL:
            raise MemoryError
        if self.arena.trace != NULL:
            free(t)
            raise RuntimeError("a trace is being taken already")
        self.arena.trace = t

    def trace_stop(self):
        """The trace: records of (u64 offset, u64 length, u32 kind, u32 0) and the stored bytes."""
        cdef nv_trace* t = self.arena.trace
        if t == NULL:
            raise RuntimeError("no trace is being taken")
        self.arena.trace = NULL
        try:
            if t.failed:
                raise MemoryError("the trace did not fit in memory")
            return PyBytes_FromStringAndSize(<char*>t.buffer, t.used)
        finally:
            free(t.buffer)
            free(t)


cdef _unprotected(nv_ctx* c, int rc):
    """What to raise when a process's mappings could not be write-protected."""
    pid = c.hdr.late_pid
    if rc == -ETIMEDOUT:
        return TimeoutError(_errno.ETIMEDOUT, f"process {pid} did not protect what it has mapped")
    return OSError(-rc, f"what process {pid} has mapped cannot be write-protected; it has to "
                        "unmap it or to end")


cdef _mappings(nv_ctx* c, nv_slot* s):
    cdef uint64_t off = s.map_head
    cdef uint32_t i
    n = 0
    while off:
        for i in range(MAP_RECORDS):
            n += map_page(c, off).maps[i].ino != 0
        off = map_page(c, off).next_off
    return n


cdef _role_name(uint32_t role):
    for name, number in ROLES.items():
        if number == role:
            return name
    return "?"


cdef _cpu_stats(nv_ctx* c, uint32_t nr):
    cdef nv_cpu* cpu = cpu_at(c, nr)
    cdef nv_slot* s
    cdef uint32_t i
    cdef int k
    totals = [cpu.counters[k] for k in range(CNT_COUNT)]
    processes = 0
    for i in range(c.hdr.slot_high):
        s = slot_at(c, i)
        if s.state & 3 == SLOT_ACTIVE and s.cpu == nr:
            processes += 1
            for k in range(CNT_COUNT):
                totals[k] += s.counters[k]
    counters = {f"op_{name}": totals[k] for k, name in enumerate(OPERATIONS)}
    counters.update({name: totals[k] for name, k in COUNTERS.items()})
    return {
        "cpu": nr, "blocks": cpu.blocks.end - cpu.blocks.first,
        "free_blocks": cpu.blocks.free + kept_blocks(c, &cpu.blocks),
        "held_blocks": cpu.held_blocks - clean_done_blocks(c, nr), "inodes": cpu.inodes_used,
        "list_pages": cpu.list_pages,
        "list_appends": cpu.appends, "processes": processes, "counters": counters,
    }


cdef _describe(nv_row* row):
    return {
        "epoch_id": row.epoch_id,
        "name": decode(row.name, row.name_len) if row.name_len else None,
        "create_time_ns": row.create_time_ns, "list_pages": row.list_pages, "opens": row.opens,
        "exclusive_bytes": row.exclusive * BLOCK_BYTES, "listed_bytes": row.listed * BLOCK_BYTES,
        "deferred": bool(row.deferred),
    }

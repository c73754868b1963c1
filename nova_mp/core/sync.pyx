"""Locks with owners, operation epochs, grace periods and process slots."""

from libc.errno cimport ETIMEDOUT
from libc.string cimport memset, strncpy
from posix.unistd cimport getpid
from nova_mp.core.arch cimport (nv_assert, nv_cas32, nv_fence_full, nv_futex_wait, nv_futex_wake,
                                nv_gettid, nv_load64, nv_monotonic_ns, nv_pause, nv_store64,
                                NV_UNKNOWN, nv_thread_start_time, nv_xchg32, nv_xchg64)
from nova_mp.core.dram cimport (CNT_COUNT, CNT_EPOCH_RETRIES, CNT_LOCK_WAIT_NS, CNT_LOCK_WAITS,
                                CNT_OPS, CNT_TIMED_OTHERS, CNT_TIMED_WRITES, LOCK_OWNER,
                                LOCK_WAITERS, MAX_LOCKS, MAX_SLOTS, NV_FROZEN, NV_RETRY, OP_NONE,
                                OP_WRITE, SLOT_ACTIVE, SLOT_BYTES, SLOT_FREE, SLOT_TAKING,
                                WITHOUT_GRACE, WITHOUT_SECOND_LOOK, count, count_op, cpu_at,
                                dram_off, nv_cpu, slot_at)

cdef enum:
    SPINS = 60                       # about a microsecond: most critical sections are shorter
    WAIT_NS = 20000000               # then look whether the owner still lives
    HELD_UP_EVERY = 4
    HELD_UP_NS = 10000000


cdef int lock_take(nv_ctx* c, uint32_t* word, uint64_t rank) noexcept nogil:
    # 0, or NV_RETRY when contended and the context must not wait.
    cdef nv_slot* s = c.slot
    cdef uint32_t n = s.nlocks
    nv_assert(n < MAX_LOCKS, "too many locks held", n)
    nv_assert(n == 0 or c.ranks[n - 1] < rank, "lock order", rank)
    c.ranks[n] = rank
    s.locks[n] = dram_off(c, word)
    nv_fence_release()
    s.nlocks = n + 1
    if nv_cas32(word, 0, c.id):
        return 0
    if c.nowait:
        s.nlocks = n
        return NV_RETRY
    lock_wait(c, word)
    return 0


cdef void lock_wait(nv_ctx* c, uint32_t* word) noexcept nogil:
    cdef uint64_t start = nv_monotonic_ns()
    cdef uint32_t seen, owner
    cdef int i
    count(c, CNT_LOCK_WAITS, 1)
    for i in range(SPINS):
        if nv_load32(word) == 0 and nv_cas32(word, 0, c.id):
            count(c, CNT_LOCK_WAIT_NS, nv_monotonic_ns() - start)
            return
        nv_pause()
    while True:
        seen = nv_load32(word)
        if seen == 0:
            # Others may still sleep behind us: keep their mark.
            if nv_cas32(word, 0, c.id | LOCK_WAITERS):
                break
            continue
        if not seen & LOCK_WAITERS:
            if not nv_cas32(word, seen, seen | LOCK_WAITERS):
                continue
            seen |= LOCK_WAITERS
        if nv_futex_wait(word, seen, WAIT_NS) == -ETIMEDOUT:
            owner = nv_load32(word) & LOCK_OWNER
            if owner != 0 and c.a.repair != NULL and slot_dead(slot_at(c, owner - 1)):
                c.a.repair(c, owner)
    count(c, CNT_LOCK_WAIT_NS, nv_monotonic_ns() - start)


cdef void lock_drop(nv_ctx* c, uint32_t* word) noexcept nogil:
    cdef nv_slot* s = c.slot
    cdef uint64_t off = dram_off(c, word)
    cdef uint32_t n = s.nlocks - 1
    cdef uint32_t i
    nv_assert((word[0] & LOCK_OWNER) == c.id, "unlock of a lock that is not held", word[0])
    if nv_xchg32(word, 0) & LOCK_WAITERS:
        nv_futex_wake(word, 1)
    if s.locks[n] != off:
        i = n
        while i > 0 and s.locks[i] != off:
            i -= 1
        while i < n:
            s.locks[i] = s.locks[i + 1]
            c.ranks[i] = c.ranks[i + 1]
            i += 1
    s.nlocks = n


cdef void lock_drop_all(nv_ctx* c, uint32_t down_to) noexcept nogil:
    while c.slot.nlocks > down_to:
        lock_drop(c, <uint32_t*>(c.dram + c.slot.locks[c.slot.nlocks - 1]))


cdef int repair_lock_take(nv_ctx* c, bint may_wait) noexcept nogil:
    # Not in the slot's list: a repairer that dies has done nothing that its successor, who repairs
    # the same slot again from its intent, would have to know.
    cdef uint32_t* word = &c.hdr.repair_lock
    cdef uint32_t seen
    while True:
        seen = nv_load32(word)
        if seen == 0:
            if nv_cas32(word, 0, c.id):
                return 0
            continue
        if seen == c.id:
            return -1
        if slot_dead(slot_at(c, seen - 1)):
            if nv_cas32(word, seen, c.id):
                return 0
            continue
        if not may_wait:
            return -1                # the repairer may need a leaf lock that the caller holds
        nv_futex_wait(word, seen, WAIT_NS)


cdef void repair_lock_drop(nv_ctx* c) noexcept nogil:
    nv_xchg32(&c.hdr.repair_lock, 0)
    nv_futex_wake(&c.hdr.repair_lock, 64)


cdef void held_up(nv_ctx* c, int op) noexcept nogil:
    # Where a protection is off, one operation in a few takes so long that snapshots meet it.
    if c.slot.counters[CNT_OPS + op] % HELD_UP_EVERY == 0:
        nv_futex_wait(&c.hdr.gate_futex, nv_load32(&c.hdr.gate_futex), HELD_UP_NS)


cdef int op_begin(nv_ctx* c, int op) noexcept nogil:
    # SYNC-2. The caller holds all its inode locks. 0, or NV_FROZEN.
    cdef nv_slot* s = c.slot
    cdef uint64_t gate
    nv_assert(s.epoch_id == 0, "operation inside an operation", s.op)
    while True:
        gate = nv_load64(&c.hdr.gate)
        if gate & 1:
            nv_store64(&s.epoch_id, 0)
            return NV_FROZEN
        if without(c, WITHOUT_SECOND_LOOK):
            held_up(c, op)
        nv_xchg64(&s.epoch_id, gate >> 1)
        if nv_load64(&c.hdr.gate) == gate or without(c, WITHOUT_SECOND_LOOK):
            break
        count(c, CNT_EPOCH_RETRIES, 1)
    if without(c, WITHOUT_GRACE):
        held_up(c, op)
    c.epoch_id = gate >> 1
    s.op = op
    c.timed_from = count_op(c, op)
    return 0


cdef void op_end(nv_ctx* c) noexcept nogil:
    cdef nv_slot* s = c.slot
    cdef int kind
    if c.timed_from:
        kind = CNT_TIMED_WRITES if s.op == OP_WRITE else CNT_TIMED_OTHERS
        count(c, kind, 1)
        count(c, kind + 1, nv_monotonic_ns() - c.timed_from)
        c.timed_from = 0
    s.ntx = 0
    s.new_ino = 0
    s.op = OP_NONE
    c.epoch_id = 0
    nv_store64(&s.epoch_id, 0)


cdef void gate_wait(nv_ctx* c, uint64_t ns) noexcept nogil:
    cdef uint32_t seen = nv_load32(&c.hdr.gate_futex)
    if nv_load64(&c.hdr.gate) & 1:
        nv_futex_wait(&c.hdr.gate_futex, seen, ns)


cdef int grace_wait(nv_ctx* c, uint64_t epoch_id, uint64_t timeout_ns) noexcept nogil:
    # Waits until no other slot is in an operation of `epoch_id` or an older one. Operations take
    # microseconds, so this spins first; a stopped process is waited for, a dead one repaired.
    # Returns 0, or the number + 1 of the slot that was not done when the time was over.
    cdef uint64_t start = nv_monotonic_ns()
    cdef uint64_t announced
    cdef uint32_t i, spins
    cdef nv_slot* s
    if without(c, WITHOUT_GRACE):
        return 0
    nv_fence_full()
    for i in range(c.hdr.slot_high):
        s = slot_at(c, i)
        spins = 0
        while s != c.slot:
            announced = nv_load64(&s.epoch_id)
            if announced == 0 or announced > epoch_id:
                break
            spins += 1
            if spins < 200:
                nv_pause()
                continue
            nv_futex_wait(&c.hdr.gate_futex, nv_load32(&c.hdr.gate_futex), 50000)
            if spins % 64 == 0:
                if slot_dead(s):
                    c.a.repair(c, i + 1)
                elif nv_monotonic_ns() - start > timeout_ns:
                    return i + 1
    return 0


cdef int slot_take(nv_arena* a, uint32_t role, uint32_t cpu, uint32_t parent,
                   const char* title) noexcept nogil:
    # Number of a slot for the calling thread, -1 when all are taken, -2 when it cannot be told when
    # the thread was started, for want of a descriptor above all. The state word carries the pid, so
    # that a slot whose taker died halfway can be told from one being taken.
    cdef nv_slot* base = <nv_slot*>(a.dram + a.hdr.slots_off)
    cdef nv_slot* s
    cdef uint32_t i, high
    cdef uint32_t pid = getpid()
    for i in range(MAX_SLOTS):
        s = <nv_slot*>(<char*>base + i * SLOT_BYTES)
        if nv_load32(&s.state) != SLOT_FREE or not nv_cas32(&s.state, SLOT_FREE,
                                                            SLOT_TAKING | (pid << 2)):
            continue
        memset(<char*>s + 4, 0, SLOT_BYTES - 4)
        s.pid = pid
        s.tid = nv_gettid()
        s.role = role
        s.cpu = cpu
        s.parent = parent
        s.start_time = nv_thread_start_time(pid, s.tid if parent else pid)
        if s.start_time == 0 or s.start_time == NV_UNKNOWN:
            # Others could not tell us from somebody dead.
            nv_store32(&s.state, SLOT_FREE)
            return -2
        strncpy(<char*>s.title, title, 23)
        while True:
            high = nv_load32(&a.hdr.slot_high)
            if high > i or nv_cas32(&a.hdr.slot_high, high, i + 1):
                break
        nv_store32(&s.state, SLOT_ACTIVE | (pid << 2))
        return i
    return -1


cdef void slot_give_back(nv_ctx* c, nv_slot* s) noexcept nogil:
    # Its counters go to its CPU. Several slots of a CPU may do this at once and lose an increment:
    # these are statistics of the past, the counters of living slots are exact.
    cdef nv_cpu* cpu = cpu_at(c, s.cpu)
    cdef int i
    for i in range(CNT_COUNT):
        cpu.counters[i] += s.counters[i]
        s.counters[i] = 0
    nv_store64(&s.epoch_id, 0)
    nv_store32(&s.faulting, 0)
    s.pid = 0
    nv_store32(&s.state, SLOT_FREE)


cdef bint slot_dead(nv_slot* s) noexcept nogil:
    cdef uint32_t state = nv_load32(&s.state)
    cdef uint32_t pid = state >> 2
    cdef uint64_t start, now
    if state == SLOT_FREE:
        return False
    if state & 3 == SLOT_TAKING:
        return nv_thread_start_time(pid, pid) == 0
    start = s.start_time
    now = nv_thread_start_time(pid, s.tid if s.parent else pid)
    if now == start or now == NV_UNKNOWN:
        return False
    # It may have been given back and taken again while we looked.
    nv_fence_acquire()
    return nv_load32(&s.state) == state and s.start_time == start


cdef void ctx_init(nv_ctx* c, nv_arena* a, uint32_t slot_nr) noexcept nogil:
    memset(c, 0, sizeof(nv_ctx))
    c.a = a
    c.pm = a.pm
    c.dram = a.dram
    c.hdr = a.hdr
    c.slot = slot_at(c, slot_nr)
    c.id = slot_nr + 1
    c.cpu = c.slot.cpu
    c.tid = c.slot.tid
    c.start_time = c.slot.start_time

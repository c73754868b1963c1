"""Write protection of what processes have mapped, and the hold on faults meanwhile."""

from libc.errno cimport EBADF, EPERM, ESRCH, ETIMEDOUT
from libc.string cimport memset
from posix.unistd cimport close
from nova_mp.core.arch cimport (nv_fence_full, nv_futex_wait, nv_futex_wake, nv_load32,
                                nv_monotonic_ns, nv_pause, nv_store32, nv_xchg32)
from nova_mp.core.dram cimport (MAP_RECORDS, MAP_WRITABLE, SLOT_ACTIVE, WITHOUT_HOLD, nv_slot,
                                slot_at)
from nova_mp.core.layout cimport BLOCK_BYTES, BLOCK_SHIFT
from nova_mp.core.pmem cimport fail_point
from nova_mp.core.sync cimport slot_dead, without

cdef extern from "<errno.h>":
    enum: ENOENT

cdef enum:
    HOLD_NS = 50000000               # longest that stores are held back for a process that is late

cdef extern from "uffd.h" nogil:
    enum: NV_PROTECT_SIGNAL
    int nv_uffd_protect(int fd, uint64_t at, uint64_t n_bytes, int on)
    int nv_uffd_protect_all(int fd, uint64_t at, uint64_t n_bytes)
    int nv_fd_of(uint32_t pid, int number)
    void nv_ring(uint32_t* bell)


cdef nv_map* map_find(nv_ctx* c, uint64_t page_off, uint64_t at) noexcept nogil:
    # The record of the mapping at `at` in the table that begins at `page_off`; with 0 an unused
    # record. NULL if there is none.
    cdef nv_map_page* page
    cdef uint32_t i
    while page_off:
        page = map_page(c, page_off)
        for i in range(MAP_RECORDS):
            if (page.maps[i].ino != 0 and page.maps[i].at == at) if at else page.maps[i].ino == 0:
                return &page.maps[i]
        page_off = page.next_off
    return NULL


cdef void map_touched(nv_map* m, uint64_t page, uint64_t end) noexcept nogil:
    # MAP-9: pages [page, end) of the mapping are going to be writable.
    cdef uint64_t part
    for part in range(page // m.part_pages, (end - 1) // m.part_pages + 1):
        m.writable[part >> 6] |= <uint64_t>1 << (part & 63)


cdef inline bint part_writable(nv_map* m, uint64_t part) noexcept nogil:
    return m.writable[part >> 6] >> (part & 63) & 1


cdef uint64_t map_writable(nv_map* m, uint64_t page, uint64_t* end) noexcept nogil:
    # The first page not before `page` that may be writable, and where the run of such parts ends;
    # the mapping's end if there is none.
    cdef uint64_t pages = m.bytes >> BLOCK_SHIFT
    cdef uint64_t parts = (pages + m.part_pages - 1) // m.part_pages
    cdef uint64_t part = page // m.part_pages
    while part < parts and not part_writable(m, part):
        part += 1
    if part >= parts or page >= pages:
        return pages
    page = part * m.part_pages
    while part < parts and part_writable(m, part):
        part += 1
    end[0] = part * m.part_pages if part < parts else pages
    return page


cdef void map_protected(nv_map* m) noexcept nogil:
    memset(m.writable, 0, sizeof(m.writable))


# ---- faults -------------------------------------------------------------------------------------

cdef bint fault_enter(nv_ctx* c) noexcept nogil:
    # MAP-2. False while stores are held back: let go of everything, wait, try again.
    nv_xchg32(&c.slot.faulting, 1)
    if nv_load32(&c.hdr.hold) == 0:
        return True
    fault_leave(c)
    return False


cdef void fault_leave(nv_ctx* c) noexcept nogil:
    nv_xchg32(&c.slot.faulting, 0)
    if nv_load32(&c.hdr.hold):
        nv_futex_wake(&c.slot.faulting, 1)


cdef void hold_wait(nv_ctx* c, uint64_t ns) noexcept nogil:
    # Until stores may go on, or `ns` passed. A holder who died is repaired.
    cdef uint32_t holder = nv_load32(&c.hdr.hold)
    if holder == 0:
        return
    nv_futex_wait(&c.hdr.hold, holder, ns)
    if nv_load32(&c.hdr.hold) == holder and slot_dead(slot_at(c, holder - 1)):
        c.a.repair(c, holder)


# ---- holding back -------------------------------------------------------------------------------

cdef nv_slot* busy_resolver(nv_ctx* c, uint64_t ns) noexcept nogil:
    # Waits until no fault is being resolved: NULL, or whose it was when `ns` had passed. That takes
    # microseconds, and its thread waits for nobody who could wait for us; but it may be suspended.
    # That of a dead process makes nothing writable any more.
    cdef uint64_t start = nv_monotonic_ns()
    cdef nv_slot* s
    cdef uint32_t i, spins
    nv_fence_full()
    for i in range(c.hdr.slot_high):
        s = slot_at(c, i)
        spins = 0
        while nv_load32(&s.faulting):
            spins += 1
            if spins < 200:
                nv_pause()
                continue
            nv_futex_wait(&s.faulting, 1, 1000000)
            if s.state & 3 != SLOT_ACTIVE or slot_dead(s):
                break
            if nv_monotonic_ns() - start > ns:
                return s
    return NULL


cdef int protect_range(nv_ctx* c, int fd, uint64_t at, uint64_t n_bytes) noexcept nogil:
    cdef uint64_t done = 0
    cdef int rc = 0
    if not without(c, WITHOUT_HOLD):
        return nv_uffd_protect_all(fd, at, n_bytes)
    while done < n_bytes and rc == 0:
        rc = nv_uffd_protect(fd, at + done, BLOCK_BYTES, 1)
        done += BLOCK_BYTES
    return rc


cdef int protect_map(nv_ctx* c, int fd, nv_map* m) noexcept nogil:
    cdef uint64_t pages = m.bytes >> BLOCK_SHIFT
    cdef uint64_t end = 0
    cdef uint64_t page = map_writable(m, 0, &end)
    cdef int rc
    while page < pages:
        rc = protect_range(c, fd, m.at + (page << BLOCK_SHIFT), (end - page) << BLOCK_SHIFT)
        if rc and rc != -ENOENT:
            return rc
        page = map_writable(m, end, &end)
    map_protected(m)
    return 0


cdef int protect_with(nv_ctx* c, nv_slot* s, int fd) noexcept nogil:
    cdef uint64_t off = s.map_head
    cdef nv_map* m
    cdef uint32_t i
    cdef int rc
    while off:
        for i in range(MAP_RECORDS):
            m = &map_page(c, off).maps[i]
            if m.ino and m.at and m.flags & MAP_WRITABLE:
                rc = protect_map(c, fd, m)
                if rc:
                    return rc
        off = map_page(c, off).next_off
    return 0


cdef bint maps_writable(nv_ctx* c, nv_slot* s) noexcept nogil:
    # Whether the process has pages that are not protected.
    cdef uint64_t off = s.map_head
    cdef uint64_t end
    cdef nv_map* m
    cdef uint32_t i
    while off:
        for i in range(MAP_RECORDS):
            m = &map_page(c, off).maps[i]
            if (m.ino and m.at and m.flags & MAP_WRITABLE
                    and map_writable(m, 0, &end) < m.bytes >> BLOCK_SHIFT):
                return True
        off = map_page(c, off).next_off
    return False


cdef bint memory_gone(nv_ctx* c, nv_slot* s) noexcept nogil:
    # The process is dead, or dies just now, or executes another program: what it had mapped is not
    # stored to any more. Its threads go together, and its descriptors a little before them.
    cdef nv_slot* thread
    if slot_dead(s) or s.map_thread == 0:
        return True
    thread = slot_at(c, s.map_thread - 1)
    return thread.state & 3 != SLOT_ACTIVE or thread.pid != s.pid or slot_dead(thread)


cdef int protect_asking(nv_ctx* c, nv_slot* s) noexcept nogil:
    # The process has to do it itself.
    cdef uint64_t start = nv_monotonic_ns()
    cdef uint32_t asked = s.protect_asked + 1
    cdef uint32_t done
    nv_store32(&s.protect_asked, asked)
    nv_ring(&s.map_bell)
    while True:
        done = nv_load32(&s.protect_done)
        if done == asked or memory_gone(c, s):
            return 0
        if nv_monotonic_ns() - start > HOLD_NS:
            return -ETIMEDOUT
        nv_futex_wait(&s.protect_done, done, 10000000)


cdef int protect_process(nv_ctx* c, nv_slot* s) noexcept nogil:
    cdef uint64_t start = nv_monotonic_ns()
    cdef uint32_t never = 0
    cdef int fd = s.map_fd
    cdef int rc
    if s.map_protection == NV_PROTECT_SIGNAL:
        return protect_asking(c, s)
    if s.pid == c.a.pid:
        return protect_with(c, s, fd)
    while True:
        fd = nv_fd_of(s.pid, s.map_fd)
        if fd >= 0:
            rc = protect_with(c, s, fd)
            close(fd)
        else:
            rc = fd
        if rc == 0 or rc == -ESRCH or memory_gone(c, s):
            return 0
        # A process that ends loses its descriptors first, and its memory with its last thread.
        if fd >= 0:
            return rc
        if rc != -EBADF:
            return -EPERM
        if nv_monotonic_ns() - start > HOLD_NS:
            return -ETIMEDOUT
        nv_futex_wait(&never, 0, 1000000)


cdef int protect_all(nv_ctx* c) noexcept nogil:
    cdef nv_slot* s
    cdef uint32_t i
    cdef int rc
    for i in range(c.hdr.slot_high):
        s = slot_at(c, i)
        if s.map_head == 0 or s.state & 3 != SLOT_ACTIVE or not maps_writable(c, s):
            continue
        rc = protect_process(c, s)
        if rc:
            c.hdr.late_pid = s.pid
            return rc
        fail_point(c, "stores.protected")
    return 0


cdef int hold_once(nv_ctx* c) noexcept nogil:
    cdef nv_slot* late
    if not without(c, WITHOUT_HOLD):
        nv_xchg32(&c.hdr.hold, c.id)
    fail_point(c, "stores.held")
    late = busy_resolver(c, HOLD_NS)
    if late == NULL:
        return protect_all(c)
    c.hdr.late_pid = late.pid
    return -ETIMEDOUT


cdef bint any_maps(nv_ctx* c) noexcept nogil:
    cdef uint32_t i
    for i in range(c.hdr.slot_high):
        if slot_at(c, i).map_head and slot_at(c, i).state & 3 == SLOT_ACTIVE:
            return True
    return False


cdef int stores_hold(nv_ctx* c) noexcept nogil:
    # Under the snapshot lock. When this returns 0, no store into any mapping succeeds until
    # stores_release(). An error leaves nothing held back. While a process that must do its part is
    # suspended, others' stores are held back for moments only, with as much time in between.
    cdef uint64_t start = nv_monotonic_ns()
    cdef int rc = 0
    if not any_maps(c):
        return 0
    while True:
        rc = hold_once(c)
        if rc == 0:
            return 0
        stores_release(c)
        if rc != -ETIMEDOUT or nv_monotonic_ns() - start > PROTECT_NS:
            return rc
        nv_futex_wait(&c.hdr.hold, 0, HOLD_NS)


cdef void stores_release(nv_ctx* c) noexcept nogil:
    if nv_load32(&c.hdr.hold) == c.id:
        nv_xchg32(&c.hdr.hold, 0)
        nv_futex_wake(&c.hdr.hold, 0x7FFFFFFF)

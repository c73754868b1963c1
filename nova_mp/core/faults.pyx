"""The thread that resolves stores into write-protected mappings."""

from libc.errno cimport EFAULT, EINVAL, ENOMEM, ENOSPC
from libc.stdlib cimport calloc, free, realloc
from posix.unistd cimport close
from nova_mp.core.alloc cimport keep_drop
from nova_mp.core.arch cimport (nv_futex_wait, nv_futex_wake, nv_load32, nv_load64,
                                nv_monotonic_ns, nv_store32)
from nova_mp.core.dram cimport MAP_PARTS, NV_FROZEN, ROLE_CLIENT
from nova_mp.core.mapping cimport resolve_pages
from nova_mp.core.pmem cimport block_off, fail_point
from nova_mp.core.reclaim cimport gc_inode
from nova_mp.core.snaplist cimport spare_drop
from nova_mp.core.stores cimport (fault_enter, fault_leave, hold_wait, map_protected, map_touched,
                                  map_writable)
from nova_mp.core.sync cimport ctx_init, gate_wait, slot_give_back, slot_take

cdef extern from "uffd.h" nogil:
    int nv_uffd_open(int* mode)
    int nv_uffd_register(int fd, uint8_t* at, uint64_t n_bytes)
    int nv_uffd_protect(int fd, uint64_t at, uint64_t n_bytes, int on)
    int nv_uffd_renew(int fd, uint8_t* at, uint64_t n_bytes, const uint8_t* source)
    uint64_t nv_uffd_next(int fd, uint32_t* tid)
    int nv_uffd_wait(int fd, int stop, int ms)
    int nv_access(uint8_t* at, uint64_t n_bytes, int writable)
    int nv_segv_install()
    int nv_area_add(uint8_t* at, uint64_t n_bytes, uint32_t* bell, nv_fault* faults)
    void nv_area_remove(uint8_t* at)
    void nv_areas_forget(nv_fault* faults)
    nv_fault* nv_fault_next(nv_fault* faults, int* at)
    void nv_fault_done(nv_fault* fault)
    void nv_ring(uint32_t* bell)
    void nv_allow_fd_of()
    int nv_cpu_of(uint32_t tid)
    int nv_run_on(const cpu_set_t* cpus, int cpu)
    void nv_my_cpus(cpu_set_t* cpus)
    int nv_thread_start(pthread_t* thread, void* (*body)(void*) noexcept nogil, void* argument)
    void nv_refuse_store(uint32_t tid, int error)
    int pthread_join(pthread_t thread, void** result)
    int pthread_mutex_init(pthread_mutex_t* m, void* attributes)
    int pthread_mutex_lock(pthread_mutex_t* m)
    int pthread_mutex_unlock(pthread_mutex_t* m)
    int eventfd(unsigned int value, int flags)
    int eventfd_write(int fd, uint64_t value)
    enum: EFD_CLOEXEC

cdef enum:
    WINDOW_PAGES = 64                # most pages of one fault: 256 KiB
    SIGNAL_PAGES = 16                # fewest with mprotect, which cuts areas of memory
    STREAM_PAGES = 16                # a window from which on stores are taken to come in order
    AHEAD_PAGES = 16384              # farthest to go ahead of the stores: 64 MiB
    AHEAD_WINDOW = 256               # at a time, between looks for faults
    SPIN_NS = 100000                 # how long the next fault of a stream is looked for, not slept
    LOOKS = 64                       # faults between looks where the stores come from
    PAUSE_NS = 5000000               # after which it is looked again
    WAIT_NS = 5000000
    SPACE_TRIES = 20                 # then the store is refused: a tenth of a second


# ---- one fault ----------------------------------------------------------------------------------

cdef nv_mapped* find(nv_faults* f, uint64_t at) noexcept nogil:
    cdef uint64_t i
    for i in range(f.count):
        if at >= f.items[i].at and (at - f.items[i].at) >> 12 < f.items[i].pages:
            return &f.items[i]
    return NULL


cdef uint64_t window(nv_faults* f, nv_mapped* m, uint64_t page) noexcept nogil:
    cdef uint64_t n = 1
    if page == m.next_page:
        n = m.window * 2 if m.window * 2 < WINDOW_PAGES else WINDOW_PAGES
    if f.protection == NV_PROTECT_SIGNAL and n < SIGNAL_PAGES:
        n = SIGNAL_PAGES
    return n if n < m.pages - page else m.pages - page


cdef int make_writable(nv_ctx* c, nv_faults* f, nv_mapped* m, uint64_t page, uint64_t n,
                       uint64_t block) noexcept nogil:
    # `block` is where the pages lie if there are many, one after the other; else 0.
    cdef int rc
    map_touched(m.record, page, page + n)
    if f.protection != NV_PROTECT_SIGNAL:
        rc = -EINVAL
        if block:
            rc = nv_uffd_renew(f.fd, <uint8_t*>m.at + (page << 12), n << 12,
                               c.pm + block_off(block))
        if rc and rc != -EFAULT:
            rc = nv_uffd_protect(f.fd, m.at + (page << 12), n << 12, 0)
        return rc
    rc = nv_access(<uint8_t*>m.at + (page << 12), n << 12, 1)
    if rc == -ENOMEM:
        # Too many areas of memory: then all of the mapping, which is one piece again.
        rc = resolve_pages(c, m.ino, m.generation, m.pgoff, m.pgoff + m.pages, NULL)
        if rc == 0:
            map_touched(m.record, 0, m.pages)
            rc = nv_access(<uint8_t*>m.at, m.pages << 12, 1)
    return rc


cdef int open_pages(nv_ctx* c, nv_faults* f, nv_mapped* m, uint64_t page, uint64_t n,
                    bint ahead) noexcept nogil:
    # Stores to the pages may go on after this. 0, NV_FROZEN or -errno. With `ahead` nobody waits
    # for them yet, and there is time to spare whoever comes a fault for each page.
    cdef uint64_t block = 0
    cdef int rc = NV_FROZEN
    if fault_enter(c):
        rc = resolve_pages(c, m.ino, m.generation, m.pgoff + page, m.pgoff + page + n,
                           &block if ahead else NULL)
        if rc == 0:
            fail_point(c, "fault.preserved")
            rc = make_writable(c, f, m, page, n, block)
        fail_point(c, "fault.resolved")
        fault_leave(c)
    return rc


cdef void in_order(nv_ctx* c, nv_faults* f, nv_mapped* m, uint64_t page,
                   uint64_t n) noexcept nogil:
    # Remembers the window that was made writable for a store to its first page.
    cdef bint later = c.epoch_id != m.epoch_id
    m.epoch_id = c.epoch_id
    if page == m.next_page:
        m.run += n
    elif not later and page < m.next_page and page + 2 * WINDOW_PAGES > m.next_page:
        return                       # mostly one that came while its page was being made writable
    else:
        m.run = n
    m.next_page = page + n
    m.window = n
    f.ahead_at = m.at + (m.next_page << 12)
    f.ahead_pages = 0
    if n >= STREAM_PAGES and m.run > n:
        f.ahead_pages = 2 * m.run if 2 * m.run < AHEAD_PAGES else AHEAD_PAGES


cdef int resolve_once(nv_ctx* c, nv_faults* f, uint64_t at, bint single) noexcept nogil:
    # 0: resolved. NV_FROZEN: wait, for the hold or the gate, and try again. Or -errno.
    cdef nv_mapped* m
    cdef uint64_t page, n
    cdef int rc
    pthread_mutex_lock(&f.mutex)
    m = find(f, at)
    if m == NULL:
        # Unmapped meanwhile. Whoever stores there has no business to, but shall not hang.
        if f.protection != NV_PROTECT_SIGNAL:
            nv_uffd_protect(f.fd, at, 4096, 0)
        pthread_mutex_unlock(&f.mutex)
        return 0
    page = (at - m.at) >> 12
    n = 1 if single else window(f, m, page)
    rc = open_pages(c, f, m, page, n, False)
    if rc == 0:
        in_order(c, f, m, page, n)
    pthread_mutex_unlock(&f.mutex)
    return rc


cdef void go_ahead(nv_ctx* c, nv_faults* f) noexcept nogil:
    # Stores came in order, and none waits now: opens the next window before it is asked for.
    cdef nv_mapped* m
    cdef uint64_t page, n
    pthread_mutex_lock(&f.mutex)
    m = find(f, f.ahead_at)
    n = 0
    if m != NULL:
        page = (f.ahead_at - m.at) >> 12
        n = f.ahead_pages if f.ahead_pages < AHEAD_WINDOW else AHEAD_WINDOW
        if n > m.pages - page:
            n = m.pages - page
        if page != m.next_page or open_pages(c, f, m, page, n, True):
            n = 0
    if n:
        m.next_page = page + n
        m.run += n
        f.ahead_at += n << 12
    f.ahead_pages = f.ahead_pages - n if n else 0
    f.spin_until_ns = nv_monotonic_ns() + SPIN_NS
    pthread_mutex_unlock(&f.mutex)


cdef bint hurried(nv_faults* f) noexcept nogil:
    # Whether there is work, or soon will be: to sleep and be woken takes longer.
    return f.ahead_pages != 0 or nv_monotonic_ns() < f.spin_until_ns


cdef void follow(nv_faults* f, uint32_t tid) noexcept nogil:
    # Keeps this thread on the storing thread's processor while stores are scattered: both take
    # turns, and to wake a processor that sleeps takes many times as long.
    cdef uint64_t now = nv_monotonic_ns()
    cdef bint quiet = now - f.last_ns > PAUSE_NS
    cdef int cpu = -1
    f.last_ns = now
    if f.ahead_pages == 0:
        f.looks -= 1
        if f.looks and not quiet:
            return
        cpu = nv_cpu_of(tid)
    f.looks = LOOKS
    if cpu != f.cpu_now:
        f.cpu_now = nv_run_on(&f.cpus, cpu)


cdef void resolve(nv_ctx* c, nv_faults* f, uint64_t at, uint32_t tid) noexcept nogil:
    cdef int tries = 0
    cdef int rc = NV_FROZEN
    while rc and not nv_load32(&f.stopping):
        rc = resolve_once(c, f, at, tries > 0)
        if rc == NV_FROZEN:
            serve(f)
            hold_wait(c, WAIT_NS)
            gate_wait(c, WAIT_NS)
        elif rc:
            tries += 1
            if rc != -ENOSPC or tries == SPACE_TRIES:
                nv_refuse_store(tid, -rc)
                return
            # The cleaner may be about to free some.
            nv_futex_wait(&f.stopping, 0, WAIT_NS)


cdef void serve(nv_faults* f) noexcept nogil:
    # Protects everything, if somebody asked for it and cannot do it from outside.
    cdef uint32_t asked = nv_load32(&f.process.protect_asked)
    cdef uint64_t i, page
    cdef uint64_t end = 0
    cdef nv_mapped* m
    if asked == f.process.protect_done:
        return
    pthread_mutex_lock(&f.mutex)
    for i in range(f.count):
        m = &f.items[i]
        page = map_writable(m.record, 0, &end)
        while page < m.pages:
            nv_access(<uint8_t*>m.at + (page << 12), (end - page) << 12, 0)
            page = map_writable(m.record, end, &end)
        map_protected(m.record)
    pthread_mutex_unlock(&f.mutex)
    nv_store32(&f.process.protect_done, asked)
    nv_futex_wake(&f.process.protect_done, 64)


# ---- the thread ---------------------------------------------------------------------------------

cdef void collect(nv_ctx* c) noexcept nogil:
    # Between faults: the log of a file that is stored to grows by what is preserved.
    cdef uint64_t ino = c.gc_ino
    if ino:
        c.gc_ino = 0
        gc_inode(c, ino)


cdef void run_uffd(nv_ctx* c, nv_faults* f) noexcept nogil:
    cdef uint32_t tid = 0
    cdef uint64_t at
    while not nv_uffd_wait(f.fd, f.stop, 0 if hurried(f) else -1):
        at = nv_uffd_next(f.fd, &tid)
        if at:
            resolve(c, f, at, tid)
            follow(f, tid)
            collect(c)
        elif f.ahead_pages:
            go_ahead(c, f)
            collect(c)


cdef void run_signals(nv_ctx* c, nv_faults* f) noexcept nogil:
    cdef uint32_t seen, tid
    cdef nv_fault* fault
    cdef int at
    while not nv_load32(&f.stopping):
        seen = nv_load32(&f.process.map_bell)
        serve(f)
        at = 0
        fault = nv_fault_next(f.posted, &at)
        while fault != NULL:
            tid = fault.tid
            resolve(c, f, fault.at, tid)
            nv_fault_done(fault)
            follow(f, tid)
            collect(c)
            fault = nv_fault_next(f.posted, &at)
        if f.ahead_pages:
            go_ahead(c, f)
            collect(c)
        else:
            nv_futex_wait(&f.process.map_bell, seen, 1000000000)


cdef void* thread_body(void* argument) noexcept nogil:
    cdef nv_faults* f = <nv_faults*>argument
    cdef nv_ctx c
    cdef int nr = slot_take(f.a, ROLE_CLIENT, f.cpu, f.a.process_slot + 1, "faults")
    if nr >= 0:
        ctx_init(&c, f.a, nr)
        c.keeps = 1
        nv_store32(&f.process.map_thread, c.id)
    nv_store32(&f.ready, 1 if nr >= 0 else 2)
    nv_futex_wake(&f.ready, 1)
    if nr < 0:
        return NULL
    if f.protection == NV_PROTECT_SIGNAL:
        run_signals(&c, f)
    else:
        run_uffd(&c, f)
    spare_drop(&c)
    keep_drop(&c)
    slot_give_back(&c, c.slot)
    return NULL


cdef int choose(nv_faults* f, bint signals) noexcept nogil:
    # How this process protects: userfaultfd where it is permitted and knows this kind of memory.
    cdef int mode = NV_PROTECT_SIGNAL
    f.fd = -1
    if not signals:
        f.fd = nv_uffd_open(&mode)
    if f.fd >= 0:
        f.protection = mode
        nv_allow_fd_of()
        return 0
    f.protection = NV_PROTECT_SIGNAL
    return nv_segv_install()


cdef int protection_of(nv_faults* f) noexcept nogil:
    # How a process protects, or, before it mapped anything (NULL), how it would.
    cdef int mode = NV_PROTECT_SIGNAL
    cdef int fd
    if f != NULL:
        return f.protection
    fd = nv_uffd_open(&mode)
    if fd < 0:
        return NV_PROTECT_SIGNAL
    close(fd)
    return mode


cdef nv_faults* faults_start(nv_arena* a, nv_slot* process, bint signals,
                             int* error) noexcept nogil:
    # NULL with `error` set: -ENOMEM, -EAGAIN, or 0 if all process slots are taken.
    cdef nv_faults* f = <nv_faults*>calloc(1, sizeof(nv_faults))
    error[0] = -ENOMEM
    if f == NULL:
        return NULL
    pthread_mutex_init(&f.mutex, NULL)
    f.a = a
    f.process = process
    f.cpu = process.cpu
    f.cpu_now = -1
    f.looks = 1
    nv_my_cpus(&f.cpus)
    f.stop = eventfd(0, EFD_CLOEXEC)
    error[0] = choose(f, signals)
    if error[0] == 0:
        process.map_fd = f.fd
        process.map_protection = f.protection
        error[0] = nv_thread_start(&f.thread, thread_body, f)
    if error[0]:
        faults_forget(f)
        return NULL
    while nv_load32(&f.ready) == 0:
        nv_futex_wait(&f.ready, 0, WAIT_NS)
    if f.ready == 2:
        pthread_join(f.thread, NULL)
        faults_forget(f)
        return NULL
    return f


cdef void faults_stop(nv_faults* f) noexcept nogil:
    # After the last mapping was removed.
    nv_store32(&f.stopping, 1)
    nv_ring(&f.process.map_bell)
    eventfd_write(f.stop, 1)
    pthread_join(f.thread, NULL)
    faults_forget(f)


cdef void faults_forget(nv_faults* f) noexcept nogil:
    # Frees it; after a fork the thread is the parent's.
    if f.fd >= 0:
        close(f.fd)
    if f.stop >= 0:
        close(f.stop)
    free(f.items)
    free(f)


# ---- mappings -----------------------------------------------------------------------------------

cdef int protect_new(nv_ctx* c, nv_faults* f, nv_map* m, uint8_t* at,
                     uint64_t n_bytes) noexcept nogil:
    # Stores have to be caught while there are snapshots, and while the arena is frozen.
    cdef bint catch = c.hdr.snap_live != 0 or nv_load64(&c.hdr.gate) & 1
    cdef int rc
    m.part_pages = ((n_bytes >> 12) + MAP_PARTS - 1) // MAP_PARTS
    map_protected(m)
    if not catch:
        map_touched(m, 0, n_bytes >> 12)
    if f.protection == NV_PROTECT_SIGNAL:
        rc = nv_access(at, n_bytes, 0 if catch else 1)
        return rc if rc else nv_area_add(at, n_bytes, &f.process.map_bell, f.posted)
    rc = nv_uffd_register(f.fd, at, n_bytes)
    if rc == 0 and catch:
        rc = nv_uffd_protect(f.fd, <uint64_t>at, n_bytes, 1)
    return rc


cdef int faults_add(nv_ctx* c, nv_faults* f, nv_map* m, uint8_t* at, uint64_t pages) noexcept nogil:
    # Under the snapshot lock. From now on the mapping admits stores (MAP-1).
    cdef nv_mapped* items
    cdef int rc = 0
    pthread_mutex_lock(&f.mutex)
    if f.count == f.room:
        items = <nv_mapped*>realloc(f.items, (f.room * 2 + 16) * sizeof(nv_mapped))
        if items == NULL:
            rc = -ENOMEM
        else:
            f.items = items
            f.room = f.room * 2 + 16
    if rc == 0:
        rc = protect_new(c, f, m, at, pages << 12)
    if rc == 0:
        items = &f.items[f.count]
        items.at = <uint64_t>at
        items.pages = pages
        items.ino = m.ino
        items.pgoff = m.pgoff
        items.generation = m.generation
        items.record = m
        items.next_page = 0
        items.window = 1
        items.run = 0
        items.epoch_id = 0
        f.count += 1
        m.bytes = pages << 12
        m.at = <uint64_t>at
    pthread_mutex_unlock(&f.mutex)
    return rc


cdef void faults_disown(nv_faults* f) noexcept nogil:
    # In a forked child, which inherits the memory but not its protection. The lists may be those of
    # a moment in which another thread of the parent changed them.
    nv_areas_forget(f.posted)
    faults_forget(f)


cdef void faults_remove(nv_faults* f, uint64_t at) noexcept nogil:
    # Its record admits no stores any more; the caller unmaps it next.
    cdef uint64_t i
    pthread_mutex_lock(&f.mutex)
    for i in range(f.count):
        if f.items[i].at == at:
            f.count -= 1
            f.items[i] = f.items[f.count]
            break
    if f.protection == NV_PROTECT_SIGNAL:
        nv_area_remove(<uint8_t*>at)
    pthread_mutex_unlock(&f.mutex)

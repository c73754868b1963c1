"""DRAM pages and slabs."""

from libc.string cimport memset
from nova_mp.core.alloc cimport (bits_clear, bits_run, bits_set, region_available, region_find,
                                 region_hint, region_recount)
from nova_mp.core.arch cimport nv_assert, nv_check, nv_ctz64, nv_fence_release, nv_popcount64
from nova_mp.core.dram cimport (DRAM_PAGE, GROW_PAGES, INDEX_OFF_MASK, SLAB_512, SLAB_64,
                                SLAB_CLASSES, SLAB_NONE, cpu_at, nv_cpu, nv_region, nv_slot)
from nova_mp.core.pmem cimport fail_point
from nova_mp.core.sync cimport RANK_PAGES, RANK_SLAB, lock_drop, lock_take

cdef extern from "<fcntl.h>" nogil:
    int posix_fallocate(int fd, long off, long n) noexcept


cdef bint pages_grow(nv_ctx* c, uint64_t n) noexcept nogil:
    # The segment is sparse: memory is reserved here, when it is needed, so that running out is an
    # error code and not a SIGBUS.
    cdef nv_region* r = &c.hdr.pages
    # The last page stays unused: optimistic readers check offsets against whole pages.
    cdef uint64_t limit = c.hdr.limit_bytes // DRAM_PAGE - 1
    cdef uint64_t step = n if n > GROW_PAGES else GROW_PAGES
    if r.end + step > limit:
        step = limit - r.end
    if step < n or posix_fallocate(c.a.dram_fd, <long>(r.end * DRAM_PAGE),
                                   <long>(step * DRAM_PAGE)) != 0:
        return False
    r.free += step
    r.cursor = r.end
    r.end += step
    c.hdr.pages_reserved = r.end
    return True


cdef uint64_t pages_alloc(nv_ctx* c, uint64_t n, uint64_t link_off) noexcept nogil:
    # DRAM offset of `n` contiguous pages, or 0.
    cdef nv_region* r = &c.hdr.pages
    cdef nv_slot* s = c.slot
    cdef uint64_t start = 0
    cdef uint64_t found = 0
    cdef int nowait = c.nowait
    c.nowait = 0
    lock_take(c, &r.lock, RANK_PAGES)
    c.nowait = nowait
    if r.free >= n:
        found = region_find(r, page_bitmap(c), n, &start)
    if found < n or region_available(c, r) < n:
        found = 0
        if pages_grow(c, n) and region_available(c, r) >= n:
            found = region_find(r, page_bitmap(c), n, &start)
    if found >= n:
        nv_assert(s.dpend_off == 0, "two pending DRAM objects", s.dpend_off)
        s.dpend_pages = n
        s.dpend_link_off = link_off
        nv_fence_release()
        s.dpend_off = start * DRAM_PAGE
        bits_set(page_bitmap(c), start, n)
        r.free -= n
    lock_drop(c, &r.lock)
    return start * DRAM_PAGE if found >= n else 0


cdef void pages_free(nv_ctx* c, uint64_t off, uint64_t n) noexcept nogil:
    cdef nv_region* r = &c.hdr.pages
    cdef uint64_t page = off // DRAM_PAGE
    cdef int nowait = c.nowait
    c.nowait = 0
    lock_take(c, &r.lock, RANK_PAGES)
    c.nowait = nowait
    nv_check(bits_run(page_bitmap(c), page, n, 1) == n, "freeing free DRAM pages", <long>page)
    bits_clear(page_bitmap(c), page, n)
    r.free += n
    region_hint(r, page, n)
    lock_drop(c, &r.lock)


cdef inline uint64_t slab_bytes(int slab_class) noexcept nogil:
    return 64 if slab_class == SLAB_64 else 512


cdef inline uint64_t slab_full(int slab_class) noexcept nogil:
    return <uint64_t>-1 if slab_class == SLAB_64 else 0xFF


cdef uint64_t slab_alloc(nv_ctx* c, int slab_class, uint64_t link_off) noexcept nogil:
    cdef nv_cpu* cpu = cpu_at(c, c.cpu)
    cdef nv_slot* s = c.slot
    cdef nv_page_desc* d
    cdef uint64_t page, off = 0
    cdef int bit
    cdef int nowait = c.nowait
    c.nowait = 0
    lock_take(c, &cpu.slab_lock, RANK_SLAB)
    c.nowait = nowait
    page = cpu.partial[slab_class]
    if page == 0:
        off = pages_alloc(c, 1, 0)
        page = off // DRAM_PAGE
        if page:
            d = page_desc(c, page)
            d.bitmap = 0
            d.cpu = <unsigned short>c.cpu
            d.next_partial = 0
            d.in_list = 1
            d.slab_class = <unsigned char>slab_class
            cpu.partial[slab_class] = <uint32_t>page
            dpend_done(c)
    off = 0
    if page:
        d = page_desc(c, page)
        bit = nv_ctz64(~d.bitmap)
        off = page * DRAM_PAGE + bit * slab_bytes(slab_class)
        s.dpend_pages = 0
        s.dpend_link_off = link_off
        nv_fence_release()
        s.dpend_off = off
        d.bitmap |= <uint64_t>1 << bit
        if d.bitmap == slab_full(slab_class):
            cpu.partial[slab_class] = d.next_partial
            d.in_list = 0
    lock_drop(c, &cpu.slab_lock)
    return off


cdef void slab_free(nv_ctx* c, uint64_t off) noexcept nogil:
    cdef uint64_t page = off // DRAM_PAGE
    cdef nv_page_desc* d = page_desc(c, page)
    cdef int slab_class = d.slab_class
    cdef nv_cpu* cpu = cpu_at(c, d.cpu)
    cdef uint64_t bit
    cdef int nowait = c.nowait
    nv_check(slab_class == SLAB_64 or slab_class == SLAB_512, "freeing what is no slab object",
             <long>off)
    bit = <uint64_t>1 << ((off % DRAM_PAGE) // slab_bytes(slab_class))
    c.nowait = 0
    lock_take(c, &cpu.slab_lock, RANK_SLAB)
    c.nowait = nowait
    nv_check((d.bitmap & bit) != 0, "freeing a free slab object", <long>off)
    d.bitmap &= ~bit
    if not d.in_list:
        d.next_partial = cpu.partial[slab_class]
        d.in_list = 1
        cpu.partial[slab_class] = <uint32_t>page
    elif d.bitmap == 0 and cpu.partial[slab_class] == page and d.next_partial:
        # Empty, and not the only one: give the page back.
        cpu.partial[slab_class] = d.next_partial
        d.in_list = 0
        d.slab_class = SLAB_NONE
        pages_free(c, page * DRAM_PAGE, 1)
    lock_drop(c, &cpu.slab_lock)


cdef uint64_t dram_alloc(nv_ctx* c, uint64_t n_bytes, uint64_t link_off) noexcept nogil:
    # Zeroed memory: 64 or 512 bytes, or whole pages. Offset, or 0 when there is none. The object is
    # the slot's pending one until dpend_done(); `link_off` is the DRAM word that will refer to it.
    cdef uint64_t off
    if n_bytes == 64:
        off = slab_alloc(c, SLAB_64, link_off)
    elif n_bytes == 512:
        off = slab_alloc(c, SLAB_512, link_off)
    else:
        off = pages_alloc(c, n_bytes // DRAM_PAGE, link_off)
    if off:
        memset(c.dram + off, 0, n_bytes)
    return off


cdef void dram_free(nv_ctx* c, uint64_t off, uint64_t n_bytes) noexcept nogil:
    if n_bytes < DRAM_PAGE:
        slab_free(c, off)
    else:
        pages_free(c, off, n_bytes // DRAM_PAGE)


cdef void slab_repair(nv_ctx* c, uint32_t cpu_nr) noexcept nogil:
    # The context acts as the dead owner of the slab lock: set the pending object's bit, then build
    # the partial lists again from the descriptors.
    cdef nv_cpu* cpu = cpu_at(c, cpu_nr)
    cdef nv_slot* s = c.slot
    cdef nv_page_desc* d
    cdef uint64_t page
    cdef int i
    for i in range(SLAB_CLASSES):
        cpu.partial[i] = 0
    if (s.dpend_off and s.dpend_pages == 1
            and page_desc(c, s.dpend_off // DRAM_PAGE).slab_class != SLAB_NONE):
        dpend_done(c)
    for page in range(c.hdr.pages.first, c.hdr.pages.end):
        d = page_desc(c, page)
        if d.slab_class == SLAB_NONE or d.cpu != cpu_nr:
            continue
        if s.dpend_off and s.dpend_pages == 0 and s.dpend_off // DRAM_PAGE == page:
            d.bitmap |= <uint64_t>1 << ((s.dpend_off % DRAM_PAGE) // slab_bytes(d.slab_class))
        d.in_list = 0
        if not page_bitmap(c)[page >> 6] >> (page & 63) & 1:
            d.slab_class = SLAB_NONE
        elif d.bitmap != slab_full(d.slab_class):
            d.next_partial = cpu.partial[d.slab_class]
            d.in_list = 1
            cpu.partial[d.slab_class] = <uint32_t>page


cdef void pages_repair(nv_ctx* c) noexcept nogil:
    cdef nv_slot* s = c.slot
    if s.dpend_off and s.dpend_pages:
        bits_set(page_bitmap(c), s.dpend_off // DRAM_PAGE, s.dpend_pages)
    region_recount(c, &c.hdr.pages, page_bitmap(c))


cdef void dpend_repair(nv_ctx* c) noexcept nogil:
    # Called once the leaf locks are repaired: keep the pending object iff something refers to it.
    cdef nv_slot* s = c.slot
    cdef uint64_t off = s.dpend_off
    cdef uint64_t word
    if off == 0:
        return
    if s.dpend_link_off:
        word = (<uint64_t*>(c.dram + s.dpend_link_off))[0]
        if word & INDEX_OFF_MASK == off:
            dpend_done(c)
            return
    s.dpend_off = 0
    if s.dpend_pages:
        pages_free(c, off, s.dpend_pages)
    else:
        slab_free(c, off)

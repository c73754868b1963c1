"""Block regions of the CPUs, DRAM pages and slabs."""

from libc.string cimport memset
from nova_mp.core.arch cimport nv_assert, nv_check, nv_ctz64, nv_fence_release, nv_popcount64
from nova_mp.core.dram cimport (CNT_STEALS, DRAM_PAGE, GROW_PAGES, HINTS, INDEX_OFF_MASK, SLAB_512,
                                SLAB_64, SLAB_CLASSES, SLAB_NONE, count, cpu_at, nv_cpu, nv_slot)
from nova_mp.core.layout cimport DATA_NR
from nova_mp.core.pmem cimport fail_point
from nova_mp.core.sync cimport RANK_BLOCKS, RANK_PAGES, RANK_SLAB, lock_drop, lock_take

cdef extern from "<fcntl.h>" nogil:
    int posix_fallocate(int fd, long off, long n) noexcept

cdef enum:
    HOT_BLOCKS = 16                  # small writes take shorter extents if these were freed lately
    SEARCH_RUNS = 64                 # free runs looked at before the longest so far is taken


# ---- bitmaps ------------------------------------------------------------------------------------

cdef inline uint64_t low_bits(uint64_t n) noexcept nogil:
    return <uint64_t>-1 if n == 64 else (<uint64_t>1 << n) - 1


cdef void bits_set(uint64_t* bitmap, uint64_t start, uint64_t n) noexcept nogil:
    cdef uint64_t end = start + n
    cdef uint64_t k
    while start < end:
        k = 64 - (start & 63)
        if k > end - start:
            k = end - start
        bitmap[start >> 6] |= low_bits(k) << (start & 63)
        start += k


cdef void bits_clear(uint64_t* bitmap, uint64_t start, uint64_t n) noexcept nogil:
    cdef uint64_t end = start + n
    cdef uint64_t k
    while start < end:
        k = 64 - (start & 63)
        if k > end - start:
            k = end - start
        bitmap[start >> 6] &= ~(low_bits(k) << (start & 63))
        start += k


cdef uint64_t bits_run(uint64_t* bitmap, uint64_t start, uint64_t most, int used) noexcept nogil:
    # Length, at most `most`, of the run of used (1) or free (0) bits that begins at `start`.
    cdef uint64_t pos = start
    cdef uint64_t end = start + most
    cdef uint64_t w
    while pos < end:
        w = bitmap[pos >> 6]
        if used:
            w = ~w
        w >>= pos & 63
        if w:
            pos += nv_ctz64(w)
            break
        pos += 64 - (pos & 63)
    return (pos if pos < end else end) - start


cdef uint64_t bits_count_free(uint64_t* bitmap, uint64_t first, uint64_t end) noexcept nogil:
    cdef uint64_t n = 0
    cdef uint64_t pos = first
    while pos < end:
        if pos & 63 == 0 and pos + 64 <= end:
            n += 64 - nv_popcount64(bitmap[pos >> 6])
            pos += 64
        else:
            n += (bitmap[pos >> 6] >> (pos & 63) & 1) ^ 1
            pos += 1
    return n


# ---- regions ------------------------------------------------------------------------------------

cdef uint64_t region_search(nv_region* r, uint64_t* bitmap, uint64_t first, uint64_t end,
                            uint64_t want, uint64_t* best_start, uint64_t best) noexcept nogil:
    cdef uint64_t pos = first
    cdef uint64_t run
    cdef int runs = 0
    while pos < end and runs < SEARCH_RUNS:
        pos += bits_run(bitmap, pos, end - pos, 1)
        if pos >= end:
            break
        run = bits_run(bitmap, pos, want if want < end - pos else end - pos, 0)
        runs += 1
        if run > best:
            best = run
            best_start[0] = pos
            if best >= want:
                break
        pos += run
    return best


cdef uint64_t region_find(nv_region* r, uint64_t* bitmap, uint64_t want,
                          uint64_t* start) noexcept nogil:
    # Longest free run that a bounded search finds, at most `want` units. Nothing is marked yet.
    cdef uint64_t hint, at, n, best = 0
    cdef uint32_t i
    while r.hint_count:
        i = (r.hint_top + HINTS - 1) % HINTS
        hint = r.hints[i]
        at = hint >> 32
        n = <uint32_t>hint
        if want > n:
            if want <= HOT_BLOCKS and n * 2 >= want and bits_run(bitmap, at, n, 0) == n:
                # Blocks that are in the cache in two pieces cost less than cold ones in one.
                r.hint_top = i
                r.hint_count -= 1
                start[0] = at
                return n
            break
        # Single blocks come from the end of the extent: its start stays whole for the next.
        at += n - want
        if bits_run(bitmap, at, want, 0) == want:
            if n == want:
                r.hint_top = i
                r.hint_count -= 1
            else:
                r.hints[i] = hint - want
            start[0] = at
            return want
        r.hint_top = i
        r.hint_count -= 1
    best = region_search(r, bitmap, r.cursor, r.end, want, start, 0)
    if best < want:
        best = region_search(r, bitmap, r.first, r.end, want, start, best)
    if best:
        r.cursor = start[0] + best
        if r.cursor >= r.end:
            r.cursor = r.first
    return best


cdef void region_hint(nv_region* r, uint64_t start, uint64_t n) noexcept nogil:
    cdef uint32_t last = (r.hint_top + HINTS - 1) % HINTS
    cdef uint64_t hint
    if r.hint_count:
        hint = r.hints[last]
        if (hint >> 32) + <uint32_t>hint == start:
            r.hints[last] = hint + n
            return
    r.hints[r.hint_top] = start << 32 | n
    r.hint_top = (r.hint_top + 1) % HINTS
    if r.hint_count < HINTS:
        r.hint_count += 1


cdef void region_recount(nv_ctx* c, nv_region* r, uint64_t* bitmap) noexcept nogil:
    r.free = bits_count_free(bitmap, r.first, r.end)
    r.hint_count = 0
    r.hint_top = 0
    if r.cursor < r.first or r.cursor >= r.end:
        r.cursor = r.first


cdef inline uint64_t region_available(nv_ctx* c, nv_region* r) noexcept nogil:
    cdef uint64_t keep = 0 if c.privileged else r.reserve
    return r.free - keep if r.free > keep else 0


# ---- arena blocks -------------------------------------------------------------------------------

cdef inline uint64_t region_first(nv_ctx* c, uint64_t share, uint64_t nr) noexcept nogil:
    # ALLOC-4: where the region of CPU `nr` begins, of equal shares but for the rounding.
    return (DATA_NR + nr * share) & ~<uint64_t>63 if nr else DATA_NR


cdef void regions_init(nv_ctx* c) noexcept nogil:
    # The last CPU takes the remainder. The arena's last block is the superblock copy.
    cdef uint64_t total = c.hdr.num_blocks - 1 - DATA_NR
    cdef uint64_t share = total // c.hdr.cpus
    cdef uint64_t reserve = share // 64
    cdef uint32_t i
    cdef nv_region* r
    if reserve > 32:
        reserve = 32
    for i in range(c.hdr.cpus):
        r = &cpu_at(c, i).blocks
        r.first = region_first(c, share, i)
        r.end = region_first(c, share, i + 1) if i + 1 < c.hdr.cpus else c.hdr.num_blocks - 1
        if r.first < DATA_NR:
            r.first = DATA_NR
        if r.end < r.first:
            r.end = r.first          # shares of less than a word of the bitmap: some have none
        r.cursor = r.first
        r.reserve = <uint32_t>(reserve if r.end > r.first else 0)


cdef nv_region* region_of(nv_ctx* c, uint64_t block) noexcept nogil:
    cdef uint64_t share = (c.hdr.num_blocks - 1 - DATA_NR) // c.hdr.cpus
    cdef uint64_t nr = (block - DATA_NR) // share
    if nr >= c.hdr.cpus:
        nr = c.hdr.cpus - 1
    # Its beginning was rounded down, and those of the next ones may have been, past the block.
    while nr + 1 < c.hdr.cpus and cpu_at(c, <uint32_t>nr).blocks.end <= block:
        nr += 1
    return &cpu_at(c, <uint32_t>nr).blocks


cdef uint64_t take_from(nv_ctx* c, nv_region* r, uint64_t want, uint64_t least, uint64_t link_off,
                        uint64_t* got) noexcept nogil:
    cdef nv_slot* s = c.slot
    cdef uint64_t start = 0
    cdef uint64_t n, available
    cdef int nowait = c.nowait
    c.nowait = 0                     # held for nanoseconds, and the caller could not undo
    lock_take(c, &r.lock, RANK_BLOCKS)
    c.nowait = nowait
    available = region_available(c, r)
    if want > available:
        want = available
    n = region_find(r, block_bitmap(c), want, &start) if want >= least else 0
    if n >= least:
        nv_assert(s.pend_len == 0, "two pending extents", s.pend_block)
        s.pend_block = start
        s.pend_link_off = link_off
        nv_fence_release()
        s.pend_len = n
        fail_point(c, "alloc.announced")
        bits_set(block_bitmap(c), start, n)
        r.free -= n
        fail_point(c, "alloc.bits_set")
    else:
        n = 0
    lock_drop(c, &r.lock)
    got[0] = n
    return start if n else 0


cdef uint64_t alloc_any(nv_ctx* c, uint64_t want, uint64_t least, uint64_t link_off,
                        uint64_t* got) noexcept nogil:
    # Own region first, then the fullest other, until none has enough.
    cdef uint32_t cpus = c.hdr.cpus
    cdef uint32_t i, best
    cdef uint64_t most, n, below = <uint64_t>-1
    cdef uint64_t start = 0
    if region_available(c, &cpu_at(c, c.cpu).blocks) >= least:
        start = take_from(c, &cpu_at(c, c.cpu).blocks, want, least, link_off, got)
        if start:
            return start
    if want == least and want > 1:
        # A run may hide in a region that is not the fullest: ask all, in order of free space.
        for i in range(cpus):
            if i != c.cpu and region_available(c, &cpu_at(c, i).blocks) >= least:
                start = take_from(c, &cpu_at(c, i).blocks, want, least, link_off, got)
                if start:
                    count(c, CNT_STEALS, 1)
                    return start
        return 0
    while True:
        most = 0
        best = 0
        for i in range(cpus):
            n = region_available(c, &cpu_at(c, i).blocks)
            if n > most and n < below:
                most = n
                best = i
        if most < least:
            return 0
        start = take_from(c, &cpu_at(c, best).blocks, want, least, link_off, got)
        if start:
            count(c, CNT_STEALS, 1)
            return start
        below = most


cdef uint64_t blocks_alloc(nv_ctx* c, uint64_t want, uint64_t link_off,
                           uint64_t* got) noexcept nogil:
    # First block of an extent of 1 to `want` blocks (count in `got`), or 0: no space. The extent is
    # the slot's pending one until pend_done().
    return alloc_any(c, want, 1, link_off, got)


cdef uint64_t blocks_alloc_run(nv_ctx* c, uint64_t want, uint64_t link_off) noexcept nogil:
    # As blocks_alloc, but `want` contiguous blocks or none.
    cdef uint64_t got = 0
    return alloc_any(c, want, want, link_off, &got)


cdef void blocks_free(nv_ctx* c, uint64_t block, uint64_t n) noexcept nogil:
    cdef nv_slot* s = c.slot
    release_fill(s, block << 32 | n)
    release_announce(s)
    blocks_free_announced(c)
    s.rel_state = 0


cdef void blocks_free_announced(nv_ctx* c) noexcept nogil:
    # ALLOC-2. Frees what rel_* names; rel_state becomes 2 under the last region's lock.
    cdef nv_slot* s = c.slot
    cdef nv_region* r
    cdef uint64_t block, n
    cdef int nowait = c.nowait
    if c.a.rebuild:
        s.rel_state = 2
        return
    c.nowait = 0
    while <uint32_t>s.rel_extent:
        block = s.rel_extent >> 32
        n = <uint32_t>s.rel_extent
        nv_check(block >= DATA_NR and block + n < c.hdr.num_blocks,
                 "freeing blocks outside the data area", <long>block)
        r = region_of(c, block)
        lock_take(c, &r.lock, RANK_BLOCKS)
        if n > r.end - block:
            n = r.end - block
        nv_check(bits_run(block_bitmap(c), block, n, 1) == n, "freeing free blocks", <long>block)
        bits_clear(block_bitmap(c), block, n)
        fail_point(c, "free.bits_cleared")
        r.free += n
        region_hint(r, block, n)
        free_step(s, n)
        lock_drop(c, &r.lock)
    c.nowait = nowait


cdef inline void free_step(nv_slot* s, uint64_t n) noexcept nogil:
    # Start and length are one word, so that a repairer, who holds the same lock, never sees an
    # extent that reaches past the announced one.
    s.rel_extent += (n << 32) - n
    if <uint32_t>s.rel_extent == 0:
        s.rel_state = 2


cdef bint blocks_in_use(nv_ctx* c, uint64_t block, uint64_t n) noexcept nogil:
    return bits_run(block_bitmap(c), block, n, 1) == n


cdef int blocks_mark(nv_ctx* c, uint64_t block, uint64_t n) noexcept nogil:
    # Mount: the blocks belong to somebody. -1 if they already do, or lie outside the data area.
    if block < DATA_NR or block + n >= c.hdr.num_blocks:
        return -1
    if bits_run(block_bitmap(c), block, n, 0) != n:
        return -1
    bits_set(block_bitmap(c), block, n)
    return 0


cdef uint64_t blocks_free_count(nv_ctx* c) noexcept nogil:
    cdef uint64_t n = 0
    cdef uint32_t i
    for i in range(c.hdr.cpus):
        n += cpu_at(c, i).blocks.free
    return n


cdef void region_repair(nv_ctx* c, nv_region* r) noexcept nogil:
    # The context acts as the dead owner of r.lock: finish the allocation or release that was under
    # way, then compute again what follows from the bitmap.
    cdef nv_slot* s = c.slot
    cdef uint64_t* bitmap = block_bitmap(c)
    cdef uint64_t block, n
    if s.pend_len and s.pend_block >= r.first and s.pend_block < r.end:
        bits_set(bitmap, s.pend_block, s.pend_len)
    block = s.rel_extent >> 32
    n = <uint32_t>s.rel_extent
    if s.rel_state == 1 and n and s.rel_ino == 0 and block >= r.first and block < r.end:
        if n > r.end - block:
            n = r.end - block
        bits_clear(bitmap, block, n)
        free_step(s, n)
    region_recount(c, r, bitmap)


# ---- DRAM pages and slabs -----------------------------------------------------------------------

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

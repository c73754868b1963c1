"""Bitmaps and regions, and the blocks of the arena."""

from nova_mp.core.arch cimport nv_assert, nv_check, nv_ctz64, nv_fence_release, nv_popcount64
from nova_mp.core.dram cimport CNT_STEALS, HINTS, count, cpu_at, slot_at
from nova_mp.core.layout cimport DATA_NR
from nova_mp.core.pmem cimport fail_point
from nova_mp.core.sync cimport RANK_BLOCKS, lock_drop, lock_take

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


cdef uint64_t alloc_regions(nv_ctx* c, uint64_t want, uint64_t least, uint64_t link_off,
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


cdef uint64_t take_kept(nv_ctx* c, uint64_t link_off) noexcept nogil:
    cdef nv_slot* s = c.slot
    cdef uint64_t block = s.keep_block
    nv_assert(s.pend_len == 0, "two pending extents", s.pend_block)
    s.pend_block = block
    s.pend_link_off = link_off
    nv_fence_release()
    s.pend_len = 1
    nv_fence_release()
    fail_point(c, "alloc.kept_taken")
    s.keep_block = 0
    return block


cdef uint64_t blocks_alloc(nv_ctx* c, uint64_t want, uint64_t link_off,
                           uint64_t* got) noexcept nogil:
    # First block of an extent of 1 to `want` blocks (count in `got`), or 0: no space. The extent is
    # the slot's pending one until pend_done().
    cdef bint kept = c.keeps and c.slot.keep_block != 0
    cdef uint64_t start = 0
    if want > 1 or not kept:
        start = alloc_regions(c, want, 1, link_off, got)
    if start == 0 and kept:
        start = take_kept(c, link_off)
        got[0] = 1
    return start


cdef uint64_t blocks_alloc_run(nv_ctx* c, uint64_t want, uint64_t link_off) noexcept nogil:
    # As blocks_alloc, but `want` contiguous blocks or none.
    cdef uint64_t got = 0
    return alloc_regions(c, want, want, link_off, &got)


cdef void blocks_free(nv_ctx* c, uint64_t block, uint64_t n) noexcept nogil:
    cdef nv_slot* s = c.slot
    release_fill(s, block << 32 | n)
    release_announce(s)
    blocks_free_announced(c)
    s.rel_state = 0


cdef inline void free_step(nv_slot* s, uint64_t n) noexcept nogil:
    # Start and length are one word, so that a repairer, who holds the same lock, never sees an
    # extent that reaches past the announced one.
    s.rel_extent += (n << 32) - n
    if <uint32_t>s.rel_extent == 0:
        s.rel_state = 2


cdef void put_kept(nv_ctx* c, uint64_t block) noexcept nogil:
    nv_check(block >= DATA_NR and block < c.hdr.num_blocks - 1
             and blocks_in_use(c, block, 1), "freeing a free block", <long>block)
    c.slot.keep_block = block
    nv_fence_release()
    fail_point(c, "free.kept")
    free_step(c.slot, 1)


cdef void keep_settle(nv_slot* s) noexcept nogil:
    # Repair: what the dead thread's intent still names, and its `keep_block` already or still.
    if s.keep_block == 0:
        return
    if s.pend_len == 1 and s.pend_block == s.keep_block:
        s.keep_block = 0
    elif s.rel_state == 1 and s.rel_ino == 0 and s.rel_extent == (s.keep_block << 32 | 1):
        free_step(s, 1)


cdef void keep_drop(nv_ctx* c) noexcept nogil:
    # The kept block goes back to its region. Also for a dead thread, once settled.
    cdef nv_slot* s = c.slot
    cdef int keeps = c.keeps
    if s.keep_block == 0:
        return
    c.keeps = 0
    release_fill(s, s.keep_block << 32 | 1)
    release_announce(s)
    nv_fence_release()
    fail_point(c, "free.dropped")
    s.keep_block = 0
    nv_fence_release()
    blocks_free_announced(c)
    s.rel_state = 0
    c.keeps = keeps


cdef uint64_t kept_blocks(nv_ctx* c, nv_region* r) noexcept nogil:
    # Blocks of the region, or with NULL of all, that threads keep for their next allocation.
    cdef uint64_t n = 0
    cdef uint64_t block
    cdef uint32_t i
    for i in range(c.hdr.slot_high):
        block = slot_at(c, i).keep_block
        if block and (r == NULL or region_of(c, block) == r):
            n += 1
    return n


cdef void blocks_free_announced(nv_ctx* c) noexcept nogil:
    # ALLOC-2. Frees what rel_* names; rel_state becomes 2 under the last region's lock.
    cdef nv_slot* s = c.slot
    cdef nv_region* r
    cdef uint64_t block, n
    cdef int nowait = c.nowait
    if c.a.rebuild:
        s.rel_state = 2
        return
    if c.keeps and s.keep_block == 0 and <uint32_t>s.rel_extent == 1:
        put_kept(c, s.rel_extent >> 32)
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
    cdef uint64_t n = kept_blocks(c, NULL)
    cdef uint32_t i
    for i in range(c.hdr.cpus):
        n += cpu_at(c, i).blocks.free
    return n


cdef bint blocks_fit(nv_ctx* c, uint64_t pages, uint64_t have) noexcept nogil:
    # False if so many pages, `have` of which may have blocks, cannot all get one: to be asked
    # before DRAM is taken for an index of them, which could be all there is.
    return pages <= 512 or pages <= have + blocks_free_count(c)


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

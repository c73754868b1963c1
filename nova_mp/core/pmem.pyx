"""The one door to PMEM: stores, copies, write-backs, fences, timing emulation and the trace."""

from libc.stdlib cimport realloc
from libc.string cimport memcpy, memset, strcmp
from nova_mp.core.arch cimport (NV_DEBUG_BUILD, NV_FLUSH_NONE, nv_assert, nv_copy_nt, nv_crc32c,
                                nv_flush_lines, nv_kill_self, nv_spin_ns, nv_ticks, nv_store64,
                                nv_store_fence)
from nova_mp.core.dram cimport MEDIA_PMEM
from nova_mp.core.layout cimport BLOCK_BYTES, MAGIC_SUPERBLOCK, SUPERBLOCK_OFF

cdef enum:
    # On a DRAM medium neither kind of store is always right: into a block that is still in the
    # cache an ordinary 4 KiB copy takes 120 to 180 ns and a streaming one 480; into a cold block
    # 730 to 990 and still 480. Nothing that the file system knows tells which it is (a file may be
    # large and its hot part small), so a thread times a sample of its copies, and now and then
    # tries the other kind.
    SAMPLE_EVERY = 16
    TRY_OTHER_EVERY = 128
    ADAPT_BYTES = 4096


cdef void trace_add(nv_ctx* c, uint32_t kind, uint64_t off, uint64_t n) noexcept nogil:
    cdef nv_trace* t = c.a.trace
    cdef uint64_t payload = n if kind <= TRACE_COPY_NT else 0
    cdef uint64_t need = t.used + 24 + payload
    cdef uint8_t* grown
    cdef uint64_t* head
    if need > t.capacity:
        grown = <uint8_t*>realloc(t.buffer, need * 2)
        if grown == NULL:
            t.failed = 1
            return
        t.buffer = grown
        t.capacity = need * 2
    head = <uint64_t*>(t.buffer + t.used)
    memcpy(&head[0], &off, 8)
    memcpy(&head[1], &n, 8)
    memcpy(&head[2], &kind, 4)
    memset(<uint8_t*>&head[2] + 4, 0, 4)
    if payload:
        memcpy(t.buffer + t.used + 24, c.pm + off, payload)
    t.used = need


cdef void flush_slow(nv_ctx* c, uint64_t off, uint64_t n) noexcept nogil:
    if c.a.flush_how != NV_FLUSH_NONE:
        nv_flush_lines(c.pm + off, n, c.a.flush_how)
    if c.a.media_mode == MEDIA_PMEM:
        c.media_lines += ((off & 63) + n + 63) >> 6
        c.media_bytes += n
    if c.a.trace != NULL:
        trace_add(c, TRACE_FLUSH, off, n)


cdef void fence_slow(nv_ctx* c) noexcept nogil:
    cdef uint64_t ns
    if c.a.media_mode:
        nv_store_fence()
    if c.a.media_mode == MEDIA_PMEM:
        # Write-backs of different lines overlap in the device: the first costs its latency, all
        # together are bounded by the bandwidth.
        ns = c.hdr.fence_ns
        if c.media_lines:
            ns += c.hdr.flush_ns
        if c.hdr.write_bytes_per_us:
            ns += c.media_bytes * 1000 // c.hdr.write_bytes_per_us
        c.media_lines = 0
        c.media_bytes = 0
        nv_spin_ns(ns)
    if c.a.trace != NULL:
        trace_add(c, TRACE_FENCE, 0, 0)


cdef void pm_read_delay(nv_ctx* c, uint64_t n) noexcept nogil:
    cdef uint64_t ns
    if c.a.media_mode == MEDIA_PMEM:
        ns = c.hdr.read_ns
        if c.hdr.read_bytes_per_us:
            ns += n * 1000 // c.hdr.read_bytes_per_us
        nv_spin_ns(ns)


cdef void pm_copy(nv_ctx* c, uint64_t off, const void* src, uint64_t n) noexcept nogil:
    # Metadata: ordinary stores, the caller flushes.
    nv_assert(off + n <= c.a.pm_bytes, "PMEM store outside the arena", off)
    memcpy(c.pm + off, src, n)
    if c.a.trace != NULL:
        trace_add(c, TRACE_STORE, off, n)


cdef void copy_adaptive(nv_ctx* c, uint64_t off, const void* src, uint64_t n) noexcept nogil:
    cdef uint32_t streams = c.copy_streams
    cdef uint64_t start, cost, known
    c.copy_count += 1
    if c.copy_count % SAMPLE_EVERY:
        if streams:
            nv_copy_nt(c.pm + off, <const uint8_t*>src, n)
        else:
            memcpy(c.pm + off, src, n)
        return
    if c.copy_count % TRY_OTHER_EVERY == 0:
        streams ^= 1
    start = nv_ticks()
    if streams:
        nv_copy_nt(c.pm + off, <const uint8_t*>src, n)
    else:
        memcpy(c.pm + off, src, n)
    cost = (nv_ticks() - start) * 1024 // n
    # Interruptions only make samples longer, so a short one is believed at once, long ones slowly.
    known = c.copy_cost[streams]
    if known == 0:
        c.copy_cost[streams] = cost
    elif cost < known:
        c.copy_cost[streams] = (known + cost) // 2
    else:
        c.copy_cost[streams] = known + ((cost if cost < 2 * known else 2 * known) - known) // 16
    if c.copy_cost[0] and c.copy_cost[1]:
        c.copy_streams = 1 if c.copy_cost[1] < c.copy_cost[0] else 0


cdef void pm_copy_data(nv_ctx* c, uint64_t off, const void* src, uint64_t n) noexcept nogil:
    # File data: persistent at the next fence, whatever the medium.
    cdef uint64_t edge
    nv_assert(off + n <= c.a.pm_bytes, "PMEM copy outside the arena", off)
    if c.a.media_mode:
        nv_copy_nt(c.pm + off, <const uint8_t*>src, n)
        if c.a.media_mode == MEDIA_PMEM:
            c.media_bytes += n
        # Streaming stores cover whole lines of an aligned destination; the edges are ordinary, and
        # each of them less than 64 bytes, which may lie in two lines.
        if c.a.flush_how != NV_FLUSH_NONE and ((off | n) & 63):
            edge = n if n < 64 else 64
            nv_flush_lines(c.pm + off, edge, c.a.flush_how)
            nv_flush_lines(c.pm + off + n - edge, edge, c.a.flush_how)
    elif n >= ADAPT_BYTES:
        copy_adaptive(c, off, src, n)
    else:
        memcpy(c.pm + off, src, n)
    if c.a.trace != NULL:
        trace_add(c, TRACE_COPY_NT, off, n)


cdef void pm_zero(nv_ctx* c, uint64_t off, uint64_t n) noexcept nogil:
    # Persistent at the next fence.
    nv_assert(off + n <= c.a.pm_bytes, "PMEM store outside the arena", off)
    memset(c.pm + off, 0, n)
    if c.a.trace != NULL:
        trace_add(c, TRACE_STORE, off, n)
    pm_flush(c, off, n)


cdef void pm_store64(nv_ctx* c, uint64_t off, uint64_t value) noexcept nogil:
    nv_assert(off + 8 <= c.a.pm_bytes and (off & 7) == 0, "PMEM word outside or unaligned", off)
    nv_store64(<uint64_t*>(c.pm + off), value)
    if c.a.trace != NULL:
        trace_add(c, TRACE_STORE, off, 8)


cdef void pm_store32(nv_ctx* c, uint64_t off, uint32_t value) noexcept nogil:
    nv_assert(off + 4 <= c.a.pm_bytes, "PMEM word outside the arena", off)
    (<uint32_t*>(c.pm + off))[0] = value
    if c.a.trace != NULL:
        trace_add(c, TRACE_STORE, off, 4)


cdef void pm_store16(nv_ctx* c, uint64_t off, uint16_t value) noexcept nogil:
    nv_assert(off + 2 <= c.a.pm_bytes, "PMEM word outside the arena", off)
    (<uint16_t*>(c.pm + off))[0] = value
    if c.a.trace != NULL:
        trace_add(c, TRACE_STORE, off, 2)


cdef bint superblock_valid(const nv_superblock* sb) noexcept nogil:
    cdef nv_superblock copy = sb[0]
    copy.csum = 0
    return sb.magic == MAGIC_SUPERBLOCK and sb.csum == ~nv_crc32c(0xFFFFFFFF, &copy, sizeof(copy))


cdef const nv_superblock* superblock_newest(nv_ctx* c) noexcept nogil:
    # The valid copy with the larger sequence number, NULL if there is none.
    cdef const nv_superblock* a = <const nv_superblock*>(c.pm + SUPERBLOCK_OFF)
    cdef const nv_superblock* b = <const nv_superblock*>(c.pm + c.a.pm_bytes - BLOCK_BYTES)
    if not superblock_valid(b):
        return a if superblock_valid(a) else NULL
    return a if superblock_valid(a) and a.sequence >= b.sequence else b


cdef void superblock_write(nv_ctx* c, nv_superblock* sb) noexcept nogil:
    # One copy after the other: at each moment one of them is whole.
    cdef uint64_t copy_off = c.a.pm_bytes - BLOCK_BYTES
    sb.sequence += 1
    sb.csum = 0
    sb.csum = ~nv_crc32c(0xFFFFFFFF, sb, sizeof(nv_superblock))
    pm_copy(c, copy_off, sb, sizeof(nv_superblock))
    pm_persist(c, copy_off, sizeof(nv_superblock))
    pm_copy(c, SUPERBLOCK_OFF, sb, sizeof(nv_superblock))
    pm_persist(c, SUPERBLOCK_OFF, sizeof(nv_superblock))


cdef void fail_point(nv_ctx* c, const char* name) noexcept nogil:
    # Debug builds die here when the point is armed: by the process itself, or by another one.
    if not NV_DEBUG_BUILD:
        return
    if c.a.failpoint != NULL and strcmp(c.a.failpoint, name) == 0:
        c.a.failpoint_count -= 1
        if c.a.failpoint_count == 0:
            nv_kill_self()
    if c.hdr.doomed == c.a.process_slot + 1 and strcmp(c.hdr.doomed_at, name) == 0:
        if c.hdr.doomed_passages > 1:
            c.hdr.doomed_passages -= 1
            return
        c.hdr.doomed = 0
        nv_kill_self()

"""Reading, writing, truncating and preallocating files; their attributes."""

from libc.errno cimport EFBIG, EINVAL, EISDIR, ENOMEM, ENOSPC
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from nova_mp.core.alloc cimport blocks_fit
from nova_mp.core.arch cimport nv_file_time_ns, nv_monotonic_ns, nv_pause
from nova_mp.core.dram cimport (CNT_READ_BYTES, CNT_READ_LOCKED, CNT_READ_RETRIES,
                                CNT_TIMED_READ_NS, CNT_TIMED_READS, CNT_WRITE_BYTES, INODE_PAST_END,
                                MAP_SNAPSHOT, OP_MMAP, OP_READ, OP_SETATTR, OP_WRITE, count,
                                count_op)
from nova_mp.core.extent cimport append_data, old_page, setattr_entry
from nova_mp.core.index cimport (REF_BITS, index_cell, index_get, index_next, index_reserve,
                                 word_block)
from nova_mp.core.inode cimport S_IFDIR, S_IFMT, inode_lock, run_count, tx_apply, tx_undo
from nova_mp.core.itable cimport header_of, inode_at, inode_off, PI_LOG_TAIL
from nova_mp.core.layout cimport BLOCK_BYTES, BLOCK_SHIFT, ENTRY_FLAG_SIZE, nv_setattr_entry
from nova_mp.core.log cimport log_append, log_commit, log_room, tx_open
from nova_mp.core.mapping cimport map_count, mapped_truncate, mapped_write, zero_past_end
from nova_mp.core.pmem cimport block_off, fail_point, pm_read_delay
from nova_mp.core.snaplist cimport spare_reserve
from nova_mp.core.sync cimport lock_drop, op_begin, op_end, seq_read, seq_same

cdef enum:
    OPTIMISTIC_TRIES = 16
    MAX_PAGES = 0x100000000          # 16 TiB of offsets: page numbers stay far below index limits


# ---- read ---------------------------------------------------------------------------------------

cdef inline uint64_t run_at(nv_ctx* c, nv_inode_header* h, uint64_t page, uint64_t most,
                            uint64_t* word) noexcept nogil:
    # Contiguous pages from `page` on, at most `most`: their first word in `word`, 0 for a hole.
    cdef uint64_t n = 1
    word[0] = index_get(c.dram, c.a.dram_bytes, &h.index, page)
    if word[0] == 0:
        return 1
    while n < most and index_get(c.dram, c.a.dram_bytes, &h.index,
                                 page + n) == word[0] + (n << REF_BITS):
        n += 1
    return n


cdef void copy_out(nv_ctx* c, nv_inode_header* h, uint8_t* dst, uint64_t n,
                   uint64_t offset) noexcept nogil:
    # Copies what the index says now. What is stale is only bounds-checked: the caller tries again.
    cdef uint64_t word = 0
    cdef uint64_t page, within, run, bytes
    while n:
        page = offset >> BLOCK_SHIFT
        within = offset & (BLOCK_BYTES - 1)
        run = run_at(c, h, page, (within + n + BLOCK_BYTES - 1) >> BLOCK_SHIFT, &word)
        bytes = run * BLOCK_BYTES - within
        if bytes > n:
            bytes = n
        if word == 0:
            memset(dst, 0, bytes)
        elif block_off(word_block(word)) + within + bytes <= c.a.pm_bytes:
            memcpy(dst, c.pm + block_off(word_block(word)) + within, bytes)
        dst += bytes
        offset += bytes
        n -= bytes


cdef int64_t read_locked(nv_ctx* c, uint64_t ino, uint32_t generation, uint8_t* dst, uint64_t n,
                         uint64_t offset) noexcept nogil:
    # For a reader that writers keep overtaking, or behind a writer that died. The caller's memory
    # may be a protected mapping, so nothing is stored there under the lock (SYNC-4).
    cdef nv_inode_header* h = NULL
    cdef uint8_t* bounce
    cdef int64_t got = 0
    cdef int rc = inode_lock(c, ino, generation, &h)
    if rc:
        return rc
    count(c, CNT_READ_LOCKED, 1)
    if offset < h.size:
        got = <int64_t>(n if n < h.size - offset else h.size - offset)
    bounce = <uint8_t*>malloc(got + 1)
    if bounce != NULL:
        copy_out(c, h, bounce, got, offset)
    lock_drop(c, &h.lock)
    if bounce == NULL:
        return -ENOMEM
    memcpy(dst, bounce, got)
    free(bounce)
    return got


cdef int64_t read_piece(nv_ctx* c, uint64_t ino, uint32_t generation, uint8_t* dst, uint64_t n,
                        uint64_t offset) noexcept nogil:
    cdef nv_inode_header* h = header_of(c, ino)
    cdef uint32_t seq
    cdef uint64_t size, got
    cdef int tries
    if h == NULL:
        return -EINVAL
    for tries in range(OPTIMISTIC_TRIES):
        seq = seq_read(h)
        if seq & 1:
            nv_pause()
            continue
        if h.generation != generation or h.mode == 0:
            break
        size = h.size
        got = 0
        if offset < size:
            got = n if n < size - offset else size - offset
            copy_out(c, h, dst, got, offset)
        if seq_same(h, seq):
            return <int64_t>got
        count(c, CNT_READ_RETRIES, 1)
    return read_locked(c, ino, generation, dst, n, offset)


cdef int64_t file_read(nv_ctx* c, uint64_t ino, uint32_t generation, uint8_t* dst, uint64_t n,
                       uint64_t offset) noexcept nogil:
    # Bytes read, fewer than `n` only at the end of the file; or -errno.
    cdef int64_t got
    cdef uint64_t done = 0, piece
    cdef uint64_t start = count_op(c, OP_READ)
    while True:
        piece = n - done if n - done < READ_ATOMIC else READ_ATOMIC
        got = read_piece(c, ino, generation, dst + done, piece, offset + done)
        if got < 0:
            return got
        done += <uint64_t>got
        if <uint64_t>got < piece or done == n:
            break
    count(c, CNT_READ_BYTES, done)
    if c.a.media_mode:
        pm_read_delay(c, done)
    if start:
        count(c, CNT_TIMED_READS, 1)
        count(c, CNT_TIMED_READ_NS, nv_monotonic_ns() - start)
    return <int64_t>done


# ---- write --------------------------------------------------------------------------------------

cdef int64_t write_locked(nv_ctx* c, nv_inode_header* h, uint64_t ino, const uint8_t* src,
                          uint64_t n, uint64_t offset) noexcept nogil:
    cdef uint64_t page = offset >> BLOCK_SHIFT
    cdef uint64_t end = (offset + n + BLOCK_BYTES - 1) >> BLOCK_SHIFT
    cdef uint64_t size = h.size if h.size > offset + n else offset + n
    if h.maps:
        return mapped_write(c, h, ino, src, n, offset)
    if size > h.size and h.flags & INODE_PAST_END and cut_pages(c, h, ino, h.size):
        return -ENOSPC
    if not blocks_fit(c, end - page, 0) or index_reserve(c, h, &h.index, page, end - 1):
        return -ENOSPC
    # New extents may cut an old run anywhere, and each piece may meet another list.
    if c.hdr.snap_live and spare_reserve(c, run_count(c, h, page, end) + (end - page)):
        return -ENOSPC
    tx_open(c, ino, h.log_tail_off)
    if append_data(c, h, src, n, offset, size, nv_file_time_ns()):
        tx_undo(c)
        return -ENOSPC
    log_commit(c, inode_off(c, ino) + PI_LOG_TAIL, c.slot.tx[0].cur_tail)
    tx_apply(c, h, 0)
    fail_point(c, "write.applied")
    return <int64_t>n


cdef int64_t file_write(nv_ctx* c, uint64_t ino, uint32_t generation, const uint8_t* src,
                        uint64_t n, uint64_t offset, bint append, uint64_t* at) noexcept nogil:
    # All `n` bytes or none. `at` receives the offset that was used.
    cdef nv_inode_header* h = NULL
    cdef int64_t rc = inode_lock(c, ino, generation, &h)
    if rc:
        return rc
    rc = op_begin(c, OP_WRITE)
    if rc == 0:
        if append:
            offset = h.size
        at[0] = offset
        if h.mode & S_IFMT == S_IFDIR:
            rc = -EISDIR
        elif ((offset + n + BLOCK_BYTES) >> BLOCK_SHIFT >= <uint64_t>MAX_PAGES
              or offset + n < offset):
            rc = -EFBIG
        elif n:
            rc = write_locked(c, h, ino, src, n, offset)
        if rc > 0:
            count(c, CNT_WRITE_BYTES, n)
        op_end(c)
    lock_drop(c, &h.lock)
    return rc


# ---- truncate, preallocate ----------------------------------------------------------------------

cdef int truncate_locked(nv_ctx* c, nv_inode_header* h, uint64_t ino, uint64_t size) noexcept nogil:
    cdef int rc = 0
    if h.maps:
        return mapped_truncate(c, h, ino, size)
    if size > h.size and h.flags & INODE_PAST_END:
        rc = cut_pages(c, h, ino, h.size)
    return cut_pages(c, h, ino, size) if rc == 0 else rc


cdef int trim_pages(nv_ctx* c, nv_inode_header* h, uint64_t ino) noexcept nogil:
    # Pages past the end, left by a truncation while the file was mapped, once it is not any more.
    if h.maps or not h.flags & INODE_PAST_END:
        return 0
    return cut_pages(c, h, ino, h.size)


cdef int cut_pages(nv_ctx* c, nv_inode_header* h, uint64_t ino, uint64_t size) noexcept nogil:
    # The cut page is rewritten with a zero tail, never zeroed in place: a snapshot may hold it.
    cdef nv_setattr_entry e
    cdef bint cuts = size < h.size or (size == h.size and h.flags & INODE_PAST_END)
    cdef uint64_t last = size >> BLOCK_SHIFT
    cdef uint64_t within = size & (BLOCK_BYTES - 1)
    cdef const uint8_t* old
    cdef int rc = 0
    if c.hdr.snap_live and cuts and spare_reserve(c, 1 + run_count(c, h, last, <uint64_t>-1)):
        return -ENOSPC
    setattr_entry(c, h, &e)
    e.mtime_ns = e.ctime_ns
    e.size = size
    e.flags = ENTRY_FLAG_SIZE if cuts else 0
    tx_open(c, ino, h.log_tail_off)
    rc = log_room(c, h, &c.slot.tx[0], 1)
    if rc:
        return rc
    log_append(c, &c.slot.tx[0], &e)
    if cuts and within:
        old = old_page(c, h, last)
        if old != NULL:
            # Zeros from the cut on; append_data keeps what is before it.
            rc = append_data(c, h, NULL, BLOCK_BYTES - within, size, size, e.mtime_ns)
    if rc:
        tx_undo(c)
        return rc
    log_commit(c, inode_off(c, ino) + PI_LOG_TAIL, c.slot.tx[0].cur_tail)
    tx_apply(c, h, 0)
    c.slot.ntx = 0
    return 0


cdef int file_truncate(nv_ctx* c, uint64_t ino, uint32_t generation, uint64_t size) noexcept nogil:
    cdef nv_inode_header* h = NULL
    cdef int rc = inode_lock(c, ino, generation, &h)
    if rc:
        return rc
    rc = op_begin(c, OP_SETATTR)
    if rc == 0:
        c.privileged = 1             # it gives space back, and its log entry must not be refused
        if h.mode & S_IFMT == S_IFDIR:
            rc = -EISDIR
        elif size >> BLOCK_SHIFT >= <uint64_t>MAX_PAGES:
            rc = -EFBIG
        else:
            rc = truncate_locked(c, h, ino, size)
        c.privileged = 0
        op_end(c)
    lock_drop(c, &h.lock)
    return rc


cdef int map_forget(nv_ctx* c, nv_map* m) noexcept nogil:
    # The mapping is gone: the last one of a file gives back what lies past its end.
    cdef nv_inode_header* h = NULL
    cdef int rc = inode_lock(c, m.ino, m.generation, &h)
    if rc:
        m.ino = 0
        return 0
    rc = op_begin(c, OP_MMAP)
    if rc == 0:
        c.privileged = 1
        map_count(h, m, False)
        if not m.flags & MAP_SNAPSHOT:
            trim_pages(c, h, m.ino)
        m.ino = 0
        c.privileged = 0
        op_end(c)
    lock_drop(c, &h.lock)
    return rc


cdef int fallocate_locked(nv_ctx* c, nv_inode_header* h, uint64_t ino, uint64_t offset,
                          uint64_t length) noexcept nogil:
    # Zeroed blocks where there are holes; what is there already stays as it is.
    cdef uint64_t end = (offset + length + BLOCK_BYTES - 1) >> BLOCK_SHIFT
    cdef uint64_t page = offset >> BLOCK_SHIFT
    cdef uint64_t size = h.size if h.size > offset + length else offset + length
    cdef uint64_t now = nv_file_time_ns()
    cdef uint64_t hole_end
    cdef uint64_t* cell
    cdef nv_setattr_entry e
    cdef int rc = 0
    if not blocks_fit(c, end - page, h.blocks):
        return -ENOSPC
    if size > h.size:
        rc = zero_past_end(c, h, ino, size) if h.maps else trim_pages(c, h, ino)
    if rc == 0:
        rc = index_reserve(c, h, &h.index, page, end - 1)
    if rc:
        return rc
    tx_open(c, ino, h.log_tail_off)
    while page < end and rc == 0:
        cell = index_cell(c, &h.index, page)
        if cell[0]:
            page += 1
            continue
        hole_end = index_next(c, &h.index, page, end)
        rc = append_data(c, h, NULL, (hole_end - page) << BLOCK_SHIFT, page << BLOCK_SHIFT, size,
                         now)
        page = hole_end
    if rc == 0:
        setattr_entry(c, h, &e)
        e.size = size
        rc = log_room(c, h, &c.slot.tx[0], 1)
    if rc:
        tx_undo(c)
        return rc
    log_append(c, &c.slot.tx[0], &e)
    log_commit(c, inode_off(c, ino) + PI_LOG_TAIL, c.slot.tx[0].cur_tail)
    tx_apply(c, h, 0)
    return 0


cdef int file_fallocate(nv_ctx* c, uint64_t ino, uint32_t generation, uint64_t offset,
                        uint64_t length) noexcept nogil:
    cdef nv_inode_header* h = NULL
    cdef int rc
    if length == 0:
        return -EINVAL
    rc = inode_lock(c, ino, generation, &h)
    if rc:
        return rc
    rc = op_begin(c, OP_SETATTR)
    if rc == 0:
        if h.mode & S_IFMT == S_IFDIR:
            rc = -EISDIR
        elif ((offset + length + BLOCK_BYTES) >> BLOCK_SHIFT >= <uint64_t>MAX_PAGES
              or offset + length < offset):
            rc = -EFBIG
        else:
            rc = fallocate_locked(c, h, ino, offset, length)
        op_end(c)
    lock_drop(c, &h.lock)
    return rc


# ---- attributes ---------------------------------------------------------------------------------

cdef int file_setattr(nv_ctx* c, uint64_t ino, uint32_t generation, uint32_t mask,
                      const nv_attr* attr) noexcept nogil:
    cdef nv_inode_header* h = NULL
    cdef nv_setattr_entry e
    cdef int rc = inode_lock(c, ino, generation, &h)
    if rc:
        return rc
    rc = op_begin(c, OP_SETATTR)
    if rc == 0:
        setattr_entry(c, h, &e)
        if mask & ATTR_MODE:
            e.mode = (h.mode & S_IFMT) | (attr.mode & 0o7777)
        if mask & ATTR_UID:
            e.uid = attr.uid
        if mask & ATTR_GID:
            e.gid = attr.gid
        if mask & ATTR_ATIME:
            e.atime_ns = attr.atime_ns
        if mask & ATTR_MTIME:
            e.mtime_ns = attr.mtime_ns
        tx_open(c, ino, h.log_tail_off)
        rc = log_room(c, h, &c.slot.tx[0], 1)
        if rc == 0:
            log_append(c, &c.slot.tx[0], &e)
            log_commit(c, inode_off(c, ino) + PI_LOG_TAIL, c.slot.tx[0].cur_tail)
            tx_apply(c, h, 0)
        op_end(c)
    lock_drop(c, &h.lock)
    return rc


cdef void read_attr(nv_ctx* c, nv_inode_header* h, uint64_t ino, nv_attr* attr) noexcept nogil:
    attr.ino = ino
    attr.size = h.size
    attr.mtime_ns = h.mtime_ns
    attr.ctime_ns = h.ctime_ns
    attr.atime_ns = h.atime_ns
    attr.mode = h.mode
    attr.nlink = h.nlink
    attr.uid = h.uid
    attr.gid = h.gid
    attr.blocks = h.blocks
    attr.generation = h.generation
    if h.mode & S_IFMT == S_IFDIR:
        # Names live in the log, which garbage collection shortens: a constant is as true as
        # anything.
        attr.size = BLOCK_BYTES
        attr.blocks = 1


cdef int file_getattr(nv_ctx* c, uint64_t ino, uint32_t generation, nv_attr* attr) noexcept nogil:
    # Optimistic; -ESTALE if that life of the inode is over.
    cdef nv_inode_header* h = header_of(c, ino)
    cdef uint32_t seq
    cdef int tries, rc
    if h == NULL:
        return -EINVAL
    for tries in range(OPTIMISTIC_TRIES):
        seq = seq_read(h)
        if seq & 1:
            nv_pause()
            continue
        if h.mode == 0 or (generation and h.generation != generation):
            break
        read_attr(c, h, ino, attr)
        attr.birth_time_ns = inode_at(c, ino).birth_time_ns
        if seq_same(h, seq):
            return 0
    rc = inode_lock(c, ino, generation, &h)
    if rc == 0:
        read_attr(c, h, ino, attr)
        attr.birth_time_ns = inode_at(c, ino).birth_time_ns
        lock_drop(c, &h.lock)
    return rc

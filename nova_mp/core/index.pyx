"""Growing, walking and pruning the sparse word arrays. A NULL context means private memory."""

from libc.errno cimport ENOSPC
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from nova_mp.core.pages cimport dpend_done, dram_alloc, dram_free
from nova_mp.core.arch cimport nv_store64
from nova_mp.core.dram cimport dram_off
from nova_mp.core.sync cimport seq_begin, seq_end

cdef extern from "<stdlib.h>" nogil:
    void* aligned_alloc(size_t alignment, size_t size) noexcept
cdef extern from "<string.h>" nogil:
    void* memset(void* p, int value, size_t n) noexcept


cdef inline uint8_t* base_of(nv_ctx* c) noexcept nogil:
    return c.dram if c != NULL else NULL


cdef uint64_t node_new(nv_ctx* c, uint64_t n_bytes, uint64_t* link) noexcept nogil:
    cdef void* p
    if c != NULL:
        return dram_alloc(c, n_bytes, dram_off(c, link))
    p = aligned_alloc(64, n_bytes)
    if p != NULL:
        memset(p, 0, n_bytes)
    return <uint64_t>p


cdef inline void node_linked(nv_ctx* c) noexcept nogil:
    if c != NULL:
        dpend_done(c)


cdef inline void node_free(nv_ctx* c, uint64_t off, uint64_t n_bytes) noexcept nogil:
    if c != NULL:
        dram_free(c, off, n_bytes)
    else:
        free(<void*>off)


cdef inline uint64_t next_log2(uint64_t log2) noexcept nogil:
    return log2 + 3 if log2 < 9 else log2 + 9


cdef int grow_once(nv_ctx* c, nv_inode_header* h, nv_index* ix, uint64_t log2) noexcept nogil:
    # Replaces the root by one of capacity 2**log2: a larger single node, or one more level on top.
    cdef uint64_t old_root = ix.root
    cdef uint64_t old_log2 = old_root & 63
    cdef uint64_t old = old_root - old_log2
    cdef uint64_t n_bytes = <uint64_t>8 << (log2 if log2 < 9 else 9)
    cdef uint64_t off = node_new(c, n_bytes, &ix.root)
    cdef uint64_t* cells
    if off == 0:
        return -ENOSPC
    cells = <uint64_t*>(base_of(c) + off)
    if log2 > 9:
        cells[0] = old
    elif old_log2 == 0:
        cells[0] = ix.inline_word
    else:
        memcpy(cells, base_of(c) + old, <size_t>8 << old_log2)
    if h != NULL:
        seq_begin(h)
    nv_store64(&ix.root, off | log2)
    if h != NULL:
        seq_end(h)
    node_linked(c)
    if log2 <= 9:
        ix.inline_word = 0
        if old_log2:
            node_free(c, old, <uint64_t>8 << old_log2)
    return 0


cdef int grow(nv_ctx* c, nv_inode_header* h, nv_index* ix, uint64_t last) noexcept nogil:
    cdef uint64_t log2 = ix.root & 63
    cdef uint64_t want = log2
    cdef int rc
    while last >> want:
        want = next_log2(want)
    if want > INDEX_MAX_LOG2:
        return -ENOSPC
    if want == log2:
        return 0
    if log2 < 9:
        # One step to the final single node; levels on top of it one by one.
        rc = grow_once(c, h, ix, want if want < 9 else 9)
        if rc:
            return rc
        log2 = 9 if want > 9 else want
    while log2 < want:
        log2 += 9
        rc = grow_once(c, h, ix, log2)
        if rc:
            return rc
    return 0


cdef int index_reserve(nv_ctx* c, nv_inode_header* h, nv_index* ix, uint64_t first,
                       uint64_t last) noexcept nogil:
    # After this, assigning words at first..last cannot fail. `h` is NULL where nobody reads.
    cdef uint64_t pos, off, log2, child
    cdef uint64_t* cell
    cdef int rc = grow(c, h, ix, last)
    if rc or (ix.root & 63) <= 9:
        return rc
    pos = first & ~<uint64_t>511
    while pos <= last:
        log2 = ix.root & 63
        off = ix.root - log2
        while log2 > 9:
            log2 -= 9
            cell = <uint64_t*>(base_of(c) + off) + ((pos >> log2) & 511)
            if cell[0] == 0:
                child = node_new(c, 4096, cell)
                if child == 0:
                    return -ENOSPC
                nv_store64(cell, child)
                node_linked(c)
            off = cell[0]
        pos += 512
    return 0


cdef uint64_t* index_cell(nv_ctx* c, nv_index* ix, uint64_t pos) noexcept nogil:
    # The cell at `pos`, NULL where nothing was reserved. Under the lock.
    cdef uint64_t log2 = ix.root & 63
    cdef uint64_t off = ix.root - log2
    if log2 == 0:
        return &ix.inline_word if pos == 0 else NULL
    if pos >> log2:
        return NULL
    while log2 > 9:
        log2 -= 9
        off = (<uint64_t*>(base_of(c) + off))[(pos >> log2) & 511]
        if off == 0:
            return NULL
    return <uint64_t*>(base_of(c) + off) + (pos & 511)


cdef uint64_t next_in(nv_ctx* c, uint64_t off, uint64_t log2, uint64_t pos,
                      uint64_t end) noexcept nogil:
    # First position in [pos, end) with a word, inside this node; positions relative to it.
    cdef uint64_t* cells = <uint64_t*>(base_of(c) + off)
    cdef uint64_t span, i, found, start, stop
    if log2 <= 9:
        while pos < end and cells[pos] == 0:
            pos += 1
        return pos
    span = log2 - 9
    i = pos >> span
    while pos < end:
        i = pos >> span
        start = i << span
        stop = end - start
        if stop > <uint64_t>1 << span:
            stop = <uint64_t>1 << span
        if cells[i]:
            found = next_in(c, cells[i], span, pos - start, stop)
            if found < stop:
                return start + found
        pos = (i + 1) << span
    return end


cdef uint64_t index_next(nv_ctx* c, nv_index* ix, uint64_t pos, uint64_t end) noexcept nogil:
    # First position in [pos, end) that holds a word; `end` if none. Holes of any size cost nothing.
    cdef uint64_t log2 = ix.root & 63
    cdef uint64_t stop = <uint64_t>1 << log2
    cdef uint64_t found
    if pos >= end or pos >= stop:
        return end
    if log2 == 0:
        return 0 if ix.inline_word else end
    if stop > end:
        stop = end
    found = next_in(c, ix.root - log2, log2, pos, stop)
    return found if found < stop else end


cdef bint prune(nv_ctx* c, uint64_t off, uint64_t log2, uint64_t start) noexcept nogil:
    # Frees what lies wholly at or after `start`. Children are unlinked, then freed (IDX-1), leaf by
    # leaf, so that dying here loses one node at most.
    cdef uint64_t* cells = <uint64_t*>(base_of(c) + off)
    cdef uint64_t span = log2 - 9
    cdef uint64_t i = start >> span
    cdef uint64_t child, inner
    while i < 512:
        child = cells[i]
        if child:
            inner = start - (i << span) if start > i << span else 0
            if span > 9:
                prune(c, child, span, inner)
            if inner == 0:
                nv_store64(&cells[i], 0)
                node_free(c, child, 4096)
        i += 1
    return True


cdef void index_prune(nv_ctx* c, nv_index* ix, uint64_t start) noexcept nogil:
    # Frees nodes at or after `start`, whose words the caller has cleared; all of them at 0.
    cdef uint64_t root = ix.root
    cdef uint64_t log2 = root & 63
    if log2 > 9 and not start >> log2:
        prune(c, root - log2, log2, start)
    if start == 0 and log2:
        nv_store64(&ix.root, 0)
        node_free(c, root - log2, <uint64_t>8 << (log2 if log2 < 9 else 9))
    if start == 0:
        ix.inline_word = 0

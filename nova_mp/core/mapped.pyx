"""Mapped files as Python buffers: blocks of the arena at one range of addresses."""

import errno as _errno
import os
import time

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE
from libc.errno cimport EINVAL, ENOMEM
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from nova_mp import errors
from nova_mp.core.boundary cimport raise_errno
from nova_mp.core.dram cimport (CELL_SNAPSHOT, MAP_INHERITED, MAP_SNAPSHOT, MAP_WRITABLE,
                                NV_RETRY, OP_MMAP, nv_inode_header, slot_at)
from nova_mp.core.faults cimport (NV_PROTECT_SIGNAL, faults_add, faults_remove, faults_start,
                                  faults_stop)
from nova_mp.core.file cimport map_forget
from nova_mp.core.inode cimport inode_lock
from nova_mp.core.layout cimport BLOCK_BYTES, BLOCK_SHIFT
from nova_mp.core.mapping cimport map_count, map_flush, map_prepare, map_runs, nv_run
from nova_mp.core.namei cimport handle_open
from nova_mp.core.process import AWAY_S
from nova_mp.core.pmem cimport block_off
from nova_mp.core.sync cimport RANK_SNAPSHOT, lock_drop, lock_take, op_begin, op_end
from nova_mp.core.walk cimport nv_node

cdef extern from "uffd.h" nogil:
    uint8_t* nv_reserve(uint64_t n_bytes)
    int nv_alias(uint8_t* to, const uint8_t* source, uint64_t n_bytes, int writable)
    int nv_private(uint8_t* to, uint64_t n_bytes, int writable)
    int nv_access(uint8_t* at, uint64_t n_bytes, int writable)
    void nv_forbid(uint8_t* at, uint64_t n_bytes)
    void nv_unmap(uint8_t* at, uint64_t n_bytes)

cdef extern from "<errno.h>":
    enum: ESTALE

cdef enum:
    MAX_PIECES = 16384               # areas of memory; the kernel allows 65,530 in a process


# ---- steps, each with the inode locked ----------------------------------------------------------

cdef int64_t prepare(nv_ctx* c, nv_map* m, uint64_t first, uint64_t end,
                     nv_run* runs) noexcept nogil:
    # Counts the mapping; how many pieces it has, all of them in `runs`. Or -errno, or NV_FROZEN.
    cdef nv_inode_header* h = NULL
    cdef int64_t rc = inode_lock(c, m.ino, m.generation, &h)
    if rc:
        return rc
    rc = op_begin(c, OP_MMAP)
    if rc == 0:
        rc = map_prepare(c, h, m, first, end)
        if rc == 0 and runs != NULL:
            rc = <int64_t>map_runs(c, h, first, end, runs, MAX_PIECES)
            if rc > MAX_PIECES:
                map_count(h, m, False)
                rc = -ENOMEM
        op_end(c)
    lock_drop(c, &h.lock)
    return rc


cdef int flush(nv_ctx* c, nv_map* m, uint64_t first, uint64_t end, bint stamp) noexcept nogil:
    cdef nv_inode_header* h = NULL
    cdef int rc = inode_lock(c, m.ino, m.generation, &h)
    if rc:
        return rc
    rc = op_begin(c, OP_MMAP)
    if rc == 0:
        rc = map_flush(c, h, m.ino, first, end, stamp)
        op_end(c)
    lock_drop(c, &h.lock)
    return rc


cdef int place(nv_ctx* c, uint8_t* at, nv_run* runs, uint64_t n, bint writable) noexcept nogil:
    cdef uint64_t i
    cdef uint64_t bytes
    cdef int rc = 0
    for i in range(n):
        bytes = runs[i].pages << BLOCK_SHIFT
        if runs[i].block:
            rc = nv_alias(at, c.pm + block_off(runs[i].block), bytes, writable)
        else:
            rc = nv_private(at, bytes, 0)
        if rc:
            return rc
        at += bytes
    return 0


# ---- making -------------------------------------------------------------------------------------

cdef Py_ssize_t span(object offset, object length, uint64_t size) except -1:
    """Checks the part of a file of `size` bytes that is to be mapped; its length."""
    if offset < 0 or (length is not None and length <= 0):
        raise ValueError("offset must not be negative, length must be positive")
    if offset >= size or (length is not None and offset + length > size):
        raise ValueError(f"cannot map past the end of the file, which has {size} bytes; "
                         "truncate() makes it larger")
    return size - offset if length is None else length


cdef Mapping new_mapping(Process core, uint64_t ino, uint32_t generation, object offset,
                         Py_ssize_t length, bint writable, object name):
    cdef Mapping m = Mapping.__new__(Mapping)
    m.core = core
    m.name = name
    m.skip = offset & (BLOCK_BYTES - 1)
    m.length = length
    m.pages = (m.skip + length + BLOCK_BYTES - 1) >> BLOCK_SHIFT
    m.writable = writable
    m.ino = ino
    m.generation = generation
    m.pgoff = <uint64_t>offset >> BLOCK_SHIFT
    return m


cdef Mapping map_live_file(Process core, uint64_t ino, uint32_t generation, uint64_t size,
                           object offset, object length, bint writable, object name):
    cdef Mapping m = new_mapping(core, ino, generation, offset, span(offset, length, size),
                                 writable, name)
    cdef nv_ctx* c = core.ctx()
    cdef nv_node node
    cdef int rc = NV_RETRY
    node.ino = ino
    node.generation = generation
    m.cell = core.cell_new(c)
    while core.again(c, rc):
        with nogil:
            rc = handle_open(c, node, core.cell(m.cell))
    if rc:
        core.free_cells.append(m.cell)
        raise_errno(rc, name, None)
    try:
        m.describe(c, MAP_WRITABLE if writable else 0)
        m.place_live(c)
        if writable:
            m.admit_stores(c)
    except BaseException:
        m.release()
        raise
    m.is_open = True
    core.mappings.add(m)
    return m


def map_snapshot_file(Process core, view, uint64_t ino, offset, length, uint64_t size, pages_of,
                      name):
    """Maps a file of a snapshot read-only; `pages_of()` gives its pieces once they are stable."""
    cdef Mapping m = new_mapping(core, ino, 0, offset, span(offset, length, size), False, name)
    cdef nv_ctx* c = core.ctx()
    cdef nv_run run
    cdef uint64_t first = <uint64_t>offset >> BLOCK_SHIFT
    cdef int64_t rc = NV_RETRY
    cdef uint8_t* at
    # A cell of its own: the view may be closed before the mapping.
    m.cell = core.cell_new(c)
    if not core.hold_snapshot(c, m.cell, view.epoch_id | <uint64_t>CELL_SNAPSHOT, True):
        core.free_cells.append(m.cell)
        raise errors.NoSuchSnapshot(f"no snapshot {view.epoch_id}", "list the snapshots there are")
    m.of_snapshot = True
    try:
        m.describe(c, MAP_SNAPSHOT)
        while core.again(c, rc):
            with nogil:
                rc = prepare(c, m.record, first, first + m.pages, NULL)
        if rc:
            raise_errno(rc, name, None)
        pieces = pages_of(first, first + m.pages)
        m.at = nv_reserve(m.pages << BLOCK_SHIFT)
        if m.at == NULL:
            raise MemoryError
        copied = len(pieces) > MAX_PIECES
        rc = nv_private(m.at, m.pages << BLOCK_SHIFT, 1) if copied else 0
        at = m.at
        for block, n in pieces:
            run.block = block
            run.pages = n
            if not copied:
                rc = place(c, at, &run, 1, False)
            elif run.block:
                memcpy(at, c.pm + block_off(run.block), run.pages << BLOCK_SHIFT)
            if rc:
                raise_errno(rc, name, None)
            at += run.pages << BLOCK_SHIFT
        if copied:
            nv_access(m.at, m.pages << BLOCK_SHIFT, 0)
    except BaseException:
        m.release()
        raise
    m.is_open = True
    core.mappings.add(m)
    return m


@cython.no_gc_clear
cdef class Mapping:
    """A file, or a part of one, in memory: a buffer (memoryview, numpy.frombuffer) of bytes.

    Made by `File.mmap()`. What is stored there is in the file at once, for all processes, and in
    snapshots as a whole: one that holds a store holds every store and write that came before it.
    `flush()` makes it survive a power failure. A context manager; `close()` raises BufferError
    while arrays or memoryviews of it exist, as `mmap.mmap` does.
    """

    def __init__(self, *args, **more):
        raise TypeError("mappings are made by File.mmap()")

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        self.check()
        if flags & PyBUF_WRITABLE and not self.writable:
            raise BufferError("the mapping is read-only")
        self.shape[0] = self.length
        self.strides[0] = 1
        buffer.obj = self
        buffer.buf = self.at + self.skip
        buffer.len = self.length
        buffer.itemsize = 1
        buffer.readonly = not self.writable
        buffer.ndim = 1
        buffer.format = "B"
        buffer.shape = self.shape
        buffer.strides = self.strides
        buffer.suboffsets = NULL
        buffer.internal = NULL
        self.exports += 1

    def __releasebuffer__(self, Py_buffer* buffer):
        self.exports -= 1

    def __len__(self):
        return self.length

    def __enter__(self):
        self.check()
        return self

    def __exit__(self, *exc):
        self.close()

    def __dealloc__(self):
        if self.is_open and self.core is not None and not self.core.over():
            self.is_open = False
            self.release()
        elif self.at != NULL:
            nv_unmap(self.at, self.pages << BLOCK_SHIFT)

    def __repr__(self):
        state = f"{self.length} bytes" if self.is_open else "closed"
        return f"<Mapping of {self.name!r}, {state}, {'rw' if self.writable else 'r'}>"

    @property
    def closed(self):
        """True once closed, or once its file system is."""
        return not self.is_open or self.core.closed

    cdef void check(self) except *:
        if not self.is_open or self.core.closed:
            raise ValueError("operation on a closed mapping")

    cdef void describe(self, nv_ctx* c, uint32_t flags) except *:
        """A record of its own in the process's table of mappings."""
        cdef nv_map what
        memset(&what, 0, sizeof(what))
        what.flags = flags
        what.pgoff = self.pgoff
        what.generation = self.generation
        what.ino = self.ino
        self.record = self.core.map_record(c, &what)

    cdef void place_live(self, nv_ctx* c) except *:
        cdef nv_run* runs = <nv_run*>malloc(MAX_PIECES * sizeof(nv_run))
        cdef uint64_t first = self.pgoff
        cdef int64_t rc = NV_RETRY
        if runs == NULL:
            raise MemoryError
        try:
            while self.core.again(c, rc):
                with nogil:
                    rc = prepare(c, self.record, first, first + self.pages, runs)
            if c.gc_ino:
                self.core.collect(c)
            if rc == -EINVAL:
                raise ValueError("cannot map past the end of the file")
            if rc < 0:
                raise_errno(rc, self.name, None)
            self.at = nv_reserve(self.pages << BLOCK_SHIFT)
            if self.at == NULL:
                raise MemoryError
            rc = place(c, self.at, runs, rc, self.writable)
            if rc:
                raise_errno(rc, self.name, None)
        finally:
            free(runs)

    cdef void admit_stores(self, nv_ctx* c) except *:
        """MAP-1: from here on stores into the mapping are caught when they have to be."""
        cdef int rc
        signals = os.environ.get("NOVA_MP_MMAP_PROTECTION", "") == "signal"
        self.core.start_faults(signals)
        rc = self.core.admit(c, self.record, self.at, self.pages)
        if (rc == -EINVAL and self.core.faults.protection != NV_PROTECT_SIGNAL
                and self.core.faults.count == 0):
            # Memory that userfaultfd does not protect, as an arena in a file of another kind.
            self.core.stop_faults()
            self.core.start_faults(True)
            rc = self.core.admit(c, self.record, self.at, self.pages)
        if rc:
            raise_errno(rc, self.name, None)

    def flush(self, offset=0, length=None):
        """Makes what was stored survive a power failure; the file's times say it changed.

        `offset` and `length` in bytes of the mapping; all of it by default.
        """
        cdef nv_ctx* c
        cdef uint64_t first, end
        cdef int rc = NV_RETRY
        self.check()
        if not self.writable:
            return
        if offset < 0 or offset > self.length or (length is not None and (
                length < 0 or offset + length > self.length)):
            raise ValueError("flush range out of bounds")
        c = self.core.ctx()
        first = (self.skip + <uint64_t>offset) >> BLOCK_SHIFT
        end = self.pages
        if length is not None:
            end = (self.skip + <uint64_t>offset + <uint64_t>length + BLOCK_BYTES - 1) >> BLOCK_SHIFT
        first += self.record.pgoff
        end += self.record.pgoff
        self.flushing += 1
        try:
            while self.core.again(c, rc):
                with nogil:
                    rc = flush(c, self.record, first, end, True)
            if c.gc_ino:
                self.core.collect(c)
        finally:
            self.flushing -= 1
        if rc:
            raise_errno(rc, self.name, None)

    def close(self):
        """Unmaps it. BufferError while arrays or memoryviews of it exist. Safe to call twice."""
        if not self.is_open:
            return
        self.check_unused()
        self.is_open = False
        try:
            while self.flushing:
                time.sleep(AWAY_S)
        except BaseException:
            self.is_open = True
            raise
        if not self.core.over():
            self.release()

    def abandon(self):
        """Lets go of the arena's memory without touching the arena; zeros take its place."""
        self.is_open = False
        self.record = NULL
        if nv_private(self.at, self.pages << BLOCK_SHIFT, self.writable):
            nv_forbid(self.at, self.pages << BLOCK_SHIFT)

    def check_unused(self):
        """BufferError if arrays or memoryviews of it exist."""
        if self.exports:
            raise BufferError("cannot close a mapping while arrays or memoryviews of it exist")

    cdef void release(self) except *:
        """Undoes whatever was done of making it."""
        cdef nv_ctx* c = self.core.ctx()
        cdef uint64_t at
        cdef int rc = NV_RETRY
        self.core.mappings.discard(self)
        if self.record != NULL:
            with nogil:
                lock_take(c, &c.hdr.snapshot_lock, RANK_SNAPSHOT)
                at = self.record.at
                self.record.at = 0
                lock_drop(c, &c.hdr.snapshot_lock)
                if at:
                    faults_remove(self.core.faults, at)
        if self.at != NULL:
            nv_unmap(self.at, self.pages << BLOCK_SHIFT)
            self.at = NULL
        if self.record != NULL:
            while self.core.again(c, rc):
                with nogil:
                    rc = map_forget(c, self.record)
            self.record = NULL
        if self.of_snapshot:
            self.core.release_snapshot(c, self.cell)
        else:
            self.core.cell_free(self.cell)

    def _after_fork(self):
        """In a forked child: records, and protection, of its own; the memory is inherited."""
        self.record = NULL           # the parent's
        self.flushing = 0
        try:
            self.inherit(self.core.ctx())
        except BaseException:
            # Who stores there shall be stopped: it is not known any more whose blocks they are.
            nv_forbid(self.at, self.pages << BLOCK_SHIFT)
            self.at = NULL
            self.is_open = False
            self.release()
            raise

    cdef void inherit(self, nv_ctx* c) except *:
        cdef uint64_t pgoff = self.pgoff
        cdef uint32_t kind = MAP_WRITABLE if self.writable else 0
        cdef int64_t rc = NV_RETRY
        if self.core.cell(self.cell)[0] == 0:
            rc = -ESTALE             # the parent died, and nobody has the file, or snapshot, open
        else:
            self.describe(c, MAP_INHERITED | (MAP_SNAPSHOT if self.of_snapshot else kind))
        while self.core.again(c, rc):
            with nogil:
                rc = prepare(c, self.record, pgoff, pgoff + self.pages, NULL)
        if rc:
            raise_errno(rc, self.name, None)
        if self.writable:
            self.admit_stores(c)

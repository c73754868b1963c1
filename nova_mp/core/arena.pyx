"""Arenas as a whole: mkfs, the superblock, mount and unmount."""

import errno as _errno
import os

cimport cython
from cpython.buffer cimport Py_buffer, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from nova_mp import errors
from nova_mp.core.arch cimport NV_FLUSH_NONE, nv_best_flush, nv_fence_full, nv_store32
from nova_mp.core.boundary import MEDIA
from nova_mp.core.dram cimport (DRAM_PAGE, MAX_SLOTS, MEDIA_PMEM, MEDIA_REAL, REBUILD_LISTS,
                                ROLE_SUPERVISOR,
                                SLOT_FREE, STATE_READY, STATE_STOPPING, nv_ctx, nv_dram_header,
                                slot_at)
from nova_mp.core.layout cimport (BLOCK_BYTES, DATA_NR, FORMAT_VERSION, MAX_BLOCKS, MAX_CPUS,
                                  MIN_BLOCKS, MOUNT_CLEAN, nv_superblock)
from nova_mp.core.listsave cimport lists_save
from nova_mp.core.pmem cimport superblock_newest, superblock_write
from nova_mp.core.reclaim cimport clean_lists
from nova_mp.core.recovery cimport arena_format, base_bytes, dram_format, nv_mount_error, recover
from nova_mp.core.snapshot cimport snap_delete
from nova_mp.core.snaptable cimport snap_at
from nova_mp.core.sync cimport ctx_init, slot_give_back, slot_take


@cython.no_gc_clear
cdef class _Mapping:
    """Buffers of the two segments, for functions that need no process slot."""

    cdef Py_buffer pm_view
    cdef Py_buffer dram_view
    cdef nv_arena arena
    cdef int views

    def __cinit__(self, pmem, dram=None):
        memset(&self.arena, 0, sizeof(nv_arena))
        PyObject_GetBuffer(pmem, &self.pm_view, PyBUF_WRITABLE)
        self.views = 1
        self.arena.pm = <uint8_t*>self.pm_view.buf
        self.arena.pm_bytes = <uint64_t>self.pm_view.len // BLOCK_BYTES * BLOCK_BYTES
        if dram is not None:
            PyObject_GetBuffer(dram, &self.dram_view, PyBUF_WRITABLE)
            self.views = 2
            self.arena.dram = <uint8_t*>self.dram_view.buf
            self.arena.dram_bytes = <uint64_t>self.dram_view.len
            self.arena.hdr = <nv_dram_header*>self.arena.dram

    def __dealloc__(self):
        if self.views > 1:
            PyBuffer_Release(&self.dram_view)
        if self.views:
            PyBuffer_Release(&self.pm_view)


cdef bare_context(_Mapping m, nv_ctx* c):
    """A context without a slot, for superblock access and formatting."""
    memset(c, 0, sizeof(nv_ctx))
    c.a = &m.arena
    c.pm = m.arena.pm
    c.dram = m.arena.dram
    c.hdr = m.arena.hdr


LABEL_MAX_BYTES = 31


def format_arena(pmem, *, int cpus, uint64_t inode_limit=0, str label=""):
    """Writes an empty file system over all of `pmem` (mkfs).

    `cpus` is the default number of emulated CPUs (1 to 128), `inode_limit` the most inodes (0: as
    many as fit). Raises ValueError for a geometry that cannot be.
    """
    cdef _Mapping m = _Mapping(pmem)
    cdef nv_ctx c
    cdef bytes uuid = os.urandom(16)
    cdef bytes name = label.encode(errors="surrogateescape")
    if len(name) > LABEL_MAX_BYTES or not label.isprintable():
        raise ValueError(f"a label is printable text of at most {LABEL_MAX_BYTES} bytes: {label!r}")
    if not 1 <= cpus <= MAX_CPUS:
        raise ValueError(f"cpus must be 1 to {MAX_CPUS}, not {cpus}")
    if not MIN_BLOCKS <= m.arena.pm_bytes // BLOCK_BYTES <= MAX_BLOCKS:
        raise ValueError(f"an arena has 2 MiB to 1 TiB, not {m.arena.pm_bytes} bytes")
    if m.arena.pm_bytes // BLOCK_BYTES < DATA_NR + 20 + 8 * cpus:
        raise ValueError(f"{m.arena.pm_bytes} bytes are too few for {cpus} CPUs")
    bare_context(m, &c)
    arena_format(&c, cpus, inode_limit, name, <const unsigned char*>PyBytes_AS_STRING(uuid))


def read_superblock(pmem):
    """The newest valid superblock of an arena as a dict; CorruptArena if there is none."""
    cdef _Mapping m = _Mapping(pmem)
    cdef nv_ctx c
    cdef const nv_superblock* sb
    if m.arena.pm_bytes < 2 * BLOCK_BYTES:
        raise errors.CorruptArena(
            f"{m.arena.pm_bytes} bytes are too few for an arena",
            "check the name, or make one with mkfs")
    bare_context(m, &c)
    sb = superblock_newest(&c)
    if sb == NULL:
        raise errors.CorruptArena(
            "no valid superblock", "restore the arena from a copy, or make a new one with mkfs")
    if sb.version != FORMAT_VERSION:
        raise errors.VersionMismatch(
            f"the arena has format {sb.version}, this package reads format {FORMAT_VERSION}",
            "use the package that made the arena")
    return {
        "version": sb.version,
        "size_bytes": sb.size_bytes,
        "block_bytes": sb.block_bytes,
        "epoch_id": sb.epoch_id,
        "create_time_ns": sb.create_time_ns,
        "mount_time_ns": sb.mount_time_ns,
        "mount_count": sb.mount_count,
        "inode_limit": sb.inode_limit,
        "mount_state": "clean" if sb.mount_state == MOUNT_CLEAN else "dirty",
        "cpus": sb.cpus,
        "uuid": (<bytes>sb.uuid[:16]).hex(),
        "label": (<bytes>sb.label[:32]).rstrip(b"\0").decode(errors="replace"),
    }


cdef set_media(nv_dram_header* h, str media):
    # The emulated device: a few hundred nanoseconds a write-back, 2 GB/s, reads half as slow again
    # as memory; figures in the range that was published for the first persistent-memory modules.
    h.media_mode = MEDIA[media]
    if h.media_mode == MEDIA_PMEM:
        h.flush_ns = 90
        h.fence_ns = 60
        h.read_ns = 170
        h.write_bytes_per_us = 2000
        h.read_bytes_per_us = 6000


cdef arena_media(nv_arena* a):
    a.media_mode = a.hdr.media_mode
    a.flush_how = nv_best_flush() if a.media_mode == MEDIA_REAL else NV_FLUSH_NONE


def mount(pmem, dram, int dram_fd, *, int cpus, str media="dram", dram_limit=None):
    """Builds the DRAM segment from the logs in `pmem`; the arena is then ready for `Core`.

    `dram` is the whole (sparse) segment, of which `dram_geometry()[0]` bytes are reserved. Returns
    recovery statistics. Raises CorruptArena, VersionMismatch, or OSError(ENOSPC) if DRAM is too
    small.
    """
    cdef _Mapping m = _Mapping(pmem, dram)
    cdef nv_ctx c
    cdef nv_mount_error error
    cdef int slot, rc
    cdef uint64_t limit = m.arena.dram_bytes
    if media not in MEDIA:
        raise ValueError(f"media must be one of {sorted(MEDIA)}, not {media!r}")
    if not 1 <= cpus <= MAX_CPUS:
        raise ValueError(f"cpus must be 1 to {MAX_CPUS}, not {cpus}")
    read_superblock(pmem)
    if dram_limit is not None and dram_limit < limit:
        limit = <uint64_t>dram_limit
    limit = limit // DRAM_PAGE * DRAM_PAGE
    if limit < base_bytes(m.arena.pm_bytes, limit, cpus) + 64 * DRAM_PAGE:
        raise errors.NotEnoughMemory(
            f"a DRAM segment of {limit} bytes is too small for this arena", "raise the DRAM limit")
    dram_format(&m.arena, cpus, limit)
    set_media(m.arena.hdr, media)
    arena_media(&m.arena)
    m.arena.dram_fd = dram_fd
    m.arena.rebuild = REBUILD_LISTS
    slot = slot_take(&m.arena, ROLE_SUPERVISOR, 0, 0, b"mount")
    if slot < 0:
        raise no_slot(slot)
    ctx_init(&c, &m.arena, slot)
    c.privileged = 1
    error.what = b""
    error.where = 0
    with nogil:
        rc = recover(&c, &error)
    if rc:
        reason = f"{error.what.decode()} ({error.where:#x})"
        if rc == -_errno.ENOSPC:
            raise OSError(_errno.ENOSPC, f"cannot mount: {reason}; raise the DRAM limit")
        raise errors.CorruptArena(f"cannot mount: {reason}", "run fsck; restore from a copy")
    slot_give_back(&c, c.slot)
    nv_store32(&m.arena.hdr.state, STATE_READY)
    return recovery_stats(m.arena.hdr)


cdef recovery_stats(nv_dram_header* h):
    seconds = h.recovery_ns / 1e9
    return {
        "clean": bool(h.recovery_clean),
        "lists": "restored" if h.recovery_restored else "rebuilt",
        "seconds": seconds,
        "entries": h.recovery_entries,
        "inodes": h.recovery_inodes,
        "entries_per_second": h.recovery_entries / seconds if seconds else 0.0,
    }


cdef void delete_deferred(nv_ctx* c) noexcept nogil:
    # All processes have left, so no view is open: what was put off until then is due.
    cdef uint32_t i
    for i in range(c.hdr.snap_count):
        if snap_at(c, i) != NULL and snap_at(c, i).deferred:
            snap_delete(c, snap_at(c, i).epoch_id, False)


def no_slot(int rc):
    """The error for a process slot that slot_take() did not give."""
    if rc == -2:
        return OSError(_errno.EMFILE, "cannot look at /proc: no file descriptor is left")
    return errors.SlotsExhausted(f"all {MAX_SLOTS} process slots are taken",
                                 "detach other processes, or use fewer threads")


def unmount(pmem, dram, int dram_fd=-1):
    """Saves the snapshot lists and marks the arena clean.

    Every process must have left: OSError(EBUSY) otherwise. `dram_fd` lets the segment grow
    meanwhile.
    """
    cdef _Mapping m = _Mapping(pmem, dram)
    cdef nv_ctx c
    cdef nv_superblock sb
    cdef uint32_t i
    cdef int slot
    cdef bint saved
    bare_context(m, &c)
    arena_media(&m.arena)
    nv_store32(&m.arena.hdr.state, STATE_STOPPING)
    # Whoever takes a slot looks at the state after that: one of us sees the other.
    nv_fence_full()
    for i in range(m.arena.hdr.slot_high):
        if slot_at(&c, i).state != SLOT_FREE:
            nv_store32(&m.arena.hdr.state, STATE_READY)
            raise OSError(_errno.EBUSY, f"process {slot_at(&c, i).pid} still uses the arena")
    m.arena.dram_fd = dram_fd
    slot = slot_take(&m.arena, ROLE_SUPERVISOR, 0, 0, b"unmount")
    if slot < 0:
        nv_store32(&m.arena.hdr.state, STATE_READY)
        raise no_slot(slot)
    ctx_init(&c, &m.arena, slot)
    c.privileged = 1
    with nogil:
        delete_deferred(&c)
        # Without what a deleted file left when there was no memory to put it into a list, the lists
        # are not whole; then they are rebuilt from the logs, as after a crash.
        saved = (clean_lists(&c, <uint64_t>-1) == 0 and m.arena.hdr.not_evicted == 0
                 and lists_save(&c))
    sb = superblock_newest(&c)[0]
    sb.lists_saved = 1 if saved else 0
    sb.mount_state = MOUNT_CLEAN
    superblock_write(&c, &sb)
    slot_give_back(&c, c.slot)

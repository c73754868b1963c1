"""The boundary between Python and the file system core.

Everything below this module works on offsets and gives -errno; everything above it uses Python objects
and exceptions. Short operations run with the GIL held and without waiting; when one would have to
wait it starts over with the GIL released.
"""

import errno as _errno
import io
import math
import os
import threading
import time
import weakref

from cpython.buffer cimport (PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.errno cimport (EEXIST, EINVAL, EISDIR, ELOOP, ENOENT, ENOMEM, ENOTDIR, EBUSY)
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memchr, memcpy, memset, strdup
from libc.stdint cimport uint8_t
from posix.fcntl cimport O_ACCMODE, O_CREAT, O_EXCL, O_RDONLY, O_TRUNC

from nova_mp import errors
from nova_mp.core.alloc cimport blocks_free_count, dpend_done, dram_alloc, dram_free
from nova_mp.core.arch cimport (NV_DEBUG_BUILD, NV_FLUSH_NONE, nv_best_flush, nv_futex_wake, nv_load64,
                                nv_store32, nv_tls_get, nv_tls_set, nv_xchg64)
from nova_mp.core.dir cimport DT_DIR, DT_LNK
from nova_mp.core.dram cimport (CELL_SNAPSHOT, CNT_COUNT, CNT_OPS, DRAM_MAGIC, DRAM_PAGE, DRAM_VERSION, MAX_SLOTS,
                                MEDIA_DRAM, MEDIA_PMEM, MEDIA_REAL, NV_FROZEN, NV_RETRY, OPEN_CELLS,
                                OP_NONE, ROLE_CLEANER, ROLE_CLIENT, ROLE_COORDINATOR,
                                ROLE_SUPERVISOR, ROLE_WORKER, SLOT_ACTIVE, SLOT_FREE, STATE_READY,
                                STATE_STOPPING, cpu_at, dram_off, nv_cpu, nv_dram_header, nv_slot,
                                nv_snapshot, nv_trace, slot_at)
from nova_mp.core.dram import geometry as dram_geometry
from nova_mp.core.file cimport (ATTR_ATIME, ATTR_GID, ATTR_MODE, ATTR_MTIME, ATTR_UID, file_getattr,
                                file_read, file_setattr, file_truncate, nv_attr)
from nova_mp.core.handle cimport File, Stat, make_file, make_stat
from nova_mp.core.inode cimport S_IFDIR, S_IFLNK, S_IFMT, S_IFREG
from nova_mp.core.layout cimport (BLOCK_BYTES, DATA_NR, MAX_CPUS, MIN_BLOCKS, MAX_BLOCKS, MOUNT_CLEAN,
                                  SYMLINK_MAX_BYTES, XATTR_DATA_MAX, FORMAT_VERSION, nv_superblock)
from nova_mp.core.namei cimport (WALK_FOLLOW, WALK_PARENT, handle_close, handle_open, lookup_child,
                                 name_create, name_link, name_list, name_rmdir, name_unlink,
                                 nv_listing, walk)
from nova_mp.core.pmem cimport superblock_newest, superblock_valid, superblock_write
from nova_mp.core.reclaim cimport clean_backlog, clean_lists, gc_all, gc_inode
from nova_mp.core.recovery cimport (arena_format, base_bytes, dram_format, nv_mount_error, recover)
from nova_mp.core.rename cimport name_rename
from nova_mp.core.repair cimport reap_slot, repair_slot
from nova_mp.core.snapshot cimport (list_of, snap_at, snap_create, snap_delete, snap_find, snap_id_after,
                                    spare_drop, list_entries, list_tail)
from nova_mp.core.sync cimport (RANK_LIST, RANK_SNAPSHOT, ctx_init, gate_wait, grace_wait, lock_drop, lock_take,
                                slot_give_back, slot_take)
from nova_mp.core.xattr cimport xattr_get, xattr_list, xattr_set

cdef extern from "<unistd.h>" nogil:
    uint32_t getuid "geteuid"() noexcept
    uint32_t getgid "getegid"() noexcept
cdef extern from "<errno.h>" nogil:
    enum: _ESTALE "ESTALE"
cdef extern from "<fcntl.h>" nogil:
    enum: O_NOFOLLOW
    enum: O_DIRECTORY

ROLES = {
    "client": ROLE_CLIENT,
    "worker": ROLE_WORKER,
    "coordinator": ROLE_COORDINATOR,
    "cleaner": ROLE_CLEANER,
    "supervisor": ROLE_SUPERVISOR,
}
MEDIA = {"dram": MEDIA_DRAM, "pmem": MEDIA_PMEM, "real": MEDIA_REAL}
OPERATIONS = [
    "none", "read", "write", "setattr", "create", "unlink", "rename", "link", "xattr", "open", "close",
    "lookup", "gc", "snapshot_create", "snapshot_delete", "clean", "evict",
]
COUNTERS = {
    "read_bytes": 20, "write_bytes": 21, "lock_waits": 22, "read_retries": 23, "read_locked": 24,
    "repairs": 25, "epoch_retries": 26, "steals": 27, "gc_fast_pages": 28, "gc_thorough_pages": 29,
    "lock_wait_ns": 30, "list_appends": 31, "cleaned": 32,
}
DEBUG_BUILD = bool(NV_DEBUG_BUILD)

_cores = weakref.WeakSet()
_next_key = 1


# ---- arguments and errors -----------------------------------------------------------------------

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL


cdef object path_arg(object path, nv_path* p):
    """Bytes of a path argument, absolute and without NUL. Returns the object that owns them."""
    cdef object owner = path
    if type(path) is not str and type(path) is not bytes:
        owner = os.fspath(path)
    if isinstance(owner, str):
        try:
            p.text = PyUnicode_AsUTF8AndSize(owner, &p.length)
        except UnicodeEncodeError:
            owner = os.fsencode(owner)
    if isinstance(owner, bytes):
        p.text = PyBytes_AS_STRING(owner)
        p.length = PyBytes_GET_SIZE(owner)
    if memchr(p.text, 0, p.length) != NULL:
        raise ValueError("embedded null byte")
    if p.length and p.text[0] != 47:
        raise ValueError(f"path must be absolute: {path!r}")
    return owner


cdef object raise_errno(int64_t rc, object path, object path2):
    """Raises the OSError of a negative result."""
    cdef int code = <int>-rc
    if path2 is not None:
        raise OSError(code, os.strerror(code), os.fspath(path), None, os.fspath(path2))
    if path is not None:
        raise OSError(code, os.strerror(code), os.fspath(path))
    raise OSError(code, os.strerror(code))


cdef object decode(const char* text, Py_ssize_t length):
    return PyUnicode_DecodeUTF8(text, length, "surrogateescape")


def _nanoseconds(seconds):
    # Rounds down, and keeps what a float holds of today's times.
    whole = math.floor(seconds)
    return whole * 10**9 + int((seconds - whole) * 1e9)


def _umask():
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o022


# ---- arenas -------------------------------------------------------------------------------------

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


def format_arena(pmem, *, int cpus, uint64_t inode_limit=0, str label=""):
    """Writes an empty file system over all of `pmem` (mkfs).

    `cpus` is the default number of emulated CPUs (1 to 128), `inode_limit` the most inodes (0: as many
    as fit). Raises ValueError for a geometry that cannot be.
    """
    cdef _Mapping m = _Mapping(pmem)
    cdef nv_ctx c
    cdef bytes uuid = os.urandom(16)
    cdef bytes name = label.encode()[:31]
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
            f"{m.arena.pm_bytes} bytes are too few for an arena", "check the name, or make one with mkfs")
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
    recovery statistics. Raises CorruptArena, VersionMismatch, or OSError(ENOSPC) if DRAM is too small.
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
    m.arena.rebuild = 1
    slot = slot_take(&m.arena, ROLE_SUPERVISOR, 0, 0, b"mount")
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
    return _recovery(m.arena.hdr)


cdef _recovery(nv_dram_header* h):
    seconds = h.recovery_ns / 1e9
    return {
        "clean": bool(h.recovery_clean),
        "seconds": seconds,
        "entries": h.recovery_entries,
        "inodes": h.recovery_inodes,
        "entries_per_second": h.recovery_entries / seconds if seconds else 0.0,
    }


def unmount(pmem, dram):
    """Marks the arena clean. Every process must have left: OSError(EBUSY) otherwise."""
    cdef _Mapping m = _Mapping(pmem, dram)
    cdef nv_ctx c
    cdef nv_superblock sb
    cdef uint32_t i
    bare_context(m, &c)
    arena_media(&m.arena)
    nv_store32(&m.arena.hdr.state, STATE_STOPPING)
    for i in range(m.arena.hdr.slot_high):
        if slot_at(&c, i).state != SLOT_FREE:
            nv_store32(&m.arena.hdr.state, STATE_READY)
            raise OSError(_errno.EBUSY, f"process {slot_at(&c, i).pid} still uses the arena")
    sb = superblock_newest(&c)[0]
    sb.mount_state = MOUNT_CLEAN
    superblock_write(&c, &sb)


def _after_fork_in_child():
    for core in list(_cores):
        core._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)

_MODES = {
    "rb": os.O_RDONLY, "br": os.O_RDONLY,
    "wb": os.O_WRONLY | os.O_CREAT | os.O_TRUNC, "bw": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    "xb": os.O_WRONLY | os.O_CREAT | os.O_EXCL, "bx": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
    "ab": os.O_WRONLY | os.O_CREAT | os.O_APPEND, "ba": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    "r+b": os.O_RDWR, "rb+": os.O_RDWR,
    "w+b": os.O_RDWR | os.O_CREAT | os.O_TRUNC, "wb+": os.O_RDWR | os.O_CREAT | os.O_TRUNC,
    "x+b": os.O_RDWR | os.O_CREAT | os.O_EXCL, "xb+": os.O_RDWR | os.O_CREAT | os.O_EXCL,
    "a+b": os.O_RDWR | os.O_CREAT | os.O_APPEND, "ab+": os.O_RDWR | os.O_CREAT | os.O_APPEND,
}


def parse_mode(mode):
    """(os.O_* flags, binary?) of a mode of Python's open(); ValueError as there."""
    flags = _MODES.get(mode)
    if flags is not None:
        return flags, True
    letters = set(mode)
    if not isinstance(mode, str) or len(letters) != len(mode) or letters - set("rwxab+t"):
        raise ValueError(f"invalid mode: {mode!r}")
    if len(letters & set("rwxa")) != 1:
        raise ValueError("must have exactly one of create/read/write/append mode")
    if "t" in letters and "b" in letters:
        raise ValueError("can't have text and binary mode at once")
    kind = (letters & set("rwxa")).pop() + ("+" if "+" in letters else "") + "b"
    return _MODES[kind], "b" in letters


# ---- Core ---------------------------------------------------------------------------------------

cdef class Core:
    """One process's way into a mounted arena: operations run here, on shared memory.

    `pmem` and `dram` are the whole segments as writable buffers, `dram_fd` a descriptor of the DRAM
    segment (to reserve more of it). `role` names what the process is, `cpu` the emulated CPU whose
    structures it uses (default: the one with the fewest processes). Thread-safe: each thread takes a
    process slot of its own at its first operation. After fork() the child has slots of its own.
    """

    def __cinit__(self, pmem, dram, dram_fd, *args, role="client", cpu=None, title="", **more):
        global _next_key
        memset(&self.arena, 0, sizeof(nv_arena))
        self.closed = True
        self.contexts = {}
        self.free_cells = []
        self.key = _next_key
        _next_key += 1
        if role not in ROLES:
            raise ValueError(f"role must be one of {sorted(ROLES)}, not {role!r}")
        self.role_nr = ROLES[role]
        self.title = title
        PyObject_GetBuffer(pmem, &self.pm_view, PyBUF_WRITABLE)
        self.views = 1
        PyObject_GetBuffer(dram, &self.dram_view, PyBUF_WRITABLE)
        self.views = 2
        self.arena.pm = <uint8_t*>self.pm_view.buf
        self.arena.pm_bytes = <uint64_t>self.pm_view.len // BLOCK_BYTES * BLOCK_BYTES
        self.arena.dram = <uint8_t*>self.dram_view.buf
        self.arena.dram_bytes = <uint64_t>self.dram_view.len
        self.arena.hdr = <nv_dram_header*>self.arena.dram
        self.arena.dram_fd = os.dup(dram_fd)
        self.arena.repair = repair_slot
        self._check_segments()
        self._arm_failpoint()
        self.umask_bits = _umask()
        self.cpu = self._choose_cpu(cpu)
        self.take_process_slot()
        self.closed = False
        _cores.add(self)

    def __init__(self, pmem, dram, dram_fd, *, role="client", cpu=None, title=""):
        pass

    def __dealloc__(self):
        if not self.closed:
            self._leave()
        if self.views:
            if self.arena.dram_fd:
                os.close(self.arena.dram_fd)
        if self.views > 1:
            PyBuffer_Release(&self.dram_view)
        if self.views:
            PyBuffer_Release(&self.pm_view)
        free(self.arena.failpoint)

    def _check_segments(self):
        h = self.arena.hdr
        if self.arena.dram_bytes < DRAM_PAGE or h.magic != DRAM_MAGIC or h.version != DRAM_VERSION:
            raise errors.EngineNotRunning("the DRAM segment is not that of a mounted arena", "start the engine")
        if h.state != STATE_READY:
            raise errors.EngineNotRunning("the arena is being mounted or stopped", "try again in a moment")
        if h.pm_bytes != self.arena.pm_bytes or h.limit_bytes > self.arena.dram_bytes:
            raise errors.CorruptArena("the two segments do not belong together", "start the engine again")
        arena_media(&self.arena)

    def _arm_failpoint(self):
        name, _, nth = os.environ.get("NOVA_MP_FAILPOINT", "").partition(":")
        if name and DEBUG_BUILD:
            self.arm_failpoint(name, int(nth or 1))

    def arm_failpoint(self, str name, int nth=1):
        """Debug builds: this process kills itself at the nth passage of a failpoint from now on."""
        free(self.arena.failpoint)
        self.arena.failpoint = strdup(name.encode())
        self.arena.failpoint_count = nth

    def _choose_cpu(self, cpu):
        cdef nv_dram_header* h = self.arena.hdr
        cdef nv_slot* base = <nv_slot*>(self.arena.dram + h.slots_off)
        cdef nv_slot* s
        cdef uint32_t i
        if cpu is not None:
            if not 0 <= cpu < h.cpus:
                raise ValueError(f"cpu must be 0 to {h.cpus - 1}, not {cpu}")
            return cpu
        load = [0] * h.cpus
        for i in range(h.slot_high):
            s = <nv_slot*>(<char*>base + i * 1024)
            if s.state & 3 == SLOT_ACTIVE and s.role == ROLE_CLIENT and s.cpu < h.cpus:
                load[s.cpu] += 1
        return load.index(min(load))

    cdef void take_process_slot(self) except *:
        cdef int nr = slot_take(&self.arena, self.role_nr, self.cpu, 0, self.title.encode()[:23])
        cdef nv_ctx* c
        if nr < 0:
            raise errors.SlotsExhausted(f"all {MAX_SLOTS} process slots are taken", "detach other processes")
        self.slot = nr
        self.arena.process_slot = nr
        self.arena.pid = os.getpid()
        c = <nv_ctx*>calloc(1, sizeof(nv_ctx))
        if c == NULL:
            raise MemoryError
        ctx_init(c, &self.arena, nr)
        self.contexts[threading.get_ident()] = <size_t>c
        nv_tls_set(self.key, c)

    cdef nv_ctx* ctx(self) except NULL:
        cdef void* c = nv_tls_get(self.key)
        if c != NULL:
            return <nv_ctx*>c
        return self.new_ctx()

    cdef nv_ctx* new_ctx(self) except NULL:
        """The calling thread's context: known under another arena's name, or a new slot."""
        cdef int nr
        cdef nv_ctx* c
        if self.closed:
            raise ValueError("operation on a closed file system")
        known = self.contexts.get(threading.get_ident())
        if known is not None:
            c = <nv_ctx*><size_t>known
            if c.slot.tid == threading.get_native_id():
                nv_tls_set(self.key, c)
                return c
        nr = slot_take(&self.arena, self.role_nr, self.cpu, self.slot + 1, self.title.encode()[:23])
        if nr < 0:
            self.reap()
            nr = slot_take(&self.arena, self.role_nr, self.cpu, self.slot + 1, self.title.encode()[:23])
        if nr < 0:
            raise errors.SlotsExhausted(f"all {MAX_SLOTS} process slots are taken", "use fewer threads")
        c = <nv_ctx*>calloc(1, sizeof(nv_ctx))
        if c == NULL:
            raise MemoryError
        ctx_init(c, &self.arena, nr)
        self.contexts[threading.get_ident()] = <size_t>c
        nv_tls_set(self.key, c)
        return c

    def _after_fork(self):
        """In a forked child: slots and open handles of its own."""
        global _next_key
        cdef nv_ctx* c
        cdef uint64_t* old_pages[256]
        cdef uint32_t n = self.n_pages
        cdef uint32_t i, k
        cdef nv_node node
        if self.closed:
            return
        self.key = _next_key
        _next_key += 1
        self.contexts = {}
        self.n_pages = 0
        for i in range(n):
            old_pages[i] = self.pages[i]
        self.take_process_slot()
        c = self.ctx()
        self.free_cells = []
        for i in range(n):
            self.add_cell_page(c)
        self.free_cells = []
        for i in range(n * OPEN_CELLS):
            node.ino = old_pages[i // OPEN_CELLS][i % OPEN_CELLS]
            node.generation = 0
            if node.ino & <uint64_t>CELL_SNAPSHOT:
                self.hold_snapshot(c, i, node.ino)
            elif node.ino == 0 or handle_open(c, node, self.cell(i)):
                self.free_cells.append(i)

    def close(self):
        """Closes all handles and gives the process's slots back. Safe to call twice."""
        if not self.closed:
            self._leave()

    def _leave(self):
        cdef nv_ctx* c = self.ctx()
        cdef nv_ctx* other
        cdef uint32_t i
        cdef int rc
        for i in range(self.n_pages * OPEN_CELLS):
            if self.cell(i)[0] & <uint64_t>CELL_SNAPSHOT:
                self.release_snapshot(c, i)
            elif self.cell(i)[0]:
                self.cell_free(i)
        with nogil:
            spare_drop(c)
        for value in self.contexts.values():
            other = <nv_ctx*><size_t>value
            if other == c:
                continue
            if other.slot.epoch_id == 0 and other.slot.nlocks == 0:
                while other.slot.spare_head:
                    i = 0
                    c.slot.spare_head = other.slot.spare_head
                    other.slot.spare_head = 0
                    spare_drop(c)
                slot_give_back(other, other.slot)
            free(other)
        i = self.n_pages
        while i > 0:
            i -= 1
            c.slot.open_head = 0
            dram_free(c, dram_off(c, self.pages[i]), DRAM_PAGE)
        self.n_pages = 0
        self.closed = True
        nv_tls_set(0, NULL)
        slot_give_back(c, slot_at(c, self.slot))
        free(c)
        self.contexts = {}
        _cores.discard(self)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    @property
    def pid(self):
        """The process that holds the slot."""
        return self.arena.pid

    # -- open table

    cdef uint64_t* cell(self, uint32_t nr) noexcept nogil:
        return self.pages[nr // OPEN_CELLS] + nr % OPEN_CELLS

    cdef uint32_t cell_new(self, nv_ctx* c) except? 0xFFFFFFFF:
        if not self.free_cells:
            self.add_cell_page(c)
        return self.free_cells.pop()

    cdef void add_cell_page(self, nv_ctx* c) except *:
        # The process slot names the first page of its open table; pages are chained.
        cdef nv_slot* process = slot_at(c, self.slot)
        cdef uint64_t off
        cdef uint64_t* cells
        if self.n_pages == 256:
            raise OSError(_errno.EMFILE, os.strerror(_errno.EMFILE))
        off = dram_alloc(c, DRAM_PAGE, dram_off(c, &process.open_head))
        if off == 0:
            raise OSError(_errno.ENOSPC, "no shared memory for open files")
        cells = <uint64_t*>(c.dram + off)
        cells[OPEN_CELLS] = process.open_head
        process.open_head = off
        dpend_done(c)
        self.pages[self.n_pages] = cells
        first = self.n_pages * OPEN_CELLS
        self.n_pages += 1
        self.free_cells.extend(range(first + OPEN_CELLS - 1, first - 1, -1))

    cdef void cell_free(self, uint32_t nr) except *:
        """Closes the handle of a cell; waits while the arena is frozen."""
        cdef nv_ctx* c = self.ctx()
        cdef uint64_t* cell = self.cell(nr)
        cdef int rc
        c.nowait = 1
        rc = handle_close(c, cell)
        c.nowait = 0
        while self.again(c, rc):
            with nogil:
                rc = handle_close(c, cell)
        self.free_cells.append(nr)

    cdef int hold_snapshot(self, nv_ctx* c, uint32_t nr, uint64_t cell) except -1:
        """Holds a snapshot open in a cell; False if there is no such snapshot."""
        cdef nv_snapshot* s
        with nogil:
            lock_take(c, &c.hdr.snapshot_lock, RANK_SNAPSHOT)
            s = snap_find(c, cell & ~<uint64_t>CELL_SNAPSHOT)
            if s != NULL:
                self.cell(nr)[0] = cell
                s.opens += 1
            lock_drop(c, &c.hdr.snapshot_lock)
        if s == NULL:
            self.free_cells.append(nr)
        return s != NULL

    cdef void release_snapshot(self, nv_ctx* c, uint32_t nr) except *:
        """Gives back the cell of an open snapshot."""
        cdef uint64_t* cell = self.cell(nr)
        cdef nv_snapshot* s
        with nogil:
            lock_take(c, &c.hdr.snapshot_lock, RANK_SNAPSHOT)
            s = snap_find(c, cell[0] & ~<uint64_t>CELL_SNAPSHOT)
            if s != NULL and s.opens:
                s.opens -= 1
            cell[0] = 0
            lock_drop(c, &c.hdr.snapshot_lock)
        self.free_cells.append(nr)

    cdef int again(self, nv_ctx* c, int64_t rc) except -1:
        """True if an operation has to be done again, now allowed to wait."""
        if rc > NV_RETRY or rc < NV_FROZEN:
            return 0
        if rc == NV_FROZEN:
            with nogil:
                gate_wait(c, 100000000)
            PyErr_CheckSignals()
        return 1

    cdef void collect(self, nv_ctx* c) noexcept:
        """The log that the last operation found too long is collected."""
        cdef uint64_t ino = c.gc_ino
        c.gc_ino = 0
        with nogil:
            gc_inode(c, ino)

    # -- paths

    cdef nv_node resolve(self, nv_ctx* c, object path, int follow) except *:
        cdef nv_path p
        cdef nv_walk w
        cdef int rc
        owner = path_arg(path, &p)
        c.nowait = 1
        rc = walk(c, p.text, p.length, follow, &w)
        c.nowait = 0
        while self.again(c, rc):
            with nogil:
                rc = walk(c, p.text, p.length, follow, &w)
        if rc:
            raise_errno(rc, path, None)
        return w.node

    def stat(self, path, *, bint follow_symlinks=True):
        """Attributes of a file, as os.stat() gives them."""
        cdef nv_ctx* c = self.ctx()
        cdef nv_attr attr
        cdef nv_path p
        cdef nv_walk w
        cdef int rc, flags = WALK_FOLLOW if follow_symlinks else 0
        owner = path_arg(path, &p)
        c.nowait = 1
        rc = walk(c, p.text, p.length, flags, &w)
        if rc == 0:
            rc = file_getattr(c, w.node.ino, w.node.generation, &attr)
        c.nowait = 0
        while rc == -_ESTALE or self.again(c, rc):
            with nogil:
                rc = walk(c, p.text, p.length, flags, &w)
                if rc == 0:
                    rc = file_getattr(c, w.node.ino, w.node.generation, &attr)
        if rc:
            raise_errno(rc, path, None)
        return make_stat(&attr)

    def lstat(self, path):
        """Attributes of a file or of a symbolic link itself."""
        return self.stat(path, follow_symlinks=False)

    def _type(self, path):
        try:
            return self.stat(path).st_mode & S_IFMT
        except (OSError, ValueError):
            return 0

    def exists(self, path):
        """True if the path leads to something."""
        return self._type(path) != 0

    def isfile(self, path):
        """True if the path leads to a regular file."""
        return self._type(path) == S_IFREG

    def isdir(self, path):
        """True if the path leads to a directory."""
        return self._type(path) == S_IFDIR

    # -- open

    def open(self, path, mode="rb", buffering=-1, encoding=None, errors=None, newline=None):
        """Opens a file as the built-in open() does; binary files are `File`s, text wraps them.

        Binary files are not buffered: memory needs none. Raises OSError subclasses as open() does.
        """
        flags = _MODES.get(mode)
        if flags is not None and encoding is None and errors is None and newline is None:
            return self.os_open(path, flags)
        flags, binary = parse_mode(mode)
        if binary:
            raise ValueError("binary mode doesn't take an encoding, errors or newline argument")
        if buffering == 0:
            raise ValueError("can't have unbuffered text I/O")
        file = self.os_open(path, flags)
        text = io.TextIOWrapper(file, encoding, errors, newline, line_buffering=buffering == 1)
        text.mode = mode
        return text

    def os_open(self, path, int flags, int mode=0o666):
        """Opens a file with os.O_* flags; `mode` less the umask is given to a new file."""
        cdef nv_ctx* c = self.ctx()
        cdef nv_path p
        cdef nv_walk w
        cdef nv_node node
        cdef uint32_t cell = self.cell_new(c)
        cdef uint64_t* opened = self.cell(cell)
        cdef uint32_t bits = mode & ~self.umask_bits
        cdef int64_t rc
        cdef bint made = False
        try:
            owner = path_arg(path, &p)
        except BaseException:
            self.free_cells.append(cell)
            raise
        c.nowait = 1
        rc = open_once(c, &p, flags, bits, &w, &node, opened, &made)
        c.nowait = 0
        try:
            while rc == -_ESTALE or self.again(c, rc):
                with nogil:
                    rc = open_once(c, &p, flags, bits, &w, &node, opened, &made)
            if rc:
                raise_errno(rc, path, None)
        except BaseException:
            self.free_cells.append(cell)
            raise
        if c.gc_ino:
            self.collect(c)
        file = make_file(self, cell, node, flags, owner)
        if flags & O_TRUNC and not made and flags & O_ACCMODE != O_RDONLY:
            file.truncate(0)
        return file

    # -- names

    def _make(self, path, uint32_t mode, target=None):
        cdef nv_ctx* c = self.ctx()
        cdef nv_path p, t
        cdef nv_walk w
        cdef nv_node node
        cdef int rc
        cdef uint32_t uid = os.geteuid()
        cdef uint32_t gid = os.getegid()
        owner = path_arg(path, &p)
        t.text = NULL
        t.length = 0
        if target is not None:
            target = os.fsencode(target)
            if not target or len(target) > SYMLINK_MAX_BYTES or b"\0" in target:
                raise_errno(-ENOENT if not target else -_errno.ENAMETOOLONG, target, path)
            t.text = PyBytes_AS_STRING(target)
            t.length = PyBytes_GET_SIZE(target)
        rc = NV_RETRY
        while self.again(c, rc):
            with nogil:
                rc = walk(c, p.text, p.length, WALK_PARENT, &w)
                if rc == 0 and w.trailing and mode & S_IFMT != S_IFDIR:
                    rc = -ENOENT
                if rc == 0:
                    rc = name_create(c, &w, mode, uid, gid, t.text, t.length, &node)
        if c.gc_ino:
            self.collect(c)
        if rc:
            if target is not None:
                raise_errno(rc, os.fsdecode(target), path)
            raise_errno(rc, path, None)

    def make_dir(self, path, int mode=0o777):
        """Makes one directory; `mode` less the umask."""
        self._make(path, S_IFDIR | (mode & 0o7777 & ~self.umask_bits))

    def symlink(self, target, path):
        """Makes `path` a symbolic link to `target`."""
        self._make(path, S_IFLNK | 0o777, target)

    def unlink(self, path):
        """Removes a file's name; the file itself once nobody has it open."""
        cdef nv_ctx* c = self.ctx()
        cdef nv_path p
        cdef nv_walk w
        cdef int rc
        owner = path_arg(path, &p)
        c.nowait = 1
        rc = walk(c, p.text, p.length, WALK_PARENT, &w)
        if rc == 0:
            rc = name_unlink(c, &w)
        c.nowait = 0
        while self.again(c, rc):
            with nogil:
                rc = walk(c, p.text, p.length, WALK_PARENT, &w)
                if rc == 0:
                    rc = name_unlink(c, &w)
        if c.gc_ino:
            self.collect(c)
        if rc:
            raise_errno(rc, path, None)

    def rmdir(self, path):
        """Removes an empty directory."""
        cdef nv_ctx* c = self.ctx()
        cdef nv_path p
        cdef nv_walk w
        cdef int rc = NV_RETRY
        owner = path_arg(path, &p)
        while self.again(c, rc):
            with nogil:
                rc = walk(c, p.text, p.length, WALK_PARENT, &w)
                if rc == 0:
                    rc = name_rmdir(c, &w)
        if c.gc_ino:
            self.collect(c)
        if rc:
            raise_errno(rc, path, None)

    def rename(self, src, dst, bint noreplace=False):
        """Renames `src` to `dst`, replacing it atomically; FileExistsError with `noreplace`."""
        cdef nv_ctx* c = self.ctx()
        cdef nv_path p, q
        cdef nv_walk* w = <nv_walk*>malloc(2 * sizeof(nv_walk))
        cdef int rc = NV_RETRY
        if w == NULL:
            raise MemoryError
        try:
            src_owner = path_arg(src, &p)
            dst_owner = path_arg(dst, &q)
            while self.again(c, rc):
                with nogil:
                    rc = name_rename(c, p.text, p.length, q.text, q.length, noreplace, &w[0], &w[1])
        finally:
            free(w)
        if c.gc_ino:
            self.collect(c)
        if rc:
            raise_errno(rc, src, dst)

    def link(self, src, dst):
        """Gives a file a second name. A symbolic link itself gets it, not what it points to."""
        cdef nv_ctx* c = self.ctx()
        cdef nv_path p, q
        cdef nv_walk w
        cdef nv_node node
        cdef int rc = NV_RETRY
        src_owner = path_arg(src, &p)
        dst_owner = path_arg(dst, &q)
        while self.again(c, rc):
            with nogil:
                rc = walk(c, p.text, p.length, 0, &w)
                if rc == 0:
                    node = w.node
                    rc = walk(c, q.text, q.length, WALK_PARENT, &w)
                if rc == 0 and w.trailing:
                    rc = -ENOENT
                if rc == 0:
                    rc = name_link(c, node, &w)
        if c.gc_ino:
            self.collect(c)
        if rc:
            raise_errno(rc, src, dst)

    def readlink(self, path):
        """Target of a symbolic link."""
        cdef nv_ctx* c = self.ctx()
        cdef nv_node node = self.resolve(c, path, 0)
        cdef char text[4096]
        cdef int64_t rc = NV_RETRY
        if node.type != DT_LNK:
            raise_errno(-EINVAL, path, None)
        while self.again(c, rc):
            with nogil:
                rc = file_read(c, node.ino, node.generation, <uint8_t*>text, SYMLINK_MAX_BYTES, 0)
        if rc < 0:
            raise_errno(rc, path, None)
        if isinstance(path, bytes):
            return PyBytes_FromStringAndSize(text, rc)
        return decode(text, rc)

    def scan(self, path="/"):
        """Names of a directory: a list of (name, inode number, type as in dirent's DT_*)."""
        return self._list(path, True)

    def listdir(self, path="/"):
        """Names of a directory, in no order."""
        return self._list(path, False)

    def _list(self, path, bint full):
        cdef nv_ctx* c = self.ctx()
        cdef nv_node node = self.resolve(c, path, WALK_FOLLOW)
        cdef nv_listing out
        cdef uint64_t at = 0, ino
        cdef int rc = NV_RETRY
        if node.type != DT_DIR:
            raise_errno(-ENOTDIR, path, None)
        memset(&out, 0, sizeof(out))
        try:
            while self.again(c, rc):
                with nogil:
                    rc = name_list(c, node, &out)
            if rc:
                raise_errno(rc, path, None)
            names = []
            while at < out.used:
                memcpy(&ino, out.data + at, 8)
                name = decode(<char*>out.data + at + 10, out.data[at + 9])
                names.append((name, ino, out.data[at + 8]) if full else name)
                at += 10 + <uint64_t>out.data[at + 9]
            if isinstance(path, bytes) and not full:
                return [os.fsencode(name) for name in names]
            return names
        finally:
            free(out.data)

    # -- attributes

    def _setattr(self, path, uint32_t mask, bint follow, mode=0, uid=0, gid=0,
                 int64_t atime=0, int64_t mtime=0):
        cdef nv_ctx* c = self.ctx()
        cdef nv_node node
        cdef nv_attr attr
        cdef int rc = -_ESTALE
        memset(&attr, 0, sizeof(attr))
        attr.mode = mode
        attr.uid = uid
        attr.gid = gid
        attr.atime_ns = <uint64_t>atime
        attr.mtime_ns = <uint64_t>mtime
        while rc == -_ESTALE:
            node = self.resolve(c, path, WALK_FOLLOW if follow else 0)
            rc = NV_RETRY
            while self.again(c, rc):
                with nogil:
                    rc = file_setattr(c, node.ino, node.generation, mask, &attr)
        if c.gc_ino:
            self.collect(c)
        if rc:
            raise_errno(rc, path, None)

    def chmod(self, path, int mode, *, bint follow_symlinks=True):
        """Changes permissions. They are kept, but the arena's owner may do everything."""
        self._setattr(path, ATTR_MODE, follow_symlinks, mode=mode & 0o7777)

    def chown(self, path, int uid, int gid, *, bint follow_symlinks=True):
        """Changes owner and group; -1 keeps one."""
        cdef uint32_t mask = (ATTR_UID if uid != -1 else 0) | (ATTR_GID if gid != -1 else 0)
        self._setattr(path, mask, follow_symlinks, uid=uid & 0xFFFFFFFF, gid=gid & 0xFFFFFFFF)

    def utime(self, path, times=None, *, ns=None, bint follow_symlinks=True):
        """Sets access and modification time: seconds in `times`, nanoseconds in `ns`, or now."""
        if times is not None and ns is not None:
            raise ValueError("utime: you may specify either 'times' or 'ns' but not both")
        if times is not None:
            ns = tuple(_nanoseconds(value) for value in times)
        if ns is None:
            ns = (time.time_ns(),) * 2
        atime, mtime = ns
        self._setattr(path, ATTR_ATIME | ATTR_MTIME, follow_symlinks, atime=atime, mtime=mtime)

    def truncate(self, path, int64_t size):
        """Cuts a file, or grows it with a hole, to `size` bytes."""
        cdef nv_ctx* c = self.ctx()
        cdef nv_node node
        cdef int rc = -_ESTALE
        if size < 0:
            raise_errno(-EINVAL, path, None)
        while rc == -_ESTALE:
            node = self.resolve(c, path, WALK_FOLLOW)
            rc = NV_RETRY
            while self.again(c, rc):
                with nogil:
                    rc = file_truncate(c, node.ino, node.generation, size)
        if c.gc_ino:
            self.collect(c)
        if rc:
            raise_errno(rc, path, None)

    def statvfs(self, path="/"):
        """Space and inodes, as os.statvfs() gives them."""
        cdef nv_ctx* c = self.ctx()
        self.resolve(c, path, WALK_FOLLOW)
        total = c.hdr.num_blocks
        free_blocks = blocks_free_count(c)
        reserve = sum(cpu_at(c, i).blocks.reserve for i in range(c.hdr.cpus))
        used = sum(cpu_at(c, i).inodes_used for i in range(c.hdr.cpus))
        limit = c.hdr.inode_limit or used + free_blocks
        available = max(0, free_blocks - reserve)
        return os.statvfs_result((BLOCK_BYTES, BLOCK_BYTES, total, free_blocks, available, limit,
                                  limit - used, limit - used, 0, 255, 0))

    # -- extended attributes

    def _xattr(self, path, name, value, int flags, bint follow):
        cdef nv_ctx* c = self.ctx()
        cdef nv_node node
        cdef bytes key = os.fsencode(name)
        cdef bytes data = bytes(value)
        cdef const char* k = PyBytes_AS_STRING(key)
        cdef const uint8_t* v = <const uint8_t*>PyBytes_AS_STRING(data)
        cdef uint64_t n = PyBytes_GET_SIZE(data)
        cdef uint32_t k_len = PyBytes_GET_SIZE(key)
        cdef int rc = -_ESTALE
        if not key or b"\0" in key:
            raise_errno(-EINVAL, path, None)
        while rc == -_ESTALE:
            node = self.resolve(c, path, WALK_FOLLOW if follow else 0)
            rc = NV_RETRY
            while self.again(c, rc):
                with nogil:
                    rc = xattr_set(c, node.ino, node.generation, k, k_len, v, n, flags)
        if c.gc_ino:
            self.collect(c)
        if rc:
            raise_errno(rc, path, None)

    def setxattr(self, path, name, value, int flags=0, *, bint follow_symlinks=True):
        """Sets an extended attribute; `flags` as os.XATTR_CREATE, os.XATTR_REPLACE.

        Name and value together have at most 3928 bytes; OSError(E2BIG) above that.
        """
        self._xattr(path, name, value, flags & 3, follow_symlinks)

    def removexattr(self, path, name, *, bint follow_symlinks=True):
        """Removes an extended attribute; OSError(ENODATA) if there is none."""
        self._xattr(path, name, b"", 4, follow_symlinks)

    def getxattr(self, path, name, *, bint follow_symlinks=True):
        """Value of an extended attribute; OSError(ENODATA) if there is none."""
        cdef nv_ctx* c = self.ctx()
        cdef nv_node node = self.resolve(c, path, WALK_FOLLOW if follow_symlinks else 0)
        cdef bytes key = os.fsencode(name)
        cdef const char* k = PyBytes_AS_STRING(key)
        cdef uint32_t k_len = PyBytes_GET_SIZE(key)
        cdef uint8_t value[4096]
        cdef int64_t rc = NV_RETRY
        while self.again(c, rc):
            with nogil:
                rc = xattr_get(c, node.ino, node.generation, k, k_len, value)
        if rc < 0:
            raise_errno(rc, path, None)
        return PyBytes_FromStringAndSize(<char*>value, rc)

    def listxattr(self, path, *, bint follow_symlinks=True):
        """Names of the extended attributes."""
        cdef nv_ctx* c = self.ctx()
        cdef nv_node node = self.resolve(c, path, WALK_FOLLOW if follow_symlinks else 0)
        cdef uint64_t room = 1 << 20, at = 0
        cdef uint8_t* names = <uint8_t*>malloc(room)
        cdef int64_t rc = NV_RETRY
        if names == NULL:
            raise MemoryError
        try:
            while self.again(c, rc):
                with nogil:
                    rc = xattr_list(c, node.ino, node.generation, names, room)
            if rc < 0:
                raise_errno(rc, path, None)
            result = []
            while at < <uint64_t>rc:
                result.append(decode(<char*>names + at + 1, names[at]))
                at += 1 + <uint64_t>names[at]
            return result
        finally:
            free(names)

    # -- snapshots (the coordinator's part)

    def snapshot_create(self, name=None):
        """Takes a snapshot; returns its id when it is complete. For one process: the coordinator."""
        cdef nv_ctx* c = self.ctx()
        cdef bytes text = (name or "").encode()
        cdef const char* p = PyBytes_AS_STRING(text)
        cdef uint32_t n = PyBytes_GET_SIZE(text)
        cdef uint64_t epoch_id = 0
        cdef int rc
        if name is not None and (not name or name.isdigit() or "/" in name or "@" in name or "\0" in name):
            raise ValueError(f"a snapshot's name is no number and has no '/' or '@': {name!r}")
        with nogil:
            rc = snap_create(c, p, n, &epoch_id)
        if rc == NV_FROZEN:
            raise OSError(_errno.EBUSY, "the arena is frozen", name)
        if rc:
            raise_errno(rc, name, None)
        if c.hdr.snap_live * 2 + 64 < c.hdr.snap_count:
            self.gc()
        return epoch_id

    def snapshot_delete(self, uint64_t epoch_id):
        """Deletes a snapshot; the cleaner frees what it alone held."""
        cdef nv_ctx* c = self.ctx()
        cdef int rc
        with nogil:
            rc = snap_delete(c, epoch_id)
        if rc == -ENOENT:
            raise errors.NoSuchSnapshot(f"no snapshot {epoch_id}", "list the snapshots there are")
        if rc == NV_FROZEN:
            raise OSError(_errno.EBUSY, "the arena is frozen", str(epoch_id))
        if rc == -EBUSY:
            raise OSError(_errno.EBUSY, "the snapshot is open", str(epoch_id))
        if rc:
            raise_errno(rc, str(epoch_id), None)
        if c.gc_ino:
            self.collect(c)

    def snapshot_table(self):
        """The snapshots, oldest first, as dicts."""
        cdef nv_ctx* c = self.ctx()
        cdef uint32_t i
        cdef nv_snapshot* s
        result = []
        with nogil:
            lock_take(c, &c.hdr.snapshot_lock, RANK_SNAPSHOT)
        try:
            for i in range(c.hdr.snap_count):
                s = snap_at(c, i)
                if s != NULL:
                    result.append(_describe(c, s))
        finally:
            lock_drop(c, &c.hdr.snapshot_lock)
        return result

    def snapshot_open(self, uint64_t epoch_id):
        """A read-only view of a snapshot, which cannot be deleted while the view is open."""
        from nova_mp.core.view import SnapshotCore
        return SnapshotCore(self, epoch_id)

    def reclaim(self, uint64_t budget=10000):
        """Cleans up to `budget` entries of deleted snapshots' lists; returns how many are left."""
        cdef nv_ctx* c = self.ctx()
        cdef int64_t rc
        with nogil:
            rc = clean_lists(c, budget)
        if rc == NV_FROZEN:
            return clean_backlog(c)
        if rc < 0:
            raise_errno(rc, None, None)
        return rc

    def gc(self):
        """Collects garbage in every log that has more than one page."""
        cdef nv_ctx* c = self.ctx()
        with nogil:
            gc_all(c)

    def freeze(self, double timeout=5.0):
        """Lets running operations finish and new ones wait. TimeoutError names who did not finish."""
        cdef nv_ctx* c = self.ctx()
        cdef uint64_t ns = <uint64_t>(timeout * 1e9)
        cdef int late
        gate = nv_load64(&c.hdr.gate)
        if gate & 1:
            raise OSError(_errno.EBUSY, "the arena is frozen already")
        nv_xchg64(&c.hdr.gate, gate | 1)
        with nogil:
            late = grace_wait(c, <uint64_t>-1 >> 1, ns)
        if late:
            pid = slot_at(c, late - 1).pid
            self.unfreeze()
            raise TimeoutError(_errno.ETIMEDOUT, f"process {pid} did not finish its operation")

    def unfreeze(self):
        """Lets operations go on. Harmless when nothing is frozen."""
        cdef nv_ctx* c = self.ctx()
        nv_xchg64(&c.hdr.gate, nv_load64(&c.hdr.gate) & ~<uint64_t>1)
        c.hdr.gate_futex += 1
        with nogil:
            nv_futex_wake(&c.hdr.gate_futex, 0x7FFFFFFF)

    # -- processes

    def reap(self):
        """Repairs and frees slots of dead processes and threads; returns what was done."""
        cdef nv_ctx* c = self.ctx()
        cdef uint32_t i
        cdef int rc
        result = []
        for i in range(c.hdr.slot_high):
            if slot_at(c, i).state == SLOT_FREE or slot_at(c, i) == c.slot:
                continue
            pid, tid, role = slot_at(c, i).pid, slot_at(c, i).tid, slot_at(c, i).role
            op, thread = slot_at(c, i).op, slot_at(c, i).parent != 0
            with nogil:
                rc = reap_slot(c, i)
            if rc == 1:
                result.append({"slot": i, "pid": pid, "tid": tid, "role": _role_name(role),
                               "op": OPERATIONS[op] if op < len(OPERATIONS) else "?", "thread": thread})
        return result

    def slots(self):
        """Every process slot in use, as dicts."""
        cdef nv_ctx* c = self.ctx()
        cdef nv_slot* s
        cdef uint32_t i
        result = []
        for i in range(c.hdr.slot_high):
            s = slot_at(c, i)
            if s.state & 3 != SLOT_ACTIVE:
                continue
            result.append({
                "slot": i, "pid": s.pid, "tid": s.tid, "role": _role_name(s.role), "cpu": s.cpu,
                "thread": s.parent != 0, "title": (<bytes>s.title[:24]).split(b"\0")[0].decode(errors="replace"),
                "epoch_id": s.epoch_id, "op": OPERATIONS[s.op] if s.op < len(OPERATIONS) else "?",
                "locks": s.nlocks, "operations": sum(s.counters[k] for k in range(17)),
                **{name: s.counters[k] for name, k in COUNTERS.items()},
            })
        return result

    def stats(self):
        """Space, inodes, CPUs, snapshots, recovery and counters of the arena, as a dict."""
        cdef nv_ctx* c = self.ctx()
        cdef nv_dram_header* h = c.hdr
        cpus = [_cpu_stats(c, i) for i in range(h.cpus)]
        free_blocks = sum(cpu["free_blocks"] for cpu in cpus)
        held = sum(cpu["held_blocks"] for cpu in cpus)
        used = sum(cpu["inodes"] for cpu in cpus)
        head = DATA_NR + 1
        names = [f"op_{name}" for name in OPERATIONS] + list(COUNTERS)
        return {
            "epoch_id": nv_load64(&h.gate) >> 1,
            "frozen": bool(nv_load64(&h.gate) & 1),
            "media": {value: name for name, value in MEDIA.items()}[h.media_mode],
            "blocks": {
                "size": BLOCK_BYTES, "total": h.num_blocks, "head": head, "free": free_blocks,
                "held": held, "live": h.num_blocks - head - free_blocks - held,
                "reserved": sum(cpu_at(c, i).blocks.reserve for i in range(h.cpus)),
            },
            "inodes": {"used": used, "limit": h.inode_limit},
            "cpus": cpus,
            "counters": {name: sum(cpu["counters"][name] for cpu in cpus) for name in names},
            "snapshots": {
                "count": h.snap_live, "creates": h.snapshot_creates, "create_ns": h.snapshot_create_ns,
                "deletes": h.snapshot_deletes, "delete_ns": h.snapshot_delete_ns,
                "backlog": clean_backlog(c), "list_pages": sum(cpu["list_pages"] for cpu in cpus),
            },
            "recovery": _recovery(h),
            "dram": {
                "bytes_used": (h.pages_reserved - h.pages.free) * DRAM_PAGE,
                "bytes_reserved": h.pages_reserved * DRAM_PAGE,
                "bytes_limit": h.limit_bytes,
            },
        }

    # -- persistence trace

    def trace_start(self):
        """From now on this process's stores, flushes and fences are recorded."""
        cdef nv_trace* t = <nv_trace*>calloc(1, sizeof(nv_trace))
        if t == NULL:
            raise MemoryError
        if self.arena.trace != NULL:
            free(t)
            raise RuntimeError("a trace is being taken already")
        self.arena.trace = t

    def trace_stop(self):
        """The trace: records of (u64 offset, u64 length, u32 kind, u32 0) and the stored bytes."""
        cdef nv_trace* t = self.arena.trace
        if t == NULL:
            raise RuntimeError("no trace is being taken")
        self.arena.trace = NULL
        try:
            if t.failed:
                raise MemoryError("the trace did not fit in memory")
            return PyBytes_FromStringAndSize(<char*>t.buffer, t.used)
        finally:
            free(t.buffer)
            free(t)


cdef int open_once(nv_ctx* c, nv_path* p, int flags, uint32_t mode, nv_walk* w, nv_node* node,
                   uint64_t* cell, bint* made) noexcept nogil:
    """One attempt at opening; -ESTALE when the file went away meanwhile."""
    cdef int rc
    made[0] = False
    if flags & O_CREAT:
        rc = walk(c, p.text, p.length, WALK_PARENT, w)
        if rc:
            return rc
        if w.name_len == 0 or w.trailing:
            return -EISDIR
        rc = -EEXIST
        if not flags & O_EXCL:
            rc = lookup_child(c, w.node, w.name, w.name_len, node)
            if rc == 0 and node.type == DT_LNK and not flags & O_NOFOLLOW:
                rc = walk(c, p.text, p.length, WALK_FOLLOW, w)
                node[0] = w.node
        if flags & O_EXCL or rc == -ENOENT:
            rc = name_create(c, w, S_IFREG | (mode & 0o7777), getuid(), getgid(), NULL, 0, node)
            made[0] = rc == 0
            if rc == -EEXIST and not flags & O_EXCL:
                return -_ESTALE
    else:
        rc = walk(c, p.text, p.length, 0 if flags & O_NOFOLLOW else WALK_FOLLOW, w)
        node[0] = w.node
    if rc:
        return rc
    if node.type == DT_LNK:
        return -ELOOP
    if node.type == DT_DIR:
        return -EISDIR
    if flags & O_DIRECTORY:
        return -ENOTDIR
    return handle_open(c, node[0], cell)




cdef _role_name(uint32_t role):
    for name, number in ROLES.items():
        if number == role:
            return name
    return "?"


cdef _cpu_stats(nv_ctx* c, uint32_t nr):
    cdef nv_cpu* cpu = cpu_at(c, nr)
    cdef nv_slot* s
    cdef uint32_t i
    cdef int k
    totals = [cpu.counters[k] for k in range(CNT_COUNT)]
    processes = 0
    for i in range(c.hdr.slot_high):
        s = slot_at(c, i)
        if s.state & 3 == SLOT_ACTIVE and s.cpu == nr:
            processes += 1
            for k in range(CNT_COUNT):
                totals[k] += s.counters[k]
    counters = {f"op_{name}": totals[k] for k, name in enumerate(OPERATIONS)}
    counters.update({name: totals[k] for name, k in COUNTERS.items()})
    return {
        "cpu": nr, "blocks": cpu.blocks.end - cpu.blocks.first, "free_blocks": cpu.blocks.free,
        "held_blocks": cpu.held_blocks, "inodes": cpu.inodes_used, "list_pages": cpu.list_pages,
        "list_appends": cpu.appends, "processes": processes, "counters": counters,
    }


cdef _describe(nv_ctx* c, nv_snapshot* s):
    """One snapshot; under the snapshot lock. Exclusive is what no later snapshot needs as well."""
    cdef uint64_t following = snap_id_after(c, s.epoch_id)
    cdef uint64_t page, pages = 0, exclusive = 0
    cdef uint32_t i, k
    cdef const uint8_t* info = c.pm + s.info_off
    for i in range(c.hdr.cpus):
        lock_take(c, &cpu_at(c, i).snap_lock, RANK_LIST)
        pages += list_of(s, i).num_pages
        page = list_of(s, i).head_off
        while page:
            for k in range(list_tail(c, page).num_entries):
                if following == 0 or list_entries(c, page)[k].delete_epoch_id <= following:
                    exclusive += list_entries(c, page)[k].num_pages
            page = list_tail(c, page).next_page_off
        lock_drop(c, &cpu_at(c, i).snap_lock)
    name = decode(<const char*>info + 40, info[3]) if info[3] else None
    return {
        "epoch_id": s.epoch_id, "name": name, "create_time_ns": s.create_time_ns,
        "list_pages": pages, "exclusive_bytes": exclusive * BLOCK_BYTES, "opens": s.opens,
    }

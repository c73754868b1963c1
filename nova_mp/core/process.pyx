"""A process's way into an arena: its slots, its open table, its waiting.

Any thread may close it at any time. Who works without the GIL says so before (`away`); the one that
closes waits for those, and later ones are refused. So a context is good until the GIL is left to
others: after Python code of others (a path's __fspath__, a signal handler) it is got again.
"""

import errno as _errno
import os
import threading
import time
import weakref

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from cpython.ref cimport Py_INCREF
from libc.errno cimport ENOSPC
from libc.stdint cimport uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from nova_mp import errors
from nova_mp.core.alloc cimport keep_drop
from nova_mp.core.pages cimport dpend_done, dram_alloc, dram_free
from nova_mp.core.arch cimport nv_fence_full, nv_store32, nv_tls_get, nv_tls_set
from nova_mp.core.arena cimport arena_media
from nova_mp.core.arena import no_slot
from nova_mp.core.boundary import DEBUG_BUILD, ROLES, WITHOUT
from nova_mp.core.dram cimport (CELL_SNAPSHOT, DRAM_MAGIC, DRAM_PAGE, DRAM_VERSION, MAP_RECORDS,
                                NV_FROZEN, NV_RETRY, OPEN_CELLS, SLOT_BYTES, SLOT_FREE,
                                STATE_READY, dram_off, nv_dram_header, nv_slot, nv_snapshot,
                                slot_at)
from nova_mp.core.faults cimport faults_add, faults_disown, faults_start, faults_stop
from nova_mp.core.file cimport map_forget
from nova_mp.core.forks import cores, fresh_key
from nova_mp.core.layout cimport BLOCK_BYTES
from nova_mp.core.namei cimport handle_close, handle_open
from nova_mp.core.itable cimport inode_at
from nova_mp.core.walk cimport nv_node
from nova_mp.core.reclaim cimport clean_backlog, clean_lists, gc_inode
from nova_mp.core.repair cimport reap_slot, repair_slot
from nova_mp.core.snaptable cimport snap_find
from nova_mp.core.stores cimport map_find, map_page
from nova_mp.core.sync cimport (RANK_SNAPSHOT, ctx_init, gate_wait, lock_drop, lock_take,
                                slot_dead, slot_give_back, slot_take)
from nova_mp.core.snaplist cimport spare_drop

cdef enum:
    CLEAN_STEP = 10000               # entries of deleted snapshots' lists, if there is no space

AWAY_S = 0.0005                      # between looks at whether others have come back


def _umask():
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o022


@cython.no_gc_clear
cdef class Process:
    """One process's way into a mounted arena: operations run here, on shared memory.

    `pmem` and `dram` are the whole segments as writable buffers, `dram_fd` a descriptor of the DRAM
    segment (to reserve more of it). `role` names what the process is, `cpu` the emulated CPU whose
    structures it uses (default: the one with the fewest processes). Thread-safe: each thread takes
    a process slot of its own at its first operation. After fork() the child has slots of its own.
    """

    def __cinit__(self, pmem, dram, dram_fd, *args, role="client", cpu=None, title="", **more):
        memset(&self.arena, 0, sizeof(nv_arena))
        self.closed = True
        self.contexts = {}
        self.free_cells = []
        self.inherited = {}
        self.faults = NULL
        self.mappings = weakref.WeakSet()
        self.key = fresh_key()
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
        cores.add(self)

    def __init__(self, pmem, dram, dram_fd, *, role="client", cpu=None, title=""):
        pass

    def __del__(self):
        # Before the collector clears a cycle: afterwards the segments may be unmapped already.
        if not self.closed:
            self._leave()
        self._unmap()

    def __dealloc__(self):
        free(self.arena.failpoint)

    def _unmap(self):
        """Lets go of the segments' buffers; nothing may touch them any more."""
        if self.views and self.arena.dram_fd:
            os.close(self.arena.dram_fd)
        if self.views > 1:
            PyBuffer_Release(&self.dram_view)
        if self.views:
            PyBuffer_Release(&self.pm_view)
        self.views = 0

    def _check_segments(self):
        h = self.arena.hdr
        if self.arena.dram_bytes < DRAM_PAGE or h.magic != DRAM_MAGIC or h.version != DRAM_VERSION:
            raise errors.EngineNotRunning("the DRAM segment is not that of a mounted arena",
                                          "start the engine")
        if h.state != STATE_READY:
            raise errors.EngineNotRunning("the arena is being mounted or stopped",
                                          "try again in a moment")
        if h.pm_bytes != self.arena.pm_bytes or h.limit_bytes > self.arena.dram_bytes:
            raise errors.CorruptArena("the two segments do not belong together",
                                      "start the engine again")
        arena_media(&self.arena)

    def _arm_failpoint(self):
        # NOVA_MP_FAILPOINT=[ROLE/]NAME[:NTH]
        role, _, point = os.environ.get("NOVA_MP_FAILPOINT", "").rpartition("/")
        name, _, nth = point.partition(":")
        if name and DEBUG_BUILD and (not role or ROLES.get(role) == self.role_nr):
            self.arm_failpoint(name, int(nth or 1))
        without = os.environ.get("NOVA_MP_WITHOUT", "")
        if without and DEBUG_BUILD:
            # Only to show that a test notices: snapshots are not what they promise to be then.
            self.arena.without = WITHOUT[without]

    cdef int new_slot(self, uint32_t parent) except -1:
        """Number of a slot for the calling thread."""
        cdef nv_slot* s
        cdef int nr = slot_take(&self.arena, self.role_nr, self.cpu, parent,
                                self.title.encode()[:23])
        if nr == -1 and parent:
            self.reap()
            nr = slot_take(&self.arena, self.role_nr, self.cpu, parent, self.title.encode()[:23])
        if nr < 0:
            raise no_slot(nr)
        s = <nv_slot*>(self.arena.dram + self.arena.hdr.slots_off + nr * SLOT_BYTES)
        # The unmount that we find here has not seen our slot, or will see it go.
        nv_fence_full()
        if self.arena.hdr.state != STATE_READY:
            nv_store32(&s.state, SLOT_FREE)
            raise errors.EngineNotRunning("the arena is being stopped", "try again in a moment")
        return nr

    cdef void take_process_slot(self) except *:
        cdef int nr = self.new_slot(0)
        cdef nv_ctx* c
        self.slot = nr
        self.arena.process_slot = nr
        self.arena.pid = os.getpid()
        c = <nv_ctx*>calloc(1, sizeof(nv_ctx))
        if c == NULL:
            raise MemoryError
        ctx_init(c, &self.arena, nr)
        c.keeps = 1
        self.process = c
        self.contexts[threading.get_ident()] = <size_t>c
        nv_tls_set(self.key, c)

    cdef bint over(self) noexcept:
        """Whether it is closed, or being closed: then what is open is closed along with it."""
        return self.closed or self.leaving != NULL

    cdef nv_ctx* ctx(self) except NULL:
        cdef void* c = nv_tls_get(self.key)
        if c != NULL:
            return <nv_ctx*>c
        return self.new_ctx()

    cdef nv_ctx* new_ctx(self) except NULL:
        """The calling thread's context: known under another arena's name, or a new slot."""
        cdef int nr
        cdef nv_ctx* c
        if self.over():
            raise ValueError("operation on a closed file system")
        known = self.contexts.get(threading.get_ident())
        if known is not None:
            c = <nv_ctx*><size_t>known
            if c.slot.tid == threading.get_native_id():
                nv_tls_set(self.key, c)
                return c
        nr = self.new_slot(self.slot + 1)
        c = <nv_ctx*>calloc(1, sizeof(nv_ctx))
        if c == NULL:
            raise MemoryError
        ctx_init(c, &self.arena, nr)
        c.keeps = 1
        self.contexts[threading.get_ident()] = <size_t>c
        nv_tls_set(self.key, c)
        return c

    def _before_fork(self):
        """What is open, for the child: the cells are shared, and the parent goes on using them."""
        cdef nv_ctx* c
        cdef uint64_t cell
        cdef uint32_t i
        self.inherited = {}
        if self.over():
            return
        if len(self.free_cells) == self.n_pages * OPEN_CELLS:
            return
        c = self.ctx()
        for i in range(self.n_pages * OPEN_CELLS):
            cell = self.cell(i)[0]
            if cell & <uint64_t>CELL_SNAPSHOT:
                self.inherited[i] = (cell, 0)
            elif cell:
                self.inherited[i] = (cell, inode_at(c, cell).generation)

    def _after_fork(self):
        """In a forked child: slots and open handles of its own."""
        cdef nv_ctx* c
        cdef uint32_t n = self.n_pages
        cdef uint32_t i
        cdef nv_node node
        if self.leaving != NULL:
            # Another thread of the parent is closing it, and what it does is done there.
            self.closed = True
        if self.closed:
            return
        self.key = fresh_key()
        self.contexts = {}
        self.n_pages = 0
        self.take_process_slot()
        c = self.ctx()
        self.free_cells = []
        for i in range(n):
            self.add_cell_page(c)
        self.free_cells = []
        for i in range(n * OPEN_CELLS):
            node.ino, node.generation = self.inherited.get(i, (0, 0))
            # What the parent has let go of since may be gone. Then the cell stays empty, and its
            # object's, until that is closed.
            if node.ino == 0:
                self.free_cells.append(i)
            elif node.ino & <uint64_t>CELL_SNAPSHOT:
                self.hold_snapshot(c, i, node.ino, True)
            else:
                handle_open(c, node, self.cell(i))
        self._inherit_mappings()

    def close(self):
        """Closes all handles and gives the process's slots back. Safe to call twice.

        BufferError if a mapping is still used as a buffer: then nothing is closed.
        """
        if not self.over():
            self._drop_mappings()
            try:
                self._leave()
            except BaseException:
                # Interrupted: what is closed is closed, and the rest can be closed later.
                self.leaving = NULL
                raise

    cdef void retire(self, nv_ctx* c) except *:
        """From here on the caller, with `c`, is alone: others are refused, or waited for."""
        self.leaving = c
        # Contexts that other threads remember are found under the old key only.
        self.key = fresh_key()
        nv_tls_set(self.key, c)
        while any((<nv_ctx*><size_t>value).away for value in self.contexts.values()
                  if <nv_ctx*><size_t>value != c):
            time.sleep(AWAY_S)

    def _leave(self):
        cdef nv_ctx* c = self.ctx()
        cdef nv_ctx* other
        cdef uint32_t i
        c.away = 0
        self.retire(c)
        self.drop_records(c)
        for i in range(self.n_pages * OPEN_CELLS):
            if self.cell(i)[0] & <uint64_t>CELL_SNAPSHOT:
                self.release_snapshot(c, i)
            elif self.cell(i)[0]:
                self.cell_free(i)
        with nogil:
            spare_drop(c)
            keep_drop(c)
        for value in {*self.contexts.values(), <size_t>self.process}:
            other = <nv_ctx*><size_t>value
            if other == c:
                continue
            if other == self.process:
                # Its slot is that of all threads, and goes last.
                with nogil:
                    spare_drop(other)
                    keep_drop(other)
            elif other.slot.tid == other.tid and other.slot.start_time == other.start_time:
                with nogil:
                    if slot_dead(other.slot):
                        # The thread has ended, and others may be at its slot, too.
                        reap_slot(c, other.id - 1)
                    elif other.slot.epoch_id == 0 and other.slot.nlocks == 0:
                        spare_drop(other)
                        keep_drop(other)
                        slot_give_back(other, other.slot)
            free(other)
        i = self.n_pages
        while i > 0:
            i -= 1
            slot_at(c, self.slot).open_head = 0
            dram_free(c, dram_off(c, self.pages[i]), DRAM_PAGE)
        self.n_pages = 0
        self.closed = True
        self.key = fresh_key()
        slot_give_back(c, slot_at(c, self.slot))
        if c.slot != slot_at(c, self.slot):
            slot_give_back(c, c.slot)
        free(c)
        self.contexts = {}
        cores.discard(self)
        self._unmap()

    def abandon(self):
        """Lets go without touching the arena, whose DRAM is dropped; what is mapped holds zeros."""
        cdef bint unused = self.faults == NULL
        if not self.over():
            self.retire(self.ctx())
            self.closed = True
            self.key = fresh_key()
            self.contexts = {}
            cores.discard(self)
            for mapping in list(self.mappings):
                mapping.abandon()
            if unused:
                self._unmap()
            else:
                # The thread that resolves faults may be in the arena yet.
                self.views = 0
                Py_INCREF(self)

    def abandon_if(self, dram):
        """As `abandon`, if its DRAM segment is the file of this os.stat_result."""
        if not self.over() and os.path.samestat(os.fstat(self.arena.dram_fd), dram):
            self.abandon()

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
        rc = handle_close(c, cell) if cell[0] else 0
        c.nowait = 0
        while self.again(c, rc):
            with nogil:
                rc = handle_close(c, cell)
        self.free_cells.append(nr)

    # -- mappings

    cdef nv_map* map_record(self, nv_ctx* c, const nv_map* what) except NULL:
        """A new record in the process's table of mappings."""
        cdef nv_slot* process = slot_at(c, self.slot)
        cdef nv_map* m
        cdef uint64_t off = 0
        c.away = 1
        with nogil:
            lock_take(c, &c.hdr.snapshot_lock, RANK_SNAPSHOT)
            m = map_find(c, process.map_head, 0)
            if m == NULL:
                off = dram_alloc(c, DRAM_PAGE, dram_off(c, &process.map_head))
                if off:
                    map_page(c, off).next_off = process.map_head
                    process.map_head = off
                    dpend_done(c)
                    m = &map_page(c, off).maps[0]
            if m != NULL:
                m[0] = what[0]
            lock_drop(c, &c.hdr.snapshot_lock)
        c.away = 0
        if m == NULL:
            raise OSError(_errno.ENOSPC, "no shared memory for another mapping")
        return m

    cdef void start_faults(self, bint signals) except *:
        """Makes sure that the thread runs which resolves faults."""
        cdef int error = 0
        if self.faults != NULL:
            return
        self.faults = faults_start(&self.arena, slot_at(self.ctx(), self.slot), signals, &error)
        if self.faults == NULL and error == 0:
            raise no_slot(-1)
        if self.faults == NULL:
            raise OSError(-error, os.strerror(-error), "mmap")

    cdef void stop_faults(self) except *:
        cdef nv_faults* f = self.faults
        self.faults = NULL
        if f != NULL:
            with nogil:
                faults_stop(f)

    cdef int admit(self, nv_ctx* c, nv_map* m, uint8_t* at, uint64_t pages) except? 1:
        """Lets stores into a new mapping be caught; 0 or -errno."""
        cdef int rc
        c.away = 1
        with nogil:
            lock_take(c, &c.hdr.snapshot_lock, RANK_SNAPSHOT)
            rc = faults_add(c, self.faults, m, at, pages)
            lock_drop(c, &c.hdr.snapshot_lock)
        c.away = 0
        return rc

    def _drop_mappings(self):
        """Closes all mappings, or none: BufferError if one is still used as a buffer."""
        mappings = list(self.mappings)
        for mapping in mappings:
            mapping.check_unused()
        for mapping in mappings:
            mapping.close()

    cdef void drop_records(self, nv_ctx* c) except *:
        """What is left of mappings: those that the collector found together with their process."""
        cdef nv_slot* process = slot_at(c, self.slot)
        cdef uint64_t page = process.map_head
        cdef nv_map* m
        cdef uint32_t i
        cdef int rc
        with nogil:
            lock_take(c, &c.hdr.snapshot_lock, RANK_SNAPSHOT)
            while page:
                for i in range(MAP_RECORDS):
                    map_page(c, page).maps[i].at = 0
                page = map_page(c, page).next_off
            lock_drop(c, &c.hdr.snapshot_lock)
        self.stop_faults()
        while process.map_head:
            page = process.map_head
            for i in range(MAP_RECORDS):
                m = &map_page(c, page).maps[i]
                rc = NV_RETRY
                while m.ino and self.again(c, rc):
                    with nogil:
                        rc = map_forget(c, m)
            with nogil:
                # Whoever holds stores back reads the tables under this lock.
                lock_take(c, &c.hdr.snapshot_lock, RANK_SNAPSHOT)
                process.map_head = map_page(c, page).next_off
                lock_drop(c, &c.hdr.snapshot_lock)
                dram_free(c, page, DRAM_PAGE)

    def _inherit_mappings(self):
        """In a forked child: the thread, and what protects, are the parent's."""
        cdef nv_faults* f = self.faults
        failed = None
        self.faults = NULL
        if f != NULL:
            faults_disown(f)
        for mapping in list(self.mappings):
            try:
                mapping._after_fork()
            except Exception as error:
                failed = error
        if failed is not None:
            raise failed

    cdef int hold_snapshot(self, nv_ctx* c, uint32_t nr, uint64_t cell,
                           bint inherited) except -1:
        """Holds a snapshot open in a cell; False if there is no such snapshot, or only till those
        close it that have it open: nobody but their children joins them."""
        cdef nv_snapshot* s
        c.away = 1
        with nogil:
            lock_take(c, &c.hdr.snapshot_lock, RANK_SNAPSHOT)
            s = snap_find(c, cell & ~<uint64_t>CELL_SNAPSHOT)
            if s != NULL and s.deferred and not inherited:
                s = NULL
            if s != NULL:
                self.cell(nr)[0] = cell
                s.opens += 1
            lock_drop(c, &c.hdr.snapshot_lock)
        c.away = 0
        return s != NULL

    cdef void release_snapshot(self, nv_ctx* c, uint32_t nr) except *:
        """Gives back the cell of an open snapshot."""
        cdef uint64_t* cell = self.cell(nr)
        cdef nv_snapshot* s
        c.away = 1
        with nogil:
            lock_take(c, &c.hdr.snapshot_lock, RANK_SNAPSHOT)
            s = snap_find(c, cell[0] & ~<uint64_t>CELL_SNAPSHOT)
            if s != NULL and s.opens:
                s.opens -= 1
            cell[0] = 0
            lock_drop(c, &c.hdr.snapshot_lock)
        c.away = 0
        self.free_cells.append(nr)

    cdef int again(self, nv_ctx* c, int64_t rc) except -1:
        """True if an operation has to be done again, without the GIL, and asking here once more.

        Until then it counts as away: whoever closes the file system waits for it.
        """
        c.away = 0
        if rc > NV_RETRY and rc != -ENOSPC or rc < NV_FROZEN:
            return 0
        if rc == -ENOSPC and not self.make_space(c):
            return 0
        if rc == NV_FROZEN:
            c.away = 1
            with nogil:
                gate_wait(c, 100000000)
            c.away = 0
            PyErr_CheckSignals()
        if self.leaving != NULL and self.leaving != c:
            raise ValueError("operation on a closed file system")
        c.away = 1
        return 1

    cdef int make_space(self, nv_ctx* c) except -1:
        """Does some of the cleaner's work, if there is any, for whoever found no space."""
        cdef uint64_t waiting = clean_backlog(c)
        cdef int64_t left
        if waiting == 0:
            return 0
        c.away = 1
        with nogil:
            left = clean_lists(c, CLEAN_STEP)
        c.away = 0
        PyErr_CheckSignals()
        return left >= 0 and <uint64_t>left < waiting

    cdef void collect(self, nv_ctx* c) noexcept:
        """The log that the last operation found too long is collected."""
        cdef uint64_t ino = c.gc_ino
        c.gc_ino = 0
        c.away = 1
        with nogil:
            gc_inode(c, ino)
        c.away = 0

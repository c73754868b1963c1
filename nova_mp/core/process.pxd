# A process's way into an arena.

from cpython.buffer cimport Py_buffer
from libc.stdint cimport int64_t, uint32_t, uint64_t
from nova_mp.core.dram cimport nv_arena, nv_ctx, nv_map
from nova_mp.core.faults cimport nv_faults
from libc.stdint cimport uint8_t

cdef class Process:
    cdef nv_arena arena
    cdef Py_buffer pm_view
    cdef Py_buffer dram_view
    cdef int views
    cdef uint64_t key
    cdef nv_ctx* process             # of whoever made it, whose slot is the process's
    cdef nv_ctx* leaving             # of the thread that closes it, or NULL
    cdef dict contexts
    cdef uint64_t* pages[256]
    cdef uint32_t n_pages
    cdef list free_cells
    cdef dict inherited
    cdef nv_faults* faults           # NULL while nothing is mapped writable
    cdef readonly object mappings    # open Mapping objects, weakly
    cdef int role_nr
    cdef uint32_t umask_bits
    cdef readonly bint closed
    cdef readonly object title
    cdef readonly int cpu
    cdef readonly int slot
    cdef object __weakref__
    cdef bint over(self) noexcept
    cdef nv_ctx* ctx(self) except NULL
    cdef nv_ctx* new_ctx(self) except NULL
    cdef void retire(self, nv_ctx* c) except *
    cdef int new_slot(self, uint32_t parent) except -1
    cdef void take_process_slot(self) except *
    cdef uint64_t* cell(self, uint32_t nr) noexcept nogil
    cdef int hold_snapshot(self, nv_ctx* c, uint32_t nr, uint64_t cell, bint inherited) except -1
    cdef void release_snapshot(self, nv_ctx* c, uint32_t nr) except *
    cdef void add_cell_page(self, nv_ctx* c) except *
    cdef uint32_t cell_new(self, nv_ctx* c) except? 0xFFFFFFFF
    cdef void cell_free(self, uint32_t nr) except *
    cdef int again(self, nv_ctx* c, int64_t rc) except -1
    cdef int make_space(self, nv_ctx* c) except -1
    cdef nv_map* map_record(self, nv_ctx* c, const nv_map* what) except NULL
    cdef void start_faults(self, bint signals) except *
    cdef void stop_faults(self) except *
    cdef void drop_records(self, nv_ctx* c) except *
    cdef int admit(self, nv_ctx* c, nv_map* m, uint8_t* at, uint64_t pages) except? 1
    cdef void collect(self, nv_ctx* c) noexcept

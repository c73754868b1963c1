# Mapped files as Python buffers.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from nova_mp.core.dram cimport nv_ctx, nv_map
from nova_mp.core.process cimport Process

cdef class Mapping:
    cdef Process core
    cdef readonly object name
    cdef uint64_t ino
    cdef uint64_t pgoff
    cdef uint32_t generation
    cdef uint32_t cell               # of the open table: the file, or snapshot, lives as long
    cdef bint of_snapshot
    cdef nv_map* record              # IN DRAM
    cdef uint8_t* at
    cdef uint64_t pages
    cdef uint64_t skip               # bytes of the first page before the mapping
    cdef Py_ssize_t length
    cdef Py_ssize_t exports
    cdef int flushing                # threads that are in flush()
    cdef Py_ssize_t shape[1]
    cdef Py_ssize_t strides[1]
    cdef bint is_open
    cdef readonly bint writable
    cdef object __weakref__

    cdef void check(self) except *
    cdef void describe(self, nv_ctx* c, uint32_t flags) except *
    cdef void place_live(self, nv_ctx* c) except *
    cdef void admit_stores(self, nv_ctx* c) except *
    cdef void inherit(self, nv_ctx* c) except *
    cdef void release(self) except *

cdef Mapping map_live_file(Process core, uint64_t ino, uint32_t generation, uint64_t size,
                           object offset, object length, bint writable, object name)

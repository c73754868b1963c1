# File objects and stat results.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from nova_mp.core.dram cimport nv_ctx
from nova_mp.core.file cimport nv_attr
from nova_mp.core.process cimport Process
from nova_mp.core.walk cimport nv_node

cdef class Stat:
    cdef readonly uint64_t st_ino, st_size, st_blocks
    cdef readonly int64_t st_atime_ns, st_mtime_ns, st_ctime_ns, st_birthtime_ns
    cdef readonly uint32_t st_mode, st_nlink, st_uid, st_gid

cdef class File:
    cdef Process core
    cdef uint32_t cell
    cdef readonly uint64_t ino
    cdef readonly uint32_t generation
    cdef uint64_t position
    cdef int flags
    cdef bint is_open
    cdef readonly object name
    cdef object __weakref__
    cdef int64_t read_at(self, void* to, uint64_t n, uint64_t offset) except -1
    cdef int64_t write_at(self, object data, uint64_t offset, bint append) except -1
    cdef int check_readable(self) except -1
    cdef int check_writable(self) except -1
    cdef void stat_into(self, nv_attr* attr) except *

cdef Stat make_stat(const nv_attr* attr)
cdef File make_file(Process core, uint32_t cell, nv_node node, int flags, object name)

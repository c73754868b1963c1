# Path arguments and errors at the boundary.

from libc.stdint cimport int64_t

cdef struct nv_path:                 # PRIVATE. A path argument's bytes, kept by the owner
    const char* text
    Py_ssize_t length

cdef object path_arg(object path, nv_path* p)
cdef object raise_errno(int64_t rc, object path, object path2)
cdef object decode(const char* text, Py_ssize_t length)

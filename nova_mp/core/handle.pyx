"""Open files, with the methods of Python's binary file objects, and stat results."""

import errno as _errno
import io
import os

from cpython.buffer cimport (Py_buffer, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release,
                             PyObject_GetBuffer)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from libc.stdint cimport INT64_MAX, int64_t, uint8_t
from posix.fcntl cimport O_ACCMODE, O_APPEND, O_CREAT, O_EXCL, O_RDONLY, O_RDWR, O_WRONLY
from nova_mp.core.dram cimport NV_RETRY
from nova_mp.core.file cimport file_fallocate, file_getattr, file_read, file_truncate, file_write
from nova_mp.core.boundary cimport raise_errno
from nova_mp.core.mapped cimport map_live_file
from nova_mp.core.pmem cimport pm_fence

cdef extern from "Python.h":
    int _PyBytes_Resize(PyObject** p, Py_ssize_t n) except -1
    PyObject* new_bytes "PyBytes_FromStringAndSize"(const char* text, Py_ssize_t n) except NULL

cdef enum:
    GIL_BYTES = 32768                # above this the GIL is released: copying takes microseconds
    LINE_BYTES_AHEAD = 8192


cdef inline double _seconds(int64_t ns) noexcept:
    # As os.stat() rounds them.
    cdef int64_t whole = ns // 1000000000
    if ns < whole * 1000000000:
        whole -= 1
    return <double>whole + 1e-9 * <double>(ns - whole * 1000000000)


cdef class Stat:
    """Attributes of a file, named and indexed as os.stat_result; exact times in the _ns fields."""

    @property
    def st_dev(self):
        """Always 0: an arena is one device."""
        return 0

    @property
    def st_blksize(self):
        """Preferred size of a write, bytes."""
        return 4096

    @property
    def st_atime(self):
        """Access time, seconds. Reading does not move it."""
        return _seconds(self.st_atime_ns)

    @property
    def st_mtime(self):
        """Modification time, seconds."""
        return _seconds(self.st_mtime_ns)

    @property
    def st_ctime(self):
        """Change time, seconds."""
        return _seconds(self.st_ctime_ns)

    @property
    def st_birthtime(self):
        """Creation time, seconds."""
        return _seconds(self.st_birthtime_ns)

    def _tuple(self):
        return (self.st_mode, self.st_ino, 0, self.st_nlink, self.st_uid, self.st_gid, self.st_size,
                self.st_atime_ns // 10**9, self.st_mtime_ns // 10**9, self.st_ctime_ns // 10**9)

    def __getitem__(self, key):
        return self._tuple()[key]

    def __len__(self):
        return 10

    def __iter__(self):
        return iter(self._tuple())

    def _key(self):
        return (self._tuple(), self.st_blocks, self.st_atime_ns, self.st_mtime_ns, self.st_ctime_ns,
                self.st_birthtime_ns)

    def __eq__(self, other):
        return isinstance(other, Stat) and self._key() == (<Stat>other)._key()

    def __hash__(self):
        return hash(self._key())

    def __repr__(self):
        return (f"Stat(st_mode={self.st_mode:#o}, st_ino={self.st_ino}, st_nlink={self.st_nlink}, "
                f"st_uid={self.st_uid}, st_gid={self.st_gid}, st_size={self.st_size}, "
                f"st_mtime_ns={self.st_mtime_ns})")

    def __reduce__(self):
        return stat_of, (self.st_ino, self.st_size, self.st_blocks, self.st_atime_ns,
                         self.st_mtime_ns, self.st_ctime_ns, self.st_birthtime_ns, self.st_mode,
                         self.st_nlink, self.st_uid, self.st_gid)


def stat_of(ino, size, blocks, atime_ns, mtime_ns, ctime_ns, birthtime_ns, mode, nlink, uid, gid):
    """A Stat of given values (what pickle and the remote client use)."""
    cdef Stat st = Stat.__new__(Stat)
    st.st_ino = ino
    st.st_size = size
    st.st_blocks = blocks
    st.st_atime_ns = atime_ns
    st.st_mtime_ns = mtime_ns
    st.st_ctime_ns = ctime_ns
    st.st_birthtime_ns = birthtime_ns
    st.st_mode = mode
    st.st_nlink = nlink
    st.st_uid = uid
    st.st_gid = gid
    return st


cdef Stat make_stat(const nv_attr* attr):
    cdef Stat st = Stat.__new__(Stat)
    st.st_ino = attr.ino
    st.st_size = attr.size
    st.st_blocks = attr.blocks * 8
    st.st_atime_ns = <int64_t>attr.atime_ns
    st.st_mtime_ns = <int64_t>attr.mtime_ns
    st.st_ctime_ns = <int64_t>attr.ctime_ns
    st.st_birthtime_ns = <int64_t>attr.birth_time_ns
    st.st_mode = attr.mode
    st.st_nlink = attr.nlink
    st.st_uid = attr.uid
    st.st_gid = attr.gid
    return st


cdef File make_file(Process core, uint32_t cell, nv_node node, int flags, object name):
    cdef File f = File.__new__(File)
    f.core = core
    f.cell = cell
    f.ino = node.ino
    f.generation = node.generation
    f.flags = flags
    f.position = 0
    f.is_open = True
    f.name = name
    return f


cdef class File:
    """An open file of an arena: a binary file object, unbuffered, with positioned I/O.

    Writes are atomic: other processes, and snapshots, see all of one call or nothing of it. A read
    up to 4 MiB sees one moment. Methods raise ValueError once the file is closed, OSError as os
    would.
    """

    def __init__(self, *args, **more):
        raise TypeError("files are made by FileSystem.open()")

    def __dealloc__(self):
        if self.is_open and self.core is not None and not self.core.over():
            self.is_open = False
            self.core.cell_free(self.cell)

    cdef int check_readable(self) except -1:
        if not self.is_open or self.core.closed:
            raise ValueError("I/O operation on closed file")
        if self.flags & O_ACCMODE == O_WRONLY:
            raise io.UnsupportedOperation("not readable")
        return 0

    cdef int check_writable(self) except -1:
        if not self.is_open or self.core.closed:
            raise ValueError("I/O operation on closed file")
        if self.flags & O_ACCMODE == O_RDONLY:
            raise io.UnsupportedOperation("not writable")
        return 0

    # -- positioned

    cdef int64_t read_at(self, void* to, uint64_t n, uint64_t offset) except -1:
        cdef nv_ctx* c = self.core.ctx()
        cdef int64_t rc = NV_RETRY
        if n <= GIL_BYTES:
            c.nowait = 1
            rc = file_read(c, self.ino, self.generation, <uint8_t*>to, n, offset)
            c.nowait = 0
        while self.core.again(c, rc):
            with nogil:
                rc = file_read(c, self.ino, self.generation, <uint8_t*>to, n, offset)
        if rc < 0:
            raise_errno(rc, self.name, None)
        return rc

    cdef int64_t write_at(self, object data, uint64_t offset, bint append) except -1:
        cdef nv_ctx* c
        cdef int64_t rc = NV_RETRY
        cdef uint64_t at = offset
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            c = self.core.ctx()
            if view.len <= GIL_BYTES:
                c.nowait = 1
                rc = file_write(c, self.ino, self.generation, <uint8_t*>view.buf, view.len, offset,
                                append, &at)
                c.nowait = 0
            while self.core.again(c, rc):
                with nogil:
                    rc = file_write(c, self.ino, self.generation, <uint8_t*>view.buf, view.len,
                                    offset, append, &at)
        finally:
            PyBuffer_Release(&view)
        if c.gc_ino:
            self.core.collect(c)
        if rc < 0:
            raise_errno(rc, self.name, None)
        self.position = at + <uint64_t>rc if append else self.position
        return rc

    def pread(self, Py_ssize_t n, Py_ssize_t offset):
        """Up to `n` bytes from `offset`; fewer only at the end of the file."""
        cdef PyObject* result
        cdef int64_t got
        self.check_readable()
        if n < 0 or offset < 0:
            raise_errno(-_errno.EINVAL, self.name, None)
        result = new_bytes(NULL, n)
        try:
            got = self.read_at(PyBytes_AS_STRING(<object>result), n, offset)
        except BaseException:
            free_bytes(result)
            raise
        if got < n:
            _PyBytes_Resize(&result, got)
        return take_bytes(result)

    def preadinto(self, buffer, Py_ssize_t offset):
        """Fills a writable buffer from `offset`; returns the bytes read."""
        cdef Py_buffer view
        self.check_readable()
        if offset < 0:
            raise_errno(-_errno.EINVAL, self.name, None)
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
        try:
            return self.read_at(view.buf, view.len, offset)
        finally:
            PyBuffer_Release(&view)

    def pwrite(self, data, Py_ssize_t offset):
        """Writes all of `data` at `offset`, atomically; returns its length in bytes."""
        self.check_writable()
        if offset < 0:
            raise_errno(-_errno.EINVAL, self.name, None)
        return self.write_at(data, offset, False)

    def truncate(self, size=None):
        """Cuts or grows the file to `size` bytes (default: the position); returns the size."""
        cdef nv_ctx* c
        cdef int rc = NV_RETRY
        cdef Py_ssize_t n
        self.check_writable()
        n = <Py_ssize_t>self.position if size is None else size
        if n < 0:
            raise_errno(-_errno.EINVAL, self.name, None)
        c = self.core.ctx()
        while self.core.again(c, rc):
            with nogil:
                rc = file_truncate(c, self.ino, self.generation, n)
        if c.gc_ino:
            self.core.collect(c)
        if rc:
            raise_errno(rc, self.name, None)
        return n

    def fallocate(self, Py_ssize_t offset, Py_ssize_t length):
        """Blocks for a range, so that writing there needs no more; grows the file if need be."""
        cdef nv_ctx* c
        cdef int rc = NV_RETRY
        self.check_writable()
        if offset < 0 or length <= 0:
            raise_errno(-_errno.EINVAL, self.name, None)
        c = self.core.ctx()
        while self.core.again(c, rc):
            with nogil:
                rc = file_fallocate(c, self.ino, self.generation, offset, length)
        if c.gc_ino:
            self.core.collect(c)
        if rc:
            raise_errno(rc, self.name, None)

    def fsync(self):
        """Nothing is pending: every call is persistent when it returns. Fences, for form's sake."""
        if not self.is_open or self.core.closed:
            raise ValueError("I/O operation on closed file")
        pm_fence(self.core.ctx())

    def mmap(self, offset=0, length=None, bint writable=True):
        """Maps the file, or `length` bytes from `offset`, into memory: a `Mapping`, a buffer.

        Stores there are in the file at once, for every process. While the file is mapped, writes to
        it go in place and are not atomic, and a truncation gives its blocks back only once it is
        unmapped. ValueError past the end of the file; PermissionError if `writable` and the file is
        not open for writing.
        """
        cdef nv_attr attr
        self.check_readable()
        if writable and self.flags & O_ACCMODE == O_RDONLY:
            raise PermissionError(_errno.EACCES, "not open for writing; map it with writable=False",
                                  self.name)
        self.stat_into(&attr)
        return map_live_file(self.core, self.ino, self.generation, attr.size, offset, length,
                             writable, self.name)

    def stat(self):
        """Attributes of the open file."""
        cdef nv_attr attr
        self.stat_into(&attr)
        return make_stat(&attr)

    cdef void stat_into(self, nv_attr* attr) except *:
        cdef nv_ctx* c
        cdef int rc = NV_RETRY
        if not self.is_open or self.core.closed:
            raise ValueError("I/O operation on closed file")
        c = self.core.ctx()
        c.nowait = 1
        rc = file_getattr(c, self.ino, self.generation, attr)
        c.nowait = 0
        while self.core.again(c, rc):
            with nogil:
                rc = file_getattr(c, self.ino, self.generation, attr)
        if rc:
            raise_errno(rc, self.name, None)

    # -- the file object's interface

    def close(self):
        """Gives the handle back; a deleted file goes when the last handle does."""
        if self.is_open:
            self.is_open = False
            if not self.core.over():
                self.core.cell_free(self.cell)

    @property
    def closed(self):
        """True once closed, or once its file system is."""
        return not self.is_open or self.core.closed

    @property
    def mode(self):
        """Mode as open() names it."""
        kind = "x" if self.flags & O_EXCL else "a" if self.flags & O_APPEND else ""
        access = self.flags & O_ACCMODE
        if kind:
            return kind + ("b+" if access == O_RDWR else "b")
        return {O_RDONLY: "rb", O_WRONLY: "wb", O_RDWR: "rb+"}[access]

    def readable(self):
        """May it be read?"""
        if self.closed:
            raise ValueError("I/O operation on closed file")
        return self.flags & O_ACCMODE != O_WRONLY

    def writable(self):
        """May it be written?"""
        if self.closed:
            raise ValueError("I/O operation on closed file")
        return self.flags & O_ACCMODE != O_RDONLY

    def seekable(self):
        """Always, while it is open."""
        if self.closed:
            raise ValueError("I/O operation on closed file")
        return True

    def isatty(self):
        """Never."""
        return False

    def fileno(self):
        """There is none: the kernel does not know the file."""
        raise io.UnsupportedOperation("fileno")

    def detach(self):
        """There is nothing below to detach."""
        raise io.UnsupportedOperation("detach")

    def flush(self):
        """Nothing is buffered."""
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def tell(self):
        """Position of the next read or write, bytes."""
        if self.closed:
            raise ValueError("I/O operation on closed file")
        return self.position

    def seek(self, Py_ssize_t offset, int whence=0):
        """Moves the position; returns it. `whence` as io.SEEK_SET, SEEK_CUR, SEEK_END."""
        cdef int64_t base
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if whence == 0:
            base = 0
        elif whence == 1:
            base = self.position
        elif whence == 2:
            base = self.stat().st_size
        else:
            raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
        if offset > INT64_MAX - base or base + offset < 0:
            raise_errno(-_errno.EINVAL, self.name, None)
        self.position = base + offset
        return self.position

    def read(self, size=-1):
        """Up to `size` bytes from the position, all that is left by default."""
        cdef Py_ssize_t n = -1 if size is None else size
        cdef int64_t left
        self.check_readable()
        if n < 0:
            left = <int64_t>self.stat().st_size - <int64_t>self.position
            n = left if left > 0 else 0
        data = self.pread(n, self.position)
        self.position += len(data)
        return data

    def read1(self, size=-1):
        """As read()."""
        return self.read(size)

    def readall(self):
        """All that is left."""
        return self.read()

    def readinto(self, buffer):
        """Fills a writable buffer from the position; returns the bytes read."""
        got = self.preadinto(buffer, self.position)
        self.position += got
        return got

    def readinto1(self, buffer):
        """As readinto()."""
        return self.readinto(buffer)

    def readline(self, size=-1):
        """One line with its newline, at most `size` bytes; empty at the end."""
        cdef Py_ssize_t limit = -1 if size is None else size
        cdef uint64_t start = self.position
        parts = []
        while True:
            ahead = LINE_BYTES_AHEAD if limit < 0 else min(LINE_BYTES_AHEAD, limit)
            chunk = self.pread(ahead, start)
            found = chunk.find(b"\n")
            if found >= 0:
                chunk = chunk[:found + 1]
            parts.append(chunk)
            start += len(chunk)
            if limit >= 0:
                limit -= len(chunk)
            if found >= 0 or len(chunk) < ahead or limit == 0:
                break
        self.position = start
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def readlines(self, hint=-1):
        """Lines until the end, or until `hint` bytes were read."""
        lines = []
        total = 0
        for line in self:
            lines.append(line)
            total += len(line)
            if hint is not None and 0 < hint <= total:
                break
        return lines

    def __iter__(self):
        self.check_readable()
        return self

    def __next__(self):
        line = self.readline()
        if not line:
            raise StopIteration
        return line

    def write(self, data):
        """Writes all of `data` at the position (at the end in append mode); returns its length."""
        self.check_writable()
        if isinstance(data, str):
            raise TypeError("a bytes-like object is required, not 'str'")
        if self.flags & O_APPEND:
            return self.write_at(data, 0, True)
        written = self.write_at(data, self.position, False)
        self.position += written
        return written

    def writelines(self, lines):
        """Writes each of `lines`."""
        for line in lines:
            self.write(line)

    def __enter__(self):
        if self.closed:
            raise ValueError("I/O operation on closed file")
        return self

    def __exit__(self, *exc):
        self.close()

    def __reduce__(self):
        raise TypeError(f"cannot pickle {type(self).__name__!r} object")

    def __repr__(self):
        state = " closed" if self.closed else ""
        return f"<nova_mp File name={self.name!r} mode={self.mode!r}{state}>"


cdef object take_bytes(PyObject* p):
    # The reference that `p` holds becomes the result's.
    cdef object result = <object>p
    free_bytes(p)
    return result


cdef extern from "Python.h":
    void free_bytes "Py_DECREF"(PyObject* p)


io.BufferedIOBase.register(File)

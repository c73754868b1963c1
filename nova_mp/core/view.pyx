# cython: wraparound=True
"""Read-only views of snapshots, which they hold open: inodes are built when they are first used."""

import errno as _errno
import io
import os

from cpython.buffer cimport Py_buffer, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOMEM, ENOTDIR, EROFS
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

from nova_mp import errors
from nova_mp.core.arch cimport nv_fence_acquire, nv_load64
from nova_mp.core.boundary cimport decode, nv_path, path_arg, raise_errno
from nova_mp.core.boundary import parse_mode
from nova_mp.core.dir cimport DT_DIR, DT_LNK
from nova_mp.core.dram cimport CELL_SNAPSHOT, nv_ctx, nv_inode_header
from nova_mp.core.file cimport nv_attr
from nova_mp.core.fold cimport SnapshotInode, build, copy_pages, keep_named, nv_copies, renew
from nova_mp.core.handle cimport make_stat
from nova_mp.core.index cimport index_get
from nova_mp.core.inode cimport S_IFDIR, S_IFLNK, S_IFMT, S_IFREG
from nova_mp.core.itable cimport header_of
from nova_mp.core.layout cimport BLOCK_BYTES, NAME_MAX_BYTES, ROOT_INO
from nova_mp.core.mapped import map_snapshot_file
from nova_mp.core.process cimport Process

cdef enum:
    MAX_SYMLINKS = 40


cdef class SnapshotCore:
    """The primitives of `Core`, read-only, on one snapshot; mutators raise OSError(EROFS)."""

    cdef Process core
    cdef uint32_t cell
    cdef bint is_open
    cdef dict inodes
    cdef readonly uint64_t epoch_id
    cdef object __weakref__

    def __cinit__(self, Process core, uint64_t epoch_id, *args, **more):
        cdef nv_ctx* c = core.ctx()
        self.core = core
        self.inodes = {}
        self.cell = core.cell_new(c)
        if not core.hold_snapshot(c, self.cell, epoch_id | <uint64_t>CELL_SNAPSHOT, False):
            core.free_cells.append(self.cell)
            raise errors.NoSuchSnapshot(f"no snapshot {epoch_id}", "list the snapshots there are")
        self.epoch_id = epoch_id
        self.is_open = True

    def __dealloc__(self):
        if self.is_open and self.core is not None and not self.core.over():
            self._release()

    def close(self):
        """Lets the snapshot go: it may be deleted again. Safe to call twice."""
        if self.is_open and not self.core.over():
            self._release()
        self.is_open = False
        self.inodes = {}

    def _release(self):
        cdef nv_ctx* c = self.core.ctx()
        self.is_open = False
        self.core.release_snapshot(c, self.cell)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    @property
    def closed(self):
        """True once closed, or once the file system is; in a forked child also if its parent had
        closed it, and it was deleted, before the child could take it over."""
        return not self.is_open or self.core.closed or self.core.cell(self.cell)[0] == 0

    # -- inodes

    cdef SnapshotInode node(self, uint64_t ino):
        cdef nv_ctx* c
        cdef nv_copies named
        cdef SnapshotInode node = self.inodes.get(ino)
        cdef int rc
        if node is not None:
            return node
        if self.closed:
            raise ValueError("operation on a closed snapshot")
        c = self.core.ctx()
        memset(&named, 0, sizeof(named))
        node = SnapshotInode.__new__(SnapshotInode)
        node.names = {}
        node.xattrs = {}
        node.attr.ino = ino
        try:
            c.away = 1
            with nogil:
                rc = build(c, node, self.epoch_id, &named)
            c.away = 0
            if rc == -ENOMEM:
                raise MemoryError
            if rc:
                raise errors.CorruptArena(f"inode {ino} of snapshot {self.epoch_id} is gone",
                                          "run fsck")
            keep_named(node, &named)
        finally:
            free(named.at)
        if node.attr.mode & S_IFMT == S_IFDIR:
            node.attr.nlink = 2 + sum(1 for _, kind in node.names.values() if kind == DT_DIR)
        self.inodes[ino] = node
        return node

    cdef bytes content(self, SnapshotInode node, uint64_t n, uint64_t offset):
        cdef bytes data
        if offset >= node.attr.size:
            return b""
        n = min(n, node.attr.size - offset)
        data = PyBytes_FromStringAndSize(NULL, n)
        self.copy(node, PyBytes_AS_STRING(data), n, offset)
        return data

    cdef void copy(self, SnapshotInode node, char* to, uint64_t n, uint64_t offset) except *:
        cdef nv_ctx* c = self.core.ctx()
        cdef nv_inode_header* h = header_of(c, node.attr.ino)
        cdef uint64_t seen
        cdef int rc = 0
        c.away = 1
        with nogil:
            while rc == 0:
                # Another thread may renew the node meanwhile: what counts is what it was before.
                seen = nv_load64(&node.preserved)
                nv_fence_acquire()
                copy_pages(c, node, to, n, offset)
                nv_fence_acquire()
                if nv_load64(&h.preserved) == seen:
                    break
                rc = renew(c, node, self.epoch_id)
        c.away = 0
        if rc:
            raise errors.CorruptArena(f"inode {node.attr.ino} of snapshot {self.epoch_id} is gone",
                                      "run fsck")

    cdef SnapshotInode walk(self, object path, bint follow):
        cdef nv_path p
        cdef SnapshotInode node
        owner = path_arg(path, &p)
        if p.length == 0:
            raise_errno(-ENOENT, path, None)
        parts = decode(p.text, p.length).split("/")
        slash = not parts[-1]
        parts = [part for part in reversed(parts) if part]
        stack = [ROOT_INO]
        links = 0
        while parts:
            part = parts.pop()
            if part == ".":
                continue
            if part == "..":
                if len(stack) > 1:
                    stack.pop()
                continue
            if len(os.fsencode(part)) > NAME_MAX_BYTES:
                raise_errno(-ENAMETOOLONG, path, None)
            node = self.node(stack[-1])
            if node.attr.mode & S_IFMT != S_IFDIR:
                raise_errno(-ENOTDIR, path, None)
            found = node.names.get(part)
            if found is None:
                raise_errno(-ENOENT, path, None)
            ino, kind = found
            if kind == DT_LNK and (parts or follow or slash):
                links += 1
                if links > MAX_SYMLINKS:
                    raise_errno(-ELOOP, path, None)
                target = os.fsdecode(self.content(self.node(ino), 4096, 0))
                if target.startswith("/"):
                    stack = [ROOT_INO]
                parts.extend(p for p in reversed(target.split("/")) if p)
                continue
            stack.append(ino)
        node = self.node(stack[-1])
        if slash and node.attr.mode & S_IFMT != S_IFDIR:
            raise_errno(-ENOTDIR, path, None)
        return node

    # -- primitives

    def stat(self, path, *, bint follow_symlinks=True):
        """Attributes as they were."""
        cdef nv_attr attr = self.walk(path, follow_symlinks).attr
        if attr.mode & S_IFMT == S_IFDIR:
            attr.size = BLOCK_BYTES
            attr.blocks = 1
        return make_stat(&attr)

    def lstat(self, path):
        """Attributes of a file or of a symbolic link itself."""
        return self.stat(path, follow_symlinks=False)

    def _type(self, path):
        try:
            return self.stat(path).st_mode & S_IFMT
        except OSError:
            return 0

    def exists(self, path):
        """True if the path led to something."""
        return self._type(path) != 0

    def isfile(self, path):
        """True if the path led to a regular file."""
        return self._type(path) == S_IFREG

    def isdir(self, path):
        """True if the path led to a directory."""
        return self._type(path) == S_IFDIR

    def scan(self, path="/"):
        """Names of a directory: a list of (name, inode number, type as in dirent's DT_*)."""
        cdef SnapshotInode node = self.walk(path, True)
        if node.attr.mode & S_IFMT != S_IFDIR:
            raise_errno(-ENOTDIR, path, None)
        return [(name, ino, kind) for name, (ino, kind) in node.names.items()]

    def listdir(self, path="/"):
        """Names of a directory."""
        names = [name for name, _, _ in self.scan(path)]
        return [os.fsencode(name) for name in names] if isinstance(path, bytes) else names

    def readlink(self, path):
        """Target of a symbolic link."""
        cdef SnapshotInode node = self.walk(path, False)
        if node.attr.mode & S_IFMT != S_IFLNK:
            raise_errno(-EINVAL, path, None)
        target = self.content(node, 4096, 0)
        return target if isinstance(path, bytes) else os.fsdecode(target)

    def statvfs(self, path="/"):
        """Space of the arena, with the read-only flag."""
        self.walk(path, True)
        return os.statvfs_result(tuple(self.core.statvfs("/"))[:8] + (os.ST_RDONLY, 255, 0))

    def getxattr(self, path, name, *, bint follow_symlinks=True):
        """Value of an extended attribute; OSError(ENODATA) if there was none."""
        cdef SnapshotInode node = self.walk(path, follow_symlinks)
        key = os.fsdecode(name)
        if key not in node.xattrs:
            raise_errno(-_errno.ENODATA, path, None)
        return node.xattrs[key]

    def listxattr(self, path, *, bint follow_symlinks=True):
        """Names of the extended attributes."""
        return list(self.walk(path, follow_symlinks).xattrs)

    def open(self, path, mode="rb", buffering=-1, encoding=None, errors=None, newline=None):
        """Opens a file for reading; OSError(EROFS) for any other mode."""
        flags, binary = parse_mode(mode)
        file = self.os_open(path, flags)
        if binary:
            return file
        return (<object>self.core).text_type(io.BufferedReader(file), encoding, errors, newline)

    def os_open(self, path, int flags, int mode=0o666):
        """Opens a file with os.O_* flags; OSError(EROFS) unless it is for reading only."""
        cdef SnapshotInode node
        if flags & (os.O_ACCMODE | os.O_CREAT | os.O_TRUNC | os.O_APPEND):
            raise_errno(-EROFS, path, None)
        node = self.walk(path, not flags & os.O_NOFOLLOW)
        if node.attr.mode & S_IFMT == S_IFDIR:
            raise_errno(-EISDIR, path, None)
        if node.attr.mode & S_IFMT == S_IFLNK:
            raise_errno(-ELOOP, path, None)
        return SnapshotFile(self, node, path)

    def _read_only(self, path, *args, **more):
        """Snapshots do not change: OSError(EROFS)."""
        raise_errno(-EROFS, path, None)

    make_dir = rmdir = unlink = rename = link = chmod = chown = utime = truncate = _read_only
    setxattr = removexattr = _read_only

    def symlink(self, target, path):
        """Snapshots do not change: OSError(EROFS)."""
        raise_errno(-EROFS, path, None)


class SnapshotFile(io.RawIOBase):
    """A file of a snapshot, open for reading."""

    def __init__(self, SnapshotCore view, SnapshotInode node, name):
        super().__init__()
        self._view = view
        self._node = node
        self._position = 0
        self.name = name
        self.mode = "rb"
        self.ino = node.attr.ino
        self.generation = node.attr.generation

    def _check(self):
        if self.closed or self._view.closed:
            raise ValueError("I/O operation on closed file")

    def readable(self):
        """Always."""
        return True

    def seekable(self):
        """Always."""
        return True

    def pread(self, n, offset):
        """Up to `n` bytes from `offset`."""
        self._check()
        if n < 0 or offset < 0:
            raise_errno(-EINVAL, self.name, None)
        return view_read(self._view, self._node, n, offset)

    def preadinto(self, buffer, offset):
        """Fills a writable buffer from `offset`; returns the bytes read."""
        self._check()
        if offset < 0:
            raise_errno(-EINVAL, self.name, None)
        return view_readinto(self._view, self._node, buffer, offset)

    def readinto(self, buffer):
        """Fills a writable buffer from the position; returns the bytes read."""
        got = self.preadinto(buffer, self._position)
        self._position += got
        return got

    def read(self, size=-1):
        """Up to `size` bytes from the position, all that is left by default."""
        left = max(0, self.stat().st_size - self._position)
        data = self.pread(left if size is None or size < 0 else min(size, left), self._position)
        self._position += len(data)
        return data

    def readall(self):
        """All that is left."""
        return self.read()

    def seek(self, offset, whence=0):
        """Moves the position; returns it."""
        self._check()
        if whence not in (0, 1, 2):
            raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
        position = offset + (0, self._position, self.stat().st_size)[whence]
        if position < 0:
            raise_errno(-EINVAL, self.name, None)
        self._position = position
        return position

    def tell(self):
        """Position of the next read, bytes."""
        self._check()
        return self._position

    def mmap(self, offset=0, length=None, writable=False):
        """Maps the file, or `length` bytes from `offset`, read-only: a `Mapping`, a buffer.

        Without a copy, except of pages that the live file has mapped as well. Keeps the snapshot
        open. OSError(EROFS) if `writable`.
        """
        cdef SnapshotInode node = self._node
        self._check()
        if writable:
            raise_errno(-EROFS, self.name, None)
        return map_snapshot_file((<SnapshotCore>self._view).core, self._view, node.attr.ino, offset,
                                 length, node.attr.size, self._pieces, self.name)

    def _pieces(self, first, end):
        """Blocks of pages first..end-1: (first block, or 0 for a hole, number of pages)."""
        cdef SnapshotInode node = self._node
        cdef SnapshotCore view = self._view
        cdef uint64_t page = first
        cdef uint64_t block, n
        cdef nv_ctx* c = view.core.ctx()
        cdef int rc
        c.away = 1
        with nogil:
            rc = renew(c, node, view.epoch_id)
        c.away = 0
        if rc:
            raise_errno(-ENOENT, self.name, None)
        pieces = []
        while page < end:
            block = index_get(NULL, <uint64_t>-1, &node.pages, page)
            n = 1
            while page + n < end and index_get(NULL, <uint64_t>-1, &node.pages, page + n) == (
                    block + n if block else 0):
                n += 1
            pieces.append((block, n))
            page += n
        return pieces

    def stat(self):
        """Attributes as they were."""
        cdef SnapshotInode node = self._node
        self._check()
        return make_stat(&node.attr)

    def fsync(self):
        """Nothing to do."""
        self._check()

    def _refuse(self, *args, **more):
        """Snapshots do not change."""
        raise io.UnsupportedOperation("not writable")

    write = pwrite = truncate = fallocate = _refuse


cdef view_read(SnapshotCore view, SnapshotInode node, n, offset):
    return view.content(node, n, offset)


cdef view_readinto(SnapshotCore view, SnapshotInode node, buffer, uint64_t offset):
    cdef Py_buffer b
    cdef uint64_t n = 0
    PyObject_GetBuffer(buffer, &b, PyBUF_WRITABLE)
    try:
        if offset < node.attr.size:
            n = min(<uint64_t>b.len, node.attr.size - offset)
            view.copy(node, <char*>b.buf, n, offset)
        return n
    finally:
        PyBuffer_Release(&b)

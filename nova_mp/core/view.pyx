# cython: wraparound=True
"""Read-only views of snapshots: each inode's log, folded up to the snapshot's epoch, on demand.

A view holds its snapshot open, so nothing that it can reach is freed. What it builds is private to
the process: attributes and page index of a file, names of a directory, each the first time it is
used. Building takes the inode's lock, because garbage collection moves entries; reading takes none.
"""

import errno as _errno
import io
import os

from cpython.buffer cimport (Py_buffer, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release,
                             PyObject_GetBuffer)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOMEM, ENOTDIR, EROFS
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from nova_mp import errors
from nova_mp.core.dir cimport DT_DIR, DT_LNK, dentry_at, dentry_ino, dentry_type
from nova_mp.core.dram cimport CELL_SNAPSHOT, NV_RETRY, nv_ctx, nv_index, nv_inode_header
from nova_mp.core.file cimport nv_attr
from nova_mp.core.arch cimport nv_fence_acquire, nv_fence_release, nv_load64, nv_store64
from nova_mp.core.boundary cimport decode, nv_path, path_arg, raise_errno
from nova_mp.core.boundary import parse_mode
from nova_mp.core.handle cimport make_stat
from nova_mp.core.mapped import map_snapshot_file
from nova_mp.core.index cimport index_cell, index_get, index_next, index_prune, index_reserve
from nova_mp.core.inode cimport S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, inode_lock
from nova_mp.core.itable cimport header_of, inode_at
from nova_mp.core.layout cimport (BLOCK_BYTES, BLOCK_SHIFT, ENTRY_DENTRY, ENTRY_FLAG_REMOVED,
                                  ENTRY_FLAG_SIZE, ENTRY_LINK_CHANGE, ENTRY_MMAP_WRITE,
                                  ENTRY_SETATTR, ENTRY_WRITE, ENTRY_XATTR, LINE_BYTES,
                                  NAME_MAX_BYTES, ROOT_INO, nv_dentry, nv_entry_header, nv_inode,
                                  nv_link_change_entry, nv_mmap_write_entry, nv_setattr_entry,
                                  nv_write_entry, nv_xattr_entry)
from nova_mp.core.log cimport log_position
from nova_mp.core.pmem cimport block_off
from nova_mp.core.process cimport Process
from nova_mp.core.sync cimport lock_drop
from nova_mp.core.xattr cimport xattr_last

cdef enum:
    MAX_SYMLINKS = 40


cdef class _Inode:
    """One inode as of the snapshot. `pages` maps file pages to block numbers, in private memory."""

    cdef nv_attr attr
    cdef nv_index pages
    cdef uint64_t preserved          # the header's, when `pages` was last brought up to date
    cdef dict names

    def __dealloc__(self):
        index_prune(NULL, &self.pages, 0)


cdef void cut(nv_ctx* c, _Inode node, uint64_t first) noexcept nogil:
    cdef uint64_t pos = index_next(NULL, &node.pages, first, <uint64_t>-1)
    while pos != <uint64_t>-1:
        index_cell(NULL, &node.pages, pos)[0] = 0
        node.attr.blocks -= 1
        pos = index_next(NULL, &node.pages, pos + 1, <uint64_t>-1)


cdef int fold_write(_Inode node, nv_write_entry* e) noexcept nogil:
    cdef uint64_t i
    cdef uint64_t* cell
    if index_reserve(NULL, NULL, &node.pages, e.pgoff, e.pgoff + e.num_pages - 1):
        return -ENOMEM
    for i in range(e.num_pages):
        cell = index_cell(NULL, &node.pages, e.pgoff + i)
        if cell[0] == 0:
            node.attr.blocks += 1
        cell[0] = e.block_nr + i
    if e.entry_type == ENTRY_MMAP_WRITE:
        return 0
    node.attr.size = e.size
    node.attr.mtime_ns = e.mtime_ns
    node.attr.ctime_ns = e.mtime_ns
    return 0


cdef void fold_kept(nv_ctx* c, _Inode node, uint64_t pos, uint64_t tail,
                    uint64_t epoch_id) noexcept nogil:
    # Pages that were stored to in place after the snapshot: it reads their copies. The first entry
    # that tells of a block has the snapshot's contents; later ones find another block in its place.
    cdef nv_mmap_write_entry* e
    cdef uint64_t i
    cdef uint64_t* cell
    pos = log_position(c, pos, tail)
    while pos != tail:
        e = <nv_mmap_write_entry*>(c.pm + pos)
        if e.entry_type == ENTRY_MMAP_WRITE and e.epoch_id > epoch_id:
            for i in range(e.num_pages):
                cell = index_cell(NULL, &node.pages, e.pgoff + i)
                if cell != NULL and cell[0] == e.block_nr + i:
                    cell[0] = e.kept_block_nr + i
        pos = log_position(c, pos + e.slots * LINE_BYTES, tail)


cdef int renew(nv_ctx* c, _Inode node, uint64_t epoch_id) noexcept nogil:
    # MAP-6: pages were preserved since `node` was built.
    cdef nv_inode_header* h = NULL
    cdef int rc = inode_lock(c, node.attr.ino, 0, &h)
    if rc == 0:
        fold_kept(c, node, inode_at(c, node.attr.ino).log_head_off, h.log_tail_off, epoch_id)
        nv_fence_release()
        nv_store64(&node.preserved, h.preserved)
        lock_drop(c, &h.lock)
    return rc


cdef void fold_setattr(nv_ctx* c, _Inode node, nv_setattr_entry* e) noexcept nogil:
    node.attr.mode = e.mode
    node.attr.nlink = e.nlink
    node.attr.uid = e.uid
    node.attr.gid = e.gid
    node.attr.size = e.size
    node.attr.mtime_ns = e.mtime_ns
    node.attr.ctime_ns = e.ctime_ns
    node.attr.atime_ns = e.atime_ns
    if e.flags & ENTRY_FLAG_SIZE:
        cut(c, node, (e.size + BLOCK_BYTES - 1) >> BLOCK_SHIFT)


cdef fold_dentry(_Inode node, nv_dentry* d):
    name = decode(<char*>d.name, d.name_len)
    if d.flags & ENTRY_FLAG_REMOVED:
        node.names.pop(name, None)
    else:
        node.names[name] = (dentry_ino(d), dentry_type(d))
    node.attr.mtime_ns = d.mtime_ns
    node.attr.ctime_ns = d.mtime_ns


cdef int fold(nv_ctx* c, _Inode node, uint64_t head, uint64_t tail, uint64_t epoch_id) except -1:
    # Under the inode's lock. Epochs never go back in a log, so the first later entry ends it.
    cdef uint64_t pos = log_position(c, head, tail)
    cdef nv_entry_header* e
    while pos != tail:
        e = <nv_entry_header*>(c.pm + pos)
        if e.epoch_id > epoch_id:
            break
        if e.entry_type == ENTRY_WRITE or e.entry_type == ENTRY_MMAP_WRITE:
            if fold_write(node, <nv_write_entry*>e):
                raise MemoryError
        elif e.entry_type == ENTRY_SETATTR:
            fold_setattr(c, node, <nv_setattr_entry*>e)
        elif e.entry_type == ENTRY_LINK_CHANGE:
            node.attr.nlink = (<nv_link_change_entry*>e).nlink
            node.attr.ctime_ns = (<nv_link_change_entry*>e).ctime_ns
        elif e.entry_type == ENTRY_XATTR:
            node.attr.ctime_ns = (<nv_xattr_entry*>e).ctime_ns
        elif e.entry_type == ENTRY_DENTRY:
            fold_dentry(node, <nv_dentry*>e)
        pos = log_position(c, pos + e.slots * LINE_BYTES, tail)
    fold_kept(c, node, pos, tail, epoch_id)
    return 0


cdef void copy_pages(nv_ctx* c, _Inode node, char* to, uint64_t n, uint64_t offset) noexcept nogil:
    cdef uint64_t within, bytes, block
    while n:
        within = offset & (BLOCK_BYTES - 1)
        bytes = BLOCK_BYTES - within
        if bytes > n:
            bytes = n
        block = index_get(NULL, <uint64_t>-1, &node.pages, offset >> BLOCK_SHIFT)
        if block:
            memcpy(to, c.pm + block_off(block) + within, bytes)
        else:
            memset(to, 0, bytes)
        to += bytes
        offset += bytes
        n -= bytes


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
        if self.is_open and self.core is not None and not self.core.closed:
            self._release()

    def close(self):
        """Lets the snapshot go: it may be deleted again. Safe to call twice."""
        if self.is_open and not self.core.closed:
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

    cdef _Inode node(self, uint64_t ino):
        cdef nv_ctx* c
        cdef nv_inode_header* h = NULL
        cdef nv_inode* pi
        cdef _Inode node = self.inodes.get(ino)
        cdef int rc
        if node is not None:
            return node
        if self.closed:
            raise ValueError("operation on a closed snapshot")
        c = self.core.ctx()
        with nogil:
            rc = inode_lock(c, ino, 0, &h)
        if rc:
            raise errors.CorruptArena(f"inode {ino} of snapshot {self.epoch_id} is gone",
                                      "run fsck")
        node = _Inode.__new__(_Inode)
        node.names = {}
        try:
            pi = inode_at(c, ino)
            node.attr.ino = ino
            node.attr.birth_time_ns = pi.birth_time_ns
            node.attr.generation = pi.generation
            fold(c, node, pi.log_head_off, h.log_tail_off, self.epoch_id)
            node.preserved = h.preserved
        finally:
            lock_drop(c, &h.lock)
        if node.attr.mode & S_IFMT == S_IFDIR:
            node.attr.nlink = 2 + sum(1 for _, kind in node.names.values() if kind == DT_DIR)
        self.inodes[ino] = node
        return node

    cdef bytes content(self, _Inode node, uint64_t n, uint64_t offset):
        cdef bytes data
        if offset >= node.attr.size:
            return b""
        n = min(n, node.attr.size - offset)
        data = PyBytes_FromStringAndSize(NULL, n)
        self.copy(node, PyBytes_AS_STRING(data), n, offset)
        return data

    cdef void copy(self, _Inode node, char* to, uint64_t n, uint64_t offset) except *:
        cdef nv_ctx* c = self.core.ctx()
        cdef nv_inode_header* h = header_of(c, node.attr.ino)
        cdef uint64_t seen
        cdef int rc = 0
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
        if rc:
            raise errors.CorruptArena(f"inode {node.attr.ino} of snapshot {self.epoch_id} is gone",
                                      "run fsck")

    cdef _Inode walk(self, object path, bint follow):
        cdef nv_path p
        cdef _Inode node
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
        cdef _Inode node = self.walk(path, True)
        if node.attr.mode & S_IFMT != S_IFDIR:
            raise_errno(-ENOTDIR, path, None)
        return [(name, ino, kind) for name, (ino, kind) in node.names.items()]

    def listdir(self, path="/"):
        """Names of a directory."""
        names = [name for name, _, _ in self.scan(path)]
        return [os.fsencode(name) for name in names] if isinstance(path, bytes) else names

    def readlink(self, path):
        """Target of a symbolic link."""
        cdef _Inode node = self.walk(path, False)
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
        values = self._xattrs(self.walk(path, follow_symlinks))
        key = os.fsdecode(name)
        if key not in values:
            raise_errno(-_errno.ENODATA, path, None)
        return values[key]

    def listxattr(self, path, *, bint follow_symlinks=True):
        """Names of the extended attributes."""
        return list(self._xattrs(self.walk(path, follow_symlinks)))

    def _xattrs(self, _Inode node):
        cdef nv_ctx* c = self.core.ctx()
        cdef nv_inode_header* h = NULL
        cdef nv_xattr_entry* e
        cdef uint64_t ino = node.attr.ino
        cdef uint64_t pos
        cdef int rc
        values = {}
        with nogil:
            rc = inode_lock(c, ino, 0, &h)
        if rc:
            raise_errno(rc, None, None)
        pos = log_position(c, inode_at(c, ino).log_head_off, h.log_tail_off)
        while pos != h.log_tail_off:
            e = <nv_xattr_entry*>(c.pm + pos)
            if e.epoch_id > self.epoch_id:
                break
            if e.entry_type == ENTRY_XATTR:
                key = decode(<char*>e.data, e.name_len)
                values.pop(key, None)
                if not e.flags & ENTRY_FLAG_REMOVED:
                    values[key] = PyBytes_FromStringAndSize(<char*>e + 40 + e.name_len, e.value_len)
            pos = log_position(c, pos + e.slots * LINE_BYTES, h.log_tail_off)
        lock_drop(c, &h.lock)
        return values

    def open(self, path, mode="rb", buffering=-1, encoding=None, errors=None, newline=None):
        """Opens a file for reading; OSError(EROFS) for any other mode."""
        flags, binary = parse_mode(mode)
        file = self.os_open(path, flags)
        if binary:
            return file
        return io.TextIOWrapper(io.BufferedReader(file), encoding, errors, newline)

    def os_open(self, path, int flags, int mode=0o666):
        """Opens a file with os.O_* flags; OSError(EROFS) unless it is for reading only."""
        cdef _Inode node
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

    def __init__(self, SnapshotCore view, _Inode node, name):
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
        cdef _Inode node = self._node
        self._check()
        if writable:
            raise_errno(-EROFS, self.name, None)
        return map_snapshot_file((<SnapshotCore>self._view).core, self._view, node.attr.ino, offset,
                                 length, node.attr.size, self._pieces, self.name)

    def _pieces(self, first, end):
        """Blocks of pages first..end-1: (first block, or 0 for a hole, number of pages)."""
        cdef _Inode node = self._node
        cdef SnapshotCore view = self._view
        cdef uint64_t page = first
        cdef uint64_t block, n
        if renew(view.core.ctx(), node, view.epoch_id):
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
        cdef _Inode node = self._node
        self._check()
        return make_stat(&node.attr)

    def fsync(self):
        """Nothing to do."""
        self._check()

    def _refuse(self, *args, **more):
        """Snapshots do not change."""
        raise io.UnsupportedOperation("not writable")

    write = pwrite = truncate = fallocate = _refuse


cdef view_read(SnapshotCore view, _Inode node, n, offset):
    return view.content(node, n, offset)


cdef view_readinto(SnapshotCore view, _Inode node, buffer, uint64_t offset):
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

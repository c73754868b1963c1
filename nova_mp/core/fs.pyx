"""The boundary between Python and the file system core.

Everything below works on offsets and gives -errno; everything above uses Python objects and
exceptions. Short operations run with the GIL held and without waiting; when one would have to wait
it starts over with the GIL released.
"""

import errno as _errno
import io
import math
import operator
import os
import time

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EEXIST, EINVAL, EISDIR, ELOOP, ENOENT, ENOTDIR
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from posix.fcntl cimport O_ACCMODE, O_APPEND, O_CREAT, O_EXCL, O_RDONLY, O_TRUNC

from nova_mp.core.alloc cimport blocks_free_count
from nova_mp.core.arena import format_arena, mount, read_superblock, unmount
from nova_mp.core.mapped import Mapping
from nova_mp.core.forks import abandon_arena
from nova_mp.core.boundary cimport decode, nv_path, path_arg, raise_errno
from nova_mp.core.boundary import DEBUG_BUILD, MEDIA, MODES, OPERATIONS, ROLES, parse_mode
from nova_mp.core.dir cimport DT_DIR, DT_LNK
from nova_mp.core.dram cimport NV_RETRY, cpu_at, nv_ctx
from nova_mp.core.dram import geometry as dram_geometry
from nova_mp.core.file cimport (ATTR_ATIME, ATTR_GID, ATTR_MODE, ATTR_MTIME, ATTR_UID, file_getattr,
                                file_read, file_setattr, file_truncate, nv_attr)
from nova_mp.core.handle cimport make_file, make_stat
from nova_mp.core.inode cimport S_IFDIR, S_IFLNK, S_IFMT, S_IFREG
from nova_mp.core.layout cimport BLOCK_BYTES, NAME_MAX_BYTES, SYMLINK_MAX_BYTES
from nova_mp.core.namei cimport handle_open, name_create, name_link, name_rmdir, name_unlink
from nova_mp.core.walk cimport (WALK_FOLLOW, WALK_PARENT, lookup_child, name_list, nv_listing,
                                nv_node, nv_walk, walk)
from nova_mp.core.rename cimport name_rename
from nova_mp.core.xattr cimport xattr_get, xattr_list, xattr_set

cdef extern from "<unistd.h>" nogil:
    uint32_t getuid "geteuid"() noexcept
    uint32_t getgid "getegid"() noexcept
cdef extern from "<errno.h>" nogil:
    enum: _ESTALE "ESTALE"
cdef extern from "<fcntl.h>" nogil:
    enum: O_NOFOLLOW
    enum: O_DIRECTORY

__all__ = [
    "DEBUG_BUILD", "MEDIA", "OPERATIONS", "ROLES", "Core", "Mapping", "abandon_arena",
    "dram_geometry", "format_arena", "mount", "parse_mode", "read_superblock", "unmount",
]


def _nanoseconds(seconds):
    # Rounds down, and keeps what a float holds of today's times.
    whole = math.floor(seconds)
    return whole * 10**9 + int((seconds - whole) * 1e9)


cdef class Core(Admin):
    """One process's way into a mounted arena: operations run here, on shared memory.

    The arguments are those of `Process`; paths are absolute `str`, `bytes` or `os.PathLike`.
    Methods raise OSError subclasses as the functions of `os` with the same names do.
    """

    text_type = io.TextIOWrapper     # of text files; a subclass may have another

    # -- paths

    cdef nv_node resolve(self, nv_ctx* c, object path, int follow) except *:
        cdef nv_path p
        cdef nv_walk w
        cdef int rc
        owner = path_arg(path, &p)
        self.ctx()                   # paths may be of types written in Python: closed meanwhile?
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
        cdef nv_ctx* c
        cdef nv_attr attr
        cdef nv_path p
        cdef nv_walk w
        cdef int rc, flags = WALK_FOLLOW if follow_symlinks else 0
        owner = path_arg(path, &p)
        c = self.ctx()
        c.nowait = 1
        rc = walk(c, p.text, p.length, flags, &w)
        if rc == 0:
            rc = file_getattr(c, w.node.ino, w.node.generation, &attr)
        c.nowait = 0
        while self.again(c, NV_RETRY if rc == -_ESTALE else rc):
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
        flags = MODES.get(mode)
        if flags is not None and encoding is None and errors is None and newline is None:
            return self.os_open(path, flags)
        flags, binary = parse_mode(mode)
        if binary:
            raise ValueError("binary mode doesn't take an encoding, errors or newline argument")
        if buffering == 0:
            raise ValueError("can't have unbuffered text I/O")
        file = self.os_open(path, flags)
        text = self.text_type(file, encoding, errors, newline, line_buffering=buffering == 1)
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
            self.ctx()
        except BaseException:
            self.free_cells.append(cell)
            raise
        c.nowait = 1
        rc = open_once(c, &p, flags, bits, &w, &node, opened, &made)
        c.nowait = 0
        try:
            while self.again(c, NV_RETRY if rc == -_ESTALE else rc):
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
        if flags & O_APPEND:
            file.seek(0, 2)
        return file

    # -- names

    def _make(self, path, uint32_t mode, target=None):
        cdef nv_ctx* c
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
            goal = os.fsencode(target)
            if b"\0" in goal:
                raise ValueError("embedded null byte")
            if not goal or len(goal) > SYMLINK_MAX_BYTES:
                raise_errno(-ENOENT if not goal else -_errno.ENAMETOOLONG, target, path)
            t.text = PyBytes_AS_STRING(goal)
            t.length = PyBytes_GET_SIZE(goal)
        c = self.ctx()
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
                raise_errno(rc, target, path)
            raise_errno(rc, path, None)

    def make_dir(self, path, Py_ssize_t mode=0o777):
        """Makes one directory; `mode` less the umask."""
        self._make(path, S_IFDIR | (mode & 0o1777 & ~self.umask_bits))

    def symlink(self, target, path):
        """Makes `path` a symbolic link to `target`."""
        self._make(path, S_IFLNK | 0o777, os.fspath(target))

    def unlink(self, path):
        """Removes a file's name; the file itself once nobody has it open."""
        cdef nv_ctx* c
        cdef nv_path p
        cdef nv_walk w
        cdef int rc
        owner = path_arg(path, &p)
        c = self.ctx()
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
        cdef nv_ctx* c
        cdef nv_path p
        cdef nv_walk w
        cdef int rc = NV_RETRY
        owner = path_arg(path, &p)
        c = self.ctx()
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
        cdef nv_ctx* c
        cdef nv_path p, q
        cdef nv_walk* w = <nv_walk*>malloc(2 * sizeof(nv_walk))
        cdef int rc = NV_RETRY
        if w == NULL:
            raise MemoryError
        try:
            src_owner = path_arg(src, &p)
            dst_owner = path_arg(dst, &q)
            c = self.ctx()
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
        cdef nv_ctx* c
        cdef nv_path p, q
        cdef nv_walk w
        cdef nv_node node
        cdef int rc = NV_RETRY
        src_owner = path_arg(src, &p)
        dst_owner = path_arg(dst, &q)
        c = self.ctx()
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

    def chmod(self, path, Py_ssize_t mode, *, bint follow_symlinks=True):
        """Changes permissions. They are kept, but the arena's owner may do everything."""
        self._setattr(path, ATTR_MODE, follow_symlinks, mode=mode & 0o7777)

    def chown(self, path, Py_ssize_t uid, Py_ssize_t gid, *, bint follow_symlinks=True):
        """Changes owner and group; -1 keeps one."""
        if min(uid, gid) < -1 or max(uid, gid) >= 0xFFFFFFFF:
            raise OverflowError("uid or gid is not -1, nor a number below 2**32 - 1")
        cdef uint32_t mask = (ATTR_UID if uid != -1 else 0) | (ATTR_GID if gid != -1 else 0)
        self._setattr(path, mask, follow_symlinks, uid=uid & 0xFFFFFFFF, gid=gid & 0xFFFFFFFF)

    def utime(self, path, times=None, *, ns=None, bint follow_symlinks=True):
        """Sets access and modification time: seconds in `times`, nanoseconds in `ns`, or now."""
        if times is not None and ns is not None:
            raise ValueError("utime: you may specify either 'times' or 'ns' but not both")
        given = ns if times is None else times
        if given is not None and (not isinstance(given, tuple) or len(given) != 2):
            raise TypeError("utime: 'times' or 'ns' must be a tuple of two numbers, or None")
        if times is not None:
            ns = tuple(_nanoseconds(value) for value in times)
        if ns is None:
            ns = (time.time_ns(),) * 2
        atime, mtime = operator.index(ns[0]), operator.index(ns[1])
        self._setattr(path, ATTR_ATIME | ATTR_MTIME, follow_symlinks, atime=atime, mtime=mtime)

    def truncate(self, path, Py_ssize_t size):
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
        cdef nv_node node
        cdef bytes key = xattr_key(path, name)
        cdef bytes data = bytes(memoryview(value))
        cdef nv_ctx* c = self.ctx()
        cdef const char* k = PyBytes_AS_STRING(key)
        cdef const uint8_t* v = <const uint8_t*>PyBytes_AS_STRING(data)
        cdef uint64_t n = PyBytes_GET_SIZE(data)
        cdef uint32_t k_len = PyBytes_GET_SIZE(key)
        cdef int rc = -_ESTALE
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
        if flags & ~3:
            raise_errno(-EINVAL, path, None)
        self._xattr(path, name, value, flags, follow_symlinks)

    def removexattr(self, path, name, *, bint follow_symlinks=True):
        """Removes an extended attribute; OSError(ENODATA) if there is none."""
        self._xattr(path, name, b"", 4, follow_symlinks)

    def getxattr(self, path, name, *, bint follow_symlinks=True):
        """Value of an extended attribute; OSError(ENODATA) if there is none."""
        cdef bytes key = xattr_key(path, name)
        cdef nv_ctx* c = self.ctx()
        cdef nv_node node = self.resolve(c, path, WALK_FOLLOW if follow_symlinks else 0)
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


cdef bytes xattr_key(object path, object name):
    """The name of an extended attribute of `path`, if there can be one of that name."""
    cdef bytes key = os.fsencode(name)
    if b"\0" in key:
        raise ValueError("embedded null byte")
    if not 0 < len(key) <= NAME_MAX_BYTES:
        raise_errno(-_errno.ERANGE, path, None)
    if not key.startswith((b"user.", b"trusted.", b"security.", b"system.")):
        raise_errno(-_errno.EOPNOTSUPP, path, None)
    if key.endswith(b".") and key.count(b".") == 1:
        raise_errno(-EINVAL, path, None)
    return key


cdef int open_once(nv_ctx* c, nv_path* p, int flags, uint32_t mode, nv_walk* w, nv_node* node,
                   uint64_t* cell, bint* made) noexcept nogil:
    """One attempt at opening; -ESTALE when the file went away meanwhile."""
    cdef int rc, follow
    made[0] = False
    if flags & O_CREAT:
        # Through a symbolic link whose target is missing the target is made.
        follow = 0 if flags & (O_EXCL | O_NOFOLLOW) else WALK_FOLLOW
        rc = walk(c, p.text, p.length, WALK_PARENT | follow, w)
        if rc:
            return rc
        if w.name_len == 0 or w.trailing:
            return -EISDIR
        rc = -EEXIST
        if not flags & O_EXCL:
            rc = lookup_child(c, w.node, w.name, w.name_len, node)
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
        # Without O_NOFOLLOW it came since the path was walked.
        return -ELOOP if flags & O_NOFOLLOW else -_ESTALE
    if node.type == DT_DIR:
        return -EISDIR
    if flags & O_DIRECTORY:
        return -ENOTDIR
    return handle_open(c, node[0], cell)

"""Inodes of snapshots: their logs, folded up to an epoch. See fold.pxd."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport ENOMEM
from libc.stdlib cimport realloc
from libc.string cimport memcpy, memset

from nova_mp.core.arch cimport nv_fence_release, nv_store64
from nova_mp.core.boundary cimport decode
from nova_mp.core.dir cimport dentry_ino, dentry_type
from nova_mp.core.dram cimport nv_inode_header
from nova_mp.core.index cimport index_cell, index_get, index_next, index_prune, index_reserve
from nova_mp.core.inode cimport inode_lock
from nova_mp.core.itable cimport inode_at
from nova_mp.core.layout cimport (BLOCK_BYTES, BLOCK_SHIFT, ENTRY_DENTRY, ENTRY_FLAG_REMOVED,
                                  ENTRY_FLAG_SIZE, ENTRY_LINK_CHANGE, ENTRY_MMAP_WRITE,
                                  ENTRY_SETATTR, ENTRY_WRITE, ENTRY_XATTR, LINE_BYTES, nv_dentry,
                                  nv_entry_header, nv_inode, nv_link_change_entry,
                                  nv_mmap_write_entry, nv_setattr_entry, nv_write_entry,
                                  nv_xattr_entry)
from nova_mp.core.log cimport log_position
from nova_mp.core.pmem cimport block_off
from nova_mp.core.sync cimport lock_drop


cdef class SnapshotInode:
    """One inode as of a snapshot."""

    def __dealloc__(self):
        index_prune(NULL, &self.pages, 0)


# ---- data and attributes ------------------------------------------------------------------------

cdef void cut(nv_ctx* c, SnapshotInode node, uint64_t first) noexcept nogil:
    cdef uint64_t pos = index_next(NULL, &node.pages, first, <uint64_t>-1)
    while pos != <uint64_t>-1:
        index_cell(NULL, &node.pages, pos)[0] = 0
        node.attr.blocks -= 1
        pos = index_next(NULL, &node.pages, pos + 1, <uint64_t>-1)


cdef int fold_write(SnapshotInode node, nv_write_entry* e) noexcept nogil:
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


cdef void fold_kept(nv_ctx* c, SnapshotInode node, uint64_t pos, uint64_t tail,
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


cdef int renew(nv_ctx* c, SnapshotInode node, uint64_t epoch_id) noexcept nogil:
    # MAP-6: pages were preserved since `node` was built.
    cdef nv_inode_header* h = NULL
    cdef int rc = inode_lock(c, node.attr.ino, 0, &h)
    if rc == 0:
        fold_kept(c, node, inode_at(c, node.attr.ino).log_head_off, h.log_tail_off, epoch_id)
        nv_fence_release()
        nv_store64(&node.preserved, h.preserved)
        lock_drop(c, &h.lock)
    return rc


cdef void fold_setattr(nv_ctx* c, SnapshotInode node, nv_setattr_entry* e) noexcept nogil:
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


# ---- all of an inode ----------------------------------------------------------------------------

cdef int copy_entry(nv_copies* to, const nv_entry_header* e) noexcept nogil:
    cdef uint64_t n = e.slots * LINE_BYTES
    cdef uint64_t room = to.room
    cdef uint8_t* at
    if to.used + n > room:
        room = room * 2 + n
        at = <uint8_t*>realloc(to.at, room)
        if at == NULL:
            return -ENOMEM
        to.at = at
        to.room = room
    memcpy(to.at + to.used, e, n)
    to.used += n
    return 0


cdef int fold(nv_ctx* c, SnapshotInode node, uint64_t head, uint64_t tail, uint64_t epoch_id,
              nv_copies* named) noexcept nogil:
    # Under the inode's lock. Epochs never go back in a log, so the first later entry ends it.
    cdef uint64_t pos = log_position(c, head, tail)
    cdef nv_entry_header* e
    cdef int rc = 0
    while pos != tail:
        e = <nv_entry_header*>(c.pm + pos)
        if e.epoch_id > epoch_id:
            break
        if e.entry_type == ENTRY_WRITE or e.entry_type == ENTRY_MMAP_WRITE:
            rc = fold_write(node, <nv_write_entry*>e)
        elif e.entry_type == ENTRY_SETATTR:
            fold_setattr(c, node, <nv_setattr_entry*>e)
        elif e.entry_type == ENTRY_LINK_CHANGE:
            node.attr.nlink = (<nv_link_change_entry*>e).nlink
            node.attr.ctime_ns = (<nv_link_change_entry*>e).ctime_ns
        elif e.entry_type == ENTRY_XATTR:
            node.attr.ctime_ns = (<nv_xattr_entry*>e).ctime_ns
            rc = copy_entry(named, e)
        elif e.entry_type == ENTRY_DENTRY:
            node.attr.mtime_ns = (<nv_dentry*>e).mtime_ns
            node.attr.ctime_ns = (<nv_dentry*>e).mtime_ns
            rc = copy_entry(named, e)
        if rc:
            return rc
        pos = log_position(c, pos + e.slots * LINE_BYTES, tail)
    fold_kept(c, node, pos, tail, epoch_id)
    return 0


cdef int build(nv_ctx* c, SnapshotInode node, uint64_t epoch_id, nv_copies* named) noexcept nogil:
    # 0, -ESTALE or -ENOMEM. Everything but what is `named`: that goes to keep_named().
    cdef nv_inode_header* h = NULL
    cdef nv_inode* pi
    cdef int rc = inode_lock(c, node.attr.ino, 0, &h)
    if rc:
        return rc
    pi = inode_at(c, node.attr.ino)
    node.attr.birth_time_ns = pi.birth_time_ns
    node.attr.generation = pi.generation
    rc = fold(c, node, pi.log_head_off, h.log_tail_off, epoch_id, named)
    node.preserved = h.preserved
    lock_drop(c, &h.lock)
    return rc


cdef object keep_named(SnapshotInode node, nv_copies* named):
    # Names of a directory and extended attributes, out of the copies of their entries.
    cdef uint64_t pos = 0
    cdef nv_entry_header* e
    cdef nv_dentry* d
    cdef nv_xattr_entry* x
    while pos < named.used:
        e = <nv_entry_header*>(named.at + pos)
        if e.entry_type == ENTRY_DENTRY:
            d = <nv_dentry*>e
            name = decode(<char*>d.name, d.name_len)
            if d.flags & ENTRY_FLAG_REMOVED:
                node.names.pop(name, None)
            else:
                node.names[name] = (dentry_ino(d), dentry_type(d))
        else:
            x = <nv_xattr_entry*>e
            name = decode(<char*>x.data, x.name_len)
            node.xattrs.pop(name, None)
            if not x.flags & ENTRY_FLAG_REMOVED:
                node.xattrs[name] = PyBytes_FromStringAndSize(<char*>x + 40 + x.name_len,
                                                              x.value_len)
        pos += e.slots * LINE_BYTES


cdef void copy_pages(nv_ctx* c, SnapshotInode node, char* to, uint64_t n,
                     uint64_t offset) noexcept nogil:
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

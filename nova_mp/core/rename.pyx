"""Renaming files and directories, over existing targets, across directories."""

from libc.errno cimport EBUSY, EEXIST, EINVAL, EISDIR, ENOENT, ENOSPC, ENOTDIR, ENOTEMPTY
from libc.stdint cimport uint32_t, uint64_t
from nova_mp.core.arch cimport nv_file_time_ns
from nova_mp.core.dir cimport DT_DIR, dentry_at, dentry_ino, dir_lookup, dir_reserve
from nova_mp.core.dram cimport INODE_DEAD, OP_RENAME, nv_inode_header, nv_tx
from nova_mp.core.inode cimport apply_entries, evict_reserve, gc_wanted, inode_lock, tx_apply
from nova_mp.core.itable cimport PI_DELETE_EPOCH, PI_LOG_TAIL, inode_off
from nova_mp.core.journal cimport journal_commit, nv_words, words_add
from nova_mp.core.log cimport tx_open
from nova_mp.core.namei cimport append_dentry, append_link_change, unlinked
from nova_mp.core.walk cimport WALK_PARENT, lookup_child, nv_node, walk
from nova_mp.core.pmem cimport fail_point
from nova_mp.core.sync cimport (RANK_RENAME, lock_drop_all, lock_take, op_begin, op_end, seq_begin,
                                seq_end)

cdef extern from "<errno.h>":
    enum: ESTALE

cdef struct nv_rename:               # PRIVATE. What is involved, as looked up without locks
    nv_walk* src
    nv_walk* dst
    nv_node moved
    nv_node victim                   # ino 0: there is none
    nv_inode_header* src_dir
    nv_inode_header* dst_dir
    nv_inode_header* moved_header
    nv_inode_header* victim_header


cdef bint is_ancestor(nv_walk* w, uint64_t ino) noexcept nogil:
    cdef uint32_t i
    for i in range(w.depth):
        if w.stack[i].ino == ino:
            return True
    return False


cdef int look_up(nv_ctx* c, nv_rename* r, bint noreplace) noexcept nogil:
    # 1: both names are links to one inode, nothing to do.
    cdef int rc = lookup_child(c, r.src.node, r.src.name, r.src.name_len, &r.moved)
    if rc:
        return rc
    rc = lookup_child(c, r.dst.node, r.dst.name, r.dst.name_len, &r.victim)
    if rc == -ENOENT:
        r.victim.ino = 0
    elif rc:
        return rc
    elif noreplace:
        return -EEXIST
    if r.moved.type == DT_DIR and is_ancestor(r.dst, r.moved.ino):
        return -EINVAL
    if r.victim.ino and r.victim.type == DT_DIR and is_ancestor(r.src, r.victim.ino):
        return -ENOTEMPTY
    if r.moved.type != DT_DIR and (r.src.trailing or r.dst.trailing):
        return -ENOTDIR
    if r.victim.ino == r.moved.ino:
        return 1
    if r.victim.ino and r.moved.type == DT_DIR and r.victim.type != DT_DIR:
        return -ENOTDIR
    if r.victim.ino and r.moved.type != DT_DIR and r.victim.type == DT_DIR:
        return -EISDIR
    return 0


cdef int lock_one(nv_ctx* c, nv_node node, nv_inode_header** header) noexcept nogil:
    cdef int rc = inode_lock(c, node.ino, node.generation, header)
    if rc == 0 and header[0].flags & INODE_DEAD:
        return -ESTALE
    return rc


cdef int lock_all(nv_ctx* c, nv_rename* r) noexcept nogil:
    # Directories by inode number, then files by inode number. -ESTALE: something changed meanwhile.
    cdef nv_node nodes[4]
    cdef nv_inode_header** headers[4]
    cdef nv_node node
    cdef nv_inode_header** header
    cdef int n = 0, i, k, rc
    cdef bint later
    nodes[n] = r.src.node
    headers[n] = &r.src_dir
    n += 1
    if r.dst.node.ino != r.src.node.ino:
        nodes[n] = r.dst.node
        headers[n] = &r.dst_dir
        n += 1
    nodes[n] = r.moved
    headers[n] = &r.moved_header
    n += 1
    if r.victim.ino:
        nodes[n] = r.victim
        headers[n] = &r.victim_header
        n += 1
    for i in range(1, n):
        node = nodes[i]
        header = headers[i]
        k = i
        while k > 0:
            later = nodes[k - 1].ino > node.ino
            if (nodes[k - 1].type == DT_DIR) != (node.type == DT_DIR):
                later = node.type == DT_DIR
            if not later:
                break
            nodes[k] = nodes[k - 1]
            headers[k] = headers[k - 1]
            k -= 1
        nodes[k] = node
        headers[k] = header
    for i in range(n):
        if i and nodes[i].ino == nodes[i - 1].ino:
            return -ESTALE
        rc = lock_one(c, nodes[i], headers[i])
        if rc:
            return rc
    if r.dst.node.ino == r.src.node.ino:
        r.dst_dir = r.src_dir
    return 0


cdef int verify(nv_ctx* c, nv_rename* r) noexcept nogil:
    # Under all locks: is everything as it was looked up?
    cdef uint64_t off = dir_lookup(c, r.src_dir, r.src.name, r.src.name_len)
    if off == 0 or dentry_ino(dentry_at(c, off)) != r.moved.ino:
        return -ESTALE
    off = dir_lookup(c, r.dst_dir, r.dst.name, r.dst.name_len)
    if (dentry_ino(dentry_at(c, off)) if off else 0) != r.victim.ino:
        return -ESTALE
    if r.victim.ino and r.victim.type == DT_DIR and r.victim_header.blocks:
        return -ENOTEMPTY
    return 0


cdef int append_all(nv_ctx* c, nv_rename* r, uint64_t now) noexcept nogil:
    # Log 0: source directory; 1: destination directory, if another; then the moved and the
    # replaced.
    cdef uint32_t to = 0 if r.src_dir == r.dst_dir else 1
    cdef uint64_t old = dir_lookup(c, r.src_dir, r.src.name, r.src.name_len)
    cdef uint64_t over = dir_lookup(c, r.dst_dir, r.dst.name, r.dst.name_len)
    cdef uint32_t victim_nlink = 0
    cdef int rc
    tx_open(c, r.src.node.ino, r.src_dir.log_tail_off)
    if to:
        tx_open(c, r.dst.node.ino, r.dst_dir.log_tail_off)
    rc = append_dentry(c, r.src_dir, 0, r.src.name, r.src.name_len, r.moved.ino, r.moved.type,
                       dentry_at(c, old).epoch_id, now)
    if rc == 0 and over:
        rc = append_dentry(c, r.dst_dir, to, r.dst.name, r.dst.name_len, r.victim.ino,
                           r.victim.type,
                           dentry_at(c, over).epoch_id, now)
    if rc == 0:
        rc = append_dentry(c, r.dst_dir, to, r.dst.name, r.dst.name_len, r.moved.ino, r.moved.type,
                           0, now)
    if rc == 0:
        rc = append_link_change(c, r.moved_header, r.moved.ino, r.moved_header.nlink, now)
    if rc == 0 and r.victim.ino:
        if r.victim.type != DT_DIR:
            victim_nlink = r.victim_header.nlink - 1
        rc = append_link_change(c, r.victim_header, r.victim.ino, victim_nlink, now)
    return rc


cdef int rename_locked(nv_ctx* c, nv_rename* r) noexcept nogil:
    cdef nv_words words
    cdef uint32_t i, dirs = 1 if r.src_dir == r.dst_dir else 2
    cdef bint last = r.victim.ino and (r.victim.type == DT_DIR or r.victim_header.nlink == 1)
    cdef nv_tx* t = c.slot.tx
    cdef int rc = dir_reserve(c, r.dst_dir, 1)
    if rc == 0 and last:
        rc = evict_reserve(c, r.victim_header)
    if rc == 0:
        rc = append_all(c, r, nv_file_time_ns())
    if rc:
        return rc
    words.n = 0
    if last:
        words_add(&words, inode_off(c, r.victim.ino) + PI_DELETE_EPOCH, c.epoch_id)
    for i in range(c.slot.ntx):
        words_add(&words, inode_off(c, t[i].ino) + PI_LOG_TAIL, t[i].cur_tail)
    journal_commit(c, &words)
    # Both directories are odd at once, so no walker sees the file twice, or not at all.
    seq_begin(r.src_dir)
    seq_begin(r.dst_dir)
    apply_entries(c, r.src_dir, t[0].ino, t[0].old_tail, t[0].cur_tail)
    fail_point(c, "rename.source_applied")
    if dirs == 2:
        apply_entries(c, r.dst_dir, t[1].ino, t[1].old_tail, t[1].cur_tail)
        seq_end(r.dst_dir)
        gc_wanted(c, r.dst_dir, t[1].ino)
    seq_end(r.src_dir)
    gc_wanted(c, r.src_dir, t[0].ino)
    tx_apply(c, r.moved_header, dirs)
    if r.victim.ino:
        unlinked(c, r.victim_header, r.victim.ino, dirs + 1)
    return 0


cdef int rename_once(nv_ctx* c, nv_rename* r, bint noreplace) noexcept nogil:
    cdef uint32_t held = c.slot.nlocks
    cdef int rc = look_up(c, r, noreplace)
    if rc:
        return rc
    rc = lock_all(c, r)
    if rc == 0:
        rc = verify(c, r)
    if rc == 0:
        rc = op_begin(c, OP_RENAME)
        if rc == 0:
            rc = rename_locked(c, r)
            op_end(c)
    lock_drop_all(c, held)
    return rc


cdef int name_rename(nv_ctx* c, const char* src, unsigned long src_len, const char* dst,
                     unsigned long dst_len, bint noreplace, nv_walk* from_,
                     nv_walk* to) noexcept nogil:
    # NAME-2: directories change parents one at a time; the walk that finds the destination's
    # ancestors is done under the lock that keeps them in place.
    cdef nv_rename r
    cdef uint32_t held = c.slot.nlocks
    cdef nv_node moved
    cdef int rc = -ESTALE
    r.src = from_
    r.dst = to
    while rc == -ESTALE:
        rc = walk(c, src, src_len, WALK_PARENT, from_)
        if rc == 0:
            rc = walk(c, dst, dst_len, WALK_PARENT, to)
        if rc == 0 and (from_.name_len == 0 or to.name_len == 0):
            rc = -EBUSY
        if rc == 0:
            rc = lookup_child(c, from_.node, from_.name, from_.name_len, &moved)
        if (rc == 0 and moved.type == DT_DIR and from_.node.ino != to.node.ino
                and c.slot.nlocks == held):
            rc = lock_take(c, &c.hdr.rename_lock, RANK_RENAME)
            if rc == 0:
                rc = -ESTALE
            continue
        if rc == 0:
            rc = rename_once(c, &r, noreplace)
    lock_drop_all(c, held)
    return 0 if rc == 1 else rc

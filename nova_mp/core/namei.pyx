"""Creating, linking, unlinking; open handles."""

from libc.errno cimport (EBUSY, EEXIST, EINVAL, EISDIR, EMLINK, ENOENT, ENOSPC, ENOTDIR, ENOTEMPTY,
                         EPERM)
from libc.stdint cimport uint8_t
from libc.string cimport memcpy, memset
from nova_mp.core.arch cimport nv_add64, nv_file_time_ns
from nova_mp.core.dir cimport DT_DIR, DT_LNK, DT_REG, dentry_at, dir_lookup, dir_reserve
from nova_mp.core.dram cimport (INODE_DEAD, INODE_IN_LIST, OPEN_CELLS, OP_CLOSE, OP_CREATE, OP_LINK,
                                OP_UNLINK, SLOT_FREE, nv_tx, slot_at)
from nova_mp.core.extent cimport append_data
from nova_mp.core.index cimport index_reserve
from nova_mp.core.inode cimport (S_IFDIR, S_IFLNK, S_IFMT, evict, evict_reserve, inode_abandon,
                                 inode_lock, inode_new, tx_apply, tx_undo)
from nova_mp.core.itable cimport (PI_DELETE_EPOCH, PI_LOG_TAIL, PI_STATE, header_of, inode_at,
                                  inode_off)
from nova_mp.core.journal cimport journal_commit, nv_words, words_add
from nova_mp.core.layout cimport (ENTRY_DENTRY, ENTRY_FLAG_REMOVED, ENTRY_LINK_CHANGE, INODE_VALID,
                                  LINK_MAX, nv_dentry, nv_link_change_entry)
from nova_mp.core.log cimport log_append, log_room, tx_open
from nova_mp.core.pmem cimport fail_point, pm_flush, pm_store64
from nova_mp.core.sync cimport lock_drop, lock_drop_all, op_begin, op_end, seq_begin, seq_end
from nova_mp.core.walk cimport child_of, lookup_child

cdef extern from "<errno.h>":
    enum: ESTALE


# ---- appending ----------------------------------------------------------------------------------

cdef int append_dentry(nv_ctx* c, nv_inode_header* h, uint32_t tx, const char* name,
                       uint32_t name_len, uint64_t ino, uint32_t type, uint64_t removed_epoch_id,
                       uint64_t now) noexcept nogil:
    # A dentry for log `tx` of the operation; one that removes if `removed_epoch_id` (of what it
    # removes) is not 0.
    cdef uint8_t buffer[320]
    cdef nv_dentry* d = <nv_dentry*>buffer
    cdef int rc
    memset(buffer, 0, sizeof(buffer))
    d.entry_type = ENTRY_DENTRY
    d.flags = ENTRY_FLAG_REMOVED if removed_epoch_id else 0
    d.slots = <uint8_t>((40 + name_len + 63) // 64)
    d.name_len = <uint8_t>name_len
    d.epoch_id = c.epoch_id
    d.ino = ino | <uint64_t>type << 56
    d.mtime_ns = now
    d.aux_epoch_id = removed_epoch_id
    memcpy(buffer + 40, name, name_len)
    rc = log_room(c, h, &c.slot.tx[tx], d.slots)
    if rc == 0:
        log_append(c, &c.slot.tx[tx], d)
    return rc


cdef int append_link_change(nv_ctx* c, nv_inode_header* h, uint64_t ino, uint32_t nlink,
                            uint64_t now) noexcept nogil:
    # Opens the next log of the operation and appends a link-change entry.
    cdef nv_link_change_entry e
    cdef int rc
    memset(&e, 0, sizeof(e))
    e.entry_type = ENTRY_LINK_CHANGE
    e.slots = 1
    e.epoch_id = c.epoch_id
    e.ctime_ns = now
    e.nlink = nlink
    tx_open(c, ino, h.log_tail_off)
    rc = log_room(c, h, &c.slot.tx[c.slot.ntx - 1], 1)
    if rc == 0:
        log_append(c, &c.slot.tx[c.slot.ntx - 1], &e)
    return rc


cdef void add_tails(nv_ctx* c, nv_words* words) noexcept nogil:
    cdef uint32_t i
    for i in range(c.slot.ntx):
        words_add(words, inode_off(c, c.slot.tx[i].ino) + PI_LOG_TAIL, c.slot.tx[i].cur_tail)


# ---- create, symlink, link ----------------------------------------------------------------------

cdef int lock_parent(nv_ctx* c, nv_walk* w, nv_inode_header** h) noexcept nogil:
    # -ENOENT if the directory was removed since it was walked.
    cdef int rc = inode_lock(c, w.node.ino, w.node.generation, h)
    if rc == -ESTALE:
        return -ENOENT
    if rc == 0 and h[0].flags & INODE_DEAD:
        lock_drop(c, &h[0].lock)
        return -ENOENT
    if rc == 0 and h[0].mode & S_IFMT != S_IFDIR:
        lock_drop(c, &h[0].lock)
        return -ENOTDIR
    return rc


cdef int symlink_target(nv_ctx* c, uint64_t ino, const char* target,
                        uint64_t target_len) noexcept nogil:
    # The target as the new inode's data. Its log is not committed to by anybody yet, so its tail
    # moves without ceremony.
    cdef nv_inode_header* h = header_of(c, ino)
    cdef uint64_t off = inode_off(c, ino)
    cdef nv_tx* t
    cdef int rc = index_reserve(c, h, &h.index, 0, 0)
    if rc:
        return rc
    tx_open(c, ino, h.log_tail_off)
    t = &c.slot.tx[c.slot.ntx - 1]
    rc = append_data(c, h, <const uint8_t*>target, target_len, 0, target_len, nv_file_time_ns())
    if rc:
        tx_undo(c)
        return rc
    pm_store64(c, off + PI_LOG_TAIL, t.cur_tail)
    pm_flush(c, off + PI_LOG_TAIL, 8)
    tx_apply(c, h, c.slot.ntx - 1)
    c.slot.ntx -= 1
    return 0


cdef int create_locked(nv_ctx* c, nv_inode_header* h, nv_walk* w, uint32_t mode, uint32_t uid,
                       uint32_t gid,
                       const char* target, uint64_t target_len, nv_node* made) noexcept nogil:
    cdef nv_words words
    cdef uint64_t ino = 0
    cdef uint32_t format = mode & S_IFMT
    cdef uint32_t type = DT_DIR if format == S_IFDIR else DT_LNK if format == S_IFLNK else DT_REG
    cdef int rc = dir_reserve(c, h, 1)
    if rc:
        return rc
    rc = inode_new(c, mode, uid, gid, &ino)
    if rc:
        return rc
    if target != NULL:
        rc = symlink_target(c, ino, target, target_len)
    if rc == 0:
        tx_open(c, w.node.ino, h.log_tail_off)
        rc = append_dentry(c, h, 0, w.name, w.name_len, ino, type, 0, nv_file_time_ns())
    if rc:
        c.slot.ntx = 0
        inode_abandon(c, ino)
        return rc
    words.n = 0
    words_add(&words, inode_off(c, ino) + PI_STATE, INODE_VALID)
    add_tails(c, &words)
    journal_commit(c, &words)
    c.slot.new_ino = 0
    tx_apply(c, h, 0)
    fail_point(c, "create.applied")
    made.ino = ino
    made.generation = header_of(c, ino).generation
    made.type = type
    return 0


cdef int name_create(nv_ctx* c, nv_walk* w, uint32_t mode, uint32_t uid, uint32_t gid,
                     const char* target, uint64_t target_len, nv_node* made) noexcept nogil:
    # File, directory or symbolic link (by the type in `mode`) named w.name in w.node. -EEXIST if
    # the name is there: `made` is what it leads to.
    cdef nv_inode_header* h = NULL
    cdef int rc
    if w.name_len == 0:
        return -EEXIST
    rc = lock_parent(c, w, &h)
    if rc:
        return rc
    if child_of(c, h, w.name, w.name_len, made) == 0:
        rc = -EEXIST
    else:
        rc = op_begin(c, OP_CREATE)
        if rc == 0:
            rc = create_locked(c, h, w, mode, uid, gid, target, target_len, made)
            op_end(c)
    lock_drop(c, &h.lock)
    return rc


cdef int link_locked(nv_ctx* c, nv_inode_header* h, nv_inode_header* target, nv_node node,
                     nv_walk* w) noexcept nogil:
    cdef nv_words words
    cdef uint64_t now = nv_file_time_ns()
    cdef int rc = dir_reserve(c, h, 1)
    if rc:
        return rc
    tx_open(c, w.node.ino, h.log_tail_off)
    rc = append_dentry(c, h, 0, w.name, w.name_len, node.ino, node.type, 0, now)
    if rc == 0:
        rc = append_link_change(c, target, node.ino, target.nlink + 1, now)
    if rc:
        return rc
    words.n = 0
    add_tails(c, &words)
    journal_commit(c, &words)
    tx_apply(c, h, 0)
    tx_apply(c, target, 1)
    return 0


cdef int name_link(nv_ctx* c, nv_node node, nv_walk* w) noexcept nogil:
    cdef nv_inode_header* h = NULL
    cdef nv_inode_header* target = NULL
    cdef nv_node there
    cdef int rc
    if w.name_len == 0:
        return -EEXIST
    if node.type == DT_DIR:
        return -EEXIST if lookup_child(c, w.node, w.name, w.name_len, &there) == 0 else -EPERM
    rc = lock_parent(c, w, &h)
    if rc:
        return rc
    rc = inode_lock(c, node.ino, node.generation, &target)
    if rc:
        lock_drop(c, &h.lock)
        return -ENOENT if rc == -ESTALE else rc
    if target.flags & INODE_DEAD:
        rc = -ENOENT
    elif child_of(c, h, w.name, w.name_len, &there) == 0:
        rc = -EEXIST
    elif target.nlink >= LINK_MAX:
        rc = -EMLINK
    else:
        rc = op_begin(c, OP_LINK)
        if rc == 0:
            rc = link_locked(c, h, target, node, w)
            op_end(c)
    lock_drop(c, &target.lock)
    lock_drop(c, &h.lock)
    return rc


# ---- unlink, rmdir ------------------------------------------------------------------------------

cdef void unlinked(nv_ctx* c, nv_inode_header* h, uint64_t ino, uint32_t tx) noexcept nogil:
    # After the commit of a link change that may have been the last: applies it, and takes the inode
    # apart unless somebody has it open. Also done by a repairer.
    if inode_at(c, ino).delete_epoch_id:
        seq_begin(h)
        h.flags |= INODE_DEAD
        seq_end(h)
    tx_apply(c, h, tx)
    if h.flags & INODE_DEAD:
        c.gc_ino = 0 if c.gc_ino == ino else c.gc_ino
        h.nlink = 0
        if h.opens == 0:
            evict(c, h, ino)


cdef int remove_locked(nv_ctx* c, nv_inode_header* h, nv_inode_header* child, nv_node node,
                       nv_walk* w) noexcept nogil:
    # Takes one name away from a file, or its only name from an empty directory.
    cdef nv_words words
    cdef uint64_t now = nv_file_time_ns()
    cdef uint64_t old = dir_lookup(c, h, w.name, w.name_len)
    cdef uint32_t nlink = 0 if node.type == DT_DIR else child.nlink - 1
    cdef int rc = 0
    if nlink == 0 and evict_reserve(c, child):
        return -ENOSPC
    tx_open(c, w.node.ino, h.log_tail_off)
    rc = append_dentry(c, h, 0, w.name, w.name_len, node.ino, node.type, dentry_at(c, old).epoch_id,
                       now)
    if rc == 0:
        rc = append_link_change(c, child, node.ino, nlink, now)
    if rc:
        return rc
    words.n = 0
    if nlink == 0:
        words_add(&words, inode_off(c, node.ino) + PI_DELETE_EPOCH, c.epoch_id)
    add_tails(c, &words)
    journal_commit(c, &words)
    tx_apply(c, h, 0)
    fail_point(c, "unlink.name_gone")
    unlinked(c, child, node.ino, 1)
    return 0


cdef int name_unlink(nv_ctx* c, nv_walk* w) noexcept nogil:
    cdef nv_inode_header* h = NULL
    cdef nv_inode_header* child = NULL
    cdef nv_node node
    cdef int rc
    if w.name_len == 0:
        return -EISDIR
    rc = lock_parent(c, w, &h)
    if rc:
        return rc
    rc = child_of(c, h, w.name, w.name_len, &node)
    if rc == 0 and w.trailing:
        rc = -ENOTDIR if node.type != DT_DIR else -EISDIR
    if rc == 0 and node.type == DT_DIR:
        rc = -EISDIR
    if rc == 0:
        rc = inode_lock(c, node.ino, node.generation, &child)
    if rc == 0:
        rc = op_begin(c, OP_UNLINK)
        if rc == 0:
            c.privileged = 1
            rc = remove_locked(c, h, child, node, w)
            c.privileged = 0
            op_end(c)
        lock_drop(c, &child.lock)
    lock_drop(c, &h.lock)
    return rc


cdef int rmdir_once(nv_ctx* c, nv_walk* w) noexcept nogil:
    # Both are directories, so they are locked by number and looked up again; -ESTALE: try again.
    cdef nv_inode_header* h = NULL
    cdef nv_inode_header* child = NULL
    cdef nv_node node, again
    cdef uint32_t held = c.slot.nlocks
    cdef int rc = lookup_child(c, w.node, w.name, w.name_len, &node)
    if rc:
        return rc
    if node.type != DT_DIR:
        return -ENOTDIR
    if node.ino < w.node.ino:
        rc = inode_lock(c, node.ino, node.generation, &child)
    if rc == 0:
        rc = lock_parent(c, w, &h)
    if rc == 0 and child == NULL:
        rc = inode_lock(c, node.ino, node.generation, &child)
    if rc == 0:
        rc = child_of(c, h, w.name, w.name_len, &again)
        if rc == 0 and (again.ino != node.ino or again.generation != node.generation):
            rc = -ESTALE
    if rc == 0 and child.blocks:
        rc = -ENOTEMPTY
    if rc == 0:
        rc = op_begin(c, OP_UNLINK)
        if rc == 0:
            c.privileged = 1
            rc = remove_locked(c, h, child, node, w)
            c.privileged = 0
            op_end(c)
    lock_drop_all(c, held)
    return rc


cdef int name_rmdir(nv_ctx* c, nv_walk* w) noexcept nogil:
    cdef int rc = -ESTALE
    if w.name_len == 0:
        return -ENOTEMPTY if w.dots == 2 else -EINVAL if w.dots else -EBUSY
    while rc == -ESTALE:
        rc = rmdir_once(c, w)
    return rc


# ---- open handles -------------------------------------------------------------------------------

cdef int handle_open(nv_ctx* c, nv_node node, uint64_t* cell) noexcept nogil:
    # The cell, in the process's open table, is the truth; `opens` is its sum over all processes.
    cdef nv_inode_header* h = NULL
    cdef int rc = inode_lock(c, node.ino, node.generation, &h)
    if rc:
        return rc
    if h.flags & INODE_DEAD and h.opens == 0:
        rc = -ESTALE
    else:
        cell[0] = node.ino
        fail_point(c, "open.cell_set")
        h.opens += 1
    lock_drop(c, &h.lock)
    return rc


cdef int handle_close(nv_ctx* c, uint64_t* cell) noexcept nogil:
    # The last to close a deleted file takes it apart.
    cdef nv_inode_header* h = NULL
    cdef uint64_t ino = cell[0]
    cdef int rc = inode_lock(c, ino, 0, &h)
    if rc:
        if rc == -ESTALE:
            cell[0] = 0
            rc = 0
        return rc
    if h.opens == 1 and h.flags & INODE_DEAD:
        rc = op_begin(c, OP_CLOSE)
        if rc == 0:
            c.privileged = 1
            cell[0] = 0
            h.opens = 0
            fail_point(c, "close.cell_cleared")
            if not h.flags & INODE_IN_LIST:
                if evict_reserve(c, h) == 0:
                    evict(c, h, ino)
                else:
                    # Without memory for list pages it stays as it is until the next mount.
                    nv_add64(&c.hdr.not_evicted, 1)
            c.privileged = 0
            op_end(c)
    else:
        cell[0] = 0
        h.opens -= 1
    lock_drop(c, &h.lock)
    return rc


cdef void recount_opens(nv_ctx* c, nv_inode_header* h, uint64_t ino) noexcept nogil:
    # Repair: the sum of all cells of all processes.
    cdef uint32_t i, k
    cdef uint32_t n = 0
    cdef uint64_t page
    cdef uint64_t* cells
    for i in range(c.hdr.slot_high):
        if slot_at(c, i).state == SLOT_FREE or slot_at(c, i).parent:
            continue
        page = slot_at(c, i).open_head
        while page:
            cells = <uint64_t*>(c.dram + page)
            for k in range(OPEN_CELLS):
                if cells[k] == ino:
                    n += 1
            page = cells[OPEN_CELLS]
    h.opens = n

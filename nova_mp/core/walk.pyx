"""Path walking and listing: optimistic readers of directories."""

from libc.errno cimport ELOOP, ENAMETOOLONG, ENOENT, ENOMEM, ENOTDIR
from libc.stdint cimport int64_t
from libc.stdlib cimport realloc
from libc.string cimport memcpy, memmove
from nova_mp.core.arch cimport nv_pause
from nova_mp.core.dir cimport (DIR_TOMB, DT_DIR, DT_LNK, dentry_at, dentry_ino, dentry_type,
                               dir_lookup)
from nova_mp.core.file cimport file_read
from nova_mp.core.index cimport index_get, ref_off
from nova_mp.core.inode cimport S_IFDIR, S_IFMT, inode_lock
from nova_mp.core.itable cimport header_of
from nova_mp.core.layout cimport NAME_MAX_BYTES, ROOT_INO, SYMLINK_MAX_BYTES, nv_dentry
from nova_mp.core.sync cimport lock_drop, seq_read, seq_same

cdef extern from "<errno.h>":
    enum: ESTALE

cdef enum:
    OPTIMISTIC_TRIES = 16


cdef int child_of(nv_ctx* c, nv_inode_header* h, const char* name, uint32_t name_len,
                  nv_node* child) noexcept nogil:
    # What a directory says now; 0 or -ENOENT. The caller holds its lock or checks its seq.
    cdef uint64_t off = dir_lookup(c, h, name, name_len)
    cdef nv_inode_header* target
    if off == 0:
        return -ENOENT
    child.ino = dentry_ino(dentry_at(c, off))
    child.type = dentry_type(dentry_at(c, off))
    target = header_of(c, child.ino)
    child.generation = target.generation if target != NULL else 0
    return 0


cdef int lookup_child(nv_ctx* c, nv_node directory, const char* name, uint32_t name_len,
                      nv_node* child) noexcept nogil:
    cdef nv_inode_header* h = header_of(c, directory.ino)
    cdef uint32_t seq
    cdef int rc, tries
    if h == NULL:
        return -ENOENT
    for tries in range(OPTIMISTIC_TRIES):
        seq = seq_read(h)
        if seq & 1:
            nv_pause()
            continue
        if h.mode == 0 or h.generation != directory.generation:
            rc = -ENOENT
        elif h.mode & S_IFMT != S_IFDIR:
            rc = -ENOTDIR
        else:
            rc = child_of(c, h, name, name_len, child)
        if seq_same(h, seq):
            return rc
    rc = inode_lock(c, directory.ino, directory.generation, &h)
    if rc == -ESTALE:
        return -ENOENT
    if rc:
        return rc
    rc = child_of(c, h, name, name_len, child)
    lock_drop(c, &h.lock)
    return rc


cdef int expand(nv_ctx* c, nv_walk* w, nv_node link, const char** rest, uint64_t* rest_len,
                int* turn) noexcept nogil:
    # Puts a symbolic link's target before the rest of the path, in the other of two buffers.
    cdef char* text = w.text[turn[0]]
    cdef int64_t got = file_read(c, link.ino, link.generation, <uint8_t*>text, SYMLINK_MAX_BYTES, 0)
    if got == -ESTALE:
        return -ENOENT
    if got < 0:
        return <int>got
    if got == 0:
        return -ENOENT
    if <uint64_t>got + rest_len[0] > PATH_MAX_BYTES + SYMLINK_MAX_BYTES:
        return -ENAMETOOLONG
    # The rest is empty or begins with its slash.
    memmove(text + got, rest[0], rest_len[0])
    rest[0] = text
    rest_len[0] += <uint64_t>got
    turn[0] ^= 1
    if text[0] == 47:
        w.depth = 1
    return 0


cdef inline uint64_t component(const char* p, uint64_t left, uint64_t* after) noexcept nogil:
    # Length of the name at `p`; `after` is that with the slashes behind it.
    cdef uint64_t n = 0
    while n < left and p[n] != 47:
        n += 1
    after[0] = n
    while after[0] < left and p[after[0]] == 47:
        after[0] += 1
    return n


cdef inline void walk_from_root(nv_ctx* c, nv_walk* w) noexcept nogil:
    w.stack[0].ino = ROOT_INO
    w.stack[0].generation = header_of(c, ROOT_INO).generation
    w.stack[0].type = DT_DIR
    w.depth = 1
    w.name_len = 0
    w.dots = 0
    w.trailing = False


cdef int walk(nv_ctx* c, const char* path, uint64_t path_len, int flags, nv_walk* w) noexcept nogil:
    # Follows an absolute path. Fills w.node, or w.node and w.name with WALK_PARENT.
    cdef const char* p = path
    cdef uint64_t left = path_len, n
    cdef uint64_t after
    cdef int links = 0, turn = 0, rc
    cdef nv_node child
    cdef bint last
    if path_len == 0 or path_len >= PATH_MAX_BYTES:
        return -ENOENT if path_len == 0 else -ENAMETOOLONG
    walk_from_root(c, w)
    while True:
        while left and p[0] == 47:
            p += 1
            left -= 1
        if left == 0:
            break
        n = component(p, left, &after)
        last = after == left
        if p[0] == 46 and (n == 1 or (n == 2 and p[1] == 46)):
            w.dots = <uint32_t>n
            if n == 2 and w.depth > 1:
                w.depth -= 1
            p += after
            left -= after
            continue
        if n > NAME_MAX_BYTES:
            return -ENAMETOOLONG
        w.dots = 0
        rc = 0
        if not last or not flags & WALK_PARENT or flags & WALK_FOLLOW:
            rc = lookup_child(c, w.stack[w.depth - 1], p, <uint32_t>n, &child)
        if last and flags & WALK_PARENT:
            if not flags & WALK_FOLLOW or rc or child.type != DT_LNK:
                w.node = w.stack[w.depth - 1]
                w.name = p
                w.name_len = <uint32_t>n
                w.trailing = after > n
                return 0
        elif rc:
            return rc
        if child.type == DT_LNK and (not last or flags & WALK_FOLLOW or after > n):
            links += 1
            if links > MAX_SYMLINKS:
                return -ELOOP
            p += n
            left -= n
            rc = expand(c, w, child, &p, &left, &turn)
            if rc:
                return rc
            continue
        if last:
            if after > n and child.type != DT_DIR:
                return -ENOTDIR
            w.node = child
            w.trailing = after > n
            return 0
        if child.type != DT_DIR:
            return -ENOTDIR
        if w.depth == MAX_DEPTH:
            return -ENAMETOOLONG
        w.stack[w.depth] = child
        w.depth += 1
        p += after
        left -= after
    w.node = w.stack[w.depth - 1]
    return 0


# ---- listing ------------------------------------------------------------------------------------

cdef int list_once(nv_ctx* c, nv_inode_header* h, nv_listing* out) noexcept nogil:
    # Stale references are bounds-checked; the caller checks the seq, or holds the lock.
    cdef uint64_t cells = <uint64_t>1 << (h.dir_log2 & 31) if h.dir_log2 else 0
    cdef uint64_t pos, word, off, need
    cdef uint64_t ino
    cdef nv_dentry* d
    cdef uint8_t* grown
    cdef uint8_t* p
    out.used = 0
    out.entries = 0
    for pos in range(cells):
        word = index_get(c.dram, c.a.dram_bytes, &h.index, pos)
        off = ref_off(word)
        if word <= DIR_TOMB or off > c.a.pm_bytes - 4096:
            continue
        d = dentry_at(c, off)
        need = out.used + 10 + d.name_len
        if need > out.capacity:
            grown = <uint8_t*>realloc(out.data, need * 2)
            if grown == NULL:
                return -ENOMEM
            out.data = grown
            out.capacity = need * 2
        p = out.data + out.used
        ino = dentry_ino(d)
        memcpy(p, &ino, 8)
        p[8] = <uint8_t>dentry_type(d)
        p[9] = <uint8_t>(need - out.used - 10)
        memcpy(p + 10, d.name, p[9])
        out.used += 10 + <uint64_t>p[9]
        out.entries += 1
    return 0


cdef int name_list(nv_ctx* c, nv_node directory, nv_listing* out) noexcept nogil:
    # One moment's names. `out.data` is the caller's to free.
    cdef nv_inode_header* h = header_of(c, directory.ino)
    cdef uint32_t seq
    cdef int rc, tries
    for tries in range(4):
        seq = seq_read(h)
        if seq & 1:
            nv_pause()
            continue
        if h.mode == 0 or h.generation != directory.generation:
            break
        rc = -ENOTDIR if h.mode & S_IFMT != S_IFDIR else list_once(c, h, out)
        if seq_same(h, seq):
            return rc
    rc = inode_lock(c, directory.ino, directory.generation, &h)
    if rc == -ESTALE:
        return -ENOENT
    if rc:
        return rc
    rc = list_once(c, h, out)
    lock_drop(c, &h.lock)
    return rc

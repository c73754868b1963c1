"""Getting, setting, removing and listing extended attributes."""

from libc.errno cimport E2BIG, EEXIST, ERANGE
from libc.string cimport memcmp, memcpy, memset
from nova_mp.core.arch cimport nv_file_time_ns
from nova_mp.core.dram cimport INODE_HAS_XATTR, OP_XATTR, nv_inode_header
from nova_mp.core.inode cimport inode_lock, tx_apply
from nova_mp.core.itable cimport PI_LOG_TAIL, inode_at, inode_off
from nova_mp.core.layout cimport (ENTRY_FLAG_REMOVED, ENTRY_XATTR, LINE_BYTES, XATTR_DATA_MAX,
                                  nv_entry_header)
from nova_mp.core.log cimport log_append, log_commit, log_position, log_room, tx_open
from nova_mp.core.sync cimport lock_drop, op_begin, op_end

cdef extern from "<errno.h>":
    enum: ENODATA

cdef enum:
    XATTR_CREATE = 1
    XATTR_REPLACE = 2
    REMOVE = 4


cdef uint64_t xattr_last(nv_ctx* c, uint64_t first, uint64_t tail, const uint8_t* name,
                         uint32_t name_len, uint64_t up_to_epoch_id) noexcept nogil:
    # The entry that decides an attribute as of an epoch, 0 if there is none or it removes.
    cdef uint64_t pos = log_position(c, first, tail)
    cdef uint64_t found = 0
    cdef nv_xattr_entry* e
    while pos != tail:
        e = <nv_xattr_entry*>(c.pm + pos)
        if e.epoch_id > up_to_epoch_id:
            break
        if e.entry_type == ENTRY_XATTR and e.name_len == name_len and memcmp(e.data, name,
                                                                             name_len) == 0:
            found = 0 if e.flags & ENTRY_FLAG_REMOVED else pos
        pos = log_position(c, pos + e.slots * LINE_BYTES, tail)
    return found


cdef uint64_t find_live(nv_ctx* c, nv_inode_header* h, uint64_t ino, const char* name,
                        uint32_t name_len) noexcept nogil:
    if not h.flags & INODE_HAS_XATTR:
        return 0
    return xattr_last(c, inode_at(c, ino).log_head_off, h.log_tail_off, <const uint8_t*>name,
                      name_len, <uint64_t>-1)


cdef int64_t xattr_get(nv_ctx* c, uint64_t ino, uint32_t generation, const char* name,
                       uint32_t name_len, uint8_t* value) noexcept nogil:
    # `value` is private memory of XATTR_DATA_MAX bytes.
    cdef nv_inode_header* h = NULL
    cdef nv_xattr_entry* e
    cdef uint64_t off
    cdef int64_t rc = inode_lock(c, ino, generation, &h)
    if rc:
        return rc
    off = find_live(c, h, ino, name, name_len)
    if off == 0:
        rc = -ENODATA
    else:
        e = <nv_xattr_entry*>(c.pm + off)
        memcpy(value, <uint8_t*>e + 40 + e.name_len, e.value_len)
        rc = e.value_len
    lock_drop(c, &h.lock)
    return rc


cdef int64_t xattr_list(nv_ctx* c, uint64_t ino, uint32_t generation, uint8_t* names,
                        uint64_t room) noexcept nogil:
    # Names, each after its length byte, into private memory; bytes used, or -ERANGE.
    cdef nv_inode_header* h = NULL
    cdef nv_xattr_entry* e
    cdef uint64_t pos, head, used = 0
    cdef int64_t rc = inode_lock(c, ino, generation, &h)
    if rc:
        return rc
    head = inode_at(c, ino).log_head_off
    pos = log_position(c, head, h.log_tail_off) if h.flags & INODE_HAS_XATTR else h.log_tail_off
    while pos != h.log_tail_off:
        e = <nv_xattr_entry*>(c.pm + pos)
        if e.entry_type == ENTRY_XATTR and xattr_last(c, head, h.log_tail_off, e.data, e.name_len,
                                                      <uint64_t>-1) == pos:
            if used + e.name_len + 1 > room:
                rc = -ERANGE
                break
            names[used] = e.name_len
            memcpy(names + used + 1, e.data, e.name_len)
            used += 1 + <uint64_t>e.name_len
        pos = log_position(c, pos + e.slots * LINE_BYTES, h.log_tail_off)
    lock_drop(c, &h.lock)
    return rc if rc else <int64_t>used


cdef uint64_t oldest_set(nv_ctx* c, nv_inode_header* h, uint64_t ino, const char* name,
                         uint32_t name_len) noexcept nogil:
    # Epoch of the first entry of that name in the log. A removal hides all of them, also those that
    # only snapshots need, so it has to stay as long as any of them may.
    cdef uint64_t pos = log_position(c, inode_at(c, ino).log_head_off, h.log_tail_off)
    cdef nv_xattr_entry* e
    while pos != h.log_tail_off:
        e = <nv_xattr_entry*>(c.pm + pos)
        if e.entry_type == ENTRY_XATTR and e.name_len == name_len and memcmp(e.data, name,
                                                                             name_len) == 0:
            return e.epoch_id
        pos = log_position(c, pos + e.slots * LINE_BYTES, h.log_tail_off)
    return 0


cdef int append_xattr(nv_ctx* c, nv_inode_header* h, uint64_t ino, const char* name,
                      uint32_t name_len,
                      const uint8_t* value, uint64_t value_len, uint64_t removed) noexcept nogil:
    cdef uint8_t buffer[4096]
    cdef nv_xattr_entry* e = <nv_xattr_entry*>buffer
    cdef int rc
    memset(buffer, 0, sizeof(buffer))
    e.entry_type = ENTRY_XATTR
    e.flags = ENTRY_FLAG_REMOVED if removed else 0
    e.slots = <uint8_t>((40 + name_len + value_len + 63) // 64)
    e.name_len = <uint8_t>name_len
    e.epoch_id = c.epoch_id
    e.ctime_ns = nv_file_time_ns()
    e.aux_epoch_id = oldest_set(c, h, ino, name, name_len) if removed else 0
    e.value_len = <uint32_t>value_len
    memcpy(buffer + 40, name, name_len)
    if value_len:
        memcpy(buffer + 40 + name_len, value, value_len)
    tx_open(c, ino, h.log_tail_off)
    rc = log_room(c, h, &c.slot.tx[0], e.slots)
    if rc:
        return rc
    log_append(c, &c.slot.tx[0], e)
    log_commit(c, inode_off(c, ino) + PI_LOG_TAIL, c.slot.tx[0].cur_tail)
    tx_apply(c, h, 0)
    return 0


cdef int xattr_set(nv_ctx* c, uint64_t ino, uint32_t generation, const char* name,
                   uint32_t name_len,
                   const uint8_t* value, uint64_t value_len, int flags) noexcept nogil:
    # flags: XATTR_CREATE, XATTR_REPLACE as setxattr(2); 4 removes.
    cdef nv_inode_header* h = NULL
    cdef uint64_t there
    cdef int rc
    if name_len > 255:
        return -ERANGE
    if name_len + value_len > XATTR_DATA_MAX:
        return -E2BIG
    rc = inode_lock(c, ino, generation, &h)
    if rc:
        return rc
    there = find_live(c, h, ino, name, name_len)
    if there and flags & XATTR_CREATE:
        rc = -EEXIST
    elif not there and flags & (XATTR_REPLACE | REMOVE):
        rc = -ENODATA
    else:
        rc = op_begin(c, OP_XATTR)
        if rc == 0:
            c.privileged = 1 if flags & REMOVE else 0
            rc = append_xattr(c, h, ino, name, name_len, value, value_len,
                              there if flags & REMOVE else 0)
            c.privileged = 0
            op_end(c)
    lock_drop(c, &h.lock)
    return rc

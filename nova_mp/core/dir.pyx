"""Directory hash tables: lookup, insertion, removal, growth."""

from libc.errno cimport ENOSPC
from libc.string cimport memcmp
from nova_mp.core.arch cimport nv_check, nv_fence_release, nv_name_hash, nv_store64
from nova_mp.core.dram cimport (BUILD_NEW, BUILD_NONE, BUILD_OLD, BUILD_SWITCH, dram_off, nv_index,
                                nv_slot)
from nova_mp.core.index cimport (REF_BITS, REF_MASK, index_cell, index_get, index_next, index_prune,
                                 index_reserve, make_ref, ref_off)
from nova_mp.core.pmem cimport fail_point
from nova_mp.core.sync cimport seq_begin, seq_end


cdef inline uint64_t tag_of(const char* name, uint32_t name_len) noexcept nogil:
    return nv_name_hash(name, name_len) & ((<uint64_t>1 << DIR_TAG_BITS) - 1)


cdef inline bint same_name(nv_ctx* c, uint64_t off, const char* name,
                           uint32_t name_len) noexcept nogil:
    # `off` may be stale: it is checked before it is followed.
    if off == 0 or off > c.a.pm_bytes - 4096:
        return False
    return (dentry_at(c, off).name_len == name_len
            and memcmp(dentry_at(c, off).name, name, name_len) == 0)


cdef uint64_t dir_lookup(nv_ctx* c, nv_inode_header* h, const char* name,
                         uint32_t name_len) noexcept nogil:
    # Offset of the dentry of that name, or 0. Optimistic: the caller checks the seq.
    cdef uint64_t tag, mask, pos, word, left
    if h.dir_log2 == 0 or h.dir_log2 > DIR_TAG_BITS:
        return 0
    tag = tag_of(name, name_len)
    mask = (<uint64_t>1 << h.dir_log2) - 1
    pos = tag & mask
    left = mask + 1
    while left:
        word = index_get(c.dram, c.a.dram_bytes, &h.index, pos)
        if word == 0:
            return 0
        if word >> REF_BITS == tag and same_name(c, ref_off(word), name, name_len):
            return ref_off(word)
        pos = (pos + 1) & mask
        left -= 1
    return 0


cdef void table_put(nv_ctx* c, nv_index* ix, uint64_t mask, uint64_t word) noexcept nogil:
    cdef uint64_t pos = (word >> REF_BITS) & mask
    cdef uint64_t* cell = index_cell(c, ix, pos)
    while cell[0] > DIR_TOMB:
        pos = (pos + 1) & mask
        cell = index_cell(c, ix, pos)
    nv_store64(cell, word)


cdef int dir_reserve(nv_ctx* c, nv_inode_header* h, uint32_t names) noexcept nogil:
    # Room for `names` more names (DIR-2). The new table is built in the slot, so that a repairer
    # finds and frees it if the builder dies.
    cdef nv_slot* s = c.slot
    cdef uint64_t cells = <uint64_t>1 << h.dir_log2 if h.dir_log2 else 0
    cdef uint64_t need = h.blocks + names
    cdef uint64_t log2 = 3
    cdef uint64_t pos, word
    cdef int rc
    if (need + h.tombs) * 4 <= cells * 3:
        return 0
    # At most half full afterwards; a table full of tombs is rebuilt at its size.
    while (<uint64_t>1 << log2) < need * 2:
        log2 += 1
    if log2 > DIR_TAG_BITS:
        return -ENOSPC
    s.build_phase = BUILD_NEW
    rc = index_reserve(c, NULL, &s.build, 0, (<uint64_t>1 << log2) - 1)
    if rc:
        build_finish(c)
        return rc
    pos = index_next(c, &h.index, 0, cells)
    while pos < cells:
        word = index_cell(c, &h.index, pos)[0]
        if word > DIR_TOMB:
            table_put(c, &s.build, (<uint64_t>1 << log2) - 1, word)
        pos = index_next(c, &h.index, pos + 1, cells)
    s.build_old = h.index
    s.build_log2 = log2
    s.build_off = dram_off(c, h)
    nv_fence_release()
    s.build_phase = BUILD_SWITCH
    build_finish(c)
    return 0


cdef void build_finish(nv_ctx* c) noexcept nogil:
    # The new table takes the place of the old one, which is freed; a table that is not ready is
    # freed itself. Also done by a repairer, from any point.
    cdef nv_slot* s = c.slot
    cdef nv_inode_header* h
    if s.build_phase == BUILD_SWITCH:
        h = <nv_inode_header*>(c.dram + s.build_off)
        if c.a.rebuild == 0:
            seq_begin(h)
        h.index = s.build
        h.dir_log2 = <unsigned char>s.build_log2
        h.tombs = 0
        fail_point(c, "dir.switched")
        if c.a.rebuild == 0:
            seq_end(h)
        nv_fence_release()
        s.build_phase = BUILD_OLD
    if s.build_phase == BUILD_OLD:
        index_prune(c, &s.build_old, 0)
        s.build.root = 0
        s.build.inline_word = 0
    else:
        index_prune(c, &s.build, 0)
    nv_fence_release()
    s.build_phase = BUILD_NONE


cdef void dir_add(nv_ctx* c, nv_inode_header* h, uint64_t dentry_off) noexcept nogil:
    # Idempotent. The directory's seq is odd, cells are reserved.
    cdef nv_dentry* d = dentry_at(c, dentry_off)
    cdef uint64_t mask = (<uint64_t>1 << h.dir_log2) - 1
    cdef uint64_t tag = tag_of(<const char*>d.name, d.name_len)
    cdef uint64_t word = tag << REF_BITS | make_ref(dentry_off)
    cdef uint64_t pos = tag & mask
    cdef uint64_t* cell
    cdef uint64_t* free_cell = NULL
    nv_check(h.dir_log2 != 0, "directory without a table", <long>dentry_off)
    while True:
        cell = index_cell(c, &h.index, pos)
        if cell[0] == word:
            return
        if cell[0] <= DIR_TOMB and free_cell == NULL:
            free_cell = cell
        if cell[0] == 0:
            break
        pos = (pos + 1) & mask
    if free_cell[0] == DIR_TOMB:
        h.tombs -= 1
    h.blocks += 1
    if dentry_type(d) == DT_DIR:
        h.nlink += 1
    nv_store64(free_cell, word)


cdef uint64_t dir_remove(nv_ctx* c, nv_inode_header* h, const char* name,
                         uint32_t name_len) noexcept nogil:
    # Idempotent. Offset of the dentry that was removed, 0 if there was none.
    cdef uint64_t mask, pos, word, tag
    cdef uint64_t* cell
    if h.dir_log2 == 0:
        return 0
    tag = tag_of(name, name_len)
    mask = (<uint64_t>1 << h.dir_log2) - 1
    pos = tag & mask
    while True:
        cell = index_cell(c, &h.index, pos)
        word = cell[0]
        if word == 0:
            return 0
        if word >> REF_BITS == tag and same_name(c, ref_off(word), name, name_len):
            break
        pos = (pos + 1) & mask
    h.blocks -= 1
    h.tombs += 1
    if dentry_type(dentry_at(c, ref_off(word))) == DT_DIR:
        h.nlink -= 1
    nv_store64(cell, DIR_TOMB)
    return ref_off(word)


cdef void dir_retarget(nv_ctx* c, nv_inode_header* h, uint64_t new_off) noexcept nogil:
    # Garbage collection copied a dentry: the cell of its name refers to the copy from now on, if it
    # referred to the original. Inode and epoch tell it from an older dentry of the same name that
    # only a snapshot needs. Idempotent.
    cdef nv_dentry* d = dentry_at(c, new_off)
    cdef nv_dentry* there
    cdef uint64_t mask = (<uint64_t>1 << h.dir_log2) - 1
    cdef uint64_t tag = tag_of(<const char*>d.name, d.name_len)
    cdef uint64_t pos = tag & mask
    cdef uint64_t* cell
    if h.dir_log2 == 0:
        return
    while True:
        cell = index_cell(c, &h.index, pos)
        if cell[0] == 0:
            return
        if cell[0] >> REF_BITS == tag and same_name(c, ref_off(cell[0]), <const char*>d.name,
                                                    d.name_len):
            there = dentry_at(c, ref_off(cell[0]))
            if there.ino == d.ino and there.epoch_id == d.epoch_id:
                nv_store64(cell, tag << REF_BITS | make_ref(new_off))
            return
        pos = (pos + 1) & mask


cdef void dir_recount(nv_ctx* c, nv_inode_header* h) noexcept nogil:
    # Counts of names, tombs and subdirectories again, from the cells.
    cdef uint64_t cells = <uint64_t>1 << h.dir_log2 if h.dir_log2 else 0
    cdef uint64_t pos = index_next(c, &h.index, 0, cells)
    cdef uint64_t word
    h.blocks = 0
    h.tombs = 0
    h.nlink = 2
    while pos < cells:
        word = index_cell(c, &h.index, pos)[0]
        if word == DIR_TOMB:
            h.tombs += 1
        else:
            h.blocks += 1
            if dentry_type(dentry_at(c, ref_off(word))) == DT_DIR:
                h.nlink += 1
        pos = index_next(c, &h.index, pos + 1, cells)

"""mkfs and mount: formatting an arena, building the DRAM segment from the logs."""

from libc.errno cimport EINVAL, ENOSPC
from libc.string cimport memcpy, memset, strncpy
from nova_mp.core.alloc cimport block_bitmap, blocks_mark, region_recount, regions_init
from nova_mp.core.pages cimport dpend_done, page_bitmap
from nova_mp.core.arch cimport nv_crc32c, nv_file_time_ns, nv_monotonic_ns, nv_store32
from nova_mp.core.dram cimport (DRAM_MAGIC, DRAM_PAGE, DRAM_VERSION, GROW_PAGES, MAX_SLOTS,
                                REBUILD_RESTORED, SLAB_CLASSES, SLOT_BYTES, STATE_MOUNTING, cpu_at,
                                nv_chunk, nv_cpu, nv_dram_header, nv_inode_header, nv_page_desc,
                                nv_snapshot, nv_table, table_at)
from nova_mp.core.index cimport index_cell, index_next, word_block
from nova_mp.core.inode cimport S_IFDIR, S_IFMT, evict, evict_reserve, rebuild
from nova_mp.core.itable cimport (PI_LOG_HEAD, chunk_attach, chunk_format, chunk_off_of, header_of,
                                  inode_at, inode_off)
from nova_mp.core.journal cimport journal_recover
from nova_mp.core.layout cimport (BLOCK_BYTES, BLOCK_SHIFT, CHUNK_BLOCKS, CHUNK_SLOTS, DATA_NR,
                                  ENTRY_SETATTR, ENTRY_SNAPSHOT_INFO, FIRST_FREE_INO,
                                  FORMAT_VERSION, INODE_BYTES, INODE_FREE, INODE_VALID,
                                  INO_CHUNK_SHIFT, INO_SLOT_BITS, LINE_BYTES, LOG_TAIL_OFF,
                                  MAGIC_CHUNK, MAGIC_LOG_PAGE, MAGIC_SUPERBLOCK, MAX_CHUNKS,
                                  MAX_CPUS, MOUNT_CLEAN, MOUNT_DIRTY, ROOT_INO, SNAPSHOT_INO,
                                  SS_FILE_WRITE, TABLE_HEADS_NR, nv_chunk_header, nv_entry_header,
                                  nv_inode, nv_list_entry, nv_log_page_tail, nv_setattr_entry,
                                  nv_snapshot_info, nv_superblock, nv_table_head)
from nova_mp.core.listsave cimport lists_forget, lists_restore
from nova_mp.core.log cimport log_position, log_write_entry, page_of, page_tail
from nova_mp.core.pmem cimport (block_off, pm_copy, pm_persist, pm_word, pm_zero, superblock_newest,
                                superblock_write)
from nova_mp.core.snaplist cimport list_entries, list_tail, spare_drop
from nova_mp.core.snaptable cimport descriptor_new, list_of, snap_at, table_insert, table_room

cdef extern from "<errno.h>":
    enum: EUCLEAN


# ---- mkfs ---------------------------------------------------------------------------------------

cdef void reserved_inode(nv_ctx* c, uint64_t chunk_off, uint64_t ino, uint32_t mode,
                         uint64_t block) noexcept nogil:
    # An inode that exists from the beginning, with one log page.
    cdef nv_inode pi
    cdef nv_setattr_entry entry
    cdef nv_log_page_tail tail
    cdef uint64_t page = block_off(block)
    cdef uint64_t now = nv_file_time_ns()
    cdef uint32_t crc
    memset(&tail, 0, sizeof(tail))
    tail.magic = MAGIC_LOG_PAGE
    tail.ino = ino
    tail.num_entries = 1
    pm_zero(c, page, BLOCK_BYTES)
    pm_copy(c, page + LOG_TAIL_OFF, &tail, sizeof(tail))
    memset(&entry, 0, sizeof(entry))
    entry.entry_type = ENTRY_SETATTR
    entry.slots = 1
    entry.epoch_id = 1
    entry.mode = mode
    entry.nlink = 2 if mode & S_IFMT == S_IFDIR else 1
    entry.mtime_ns = now
    entry.ctime_ns = now
    entry.atime_ns = now
    log_write_entry(c, page, &entry)
    pm_persist(c, page, BLOCK_BYTES)
    memset(&pi, 0, sizeof(pi))
    pi.state = INODE_VALID
    pi.ino = ino
    pi.log_head_off = page
    pi.log_tail_off = page + LINE_BYTES
    pi.create_epoch_id = 1
    pi.birth_time_ns = now
    pi.generation = 1
    pi.mode = mode
    crc = nv_crc32c(0xFFFFFFFF, &pi.ino, 8)
    crc = nv_crc32c(crc, &pi.create_epoch_id, 8)
    crc = nv_crc32c(crc, &pi.birth_time_ns, 12)
    pi.csum = ~nv_crc32c(crc, &pi.mode, 4)
    pm_copy(c, chunk_off + ino * INODE_BYTES, &pi, sizeof(pi))
    pm_persist(c, chunk_off + ino * INODE_BYTES, sizeof(pi))


cdef int arena_format(nv_ctx* c, uint32_t cpus, uint64_t inode_limit, const char* label,
                      const unsigned char* uuid) noexcept nogil:
    # An empty file system. The superblock comes last: until then there is none.
    cdef nv_superblock sb
    cdef nv_table_head head
    cdef uint64_t chunk = block_off(DATA_NR)
    pm_zero(c, c.a.pm_bytes - BLOCK_BYTES, BLOCK_BYTES)
    pm_zero(c, 0, block_off(DATA_NR))
    chunk_format(c, chunk, 0, 0)
    reserved_inode(c, chunk, ROOT_INO, 0o040755, DATA_NR + CHUNK_BLOCKS)
    reserved_inode(c, chunk, SNAPSHOT_INO, 0o100600, DATA_NR + CHUNK_BLOCKS + 1)
    memset(&head, 0, sizeof(head))
    head.first_chunk_off = chunk
    pm_copy(c, block_off(TABLE_HEADS_NR), &head, sizeof(head))
    pm_persist(c, block_off(TABLE_HEADS_NR), sizeof(head))
    memset(&sb, 0, sizeof(sb))
    sb.magic = MAGIC_SUPERBLOCK
    sb.version = FORMAT_VERSION
    sb.block_bytes = BLOCK_BYTES
    sb.size_bytes = c.a.pm_bytes
    sb.epoch_id = 1
    sb.create_time_ns = nv_file_time_ns()
    sb.inode_limit = inode_limit
    sb.mount_state = MOUNT_CLEAN
    sb.cpus = cpus
    memcpy(sb.uuid, uuid, 16)
    strncpy(<char*>sb.label, label, 31)
    superblock_write(c, &sb)
    return 0


# ---- the DRAM segment ---------------------------------------------------------------------------

cdef uint64_t base_bytes(uint64_t pm_bytes, uint64_t limit_bytes, uint32_t cpus) noexcept nogil:
    # Bytes of the fixed parts: what must be reserved before dram_format().
    cdef uint64_t pages = limit_bytes // DRAM_PAGE
    cdef uint64_t n = DRAM_PAGE + MAX_SLOTS * SLOT_BYTES + <uint64_t>cpus * DRAM_PAGE
    n += MAX_CPUS * sizeof(nv_table) + (pm_bytes // BLOCK_BYTES + 63) // 64 * 8
    n += (pages + 63) // 64 * 8 + pages * sizeof(nv_page_desc)
    return (n + DRAM_PAGE - 1) // DRAM_PAGE * DRAM_PAGE


cdef void dram_format(nv_arena* a, uint32_t cpus, uint64_t limit_bytes) noexcept nogil:
    cdef nv_dram_header* h = <nv_dram_header*>a.dram
    cdef uint64_t pages = limit_bytes // DRAM_PAGE
    cdef uint64_t blocks = a.pm_bytes // BLOCK_BYTES
    cdef uint64_t base = base_bytes(a.pm_bytes, limit_bytes, cpus)
    memset(a.dram, 0, base)
    h.magic = DRAM_MAGIC
    h.version = DRAM_VERSION
    h.state = STATE_MOUNTING
    h.cpus = cpus
    h.limit_bytes = limit_bytes
    h.pm_bytes = a.pm_bytes
    h.num_blocks = blocks
    h.slots_off = DRAM_PAGE
    h.cpus_off = h.slots_off + MAX_SLOTS * SLOT_BYTES
    h.tables_off = h.cpus_off + <uint64_t>cpus * DRAM_PAGE
    h.block_bitmap_off = h.tables_off + MAX_CPUS * sizeof(nv_table)
    h.page_bitmap_off = h.block_bitmap_off + (blocks + 63) // 64 * 8
    h.page_desc_off = h.page_bitmap_off + (pages + 63) // 64 * 8
    h.pages.first = base // DRAM_PAGE
    h.pages.end = h.pages.first + GROW_PAGES
    if h.pages.end > pages - 1:
        h.pages.end = pages - 1
    h.pages.free = h.pages.end - h.pages.first
    h.pages.cursor = h.pages.first
    h.pages.reserve = 16
    h.pages_reserved = h.pages.end
    a.hdr = h


# ---- mount --------------------------------------------------------------------------------------

cdef int fail(nv_mount_error* error, int rc, const char* what, uint64_t where) noexcept nogil:
    error.what = what
    error.where = where
    return rc


cdef int recover_superblock(nv_ctx* c, nv_superblock* sb, nv_mount_error* error) noexcept nogil:
    cdef const nv_superblock* found = superblock_newest(c)
    if found == NULL:
        return fail(error, -EUCLEAN, "both superblocks are damaged", 0)
    if found.version != FORMAT_VERSION or found.block_bytes != BLOCK_BYTES:
        return fail(error, -EINVAL, "unknown format version", found.version)
    if found.size_bytes != c.a.pm_bytes:
        return fail(error, -EUCLEAN, "the superblock gives another size", found.size_bytes)
    sb[0] = found[0]
    return 0


cdef bint chunk_sane(nv_ctx* c, uint64_t off, uint32_t table, uint32_t chunk) noexcept nogil:
    cdef nv_chunk_header* h = <nv_chunk_header*>(c.pm + off)
    if (off & 4095 or off < block_off(DATA_NR)
            or off > c.a.pm_bytes - (CHUNK_BLOCKS + 1) * BLOCK_BYTES):
        return False
    return (h.magic == MAGIC_CHUNK and h.table == table and h.chunk == chunk
            and h.csum == ~nv_crc32c(nv_crc32c(0xFFFFFFFF, &h.magic, 4), &h.table, 8))


cdef int recover_table(nv_ctx* c, uint32_t table, nv_mount_error* error) noexcept nogil:
    # Attaches the table's chunks; which slots are in use is set as inodes are rebuilt.
    cdef uint64_t link_off = block_off(TABLE_HEADS_NR) + <uint64_t>table * sizeof(nv_table_head)
    cdef uint64_t off = pm_word(c, link_off)
    cdef uint32_t chunk = 0
    table_at(c, table).last_link_off = link_off
    while off:
        if chunk >= MAX_CHUNKS or not chunk_sane(c, off, table, chunk):
            return fail(error, -EUCLEAN, "damaged inode-table chunk", off)
        if blocks_mark(c, off >> BLOCK_SHIFT, CHUNK_BLOCKS):
            return fail(error, -EUCLEAN, "inode-table chunk has a second owner", off)
        if chunk_attach(c, table, chunk, off):
            return fail(error, -ENOSPC, "no memory for inode headers", off)
        off = pm_word(c, off + 16)
        chunk += 1
    return 0


cdef int mark_inode(nv_ctx* c, nv_inode_header* h, uint64_t ino,
                    nv_mount_error* error) noexcept nogil:
    # REC-1 for one inode that lives on: its log pages and its data.
    cdef uint64_t page = pm_word(c, inode_off(c, ino) + PI_LOG_HEAD)
    cdef uint64_t last = page_of(h.log_tail_off - 1)
    cdef uint64_t pos
    while True:
        if blocks_mark(c, page >> BLOCK_SHIFT, 1):
            return fail(error, -EUCLEAN, "log page has a second owner", page)
        if page == last:
            break
        page = page_tail(c, page).next_page_off
    if h.mode & S_IFMT == S_IFDIR:
        return 0
    pos = index_next(c, &h.index, 0, <uint64_t>-1)
    while pos != <uint64_t>-1:
        if blocks_mark(c, word_block(index_cell(c, &h.index, pos)[0]), 1):
            return fail(error, -EUCLEAN, "data block of an inode has a second owner", ino)
        pos = index_next(c, &h.index, pos + 1, <uint64_t>-1)
    return 0


cdef int recover_inode(nv_ctx* c, uint64_t ino, nv_chunk* d, nv_mount_error* error) noexcept nogil:
    cdef nv_inode_header* h = header_of(c, ino)
    cdef nv_inode* pi = inode_at(c, ino)
    cdef uint64_t bit = ino & (CHUNK_SLOTS - 1)
    cdef uint32_t table = <uint32_t>((ino >> INO_SLOT_BITS) & (MAX_CPUS - 1))
    cdef int rc = rebuild(c, h, ino, &c.hdr.recovery_entries)
    if rc:
        return fail(error, rc,
                    "damaged inode or log" if rc == -EUCLEAN else "no memory for an inode", ino)
    c.hdr.recovery_inodes += 1
    if pi.delete_epoch_id:
        if evict_reserve(c, h):
            return fail(error, -ENOSPC, "no memory for snapshot lists", ino)
        evict(c, h, ino)
        if h.mode == 0:
            return 0
    rc = mark_inode(c, h, ino, error)
    if rc:
        return rc
    d.bitmap[bit >> 6] |= <uint64_t>1 << (bit & 63)
    if ino >= FIRST_FREE_INO:
        cpu_at(c, table % c.hdr.cpus).inodes_used += 1
    return 0


cdef int recover_snapshots(nv_ctx* c, nv_mount_error* error) noexcept nogil:
    # The snapshot table, from the snapshot inode's log.
    cdef nv_chunk* d = <nv_chunk*>(c.dram + chunk_off_of(c, SNAPSHOT_INO))
    cdef nv_inode_header* h = header_of(c, SNAPSHOT_INO)
    cdef nv_snapshot_info* info
    cdef uint64_t pos, descriptor
    cdef int rc = recover_inode(c, SNAPSHOT_INO, d, error)
    if rc:
        return rc
    pos = log_position(c, inode_at(c, SNAPSHOT_INO).log_head_off, h.log_tail_off)
    while pos != h.log_tail_off:
        info = <nv_snapshot_info*>(c.pm + pos)
        if info.entry_type == ENTRY_SNAPSHOT_INFO and info.deleted == 0:
            descriptor = 0 if table_room(c) else descriptor_new(c)
            if descriptor == 0:
                return fail(error, -ENOSPC, "no memory for the snapshot table", info.epoch_id)
            c.slot.arg = descriptor
            dpend_done(c)
            table_insert(c, descriptor, pos)
            h.blocks += 1
        pos = log_position(c, pos + (<nv_entry_header*>info).slots * LINE_BYTES, h.log_tail_off)
    c.slot.arg = 0
    return 0


cdef void recover_lists(nv_ctx* c, const nv_superblock* sb) noexcept nogil:
    # After a clean unmount the lists are restored; otherwise rebuilding the inodes records them
    # again.
    if sb.mount_state == MOUNT_CLEAN and sb.lists_saved and lists_restore(c):
        c.a.rebuild = REBUILD_RESTORED
        c.hdr.recovery_restored = 1


cdef int recover_inodes(nv_ctx* c, nv_mount_error* error) noexcept nogil:
    cdef uint32_t table
    cdef uint64_t chunk, slot, ino
    cdef nv_chunk* d
    cdef nv_inode* pi
    cdef int rc
    for table in range(MAX_CPUS):
        for chunk in range(table_at(c, table).num_chunks):
            ino = chunk << INO_CHUNK_SHIFT | <uint64_t>table << INO_SLOT_BITS
            d = <nv_chunk*>(c.dram + chunk_off_of(c, ino))
            for slot in range(1, CHUNK_SLOTS):
                pi = <nv_inode*>(c.pm + d.pmem_off + slot * INODE_BYTES)
                if pi.state == INODE_FREE or ino + slot == SNAPSHOT_INO:
                    continue
                if pi.state != INODE_VALID:
                    return fail(error, -EUCLEAN, "inode in an unknown state", ino + slot)
                rc = recover_inode(c, ino + slot, d, error)
                if rc:
                    return rc
    return 0


cdef int mark_list(nv_ctx* c, uint64_t page, nv_mount_error* error) noexcept nogil:
    cdef nv_list_entry* e
    cdef uint32_t k
    while page:
        for k in range(list_tail(c, page).num_entries):
            e = &list_entries(c, page)[k]
            if e.entry_type == SS_FILE_WRITE and blocks_mark(c, e.nvmm, e.num_pages):
                return fail(error, -EUCLEAN, "block held by a snapshot has a second owner", e.nvmm)
        page = list_tail(c, page).next_page_off
    return 0


cdef int mark_lists(nv_ctx* c, nv_mount_error* error) noexcept nogil:
    # REC-1 for what only snapshots hold.
    cdef uint32_t i, cpu
    cdef int rc = 0
    for i in range(c.hdr.snap_count):
        for cpu in range(c.hdr.cpus):
            if rc == 0 and snap_at(c, i) != NULL:
                rc = mark_list(c, list_of(snap_at(c, i), cpu).head_off, error)
    return rc


cdef void mark_head(nv_ctx* c) noexcept nogil:
    # The arena's head, the superblock copy and the bitmap's padding are in use for good.
    cdef uint64_t* bitmap = block_bitmap(c)
    cdef uint64_t nr
    for nr in range(DATA_NR):
        bitmap[nr >> 6] |= <uint64_t>1 << (nr & 63)
    for nr in range(c.hdr.num_blocks - 1, (c.hdr.num_blocks + 63) // 64 * 64):
        bitmap[nr >> 6] |= <uint64_t>1 << (nr & 63)


cdef int recover(nv_ctx* c, nv_mount_error* error) noexcept nogil:
    # With c.a.rebuild set and a fresh DRAM segment. 0, or -errno and why.
    cdef nv_superblock sb
    cdef uint64_t start = nv_monotonic_ns()
    cdef uint32_t i
    cdef int rc = recover_superblock(c, &sb, error)
    if rc:
        return rc
    mark_head(c)
    regions_init(c)
    c.hdr.inode_limit = sb.inode_limit
    c.hdr.gate = sb.epoch_id << 1
    c.epoch_id = sb.epoch_id
    for i in range(MAX_CPUS):
        if journal_recover(c, i) < 0:
            return fail(error, -EUCLEAN, "damaged journal", i)
    for i in range(MAX_CPUS):
        rc = recover_table(c, i, error)
        if rc:
            return rc
    if table_at(c, 0).num_chunks == 0:
        return fail(error, -EUCLEAN, "no inode table", 0)
    rc = recover_snapshots(c, error)
    if rc == 0 and c.hdr.snap_newest >= sb.epoch_id:
        sb.epoch_id = c.hdr.snap_newest + 1
        c.hdr.gate = sb.epoch_id << 1
    if rc == 0:
        recover_lists(c, &sb)
        rc = recover_inodes(c, error)
    if rc == 0 and header_of(c, ROOT_INO).mode & S_IFMT != S_IFDIR:
        rc = fail(error, -EUCLEAN, "no root directory", ROOT_INO)
    if rc == 0:
        rc = mark_lists(c, error)
    if rc:
        return rc
    spare_drop(c)
    for i in range(c.hdr.cpus):
        region_recount(c, &cpu_at(c, i).blocks, block_bitmap(c))
    c.hdr.recovery_clean = 1 if sb.mount_state == MOUNT_CLEAN else 0
    sb.mount_state = MOUNT_DIRTY
    sb.lists_saved = 0
    sb.mount_count += 1
    sb.mount_time_ns = nv_file_time_ns()
    superblock_write(c, &sb)
    # SAVE-2: after the superblock, which stops saying that they count.
    lists_forget(c)
    c.hdr.mount_time_ns = sb.mount_time_ns
    c.hdr.recovery_ns = nv_monotonic_ns() - start
    return 0

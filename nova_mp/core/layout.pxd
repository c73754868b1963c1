# ON-MEDIA FORMAT. The only declaration of what a PMEM arena looks like.
#
# Purpose    Every packed struct, enumeration and address that is persistent. Native code cimports
#            it; `layout_fields.py` parses this very file, so the plain-Python tools (fsck, dump)
#            and docs/FORMAT.md see the same offsets without loading native code. `layout.pyx`
#            compares the parsed sizes with the compiler's at import.
# Structure  Arena = head (superblock, inode-table heads, journals), data, superblock copy.
#            All references are byte offsets from the arena's start (`_off`) or block numbers
#            (`_nr`); 0 means none, because block 0 is the superblock.
# Invariants
#   LAY-1  Every struct size divides 64 or is a multiple of 64; no log entry crosses a log page.
#   LAY-2  A field marked "volatile" is a hint for garbage collection, is outside every checksum,
#          and is computed again when a log is replayed.
#   LAY-3  Words that commit something (log_tail, state, journal commit, next_page_off, deleted) are
#          8 bytes, 8-aligned, and stored with one store.
#
# The parser understands: `NAME = integer expression   # meaning` inside `cdef enum`, and
# `type name[count]   # meaning` inside `cdef packed struct`. Keep to that.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    MAGIC_SUPERBLOCK = 0x41564F4E    # "NOVA", little endian
    MAGIC_LOG_PAGE = 0x474F4C4E      # "NLOG"
    MAGIC_CHUNK = 0x4B48434E         # "NCHK"
    MAGIC_LIST_PAGE = 0x54534C4E     # "NLST"
    FORMAT_VERSION = 1               # any other is refused at mount

    BLOCK_BYTES = 4096               # allocation unit of the arena
    BLOCK_SHIFT = 12                 # log2 of BLOCK_BYTES
    LINE_BYTES = 64                  # flush unit; also the log's slot size
    MAX_CPUS = 128                   # emulated CPUs, journals and inode tables
    MAX_BLOCKS = 1 << 28             # 1 TiB: block numbers take 28 bits in index words
    MIN_BLOCKS = 512                 # 2 MiB: smallest arena that mkfs accepts

    SUPERBLOCK_OFF = 0               # primary superblock; the copy is the arena's last block
    TABLE_HEADS_NR = 1               # first of the blocks with 128 inode-table heads
    TABLE_HEADS_BLOCKS = 2           # 128 heads of 64 bytes
    JOURNALS_NR = 4                  # first of 128 journal pages, one a CPU
    DATA_NR = 132                    # first block that the allocator may hand out

    INODE_BYTES = 128                # an inode slot
    CHUNK_BLOCKS = 16                # an inode-table chunk: 64 KiB, 512 slots, slot 0 its header
    CHUNK_SLOTS = 512                # slots a chunk, the header included
    INO_SLOT_BITS = 9                # ino = chunk << 16 | table << 9 | slot
    INO_TABLE_BITS = 7               # tables, one a CPU
    INO_CHUNK_SHIFT = 16             # where the chunk number starts in an ino
    MAX_CHUNKS = 1 << 15             # chunks a table, at most

    ROOT_INO = 1                     # "/"
    SNAPSHOT_INO = 6                 # its log holds the snapshot-info entries
    FIRST_FREE_INO = 32              # 1..31 of table 0, chunk 0 are reserved

    LOG_SLOTS = 63                   # 64-byte slots in a log page
    LOG_TAIL_OFF = 4064              # offset of the page tail in a log page
    NAME_MAX_BYTES = 255             # longest file name
    LINK_MAX = 65000                 # most links to a file
    SYMLINK_MAX_BYTES = 4095         # longest symbolic-link target
    XATTR_DATA_MAX = 3928            # name and value of one extended attribute together

    JOURNAL_WORDS = 252              # most words of one transaction

    ENTRY_WRITE = 1                  # file write
    ENTRY_DENTRY = 2                 # directory entry, added or removed
    ENTRY_SETATTR = 3                # all attributes of an inode
    ENTRY_LINK_CHANGE = 4            # link count and ctime
    ENTRY_MMAP_WRITE = 5             # pages that stay where they are, copied for older snapshots
    ENTRY_SNAPSHOT_INFO = 6          # a snapshot
    ENTRY_NEXT_PAGE = 7              # nothing more in this page: go on at the next
    ENTRY_XATTR = 8                  # extended attribute, set or removed

    ENTRY_FLAG_SIZE = 1              # setattr: truncates to `size`; pages past it are gone
    ENTRY_FLAG_REMOVED = 2           # dentry, xattr: removes what an older entry added

    INODE_FREE = 0                   # state word: slot unused
    INODE_VALID = 1                  # state word: in use (dead, but kept, if delete_epoch_id != 0)

    MOUNT_CLEAN = 1                  # superblock: unmounted in order
    MOUNT_DIRTY = 2                  # superblock: mounted, or crashed while mounted

    SS_INODE = 1                     # snapshot-list entry: a deleted inode
    SS_FILE_WRITE = 2                # snapshot-list entry: blocks that were superseded
    LIST_ENTRIES = 127               # entries in a snapshot-list page


cdef packed struct nv_superblock:
    uint32_t magic                   # MAGIC_SUPERBLOCK
    uint32_t csum                    # CRC32C of the struct with this field zero
    uint32_t version                 # FORMAT_VERSION
    uint32_t block_bytes             # BLOCK_BYTES
    uint64_t sequence                # the valid copy with the larger one counts
    uint64_t size_bytes              # arena size, a multiple of block_bytes
    uint64_t epoch_id                # current epoch as of the last snapshot create
    uint64_t create_time_ns          # mkfs, nanoseconds since 1970
    uint64_t mount_time_ns           # last mount, nanoseconds since 1970
    uint64_t mount_count             # mounts so far
    uint64_t inode_limit             # most inodes in use; 0 = bounded by space only
    uint64_t lists_saved             # 1: all snapshot lists were saved at unmount
    uint32_t mount_state             # MOUNT_CLEAN or MOUNT_DIRTY
    uint32_t cpus                    # emulated CPUs at mkfs (a default for start)
    uint8_t uuid[16]                 # random identity of the arena
    uint8_t label[32]                # name given at mkfs, UTF-8, zero padded
    uint8_t reserved[376]            # zero


cdef packed struct nv_table_head:
    uint64_t first_chunk_off         # first chunk of this inode table, 0 if none
    uint8_t reserved[56]             # zero


cdef packed struct nv_chunk_header:
    uint32_t magic                   # MAGIC_CHUNK
    uint32_t csum                    # CRC32C of magic, table, chunk
    uint32_t table                   # inode table (CPU) it belongs to
    uint32_t chunk                   # number of the chunk in its table, from 0
    uint64_t next_chunk_off          # next chunk of the table, 0 at the end
    uint8_t reserved[104]            # zero


cdef packed struct nv_inode:
    uint64_t state                   # INODE_FREE or INODE_VALID; set by the journal
    uint64_t ino                     # inode number of this slot
    uint64_t log_head_off            # first log page
    uint64_t log_tail_off            # end of the committed log: THE commit point
    uint64_t create_epoch_id         # epoch of its creation
    uint64_t delete_epoch_id         # epoch of its last unlink, 0 while linked
    uint64_t birth_time_ns           # creation, nanoseconds since 1970
    uint32_t generation              # grows each time the slot is used again
    uint32_t csum                    # CRC32C: ino, create_epoch_id, birth_time_ns, generation, mode
    uint32_t mode                    # file type and first permissions (today's are in the log)
    uint32_t rdev                    # zero (no device files)
    uint8_t reserved[56]             # zero


cdef packed struct nv_log_page_tail:
    uint64_t next_page_off           # next log page, 0 if none
    uint32_t magic                   # MAGIC_LOG_PAGE
    uint16_t num_entries             # entries appended (volatile)
    uint16_t invalid_entries         # of them superseded (volatile)
    uint64_t ino                     # owner of the log
    uint64_t dead_epoch_id           # newest epoch that superseded one of them (volatile)


cdef packed struct nv_entry_header:
    uint8_t entry_type               # ENTRY_*
    uint8_t flags                    # ENTRY_FLAG_*
    uint8_t slots                    # size in 64-byte slots
    uint8_t name_len                 # bytes of name, 0 if it has none
    uint32_t csum                    # CRC32C of the entry without csum and volatile fields
    uint64_t epoch_id                # epoch of the operation


cdef packed struct nv_write_entry:
    uint8_t entry_type               # ENTRY_WRITE
    uint8_t flags                    # zero
    uint8_t slots                    # 1
    uint8_t name_len                 # zero
    uint32_t csum                    # CRC32C of bytes 0..3 and 8..47
    uint64_t epoch_id                # epoch of the write
    uint64_t pgoff                   # first file page
    uint32_t block_nr                # first data block
    uint32_t num_pages               # pages, contiguous in file and arena
    uint64_t size                    # file size after the write, bytes
    uint64_t mtime_ns                # modification and change time
    uint32_t invalid_pages           # pages superseded since (volatile)
    uint32_t padding                 # zero
    uint64_t dead_epoch_id           # newest epoch that superseded a page (volatile)


cdef packed struct nv_dentry:
    uint8_t entry_type               # ENTRY_DENTRY
    uint8_t flags                    # ENTRY_FLAG_REMOVED or zero
    uint8_t slots                    # 1..5
    uint8_t name_len                 # 1..255
    uint32_t csum                    # CRC32C of bytes 0..3, 8..31 and the name (removed: aux too)
    uint64_t epoch_id                # epoch of the operation
    uint64_t ino                     # inode, low 56 bits; top 8 bits: file type as in dirent's DT_*
    uint64_t mtime_ns                # the directory's modification time after it
    uint64_t aux_epoch_id            # added: epoch of removal (volatile); removed: epoch of the add
    uint8_t name[24]                 # name_len bytes, going on over the following slots


cdef packed struct nv_setattr_entry:
    uint8_t entry_type               # ENTRY_SETATTR
    uint8_t flags                    # ENTRY_FLAG_SIZE or zero
    uint8_t slots                    # 1
    uint8_t name_len                 # zero
    uint32_t csum                    # CRC32C of bytes 0..3 and 8..63
    uint64_t epoch_id                # epoch of the operation
    uint32_t mode                    # file type and permissions
    uint32_t nlink                   # links (a directory's are counted, not stored)
    uint32_t uid                     # owner
    uint32_t gid                     # group
    uint64_t size                    # bytes
    uint64_t mtime_ns                # modification time
    uint64_t ctime_ns                # change time
    uint64_t atime_ns                # access time, as set by utime; reads do not move it


cdef packed struct nv_link_change_entry:
    uint8_t entry_type               # ENTRY_LINK_CHANGE
    uint8_t flags                    # zero
    uint8_t slots                    # 1
    uint8_t name_len                 # zero
    uint32_t csum                    # CRC32C of bytes 0..3 and 8..63
    uint64_t epoch_id                # epoch of the operation
    uint64_t ctime_ns                # change time
    uint32_t nlink                   # links after the operation
    uint8_t reserved[36]             # zero


cdef packed struct nv_mmap_write_entry:
    uint8_t entry_type               # ENTRY_MMAP_WRITE
    uint8_t flags                    # zero
    uint8_t slots                    # 1
    uint8_t name_len                 # zero
    uint32_t csum                    # CRC32C of bytes 0..3 and 8..47
    uint64_t epoch_id                # epoch in which the pages became writable in place
    uint64_t pgoff                   # first file page
    uint32_t block_nr                # first data block: the file's before and after
    uint32_t num_pages               # pages, contiguous in file and arena
    uint32_t kept_block_nr           # first block of the copy that older snapshots read instead
    uint32_t reserved                # zero
    uint64_t create_epoch_id         # epoch of what was copied
    uint32_t invalid_pages           # pages superseded since (volatile)
    uint32_t padding                 # zero
    uint64_t dead_epoch_id           # newest epoch that superseded a page (volatile)


cdef packed struct nv_snapshot_info:
    uint8_t entry_type               # ENTRY_SNAPSHOT_INFO
    uint8_t flags                    # zero
    uint8_t slots                    # 1..5
    uint8_t name_len                 # 0..255
    uint32_t csum                    # CRC32C of bytes 0..3, 8..23 and the name
    uint64_t epoch_id                # the snapshot's id: the epoch that it closes
    uint64_t create_time_ns          # nanoseconds since 1970
    uint64_t deleted                 # 1 once deleted: the commit point of delete (volatile)
    uint64_t nvmm_page_off           # 128 nv_snapshot_nvmm_list: saved lists, or 0 (volatile)
    uint8_t name[24]                 # name_len bytes, going on over the following slots


cdef packed struct nv_xattr_entry:
    uint8_t entry_type               # ENTRY_XATTR
    uint8_t flags                    # ENTRY_FLAG_REMOVED or zero
    uint8_t slots                    # 1..62
    uint8_t name_len                 # 1..255
    uint32_t csum                    # CRC32C of bytes 0..3, 8..23, value_len on (removed: aux too)
    uint64_t epoch_id                # epoch of the operation
    uint64_t ctime_ns                # change time
    uint64_t aux_epoch_id            # as in a dentry
    uint32_t value_len               # bytes of value
    uint32_t padding                 # zero
    uint8_t data[24]                 # name, then value, going on over the following slots


cdef packed struct nv_journal_record:
    uint64_t word_off                # arena offset of the word to store
    uint64_t value                   # what to store there


cdef packed struct nv_journal:
    uint64_t commit                  # low 32: records, high 32: CRC32C of them; 0 = empty
    uint64_t reserved                # zero
    uint8_t records[4080]            # nv_journal_record, JOURNAL_WORDS of them at most


cdef packed struct nv_list_entry:
    uint8_t entry_type               # SS_INODE or SS_FILE_WRITE
    uint8_t flags                    # zero
    uint16_t padding                 # zero
    uint32_t num_pages               # blocks held (SS_INODE: pages of its log)
    uint64_t nvmm                    # first block number, or inode number
    uint64_t create_epoch_id         # epoch in which they were born
    uint64_t delete_epoch_id         # epoch in which they were superseded


cdef packed struct nv_list_page_tail:
    uint64_t next_page_off           # next page of the list, 0 at the end
    uint32_t magic                   # MAGIC_LIST_PAGE
    uint32_t num_entries             # entries in this page
    uint64_t epoch_id                # snapshot whose list it is
    uint32_t csum                    # CRC32C of the entries in use (saved pages)
    uint32_t padding                 # zero


cdef packed struct nv_snapshot_nvmm_list:
    uint64_t num_pages               # pages of this CPU's list
    uint64_t head_off                # first page
    uint64_t tail_off                # last page
    uint64_t csum                    # CRC32C of the three fields above

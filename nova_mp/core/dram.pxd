# Shared volatile structs (in the DRAM segment) and the private structs that lead to them.
#
# Purpose    Everything that is built at mount and lost in a power failure: process slots, CPU
#            structures, inode headers, the snapshot table. Offsets are bytes from the start of the
#            DRAM segment; `_off` fields that point into PMEM say so.
# Structure  header page | slots | CPU pages | tables | block bitmap | page bitmap | page
#            descriptors | pages handed out by the DRAM page allocator (the only part that grows).
# Who writes A slot: its owner, or whoever repairs it. A CPU page: holders of the lock that stands
#            at the head of the group. An inode header: the holder of its lock; readers use `seq`.
# Invariants
#   DRAM-1  Everything here can be rebuilt from PMEM; nothing is needed after a power failure.
#   DRAM-2  A lock word holds 0, or the slot number + 1 of its owner, with LOCK_WAITERS or without.
#   DRAM-3  A bitmap bit is set iff the block (page) is in use, reserved, or named by a slot's
#           intent; free counts and hints follow from the bitmap and can be computed again.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from nova_mp.core.arch cimport nv_monotonic_ns

cdef enum:
    DRAM_MAGIC = 0x4D415244          # "DRAM"
    DRAM_VERSION = 3
    DRAM_PAGE = 4096
    MAX_SLOTS = 1024                 # threads of processes attached at the same time
    SLOT_BYTES = 1024
    MAX_LOCKS = 12                   # locks one operation may hold
    MAX_TX = 5                       # inode logs one operation may append to
    HINTS = 60                       # freed extents remembered by a region, newest used first
    GROW_PAGES = 512                 # DRAM pages reserved at a time: 2 MiB

    LOCK_WAITERS = 0x80000000
    LOCK_OWNER = 0x7FFFFFFF

    SLOT_FREE = 0
    SLOT_TAKING = 1                  # being filled in
    SLOT_ACTIVE = 2

    ROLE_CLIENT = 1
    ROLE_WORKER = 2
    ROLE_COORDINATOR = 3
    ROLE_CLEANER = 4
    ROLE_SUPERVISOR = 5

    STATE_MOUNTING = 1
    STATE_READY = 2
    STATE_STOPPING = 3               # no new slots

    OP_NONE = 0
    OP_READ = 1
    OP_WRITE = 2
    OP_SETATTR = 3
    OP_CREATE = 4
    OP_UNLINK = 5
    OP_RENAME = 6
    OP_LINK = 7
    OP_XATTR = 8
    OP_OPEN = 9
    OP_CLOSE = 10
    OP_LOOKUP = 11
    OP_GC = 12
    OP_SNAPSHOT_CREATE = 13
    OP_SNAPSHOT_DELETE = 14
    OP_CLEAN = 15
    OP_EVICT = 16
    OP_MMAP = 17                     # mapping, preserving, unmapping
    OP_COUNT = 18

    REBUILD_LISTS = 1                # nv_arena.rebuild: superseded blocks are recorded again
    REBUILD_RESTORED = 2             # the lists were restored: nothing is recorded

    BUILD_NONE = 0
    BUILD_NEW = 1                    # the new table is not in use yet: a repairer frees it
    BUILD_SWITCH = 2                 # the header changes: a repairer does it again
    BUILD_OLD = 3                    # the old table is being freed

    INODE_HAS_XATTR = 1              # header flags
    INODE_DEAD = 2                   # unlinked for the last time
    INODE_IN_LIST = 4                # recorded in a snapshot list
    INODE_PAST_END = 8               # pages past the end may be there, and need not be zero

    SLAB_NONE = 0                    # page descriptor classes
    SLAB_64 = 1
    SLAB_512 = 2
    SLAB_CLASSES = 3

    INDEX_OFF_MASK = 0x0000FFFFFFFFFFC0
    CELL_SNAPSHOT = 0x4000000000000000         # open-table cell: a snapshot held open, not an inode
    OPEN_CELLS = 511                 # cells in a page of the open table

    MAP_RECORDS = 31                 # in a page of a process's table of mappings
    MAP_WRITABLE = 1                 # nv_map flags
    MAP_SNAPSHOT = 2                 # of a snapshot's file
    MAP_INHERITED = 8                # by a forked child: there already, wherever the file ends
    MAP_PARTS = 512                  # what `writable` of nv_map divides a mapping into


cdef struct nv_index:                # IN DRAM. Sparse array of 8-byte words; see index.pxd
    uint64_t root
    uint64_t inline_word


cdef struct nv_region:               # IN DRAM. Allocator over one range of a bitmap
    uint32_t lock
    uint32_t hint_top                # hints are a ring: newest at hint_top - 1
    uint32_t hint_count
    uint32_t reserve                 # units kept for operations that give space back
    uint64_t first
    uint64_t end
    uint64_t free
    uint64_t cursor                  # where the next search starts
    uint64_t hints[HINTS]            # start << 32 | length


cdef struct nv_cpu:                  # IN DRAM. One emulated CPU; 4096 bytes
    nv_region blocks                 # its share of the arena's blocks
    uint8_t pad0[32]
    uint32_t journal_lock            # guards the CPU's journal page in PMEM
    uint8_t pad1[60]
    uint32_t inode_lock              # guards the inode tables that this CPU allocates from
    uint32_t table_cursor
    uint64_t inodes_used
    uint8_t pad2[48]
    uint32_t slab_lock               # guards the partial lists of slab pages
    uint32_t partial[SLAB_CLASSES]   # first page with a free object, 0 if none
    uint8_t pad3[48]
    uint32_t snap_lock               # guards this CPU's part of every snapshot list
    uint32_t clean_pad
    uint64_t clean_head              # list pages that wait for the cleaner
    uint64_t clean_tail
    uint64_t held_blocks             # in list entries written by this CPU, less those cleaned
    uint64_t appends                 # list entries appended
    uint64_t list_pages              # list pages of this CPU
    uint64_t clean_entries           # entries that wait for the cleaner
    uint8_t pad4[8]
    uint64_t counters[40]            # of slots that were given back


cdef struct nv_table:                # IN DRAM. One inode table; guarded by the CPU's inode_lock
    nv_index chunks                  # chunk number -> DRAM offset of its headers
    uint32_t num_chunks
    uint32_t free_hint               # first chunk that may have a free slot
    uint64_t last_link_off           # PMEM word that will point to the next chunk
    uint64_t pad[4]


cdef struct nv_chunk:                # IN DRAM. Slot 0 of a chunk's headers: 128 bytes
    uint64_t pmem_off                # the chunk in PMEM
    uint64_t bitmap[8]               # slots in use
    uint32_t table
    uint32_t chunk
    uint64_t pad[6]


cdef struct nv_inode_header:         # IN DRAM. 128 bytes an inode
    uint32_t lock
    uint32_t seq                     # odd while the fields below change
    nv_index index                   # file page -> block and entry; directory: table of dentries
    uint64_t size
    uint64_t mtime_ns
    uint64_t ctime_ns
    uint64_t atime_ns
    uint32_t mode                    # 0 = no such inode
    uint32_t nlink                   # directory: 2 + subdirectories
    uint32_t uid
    uint32_t gid
    uint64_t log_tail_off            # PMEM; the committed tail
    uint32_t log_pages
    uint32_t gc_pages                # collect when log_pages reaches this
    uint32_t blocks                  # data blocks; directory: names
    uint32_t tombs                   # directory: deleted cells
    uint32_t opens                   # open handles in all processes
    uint32_t maps                    # mappings in all processes, of the live file
    uint8_t flags
    uint8_t dir_log2                 # directory: log2 of cells, 0 = no table yet
    uint16_t view_maps               # mappings of it as of some snapshot
    uint32_t generation
    uint64_t preserved               # grows before a page is stored to in place; see mapping.pxd
    uint64_t pad


cdef struct nv_tx:                   # IN DRAM, in a slot. One log that an operation appends to
    uint64_t ino
    uint64_t old_tail                # committed tail when it began
    uint64_t cur_tail                # end of what was appended since


cdef struct nv_slot:                 # IN DRAM. One thread of an attached process; 1024 bytes
    uint32_t state
    uint32_t pid
    uint32_t tid
    uint32_t role
    uint32_t cpu
    uint32_t parent                  # slot number + 1 of the process slot, 0 if this is one
    uint64_t start_time              # of the thread, ticks since boot: tells it from a later one
    uint8_t title[24]
    uint8_t line0[8]
    # -- announced; read by grace periods
    uint64_t epoch_id                # of the operation under way, 0 in none
    uint32_t op
    uint32_t step
    uint32_t faulting                # 1 while a fault is being resolved; see stores.pxd
    uint32_t line1_pad
    uint64_t keep_block              # a block that was freed and is taken again next, 0: none
    uint8_t line1[32]
    # -- intent: what a repairer needs
    uint32_t nlocks
    uint32_t ntx
    uint64_t locks[MAX_LOCKS]        # DRAM offsets of lock words held, or about to be
    nv_tx tx[MAX_TX]
    uint64_t new_ino                 # inode being created
    uint64_t pend_block              # blocks taken, not yet referred to
    uint64_t pend_len
    uint64_t pend_link_off           # PMEM word that will refer to them, 0: a write entry will
    uint64_t rel_extent              # blocks being released: start << 32 | count
    uint64_t rel_state               # 0 none, 1 announced, 2 done
    uint64_t rel_create_epoch
    uint64_t rel_delete_epoch
    uint64_t rel_ino                 # != 0: a deleted inode is being recorded, not blocks
    uint64_t rel_link_off            # PMEM word that refers to the blocks until they are unlinked
    uint64_t rel_file                # inode whose index cells give up the blocks, 0 if none
    uint64_t rel_pgoff               # first of these cells
    uint64_t rel_pages               # how many
    uint64_t rel_new                 # what the first of them becomes, 0: nothing
    uint64_t rel_undo                # log position to go on from once the blocks are released
    uint64_t undo_off                # how far the uncommitted entries were undone
    uint64_t evict_ino               # dead inode being taken apart
    nv_index build                   # directory table being built
    nv_index build_old               # the one it replaces
    uint64_t build_phase             # BUILD_*
    uint64_t build_off               # DRAM: header of the directory
    uint64_t build_log2              # log2 of the new table's cells
    uint64_t dpend_off               # DRAM object taken, not yet linked
    uint64_t dpend_pages             # its pages, 0: a slab object
    uint64_t dpend_link_off          # DRAM word that will refer to it
    uint64_t gc_ino                  # log being rewritten
    uint64_t gc_head                 # PMEM: first page of the new chain
    uint64_t gc_old                  # PMEM: next old page to free once switched
    uint64_t gc_stop                 # PMEM: first page that is kept
    uint64_t list_off                # DRAM: snapshot list being appended to
    uint64_t arg                     # operation's argument (snapshot descriptor, list page)
    uint64_t spare_head              # list pages kept ready
    uint64_t spare_count
    uint64_t spare_page              # the first of them while it moves into a list
    uint64_t spare_next              # the one after that
    uint64_t open_head               # process slot: first page of its open table
    uint64_t map_head                # process slot: first page of its table of mappings
    uint32_t map_protection          # process slot: NV_PROTECT_* of uffd.h
    int map_fd                       # process slot: its userfaultfd
    uint32_t map_bell                # process slot: woken to protect, or for a fault (SIGSEGV)
    uint32_t protect_asked           # process slot: grows when all is to be protected (SIGSEGV)
    uint32_t protect_done            # process slot: follows protect_asked
    uint32_t map_thread              # process slot: number + 1 of the slot of what resolves faults
    # -- statistics
    uint64_t counters[40]            # see COUNTERS in sync.pyx


cdef struct nv_map:                  # IN DRAM. One mapping of a process; under the snapshot lock
    uint64_t ino                     # 0: unused
    uint64_t at                      # address in that process, or 0 while it is being made
    uint64_t bytes
    uint64_t pgoff                   # first file page
    uint32_t generation
    uint32_t flags                   # MAP_*
    uint64_t part_pages              # pages of each of its MAP_PARTS parts
    uint64_t spare[2]
    uint64_t writable[8]             # a bit for each part that may have pages not protected


cdef struct nv_map_page:             # IN DRAM. Part of a process's table of mappings
    nv_map maps[MAP_RECORDS]
    uint64_t next_off
    uint64_t pad[15]


cdef struct nv_list_head:            # IN DRAM. One snapshot's list of one CPU
    uint64_t head_off                # pages as nv_list_page in dram offsets
    uint64_t tail_off
    uint64_t num_pages
    uint64_t blocks                  # data blocks in its entries
    uint64_t exclusive               # blocks, dead inodes' logs included, that no later one needs


cdef struct nv_snapshot:             # IN DRAM. A snapshot; list heads follow, one a CPU
    uint64_t epoch_id
    uint64_t info_off                # PMEM: its info entry
    uint64_t create_time_ns
    uint32_t opens                   # open views in all processes
    uint32_t deleted
    uint32_t deferred                # to be deleted once no view is open
    uint32_t recount                 # `exclusive` of its lists has to be counted again
    uint64_t pad[3]


cdef struct nv_snap_ref:             # IN DRAM. Element of the sorted snapshot table
    uint64_t epoch_id                # 0 = taken out
    uint64_t off


cdef struct nv_page_desc:            # IN DRAM. One DRAM page
    uint64_t bitmap                  # slab objects in use
    uint32_t next_partial
    uint16_t cpu
    uint8_t slab_class
    uint8_t in_list                  # on its CPU's partial list


cdef struct nv_dram_header:          # IN DRAM. First page
    uint32_t magic
    uint32_t version
    uint32_t state
    uint32_t cpus
    uint64_t limit_bytes             # of the DRAM segment
    uint64_t pm_bytes
    uint64_t num_blocks
    uint32_t media_mode
    uint32_t pad0
    # -- media timing
    uint64_t flush_ns
    uint64_t fence_ns
    uint64_t read_ns
    uint64_t write_bytes_per_us      # 0 = no cap
    uint64_t read_bytes_per_us
    # -- offsets of the parts
    uint64_t slots_off
    uint64_t cpus_off
    uint64_t tables_off
    uint64_t block_bitmap_off
    uint64_t page_bitmap_off
    uint64_t page_desc_off
    uint64_t inode_limit
    # -- epoch
    uint64_t gate                    # epoch_id << 1 | frozen
    uint32_t gate_futex              # grows when the gate opens
    uint32_t pad1
    # -- locks
    uint32_t rename_lock             # directory renames across directories
    uint32_t snapshot_lock           # create and delete
    uint32_t repair_lock
    uint32_t clean_lock
    uint32_t reap_lock
    uint32_t hold                    # slot number + 1 of who holds stores into mappings back
    uint32_t late_pid                # process whose mappings could not be protected
    uint32_t slot_high               # slots at or above this were never used
    # -- snapshot table: guarded by snapshot_lock, read under snap_seq
    uint32_t snap_seq
    uint32_t snap_count              # elements, dead ones included
    uint32_t snap_live
    uint32_t snap_capacity
    uint64_t snap_table_off
    uint64_t snap_newest             # id of the newest live snapshot, 0 if none
    # -- DRAM pages
    nv_region pages
    uint64_t pages_reserved          # pages below this are backed by memory
    # -- mount
    uint64_t recovery_ns
    uint64_t recovery_entries
    uint64_t recovery_inodes
    uint64_t recovery_clean
    uint64_t recovery_restored       # snapshot lists came from PMEM, not from the logs
    uint64_t mount_time_ns
    uint64_t snapshot_creates
    uint64_t snapshot_create_ns
    uint64_t snapshot_deletes
    uint64_t snapshot_delete_ns
    uint64_t clean_ns                # spent cleaning lists
    uint64_t clean_bell              # grows when there is something to clean
    uint64_t gc_fast_pages
    uint64_t gc_thorough_pages
    uint64_t not_evicted             # deleted files left for want of memory; see unmount()
    # -- debug builds: a failpoint that another process has armed for one
    uint32_t doomed                  # process slot + 1 of who is to die, 0: nobody
    uint32_t doomed_passages         # before that
    char doomed_at[40]               # name of the failpoint


ctypedef int (*nv_repair_fn)(nv_ctx* c, uint32_t owner) noexcept nogil


cdef struct nv_trace:                # PRIVATE. Record of stores, flushes and fences
    uint8_t* buffer
    uint64_t used
    uint64_t capacity
    int failed


cdef struct nv_arena:                # PRIVATE. One process's mapping of an arena
    uint8_t* pm
    uint8_t* dram
    uint64_t pm_bytes
    uint64_t dram_bytes
    nv_dram_header* hdr
    int dram_fd
    int flush_how                    # NV_FLUSH_* of arch.h; NV_FLUSH_NONE on a DRAM medium
    int media_mode                   # MEDIA_*
    int rebuild                      # mounting: nothing is freed; 0 or REBUILD_*
    nv_repair_fn repair
    nv_trace* trace
    char* failpoint                  # armed failpoint (debug builds), NULL if none
    int64_t failpoint_count
    uint32_t without                 # WITHOUT_*: protections that are off (debug builds)
    uint32_t process_slot
    uint32_t pid


cdef struct nv_ctx:                  # PRIVATE. One thread's way into an arena
    nv_arena* a
    uint8_t* pm
    uint8_t* dram
    nv_dram_header* hdr
    nv_slot* slot
    uint32_t id                      # slot number + 1: this thread's name in lock words
    uint32_t cpu
    int nowait                       # give NV_RETRY instead of waiting
    int in_repair                    # acting as a dead thread: locks of others are only freed
    int privileged                   # may use the reserve: the operation gives space back
    int keeps                        # the thread's own, which keeps a freed block for its next one
    int away                         # at work here without the GIL, under which this is changed
    uint32_t tid                     # whose it is, of those who had the slot
    uint64_t start_time
    uint64_t epoch_id                # of the operation under way
    uint64_t gc_ino                  # an inode whose log wants collecting, 0 if none
    uint64_t timed_from              # when the operation under way began, 0 if it is not timed
    uint32_t copy_count              # data copies so far: which of them are timed (pmem.pyx)
    uint32_t copy_streams            # 1 while streaming stores are the cheaper ones
    uint64_t copy_cost[2]            # ticks a KiB, ordinary and streaming; moving averages
    uint64_t media_bytes             # written since the last fence (timing emulation)
    uint64_t media_lines
    uint64_t ranks[MAX_LOCKS]        # debug builds: lock order of what is held


cdef enum:
    NV_RETRY = -100000               # contended and nowait: do it again without the GIL
    NV_FROZEN = -100001              # frozen: let go of everything, wait, do it again
    WITHOUT_GRACE = 1                # grace periods end at once
    WITHOUT_SECOND_LOOK = 2          # operations do not read the epoch again (SYNC-2)
    WITHOUT_HOLD = 3                 # pages are protected one by one, faults not held back (MAP-2)
    MEDIA_DRAM = 0
    MEDIA_PMEM = 1                   # emulated
    MEDIA_REAL = 2                   # write back cache lines for real

    TIMED_EVERY = 64                 # a power of two

    # counters of a slot (and, added up, of a CPU)
    CNT_OPS = 0                      # + OP_*
    CNT_MAP_FAULTS = 19              # faults resolved
    CNT_READ_BYTES = 20
    CNT_WRITE_BYTES = 21
    CNT_LOCK_WAITS = 22
    CNT_READ_RETRIES = 23
    CNT_READ_LOCKED = 24
    CNT_REPAIRS = 25
    CNT_EPOCH_RETRIES = 26
    CNT_STEALS = 27
    CNT_GC_FAST = 28
    CNT_GC_THOROUGH = 29
    CNT_LOCK_WAIT_NS = 30
    CNT_LIST_APPENDS = 31
    CNT_CLEANED = 32
    CNT_TIMED_READS = 33             # of every TIMED_EVERY operations of a kind one is timed: how
    CNT_TIMED_READ_NS = 34           # many were, and what they took together
    CNT_TIMED_WRITES = 35
    CNT_TIMED_WRITE_NS = 36
    CNT_TIMED_OTHERS = 37
    CNT_TIMED_OTHER_NS = 38
    CNT_PRESERVED = 39               # pages copied for snapshots before a store in place
    CNT_COUNT = 40


cdef inline nv_cpu* cpu_at(nv_ctx* c, uint32_t cpu) noexcept nogil:
    return <nv_cpu*>(c.dram + c.hdr.cpus_off + <uint64_t>cpu * DRAM_PAGE)


cdef inline nv_slot* slot_at(nv_ctx* c, uint32_t nr) noexcept nogil:
    return <nv_slot*>(c.dram + c.hdr.slots_off + <uint64_t>nr * SLOT_BYTES)


cdef inline nv_table* table_at(nv_ctx* c, uint32_t nr) noexcept nogil:
    return <nv_table*>(c.dram + c.hdr.tables_off) + nr


cdef inline uint64_t dram_off(nv_ctx* c, void* p) noexcept nogil:
    return <uint64_t>(<uint8_t*>p - c.dram)


cdef inline uint64_t count_op(nv_ctx* c, int op) noexcept nogil:
    # Counts an operation; when it began if it is to be timed, else 0. The clock costs a tenth of
    # the shortest operations, so only some are.
    cdef uint64_t n = c.slot.counters[CNT_OPS + op] + 1
    c.slot.counters[CNT_OPS + op] = n
    return nv_monotonic_ns() if n % TIMED_EVERY == 1 else 0


cdef inline void count(nv_ctx* c, int which, uint64_t n) noexcept nogil:
    c.slot.counters[which] += n

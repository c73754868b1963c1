# Paths: following them, and listing directories. Reads only.
#
# Locks      None: directory by directory, a child is believed once its directory's seq was the same
#            before and after. A reader that writers keep overtaking takes the lock.

from libc.stdint cimport uint32_t, uint64_t, uint8_t
from nova_mp.core.dram cimport nv_ctx, nv_inode_header

cdef enum:
    WALK_FOLLOW = 1                  # follow a symbolic link at the end
    WALK_PARENT = 2                  # stop before the last component; with WALK_FOLLOW, of the path
                                     # that a symbolic link there leads to
    PATH_MAX_BYTES = 4096
    MAX_DEPTH = 1024
    MAX_SYMLINKS = 40

cdef struct nv_node:                 # PRIVATE. An inode in one of its lives
    uint64_t ino
    uint32_t generation
    uint32_t type

cdef struct nv_walk:                 # PRIVATE. Where a path leads
    nv_node node                     # the target, or with WALK_PARENT its directory
    const char* name                 # WALK_PARENT: last component, in the path or in `text`
    uint32_t name_len                # 0: the path ends in "/", "." or ".."
    uint32_t dots                    # 1 or 2 if it ends in "." or ".."
    bint trailing                    # a slash follows the last component
    uint32_t depth
    nv_node stack[MAX_DEPTH]         # directories from the root to `node`
    char text[2][8192]               # expanded symbolic links

cdef struct nv_listing:              # PRIVATE. Names in a directory: u64 ino, u8 type, u8 length
    uint8_t* data
    uint64_t used
    uint64_t capacity
    uint64_t entries

cdef int child_of(nv_ctx* c, nv_inode_header* h, const char* name, uint32_t name_len,
                  nv_node* child) noexcept nogil
cdef int lookup_child(nv_ctx* c, nv_node directory, const char* name, uint32_t name_len,
                      nv_node* child) noexcept nogil
cdef int walk(nv_ctx* c, const char* path, uint64_t path_len, int flags, nv_walk* w) noexcept nogil
cdef int name_list(nv_ctx* c, nv_node directory, nv_listing* out) noexcept nogil

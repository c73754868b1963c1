# Names: walking paths, and the operations on directories.
#
# Locks      Walking is optimistic, directory by directory; a child is believed once its directory's
#            seq was the same before and after. Operations then lock what they change, directories
#            before files and each by inode number, and look again.
# Invariants
#   NAME-1  An operation on several logs commits by one journal word; before it nothing is visible.
#   NAME-2  A directory moves to another parent only under the rename lock, so the ancestors of a
#           directory stand still while the holder looks for cycles.
#   NAME-3  An inode's generation tells one life of its number from the next; whoever comes with an
#           old one gets -ESTALE, and walks again.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
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

cdef int walk(nv_ctx* c, const char* path, uint64_t path_len, int flags, nv_walk* w) noexcept nogil
cdef int lookup_child(nv_ctx* c, nv_node directory, const char* name, uint32_t name_len,
                      nv_node* child) noexcept nogil
cdef int name_create(nv_ctx* c, nv_walk* w, uint32_t mode, uint32_t uid, uint32_t gid,
                     const char* target, uint64_t target_len, nv_node* made) noexcept nogil
cdef int name_link(nv_ctx* c, nv_node node, nv_walk* w) noexcept nogil
cdef int name_unlink(nv_ctx* c, nv_walk* w) noexcept nogil
cdef int name_rmdir(nv_ctx* c, nv_walk* w) noexcept nogil
cdef int name_list(nv_ctx* c, nv_node directory, nv_listing* out) noexcept nogil
cdef int handle_open(nv_ctx* c, nv_node node, uint64_t* cell) noexcept nogil
cdef int handle_close(nv_ctx* c, uint64_t* cell) noexcept nogil
cdef void recount_opens(nv_ctx* c, nv_inode_header* h, uint64_t ino) noexcept nogil
cdef int append_dentry(nv_ctx* c, nv_inode_header* h, uint32_t tx, const char* name,
                       uint32_t name_len,
                       uint64_t ino, uint32_t type, uint64_t removed_epoch_id,
                       uint64_t now) noexcept nogil
cdef int append_link_change(nv_ctx* c, nv_inode_header* h, uint64_t ino, uint32_t nlink,
                            uint64_t now) noexcept nogil
cdef void unlinked(nv_ctx* c, nv_inode_header* h, uint64_t ino, uint32_t tx) noexcept nogil

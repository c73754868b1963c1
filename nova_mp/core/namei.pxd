# Names: the operations on directories, and open handles.
#
# Locks      Paths are walked without locks; operations then lock what they change, directories
#            before files and each by inode number, and look again.
# Invariants
#   NAME-1  An operation on several logs commits by one journal word; before it nothing is visible.
#   NAME-2  A directory moves to another parent only under the rename lock, so the ancestors of a
#           directory stand still while the holder looks for cycles.
#   NAME-3  An inode's generation tells one life of its number from the next; whoever comes with an
#           old one gets -ESTALE, and walks again.

from libc.stdint cimport uint32_t, uint64_t
from nova_mp.core.dram cimport nv_ctx, nv_inode_header
from nova_mp.core.walk cimport nv_node, nv_walk

cdef int name_create(nv_ctx* c, nv_walk* w, uint32_t mode, uint32_t uid, uint32_t gid,
                     const char* target, uint64_t target_len, nv_node* made) noexcept nogil
cdef int name_link(nv_ctx* c, nv_node node, nv_walk* w) noexcept nogil
cdef int name_unlink(nv_ctx* c, nv_walk* w) noexcept nogil
cdef int name_rmdir(nv_ctx* c, nv_walk* w) noexcept nogil
cdef int handle_open(nv_ctx* c, nv_node node, uint64_t* cell) noexcept nogil
cdef int handle_close(nv_ctx* c, uint64_t* cell) noexcept nogil
cdef void recount_opens(nv_ctx* c, nv_inode_header* h, uint64_t ino) noexcept nogil
cdef int append_dentry(nv_ctx* c, nv_inode_header* h, uint32_t tx, const char* name,
                       uint32_t name_len, uint64_t ino, uint32_t type, uint64_t removed_epoch_id,
                       uint64_t now) noexcept nogil
cdef int append_link_change(nv_ctx* c, nv_inode_header* h, uint64_t ino, uint32_t nlink,
                            uint64_t now) noexcept nogil
cdef void unlinked(nv_ctx* c, nv_inode_header* h, uint64_t ino, uint32_t tx) noexcept nogil

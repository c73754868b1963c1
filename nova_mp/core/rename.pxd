# Rename: the operation on the most logs. Its locks are taken in the order of sync.pxd, after which
# everything that was looked up without them is looked up again.

from nova_mp.core.dram cimport nv_ctx
from nova_mp.core.walk cimport nv_walk

cdef int name_rename(nv_ctx* c, const char* src, unsigned long src_len, const char* dst,
                     unsigned long dst_len, bint noreplace, nv_walk* from_,
                     nv_walk* to) noexcept nogil

# The boundary: the file system of an arena, for Python.

from nova_mp.core.admin cimport Admin
from nova_mp.core.dram cimport nv_ctx
from nova_mp.core.walk cimport nv_node

cdef class Core(Admin):
    cdef nv_node resolve(self, nv_ctx* c, object path, int follow) except *

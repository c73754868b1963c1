# Snapshots, freezing, reaping, statistics.

from libc.stdint cimport uint64_t
from nova_mp.core.process cimport Process

cdef class Admin(Process):
    cdef uint64_t collected_bell

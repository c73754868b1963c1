# Snapshots, freezing, reaping, statistics.

from nova_mp.core.process cimport Process

cdef class Admin(Process):
    pass

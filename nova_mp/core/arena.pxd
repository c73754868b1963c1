# Arenas as a whole.

from nova_mp.core.dram cimport nv_arena, nv_dram_header

cdef object arena_media(nv_arena* a)
cdef object recovery_stats(nv_dram_header* h)

"""Checks of the shared volatile structs' sizes, and the geometry of the DRAM segment."""

from nova_mp.core.layout cimport BLOCK_BYTES, MAX_CPUS

if sizeof(nv_slot) > SLOT_BYTES or sizeof(nv_cpu) > DRAM_PAGE:
    raise ImportError(f"slot {sizeof(nv_slot)} or CPU {sizeof(nv_cpu)} structure too large")
if sizeof(nv_inode_header) != 128 or sizeof(nv_chunk) != 128 or sizeof(nv_table) != 64:
    raise ImportError("inode header, chunk or table structure has an unexpected size")
if sizeof(nv_map_page) != DRAM_PAGE:
    raise ImportError("a page of the table of mappings has an unexpected size")
if sizeof(nv_dram_header) > DRAM_PAGE:
    raise ImportError("DRAM header does not fit its page")


def geometry(pm_bytes, cpus):
    """Sizes of the DRAM segment for an arena of `pm_bytes` bytes.

    Returns `(base_bytes, limit_bytes)`: what is reserved at mount, and how far it may grow. The
    limit admits an arena full of empty files: 4 KiB of log each need 128 bytes of header, their
    share of a directory's hash table and, while snapshots exist, list entries.
    """
    num_blocks = pm_bytes // BLOCK_BYTES
    limit = 24 * 1024 * 1024 + pm_bytes // 6
    limit = (limit + DRAM_PAGE - 1) // DRAM_PAGE * DRAM_PAGE
    pages = limit // DRAM_PAGE
    fixed = DRAM_PAGE + MAX_SLOTS * SLOT_BYTES + cpus * DRAM_PAGE + MAX_CPUS * sizeof(nv_table)
    fixed += (num_blocks + 63) // 64 * 8 + (pages + 63) // 64 * 8 + pages * sizeof(nv_page_desc)
    base = (fixed + DRAM_PAGE - 1) // DRAM_PAGE * DRAM_PAGE + GROW_PAGES * DRAM_PAGE
    return base, max(limit, base)

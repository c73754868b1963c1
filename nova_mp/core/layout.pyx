"""Checks, at import, that the compiler and the field tables agree on the on-media format."""

from nova_mp.core import layout_fields

FORMAT = FORMAT_VERSION

_SIZES = {
    "nv_superblock": sizeof(nv_superblock),
    "nv_table_head": sizeof(nv_table_head),
    "nv_chunk_header": sizeof(nv_chunk_header),
    "nv_inode": sizeof(nv_inode),
    "nv_log_page_tail": sizeof(nv_log_page_tail),
    "nv_entry_header": sizeof(nv_entry_header),
    "nv_write_entry": sizeof(nv_write_entry),
    "nv_dentry": sizeof(nv_dentry),
    "nv_setattr_entry": sizeof(nv_setattr_entry),
    "nv_link_change_entry": sizeof(nv_link_change_entry),
    "nv_mmap_write_entry": sizeof(nv_mmap_write_entry),
    "nv_snapshot_info": sizeof(nv_snapshot_info),
    "nv_xattr_entry": sizeof(nv_xattr_entry),
    "nv_journal_record": sizeof(nv_journal_record),
    "nv_journal": sizeof(nv_journal),
    "nv_list_entry": sizeof(nv_list_entry),
    "nv_list_page_tail": sizeof(nv_list_page_tail),
    "nv_snapshot_nvmm_list": sizeof(nv_snapshot_nvmm_list),
}

FIELDS = {
    name: {field.name: (field.offset, field.size) for field in struct.fields}
    for name, struct in layout_fields.structs().items()
}


def _check():
    declared = {name: struct.size for name, struct in layout_fields.structs().items()}
    if declared != _SIZES:
        raise ImportError(f"layout.pxd and the compiler disagree: {declared} != {_SIZES}")


_check()

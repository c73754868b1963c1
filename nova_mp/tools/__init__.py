"""Tools that read an arena without the native core: fsck and dump, in plain Python."""

"""File operations as messages from a remote client to a worker.

Names travel as bytes (`os.fsencode`), so that any file name fits. `view` is 0 for the live file
system, else what an fs-view-opened reply named: a snapshot that is open. `handle` is what an
fs-opened reply named. Contents of files travel as payload frames, never inside the map.

Each request is answered by the reply named in REPLIES, or by an ErrorReply. RETRYABLE requests
change nothing and leave nothing behind, so they may be carried out again; of all others the worker
remembers the reply, and a request that comes twice is carried out once.
"""

from __future__ import annotations

from typing import Any

from nova_mp.protocol import templates
from nova_mp.protocol.messages import Done, message

TRANSFER_BYTES_MAX = 64 << 20
"""Most payload of one message. A write up to this size is atomic; larger ones are several."""

READS_MAX = 128
READS_BYTES_MAX = 1 << 20
"""Most reads of one fs-pread-many, and most bytes of them together."""

STAT_FIELDS = (
    "st_mode",
    "st_ino",
    "st_dev",
    "st_nlink",
    "st_uid",
    "st_gid",
    "st_size",
    "st_atime_ns",
    "st_mtime_ns",
    "st_ctime_ns",
    "st_birthtime_ns",
    "st_blocks",
    "st_blksize",
)
"""What `Attributes.values` holds, in this order; times in ns, blocks of 512 bytes."""

NOW = None
"""A time of Utime that means the time at which it is carried out."""


# ------------------------------------------------------------------------------------- replies


@message("fs-opened")
class Opened:
    """Reply to fs-open: the file's handle and identity."""

    handle: int
    ino: int
    generation: int


@message("fs-data")
class Data:
    """Reply: bytes, in the payload; `count` of them."""

    count: int


@message("fs-data-many")
class DataMany:
    """Reply to fs-pread-many: bytes, one read behind the other in the payload; for each read how
    many, or the negative errno that it failed with."""

    counts: tuple[int, ...]


@message("fs-written")
class Written:
    """Reply to writes: bytes written, and the file offset behind them."""

    count: int
    end: int


@message("fs-attributes")
class Attributes:
    """Reply to fs-stat and fs-stat-file: one value for each of STAT_FIELDS."""

    values: tuple[int, ...]


@message("fs-listing")
class Listing:
    """Reply to fs-scan. Payload: the names, each ended by a NUL byte; then the inode numbers as
    little-endian 64-bit integers; then one byte of d_type each. `count` entries in all."""

    count: int


@message("fs-names")
class Names:
    """Reply to fs-list-xattr: names."""

    names: tuple[str, ...]


@message("fs-target")
class Target:
    """Reply to fs-read-link: what the link says."""

    target: bytes


@message("fs-capacity")
class Capacity:
    """Reply to fs-statvfs: the fields of `os.statvfs_result`, in its order, `f_fsid` included."""

    values: tuple[int, ...]


@message("fs-counters")
class Counters:
    """Reply to fs-counters: what `FileSystem.stats()` returns."""

    stats: dict[str, Any]


@message("fs-snapshot-table")
class SnapshotTable:
    """Reply to fs-snapshots: rows as `Core.snapshot_table()` gives them, ascending."""

    rows: tuple[dict[str, Any], ...]


@message("fs-snapshot-space")
class SnapshotSpace:
    """Reply to fs-snapshot-frees: what deleting them together would free."""

    size_bytes: int


@message("fs-view-opened")
class ViewOpened:
    """Reply to fs-open-view: the snapshot's view."""

    view: int


# ---------------------------------------------------------------------------------- open files


@message("fs-open")
class Open:
    """Request: open a file; `flags` are `os.O_*`. Answered by fs-opened."""

    path: bytes
    flags: int
    mode: int = 0o666
    view: int = 0


@message("fs-close")
class Close:
    """Request: close a file. Closing one that is not open is no error."""

    handle: int


@message("fs-pread")
class Pread:
    """Request: up to `count` bytes from `offset`; fewer only at the end. Answered by fs-data."""

    handle: int
    count: int
    offset: int


@message("fs-pread-many")
class PreadMany:
    """Request: many small reads, as fs-pread does each. Answered by fs-data-many."""

    handles: tuple[int, ...]
    counts: tuple[int, ...]
    offsets: tuple[int, ...]


@message("fs-pwrite")
class Pwrite:
    """Request: write the payload at `offset`, atomically. Answered by fs-written."""

    handle: int
    offset: int


@message("fs-append")
class Append:
    """Request: write the payload at the end of the file, atomically. Answered by fs-written."""

    handle: int


@message("fs-truncate-file")
class TruncateFile:
    """Request: set the size of an open file."""

    handle: int
    size: int


@message("fs-fallocate")
class Fallocate:
    """Request: reserve space for a range of an open file, growing it if needed."""

    handle: int
    offset: int
    length: int


@message("fs-fsync")
class Fsync:
    """Request: answer when everything written to the file is on the medium."""

    handle: int


@message("fs-stat-file")
class StatFile:
    """Request: attributes of an open file. Answered by fs-attributes."""

    handle: int


# ----------------------------------------------------------------------------------- by path


@message("fs-stat")
class Stat:
    """Request: attributes. Answered by fs-attributes."""

    path: bytes
    follow: bool = True
    view: int = 0


@message("fs-make-dir")
class MakeDir:
    """Request: create a directory."""

    path: bytes
    mode: int = 0o777


@message("fs-remove-dir")
class RemoveDir:
    """Request: remove an empty directory."""

    path: bytes


@message("fs-unlink")
class Unlink:
    """Request: remove a name that is not a directory."""

    path: bytes


@message("fs-rename")
class Rename:
    """Request: rename `source` to `target`, over it unless `noreplace`."""

    source: bytes
    target: bytes
    noreplace: bool = False


@message("fs-link")
class Link:
    """Request: a second name for a file."""

    source: bytes
    target: bytes


@message("fs-symlink")
class Symlink:
    """Request: create the symbolic link `path` that says `target`."""

    target: bytes
    path: bytes


@message("fs-read-link")
class ReadLink:
    """Request: what a symbolic link says. Answered by fs-target."""

    path: bytes
    view: int = 0


@message("fs-chmod")
class Chmod:
    """Request: set permission bits."""

    path: bytes
    mode: int
    follow: bool = True


@message("fs-chown")
class Chown:
    """Request: set owner and group; -1 keeps one."""

    path: bytes
    uid: int
    gid: int
    follow: bool = True


@message("fs-utime")
class Utime:
    """Request: set times in ns; both to now if they are None."""

    path: bytes
    atime_ns: int | None = NOW
    mtime_ns: int | None = NOW
    follow: bool = True


@message("fs-truncate")
class Truncate:
    """Request: set the size of a file."""

    path: bytes
    size: int


@message("fs-scan")
class Scan:
    """Request: everything in a directory. Answered by fs-listing."""

    path: bytes
    view: int = 0


@message("fs-statvfs")
class StatVfs:
    """Request: sizes and free space. Answered by fs-capacity."""

    path: bytes
    view: int = 0


@message("fs-get-xattr")
class GetXattr:
    """Request: an extended attribute. Answered by fs-data."""

    path: bytes
    name: str
    follow: bool = True
    view: int = 0


@message("fs-set-xattr")
class SetXattr:
    """Request: set an extended attribute to the payload; flags as `os.XATTR_*`."""

    path: bytes
    name: str
    flags: int = 0
    follow: bool = True


@message("fs-list-xattr")
class ListXattr:
    """Request: names of the extended attributes. Answered by fs-names."""

    path: bytes
    follow: bool = True
    view: int = 0


@message("fs-remove-xattr")
class RemoveXattr:
    """Request: remove an extended attribute."""

    path: bytes
    name: str
    follow: bool = True


@message("fs-read-file")
class ReadFile:
    """Request: the whole contents of a file, in one round trip. Answered by fs-data; fails with
    EFBIG where the contents do not fit one message."""

    path: bytes
    view: int = 0


@message("fs-write-file")
class WriteFile:
    """Request: replace the contents of a file by the payload. Answered by fs-written."""

    path: bytes
    mode: int = 0o666


# --------------------------------------------------------------------------- the whole arena


@message("fs-stats")
class Stats:
    """Request: counters of the arena. Answered by fs-counters."""


@message("fs-snapshots")
class ListSnapshots:
    """Request: the snapshot table. Answered by fs-snapshot-table."""


@message("fs-snapshot-frees")
class SnapshotFrees:
    """Request: what deleting these snapshots together would free."""

    epoch_ids: tuple[int, ...]


@message("fs-open-view")
class OpenView:
    """Request: open a snapshot, which cannot be deleted then. Answered by fs-view-opened."""

    epoch_id: int


@message("fs-close-view")
class CloseView:
    """Request: close a snapshot and the files opened in it. No error if it is not open."""

    view: int


REPLIES: dict[type, type] = {
    Open: Opened,
    Close: Done,
    Pread: Data,
    PreadMany: DataMany,
    Pwrite: Written,
    Append: Written,
    TruncateFile: Done,
    Fallocate: Done,
    Fsync: Done,
    StatFile: Attributes,
    Stat: Attributes,
    MakeDir: Done,
    RemoveDir: Done,
    Unlink: Done,
    Rename: Done,
    Link: Done,
    Symlink: Done,
    ReadLink: Target,
    Chmod: Done,
    Chown: Done,
    Utime: Done,
    Truncate: Done,
    Scan: Listing,
    StatVfs: Capacity,
    GetXattr: Data,
    SetXattr: Done,
    ListXattr: Names,
    RemoveXattr: Done,
    ReadFile: Data,
    WriteFile: Written,
    Stats: Counters,
    ListSnapshots: SnapshotTable,
    SnapshotFrees: SnapshotSpace,
    OpenView: ViewOpened,
    CloseView: Done,
}
"""The reply to each request."""

RETRYABLE = frozenset(
    {
        Pread,
        PreadMany,
        Fsync,
        StatFile,
        Stat,
        ReadLink,
        Scan,
        StatVfs,
        GetXattr,
        ListXattr,
        ReadFile,
        Stats,
        ListSnapshots,
        SnapshotFrees,
    }
)
"""Requests that may be carried out a second time without anybody noticing."""

templates.add(
    Done, Data, Written, Close, Pread, Pwrite, Append, TruncateFile, Fallocate, Fsync, StatFile
)

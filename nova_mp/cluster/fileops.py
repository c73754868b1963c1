"""Carries out remote clients' file operations on a Core: messages in, replies out, no sockets.

A handle stands for an open file and a view for an open snapshot. Both are random 63-bit numbers
from one table for all sessions: a client with several threads uses several sessions at once and
one file in all of them, while a message with a number that nobody gave its sender finds nothing.
Each handle and view belongs to the session that opened it, and is closed with that session.

FILEOPS-1  A handle is in `_files` exactly while its file is open, and in `owned` of one session.
FILEOPS-2  A view is in `_views` exactly while it is open, and so are the files opened in it.
FILEOPS-3  A request either returns the reply that REPLIES names, or raises; then nothing is opened.
"""

from __future__ import annotations

import array
import errno
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nova_mp.errors import ProtocolError
from nova_mp.protocol import fileops as ops
from nova_mp.protocol.messages import Done

Payload = Sequence[Any]
Answer = tuple[Any, Payload]

# Reads of this size or less are not worth a question about the size of the file first.
SMALL_READ_BYTES = 1 << 20
NO_PAYLOAD: Payload = ()


@dataclass(slots=True)
class _OpenFile:
    file: Any
    session: bytes
    view: int
    appends: bool


@dataclass(slots=True)
class _OpenView:
    core: Any
    session: bytes


@dataclass(slots=True)
class _Session:
    files: set[int] = field(default_factory=set)
    views: set[int] = field(default_factory=set)


class FileOpServer:
    """The file operations of one worker. Not thread-safe: one thread serves all sessions."""

    def __init__(self, core: Any) -> None:
        self._core = core
        self._files: dict[int, _OpenFile] = {}
        self._views: dict[int, _OpenView] = {}
        self._sessions: dict[bytes, _Session] = {}
        self._handlers: dict[type, Callable[[bytes, Any, Any], Answer]] = {
            ops.Open: self._open,
            ops.Close: self._close,
            ops.Pread: self._pread,
            ops.PreadMany: self._pread_many,
            ops.Pwrite: self._pwrite,
            ops.Append: self._append,
            ops.TruncateFile: self._truncate_file,
            ops.Fallocate: self._fallocate,
            ops.Fsync: self._fsync,
            ops.StatFile: self._stat_file,
            ops.Stat: self._stat,
            ops.MakeDir: self._make_dir,
            ops.RemoveDir: self._remove_dir,
            ops.Unlink: self._unlink,
            ops.Rename: self._rename,
            ops.Link: self._link,
            ops.Symlink: self._symlink,
            ops.ReadLink: self._read_link,
            ops.Chmod: self._chmod,
            ops.Chown: self._chown,
            ops.Utime: self._utime,
            ops.Truncate: self._truncate,
            ops.Scan: self._scan,
            ops.StatVfs: self._statvfs,
            ops.GetXattr: self._get_xattr,
            ops.SetXattr: self._set_xattr,
            ops.ListXattr: self._list_xattr,
            ops.RemoveXattr: self._remove_xattr,
            ops.ReadFile: self._read_file,
            ops.WriteFile: self._write_file,
            ops.Stats: self._stats,
            ops.ListSnapshots: self._list_snapshots,
            ops.SnapshotFrees: self._snapshot_frees,
            ops.OpenView: self._open_view,
            ops.CloseView: self._close_view,
        }

    def handles(self, message: Any) -> bool:
        """Whether this is a file operation at all."""
        return type(message) in self._handlers

    def handle(self, session: bytes, message: Any, payload: Payload = ()) -> Answer:
        """Carry out one operation: (reply, payload frames of the reply).

        Raises what the operation raises (OSError, ValueError, NovaError), for the caller to send
        as an ErrorReply, and ProtocolError for what is no file operation.
        """
        handler = self._handlers.get(type(message))
        if handler is None:
            raise ProtocolError(f"{type(message).__name__} is not a file operation")
        return handler(session, message, _joined(payload) if payload else b"")

    def drop_session(self, session: bytes) -> None:
        """Close whatever a session has open; one that has nothing, or is unknown, is no error."""
        state = self._sessions.pop(session, None)
        if state is None:
            return
        for handle in tuple(state.files):
            self._close_file(handle)
        for view in tuple(state.views):
            self._drop_view(view)

    def close(self) -> None:
        """Close everything, for a worker that leaves."""
        for session in tuple(self._sessions):
            self.drop_session(session)

    def counts(self) -> dict[str, int]:
        """How many sessions hold something open, and what: {sessions, files, views}."""
        return {
            "sessions": len(self._sessions),
            "files": len(self._files),
            "views": len(self._views),
        }

    def validate(self) -> None:
        """Check FILEOPS-1 and FILEOPS-2; AssertionError if one does not hold."""
        owned_files = [number for state in self._sessions.values() for number in state.files]
        owned_views = [number for state in self._sessions.values() for number in state.views]
        assert sorted(owned_files) == sorted(self._files), "FILEOPS-1"
        assert sorted(owned_views) == sorted(self._views), "FILEOPS-2"
        for open_file in self._files.values():
            assert open_file.view == 0 or open_file.view in self._views, "FILEOPS-2"

    # ---- tables ---------------------------------------------------------------------------

    def _session(self, session: bytes) -> _Session:
        state = self._sessions.get(session)
        if state is None:
            state = self._sessions[session] = _Session()
        return state

    def _number(self) -> int:
        while True:
            number = secrets.randbits(63)
            if number and number not in self._files and number not in self._views:
                return number

    def _where(self, view: int) -> Any:
        """The Core, or the snapshot, that a path is looked up in."""
        if view == 0:
            return self._core
        found = self._views.get(view)
        if found is None:
            # As for a directory descriptor whose file system went away.
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return found.core

    def _file(self, handle: int) -> Any:
        found = self._files.get(handle)
        if found is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return found.file

    def _close_file(self, handle: int) -> None:
        found = self._files.pop(handle, None)
        if found is None:
            return
        state = self._sessions.get(found.session)
        if state is not None:
            state.files.discard(handle)
        found.file.close()

    def _drop_view(self, view: int) -> None:
        found = self._views.get(view)
        if found is None:
            return
        for handle in [number for number, file in self._files.items() if file.view == view]:
            self._close_file(handle)
        del self._views[view]
        state = self._sessions.get(found.session)
        if state is not None:
            state.views.discard(view)
        found.core.close()

    # ---- open files -----------------------------------------------------------------------

    def _open(self, session: bytes, message: ops.Open, payload: Any) -> Answer:
        file = self._where(message.view).os_open(message.path, message.flags, message.mode)
        handle = self._number()
        appends = bool(message.flags & os.O_APPEND)
        self._files[handle] = _OpenFile(file, session, message.view, appends)
        self._session(session).files.add(handle)
        return ops.Opened(handle, file.ino, file.generation), NO_PAYLOAD

    def _close(self, session: bytes, message: ops.Close, payload: Any) -> Answer:
        self._close_file(message.handle)
        return Done(), NO_PAYLOAD

    def _pread(self, session: bytes, message: ops.Pread, payload: Any) -> Answer:
        count = message.count
        file = self._file(message.handle)
        if count <= SMALL_READ_BYTES:
            data = file.pread(count, message.offset)
        elif count <= ops.TRANSFER_BYTES_MAX:
            data = _pread(file, count, message.offset)
        else:
            raise _too_large(count)
        return ops.Data(len(data)), (data,)

    def _pread_many(self, session: bytes, message: ops.PreadMany, payload: Any) -> Answer:
        handles, wanted, offsets = message.handles, message.counts, message.offsets
        if not len(handles) == len(wanted) == len(offsets) <= ops.READS_MAX:
            raise ProtocolError(f"fs-pread-many needs as many of each, {ops.READS_MAX} at most")
        if sum(wanted) > ops.READS_BYTES_MAX or min(wanted, default=0) < 0:
            raise ProtocolError(f"fs-pread-many is of 0 to {ops.READS_BYTES_MAX} bytes")
        files, counts, parts = self._files, [], []
        for handle, count, offset in zip(handles, wanted, offsets, strict=True):
            found = files.get(handle)
            try:
                if found is None:
                    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
                data = found.file.pread(count, offset)
            except (OSError, ValueError, OverflowError) as error:
                # One read that fails is no reason to keep the others back.
                counts.append(-(getattr(error, "errno", None) or errno.EINVAL))
                continue
            counts.append(len(data))
            parts.append(data)
        return ops.DataMany(tuple(counts)), (b"".join(parts),)

    def _pwrite(self, session: bytes, message: ops.Pwrite, payload: Any) -> Answer:
        count = self._file(message.handle).pwrite(payload, message.offset)
        return ops.Written(count, message.offset + count), NO_PAYLOAD

    def _append(self, session: bytes, message: ops.Append, payload: Any) -> Answer:
        found = self._files.get(message.handle)
        if found is not None and not found.appends:
            raise ProtocolError("fs-append needs a file that was opened with O_APPEND")
        file = self._file(message.handle)
        count = file.write(payload)
        return ops.Written(count, file.tell()), NO_PAYLOAD

    def _truncate_file(self, session: bytes, message: ops.TruncateFile, payload: Any) -> Answer:
        self._file(message.handle).truncate(message.size)
        return Done(), NO_PAYLOAD

    def _fallocate(self, session: bytes, message: ops.Fallocate, payload: Any) -> Answer:
        self._file(message.handle).fallocate(message.offset, message.length)
        return Done(), NO_PAYLOAD

    def _fsync(self, session: bytes, message: ops.Fsync, payload: Any) -> Answer:
        self._file(message.handle).fsync()
        return Done(), NO_PAYLOAD

    def _stat_file(self, session: bytes, message: ops.StatFile, payload: Any) -> Answer:
        return _attributes(self._file(message.handle).stat()), NO_PAYLOAD

    # ---- by path --------------------------------------------------------------------------

    def _stat(self, session: bytes, message: ops.Stat, payload: Any) -> Answer:
        where = self._where(message.view)
        status = where.stat(message.path) if message.follow else where.lstat(message.path)
        return _attributes(status), NO_PAYLOAD

    def _make_dir(self, session: bytes, message: ops.MakeDir, payload: Any) -> Answer:
        self._core.make_dir(message.path, message.mode)
        return Done(), NO_PAYLOAD

    def _remove_dir(self, session: bytes, message: ops.RemoveDir, payload: Any) -> Answer:
        self._core.rmdir(message.path)
        return Done(), NO_PAYLOAD

    def _unlink(self, session: bytes, message: ops.Unlink, payload: Any) -> Answer:
        self._core.unlink(message.path)
        return Done(), NO_PAYLOAD

    def _rename(self, session: bytes, message: ops.Rename, payload: Any) -> Answer:
        self._core.rename(message.source, message.target, message.noreplace)
        return Done(), NO_PAYLOAD

    def _link(self, session: bytes, message: ops.Link, payload: Any) -> Answer:
        self._core.link(message.source, message.target)
        return Done(), NO_PAYLOAD

    def _symlink(self, session: bytes, message: ops.Symlink, payload: Any) -> Answer:
        self._core.symlink(message.target, message.path)
        return Done(), NO_PAYLOAD

    def _read_link(self, session: bytes, message: ops.ReadLink, payload: Any) -> Answer:
        target = self._where(message.view).readlink(message.path)
        return ops.Target(os.fsencode(target)), NO_PAYLOAD

    def _chmod(self, session: bytes, message: ops.Chmod, payload: Any) -> Answer:
        self._core.chmod(message.path, message.mode, follow_symlinks=message.follow)
        return Done(), NO_PAYLOAD

    def _chown(self, session: bytes, message: ops.Chown, payload: Any) -> Answer:
        follow = message.follow
        self._core.chown(message.path, message.uid, message.gid, follow_symlinks=follow)
        return Done(), NO_PAYLOAD

    def _utime(self, session: bytes, message: ops.Utime, payload: Any) -> Answer:
        follow = message.follow
        if message.atime_ns is None or message.mtime_ns is None:
            self._core.utime(message.path, follow_symlinks=follow)
        else:
            times = (message.atime_ns, message.mtime_ns)
            self._core.utime(message.path, ns=times, follow_symlinks=follow)
        return Done(), NO_PAYLOAD

    def _truncate(self, session: bytes, message: ops.Truncate, payload: Any) -> Answer:
        self._core.truncate(message.path, message.size)
        return Done(), NO_PAYLOAD

    def _scan(self, session: bytes, message: ops.Scan, payload: Any) -> Answer:
        listing = self._where(message.view).scan(message.path)
        names = b"".join([os.fsencode(name) + b"\0" for name, _ino, _type in listing])
        numbers = array.array("Q", [ino for _name, ino, _type in listing])
        if sys.byteorder == "big":
            numbers.byteswap()
        types = bytes([entry_type for _name, _ino, entry_type in listing])
        return ops.Listing(len(listing)), (names, numbers.tobytes(), types)

    def _statvfs(self, session: bytes, message: ops.StatVfs, payload: Any) -> Answer:
        found = self._where(message.view).statvfs(message.path)
        # Made from ten values, as the core does it, it has no f_fsid.
        values = (*(int(value) for value in found), int(found.f_fsid or 0))
        return ops.Capacity(values), NO_PAYLOAD

    def _get_xattr(self, session: bytes, message: ops.GetXattr, payload: Any) -> Answer:
        where = self._where(message.view)
        value = where.getxattr(message.path, message.name, follow_symlinks=message.follow)
        return ops.Data(len(value)), (value,)

    def _set_xattr(self, session: bytes, message: ops.SetXattr, payload: Any) -> Answer:
        self._core.setxattr(
            message.path,
            message.name,
            bytes(payload),
            message.flags,
            follow_symlinks=message.follow,
        )
        return Done(), NO_PAYLOAD

    def _list_xattr(self, session: bytes, message: ops.ListXattr, payload: Any) -> Answer:
        where = self._where(message.view)
        names = where.listxattr(message.path, follow_symlinks=message.follow)
        return ops.Names(tuple(names)), NO_PAYLOAD

    def _remove_xattr(self, session: bytes, message: ops.RemoveXattr, payload: Any) -> Answer:
        self._core.removexattr(message.path, message.name, follow_symlinks=message.follow)
        return Done(), NO_PAYLOAD

    def _read_file(self, session: bytes, message: ops.ReadFile, payload: Any) -> Answer:
        with self._where(message.view).os_open(message.path, os.O_RDONLY) as file:
            # One byte more than fits tells a file that is just right from one that is too large.
            data = _pread(file, ops.TRANSFER_BYTES_MAX + 1, 0)
        if len(data) > ops.TRANSFER_BYTES_MAX:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), message.path)
        return ops.Data(len(data)), (data,)

    def _write_file(self, session: bytes, message: ops.WriteFile, payload: Any) -> Answer:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with self._core.os_open(message.path, flags, message.mode) as file:
            count = file.pwrite(payload, 0)
        return ops.Written(count, count), NO_PAYLOAD

    # ---- the whole arena ------------------------------------------------------------------

    def _stats(self, session: bytes, message: ops.Stats, payload: Any) -> Answer:
        return ops.Counters(self._core.stats()), NO_PAYLOAD

    def _list_snapshots(self, session: bytes, message: ops.ListSnapshots, payload: Any) -> Answer:
        return ops.SnapshotTable(tuple(self._core.snapshot_table())), NO_PAYLOAD

    def _snapshot_frees(self, session: bytes, message: ops.SnapshotFrees, payload: Any) -> Answer:
        return ops.SnapshotSpace(self._core.snapshot_frees(message.epoch_ids)), NO_PAYLOAD

    def _open_view(self, session: bytes, message: ops.OpenView, payload: Any) -> Answer:
        core = self._core.snapshot_open(message.epoch_id)
        view = self._number()
        self._views[view] = _OpenView(core, session)
        self._session(session).views.add(view)
        return ops.ViewOpened(view), NO_PAYLOAD

    def _close_view(self, session: bytes, message: ops.CloseView, payload: Any) -> Answer:
        self._drop_view(message.view)
        return Done(), NO_PAYLOAD


def _pread(file: Any, count: int, offset: int) -> Any:
    """`file.pread`, without room being made for more than the file has."""
    if count > SMALL_READ_BYTES:
        left = file.stat().st_size - offset
        count = max(0, min(count, left))
    return file.pread(count, offset)


def _attributes(status: Any) -> ops.Attributes:
    return ops.Attributes(tuple([int(getattr(status, name)) for name in ops.STAT_FIELDS]))


def _too_large(count: int) -> ProtocolError:
    return ProtocolError(
        f"{count} bytes do not fit one message (at most {ops.TRANSFER_BYTES_MAX})",
        "ask for them in pieces",
    )


def _joined(payload: Payload) -> Any:
    """The payload as one buffer; clients send it in one frame, so that nothing is copied here."""
    if sum(map(len, payload)) > ops.TRANSFER_BYTES_MAX:
        raise _too_large(sum(map(len, payload)))
    return payload[0] if len(payload) == 1 else b"".join(map(bytes, payload))

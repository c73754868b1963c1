"""The operations of a remote file system as requests: what to send, and how to read the reply.

A Request can be waited for at once (RemoteFileSystem, RemoteFile) or sent among others
(RemotePipeline); both take it from here, so an operation is translated in one place.
"""

from __future__ import annotations

import array
import errno
import operator
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from nova_mp.protocol import fileops as ops

Payload = Sequence[Any]
Decode = Callable[[Any, Payload], Any]

_NANOSECONDS = 1_000_000_000
# What a whole file counts in the window of requests on their way, before its size is known.
_USUAL_FILE_BYTES = 1 << 20
_STAT_ITEMS = ("st_mode", "st_ino", "st_dev", "st_nlink", "st_uid", "st_gid", "st_size")
_TIME_ITEMS = ("st_atime_ns", "st_mtime_ns", "st_ctime_ns")


class Stat:
    """Attributes of a file, named and indexed as those of `os.stat_result`.

    `st_*time` are seconds (float), `st_*time_ns` nanoseconds (int), `st_blocks` units of 512 bytes.
    """

    __slots__ = (*ops.STAT_FIELDS,)

    st_mode: int
    st_ino: int
    st_dev: int
    st_nlink: int
    st_uid: int
    st_gid: int
    st_size: int
    st_atime_ns: int
    st_mtime_ns: int
    st_ctime_ns: int
    st_birthtime_ns: int
    st_blocks: int
    st_blksize: int

    def __init__(self, values: Sequence[int]) -> None:
        for name, value in zip(ops.STAT_FIELDS, values, strict=True):
            setattr(self, name, value)

    st_atime = property(lambda self: self.st_atime_ns / _NANOSECONDS, doc="Last access (s).")
    st_mtime = property(lambda self: self.st_mtime_ns / _NANOSECONDS, doc="Last write (s).")
    st_ctime = property(lambda self: self.st_ctime_ns / _NANOSECONDS, doc="Last change (s).")
    st_birthtime = property(lambda self: self.st_birthtime_ns / _NANOSECONDS, doc="Creation (s).")

    def _items(self) -> tuple[int, ...]:
        whole = [getattr(self, name) for name in _STAT_ITEMS]
        return (*whole, *(getattr(self, name) // _NANOSECONDS for name in _TIME_ITEMS))

    def __getitem__(self, index: Any) -> Any:
        return self._items()[index]

    def __len__(self) -> int:
        return 10

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Stat):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in ops.STAT_FIELDS)

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, name) for name in ops.STAT_FIELDS))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)}" for name in ops.STAT_FIELDS)
        return f"Stat({shown})"


class Request:
    """One operation: the message, its payload, and what makes a value of the reply.

    `names` are the paths as the caller gave them, so that errors name them the same way;
    `expect_bytes` is the size of the reply's payload, if it may be large.
    """

    __slots__ = ("decode", "expect_bytes", "message", "names", "payload")

    def __init__(
        self,
        message: Any,
        decode: Decode,
        names: tuple[Any, ...] = (),
        payload: Payload = (),
        expect_bytes: int = 0,
    ) -> None:
        self.message = message
        self.decode = decode
        self.names = names
        self.payload = payload
        self.expect_bytes = expect_bytes


# ---- reading replies


def nothing(reply: Any, payload: Payload) -> None:
    """Of a reply that says only that it was done."""


def _stat_of(reply: ops.Attributes, payload: Payload) -> Stat:
    return Stat(reply.values)


def bytes_of(reply: ops.Data, payload: Payload) -> bytes:
    """Of a reply with contents in its payload."""
    if not payload:
        return b""
    frame = payload[0]
    return frame if type(frame) is bytes else bytes(frame)


def _count_of(reply: ops.Written, payload: Payload) -> int:
    return reply.count


def _into(buffer: memoryview) -> Decode:
    def fill(reply: ops.Data, payload: Payload) -> int:
        if payload:
            buffer[: reply.count] = payload[0]
        return reply.count

    return fill


def _rows_of(reply: ops.Listing, payload: Payload) -> list[tuple[str, int, int]]:
    joined, packed, types = payload
    names = os.fsdecode(bytes(joined)).split("\0")[:-1]
    numbers = array.array("Q", bytes(packed))
    if sys.byteorder == "big":
        numbers.byteswap()
    return list(zip(names, numbers, bytes(types), strict=True))


def _names_like(path: Any) -> Decode:
    def names(reply: ops.Listing, payload: Payload) -> list[Any]:
        found = bytes(payload[0]).split(b"\0")[:-1]
        return found if isinstance(path, bytes) else [os.fsdecode(name) for name in found]

    return names


def _capacity_of(reply: ops.Capacity, payload: Payload) -> os.statvfs_result:
    return os.statvfs_result(reply.values)


def renamed(error: OSError, names: tuple[Any, ...]) -> OSError:
    """The same error with file names of the caller's type: names travel as bytes."""
    for attribute, name in zip(("filename", "filename2"), names, strict=False):
        travelled = getattr(error, attribute)
        if isinstance(travelled, str | bytes):
            like = os.fspath(name)
            convert = os.fsencode if isinstance(like, bytes) else os.fsdecode
            setattr(error, attribute, convert(travelled))
    return error


def interrupted() -> InterruptedError:
    """The error of a request that was given up because of Ctrl-C."""
    return InterruptedError(
        errno.EINTR, "interrupted; look whether it was carried out before you repeat it"
    )


# ---- making requests


def byte_view(data: Any) -> memoryview:
    """Any buffer as a flat view of bytes; TypeError if it is none."""
    view = memoryview(data)
    if view.format == "B" and view.ndim == 1 and view.c_contiguous:
        return view
    # Buffers with strides or several dimensions in another order have to be copied.
    return view.cast("B") if view.c_contiguous else memoryview(view.tobytes())


def encoded(path: Any) -> bytes:
    """A path as it travels; TypeError for what is no path, as in `os`."""
    return os.fsencode(path)


def open_file(path: Any, flags: int, mode: int, view: int, decode: Decode) -> Request:
    message = ops.Open(encoded(path), operator.index(flags), operator.index(mode), view)
    return Request(message, decode, (path,))


def stat(path: Any, view: int = 0, *, follow_symlinks: bool = True) -> Request:
    return Request(ops.Stat(encoded(path), bool(follow_symlinks), view), _stat_of, (path,))


def lstat(path: Any, view: int = 0) -> Request:
    return Request(ops.Stat(encoded(path), False, view), _stat_of, (path,))


def make_dir(path: Any, mode: int = 0o777) -> Request:
    return Request(ops.MakeDir(encoded(path), operator.index(mode)), nothing, (path,))


def rmdir(path: Any) -> Request:
    return Request(ops.RemoveDir(encoded(path)), nothing, (path,))


def unlink(path: Any) -> Request:
    return Request(ops.Unlink(encoded(path)), nothing, (path,))


def rename(src: Any, dst: Any, noreplace: bool = False) -> Request:
    message = ops.Rename(encoded(src), encoded(dst), bool(noreplace))
    return Request(message, nothing, (src, dst))


def link(src: Any, dst: Any) -> Request:
    return Request(ops.Link(encoded(src), encoded(dst)), nothing, (src, dst))


def symlink(target: Any, path: Any) -> Request:
    return Request(ops.Symlink(encoded(target), encoded(path)), nothing, (target, path))


def readlink(path: Any, view: int = 0) -> Request:
    def target(reply: ops.Target, payload: Payload) -> Any:
        said = reply.target
        return said if isinstance(os.fspath(path), bytes) else os.fsdecode(said)

    return Request(ops.ReadLink(encoded(path), view), target, (path,))


def chmod(path: Any, mode: int, *, follow_symlinks: bool = True) -> Request:
    message = ops.Chmod(encoded(path), operator.index(mode), bool(follow_symlinks))
    return Request(message, nothing, (path,))


def chown(path: Any, uid: int, gid: int, *, follow_symlinks: bool = True) -> Request:
    uid, gid = operator.index(uid), operator.index(gid)
    return Request(ops.Chown(encoded(path), uid, gid, bool(follow_symlinks)), nothing, (path,))


def utime(
    path: Any,
    times: tuple[float, float] | None = None,
    *,
    ns: tuple[int, int] | None = None,
    follow_symlinks: bool = True,
) -> Request:
    if times is not None and ns is not None:
        raise ValueError("utime: you may specify either 'times' or 'ns' but not both")
    given = ns if times is None else times
    if given is not None and (not isinstance(given, tuple) or len(given) != 2):
        raise TypeError("utime: 'times' or 'ns' must be a tuple of two numbers, or None")
    if times is not None:
        ns = (_nanoseconds(times[0]), _nanoseconds(times[1]))
    index = operator.index
    atime_ns, mtime_ns = (None, None) if ns is None else (index(ns[0]), index(ns[1]))
    message = ops.Utime(encoded(path), atime_ns, mtime_ns, bool(follow_symlinks))
    return Request(message, nothing, (path,))


def _nanoseconds(seconds: float) -> int:
    """Rounded down, and whole seconds exactly, as `os.utime` does it."""
    if isinstance(seconds, int):
        return seconds * _NANOSECONDS
    whole = int(seconds // 1)
    return whole * _NANOSECONDS + int((seconds - whole) * _NANOSECONDS)


def truncate(path: Any, size: int) -> Request:
    return Request(ops.Truncate(encoded(path), operator.index(size)), nothing, (path,))


def listdir(path: Any = "/", view: int = 0) -> Request:
    decode = _names_like(os.fspath(path))
    return Request(ops.Scan(encoded(path), view), decode, (path,))


def scan(path: Any = "/", view: int = 0) -> Request:
    return Request(ops.Scan(encoded(path), view), _rows_of, (path,))


def statvfs(path: Any = "/", view: int = 0) -> Request:
    return Request(ops.StatVfs(encoded(path), view), _capacity_of, (path,))


def getxattr(path: Any, name: str, view: int = 0, *, follow_symlinks: bool = True) -> Request:
    message = ops.GetXattr(encoded(path), os.fsdecode(name), bool(follow_symlinks), view)
    return Request(message, bytes_of, (path,))


def setxattr(
    path: Any, name: str, value: Any, flags: int = 0, *, follow_symlinks: bool = True
) -> Request:
    flags = operator.index(flags)
    message = ops.SetXattr(encoded(path), os.fsdecode(name), flags, bool(follow_symlinks))
    return Request(message, nothing, (path,), (byte_view(value),))


def listxattr(path: Any, view: int = 0, *, follow_symlinks: bool = True) -> Request:
    def names(reply: ops.Names, payload: Payload) -> list[str]:
        return list(reply.names)

    message = ops.ListXattr(encoded(path), bool(follow_symlinks), view)
    return Request(message, names, (path,))


def removexattr(path: Any, name: str, *, follow_symlinks: bool = True) -> Request:
    message = ops.RemoveXattr(encoded(path), os.fsdecode(name), bool(follow_symlinks))
    return Request(message, nothing, (path,))


def read_bytes(path: Any, view: int = 0) -> Request:
    # How large the file is shows only in the reply, so it is taken for large.
    message = ops.ReadFile(encoded(path), view)
    return Request(message, bytes_of, (path,), (), _USUAL_FILE_BYTES)


def write_bytes(path: Any, data: Any) -> Request:
    payload = _one_message(byte_view(data))
    return Request(ops.WriteFile(encoded(path)), _count_of, (path,), (payload,))


def pread(handle: int, n: int, offset: int) -> Request:
    return Request(ops.Pread(handle, n, offset), bytes_of, (), (), n)


def preadinto(handle: int, buffer: memoryview, offset: int) -> Request:
    size = len(buffer)
    return Request(ops.Pread(handle, size, offset), _into(buffer), (), (), size)


def pwrite(handle: int, data: Any, offset: int) -> Request:
    payload = _one_message(byte_view(data))
    return Request(ops.Pwrite(handle, offset), _count_of, (), (payload,))


def append(handle: int, data: memoryview) -> Request:
    def written(reply: ops.Written, payload: Payload) -> tuple[int, int]:
        return reply.count, reply.end

    return Request(ops.Append(handle), written, (), (data,))


def simple(message: Any) -> Request:
    """A request that is answered by Done, with no path in it."""
    return Request(message, nothing)


def fstat(handle: int) -> Request:
    return Request(ops.StatFile(handle), _stat_of)


def _one_message(view: memoryview) -> memoryview:
    if len(view) > ops.TRANSFER_BYTES_MAX:
        raise ValueError(
            f"{len(view)} bytes do not fit one message (at most {ops.TRANSFER_BYTES_MAX});"
            " write them in pieces"
        )
    return view

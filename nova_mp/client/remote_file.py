"""A file opened through a worker: `io` semantics over messages.

Nothing is held back: a write is with the worker when it returns. Reads of a given size ask the
worker each time; only line reading, `peek` and what follows them read ahead, and a seek or a write
drops what was read ahead.

The position belongs to this object. Reads and writes at it take the object's lock; pread, preadinto
and pwrite need none.
"""

from __future__ import annotations

import errno
import io
import operator
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from nova_mp.client import requests
from nova_mp.client.entries import os_error
from nova_mp.client.modes import access_of
from nova_mp.protocol import fileops as ops

if TYPE_CHECKING:
    from nova_mp.client.remote import RemoteOperations

READ_AHEAD_BYTES = 64 << 10
MAX_BYTES = (1 << 63) - 1
# Large enough that TextIOWrapper, which reads in pieces, does not wait for the worker often.
TEXT_CHUNK_BYTES = 256 << 10


class RemoteFile(io.BufferedIOBase):
    """A binary file of a remote file system; see the module, and FileSystem.open."""

    name: Any
    mode: str

    def __init__(
        self, fs: RemoteOperations, path: Any, flags: int, mode: str, opened: ops.Opened
    ) -> None:
        self._fs = fs
        self.name = path
        self.mode = mode
        self.ino = opened.ino
        self.generation = opened.generation
        self._handle = opened.handle
        self._readable, self._writable = access_of(flags)
        self._appends = bool(flags & os.O_APPEND)
        self._position = 0
        self._ahead = b""
        self._pid = self._lock_pid = os.getpid()
        self._lock = threading.RLock()
        if self._appends:
            self._position = self._size()

    # ---- what it is

    def readable(self) -> bool:
        """Whether the file was opened for reading."""
        self._check_open()
        return self._readable

    def writable(self) -> bool:
        """Whether the file was opened for writing."""
        self._check_open()
        return self._writable

    def seekable(self) -> bool:
        """Always true."""
        self._check_open()
        return True

    def stat(self) -> requests.Stat:
        """Attributes of the open file, whatever its names are by now."""
        return self._run(requests.fstat(self._check_open()))

    def __repr__(self) -> str:
        return f"<nova_mp remote file name={self.name!r} mode={self.mode!r}>"

    # ---- at an offset

    def pread(self, n: int, offset: int) -> bytes:
        """Up to `n` bytes from `offset`; fewer only at the end of the file.

        Reads of more than 64 MiB are several, each a consistent look at the file.
        """
        handle = self._check_readable()
        n, offset = operator.index(n), operator.index(offset)
        if n < 0 or offset < 0:
            raise os_error(errno.EINVAL, self.name)
        if n <= ops.TRANSFER_BYTES_MAX:
            try:
                return self._fs.read_handle(handle, n, offset)
            except OSError as error:
                error.filename = self.name
                raise
        pieces = []
        while n > 0:
            wanted = min(n, ops.TRANSFER_BYTES_MAX)
            piece = self._run(requests.pread(handle, wanted, offset))
            pieces.append(piece)
            if len(piece) < wanted:
                break
            offset += wanted
            n -= wanted
        return b"".join(pieces)

    def preadinto(self, buffer: Any, offset: int) -> int:
        """Fill a writable buffer from `offset`; bytes read, fewer only at the end of the file."""
        handle = self._check_readable()
        offset = operator.index(offset)
        if offset < 0:
            raise os_error(errno.EINVAL, self.name)
        view = memoryview(buffer).cast("B")
        if view.readonly:
            raise TypeError("a writable buffer is needed")
        done = 0
        while done < len(view):
            piece = view[done : done + ops.TRANSFER_BYTES_MAX]
            got = self._run(requests.preadinto(handle, piece, offset + done))
            done += got
            if got < len(piece):
                break
        return done

    def pwrite(self, data: Any, offset: int) -> int:
        """Write at `offset`, whatever the position; bytes written, which is all of them.

        Atomic up to 64 MiB; larger writes are several of that size.
        """
        handle = self._check_writable()
        offset = operator.index(offset)
        if offset < 0:
            raise os_error(errno.EINVAL, self.name)
        view = requests.byte_view(data)
        self._ahead = b""
        if len(view) <= ops.TRANSFER_BYTES_MAX:
            return int(self._run(requests.pwrite(handle, view, offset)))
        for start in range(0, len(view), ops.TRANSFER_BYTES_MAX):
            piece = view[start : start + ops.TRANSFER_BYTES_MAX]
            self._run(requests.pwrite(handle, piece, offset + start))
        return len(view)

    # ---- at the position

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes, fewer only at the end of the file; everything left without a size."""
        self._check_readable()
        with self._guard():
            if size is None or size < 0:
                return self.readall()
            ahead = self._take_ahead(size)
            rest = b"" if len(ahead) == size else self.pread(size - len(ahead), self._position)
            self._position += len(rest)
            return ahead + rest if ahead else rest

    def readall(self) -> bytes:
        """Everything from the position to the end of the file."""
        self._check_readable()
        with self._guard():
            pieces = [self._take_ahead(len(self._ahead))]
            while True:
                piece = self.pread(ops.TRANSFER_BYTES_MAX, self._position)
                pieces.append(piece)
                self._position += len(piece)
                if len(piece) < ops.TRANSFER_BYTES_MAX:
                    return b"".join(pieces)

    def read1(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes with one question to the worker at most."""
        self._check_readable()
        with self._guard():
            if size < 0:
                size = READ_AHEAD_BYTES
            ahead = self._take_ahead(size)
            return ahead or self.read(size)

    def readinto(self, buffer: Any, /) -> int:
        """Fill a writable buffer; bytes read, fewer only at the end of the file."""
        self._check_readable()
        view = memoryview(buffer).cast("B")
        with self._guard():
            ahead = self._take_ahead(len(view))
            view[: len(ahead)] = ahead
            rest = view[len(ahead) :]
            got = self.preadinto(rest, self._position) if rest else 0
            self._position += got
            return len(ahead) + got

    def readinto1(self, buffer: Any, /) -> int:
        """As readinto."""
        return self.readinto(buffer)

    def peek(self, size: int = 0, /) -> bytes:
        """Bytes after the position, without moving it; at least one unless at the end."""
        self._check_readable()
        with self._guard():
            return self._look_ahead()

    def readline(self, size: int | None = -1, /) -> bytes:
        """One line with its newline, or the first `size` bytes of it; empty at the end."""
        self._check_readable()
        limit = -1 if size is None else size
        with self._guard():
            pieces: list[bytes] = []
            while limit != 0:
                ahead = self._look_ahead()
                if not ahead:
                    break
                end = ahead.find(b"\n") + 1 or len(ahead)
                if 0 <= limit < end:
                    end = limit
                piece = self._take_ahead(end)
                pieces.append(piece)
                limit = limit if limit < 0 else limit - end
                if piece.endswith(b"\n"):
                    break
            return b"".join(pieces)

    def write(self, data: Any, /) -> int:
        """Write everything at the position, or at the end of a file opened to append."""
        handle = self._check_writable()
        view = requests.byte_view(data)
        with self._guard():
            self._ahead = b""
            if not self._appends:
                count = self.pwrite(view, self._position)
                self._position += count
                return count
            for start in range(0, max(1, len(view)), ops.TRANSFER_BYTES_MAX):
                piece = view[start : start + ops.TRANSFER_BYTES_MAX]
                _count, self._position = self._run(requests.append(handle, piece))
            return len(view)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move the position; the new one. Positions beyond the end are fine."""
        self._check_open()
        offset = operator.index(offset)
        if not -MAX_BYTES - 1 <= offset <= MAX_BYTES:
            raise OverflowError("Python int too large to convert to C long")
        with self._guard():
            if whence == os.SEEK_SET:
                target = offset
            elif whence == os.SEEK_CUR:
                target = self._position + offset
            elif whence == os.SEEK_END:
                target = self._size() + offset
            else:
                raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
            if not 0 <= target <= MAX_BYTES:
                raise os_error(errno.EINVAL, self.name)
            self._position = target
            self._ahead = b""
            return target

    def tell(self) -> int:
        """The position."""
        self._check_open()
        return self._position

    # ---- the file as a whole

    def truncate(self, size: int | None = None, /) -> int:
        """Set the size of the file, to the position without a size; the position stays."""
        handle = self._check_writable()
        size = self._position if size is None else operator.index(size)
        if size < 0:
            raise os_error(errno.EINVAL, self.name)
        self._ahead = b""
        self._run(requests.simple(ops.TruncateFile(handle, size)))
        return size

    def fallocate(self, offset: int, length: int) -> None:
        """Reserve space for a range, so that writing there finds room; grows the file if needed."""
        handle = self._check_writable()
        offset, length = operator.index(offset), operator.index(length)
        self._run(requests.simple(ops.Fallocate(handle, offset, length)))

    def fsync(self) -> None:
        """Return when everything written is on the medium."""
        self._run(requests.simple(ops.Fsync(self._check_open())))

    def flush(self) -> None:
        """Nothing is held back, so there is nothing to do."""
        self._check_open()

    def mmap(self, offset: int = 0, length: int | None = None, writable: bool = True) -> Any:
        """Only processes that are attached can map files; io.UnsupportedOperation here."""
        raise io.UnsupportedOperation("mmap needs a file system from nova_mp.attach()")

    def detach(self) -> Any:
        """There is no raw stream below; io.UnsupportedOperation."""
        raise io.UnsupportedOperation("detach")

    def close(self) -> None:
        """Close the file; closing twice does no harm."""
        if self.closed:
            return
        try:
            # A forked child has a copy of this object, but the file is its parent's.
            if self._pid == os.getpid():
                self._fs.close_handle(self._handle)
        finally:
            super().close()

    def __del__(self) -> None:
        # A finalizer may run in the middle of anything; the file system closes the file later.
        if getattr(self, "_handle", 0) and not self.closed and self._pid == os.getpid():
            self._fs.close_later(self._handle)

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __reduce__(self) -> Any:
        raise TypeError(f"cannot pickle {type(self).__name__!r} object")

    # ---- pipelines

    def request(self, operation: str, *args: Any) -> requests.Request:
        """The request of one of the positional operations, for a pipeline."""
        return _REQUESTS[operation](self, *args)

    def _fsync_request(self) -> requests.Request:
        return requests.simple(ops.Fsync(self._check_open()))

    def _stat_request(self) -> requests.Request:
        return requests.fstat(self._check_open())

    @property
    def handle(self) -> int:
        """What the worker calls the open file."""
        return self._handle

    def can_read(self, n: int, offset: int, most: int) -> bool:
        """Whether `n` bytes at `offset` can be asked for, and are `most` at most."""
        if type(n) is not int or type(offset) is not int:
            return False
        return self._readable and 0 <= n <= most and 0 <= offset < 1 << 63 and not self.closed

    def _pread_request(self, n: int, offset: int) -> requests.Request:
        handle = self._check_readable()
        if not 0 <= n <= ops.TRANSFER_BYTES_MAX:
            raise ValueError(f"a pipelined read is of 0 to {ops.TRANSFER_BYTES_MAX} bytes")
        return requests.pread(handle, n, offset)

    def _preadinto_request(self, buffer: Any, offset: int) -> requests.Request:
        view = memoryview(buffer).cast("B")
        if view.readonly:
            raise TypeError("a writable buffer is needed")
        if len(view) > ops.TRANSFER_BYTES_MAX:
            raise ValueError(f"a pipelined read is of 0 to {ops.TRANSFER_BYTES_MAX} bytes")
        return requests.preadinto(self._check_readable(), view, offset)

    def _pwrite_request(self, data: Any, offset: int) -> requests.Request:
        self._ahead = b""
        return requests.pwrite(self._check_writable(), data, offset)

    # ---- within

    def _run(self, request: requests.Request) -> Any:
        try:
            return self._fs.run(request)
        except OSError as error:
            error.filename = self.name
            raise

    def _guard(self) -> threading.RLock:
        """The lock of the position."""
        if self._lock_pid != os.getpid():
            # After a fork it may be held by a thread of the parent, which does not exist here.
            self._lock = threading.RLock()
            self._lock_pid = os.getpid()
        return self._lock

    def _size(self) -> int:
        return int(self._run(requests.fstat(self._handle)).st_size)

    def _look_ahead(self) -> bytes:
        if not self._ahead:
            self._ahead = self.pread(READ_AHEAD_BYTES, self._position)
        return self._ahead

    def _take_ahead(self, size: int) -> bytes:
        """Up to `size` of the bytes that were read ahead; moves the position behind them."""
        if not self._ahead or size <= 0:
            return b""
        taken, self._ahead = self._ahead[:size], self._ahead[size:]
        self._position += len(taken)
        return taken

    def _check_open(self) -> int:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        return self._handle

    def _check_readable(self) -> int:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if not self._readable:
            raise io.UnsupportedOperation("not readable")
        return self._handle

    def _check_writable(self) -> int:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if not self._writable:
            raise io.UnsupportedOperation("not writable")
        return self._handle


_REQUESTS: dict[str, Callable[..., requests.Request]] = {
    "pread": RemoteFile._pread_request,
    "preadinto": RemoteFile._preadinto_request,
    "pwrite": RemoteFile._pwrite_request,
    "fsync": RemoteFile._fsync_request,
    "stat": RemoteFile._stat_request,
}
"""What a pipeline can do with a file."""

"""RemoteFileSystem: the operations run in a worker, and travel there and back as messages.

It needs no access to the arena's memory. Snapshots are created and deleted, and the file system is
frozen, by the coordinator; everything else, open snapshots included, is with one worker.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from typing import Any

from nova_mp.client import requests
from nova_mp.client.base import FileSystem, Path, ReadOnlyMixin
from nova_mp.client.connection import Connection
from nova_mp.client.keys import Keys
from nova_mp.client.modes import mode_of, parse_mode
from nova_mp.client.pipeline import Pipeline
from nova_mp.client.remote_file import TEXT_CHUNK_BYTES, RemoteFile
from nova_mp.client.remote_pipeline import RemotePipeline
from nova_mp.client.snapshots import Rows, Snapshot, Snapshots
from nova_mp.client.text import TextFile
from nova_mp.errors import EngineNotRunning
from nova_mp.protocol import fileops as ops

# Requests that a snapshot view answers, each with the view's number.
_VIEWED = frozenset(
    {
        "stat",
        "lstat",
        "readlink",
        "listdir",
        "scan",
        "statvfs",
        "getxattr",
        "listxattr",
        "read_bytes",
    }
)


class RemoteOperations(FileSystem):
    """The primitives as requests, for the live file system and for snapshots alike."""

    _connection: Connection
    _view: int = 0

    # ---- running requests

    def run(self, request: requests.Request) -> Any:
        """Send one request and wait for its value; raises what the operation raised."""
        try:
            reply, payload = self._connection.call(
                request.message, request.payload, request.expect_bytes
            )
        except OSError as error:
            raise requests.renamed(error, request.names) from None
        return request.decode(reply, payload)

    def read_handle(self, handle: int, n: int, offset: int) -> bytes:
        """For files: the request that is made most, without one more object about it."""
        return requests.bytes_of(*self._connection.call(ops.Pread(handle, n, offset), (), n))

    def close_handle(self, handle: int) -> None:
        """For files: close one at the worker. One whose worker is gone is closed already."""
        try:
            self._connection.call(ops.Close(handle))
        except EngineNotRunning:
            return

    def close_later(self, handle: int) -> None:
        """For finalizers of files: close one with the next request."""
        self._connection.forget(ops.Close(handle))

    def request(self, operation: str, *args: Any, **kwargs: Any) -> requests.Request:
        """The request of one of the operations by path, for a pipeline."""
        if operation in _VIEWED:
            kwargs["view"] = self._view
        elif self._view:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), *args[:1])
        made: requests.Request = getattr(requests, operation)(*args, **kwargs)
        return made

    def pipeline(self) -> Pipeline:
        """See FileSystem.pipeline; requests travel together, the first before the last is made."""
        return RemotePipeline(self)

    # ---- files

    def open(
        self,
        path: Path,
        mode: str = "rb",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        """See FileSystem.open. `buffering` of 1 makes a text file flush at each line; a binary
        file is never buffered."""
        parsed = parse_mode(mode, buffering, encoding, errors, newline)
        if parsed.text:
            encoding = io.text_encoding(encoding)
        file = self._open(path, parsed.flags, 0o666, parsed.binary_mode)
        if not parsed.text:
            return file
        text = TextFile(file, encoding, errors, newline, line_buffering=buffering == 1)
        text._CHUNK_SIZE = TEXT_CHUNK_BYTES  # type: ignore[attr-defined]
        text.mode = mode  # type: ignore[misc]
        return text

    def os_open(self, path: Path, flags: int, mode: int = 0o666) -> RemoteFile:
        """See FileSystem.os_open."""
        return self._open(path, flags, mode, mode_of(flags))

    def _open(self, path: Path, flags: int, mode: int, shown: str) -> RemoteFile:
        name = os.fspath(path)
        opened = self.run(
            requests.open_file(name, flags, mode, self._view, lambda reply, payload: reply)
        )
        return RemoteFile(self, name, flags, shown, opened)

    # ---- by path

    def stat(self, path: Path, *, follow_symlinks: bool = True) -> requests.Stat:
        result: requests.Stat = self.run(
            requests.stat(path, self._view, follow_symlinks=follow_symlinks)
        )
        return result

    def lstat(self, path: Path) -> requests.Stat:
        result: requests.Stat = self.run(requests.lstat(path, self._view))
        return result

    def make_dir(self, path: Path, mode: int = 0o777) -> None:
        self.run(requests.make_dir(path, mode))

    def rmdir(self, path: Path) -> None:
        self.run(requests.rmdir(path))

    def unlink(self, path: Path) -> None:
        self.run(requests.unlink(path))

    def rename(self, src: Path, dst: Path, noreplace: bool = False) -> None:
        self.run(requests.rename(src, dst, noreplace))

    def link(self, src: Path, dst: Path) -> None:
        self.run(requests.link(src, dst))

    def symlink(self, target: Path, path: Path) -> None:
        self.run(requests.symlink(target, path))

    def readlink(self, path: Path) -> Any:
        return self.run(requests.readlink(path, self._view))

    def chmod(self, path: Path, mode: int, *, follow_symlinks: bool = True) -> None:
        self.run(requests.chmod(path, mode, follow_symlinks=follow_symlinks))

    def chown(self, path: Path, uid: int, gid: int, *, follow_symlinks: bool = True) -> None:
        self.run(requests.chown(path, uid, gid, follow_symlinks=follow_symlinks))

    def utime(
        self,
        path: Path,
        times: tuple[float, float] | None = None,
        *,
        ns: tuple[int, int] | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        self.run(requests.utime(path, times, ns=ns, follow_symlinks=follow_symlinks))

    def truncate(self, path: Path, size: int) -> None:
        self.run(requests.truncate(path, size))

    def listdir(self, path: Path = "/") -> list[Any]:
        names: list[Any] = self.run(requests.listdir(path, self._view))
        return names

    def scan(self, path: Path = "/") -> list[tuple[str, int, int]]:
        rows: list[tuple[str, int, int]] = self.run(requests.scan(path, self._view))
        return rows

    def statvfs(self, path: Path = "/") -> os.statvfs_result:
        result: os.statvfs_result = self.run(requests.statvfs(path, self._view))
        return result

    def getxattr(self, path: Path, name: str, *, follow_symlinks: bool = True) -> bytes:
        value: bytes = self.run(
            requests.getxattr(path, name, self._view, follow_symlinks=follow_symlinks)
        )
        return value

    def setxattr(
        self, path: Path, name: str, value: Any, flags: int = 0, *, follow_symlinks: bool = True
    ) -> None:
        self.run(requests.setxattr(path, name, value, flags, follow_symlinks=follow_symlinks))

    def listxattr(self, path: Path, *, follow_symlinks: bool = True) -> list[str]:
        names: list[str] = self.run(
            requests.listxattr(path, self._view, follow_symlinks=follow_symlinks)
        )
        return names

    def removexattr(self, path: Path, name: str, *, follow_symlinks: bool = True) -> None:
        self.run(requests.removexattr(path, name, follow_symlinks=follow_symlinks))

    # ---- many things at once, in few round trips

    def _unlink_all(self, paths: list[Any], report: Callable[..., None]) -> None:
        with self.pipeline() as batch:
            results = [(path, batch.unlink(path)) for path in paths]
            for path, result in results:
                error = result.exception()
                if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                    report(self.unlink, path, error)
                elif error is not None and not isinstance(error, OSError):
                    raise error

    def read_bytes(self, path: Path) -> bytes:
        try:
            data: bytes = self.run(requests.read_bytes(path, self._view))
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            return super().read_bytes(path)
        return data

    def write_bytes(self, path: Path, data: Any) -> int:
        view = requests.byte_view(data)
        if self._view or len(view) > ops.TRANSFER_BYTES_MAX:
            return super().write_bytes(path, view)
        return int(self.run(requests.write_bytes(path, view)))


class RemoteFileSystem(RemoteOperations):
    """The live file system of an arena, by way of the worker at `address`.

    `control` makes the coordinator's requests (snapshots, freeze). `timeout` in seconds is how long
    one operation may take before nova_mp.errors.Timeout is raised; None waits for ever.
    """

    def __init__(
        self,
        address: str,
        control: Any = None,
        *,
        timeout: float | None = 30.0,
        title: str = "",
        keys: Keys | None = None,
    ) -> None:
        self._connection = Connection(address, timeout, title, keys)
        self._control = control
        self.greeting = self._connection.greet()
        self._snapshots = RemoteSnapshots(self)

    @property
    def cpu(self) -> int:
        """The CPU of the worker that runs the operations."""
        return int(self.greeting.cpu)

    @property
    def name(self) -> str:
        """The arena's name."""
        return str(self.greeting.arena)

    @property
    def control(self) -> Any:
        """The client of the coordinator."""
        if self._connection.closed:
            raise ValueError("operation on a closed file system")
        if self._control is None:
            raise EngineNotRunning(
                "this file system was connected to a worker alone",
                "connect to the engine with nova_mp.connect()",
            )
        return self._control

    @property
    def snapshots(self) -> Snapshots:
        return self._snapshots

    def stats(self) -> dict[str, Any]:
        counters: dict[str, Any] = self.run(
            requests.Request(ops.Stats(), lambda reply, payload: dict(reply.stats))
        )
        # Lists arrive as tuples.
        counters["cpus"] = list(counters["cpus"])
        return counters

    def freeze(self, timeout: float = 5.0) -> None:
        self.control.freeze(timeout)

    def unfreeze(self) -> None:
        self.control.unfreeze()

    def close(self) -> None:
        self._connection.close()
        if self._control is not None:
            self._control.close()

    def __repr__(self) -> str:
        return f"<RemoteFileSystem {self.greeting.arena!r} at {self._connection.address}>"


class RemoteSnapshots(Snapshots):
    """The snapshots of an arena, as a worker and the coordinator tell of them."""

    def __init__(self, fs: RemoteFileSystem) -> None:
        self._fs = fs

    def _table(self, only: int | None = None) -> Rows:
        rows: Rows = self._fs.run(
            requests.Request(ops.ListSnapshots(), lambda reply, payload: list(reply.rows))
        )
        return rows

    def _create(self, name: str | None) -> int:
        return int(self._fs.control.snapshot_create(name))

    def _delete(self, epoch_id: int, defer: bool) -> bool:
        return bool(self._fs.control.snapshot_delete(epoch_id, defer=defer))

    def _frees(self, epoch_ids: list[int]) -> int:
        question = ops.SnapshotFrees(tuple(epoch_ids))
        size: int = self._fs.run(
            requests.Request(question, lambda reply, payload: reply.size_bytes)
        )
        return size

    def _open(self, snapshot: Snapshot) -> FileSystem:
        return RemoteSnapshotView(self._fs, snapshot)

    def _wait(self, timeout: float | None) -> None:
        self._fs.control.snapshot_wait(timeout)


class RemoteSnapshotView(ReadOnlyMixin, RemoteOperations):
    """A snapshot, opened read-only in the worker."""

    def __init__(self, fs: RemoteFileSystem, snapshot: Snapshot) -> None:
        self._fs = fs
        self._connection = fs._connection
        self.snapshot = snapshot
        self._view = fs.run(
            requests.Request(ops.OpenView(snapshot.epoch_id), lambda reply, payload: reply.view)
        )
        self._closed = False
        self._pid = os.getpid()

    def run(self, request: requests.Request) -> Any:
        """See RemoteOperations.run."""
        if self._closed:
            raise ValueError("operation on a closed snapshot")
        return super().run(request)

    @property
    def snapshots(self) -> Snapshots:
        return self._fs.snapshots

    def stats(self) -> dict[str, Any]:
        return self._fs.stats()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        # A forked child has a copy of this object, but the view is its parent's.
        if self._pid != os.getpid() or self._connection.closed:
            return
        try:
            super().run(requests.simple(ops.CloseView(self._view)))
        except EngineNotRunning:
            # With the worker went the view.
            return

    def __del__(self) -> None:
        # A finalizer may run in the middle of anything; the view is closed with the next request.
        if not getattr(self, "_closed", True) and self._pid == os.getpid():
            self._connection.forget(ops.CloseView(self._view))

    def __repr__(self) -> str:
        return f"<RemoteSnapshotView {self.snapshot.epoch_id} of {self._fs!r}>"

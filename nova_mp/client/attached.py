"""AttachedFileSystem: the operations run in this process, on the arena's shared memory.

The primitives are the methods of the native core themselves, with no Python frame around them. No
file operation sends a message; only what the coordinator has to decide (create and delete
snapshots, freeze) does, and the socket for that is opened when it is first needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Self

from nova_mp.client.base import FileSystem, Path, ReadOnlyMixin
from nova_mp.client.snapshots import Rows, Snapshot, Snapshots
from nova_mp.client.text import TextFile
from nova_mp.core.fs import Core
from nova_mp.core.segment import Segment, attach_dram, attach_pmem
from nova_mp.errors import EngineNotRunning


class AttachedFileSystem(Core, FileSystem):
    """The live file system of an arena, in shared memory. Made by `AttachedFileSystem.attach`.

    Core comes first, so that its native methods are the primitives; FileSystem adds the rest.
    """

    text_type = TextFile

    name: str = ""
    _segments: tuple[Segment, ...] = ()
    _make_control: Callable[[], Any] | None = None
    _control: Any = None
    _control_pid = 0

    @classmethod
    def attach(
        cls,
        name: str,
        cpu: int | None = None,
        *,
        make_control: Callable[[], Any] | None = None,
        title: str = "",
    ) -> Self:
        """Attach to the mounted arena `name`, as a client of emulated CPU `cpu` (None: any).

        `make_control` makes a client of the coordinator. Raises ArenaNotFound, EngineNotRunning if
        the arena is not mounted, SlotsExhausted if too many processes are attached.
        """
        pmem = attach_pmem(name)
        try:
            dram = attach_dram(name)
        except FileNotFoundError:
            pmem.close()
            raise EngineNotRunning(
                f"arena '{name}' has no running engine", f"start it with: nova-mp start {name}"
            ) from None
        try:
            fs = cls(pmem.buf, dram.buf, dram.fd, role="client", cpu=cpu, title=title)
        except BaseException:
            dram.close()
            pmem.close()
            raise
        fs.name = name
        fs._segments = (pmem, dram)
        fs._make_control = make_control
        return fs

    @property
    def control(self) -> Any:
        """The client of the coordinator; another one after a fork."""
        if self.closed:
            raise ValueError("operation on a closed file system")
        if self._control is None or self._control_pid != os.getpid():
            if self._make_control is None:
                raise EngineNotRunning(
                    "this file system was attached without a way to the coordinator",
                    "attach with nova_mp.attach()",
                )
            self._control = self._make_control()
            self._control_pid = os.getpid()
        return self._control

    @property
    def snapshots(self) -> Snapshots:
        """Create, list, open and delete snapshots."""
        return AttachedSnapshots(self)

    def freeze(self, timeout: float = 5.0) -> None:
        """See FileSystem.freeze."""
        self.control.freeze(timeout)

    def unfreeze(self) -> None:
        """See FileSystem.unfreeze."""
        self.control.unfreeze()

    def close(self) -> None:
        """Leave the arena: open files are closed, and the process slots are given back."""
        control, self._control = self._control, None
        if control is not None and self._control_pid == os.getpid():
            control.close()
        Core.close(self)
        segments, self._segments = self._segments, ()
        for segment in segments:
            try:
                segment.close()
            except BufferError:
                # The core, or a mapping made through it, still holds the memory; it is unmapped
                # with them. The descriptor is ours to close.
                os.close(segment.fd)
                segment.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<AttachedFileSystem {self.name!r}>"

    def __reduce__(self) -> Any:
        raise TypeError("an attached file system cannot be pickled; attach in the other process")


class AttachedSnapshots(Snapshots):
    """The snapshots of an arena, read from shared memory, changed by the coordinator."""

    def __init__(self, fs: AttachedFileSystem) -> None:
        self._fs = fs

    def _table(self, only: int | None = None) -> Rows:
        rows: Rows = self._fs.snapshot_table(only)
        return rows

    def _create(self, name: str | None) -> int:
        return int(self._fs.control.snapshot_create(name))

    def _delete(self, epoch_id: int, defer: bool) -> bool:
        return bool(self._fs.control.snapshot_delete(epoch_id, defer=defer))

    def _frees(self, epoch_ids: list[int]) -> int:
        return int(self._fs.snapshot_frees(epoch_ids))

    def _open(self, snapshot: Snapshot) -> FileSystem:
        return SnapshotView(self._fs, snapshot)

    def _wait(self, timeout: float | None) -> None:
        self._fs.control.snapshot_wait(timeout)


class SnapshotView(ReadOnlyMixin, FileSystem):
    """A snapshot, opened read-only in this process."""

    def __init__(self, fs: AttachedFileSystem, snapshot: Snapshot) -> None:
        self._fs = fs
        self.snapshot = snapshot
        self._core = fs.snapshot_open(snapshot.epoch_id)

    def open(
        self,
        path: Path,
        mode: str = "rb",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        return self._core.open(path, mode, buffering, encoding, errors, newline)

    def os_open(self, path: Path, flags: int, mode: int = 0o666) -> Any:
        return self._core.os_open(path, flags, mode)

    def stat(self, path: Path, *, follow_symlinks: bool = True) -> Any:
        return self._core.stat(path, follow_symlinks=follow_symlinks)

    def lstat(self, path: Path) -> Any:
        return self._core.lstat(path)

    def readlink(self, path: Path) -> Any:
        return self._core.readlink(path)

    def listdir(self, path: Path = "/") -> list[Any]:
        names: list[Any] = self._core.listdir(path)
        return names

    def scan(self, path: Path = "/") -> list[tuple[str, int, int]]:
        rows: list[tuple[str, int, int]] = self._core.scan(path)
        return rows

    def statvfs(self, path: Path = "/") -> os.statvfs_result:
        result: os.statvfs_result = self._core.statvfs(path)
        return result

    def getxattr(self, path: Path, name: str, *, follow_symlinks: bool = True) -> bytes:
        value: bytes = self._core.getxattr(path, name, follow_symlinks=follow_symlinks)
        return value

    def listxattr(self, path: Path, *, follow_symlinks: bool = True) -> list[str]:
        names: list[str] = self._core.listxattr(path, follow_symlinks=follow_symlinks)
        return names

    @property
    def snapshots(self) -> Snapshots:
        return self._fs.snapshots

    def stats(self) -> dict[str, Any]:
        counters: dict[str, Any] = self._fs.stats()
        return counters

    def close(self) -> None:
        self._core.close()

    def __repr__(self) -> str:
        return f"<SnapshotView {self.snapshot.epoch_id} of {self._fs!r}>"

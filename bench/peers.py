"""Other file systems behind the calls that a workload makes, so that a claim is a ratio.

`DirectoryFileSystem` is a directory of the operating system's (tmpfs, ext4, anything mounted) with
the part of `nova_mp.FileSystem` that the laboratory uses. Its calls are the plain `os` functions:
where a loop is timed, `bind_read` and `bind_write` give the system call itself, so that no wrapper
of ours slows the peer down.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any

Bound = tuple[Callable[..., Any], tuple[Any, ...]]

_FLAGS = {
    "rb": os.O_RDONLY,
    "r+b": os.O_RDWR,
    "wb": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    "xb": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
    "w+b": os.O_RDWR | os.O_CREAT | os.O_TRUNC,
    "x+b": os.O_RDWR | os.O_CREAT | os.O_EXCL,
}


class DirectoryFile:
    """An open file of a `DirectoryFileSystem`: positional reads and writes, no buffering."""

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.name = path
        self.pwrite: Callable[[Any, int], int] = partial(os.pwrite, fd)
        self.truncate: Callable[[int], None] = partial(os.ftruncate, fd)
        self.fsync: Callable[[], None] = partial(os.fsync, fd)

    def pread(self, count: int, offset: int) -> bytes:
        """Up to ``count`` bytes from ``offset``."""
        return os.pread(self.fd, count, offset)

    def preadinto(self, buffer: Any, offset: int) -> int:
        """Fill ``buffer`` from ``offset`` and return how many bytes there were."""
        return os.preadv(self.fd, [buffer], offset)

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> DirectoryFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class DirectoryFileSystem:
    """The tree under ``root`` (an absolute path), addressed by absolute paths as in an arena."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")

    def real(self, path: str) -> str:
        """The operating system's path of an absolute path in this tree."""
        return self.root + path

    def open(self, path: str, mode: str = "rb") -> DirectoryFile:
        """Open with one of Python's binary modes. Raises OSError as `os.open`."""
        return self.os_open(path, _FLAGS[mode])

    def os_open(self, path: str, flags: int, mode: int = 0o666) -> DirectoryFile:
        """Open with flags of `os.open`."""
        real = self.real(path)
        return DirectoryFile(os.open(real, flags | os.O_CLOEXEC, mode), real)

    def mkdir(self, path: str, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Make a directory, with its parents if asked."""
        if parents:
            os.makedirs(self.real(path), exist_ok=exist_ok)
            return
        try:
            os.mkdir(self.real(path))
        except FileExistsError:
            if not exist_ok:
                raise

    def unlink(self, path: str) -> None:
        """Remove a file."""
        os.unlink(self.real(path))

    def rename(self, source: str, target: str) -> None:
        """Rename, replacing the target."""
        os.rename(self.real(source), self.real(target))

    def stat(self, path: str) -> os.stat_result:
        """What `os.stat` says."""
        return os.stat(self.real(path))

    def listdir(self, path: str = "/") -> list[str]:
        """The names in a directory."""
        return os.listdir(self.real(path) or "/")

    def read_bytes(self, path: str) -> bytes:
        """A whole file."""
        with open(self.real(path), "rb", buffering=0) as file:
            return file.readall()

    def write_bytes(self, path: str, data: bytes) -> int:
        """Replace a whole file."""
        with open(self.real(path), "wb", buffering=0) as file:
            return file.write(data)

    def walk(self, top: str = "/") -> Iterator[tuple[str, list[str], list[str]]]:
        """As `os.walk`, with paths of this tree."""
        for folder, names, files in os.walk(self.real(top)):
            yield folder[len(self.root) :] or "/", names, files

    def rmtree(self, path: str) -> None:
        """Remove a tree."""
        shutil.rmtree(self.real(path))

    def close(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> DirectoryFileSystem:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def bind_read(file: Any, buffer: Any, offset: int) -> Bound:
    """The call (function, arguments) that fills ``buffer`` from ``offset`` of an open file."""
    if isinstance(file, DirectoryFile):
        return os.preadv, (file.fd, (buffer,), offset)
    return file.preadinto, (buffer, offset)


def bind_write(file: Any, data: Any, offset: int) -> Bound:
    """The call (function, arguments) that writes ``data`` at ``offset`` of an open file."""
    if isinstance(file, DirectoryFile):
        return os.pwrite, (file.fd, data, offset)
    return file.pwrite, (data, offset)


def bind_path(file_system: Any, name: str, *paths: str) -> Bound:
    """The call (function, arguments) of a path operation: stat, unlink, rename."""
    if isinstance(file_system, DirectoryFileSystem):
        return getattr(os, name), tuple(file_system.real(path) for path in paths)
    return getattr(file_system, name), paths


def bind_fsync(file: Any) -> Bound:
    """The call that makes a file durable."""
    if isinstance(file, DirectoryFile):
        return os.fsync, (file.fd,)
    return file.fsync, ()


def bind_create(file_system: Any, path: str) -> Bound:
    """The call that creates, closes and unlinks one file; ``path`` must not exist."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    if isinstance(file_system, DirectoryFileSystem):
        return _create_os, (file_system.real(path), flags | os.O_CLOEXEC)
    return _create_nova, (file_system, path, flags)


def _create_os(path: str, flags: int) -> None:
    os.close(os.open(path, flags))
    os.unlink(path)


def _create_nova(file_system: Any, path: str, flags: int) -> None:
    file_system.os_open(path, flags).close()
    file_system.unlink(path)


def bind_rename(file_system: Any, path: str) -> Bound:
    """The call that renames a file and renames it back, so that it can be repeated."""
    function, (source, target) = bind_path(file_system, "rename", path, path + ".renamed")
    return _rename_twice, (function, source, target)


def _rename_twice(rename: Callable[[str, str], None], source: str, target: str) -> None:
    rename(source, target)
    rename(target, source)


@contextmanager
def scratch_directory(parent: str) -> Iterator[str]:
    """A directory of our own under ``parent``, removed with all it holds."""
    path = tempfile.mkdtemp(prefix=f"nova_mp-peer-{os.getpid()}-", dir=parent)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def file_system_of(path: str) -> str:
    """The type of the file system that holds ``path``, as /proc/mounts names it."""
    real, best, kind = os.path.realpath(path), "", "unknown"
    with open("/proc/mounts", encoding="utf-8", errors="replace") as mounts:
        for line in mounts:
            _, point, found, *_ = line.split()
            inside = real == point or real.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):
                best, kind = point, found
    return kind

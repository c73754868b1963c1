"""What trees are copied between: the machine's file systems and an arena's, asked the same things.

A place's files are read and written at positions, as an arena's are. `read_small` and `write_small`
are there because a remote arena does each of them in one round trip.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from nova_mp.client.entries import join, os_error

if TYPE_CHECKING:
    from nova_mp.client.base import FileSystem

MAX_HOPS = 40


class Machine:
    """The operating system's file systems."""

    lstat = staticmethod(os.lstat)
    stat = staticmethod(os.stat)
    mkdir = staticmethod(os.mkdir)
    chmod = staticmethod(os.chmod)
    readlink = staticmethod(os.readlink)
    symlink = staticmethod(os.symlink)
    unlink = staticmethod(os.unlink)
    isdir = staticmethod(os.path.isdir)
    rmtree = staticmethod(shutil.rmtree)

    def link(self, source: Any, target: Any) -> None:
        """A second name for a file, or for a link itself."""
        os.link(source, target, follow_symlinks=False)

    def utime(self, path: Any, ns: tuple[int, int], follow_symlinks: bool = True) -> None:
        """Set access and modification time, nanoseconds."""
        os.utime(path, ns=ns, follow_symlinks=follow_symlinks)

    def entries(self, path: Any) -> list[tuple[Any, Any]]:
        """(name, attributes) of everything in a directory."""
        with os.scandir(path) as found:
            return [(entry.name, entry.stat(follow_symlinks=False)) for entry in found]

    def read_small(self, path: Any, buffer: memoryview) -> Any:
        """A whole file; `buffer` is there to be used, and bounds what is read."""
        with self.reading(path) as file:
            return buffer[: file.preadinto(buffer, 0)]

    @contextmanager
    def reading(self, path: Any) -> Iterator[_MachineFile]:
        """A file to read from; a link is refused."""
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            yield _MachineFile(number)
        finally:
            os.close(number)

    def write_small(self, path: Any, data: Any, status: Any) -> None:
        """Write a whole file with its mode and times; no half of one is left."""
        with self.writing(path) as file:
            write_all(file, memoryview(data), 0)
        os.chmod(path, stat.S_IMODE(status.st_mode))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    @contextmanager
    def writing(self, path: Any) -> Iterator[_MachineFile]:
        """An empty file to be written; removed if that fails."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        number = os.open(path, flags, 0o600)
        try:
            yield _MachineFile(number)
        except BaseException:
            with suppress(OSError):
                os.unlink(path)
            raise
        finally:
            os.close(number)


class _MachineFile:
    """A descriptor with the positional interface of the arena's files."""

    def __init__(self, number: int) -> None:
        self._number = number

    def preadinto(self, buffer: Any, offset: int) -> int:
        return os.preadv(self._number, [buffer], offset)

    def pwrite(self, data: Any, offset: int) -> int:
        return os.pwrite(self._number, data, offset)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._number, size)


class InArena:
    """A FileSystem, or a snapshot of one, seen as `Machine` is."""

    def __init__(self, fs: FileSystem) -> None:
        self.lstat = fs.lstat
        self.stat = fs.stat
        self.mkdir = fs.make_dir
        self.chmod = fs.chmod
        self.symlink = fs.symlink
        self.unlink = fs.unlink
        self.isdir = fs.isdir
        self.link = fs.link
        self.rmtree = fs.rmtree
        self._fs = fs

    def readlink(self, path: Any) -> Any:
        """Where a link leads."""
        return self._fs.readlink(path)

    def utime(self, path: Any, ns: tuple[int, int], follow_symlinks: bool = True) -> None:
        """Set access and modification time, nanoseconds."""
        self._fs.utime(path, ns=ns, follow_symlinks=follow_symlinks)

    def entries(self, path: Any) -> list[tuple[Any, Any]]:
        """(name, attributes) of everything in a directory, in two round trips if it is remote."""
        names = [entry.name for entry in self._fs.scandir(path)]
        with self._fs.pipeline() as batch:
            found = [(name, batch.lstat(join(path, name))) for name in names]
        return [(name, result.result()) for name, result in found]

    def read_small(self, path: Any, buffer: memoryview) -> Any:
        """A whole file, in one round trip if it is remote."""
        return self._fs.read_bytes(path)

    @contextmanager
    def reading(self, path: Any) -> Iterator[Any]:
        """A file to read from; a link is refused."""
        with self._fs.os_open(path, os.O_RDONLY | os.O_NOFOLLOW) as file:
            yield file

    def write_small(self, path: Any, data: Any, status: Any) -> None:
        """Write a whole file with its mode and times, in one round trip if it is remote."""
        try:
            with self._fs.pipeline() as batch:
                batch.write_bytes(path, data)
                batch.chmod(path, stat.S_IMODE(status.st_mode))
                batch.utime(path, (status.st_atime_ns, status.st_mtime_ns))
        except OSError as error:
            if error.errno == errno.ENOSPC and self._fs.isfile(path):
                # The one thing that fails after what was there is gone.
                self._fs.unlink(path)
            raise

    @contextmanager
    def writing(self, path: Any) -> Iterator[Any]:
        """An empty file to be written; removed if that fails."""
        with self._fs.os_open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) as file:
            try:
                yield file
            except BaseException:
                with suppress(OSError):
                    self._fs.unlink(path)
                raise


def write_all(target: Any, data: memoryview, offset: int) -> None:
    """Write everything; the kernel may take a part of it only, an arena never does."""
    while len(data):
        written = target.pwrite(data, offset)
        data = data[written:]
        offset += written


def same_type(name: Any, path: Any) -> Any:
    """`name` as str or bytes, whichever `path` is."""
    return os.fsencode(name) if isinstance(path, bytes) else os.fsdecode(name)


def resolve(place: Any, path: Any) -> Any:
    """What links at the end of a path lead to, since files are opened without following any."""
    for _hop in range(MAX_HOPS):
        if not stat.S_ISLNK(place.lstat(path).st_mode):
            return path
        path = os.path.join(os.path.dirname(path), same_type(place.readlink(path), path))
    raise os_error(errno.ELOOP, path)

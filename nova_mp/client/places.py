"""What trees are copied between: the machine's file systems and an arena's, asked the same things.

A place's files are read and written at positions, as an arena's are. `read_small` and `write_small`
are there because a remote arena does them in one and in two round trips.

A file is written under a name of its own beside the one it is to have, and renamed when it is
whole. So what was there stays until then, whatever fails, and no half of a file is ever seen.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import string
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from nova_mp.client.entries import join, os_error

if TYPE_CHECKING:
    from nova_mp.client.base import FileSystem

MAX_HOPS = 40
NAME_BYTES_MAX = 255
_ZEROS = bytes(1 << 16)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


class Place(ABC):
    """How files are written, which is the same everywhere."""

    lstat: Any
    stat: Any
    mkdir: Any
    rmdir: Any
    chmod: Any
    chown: Any
    utime: Any
    rename: Any
    link: Any
    symlink: Any
    readlink: Any
    unlink: Any
    isdir: Any

    @abstractmethod
    def _open(self, path: Any, flags: int, mode: int = 0o600) -> Any:
        """An open file; one that is made gets `mode`, less the umask."""

    @abstractmethod
    def _is_descriptor(self, path: Any) -> bool:
        """Whether the path leads to what a process has open, whatever the name of that is."""

    def set_attributes(self, path: Any, status: Any) -> None:
        """Give a file or directory the mode and the times in `status`."""
        self.chmod(path, stat.S_IMODE(status.st_mode))
        self.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    @contextmanager
    def writing(self, path: Any, status: Any = None) -> Iterator[Any]:
        """An empty file to be written, which becomes `path` when the block ends without an error.

        It gets the mode and times in `status`, or keeps the mode of what it replaces, and the owner
        of what it replaces. Links are followed. What is no regular file, or belongs to a
        descriptor, is written into and nothing more; what may be written but not replaced is
        written in place.
        """
        there = self._existing(path)
        try:
            found = None if there is None else there.stat()
            if found is not None and not stat.S_ISREG(found.st_mode):
                yield Stream(there.write)
                return
            if found is not None and self._is_descriptor(path):
                there.truncate(0)
                yield there
                return
            goal = resolve(self, path, missing_ok=True)
            name = beside(goal)
            # Nobody else looks into it before it has the mode of its source.
            private = status is not None or found is not None
            file = self._make(name, path, found, 0o600 if private else 0o666)
            if file is None:
                there.truncate(0)
                yield there
                if status is not None:
                    with suppress(PermissionError):
                        # It may be another's, who lets us write but not change anything else.
                        self.set_attributes(path, status)
                return
        finally:
            if there is not None:
                there.close()
        with self._in_place_of(goal, name):
            try:
                yield file
            finally:
                file.close()
            if status is not None:
                self.set_attributes(name, status)
            elif found is not None:
                self.chmod(name, stat.S_IMODE(found.st_mode))

    def _existing(self, path: Any) -> Any:
        """What is there, open for writing; None if nothing is."""
        try:
            return self._open(path, os.O_WRONLY)
        except FileNotFoundError:
            return None

    def _make(self, name: Any, path: Any, found: Any, mode: int) -> Any:
        """A new file `name`, owned as what it will replace; None if that is not to be had."""
        try:
            file = self._open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except OSError as error:
            if found is not None and error.errno in _NOT_ALLOWED:
                return None
            raise os_error(error.errno or errno.EIO, path) from None
        try:
            self._give(name, file.stat(), found)
        except OSError:
            file.close()
            self.unlink(name)
            return None
        return file

    def _give(self, name: Any, made: Any, found: Any) -> bool:
        """Give the file `name` the owner of the one that was found, unless it has; whether so."""
        if found is None or (made.st_uid, made.st_gid) == (found.st_uid, found.st_gid):
            return False
        self.chown(name, found.st_uid, found.st_gid)
        return True

    @contextmanager
    def _in_place_of(self, goal: Any, name: Any) -> Iterator[None]:
        """Rename `name` to `goal` at the end of the block; if anything fails, remove it."""
        try:
            yield
            self.rename(name, goal)
        except BaseException as error:
            with suppress(OSError):
                self.unlink(name)
            if isinstance(error, OSError) and error.filename == name:
                raise os_error(error.errno or errno.EIO, goal) from None
            raise

    def replace(self, path: Any, make: Callable[[Any], None]) -> None:
        """`make(path)`, a link of either kind; in place of a file or link that is there already."""
        try:
            make(path)
        except FileExistsError:
            if self.is_special(path):
                raise
        else:
            return
        name = beside(path)
        with self._in_place_of(path, name):
            make(name)
        with suppress(FileNotFoundError):
            # Renaming one name of a file to another one changes nothing.
            self.unlink(name)

    def is_special(self, path: Any) -> bool:
        """Whether the name is there and is neither a file's nor a link's."""
        try:
            mode = self.lstat(path).st_mode
        except FileNotFoundError:
            return False
        return not (stat.S_ISREG(mode) or stat.S_ISLNK(mode))


class Machine(Place):
    """The operating system's file systems."""

    lstat = staticmethod(os.lstat)
    stat = staticmethod(os.stat)
    mkdir = staticmethod(os.mkdir)
    rmdir = staticmethod(os.rmdir)
    chmod = staticmethod(os.chmod)
    chown = staticmethod(os.chown)
    utime = staticmethod(os.utime)
    rename = staticmethod(os.rename)
    readlink = staticmethod(os.readlink)
    symlink = staticmethod(os.symlink)
    unlink = staticmethod(os.unlink)
    isdir = staticmethod(os.path.isdir)

    def link(self, source: Any, target: Any) -> None:
        """A second name for a file, or for a link itself."""
        os.link(source, target, follow_symlinks=False)

    def entries(self, path: Any) -> list[tuple[Any, Any]]:
        """(name, attributes) of everything in a directory."""
        with os.scandir(path) as found:
            return [(entry.name, entry.stat(follow_symlinks=False)) for entry in found]

    def read_small(self, path: Any, buffer: memoryview) -> Any:
        """A whole file; `buffer` is there to be used, and bounds what is read."""
        with self.reading(path) as file:
            return buffer[: file.preadinto(buffer, 0)]

    @contextmanager
    def reading(self, path: Any) -> Iterator[Any]:
        """A file to read from; a link is refused."""
        file = self._open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            yield file
        finally:
            file.close()

    def write_small(self, path: Any, data: Any, status: Any) -> None:
        """Write a whole file with its mode and times."""
        with self.writing(path, status) as file:
            write_all(file, memoryview(data), 0)

    def _open(self, path: Any, flags: int, mode: int = 0o600) -> Any:
        return _MachineFile(os.open(path, flags | os.O_CLOEXEC | os.O_NOCTTY, mode))

    def _is_descriptor(self, path: Any) -> bool:
        # Such as /dev/stdout: whoever opened what it leads to goes on writing there.
        path = os.fsdecode(path)
        for _hop in range(MAX_HOPS):
            if not os.path.islink(path):
                return False
            folder = os.path.dirname(path)
            if os.path.realpath(folder).startswith("/proc/"):
                return True
            path = os.path.join(folder, os.readlink(path))
        return False


class _MachineFile:
    """A descriptor with the positional interface of the arena's files."""

    def __init__(self, number: int) -> None:
        self._number = number

    def preadinto(self, buffer: Any, offset: int) -> int:
        # Less than was asked for is not the end of the file, above all not in /proc.
        done = 0
        while done < len(buffer):
            got = os.preadv(self._number, [buffer[done:]], offset + done)
            if got == 0:
                break
            done += got
        return done

    def next_data(self, offset: int) -> tuple[int, int | None]:
        """Where data begin, from `offset` on, and where the next hole does; None: not known."""
        try:
            start = os.lseek(self._number, offset, os.SEEK_DATA)
            return start, os.lseek(self._number, start, os.SEEK_HOLE)
        except OSError as error:
            # ENXIO is a hole up to the end. Others have no idea of holes, as most of /proc.
            size = self.stat().st_size if error.errno == errno.ENXIO else offset
            return max(size, offset), None

    def pwrite(self, data: Any, offset: int) -> int:
        return os.pwrite(self._number, data, offset)

    def write(self, data: Any) -> int:
        return os.write(self._number, data)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._number, size)

    def stat(self) -> os.stat_result:
        return os.fstat(self._number)

    def close(self) -> None:
        os.close(self._number)


class Stream:
    """What can only be written from its start on, such as a pipe; holes become zeros there.

    `write(data)` writes some of it and returns how much.
    """

    def __init__(self, write: Callable[[Any], int]) -> None:
        self._write = write
        self._position = 0

    def pwrite(self, data: Any, offset: int) -> int:
        """Write some of `data`; `offset` never goes back."""
        self.truncate(offset)
        written = self._write(data)
        self._position += written
        return written

    def truncate(self, size: int) -> None:
        """Write zeros up to `size`."""
        while self._position < size:
            self._position += self._write(_ZEROS[: size - self._position])


class InArena(Place):
    """A FileSystem, or a snapshot of one, seen as `Machine` is."""

    def __init__(self, fs: FileSystem) -> None:
        self.lstat = fs.lstat
        self.stat = fs.stat
        self.mkdir = fs.make_dir
        self.rmdir = fs.rmdir
        self.chmod = fs.chmod
        self.chown = fs.chown
        self.utime = fs.utime
        self.rename = fs.rename
        self.readlink = fs.readlink
        self.symlink = fs.symlink
        self.unlink = fs.unlink
        self.isdir = fs.isdir
        self.link = fs.link
        self._fs = fs

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
        """Write a whole file with its mode and times, in two round trips if it is remote."""
        name = beside(path)
        try:
            with self._fs.pipeline() as batch:
                there = batch.lstat(path)
                batch.write_bytes(name, data)
                batch.chmod(name, stat.S_IMODE(status.st_mode))
                batch.utime(name, (status.st_atime_ns, status.st_mtime_ns))
                made = batch.lstat(name)
                missing = isinstance(there.exception(), FileNotFoundError)
            found = None if missing else there.result()
            if found is None or stat.S_ISREG(found.st_mode):
                with self._in_place_of(path, name):
                    if self._give(name, made.result(), found):
                        self.set_attributes(name, status)
                return
        except OSError as error:
            self._drop(name)
            if error.filename == name:
                raise os_error(error.errno or errno.EIO, path) from None
            raise
        except BaseException:
            self._drop(name)
            raise
        self._drop(name)
        # A link, which has to be followed, or a directory, which is an error.
        with self.writing(path, status) as file:
            write_all(file, memoryview(data), 0)

    def _drop(self, name: Any) -> None:
        with suppress(OSError):
            self.unlink(name)

    def _open(self, path: Any, flags: int, mode: int = 0o600) -> Any:
        return self._fs.os_open(path, flags, mode)

    def _is_descriptor(self, path: Any) -> bool:
        return False


def write_all(target: Any, data: memoryview, offset: int) -> None:
    """Write everything; the kernel may take a part of it only, an arena never does."""
    while len(data):
        written = target.pwrite(data, offset)
        data = data[written:]
        offset += written


def beside(path: Any) -> Any:
    """A new name in the same directory, for what is to become `path`: `.NAME.nova-mp-XXXXXX`."""
    letters = string.ascii_lowercase + string.digits
    tail = ".nova-mp-" + "".join(secrets.choice(letters) for _ in range(6))
    name = os.path.basename(path)
    if not name:
        raise os_error(errno.EISDIR, path)
    while len(os.fsencode(name)) > NAME_BYTES_MAX - len(tail) - 1:
        name = name[:-1]
    dot, tail = same_type(".", name), same_type(tail, name)
    return os.path.join(os.path.dirname(path), dot + name + tail)


def same_type(name: Any, path: Any) -> Any:
    """`name` as str or bytes, whichever `path` is."""
    return os.fsencode(name) if isinstance(path, bytes) else os.fsdecode(name)


def resolve(place: Any, path: Any, *, missing_ok: bool = False) -> Any:
    """What links at the end of a path lead to, since files are opened without following any.

    FileNotFoundError if that is nothing, unless `missing_ok`.
    """
    for _hop in range(MAX_HOPS):
        try:
            mode = place.lstat(path).st_mode
        except FileNotFoundError:
            if missing_ok:
                return path
            raise
        if not stat.S_ISLNK(mode):
            return path
        path = os.path.join(os.path.dirname(path), same_type(place.readlink(path), path))
    raise os_error(errno.ELOOP, path)

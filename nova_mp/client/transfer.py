"""Copies files and trees between the machine and an arena: the work of `put` and `get`.

Both directions are one algorithm over two small adapters, `_Machine` (the `os` module) and `_Arena`
(a FileSystem). The source is listed first, so that progress knows its total and a tree with
something that cannot be copied is refused before anything was written. Directories get their modes
and times last, deepest first, since filling them changes both what is allowed and the times.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nova_mp.client.entries import join, os_error

if TYPE_CHECKING:
    from nova_mp.client.base import FileSystem

CHUNK_BYTES = 1 << 20
# A run of zeros of this size, aligned, is worth a hole: eight blocks.
HOLE_BYTES = 1 << 15
_ZEROS = bytes(HOLE_BYTES)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a `put` or `get` has come. `path` is the source that was copied last."""

    path: Any
    files_done: int
    files_total: int
    bytes_done: int
    bytes_total: int


ProgressCallback = Callable[[Progress], Any]


@dataclass(slots=True)
class _Item:
    """One thing to copy: where from, where to (same type of path each), and its attributes."""

    source: Any
    target: Any
    status: Any


@dataclass(slots=True)
class _Plan:
    directories: list[_Item] = field(default_factory=list)
    files: list[_Item] = field(default_factory=list)
    links: list[_Item] = field(default_factory=list)
    bytes_total: int = 0


class _Machine:
    """The operating system's file system."""

    lstat = staticmethod(os.lstat)
    stat = staticmethod(os.stat)
    mkdir = staticmethod(os.mkdir)
    chmod = staticmethod(os.chmod)
    readlink = staticmethod(os.readlink)
    symlink = staticmethod(os.symlink)
    unlink = staticmethod(os.unlink)
    isdir = staticmethod(os.path.isdir)

    def link(self, source: Any, target: Any) -> None:
        os.link(source, target, follow_symlinks=False)

    def utime(self, path: Any, ns: tuple[int, int], follow_symlinks: bool = True) -> None:
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
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            yield _MachineFile(number)
        finally:
            os.close(number)

    def write_small(self, path: Any, data: Any, status: Any) -> None:
        """Write a whole file with its mode and times."""
        with self.writing(path) as file:
            _write_all(file, memoryview(data), 0)
        os.chmod(path, stat.S_IMODE(status.st_mode))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    @contextmanager
    def writing(self, path: Any) -> Iterator[_MachineFile]:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        number = os.open(path, flags, 0o600)
        try:
            yield _MachineFile(number)
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


class _Arena:
    """A FileSystem, seen as `_Machine` is."""

    def __init__(self, fs: FileSystem) -> None:
        self.lstat = fs.lstat
        self.stat = fs.stat
        self.mkdir = fs.make_dir
        self.chmod = fs.chmod
        self.symlink = fs.symlink
        self.unlink = fs.unlink
        self.isdir = fs.isdir
        self.link = fs.link
        self._fs = fs

    def readlink(self, path: Any) -> Any:
        return self._fs.readlink(path)

    def utime(self, path: Any, ns: tuple[int, int], follow_symlinks: bool = True) -> None:
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
        with self._fs.os_open(path, os.O_RDONLY | os.O_NOFOLLOW) as file:
            yield file

    def write_small(self, path: Any, data: Any, status: Any) -> None:
        """Write a whole file with its mode and times, in one round trip if it is remote."""
        with self._fs.pipeline() as batch:
            batch.write_bytes(path, data)
            batch.chmod(path, stat.S_IMODE(status.st_mode))
            batch.utime(path, (status.st_atime_ns, status.st_mtime_ns))

    @contextmanager
    def writing(self, path: Any) -> Iterator[Any]:
        with self._fs.os_open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) as file:
            yield file


def put(
    fs: FileSystem, local: Any, path: Any, progress: ProgressCallback | None = None
) -> Progress:
    """Copy `local` of the machine to `path` in the arena; see FileSystem.put."""
    return _Copy(_Machine(), _Arena(fs), progress).run(os.fspath(local), os.fspath(path))


def get(
    fs: FileSystem, path: Any, local: Any, progress: ProgressCallback | None = None
) -> Progress:
    """Copy `path` of the arena to `local` on the machine; see FileSystem.get."""
    return _Copy(_Arena(fs), _Machine(), progress).run(os.fspath(path), os.fspath(local))


class _Copy:
    """One copy, from `source` to `target`, each a _Machine or an _Arena."""

    def __init__(self, source: Any, target: Any, progress: ProgressCallback | None) -> None:
        self._source = source
        self._target = target
        self._callback = progress
        self._state = Progress(None, 0, 0, 0, 0)
        self._buffer = memoryview(bytearray(CHUNK_BYTES))
        # The target of each inode with several names, so that its other names become links to it.
        self._named: dict[tuple[int, int], Any] = {}

    def run(self, source: Any, target: Any) -> Progress:
        plan = self._plan(source, target)
        total = len(plan.files) + len(plan.links)
        self._state = Progress(source, 0, total, 0, plan.bytes_total)
        for item in plan.directories:
            self._make_directory(item)
        for item in plan.files:
            self._copy_file(item)
        for item in plan.links:
            self._copy_link(item)
        for item in reversed(plan.directories):
            self._set_attributes(item)
        return self._state

    # ---- planning

    def _plan(self, source: Any, target: Any) -> _Plan:
        # The top is followed if it is a link, as `cp -r dir/link` is not but `shutil.copytree` is:
        # whoever names a link as the thing to copy means what it leads to.
        top = _Item(source, target, self._source.stat(source))
        plan = _Plan()
        if not stat.S_ISDIR(top.status.st_mode):
            name = os.path.basename(source)
            if self._target.isdir(target):
                top.target = join(target, _like(name, target))
            top.source = self._resolve(source)
            self._classify(plan, top)
            return plan
        plan.directories.append(top)
        at = 0
        while at < len(plan.directories):
            directory = plan.directories[at]
            at += 1
            entries = self._source.entries(directory.source)
            for name, status in sorted(entries, key=lambda entry: entry[0]):
                below = join(directory.source, name)
                onto = join(directory.target, _like(name, directory.target))
                self._classify(plan, _Item(below, onto, status))
        return plan

    def _resolve(self, source: Any) -> Any:
        """Follow links at the end of a path, since files are opened without following any."""
        for _hop in range(40):
            if not stat.S_ISLNK(self._source.lstat(source).st_mode):
                return source
            said = _like(self._source.readlink(source), source)
            source = os.path.join(os.path.dirname(source), said)
        raise os_error(errno.ELOOP, source)

    @staticmethod
    def _classify(plan: _Plan, item: _Item) -> None:
        mode = item.status.st_mode
        if stat.S_ISDIR(mode):
            plan.directories.append(item)
        elif stat.S_ISREG(mode):
            plan.files.append(item)
            plan.bytes_total += item.status.st_size
        elif stat.S_ISLNK(mode):
            plan.links.append(item)
        else:
            # Devices, sockets and pipes have no contents to copy, and arenas do not hold them.
            raise os_error(errno.EOPNOTSUPP, item.source)

    # ---- copying

    def _make_directory(self, item: _Item) -> None:
        try:
            self._target.mkdir(item.target, 0o700)
        except FileExistsError:
            if not self._target.isdir(item.target):
                raise

    def _copy_file(self, item: _Item) -> None:
        status = item.status
        if status.st_nlink > 1:
            key = (status.st_dev, status.st_ino)
            first = self._named.get(key)
            if first is not None:
                self._replace(item.target, lambda: self._target.link(first, item.target))
                self._advance(item.source, 1, status.st_size)
                return
            self._named[key] = item.target
        if status.st_size < CHUNK_BYTES and not _sparse(status):
            data = self._source.read_small(item.source, self._buffer)
            if status.st_size <= len(data) < CHUNK_BYTES:
                # It has not grown so much meanwhile that this could be a part of it.
                self._target.write_small(item.target, data, status)
                self._advance(item.source, 1, len(data))
                return
        reading, writing = self._source.reading(item.source), self._target.writing(item.target)
        with reading as source, writing as target:
            self._copy_contents(item, source, target)
        self._set_attributes(item)
        self._advance(item.source, 1, 0)

    def _copy_contents(self, item: _Item, source: Any, target: Any) -> None:
        sparse = _sparse(item.status)
        offset = 0
        ends_in_hole = False
        while True:
            got = source.preadinto(self._buffer, offset)
            if got == 0:
                break
            if sparse:
                ends_in_hole = self._write_sparse(target, self._buffer[:got], offset)
            else:
                _write_all(target, self._buffer[:got], offset)
            offset += got
            self._advance(item.source, 0, got)
            if got < CHUNK_BYTES and offset >= item.status.st_size:
                # One question less for every file; one that grows meanwhile is copied as it was.
                break
        if ends_in_hole:
            target.truncate(offset)

    @staticmethod
    def _write_sparse(target: Any, data: memoryview, offset: int) -> bool:
        """Write all but runs of zeros; returns whether the data ended in one that was left out."""
        left_out = False
        for start in range(0, len(data), HOLE_BYTES):
            piece = data[start : start + HOLE_BYTES]
            # As bytes this compares like memcmp; memoryviews compare item by item.
            left_out = bytes(piece) == _ZEROS[: len(piece)]
            if not left_out:
                _write_all(target, piece, offset + start)
        return left_out

    def _copy_link(self, item: _Item) -> None:
        said = self._source.readlink(item.source)
        self._replace(item.target, lambda: self._target.symlink(said, item.target))
        times = (item.status.st_atime_ns, item.status.st_mtime_ns)
        self._target.utime(item.target, ns=times, follow_symlinks=False)
        self._advance(item.source, 1, 0)

    def _replace(self, target: Any, make: Callable[[], None]) -> None:
        """Make a name, in the place of what has it already."""
        try:
            make()
        except FileExistsError:
            self._target.unlink(target)
            make()

    def _set_attributes(self, item: _Item) -> None:
        status = item.status
        self._target.chmod(item.target, stat.S_IMODE(status.st_mode))
        self._target.utime(item.target, ns=(status.st_atime_ns, status.st_mtime_ns))

    def _advance(self, path: Any, files: int, size: int) -> None:
        state = self._state
        self._state = replace(
            state,
            path=path,
            files_done=state.files_done + files,
            bytes_done=state.bytes_done + size,
        )
        if self._callback is not None:
            self._callback(self._state)


def _write_all(target: Any, data: memoryview, offset: int) -> None:
    """Write everything; the kernel may take a part of it only, an arena never does."""
    while len(data):
        written = target.pwrite(data, offset)
        data = data[written:]
        offset += written


def _sparse(status: Any) -> bool:
    """Whether there are holes, so that looking for zeros is worth it."""
    return bool(status.st_blocks * 512 < status.st_size)


def _like(name: Any, path: Any) -> Any:
    """`name` as str or bytes, whichever `path` is."""
    return os.fsencode(name) if isinstance(path, bytes) else os.fsdecode(name)

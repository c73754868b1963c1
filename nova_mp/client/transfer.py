"""Copies files and trees from one place to another: the work of `put` and `get`, and of commands.

The source is listed first, so that progress knows its total and a tree with something that cannot
be copied is refused before anything was written. Directories get their modes and times last,
deepest first, since filling them changes both what is allowed and the times.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nova_mp.client.entries import join, os_error
from nova_mp.client.places import InArena, Machine, resolve, same_type, write_all

if TYPE_CHECKING:
    from nova_mp.client.base import FileSystem

CHUNK_BYTES = 1 << 20
# A run of zeros of this size, aligned, is worth a hole: eight blocks.
HOLE_BYTES = 1 << 15
_ZEROS = bytes(HOLE_BYTES)

# st_dev and st_ino.
_Inode = tuple[int, int]


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
class Item:
    """One thing to copy: where from, where to (same type of path each), and its attributes."""

    source: Any
    target: Any
    status: Any


@dataclass(slots=True)
class _Plan:
    directories: list[Item] = field(default_factory=list)
    files: list[Item] = field(default_factory=list)
    links: list[Item] = field(default_factory=list)
    bytes_total: int = 0


def put(
    fs: FileSystem, local: Any, path: Any, progress: ProgressCallback | None = None
) -> Progress:
    """Copy `local` of the machine to `path` in the arena; see FileSystem.put."""
    return _TreeCopy(Machine(), InArena(fs), progress).run(os.fspath(local), os.fspath(path))


def get(
    fs: FileSystem, path: Any, local: Any, progress: ProgressCallback | None = None
) -> Progress:
    """Copy `path` of the arena to `local` on the machine; see FileSystem.get."""
    return _TreeCopy(InArena(fs), Machine(), progress).run(os.fspath(path), os.fspath(local))


class ItemCopier:
    """Copies single things from one place to another, as they are.

    Modes, times, holes, links and, among what one object copies, further names of a file are kept.
    `moved(path, bytes)` is called for what was copied of a source; `bytes_copied` sums it up,
    without that of further names.
    """

    def __init__(
        self, source: Any, target: Any, moved: Callable[[Any, int], None] = lambda path, count: None
    ) -> None:
        self.source = source
        self.target = target
        self.bytes_copied = 0
        self._moved = moved
        self._buffer = memoryview(bytearray(CHUNK_BYTES))
        # The copy of each inode with several names, so that its other names become links to it:
        # its path, and its inode there. And which inode's copy a path has.
        self._copies: dict[_Inode, tuple[Any, _Inode]] = {}
        self._copied_to: dict[Any, _Inode] = {}

    def make_directory(self, item: Item) -> None:
        """Make a directory, unless it is there; its attributes are set later."""
        try:
            self.target.mkdir(item.target, 0o700)
        except FileExistsError:
            if not self.target.isdir(item.target):
                raise

    def copy_file(self, item: Item) -> None:
        """Copy a file, or link to the copy that was made of it."""
        status = item.status
        if status.st_nlink == 1:
            self.copy_contents(item)
            return
        inode = _inode(status)
        first = self._copy_of(inode)
        if first is None or self.target.is_special(item.target):
            self.copy_contents(item)
            self._remember(inode, item.target)
        else:
            self._forget(item.target)
            self.target.replace(item.target, lambda name: self.target.link(first, name))
            self._moved(item.source, status.st_size)

    def copy_link(self, item: Item) -> None:
        """Copy a symbolic link."""
        said = self.source.readlink(item.source)
        self._forget(item.target)
        self.target.replace(item.target, lambda name: self.target.symlink(said, name))
        times = (item.status.st_atime_ns, item.status.st_mtime_ns)
        self.target.utime(item.target, ns=times, follow_symlinks=False)

    def set_attributes(self, item: Item) -> None:
        """Give the target the mode and the times of the source."""
        self.target.set_attributes(item.target, item.status)

    def copy_contents(self, item: Item) -> None:
        """Copy a file, whatever other names it has."""
        self._forget(item.target)
        status = item.status
        if status.st_size < CHUNK_BYTES and not _sparse(status):
            data = self.source.read_small(item.source, self._buffer)
            if status.st_size <= len(data) < CHUNK_BYTES:
                # It has not grown so much meanwhile that this could be a part of it.
                self.target.write_small(item.target, data, status)
                self._advance(item.source, len(data))
                return
        with (
            self.source.reading(item.source) as source,
            self.target.writing(item.target, status) as target,
        ):
            self._copy_data(item, source, target)

    def _copy_data(self, item: Item, source: Any, target: Any) -> None:
        sparse = _sparse(item.status)
        # Only the kernel says where its holes are; those of an arena are known by their zeros.
        next_data = getattr(source, "next_data", None) if sparse else None
        offset = reach = 0
        while True:
            wanted, start = self._buffer, offset
            if next_data is not None:
                start, end = next_data(offset)
                wanted = wanted if end is None else wanted[: end - start]
            got = source.preadinto(wanted, start)
            data = wanted[:got]
            if not sparse:
                write_all(target, data, start)
                reach = start + got
            elif got:
                reach = self._write_sparse(target, data, start) or reach
            self._advance(item.source, start + got - offset)
            offset = start + got
            if got < len(wanted):
                # The size says nothing: it may have changed, and files of /proc have none.
                break
        if reach < offset:
            target.truncate(offset)

    @staticmethod
    def _write_sparse(target: Any, data: memoryview, offset: int) -> int:
        """Write all but runs of zeros; returns where the last that was written ends, or 0."""
        reach = 0
        for start in range(0, len(data), HOLE_BYTES):
            piece = data[start : start + HOLE_BYTES]
            # As bytes this compares like memcmp; memoryviews compare item by item.
            if bytes(piece) != _ZEROS[: len(piece)]:
                write_all(target, piece, offset + start)
                reach = offset + start + len(piece)
        return reach

    def _copy_of(self, inode: _Inode) -> Any:
        """The path of the copy of an inode; None without one that is as this copier left it."""
        path, made = self._copies.get(inode, (None, None))
        if path is None:
            return None
        try:
            return path if _inode(self.target.lstat(path)) == made else None
        except OSError:
            return None

    def _remember(self, inode: _Inode, target: Any) -> None:
        there = self.target.lstat(target)
        if stat.S_ISREG(there.st_mode):
            self._copies[inode] = target, _inode(there)
            self._copied_to[target] = inode

    def _forget(self, target: Any) -> None:
        """What was copied to `target` will not be there any more."""
        inode = self._copied_to.pop(target, None)
        if inode is not None:
            self._copies.pop(inode, None)

    def _advance(self, path: Any, count: int) -> None:
        self.bytes_copied += count
        self._moved(path, count)


class _TreeCopy:
    """One `put` or `get`."""

    def __init__(self, source: Any, target: Any, progress: ProgressCallback | None) -> None:
        self._copier = ItemCopier(source, target, lambda path, count: self._advance(path, 0, count))
        self._callback = progress
        self._state = Progress(None, 0, 0, 0, 0)

    def run(self, source: Any, target: Any) -> Progress:
        plan = self._plan(source, target)
        total = len(plan.files) + len(plan.links)
        self._state = Progress(source, 0, total, 0, plan.bytes_total)
        for item in plan.directories:
            self._copier.make_directory(item)
        for item in plan.files:
            self._copier.copy_file(item)
            self._advance(item.source, 1, 0)
        for item in plan.links:
            self._copier.copy_link(item)
            self._advance(item.source, 1, 0)
        for item in reversed(plan.directories):
            self._copier.set_attributes(item)
        return self._state

    def _plan(self, source: Any, target: Any) -> _Plan:
        # The top is followed if it is a link, as `cp -r dir/link` is not but `shutil.copytree` is:
        # whoever names a link as the thing to copy means what it leads to.
        there = self._copier.source
        top = Item(source, target, there.stat(source))
        plan = _Plan()
        if not stat.S_ISDIR(top.status.st_mode):
            name = os.path.basename(source)
            if self._copier.target.isdir(target):
                top.target = join(target, same_type(name, target))
            top.source = resolve(there, source)
            self._classify(plan, top)
            return plan
        plan.directories.append(top)
        at = 0
        while at < len(plan.directories):
            directory = plan.directories[at]
            at += 1
            entries = there.entries(directory.source)
            for name, status in sorted(entries, key=lambda entry: entry[0]):
                below = join(directory.source, name)
                onto = join(directory.target, same_type(name, directory.target))
                self._classify(plan, Item(below, onto, status))
        return plan

    @staticmethod
    def _classify(plan: _Plan, item: Item) -> None:
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


def _sparse(status: Any) -> bool:
    """Whether there are holes, so that looking for zeros is worth it."""
    return bool(status.st_blocks * 512 < status.st_size)


def _inode(status: Any) -> _Inode:
    return status.st_dev, status.st_ino

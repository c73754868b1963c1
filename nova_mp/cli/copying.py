"""Copies files and trees between places: arenas, their snapshots, the machine's own file systems.

FileSystem.put and get stop at the first error; a command goes on with the rest and says what it
could not do. So the walk is here, over two places that answer the same few questions. A file that
could not be copied whole is removed: no half of a file is left under its name.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from nova_mp.cli.operands import Arenas, Operand
from nova_mp.cli.report import Refused, Report

CHUNK_BYTES = 1 << 20


class Local:
    """The machine's file systems, under the names that FileSystem gives to the operations."""

    lstat = staticmethod(os.lstat)
    stat = staticmethod(os.stat)
    make_dir = staticmethod(os.mkdir)
    symlink = staticmethod(os.symlink)
    readlink = staticmethod(os.readlink)
    unlink = staticmethod(os.unlink)
    rename = staticmethod(os.rename)
    chmod = staticmethod(os.chmod)
    isdir = staticmethod(os.path.isdir)

    @staticmethod
    def open(path: str, mode: str) -> Any:
        """An unbuffered file."""
        return open(path, mode, buffering=0)

    @staticmethod
    def utime(path: str, *, ns: tuple[int, int], follow_symlinks: bool = True) -> None:
        """Set access and modification time in nanoseconds."""
        os.utime(path, ns=ns, follow_symlinks=follow_symlinks)

    @staticmethod
    def listdir(path: str) -> list[str]:
        """Names in a directory."""
        return os.listdir(path)

    @staticmethod
    def rmtree(path: str) -> None:
        """Remove a tree."""
        import shutil

        shutil.rmtree(path)


def place_of(arenas: Arenas, operand: Operand) -> Any:
    """What to ask about `operand`: a FileSystem, or the machine."""
    return Local() if operand.arena is None else arenas.open(operand)


@dataclass
class Totals:
    """What was copied, and what there is to copy."""

    files: int = 0
    directories: int = 0
    links: int = 0
    skipped: int = 0
    bytes: int = 0
    bytes_total: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        names = ("files", "directories", "links", "skipped", "bytes", "seconds")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Item:
    """One file, directory or link to be copied."""

    source: Operand
    target: Operand
    status: Any


@dataclass
class Copier:
    """Copies operands one after the other, counting as it goes.

    `advance(path, bytes)` is called for each chunk, `verbose(item)` for each thing that is done.
    """

    report: Report
    arenas: Arenas
    recursive: bool = False
    no_clobber: bool = False
    advance: Callable[[str, int], None] = lambda path, count: None
    verbose: Callable[[Item], None] = lambda item: None
    totals: Totals = field(default_factory=Totals)
    _buffer: memoryview = field(default_factory=lambda: memoryview(bytearray(CHUNK_BYTES)))

    def plan(self, source: Operand, target: Operand) -> list[Item]:
        """Everything that copying `source` to `target` means, parents first; counts its bytes."""
        items: list[Item] = []
        with self.report.attempt(str(source), counts=False):
            place = place_of(self.arenas, source)
            status = place.lstat(source.path) if self.recursive else place.stat(source.path)
            if stat.S_ISDIR(status.st_mode):
                self._check_tree(source, target)
            items = list(self._walk(Item(source, target, status)))
        self.totals.bytes_total += sum(
            item.status.st_size for item in items if stat.S_ISREG(item.status.st_mode)
        )
        return items

    def run(self, items: list[Item]) -> None:
        """Copy what was planned; a directory that cannot be made takes what is in it along."""
        started = time.monotonic()
        lost: list[str] = []
        for item in items:
            if any(str(item.source).startswith(prefix) for prefix in lost):
                continue
            before = len(self.report.problems)
            with self.report.attempt(str(item.source)):
                self._copy(item)
            if len(self.report.problems) > before and stat.S_ISDIR(item.status.st_mode):
                lost.append(f"{str(item.source).rstrip('/')}/")
        for item in reversed(items):
            # Last of all, since every name made in a directory moves its time.
            if stat.S_ISDIR(item.status.st_mode) and f"{item.source}/" not in lost:
                with self.report.attempt(
                    str(item.target), verb="set the attributes of", counts=False
                ):
                    self._set_attributes(item)
        self.totals.seconds += time.monotonic() - started

    def _check_tree(self, source: Operand, target: Operand) -> None:
        if not self.recursive:
            raise Refused("it is a directory", "copy it with all that it holds: cp -r")
        same = (source.arena, source.snapshot) == (target.arena, target.snapshot)
        ends = [os.path.abspath(o.path) if o.arena is None else o.path for o in (source, target)]
        if same and os.path.commonpath(ends) == ends[0]:
            raise Refused("a directory cannot be copied into itself")

    def _walk(self, top: Item) -> Iterator[Item]:
        stack = [top]
        place = place_of(self.arenas, top.source)
        while stack:
            item = stack.pop()
            yield item
            if not stat.S_ISDIR(item.status.st_mode):
                continue
            with self.report.attempt(str(item.source), counts=False):
                for name in sorted(place.listdir(item.source.path), reverse=True):
                    below = item.source.child(name)
                    stack.append(Item(below, item.target.child(name), place.lstat(below.path)))

    def _copy(self, item: Item) -> None:
        source = place_of(self.arenas, item.source)
        target = place_of(self.arenas, item.target)
        mode = item.status.st_mode
        if stat.S_ISDIR(mode):
            try:
                target.make_dir(item.target.path, 0o700)
            except FileExistsError:
                if not target.isdir(item.target.path):
                    raise
            self.totals.directories += 1
        elif self.no_clobber and _exists(target, item.target.path):
            self.totals.skipped += 1
            self.advance(str(item.source), item.status.st_size)
            return
        elif stat.S_ISLNK(mode):
            if _exists(target, item.target.path):
                target.unlink(item.target.path)
            target.symlink(source.readlink(item.source.path), item.target.path)
            self.totals.links += 1
        elif stat.S_ISREG(mode):
            self._check_same(item, target)
            self._copy_file(item, source, target)
            self.totals.files += 1
        else:
            raise Refused("it is a device, a pipe or a socket", "only files, directories and links")
        self.verbose(item)

    def _check_same(self, item: Item, target: Any) -> None:
        if item.source.arena != item.target.arena or item.source.snapshot:
            return
        try:
            there = target.stat(item.target.path)
        except OSError:
            return
        if (there.st_dev, there.st_ino) == (item.status.st_dev, item.status.st_ino):
            raise Refused(f"'{item.target}' is the same file")

    def _copy_file(self, item: Item, source: Any, target: Any) -> None:
        name = str(item.source)
        with (
            source.open(item.source.path, "rb") as reader,
            target.open(item.target.path, "wb") as writer,
        ):
            try:
                while count := reader.readinto(self._buffer):
                    write_all(writer, self._buffer[:count])
                    self.totals.bytes += count
                    self.advance(name, count)
            except BaseException:
                target.unlink(item.target.path)
                raise
        self._set_attributes(item)

    def _set_attributes(self, item: Item) -> None:
        target = place_of(self.arenas, item.target)
        status = item.status
        target.chmod(item.target.path, stat.S_IMODE(status.st_mode))
        target.utime(item.target.path, ns=(status.st_atime_ns, status.st_mtime_ns))


def write_all(writer: Any, data: memoryview) -> None:
    """Write everything; a local file may take a part at a time."""
    while len(data):
        data = data[writer.write(data) :]


def _exists(place: Any, path: str) -> bool:
    try:
        place.lstat(path)
    except FileNotFoundError:
        return False
    return True


def targets(arenas: Arenas, sources: list[Operand], target: Operand) -> list[Operand]:
    """Where each of `sources` goes: to `target`, or into it if it is a directory.

    Raises NotADirectoryError when several go to what is no directory, OSError(EROFS) when the
    target is in a snapshot, and Refused when nothing is in an arena: a forgotten `:/` must not
    make a local file called as the arena is.
    """
    if target.arena is None and all(source.arena is None for source in sources):
        raise Refused("none of these is in an arena", f"write {target.path}:/ for the arena's root")
    if target.snapshot is not None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), target.path)
    if place_of(arenas, target).isdir(target.path):
        # A root, "." and ".." have no name of their own: what they hold goes into the target.
        nameless = ("", ".", "..")
        return [target if s.name in nameless else target.child(s.name) for s in sources]
    if len(sources) > 1 or (target.arena is None and target.path.endswith("/")):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), target.path)
    return [target]

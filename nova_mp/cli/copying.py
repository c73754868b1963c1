"""Copies files and trees between places: arenas, their snapshots, the machine's own file systems.

FileSystem.put and get stop at the first error; a command goes on with the rest and says what it
could not do. So the walk is here; things are copied one by one as put and get copy them.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from nova_mp.cli.operands import Arenas, Operand
from nova_mp.cli.report import Refused, Report
from nova_mp.client import transfer
from nova_mp.client.places import InArena, Machine, resolve


def place_of(arenas: Arenas, operand: Operand) -> Any:
    """What to ask about `operand`: an arena or snapshot, or the machine."""
    return Machine() if operand.arena is None else InArena(arenas.open(operand))


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
    _copiers: dict[tuple[Any, ...], transfer.ItemCopier] = field(default_factory=dict, init=False)

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
                entries = place.entries(item.source.path)
                for name, status in sorted(entries, key=lambda entry: entry[0], reverse=True):
                    below = item.source.child(name)
                    stack.append(Item(below, item.target.child(name), status))

    def _copier(self, item: Item) -> transfer.ItemCopier:
        """What copies between the places of `item`; names of one file are told apart by place."""
        source, target = item.source, item.target
        key = (source.arena, source.snapshot, target.arena)
        if key not in self._copiers:
            self._copiers[key] = transfer.ItemCopier(
                place_of(self.arenas, source),
                place_of(self.arenas, target),
                lambda path, count: self.advance(str(replace(source, path=path)), count),
            )
        return self._copiers[key]

    def _copy(self, item: Item) -> None:
        copier = self._copier(item)
        thing = transfer.Item(item.source.path, item.target.path, item.status)
        mode = item.status.st_mode
        if stat.S_ISDIR(mode):
            copier.make_directory(thing)
            self.totals.directories += 1
        elif self.no_clobber and _exists(copier.target, item.target.path):
            self.totals.skipped += 1
            self.advance(str(item.source), item.status.st_size)
            return
        elif stat.S_ISLNK(mode):
            copier.copy_link(thing)
            self.totals.links += 1
        elif stat.S_ISREG(mode):
            self._check_same(item, copier.target)
            if not self.recursive:
                thing.source = resolve(copier.source, thing.source)
            before = copier.bytes_copied
            try:
                copier.copy_file(thing)
            finally:
                self.totals.bytes += copier.bytes_copied - before
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

    def _set_attributes(self, item: Item) -> None:
        self._copier(item).set_attributes(
            transfer.Item(item.source.path, item.target.path, item.status)
        )


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

"""Copies files and trees between places: arenas, their snapshots, the machine's own file systems.

FileSystem.put and get stop at the first error; a command goes on with the rest and says what it
could not do. So the walk is here; things are copied one by one as put and get copy them.

As cp and mv of the system do, a command never overwrites what it has just made itself.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import click

from nova_mp.cli.operands import Arenas, Operand, OperandType
from nova_mp.cli.report import Refused, Report, problem_of
from nova_mp.client import transfer
from nova_mp.client.entries import os_error
from nova_mp.client.places import InArena, Machine, Stream, resolve, write_all

# Standard input as a source, standard output as a target.
STANDARD = Operand(None, None, "-")


class TargetType(OperandType):
    """An operand that keeps a slash at its end, which says that it is a directory."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Operand:
        operand = super().convert(value, param, ctx)
        if operand.arena is None or operand.path == "/" or not str(value).endswith(("/", "/.")):
            return operand
        return replace(operand, path=f"{operand.path}/")


class _Output:
    """Standard output, as the place that everything is written to."""

    def write_small(self, path: Any, data: Any, status: Any) -> None:
        with self.writing(path, status) as file:
            write_all(file, memoryview(data), 0)

    @contextmanager
    def writing(self, path: Any, status: Any) -> Iterator[Stream]:
        sys.stdout.flush()
        yield Stream(sys.stdout.buffer.write)
        sys.stdout.buffer.flush()


def place_of(arenas: Arenas, operand: Operand) -> Any:
    """What to ask about `operand`: an arena or snapshot, the machine, or standard output."""
    if operand.arena is not None:
        return InArena(arenas.open(operand))
    return _Output() if operand == STANDARD else Machine()


def engine_of(arenas: Arenas, operand: Operand) -> str | None:
    """Which engine has `operand`, by whatever name it was called; None for the machine."""
    if operand.arena is None:
        return None
    fs: Any = arenas.open(replace(operand, snapshot=None))
    greeting = getattr(fs, "greeting", None) or fs.control.hello()
    return str(greeting.engine_id)


def same_arena(arenas: Arenas, one: Operand, other: Operand) -> bool:
    """Whether two operands are on the same engine, or both on the machine."""
    return one.arena == other.arena or engine_of(arenas, one) == engine_of(arenas, other)


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
    With `moves` pipes and devices are not written into: a file that is moved is not used up.
    """

    report: Report
    arenas: Arenas
    recursive: bool = False
    no_clobber: bool = False
    moves: bool = False
    advance: Callable[[str, int], None] = lambda path, count: None
    verbose: Callable[[Item], None] = lambda item: None
    totals: Totals = field(default_factory=Totals)
    _copiers: dict[tuple[Any, ...], transfer.ItemCopier] = field(default_factory=dict, init=False)
    _made: set[Operand] = field(default_factory=set, init=False)
    _same: dict[tuple[str | None, str | None], bool] = field(default_factory=dict, init=False)

    def plan(self, source: Operand, target: Operand) -> list[Item]:
        """Everything that copying `source` to `target` means, parents first; counts its bytes."""
        items: list[Item] = []
        with self.report.attempt(str(source), counts=False):
            place = place_of(self.arenas, source)
            followed = self._follows(target)
            status = place.stat(source.path) if followed else place.lstat(source.path)
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

    def remove(self, items: list[Item]) -> None:
        """Remove the sources of what was planned and copied, unless they have changed since."""
        kept: set[str] = set()
        for item in reversed(items):
            name = str(item.source).rstrip("/")
            before = len(self.report.problems)
            if name not in kept:
                with self.report.attempt(str(item.source), verb="remove", counts=False):
                    self._remove(item)
            if name in kept or len(self.report.problems) > before:
                kept.add(os.path.dirname(name))

    def _remove(self, item: Item) -> None:
        place = place_of(self.arenas, item.source)
        path = item.source.path
        if not stat.S_ISDIR(item.status.st_mode):
            if _version(place.lstat(path)) != _version(item.status):
                raise Refused("it has changed since it was copied", "copy it again")
            place.unlink(path)
            return
        try:
            place.rmdir(path)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            for name, _status in place.entries(path):
                new = Refused("it was added while the rest was copied", "copy it, too")
                self.report.problem(problem_of(new, "move", str(item.source.child(name))))

    def _follows(self, target: Operand) -> bool:
        """Whether a source that is a link stands for what it leads to."""
        return not self.recursive or target == STANDARD

    def _check_tree(self, source: Operand, target: Operand) -> None:
        if target == STANDARD:
            raise Refused("it is a directory", "only files can be written to standard output")
        if not self.recursive:
            raise Refused("it is a directory", "copy it with all that it holds: cp -r")
        same = source.snapshot is None and self._same_arena(source, target)
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
        to_output = item.target == STANDARD
        if (
            self.no_clobber
            and not (to_output or stat.S_ISDIR(mode))
            and exists(copier.target, thing.target)
        ):
            self.totals.skipped += 1
            self.advance(str(item.source), item.status.st_size)
            return
        if item.target in self._made:
            raise Refused(f"will not overwrite just-created '{item.target}'")
        if stat.S_ISDIR(mode):
            copier.make_directory(thing)
            self.totals.directories += 1
        elif stat.S_ISLNK(mode):
            copier.copy_link(thing)
            self.totals.links += 1
        elif stat.S_ISREG(mode):
            if not to_output:
                self._check_target(item, copier.target)
            if self._follows(item.target):
                thing.source = resolve(copier.source, thing.source)
            self._copy_file(item, copier, thing)
        else:
            raise Refused("it is a device, a pipe or a socket", "only files, directories and links")
        if not (to_output or stat.S_ISDIR(mode)):
            self._made.add(item.target)
        self.verbose(item)

    def _copy_file(self, item: Item, copier: transfer.ItemCopier, thing: transfer.Item) -> None:
        before = copier.bytes_copied
        try:
            if item.target == STANDARD:
                copier.copy_contents(thing)
            else:
                copier.copy_file(thing)
        except BrokenPipeError:
            if item.target == STANDARD:
                raise
            raise Refused(f"nobody reads '{item.target}' any more") from None
        finally:
            self.totals.bytes += copier.bytes_copied - before
        self.totals.files += 1

    def _check_target(self, item: Item, target: Any) -> None:
        same_arena = not item.source.snapshot and self._same_arena(item.source, item.target)
        if not same_arena and item.target.arena is not None:
            return
        try:
            there = target.stat(item.target.path)
        except OSError:
            return
        # Inodes of different arenas have the same numbers.
        same = (there.st_dev, there.st_ino) == (item.status.st_dev, item.status.st_ino)
        if same_arena and same:
            raise Refused(f"'{item.target}' is the same file")
        if self.moves and not (stat.S_ISREG(there.st_mode) or stat.S_ISDIR(there.st_mode)):
            raise Refused(f"'{item.target}' is a device, a pipe or a socket")

    def _same_arena(self, one: Operand, other: Operand) -> bool:
        key = (one.arena, other.arena)
        if key not in self._same:
            self._same[key] = same_arena(self.arenas, one, other)
        return self._same[key]

    def _set_attributes(self, item: Item) -> None:
        self._copier(item).set_attributes(
            transfer.Item(item.source.path, item.target.path, item.status)
        )


def exists(place: Any, path: str) -> bool:
    """Whether the name is there, whatever it may be."""
    try:
        place.lstat(path)
    except FileNotFoundError:
        return False
    return True


def _version(status: Any) -> tuple[int, ...]:
    """What changes with a file's contents. (Its ctime changes with its other names, too.)"""
    names = ("st_dev", "st_ino", "st_mode", "st_size", "st_mtime_ns")
    return tuple(getattr(status, name) for name in names)


def targets(arenas: Arenas, sources: list[Operand], target: Operand) -> list[Operand]:
    """Where each of `sources` goes: to `target`, or into it if it is a directory.

    Raises NotADirectoryError when several, or a file, go to what has to be a directory but is none,
    OSError(EROFS) when the target is in a snapshot, and Refused when nothing is in an arena: a
    forgotten `:/` must not make a local file called as the arena is.
    """
    if target.arena is None and all(source.arena is None for source in sources):
        raise Refused("none of these is in an arena", f"write {target.path}:/ for the arena's root")
    if target.snapshot is not None:
        raise os_error(errno.EROFS, target.path)
    if target == STANDARD:
        return [target for _source in sources]
    place = place_of(arenas, target)
    plain = replace(target, path=target.path.rstrip("/") or "/")
    if place.isdir(plain.path):
        if STANDARD in sources:
            hint = "name the file to be written, not a directory"
            raise Refused("standard input has no name", hint)
        # A root, "." and ".." have no name of their own: what they hold goes into the target.
        nameless = ("", ".", "..")
        return [plain if s.name in nameless else plain.child(s.name) for s in sources]
    if len(sources) > 1:
        raise os_error(errno.ENOTDIR, target.path)
    if plain != target and (exists(place, plain.path) or not _is_directory(arenas, sources[0])):
        raise os_error(errno.ENOTDIR, target.path)
    return [plain]


def _is_directory(arenas: Arenas, source: Operand) -> bool:
    return source != STANDARD and bool(place_of(arenas, source).isdir(source.path))

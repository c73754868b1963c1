"""What commands are given: `NAME:/path`, `NAME@SNAPSHOT:/path`, local paths, names of arenas.

A NAME may be `tcp://HOST:PORT` too: then the arena is that of the engine there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import click
from click.shell_completion import CompletionItem

from nova_mp import config
from nova_mp.core import segment
from nova_mp.errors import NovaError

if TYPE_CHECKING:
    from nova_mp.client.base import FileSystem

# What names an arena: its name, or where an engine listens for clients with keys.
_ARENA = r"(?:tcp://(?:\[[0-9A-Fa-f:]+\]|[^:/@\s]+):\d{1,5}|[A-Za-z0-9][A-Za-z0-9_.-]{0,63})"
# A snapshot's name may hold anything but ":/", so the first ":/" (or a final ":") ends it.
ARENA_OPERAND = re.compile(
    rf"(?P<arena>{_ARENA})(?:@(?P<snapshot>.+?))?:(?P<path>/.*)?", re.DOTALL
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}(@[^:/]+)?")
_NO_SLASH = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,63})(@[^:/]+)?:(.+)", re.DOTALL)


# Eleven days; a poll cannot wait for much more than twice that.
SECONDS_MAX = 1_000_000.0


@dataclass(frozen=True)
class Operand:
    """A file named by the user: in an arena, in one of its snapshots, or (no arena) local."""

    arena: str | None
    snapshot: str | None
    path: str

    def __str__(self) -> str:
        if self.arena is None:
            return self.path
        return f"{self.arena}{f'@{self.snapshot}' if self.snapshot else ''}:{self.path}"

    @property
    def name(self) -> str:
        """The last part of the path; "" for a root."""
        return os.path.basename(os.path.normpath(self.path).lstrip("/"))

    def child(self, name: str) -> Operand:
        """The file `name` in this directory."""
        return Operand(self.arena, self.snapshot, os.path.join(self.path, name))


def parse(text: str, *, local: bool = False) -> Operand:
    """The operand that `text` names; with `local` it may be a local path. ValueError if neither."""
    match = ARENA_OPERAND.fullmatch(text)
    if match:
        path = os.path.normpath(match["path"] or "/")
        # A path may begin with two slashes and mean something else by it; not in an arena.
        path = "/" + path.lstrip("/")
        return Operand(match["arena"], match["snapshot"], path)
    if local and (os.path.lexists(text) or not _NO_SLASH.fullmatch(text)):
        return Operand(None, None, text)
    if match := _NO_SLASH.fullmatch(text):
        better = f"{match[1]}{match[2] or ''}:/{match[3]}"
        raise ValueError(f"paths in an arena begin with a slash: {better}")
    example = f"{text}:/" if _NAME.fullmatch(text) else "NAME:/path or NAME@SNAPSHOT:/path"
    raise ValueError(f"{text!r} names no file in an arena: write {example}")


def in_an_arena(text: str) -> bool:
    """Whether `text` names a file in an arena, and no local path."""
    return ARENA_OPERAND.fullmatch(text) is not None


class ArenaType(click.ParamType):
    """The name of an arena, completed from those that exist."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return segment.check_name(value)
        except ValueError as error:
            if ":" in str(value):
                self.fail(f"{value!r} names a file; here goes the name of an arena", param, ctx)
            self.fail(str(error), param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(name) for name in _arenas() if name.startswith(incomplete)]


class SecondsType(click.ParamType):
    """A time in seconds: a number above `least`, and an end to it."""

    name = "seconds"

    def __init__(self, least: float = 0.0, *, least_too: bool = False) -> None:
        self.least = least
        self.least_too = least_too

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            seconds = float(value)
        except ValueError:
            self.fail(f"{value!r} is no number of seconds", param, ctx)
        enough = seconds >= self.least if self.least_too else seconds > self.least
        if not (enough and seconds <= SECONDS_MAX):
            how = "at least" if self.least_too else "more than"
            self.fail(
                f"{value} is no time to wait: give {how} {self.least:g} and at most"
                f" {SECONDS_MAX:,.0f} seconds",
                param,
                ctx,
            )
        return seconds


class SizeType(click.ParamType):
    """A number of bytes such as 64MiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return config.parse_size(int(value) if str(value).isdecimal() else value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class OperandType(click.ParamType):
    """`NAME:/path`, or with `local` a path of the machine; completed as far as the engine runs."""

    name = "operand"

    def __init__(self, *, local: bool = False) -> None:
        self.local = local

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Operand:
        if isinstance(value, Operand):
            return value
        try:
            return parse(value, local=self.local)
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        if match := ARENA_OPERAND.fullmatch(incomplete):
            return [CompletionItem(name) for name in _paths(match)]
        items = [CompletionItem(f"{n}:/") for n in _arenas() if n.startswith(incomplete)]
        if self.local:
            items.append(CompletionItem(incomplete, type="file"))
        return items


def _arenas() -> list[str]:
    try:
        return segment.arena_names()
    except OSError:
        return []


def _paths(match: re.Match[str]) -> list[str]:
    """Completions of a path in a running arena; none when it cannot be looked into."""
    folder, _, start = (match["path"] or "/").rpartition("/")
    head = match[0][: match.start("path")] if match["path"] else match[0]
    operand = Operand(match["arena"], match["snapshot"], folder or "/")
    try:
        with Arenas() as arenas:
            found = arenas.open(operand).scan(operand.path)
    except (OSError, NovaError):
        return []
    texts = sorted(
        f"{head}{folder}/{name}{'/' if kind == 4 else ''}"
        for name, _ino, kind in found
        if name.startswith(start)
    )
    # The shell's answer is UTF-8, so other names have to be typed.
    return [text for text in texts if not any("\ud800" <= c <= "\udfff" for c in text)]


class Arenas:
    """The arenas and snapshots that one command uses, each opened once and closed at its end."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._open: dict[tuple[str, str | None], FileSystem] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def open(self, operand: Operand) -> FileSystem:
        """The file system that holds `operand`, which is not local."""
        import nova_mp

        assert operand.arena is not None
        fs: FileSystem
        key = (operand.arena, operand.snapshot)
        if key not in self._open:
            if operand.snapshot is None:
                far = operand.arena.startswith("tcp://")
                fs = nova_mp.connect(operand.arena) if far else nova_mp.attach(operand.arena)
            else:
                fs = self.open(Operand(operand.arena, None, "/")).snapshots.open(operand.snapshot)
            self._open[key] = self._stack.enter_context(fs)
        return self._open[key]


def walk_rows(fs: FileSystem, top: str) -> Iterator[tuple[str, list[tuple[str, int, int]]]]:
    """(directory, its sorted (name, ino, d_type) rows) of a tree, parents first."""
    stack = [top]
    while stack:
        folder = stack.pop()
        rows = sorted(fs.scan(folder))
        yield folder, rows
        stack += [os.path.join(folder, name) for name, _, kind in reversed(rows) if kind == 4]

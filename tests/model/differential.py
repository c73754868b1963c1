"""One action on two file systems: outcomes must be the same, and so must what is left behind."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nova_mp.client.base import FileSystem

Action = Callable[[FileSystem], Any]


@dataclass(frozen=True)
class Outcome:
    """What an action came to: a value, or an error with its errno and file names."""

    value: Any = None
    error: str = ""
    errno: int | None = None
    names: tuple[Any, ...] = ()


def errno_of(action: Callable[[], Any]) -> int | None:
    """The errno that `action` ends with; 0 if it ends well."""
    try:
        action()
    except OSError as error:
        return error.errno
    return 0


def outcome(action: Action, fs: FileSystem) -> Outcome:
    """Run `action`; errors that `os` would raise become part of the outcome."""
    try:
        return Outcome(value=action(fs))
    except OSError as error:
        names = tuple(name for name in (error.filename, error.filename2) if name is not None)
        return Outcome(None, type(error).__name__, error.errno, names)
    except (ValueError, TypeError) as error:
        return Outcome(None, type(error).__name__)


def tree(fs: FileSystem) -> None:
    """What most cases start from."""
    fs.mkdir("/dir", 0o755)
    fs.mkdir("/dir/sub", 0o755)
    fs.mkdir("/empty", 0o755)
    fs.write_bytes("/file", b"contents of file")
    fs.write_bytes("/dir/inner", b"contents of inner")
    fs.symlink("file", "/to-file")
    fs.symlink("dir", "/to-dir")
    fs.symlink("nowhere", "/dangling")
    fs.symlink("loop-b", "/loop-a")
    fs.symlink("loop-a", "/loop-b")


def contents(fs: FileSystem, top: str = "/") -> dict[str, Any]:
    """Everything below `top`: type, permissions, links, owner, and what it holds."""
    found: dict[str, Any] = {}
    for entry in sorted(fs.scandir(top), key=lambda entry: entry.name):
        status = fs.lstat(entry.path)
        shown: tuple[Any, ...] = (
            stat.S_IFMT(status.st_mode) >> 12,
            stat.S_IMODE(status.st_mode),
            status.st_nlink,
            (status.st_uid, status.st_gid),
        )
        relative = os.path.relpath(entry.path, top)
        if entry.is_symlink():
            found[relative] = (*shown, fs.readlink(entry.path))
        elif entry.is_dir():
            found[relative] = shown
            below = contents(fs, entry.path)
            found |= {f"{relative}/{name}": value for name, value in below.items()}
        else:
            found[relative] = (*shown, status.st_size, fs.read_bytes(entry.path))
    return found


@dataclass(frozen=True)
class Pair:
    """The file system under test beside the kernel's, both empty at first."""

    fs: FileSystem
    host: FileSystem

    def both(self, action: Action) -> Outcome:
        """Run `action` on both; AssertionError unless they agree. The common outcome."""
        ours, theirs = outcome(action, self.fs), outcome(action, self.host)
        assert ours == theirs, f"the arena says {ours}, the kernel {theirs}"
        return ours

    def same_contents(self) -> None:
        """AssertionError unless both hold the same."""
        ours, theirs = contents(self.fs), contents(self.host)
        assert ours == theirs, "\n".join(
            f"{name}: {ours.get(name)!r:.200} in the arena, {theirs.get(name)!r:.200} in the kernel"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
        )

"""Random operations on a small tree, the same on any file system, from a seeded generator."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

from nova_mp.client.base import FileSystem

NAMES = ("a", "b", "c", "d", "e" * 200, "f")
SIZES = (0, 1, 10, 4096, 5000, 50_000)
OPEN_FILES = 6
OFFSET_BYTES = 60_000

Step = Callable[[FileSystem], Any]


class Below:
    """A file system seen from one of its directories, as chroot would show it."""

    def __init__(self, fs: FileSystem, top: str) -> None:
        self._fs = fs
        self._top = top

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._fs, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            return operation(*map(self._moved, arguments), **keywords)

        return call

    def _moved(self, argument: Any) -> Any:
        is_path = isinstance(argument, str) and argument.startswith("/")
        return self._top + argument if is_path else argument


class Steps:
    """A source of steps. Those on open files keep them in `files`, one list per file system."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def path(self) -> str:
        """A path of one to three names; what it leads to, if anything, is left to chance."""
        return "/" + "/".join(self._random.choice(NAMES) for _ in range(self._random.randint(1, 3)))

    def data(self) -> bytes:
        """Some bytes."""
        return self._random.randbytes(self._random.choice(SIZES))

    def next(self) -> tuple[str, Step]:
        """A step and what it is called."""
        chance = self._random
        path, other, data = self.path(), self.path(), self.data()
        offset, flag = chance.randrange(OFFSET_BYTES), chance.random() < 0.2
        target, mode = chance.choice(NAMES), chance.choice((0o600, 0o755))
        steps: dict[str, Step] = {
            f"write_bytes {path} {len(data)}": lambda fs: fs.write_bytes(path, data),
            f"pwrite {path} {offset} {len(data)}": lambda fs: _pwrite(fs, path, data, offset),
            f"append {path} {len(data)}": lambda fs: _append(fs, path, data),
            f"read_bytes {path}": lambda fs: fs.read_bytes(path),
            f"truncate {path} {offset}": lambda fs: fs.truncate(path, offset),
            f"mkdir {path}": lambda fs: fs.mkdir(path),
            f"rmdir {path}": lambda fs: fs.rmdir(path),
            f"unlink {path}": lambda fs: fs.unlink(path),
            f"rename {path} {other} {flag}": lambda fs: fs.rename(path, other, flag),
            f"link {path} {other}": lambda fs: fs.link(path, other),
            f"symlink {target} {path}": lambda fs: fs.symlink(target, path),
            f"listdir {path}": lambda fs: sorted(fs.listdir(path)),
            f"chmod {path} {mode:o}": lambda fs: fs.chmod(path, mode),
        }
        if chance.random() < 0.02:
            return f"rmtree {path}", lambda fs: fs.rmtree(path)
        return chance.choice(list(steps.items()))

    def next_open(self) -> tuple[str, Step]:
        """Opens a file that may be there, and what that is called."""
        path = self.path()
        return f"open {path}", lambda fs: fs.open(path, "r+b")

    def next_of_file(self, count: int) -> tuple[str, Callable[[list[Any]], Any]]:
        """A step on one of `count` open files, and what it is called."""
        chance = self._random
        at, data, offset = chance.randrange(count), self.data(), chance.randrange(OFFSET_BYTES)
        steps: dict[str, Callable[[list[Any]], Any]] = {
            f"file {at} pread {len(data)} {offset}": lambda fs: fs[at].pread(len(data), offset),
            f"file {at} pwrite {len(data)} {offset}": lambda fs: fs[at].pwrite(data, offset),
            f"file {at} truncate {offset}": lambda fs: fs[at].truncate(offset),
            f"file {at} size": lambda fs: fs[at].stat().st_size,
            f"file {at} nlink": lambda fs: fs[at].stat().st_nlink,
        }
        return chance.choice(list(steps.items()))

    def now(self, probability: float) -> bool:
        """True with `probability`."""
        return self._random.random() < probability


def _pwrite(fs: FileSystem, path: str, data: bytes, offset: int) -> Any:
    with fs.os_open(path, os.O_RDWR) as file:
        return file.pwrite(data, offset)


def _append(fs: FileSystem, path: str, data: bytes) -> Any:
    with fs.open(path, "ab") as file:
        return file.write(data), file.tell()

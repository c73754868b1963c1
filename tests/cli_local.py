"""A FileSystem over a folder of the machine, and a way to run the command: for tests of the CLI.

What a command prints and how it fails does not depend on who runs the operations. Here the machine
does, so these tests need no engine and take no time; the engine has tests of its own.
"""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from nova_mp.cli.main import main
from nova_mp.client.base import FileSystem, ReadOnlyMixin
from nova_mp.client.snapshots import Snapshot
from nova_mp.errors import EngineNotRunning, NoSuchSnapshot


def _of_os(name: str) -> Any:
    def operation(self: LocalFileSystem, path: Any, *args: Any, **kwargs: Any) -> Any:
        with self.named(path) as real:
            return getattr(os, name)(real, *args, **kwargs)

    return operation


class LocalFileSystem(FileSystem):
    """The folder `root` as an arena; absolute paths start there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._snapshots = FakeSnapshots(self)

    def _real(self, path: Any) -> str:
        return str(self.root) + os.fspath(path)

    @contextmanager
    def named(self, path: Any) -> Iterator[str]:
        """Errors name the path in the arena, as the engine's do."""
        try:
            yield self._real(path)
        except OSError as error:
            error.filename = os.fspath(path)
            raise

    chmod = _of_os("chmod")
    listxattr = _of_os("listxattr")
    lstat = _of_os("lstat")
    make_dir = _of_os("mkdir")
    readlink = _of_os("readlink")
    rmdir = _of_os("rmdir")
    stat = _of_os("stat")
    statvfs = _of_os("statvfs")
    truncate = _of_os("truncate")
    unlink = _of_os("unlink")
    utime = _of_os("utime")
    listdir = _of_os("listdir")

    def open(self, path: Any, mode: str = "rb", *args: Any, **kwargs: Any) -> Any:
        with self.named(path) as real:
            return open(real, mode, *args, **kwargs)

    def rename(self, src: Any, dst: Any, noreplace: bool = False) -> None:
        with self.named(src) as real:
            if noreplace and os.path.lexists(self._real(dst)):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), dst)
            os.rename(real, self._real(dst))

    def symlink(self, target: Any, path: Any) -> None:
        with self.named(path) as real:
            os.symlink(target, real)

    def scan(self, path: Any = "/") -> list[tuple[str, int, int]]:
        with self.named(path) as real, os.scandir(real) as found:
            kinds = [(e, 10 if e.is_symlink() else 4 if e.is_dir() else 8) for e in found]
            return [(entry.name, entry.inode(), kind) for entry, kind in kinds]

    def close(self) -> None:
        pass

    @property
    def snapshots(self) -> Any:
        return self._snapshots

    def _absent(self, *args: Any, **kwargs: Any) -> Any:
        raise io.UnsupportedOperation("a folder stands in for what commands on files need, no more")

    chown = freeze = getxattr = link = os_open = removexattr = setxattr = stats = unfreeze = _absent


class ReadOnly(ReadOnlyMixin, LocalFileSystem):
    """The same folder as a snapshot."""


@dataclass
class FakeSnapshots:
    """Snapshots by name only; each one shows the folder as it is now."""

    fs: LocalFileSystem

    def __post_init__(self) -> None:
        self.table: list[Snapshot] = []

    def create(self, name: str | None = None) -> Snapshot:
        if any(s.name == name for s in self.table if name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        created = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
        self.table.append(Snapshot(len(self.table) + 1, name, created, 1, 8192))
        return self.table[-1]

    def list(self) -> list[Snapshot]:
        return list(self.table)

    def __iter__(self) -> Iterator[Snapshot]:
        return iter(self.table)

    def get(self, key: Any) -> Snapshot:
        for snapshot in self.table:
            number = key.epoch_id if isinstance(key, Snapshot) else key
            if number in (snapshot.name, snapshot.epoch_id, str(snapshot.epoch_id)):
                return snapshot
        raise NoSuchSnapshot(f"there is no snapshot {key!r}", "see snapshots.list()")

    def delete(self, key: Any, defer: bool = False) -> bool:
        found = self.get(key)
        if found.opens and not defer:
            raise OSError(errno.EBUSY, "the snapshot is open", str(found.epoch_id))
        at = self.table.index(found)
        self.table[at : at + 1] = [replace(found, deferred=True)] if found.opens else []
        return not found.opens

    def frees(self, keys: Any) -> int:
        # What two of them share is freed with the second.
        found = [self.get(key) for key in keys]
        return sum(s.exclusive_bytes for s in found) + 4096 * (len(found) - 1)

    def open(self, key: Any) -> LocalFileSystem:
        self.get(key)
        return ReadOnly(self.fs.root)

    def wait(self, timeout: float | None = None) -> None:
        pass


class Arenas:
    """Stands in for nova_mp.attach: the arenas are folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.open: dict[str, LocalFileSystem] = {}

    def make(self, name: str) -> LocalFileSystem:
        (self.folder / name).mkdir()
        self.open[name] = LocalFileSystem(self.folder / name)
        return self.open[name]

    def attach(self, name: str, cpu: int | None = None) -> LocalFileSystem:
        if name not in self.open:
            raise EngineNotRunning(
                f"arena '{name}' has no engine", f"start it: nova-mp start {name}"
            )
        return self.open[name]


@dataclass(frozen=True)
class Result:
    """What a command did: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The object that --json prints, and nothing else."""
        value = json.loads(self.out)
        assert value["output_version"] == 1
        return dict(value)


class Cli:
    """Runs the command in this process; `arenas` are what it can attach to."""

    def __init__(self, arenas: Arenas, capsys: pytest.CaptureFixture[str]) -> None:
        self.arenas = arenas
        self._capsys = capsys

    def __call__(self, *args: str) -> Result:
        self._capsys.readouterr()
        code = main(list(args))
        captured = self._capsys.readouterr()
        return Result(code, captured.out, captured.err)

"""Directory entries as `os.scandir` gives them, for a FileSystem instead of the kernel's."""

from __future__ import annotations

import errno
import os
import stat as stat_module
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from nova_mp.client.base import FileSystem

AnyName = TypeVar("AnyName", str, bytes)

# The d_type values of a directory entry, as in <dirent.h>.
DT_UNKNOWN = 0
DT_DIR = 4
DT_REG = 8
DT_LNK = 10


def join(directory: AnyName, name: AnyName) -> AnyName:
    """`directory/name`, both of one type; `name` is one component, never absolute."""
    if isinstance(directory, bytes):
        return directory + name if directory.endswith(b"/") else directory + b"/" + name
    return directory + name if directory.endswith("/") else directory + "/" + name


class DirEntry(Generic[AnyName]):
    """One name in a directory: the interface of `os.DirEntry`.

    The type comes with the listing, so `is_dir()` and its siblings cost nothing unless the entry is
    a symbolic link that has to be followed. `stat()` is kept after the first call, as in `os`.
    """

    __slots__ = ("_fs", "_ino", "_lstat", "_stat", "_type", "name", "path")

    name: AnyName
    path: AnyName

    def __init__(
        self, fs: FileSystem, directory: AnyName, name: AnyName, ino: int, entry_type: int
    ) -> None:
        self._fs = fs
        self.name = name
        self.path = join(directory, name)
        self._ino = ino
        self._type = entry_type
        self._stat: Any = None
        self._lstat: Any = None

    def inode(self) -> int:
        """The inode number of the entry itself (a link is not followed)."""
        return self._ino

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether this is a directory, or a link to one; False once it is gone."""
        return self._is(DT_DIR, stat_module.S_ISDIR, follow_symlinks)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether this is a regular file, or a link to one; False once it is gone."""
        return self._is(DT_REG, stat_module.S_ISREG, follow_symlinks)

    def is_symlink(self) -> bool:
        """Whether this is a symbolic link."""
        return self._is(DT_LNK, stat_module.S_ISLNK, False)

    def is_junction(self) -> bool:
        """Always False: junctions exist on Windows only."""
        return False

    def _is(self, wanted: int, test: Any, follow_symlinks: bool) -> bool:
        known = self._type != DT_UNKNOWN and not (follow_symlinks and self._type == DT_LNK)
        if known:
            return self._type == wanted
        try:
            return bool(test(self.stat(follow_symlinks=follow_symlinks).st_mode))
        except FileNotFoundError:
            return False

    def stat(self, *, follow_symlinks: bool = True) -> Any:
        """The attributes, as `FileSystem.stat` gives them; asked for once, then remembered."""
        if follow_symlinks and self._type in (DT_LNK, DT_UNKNOWN):
            if self._stat is None:
                self._stat = self._fs.stat(self.path)
            return self._stat
        if self._lstat is None:
            self._lstat = self._fs.lstat(self.path)
        return self._lstat

    def __fspath__(self) -> AnyName:
        return self.path

    def __repr__(self) -> str:
        return f"<DirEntry {self.name!r}>"


class ScandirIterator(Generic[AnyName]):
    """What `FileSystem.scandir` returns: an iterator of DirEntry, and a context manager.

    The listing is taken whole when the iterator is made, so names that are added or removed
    meanwhile cannot make it skip or repeat an entry.
    """

    __slots__ = ("_entries",)

    def __init__(
        self, fs: FileSystem, directory: AnyName, listing: list[tuple[str, int, int]]
    ) -> None:
        self._entries: Iterator[DirEntry[AnyName]] = self._generate(fs, directory, listing)

    @staticmethod
    def _generate(
        fs: FileSystem, directory: AnyName, listing: list[tuple[str, int, int]]
    ) -> Iterator[DirEntry[AnyName]]:
        as_bytes = isinstance(directory, bytes)
        for name, ino, entry_type in listing:
            shown: Any = os.fsencode(name) if as_bytes else name
            yield DirEntry(fs, directory, shown, ino, entry_type)

    def __iter__(self) -> ScandirIterator[AnyName]:
        return self

    def __next__(self) -> DirEntry[AnyName]:
        return next(self._entries)

    def close(self) -> None:
        """Drop what has not been read yet; the iterator is exhausted afterwards."""
        self._entries = iter(())

    def __enter__(self) -> ScandirIterator[AnyName]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def os_error(code: int, filename: Any = None, filename2: Any = None) -> OSError:
    """The OSError subclass that `os` would raise for `code` on these names."""
    message = os.strerror(code)
    if filename is None:
        return OSError(code, message)
    if filename2 is None:
        return OSError(code, message, filename)
    return OSError(code, message, filename, None, filename2)


def read_only(path: Any) -> OSError:
    """The error of every mutator of a read-only file system."""
    return os_error(errno.EROFS, path)

"""FileSystem: what users hold, whatever runs the operations.

Primitives (abstract here) are one operation of the file system each. AttachedFileSystem takes them
from the native core, RemoteFileSystem sends them to a worker. Everything that can be said in terms
of primitives is written once, here, so that both behave alike.

Paths are absolute POSIX paths as str, bytes or os.PathLike. Errors are the OSError subclasses that
`os` raises for the same operation, with errno and filename set; what errno cannot say is a
nova_mp.errors.NovaError. What is created gets the given mode less the umask of the process that
runs the operation: this one, or the engine, as they were when they attached.
"""

from __future__ import annotations

import errno
import io
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from nova_mp.client import transfer
from nova_mp.client.entries import (
    DT_DIR,
    DT_LNK,
    DirEntry,
    ScandirIterator,
    join,
    os_error,
    read_only,
)
from nova_mp.client.pipeline import ImmediatePipeline, Pipeline
from nova_mp.client.snapshots import Snapshots

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
WalkStep = tuple[Any, list[Any], list[Any]]


class FileSystem(ABC):
    """A file system in an arena: the operations of `os`, `shutil` and `pathlib` that apply.

    A context manager that closes itself; usable from any number of threads, and after a fork from
    the child as well.
    """

    # ---- primitives -------------------------------------------------------------------------

    @abstractmethod
    def open(
        self,
        path: Path,
        mode: str = "rb",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        """Open a file with one of Python's modes; binary unless the mode has a `t`.

        A binary file is an io.BufferedIOBase that writes through, with pread, preadinto, pwrite,
        fallocate, fsync and stat besides; a text file is an io.TextIOWrapper on one.
        """

    @abstractmethod
    def os_open(self, path: Path, flags: int, mode: int = 0o666) -> Any:
        """Open a file with `os.O_*` flags; gives the binary file object of `open`."""

    @abstractmethod
    def stat(self, path: Path, *, follow_symlinks: bool = True) -> Any:
        """Attributes as `os.stat` names them: times in seconds, `*_ns` in nanoseconds."""

    @abstractmethod
    def lstat(self, path: Path) -> Any:
        """Attributes of the name itself: a symbolic link is not followed."""

    @abstractmethod
    def make_dir(self, path: Path, mode: int = 0o777) -> None:
        """Create one directory; its parent must be there."""

    @abstractmethod
    def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""

    @abstractmethod
    def unlink(self, path: Path) -> None:
        """Remove a name that is not a directory; an open file stays readable until closed."""

    @abstractmethod
    def rename(self, src: Path, dst: Path, noreplace: bool = False) -> None:
        """Rename atomically, over an existing target unless `noreplace` (then FileExistsError)."""

    @abstractmethod
    def link(self, src: Path, dst: Path) -> None:
        """Give the file `src` a second name; a symbolic link is linked, not followed."""

    @abstractmethod
    def symlink(self, target: Path, path: Path) -> None:
        """Create the symbolic link `path`, which says `target`."""

    @abstractmethod
    def readlink(self, path: Path) -> str:
        """What a symbolic link says."""

    @abstractmethod
    def chmod(self, path: Path, mode: int, *, follow_symlinks: bool = True) -> None:
        """Set the permission bits."""

    @abstractmethod
    def chown(self, path: Path, uid: int, gid: int, *, follow_symlinks: bool = True) -> None:
        """Set owner and group; -1 keeps one."""

    @abstractmethod
    def utime(
        self,
        path: Path,
        times: tuple[float, float] | None = None,
        *,
        ns: tuple[int, int] | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        """Set access and modification time, in seconds or nanoseconds; to now without either."""

    @abstractmethod
    def truncate(self, path: Path, size: int) -> None:
        """Set the size of a file in bytes; what it grows by reads as zeros."""

    @abstractmethod
    def listdir(self, path: Path = "/") -> list[Any]:
        """The names in a directory, in no particular order."""

    @abstractmethod
    def scan(self, path: Path = "/") -> list[tuple[str, int, int]]:
        """(name, inode number, d_type) of everything in a directory, in one step."""

    @abstractmethod
    def statvfs(self, path: Path = "/") -> os.statvfs_result:
        """Sizes and free space, as `os.statvfs`; in blocks of `f_frsize` bytes."""

    @abstractmethod
    def getxattr(self, path: Path, name: str, *, follow_symlinks: bool = True) -> bytes:
        """The value of an extended attribute; OSError(ENODATA) if there is none."""

    @abstractmethod
    def setxattr(
        self, path: Path, name: str, value: Any, flags: int = 0, *, follow_symlinks: bool = True
    ) -> None:
        """Set an extended attribute; flags as `os.XATTR_CREATE` and `os.XATTR_REPLACE`."""

    @abstractmethod
    def listxattr(self, path: Path, *, follow_symlinks: bool = True) -> list[str]:
        """The names of the extended attributes."""

    @abstractmethod
    def removexattr(self, path: Path, name: str, *, follow_symlinks: bool = True) -> None:
        """Remove an extended attribute; OSError(ENODATA) if there is none."""

    @abstractmethod
    def stats(self) -> dict[str, Any]:
        """What the engine counts: blocks, inodes, CPUs, snapshots, recovery, operations."""

    @abstractmethod
    def close(self) -> None:
        """Leave the engine; open files are closed with it. Closing twice does no harm."""

    # ---- freeze -----------------------------------------------------------------------------

    @abstractmethod
    def freeze(self, timeout: float = 5.0) -> None:
        """Let running operations finish and hold new ones until `unfreeze`.

        `timeout` in seconds bounds the wait for running operations, and how long the file system
        stays frozen when its holder never thaws it. Raises nova_mp.errors.Timeout.
        """

    @abstractmethod
    def unfreeze(self) -> None:
        """End a freeze; OSError(EINVAL) if nothing is frozen."""

    @contextmanager
    def frozen(self, timeout: float = 5.0) -> Iterator[Self]:
        """Hold the file system frozen for a block; it thaws by itself after `timeout` seconds, and
        when the process that holds it dies."""
        self.freeze(timeout)
        ends = time.monotonic() + timeout
        try:
            yield self
        finally:
            # The timeout may have been faster than the block; another's freeze is to stay then.
            if timeout <= 0 or time.monotonic() < ends:
                try:
                    self.unfreeze()
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise

    # ---- snapshots --------------------------------------------------------------------------

    @property
    @abstractmethod
    def snapshots(self) -> Snapshots:
        """Create, list, open and delete snapshots."""

    # ---- batches ----------------------------------------------------------------------------

    def pipeline(self) -> Pipeline:
        """A context manager that batches operations and gives their results as futures.

        A remote file system sends the whole batch before it waits; an attached one runs each
        operation on the spot, where there is nothing to wait for.
        """
        return ImmediatePipeline(self)

    # ---- whole files ------------------------------------------------------------------------

    def read_bytes(self, path: Path) -> bytes:
        """The contents of a file."""
        with self.open(path, "rb") as file:
            return bytes(file.read())

    def write_bytes(self, path: Path, data: Any) -> int:
        """Replace the contents of a file, which is created if missing; returns bytes written."""
        view = memoryview(data).cast("B")
        with self.open(path, "wb") as file:
            return int(file.write(view))

    def read_text(self, path: Path, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The contents of a file as text, newlines translated to `\\n`."""
        with self.open(path, "rt", encoding=encoding, errors=errors) as file:
            return str(file.read())

    def write_text(
        self, path: Path, text: str, encoding: str = "utf-8", errors: str = "strict"
    ) -> int:
        """Replace the contents of a file by text; returns the number of characters."""
        with self.open(path, "wt", encoding=encoding, errors=errors) as file:
            return int(file.write(text))

    # ---- questions --------------------------------------------------------------------------

    def exists(self, path: Path) -> bool:
        """Whether the path leads to something; a dangling symbolic link does not."""
        return self._mode_or_none(path) is not None

    def isfile(self, path: Path) -> bool:
        """Whether the path leads to a regular file."""
        mode = self._mode_or_none(path)
        return mode is not None and (mode & 0o170000) == 0o100000

    def isdir(self, path: Path) -> bool:
        """Whether the path leads to a directory."""
        mode = self._mode_or_none(path)
        return mode is not None and (mode & 0o170000) == 0o040000

    def islink(self, path: Path) -> bool:
        """Whether the name is a symbolic link."""
        try:
            return (self.lstat(path).st_mode & 0o170000) == 0o120000
        except (OSError, ValueError):
            return False

    def _mode_or_none(self, path: Path) -> int | None:
        try:
            return int(self.stat(path).st_mode)
        except (OSError, ValueError):
            return None

    # ---- directories ------------------------------------------------------------------------

    def mkdir(
        self, path: Path, mode: int = 0o777, *, parents: bool = False, exist_ok: bool = False
    ) -> None:
        """Create a directory; with `parents` the missing ones above it too (as `mkdir -p`)."""
        try:
            self.make_dir(path, mode)
        except FileNotFoundError:
            above = _parent(path)
            if not parents or above == os.fspath(path):
                raise
            self.mkdir(above, parents=True, exist_ok=True)
            self.mkdir(path, mode, exist_ok=exist_ok)
        except FileExistsError:
            if not exist_ok or not self.isdir(path):
                raise

    def makedirs(self, path: Path, mode: int = 0o777, exist_ok: bool = False) -> None:
        """Create a directory and the missing ones above it, as `os.makedirs`."""
        self.mkdir(path, mode, parents=True, exist_ok=exist_ok)

    def scandir(self, path: Path = "/") -> ScandirIterator[Any]:
        """Iterate over a directory as `os.scandir`; entries of a bytes path have bytes names."""
        directory = os.fspath(path)
        return ScandirIterator(self, directory, self.scan(directory))

    def walk(
        self,
        top: Path = "/",
        topdown: bool = True,
        onerror: Callable[[OSError], Any] | None = None,
        followlinks: bool = False,
    ) -> Iterator[WalkStep]:
        """Walk a tree as `os.walk`: yields (directory, names of directories, names of files).

        With `topdown` the caller may edit the list of directories to prune the walk. Directories
        that cannot be listed are left out, after `onerror` was told.
        """
        # A stack of directories to visit and of steps to yield, so depth is bounded by memory only.
        stack: list[Any] = [os.fspath(top)]
        while stack:
            directory = stack.pop()
            if isinstance(directory, tuple):
                yield directory
                continue
            try:
                entries: list[DirEntry[Any]] = list(self.scandir(directory))
            except OSError as error:
                if onerror is not None:
                    onerror(error)
                continue
            dirs = [entry.name for entry in entries if _leads_to_dir(entry)]
            links = {entry.name for entry in entries if entry.is_symlink()}
            known = set(dirs)
            files = [entry.name for entry in entries if entry.name not in known]
            if topdown:
                yield directory, dirs, files
            else:
                stack.append((directory, dirs, files))
            for name in reversed(dirs):
                # The caller may have put in names of its own when walking top down.
                below = join(directory, name)
                is_link = name in links or (name not in known and self.islink(below))
                if followlinks or not is_link:
                    stack.append(below)

    def rmtree(
        self,
        path: Path,
        ignore_errors: bool = False,
        onexc: Callable[[Callable[..., Any], Any, OSError], Any] | None = None,
    ) -> None:
        """Remove a directory and everything in it; links are removed, not followed.

        An error stops it, unless `ignore_errors`, or `onexc(function, path, error)` takes it.
        """

        def report(function: Callable[..., Any], name: Any, error: OSError) -> None:
            if onexc is not None:
                onexc(function, name, error)
            elif not ignore_errors:
                raise error

        top = os.fspath(path)
        try:
            if self.islink(top):
                raise os_error(errno.ENOTDIR, top)
            self._rmtree(top, report)
        except OSError as error:
            if onexc is not None or not ignore_errors:
                raise
            # Only the question whether the top is a link comes here, and nobody wants the answer.
            del error

    def _rmtree(self, top: Any, report: Callable[..., None]) -> None:
        stack: list[tuple[Any, bool]] = [(top, False)]
        while stack:
            directory, emptied = stack.pop()
            if emptied:
                self._attempt(self.rmdir, directory, report)
                continue
            try:
                listing = self.scan(directory)
            except OSError as error:
                report(self.scan, directory, error)
                continue
            stack.append((directory, True))
            others = []
            for name, _ino, entry_type in listing:
                below = join(directory, _same_type(name, directory))
                if entry_type == DT_DIR:
                    stack.append((below, False))
                else:
                    others.append(below)
            self._unlink_all(others, report)

    def _unlink_all(self, paths: list[Any], report: Callable[..., None]) -> None:
        """Remove many names, reporting those that cannot be removed."""
        for path in paths:
            self._attempt(self.unlink, path, report)

    @staticmethod
    def _attempt(function: Callable[[Any], None], path: Any, report: Callable[..., None]) -> None:
        try:
            function(path)
        except FileNotFoundError:
            # Somebody else was faster with the same wish.
            return
        except OSError as error:
            report(function, path, error)

    # ---- trees in and out -------------------------------------------------------------------

    def put(
        self,
        local: Path,
        path: Path,
        progress: Callable[[transfer.Progress], Any] | None = None,
    ) -> transfer.Progress:
        """Copy a file or a whole tree of the machine into the arena.

        A file goes to `path`, or into it if `path` is a directory, as `shutil.copy2`; a directory
        becomes `path`, merged with what is there, as `shutil.copytree(dirs_exist_ok=True)`. Modes,
        modification and access times, symbolic links, hard links within the tree, and holes are
        kept. `progress` is called after each file and each chunk of a large one; what it returns is
        ignored, what it raises ends the copy. Returns the final state of the progress.
        """
        return transfer.put(self, local, path, progress)

    def get(
        self,
        path: Path,
        local: Path,
        progress: Callable[[transfer.Progress], Any] | None = None,
    ) -> transfer.Progress:
        """Copy a file or a whole tree out of the arena; the mirror image of `put`."""
        return transfer.get(self, path, local, progress)

    # ---- lifetime ---------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class ReadOnlyMixin:
    """Answers every operation that changes something with OSError(EROFS)."""

    def make_dir(self, path: Path, mode: int = 0o777) -> None:
        raise read_only(path)

    def mkdir(
        self, path: Path, mode: int = 0o777, *, parents: bool = False, exist_ok: bool = False
    ) -> None:
        if exist_ok and self.isdir(path):  # type: ignore[attr-defined]
            return
        raise read_only(path)

    def rmdir(self, path: Path) -> None:
        raise read_only(path)

    def unlink(self, path: Path) -> None:
        raise read_only(path)

    def rename(self, src: Path, dst: Path, noreplace: bool = False) -> None:
        raise os_error(errno.EROFS, src, dst)

    def link(self, src: Path, dst: Path) -> None:
        raise os_error(errno.EROFS, src, dst)

    def symlink(self, target: Path, path: Path) -> None:
        raise os_error(errno.EROFS, target, path)

    def chmod(self, path: Path, mode: int, *, follow_symlinks: bool = True) -> None:
        raise read_only(path)

    def chown(self, path: Path, uid: int, gid: int, *, follow_symlinks: bool = True) -> None:
        raise read_only(path)

    def utime(
        self,
        path: Path,
        times: tuple[float, float] | None = None,
        *,
        ns: tuple[int, int] | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        raise read_only(path)

    def truncate(self, path: Path, size: int) -> None:
        raise read_only(path)

    def setxattr(
        self, path: Path, name: str, value: Any, flags: int = 0, *, follow_symlinks: bool = True
    ) -> None:
        raise read_only(path)

    def removexattr(self, path: Path, name: str, *, follow_symlinks: bool = True) -> None:
        raise read_only(path)

    def put(self, local: Path, path: Path, progress: Any = None) -> Any:
        raise read_only(path)

    def rmtree(self, path: Path, ignore_errors: bool = False, onexc: Any = None) -> None:
        raise read_only(path)

    def freeze(self, timeout: float = 5.0) -> None:
        raise read_only("/")

    def unfreeze(self) -> None:
        raise read_only("/")


def _leads_to_dir(entry: DirEntry[Any]) -> bool:
    """Whether it is a directory, or a link to one; a link that cannot be followed is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _parent(path: Path) -> Any:
    """The directory above a path, of the same type; the root is its own parent."""
    name = os.fspath(path)
    stripped = name.rstrip(b"/") if isinstance(name, bytes) else name.rstrip("/")
    return os.path.dirname(stripped) or name[:1]


def _same_type(name: str, like: Any) -> Any:
    return os.fsencode(name) if isinstance(like, bytes) else name


__all__ = ["DT_LNK", "FileSystem", "ReadOnlyMixin", "io"]

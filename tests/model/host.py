"""The kernel's file system as a FileSystem, so that one piece of code can run on it and an arena.

A directory of tmpfs stands for the root. Paths in errors are those that the caller gave, so errors
can be compared whole. Absolute symbolic links would leave the directory: use relative ones.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable
from typing import Any, TypeVar

from nova_mp.client.base import FileSystem
from nova_mp.client.modes import parse_mode
from nova_mp.client.snapshots import Snapshots

Value = TypeVar("Value")
RENAME_NOREPLACE = 1
builtin_open = open
AT_FDCWD = -100


class HostFile:
    """A file of the builtin open, with the positional operations besides."""

    def __init__(self, file: Any, name: Any) -> None:
        self._file = file
        self.name = name

    def pread(self, n: int, offset: int) -> bytes:
        return os.pread(self._file.fileno(), n, offset)

    def preadinto(self, buffer: Any, offset: int) -> int:
        if offset < 0:
            # To preadv, -1 means the position.
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return os.preadv(self._file.fileno(), [buffer], offset)

    def pwrite(self, data: Any, offset: int) -> int:
        return os.pwrite(self._file.fileno(), data, offset)

    def fallocate(self, offset: int, length: int) -> None:
        os.posix_fallocate(self._file.fileno(), offset, length)

    def fsync(self) -> None:
        os.fsync(self._file.fileno())

    def stat(self) -> os.stat_result:
        return os.fstat(self._file.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __iter__(self) -> Any:
        return iter(self._file)

    def __enter__(self) -> HostFile:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._file.close()


class HostFileSystem(FileSystem):
    """`os`, below a directory of the machine."""

    def __init__(self, root: str) -> None:
        self._root = os.fsencode(root)

    def _at(self, path: Any) -> Any:
        name = os.fspath(path)
        if isinstance(name, bytes):
            return self._root + name if name else name
        return os.fsdecode(self._root) + name if name else name

    def _run(self, function: Callable[[], Value], *names: Any) -> Value:
        """Call it; an error names what the caller named, not where that is on the machine."""
        try:
            return function()
        except OSError as error:
            given = [os.fspath(name) for name in names]
            # Not every function of os says which file it was (os.utime does not); an arena does.
            error.filename = given[0]
            if error.filename2 is not None:
                error.filename2 = given[1]
            raise

    def open(
        self,
        path: Any,
        mode: str = "rb",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        text = parse_mode(mode, buffering, encoding, errors, newline).text
        # Unbuffered, since the files of an arena write through.
        unbuffered = buffering if text else 0
        file = self._run(
            lambda: builtin_open(self._at(path), mode, unbuffered, encoding, errors, newline), path
        )
        return file if text else HostFile(file, path)

    def os_open(self, path: Any, flags: int, mode: int = 0o666) -> Any:
        number = self._run(lambda: os.open(self._at(path), flags, mode), path)
        access = {os.O_RDONLY: "rb", os.O_WRONLY: "wb", os.O_RDWR: "rb+"}[flags & os.O_ACCMODE]
        return HostFile(open(number, access, 0), path)

    def stat(self, path: Any, *, follow_symlinks: bool = True) -> Any:
        return self._run(lambda: os.stat(self._at(path), follow_symlinks=follow_symlinks), path)

    def lstat(self, path: Any) -> Any:
        return self._run(lambda: os.lstat(self._at(path)), path)

    def make_dir(self, path: Any, mode: int = 0o777) -> None:
        self._run(lambda: os.mkdir(self._at(path), mode), path)

    def rmdir(self, path: Any) -> None:
        self._run(lambda: os.rmdir(self._at(path)), path)

    def unlink(self, path: Any) -> None:
        self._run(lambda: os.unlink(self._at(path)), path)

    def rename(self, src: Any, dst: Any, noreplace: bool = False) -> None:
        if not noreplace:
            self._run(lambda: os.rename(self._at(src), self._at(dst)), src, dst)
            return
        libc = ctypes.CDLL(None, use_errno=True)
        old, new = os.fsencode(self._at(src)), os.fsencode(self._at(dst))
        if libc.renameat2(AT_FDCWD, old, AT_FDCWD, new, RENAME_NOREPLACE) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), os.fspath(src), None, os.fspath(dst))

    def link(self, src: Any, dst: Any) -> None:
        self._run(lambda: os.link(self._at(src), self._at(dst), follow_symlinks=False), src, dst)

    def symlink(self, target: Any, path: Any) -> None:
        self._run(lambda: os.symlink(target, self._at(path)), target, path)

    def readlink(self, path: Any) -> Any:
        return self._run(lambda: os.readlink(self._at(path)), path)

    def chmod(self, path: Any, mode: int, *, follow_symlinks: bool = True) -> None:
        self._run(lambda: os.chmod(self._at(path), mode), path)

    def chown(self, path: Any, uid: int, gid: int, *, follow_symlinks: bool = True) -> None:
        self._run(lambda: os.chown(self._at(path), uid, gid, follow_symlinks=follow_symlinks), path)

    def utime(
        self,
        path: Any,
        times: tuple[float, float] | None = None,
        *,
        ns: tuple[int, int] | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        given: dict[str, Any] = {"follow_symlinks": follow_symlinks}
        if ns is not None:
            given["ns"] = ns
        self._run(lambda: os.utime(self._at(path), times, **given), path)

    def truncate(self, path: Any, size: int) -> None:
        self._run(lambda: os.truncate(self._at(path), size), path)

    def listdir(self, path: Any = "/") -> list[Any]:
        return self._run(lambda: os.listdir(self._at(path)), path)

    def scan(self, path: Any = "/") -> list[tuple[str, int, int]]:
        rows = []
        with self._run(lambda: os.scandir(self._at(path)), path) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                entry_type = stat.S_IFMT(status.st_mode) >> 12
                rows.append((os.fsdecode(entry.name), status.st_ino, entry_type))
        return rows

    def statvfs(self, path: Any = "/") -> os.statvfs_result:
        return self._run(lambda: os.statvfs(self._at(path)), path)

    def getxattr(self, path: Any, name: str, *, follow_symlinks: bool = True) -> bytes:
        follow = follow_symlinks
        return self._run(lambda: os.getxattr(self._at(path), name, follow_symlinks=follow), path)

    def setxattr(
        self, path: Any, name: str, value: Any, flags: int = 0, *, follow_symlinks: bool = True
    ) -> None:
        follow = follow_symlinks
        self._run(
            lambda: os.setxattr(self._at(path), name, value, flags, follow_symlinks=follow), path
        )

    def listxattr(self, path: Any, *, follow_symlinks: bool = True) -> list[str]:
        return self._run(
            lambda: os.listxattr(self._at(path), follow_symlinks=follow_symlinks), path
        )

    def removexattr(self, path: Any, name: str, *, follow_symlinks: bool = True) -> None:
        self._run(
            lambda: os.removexattr(self._at(path), name, follow_symlinks=follow_symlinks), path
        )

    def stats(self) -> dict[str, Any]:
        return {}

    def freeze(self, timeout: float = 5.0) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def unfreeze(self) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    @property
    def snapshots(self) -> Snapshots:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def close(self) -> None:
        """Nothing is held."""

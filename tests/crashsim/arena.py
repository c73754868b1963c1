"""An arena in this process's own memory, with one `Core` on it, that can lose power at any time."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nova_mp.core import fs as core

MIB = 1 << 20
CLOCK_REALTIME_COARSE = 5


class Memory:
    """The two segments, which arenas of the same size can use one after the other."""

    def __init__(self, size: int, cpus: int) -> None:
        self.pm = memoryview(mmap.mmap(-1, size))
        base, limit = core.dram_geometry(size, cpus)
        self.fd = os.memfd_create("crashsim")
        os.ftruncate(self.fd, limit)
        os.posix_fallocate(self.fd, 0, base)
        self.dram = memoryview(mmap.mmap(self.fd, limit))
        self.users = 0

    def drop(self) -> None:
        """One user less; the last closes the descriptor."""
        self.users -= 1
        if self.users == 0:
            os.close(self.fd)


class Arena:
    """PMEM and DRAM in anonymous memory, mounted.

    `image` is the medium's contents (None: a new file system), `cpus` the emulated CPUs of this
    mount. `memory`, if given, is used for it: what is there is lost, but nothing is allocated,
    which is most of the time that a mount takes. `recovery` is what the mount reports.
    """

    def __init__(
        self,
        size: int = 8 * MIB,
        image: Any = None,
        *,
        cpus: int = 2,
        memory: Memory | None = None,
    ) -> None:
        size = size if image is None else len(image)
        self.cpus = cpus
        self.memory = Memory(size, cpus) if memory is None else memory
        self.memory.users += 1
        self.pm, self.dram, self.is_open = self.memory.pm, self.memory.dram, True
        if image is None:
            core.format_arena(self.pm, cpus=cpus, label="crash")
        else:
            self.pm[:] = image
        try:
            self.recovery = core.mount(self.pm, self.dram, self.memory.fd, cpus=cpus)
            self.fs: Any = core.Core(self.pm, self.dram, self.memory.fd, role="coordinator")
        except BaseException:
            self.memory.drop()
            raise

    def image(self) -> bytes:
        """A copy of the medium as the CPU sees it now."""
        return bytes(self.pm)

    def free(self) -> int:
        """Free blocks as the core counts them."""
        return int(self.fs.stats()["blocks"]["free"])

    def settle(self) -> None:
        """Do all the cleaner's work."""
        while self.fs.reclaim(10000):
            continue

    def unmount(self) -> bytes:
        """Unmount in order; gives back the clean medium."""
        self.fs.close()
        core.unmount(self.pm, self.dram, self.memory.fd)
        return self.image()

    def close(self) -> None:
        """Forget everything. Safe to call twice."""
        if self.is_open:
            self.fs.close()
            self.memory.drop()
            self.is_open = False

    def crash(self, cpus: int | None = None) -> Arena:
        """Lose power: the medium survives, all else is dropped. Gives back the arena mounted again.

        The medium is copied first, because open files of the old mount still let go of things.
        """
        again = Arena(image=self.image(), cpus=cpus or self.cpus)
        self.close()
        return again

    def remount(self, cpus: int | None = None) -> Arena:
        """Unmount in order, and mount again."""
        image = self.unmount()
        self.close()
        return Arena(image=image, cpus=cpus or self.cpus)


@contextmanager
def arena(size: int = 8 * MIB, image: Any = None, *, cpus: int = 2) -> Iterator[Arena]:
    """An arena for the length of a block."""
    opened = Arena(size, image, cpus=cpus)
    try:
        yield opened
    finally:
        opened.close()


def contents(fs: Any) -> dict[str, Any]:
    """All that a file system, or a view of a snapshot, shows: by path, attributes and data."""
    found: dict[str, Any] = {"/": _shown(fs.stat("/"), 4)}
    stack = [""]
    while stack:
        directory = stack.pop()
        for name, ino, dtype in fs.scan(directory or "/"):
            path = f"{directory}/{name}"
            status = fs.lstat(path)
            assert status.st_ino == ino, f"{path} is inode {ino} and {status.st_ino}"
            shown = _shown(status, dtype)
            xattrs = {
                key: fs.getxattr(path, key, follow_symlinks=False)
                for key in fs.listxattr(path, follow_symlinks=False)
            }
            data: Any = None
            if dtype == 4:
                stack.append(path)
            elif dtype == 10:
                data = fs.readlink(path)
            else:
                with fs.open(path, "rb") as file:
                    data = file.pread(status.st_size + 1, 0)
            found[path] = (*shown, xattrs, data)
    return found


def _shown(status: Any, dtype: int) -> tuple[Any, ...]:
    # A directory's size is the length of its log, which garbage collection changes.
    size = () if dtype == 4 else (status.st_size, status.st_blocks)
    times = (status.st_mtime_ns, status.st_ctime_ns, status.st_atime_ns, status.st_birthtime_ns)
    names = (status.st_ino, status.st_mode, status.st_nlink, status.st_uid, status.st_gid)
    return (*names, *times, *size)


def everything(fs: Any) -> dict[int, Any]:
    """Contents of the live file system (as 0) and of every snapshot that is to stay, by its id."""
    found: dict[int, Any] = {0: contents(fs)}
    for info in fs.snapshot_table():
        if info["deferred"]:
            continue
        with fs.snapshot_open(info["epoch_id"]) as view:
            found[info["epoch_id"]] = (info["name"], info["create_time_ns"], contents(view))
    return found


def differences(got: Any, wanted: Any, where: str = "") -> list[str]:
    """Where two results of `everything` or `contents` differ, for people."""
    if got == wanted:
        return []
    if isinstance(got, dict) and isinstance(wanted, dict):
        lines = [f"{where}{key}: not there" for key in wanted if key not in got]
        lines += [f"{where}{key}: should not be there" for key in got if key not in wanted]
        for key in got.keys() & wanted.keys():
            lines += differences(got[key], wanted[key], f"{where}{key} ")
        return lines
    if isinstance(got, tuple) and isinstance(wanted, tuple) and len(got) == len(wanted):
        lines = []
        for number, (left, right) in enumerate(zip(got, wanted, strict=True)):
            lines += differences(left, right, f"{where}[{number}] ")
        return lines
    if isinstance(got, bytes) and isinstance(wanted, bytes) and len(got) == len(wanted):
        at = next(i for i in range(len(got)) if got[i] != wanted[i])
        return [
            f"{where}: first other byte at {at}: {got[at : at + 16]!r}, {wanted[at : at + 16]!r}"
        ]
    return [f"{where}: {str(got)[:120]}, and not {str(wanted)[:120]}"]


def now_ns() -> int:
    """The clock that files are stamped with: it moves with the timer interrupt."""
    return time.clock_gettime_ns(CLOCK_REALTIME_COARSE)

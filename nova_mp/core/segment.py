"""Arenas by name: the registry, the two memory segments, and how processes map them.

PMEM is the medium: it is made by mkfs, and stays until destroy. DRAM is volatile shared state: the
supervisor makes it at start, and removes it at stop; dropping it is what a power failure is.

Both are POSIX shared memory, `/nova_mp.NAME.pmem` and `/nova_mp.NAME.dram`, the same objects that
`multiprocessing.shared_memory.SharedMemory(name="nova_mp.NAME.pmem")` opens. They are opened here
directly, because that class registers every opener with a resource tracker (before Python 3.13
always), which unlinks the segment when the first process that attached exits. PMEM may be a file
instead (`backing="file:PATH"`), which survives the machine.

Memory is reserved when a segment is made: a segment larger than free memory would be created
without a word, and kill its first user later. So creation fails with "needs X, has Y" instead.

Invariants
- SEG-1: a segment is mapped only with its memory reserved; a failed creation leaves nothing.
- SEG-2: attaching never creates, resizes or removes a segment.
- SEG-3: the engine's supervisor, and nobody else, holds PMEM's file locked (`try_lock`).
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import re
import struct
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from nova_mp.errors import ArenaExists, ArenaNotFound, CorruptArena, NotEnoughMemory

SHM = Path("/dev/shm")
ALIGN_BYTES = 4096
FILE_PREFIX = "file:"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


# ------------------------------------------------------------------------- names, registry


def check_name(name: str) -> str:
    """Give back `name` if it can name an arena, else raise ValueError."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"bad arena name {name!r}: 1 to 64 of A-Z a-z 0-9 _ . - and starting with a letter"
            " or digit"
        )
    return name


def format_size(size_bytes: int) -> str:
    """`size_bytes` for people: "512 B", "64 MiB", "1.5 GiB"."""
    value = float(size_bytes)
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while abs(value) >= 1024 and len(units) > 1:
        value /= 1024
        del units[0]
    return f"{value:.1f}".removesuffix(".0") + f" {units[0]}"


def state_root() -> Path:
    """Directory of the registry of arenas backed by files; it may not exist yet."""
    if given := os.environ.get("NOVA_MP_STATE_DIR"):
        return Path(given).absolute()
    if xdg := os.environ.get("XDG_STATE_HOME"):
        return Path(xdg).absolute() / "nova_mp"
    return Path.home() / ".local" / "state" / "nova_mp"


@dataclass(frozen=True, slots=True)
class Registered:
    """Registry entry of an arena that is backed by a file."""

    name: str
    path: str


def registry_path(name: str) -> Path:
    """File of arena `name`'s registry entry; it exists only for file-backed arenas."""
    return state_root() / f"{check_name(name)}.json"


def register(entry: Registered) -> None:
    """Write a registry entry, replacing an older one at once or not at all."""
    path = registry_path(entry.name)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_json(path, asdict(entry))


def unregister(name: str) -> None:
    """Remove a registry entry if there is one."""
    registry_path(name).unlink(missing_ok=True)


def registered(name: str) -> Registered | None:
    """Registry entry of arena `name`, or None when it is not backed by a file."""
    data = read_json(registry_path(name))
    if data is None:
        return None
    if data.get("name") != name or not isinstance(data.get("path"), str):
        raise CorruptArena(
            f"registry entry {registry_path(name)} is malformed", "remove it and run mkfs again"
        )
    return Registered(name, data["path"])


def arena_names() -> list[str]:
    """Names of all arenas of this machine that can be seen, sorted."""
    names = set()
    shm = Path("/dev/shm")
    if shm.is_dir():
        for path in shm.glob("nova_mp.*.pmem"):
            names.add(path.name[len("nova_mp.") : -len(".pmem")])
    if state_root().is_dir():
        names.update(path.stem for path in state_root().glob("*.json"))
    return sorted(name for name in names if _NAME.fullmatch(name))


def missing_arena(name: str) -> ArenaNotFound:
    """The error for an arena that does not exist."""
    return ArenaNotFound(f"no arena '{name}'", f"make it with: nova-mp mkfs {name} --size 1GiB")


def write_json(path: Path, data: Any) -> None:
    """`write_text` of `data` as JSON."""
    write_text(path, json.dumps(data))


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old or the new contents, never a part.

    The file is the owner's alone (mode 0600).
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in `path`; None when the file is missing or holds no JSON object."""
    try:
        data = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return data if isinstance(data, dict) else None


# ---------------------------------------------------------------------------------- segments


class Segment:
    """A mapped segment: `buf` is a writable memoryview of all of it, `fd` its open file.

    Sizes are bytes. As a context manager it closes itself.
    """

    __slots__ = ("_map", "buf", "fd", "path", "size_bytes")

    def __init__(self, path: Path, fd: int, size_bytes: int) -> None:
        self.path = path
        self.fd = fd
        self.size_bytes = size_bytes
        self._map = mmap.mmap(fd, size_bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self.buf = memoryview(self._map)

    def close(self) -> None:
        """Close the file and unmap the memory; closing twice is allowed.

        What somebody still uses (a core, a mapped file) stays mapped until that is gone.
        """
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        try:
            self.buf.release()
            self._map.close()
        except BufferError:
            # The users hold the map by their buffers; it goes with the last of them.
            del self.buf, self._map

    def __del__(self) -> None:
        if getattr(self, "fd", -1) >= 0:
            os.close(self.fd)

    def __enter__(self) -> Segment:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def dram_path(name: str) -> Path:
    """File of the DRAM segment of arena `name`."""
    return SHM / f"nova_mp.{check_name(name)}.dram"


def pmem_path(name: str) -> Path:
    """File of the PMEM segment of arena `name`: in shared memory, or where its backing says."""
    entry = registered(name)
    return Path(entry.path) if entry else SHM / f"nova_mp.{check_name(name)}.pmem"


def _available_bytes(folder: Path) -> int:
    """Bytes that a new file in `folder` may take: free there and, in shared memory, in RAM."""
    info = os.statvfs(folder)
    free = info.f_bavail * info.f_frsize
    if folder == SHM:
        with open("/proc/meminfo", "rb") as stream:
            for line in stream:
                if line.startswith(b"MemAvailable:"):
                    free = min(free, int(line.split()[1]) * 1024)
    return free


def _create(path: Path, size_bytes: int, reserve_bytes: int, what: str) -> Segment:
    has = _available_bytes(path.parent)
    remedy = "choose a smaller size, or free memory"
    if reserve_bytes > has:
        raise NotEnoughMemory(
            f"{what} needs {format_size(reserve_bytes)}, {path.parent} has {format_size(has)}",
            remedy,
        )
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        os.ftruncate(fd, size_bytes)
        os.posix_fallocate(fd, 0, reserve_bytes)
        return Segment(path, fd, size_bytes)
    except BaseException as error:
        os.unlink(path)
        os.close(fd)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.ENOMEM):
            raise NotEnoughMemory(
                f"{what} needs {format_size(reserve_bytes)}, {path.parent} has less",
                remedy,
            ) from error
        raise


def _attach(path: Path) -> Segment:
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        size_bytes = os.fstat(fd).st_size
        if size_bytes < ALIGN_BYTES:
            raise CorruptArena(f"{path} is only {size_bytes} bytes long", "remove it")
        return Segment(path, fd, size_bytes)
    except BaseException:
        os.close(fd)
        raise


# --------------------------------------------------------------------------------------- locks


def _whole(kind: int) -> bytes:
    """A `struct flock` of all of a file."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0)


def try_lock(fd: int) -> bool:
    """Lock an open file for as long as its description is open; False if somebody else has it."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _whole(fcntl.F_WRLCK))
    except (BlockingIOError, PermissionError):
        return False
    return True


def is_locked(path: Path) -> bool:
    """Whether somebody has the file locked by `try_lock`; asking disturbs nobody who wants to."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _whole(fcntl.F_WRLCK))
    finally:
        os.close(fd)
    return int(struct.unpack("hhqqi4x", found)[0]) != fcntl.F_UNLCK


# ---------------------------------------------------------------------------------------- PMEM


def parse_backing(backing: str) -> Path | None:
    """Path of `backing="file:PATH"`, made absolute; None for "shm". Else ValueError."""
    if not isinstance(backing, str):
        raise TypeError(f"backing is a str, not {type(backing).__name__}")
    if backing == "shm":
        return None
    if backing.startswith(FILE_PREFIX) and len(backing) > len(FILE_PREFIX):
        return Path(os.path.realpath(backing[len(FILE_PREFIX) :]))
    raise ValueError(f"bad backing {backing!r}: it must be 'shm' or 'file:PATH'")


def create_pmem(name: str, size_bytes: int, backing: str = "shm") -> Segment:
    """Make the PMEM segment of a new arena; all its bytes are zero and reserved.

    `size_bytes` is rounded up to whole 4 KiB blocks. Raises ArenaExists when there is one already,
    NotEnoughMemory ("needs X, has Y") when it does not fit, ValueError for a bad name or backing.
    """
    size_bytes = -(-size_bytes // ALIGN_BYTES) * ALIGN_BYTES
    file = parse_backing(backing)
    if pmem_exists(name) or registered(name):
        raise ArenaExists(f"arena '{name}' exists", f"remove it first with: nova-mp destroy {name}")
    path = file or pmem_path(name)
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
    try:
        segment = _create(path, size_bytes, size_bytes, f"arena '{name}'")
    except FileExistsError:
        raise ArenaExists(f"{path} exists", "choose another path, or remove it") from None
    if file:
        try:
            os.fsync(segment.fd)
            register(Registered(name, str(file)))
        except BaseException:
            segment.close()
            file.unlink()
            raise
    return segment


def attach_pmem(name: str) -> Segment:
    """Map the PMEM segment of arena `name`; raises ArenaNotFound if there is none."""
    try:
        return _attach(pmem_path(name))
    except FileNotFoundError:
        entry = registered(name)
        if entry:
            raise ArenaNotFound(
                f"the file of arena '{name}', {entry.path}, is gone",
                f"put it back, or forget the arena with: nova-mp destroy {name}",
            ) from None
        raise missing_arena(name) from None


def pmem_exists(name: str) -> bool:
    """Whether arena `name` has its PMEM segment."""
    return pmem_path(name).exists()


def unlink_pmem(name: str) -> None:
    """Remove arena `name` and all its data; raises ArenaNotFound if there is none."""
    path, entry = pmem_path(name), registered(name)
    try:
        path.unlink()
    except FileNotFoundError:
        if not entry:
            raise missing_arena(name) from None
    unregister(name)


# ---------------------------------------------------------------------------------------- DRAM


def create_dram(name: str, base_bytes: int, limit_bytes: int) -> Segment:
    """Make the DRAM segment of an arena that is to be mounted.

    The segment is `limit_bytes` long; `base_bytes` of it are reserved now, the core reserves more
    as it needs it. Raises FileExistsError when there is one, NotEnoughMemory when it does not fit.
    """
    return _create(dram_path(name), limit_bytes, base_bytes, f"volatile state of '{name}'")


def attach_dram(name: str) -> Segment:
    """Map the DRAM segment of arena `name`; raises FileNotFoundError if it is not mounted."""
    return _attach(dram_path(name))


def dram_exists(name: str) -> bool:
    """Whether arena `name` has a DRAM segment: it is mounted, or its engine was killed."""
    return dram_path(name).exists()


def unlink_dram(name: str) -> None:
    """Drop the DRAM segment if there is one; processes that map it keep their mapping."""
    dram_path(name).unlink(missing_ok=True)

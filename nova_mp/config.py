"""Names, places and limits: where an arena's pieces are, and what the user may set.

An arena NAME is made of
- the segments `nova_mp.NAME.pmem` and `nova_mp.NAME.dram` (see `core/segment.py`), or a file named
  by a registry entry in the state directory when it was made with `backing="file:PATH"`;
- a folder in the runtime directory, which only its owner may enter, with the engine's sockets,
  `engine.json` (who runs), `engine.lock` and `engine.log`.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nova_mp.errors import ArenaNotFound, CorruptArena, NovaError

CPUS_MAX = 128
"""Emulated CPUs of one arena; the on-media tables have one entry for each."""

MEDIA = ("dram", "pmem", "real")
"""`dram`: nothing to flush. `pmem`: emulated latency and bandwidth. `real`: flush instructions."""

IPC_PATH_BYTES_MAX = 107
"""A Unix socket's path must fit `sockaddr_un.sun_path` (108 bytes with its final NUL)."""

LOG_BYTES_MAX = 8 << 20
"""An engine log larger than this is put aside as `engine.log.1` when the engine starts."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?", re.IGNORECASE)
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}


def check_name(name: str) -> str:
    """Give back `name` if it can name an arena, else raise ValueError."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"bad arena name {name!r}: 1 to 64 of A-Z a-z 0-9 _ . - and starting with a letter"
            " or digit"
        )
    return name


def parse_size(size: int | str) -> int:
    """Bytes of `size`: an int, or text such as "64MiB", "1GiB", "1.5g", "4096".

    Units are powers of two whether written MiB, MB or M. Raises ValueError for anything else.
    """
    if isinstance(size, bool):
        raise ValueError(f"bad size {size!r}")
    if isinstance(size, int):
        if size <= 0:
            raise ValueError(f"bad size {size}: it must be positive")
        return size
    match = _SIZE.fullmatch(size.strip())
    if not match:
        raise ValueError(f"bad size {size!r}: write bytes, or a number with KiB, MiB, GiB or TiB")
    value = int(float(match[1]) * (1 << _UNITS[match[2].lower()]))
    if value <= 0:
        raise ValueError(f"bad size {size!r}: it must be positive")
    return value


def format_size(size_bytes: int) -> str:
    """`size_bytes` for people: "512 B", "64 MiB", "1.5 GiB"."""
    value = float(size_bytes)
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while abs(value) >= 1024 and len(units) > 1:
        value /= 1024
        del units[0]
    return f"{value:.1f}".removesuffix(".0") + f" {units[0]}"


def check_cpus(cpus: int) -> int:
    """Give back `cpus` if an arena can have so many, else raise ValueError."""
    if isinstance(cpus, bool) or not isinstance(cpus, int) or not 1 <= cpus <= CPUS_MAX:
        raise ValueError(f"bad number of CPUs {cpus!r}: it must be 1 to {CPUS_MAX}")
    return cpus


def check_media(media: str) -> str:
    """Give back `media` if it names a medium, else raise ValueError."""
    if media not in MEDIA:
        raise ValueError(f"bad medium {media!r}: it must be one of {', '.join(MEDIA)}")
    return media


# ------------------------------------------------------------------------------------- places


def _private_directory(path: Path) -> Path:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = path.lstat()
    if info.st_uid != os.getuid() or not stat.S_ISDIR(info.st_mode):
        raise NovaError(
            f"{path} is not a directory of yours",
            "remove it, or set NOVA_MP_RUNTIME_DIR to a directory of your own",
        )
    if info.st_mode & 0o077:
        path.chmod(0o700)
    return path


def runtime_root() -> Path:
    """Directory of all arenas' runtime folders; it may not exist yet."""
    if given := os.environ.get("NOVA_MP_RUNTIME_DIR"):
        return Path(given).absolute()
    if xdg := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(xdg).absolute() / "nova_mp"
    return Path(tempfile.gettempdir()) / f"nova_mp-{os.getuid()}"


def state_root() -> Path:
    """Directory of the registry of arenas backed by files; it may not exist yet."""
    if given := os.environ.get("NOVA_MP_STATE_DIR"):
        return Path(given).absolute()
    if xdg := os.environ.get("XDG_STATE_HOME"):
        return Path(xdg).absolute() / "nova_mp"
    return Path.home() / ".local" / "state" / "nova_mp"


def runtime_path(name: str) -> Path:
    """Runtime folder of arena `name`; it may not exist yet."""
    return runtime_root() / check_name(name)


def make_runtime_path(name: str) -> Path:
    """Runtime folder of arena `name`, made if needed, with mode 0700."""
    check_name(name)
    root = runtime_root()
    if not (os.environ.get("NOVA_MP_RUNTIME_DIR") or os.environ.get("XDG_RUNTIME_DIR")):
        # Anybody could have made this name in the shared temporary directory before us.
        _private_directory(root)
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    return _private_directory(runtime_path(name))


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where an engine listens: ZeroMQ addresses (`ipc://...` or `tcp://host:port`)."""

    coordinator: str
    events: str
    workers: tuple[str, ...]


def endpoints(name: str, cpus: int, address: str | None = None) -> Endpoints:
    """Addresses of arena `name`'s engine.

    `address` is None for sockets in the runtime folder, or `tcp://HOST:PORT`: then the coordinator
    has PORT, its events PORT + 1, and worker N has PORT + 2 + N. Raises ValueError for a bad
    address and NovaError when the runtime folder's path is too long for a Unix socket.
    """
    check_cpus(cpus)
    if address is None:
        folder = runtime_path(name)
        paths = [folder / "coordinator.sock", folder / "events.sock"]
        paths += [folder / f"worker-{cpu}.sock" for cpu in range(cpus)]
        longest = max(paths, key=lambda path: len(os.fsencode(path)))
        if len(os.fsencode(longest)) > IPC_PATH_BYTES_MAX:
            raise NovaError(
                f"{longest} is too long for a socket (at most {IPC_PATH_BYTES_MAX} bytes)",
                "set NOVA_MP_RUNTIME_DIR to a shorter directory, or choose a shorter arena name",
            )
        urls = [f"ipc://{path}" for path in paths]
        return Endpoints(urls[0], urls[1], tuple(urls[2:]))
    match = re.fullmatch(r"tcp://(\[[0-9A-Fa-f:]+\]|[^:/\s]+):(\d{1,5})", address)
    if not match or not 1 <= int(match[2]) <= 65535 - 2 - cpus:
        raise ValueError(f"bad address {address!r}: write tcp://HOST:PORT, ports to spare")
    host, port = match[1], int(match[2])
    urls = [f"tcp://{host}:{port + step}" for step in range(2 + cpus)]
    return Endpoints(urls[0], urls[1], tuple(urls[2:]))


# ------------------------------------------------------------------------------------ registry


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


# ------------------------------------------------------------------------------ engine record


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """`engine.json`: the engine that runs an arena. Written by its supervisor, removed by it.

    `pid` with `start_ticks` (field 22 of /proc/PID/stat) identifies the supervisor for certain;
    `children` holds (title, pid, start_ticks) of the processes it started.
    """

    name: str
    engine_id: str
    pid: int
    start_ticks: int
    started_ns: int
    cpus: int
    media: str
    address: str | None
    ready: bool
    children: tuple[tuple[str, int, int], ...] = ()


def engine_record_path(name: str) -> Path:
    """File of the engine record of arena `name`."""
    return runtime_path(name) / "engine.json"


def write_engine_record(record: EngineRecord) -> None:
    """Write the engine record, replacing an older one at once or not at all."""
    write_json(engine_record_path(record.name), asdict(record))


def read_engine_record(name: str) -> EngineRecord | None:
    """The engine record of arena `name`; None when there is none. It may be stale."""
    data = read_json(engine_record_path(name))
    if data is None or set(data) != {field.name for field in fields(EngineRecord)}:
        return None
    data["children"] = tuple((str(t), int(p), int(s)) for t, p, s in data["children"])
    return EngineRecord(**data)


def write_json(path: Path, data: Any) -> None:
    """Write `data` to `path` so that a reader sees the old or the new contents, never a part."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as stream:
            json.dump(data, stream)
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

"""Names, places and limits: where an arena's pieces are, and what the user may set.

An arena NAME is made of
- the segments `nova_mp.NAME.pmem` and `nova_mp.NAME.dram` (see `core/segment.py`), or a file named
  by a registry entry in the state directory when it was made with `backing="file:PATH"`;
- a folder in the runtime directory, which only its owner may enter, with the engine's sockets,
  `engine.json` (who runs), `engine.lock` and `engine.log`.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from nova_mp.core.segment import check_name, is_locked, pmem_path, read_json, write_json
from nova_mp.errors import NovaError

CPUS_MAX = 128
"""Emulated CPUs of one arena; the on-media tables have one entry for each."""

MEDIA = ("dram", "pmem", "real")
"""`dram`: nothing to flush. `pmem`: emulated latency and bandwidth. `real`: flush instructions."""

IPC_PATH_BYTES_MAX = 107
"""A Unix socket's path must fit `sockaddr_un.sun_path` (108 bytes with its final NUL)."""

ELSEWHERE_REMEDY = "set NOVA_MP_RUNTIME_DIR, or XDG_RUNTIME_DIR, as where the engine was started"

SETTLE_S = 0.5
"""A killed supervisor loses its locks one after the other, in less than this."""

LOG_BYTES_MAX = 8 << 20
"""An engine log larger than this is put aside as `engine.log.1` when the engine starts."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?", re.IGNORECASE)
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}


def parse_size(size: int | str) -> int:
    """Bytes of `size`: an int, or text such as "64MiB", "1GiB", "1.5g", "4096".

    Units are powers of two whether written MiB, MB or M. Raises ValueError for anything else.
    """
    if isinstance(size, bool):
        raise ValueError(f"bad size {size!r}")
    if not isinstance(size, int | str):
        raise TypeError(f"a size is an int or a str, not {type(size).__name__}")
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


def endpoints(name: str, cpus: int) -> Endpoints:
    """Addresses of arena `name`'s engine on this machine: sockets in the runtime folder.

    Raises NovaError when the runtime folder's path is too long for a Unix socket.
    """
    check_cpus(cpus)
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


def tcp_endpoints(tcp: str, cpus: int) -> Endpoints:
    """Addresses of an engine by TCP, from its coordinator's: `HOST:PORT`, or `tcp://HOST:PORT`.

    Its events have PORT + 1, and worker N has PORT + 2 + N. Raises ValueError for what is none.
    """
    check_cpus(cpus)
    match = re.fullmatch(r"(?:tcp://)?(\[[0-9A-Fa-f:]+\]|[^:/\s]+):(\d{1,5})", tcp)
    if not match or not 1 <= int(match[2]) <= 65535 - 2 - cpus:
        raise ValueError(f"bad address {tcp!r}: write HOST:PORT, ports to spare")
    host, port = match[1], int(match[2])
    urls = [f"tcp://{host}:{port + step}" for step in range(2 + cpus)]
    return Endpoints(urls[0], urls[1], tuple(urls[2:]))


def lock_path(name: str) -> Path:
    """The file that the supervisor of arena `name` holds locked, in the runtime folder."""
    return runtime_path(name) / "engine.lock"


def engine_elsewhere(name: str) -> bool:
    """Whether arena `name` has an engine whose runtime folder is not this process's."""
    until = time.monotonic() + SETTLE_S
    while is_locked(pmem_path(name)) and not is_locked(lock_path(name)):
        if time.monotonic() > until:
            return True
        time.sleep(0.01)
    return False


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
    tcp: str | None
    ready: bool
    children: tuple[tuple[str, int, int], ...] = ()


def engine_record_path(name: str) -> Path:
    """File of the engine record of arena `name`."""
    return runtime_path(name) / "engine.json"


def clear_engine_files(name: str) -> None:
    """Remove the record and the sockets of an engine that has ended; log and lock file stay."""
    folder = runtime_path(name)
    if folder.is_dir():
        for path in folder.glob("*.sock"):
            path.unlink(missing_ok=True)
    engine_record_path(name).unlink(missing_ok=True)


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

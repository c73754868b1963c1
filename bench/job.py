"""A job file (TOML) as frozen dataclasses.

Every table is read key by key, and a key that nobody asked for is an error that names the ones
there are: a misspelt ``patern`` must not silently measure the default.

``include = ["media-pmem.toml"]`` at the top of a job file takes the tables of presets first, found
beside the job file or among the presets that are installed with the package; the job's own keys
win.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from nova_mp.config import CPUS_MAX, MEDIA, parse_size
from nova_mp.errors import NovaError

from .units import parse_duration

PRESETS = Path(__file__).resolve().parent.parent / "presets"
PRESETS_IN_TREE = Path(__file__).resolve().parent.parent / "config"
OPERATIONS = ("read", "write", "stat", "create", "rename", "fsync")
PATTERNS = ("random", "sequential", "hot")
MODES = ("attached", "remote")
PEERS = ("tmpfs", "directory")

T = TypeVar("T")

KEYS_ARE_IN = "docs/BENCHMARKS.md has the keys"
NO_KEYS: dict[str, Any] = {}
NO_ROWS: list[Any] = []


class JobError(NovaError, ValueError):
    """A job file that cannot be run as it is written."""


@dataclass(frozen=True, slots=True)
class ArenaSpec:
    """The arena of a job. It is made for the job and destroyed after it."""

    size_bytes: int
    cpus: int = 2
    backing: str = "shm"
    media: str = "dram"


@dataclass(frozen=True, slots=True)
class SnapshotPlan:
    """A snapshot every ``every_ns`` (none when 0); the newest ``keep`` are not deleted."""

    every_ns: int = 0
    keep: int = 10


@dataclass(frozen=True, slots=True)
class ClientGroup:
    """``count`` processes that do the same. Rates are per process, 0 is a closed loop."""

    name: str
    count: int
    mode: str
    mix: tuple[tuple[str, float], ...]
    block_bytes: int
    pattern: str
    files: int
    file_bytes: int
    rate: float = 0.0
    poisson: bool = False

    @property
    def blocks_per_file(self) -> int:
        """Whole blocks that fit in one file."""
        return self.file_bytes // self.block_bytes


@dataclass(frozen=True, slots=True)
class RunPlan:
    """When to measure, how often, and whether to check what is read."""

    warmup_ns: int = 500_000_000
    duration_ns: int = 2_000_000_000
    repeats: int = 3
    seed: int = 1
    verify: bool = False


@dataclass(frozen=True, slots=True)
class PeerSpec:
    """The same clients on another file system, in the same run."""

    kind: str
    path: str


@dataclass(frozen=True, slots=True)
class Job:
    """A whole job file."""

    name: str
    path: str
    arena: ArenaSpec
    snapshots: SnapshotPlan
    clients: tuple[ClientGroup, ...]
    run: RunPlan
    peers: tuple[PeerSpec, ...] = ()
    tables: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def processes(self) -> int:
        """Client processes in all."""
        return sum(group.count for group in self.clients)


class Table:
    """One TOML table, read key by key; `done` refuses what was not read."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, dict):
            raise JobError(f"{where} must be a table", "write it as [name] or [[name]]")
        self.values = dict(values)
        self.where = where
        self.known: list[str] = []

    def take(self, key: str, convert: Callable[[Any], T], default: T | None = None) -> T:
        """The converted value of ``key``; raises JobError when it is missing or does not fit."""
        self.known.append(key)
        if key not in self.values:
            if default is None:
                raise JobError(f"{self.where} lacks '{key}'", KEYS_ARE_IN)
            return default
        try:
            return convert(self.values.pop(key))
        except (ValueError, TypeError) as error:
            raise JobError(f"{self.where}.{key}: {error}", KEYS_ARE_IN) from error

    def done(self) -> None:
        """Raise JobError when the table holds a key that nobody took."""
        if self.values:
            unknown = ", ".join(sorted(self.values))
            raise JobError(
                f"{self.where} has unknown keys: {unknown}",
                f"known are: {', '.join(sorted(set(self.known)))}",
            )


def whole(low: int, high: int = 2**63 - 1) -> Callable[[Any], int]:
    """A converter for integers from ``low`` to ``high``."""

    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"expected a whole number from {low} to {high}, got {value!r}")
        return value

    return convert


def number(value: Any) -> float:
    """A converter for numbers that are not negative."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not (
        0 <= value < math.inf
    ):
        raise ValueError(f"expected a number that is not negative, got {value!r}")
    return float(value)


def one_of(*choices: str) -> Callable[[Any], str]:
    """A converter for one of a few words."""

    def convert(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}, got {value!r}")
        return str(value)

    return convert


def each(convert: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    """A converter for lists."""

    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise ValueError(f"expected a list, got {value!r}")
        return tuple(convert(one) for one in value)

    return read


def table(value: Any) -> dict[str, Any]:
    """A converter for tables."""
    if not isinstance(value, dict):
        raise ValueError(f"expected a table, got {value!r}")
    return value


def rows(value: Any) -> list[Any]:
    """A converter for arrays of tables."""
    if not isinstance(value, list):
        raise ValueError(f"expected an array of tables, got {value!r}")
    return value


def flag(value: Any) -> bool:
    """A converter for true and false."""
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, got {value!r}")
    return value


def read_tables(path: Path) -> dict[str, Any]:
    """The tables of a job file with its presets merged in; raises JobError, FileNotFoundError."""
    return _read_with_includes(path, ())


def _read_with_includes(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    real = path.resolve()
    if real in above:
        raise JobError(f"{path} includes itself", "take it out of one of the include lists")
    if path.is_dir():
        raise JobError(f"{path} is a directory", "name a job file in it")
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise JobError(f"{path} is not TOML: {error}", "mend that line") from error
    except UnicodeDecodeError as error:
        raise JobError(f"{path} is no text in UTF-8", "name a job file, in TOML") from error
    names = tables.pop("include", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise JobError(
            f"{path.name}.include: expected a list of file names, got {names!r}",
            'write it as include = ["media-pmem.toml"]',
        )
    merged: dict[str, Any] = {}
    for name in names:
        found = find_preset(name, path.parent)
        merged = _merge(merged, _read_with_includes(found, (*above, real)))
    return _merge(merged, tables)


def find_preset(name: str, beside: Path) -> Path:
    """The file of a preset: beside the job file, in the source tree, or installed."""
    for folder in (beside, PRESETS, PRESETS_IN_TREE):
        candidate = folder / name
        if candidate.is_file():
            return candidate
    raise JobError(f"no preset '{name}'", f"presets are in {beside} and {PRESETS}")


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def load_job(path: str | Path, besides: tuple[str, ...] = ()) -> Job:
    """Read a load job. Raises JobError with the place of the first thing that does not fit.

    ``besides`` names tables of the file that are for others to read.
    """
    where = Path(path)
    tables = {key: value for key, value in read_tables(where).items() if key not in besides}
    top = Table(tables, where.name)
    job = Job(
        name=top.take("name", str, where.stem),
        path=str(where),
        arena=read_arena(top.take("arena", table, NO_KEYS)),
        snapshots=_read_snapshots(top.take("snapshots", table, NO_KEYS)),
        clients=tuple(
            _read_group(values, index) for index, values in enumerate(top.take("clients", rows))
        ),
        run=_read_run(top.take("run", table, NO_KEYS)),
        peers=tuple(
            _read_peer(values, index)
            for index, values in enumerate(top.take("peers", rows, NO_ROWS))
        ),
        tables=tables,
    )
    top.take("title", str, "")
    top.done()
    _check(job)
    return job


def read_arena(values: dict[str, Any]) -> ArenaSpec:
    """The [arena] table."""
    keys = Table(values, "arena")
    spec = ArenaSpec(
        size_bytes=keys.take("size", parse_size, parse_size("1GiB")),
        cpus=keys.take("cpus", whole(1, CPUS_MAX), 2),
        backing=keys.take("backing", str, "shm"),
        media=keys.take("media", one_of(*MEDIA), "dram"),
    )
    keys.done()
    return spec


def _read_snapshots(values: dict[str, Any]) -> SnapshotPlan:
    keys = Table(values, "snapshots")
    plan = SnapshotPlan(
        every_ns=keys.take("every", parse_duration, 0),
        keep=keys.take("keep", whole(0), 10),
    )
    keys.done()
    return plan


def _read_mix(value: Any) -> tuple[tuple[str, float], ...]:
    if not isinstance(value, dict) or not value:
        raise ValueError('expected shares such as { read = 70, write = 30 }')
    unknown = sorted(set(value) - set(OPERATIONS))
    if unknown:
        raise ValueError(f"unknown operations {', '.join(unknown)}; known: {', '.join(OPERATIONS)}")
    shares = tuple((name, number(value[name])) for name in OPERATIONS if name in value)
    if sum(share for _, share in shares) <= 0:
        raise ValueError("all shares are zero")
    return shares


def _read_group(values: Any, index: int) -> ClientGroup:
    keys = Table(values, f"clients[{index}]")
    group = ClientGroup(
        name=keys.take("name", str, f"group{index}"),
        count=keys.take("count", whole(1, 4096), 1),
        mode=keys.take("mode", one_of(*MODES), "attached"),
        mix=keys.take("mix", _read_mix),
        block_bytes=keys.take("block", parse_size, 4096),
        pattern=keys.take("pattern", one_of(*PATTERNS), "random"),
        files=keys.take("files", whole(1), 1),
        file_bytes=keys.take("file_size", parse_size, 1 << 20),
        rate=keys.take("rate", number, 0.0),
        poisson=keys.take("poisson", flag, False),
    )
    keys.done()
    if group.blocks_per_file < 1:
        raise JobError(f"{keys.where}: file_size is smaller than block", "make files larger")
    return group


def _read_run(values: dict[str, Any]) -> RunPlan:
    keys = Table(values, "run")
    plan = RunPlan(
        warmup_ns=keys.take("warmup", parse_duration, 500_000_000),
        duration_ns=keys.take("duration", parse_duration, 2_000_000_000),
        repeats=keys.take("repeats", whole(1, 1000), 3),
        seed=keys.take("seed", whole(0), 1),
        verify=keys.take("verify", flag, False),
    )
    keys.done()
    return plan


def _read_peer(values: Any, index: int) -> PeerSpec:
    keys = Table(values, f"peers[{index}]")
    kind = keys.take("kind", one_of(*PEERS))
    peer = PeerSpec(kind, keys.take("path", str, "/dev/shm" if kind == "tmpfs" else None))
    keys.done()
    return peer


def _check(job: Job) -> None:
    """What no single table can know."""
    if not job.clients:
        raise JobError("the job has no clients", "add a [[clients]] table")
    names = [group.name for group in job.clients]
    if len(set(names)) != len(names):
        raise JobError("two client groups have one name", "give each [[clients]] a name of its own")
    data = sum(group.count * group.files * group.file_bytes for group in job.clients)
    if data > job.arena.size_bytes * 0.9:
        raise JobError(
            f"the clients' files need {data} bytes, the arena has {job.arena.size_bytes}",
            "make arena.size larger or the files smaller",
        )
    if job.run.verify and any(group.block_bytes < 64 for group in job.clients):
        raise JobError("verify needs blocks of at least 64 bytes", "set block to 64 or more")

"""nova_mp: the NOVA persistent-memory file system and its snapshots, for many Python processes.

    nova_mp.mkfs("demo", size="1GiB", cpus=4)
    with nova_mp.start("demo"), nova_mp.attach("demo") as fs:
        fs.write_bytes("/hello", b"world")
        snapshot = fs.snapshots.create("first")

The names below are the public ones. What needs the native core is imported at its first use, so
that the errors, the version and the command line's help work without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nova_mp.errors import (
    AccessRefused,
    ArenaBusy,
    ArenaExists,
    ArenaNotFound,
    CorruptArena,
    EngineFailed,
    EngineNotRunning,
    EngineRunning,
    Frozen,
    NoSuchSnapshot,
    NotEnoughMemory,
    NovaError,
    ProtocolError,
    SlotsExhausted,
    Timeout,
    VersionMismatch,
)
from nova_mp.version import __version__

if TYPE_CHECKING:
    from nova_mp.client.base import FileSystem
    from nova_mp.client.entry import attach, connect
    from nova_mp.client.snapshots import Snapshot
    from nova_mp.cluster.inspection import status
    from nova_mp.cluster.launcher import Engine, crash, destroy, mkfs, start, stop

_LAZY = {
    "mkfs": "nova_mp.cluster.launcher",
    "start": "nova_mp.cluster.launcher",
    "stop": "nova_mp.cluster.launcher",
    "status": "nova_mp.cluster.inspection",
    "crash": "nova_mp.cluster.launcher",
    "destroy": "nova_mp.cluster.launcher",
    "Engine": "nova_mp.cluster.launcher",
    "attach": "nova_mp.client.entry",
    "connect": "nova_mp.client.entry",
    "FileSystem": "nova_mp.client.base",
    "Snapshot": "nova_mp.client.snapshots",
}

__all__ = [
    "AccessRefused",
    "ArenaBusy",
    "ArenaExists",
    "ArenaNotFound",
    "CorruptArena",
    "Engine",
    "EngineFailed",
    "EngineNotRunning",
    "EngineRunning",
    "FileSystem",
    "Frozen",
    "NoSuchSnapshot",
    "NotEnoughMemory",
    "NovaError",
    "ProtocolError",
    "SlotsExhausted",
    "Snapshot",
    "Timeout",
    "VersionMismatch",
    "__version__",
    "attach",
    "connect",
    "crash",
    "destroy",
    "mkfs",
    "start",
    "status",
    "stop",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'nova_mp' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))

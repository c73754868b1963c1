"""An arena and its engine for the time of one measurement, gone afterwards whatever happened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import nova_mp
from nova_mp.errors import NovaError

from .job import ArenaSpec


class Arena:
    """A running arena that is ours: it can be crashed and started again."""

    def __init__(self, name: str, spec: ArenaSpec) -> None:
        self.name = name
        self.spec = spec
        self.engine: Any = None

    def start(self) -> None:
        """Start the engine; after a crash this mounts and recovers."""
        self.engine = nova_mp.start(self.name, media=self.spec.media)

    def stop(self) -> None:
        """A clean unmount; nothing happens when the engine is not running."""
        engine, self.engine = self.engine, None
        if engine is not None:
            engine.stop()

    def crash(self) -> None:
        """An emulated power failure."""
        self.engine = None
        nova_mp.crash(self.name)

    def attach(self) -> Any:
        """A file system whose operations run in this process."""
        return nova_mp.attach(self.name)


@contextmanager
def temporary_arena(spec: ArenaSpec, purpose: str, *, start: bool = True) -> Iterator[Arena]:
    """Make an arena of our own, start its engine, and destroy both in the end.

    The name holds our process id, so that runs side by side do not meet.
    """
    arena = Arena(f"{purpose}-{os.getpid()}", spec)
    nova_mp.mkfs(arena.name, size=spec.size_bytes, cpus=spec.cpus, backing=spec.backing)
    try:
        if start:
            arena.start()
        yield arena
    finally:
        # What went wrong in the body matters more than an engine that will not stop politely;
        # destroying by force takes it down in any case.
        with suppress(NovaError, OSError):
            arena.stop()
        nova_mp.destroy(arena.name, force=True)

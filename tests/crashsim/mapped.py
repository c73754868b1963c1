"""What tests of mapped files share."""

from __future__ import annotations

import gc
import os
import select
from typing import Any

from t2_crash.defects_help import exact, get, same, sound, state

from crashsim.arena import Arena, arena

SECONDS = 30.0


def mapped(fs: Any, path: str = "/file", offset: int = 0, length: int | None = None) -> Any:
    """A writable mapping of a file."""
    with fs.os_open(path, os.O_RDWR) as file:
        return file.mmap(offset, length)


def shown(fs: Any, epoch_id: int, path: str = "/file") -> bytes:
    """What a file is in a snapshot."""
    with fs.snapshot_open(epoch_id) as view:
        return get(view, path)


def rests(a: Arena) -> None:
    """Everything is accounted for, now, after a crash, and after a clean restart."""
    a.settle()
    exact(a)
    wanted = state(a)
    with arena(image=a.image()) as crashed:
        same(state(crashed), wanted)
        crashed.settle()
        exact(crashed)
        clean = crashed.unmount()
    sound(clean)
    with arena(image=clean) as again:
        assert again.recovery["clean"]
        same(state(again), wanted)


def tick(fd: int) -> None:
    """Wait for a byte of another process."""
    ready, _, _ = select.select([fd], [], [], SECONDS)
    assert ready, "the other process does not answer"
    assert os.read(fd, 1) == b"."


def close_all(fs: Any) -> None:
    """Close the mappings that there are."""
    gc.collect()
    for mapping in list(fs.mappings):
        mapping.close()

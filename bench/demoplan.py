"""What the demo does on this machine: which files it imports, and how much fits.

The arena must hold the tree, and whatever the snapshots come to hold while it is rewritten. The
second is bounded by the set of files that a client works on between two snapshots, so the size of
that set follows from the size of the arena.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from dataclasses import dataclass, field
from typing import Any

from nova_mp.errors import NovaError

from .democlient import Item
from .units import show_bytes

ARENA_BYTES_MAX = 2 << 30
ARENA_BYTES_MIN = 192 << 20
WINDOW_BYTES_MAX = 2 << 20
# What an inode, its log and a part of its last block take, at most.
FILE_OVERHEAD_BYTES = 12 << 10
SKIPPED_FOLDERS = ("__pycache__", "site-packages", "dist-packages", "idle_test")


@dataclass(frozen=True, slots=True)
class Options:
    """What a demo does; the defaults are those of ``make demo``."""

    clients: int = 4
    cpus: int = 4
    seconds: float = 4.0
    rate: float = 20.0
    tree: str = field(default_factory=lambda: sysconfig.get_path("stdlib"))
    size: int = 0
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """What fits on this machine: the arena, the files to import, what a client works on."""

    arena_bytes: int
    items: list[Item]
    tree_bytes: int
    window_bytes: int


def make_plan(options: Options) -> Plan:
    """Choose sizes. Raises NovaError when the machine has too little room for any demo."""
    available = shutil.disk_usage("/dev/shm").free
    size = options.size or min(ARENA_BYTES_MAX, available // 5 * 2)
    if 0 < options.size < ARENA_BYTES_MIN:
        raise NovaError(
            f"an arena of {show_bytes(size)} is too small for the demo",
            f"give --size {ARENA_BYTES_MIN >> 20}MiB or more",
        )
    if size < ARENA_BYTES_MIN:
        raise NovaError(
            f"/dev/shm has {show_bytes(available)} free, a demo needs about"
            f" {show_bytes(ARENA_BYTES_MIN * 5 // 2)}",
            "free some memory, or make /dev/shm larger",
        )
    items, tree_bytes = collect_tree(options.tree, size // 4)
    # Each snapshot comes to hold at most what was worked on until the next one, log pages included.
    snapshots = max(1.0, options.seconds * options.rate)
    room = (size - 3 * tree_bytes) / 2
    window = int(room / snapshots / options.clients)
    return Plan(size, items, tree_bytes, max(64 << 10, min(WINDOW_BYTES_MAX, window)))


def collect_tree(tree: str, limit: int) -> tuple[list[Item], int]:
    """The files of a tree, and their bytes, until they would need more than ``limit`` bytes."""
    items: list[Item] = []
    total = needed = 0
    for folder, names, files in os.walk(tree):
        names[:] = sorted(name for name in names if name not in SKIPPED_FOLDERS)
        for name in sorted(files):
            source = os.path.join(folder, name)
            if not os.path.isfile(source) or os.path.islink(source):
                continue
            size = os.path.getsize(source)
            # One huge file (a static library) would be most of the bytes, and none of the work.
            if size > limit // 64 or needed + size + FILE_OVERHEAD_BYTES > limit:
                continue
            total += size
            needed += size + FILE_OVERHEAD_BYTES
            items.append((source, "/tree/" + os.path.relpath(source, tree)))
    if not items:
        raise NovaError(f"{tree} holds no files to import", "give --tree another directory")
    return items, total


def folders_of(paths: list[str]) -> list[str]:
    """All folders above the paths but the root, parents first."""
    found = set()
    for path in paths:
        folder = path.rpartition("/")[0]
        while folder:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return sorted(found)


def make_folders(file_system: Any, folders: list[str]) -> None:
    """Make them, parents first."""
    for folder in folders:
        file_system.mkdir(folder)

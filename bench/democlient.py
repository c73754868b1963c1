"""One client process of the demo: imports its share of a tree, then rewrites, renames and deletes.

It keeps what its files should hold in memory, reads some of them back as it goes, and records each
operation in a `History`. All paths it touches are its own, in directories that it shares with the
other clients. Each recorded operation is one call that the file system promises to be atomic:
create, pwrite, truncate, rename, unlink.

Where the clock starts: right before such a call, and it stops right after it. Throughput counts
these calls and opens and reads, over the whole time from start to end, checksums included.
"""

from __future__ import annotations

import gc
import random
import zlib
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing.connection import Connection
from typing import Any

from .histogram import Histogram
from .loadclient import Target, clock, obey, wait_until
from .oracle import History, Violation

# One file of the tree: where it is on this machine, and where it goes.
Item = tuple[str, str]

NOTE_EVERY_NS = 100_000_000
# Each such period one file leaves the set that is being worked on, and another one enters.
TURN_NS = 20_000_000
MIX = (("patch", 40), ("append", 12), ("shorten", 8), ("rename", 14), ("replace", 4),
       ("make_or_remove", 12), ("read", 10))
NOISE_BYTES = 1 << 20
PIECE_BYTES_MAX = 32 << 10


class DemoClient:
    """The work of one client on one file system."""

    def __init__(
        self, note: Callable[[Any], None], target: Target, client: int, items: list[Item],
        window_bytes: int, seed: int,
    ) -> None:
        self.note = note
        self.client = client
        self.items = items
        self.window_bytes = window_bytes
        self.random = random.Random(f"{seed}/{client}")
        self.file_system = target.connect()
        self.history = History()
        self.content: dict[str, bytearray] = {}
        self.samples: dict[str, array[int]] = {}
        self.bytes_written = 0
        self.operations = 0
        self.folders = sorted({path.rpartition("/")[0] for _, path in items})
        self.noise = self.random.randbytes(NOISE_BYTES)
        self.window: list[str] = []
        self.in_window = 0
        self.cold: list[str] = []
        self.made = 0

    # ------------------------------------------------------------------------------- import

    def load(self) -> int:
        """Read the share of the source tree into memory; returns its bytes."""
        for source, path in self.items:
            with open(source, "rb") as file:
                self.content[path] = bytearray(file.read())
        return sum(map(len, self.content.values()))

    def import_tree(self, start: int) -> dict[str, Any]:
        """Write all files; returns the figures of it."""
        gc.disable()
        wait_until(start)
        began = noted = clock()
        for done, (path, content) in enumerate(self.content.items(), 1):
            with closing(self._create(path)) as file:
                self._pwrite(file, path, bytes(content), 0)
            if clock() - noted > NOTE_EVERY_NS:
                noted = clock()
                self.note(done)
        return self._figures(began, clock())

    # --------------------------------------------------------------------------- operations

    def _timed(self, kind: str, function: Callable[..., Any], *arguments: Any) -> Any:
        before = clock()
        result = function(*arguments)
        self._sample(kind, before, clock())
        return result

    def _sample(self, kind: str, before: int, after: int) -> None:
        samples = self.samples.get(kind)
        if samples is None:
            samples = self.samples[kind] = array("q")
        samples.append(after - before)
        self.operations += 1

    def _value(self, path: str) -> tuple[int, int] | None:
        content = self.content.get(path)
        return None if content is None else (len(content), zlib.crc32(content))

    def _create(self, path: str) -> Any:
        before = clock()
        file = self.file_system.open(path, "xb")
        after = clock()
        self._sample("create", before, after)
        self.history.record(before, after, path, (0, 0))
        return file

    def _pwrite(self, file: Any, path: str, data: bytes, offset: int) -> None:
        before = clock()
        written = file.pwrite(data, offset)
        after = clock()
        self._sample("pwrite", before, after)
        if written != len(data):
            raise Violation(f"{path}: pwrite wrote {written} of {len(data)} bytes")
        content = self.content[path]
        content[offset : offset + len(data)] = data
        self.history.record(before, after, path, (len(content), zlib.crc32(content)))
        self.bytes_written += written

    # ------------------------------------------------------------------------------- mutate

    def mutate(self, start: int, end: int) -> dict[str, Any]:
        """Rewrite, rename and delete from ``start`` to ``end``; returns the figures of it."""
        self.samples, self.operations, self.bytes_written = {}, 0, 0
        self.cold = sorted(self.content)
        self.random.shuffle(self.cold)
        kinds = [kind for kind, share in MIX for _ in range(share)]
        steps = {kind: getattr(self, f"_{kind}") for kind, _ in MIX}
        wait_until(start)
        began = noted = turned = now = clock()
        while now < end:
            if now - turned > TURN_NS or self.in_window < self.window_bytes // 2:
                turned = now
                self._turn_window()
            steps[self.random.choice(kinds)]()
            now = clock()
            if now - noted > NOTE_EVERY_NS:
                noted = now
                self.note(self.operations)
        return self._figures(began, now)

    def _turn_window(self) -> None:
        """Let a file into the working set, and the oldest ones out while it is too large.

        Between two snapshots only files of the working set change, which bounds the space that a
        snapshot can come to hold, however fast this machine is.
        """
        while self.cold:
            path = self.cold.pop()
            if len(self.content[path]) <= self.window_bytes:
                self.window.append(path)
                break
        self.in_window = sum(len(self.content[path]) for path in self.window)
        while self.in_window > self.window_bytes and len(self.window) > 1:
            path = self.window.pop(0)
            self.in_window -= len(self.content[path])
            self.cold.insert(0, path)

    def _pick(self) -> str:
        return self.random.choice(self.window)

    def _piece(self, limit: int) -> bytes:
        """Up to ``limit`` bytes of noise that differ from any other piece."""
        size = self.random.randint(1, max(1, min(limit, PIECE_BYTES_MAX)))
        at = self.random.randrange(NOISE_BYTES - size)
        stamp = len(self.history).to_bytes(8, "little")[:size]
        return stamp + self.noise[at + len(stamp) : at + size]

    def _patch(self) -> None:
        """Rewrite a piece somewhere in a file, at any alignment."""
        path = self._pick()
        size = len(self.content[path])
        data = self._piece(size)
        offset = self.random.randint(0, max(0, size - len(data)))
        with closing(self._timed("open", self.file_system.open, path, "r+b")) as file:
            self._pwrite(file, path, data, offset)

    def _append(self) -> None:
        path = self._pick()
        size = len(self.content[path])
        if size < 4 * PIECE_BYTES_MAX:
            with closing(self._timed("open", self.file_system.open, path, "r+b")) as file:
                self._pwrite(file, path, self._piece(PIECE_BYTES_MAX // 4), size)

    def _shorten(self) -> None:
        path = self._pick()
        size = self.random.randint(0, len(self.content[path]))
        with closing(self._timed("open", self.file_system.open, path, "r+b")) as file:
            before = clock()
            file.truncate(size)
            after = clock()
        del self.content[path][size:]
        self._sample("truncate", before, after)
        self.history.record(before, after, path, self._value(path))

    def _rename(self) -> None:
        """Move a file to a new name, in any folder."""
        path = self._pick()
        folder = self.random.choice(self.folders)
        self.made += 1
        self._move(path, f"{folder}/moved-{self.client}-{self.made}")

    def _replace(self) -> None:
        """Move a file over another one."""
        path, target = self._pick(), self._pick()
        if path != target and len(self.window) > 8:
            self.window.remove(target)
            self._move(path, target)

    def _move(self, path: str, target: str) -> None:
        before = clock()
        self.file_system.rename(path, target)
        after = clock()
        self.content[target] = self.content.pop(path)
        self.window[self.window.index(path)] = target
        self._sample("rename", before, after)
        self.history.record(before, after, path, None, target, self._value(target))

    def _make_or_remove(self) -> None:
        """Whichever keeps the number of files near that of the imported tree."""
        few = len(self.window) <= 8 or len(self.content) < len(self.items) - 8
        if few or (len(self.content) <= len(self.items) and self.random.random() < 0.5):
            self._make()
        else:
            self._remove()

    def _remove(self) -> None:
        path = self._pick()
        before = clock()
        self.file_system.unlink(path)
        after = clock()
        del self.content[path]
        self.window.remove(path)
        self._sample("unlink", before, after)
        self.history.record(before, after, path, None)

    def _make(self) -> None:
        self.made += 1
        folder = self.random.choice(self.folders)
        path = f"{folder}/made-{self.client}-{self.made}"
        self.content[path] = bytearray()
        with closing(self._create(path)) as file:
            self._pwrite(file, path, self._piece(PIECE_BYTES_MAX), 0)
        self.window.append(path)

    def _read(self) -> None:
        """Read a file whole and compare it with what it should hold."""
        path = self._pick()
        content = self.content[path]
        with closing(self._timed("open", self.file_system.open, path, "rb")) as file:
            found = self._timed("pread", file.pread, len(content) + 1, 0)
        if found != content:
            raise Violation(f"{path}: a read gave other bytes than were written last")

    # ------------------------------------------------------------------------------- results

    def _figures(self, began: int, ended: int) -> dict[str, Any]:
        latency = {}
        for kind, samples in self.samples.items():
            histogram = Histogram()
            histogram.record(samples)
            latency[kind] = histogram.pack()
        return {
            "operations": self.operations, "bytes": self.bytes_written, "files": len(self.content),
            "began": began, "ended": ended, "latency": latency,
        }

    def hand_over(self) -> History:
        """What this client did."""
        return self.history

    def digest_of(
        self, snapshot: int | None
    ) -> tuple[dict[str, tuple[int, int]], set[str]] | None:
        """Every file of a snapshot as {path: (length, CRC32)}, and its folders; None for none.

        This reads all files, not only those of this client.
        """
        if snapshot is None:
            return None
        with self.file_system.snapshots.open(snapshot) as view:
            return digest(view)

    def finish(self) -> None:
        """Let go of the file system."""
        self.file_system.close()


def digest(file_system: Any) -> tuple[dict[str, tuple[int, int]], set[str]]:
    """All files as {path: (length, CRC32)}, and all folders but the root."""
    files: dict[str, tuple[int, int]] = {}
    folders: set[str] = set()
    for path, is_folder in entries(file_system, "/"):
        if is_folder:
            folders.add(path)
            continue
        data = file_system.read_bytes(path)
        files[path] = (len(data), zlib.crc32(data))
    return files, folders


def entries(file_system: Any, top: str) -> Iterator[tuple[str, bool]]:
    """Everything below ``top`` as (path, whether it is a folder)."""
    for folder, names, files in file_system.walk(top):
        base = folder.rstrip("/")
        for name in names:
            yield f"{base}/{name}", True
        for name in files:
            yield f"{base}/{name}", False


def main(pipe: Connection, *arguments: Any) -> None:
    """The process."""
    obey(pipe, lambda: DemoClient(lambda value: pipe.send(("note", value)), *arguments))

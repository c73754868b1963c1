"""Random sequences over mapped files, beside a model of bytes.

Files are mapped and unmapped, stored to, written, cut, removed; snapshots are taken, opened, mapped
and deleted; the arena crashes and restarts. After every step all that anybody can see is what the
model says, and every block has one owner. With NOVA_MP_TORTURE=1 fifty times as many.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from crashsim.arena import MIB, Arena, arena
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from t2_crash.defects_help import accounts, exact, get, sound

from nova_mp.tools.fsck import check, format_report
from nova_mp.tools.image import BLOCK_BYTES

TORTURE = os.environ.get("NOVA_MP_TORTURE", "0") not in ("", "0")
LONGEST = 24 * BLOCK_BYTES
NAMES = ("/a", "/b", "/c")
MAPPINGS, SNAPSHOTS = 5, 6
AUDIT_EVERY = 6

names = st.sampled_from(NAMES)
places = st.one_of(
    st.integers(0, LONGEST - 1), st.sampled_from([0, 4095, 4096, 5000, 8192, 40960, LONGEST - 1])
)
sizes = st.one_of(st.integers(1, 20000), st.sampled_from([1, 4096, 8192, 65536]))
numbers = st.integers(0, 63)


@dataclass(eq=False)
class Modelled:
    """A file: what it holds, and whether it still has a name."""

    data: bytearray = field(default_factory=bytearray)
    removed: bool = False

    def put(self, offset: int, data: bytes) -> None:
        if len(self.data) < offset + len(data):
            self.data.extend(bytes(offset + len(data) - len(self.data)))
        self.data[offset : offset + len(data)] = data


@dataclass(eq=False)
class Mapped:
    """A mapping of a file from `offset` on."""

    file: Modelled
    offset: int
    mapping: Any


class MappedFiles(RuleBasedStateMachine):
    """The rules are what is done to files; the invariants compare."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: Arena | None = None
        self.files: dict[str, Modelled] = {}
        self.maps: list[Mapped] = []
        self.snapshots: dict[int, dict[str, bytes]] = {}
        self.views: list[tuple[int, Any, dict[str, Any]]] = []
        self.old_maps: list[tuple[bytes, Any]] = []
        self.steps = self.stamp = 0

    @initialize()
    def mount(self) -> None:
        self.opened = Arena(16 * MIB)

    @property
    def arena(self) -> Arena:
        assert self.opened is not None
        return self.opened

    @property
    def fs(self) -> Any:
        return self.arena.fs

    def let_go(self) -> None:
        """Everything that a restart ends."""
        for one in self.maps:
            one.mapping.close()
        for _, mapping in self.old_maps:
            mapping.close()
        for _, view, files in self.views:
            for file in files.values():
                file.close()
            view.close()
        self.maps, self.old_maps, self.views = [], [], []

    def teardown(self) -> None:
        if self.opened is not None:
            self.let_go()
            self.arena.close()

    def data(self, size: int) -> bytes:
        self.stamp += 1
        return (b"%d." % self.stamp * size)[:size]

    # -- files

    @rule(name=names, offset=places, size=sizes)
    def write(self, name: str, offset: int, size: int) -> None:
        data = self.data(min(size, LONGEST - offset))
        with self.fs.os_open(name, os.O_CREAT | os.O_RDWR) as file:
            file.pwrite(data, offset)
        self.files.setdefault(name, Modelled()).put(offset, data)

    @precondition(lambda self: self.files)
    @rule(at=numbers, size=places)
    def truncate(self, at: int, size: int) -> None:
        name = sorted(self.files)[at % len(self.files)]
        self.fs.truncate(name, size)
        file = self.files[name]
        file.put(size, b"")
        del file.data[size:]

    @precondition(lambda self: self.files)
    @rule(at=numbers, offset=places, length=sizes)
    def fallocate(self, at: int, offset: int, length: int) -> None:
        name = sorted(self.files)[at % len(self.files)]
        length = min(length, LONGEST - offset)
        with self.fs.os_open(name, os.O_RDWR) as file:
            file.fallocate(offset, length)
        self.files[name].put(offset + length, b"")

    @precondition(lambda self: self.files)
    @rule(at=numbers)
    def unlink(self, at: int) -> None:
        name = sorted(self.files)[at % len(self.files)]
        self.fs.unlink(name)
        self.files.pop(name).removed = True

    @precondition(lambda self: self.files)
    @rule(at=numbers, to=names)
    def rename(self, at: int, to: str) -> None:
        name = sorted(self.files)[at % len(self.files)]
        self.fs.rename(name, to)
        if name != to:
            if to in self.files:
                self.files[to].removed = True
            self.files[to] = self.files.pop(name)

    # -- mappings

    @precondition(lambda self: self.files and len(self.maps) < MAPPINGS)
    @rule(at=numbers, offset=places, length=st.one_of(st.none(), sizes), writable=st.booleans())
    def map(self, at: int, offset: int, length: int | None, writable: bool) -> None:
        name = sorted(self.files)[at % len(self.files)]
        model = self.files[name]
        if not model.data:
            return
        offset %= len(model.data)
        if length is not None:
            length = min(length, len(model.data) - offset)
        with self.fs.os_open(name, os.O_RDWR) as file:
            self.maps.append(Mapped(model, offset, file.mmap(offset, length, writable)))

    @precondition(lambda self: any(one.mapping.writable for one in self.maps))
    @rule(at=numbers, offset=places, size=sizes)
    def store(self, at: int, offset: int, size: int) -> None:
        able = [one for one in self.maps if one.mapping.writable]
        one = able[at % len(able)]
        offset %= len(one.mapping)
        data = self.data(min(size, len(one.mapping) - offset))
        with memoryview(one.mapping) as view:
            view[offset : offset + len(data)] = data
        start = one.offset + offset
        # What lies past the end of the file is nobody's.
        room = max(0, len(one.file.data) - start)
        one.file.data[start : start + min(room, len(data))] = data[:room]

    @precondition(lambda self: self.maps)
    @rule(at=numbers)
    def flush(self, at: int) -> None:
        self.maps[at % len(self.maps)].mapping.flush()

    @precondition(lambda self: self.maps)
    @rule(at=numbers)
    def unmap(self, at: int) -> None:
        self.maps.pop(at % len(self.maps)).mapping.close()

    # -- snapshots

    @precondition(lambda self: len(self.snapshots) < SNAPSHOTS)
    @rule()
    def snapshot(self) -> None:
        made = self.fs.snapshot_create(None)
        self.snapshots[made] = {name: bytes(file.data) for name, file in self.files.items()}

    @precondition(lambda self: self.snapshots and len(self.views) < 3)
    @rule(at=numbers)
    def open_snapshot(self, at: int) -> None:
        epoch_id = sorted(self.snapshots)[at % len(self.snapshots)]
        view = self.fs.snapshot_open(epoch_id)
        files = {name: view.open(name, "rb") for name in self.snapshots[epoch_id]}
        self.views.append((epoch_id, view, files))

    @precondition(lambda self: self.views)
    @rule(at=numbers)
    def close_snapshot(self, at: int) -> None:
        _, view, files = self.views.pop(at % len(self.views))
        for file in files.values():
            file.close()
        view.close()

    @precondition(lambda self: self.views and len(self.old_maps) < 3)
    @rule(at=numbers, offset=places)
    def map_snapshot(self, at: int, offset: int) -> None:
        epoch_id, _, files = self.views[at % len(self.views)]
        for name, file in files.items():
            data = self.snapshots[epoch_id][name]
            if data:
                offset %= len(data)
                self.old_maps.append((data[offset:], file.mmap(offset)))
                return

    @precondition(lambda self: self.old_maps)
    @rule(at=numbers)
    def unmap_snapshot(self, at: int) -> None:
        self.old_maps.pop(at % len(self.old_maps))[1].close()

    @precondition(lambda self: self.snapshots)
    @rule(at=numbers)
    def delete_snapshot(self, at: int) -> None:
        epoch_id = sorted(self.snapshots)[at % len(self.snapshots)]
        try:
            self.fs.snapshot_delete(epoch_id)
        except OSError as error:
            assert "open" in str(error)
            assert self.old_maps or any(epoch_id == held for held, _, _ in self.views)
        else:
            assert all(epoch_id != held for held, _, _ in self.views)
            del self.snapshots[epoch_id]

    # -- behind the scenes

    @rule(budget=st.integers(1, 50))
    def reclaim(self, budget: int) -> None:
        self.fs.reclaim(budget)

    @rule()
    def collect(self) -> None:
        self.fs.gc()

    @rule(turns=st.integers(10, 70))
    @precondition(lambda self: self.files)
    def long_log(self, turns: int) -> None:
        for number in range(turns):
            self.fs.chmod(sorted(self.files)[0], 0o600 + number % 8)

    @rule(cpus=st.integers(1, 3))
    def crash(self, cpus: int) -> None:
        image = self.arena.image()
        self.let_go()
        self.arena.close()
        self.opened = Arena(image=image, cpus=cpus)

    @rule(cpus=st.integers(1, 3))
    def restart(self, cpus: int) -> None:
        self.let_go()
        self.opened = self.arena.remount(cpus)
        assert self.opened.recovery["clean"]

    # -- what must be true

    @invariant()
    def all_see_what_the_model_says(self) -> None:
        if self.opened is None:
            return
        assert sorted(self.fs.listdir("/")) == sorted(name[1:] for name in self.files)
        for name, model in self.files.items():
            assert get(self.fs, name) == model.data, name
        for one in self.maps:
            with memoryview(one.mapping) as view:
                shown = max(0, min(len(view), len(one.file.data) - one.offset))
                assert view[:shown] == one.file.data[one.offset : one.offset + shown]
        for data, mapping in self.old_maps:
            with memoryview(mapping) as view:
                assert view == data
        for epoch_id, _, files in self.views:
            for name, file in files.items():
                assert file.pread(LONGEST, 0) == self.snapshots[epoch_id][name]

    @invariant()
    def every_block_has_one_owner(self) -> None:
        if self.opened is None:
            return
        self.steps += 1
        blocks = self.fs.stats()["blocks"]
        parts = blocks["free"] + blocks["live"] + blocks["held"] + blocks["head"]
        assert parts == blocks["total"], blocks
        if self.steps % AUDIT_EVERY:
            return
        assert [row["epoch_id"] for row in self.fs.snapshot_table()] == sorted(self.snapshots)
        for epoch_id, contents in self.snapshots.items():
            with self.fs.snapshot_open(epoch_id) as view:
                for name, data in contents.items():
                    assert get(view, name) == data
        self.arena.settle()
        exact(self.arena)
        if any(one.file.removed for one in self.maps):
            return
        wanted = accounts(self.arena)
        with arena(image=self.arena.image(), cpus=self.arena.cpus) as crashed:
            crashed.settle()
            assert accounts(crashed) == wanted
            report = check(crashed.image(), free_blocks=crashed.free())
            assert report.ok, format_report(report)
            sound(crashed.unmount())


TestMappedFiles = MappedFiles.TestCase
TestMappedFiles.settings = settings(max_examples=3000 if TORTURE else 60, stateful_step_count=40)

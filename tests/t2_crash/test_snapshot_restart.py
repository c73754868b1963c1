"""Snapshot lists after a restart: saved and restored, or rebuilt from the logs, they are the same.

A seeded history leaves some snapshots. The arena is then unmounted in order or loses power, and is
mounted with as many CPUs or with others: the table, the blocks that it accounts for, and all that
every snapshot shows must be equal each time. On the way, every deletion must free exactly what was
foretold, for one snapshot and for several. NOVA_MP_TORTURE=1 and NOVA_MP_SEED do more, and others.
"""

from __future__ import annotations

import errno
import os
import random
from typing import Any

import pytest
from crashsim.arena import MIB, Arena, arena, differences, everything

from nova_mp.tools.fsck import check, format_report
from nova_mp.tools.image import BLOCK_BYTES, LIST_TAIL, Image, K

TORTURE = os.environ.get("NOVA_MP_TORTURE", "0") not in ("", "0")
SEED = int(os.environ.get("NOVA_MP_SEED", "1"))
SIZE = 16 * MIB
STEPS = 350
LIST_TAIL_OFF = K["LOG_TAIL_OFF"]
# What a snapshot's lists take, and how they are spread, depends on the CPUs of the mount.
SPREAD = ("list_pages", "opens", "deferred")


class History:
    """Random operations on one arena; deletions are checked against what was foretold."""

    def __init__(self, opened: Arena, seed: int) -> None:
        self.arena, self.fs = opened, opened.fs
        self.rng = random.Random(seed)
        self.deleted = 0

    def run(self, steps: int) -> None:
        weights = {
            self.write: 50, self.unlink: 10, self.truncate: 10, self.rename: 10, self.link: 4,
            self.xattr: 5, self.folder: 5, self.snapshot: 7, self.delete: 4, self.collect: 2,
        }  # fmt: skip
        for step in self.rng.choices(list(weights), list(weights.values()), k=steps):
            try:
                step(f"/f{self.rng.randrange(24)}")
            except (FileNotFoundError, FileExistsError):
                continue
        self.arena.settle()

    def ids(self) -> list[int]:
        return [row["epoch_id"] for row in self.fs.snapshot_table()]

    def write(self, path: str) -> None:
        with self.fs.open(path, "r+b" if self.fs.exists(path) else "xb") as file:
            data = self.rng.randbytes(self.rng.randrange(1, 12_000))
            file.pwrite(data, self.rng.randrange(60_000))

    def unlink(self, path: str) -> None:
        self.fs.unlink(path)

    def truncate(self, path: str) -> None:
        self.fs.truncate(path, self.rng.randrange(60_000))

    def rename(self, path: str) -> None:
        self.fs.rename(path, f"/f{self.rng.randrange(24)}")

    def link(self, path: str) -> None:
        self.fs.link(path, f"/f{self.rng.randrange(24)}")

    def xattr(self, path: str) -> None:
        self.fs.setxattr(path, f"user.{self.rng.randrange(3)}", b"v" * self.rng.randrange(300))

    def folder(self, path: str) -> None:
        folder = path.replace("f", "d")
        if self.fs.exists(folder):
            self.fs.rmdir(folder)
        else:
            self.fs.make_dir(folder)

    def snapshot(self, path: str) -> None:
        self.fs.snapshot_create(None)

    def collect(self, path: str) -> None:
        self.fs.gc()

    def delete(self, path: str) -> None:
        """Delete a few snapshots, and compare what that frees with what was foretold."""
        ids = self.ids()
        if not ids:
            return
        rows = {row["epoch_id"]: row for row in self.fs.snapshot_table()}
        for epoch_id in ids:
            foretold = self.fs.snapshot_frees([epoch_id])
            assert foretold == rows[epoch_id]["exclusive_bytes"], epoch_id
        chosen = self.rng.sample(ids, self.rng.randint(1, min(3, len(ids))))
        together = self.fs.snapshot_frees(chosen)
        assert together >= sum(rows[epoch_id]["exclusive_bytes"] for epoch_id in chosen)
        # Logs of live files also give back what only snapshots needed; that is counted apart.
        self.arena.settle()
        self.fs.gc()
        before = self.arena.free()
        for epoch_id in chosen:
            self.fs.snapshot_delete(epoch_id)
        self.arena.settle()
        freed = (self.arena.free() - before) * BLOCK_BYTES
        # After the last snapshot the logs are collected, of what it alone pinned in them.
        assert freed == together or (freed > together and not self.ids()), (chosen, freed, together)
        self.deleted += len(chosen)


def state(opened: Arena) -> dict[Any, Any]:
    """Everything that must survive a restart: blocks, the table, and what all snapshots show."""
    blocks = opened.fs.stats()["blocks"]
    found: dict[Any, Any] = {"blocks": {key: blocks[key] for key in ("free", "held", "live")}}
    for row in opened.fs.snapshot_table():
        kept = {key: value for key, value in row.items() if key not in SPREAD}
        found["table", row["epoch_id"]] = kept
    return found | everything(opened.fs)


def assert_same(got: dict[Any, Any], wanted: dict[Any, Any], how: str) -> None:
    assert not differences(got, wanted), (how, differences(got, wanted)[:10])


@pytest.mark.parametrize("run", range(100 if TORTURE else 4))
def test_clean_restart_and_crash_give_the_same_lists(run: int) -> None:
    seed = SEED * 10_000 + run
    opened = Arena(SIZE, cpus=2)
    try:
        history = History(opened, seed)
        history.run(STEPS)
        # One that is needed by nobody else, whatever the seed has left.
        history.write("/f0")
        history.snapshot("")
        opened.fs.unlink("/f0")
        opened.settle()
        assert history.deleted
        wanted = state(opened)
        for how, cpus in (
            ("crash", 2), ("clean", 2), ("clean", 5), ("crash", 1), ("clean", 1), ("clean", 2),
        ):  # fmt: skip
            opened = opened.crash(cpus) if how == "crash" else opened.remount(cpus)
            lists = "restored" if how == "clean" else "rebuilt"
            assert opened.recovery["lists"] == lists, (how, cpus)
            assert_same(state(opened), wanted, f"{how}, {cpus} CPUs")
        # The restored lists are not only counted right, they are also good for deleting.
        history = History(opened, seed)
        while history.ids():
            history.delete("")
        assert opened.fs.stats()["blocks"]["held"] == 0
    finally:
        opened.close()


def assert_sound(image: bytes) -> None:
    report = check(image)
    assert report.ok, format_report(report)


def with_lists(opened: Arena, snapshots: int) -> None:
    """Snapshots that each hold something of their own."""
    for number in range(snapshots):
        for path in ("/a", "/b"):
            with opened.fs.open(path, "r+b" if opened.fs.exists(path) else "xb") as file:
                file.pwrite(b"%d" % number * 3000, 0)
        opened.fs.snapshot_create(f"s{number}")
    opened.fs.unlink("/a")


def fill(opened: Arena) -> None:
    """Write until there is no block left."""
    chunk = MIB
    with opened.fs.open("/fill", "xb") as file:
        while chunk >= BLOCK_BYTES:
            try:
                file.pwrite(b"f" * chunk, file.stat().st_size)
            except OSError as error:
                assert error.errno == errno.ENOSPC
                chunk //= 2


def test_full_arena_at_shutdown_loses_nothing() -> None:
    with arena(8 * MIB) as first:
        with_lists(first, 300)
        fill(first)
        assert first.free() < 300, "each snapshot needs a page at least"
        wanted = state(first)
        image = first.unmount()
    assert_sound(image)
    with arena(image=image) as second:
        assert second.recovery["clean"]
        assert second.recovery["lists"] == "rebuilt"
        assert_same(state(second), wanted, "full")


def list_pages(image: bytes) -> list[int]:
    """Offsets of pages that look like saved list pages."""
    found = []
    for offset in range(0, len(image), BLOCK_BYTES):
        tail = LIST_TAIL.decode(image[offset : offset + BLOCK_BYTES], LIST_TAIL_OFF)
        if tail["magic"] == K["MAGIC_LIST_PAGE"] and tail["num_entries"]:
            found.append(offset)
    return found


# An entry's bytes, and of the tail: next page, magic, number of entries, snapshot, checksum.
PLACES = [0, 13, *(LIST_TAIL_OFF + offset for offset in (1, 8, 12, 16, 24))]


@pytest.mark.parametrize("where", [*PLACES, "head"])
def test_damaged_list_page_is_rebuilt_around(where: int | str) -> None:
    with arena(8 * MIB) as first:
        with_lists(first, 12)
        wanted = state(first)
        image = bytearray(first.unmount())
    pages = list_pages(bytes(image))
    page = pages[len(pages) // 2]
    # The page of list heads is the only one that names a list's only page.
    at = page + where if isinstance(where, int) else image.find(page.to_bytes(8, "little"))
    assert at >= 0
    image[at] ^= 0x10
    with arena(image=bytes(image)) as second:
        assert second.recovery["clean"]
        assert second.recovery["lists"] == "rebuilt"
        assert_same(state(second), wanted, f"{where} damaged")
        again = second.unmount()
    # What the damaged copy occupied has come back, and the lists are whole again.
    assert_sound(again)
    with arena(image=again) as third:
        assert third.recovery["lists"] == "restored"
        assert_same(state(third), wanted, "saved again")


def test_saved_lists_are_good_for_one_mount() -> None:
    """A crash after a clean mount must not read the copies that this mount has outlived."""
    with arena(8 * MIB) as first:
        with_lists(first, 6)
        image = first.unmount()
    with arena(image=image) as second:
        assert second.recovery["lists"] == "restored"
        free = second.free()
        for data in (b"more", b"last"):
            with second.fs.open("/b", "r+b") as file:
                file.pwrite(data * 3000, 0)
            second.fs.snapshot_create(data.decode())
        wanted, crashed = state(second), second.image()
        assert free > second.free()
    with arena(image=crashed) as third:
        assert third.recovery["lists"] == "rebuilt"
        assert_same(state(third), wanted, "crash after a clean mount")


def test_pages_of_the_saved_copy_come_back() -> None:
    """Saving takes blocks only until the next mount: restarts do not add up."""
    opened = Arena(8 * MIB)
    try:
        with_lists(opened, 20)
        free = opened.free()
        for _ in range(4):
            opened = opened.remount()
            assert opened.free() == free
    finally:
        opened.close()


def test_image_reader_finds_the_lists() -> None:
    """The search for list pages above sees what the format declares."""
    with arena(8 * MIB) as first:
        with_lists(first, 3)
        image = first.unmount()
    assert Image(image).blocks == len(image) // BLOCK_BYTES
    assert len(list_pages(image)) == 3

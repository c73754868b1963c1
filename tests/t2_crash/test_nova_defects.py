"""Mistakes that NOVA's snapshots made, one test each: none of them can be made here.

The numbers are those of a list of defects in the published sources; 1 to 24 are of `snapshot.c`.
Each docstring says what went wrong there. 25 to 41 are in `tests/t1_core`.
"""

from __future__ import annotations

import errno
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from crashsim.arena import MIB, Arena, Memory, arena
from t2_crash.defects_help import (
    accounts,
    exact,
    fill,
    get,
    ids,
    layers,
    list_pages,
    no_space,
    put,
    remounted_with,
    same,
    sound,
    state,
    together,
)

from nova_mp import NoSuchSnapshot
from nova_mp.core import fs as core
from nova_mp.errors import CorruptArena, NotEnoughMemory
from nova_mp.tools.dump import dump
from nova_mp.tools.image import BLOCK_BYTES, Image, K

INFO_NVMM_OFF = 32


@pytest.fixture
def a() -> Iterator[Arena]:
    with arena(8 * MIB) as opened:
        yield opened


def test_defect_01_restoring_snapshots_without_pages(a: Arena) -> None:
    """The result of restoring a snapshot was not set when its lists had no pages."""
    put(a.fs, "/file", b"data")
    made = [a.fs.snapshot_create(None) for _ in range(3)]
    assert [row["list_pages"] for row in a.fs.snapshot_table()] == [0, 0, 0]
    again = a.remount()
    assert again.recovery["lists"] == "restored"
    assert ids(again.fs) == made
    again.close()


def starved(image: bytes) -> int:
    """Mount with more and more DRAM until it is enough; how many mounts failed while recovering."""
    _, limit = core.dram_geometry(len(image), 2)
    failed = 0
    for dram_limit in range(MIB, limit, MIB // 8):
        memory = Memory(len(image), 2)
        memory.users += 1
        memory.pm[:] = image
        try:
            core.mount(memory.pm, memory.dram, memory.fd, cpus=2, dram_limit=dram_limit)
            return failed
        except NotEnoughMemory:
            continue
        except OSError as error:
            assert error.errno == errno.ENOSPC
            failed += 1
            # Nobody else suffers: with enough memory the same medium mounts.
            image = bytes(memory.pm)
        finally:
            memory.drop()
    raise AssertionError("no memory is enough")


def many_lists() -> tuple[bytes, dict[Any, Any]]:
    """A clean medium whose lists take more DRAM than a mount has to have; and its state."""
    with arena(16 * MIB) as opened:
        layers(opened.fs, 250, 1)
        wanted = state(opened)
        return opened.unmount(), wanted


def test_defect_02_no_memory_for_lists() -> None:
    """When the lists' memory could not be had, the error path freed things twice."""
    image, wanted = many_lists()
    assert starved(image) > 0, "no mount ran out of memory for lists"
    remounted_with(image, wanted, "restored")


def test_defect_03_restoring_fails_halfway() -> None:
    """An error in the middle of restoring leaked what was restored so far, or worse."""
    image, wanted = many_lists()
    damaged = bytearray(image)
    damaged[list_pages(image)[-1]] ^= 1
    remounted_with(damaged, wanted, "rebuilt")


def test_defect_04_delete_missing_snapshot(a: Arena) -> None:
    """Deleting an id that is not there succeeded, and freed the next higher snapshot."""
    made = layers(a.fs, 5)
    a.fs.snapshot_delete(made[2])
    a.settle()
    before = state(a)
    for missing in (0, made[2], made[-1] + 1, 1 << 40, (1 << 64) - 1):
        with pytest.raises(NoSuchSnapshot):
            a.fs.snapshot_delete(missing)
        with pytest.raises(NoSuchSnapshot):
            a.fs.snapshot_delete(missing, defer=True)
        with pytest.raises(NoSuchSnapshot):
            a.fs.snapshot_frees([made[0], missing])
    same(state(a), before)
    assert a.fs.stats()["snapshots"]["count"] == 4


def test_defect_05_lists_of_a_deleted_snapshot(a: Arena) -> None:
    """The list structures of a snapshot that had a successor were never freed."""

    def round_trip() -> int:
        made = layers(a.fs, 12)
        for epoch_id in (*made[3:9], *made[:3], *made[9:]):
            a.fs.snapshot_delete(epoch_id)
        a.settle()
        a.fs.gc()
        assert a.fs.stats()["snapshots"]["list_pages"] == 0
        return int(a.fs.stats()["dram"]["bytes_used"])

    first = round_trip()
    assert max(round_trip() for _ in range(10)) <= first + (64 << 10)


def beside_a_writer(opened: Arena, rounds: int) -> None:
    """Snapshots beside a thread that overwrites; each must stay what it was when it was there."""
    stop = threading.Event()
    put(opened.fs, "/busy", bytes(4 * BLOCK_BYTES))

    def writer() -> None:
        for number in itertools.count(1):
            put(opened.fs, "/busy", number.to_bytes(8, "big") * (BLOCK_BYTES // 2))
            if stop.is_set():
                return

    def creator() -> None:
        try:
            seen = []
            for _ in range(rounds):
                epoch_id = opened.fs.snapshot_create(None)
                with opened.fs.snapshot_open(epoch_id) as view:
                    seen.append((epoch_id, get(view, "/busy")))
            for epoch_id, then in seen:
                with opened.fs.snapshot_open(epoch_id) as view:
                    assert get(view, "/busy") == then, epoch_id
                assert len(set(then[at : at + 8] for at in range(0, len(then), 8))) == 1
                opened.fs.snapshot_delete(epoch_id)
            numbers = [int.from_bytes(then[:8], "big") for _, then in seen]
            assert numbers == sorted(numbers)
        finally:
            stop.set()

    together(writer, creator)
    opened.settle()
    opened.fs.gc()
    exact(opened)


def test_defect_06_epoch_before_snapshot(a: Arena) -> None:
    """The new epoch was visible before the snapshot, so an overwrite freed what the latter needs.

    Here the blocks that an overwrite frees are written again at once, which would show.
    """
    fill_to = a.fs.stats()["blocks"]["free"] - 400
    put(a.fs, "/ballast", bytes(fill_to * BLOCK_BYTES))
    beside_a_writer(a, 60)


def test_defect_07_late_commit(a: Arena) -> None:
    """An operation that had read the old epoch could commit after create had returned.

    A view waits for the operation's lock, so here it shows in the log's epochs at most; what is on
    the medium when create returns, t4_cluster/test_snapshot_consistency.py looks at.
    """
    beside_a_writer(a, 60)
    # Epochs never go back in a log, either: fsck checks that (LOG-2).
    sound(a.image())


def test_defect_08_failed_create(a: Arena) -> None:
    """A create that failed left the epoch moved on, memory lost, and a persisted entry behind."""
    a.fs.snapshot_create("name")
    epoch_id = a.fs.stats()["epoch_id"]
    with pytest.raises(FileExistsError):
        a.fs.snapshot_create("name")
    for wrong in ("", "7", "a/b", "a@b"):
        with pytest.raises(ValueError, match="name"):
            a.fs.snapshot_create(wrong)
    assert (a.fs.stats()["epoch_id"], ids(a.fs)) == (epoch_id, [epoch_id - 1])
    fill(a.fs)
    while not no_space(lambda: a.fs.snapshot_create("n" * 200 + str(a.fs.stats()["epoch_id"]))):
        continue
    before, epoch_id = accounts(a), a.fs.stats()["epoch_id"]
    for _ in range(5):
        assert no_space(lambda: a.fs.snapshot_create("n" * 201))
    assert (a.fs.stats()["epoch_id"], accounts(a)) == (epoch_id, before)
    sound(a.image())
    with arena(image=a.image()) as crashed:
        assert (crashed.fs.stats()["epoch_id"], accounts(crashed)) == (epoch_id, before)


def test_defect_09_epoch_in_the_superblock(a: Arena) -> None:
    """The superblock kept the old epoch: the next create failed, overwrites freed its data."""
    put(a.fs, "/file", b"then" * 1024)
    old = a.image()
    made = a.fs.snapshot_create(None)
    assert core.read_superblock(a.pm)["epoch_id"] == made + 1
    # A power failure between the entry and the superblock: the latter is still the old one.
    torn = bytearray(a.image())
    for copy in Image(old).superblocks():
        at = copy.block_nr * BLOCK_BYTES
        torn[at : at + BLOCK_BYTES] = old[at : at + BLOCK_BYTES]
    for image in (a.image(), bytes(torn), a.unmount()):
        with arena(image=image) as again:
            assert again.fs.stats()["epoch_id"] == made + 1
            put(again.fs, "/file", b"now." * 1024)
            fill(again.fs)
            with again.fs.snapshot_open(made) as view:
                assert get(view, "/file") == b"then" * 1024
            again.fs.unlink("/fill")
            assert again.fs.snapshot_create(None) == made + 1


def overwrite_from_threads(opened: Arena, threads: int, blocks: int) -> None:
    """Files overwritten block by block from several threads, which share one CPU's lists."""

    def body(number: int) -> Callable[[], None]:
        def overwrite() -> None:
            for at in range(blocks):
                put(opened.fs, f"/file{number}", b"new", at * BLOCK_BYTES)

        return overwrite

    together(*(body(number) for number in range(threads)))


def test_defect_10_two_append_at_once() -> None:
    """Two that appended at once linked a page each: one was lost, and pages were counted wrong."""
    with arena(16 * MIB, cpus=1) as opened:
        for number in range(4):
            put(opened.fs, f"/file{number}", bytes(400 * BLOCK_BYTES))
        opened.fs.snapshot_create(None)
        overwrite_from_threads(opened, 4, 400)
        row = opened.fs.snapshot_table()[0]
        assert row["listed_bytes"] == row["exclusive_bytes"] == 1600 * BLOCK_BYTES
        assert row["list_pages"] == -(-1600 // K["LIST_ENTRIES"])
        exact(opened)
        remounted_with(opened.image(), state(opened), "rebuilt")


def test_defect_11_more_processes_than_cpus(a: Arena) -> None:
    """A processor's number was used as an index without looking whether there are that many."""
    for cpu in (-1, 2, 99):
        with pytest.raises(ValueError, match="cpu must be"):
            core.Core(a.pm, a.dram, a.memory.fd, cpu=cpu)
    put(a.fs, "/file", bytes(16 * BLOCK_BYTES))
    a.fs.snapshot_create(None)
    others = [core.Core(a.pm, a.dram, a.memory.fd) for _ in range(7)]
    for number, other in enumerate(others):
        put(other, "/file", b"x", number * BLOCK_BYTES)
        other.close()
    assert a.fs.snapshot_table()[0]["listed_bytes"] == 7 * BLOCK_BYTES
    exact(a)


def test_defect_12_garbage_in_saved_pages(a: Arena) -> None:
    """Pages of lists were neither aligned nor zeroed, and so garbage was saved."""
    for epoch_id in layers(a.fs, 30):
        a.fs.snapshot_delete(epoch_id)
    a.settle()
    # The pages of these are used ones now.
    layers(a.fs, 5)
    wanted = state(a)
    image = a.unmount()
    assert list_pages(image)
    sound(image)
    remounted_with(image, wanted, "restored")


def test_defect_13_append_cannot_fail() -> None:
    """Errors of appending were ignored: blocks were neither freed nor recorded.

    Here what an operation may append is provided for before it commits; so it fails as a whole.
    """
    memory = Memory(8 * MIB, 1)
    memory.users += 1
    core.format_arena(memory.pm, cpus=1)
    for limit in itertools.count(MIB, MIB // 16):
        try:
            core.mount(memory.pm, memory.dram, memory.fd, cpus=1, dram_limit=limit)
            break
        except NotEnoughMemory:
            continue
    with core.Core(memory.pm, memory.dram, memory.fd) as fs:
        put(fs, "/file", bytes(64 * BLOCK_BYTES))
        failed = 0
        for number in range(400):
            try:
                fs.snapshot_create(None)
                before = get(fs, "/file")
                put(fs, "/file", b"%03d" % number, number % 64 * BLOCK_BYTES)
            except OSError as error:
                assert error.errno == errno.ENOSPC
                assert get(fs, "/file") == before, "it failed, and has done something"
                failed += 1
        assert failed, "memory for lists never ran out"
        image, blocks = bytes(memory.pm), fs.stats()["blocks"]
    memory.drop()
    sound(image)
    with arena(image=image, cpus=1) as again:
        after = again.fs.stats()["blocks"]
        keys = ("free", "held", "live")
        assert [after[key] for key in keys] == [blocks[key] for key in keys]


def test_defect_14_append_beside_delete(a: Arena) -> None:
    """The snapshot that an append had found could be deleted or merged before it appended."""
    done = threading.Event()
    put(a.fs, "/file", bytes(64 * BLOCK_BYTES))

    def writer() -> None:
        for number in itertools.count():
            put(a.fs, "/file", b"%d" % number, number % 64 * BLOCK_BYTES)
            if done.is_set():
                return

    def taker() -> None:
        try:
            for number in range(400):
                a.fs.snapshot_create(None)
                if number % 3:
                    there = ids(a.fs)
                    a.fs.snapshot_delete(there[number % len(there)])
                if number % 2:
                    a.fs.reclaim(20)
                while len(there := ids(a.fs)) > 8:
                    a.fs.snapshot_delete(there[0])
        finally:
            done.set()

    together(writer, writer, taker)
    a.settle()
    a.fs.gc()
    exact(a)
    remounted_with(a.image(), state(a), "rebuilt")


def test_defect_15_several_deletions_at_once(a: Arena) -> None:
    """The cleaner had room for one deleted snapshot: the next one displaced it."""
    made = layers(a.fs, 40)
    a.settle()
    free, foretold = a.free(), a.fs.snapshot_frees(made)
    for epoch_id in made:
        a.fs.snapshot_delete(epoch_id)
    assert a.fs.stats()["snapshots"]["backlog"] > 0

    def cleaner() -> None:
        with core.Core(a.pm, a.dram, a.memory.fd, role="cleaner") as fs:
            while fs.reclaim(3):
                continue

    together(cleaner, cleaner)
    assert a.fs.stats()["snapshots"]["backlog"] == 0
    assert (a.free() - free) * BLOCK_BYTES == foretold
    exact(a)


def test_defect_16_empty_page_in_the_middle() -> None:
    """A page of a list that had become empty was taken for the list's end."""
    with arena(16 * MIB) as opened:
        fs = opened.fs
        for number in range(2):
            for block in range(500):
                # Every other block, so that each is an entry of its own.
                put(fs, f"/file{number}", b"x", 2 * block * BLOCK_BYTES)
            fs.snapshot_create(None)
        for number in range(2):
            fs.unlink(f"/file{number}")
        opened.settle()
        for epoch_id in ids(fs):
            free, foretold = opened.free(), fs.snapshot_frees([epoch_id])
            fs.snapshot_delete(epoch_id)
            opened.settle()
            assert (opened.free() - free) * BLOCK_BYTES == foretold
        assert fs.stats()["blocks"]["held"] == 0
        assert fs.stats()["snapshots"]["list_pages"] == 0
        exact(opened)


def test_defect_17_cleaned_pages_come_back(a: Arena) -> None:
    """Cleaned pages were never freed, and looked through again at each deletion."""
    made = layers(a.fs, 30)
    appended = a.fs.stats()["snapshots"]["appends"]
    for epoch_id in made[:-1]:
        a.fs.snapshot_delete(epoch_id)
        a.settle()
    work = a.fs.stats()["snapshots"]
    # Cleaning may carry an entry over, which is an append as well; nothing is looked at twice.
    assert work["cleaned"] <= work["appends"]
    assert work["appends"] <= 2 * appended
    assert work["list_pages"] <= len(a.fs.stats()["cpus"])
    a.fs.snapshot_delete(made[-1])
    a.settle()
    assert a.fs.stats()["snapshots"]["list_pages"] == 0
    cleaned = a.fs.stats()["snapshots"]["cleaned"]
    a.fs.snapshot_delete(a.fs.snapshot_create(None))
    a.settle()
    assert a.fs.stats()["snapshots"]["cleaned"] == cleaned, "old pages were looked through again"


def with_saved_lists(a: Arena) -> tuple[bytearray, dict[Any, Any]]:
    layers(a.fs, 6)
    wanted = state(a)
    image = bytearray(a.unmount())
    assert len(list_pages(bytes(image))) >= 6
    return image, wanted


@pytest.mark.parametrize("target", [1 << 62, (1 << 64) - BLOCK_BYTES, 0x1001, 0])
def test_defect_18_end_of_a_saved_list(a: Arena, target: int) -> None:
    """The check for the end of a saved list could not be true: it compared unsigned with 0."""
    image, wanted = with_saved_lists(a)
    page = list_pages(bytes(image))[0]
    head = image.find(page.to_bytes(8, "little"))
    image[head : head + 8] = target.to_bytes(8, "little")
    remounted_with(image, wanted, "rebuilt")


def test_defect_19_error_while_restoring(a: Arena) -> None:
    """What could not be read was skipped, and what came behind it took its place."""
    image, wanted = with_saved_lists(a)
    for page in list_pages(bytes(image))[1::2]:
        image[page : page + BLOCK_BYTES // 2] = bytes(BLOCK_BYTES // 2)
    remounted_with(image, wanted, "rebuilt")


def test_defect_20_no_space_to_save(a: Arena) -> None:
    """Lists that could not be saved were dropped; the next mount followed a null pointer."""
    layers(a.fs, 60)
    fill(a.fs)
    a.fs.snapshot_create("newest")
    a.settle()
    wanted = accounts(a)
    image = a.unmount()
    sound(image)
    with arena(image=image) as again:
        assert again.recovery["clean"]
        assert again.recovery["lists"] == "rebuilt"
        assert accounts(again) == wanted


def test_defect_21_other_numbers_of_cpus() -> None:
    """Lists were restored to the CPUs they had been saved from, and overflowed above 128."""
    with arena(32 * MIB, cpus=128) as opened:
        for cpu in (0, 5, 64, 127):
            with core.Core(opened.pm, opened.dram, opened.memory.fd, cpu=cpu) as fs:
                layers_on(fs, opened.fs, cpu)
        wanted = state(opened)
        image = opened.unmount()
    for cpus in (3, 1, 128):
        with arena(image=image, cpus=cpus) as again:
            assert again.recovery["lists"] == "restored"
            same(state(again), wanted)
            image = again.unmount()
    with pytest.raises(ValueError, match="cpus must be"):
        core.format_arena(memoryview(bytearray(32 * MIB)), cpus=129)


def layers_on(fs: Any, coordinator: Any, cpu: int) -> None:
    """Superseded blocks in the lists of one CPU."""
    for number in range(3):
        put(fs, f"/cpu{cpu}", b"%d" % number * 5000)
        coordinator.snapshot_create(None)
    fs.unlink(f"/cpu{cpu}")


def test_defect_22_lists_of_another_snapshot(a: Arena) -> None:
    """Saved pages did not say whose they are, and were given up even if restoring had failed."""
    image, wanted = with_saved_lists(a)
    infos = [row for row in dump(bytes(image), "snapshots") if not row["deleted"]]
    first, second = (row["offset"] + INFO_NVMM_OFF for row in infos[:2])
    image[first : first + 8], image[second : second + 8] = (
        image[second : second + 8],
        image[first : first + 8],
    )
    remounted_with(image, wanted, "rebuilt")


def test_defect_23_listing_beside_changes(a: Arena) -> None:
    """The table was listed without a lock; a failed mount left the cleaner's thread running."""
    done = threading.Event()

    def lister() -> None:
        while not done.is_set():
            rows = a.fs.snapshot_table()
            assert [row["epoch_id"] for row in rows] == sorted(row["epoch_id"] for row in rows)
            assert all(row["name"] == f"n{row['epoch_id']}" for row in rows)

    def changer() -> None:
        try:
            for number in range(600):
                a.fs.snapshot_create(f"n{a.fs.stats()['epoch_id']}")
                if number % 4:
                    a.fs.snapshot_delete(ids(a.fs)[0])
        finally:
            done.set()

    together(lister, changer, lister)
    threads = threading.active_count()
    with pytest.raises(CorruptArena):
        Arena(image=bytes(8 * MIB))
    assert threading.active_count() == threads, "a mount starts nothing that it could leave"


def test_defect_24_what_is_no_id(a: Arena) -> None:
    """The id was parsed from the user's memory unchecked; errors never came back to the caller."""
    layers(a.fs, 2)
    before = state(a)
    wrong: list[Any] = ["1", b"1", None, -1, 1 << 64, "", "layer0"]
    for value in wrong:
        with pytest.raises((TypeError, OverflowError)):
            a.fs.snapshot_delete(value)
    same(state(a), before)

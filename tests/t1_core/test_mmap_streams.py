"""Stores in order, large mappings, and parts of them: what is opened, and what is protected."""

from __future__ import annotations

import random
import struct
from array import array
from typing import Any

import pytest
from crashsim.arena import MIB, Arena, arena
from crashsim.mapped import mapped, rests, shown
from t2_crash.defects_help import put

from nova_mp.tools.image import BLOCK_BYTES

WORD = struct.Struct("<Q")


def counted(fs: Any) -> dict[str, int]:
    counters = fs.stats()["counters"]
    return {name: counters[name] for name in ("map_faults", "preserved_pages")}


def rise(fs: Any, before: dict[str, int]) -> dict[str, int]:
    return {name: value - before[name] for name, value in counted(fs).items()}


@pytest.mark.parametrize("pieces", [False, True], ids=["one piece", "pieces"])
def test_a_stream_takes_few_faults(pieces: bool) -> None:
    pages = 1040
    with arena(24 * MIB) as a:
        fs = a.fs
        if pieces:
                # Every other 80 KiB are of another file.
            for page in range(0, pages, 20):
                for path in ("/file", "/other"):
                    with fs.os_open(path, 0o102) as file:
                        file.pwrite(b"a" * (20 * BLOCK_BYTES), page * BLOCK_BYTES)
        put(fs, "/file", b"a" * (pages * BLOCK_BYTES))
        m = mapped(fs, "/file")
        for turn in range(3):
            made = fs.snapshot_create(None)
            old = shown(fs, made)
            before = counted(fs)
            with memoryview(m) as view:
                for page in range(pages):
                    WORD.pack_into(view, page * BLOCK_BYTES, 1 + turn)
                assert bytes(view[:8]) == WORD.pack(1 + turn)
            found = rise(fs, before)
            assert found["preserved_pages"] == pages
            assert found["map_faults"] < pages // 4
            assert shown(fs, made) == old
        m.close()
        rests(a)


def test_what_is_opened_ahead_is_bounded_by_what_was_stored() -> None:
    pages = 4096
    with arena(40 * MIB) as a:
        fs = a.fs
        put(fs, "/file", b"a" * (pages * BLOCK_BYTES))
        m = mapped(fs, "/file")
        for stored in (1, 40, 200, 700):
            fs.snapshot_create(None)
            before = counted(fs)
            with memoryview(m) as view:
                for page in range(stored):
                    view[page * BLOCK_BYTES] = 2
            m.flush()
            # Up to the end of the window of the last store, and twice as many once more.
            assert stored <= rise(fs, before)["preserved_pages"] <= 3 * (stored + 64)
            for made in [row["epoch_id"] for row in fs.snapshot_table()]:
                fs.snapshot_delete(made)
            a.settle()
        m.close()
        rests(a)


@pytest.mark.parametrize("pages", [1, 511, 512, 513, 601, 1201])
def test_parts_that_do_not_divide_it(protected: Arena, pages: int) -> None:
    """Sizes around what the parts of a mapping can be."""
    fs = protected.fs
    draw = random.Random(pages)
    put(fs, "/file", bytes(pages * BLOCK_BYTES))
    m = mapped(fs, "/file")
    wanted = [0] * pages
    with memoryview(m) as view:
        for number in range(1, 30):
            made = fs.snapshot_create(None)
            kept = wanted[:]
            for page in draw.choices(range(pages), k=draw.randrange(4)):
                WORD.pack_into(view, page * BLOCK_BYTES, number)
                wanted[page] = number
            held = shown(fs, made)
            assert [WORD.unpack_from(held, at * BLOCK_BYTES)[0] for at in range(pages)] == kept
    m.close()
    rests(protected)


def test_a_large_mapping_is_protected_by_several_threads() -> None:
    pages = (80 << 20) // BLOCK_BYTES
    with arena(176 * MIB, cpus=1) as a:
        fs = a.fs
        with fs.os_open("/file", 0o102) as file:
            file.truncate(pages * BLOCK_BYTES)
        m = mapped(fs, "/file")
        ones, twos = (memoryview(array("Q", [value]) * pages) for value in (1, 2))
        with memoryview(m) as view:
            words = view.cast("Q")
            words[::512] = ones
            made = fs.snapshot_create(None)
            words[::512] = twos
            words.release()
        with fs.snapshot_open(made) as old, old.open("/file", "rb") as file:
            for page in range(pages):
                assert file.pread(8, page * BLOCK_BYTES) == WORD.pack(1), page
        m.close()

"""What the tests of NOVA's defects share: small files, snapshots in layers, exact accounts."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import Any

from crashsim.arena import Arena, arena, differences, everything

from nova_mp.tools.fsck import check, format_report
from nova_mp.tools.image import BLOCK_BYTES, LIST_TAIL, K

LIST_TAIL_OFF = K["LOG_TAIL_OFF"]


def put(fs: Any, path: str, data: bytes, offset: int = 0) -> None:
    """Write `data` into a file, which is made if it is not there."""
    with fs.os_open(path, os.O_CREAT | os.O_RDWR) as file:
        file.pwrite(data, offset)


def get(fs: Any, path: str) -> bytes:
    with fs.open(path, "rb") as file:
        return bytes(file.read())


def ids(fs: Any) -> list[int]:
    return [row["epoch_id"] for row in fs.snapshot_table()]


def layers(fs: Any, count: int, blocks: int = 2) -> list[int]:
    """Snapshots that each hold blocks of their own, and some that two of them share."""
    made = []
    for number in range(count):
        put(fs, "/each", b"%d" % number * (blocks * 4096))
        put(fs, f"/some{number // 2}", b"s%d" % number * 4096)
        if number > 2:
            fs.unlink(f"/some{number // 2 - 1}") if number % 2 else None
        made.append(fs.snapshot_create(f"layer{number}"))
    put(fs, "/each", b"live" * (blocks * 1024))
    return made


def state(opened: Arena) -> dict[Any, Any]:
    """What must not change by restarting: blocks, what snapshots hold, what they show."""
    blocks = opened.fs.stats()["blocks"]
    found: dict[Any, Any] = {key: blocks[key] for key in ("free", "held", "live")}
    for row in opened.fs.snapshot_table():
        found["row", row["epoch_id"]] = (row["exclusive_bytes"], row["listed_bytes"])
    return found | everything(opened.fs)


def accounts(opened: Arena) -> Any:
    """The part of `state` that costs nothing to look at."""
    blocks = opened.fs.stats()["blocks"]
    rows = [(row["epoch_id"], row["name"], row["exclusive_bytes"], row["listed_bytes"])
            for row in opened.fs.snapshot_table()]  # fmt: skip
    return rows, [blocks[key] for key in ("free", "held", "live")]


def same(got: dict[Any, Any], wanted: dict[Any, Any]) -> None:
    assert not differences(got, wanted), differences(got, wanted)[:10]


def sound(image: bytes) -> None:
    report = check(image)
    assert report.ok, format_report(report)


def exact(opened: Arena) -> None:
    """Every block is free, live or held by snapshots, and the checker agrees."""
    blocks = opened.fs.stats()["blocks"]
    assert blocks["free"] + blocks["live"] + blocks["held"] + blocks["head"] == blocks["total"]
    sound(opened.image())


def no_space(action: Callable[[], Any]) -> bool:
    try:
        action()
    except OSError as error:
        assert error.errno == errno.ENOSPC
        return True
    return False


def fill(fs: Any) -> None:
    """Leave no block for data."""
    put(fs, "/fill", b"")
    for size in (1 << 18, 1 << 14, BLOCK_BYTES):
        while not no_space(
            lambda size=size: put(fs, "/fill", bytes(size), fs.stat("/fill").st_size)
        ):
            continue


def together(*bodies: Callable[[], None]) -> None:
    """Run each in a thread of its own, to its end; what one of them raises is raised here."""
    failed: list[BaseException] = []

    def run(body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def list_pages(image: bytes) -> list[int]:
    """Offsets of saved list pages with entries."""
    found = []
    for offset in range(0, len(image), BLOCK_BYTES):
        tail = LIST_TAIL.decode(image[offset : offset + BLOCK_BYTES], LIST_TAIL_OFF)
        if tail["magic"] == K["MAGIC_LIST_PAGE"] and tail["num_entries"]:
            found.append(offset)
    return found


def remounted_with(image: bytes | bytearray, wanted: dict[Any, Any], lists: str) -> None:
    with arena(image=bytes(image)) as opened:
        assert opened.recovery["lists"] == lists
        same(state(opened), wanted)
        sound(opened.unmount())

"""Power fails at every fence of every operation, and what it can leave is examined.

By default a sample of the states, in about a minute; NOVA_MP_CRASH=1 looks at many more, and
NOVA_MP_SEED chooses others.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from crashsim import explorer as explorer_module
from crashsim.arena import MIB, arena
from crashsim.explorer import Explorer, Lost
from crashsim.medium import FLUSH, LINE, changed_lines, events
from model.driver import Driver

from nova_mp.tools.image import K

EXHAUSTIVE = any(
    os.environ.get(name, "0") not in ("", "0") for name in ("NOVA_MP_CRASH", "NOVA_MP_EXHAUSTIVE")
)
SEED = int(os.environ.get("NOVA_MP_SEED", "1"))
BOUNDS = (
    {"singles": 64, "subsets": 24, "every": 4}
    if EXHAUSTIVE
    else {"singles": 4, "subsets": 4, "every": 6}
)
RANDOM_RUNS, RANDOM_STEPS = (24, 40) if EXHAUSTIVE else (6, 20)

Step = tuple[str, Callable[[Any], Any]]
Case = tuple[Callable[[Any], Any], list[Step]]


def tree(fs: Any) -> None:
    """What most cases start from."""
    for path in ("/d", "/d/sub", "/e", "/empty"):
        fs.make_dir(path)
    sizes = {"/file": 20_000, "/d/inner": 100, "/d/twice": 5000, "/e/other": 9000}
    for path, size in sizes.items():
        with fs.open(path, "xb") as file:
            file.write(path.encode() * (size // len(path)))
    fs.link("/d/twice", "/e/twice")
    fs.symlink("file", "/link")
    fs.setxattr("/file", "user.old", b"value")


def snapshotted(fs: Any) -> None:
    """The same, in a snapshot."""
    tree(fs)
    fs.snapshot_create("first")


def full_log(fs: Any) -> None:
    """Logs of which the next entries go to a new page."""
    tree(fs)
    for number in range(61):
        fs.chmod("/file", 0o600 + number % 2)
    for number in range(28):
        fs.symlink("x", f"/d/{number}")


def fragmented(fs: Any) -> None:
    """No two free blocks side by side where the next ones are taken."""
    tree(fs)
    fs.open("/apart", "xb").close()
    with fs.open("/file", "r+b") as one, fs.open("/apart", "r+b") as two:
        for page in range(110):
            one.pwrite(b"1" * 4096, page * 4096)
            two.pwrite(b"2" * 4096, page * 4096)
    fs.unlink("/apart")
    with fs.open("/rest", "xb") as file:
        file.write(bytes((fs.statvfs().f_bavail - 124) * 4096))


def garbage(fs: Any) -> None:
    """Logs of several pages, of which little is needed."""
    snapshotted(fs)
    for number in range(150):
        with fs.open("/file", "r+b") as file:
            file.pwrite(b"%d" % number, number % 5 * 4096)
        fs.chmod("/d/inner", 0o600 + number % 8)
        fs.setxattr("/d/inner", f"user.{number % 3}", b"%d" % number)
    for number in range(90):
        fs.symlink("x", f"/e/garbage-{number % 7}")
        fs.unlink(f"/e/garbage-{number % 7}")
        if number in (30, 60):
            fs.snapshot_create(None)


def many_snapshots(fs: Any) -> None:
    """A snapshot log of several pages, almost all deleted."""
    tree(fs)
    for number in range(140):
        epoch_id = fs.snapshot_create(f"snapshot-{number}")
        if number % 40:
            fs.snapshot_delete(epoch_id)


def many_inodes(fs: Any) -> None:
    """An inode table whose chunk is almost full."""
    tree(fs)
    fs.make_dir("/many")
    for number in range(464):
        fs.symlink("x", f"/many/{number}")
        fs.unlink(f"/many/{number}") if number % 3 else None
    used = fs.stats()["inodes"]["used"]
    for number in range(479 - used):
        fs.open(f"/many/more-{number}", "xb").close()


def pwrite(path: str, size: int, offset: int) -> Step:
    def operation(fs: Any) -> None:
        with fs.open(path, "r+b") as file:
            file.pwrite(bytes(range(256)) * (size // 256) + b"z" * (size % 256), offset)

    return f"write {size} bytes at {offset}", operation


def append(path: str, size: int) -> Step:
    def operation(fs: Any) -> None:
        with fs.open(path, "ab") as file:
            file.write(b"a" * size)

    return f"append {size} bytes", operation


def fallocate(path: str, offset: int, length: int) -> Step:
    def operation(fs: Any) -> None:
        with fs.open(path, "r+b") as file:
            file.fallocate(offset, length)

    return f"fallocate {length} bytes at {offset}", operation


def create(path: str) -> Step:
    return f"create {path[:20]}", lambda fs: fs.open(path, "xb").close()


def call(name: str, *arguments: Any, **more: Any) -> Step:
    said = " ".join(str(argument)[:20] for argument in arguments)
    return f"{name} {said}", lambda fs: getattr(fs, name)(*arguments, **more)


def delete_oldest(fs: Any) -> None:
    fs.snapshot_delete(fs.snapshot_table()[0]["epoch_id"])


def unlink_while_open(fs: Any) -> None:
    with fs.open("/file", "rb"):
        fs.unlink("/file")


WRITES = [
    pwrite("/file", 4096, 4096),
    pwrite("/file", 8192, 8192),
    pwrite("/file", 100, 50),
    pwrite("/file", 5000, 4000),
    pwrite("/file", 10, 60_000),
    append("/file", 10),
    append("/file", 4096),
]
CUTS = [
    call("truncate", "/file", 5000),
    call("truncate", "/file", 30_000),
    fallocate("/file", 4000, 20_000),
    call("truncate", "/file", 8192),
    call("truncate", "/file", 0),
    pwrite("/file", 100, 100),
]
CREATES = [
    create("/new"),
    create("/d/" + "n" * 255),
    call("make_dir", "/d/sub/new"),
    call("symlink", "target" * 100, "/d/symlink"),
    call("link", "/file", "/d/linked"),
    call("link", "/link", "/e/link"),
]
REMOVALS = [
    call("unlink", "/e/twice"),
    call("unlink", "/d/twice"),
    ("unlink while open", unlink_while_open),
    call("unlink", "/link"),
    call("rmdir", "/empty"),
]
RENAMES = [
    call("rename", "/file", "/renamed"),
    call("rename", "/renamed", "/d/moved"),
    call("rename", "/d/moved", "/e/other"),
    call("rename", "/d/inner", "/d/twice"),
    call("rename", "/d/sub", "/empty"),
    call("rename", "/e", "/d/e"),
]
ATTRIBUTES = [
    call("chmod", "/file", 0o600),
    call("chown", "/d", 1, 2),
    call("utime", "/file", ns=(10**18, 2 * 10**18)),
    call("setxattr", "/file", "user.new", b"v" * 3000),
    call("setxattr", "/file", "user.old", b"other"),
    call("removexattr", "/file", "user.old"),
    call("setxattr", "/d", "user.directory", b"1"),
]
SNAPSHOTS = [
    call("snapshot_create", "one"),
    pwrite("/file", 5000, 0),
    call("unlink", "/d/inner"),
    call("snapshot_create", None),
    call("truncate", "/file", 100),
    call("rename", "/e/other", "/file"),
    ("snapshot_delete", delete_oldest),
    call("reclaim", 3),
    call("reclaim", 10_000),
    ("snapshot_delete", delete_oldest),
    call("reclaim", 10_000),
]
COLLECT = [
    call("gc"),
    ("snapshot_delete", delete_oldest),
    call("gc"),
    ("snapshot_delete", delete_oldest),
    call("reclaim", 10_000),
    call("gc"),
]

CASES: dict[str, Case] = {
    "write": (tree, WRITES),
    "write-snapshotted": (snapshotted, WRITES),
    "write-fragmented": (fragmented, [pwrite("/e/other", 30_000, 100)]),
    "cut": (tree, CUTS),
    "cut-snapshotted": (snapshotted, CUTS),
    "create": (tree, CREATES),
    "remove": (tree, REMOVALS),
    "remove-snapshotted": (snapshotted, REMOVALS),
    "rename": (tree, RENAMES),
    "rename-snapshotted": (snapshotted, RENAMES),
    "attributes": (tree, ATTRIBUTES),
    "snapshots": (tree, SNAPSHOTS),
    "new-log-pages": (full_log, [*ATTRIBUTES[:4], *CREATES[1:5], *RENAMES[:3]]),
    "collect": (garbage, COLLECT),
    "collect-snapshots": (many_snapshots, [call("gc"), call("snapshot_create", "last")]),
    "new-inode-chunk": (many_inodes, [create(f"/e/chunk-{number}") for number in range(4)]),
}


def explore(case: Case, size: int, cpus: int) -> Explorer:
    prepare, steps = case
    with arena(size, cpus=cpus) as opened:
        prepare(opened.fs)
        opened.settle()
        with Explorer(opened, SEED, **BOUNDS) as explorer:
            for name, operation in steps:
                explorer.run(name, operation)
    return explorer


@pytest.mark.parametrize("name", CASES)
def test_operations_survive_a_power_failure(name: str) -> None:
    size = 4 * MIB if name == "new-inode-chunk" else 2 * MIB
    explorer = explore(CASES[name], size, cpus=1)
    # Both outcomes were seen: otherwise the power never failed in the middle of anything.
    assert explorer.counts["before"] and explorer.counts["after"], explorer.counts
    assert explorer.counts["states"] >= explorer.counts["fences"]


@pytest.mark.parametrize("run", range(RANDOM_RUNS))
def test_random_operations_survive_a_power_failure(run: int) -> None:
    driver = Driver(SEED * 1000 + run, 2 * MIB)
    # Of these several operations run in one step, or the trace would not go on.
    for name in ("burst", "crash", "remount"):
        driver.weights[name] = 0
    try:
        for _ in range(30):
            driver.step()
        driver.twin.arena.settle()
        with Explorer(driver.twin.arena, driver.seed, **BOUNDS) as explorer:
            for number in range(RANDOM_STEPS):
                explorer.run(f"step {number}", lambda fs: driver.step())
        driver.twin.compare()
    finally:
        driver.twin.close()


def in_snapshot_log(image: bytes, line: int) -> bool:
    """Whether a line belongs to the log that tells of snapshots and their saved lists."""
    tail = line * LINE // 4096 * 4096 + K["LOG_TAIL_OFF"]
    magic, owner = struct.unpack_from("<8xI4xQ", image, tail)
    return bool(magic == K["MAGIC_LOG_PAGE"] and owner == K["SNAPSHOT_INO"])


def subsets(rng: random.Random, lines: list[int]) -> Iterator[list[int]]:
    """Some lines: none, all, single ones, any."""
    count = 200 if EXHAUSTIVE else 15
    yield []
    yield lines
    yield from ([line] for line in rng.sample(lines, min(len(lines), count)))
    for _ in range(count):
        share = rng.choice((0.2, 0.5, 0.8))
        yield [line for line in lines if rng.random() < share]


def explore_mixtures(explorer: Explorer, before: bytes, after: bytes, late: list[int]) -> None:
    """States between two images that differ by a mount or unmount.

    Its superblocks commit: the copy at the end, then the one at the beginning, each after all that
    came before was fenced. Lines in `late` come after them, the others before.
    """
    rng = random.Random(SEED)
    lines = [line for line in changed_lines(before, after) if line not in late]
    second = [line for line in lines if line * LINE < 4096]
    first = [line for line in lines if line * LINE >= len(before) - 4096]
    early = [line for line in lines if line not in first and line not in second]
    states = list(subsets(rng, early))
    states += [early + some for some in subsets(rng, first)]
    states += [early + first + some for some in subsets(rng, second)]
    states += [early + first + second + some for some in subsets(rng, late)]
    for state in states:
        image = bytearray(before)
        for line in state:
            image[line * LINE : (line + 1) * LINE] = after[line * LINE : (line + 1) * LINE]
        explorer.examine(image, [explorer.shown])
        explorer.counts["states"] += 1


@pytest.mark.parametrize("name", ["snapshots", "collect"])
def test_mounting_and_unmounting_survive_a_power_failure(name: str) -> None:
    """No trace is taken of these, so every line counts as unfenced but for the superblocks."""
    prepare, _ = CASES[name]
    with arena(2 * MIB, cpus=2) as opened:
        prepare(opened.fs)
        for number in range(3):
            opened.fs.snapshot_create(None)
            opened.fs.truncate("/file", 100 * number)
        opened.fs.rename("/e/other", "/d/twice")
        opened.settle()
        with Explorer(opened, SEED, **BOUNDS) as explorer:
            before = opened.image()
            clean = opened.unmount()
            explore_mixtures(explorer, before, clean, [])
            with arena(image=clean) as again:
                assert again.recovery["clean"]
                mounted = again.image()
            changed = changed_lines(clean, mounted)
            late = [line for line in changed if in_snapshot_log(clean, line)]
            assert late, "saved lists are not forgotten"
            explore_mixtures(explorer, clean, mounted, late)


def test_the_explorer_finds_missing_flushes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace without its write-backs must not pass, or the explorer would find nothing."""
    monkeypatch.setattr(
        explorer_module,
        "events",
        lambda trace: (event for event in events(trace) if event.kind != FLUSH),
    )
    with arena(2 * MIB, cpus=1) as opened:
        tree(opened.fs)
        explorer = Explorer(opened, SEED, singles=8, subsets=8, every=1000)
        with explorer, pytest.raises(Lost):
            for name, operation in CREATES:
                explorer.run(name, operation)

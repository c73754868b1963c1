"""Operations to die in, each with what it needs around it, small enough to be stepped through."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from crashsim.arena import MIB, differences
from crashsim.death import SharedArena, audit, timed

LOG_SLOTS = 63
CHUNK_SLOTS = 512
PAGE = 4096
LONGEST = 1.0  # seconds that anybody may wait for the repair of the dead


def put(fs: Any, path: str, data: bytes) -> None:
    """Write a whole file."""
    with fs.os_open(path, os.O_CREAT | os.O_TRUNC | os.O_RDWR) as file:
        if data:
            file.pwrite(data, 0)


def base(fs: Any) -> None:
    """What every operation finds: a file of some pages, a directory, another file."""
    put(fs, "/file", bytes(range(256)) * 64)
    put(fs, "/other", b"o" * 5000)
    fs.make_dir("/dir")
    put(fs, "/dir/inner", b"i" * 100)
    fs.setxattr("/file", "user.x", b"1")


def nothing(fs: Any) -> Any:
    return None


def full_log(fs: Any) -> None:
    """The next entry of /file needs a new log page."""
    put(fs, "/long", b"")
    with fs.os_open("/long", os.O_RDWR) as file:
        for number in range(LOG_SLOTS - 1):
            file.pwrite(b"%d" % number, number % 3 * PAGE)


def long_log(fs: Any) -> None:
    """/long has a log of several pages, most of it garbage, part of it live."""
    put(fs, "/long", b"")
    with fs.os_open("/long", os.O_RDWR) as file:
        for number in range(150):
            file.pwrite(b"%d" % number, (number % 3 if number % 40 else number) * PAGE)


def long_log_under_snapshots(fs: Any) -> None:
    """As before, with snapshots taken earlier."""
    old_and_new(fs)
    long_log(fs)


def with_snapshot(fs: Any) -> None:
    fs.snapshot_create("kept")


def old_and_new(fs: Any) -> None:
    """A snapshot holds what was overwritten, truncated, removed."""
    fs.snapshot_create("old")
    with fs.os_open("/file", os.O_RDWR) as file:
        file.pwrite(b"n" * 9000, 1000)
    fs.unlink("/other")
    fs.snapshot_create("kept")
    with fs.os_open("/file", os.O_RDWR) as file:
        file.pwrite(b"m" * 5000, 8000)
    put(fs, "/dir/late", b"l" * 6000)


def old_deleted(fs: Any) -> None:
    old_and_new(fs)
    fs.unlink("/dir/late")
    for info in fs.snapshot_table():
        fs.snapshot_delete(info["epoch_id"])


def old_merged(fs: Any) -> None:
    """The older of two snapshots is deleted: what it held is carried over to the younger."""
    put(fs, "/gone", b"g" * 9000)
    fs.snapshot_create("first")
    fs.snapshot_create("second")
    fs.unlink("/gone")
    with fs.os_open("/file", os.O_RDWR) as file:
        file.pwrite(b"n" * 9000, 1000)
    fs.snapshot_delete(fs.snapshot_table()[0]["epoch_id"])


def full_directory(fs: Any) -> None:
    """The next name makes the table of /dir grow."""
    for number in range(5):
        put(fs, f"/dir/n{number}", b"")


def full_table(fs: Any) -> None:
    """The next inode needs another chunk of the inode table."""
    fs.make_dir("/many")
    path, number = "", 0
    while not path or fs.stat(path).st_ino % CHUNK_SLOTS != CHUNK_SLOTS - 1:
        path, number = f"/many/{number}", number + 1
        put(fs, path, b"")


def opened(path: str) -> Callable[[Any], Any]:
    return lambda fs: fs.os_open(path, os.O_RDWR)


def orphan(fs: Any) -> Any:
    file = fs.os_open("/other", os.O_RDWR)
    fs.unlink("/other")
    return file


@dataclass(frozen=True)
class Operation:
    """Something to die in.

    `setup` runs long before, `ready` in the process that will die; what it gives goes to `act`.
    `touches` are files that survivors change afterwards, besides directories. `threads` says that
    the process has others than the one that acts, `leaves` that it is detached afterwards.
    """

    act: Callable[[Any, Any], Any]
    setup: Callable[[Any], Any] = nothing
    ready: Callable[[Any], Any] = nothing
    touches: tuple[str, ...] = ("/file",)
    size: int = 2 * MIB
    threads: bool = False
    leaves: bool = False


def page_kept(fs: Any) -> Any:
    """A block is kept for the next allocation: that of a page that was overwritten."""
    file = fs.os_open("/file", os.O_RDWR)
    file.pwrite(b"v" * PAGE, 0)
    return file


def mapping(path: str = "/file", cut: int | None = None) -> Callable[[Any], Any]:
    """Maps a file, which is then cut to `cut` bytes."""

    def ready(fs: Any) -> Any:
        with fs.os_open(path, os.O_RDWR) as file:
            made = file.mmap()
            if cut is not None:
                file.truncate(cut)
            return made

    return ready


def store(fs: Any, mapped: Any) -> None:
    """One byte into a mapping."""
    with memoryview(mapped) as view:
        view[5000] = ord("s")


def through(act: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """Does something to /file by its open file."""

    def acting(fs: Any, _: Any) -> None:
        with fs.os_open("/file", os.O_RDWR) as file:
            act(file)

    return acting


def mapped_in_snapshot(fs: Any) -> Any:
    """The file of a snapshot is mapped, and the live one is about to be."""
    with fs.snapshot_open(oldest(fs)) as view, view.open("/file", "rb") as file:
        return file.mmap(), fs.os_open("/file", os.O_RDWR)


def map_beside(fs: Any, both: Any) -> None:
    """Maps a file, and lets go of it and of the snapshot's."""
    shared, file = both
    file.mmap().close()
    shared.close()
    file.close()


def sparse(fs: Any) -> None:
    put(fs, "/file", b"")
    with fs.os_open("/file", os.O_RDWR) as file:
        file.pwrite(b"x" * 5000, 30000)


def oldest(fs: Any) -> int:
    return int(fs.snapshot_table()[0]["epoch_id"])


OPERATIONS: dict[str, Operation] = {
    "overwrite": Operation(lambda fs, f: f.pwrite(b"w" * 9000, 1000), ready=opened("/file")),
    "overwrite a page": Operation(lambda fs, f: f.pwrite(b"w" * PAGE, PAGE), ready=page_kept),
    "leave": Operation(lambda fs, _: fs.close(), ready=page_kept, leaves=True),
    "extend": Operation(lambda fs, f: f.pwrite(b"w" * 5000, 200_000), ready=opened("/file")),
    "append to a full log": Operation(
        lambda fs, f: f.pwrite(b"w" * 5000, 3000), full_log, opened("/long"), ("/long",)
    ),
    "overwrite under a snapshot": Operation(
        lambda fs, f: f.pwrite(b"w" * 9000, 1000), with_snapshot, opened("/file")
    ),
    "truncate": Operation(lambda fs, f: f.truncate(5000), ready=opened("/file")),
    "truncate under a snapshot": Operation(
        lambda fs, f: f.truncate(5000), with_snapshot, opened("/file")
    ),
    "create": Operation(lambda fs, _: fs.os_open("/dir/new", os.O_CREAT | os.O_RDWR)),
    "create in a full directory": Operation(
        lambda fs, _: fs.os_open("/dir/new", os.O_CREAT | os.O_RDWR), full_directory
    ),
    "create in a full inode table": Operation(
        lambda fs, _: fs.os_open("/dir/new", os.O_CREAT | os.O_RDWR), full_table, size=4 * MIB
    ),
    "mkdir": Operation(lambda fs, _: fs.make_dir("/dir/new")),
    "symlink": Operation(lambda fs, _: fs.symlink("t" * 300, "/dir/new")),
    "link": Operation(lambda fs, _: fs.link("/file", "/dir/new")),
    "unlink": Operation(lambda fs, _: fs.unlink("/other"), touches=("/file",)),
    "unlink under a snapshot": Operation(lambda fs, _: fs.unlink("/other"), with_snapshot),
    "unlink one of two names": Operation(
        lambda fs, _: fs.unlink("/two"), lambda fs: fs.link("/file", "/two")
    ),
    "rmdir": Operation(lambda fs, _: fs.rmdir("/empty"), lambda fs: fs.make_dir("/empty")),
    "rename": Operation(lambda fs, _: fs.rename("/other", "/dir/moved")),
    "rename over": Operation(lambda fs, _: fs.rename("/file", "/dir/inner"), touches=("/other",)),
    "rename over in place": Operation(lambda fs, _: fs.rename("/file", "/other"), touches=()),
    "rename over under a snapshot": Operation(
        lambda fs, _: fs.rename("/file", "/dir/inner"), with_snapshot, touches=("/other",)
    ),
    "rename a directory": Operation(
        lambda fs, _: fs.rename("/dir", "/to/dir"), lambda fs: fs.make_dir("/to")
    ),
    "chmod": Operation(lambda fs, _: fs.chmod("/file", 0o600)),
    "setxattr": Operation(lambda fs, _: fs.setxattr("/file", "user.y", b"2" * 300)),
    "removexattr": Operation(lambda fs, _: fs.removexattr("/file", "user.x")),
    "open": Operation(lambda fs, _: fs.os_open("/file", os.O_RDWR)),
    "close": Operation(lambda fs, f: f.close(), ready=opened("/file")),
    "close a deleted file": Operation(lambda fs, f: f.close(), ready=orphan),
    "write to a deleted file": Operation(lambda fs, f: f.pwrite(b"x" * 9000, 0), ready=orphan),
    "collect garbage": Operation(lambda fs, _: fs.gc(), long_log, touches=("/long",)),
    "collect garbage under snapshots": Operation(
        lambda fs, _: fs.gc(), long_log_under_snapshots, touches=("/long",)
    ),
    "create a snapshot": Operation(lambda fs, _: fs.snapshot_create("new")),
    "create a second snapshot": Operation(lambda fs, _: fs.snapshot_create("new"), old_and_new),
    "delete a snapshot": Operation(lambda fs, _: fs.snapshot_delete(oldest(fs)), old_and_new),
    "reclaim": Operation(lambda fs, _: fs.reclaim(1000), old_deleted),
    "reclaim what another snapshot needs": Operation(lambda fs, _: fs.reclaim(1000), old_merged),
}

OPERATIONS |= {
    name: replace(operation, threads=True)
    for name, operation in {
        "map": Operation(lambda fs, f: f.mmap(), ready=opened("/file")),
        "map a sparse file": Operation(lambda fs, f: f.mmap(), sparse, opened("/file")),
        "map beside a snapshot's": Operation(map_beside, with_snapshot, mapped_in_snapshot),
        "store": Operation(store, with_snapshot, mapping()),
        "store into a removed file": Operation(
            store, with_snapshot, lambda fs: (mapping()(fs), fs.unlink("/file"))[0], touches=()
        ),
        "write to a mapped file": Operation(
            through(lambda f: f.pwrite(b"w" * 3000, 1000)), with_snapshot, mapping()
        ),
        "truncate a mapped file": Operation(
            through(lambda f: f.truncate(5000)), with_snapshot, mapping()
        ),
        "extend a cut file": Operation(
            through(lambda f: f.truncate(14000)), with_snapshot, mapping(cut=5000)
        ),
        "unmap a cut file": Operation(lambda fs, m: m.close(), with_snapshot, mapping(cut=5000)),
        "flush": Operation(lambda fs, m: m.flush(), with_snapshot, mapping()),
        "create a snapshot of a mapped file": Operation(
            lambda fs, _: fs.snapshot_create("new"), ready=mapping()
        ),
    }.items()
}


def prepared(operation: Operation) -> SharedArena:
    """An arena with everything in it that the operation finds; nobody is attached."""
    arena = SharedArena(operation.size, cpus=1)
    with arena.attach("coordinator") as fs:
        base(fs)
        operation.setup(fs)
    return arena


@cache
def outcomes(name: str) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """What everything looks like before an operation, and after it."""
    operation = OPERATIONS[name]
    arena = prepared(operation)
    with arena.attach("coordinator") as fs:
        handle = operation.ready(fs)
        before = shapes(fs)
        made = operation.act(fs, handle)
        if operation.leaves:
            return before, before
        for file in (handle, made):
            if hasattr(file, "close"):
                file.close()
        after = shapes(fs)
    arena.close()
    return before, after


def verify(arena: SharedArena, name: str, dead: int = 1) -> None:
    """What a survivor finds: nothing blocked, half done or lost, now and mounted anew.

    `dead` processes died, the first of them in the operation `name`.
    """
    fs = arena.attach("coordinator")
    took, _ = timed(touch, fs, OPERATIONS[name].touches)
    assert took < LONGEST, f"survivors waited {took:.2f} s"
    reaped = fs.reap()
    assert len({slot["pid"] for slot in reaped}) == dead, reaped
    audit(fs, arena)
    found = shapes(fs)
    wanted = outcomes(name)
    assert found in wanted, [differences(found, shape) for shape in wanted]
    blocks = fs.stats()["blocks"]
    fs.close()
    again = arena.remount()
    with again.attach() as fs:
        mounted = fs.stats()["blocks"]
        for kind in ("free", "held", "live"):
            assert mounted[kind] == blocks[kind], f"{kind}: {blocks} before, {mounted} when mounted"
        assert shapes(fs) == found, differences(shapes(fs), found)
        audit(fs, again)


def touch(fs: Any, paths: tuple[str, ...]) -> None:
    """Operations that need what the dead one may have locked; they change no contents."""
    for path in paths:
        fs.chmod(path, fs.stat(path).st_mode & 0o777)
    for directory in ("/", "/dir"):
        if fs.exists(directory):
            path = f"{directory.rstrip('/')}/touched"
            fs.os_open(path, os.O_CREAT | os.O_RDWR).close()
            fs.unlink(path)
    fs.snapshot_table()


def shape(fs: Any) -> dict[str, Any]:
    """What a file system shows, without times and inode numbers."""
    found: dict[str, Any] = {}
    stack = [""]
    while stack:
        directory = stack.pop()
        for name, _, dtype in fs.scan(directory or "/"):
            path = f"{directory}/{name}"
            status = fs.lstat(path)
            keys = sorted(fs.listxattr(path, follow_symlinks=False))
            attributes = [(key, fs.getxattr(path, key, follow_symlinks=False)) for key in keys]
            data: Any = None
            if dtype == 4:
                stack.append(path)
            elif dtype == 10:
                data = fs.readlink(path)
            else:
                with fs.os_open(path, os.O_RDONLY) as file:
                    data = file.pread(status.st_size + 1, 0)
            found[path] = (status.st_mode, status.st_nlink, attributes, data)
    return found


def shapes(fs: Any) -> dict[Any, Any]:
    """The live file system (as "") and every snapshot by its name."""
    found: dict[Any, Any] = {"": shape(fs)}
    for info in fs.snapshot_table():
        with fs.snapshot_open(info["epoch_id"]) as view:
            found[info["name"]] = shape(view)
    return found

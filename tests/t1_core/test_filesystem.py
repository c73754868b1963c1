"""Every operation by path, attached and remote, against the kernel's tmpfs: same values, same
errors, same things left behind."""

from __future__ import annotations

import os
import pathlib
import stat
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model.differential import Outcome, Pair, errno_of, tree

from nova_mp.client.base import FileSystem

# As in <time.h>; the module time does not name it.
CLOCK_REALTIME_COARSE = 5

Action = Callable[[FileSystem], Any]

LONG = "n" * 255
TOO_LONG = "n" * 256


# Each is run on the same small tree, on both; outcomes and trees must be the same after.
CASES: dict[str, Action] = {
    # make_dir
    "mkdir": lambda fs: fs.make_dir("/new"),
    "mkdir mode": lambda fs: fs.make_dir("/new", 0o701),
    "mkdir exists": lambda fs: fs.make_dir("/dir"),
    "mkdir over file": lambda fs: fs.make_dir("/file"),
    "mkdir over dangling link": lambda fs: fs.make_dir("/dangling"),
    "mkdir no parent": lambda fs: fs.make_dir("/no/new"),
    "mkdir below file": lambda fs: fs.make_dir("/file/new"),
    "mkdir trailing slash": lambda fs: fs.make_dir("/new/"),
    "mkdir double slashes": lambda fs: fs.make_dir("//dir///new"),
    "mkdir dot": lambda fs: fs.make_dir("/dir/."),
    "mkdir dotdot": lambda fs: fs.make_dir("/dir/.."),
    "mkdir through link": lambda fs: fs.make_dir("/to-dir/new"),
    "mkdir longest name": lambda fs: fs.make_dir("/" + LONG),
    "mkdir name too long": lambda fs: fs.make_dir("/" + TOO_LONG),
    "mkdir path too long": lambda fs: fs.make_dir("/" + "dir/../" * 1000 + "x"),
    "mkdir empty path": lambda fs: fs.make_dir(""),
    "mkdir NUL": lambda fs: fs.make_dir("/a\0b"),
    # rmdir
    "rmdir": lambda fs: fs.rmdir("/empty"),
    "rmdir trailing slash": lambda fs: fs.rmdir("/empty/"),
    "rmdir not empty": lambda fs: fs.rmdir("/dir"),
    "rmdir missing": lambda fs: fs.rmdir("/missing"),
    "rmdir file": lambda fs: fs.rmdir("/file"),
    "rmdir link to dir": lambda fs: fs.rmdir("/to-dir"),
    "rmdir dot": lambda fs: fs.rmdir("/empty/."),
    "rmdir dotdot": lambda fs: fs.rmdir("/dir/sub/.."),
    "rmdir no parent": lambda fs: fs.rmdir("/no/where"),
    # unlink
    "unlink": lambda fs: fs.unlink("/file"),
    "unlink missing": lambda fs: fs.unlink("/missing"),
    "unlink dir": lambda fs: fs.unlink("/empty"),
    "unlink link": lambda fs: fs.unlink("/to-file"),
    "unlink dangling": lambda fs: fs.unlink("/dangling"),
    "unlink link to dir": lambda fs: fs.unlink("/to-dir"),
    "unlink trailing slash": lambda fs: fs.unlink("/file/"),
    "unlink below file": lambda fs: fs.unlink("/file/x"),
    "unlink bytes": lambda fs: fs.unlink(b"/missing"),
    "unlink PathLike": lambda fs: fs.unlink(pathlib.PurePosixPath("/missing")),
    "unlink int": lambda fs: fs.unlink(3.5),  # type: ignore[arg-type]
    # rename
    "rename": lambda fs: fs.rename("/file", "/renamed"),
    "rename into dir": lambda fs: fs.rename("/file", "/dir/renamed"),
    "rename over file": lambda fs: fs.rename("/file", "/dir/inner"),
    "rename over itself": lambda fs: fs.rename("/file", "/file"),
    "rename missing": lambda fs: fs.rename("/missing", "/renamed"),
    "rename missing over file": lambda fs: fs.rename("/missing", "/file"),
    "rename no target parent": lambda fs: fs.rename("/file", "/no/renamed"),
    "rename target below file": lambda fs: fs.rename("/empty", "/file/renamed"),
    "rename file over dir": lambda fs: fs.rename("/file", "/empty"),
    "rename dir over file": lambda fs: fs.rename("/empty", "/file"),
    "rename dir over empty dir": lambda fs: fs.rename("/dir", "/empty"),
    "rename dir over full dir": lambda fs: fs.rename("/empty", "/dir"),
    "rename dir": lambda fs: fs.rename("/dir", "/moved"),
    "rename dir trailing slash": lambda fs: fs.rename("/dir/", "/moved/"),
    "rename file trailing slash": lambda fs: fs.rename("/file/", "/moved"),
    "rename file to trailing slash": lambda fs: fs.rename("/file", "/moved/"),
    "rename dir into another": lambda fs: fs.rename("/dir/sub", "/empty/sub"),
    "rename dir upwards": lambda fs: fs.rename("/dir/sub", "/sub"),
    "rename into itself": lambda fs: fs.rename("/dir", "/dir/self"),
    "rename into own subtree": lambda fs: fs.rename("/dir", "/dir/sub/self"),
    "rename into itself over file": lambda fs: fs.rename("/dir", "/dir/inner"),
    "rename file over own parent": lambda fs: fs.rename("/dir/inner", "/dir"),
    "rename over own parent": lambda fs: fs.rename("/dir/sub", "/dir"),
    "rename link": lambda fs: fs.rename("/to-file", "/link"),
    "rename over link": lambda fs: fs.rename("/file", "/dangling"),
    "rename link over its target": lambda fs: fs.rename("/to-file", "/file"),
    "rename dot": lambda fs: fs.rename("/dir/.", "/moved"),
    "rename to dotdot": lambda fs: fs.rename("/file", "/dir/.."),
    "rename too long": lambda fs: fs.rename("/file", "/" + TOO_LONG),
    "rename between hard links": lambda fs: (
        fs.link("/file", "/hard"),
        fs.rename("/hard", "/file"),
    ),
    "rename over hard link": lambda fs: (
        fs.link("/file", "/hard"),
        fs.rename("/dir/inner", "/hard"),
        fs.stat("/file").st_nlink,
    ),
    "noreplace": lambda fs: fs.rename("/file", "/renamed", noreplace=True),
    "noreplace exists": lambda fs: fs.rename("/file", "/dir/inner", noreplace=True),
    "noreplace empty dir": lambda fs: fs.rename("/dir", "/empty", noreplace=True),
    "noreplace itself": lambda fs: fs.rename("/file", "/file", noreplace=True),
    "noreplace dangling": lambda fs: fs.rename("/file", "/dangling", noreplace=True),
    "noreplace missing": lambda fs: fs.rename("/missing", "/renamed", noreplace=True),
    # link
    "link": lambda fs: (fs.link("/file", "/hard"), fs.stat("/file").st_nlink),
    "link into dir": lambda fs: fs.link("/file", "/dir/hard"),
    "link exists": lambda fs: fs.link("/file", "/dir/inner"),
    "link missing": lambda fs: fs.link("/missing", "/hard"),
    "link directory": lambda fs: fs.link("/dir", "/hard"),
    "link directory exists": lambda fs: fs.link("/dir", "/file"),
    "link no parent": lambda fs: fs.link("/file", "/no/hard"),
    "link symlink": lambda fs: (fs.link("/to-file", "/hard"), fs.readlink("/hard")),
    "link then unlink first": lambda fs: (
        fs.link("/file", "/hard"),
        fs.unlink("/file"),
        fs.read_bytes("/hard"),
        fs.stat("/hard").st_nlink,
    ),
    "link same inode": lambda fs: (
        fs.link("/file", "/hard"),
        fs.stat("/hard").st_ino == fs.stat("/file").st_ino,
    ),
    "link shares contents": lambda fs: (
        fs.link("/file", "/hard"),
        fs.write_bytes("/hard", b"new"),
        fs.read_bytes("/file"),
    ),
    # symlink and readlink
    "symlink": lambda fs: (fs.symlink("any/where", "/link"), fs.readlink("/link")),
    "symlink exists": lambda fs: fs.symlink("x", "/file"),
    "symlink no parent": lambda fs: fs.symlink("x", "/no/link"),
    "symlink empty target": lambda fs: fs.symlink("", "/link"),
    "symlink long target": lambda fs: (fs.symlink("x" * 3000, "/link"), fs.readlink("/link")),
    "symlink longest target": lambda fs: (fs.symlink("y" * 4095, "/link"), fs.readlink("/link")),
    "symlink target too long": lambda fs: fs.symlink("x" * 4096, "/link"),
    "symlink size": lambda fs: (fs.symlink("x" * 77, "/link"), fs.lstat("/link").st_size),
    "readlink file": lambda fs: fs.readlink("/file"),
    "readlink dir": lambda fs: fs.readlink("/dir"),
    "readlink missing": lambda fs: fs.readlink("/missing"),
    "readlink non UTF-8": lambda fs: (fs.symlink(b"\xff\xfe", "/link"), fs.readlink("/link")),
    "symlink chain": lambda fs: (fs.symlink("to-file", "/chain"), fs.read_bytes("/chain")),
    "symlink relative to its own dir": lambda fs: (
        fs.symlink("../file", "/dir/up"),
        fs.read_bytes("/to-dir/up"),
    ),
    "symlink in the middle": lambda fs: fs.read_bytes("/to-dir/inner"),
    "dotdot after link": lambda fs: (
        fs.symlink("dir/sub", "/deep"),
        sorted(fs.listdir("/deep/..")),
    ),
    # loops
    "loop stat": lambda fs: fs.stat("/loop-a"),
    "loop open": lambda fs: fs.open("/loop-a"),
    "loop in the middle": lambda fs: fs.stat("/loop-a/x"),
    "loop lstat": lambda fs: stat.S_ISLNK(fs.lstat("/loop-a").st_mode),
    "loop truncate": lambda fs: fs.truncate("/loop-a", 0),
    "loop chmod": lambda fs: fs.chmod("/loop-a", 0o600),
    # stat
    "stat missing": lambda fs: fs.stat("/missing"),
    "stat below file": lambda fs: fs.stat("/file/x"),
    "stat file slash": lambda fs: fs.stat("/file/"),
    "stat dir slash": lambda fs: stat.S_ISDIR(fs.stat("/dir/").st_mode),
    "stat link slash": lambda fs: stat.S_ISDIR(fs.lstat("/to-dir/").st_mode),
    "stat dangling": lambda fs: fs.stat("/dangling"),
    "stat nofollow": lambda fs: stat.S_ISLNK(fs.stat("/to-file", follow_symlinks=False).st_mode),
    "stat name too long": lambda fs: fs.stat("/" + TOO_LONG),
    "stat empty": lambda fs: fs.stat(""),
    "stat bytes": lambda fs: fs.stat(b"/missing"),
    "stat NUL": lambda fs: fs.stat("/fi\0le"),
    "stat None": lambda fs: fs.stat(None),  # type: ignore[arg-type]
    "stat dots": lambda fs: fs.stat("/./dir/../dir/./inner").st_size,
    "stat above root": lambda fs: stat.S_ISDIR(fs.stat("/dir/sub/../..").st_mode),
    "nlink of dir": lambda fs: (fs.stat("/dir").st_nlink, fs.stat("/empty").st_nlink),
    "nlink after mkdir": lambda fs: (fs.make_dir("/dir/b"), fs.stat("/dir").st_nlink),
    "nlink after rmdir": lambda fs: (fs.rmdir("/dir/sub"), fs.stat("/dir").st_nlink),
    "nlink after moving dir": lambda fs: (
        fs.rename("/dir/sub", "/empty/sub"),
        fs.stat("/dir").st_nlink,
        fs.stat("/empty").st_nlink,
    ),
    "nlink after dir over dir": lambda fs: (
        fs.make_dir("/empty/a"),
        fs.rename("/dir/sub", "/empty/a"),
        fs.stat("/dir").st_nlink,
        fs.stat("/empty").st_nlink,
    ),
    # listing
    "listdir": lambda fs: sorted(fs.listdir("/dir")),
    "listdir root": lambda fs: sorted(fs.listdir("/")),
    "listdir empty": lambda fs: fs.listdir("/empty"),
    "listdir link": lambda fs: sorted(fs.listdir("/to-dir")),
    "listdir file": lambda fs: fs.listdir("/file"),
    "listdir missing": lambda fs: fs.listdir("/missing"),
    "listdir bytes": lambda fs: sorted(fs.listdir(b"/dir")),
    "scandir types": lambda fs: sorted(
        (entry.name, entry.is_dir(), entry.is_file(), entry.is_symlink())
        for entry in fs.scandir("/")
        if not entry.name.startswith("loop")
    ),
    "scandir loop": lambda fs: sorted(
        errno_of(entry.is_dir) for entry in fs.scandir("/") if entry.name.startswith("loop")
    ),
    "scandir nofollow": lambda fs: sorted(
        (entry.name, entry.is_dir(follow_symlinks=False), entry.is_file(follow_symlinks=False))
        for entry in fs.scandir("/")
    ),
    "scandir file": lambda fs: fs.scandir("/file"),
    "scandir inodes": lambda fs: all(
        entry.inode() == fs.lstat(entry.path).st_ino for entry in fs.scandir("/")
    ),
    "scandir bytes": lambda fs: sorted((e.name, e.path) for e in fs.scandir(b"/dir")),
    # chmod, chown, utime
    "chmod": lambda fs: (fs.chmod("/file", 0o4751), stat.S_IMODE(fs.stat("/file").st_mode)),
    "chmod dir": lambda fs: (fs.chmod("/dir", 0o1700), stat.S_IMODE(fs.stat("/dir").st_mode)),
    "chmod through link": lambda fs: (
        fs.chmod("/to-file", 0o640),
        stat.S_IMODE(fs.stat("/file").st_mode),
    ),
    "chmod missing": lambda fs: fs.chmod("/missing", 0o600),
    "chmod keeps type": lambda fs: (
        fs.chmod("/file", 0o100777),
        stat.S_ISREG(fs.stat("/file").st_mode),
    ),
    "utime ns": lambda fs: (
        fs.utime("/file", ns=(1_234_567_890_123_456_789, 987_654_321_987_654_321)),
        fs.stat("/file").st_atime_ns,
        fs.stat("/file").st_mtime_ns,
    ),
    "utime seconds": lambda fs: (
        fs.utime("/file", (12.25, 13.5)),
        fs.stat("/file").st_atime,
        fs.stat("/file").st_mtime,
    ),
    "utime integers": lambda fs: (
        fs.utime("/file", (12, 13)),
        fs.stat("/file").st_mtime_ns,
        fs.stat("/file")[8],
    ),
    "utime before 1970": lambda fs: (
        fs.utime("/file", ns=(-1_500_000_000, -1)),
        fs.stat("/file").st_atime_ns,
        fs.stat("/file").st_mtime_ns,
    ),
    "utime both": lambda fs: fs.utime("/file", (1, 2), ns=(1, 2)),
    "utime missing": lambda fs: fs.utime("/missing"),
    "utime link itself": lambda fs: (
        fs.utime("/to-file", ns=(5, 6), follow_symlinks=False),
        fs.lstat("/to-file").st_mtime_ns,
        fs.stat("/file").st_mtime_ns == 6,
    ),
    "utime dir": lambda fs: (fs.utime("/dir", ns=(5, 6)), fs.stat("/dir").st_mtime_ns),
    # truncate
    "truncate shorter": lambda fs: (fs.truncate("/file", 3), fs.read_bytes("/file")),
    "truncate longer": lambda fs: (fs.truncate("/file", 5000), fs.read_bytes("/file")),
    "truncate missing": lambda fs: fs.truncate("/missing", 0),
    "truncate dir": lambda fs: fs.truncate("/dir", 0),
    "truncate negative": lambda fs: fs.truncate("/file", -1),
    "truncate through link": lambda fs: (fs.truncate("/to-file", 2), fs.read_bytes("/file")),
    # questions
    "exists": lambda fs: [
        (fs.exists(path), fs.isfile(path), fs.isdir(path), fs.islink(path))
        for path in ("/", "/file", "/dir", "/to-dir", "/dangling", "/loop-a", "/no", "/file/x", "")
    ],
    "exists NUL": lambda fs: fs.exists("/a\0b"),
    # mkdir, makedirs
    "mkdir parents": lambda fs: fs.mkdir("/a/b/c", parents=True),
    "mkdir parents exists": lambda fs: fs.mkdir("/dir/sub", parents=True),
    "mkdir exist_ok": lambda fs: fs.mkdir("/dir", exist_ok=True),
    "mkdir exist_ok file": lambda fs: fs.mkdir("/file", exist_ok=True),
    "mkdir exist_ok link": lambda fs: fs.mkdir("/to-dir", exist_ok=True),
    "makedirs": lambda fs: fs.makedirs("/dir/x/y/z"),
    "makedirs exists": lambda fs: fs.makedirs("/dir/sub"),
    "makedirs below file": lambda fs: fs.makedirs("/file/x/y"),
    "makedirs exist_ok": lambda fs: fs.makedirs("/dir/sub", exist_ok=True),
    # rmtree, walk
    "rmtree": lambda fs: fs.rmtree("/dir"),
    "rmtree missing": lambda fs: fs.rmtree("/missing"),
    "rmtree ignore_errors": lambda fs: fs.rmtree("/missing", ignore_errors=True),
    "rmtree file": lambda fs: fs.rmtree("/file"),
    "rmtree link": lambda fs: fs.rmtree("/to-dir"),
    "walk": lambda fs: [(top, sorted(d), sorted(f)) for top, d, f in fs.walk("/dir")],
    "walk bottom up": lambda fs: [
        (top, sorted(d), sorted(f)) for top, d, f in fs.walk("/dir", topdown=False)
    ],
    "walk missing": lambda fs: list(fs.walk("/missing")),
    # statvfs
    "statvfs missing": lambda fs: fs.statvfs("/missing"),
    "statvfs": lambda fs: (fs.statvfs("/file").f_bsize, fs.statvfs("/").f_namemax),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_case(pair: Pair, case: Action) -> None:
    pair.both(tree)
    pair.both(case)
    pair.same_contents()


@pytest.mark.parametrize(
    ("flags", "path"),
    [
        (flags, path)
        for flags in (
            os.O_RDONLY,
            os.O_WRONLY,
            os.O_RDWR | os.O_CREAT,
            os.O_WRONLY | os.O_CREAT | os.O_EXCL,
            os.O_WRONLY | os.O_TRUNC,
            os.O_RDONLY | os.O_NOFOLLOW,
            os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW,
            os.O_WRONLY | os.O_CREAT | os.O_APPEND,
        )
        for path in ("/file", "/new", "/to-file", "/dangling", "/loop-a", "/file/x", "/no/x")
    ],
)
def test_open_flags(pair: Pair, flags: int, path: str) -> None:
    def opens(fs: FileSystem) -> Any:
        with fs.os_open(path, flags, 0o640) as file:
            return file.readable(), file.writable(), stat.S_IMODE(file.stat().st_mode)

    pair.both(tree)
    pair.both(opens)
    pair.same_contents()


@pytest.mark.parametrize("mode", ["rb", "wb", "ab", "xb", "r+b", "w"])
def test_open_directory(pair: Pair, mode: str) -> None:
    pair.both(tree)
    pair.both(lambda fs: fs.open("/dir", mode))


def test_open_directory_flag(pair: Pair) -> None:
    pair.both(tree)
    pair.both(lambda fs: fs.os_open("/file", os.O_RDONLY | os.O_DIRECTORY))
    pair.both(lambda fs: fs.os_open("/dir", os.O_RDWR))


NAMES = ["plain", "with space", "ünïcödé", "日本", "new\nline", "-dash", "~", "..dots", "a" * 255]


@pytest.mark.parametrize("name", NAMES)
def test_names(pair: Pair, name: str) -> None:
    pair.both(lambda fs: fs.write_bytes(f"/{name}", b"x"))
    pair.both(lambda fs: fs.listdir("/"))
    pair.both(lambda fs: fs.listdir(b"/"))
    pair.both(lambda fs: fs.read_bytes(f"/{name}".encode()))
    pair.both(lambda fs: fs.rename(f"/{name}", "/other"))
    pair.same_contents()


def test_names_that_are_not_utf8(pair: Pair) -> None:
    name = b"/\xff\xfe\x80"
    pair.both(lambda fs: fs.write_bytes(name, b"x"))
    pair.both(lambda fs: fs.listdir("/"))
    pair.both(lambda fs: fs.listdir(b"/"))
    pair.both(lambda fs: fs.read_bytes(os.fsdecode(name)))
    pair.both(lambda fs: fs.stat(name + b"x"))
    pair.both(lambda fs: fs.unlink(os.fsdecode(name)))
    pair.same_contents()


def test_path_objects(pair: Pair) -> None:
    path = pathlib.PurePosixPath("/dir")
    pair.both(lambda fs: fs.mkdir(path))
    pair.both(lambda fs: fs.write_bytes(path / "f", b"1"))
    pair.both(lambda fs: [os.fspath(entry) for entry in fs.scandir(path)])
    pair.both(lambda fs: fs.stat(path / "missing"))
    pair.both(lambda fs: fs.rename(path, path.with_name("other")))
    pair.same_contents()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_chown(pair: Pair) -> None:
    def owner(fs: FileSystem, path: str) -> tuple[int, int]:
        status = fs.lstat(path)
        return status.st_uid, status.st_gid

    pair.both(tree)
    pair.both(lambda fs: (fs.chown("/file", 12, 34), owner(fs, "/file")))
    pair.both(lambda fs: (fs.chown("/file", -1, 56), owner(fs, "/file")))
    pair.both(lambda fs: (fs.chown("/file", 78, -1), owner(fs, "/file")))
    pair.both(lambda fs: (fs.chown("/to-file", 1, 2), owner(fs, "/file"), owner(fs, "/to-file")))
    pair.both(lambda fs: (fs.chown("/to-file", 3, 4, follow_symlinks=False), owner(fs, "/to-file")))
    pair.both(lambda fs: fs.chown("/missing", 1, 1))
    pair.same_contents()


def tick() -> None:
    """Return once the clock that stamps files has moved: it may be as coarse as the kernel's."""
    started = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) == started:
        os.sched_yield()


def test_times_move_as_they_should(fs: FileSystem) -> None:
    fs.mkdir("/d")
    fs.write_bytes("/d/f", b"1")
    old = (1_000_000_000, 1_000_000_000)

    def changed(action: Callable[[], Any], path: str) -> tuple[bool, bool]:
        """Whether mtime and ctime of `path` move when `action` runs."""
        fs.utime(path, ns=old)
        before = fs.stat(path)
        tick()
        action()
        after = fs.stat(path)
        return after.st_mtime_ns > before.st_mtime_ns, after.st_ctime_ns > before.st_ctime_ns

    assert changed(lambda: fs.write_bytes("/d/f", b"2"), "/d/f") == (True, True)
    assert changed(lambda: fs.truncate("/d/f", 0), "/d/f") == (True, True)
    assert changed(lambda: fs.chmod("/d/f", 0o600), "/d/f") == (False, True)
    assert changed(lambda: fs.link("/d/f", "/d/g"), "/d/f") == (False, True)
    assert changed(lambda: fs.read_bytes("/d/f"), "/d/f") == (False, False)
    assert changed(lambda: fs.write_bytes("/d/new", b""), "/d") == (True, True)
    assert changed(lambda: fs.unlink("/d/new"), "/d") == (True, True)
    assert changed(lambda: fs.rename("/d/g", "/d/h"), "/d") == (True, True)
    assert changed(lambda: fs.write_bytes("/d/f", b"3"), "/d") == (False, False)
    assert changed(lambda: fs.mkdir("/d/sub"), "/d") == (True, True)


def test_stat_is_like_os_stat(fs: FileSystem) -> None:
    fs.write_bytes("/f", bytes(10_000))
    status = fs.stat("/f")
    assert stat.S_ISREG(status.st_mode)
    assert (status[0], status[1], status[3], status[6]) == (
        status.st_mode,
        status.st_ino,
        1,
        10_000,
    )
    assert len(tuple(status)) == 10
    assert status.st_blksize == 4096
    assert status.st_blocks * 512 >= 10_000
    assert abs(status.st_mtime - status.st_mtime_ns / 1e9) < 1e-6
    assert status.st_birthtime_ns <= status.st_ctime_ns
    assert fs.stat("/f").st_dev == fs.stat("/").st_dev
    assert fs.stat("/f").st_ino != fs.stat("/").st_ino


def test_statvfs_follows_the_space(fs: FileSystem) -> None:
    before = fs.statvfs("/")
    assert 0 < before.f_bfree <= before.f_blocks
    assert before.f_bavail <= before.f_bfree
    assert before.f_files >= before.f_ffree > 0
    fs.write_bytes("/big", bytes(1 << 20))
    assert before.f_bfree - fs.statvfs("/").f_bfree >= (1 << 20) // before.f_frsize
    fs.unlink("/big")
    assert before.f_bfree - fs.statvfs("/").f_bfree < 16


def test_many_names_in_a_directory(fs: FileSystem) -> None:
    fs.mkdir("/many")
    names = {f"name-{number:05}" for number in range(2000)}
    for name in names:
        fs.write_bytes(f"/many/{name}", b"")
    assert set(fs.listdir("/many")) == names
    gone = {name for name in names if name.endswith(("3", "7"))}
    for name in gone:
        fs.unlink(f"/many/{name}")
    assert set(fs.listdir("/many")) == names - gone
    assert all(fs.exists(f"/many/{name}") != (name in gone) for name in names)


def test_link_count_has_a_witness(pair: Pair) -> None:
    pair.both(lambda fs: fs.write_bytes("/f", b"1"))
    for number in range(50):
        pair.both(lambda fs, number=number: fs.link("/f", f"/l{number}"))  # type: ignore[misc]
    assert pair.both(lambda fs: fs.stat("/f").st_nlink) == Outcome(value=51)
    pair.both(lambda fs: [fs.unlink(f"/l{number}") for number in range(50)])
    assert pair.both(lambda fs: fs.stat("/f").st_nlink) == Outcome(value=1)


PATHS = st.sampled_from(["/a", "/b", "/c", "/a/x", "/b/x", "/a/x/y", "/b/y", "/c/z"])
STEPS = st.one_of(
    st.tuples(st.just("make_dir"), PATHS),
    st.tuples(st.just("rmdir"), PATHS),
    st.tuples(st.just("unlink"), PATHS),
    st.tuples(st.just("rename"), PATHS, PATHS),
    st.tuples(st.just("rename"), PATHS, PATHS, st.just(True)),
    st.tuples(st.just("link"), PATHS, PATHS),
    st.tuples(st.just("symlink"), st.sampled_from(["x", "b", "a/x", "./c"]), PATHS),
    st.tuples(st.just("write_bytes"), PATHS, st.binary(max_size=64)),
    st.tuples(st.just("truncate"), PATHS, st.integers(0, 9000)),
    st.tuples(st.just("chmod"), PATHS, st.sampled_from([0o700, 0o755, 0o777])),
)


@given(steps=st.lists(STEPS, max_size=25))
@settings(max_examples=60)
def test_random_steps(pair: Pair, steps: list[tuple[Any, ...]]) -> None:
    for fs in (pair.fs, pair.host):
        empty(fs)
    for name, *arguments in steps:
        pair.both(
            lambda fs, name=name, arguments=arguments: (  # type: ignore[misc]
                getattr(fs, name)(*arguments)
            )
        )
    pair.same_contents()


def empty(fs: FileSystem) -> None:
    """Remove everything."""
    for entry in list(fs.scandir("/")):
        if entry.is_dir(follow_symlinks=False):
            fs.rmtree(entry.path)
        else:
            fs.unlink(entry.path)

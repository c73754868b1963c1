"""Trees in and out, threads, forks, snapshots and freezes: the same for attached and remote."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import nova_mp
from nova_mp.client.base import FileSystem
from nova_mp.client.transfer import Progress


def build(top: Path) -> None:
    """A tree with a bit of everything."""
    (top / "sub" / "deeper").mkdir(parents=True)
    (top / "empty dir").mkdir()
    (top / "zero").write_bytes(b"")
    (top / "small").write_bytes(b"small")
    (top / "sub" / "exact").write_bytes(b"x" * 4096)
    (top / "sub" / "large").write_bytes(os.urandom(3 << 20))
    (top / "sub" / "deeper" / "ünï").write_text("ü")
    (top / "link").symlink_to("sub/exact")
    (top / "dangling").symlink_to("nowhere/at all")
    (top / "dir link").symlink_to("sub")
    os.link(top / "small", top / "sub" / "second name")
    (top / "small").chmod(0o4640)
    (top / "sub" / "exact").chmod(0o400)
    (top / "empty dir").chmod(0o1711)
    with open(top / "sparse", "wb") as file:
        file.seek(8 << 20)
        file.write(b"end")
        file.truncate(9 << 20)
    for number, path in enumerate(sorted(top.rglob("*"), reverse=True)):
        times = (1_000_000_000_000_000_001 + number, 1_100_000_000_000_000_007 + number)
        os.utime(path, ns=times, follow_symlinks=False)


def described(top: Path) -> dict[str, Any]:
    """Names, types, modes, times and contents below `top`."""
    found = {}
    for path in sorted(top.rglob("*")):
        status = path.lstat()
        content: Any = None
        if stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        mode = None if stat.S_ISLNK(status.st_mode) else status.st_mode
        found[str(path.relative_to(top))] = (mode, status.st_mtime_ns, status.st_nlink, content)
    return found


def test_tree_there_and_back(fs: FileSystem, tmp_path: Path) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    source.mkdir()
    build(source)
    seen: list[Progress] = []
    fs.put(source, "/tree", progress=seen.append)
    assert seen[-1].files_done == seen[-1].files_total == 10
    assert seen[-1].bytes_done == seen[-1].bytes_total
    assert [p.bytes_done for p in seen] == sorted(p.bytes_done for p in seen)
    assert fs.stat("/tree/sparse").st_blocks * 512 < 1 << 20
    assert fs.stat("/tree/small").st_ino == fs.stat("/tree/sub/second name").st_ino
    final = fs.get("/tree", back)
    assert final.files_done == 10
    assert described(back) == described(source)
    assert (back / "sparse").stat().st_blocks * 512 < 1 << 20


def test_put_and_get_one_file(fs: FileSystem, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.write_bytes(b"data")
    local.chmod(0o751)
    os.utime(local, ns=(5, 1_234_567_891))
    fs.put(str(local), "/f")
    status = fs.stat("/f")
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o751, 1_234_567_891)
    fs.mkdir("/d")
    fs.put(local, "/d")
    assert fs.read_bytes("/d/local") == b"data"
    fs.get("/f", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"data"
    assert (tmp_path / "out").stat().st_mtime_ns == 1_234_567_891
    (tmp_path / "folder").mkdir()
    fs.get("/d/local", tmp_path / "folder")
    assert (tmp_path / "folder" / "local").read_bytes() == b"data"


def test_put_replaces_and_merges(fs: FileSystem, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "src").mkdir(exist_ok=True)
        (tmp_path / "src" / name).write_bytes(name.encode())
    fs.mkdir("/dst")
    fs.write_bytes("/dst/a", b"longer than the new contents")
    fs.write_bytes("/dst/kept", b"kept")
    fs.put(tmp_path / "src", "/dst")
    assert {name: fs.read_bytes(f"/dst/{name}") for name in fs.listdir("/dst")} == {
        "a": b"a",
        "b": b"b",
        "kept": b"kept",
    }


def test_put_follows_a_link_it_is_given(fs: FileSystem, tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"real")
    (tmp_path / "link").symlink_to("real")
    fs.put(tmp_path / "link", "/f")
    assert not fs.islink("/f")
    assert fs.read_bytes("/f") == b"real"


def test_put_refuses_before_it_writes(fs: FileSystem, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "file").write_bytes(b"x")
    os.mkfifo(tmp_path / "src" / "pipe")
    with pytest.raises(OSError) as caught:
        fs.put(tmp_path / "src", "/dst")
    assert caught.value.errno == errno.EOPNOTSUPP
    assert fs.listdir("/") == []


def test_put_and_get_of_what_is_missing(fs: FileSystem, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fs.put(tmp_path / "missing", "/f")
    with pytest.raises(FileNotFoundError):
        fs.get("/missing", tmp_path / "f")
    assert fs.listdir("/") == []
    assert list(tmp_path.iterdir()) == []


def test_progress_may_stop_a_copy(fs: FileSystem, tmp_path: Path) -> None:
    class Enough(Exception):
        """Raised by the callback."""

    def stop(progress: Progress) -> None:
        raise Enough

    (tmp_path / "f").write_bytes(bytes(10))
    with pytest.raises(Enough):
        fs.put(tmp_path / "f", "/f", progress=stop)


def test_walk_can_be_pruned(fs: FileSystem) -> None:
    for name in ("a/x", "b/y", "c/z"):
        fs.makedirs(f"/{name}")
    seen = []
    for top, dirs, _files in fs.walk("/"):
        seen.append(top)
        if "b" in dirs:
            dirs.remove("b")
        dirs.sort(reverse=True)
    assert seen == ["/", "/c", "/c/z", "/a", "/a/x"]


def test_walk_follows_links_when_told(fs: FileSystem) -> None:
    fs.makedirs("/real/inner")
    fs.symlink("real", "/link")
    assert [top for top, _, _ in fs.walk("/link")] == ["/link", "/link/inner"]
    assert "/link/inner" not in [top for top, _, _ in fs.walk("/")]
    assert "/link/inner" in [top for top, _, _ in fs.walk("/", followlinks=True)]


def test_deep_trees(fs: FileSystem) -> None:
    path = ""
    for _ in range(300):
        path += "/d"
        fs.make_dir(path)
    fs.write_bytes(path + "/f", b"deep")
    assert sum(1 for _ in fs.walk("/")) == 301
    fs.rmtree("/d")
    assert fs.listdir("/") == []


# ---------------------------------------------------------------------------- threads and forks


def run_threads(count: int, body: Callable[[int], None]) -> None:
    """Run `body(number)` in threads; the first error of any of them."""
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            body(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def test_threads_on_files_of_their_own(fs: FileSystem) -> None:
    def body(number: int) -> None:
        for turn in range(40):
            data = b"%d-%d" % (number, turn) * 500
            fs.write_bytes(f"/f{number}", data)
            assert fs.read_bytes(f"/f{number}") == data
            fs.rename(f"/f{number}", f"/g{number}")
            fs.rename(f"/g{number}", f"/f{number}")

    run_threads(6, body)
    assert sorted(fs.listdir("/")) == [f"f{number}" for number in range(6)]


def test_threads_on_one_file_object(fs: FileSystem) -> None:
    with fs.open("/f", "w+b") as file:

        def body(number: int) -> None:
            mine = bytes([number]) * 5000
            for turn in range(30):
                offset = (turn * 6 + number) * 5000
                assert file.pwrite(mine, offset) == 5000
                assert file.pread(5000, offset) == mine

        run_threads(6, body)
        assert file.stat().st_size == 180 * 5000


def test_writes_of_threads_are_whole(fs: FileSystem) -> None:
    """A reader sees one write or another, never a mixture, across blocks too."""
    length = 3 * 4096 + 100
    fs.write_bytes("/f", bytes(length))
    done = threading.Event()
    with fs.open("/f", "r+b") as file:

        def body(number: int) -> None:
            if number == 0:
                try:
                    for turn in range(300):
                        file.pwrite(bytes([turn % 251 + 1]) * length, 0)
                finally:
                    done.set()
            while not done.is_set():
                found = file.pread(length, 0)
                assert len(found) == length
                assert len(set(found)) == 1

        run_threads(3, body)


def test_appends_of_threads_are_whole(fs: FileSystem) -> None:
    def body(number: int) -> None:
        with fs.open("/log", "ab") as file:
            for turn in range(50):
                file.write(b"%02d %04d\n" % (number, turn))

    run_threads(4, body)
    lines = fs.read_bytes("/log").splitlines()
    assert len(lines) == 200
    for number in range(4):
        mine = [line for line in lines if line.startswith(b"%02d " % number)]
        assert mine == [b"%02d %04d" % (number, turn) for turn in range(50)]


def test_names_are_made_once(fs: FileSystem) -> None:
    made: list[int] = []

    def body(number: int) -> None:
        for turn in range(25):
            try:
                fs.open(f"/race{turn}", "xb").close()
            except FileExistsError:
                continue
            made.append(turn)

    run_threads(5, body)
    assert sorted(made) == list(range(25))


def in_child(body: Callable[[], None]) -> None:
    """Run `body` in a forked child; AssertionError unless it returned."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            body()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_fork(fs: FileSystem) -> None:
    fs.write_bytes("/parent", b"parent")

    def child() -> None:
        assert fs.read_bytes("/parent") == b"parent"
        fs.write_bytes("/child", b"child")
        with fs.open("/child", "r+b") as file:
            file.pwrite(b"CH", 0)
        fs.mkdir("/dir")

    for turn in range(3):
        in_child(child)
        assert fs.read_bytes("/child") == b"CHild"
        fs.rmdir("/dir")
        fs.write_bytes("/parent", b"parent")
        fs.write_bytes("/turn", b"%d" % turn)
    assert sorted(fs.listdir("/")) == ["child", "parent", "turn"]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_files_opened_before_a_fork(fs: FileSystem) -> None:
    """Both sides can use the file, also once it has no name, and neither closes the other's."""
    with fs.open("/f", "w+b") as file:
        file.write(b"parent")
        fs.unlink("/f")

        def child() -> None:
            assert file.pread(6, 0) == b"parent"
            assert file.pwrite(b"child", 10) == 5
            file.seek(0)
            assert file.read(6) == b"parent"
            file.close()
            fs.write_bytes("/g", b"x")
            fs.close()

        in_child(child)
        in_child(child)
        assert file.pread(15, 0) == b"parent\0\0\0\0child"
        file.seek(0)
        assert file.read(3) == b"par"
    assert fs.listdir("/") == ["g"]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_what_is_opened_after_a_fork_is_not_inherited(fs: FileSystem) -> None:
    """The parent goes on at once, while the child still takes over what was open at the fork."""
    for _ in range(40):
        gate, opened = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.read(gate, 1)
            os._exit(0)
        snapshot = fs.snapshots.create()
        with fs.snapshots.open(snapshot) as view:
            assert view.listdir("/") == []
        fs.snapshots.delete(snapshot)
        os.write(opened, b"x")
        assert os.waitpid(pid, 0)[1] == 0
        os.close(gate)
        os.close(opened)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_fork_of_children_at_once(fs: FileSystem) -> None:
    children = []
    for number in range(4):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                for turn in range(50):
                    fs.write_bytes(f"/f{number}", b"%d" % turn * 100)
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert codes == [0, 0, 0, 0]
    assert [fs.read_bytes(f"/f{number}") for number in range(4)] == [b"49" * 100] * 4


# ---------------------------------------------------------------------------- snapshots, freeze


def test_snapshots(fs: FileSystem) -> None:
    fs.mkdir("/d")
    fs.write_bytes("/d/f", b"before")
    fs.symlink("d/f", "/link")
    before = datetime.now(UTC)
    first = fs.snapshots.create("first")
    second = fs.snapshots.create()
    try:
        assert first.name == "first"
        assert second.name is None
        assert first.epoch_id < second.epoch_id
        assert abs(first.created - before) < timedelta(seconds=10)
        assert [item.epoch_id for item in fs.snapshots.list()] == [first.epoch_id, second.epoch_id]
        assert fs.snapshots.get("first") == fs.snapshots.get(first.epoch_id)
        assert fs.snapshots.get(str(second.epoch_id)).epoch_id == second.epoch_id
        with pytest.raises(FileExistsError):
            fs.snapshots.create("first")
        fs.write_bytes("/d/f", b"after")
        fs.rename("/d", "/e")
        fs.unlink("/link")
        with fs.snapshots.open("first") as view:
            assert view.read_bytes("/d/f") == b"before"
            assert sorted(view.listdir("/")) == ["d", "link"]
            assert view.readlink("/link") == "d/f"
            assert view.read_bytes("/link") == b"before"
            assert [top for top, _, _ in view.walk("/")] == ["/", "/d"]
            assert view.stat("/d/f").st_size == 6
            assert not view.exists("/e")
            with pytest.raises(OSError) as caught:
                fs.snapshots.delete("first")
            assert caught.value.errno == errno.EBUSY
        assert fs.read_bytes("/e/f") == b"after"
    finally:
        for item in fs.snapshots.list():
            fs.snapshots.delete(item)
    assert len(fs.snapshots) == 0
    fs.snapshots.wait(timeout=30)


def test_snapshots_are_read_only(fs: FileSystem) -> None:
    fs.mkdir("/d")
    fs.write_bytes("/f", b"x")
    snapshot = fs.snapshots.create()
    try:
        with fs.snapshots.open(snapshot) as view:
            for refused in (
                lambda: view.write_bytes("/f", b"y"),
                lambda: view.open("/f", "r+b"),
                lambda: view.open("/new", "wb"),
                lambda: view.os_open("/new", os.O_CREAT | os.O_WRONLY),
                lambda: view.mkdir("/new"),
                lambda: view.rmdir("/d"),
                lambda: view.unlink("/f"),
                lambda: view.rename("/f", "/g"),
                lambda: view.link("/f", "/g"),
                lambda: view.symlink("f", "/g"),
                lambda: view.chmod("/f", 0o600),
                lambda: view.chown("/f", 1, 1),
                lambda: view.utime("/f"),
                lambda: view.truncate("/f", 0),
                lambda: view.setxattr("/f", "user.a", b""),
                lambda: view.removexattr("/f", "user.a"),
                lambda: view.rmtree("/d"),
            ):
                with pytest.raises(OSError) as caught:
                    refused()
                assert caught.value.errno == errno.EROFS
            assert view.read_bytes("/f") == b"x"
    finally:
        fs.snapshots.delete(snapshot)
        fs.snapshots.wait(timeout=30)


def test_snapshots_that_are_not_there(fs: FileSystem) -> None:
    for key in (1 << 40, "no such name", "123456789"):
        for action in (fs.snapshots.get, fs.snapshots.delete, fs.snapshots.open):
            with pytest.raises(nova_mp.NoSuchSnapshot):
                action(key)
            with pytest.raises(FileNotFoundError):
                action(key)


def test_space_comes_back_with_a_snapshot(fs: FileSystem) -> None:
    fs.write_bytes("/f", os.urandom(1 << 20))
    before = fs.statvfs("/").f_bfree
    snapshot = fs.snapshots.create()
    fs.write_bytes("/f", os.urandom(1 << 20))
    assert before - fs.statvfs("/").f_bfree >= 256
    assert fs.snapshots.get(snapshot).exclusive_bytes >= 1 << 20
    fs.snapshots.delete(snapshot)
    fs.snapshots.wait(timeout=30)
    assert abs(before - fs.statvfs("/").f_bfree) < 16


def test_freeze_holds_writers(fs: FileSystem) -> None:
    fs.write_bytes("/f", b"before")
    written = threading.Event()

    def write() -> None:
        fs.write_bytes("/f", b"after")
        written.set()

    writer = threading.Thread(target=write)
    with fs.frozen(timeout=20):
        writer.start()
        assert not written.wait(0.3)
    writer.join(20)
    assert written.is_set()
    assert fs.read_bytes("/f") == b"after"
    with pytest.raises(OSError) as caught:
        fs.unfreeze()
    assert caught.value.errno == errno.EINVAL


def test_freeze_ends_by_itself(fs: FileSystem) -> None:
    started = time.monotonic()
    with fs.frozen(timeout=0.5):
        fs.write_bytes("/f", b"waited")
    assert 0.3 < time.monotonic() - started < 15


def test_stats(fs: FileSystem) -> None:
    stats = fs.stats()
    assert stats["epoch_id"] >= 1
    assert stats["blocks"]["free"] <= stats["blocks"]["total"]
    assert stats["snapshots"]["count"] == 0


def test_context_manager_closes(engine: Any, fs: FileSystem) -> None:
    for connect in (nova_mp.attach, nova_mp.connect):
        with connect(engine.name) as other:
            other.write_bytes("/other", b"1")
            assert fs.read_bytes("/other") == b"1"
        other.close()
        with pytest.raises(ValueError):
            other.stat("/")

"""A core and the tiny model, driven together: every operation on both, outcomes compared.

Operations take whole numbers that choose among what there is, so that a generator of numbers, be it
Hypothesis or a seeded one, drives everything, and a list of calls replays a run.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from crashsim.arena import MIB, Arena, contents, differences, everything, now_ns

from model.fsmodel import DIRECTORY, FILE, LINK, Model, Node
from nova_mp.errors import NoSuchSnapshot
from nova_mp.tools.findings import Report
from nova_mp.tools.fsck import check, format_report

NAMES = [*"abcdefgh", "n" * 25, "o" * 100, "p" * 200, "q" * 255]
XATTRS = ["user.a", "user.b", "user." + "x" * 60]
UMASK = os.umask(0)
os.umask(UMASK)

T = TypeVar("T")


def chosen(things: Sequence[T], number: int) -> T | None:
    """The thing that a number chooses."""
    return things[number % len(things)] if things else None


def filled(size: int, number: int) -> bytes:
    """Contents that tell which write they come from."""
    return random.Random(number * 1_000_003 + size).randbytes(size)


class Twin:
    """One arena and its model. `log` holds what was done, the last call last."""

    def __init__(self, size: int = 8 * MIB, cpus: int = 2) -> None:
        self.arena = Arena(size, cpus=cpus)
        self.model = Model()
        self.held: list[tuple[Any, Node]] = []
        self.views: list[Any] = []
        self.deferred: set[int] = set()
        self.log: list[str] = []
        self.refused = 0
        self.serial = 0
        status = self.arena.fs.stat("/")
        self.model.root.uid, self.model.root.gid = status.st_uid, status.st_gid
        for name in ("mtime", "ctime", "atime", "birthtime"):
            self.model.root.times[name] = getattr(status, f"st_{name}_ns")
        self.model.root.ino = status.st_ino

    def close(self) -> None:
        """Drops everything."""
        self.arena.close()

    # -- one operation on both

    def _both(
        self, real: Callable[[Any], Any], ideal: Callable[[], Any], privileged: bool = False
    ) -> bool:
        """Runs an operation on both; whether it succeeded. Without space it must change nothing.

        A privileged one gives space back, and has a reserve. Only snapshots, which keep what it
        removes, can make it fail.
        """
        start = now_ns()
        wanted = 0
        number = self._errno(real)
        if number == errno.ENOSPC and privileged and not self.model.snapshots:
            self.arena.settle()
            number = self._errno(real)
            assert number != errno.ENOSPC, f"no space for {self.log[-1]}"
        if number == errno.ENOSPC:
            self.refused += 1
            return False
        try:
            ideal()
        except OSError as error:
            wanted = error.errno or -1
        self._stamps(start, now_ns())
        assert number == wanted, (
            f"{errno.errorcode.get(number, number)}, "
            f"and not {errno.errorcode.get(wanted, wanted)}: {self.log[-1]}"
        )
        return number == 0

    def _errno(self, real: Callable[[Any], Any]) -> int:
        """What an operation fails with on the core, 0 if it does not."""
        try:
            real(self.arena.fs)
        except OSError as error:
            return error.errno or -1
        return 0

    def _status(self, node: Node, paths: dict[int, str]) -> Any:
        if id(node) in paths:
            return self.arena.fs.lstat(paths[id(node)])
        return next((file.stat() for file, other in self.held if other is node), None)

    def _stamps(self, first: int, last: int) -> None:
        """Fills in the times that the operation set, which lie between these."""
        if not self.model.stamped:
            return
        paths = {id(self.model.node(path)): path for path in self.paths(DIRECTORY, FILE, LINK)}
        for node, name in self.model.stamped:
            status = self._status(node, paths)
            if status is not None:
                value = getattr(status, f"st_{name}_ns")
                assert first <= value <= last, f"{name} is {value}, not {first} to {last}"
                node.times[name] = value
                node.ino = node.ino or status.st_ino
        self.model.stamped.clear()

    def paths(self, *kinds: int) -> list[str]:
        return self.model.paths(*kinds)

    def _new(self, where: int, name: int) -> str:
        directory = chosen(self.paths(DIRECTORY), where) or "/"
        return f"{directory.rstrip('/')}/{NAMES[name % len(NAMES)]}"

    def _say(self, *words: object) -> None:
        self.log.append(" ".join(str(word)[:40] for word in words))

    # -- names

    def create(self, where: int, name: int) -> None:
        path = self._new(where, name)
        self._say("create", path)
        mode = 0o666 & ~UMASK
        self._both(
            lambda fs: fs.os_open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666).close(),
            lambda: self.model.make(path, FILE, mode),
        )

    def mkdir(self, where: int, name: int) -> None:
        path = self._new(where, name)
        self._say("mkdir", path)
        self._both(
            lambda fs: fs.make_dir(path, 0o777),
            lambda: self.model.make(path, DIRECTORY, 0o777 & ~UMASK),
        )

    def symlink(self, where: int, name: int, size: int) -> None:
        path, target = self._new(where, name), "t" * (1 + size % 4095)
        self._say("symlink", path, len(target))
        self._both(
            lambda fs: fs.symlink(target, path),
            lambda: self.model.make(path, LINK, 0o777, target.encode()),
        )

    def link(self, at: int, where: int, name: int) -> None:
        src = chosen(self.paths(FILE, LINK, DIRECTORY), at) or "/"
        dst = self._new(where, name)
        self._say("link", src, dst)
        self._both(lambda fs: fs.link(src, dst), lambda: self.model.link(src, dst))

    def unlink(self, at: int) -> None:
        path = chosen(self.paths(FILE, LINK), at)
        if path:
            self._say("unlink", path)
            self._both(lambda fs: fs.unlink(path), lambda: self.model.unlink(path), True)

    def rmdir(self, at: int) -> None:
        path = chosen(self.paths(DIRECTORY), at) or "/"
        self._say("rmdir", path)
        self._both(lambda fs: fs.rmdir(path), lambda: self.model.rmdir(path), True)

    def rename(self, at: int, where: int, name: int, noreplace: bool = False) -> None:
        src = chosen(self.paths(FILE, LINK, DIRECTORY), at) or "/"
        dst = self._new(where, name)
        self._say("rename", src, dst, noreplace)
        self._both(
            lambda fs: fs.rename(src, dst, noreplace=noreplace),
            lambda: self.model.rename(src, dst, noreplace),
        )

    # -- files

    def _file(self, at: int) -> str | None:
        return chosen(self.paths(FILE), at)

    def write(self, at: int, offset: int, size: int) -> None:
        path = self._file(at)
        if path is None:
            return
        self.serial += 1
        data = filled(size, self.serial)
        self._say("write", path, offset, size)

        def real(fs: Any) -> None:
            with fs.open(path, "r+b") as file:
                assert file.pwrite(data, offset) == size

        self._both(real, lambda: self.model.write(self.model.node(path), offset, data))

    def append(self, at: int, size: int) -> None:
        path = self._file(at)
        if path is None:
            return
        self.serial += 1
        data = filled(size, self.serial)
        self._say("append", path, size)

        def real(fs: Any) -> None:
            with fs.open(path, "ab") as file:
                file.write(data)

        def ideal() -> None:
            node = self.model.node(path)
            self.model.write(node, len(node.data), data)

        self._both(real, ideal)

    def truncate(self, at: int, size: int) -> None:
        path = self._file(at)
        if path is None:
            return
        self._say("truncate", path, size)
        self._both(
            lambda fs: fs.truncate(path, size),
            lambda: self.model.truncate(self.model.node(path), size),
            privileged=size == 0,
        )

    def fallocate(self, at: int, offset: int, length: int) -> None:
        path = self._file(at)
        if path is None:
            return
        self._say("fallocate", path, offset, length)

        def real(fs: Any) -> None:
            with fs.open(path, "r+b") as file:
                file.fallocate(offset, length)

        self._both(real, lambda: self.model.fallocate(self.model.node(path), offset, length))

    # -- attributes

    def _any(self, at: int) -> str:
        return chosen(self.paths(FILE, LINK, DIRECTORY), at) or "/"

    def chmod(self, at: int, mode: int) -> None:
        path = self._any(at)
        self._say("chmod", path, oct(mode))
        self._both(
            lambda fs: fs.chmod(path, mode, follow_symlinks=False),
            lambda: self.model.chmod(path, mode & 0o7777),
        )

    def chown(self, at: int, uid: int, gid: int) -> None:
        path = self._any(at)
        self._say("chown", path, uid, gid)
        self._both(
            lambda fs: fs.chown(path, uid, gid, follow_symlinks=False),
            lambda: self.model.chown(path, uid, gid),
        )

    def utime(self, at: int, atime: int, mtime: int) -> None:
        path = self._any(at)
        self._say("utime", path, atime, mtime)
        self._both(
            lambda fs: fs.utime(path, ns=(atime, mtime), follow_symlinks=False),
            lambda: self.model.utime(path, atime, mtime),
        )

    def setxattr(self, at: int, name: int, size: int) -> None:
        path, key = self._any(at), XATTRS[name % len(XATTRS)]
        self.serial += 1
        value = filled(size % 3800, self.serial)
        self._say("setxattr", path, key, len(value))
        self._both(
            lambda fs: fs.setxattr(path, key, value, follow_symlinks=False),
            lambda: self.model.setxattr(path, key, value),
        )

    def removexattr(self, at: int, name: int) -> None:
        path, key = self._any(at), XATTRS[name % len(XATTRS)]
        self._say("removexattr", path, key)
        self._both(
            lambda fs: fs.removexattr(path, key, follow_symlinks=False),
            lambda: self.model.removexattr(path, key),
            True,
        )

    # -- files that are kept open, even while they have no name

    def hold(self, at: int) -> None:
        path = self._file(at)
        if path and len(self.held) < 6:
            self._say("hold", path)
            file = self.arena.fs.open(path, "r+b")
            self.held.append((file, self.model.node(path)))

    def held_write(self, at: int, offset: int, size: int) -> None:
        if pair := chosen(self.held, at):
            file, node = pair
            self.serial += 1
            data = filled(size, self.serial)
            self._say("held_write", node.ino, offset, size)
            self._both(
                lambda fs: file.pwrite(data, offset), lambda: self.model.write(node, offset, data)
            )

    def held_truncate(self, at: int, size: int) -> None:
        if pair := chosen(self.held, at):
            file, node = pair
            self._say("held_truncate", node.ino, size)
            self._both(lambda fs: file.truncate(size), lambda: self.model.truncate(node, size))

    def let_go(self, at: int) -> None:
        if self.held:
            file, node = self.held.pop(at % len(self.held))
            self._say("let_go", node.ino)
            file.close()

    # -- snapshots

    def snapshot(self, named: bool = False) -> None:
        if len(self.model.snapshots) >= 8:
            return
        self.serial += 1
        name = f"s{self.serial}" if named else None
        self._say("snapshot", name)
        try:
            epoch_id = self.arena.fs.snapshot_create(name)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            self.refused += 1
            return
        info = self.arena.fs.snapshot_table()[-1]
        assert info["epoch_id"] == epoch_id and info["name"] == name
        self.model.snapshot(epoch_id, name, info["create_time_ns"])

    def snapshot_delete(self, at: int) -> None:
        epoch_id = chosen(sorted(self.model.snapshots), at)
        if epoch_id is None:
            return
        self._say("snapshot_delete", epoch_id)
        if not any(view.epoch_id == epoch_id for view in self.views):
            self._delete(epoch_id)
        elif at % 2:
            assert not self.arena.fs.snapshot_delete(epoch_id, defer=True)
            self.deferred.add(epoch_id)
        else:
            try:
                self.arena.fs.snapshot_delete(epoch_id)
            except OSError as error:
                assert error.errno == errno.EBUSY
            else:
                raise AssertionError(f"snapshot {epoch_id} was deleted though open")

    def _delete(self, epoch_id: int) -> None:
        """Deletes a snapshot that nobody has open, and gets back as much space as was said."""
        fs = self.arena.fs
        self.arena.settle()
        info = next(info for info in fs.snapshot_table() if info["epoch_id"] == epoch_id)
        assert info["deferred"] == (epoch_id in self.deferred)
        free = self.arena.free()
        assert fs.snapshot_delete(epoch_id)
        del self.model.snapshots[epoch_id]
        self.deferred.discard(epoch_id)
        self.arena.settle()
        got = (self.arena.free() - free) * 4096
        if all(node.links for _, node in self.held):
            # After the last snapshot, the cleaner also collects the logs of all files.
            exact = got == info["exclusive_bytes"] or not self.model.snapshots
            assert exact and got >= info["exclusive_bytes"], f"{got} bytes, and not {info}"

    def view(self, at: int) -> None:
        epoch_id = chosen(sorted(self.model.snapshots), at)
        if epoch_id is not None and len(self.views) < 3:
            self._say("view", epoch_id)
            try:
                self.views.append(self.arena.fs.snapshot_open(epoch_id))
            except NoSuchSnapshot:
                assert epoch_id in self.deferred
            else:
                assert epoch_id not in self.deferred, "what is to be deleted is kept by a new view"

    def view_close(self, at: int) -> None:
        if self.views:
            view = self.views.pop(at % len(self.views))
            epoch_id = view.epoch_id
            self._say("view_close", epoch_id)
            view.close()
            if epoch_id in self.deferred and all(v.epoch_id != epoch_id for v in self.views):
                self._delete(epoch_id)

    # -- background work, crashes, mounts

    def gc(self) -> None:
        self._say("gc")
        self.arena.fs.gc()

    def reclaim(self, budget: int) -> None:
        self._say("reclaim", budget)
        self.arena.fs.reclaim(budget)

    def burst(self, at: int, count: int) -> None:
        """Enough entries in a few logs that garbage collection has something to do."""
        path = self._file(at)
        if path is None:
            return
        directory = path.rpartition("/")[0]
        self._say("burst", path, count)
        said = len(self.log)
        other = f"{directory}/burst"
        for number in range(count):
            self.write(at, number % 7 * 4096, 10 + number)
            self.setxattr(at, number, 5)
            self._both(
                lambda fs: fs.symlink("x", other),
                lambda: self.model.make(other, LINK, 0o777, b"x"),
            )
            if other in self.paths(LINK):
                self._both(lambda fs: fs.unlink(other), lambda: self.model.unlink(other), True)
        del self.log[said:]

    def crash(self, cpus: int) -> None:
        """Power fails. What had returned is there; files without a name are not."""
        self._say("crash", cpus)
        self.held, self.views, self.deferred = [], [], set()
        self.arena = self.arena.crash(cpus)
        assert not self.arena.recovery["clean"]

    def remount(self, cpus: int) -> None:
        """Unmount in order and mount again, with all blocks as before."""
        self._say("remount", cpus)
        for file, _ in self.held:
            file.close()
        for view in self.views:
            view.close()
        # Unmounting makes up for deletions that were deferred.
        deferred, self.deferred = self.deferred, set()
        for epoch_id in deferred:
            del self.model.snapshots[epoch_id]
        self.held, self.views = [], []
        self.arena.settle()
        before = self.arena.fs.stats()["blocks"]
        # Log pages beyond a tail, left by operations that found no space, are free after a mount.
        spare = check(self.arena.image()).statistics["blocks"]["reserve"]
        self.arena = self.arena.remount(cpus)
        assert self.arena.recovery["clean"]
        after = self.arena.fs.stats()["blocks"]
        before["free"] += spare
        before["live"] -= spare
        for name in ("total", "head") if deferred else ("total", "head", "free", "held", "live"):
            assert after[name] == before[name], f"{name} {before[name]} -> {after[name]}"

    # -- comparisons

    def compare(self, snapshots: bool = True) -> None:
        """The live tree, open files and, if asked, every snapshot."""
        if snapshots:
            found, wanted = everything(self.arena.fs), self.model.everything()
            for epoch_id in self.deferred:  # their views are compared below
                del wanted[epoch_id]
        else:
            found, wanted = {0: contents(self.arena.fs)}, {0: self.model.everything()[0]}
        lines = differences(found, wanted)
        for file, node in self.held:
            data = file.pread(len(node.data) + 1, 0)
            lines += differences(data, node.data, f"open inode {node.ino} ")
            links = file.stat().st_nlink
            if links != node.nlink:
                lines.append(f"open inode {node.ino} has {links} links, not {node.nlink}")
        for view in self.views:
            lines += differences(
                contents(view), self.model.snapshots[view.epoch_id][2], f"view {view.epoch_id} "
            )
        assert not lines, "\n".join(lines[:20])

    def _exclusive(self) -> dict[int, int]:
        """Blocks that only one snapshot needs, as the core counts them, by the snapshot's id."""
        rows = self.arena.fs.snapshot_table()
        return {row["epoch_id"]: row["exclusive_bytes"] // 4096 for row in rows}

    def _check(self, count_exclusive: bool) -> Report:
        """Check the arena, and with `count_exclusive` what the core counts for each snapshot."""
        return check(self.arena.pm, exclusive=self._exclusive() if count_exclusive else None)

    def audit(self, settle: bool = True) -> None:
        """Free blocks, held blocks and live ones make up the arena: counted by the checker.

        Without `settle` the cleaner is not made to end its work, unless logs of dead inodes wait
        for it: these it alone can count.
        """
        # Pages of a file without a name that is open are in no log's promise: only the core knows.
        # No snapshot's deletion frees them either, until the file is closed.
        named = all(node.links for _, node in self.held)
        report = self._check(named)
        if settle or report.statistics["inodes"]["orphans"]:
            self.arena.settle()
            report = self._check(named)
            settle = True
        assert report.ok, format_report(report)
        core, found = self.arena.fs.stats()["blocks"], report.statistics["blocks"]
        assert core["free"] + core["held"] + core["live"] == core["total"] - core["head"]
        if not named:
            return
        what = f"{core['free']} free and {core['held']} held, and not {found}"
        if settle:
            assert (core["free"], core["held"]) == (found["free"], found["held"]), what
        else:
            # What the cleaner has before it counts as held until it has been there.
            assert core["free"] + core["held"] == found["free"] + found["held"], what
            assert core["held"] >= found["held"], what

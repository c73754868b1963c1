"""Several processes at once, attached and remote, each against tmpfs, while snapshots are taken.

Every process works below a directory of its own, so what it sees is determined; allocator,
journals, inode tables, epochs and snapshot lists are shared by all.
"""

from __future__ import annotations

import errno
import os
import random
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from model.differential import Outcome, contents, outcome
from model.host import HostFileSystem
from model.steps import OPEN_FILES, Below, Steps

import nova_mp

SECONDS = 4.0
LOG_BLOCKS = 48


def agree(steps: Steps, ours: Any, theirs: Any, until: float) -> int:
    """Run random steps on both until the time has come; the number of steps."""
    files: tuple[list[Any], list[Any]] = ([], [])
    done = 0
    try:
        while time.monotonic() < until:
            done += 1
            if files[0] and steps.now(0.3):
                name, on_file = steps.next_of_file(len(files[0]))
                found = [outcome(on_file, opened) for opened in files]  # type: ignore[arg-type]
            else:
                name, step = steps.next()
                found = [outcome(step, fs) for fs in (ours, theirs)]
            assert plain(found[0]) == plain(found[1]), f"step {done}, {name}: {found!r:.500}"
            if len(files[0]) < OPEN_FILES and steps.now(0.05):
                name, step = steps.next_open()
                found = [outcome(step, fs) for fs in (ours, theirs)]
                assert found[0].errno == found[1].errno, f"step {done}, {name}"
                if not found[0].error:
                    for opened, result in zip(files, found, strict=True):
                        opened.append(result.value)
            elif files[0] and steps.now(0.02):
                for opened in files:
                    opened.pop(0).close()
    finally:
        for opened in files:
            for file in opened:
                file.close()
    return done


def plain(found: Outcome) -> tuple[Any, Any]:
    """Value and errno; names differ, since both run below a directory."""
    return found.value, found.errno


def in_process(body: Callable[[], None]) -> int:
    """Run `body` in a forked process; its pid. It exits with 0 if `body` returns."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        body()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def work(name: str, number: int, seed: int) -> None:
    """One process: attached if its number is even, remote if it is odd."""
    connect = nova_mp.connect if number % 2 else nova_mp.attach
    with tempfile.TemporaryDirectory(prefix="nova-host-", dir="/dev/shm") as folder:
        host = HostFileSystem(folder)
        with connect(name) as fs:
            top = f"/process{number}"
            fs.mkdir(top, os.stat(folder).st_mode & 0o777)
            ours = Below(fs, top)
            until = time.monotonic() + SECONDS
            steps = Steps(seed + number)
            agree(steps, ours, host, until)
            assert contents(fs, top) == contents(host)
            fs.rmtree(top)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_processes_beside_snapshots(engine: Any, file_systems: dict[str, Any]) -> None:
    fs = file_systems["attached"]
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    before = fs.statvfs("/").f_bfree
    children = [
        in_process(lambda number=number: work(engine.name, number, seed))  # type: ignore[misc]
        for number in range(4)
    ]
    taken = 0
    try:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            snapshot = fs.snapshots.create()
            taken += 1
            with fs.snapshots.open(snapshot) as view:
                assert contents(view) == contents(view)
            listed = fs.snapshots.list()
            if len(listed) > 4:
                fs.snapshots.delete(listed[taken % 4])
    finally:
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        for snapshot in fs.snapshots.list():
            fs.snapshots.delete(snapshot)
    assert codes == [0, 0, 0, 0]
    assert taken > 3
    fs.snapshots.wait(timeout=60)
    assert fs.listdir("/") == []
    assert before - fs.statvfs("/").f_bfree < LOG_BLOCKS
    blocks = fs.stats()["blocks"]
    assert blocks["head"] + blocks["free"] + blocks["live"] == blocks["total"]
    assert blocks["held"] == 0


RECORD_BYTES = 3 * 4096 + 100
ERRORS_OF_RACES = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)


def attempt(action: Callable[[], Any]) -> bool:
    """Whether `action` was done; losing a race is no failure."""
    try:
        action()
    except ERRORS_OF_RACES:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EINVAL, errno.ELOOP):
            raise
        return False
    return True


def compete(name: str, number: int, seed: int) -> None:
    """One of several processes that do everything to the same few names."""
    chance = random.Random(seed + number)
    connect = nova_mp.connect if number % 2 else nova_mp.attach
    won = []
    with connect(name) as fs, fs.open("/log", "ab") as log, fs.open("/shared", "r+b") as shared:
        until = time.monotonic() + SECONDS
        turn = 0
        while time.monotonic() < until:
            turn += 1
            log.write(b"%d %06d %s\n" % (number, turn, b"." * chance.randrange(5000)))
            if chance.random() < 0.3:
                shared.pwrite(bytes([chance.randrange(1, 256)]) * RECORD_BYTES, 0)
            assert len(set(shared.pread(RECORD_BYTES, 0))) == 1
            prize = f"/prize{turn // 4}"
            if attempt(lambda: fs.open(prize, "xb").close()):  # noqa: B023 - called at once
                won.append(prize)
            one, other = (f"/x/{chance.choice('abc')}{chance.choice(['', '/d'])}" for _ in "12")
            step = chance.choice(
                [
                    lambda: fs.rename(one, other),  # noqa: B023
                    lambda: fs.link(one, other),  # noqa: B023
                    lambda: fs.write_bytes(one, b"abc"),  # noqa: B023
                    lambda: fs.mkdir(one),  # noqa: B023
                    lambda: fs.unlink(one),  # noqa: B023
                    lambda: fs.rmdir(one),  # noqa: B023
                    lambda: fs.listdir(one),  # noqa: B023
                ]
            )
            try:
                attempt(step)
            except PermissionError:
                # A directory took the place of the file that was to be linked.
                continue
        fs.write_text(f"/won{number}", " ".join(won))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_processes_on_the_same_names(engine: Any, file_systems: dict[str, Any]) -> None:
    fs = file_systems["attached"]
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    fs.mkdir("/x")
    fs.write_bytes("/shared", bytes(RECORD_BYTES))
    children = [
        in_process(lambda number=number: compete(engine.name, number, seed))  # type: ignore[misc]
        for number in range(4)
    ]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert codes == [0, 0, 0, 0]
    turns: dict[int, int] = {}
    for line in fs.read_bytes("/log").splitlines():
        number, turn, filler = line.split(b" ")
        assert int(turn) == turns.get(int(number), 0) + 1, "a record is missing or out of order"
        assert set(filler) <= {ord(".")}
        turns[int(number)] = int(turn)
    assert len(turns) == 4
    prizes = sorted(entry for entry in fs.listdir("/") if entry.startswith("prize"))
    won = " ".join(fs.read_text(f"/won{number}") for number in range(4)).split()
    assert sorted(won) == [f"/{prize}" for prize in prizes], "an exclusive name was made twice"
    names: dict[int, int] = {}
    for top, dirs, files in fs.walk("/x"):
        assert fs.stat(top).st_nlink == 2 + len(dirs)
        for file in files:
            status = fs.stat(f"{top}/{file}")
            names[status.st_ino] = names.get(status.st_ino, 0) + 1
    for top, _dirs, files in fs.walk("/x"):
        for file in files:
            status = fs.stat(f"{top}/{file}")
            assert status.st_nlink == names[status.st_ino]
    for entry in list(fs.scandir("/")):
        fs.rmtree(entry.path) if entry.is_dir() else fs.unlink(entry.path)

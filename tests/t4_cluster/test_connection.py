"""Requests to a worker that loses messages, dies and comes back: nothing is done twice."""

from __future__ import annotations

import errno
import os
import random
import signal
import socket as unix
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from model.worker import WorkerThread

from nova_mp import EngineNotRunning, Timeout
from nova_mp.client import channel, connection
from nova_mp.client.remote import RemoteFileSystem
from nova_mp.protocol import fileops as ops
from nova_mp.protocol import messages as m


@pytest.fixture
def address() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="nv") as folder:
        yield f"ipc://{folder}/worker.sock"


@pytest.fixture
def root() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="nova-host-", dir="/dev/shm") as folder:
        yield folder


@pytest.fixture
def worker(address: str, root: str) -> Iterator[WorkerThread]:
    with WorkerThread(address, root) as running:
        yield running


@pytest.fixture
def fs(address: str, worker: WorkerThread, monkeypatch: Any) -> Iterator[RemoteFileSystem]:
    monkeypatch.setattr(channel, "PROBE_SECONDS", 0.05)
    monkeypatch.setattr(channel, "GRACE_SECONDS", 1.0)
    with RemoteFileSystem(address) as found:
        yield found


class Losing:
    """Loses the first `count` messages of one kind, in one direction."""

    def __init__(self, way: str, kind: type, count: int = 1) -> None:
        self.way, self.kind, self.left = way, kind, count

    def __call__(self, way: str, message: Any) -> bool:
        if way == self.way and type(message) is self.kind and self.left > 0:
            self.left -= 1
            return True
        return False


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("way", ["request", "reply"])
def test_a_lost_message_is_made_up_for(
    fs: RemoteFileSystem, worker: WorkerThread, way: str, count: int
) -> None:
    worker.fault = Losing(way, ops.MakeDir, count)
    fs.make_dir("/d")
    assert worker.ran.count("MakeDir") == 1
    assert fs.listdir("/") == ["d"]


def test_lost_replies_to_appends(fs: RemoteFileSystem, worker: WorkerThread) -> None:
    with fs.open("/log", "ab") as file:
        for number in range(5):
            worker.fault = Losing("reply", ops.Append)
            file.write(b"%d" % number)
            assert file.tell() == number + 1
    assert fs.read_bytes("/log") == b"01234"


def test_a_lost_reply_to_open_opens_once(fs: RemoteFileSystem, worker: WorkerThread) -> None:
    worker.fault = Losing("reply", ops.Open)
    with fs.open("/f", "xb") as file:
        file.write(b"x")
    assert worker.ran.count("Open") == 1
    assert worker.server.counts()["files"] == 0


def test_lost_probes_and_greetings(
    address: str, worker: WorkerThread, fs: RemoteFileSystem
) -> None:
    lost = [
        Losing("request", m.Ping, 2),
        Losing("reply", ops.Unlink, 2),
        Losing("request", m.Hello),
    ]
    worker.fault = lambda way, message: any([fault(way, message) for fault in lost])
    fs.write_bytes("/f", b"")
    fs.unlink("/f")
    assert worker.ran.count("Unlink") == 1
    with RemoteFileSystem(address) as other:
        assert other.listdir("/") == []


def test_every_fifth_message_is_lost(fs: RemoteFileSystem, worker: WorkerThread) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"replay with seed {seed}")
    chance = random.Random(seed)
    worker.fault = lambda way, message: chance.random() < 0.2
    for number in range(30):
        fs.make_dir(f"/d{number}")
        fs.rename(f"/d{number}", f"/e{number}")
    worker.fault = Losing("reply", ops.Scan)
    assert sorted(fs.listdir("/")) == sorted(f"e{number}" for number in range(30))
    assert worker.ran.count("MakeDir") == worker.ran.count("Rename") == 30


def test_pipelines_survive_losses_in_order(fs: RemoteFileSystem, worker: WorkerThread) -> None:
    with fs.open("/f", "w+b") as file:
        worker.fault = Losing("reply", ops.Pwrite, 40)
        with fs.pipeline() as batch:
            for number in range(50):
                batch.pwrite(file, b"%02d" % number, number * 2)
        assert file.pread(100, 0) == b"".join(b"%02d" % number for number in range(50))
    assert worker.ran.count("Pwrite") == 50


def test_a_lost_request_does_not_let_later_ones_pass(
    fs: RemoteFileSystem, worker: WorkerThread
) -> None:
    """Writes to one place, and reads between them, see each other in the order of the calls."""
    with fs.open("/f", "w+b") as file:
        for kind, way in ((ops.Pwrite, "request"), (ops.Pread, "request"), (ops.Pread, "reply")):
            worker.ran.clear()
            worker.fault = Losing(way, kind)
            with fs.pipeline() as batch:
                read = []
                for number in range(30):
                    batch.pwrite(file, b"%02d" % number, 0)
                    read.append(batch.pread(file, 2, 0))
                    if number == 10:
                        batch.flush()
            assert [result.result() for result in read] == [b"%02d" % n for n in range(30)]
            assert worker.ran.count("Pwrite") == 30


def test_ctrl_c_in_a_pipeline_leaves_the_file_system_usable(
    fs: RemoteFileSystem, worker: WorkerThread
) -> None:
    hold, main = threading.Event(), threading.get_ident()

    def interrupt(way: str, message: Any) -> bool:
        if way == "request" and isinstance(message, ops.Fsync) and not hold.is_set():
            hold.set()
            signal.pthread_kill(main, signal.SIGINT)
            return True
        return False

    with fs.open("/f", "w+b") as file:
        worker.fault = interrupt
        results: list[Any] = []
        with pytest.raises(KeyboardInterrupt), fs.pipeline() as batch:
            results += [batch.pwrite(file, b"x", number) for number in range(100)]
            results.append(batch.fsync(file))
            results[-1].result()
        assert hold.is_set()
        assert results[0].result() == 1
        assert isinstance(results[-1].exception(), InterruptedError)
        # The same channel, at once, and nothing of what was given up comes in between.
        with fs.pipeline() as batch:
            again = [batch.pwrite(file, b"y", number) for number in range(100)]
        assert [result.result() for result in again] == [1] * 100
        assert file.pread(100, 0) == b"y" * 100


def test_a_restarted_worker(
    fs: RemoteFileSystem, worker: WorkerThread, address: str, root: str
) -> None:
    fs.write_bytes("/f", b"before")
    file = fs.open("/f", "r+b")
    worker.stop()
    with WorkerThread(address, root) as second:
        assert fs.read_bytes("/f") == b"before"
        with pytest.raises(OSError) as caught:
            file.read()
        assert caught.value.errno == errno.ESTALE
        file.close()
        fs.make_dir("/d")
        assert second.ran.count("MakeDir") == 1
        with fs.open("/f", "r+b") as again:
            assert again.read() == b"before"


def test_death_during_an_operation(
    fs: RemoteFileSystem, worker: WorkerThread, address: str, root: str
) -> None:
    """Whether it was carried out cannot be known, so it is neither repeated nor called done."""
    arrived = threading.Event()

    def swallow(way: str, message: Any) -> bool:
        if way == "reply" and isinstance(message, ops.MakeDir | ops.Stat):
            arrived.set()
            return True
        return way == "request" and isinstance(message, m.Ping)

    outcome: list[Any] = []

    def call(operation: Any) -> None:
        try:
            outcome.append(operation())
        except EngineNotRunning as error:
            outcome.append(error)

    fs.write_bytes("/f", b"x")
    for operation in (lambda: fs.make_dir("/d"), lambda: fs.stat("/f").st_size):
        arrived.clear()
        worker.fault = swallow
        thread = threading.Thread(target=call, args=(operation,))
        thread.start()
        assert arrived.wait(10)
        worker.stop()
        worker = WorkerThread(address, root)
        with worker:
            thread.join(20)
            assert not thread.is_alive()
            assert "MakeDir" not in worker.ran
        worker = WorkerThread(address, root)
        worker.start()
    worker.stop()
    assert isinstance(outcome[0], EngineNotRunning)
    assert outcome[1] == 1


def test_nobody_there(address: str) -> None:
    started = time.monotonic()
    with pytest.raises(EngineNotRunning):
        RemoteFileSystem(address)
    assert time.monotonic() - started < 5


def test_a_worker_that_stays_away(fs: RemoteFileSystem, worker: WorkerThread) -> None:
    worker.stop()
    with pytest.raises(EngineNotRunning):
        fs.stat("/")


def test_timeouts(
    address: str, worker: WorkerThread, fs: RemoteFileSystem, monkeypatch: Any
) -> None:
    with RemoteFileSystem(address, timeout=0.3) as hasty:
        worker.fault = lambda way, message: isinstance(message, ops.Stat | m.Ping)
        started = time.monotonic()
        with pytest.raises(Timeout):
            hasty.stat("/")
        assert 0.2 < time.monotonic() - started < 5
        worker.fault = lambda way, message: False
        assert hasty.listdir("/") == []
        assert isinstance(hasty.stat("/").st_ino, int)


def test_an_open_that_timed_out_leaves_nothing_open(address: str, worker: WorkerThread) -> None:
    with RemoteFileSystem(address, timeout=0.3) as hasty:
        hold = threading.Event()

        def slow(way: str, message: Any) -> bool:
            if way == "reply" and isinstance(message, ops.Open):
                hold.wait(10)
            return False

        worker.fault = slow
        with pytest.raises(Timeout):
            hasty.open("/f", "wb")
        hold.set()
        hasty._connection.timeout = 10
        while worker.server.counts()["files"]:
            hasty.stat("/")


def test_files_nobody_closed(fs: RemoteFileSystem, worker: WorkerThread) -> None:
    for number in range(5):
        fs.open(f"/f{number}", "wb")
    fs.stat("/")
    assert worker.server.counts()["files"] == 0


def test_closing_ends_the_sessions(address: str, worker: WorkerThread) -> None:
    fs = RemoteFileSystem(address)
    held = fs.open("/f", "wb")
    assert worker.server.counts() == {"sessions": 1, "files": 1, "views": 0}
    fs.close()
    deadline = time.monotonic() + 10
    with RemoteFileSystem(address) as other:
        while worker.server.counts()["sessions"] and time.monotonic() < deadline:
            other.stat("/")
    assert worker.server.counts() == {"sessions": 0, "files": 0, "views": 0}
    with pytest.raises(ValueError):
        held.write(b"x")


def test_threads_do_not_wait_for_each_other(fs: RemoteFileSystem, worker: WorkerThread) -> None:
    """A request whose reply is late holds up its own thread only."""
    hold = threading.Event()
    worker.fault = lambda way, message: (
        not hold.is_set() and way == "reply" and isinstance(message, ops.Scan)
    )
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(fs.listdir("/")))
    thread.start()
    for _ in range(20):
        fs.write_bytes("/f", b"x")
    assert not found
    hold.set()
    thread.join(20)
    assert found == [["f"]] or found == [[]]


def test_large_payloads_go_both_ways(fs: RemoteFileSystem) -> None:
    data = os.urandom((65 << 20) + 3)
    with fs.open("/f", "w+b") as file:
        assert file.write(data) == len(data)
        assert file.pread(len(data), 0) == data
    assert fs.read_bytes("/f") == data
    with pytest.raises(ValueError), fs.pipeline() as batch:
        batch.write_bytes("/g", data)


def test_an_idle_client_of_another_machine_keeps_its_session(
    address: str, root: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(connection, "KEEP_ALIVE_S", 0.05)
    pinged = threading.Event()

    def heard(way: str, message: Any) -> bool:
        if way == "request" and isinstance(message, m.Ping):
            pinged.set()
        return False

    with WorkerThread(address, root, host="elsewhere") as worker:
        worker.fault = heard
        fs = RemoteFileSystem(address)
        for _ in range(3):
            pinged.clear()
            assert pinged.wait(10)
        assert fs.listdir("/") == []
        keeper = fs._connection._keeper
        assert keeper is not None
        fs.close()
        keeper.join(10)
        assert not keeper.is_alive()


def test_who_is_watched_needs_no_ping(fs: RemoteFileSystem) -> None:
    assert fs._connection._keeper is None


def test_a_stopped_worker_gives_a_clear_error(address: str) -> None:
    """A worker that is stopped accepts nothing; asking for it again and again must not hang."""
    with closing(unix.socket(unix.AF_UNIX)) as stopped:
        stopped.bind(address.removeprefix("ipc://"))
        stopped.listen(1)
        with pytest.raises(Timeout, match="nova-mp status"):
            RemoteFileSystem(address, timeout=3.0)


def test_reads_of_a_pipeline_fail_alone(fs: RemoteFileSystem, worker: WorkerThread) -> None:
    data = os.urandom(3000)
    fs.write_bytes("/f", data)
    closed = fs.open("/f")
    closed.close()
    buffers = [bytearray(10) for _ in range(3)]
    with fs.open("/f") as file, fs.open("/f", "ab") as blind, fs.pipeline() as batch:
        batch.raise_errors = False
        good = [batch.pread(file, 100, number * 50) for number in range(70)]
        bad = [
            batch.pread(closed, 1, 0),
            batch.pread(blind, 1, 0),
            batch.pread(file, -1, 0),
            batch.pread(file, 1, -1),
            batch.pread(file, 1, 2**70),
            batch.preadinto(file, b"read-only", 0),
        ]
        into = [batch.preadinto(file, buffer, 2995) for buffer in buffers]
        size = batch.fstat(file)
        assert [result.result() for result in good] == [
            data[number * 50 : number * 50 + 100] for number in range(70)
        ]
        for result in bad:
            assert isinstance(result.exception(), (OSError, ValueError, TypeError, OverflowError))
        assert [result.result() for result in into] == [5, 5, 5]
        buffers[0][:] = b"mine now.."
        assert size.result().st_size == 3000
    assert [bytes(buffer[:5]) for buffer in buffers] == [b"mine ", data[-5:], data[-5:]]
    assert worker.ran.count("PreadMany") >= 2

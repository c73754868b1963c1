"""An engine under load whose processes are killed, and what must be true after each death.

`Siege` runs an engine, clients and a keeper of snapshots. After a death the others' operations go
on, the dead is replaced, and at rest everything is checked: files against the model, the medium
with the checker, every block and inode accounted for, snapshots unchanged.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import nova_mp
from crashsim import customers
from crashsim.arena import contents, differences
from crashsim.death import MIB, audit, fork, wait
from crashsim.load import (
    DELETING,
    IDS,
    KINDS,
    LIVE,
    LONGEST,
    LONGEST_OP,
    PAUSE,
    PAUSED,
    RETURNED,
    STOP,
    Board,
    Books,
    files,
)
from nova_mp import config
from nova_mp.core import segment
from nova_mp.protocol import identity

CPUS = 2
LIMIT_S = 20.0
"""What a test waits for at most; nothing is judged by it but that it happens at all."""

LONGEST_NS = 1_000_000_000
"""What an operation of a survivor may take."""

CLIENTS = (customers.ATTACHED, customers.REMOTE, customers.REMOTE, customers.ATTACHED)


def until(what: str, holds: Callable[[], Any], limit_s: float = LIMIT_S) -> Any:
    """Wait until `holds()` is true and return it; other processes give no event for these."""
    deadline = time.monotonic() + limit_s
    while not (value := holds()):
        if time.monotonic() > deadline:
            raise AssertionError(f"in vain: {what}")
        time.sleep(0.002)
    return value


class Medium:
    """The medium of a running arena, for `audit`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def image(self) -> bytes:
        """A copy of it."""
        with segment.attach_pmem(self._name) as pmem:
            return bytes(pmem.buf)


class Siege:
    """An engine, its clients, and what is known about them."""

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.rng = random.Random(seed)
        self.keeper = len(CLIENTS)
        self.board = Board(len(CLIENTS) + 1)
        self.books = Books(self.board, len(CLIENTS))
        self.pids = [0] * (len(CLIENTS) + 1)
        self.frozen: dict[int, Any] = {}
        self.longest = [0, 0]

    def begin(self) -> None:
        """Make the arena, start the engine, let the clients in."""
        nova_mp.mkfs(self.name, 64 * MIB, cpus=CPUS)
        self.start()
        with self.attached() as fs:
            fs.make_dir("/shared")
            for number in range(len(CLIENTS)):
                fs.make_dir(f"/w{number}")
        self.staff()

    # ----------------------------------------------------------------------------- engine

    def start(self) -> None:
        """Start the engine: mounts, adopts or recovers."""
        nova_mp.start(self.name)

    def children(self) -> dict[str, int]:
        """Pids of the engine's live processes by title, the supervisor's too."""
        record = config.read_engine_record(self.name)
        if record is None:
            return {}
        rows = [("supervisor", record.pid, record.start_ticks), *record.children]
        return {title: pid for title, pid, ticks in rows if identity.alive(pid, ticks)}

    def replaced(self, title: str, dead: int) -> bool:
        """Whether a dead process of the engine has a successor in service, as status tells."""
        for row in nova_mp.status(self.name)["processes"]:
            if row["title"] == title and row["state"] == "ready" and row["pid"] != dead:
                assert row["restarts"] > 0, row
                return True
        return False

    def complete(self) -> bool:
        """Whether all of the engine's processes are in service."""
        with suppress(nova_mp.NovaError):
            rows = nova_mp.status(self.name).get("processes", ())
            return bool(rows) and all(row["state"] == "ready" for row in rows)
        return False

    # ---------------------------------------------------------------------------- clients

    def staff(self) -> None:
        """Start everybody who is not there."""
        for number, pid in enumerate(self.pids):
            if not pid:
                self.hire(number)

    def hire(self, number: int) -> None:
        """Start a client, or the keeper."""
        seed = self.rng.getrandbits(32)
        if number == self.keeper:
            self.board.clear(number)
            self.pids[number] = fork(customers.keep, self.name, seed, number, self.board)
            return
        self.books.start(number, seed)
        self.pids[number] = fork(
            customers.work, self.name, CLIENTS[number], CPUS, number, seed,
            self.books.models[number], self.board,
        )  # fmt: skip

    def kill_client(self, number: int) -> None:
        """SIGKILL a client; what it leaves is looked at once nobody carries it out any more."""
        os.kill(self.pids[number], signal.SIGKILL)
        self.mourn(number)

    def mourn(self, number: int) -> None:
        """A client is dead, or about to be: look at what it left."""
        ended = wait(self.pids[number], LIMIT_S)
        assert ended == -signal.SIGKILL, f"client {number} ended by itself: {ended}"
        self.pids[number] = 0

    def look(self, fs: Any, number: int, died: bool) -> None:
        """Compare a client's files with what they must be."""
        model = self.books.advance(number)
        found = files(fs, number)
        if died and found != model:
            op, after = self.books.after_death(number)
            self.books.models[number] = after
            lines = differences(found, after) and differences(found, model)
            assert not lines, f"client {number} died in {op[:3]}: {lines}"
        else:
            assert found == model, f"client {number}: {differences(found, model)}"

    def look_at_dead(self, numbers: list[int]) -> None:
        """Look at what dead clients left, in their directories and on the way to a worker."""
        for number in numbers:
            if number != self.keeper and CLIENTS[number] == customers.REMOTE:
                # Its last request may still be in a worker's queue; ours come behind it.
                with customers.reach(self.name, customers.REMOTE, number % CPUS, self.board) as fs:
                    for _ in range(3):
                        fs.stat("/")
        with self.attached() as fs:
            for number in numbers:
                if number != self.keeper:
                    self.look(fs, number, died=True)

    @contextmanager
    def attached(self) -> Iterator[Any]:
        """The file system, for a look at it."""
        with nova_mp.attach(self.name, title="siege") as fs:
            yield fs

    def count(self) -> list[int]:
        """Operations that each client has behind it."""
        return [self.board.record(number)[RETURNED] for number in range(len(CLIENTS))]

    def gone(self) -> list[str]:
        """Clients that ended with an error, which none should."""
        found = []
        for number, pid in enumerate(self.pids):
            if pid:
                dead, status = os.waitpid(pid, os.WNOHANG)
                code = os.waitstatus_to_exitcode(status)
                self.pids[number] = 0 if dead else pid
                if dead and code:
                    found.append(f"client {number}: {code}")
                elif dead:
                    # Its record had no room for more doubts; another one goes on from there.
                    self.books.advance(number)
                    self.hire(number)
        return found

    def where(self, before: list[int]) -> list[str]:
        """For a failure: how far the clients came, and what everybody is at."""
        came = zip(self.pids, CLIENTS, before, self.count(), strict=False)
        found = [f"{kind} {pid}: {old} -> {new} operations" for pid, kind, old, new in came]
        shown = ("slot", "pid", "role", "op", "locks", "epoch_id")
        with suppress(nova_mp.NovaError, OSError), self.attached() as fs:
            found += [str({key: row[key] for key in shown}) for row in fs.slots()]
        return found

    def survive(self, but: tuple[int, ...] = ()) -> None:
        """Everybody but these, whose server is dead, gets on with its work."""
        before = self.count()

        def on() -> bool:
            assert not self.gone(), "clients ended by themselves: see their tracebacks"
            return all(
                new > old + 2 or not self.pids[number] or number in but
                for number, (old, new) in enumerate(zip(before, self.count(), strict=True))
            )

        try:
            until("the survivors go on", on)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.where(before)}") from None

    # ------------------------------------------------------------------------------- rest

    def pause(self) -> None:
        """Bring everybody to rest between two operations."""
        self.board.words[PAUSE] = 1

        def resting() -> bool:
            assert not self.gone(), "clients ended by themselves: see their tracebacks"
            return all(
                self.board.record(number)[PAUSED] for number, pid in enumerate(self.pids) if pid
            )

        until("everybody rests", resting, 2 * LIMIT_S)

    def resume(self) -> None:
        """Let them go on."""
        for number in range(len(self.pids)):
            self.board.record(number)[PAUSED] = 0
        self.board.words[PAUSE] = 0

    def check(self) -> None:
        """Is everything as it must be? Afterwards the load goes on."""
        self.pause()
        until("all of the engine's processes serve", self.complete)
        with self.attached() as fs:
            fs.reap()
            for number in range(len(CLIENTS)):
                self.look(fs, number, died=False)
            self._look_at_table(fs)
            self._audit(fs)
            self._look_into_snapshots(fs)
        self._judge_times()
        self.resume()

    def _audit(self, fs: Any) -> None:
        """The checker; workers may still be closing what dead remote clients had open."""
        deadline = time.monotonic() + LIMIT_S / 4
        while True:
            try:
                audit(fs, Medium(self.name))
                return
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def _look_at_table(self, fs: Any) -> None:
        ids = self.board.snapshots
        there = {row["epoch_id"] for row in fs.snapshot_table()}
        known = {ids[2 * k]: k for k in range(IDS) if ids[2 * k + 1]}
        for epoch_id in there - known.keys():
            # Its creation was under way when the keeper, or the coordinator, died.
            free = next(k for k in range(IDS) if ids[2 * k + 1] == 0)
            ids[2 * free], ids[2 * free + 1] = epoch_id, LIVE
        for epoch_id, place in known.items():
            if epoch_id in there:
                ids[2 * place + 1] = LIVE
            else:
                assert ids[2 * place + 1] == DELETING, f"snapshot {epoch_id} has gone"
                ids[2 * place + 1] = 0

    def _look_into_snapshots(self, fs: Any) -> None:
        frozen = {}
        for row in fs.snapshot_table():
            with fs.snapshot_open(row["epoch_id"]) as view:
                frozen[row["epoch_id"]] = contents(view)
        for epoch_id, shown in self.frozen.items():
            if epoch_id in frozen:
                lines = differences(frozen[epoch_id], shown)
                assert not lines, f"snapshot {epoch_id} changed: {lines[:5]}"
        self.frozen = frozen

    def _judge_times(self) -> None:
        """Attached clients wait for nobody; a remote one may have had a worker to wait for."""
        for number, kind in enumerate(CLIENTS):
            record = self.board.record(number)
            took, code = record[LONGEST], record[LONGEST_OP]
            which = kind == customers.REMOTE
            self.longest[which] = max(self.longest[which], took)
            record[LONGEST] = 0
            if kind == customers.ATTACHED:
                what = f"client {number} spent {took / 1e9:.2f} s in {KINDS[code]}"
                assert took < LONGEST_NS, f"{what}; load {os.getloadavg()[0]:.1f}"

    # -------------------------------------------------------------------------------- end

    def dismiss(self) -> None:
        """All clients leave in order."""
        self.board.words[STOP] = 1
        for number, pid in enumerate(self.pids):
            if pid:
                assert wait(pid, LIMIT_S) == 0, f"client {number} did not leave in order"
                self.pids[number] = 0
        for number in range(len(CLIENTS)):
            # They leave between two operations.
            self.books.advance(number)
        self.board.words[STOP] = 0

    def remount(self, stop: Callable[[], None] | None = None) -> None:
        """Clean stop and start: everything is as it was. The clients come back.

        `stop` ends the engine in another way.
        """
        self.dismiss()
        with self.attached() as fs:
            before = contents(fs)
        (stop or (lambda: nova_mp.stop(self.name)))()
        self.start()
        with self.attached() as fs:
            lines = differences(contents(fs), before)
            assert not lines, lines[:5]
        self.staff()

    def keep_log(self) -> None:
        """After a failure: the engine's log outlives its arena, beside the runtime folders."""
        log = config.runtime_path(self.name) / "engine.log"
        with suppress(OSError):
            shutil.copy(log, config.runtime_root().parent / f"{self.name}.log")

    def end(self) -> None:
        """Leave nothing, whatever happened."""
        for pid in filter(None, self.pids):
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        if segment.pmem_exists(self.name):
            nova_mp.destroy(self.name, force=True)


@contextmanager
def siege(name: str, seed: int) -> Iterator[Siege]:
    """A siege that leaves nothing behind."""
    made = Siege(name, seed)
    try:
        made.begin()
        yield made
    except BaseException:
        made.keep_log()
        raise
    finally:
        made.end()

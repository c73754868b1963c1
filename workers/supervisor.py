"""The supervisor process: mounts the arena, forks the others and their successors, ends it all.

It holds the lock file of the arena as long as it lives, so an arena has one engine, and whoever
takes the lock knows that no other supervisor is there.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import socket
import sys
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from nova_mp import config
from nova_mp.cluster import supervisor as s
from nova_mp.cluster import vocabulary as v
from nova_mp.cluster.log import EngineLog
from nova_mp.cluster.residence import Residence
from nova_mp.core import segment
from nova_mp.errors import EngineFailed, EngineRunning, NovaError
from nova_mp.protocol import codec, identity
from nova_mp.protocol import messages as m

from . import birth, cleaner, coordinator, fs_worker, process
from .gate import open_tcp

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
BODIES = {"coordinator": coordinator.main, "fs_worker": fs_worker.main, "cleaner": cleaner.main}


class Lock:
    """The locks of an arena, held from construction to release, or death.

    One is on a file in the runtime folder, one on the memory, for those whose folder is another.
    """

    def __init__(self, name: str) -> None:
        self._path = config.lock_path(name)
        self._fd = self._lock_file(name)
        try:
            self._memory = self._lock_memory(name)
        except BaseException:
            self._path.unlink(missing_ok=True)
            os.close(self._fd)
            raise

    def _lock_file(self, name: str) -> int:
        while True:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if not segment.try_lock(fd):
                os.close(fd)
                raise EngineRunning(
                    f"the engine of arena '{name}' runs already",
                    f"use it, or stop it with: nova-mp stop {name}",
                )
            # Its last holder may have removed the file between our open and our lock.
            with contextlib.suppress(FileNotFoundError):
                if os.stat(self._path).st_ino == os.fstat(fd).st_ino:
                    return fd
            os.close(fd)

    @staticmethod
    def _lock_memory(name: str) -> int:
        try:
            fd = os.open(segment.pmem_path(name), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise segment.missing_arena(name) from None
        until = time.monotonic() + config.SETTLE_S
        while not segment.try_lock(fd):
            if time.monotonic() > until:
                os.close(fd)
                raise EngineRunning(
                    f"the engine of arena '{name}' runs already, with another runtime folder than"
                    f" {config.runtime_root()}",
                    config.ELSEWHERE_REMEDY,
                )
            time.sleep(0.01)
        return fd

    def release(self) -> None:
        """Let go of both, and remove the file."""
        os.close(self._memory)
        self._path.unlink(missing_ok=True)
        os.close(self._fd)


@dataclass(slots=True)
class Running:
    """A child that lives, the channel to it, and what that had no room for yet."""

    born: birth.Born
    channel: process.Channel
    unsent: list[Any] = field(default_factory=list)
    hears: bool = True

    def tell(self, message: Any) -> None:
        """Send a message, now or when there is room; it takes the place of an older one alike."""
        self.unsent = [late for late in self.unsent if type(late) is not type(message)]
        self.unsent.append(message)
        self.flush()

    def flush(self) -> None:
        """Send what there is room for."""
        while self.unsent and self.channel.send(self.unsent[0]):
            del self.unsent[0]

    @property
    def events(self) -> int:
        """What to poll the channel for."""
        return select.POLLIN | (select.POLLOUT if self.unsent else 0)


class Announcement:
    """Tells whoever waits for the start how it went, once.

    A failure is told at the very end, so that whoever hears of it finds nothing left.
    """

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self._failure: BaseException | None = None

    def success(self) -> None:
        """The engine is in service."""
        self._tell(m.Done())

    def failure(self, error: BaseException) -> None:
        """The start failed; the first reason counts."""
        self._failure = self._failure or error

    def close(self) -> None:
        """Tell of a failure, if there was one and nothing has been told."""
        if self._failure is not None:
            self._tell(m.error_reply(self._failure))

    def _tell(self, message: Any) -> None:
        if self._fd is None:
            return
        # The waiting side may have given up.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._fd, codec.encode(message)[0])
        os.close(self._fd)
        self._fd = None


class SupervisorProcess:
    """Children, channels and the loop around the state machine."""

    def __init__(self, options: argparse.Namespace, announcement: Announcement) -> None:
        self._options = options
        self._name: str = options.name
        self._announcement = announcement
        self._log = EngineLog(self._name, "supervisor")
        self._residence = Residence(self._name, options.media, self._log)
        self._cpus = self._residence.cpus
        # Refused now rather than by each child: a path too long, an address without room.
        self._endpoints = config.endpoints(self._name, self._cpus)
        self._tcp = open_tcp(options.tcp, self._cpus, options.keys) if options.tcp else None
        self._machine = s.Supervisor(self._cpus)
        self._pending: deque[Any] = deque()
        self._children: dict[str, Running] = {}
        self._timer: float | None = None
        self._exit = False
        self._engine_id = uuid.uuid4().hex
        self._started_ns = time.time_ns()
        self._ticks = identity.start_ticks(os.getpid())
        self._signals = process.Signals(*STOP_SIGNALS)
        self._poll = select.poll()
        self._poll.register(self._signals.fileno(), select.POLLIN)
        if options.life_fd is not None:
            self._poll.register(options.life_fd, select.POLLIN)

    # ------------------------------------------------------------------------------------- loop

    def run(self) -> int:
        """Start the engine and keep it up until it is stopped; gives back the exit status."""
        self._kill_leftovers()
        self._save_record(False, ())
        self._residence.enter()
        birth.prepare()
        self._step(s.Mounted(time.monotonic()))
        while not self._exit:
            timeout = None
            if self._timer is not None:
                timeout = max(0.0, self._timer - time.monotonic()) * 1000 + 1
            for fd, _ in self._poll.poll(timeout):
                self._take(fd)
            if self._timer is not None and self._timer <= time.monotonic():
                self._timer = None
                self._step(v.Tick(time.monotonic()))
        return self._machine.exit_status

    def _step(self, event: Any) -> None:
        """Take in an event, and carry out all that follows from it, in order."""
        self._pending.extend(self._machine.step(event))
        while self._pending:
            follow_up = self._carry_out(self._pending.popleft())
            if follow_up is not None:
                self._pending.extend(self._machine.step(follow_up))

    def _take(self, fd: int) -> None:
        now = time.monotonic()
        if fd == self._signals.fileno():
            numbers = [number for number in self._signals.take() if number in STOP_SIGNALS]
            if numbers:
                self._log.info("signal", numbers=numbers)
                self._step(s.StopAsked(True, now))
            return
        if fd == self._options.life_fd:
            self._poll.unregister(fd)
            self._log.info("the process that started the engine is gone")
            self._step(s.StopAsked(True, now))
            return
        for title, child in list(self._children.items()):
            if fd == child.channel.fileno():
                self._hear(title, child)
                return
            if fd == child.born.pidfd:
                self._bury(title, child)
                return

    def _listen(self, child: Running) -> None:
        if child.hears:
            self._poll.register(child.channel.fileno(), child.events)

    def _hear(self, title: str, child: Running) -> None:
        child.flush()
        self._listen(child)
        messages = child.channel.receive()
        if messages is None:
            # Its death is told by the pidfd; until then the closed socket would wake us for ever.
            child.hears = False
            self._poll.unregister(child.channel.fileno())
            return
        now = time.monotonic()
        for message in messages:
            if isinstance(message, m.ChildReady):
                self._step(s.Ready(title, now))
            elif isinstance(message, m.ChildFailed):
                self._step(s.Failed(title, message.reason, message.remedy))
            elif isinstance(message, m.StopRequested):
                self._log.info("stop requested", force=message.force)
                self._step(s.StopAsked(message.force, now))

    def _bury(self, title: str, child: Running) -> None:
        # What it said before it died comes first: it may be why.
        self._hear_last(title, child)
        self._poll.unregister(child.born.pidfd)
        status = child.born.bury()
        self._log.info("child exited", title=title, child=child.born.pid, status=status)
        if child.hears:
            self._poll.unregister(child.channel.fileno())
        child.channel.close()
        del self._children[title]
        self._step(s.Exited(title, status, time.monotonic()))

    def _hear_last(self, title: str, child: Running) -> None:
        for message in child.channel.receive() or ():
            if isinstance(message, m.ChildFailed):
                self._step(s.Failed(title, message.reason, message.remedy))

    # ----------------------------------------------------------------------------- instructions

    def _carry_out(self, instruction: Any) -> Any:
        """Carry out one instruction; gives back the event that it leads to at once, if any."""
        kind = type(instruction)
        if kind is s.Spawn:
            return self._spawn(instruction.role)
        if kind is s.Unmount:
            clean = self._residence.leave(instruction.force)
            return s.Unmounted(clean)
        if kind is s.Tell:
            child = self._children.get(instruction.title)
            if child is not None:
                child.tell(instruction.message)
                self._listen(child)
        elif kind is s.Kill:
            child = self._children.get(instruction.title)
            if child is not None:
                self._log.warning("child does not leave and is killed", title=instruction.title)
                child.born.kill()
        elif kind is s.SaveRecord:
            self._save_record(instruction.ready, instruction.children)
        elif kind is s.ReportReady:
            self._log.info("ready", engine_id=self._engine_id, cpus=self._cpus)
            if self._options.daemon and self._options.life_fd is not None:
                # From here on it lives on its own; an interrupt that comes now comes too late.
                self._poll.unregister(self._options.life_fd)
            self._announcement.success()
        elif kind is s.ReportFailed:
            self._log.error("start failed", reason=instruction.reason)
            self._announcement.failure(EngineFailed(instruction.reason, instruction.remedy))
        elif kind is v.SetTimer:
            self._timer = instruction.at
        elif kind is v.Exit:
            self._exit = True
        return None

    def _spawn(self, role: s.Role) -> s.Spawned:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        order = process.Order(
            name=self._name,
            title=role.title,
            cpu=role.cpu,
            engine_id=self._engine_id,
            started_ns=self._started_ns,
            media=self._options.media,
            endpoints=self._endpoints,
            tcp=self._tcp,
        )
        body = partial(process.run_child, order, theirs, BODIES[role.module])
        with theirs:
            born = birth.fork(body, theirs.fileno(), self._log.fileno(), STOP_SIGNALS)
        child = Running(born, process.Channel(ours))
        self._children[role.title] = child
        self._listen(child)
        self._poll.register(born.pidfd, select.POLLIN)
        self._log.info("child started", title=role.title, child=born.pid)
        return s.Spawned(role.title, born.pid, identity.start_ticks(born.pid), time.monotonic())

    def _save_record(self, ready: bool, children: tuple[tuple[str, int, int], ...]) -> None:
        record = config.EngineRecord(
            name=self._name,
            engine_id=self._engine_id,
            pid=os.getpid(),
            start_ticks=self._ticks,
            started_ns=self._started_ns,
            cpus=self._cpus,
            media=self._options.media,
            tcp=self._options.tcp,
            ready=ready,
            children=children,
        )
        config.write_engine_record(record)

    def _kill_leftovers(self) -> None:
        """End children of an engine whose supervisor was killed: two engines would fight."""
        record = config.read_engine_record(self._name)
        if record is not None:
            left = [(pid, ticks) for _, pid, ticks in record.children]
            if not identity.kill_and_wait(left):
                raise EngineFailed(
                    "processes of an earlier engine do not die", "see which with: nova-mp status"
                )

    def close(self) -> None:
        """Remove what only a running engine has."""
        for child in self._children.values():
            child.born.kill()
            child.born.bury()
        self._residence.close()
        config.clear_engine_files(self._name)


def _rotate_log(folder: Path) -> None:
    path = folder / "engine.log"
    if path.exists() and path.stat().st_size > config.LOG_BYTES_MAX:
        path.rename(folder / "engine.log.1")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m nova_mp.workers.supervisor",
        description="The first process of an engine. To start an engine, use nova-mp start.",
    )
    parser.add_argument("name", help="arena")
    parser.add_argument("--media", default="dram")
    parser.add_argument("--tcp")
    parser.add_argument("--keys")
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--life-fd", type=int)
    parser.add_argument("--daemon", action="store_true")
    return parser.parse_args()


def main() -> int:
    """Body of the process."""
    options = _parse()
    if options.daemon and os.fork():
        # The one who starts engines need not wait for this process: it becomes init's child.
        os._exit(0)
    identity.set_title("nova-supervisor")
    identity.set_command_line(f"nova-mp: supervisor ({options.name})")
    announcement = Announcement(options.ready_fd)
    try:
        folder = config.make_runtime_path(options.name)
        lock = Lock(options.name)
        try:
            _rotate_log(folder)
            return _supervise(options, announcement)
        finally:
            lock.release()
    except (OSError, NovaError) as error:
        announcement.failure(error)
        return 1
    finally:
        announcement.close()


def _supervise(options: argparse.Namespace, announcement: Announcement) -> int:
    supervisor = None
    try:
        supervisor = SupervisorProcess(options, announcement)
        return supervisor.run()
    except Exception as error:
        EngineLog(options.name, "supervisor").failure("failed", error)
        announcement.failure(error)
        return 1
    finally:
        if supervisor is not None:
            supervisor.close()


if __name__ == "__main__":
    sys.exit(main())

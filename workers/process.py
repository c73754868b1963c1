"""What the engine's processes share: orders, control channel, signals, the arena.

A child talks to the supervisor over a socket that it inherits: messages of `nova_mp.protocol`, one
a packet. When the supervisor dies the socket says so, and the child leaves.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from types import FrameType
from typing import Any

from nova_mp import config
from nova_mp.cluster.log import EngineLog
from nova_mp.core import segment
from nova_mp.errors import NovaError
from nova_mp.protocol import codec, identity
from nova_mp.protocol import messages as m

from .gate import Tcp

PACKET_BYTES_MAX = 128 << 10
PID_MAX = (1 << 31) - 1


class Channel:
    """One end of the socket between the supervisor and a child."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """For polling."""
        return self._socket.fileno()

    def send(self, message: Any) -> bool:
        """Send a message; False when there is no room for it now.

        True also when the other side is gone: whoever reads next hears of that.
        """
        try:
            self._socket.send(codec.encode(message)[0], socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except ConnectionError:
            return True
        return True

    def receive(self) -> list[Any] | None:
        """Messages that have arrived; None when the other side is gone."""
        found: list[Any] = []
        while True:
            try:
                packet = self._socket.recv(PACKET_BYTES_MAX)
            except BlockingIOError:
                return found
            except ConnectionError:
                return None
            if not packet:
                return found or None
            found.append(codec.decode([packet]).message)

    def close(self) -> None:
        """Close this end; the other side sees it."""
        self._socket.close()


class Signals:
    """Signals as something to poll: `fileno` is readable when one came."""

    def __init__(self, *numbers: int) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        # Without a handler of its own a signal would still end the process.
        for number in numbers:
            signal.signal(number, self._nothing)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)

    @staticmethod
    def _nothing(number: int, frame: FrameType | None) -> None:
        """The wakeup descriptor tells of it."""

    def fileno(self) -> int:
        """For polling."""
        return self._reader.fileno()

    def take(self) -> list[int]:
        """Numbers of the signals that came."""
        try:
            return list(self._reader.recv(4096))
        except BlockingIOError:
            return []


class ProcessWatch:
    """pidfds of watched processes, in a poller; they become readable when a process dies."""

    def __init__(self, poller: Any) -> None:
        self._poller = poller
        self._fds: dict[int, int] = {}
        self._pids: dict[int, int] = {}

    def add(self, pid: int) -> bool:
        """Watch `pid`; False when it is dead already, or no process, whatever a client says."""
        if not 0 < pid <= PID_MAX:
            return False
        try:
            fd = identity.open_pidfd(pid)
        except OSError:
            # The number of a thread, or no descriptor is left: then nobody is watched.
            return False
        if fd is None:
            return False
        self._fds[pid], self._pids[fd] = fd, pid
        self._poller.register(fd, select.POLLIN)
        return True

    def remove(self, pid: int) -> None:
        """Watch it no more; no error if it was not watched."""
        fd = self._fds.pop(pid, None)
        if fd is not None:
            del self._pids[fd]
            self._poller.unregister(fd)
            os.close(fd)

    def died(self, fd: int) -> int | None:
        """The pid whose descriptor became readable, which is watched no more; None if none is."""
        pid = self._pids.get(fd)
        if pid is not None:
            self.remove(pid)
        return pid


class Arena:
    """Both segments of an arena, and the core on top of them, for one process."""

    def __init__(self, name: str, role: str, cpu: int | None, title: str) -> None:
        from nova_mp.core import fs

        self._pmem = segment.attach_pmem(name)
        try:
            self._dram = segment.attach_dram(name)
            try:
                self.core = fs.Core(
                    self._pmem.buf, self._dram.buf, self._dram.fd, role=role, cpu=cpu, title=title
                )
            except BaseException:
                self._dram.close()
                raise
        except BaseException:
            self._pmem.close()
            raise

    def close(self) -> None:
        """Give back the process slots and unmap the segments."""
        self.core.close()
        self._dram.close()
        self._pmem.close()


@dataclass(slots=True)
class Order:
    """What the supervisor wants a child to be: which engine's, its title, its CPU (else -1)."""

    name: str
    title: str
    cpu: int
    engine_id: str
    started_ns: int
    media: str
    endpoints: config.Endpoints
    """Where the engine listens for processes of this machine."""
    tcp: Tcp | None
    """Where it listens for clients with keys, if it does."""

    @property
    def cpus(self) -> int:
        """Emulated CPUs of the arena."""
        return len(self.endpoints.workers)


@dataclass(slots=True)
class Child(Order):
    """A child process of the supervisor: its orders, and what connects it to the engine."""

    control: Channel
    log: EngineLog
    signals: Signals


def run_child(order: Order, control: socket.socket, body: Callable[[Child], None]) -> int:
    """Life of a child process: set it up, run `body`, report why it failed if it does.

    `body` sends ChildReady once it serves. Returns the exit status: 0, or 1 after an error.
    """
    title = order.title
    identity.set_command_line(f"nova-mp: {title} ({order.name})")
    # Only 15 bytes of a name are shown.
    identity.set_title(f"nova-{title}".replace("coordinator", "coord"))
    # Ctrl-C at a terminal is for the supervisor, which then tells its children.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A descriptor for each connection, and one for each process that is watched.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    log = EngineLog(order.name, title)
    ordered = {field.name: getattr(order, field.name) for field in fields(order)}
    child = Child(**ordered, control=Channel(control), log=log, signals=Signals(signal.SIGTERM))
    try:
        body(child)
    except Exception as error:
        log.failure("failed", error)
        told = error if isinstance(error, NovaError) else None
        reason = told.reason if told else f"{title}: {type(error).__name__}: {error}"
        child.control.send(m.ChildFailed(title, reason, told.remedy if told else ""))
        return 1
    log.info("left")
    return 0


def pin(child: Child) -> int | None:
    """Keep the calling thread on a core of its own, if there are enough; gives back which.

    Enough are twice as many as the arena has CPUs: clients need some, too. Arenas begin at cores of
    their own choice, so that the workers of several do not meet on the first ones.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2 * child.cpus:
        return None
    core = cores[(zlib.crc32(child.name.encode()) + child.cpu) % len(cores)]
    os.sched_setaffinity(0, {core})
    return core


def quit_asked(child: Child) -> bool:
    """Whether the supervisor asked the child to leave, or is dead, or SIGTERM came.

    Drops what else is in the control channel: for children that expect nothing else.
    """
    if signal.SIGTERM in child.signals.take():
        return True
    messages = child.control.receive()
    return messages is None or any(isinstance(message, m.Quit) for message in messages)

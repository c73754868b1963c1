"""Requests to an engine's coordinator: snapshots, freeze, status, stop.

A request is sent once and, if no reply comes, again under the same id: the coordinator carries it
out once and repeats the reply. A coordinator that was restarted does not know its clients, and
makes no changes for them; one that was sent once is then sent to the new one after a hello, but of
one that was sent twice nobody knows whether the old one carried it out. While waiting, the engine's
supervisor is watched too, so that the death of the engine ends the wait at once. Each thread has a
socket of its own, because one thread may have to thaw what another one waits for.
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
import uuid
from types import TracebackType
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from nova_mp import config
from nova_mp.client.keys import Keys, unlock
from nova_mp.core import segment
from nova_mp.errors import AccessRefused, EngineNotRunning, ProtocolError, Timeout
from nova_mp.protocol import codec, identity
from nova_mp.protocol import messages as m
from nova_mp.version import __version__

TIMEOUT_S = 30.0
"""How long a request may take unless the caller says otherwise."""

SECONDS_MAX = 1e6
"""Longest time limit of a freeze: eleven days."""

LISTENING_S = 5.0
"""How long the first connection by TCP may take."""

RESEND_S = 2.0
"""A request without a reply is sent again: the coordinator may have been restarted."""

HANDSHAKES_MAX = 3
HANDSHAKE_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)

REPLY_MARGIN_S = 5.0
"""What is added to a time limit that the coordinator itself keeps, for its reply to arrive."""


class _Socket:
    """A thread's DEALER socket; closed when its thread ends and drops it."""

    def __init__(self, address: str, keys: Keys | None) -> None:
        self.pid = os.getpid()
        self.address = address
        self.dealer: Any = zmq.Context.instance().socket(zmq.DEALER)
        self.dealer.setsockopt(zmq.LINGER, 0)
        unlock(self.dealer, address, keys)
        # ZeroMQ tries for ever to connect where it is not let in; why it fails, only events tell.
        self.events: Any = self.dealer.get_monitor_socket(HANDSHAKE_FAILED) if keys else None
        self._failed = 0
        self.dealer.connect(address)

    def look_at_events(self) -> None:
        """Raise AccessRefused if the handshake failed because of the keys."""
        event = recv_monitor_message(self.events)
        if event["event"] == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            raise AccessRefused(
                f"{self.address} does not let these keys in",
                "let them in where the engine is, with: nova-mp keygen --client NAME",
            )
        # An engine that is just stopping hangs up too, but not again and again.
        self._failed += 1
        if self._failed >= HANDSHAKES_MAX:
            raise AccessRefused(
                f"{self.address} hangs up: the engine there has other keys than was expected",
                "take a client's key file that was made along with the engine's",
            )

    def close(self) -> None:
        """Close it, unless it is the parent's and we are a forked child."""
        if self.pid == os.getpid():
            if self.events is not None:
                self.dealer.disable_monitor()
                self.events.close()
                self.events = None
            self.dealer.close()

    def __del__(self) -> None:
        self.close()


class ControlClient:
    """Requests to the coordinator of one engine. Thread-safe; a context manager.

    After a fork the child opens sockets of its own.
    """

    def __init__(
        self, name_or_address: str, timeout: float = TIMEOUT_S, *, keys: Keys | None = None
    ) -> None:
        """`name_or_address` is an arena of this machine, or an engine's `ipc://` or `tcp://`
        address; `timeout` (seconds) is what a request may take; TCP takes `keys`.

        Raises EngineNotRunning when the arena has no engine, ArenaNotFound when there is no such
        arena. An address is not looked at before the first request.
        """
        self.timeout = timeout
        self._keys = keys
        self._name: str | None = None
        self._engine: tuple[int, int] | None = None
        if "://" in name_or_address:
            self.address = name_or_address
        else:
            record = running_engine(name_or_address)
            self._name = name_or_address
            self._engine = (record.pid, record.start_ticks)
            self.address = config.endpoints(record.name, record.cpus).coordinator
        self._local = threading.local()
        self._client = (os.getpid(), uuid.uuid4().bytes)
        self._sequence = itertools.count(1)

    # ------------------------------------------------------------------------------- requests

    def check_listening(self) -> None:
        """Raise EngineNotRunning if it shows at once that nobody listens at a TCP address.

        ZeroMQ goes on trying, which is right for an engine that is restarted, and tells nobody.
        """
        if not self.address.startswith("tcp://"):
            return
        host, _, port = self.address.removeprefix("tcp://").rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), LISTENING_S).close()
        except OSError as error:
            raise EngineNotRunning(
                f"nobody listens at {self.address}: {error.strerror or error}",
                "check the address, and there start the engine with: nova-mp start NAME --tcp",
            ) from None

    def hello(self) -> m.HelloReply:
        """Who the engine is and where its workers listen."""
        return self._expect(m.HelloReply, self.request(self._hello()))

    @staticmethod
    def _hello() -> m.Hello:
        return m.Hello(__version__, identity.host(), os.getpid())

    def status(self) -> m.StatusReply:
        """State of the engine."""
        return self._expect(m.StatusReply, self.request(m.Status()))

    def snapshot_create(self, name: str | None = None, timeout: float | None = None) -> int:
        """Take a snapshot; returns its id, the epoch that it closed, once it is complete.

        FileExistsError if the name is taken. `timeout` in seconds is how long it may wait for a
        frozen file system; Timeout then.
        """
        limit = self.timeout if timeout is None else timeout
        reply = self.request(m.SnapshotCreate(name, limit), limit + REPLY_MARGIN_S)
        return self._expect(m.SnapshotCreated, reply).epoch_id

    def snapshot_delete(
        self, epoch_id: int, timeout: float | None = None, *, defer: bool = False
    ) -> bool:
        """Delete a snapshot. NoSuchSnapshot; OSError(EBUSY) while somebody has it open.

        With `defer` that is no error: it is deleted once nobody has it open, and False comes back.
        """
        limit = self.timeout if timeout is None else timeout
        reply = self.request(m.SnapshotDelete(epoch_id, limit, defer), limit + REPLY_MARGIN_S)
        return not self._expect(m.SnapshotDeleted, reply).deferred

    def snapshot_wait(self, timeout: float | None = None) -> None:
        """Wait until the cleaner has nothing left to free; `timeout` None waits for ever."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            step = 60.0 if deadline is None else min(60.0, max(0.0, deadline - time.monotonic()))
            try:
                self._expect(m.Done, self.request(m.SnapshotWait(step), step + REPLY_MARGIN_S))
                return
            except Timeout:
                if deadline is not None and time.monotonic() >= deadline:
                    raise

    def freeze(
        self, timeout: float = 5.0, *, lease: float | None = None, hold: bool = True
    ) -> None:
        """Let running operations finish and hold new ones, until `unfreeze`.

        `timeout` (seconds) bounds the wait for running operations; Timeout then. It thaws by
        itself after `lease` seconds (default: as `timeout`; 0: never), and, with `hold`, when this
        process dies. Raises Frozen when it is frozen already.
        """
        timeout = seconds(timeout)
        lease = timeout if lease is None else lease
        host, pid = (identity.host(), os.getpid()) if hold else ("", 0)
        freeze = m.Freeze(timeout, lease, host, pid)
        self._expect(m.Done, self.request(freeze, timeout + REPLY_MARGIN_S))

    def unfreeze(self) -> None:
        """End a freeze, whoever holds it; OSError(EINVAL) if nothing is frozen."""
        self._expect(m.Done, self.request(m.Unfreeze()))

    def stop(self, force: bool = False) -> None:
        """Ask the engine to stop; returns once it has begun to.

        ArenaBusy while processes are attached, unless `force`.
        """
        self._expect(m.Done, self.request(m.Stop(force)))

    # ------------------------------------------------------------------------------- exchange

    def request(self, message: Any, timeout: float | None = None) -> Any:
        """Send any request and return its reply; an error reply is raised.

        Raises Timeout after `timeout` seconds (default: the client's), and EngineNotRunning as
        soon as the engine is known to be gone.
        """
        limit = self.timeout if timeout is None else timeout
        deadline = time.monotonic() + limit
        ident = self._next_id()
        frames = codec.encode(message, ident)
        held = self._socket()
        poller = zmq.Poller()
        poller.register(held.dealer, zmq.POLLIN)
        if held.events is not None:
            poller.register(held.events, zmq.POLLIN)
        pidfd = self._watch_engine()
        if pidfd is not None:
            poller.register(pidfd, zmq.POLLIN)
        try:
            return self._exchange(held, poller, frames, ident, deadline)
        finally:
            if pidfd is not None:
                os.close(pidfd)

    def _exchange(
        self, held: _Socket, poller: zmq.Poller, frames: Any, ident: bytes, deadline: float
    ) -> Any:
        send_at, dealer, times_sent = 0.0, held.dealer, 0
        while True:
            now = time.monotonic()
            if now >= deadline:
                raise Timeout(
                    "the coordinator did not answer in time", "see nova-mp status, or wait longer"
                )
            if now >= send_at:
                send_at = now + RESEND_S
                # A full queue means that nobody takes requests; the deadline ends the wait.
                if dealer.poll(0, zmq.POLLOUT):
                    dealer.send_multipart(frames)
                    times_sent += 1
            wait_s = min(deadline, send_at) - now
            ready = [source for source, _ in poller.poll(int(wait_s * 1000) + 1)]
            if dealer in ready:
                reply = self._receive(dealer, ident)
                if m.session_unknown(reply):
                    if times_sent > 1:
                        raise EngineNotRunning(
                            "the coordinator was restarted during the request",
                            "look whether it was carried out before you repeat it",
                        )
                    dealer.send_multipart(codec.encode(self._hello(), self._next_id()))
                    dealer.send_multipart(frames)
                elif isinstance(reply, m.ErrorReply):
                    raise m.error_of(reply)
                elif reply is not None:
                    return reply
            elif held.events in ready:
                held.look_at_events()
            elif ready:
                raise self._gone()

    @staticmethod
    def _receive(dealer: Any, ident: bytes) -> Any:
        """The reply to request `ident`; None for any other message."""
        envelope = codec.decode(dealer.recv_multipart())
        if envelope.request_id != ident:
            # The reply to a request that timed out, or the second one to one that was resent.
            return None
        return envelope.message

    @staticmethod
    def _expect(kind: type, reply: Any) -> Any:
        if not isinstance(reply, kind):
            raise ProtocolError(f"the coordinator answers with {type(reply).__name__}")
        return reply

    # --------------------------------------------------------------------------------- engine

    def _socket(self) -> _Socket:
        held: _Socket | None = getattr(self._local, "socket", None)
        if held is None or held.pid != os.getpid():
            held = _Socket(self.address, self._keys)
            self._local.socket = held
        return held

    def _next_id(self) -> bytes:
        """The id of another request of this client in this process: a forked child is another."""
        if self._client[0] != os.getpid():
            self._client = (os.getpid(), uuid.uuid4().bytes)
        return codec.request_id(self._client[1], next(self._sequence))

    def _watch_engine(self) -> int | None:
        """A pidfd of the engine's supervisor; None when it is not on this machine."""
        if self._name is None or self._engine is None:
            return None
        pidfd = identity.open_pidfd(*self._engine)
        if pidfd is None:
            # It may have been stopped and started again since.
            record = running_engine(self._name)
            self._engine = (record.pid, record.start_ticks)
            pidfd = identity.open_pidfd(*self._engine)
        if pidfd is None:
            raise self._gone()
        return pidfd

    def _gone(self) -> EngineNotRunning:
        return not_running(self._name or self.address)

    def close(self) -> None:
        """Close this thread's socket; those of other threads close when they end."""
        held: _Socket | None = getattr(self._local, "socket", None)
        if held is not None:
            held.close()
            del self._local.socket

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def seconds(timeout: float) -> float:
    """A time limit as it may travel; TypeError or ValueError for what is none."""
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"a timeout is a number of seconds, not {type(timeout).__name__}")
    if not 0 <= timeout <= SECONDS_MAX:
        raise ValueError(f"a timeout is of 0 to {SECONDS_MAX:.0f} seconds, not {timeout}")
    return float(timeout)


def not_running(name: str) -> EngineNotRunning:
    """The error for an arena whose engine does not run, or not where we look for it."""
    if "://" not in name and config.engine_elsewhere(name):
        return EngineNotRunning(
            f"the engine of arena '{name}' is not in {config.runtime_root()}",
            config.ELSEWHERE_REMEDY,
        )
    return EngineNotRunning(
        f"the engine of arena '{name}' is not running", f"start it with: nova-mp start {name}"
    )


def running_engine(name: str) -> config.EngineRecord:
    """The record of arena `name`'s engine, which is in service.

    Raises EngineNotRunning, or ArenaNotFound when there is no such arena.
    """
    record = config.read_engine_record(name)
    if record is not None and record.ready and identity.alive(record.pid, record.start_ticks):
        return record
    if not segment.pmem_exists(name):
        raise segment.missing_arena(name)
    raise not_running(name)

"""A channel to a worker: requests over one DEALER socket, each carried out once.

A request is sent once. Only when the worker answers a later Ping, and the request is still open, is
it known to be lost (a channel is a queue in both directions), and sent again under the same id: if
it had been carried out, and only its reply was lost, the worker repeats the reply. A worker that
was restarted does not know the session any more; then requests that change nothing are sent again,
and the others fail with EngineNotRunning, since nobody knows whether they were carried out.
"""

from __future__ import annotations

import errno
import os
import socket as unix
import threading
import time
from collections.abc import Sequence
from typing import Any

import zmq

from nova_mp.client.keys import Keys, unlock
from nova_mp.errors import EngineNotRunning, ProtocolError, Timeout
from nova_mp.protocol import codec, fileops
from nova_mp.protocol.messages import (
    Bye,
    ErrorReply,
    Hello,
    HelloReply,
    Ping,
    Pong,
    error_of,
    session_unknown,
)

PROBE_SECONDS = 0.5
"""How long a channel waits for a reply before it asks whether the worker is there."""

GRACE_SECONDS = 10.0
"""How long a worker may be away (its supervisor restarts it) before the engine counts as gone."""

WINDOW_REQUESTS = 128
"""Most requests of one channel from the oldest that is open to the newest. The worker remembers at
least as many replies, so it still has that of any request that may be sent again."""

WINDOW_BYTES = 64 << 20
"""Most payload of one channel on its way, in either direction; one request always fits."""

COPY_BYTES_MAX = 32 << 10
"""Payload frames up to this size are copied: cheaper than the bookkeeping of not copying."""

Payload = Sequence[Any]

_context: zmq.Context[Any] | None = None
_context_pid = 0
_context_lock = threading.Lock()


def _shared_context() -> zmq.Context[Any]:
    """The ZeroMQ context of this process; one I/O thread serves all its connections."""
    global _context, _context_pid  # noqa: PLW0603 - one per process, and a new one after a fork
    with _context_lock:
        if _context is None or _context_pid != os.getpid():
            _context = zmq.Context()
            _context_pid = os.getpid()
        return _context


def _after_fork() -> None:
    global _context_lock  # noqa: PLW0603 - the parent's may be held by a thread we do not have
    _context_lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


class Exchange:
    """A request on its way, and then its reply."""

    __slots__ = (
        "done",
        "error",
        "frames",
        "large",
        "message",
        "payload",
        "reply",
        "sent",
        "sequence",
        "size",
        "times_sent",
    )

    def __init__(
        self, message: Any, frames: list[Any], sequence: int, size: int, large: bool
    ) -> None:
        self.message = message
        self.frames = frames
        self.sequence = sequence
        # Bytes of payload, there or back, that count against the window.
        self.size = size
        # Whether the reply may have a frame that is not worth copying.
        self.large = large
        self.times_sent = 0
        self.sent = 0.0
        self.done = False
        self.reply: Any = None
        self.payload: Payload = ()
        self.error: Exception | None = None

    def finish(self, reply: Any, payload: Payload) -> None:
        self.reply, self.payload, self.done = reply, payload, True
        self.frames = []

    def fail(self, error: Exception) -> None:
        self.error, self.done = error, True
        self.frames = []


class Channel:
    """One DEALER socket to a worker, used by one thread at a time."""

    def __init__(self, address: str, hello: Hello, keys: Keys | None = None) -> None:
        self._address = address
        self._keys = keys
        self._hello = hello
        # Also the routing id: a reconnect finds the same session.
        self._client = os.urandom(16)
        self._sequence = 0
        self._open: dict[int, Exchange] = {}
        self._bytes = 0
        self._large = 0
        self._probe: Exchange | None = None
        # Requests that nobody waits for any more, whose reply says what there is to close.
        self._given_up: set[int] = set()
        self._patience_ms = -1
        self._sent = 0.0
        self.greeting: HelloReply | None = None
        self._socket = self._connect()

    def _connect(self) -> zmq.Socket[Any]:
        """A socket of this channel's session; one after another, never two."""
        made = _shared_context().socket(zmq.DEALER)
        made.setsockopt(zmq.LINGER, 0)
        # A zero routing id byte is reserved by ZeroMQ, hence the letter in front.
        made.setsockopt(zmq.ROUTING_ID, b"c" + self._client)
        # Lost connections are noticed, and tried again, well within PROBE_SECONDS.
        made.setsockopt(zmq.RECONNECT_IVL, 20)
        made.setsockopt(zmq.RECONNECT_IVL_MAX, 200)
        unlock(made, self._address, self._keys)
        made.connect(self._address)
        self._patience_ms = -1
        return made

    # ---- requests

    def greet(self, deadline: float | None) -> HelloReply:
        """Open the session; the worker's identity."""
        exchange = self.send(self._hello)
        self.wait(exchange, deadline)
        reply = result_of(exchange)[0]
        if not isinstance(reply, HelloReply):
            raise ProtocolError(f"{self._address} answers hello with {type(reply).__name__}")
        self.greeting = reply
        return reply

    def send(self, message: Any, payload: Payload = (), expect_bytes: int = 0) -> Exchange:
        """Send a request without waiting; `expect_bytes` is the size of the reply's payload."""
        size = sum(map(len, payload)) + expect_bytes
        self._sequence += 1
        ident = codec.request_id(self._client, self._sequence)
        frames = codec.encode(message, ident, payload)
        large = expect_bytes > COPY_BYTES_MAX
        exchange = Exchange(message, frames, self._sequence, size, large)
        self._open[exchange.sequence] = exchange
        self._bytes += size
        self._large += large
        self._transmit(exchange)
        return exchange

    def room(self, size: int) -> bool:
        """Whether another request with `size` bytes of payload fits the window."""
        if not self._open:
            return True
        oldest = next(iter(self._open))
        return self._sequence - oldest < WINDOW_REQUESTS and self._bytes + size <= WINDOW_BYTES

    def wait(self, exchange: Exchange, deadline: float | None) -> None:
        """Receive until `exchange` is done; `deadline` is of time.monotonic(), None for ever.

        Raises Timeout or EngineNotRunning; the exchange is given up then.
        """
        absent_since: float | None = None
        while not exchange.done:
            patience = PROBE_SECONDS
            if deadline is not None:
                patience = min(patience, deadline - time.monotonic())
                if patience <= 0:
                    self._give_up(exchange)
                    raise Timeout(
                        f"no reply to {type(exchange.message).__name__} in time",
                        "see what the engine does with: nova-mp status",
                    )
            if self._receive(max(1, int(patience * 1000))):
                absent_since = None
                continue
            if self._listening():
                absent_since = None
                self._send_probe()
                continue
            absent_since = absent_since or time.monotonic()
            if time.monotonic() - absent_since > GRACE_SECONDS or self.greeting is None:
                self._give_up(exchange)
                raise self._gone()

    def wait_for_room(self, size: int, deadline: float | None) -> None:
        """Receive until another request with `size` bytes of payload fits the window."""
        while not self.room(size):
            self.wait(next(iter(self._open.values())), deadline)

    def keep_alive(self, idle_s: float) -> None:
        """Let the worker hear of us if nothing was sent for `idle_s` seconds."""
        if time.monotonic() - self._sent < idle_s:
            return
        # What has come meanwhile are replies to earlier pings.
        while self._receive(1):
            continue
        # A full queue means that nobody is there to hear.
        if self._socket.poll(0, zmq.POLLOUT):
            self._sent = time.monotonic()
            self._abandon(Ping())

    def close(self, bye: bool) -> None:
        """Close the socket; with `bye` the worker is told that the session ends."""
        if self._socket.closed:
            return
        if bye:
            try:
                frames = codec.encode(Bye(), codec.request_id(self._client, self._sequence + 1))
                self._socket.send_multipart(frames, zmq.DONTWAIT)
            except zmq.Again:
                # Nobody is there to be told. The worker ends the sessions of dead processes.
                bye = False
        self._socket.close(linger=200 if bye else 0)

    # ---- the wire

    def _transmit(self, exchange: Exchange) -> None:
        exchange.times_sent += 1
        exchange.sent = self._sent = time.monotonic()
        frames = exchange.frames
        large = len(frames) > 1 and sum(map(len, frames[1:])) > COPY_BYTES_MAX
        try:
            self._socket.send_multipart(frames, copy=not large)
        except BaseException:
            self._start_socket_over()
            raise

    def _receive(self, patience_ms: int) -> bool:
        """Take in one reply; False if none came in time."""
        if patience_ms != self._patience_ms:
            # A limit of the socket costs less than asking a poller each time.
            self._socket.setsockopt(zmq.RCVTIMEO, patience_ms)
            self._patience_ms = patience_ms
        as_frames = self._large > 0
        try:
            frames: list[Any] = self._socket.recv_multipart(0, not as_frames)
        except zmq.Again:
            return False
        except BaseException:
            self._start_socket_over()
            raise
        if as_frames:
            frames = [frames[0].bytes, *(frame.buffer for frame in frames[1:])]
        self._dispatch(codec.decode(frames))
        return True

    def _start_socket_over(self) -> None:
        """After an interrupt (Ctrl-C) half a message may be in the socket: take another one.

        The session stays; what was under way is waited for by nobody.
        """
        for exchange in tuple(self._open.values()):
            self._give_up(exchange)
        self._probe = None
        self._socket.close(linger=0)
        self._socket = self._connect()

    def _dispatch(self, envelope: codec.Envelope) -> None:
        sequence = int.from_bytes(envelope.request_id[16:], "big")
        reply = envelope.message
        exchange = self._open.get(sequence)
        if exchange is None:
            # The second reply to a request that was sent again, or one nobody waits for any more.
            if sequence in self._given_up:
                self._given_up.discard(sequence)
                self._undo(reply)
            return
        if exchange is self._probe:
            self._remove(exchange)
            exchange.finish(reply, ())
            self._probe = None
            self._probed(exchange.sequence, reply)
            return
        if session_unknown(reply):
            # If it was sent once, then to the worker that refused it: it was not carried out.
            self._session_lost(exchange, refused=exchange.times_sent == 1)
            return
        self._remove(exchange)
        exchange.finish(reply, envelope.payload)

    def _remove(self, exchange: Exchange) -> None:
        if self._open.pop(exchange.sequence, None) is None:
            return
        self._bytes -= exchange.size
        self._large -= exchange.large

    def _give_up(self, exchange: Exchange) -> None:
        self._remove(exchange)
        exchange.frames = []
        if isinstance(exchange.message, fileops.Open | fileops.OpenView):
            self._given_up.add(exchange.sequence)

    def _undo(self, reply: Any) -> None:
        """Close what was opened for somebody who had stopped waiting."""
        if isinstance(reply, fileops.Opened):
            self._abandon(fileops.Close(reply.handle))
        elif isinstance(reply, fileops.ViewOpened):
            self._abandon(fileops.CloseView(reply.view))

    def _abandon(self, message: Any) -> None:
        """Send a request whose reply nobody waits for."""
        self._sequence += 1
        ident = codec.request_id(self._client, self._sequence)
        self._socket.send_multipart(codec.encode(message, ident))

    # ---- lost requests and lost workers

    def _send_probe(self) -> None:
        if self._probe is None:
            self._probe = self.send(Ping())
        elif time.monotonic() - self._probe.sent > 4 * PROBE_SECONDS:
            # Probes get lost as requests do. A busy worker is to find a few of them, not hundreds.
            self._transmit(self._probe)

    def _probed(self, sequence: int, reply: Any) -> None:
        """A probe was answered: whatever was sent before it and is still open was lost."""
        lost = [exchange for exchange in self._open.values() if exchange.sequence < sequence]
        if isinstance(reply, Pong):
            for exchange in lost:
                self._transmit(exchange)
            return
        for exchange in lost:
            self._session_lost(exchange, refused=False)

    def _session_lost(self, exchange: Exchange, refused: bool) -> None:
        """The worker does not know us; unless it `refused` it, another one may have done it."""
        message = exchange.message
        if isinstance(message, Hello):
            # The greeting itself was lost.
            self._transmit(exchange)
        elif _bound(message):
            # What the handle stood for went away with the worker that had it.
            self._remove(exchange)
            exchange.fail(OSError(errno.ESTALE, os.strerror(errno.ESTALE)))
        elif not refused and type(message) not in fileops.RETRYABLE:
            self._remove(exchange)
            exchange.fail(
                EngineNotRunning(
                    f"the worker was restarted during {type(message).__name__}",
                    "look whether it was carried out before you repeat it",
                )
            )
        else:
            self._abandon(self._hello)
            self._transmit(exchange)

    def _listening(self) -> bool:
        """Whether somebody accepts connections at the address; True if that cannot be asked."""
        if not self._address.startswith("ipc://"):
            return True
        with unix.socket(unix.AF_UNIX, unix.SOCK_STREAM) as probe:
            # A stopped worker accepts nothing, and its backlog may be full of probes like this.
            probe.setblocking(False)
            try:
                probe.connect(self._address.removeprefix("ipc://"))
            except (FileNotFoundError, ConnectionRefusedError):
                return False
            except BlockingIOError:
                # The backlog is full: there is a listener, and a busy one.
                return True
            return True

    def _gone(self) -> EngineNotRunning:
        return EngineNotRunning(
            f"nobody answers at {self._address}", "start the engine with: nova-mp start NAME"
        )


def _bound(message: Any) -> bool:
    """Whether a request names something that only one incarnation of a worker knows."""
    return getattr(message, "handle", 0) != 0 or getattr(message, "view", 0) != 0


def result_of(exchange: Exchange) -> tuple[Any, Payload]:
    """Reply and payload of a finished exchange; raises the error that it ended with."""
    if exchange.error is not None:
        raise exchange.error
    if isinstance(exchange.reply, ErrorReply):
        raise error_of(exchange.reply)
    return exchange.reply, exchange.payload

"""A channel to a worker: requests over one DEALER socket, each carried out once.

Requests that are posted travel together, many in one message, and so do their replies.

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
from nova_mp.client.requests import interrupted
from nova_mp.errors import EngineNotRunning, NovaError, ProtocolError, Timeout
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

BATCH_REQUESTS = 48
"""Requests held back at most, to travel in one message: two messages and more fit the window, so
the worker carries out one while the next is made and the replies to another are read."""

BATCH_BYTES = 256 << 10
"""Payload, there or back, that is held back at most."""

_CONTROL = 1 << 63
"""Sequence numbers from here on are not those of file operations, which the worker counts."""

_RCVMORE = int(zmq.RCVMORE)
_SNDMORE = int(zmq.SNDMORE)

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


class Forks:
    """How many forks lie between this process and the first; cheaper to ask for than a pid."""

    count = 0


def _after_fork() -> None:
    global _context_lock  # noqa: PLW0603 - the parent's may be held by a thread we do not have
    _context_lock = threading.Lock()
    Forks.count += 1


os.register_at_fork(after_in_child=_after_fork)


class Exchange:
    """A request on its way, and then its reply."""

    __slots__ = (
        "answer",
        "done",
        "error",
        "message",
        "payload",
        "reply",
        "sequence",
        "size",
        "stamp",
        "times_sent",
    )

    def __init__(self, message: Any, payload: Payload, sequence: int, size: int) -> None:
        self.message = message
        self.payload = payload
        self.sequence = sequence
        # Bytes of payload, there or back, that count against the window.
        self.size = size
        # When it was sent last, counted in messages of the channel.
        self.stamp = 0
        self.times_sent = 0
        self.done = False
        self.error: Exception | None = None
        self.reply: Any = None
        self.answer: Payload = ()

    def finish(self, reply: Any, answer: Payload) -> None:
        """It was answered, with this payload."""
        self.reply, self.answer, self.payload = reply, answer, ()
        self.done = True

    def fail(self, error: Exception) -> None:
        """It will not be answered."""
        self.error, self.payload = error, ()
        self.done = True


class Channel:
    """One DEALER socket to a worker, used by one thread at a time."""

    def __init__(self, address: str, hello: Hello, keys: Keys | None = None) -> None:
        self._address = address
        self._keys = keys
        self._hello = hello
        # Also the routing id: a reconnect finds the same session.
        self._client = os.urandom(16)
        self._sequence = 0
        self._control = _CONTROL
        self._open: dict[int, Exchange] = {}
        self._bytes = 0
        # What is held back to travel together, and its payload.
        self._queued: list[Exchange] = []
        self._queued_bytes = 0
        self._stamp = 0
        self._stamp_seen = 0
        self._probe: Exchange | None = None
        self._probed_at = 0.0
        # Requests that a worker refused because it does not know us, to be sent to it again.
        self._refused: list[Exchange] = []
        # Requests that nobody waits for any more, whose reply says what there is to close.
        self._given_up: set[int] = set()
        self._patience_ms = -1
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
        exchange = Exchange(self._hello, (), self._control_number(), 0)
        self._open[exchange.sequence] = exchange
        self._transmit([exchange])
        self.wait(exchange, deadline)
        reply = result_of(exchange)[0]
        if not isinstance(reply, HelloReply):
            raise ProtocolError(f"{self._address} answers hello with {type(reply).__name__}")
        self.greeting = reply
        return reply

    def send(self, message: Any, payload: Payload = (), expect_bytes: int = 0) -> Exchange:
        """Send a request without waiting; `expect_bytes` is the size of the reply's payload."""
        exchange = self._enter(message, payload, expect_bytes)
        try:
            if self._queued:
                self._transmit([*self._take_queued(), exchange])
            else:
                self._transmit_one(exchange, self._oldest())
        except (OverflowError, TypeError, ValueError) as error:
            # It has no encoding, so nothing of it was sent.
            self._give_up(exchange, error)
            raise
        except BaseException:
            self.start_over()
            raise
        return exchange

    def post(self, message: Any, payload: Payload = (), expect_bytes: int = 0) -> Exchange:
        """As `send`, but the request may be held back to travel with others, until `flush`."""
        try:
            exchange = self._enter(message, payload, expect_bytes)
            self._queued.append(exchange)
            self._queued_bytes += exchange.size
            if len(self._queued) >= BATCH_REQUESTS or self._queued_bytes >= BATCH_BYTES:
                self._transmit(self._take_queued())
        except BaseException:
            self.start_over()
            raise
        return exchange

    def flush(self) -> None:
        """Send what is held back."""
        if self._queued:
            try:
                self._transmit(self._take_queued())
            except BaseException:
                self.start_over()
                raise

    def _enter(self, message: Any, payload: Payload, expect_bytes: int) -> Exchange:
        size = sum(map(len, payload)) + expect_bytes if payload else expect_bytes
        self._sequence = sequence = self._sequence + 1
        exchange = Exchange(message, payload, sequence, size)
        self._open[sequence] = exchange
        self._bytes += size
        return exchange

    def _take_queued(self) -> list[Exchange]:
        queued, self._queued, self._queued_bytes = self._queued, [], 0
        return queued

    def room(self, size: int) -> bool:
        """Whether another request with `size` bytes of payload fits the window."""
        if not self._open:
            return True
        oldest = next(iter(self._open))
        return self._sequence - oldest < WINDOW_REQUESTS and self._bytes + size <= WINDOW_BYTES

    def wait(self, exchange: Exchange, deadline: float | None) -> None:
        """Receive until `exchange` is done; `deadline` is of time.monotonic(), None for ever.

        Raises Timeout or EngineNotRunning; the exchange is given up then. Any other exception is
        an interrupt (Ctrl-C); then everything on its way is given up.
        """
        if exchange.done:
            return
        if self._queued:
            self.flush()
        try:
            error = self._wait(exchange, deadline)
        except BaseException:
            self.start_over()
            raise
        if error is not None:
            self._give_up(exchange, error)
            raise error

    def _wait(self, exchange: Exchange, deadline: float | None) -> NovaError | None:
        """Receive until `exchange` is done, or until the error that comes back."""
        absent_since: float | None = None
        while not exchange.done:
            patience = PROBE_SECONDS
            if deadline is not None:
                patience = min(patience, deadline - time.monotonic())
                if patience <= 0:
                    return Timeout(
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
                return self._gone()
        return None

    def wait_for_room(self, size: int, deadline: float | None) -> None:
        """Receive until another request with `size` bytes of payload fits the window."""
        while not self.room(size):
            self.wait(next(iter(self._open.values())), deadline)

    def keep_alive(self) -> None:
        """Let the worker hear of us if nothing was sent since this was called before."""
        if self._stamp != self._stamp_seen:
            self._stamp_seen = self._stamp
            return
        # What has come meanwhile are replies to earlier pings.
        while self._receive(1):
            continue
        # A full queue means that nobody is there to hear.
        if self._socket.poll(0, zmq.POLLOUT):
            self._abandon(Ping())
            self._stamp_seen = self._stamp

    def start_over(self) -> None:
        """Give up all that is on its way, after an interrupt, and take another socket.

        There may be half a message in the old one. The session stays, with what it has open.
        """
        for exchange in tuple(self._open.values()):
            self._give_up(exchange, interrupted())
        self._open.clear()
        self._bytes = 0
        self._queued, self._queued_bytes, self._refused = [], 0, []
        self._probe = None
        self._socket.close(linger=0)
        self._socket = self._connect()

    def close(self, bye: bool) -> None:
        """Close the socket; with `bye` the worker is told that the session ends."""
        if self._socket.closed:
            return
        if bye:
            try:
                frames = codec.encode(Bye(), self._ident(self._control_number()))
                self._socket.send_multipart(frames, zmq.DONTWAIT)
            except zmq.Again:
                # Nobody is there to be told. The worker ends the sessions of dead processes.
                bye = False
        self._socket.close(linger=200 if bye else 0)

    # ---- the wire

    def _ident(self, sequence: int) -> bytes:
        return codec.request_id(self._client, sequence)

    def _control_number(self) -> int:
        self._control += 1
        return self._control

    def _oldest(self) -> int | None:
        """The lowest number that is waited for; whoever waits for one alone need not say so."""
        return next(iter(self._open)) if len(self._open) > 1 else None

    def _transmit(self, exchanges: Sequence[Exchange]) -> None:
        """Send requests in this order, small ones together."""
        oldest = self._oldest()
        together: list[Exchange] = []
        for exchange in exchanges:
            if len(exchanges) > 1 and codec.fits_batch(exchange.payload):
                together.append(exchange)
                if len(together) == BATCH_REQUESTS:
                    self._transmit_batch(together, oldest)
                    together = []
                continue
            if together:
                self._transmit_batch(together, oldest)
                together = []
            self._transmit_one(exchange, oldest)
        if together:
            self._transmit_batch(together, oldest)

    def _transmit_one(self, exchange: Exchange, oldest: int | None) -> None:
        self._stamp += 1
        exchange.stamp = self._stamp
        exchange.times_sent += 1
        ident = codec.request_id(self._client, exchange.sequence)
        frames = codec.encode(exchange.message, ident, exchange.payload, oldest)
        if len(frames) == 1:
            self._socket.send(frames[0])
            return
        # Payload that has frames of its own is large, and lent to the socket.
        self._socket.send(frames[0], _SNDMORE)
        self._socket.send_multipart(frames[1:], copy=False)

    def _transmit_batch(self, exchanges: Sequence[Exchange], oldest: int | None) -> None:
        self._stamp += 1
        for exchange in exchanges:
            exchange.stamp = self._stamp
            exchange.times_sent += 1
        several = [(one.message, self._ident(one.sequence), one.payload) for one in exchanges]
        self._socket.send(codec.encode_batch(several, oldest), copy=False)

    def _receive(self, patience_ms: int) -> bool:
        """Take in one message; False if none came in time."""
        socket = self._socket
        if patience_ms != self._patience_ms:
            # A limit of the socket costs less than asking a poller each time.
            socket.setsockopt(zmq.RCVTIMEO, patience_ms)
            self._patience_ms = patience_ms
        try:
            # Replies to many requests are not copied before they are taken apart.
            many = len(self._open) > 1
            frames: list[Any] = [socket.recv(copy=False).buffer if many else socket.recv()]
        except zmq.Again:
            return False
        while socket.get(_RCVMORE):
            frames.append(socket.recv(copy=False).buffer)
        for one in codec.decode_all(frames):
            if isinstance(one, codec.Rejected):
                raise one.error
            self._dispatch(one)
        if self._refused:
            refused, self._refused = self._refused, []
            self._abandon(self._hello)
            self._transmit(refused)
        return True

    def _dispatch(self, envelope: codec.Envelope) -> None:
        reply, ident, payload, _oldest = envelope
        sequence = codec.sequence_of(ident)
        exchange = self._open.get(sequence)
        if exchange is None:
            probe = self._probe
            if probe is not None and sequence == probe.sequence:
                self._probe = None
                self._probed(probe, reply)
            elif sequence in self._given_up:
                self._given_up.discard(sequence)
                self._undo(reply)
            # Else the second reply to a request that was sent again, or one nobody waits for.
        elif session_unknown(reply):
            # If it was sent once, then to the worker that refused it: it was not carried out.
            self._session_lost(exchange, refused=exchange.times_sent == 1)
        else:
            self._remove(exchange)
            exchange.finish(reply, payload)

    def _remove(self, exchange: Exchange) -> None:
        if self._open.pop(exchange.sequence, None) is not None:
            self._bytes -= exchange.size

    def _give_up(self, exchange: Exchange, error: Exception) -> None:
        self._remove(exchange)
        exchange.fail(error)
        if isinstance(exchange.message, fileops.Open | fileops.OpenView):
            self._given_up.add(exchange.sequence)

    def _undo(self, reply: Any) -> None:
        """Close what was opened for somebody who had stopped waiting."""
        if isinstance(reply, fileops.Opened):
            self.send(fileops.Close(reply.handle))
        elif isinstance(reply, fileops.ViewOpened):
            self.send(fileops.CloseView(reply.view))

    def _abandon(self, message: Any) -> None:
        """Send a request that is no file operation and whose reply nobody waits for."""
        self._stamp += 1
        frames = codec.encode(message, self._ident(self._control_number()))
        self._socket.send_multipart(frames)

    # ---- lost requests and lost workers

    def _send_probe(self) -> None:
        now = time.monotonic()
        if self._probe is None:
            self._probe = Exchange(Ping(), (), self._control_number(), 0)
        elif now - self._probed_at <= 4 * PROBE_SECONDS:
            # Probes get lost as requests do. A busy worker is to find a few of them, not hundreds.
            return
        stamp = self._probe.stamp
        self._transmit_one(self._probe, None)
        self._probed_at = now
        # Sent again, it still says nothing of what was sent after the first time.
        self._probe.stamp = stamp or self._probe.stamp

    def _probed(self, probe: Exchange, reply: Any) -> None:
        """A probe was answered: whatever was sent before it and is still open was lost."""
        lost = [exchange for exchange in self._open.values() if 0 < exchange.stamp < probe.stamp]
        if isinstance(reply, Pong):
            self._transmit(lost)
            return
        for exchange in lost:
            self._session_lost(exchange, refused=False)

    def _session_lost(self, exchange: Exchange, refused: bool) -> None:
        """The worker does not know us; unless it `refused` it, another one may have done it."""
        message = exchange.message
        if isinstance(message, Hello):
            # The greeting itself was lost.
            self._transmit([exchange])
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
            self._refused.append(exchange)

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
    return exchange.reply, exchange.answer

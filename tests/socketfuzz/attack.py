"""Sending a socket what it did not ask for, and seeing whether it still answers."""

from __future__ import annotations

import os
import socket as unix
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import zmq

import nova_mp
from nova_mp.protocol import codec, fileops
from nova_mp.protocol import messages as m
from socketfuzz.mutate import Mutator

BATCH = 500
ANSWER_S = 20.0
SESSION_MESSAGES = 10
PATHS = (b"/fuzz/a", b"/fuzz/b", b"/fuzz")


def resident_bytes(pid: int) -> int:
    """Memory of a process that is its own and in RAM; pages of segments are not counted."""
    with open(f"/proc/{pid}/status") as stream:
        rows = dict(line.split(":", 1) for line in stream)
    return int(rows["RssAnon"].split()[0]) * 1024


@contextmanager
def dealer(address: str) -> Iterator[Any]:
    """A client's socket, without a client."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as made:
        made.setsockopt(zmq.LINGER, 0)
        made.setsockopt(zmq.RECONNECT_IVL, 5)
        made.connect(address)
        yield made


class Requests:
    """Mutated requests to a ROUTER socket, a coordinator's or a worker's."""

    def __init__(self, socket: Any, seed: int) -> None:
        self._socket = socket
        # What is open belongs to a session of its own: those of the attack come and go.
        self._holder = socket.context.socket(zmq.DEALER)
        self._holder.setsockopt(zmq.LINGER, 0)
        self._holder.connect(socket.get_string(zmq.LAST_ENDPOINT))
        self._client = os.urandom(16)
        self._number = 0
        self.replies = 0
        reply = self.ask(m.Hello(nova_mp.__version__), self._holder)
        assert isinstance(reply, m.HelloReply)
        self._worker = reply.cpu >= 0
        opening = fileops.Open(b"/fuzz/a", os.O_RDWR | os.O_CREAT, 0o600, 0)
        opened = self.ask(opening, self._holder) if self._worker else None
        handle = opened.handle if isinstance(opened, fileops.Opened) else 1
        # A coordinator listens to those only who have said hello.
        self._mutator = Mutator(seed, handle, PATHS, self._client)

    def close(self) -> None:
        """Close what is this object's own."""
        self._holder.close()

    def ask(self, message: Any, socket: Any = None) -> Any:
        """The reply to a proper request, whatever comes in between; fails if none comes."""
        socket = socket or self._socket
        self._number += 1
        ident = codec.request_id(self._client, self._number)
        deadline = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline:
            # An oversized frame ends the connection, and what was under way with it.
            socket.send_multipart(codec.encode(message, ident))
            again = time.monotonic() + 1.0
            while socket.poll(max(0, int((again - time.monotonic()) * 1000))):
                self.replies += 1
                for one in codec.decode_all(socket.recv_multipart()):
                    assert isinstance(one, codec.Envelope)
                    if one.request_id == ident:
                        return one.message
        raise AssertionError(f"no answer to {type(message).__name__} for {ANSWER_S} s")

    def _drain(self) -> None:
        while True:
            try:
                self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            self.replies += 1

    def send(self, count: int) -> None:
        """Send `count` mutated messages, and then ask whether somebody is still there."""
        for number in range(count):
            if self._worker and number % SESSION_MESSAGES == 0:
                # A mutated sequence number makes a worker take what follows for old.
                self._socket.send_multipart(codec.encode(m.Bye()))
                self._socket.send_multipart(codec.encode(m.Hello(nova_mp.__version__)))
            self._socket.send_multipart(self._mutator.message())
            if number % 20 == 0:
                self._drain()
        assert isinstance(self.ask(m.Hello(nova_mp.__version__)), m.HelloReply)


def subscriptions(address: str, seed: int, count: int) -> None:
    """Mutated subscriptions to an XPUB socket, some of them with the bytes of requests."""
    mutator = Mutator(seed, 1, PATHS)
    with zmq.Context() as context, context.socket(zmq.XSUB) as raw:
        raw.setsockopt(zmq.LINGER, 0)
        raw.setsockopt(zmq.RECONNECT_IVL, 5)
        raw.connect(address)
        for number in range(count):
            frames = mutator.message()
            kind = (b"\x01", b"\x00", b"")[number % 3]
            # Nobody to send to for a moment: the last message ended the connection.
            if raw.poll(1000, zmq.POLLOUT):
                # One frame: XSUB itself takes several apart, and then ends this process.
                raw.send(kind + frames[0][:2000])
            while raw.poll(0):
                raw.recv_multipart()
    assert_events(address)


def assert_events(address: str) -> None:
    """A proper subscriber hears the current state."""
    with zmq.Context() as context, context.socket(zmq.SUB) as subscriber:
        subscriber.setsockopt(zmq.SUBSCRIBE, b"epoch")
        subscriber.connect(address)
        assert subscriber.poll(int(ANSWER_S * 1000)), "no event"
        topic, *frames = subscriber.recv_multipart()
        assert topic == b"epoch"
        assert isinstance(codec.decode(frames).message, m.EpochEvent)


def raw_bytes(address: str, seed: int, count: int) -> None:
    """Connections that do not speak ZeroMQ, or stop in the middle of it."""
    mutator = Mutator(seed, 1, PATHS)
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
    for number in range(count):
        with unix.socket(unix.AF_UNIX) as raw:
            raw.connect(address.removeprefix("ipc://"))
            raw.settimeout(5.0)
            start = greeting[: number % (len(greeting) + 1)] if number % 2 else greeting
            try:
                raw.sendall(start + mutator.message()[0][:1000])
            except (BrokenPipeError, ConnectionResetError):
                # It has heard enough already.
                continue

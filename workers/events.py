"""The coordinator's events: an XPUB socket that nobody can fill with subscriptions.

ZeroMQ keeps every topic that somebody subscribed to, known or not, and asks nobody. So topics are
counted, and when there are too many, all subscribers are dropped and the socket listens anew: who
means well comes back by itself, and hears the current state.
"""

from __future__ import annotations

from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from nova_mp.protocol import codec
from nova_mp.protocol import messages as m

from .gate import Gate

TOPICS_MAX = 256
SUBSCRIPTION_BYTES_MAX = 1024
"""Longest message from a subscriber; those of ZeroMQ's own handshake are shorter."""

CLOSED_MS = 5000
"""How long a listener may take to go, before another one may take its place."""


class Events:
    """Publishes to whoever subscribes. `socket` is to be polled; it changes in `take`."""

    def __init__(self, context: Any, gate: Gate, poller: Any) -> None:
        self._context = context
        self._gate = gate
        self._poller = poller
        self._topics: set[bytes] = set()
        self.socket: Any = self._open()

    def _open(self) -> Any:
        socket = self._context.socket(zmq.XPUB)
        socket.setsockopt(zmq.LINGER, 1000)
        socket.setsockopt(zmq.MAXMSGSIZE, SUBSCRIPTION_BYTES_MAX)
        # Every subscription is seen, also of one who comes back: it may have missed events.
        socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        self._gate.bind(socket, "events")
        self._poller.register(socket, zmq.POLLIN)
        return socket

    def publish(self, message: Any) -> None:
        """Send an event to those who subscribed to its type."""
        topic = m.registration(type(message)).type_name.encode()
        self.socket.send_multipart([topic, *codec.encode(message)])

    def take(self) -> bool:
        """Take in one message; True if somebody has subscribed, and does not know the state.

        Raises nothing, whatever was sent.
        """
        sent = self.socket.recv_multipart()[0]
        kind, topic = sent[:1], sent[1:]
        if kind == b"\x01":
            self._topics.add(topic)
        elif kind == b"\x00":
            self._topics.discard(topic)
        if len(self._topics) > TOPICS_MAX:
            self._start_over()
        return kind == b"\x01"

    def _start_over(self) -> None:
        """Drop all subscribers and listen anew."""
        listeners = self._gate.addresses("events")
        watch = self.socket.get_monitor_socket(zmq.EVENT_CLOSED)
        for address in listeners:
            self.socket.unbind(address)
        # A listener that goes late would take its successor's file with it.
        gone: set[str] = set()
        while len(gone) < len(listeners) and watch.poll(CLOSED_MS):
            address = recv_monitor_message(watch)["endpoint"].decode()
            gone |= {address} & set(listeners)
        self.close()
        watch.close()
        self._topics.clear()
        self.socket = self._open()

    def close(self) -> None:
        """Stop publishing."""
        self._poller.unregister(self.socket)
        self.socket.disable_monitor()
        self.socket.close()

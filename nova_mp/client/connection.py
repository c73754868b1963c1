"""A connection to a worker: a pool of channels, so that threads do not wait for each other.

A request borrows a channel, each with a socket and a session of its own, and gives it back with the
reply. So a channel is never used by two threads at once, and a finalizer that runs in the middle of
a request gets another channel than the one in use. After a fork the child starts with an empty
pool; the parent's sockets are left alone in it.

A worker on another machine cannot see whether this process lives, and ends sessions that are
silent. So there a thread sends a Ping over each channel that has been idle for KEEP_ALIVE_S.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from typing import Any

from nova_mp.client.channel import Channel, Forks, Payload, result_of
from nova_mp.client.keys import Keys
from nova_mp.protocol import identity
from nova_mp.protocol.messages import Hello, HelloReply
from nova_mp.version import __version__

KEEP_ALIVE_S = 30.0
"""A quarter of what a worker takes for the silence of the dead."""


class Connection:
    """All channels of one file system to one worker. Thread-safe, and usable after a fork."""

    def __init__(
        self,
        address: str,
        timeout: float | None = 30.0,
        title: str = "",
        keys: Keys | None = None,
    ) -> None:
        self.address = address
        self.timeout = timeout
        self._title = title
        self._keys = keys
        self._forks = Forks.count
        # Both ends of these queues are atomic: there is no lock that a fork could find held.
        self._idle: deque[Channel] = deque()
        self._forgotten: deque[Any] = deque()
        self._closed = False
        self._ended = threading.Event()
        self._keeper: threading.Thread | None = None

    def deadline(self) -> float | None:
        """When an operation that starts now is given up, by time.monotonic()."""
        return None if self.timeout is None else time.monotonic() + self.timeout

    def greet(self) -> HelloReply:
        """Reach the worker for the first time; EngineNotRunning if nobody is there."""
        channel = self.borrow()
        assert channel.greeting is not None
        self.give_back(channel)
        return channel.greeting

    def call(self, message: Any, payload: Payload = (), expect_bytes: int = 0) -> tuple[Any, Any]:
        """Send one request and wait for its reply and the reply's payload."""
        channel = self.borrow()
        try:
            while self._forgotten:
                channel.wait_for_room(0, self.deadline())
                channel.send(self._forgotten.popleft())
            exchange = channel.send(message, payload, expect_bytes)
            channel.wait(exchange, self.deadline())
        finally:
            self.give_back(channel)
        return result_of(exchange)

    def forget(self, message: Any) -> None:
        """Send this, which closes something at the worker, along with the next request."""
        self._forgotten.append(message)

    @property
    def closed(self) -> bool:
        """True once closed."""
        return self._closed

    def borrow(self) -> Channel:
        """A channel for the caller alone, to be given back."""
        if self._closed:
            raise ValueError("operation on a closed file system")
        if self._forks != Forks.count:
            self._start_over()
        try:
            # Last in, first out: the fewest channels are used, and the warmest.
            return self._idle.pop()
        except IndexError:
            return self._new_channel()

    def give_back(self, channel: Channel) -> None:
        """Return a borrowed channel."""
        if self._closed:
            channel.close(bye=True)
        else:
            self._idle.append(channel)

    def close(self) -> None:
        """End all sessions; the worker closes what they have open."""
        if self._closed:
            return
        self._closed = True
        self._ended.set()
        if self._forks != Forks.count:
            return
        while self._idle:
            self._idle.pop().close(bye=True)

    def _new_channel(self) -> Channel:
        host, pid = identity.host(), os.getpid()
        channel = Channel(self.address, Hello(__version__, host, pid, self._title), self._keys)
        try:
            channel.greet(self.deadline())
        except BaseException:
            channel.close(bye=False)
            raise
        if channel.greeting is not None and channel.greeting.host != host:
            self._keep_alive()
        return channel

    def _keep_alive(self) -> None:
        """Have a thread that keeps sessions alive; it ends with the connection, closed or not."""
        if self._keeper is None:
            arguments = (weakref.ref(self), self._ended)
            self._keeper = threading.Thread(target=_keep, args=arguments, daemon=True)
            self._keeper.start()

    def ping_idle(self) -> None:
        """Send a Ping over each channel that nobody has used since this was called before."""
        for _ in range(len(self._idle)):
            try:
                channel = self._idle.popleft()
            except IndexError:
                return
            try:
                channel.keep_alive()
            finally:
                self.give_back(channel)

    def _start_over(self) -> None:
        """In a forked child: the channels are the parent's, and stay so."""
        self._forks = Forks.count
        self._idle = deque()
        self._forgotten = deque()
        self._ended = threading.Event()
        self._keeper = None


def _keep(connection: weakref.ref[Connection], ended: threading.Event) -> None:
    """Body of the thread that keeps sessions alive."""
    while not ended.wait(KEEP_ALIVE_S / 2):
        found = connection()
        if found is None:
            return
        found.ping_idle()
        del found

"""The way in to a process's sockets: the owner's by Unix sockets, everybody else's by keys.

A socket listens in the runtime folder, where the kernel keeps others out: the folder has mode 0700
and its sockets 0600. By option it listens on TCP as well, there with CURVE alone: the engine shows
that it has its secret key, and of clients those get in whose public key is listed in `authorized`.

GATE-1  A TCP listener is bound only with the engine's keys set and with somebody to ask (ZAP).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zmq

from nova_mp import config
from nova_mp.client import keys

if TYPE_CHECKING:
    from .process import Child

ZAP_ADDRESS = "inproc://zeromq.zap.01"
"""Where ZeroMQ asks whether a client may come in (RFC 27)."""

DOMAIN = b"nova_mp"
PRIVATE_UMASK = 0o177


@dataclass(frozen=True, slots=True)
class Tcp:
    """Where an engine listens on TCP, its keys, and who has a key to it."""

    endpoints: config.Endpoints
    own: keys.Keys
    authorized: keys.Authorized


def open_tcp(tcp: str, cpus: int, folder: str) -> Tcp:
    """What the engine's processes need for TCP; read once, so that all have the same keys."""
    place = Path(folder)
    endpoints = config.tcp_endpoints(tcp, cpus)
    return Tcp(endpoints, keys.load_engine(place), keys.Authorized(place))


class Gate:
    """Binds the sockets of one process, and answers ZeroMQ's questions about clients' keys."""

    def __init__(self, context: Any, child: Child, poller: Any) -> None:
        self._child = child
        self.socket: Any = None
        """Readable when ZeroMQ asks; None without TCP. `answer` takes it from there."""
        if child.tcp is not None:
            self.socket = context.socket(zmq.REP)
            self.socket.setsockopt(zmq.LINGER, 0)
            self.socket.bind(ZAP_ADDRESS)
            poller.register(self.socket, zmq.POLLIN)

    def addresses(self, what: str) -> list[str]:
        """Where a socket listens: "coordinator", "events" or (this process's) "worker"."""
        places = [self._child.endpoints]
        if self._child.tcp is not None:
            places.append(self._child.tcp.endpoints)
        if what == "worker":
            return [place.workers[self._child.cpu] for place in places]
        return [str(getattr(place, what)) for place in places]

    def bind(self, socket: Any, what: str) -> None:
        """Let `socket` listen at its addresses.

        Options of a listener are those that the socket has when it is bound, so the same socket
        takes both kinds of clients.
        """
        own, *others = self.addresses(what)
        before = os.umask(PRIVATE_UMASK)
        try:
            socket.bind(own)
        finally:
            os.umask(before)
        tcp = self._child.tcp
        if tcp is None:
            return
        keys.watch_over(socket)
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, tcp.own.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, tcp.own.secret)
        # Enforced: with nobody to ask nobody comes in.
        socket.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        for address in others:
            if "[" in address:
                socket.setsockopt(zmq.IPV6, 1)
            socket.bind(address)

    def answer(self) -> None:
        """Answer one question: version, request, domain, address, identity, mechanism, key."""
        asked = self.socket.recv_multipart()
        version, request, _, address, _, mechanism = asked[:6]
        name = None
        if self._child.tcp is not None and mechanism == b"CURVE" and len(asked) == 7:
            name = self._child.tcp.authorized.name_of(asked[6])
        if name is None:
            self._child.log.warning("client refused", address=address.decode(errors="replace"))
        status = [b"200", b"", name.encode()] if name else [b"400", b"not authorized", b""]
        self.socket.send_multipart([version, request, *status, b""])

    def close(self) -> None:
        """After the sockets: nobody asks any more."""
        if self.socket is not None:
            self.socket.close()

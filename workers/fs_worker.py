"""A worker process: one emulated CPU's server for remote clients' file operations."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import zmq

from nova_mp.cluster import vocabulary as v
from nova_mp.cluster.fileops import FileOpServer
from nova_mp.cluster.worker import TICK_S, Worker
from nova_mp.errors import NovaError
from nova_mp.protocol import codec, identity
from nova_mp.protocol import messages as m
from nova_mp.version import __version__

from . import process
from .busypoll import BusyPoll
from .gate import Gate

TURN_REQUESTS = 64
"""Requests carried out before the control channel is looked at again. The socket takes turns with
its clients, a message of each; a message holds at most codec.BATCH_MESSAGES_MAX requests."""

DRAIN_S = 1.0
"""How long what has arrived may be answered after quit."""

_POLLIN = int(zmq.POLLIN)
_EVENTS = int(zmq.EVENTS)
_RCVMORE = int(zmq.RCVMORE)
_SNDMORE = int(zmq.SNDMORE)
_DONTWAIT = int(zmq.DONTWAIT)


class WorkerProcess:
    """Socket and loop around the state machine and the file-operation server."""

    def __init__(self, child: process.Child) -> None:
        self._child = child
        greeting = m.HelloReply(
            arena=child.name,
            engine_id=child.engine_id,
            package_version=__version__,
            cpus=child.cpus,
            cpu=child.cpu,
            media=child.media,
            coordinator=child.endpoints.coordinator,
            events=child.endpoints.events,
            workers=child.endpoints.workers,
            host=identity.host(),
        )
        self._machine = Worker(greeting)
        self._arena = process.Arena(child.name, "worker", child.cpu, child.title)
        self._server = FileOpServer(self._arena.core)
        self._exit = False
        # While a batch is carried out: its replies so far.
        self._replies: list[Any] | None = None
        self._tick_at = time.monotonic() + TICK_S
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.LINGER, 1000)
        # A client that reconnects keeps its routing id, and so its session.
        self._router.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._router.setsockopt(zmq.MAXMSGSIZE, codec.PAYLOAD_BYTES_MAX)
        self._busy_poll = BusyPoll(self._waiting, len(os.sched_getaffinity(0)))
        self._poller = zmq.Poller()
        self._gate = Gate(self._context, child, self._poller)
        self._gate.bind(self._router, "worker")
        for source in (self._router, child.control.fileno(), child.signals.fileno()):
            self._poller.register(source, zmq.POLLIN)
        self._watch = process.ProcessWatch(self._poller)
        # Now that ZeroMQ has its threads, which run where there is room.
        core = process.pin(child)
        if core is not None:
            child.log.info("pinned", core=core)

    def run(self) -> None:
        """Serve until the supervisor says quit, then answer what has arrived."""
        self._child.control.send(m.ChildReady(self._child.title, os.getpid()))
        self._child.log.info("serving", address=self._child.endpoints.workers[self._child.cpu])
        drain_until: float | None = None
        while not self._exit:
            wait_s = 0.0 if drain_until is not None else self._tick_at - time.monotonic()
            ready = self._poller.poll(int(max(0.0, wait_s) * 1000))
            now = time.monotonic()
            for source, _ in ready:
                if source is self._router:
                    self._busy_poll.woken()
                    self._receive(now)
                elif source is self._gate.socket:
                    self._gate.answer()
                elif (pid := self._watch.died(source)) is not None:
                    self._carry_out(self._machine.step(v.HolderDied(pid, now)))
                elif drain_until is None and process.quit_asked(self._child):
                    drain_until = now + DRAIN_S
                    self._carry_out(self._machine.step(v.QuitAsked(now)))
            if now >= self._tick_at:
                self._tick_at = now + TICK_S
                self._carry_out(self._machine.step(v.Tick(now)))
            idle = all(source is not self._router for source, _ in ready)
            if drain_until is not None and (idle or now > drain_until):
                self._carry_out(self._machine.step(v.Drained()))

    def _receive(self, now: float) -> None:
        left = TURN_REQUESTS
        while left > 0:
            try:
                peer, frames = self._take()
            except zmq.Again:
                return
            left -= self._serve(peer, frames, now)
            # Asking costs less than the exception that an empty socket would raise.
            if not self._busy_poll.look():
                return

    def _waiting(self) -> bool:
        return bool(int(self._router.get(_EVENTS)) & _POLLIN)

    def _take(self) -> tuple[bytes, list[codec.Buffer]]:
        """One message from the socket: who sent it, and its frames; zmq.Again if there is none."""
        router = self._router
        # A frame at a time: recv_multipart does the same with several times the work.
        peer: bytes = router.recv(_DONTWAIT)
        frames: list[codec.Buffer] = [router.recv(_DONTWAIT)]
        while router.get(_RCVMORE):
            frames.append(router.recv(_DONTWAIT, copy=False).buffer)
        return peer, frames

    def _serve(self, peer: bytes, frames: list[codec.Buffer], now: float) -> int:
        """Carry out what is in one message; how many requests that were."""
        machine = self._machine
        try:
            several = codec.decode_all(frames)
        except NovaError as error:
            ident = codec.peek_request_id(frames)
            self._carry_out(machine.step(v.Malformed(peer, ident, error)))
            return 1
        count = len(several)
        self._replies = [] if count > 1 else None
        for one in several:
            if isinstance(one, codec.Rejected):
                self._carry_out(machine.step(v.Malformed(peer, one.request_id, one.error)))
                continue
            message, ident, payload, oldest = one
            keep = machine.admit(peer, ident, type(message), oldest, now)
            if keep is None:
                request = v.Request(peer, ident, message, now, payload, oldest)
                self._carry_out(machine.step(request))
                continue
            reply, answer = self._file_op(peer, message, payload)
            if keep or type(reply) is m.ErrorReply:
                machine.answered(peer, ident, reply, answer, keep)
            self._send(peer, ident, reply, answer)
        if self._replies is not None:
            replies, self._replies = self._replies, None
            self._send_all(peer, replies)
        return count

    def _carry_out(self, instructions: list[Any]) -> None:
        for instruction in instructions:
            kind = type(instruction)
            if kind is v.Send:
                peer, ident = instruction.peer, instruction.request_id
                self._send(peer, ident, instruction.message, instruction.payload)
            elif kind is v.RunFileOp:
                peer, ident = instruction.peer, instruction.request_id
                reply, answer = self._file_op(peer, instruction.message, instruction.payload)
                done = v.Answered(peer, ident, reply, answer, instruction.keep)
                self._carry_out(self._machine.step(done))
            elif kind is v.DropSession:
                self._server.drop_session(instruction.peer)
            elif kind is v.Watch:
                if not self._watch.add(instruction.pid):
                    died = v.HolderDied(instruction.pid, time.monotonic())
                    self._carry_out(self._machine.step(died))
            elif kind is v.Unwatch:
                self._watch.remove(instruction.pid)
            elif kind is v.Exit:
                self._exit = True

    def _file_op(self, peer: bytes, message: Any, payload: Sequence[Any]) -> tuple[Any, Any]:
        """The reply to a file operation, and its payload."""
        try:
            return self._server.handle(peer, message, payload)
        except Exception as error:
            # Whatever it is, only the one who asked is concerned.
            if not isinstance(error, OSError | NovaError | ValueError | OverflowError):
                self._child.log.failure(f"{type(message).__name__} failed", error)
            return m.error_reply(error), ()

    def _send(self, peer: bytes, ident: bytes, message: Any, payload: Sequence[Any]) -> None:
        if self._replies is not None and codec.fits_batch(payload):
            self._replies.append((message, ident, payload))
            return
        router = self._router
        frames = codec.encode(message, ident, payload)
        router.send(peer, _SNDMORE)
        if len(frames) == 1:
            router.send(frames[0])
            return
        router.send(frames[0], _SNDMORE)
        # Payload that has frames of its own is large, and lent to the socket.
        for part in frames[1:-1]:
            router.send(part, _SNDMORE, copy=False)
        router.send(frames[-1], copy=False)

    def _send_all(self, peer: bytes, replies: list[Any]) -> None:
        """Send the replies to what came in one message, in one message."""
        if replies:
            self._router.send(peer, _SNDMORE)
            self._router.send(codec.encode_batch(replies), copy=False)

    def close(self) -> None:
        """Close what sessions have open, and leave the arena."""
        self._server.close()
        self._arena.close()
        self._router.close()
        self._gate.close()
        self._context.term()


def main(child: process.Child) -> None:
    """Body of the process."""
    worker = WorkerProcess(child)
    try:
        worker.run()
    finally:
        worker.close()

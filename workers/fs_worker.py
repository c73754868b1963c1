"""A worker process: one emulated CPU's server for remote clients' file operations."""

from __future__ import annotations

import os
import time
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
from .gate import Gate

BATCH = 64
"""Requests taken from the socket before the control channel is looked at again."""

DRAIN_S = 1.0
"""How long what has arrived may be answered after quit."""

COPY_BYTES_MAX = 32 << 10
"""Payload up to this size is copied into the socket: cheaper than to lend it."""


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
        self._tick_at = time.monotonic() + TICK_S
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.LINGER, 1000)
        # A client that reconnects keeps its routing id, and so its session.
        self._router.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._router.setsockopt(zmq.MAXMSGSIZE, codec.PAYLOAD_BYTES_MAX)
        self._poller = zmq.Poller()
        self._gate = Gate(self._context, child, self._poller)
        self._gate.bind(self._router, "worker")
        for source in (self._router, child.control.fileno(), child.signals.fileno()):
            self._poller.register(source, zmq.POLLIN)
        self._watch = process.ProcessWatch(self._poller)

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
        for _ in range(BATCH):
            try:
                frames = self._router.recv_multipart(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                return
            peer = frames[0].bytes
            parts: list[codec.Buffer] = [frame.bytes for frame in frames[1:2]]
            parts += [frame.buffer for frame in frames[2:]]
            try:
                envelope = codec.decode(parts)
            except NovaError as error:
                ident = codec.peek_request_id(parts)
                self._carry_out(self._machine.step(v.Malformed(peer, ident, error)))
                continue
            request = v.Request(peer, envelope.request_id, envelope.message, now, envelope.payload)
            self._carry_out(self._machine.step(request))

    def _carry_out(self, instructions: list[Any]) -> None:
        for instruction in instructions:
            kind = type(instruction)
            if kind is v.RunFileOp:
                self._carry_out(self._machine.step(self._file_op(instruction)))
            elif kind is v.Send:
                self._send(instruction)
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

    def _file_op(self, run: v.RunFileOp) -> v.Answered:
        try:
            reply, payload = self._server.handle(run.peer, run.message, run.payload)
        except Exception as error:
            # Whatever it is, only the one who asked is concerned.
            if not isinstance(error, OSError | NovaError | ValueError | OverflowError):
                self._child.log.failure(f"{type(run.message).__name__} failed", error)
            reply, payload = m.error_reply(error), ()
        return v.Answered(run.peer, run.request_id, reply, payload, run.keep)

    def _send(self, send: v.Send) -> None:
        frames = [send.peer, *codec.encode(send.message, send.request_id, send.payload)]
        large = len(frames) > 2 and sum(map(len, frames[2:])) > COPY_BYTES_MAX
        self._router.send_multipart(frames, copy=not large)

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

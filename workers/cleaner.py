"""The cleaner process: hears of deletions, and calls the core's reclaim until nothing is left."""

from __future__ import annotations

import os
import time
from typing import Any

import zmq

from nova_mp.cluster import vocabulary as v
from nova_mp.cluster.cleaner import Cleaner
from nova_mp.protocol import codec
from nova_mp.protocol import messages as m

from . import process


class CleanerProcess:
    """Sockets and loop around the state machine."""

    def __init__(self, child: process.Child) -> None:
        self._child = child
        self._machine = Cleaner()
        self._timer: float | None = None
        self._exit = False
        self._context = zmq.Context()
        self._events = self._context.socket(zmq.SUB)
        self._events.setsockopt(zmq.SUBSCRIBE, b"epoch")
        self._events.connect(child.endpoints.events)
        self._coordinator = self._context.socket(zmq.DEALER)
        self._coordinator.setsockopt(zmq.LINGER, 0)
        self._coordinator.connect(child.endpoints.coordinator)
        self._poller = zmq.Poller()
        for source in (self._events, child.control.fileno(), child.signals.fileno()):
            self._poller.register(source, zmq.POLLIN)
        self._arena = process.Arena(child.name, "cleaner", None, child.title)

    def run(self) -> None:
        """Serve until the supervisor says quit."""
        self._child.control.send(m.ChildReady(self._child.title, os.getpid()))
        self._child.log.info("serving")
        pending = self._machine.start()
        while not self._exit:
            # While a pass goes on the loop must come back at once; only idle it waits.
            ready = self._poller.poll(0 if pending else self._timeout_ms())
            pending += self._take(ready)
            if pending:
                pending += self._apply(pending.pop(0))

    def _timeout_ms(self) -> int | None:
        if self._timer is None:
            return None
        return int(max(0.0, self._timer - time.monotonic()) * 1000) + 1

    def _take(self, ready: list[tuple[Any, int]]) -> list[Any]:
        out: list[Any] = []
        sources = [source for source, _ in ready]
        if self._events in sources:
            frames = self._events.recv_multipart()
            event = codec.decode(frames[1:]).message
            if isinstance(event, m.EpochEvent):
                now = time.monotonic()
                seen = v.EpochSeen(event.incarnation, event.deletions, event.frozen, now)
                out += self._machine.step(seen)
        told = {self._child.control.fileno(), self._child.signals.fileno()}
        if not told.isdisjoint(sources) and process.quit_asked(self._child):
            out += self._machine.step(v.QuitAsked(time.monotonic()))
        if self._timer is not None and self._timer <= time.monotonic():
            self._timer = None
            out += self._machine.step(v.Tick(time.monotonic()))
        return out

    def _apply(self, instruction: Any) -> list[Any]:
        if isinstance(instruction, v.Reclaim):
            left = self._arena.core.reclaim(instruction.budget)
            return self._machine.step(v.Reclaimed(left, time.monotonic()))
        if isinstance(instruction, v.Report):
            self._coordinator.send_multipart(codec.encode(instruction.message))
        elif isinstance(instruction, v.SetTimer):
            self._timer = instruction.at
        elif isinstance(instruction, v.Exit):
            self._exit = True
        return []

    def close(self) -> None:
        """Leave the arena."""
        self._arena.close()
        self._context.destroy(linger=0)


def main(child: process.Child) -> None:
    """Body of the process."""
    cleaner = CleanerProcess(child)
    try:
        cleaner.run()
    finally:
        cleaner.close()

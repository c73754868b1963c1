"""The coordinator process: requests on a ROUTER socket, events on an XPUB socket.

Core operations that may wait (snapshot create and delete, freeze, unfreeze) run in one thread of
their own, so that meanwhile requests are answered and the slots of dead processes are reaped, which
is what such an operation may be waiting for.
"""

from __future__ import annotations

import os
import queue
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import zmq

from nova_mp.cluster import vocabulary as v
from nova_mp.cluster.coordinator import Coordinator
from nova_mp.cluster.ledger import Identity
from nova_mp.errors import NovaError
from nova_mp.protocol import codec, identity
from nova_mp.protocol import messages as m
from nova_mp.version import __version__

from . import process
from .events import Events
from .gate import Gate

REQUEST_BYTES_MAX = 1 << 20


class JobThread:
    """Runs one function after the other; `fileno` is readable when one has ended."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]] | None] = (
            queue.SimpleQueue()
        )
        self._results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """For polling."""
        return self._event_fd

    def submit(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Run it in the thread."""
        self._jobs.put((function, arguments))

    def results(self) -> list[tuple[Any, BaseException | None]]:
        """(result, error) of what has ended."""
        os.eventfd_read(self._event_fd)
        found = []
        while not self._results.empty():
            found.append(self._results.get())
        return found

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            function, arguments = job
            try:
                outcome: tuple[Any, BaseException | None] = (function(*arguments), None)
            except Exception as error:
                # It goes to whoever asked, as the reply.
                outcome = (None, error)
            self._results.put(outcome)
            os.eventfd_write(self._event_fd, 1)

    def close(self) -> None:
        """End the thread once it has done what it was given."""
        self._jobs.put(None)
        self._thread.join()
        os.close(self._event_fd)


class CoordinatorProcess:
    """Sockets and loop around the state machine."""

    def __init__(self, child: process.Child) -> None:
        self._child = child
        self._exit = False
        self._arena = process.Arena(child.name, "coordinator", None, child.title)
        self._core = self._arena.core
        stats = self._core.stats()
        own = Identity(
            arena=child.name,
            engine_id=child.engine_id,
            incarnation=uuid.uuid4().hex,
            package_version=__version__,
            cpus=child.cpus,
            media=child.media,
            started_ns=child.started_ns,
            host=identity.host(),
            coordinator=child.endpoints.coordinator,
            events=child.endpoints.events,
            workers=child.endpoints.workers,
        )
        deferred = [row["epoch_id"] for row in self._core.snapshot_table() if row["deferred"]]
        self._machine = Coordinator(own, int(stats["epoch_id"]), bool(stats["frozen"]), deferred)
        self._jobs = JobThread()
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.LINGER, 1000)
        self._router.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._router.setsockopt(zmq.MAXMSGSIZE, REQUEST_BYTES_MAX)
        self._poller = zmq.Poller()
        self._gate = Gate(self._context, child, self._poller)
        self._gate.bind(self._router, "coordinator")
        self._events = Events(self._context, self._gate, self._poller)
        own_fds = (child.control.fileno(), child.signals.fileno(), self._jobs.fileno())
        for source in (self._router, *own_fds):
            self._poller.register(source, zmq.POLLIN)
        self._watch = process.ProcessWatch(self._poller)

    def run(self) -> None:
        """Serve until the supervisor says quit."""
        self._carry_out(self._machine.start())
        self._child.control.send(m.ChildReady(self._child.title, os.getpid()))
        self._child.log.info("serving", address=self._child.endpoints.coordinator)
        tick_at = time.monotonic() + v.TICK_S
        while not self._exit:
            wait_s = max(0.0, tick_at - time.monotonic())
            for source, _ in self._poller.poll(int(wait_s * 1000) + 1):
                self._take(source, time.monotonic())
            now = time.monotonic()
            if now >= tick_at and not self._exit:
                tick_at = now + v.TICK_S
                self._carry_out(self._machine.step(v.Tick(now)))

    def _take(self, source: Any, now: float) -> None:
        step = self._machine.step
        if source is self._router:
            self._receive(now)
        elif source is self._gate.socket:
            self._gate.answer()
        elif source is self._events.socket:
            if self._events.take():
                self._carry_out(step(v.Subscribed()))
        elif source == self._jobs.fileno():
            for result, error in self._jobs.results():
                self._carry_out(step(v.JobDone(result, error, now)))
        elif source == self._child.control.fileno():
            self._control(now)
        elif source == self._child.signals.fileno():
            if self._child.signals.take():
                self._carry_out(step(v.QuitAsked(now)))
        elif (pid := self._watch.died(source)) is not None:
            self._carry_out(step(v.HolderDied(pid, now)))

    def _control(self, now: float) -> None:
        messages = self._child.control.receive()
        if messages is None:
            self._poller.unregister(self._child.control.fileno())
            messages = [m.Quit()]
        for message in messages:
            if isinstance(message, m.Processes):
                self._carry_out(self._machine.step(v.ProcessesChanged(message.processes)))
            elif isinstance(message, m.Quit):
                self._carry_out(self._machine.step(v.QuitAsked(now)))

    def _receive(self, now: float) -> None:
        while True:
            try:
                frames = self._router.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                envelope = codec.decode(frames[1:])
            except NovaError as error:
                ident = codec.peek_request_id(frames[1:])
                self._carry_out([v.Send(frames[0], ident, m.error_reply(error))])
                continue
            request = v.Request(frames[0], envelope.request_id, envelope.message, now)
            self._carry_out(self._machine.step(request))

    def _carry_out(self, instructions: list[Any]) -> None:
        for instruction in instructions:
            kind = type(instruction)
            if kind is v.Send:
                frames = codec.encode(instruction.message, instruction.request_id)
                self._router.send_multipart([instruction.peer, *frames])
            elif kind is v.Publish:
                self._events.publish(instruction.message)
            elif kind is v.RunJob:
                if instruction.asked:
                    self._child.log.debug(instruction.kind, arguments=instruction.arguments)
                self._jobs.submit(getattr(self._core, instruction.kind), instruction.arguments)
            elif kind is v.QueryStatus:
                read = v.StatusRead(
                    instruction.token, self._core.stats(), tuple(self._core.slots())
                )
                self._carry_out(self._machine.step(read))
            elif kind is v.Reap:
                for row in self._core.reap():
                    self._child.log.warning("reaped", **row)
            elif kind is v.Watch:
                if not self._watch.add(instruction.pid):
                    died = v.HolderDied(instruction.pid, time.monotonic())
                    self._carry_out(self._machine.step(died))
            elif kind is v.Unwatch:
                self._watch.remove(instruction.pid)
            elif kind is v.AskStop:
                self._child.control.send(m.StopRequested(instruction.force))
            elif kind is v.Exit:
                self._exit = True

    def close(self) -> None:
        """Leave the arena."""
        self._jobs.close()
        self._arena.close()
        self._router.close()
        self._events.close()
        self._gate.close()
        self._context.term()


def main(child: process.Child) -> None:
    """Body of the process."""
    coordinator = CoordinatorProcess(child)
    try:
        coordinator.run()
    finally:
        coordinator.close()

"""A worker in a thread, on a directory of tmpfs, that loses and forgets what it is told to.

It has the real state machine and the real file-operation server; only the core is a stand-in, and
the socket's loop is small enough to put faults in.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import zmq

from model.host import HostFile, HostFileSystem
from nova_mp.cluster import vocabulary as v
from nova_mp.cluster.fileops import FileOpServer
from nova_mp.cluster.worker import Worker
from nova_mp.protocol import codec, identity
from nova_mp.protocol import fileops as ops
from nova_mp.protocol import messages as m

Fault = Callable[[str, Any], bool]
"""Says, for "request" or "reply" and the request's message, whether this one gets lost."""


def never(way: str, message: Any) -> bool:
    """No fault."""
    return False


def _complete(status: os.stat_result) -> Any:
    """Attributes with those that tmpfs does not have."""
    found = {name: getattr(status, name, 0) for name in ops.STAT_FIELDS}
    return SimpleNamespace(**found)


class _File(HostFile):
    ino = 1
    generation = 1

    def stat(self) -> Any:
        return _complete(super().stat())


class ModelCore(HostFileSystem):
    """The part of a Core that the file-operation server uses."""

    def os_open(self, path: Any, flags: int, mode: int = 0o666) -> Any:
        return _File(super().os_open(path, flags, mode)._file, path)

    def stat(self, path: Any, *, follow_symlinks: bool = True) -> Any:
        return _complete(super().stat(path, follow_symlinks=follow_symlinks))

    def lstat(self, path: Any) -> Any:
        return _complete(super().lstat(path))

    def snapshot_table(self) -> list[dict[str, Any]]:
        return []

    def snapshot_frees(self, epoch_ids: list[int]) -> int:
        return 0


class WorkerThread(threading.Thread):
    """Serve `root` at `address` until `stop`; `fault` may be changed at any time."""

    def __init__(self, address: str, root: str, host: str | None = None) -> None:
        """`host` is what it says its machine is, if not this one."""
        super().__init__(daemon=True)
        host = identity.host() if host is None else host
        self.fault: Fault = never
        self.ran: list[str] = []
        self.server = FileOpServer(ModelCore(root))
        self._address = address
        self._ready = threading.Event()
        self._stop_asked = threading.Event()
        greeting = m.HelloReply(
            arena="model",
            engine_id="model",
            package_version="0",
            cpus=1,
            cpu=0,
            media="dram",
            coordinator="",
            events="",
            workers=(address,),
            host=host,
        )
        self._machine = Worker(greeting)

    def __enter__(self) -> WorkerThread:
        self.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *exception: Any) -> None:
        self.stop()

    def stop(self) -> None:
        """End it, as abruptly as a kill would seem to a client."""
        self._stop_asked.set()
        self.join(10)
        assert not self.is_alive()

    def run(self) -> None:
        with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
            router.setsockopt(zmq.ROUTER_HANDOVER, 1)
            router.setsockopt(zmq.LINGER, 0)
            router.bind(self._address)
            self._ready.set()
            while not self._stop_asked.is_set():
                if router.poll(20):
                    peer, *frames = router.recv_multipart()
                    for envelope in codec.decode_all(frames):
                        assert isinstance(envelope, codec.Envelope)
                        self._serve(router, peer, envelope)
        self.server.close()

    def _serve(self, router: Any, peer: bytes, envelope: codec.Envelope) -> None:
        if self.fault("request", envelope.message):
            return
        message, ident, payload, oldest = envelope
        request = v.Request(peer, ident, message, time.monotonic(), payload, oldest)
        todo = list(self._machine.step(request))
        while todo:
            instruction = todo.pop(0)
            if isinstance(instruction, v.RunFileOp):
                todo += self._machine.step(self._run(instruction))
            elif isinstance(instruction, v.DropSession):
                self.server.drop_session(instruction.peer)
            elif isinstance(instruction, v.Send) and not self.fault("reply", envelope.message):
                frames = codec.encode(
                    instruction.message, instruction.request_id, instruction.payload
                )
                router.send_multipart([instruction.peer, *frames])
        self._machine.validate_all()
        self.server.validate()

    def _run(self, run: v.RunFileOp) -> v.Answered:
        self.ran.append(type(run.message).__name__)
        try:
            reply, payload = self.server.handle(run.peer, run.message, run.payload)
        except (OSError, ValueError) as error:
            reply, payload = m.error_reply(error), ()
        return v.Answered(run.peer, run.request_id, reply, payload, run.keep)

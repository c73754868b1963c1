"""`attach` and `connect`: the two ways to an arena's file system."""

from __future__ import annotations

import itertools
import os
import re

from nova_mp.client.attached import AttachedFileSystem
from nova_mp.client.control import TIMEOUT_S, ControlClient, running_engine
from nova_mp.client.remote import RemoteFileSystem

_spread = itertools.count(os.getpid())


def attach(name: str, cpu: int | None = None, *, title: str = "") -> AttachedFileSystem:
    """Attach this process to a running engine: operations run here, on shared memory.

    `cpu` is the emulated CPU whose allocator, journal and lists they use; None takes the least
    used one. `title` is shown in `nova-mp status`.

    Raises EngineNotRunning, ArenaNotFound, SlotsExhausted, and ValueError for a CPU that the arena
    does not have.
    """
    running_engine(name)
    return AttachedFileSystem.attach(
        name, cpu, make_control=lambda: ControlClient(name), title=title
    )


def connect(
    name_or_address: str,
    cpu: int | None = None,
    *,
    timeout: float | None = TIMEOUT_S,
    title: str = "",
) -> RemoteFileSystem:
    """Connect to a running engine: operations are sent to a worker, which runs them.

    `name_or_address` is an arena of this machine, or `engine.address`, which may be on another
    one. `cpu` chooses the worker; None spreads connections over all. `timeout` (seconds) is what
    one operation may take; None waits for ever. `title` is shown in `nova-mp status`.

    Raises EngineNotRunning, ArenaNotFound, Timeout if nobody answers at the address, and ValueError
    for a CPU that the arena does not have.
    """
    control = ControlClient(name_or_address, TIMEOUT_S if timeout is None else timeout)
    try:
        workers = control.hello().workers
        if cpu is not None and not 0 <= cpu < len(workers):
            raise ValueError(f"bad CPU {cpu}: the arena has {len(workers)}")
        chosen = next(_spread) % len(workers) if cpu is None else cpu
        address = _reachable(workers[chosen], control.address)
        return RemoteFileSystem(address, control, timeout=timeout, title=title)
    except BaseException:
        control.close()
        raise


def _reachable(worker: str, coordinator: str) -> str:
    """The worker's address as seen from here: on the host where the coordinator answered.

    An engine that listens on all of its host's addresses does not know by which one it is seen.
    """
    host = re.fullmatch(r"tcp://(.+):\d+", coordinator)
    port = re.fullmatch(r"tcp://.+:(\d+)", worker)
    return f"tcp://{host[1]}:{port[1]}" if host and port else worker

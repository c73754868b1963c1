"""`attach` and `connect`: the two ways to an arena's file system."""

from __future__ import annotations

import itertools
import os

from nova_mp import config
from nova_mp.client.attached import AttachedFileSystem
from nova_mp.client.control import TIMEOUT_S, ControlClient, running_engine
from nova_mp.client.keys import load_client
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
    keys: str | os.PathLike[str] | None = None,
) -> RemoteFileSystem:
    """Connect to a running engine: operations are sent to a worker, which runs them.

    `name_or_address` is an arena of this machine, or an engine's `tcp://HOST:PORT`. `cpu` chooses
    the worker; None spreads connections over all. `timeout` (seconds) is what one operation may
    take; None waits for ever. `title` is shown in `nova-mp status`. `keys`, for TCP alone, is the
    file of a client's keys, or a folder with `client.key`; None takes NOVA_MP_KEYS, or what
    `nova-mp keygen` made on this machine.

    Raises EngineNotRunning, ArenaNotFound, Timeout if nobody answers at the address, AccessRefused
    if the keys do not fit, NovaError without keys, and ValueError for a CPU that the arena does not
    have.
    """
    if not isinstance(name_or_address, str):
        raise TypeError(f"an arena's name is a str, not {type(name_or_address).__name__}")
    limit = TIMEOUT_S if timeout is None else timeout
    pair = None
    if name_or_address.startswith("tcp://"):
        config.tcp_endpoints(name_or_address, 1)
        pair = load_client(keys)
    control = ControlClient(name_or_address, limit, keys=pair)
    try:
        control.check_listening()
        hello = control.hello()
        # An engine does not know by which name or address a client on another machine sees it.
        places = hello if pair is None else config.tcp_endpoints(name_or_address, hello.cpus)
        workers = places.workers
        if cpu is not None and not 0 <= cpu < len(workers):
            raise ValueError(f"bad CPU {cpu}: the arena has {len(workers)}")
        chosen = next(_spread) % len(workers) if cpu is None else cpu
        return RemoteFileSystem(workers[chosen], control, timeout=timeout, title=title, keys=pair)
    except BaseException:
        control.close()
        raise

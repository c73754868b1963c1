"""Arenas and engines as Python functions: mkfs, start, stop, status, crash, destroy.

The engine's processes are programs of their own (`nova_mp.workers`); here they are started and
asked, never imported. The start is over when the supervisor says so through a pipe, the stop when
it has died.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import site
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import nova_mp.core
from nova_mp import config
from nova_mp.client.control import ControlClient, not_running, running_engine
from nova_mp.client.keys import default_folder, load_engine
from nova_mp.cluster.inspection import check_reachable, live_record, status
from nova_mp.cluster.log import EngineLog
from nova_mp.core import segment
from nova_mp.errors import (
    ArenaBusy,
    EngineFailed,
    EngineNotRunning,
    EngineRunning,
    NovaError,
    Timeout,
)
from nova_mp.protocol import codec, identity
from nova_mp.protocol import messages as m

START_TIMEOUT_S = 600.0
"""A start takes as long as the recovery; this is for one that hangs."""

STOP_TIMEOUT_S = 60.0


# --------------------------------------------------------------------------------- mkfs, destroy


def mkfs(
    name: str,
    size: int | str,
    cpus: int = 4,
    *,
    backing: str = "shm",
    inode_limit: int = 0,
    label: str = "",
) -> None:
    """Make a new arena.

    `size` is bytes, or text such as "64MiB" or "1GiB"; all of it is reserved at once. `cpus` is the
    number of emulated CPUs, 1 to 128, which cannot be changed later. `backing` is "shm" (shared
    memory, gone when the machine restarts) or "file:PATH". `inode_limit` 0 lets files take as much
    of the arena as there is.

    Raises ArenaExists, NotEnoughMemory ("needs X, has Y"), ValueError for a bad argument.
    """
    from nova_mp.core import fs

    config.check_name(name)
    config.check_cpus(cpus)
    with segment.create_pmem(name, config.parse_size(size), backing) as pmem:
        try:
            fs.format_arena(pmem.buf, cpus=cpus, inode_limit=inode_limit, label=label)
        except BaseException:
            segment.unlink_pmem(name)
            raise


def destroy(name: str, *, force: bool = False) -> None:
    """Remove an arena with all that it holds.

    Raises ArenaNotFound; EngineRunning while its engine runs and ArenaBusy while processes are
    attached, unless `force`: then they are killed first, as by `crash`, which raises, too.
    """
    config.check_name(name)
    if not segment.pmem_exists(name) and segment.registered(name) is None:
        raise segment.missing_arena(name)
    check_reachable(name)
    record = live_record(name)
    if record is not None and not force:
        raise EngineRunning(
            f"the engine of arena '{name}' runs", f"stop it first with: nova-mp stop {name}"
        )
    if segment.dram_exists(name) and not force:
        clients = sorted(pid for pid, _, role in _attached_processes(name) if role == "client")
        if clients:
            raise ArenaBusy(
                f"processes are attached: {', '.join(map(str, clients))}",
                f"let them close it, or kill them: nova-mp destroy {name} --force",
            )
    if record is not None or segment.dram_exists(name):
        crash(name)
    segment.unlink_pmem(name)
    folder = config.runtime_path(name)
    if folder.is_dir():
        for path in folder.iterdir():
            path.unlink(missing_ok=True)
        folder.rmdir()


# ------------------------------------------------------------------------------------------ start


class Engine:
    """A running engine of this machine; as a context manager it stops at the end.

    Made by `start`; `Engine(name)` gets hold of one that runs already, or raises EngineNotRunning.
    """

    def __init__(self, name: str) -> None:
        record = running_engine(name)
        places = config.endpoints(record.name, record.cpus)
        self.name = name
        self.pid = record.pid
        self.cpus = record.cpus
        self.media = record.media
        self.engine_id = record.engine_id
        self.address: str = places.coordinator
        """The coordinator's ZeroMQ address, which `nova_mp.connect` takes."""
        self.tcp_address: str | None = record.tcp
        """The same for clients with keys, `tcp://HOST:PORT`; None if it does not listen there."""
        self.worker_addresses: tuple[str, ...] = places.workers

    def status(self) -> dict[str, Any]:
        """What `nova_mp.status(name)` returns."""
        return status(self.name)

    def stop(self, force: bool = False, timeout: float = STOP_TIMEOUT_S) -> None:
        """Stop the engine: a clean unmount. See `nova_mp.stop`; no error if it has stopped."""
        try:
            stop(self.name, force=force, timeout=timeout)
        except EngineNotRunning:
            return

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # After an error file systems may still be attached, whose own error would hide it.
        self.stop(force=error is not None)

    def __repr__(self) -> str:
        return f"<Engine {self.name!r} pid={self.pid} cpus={self.cpus} media={self.media!r}>"


def start(
    name: str,
    *,
    media: str = "dram",
    tcp: str | None = None,
    keys: str | os.PathLike[str] | None = None,
    timeout: float = START_TIMEOUT_S,
) -> Engine:
    """Start an arena's engine in the background; returns once it is in service.

    An arena that was not stopped in an orderly way is recovered first. `media` is "dram", "pmem"
    (emulated latency and bandwidth of persistent memory) or "real" (flush instructions). By default
    only its owner on this machine can reach it. `tcp`, a "HOST:PORT", lets in clients of elsewhere
    too, if they have keys: `keys` is the folder of `nova-mp keygen`, None the default one.

    Raises ArenaNotFound, EngineRunning, CorruptArena, VersionMismatch, NotEnoughMemory,
    EngineFailed, NovaError for `tcp` without keys, and Timeout after `timeout` seconds.
    """
    command = _supervisor_command(name, media, tcp, keys)
    ready, life = _Pipe(), _Pipe()
    log = EngineLog(name, "launcher")
    command += ["--daemon", "--ready-fd", str(ready.writer), "--life-fd", str(life.reader)]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log.fileno(),
            stderr=log.fileno(),
            pass_fds=(ready.writer, life.reader),
            start_new_session=True,
            cwd="/",
            env=_environment(),
        )
        ready.close_writer()
        # It forks the supervisor and ends at once.
        process.wait()
        _await_start(name, ready.reader, timeout)
        return Engine(name)
    except KeyboardInterrupt:
        _take_back_start(name, ready, life)
        raise
    finally:
        log.close()
        ready.close()
        life.close()


def _take_back_start(name: str, ready: _Pipe, life: _Pipe) -> None:
    """End what an interrupted start has begun; returns once nothing of it is left."""
    ready.close_writer()
    # Its end tells a supervisor that has not come up to stop; it answers when all is gone.
    life.close()
    said = os.read(ready.reader, 1 << 16)
    if said and isinstance(codec.decode([said]).message, m.Done):
        # It was faster than the interrupt. Somebody may have attached; then it is in use.
        with contextlib.suppress(NovaError):
            stop(name)


def run_foreground(
    name: str,
    *,
    media: str = "dram",
    tcp: str | None = None,
    keys: str | os.PathLike[str] | None = None,
    on_ready: Callable[[Engine], None] | None = None,
) -> int:
    """Run an engine until it is stopped or interrupted (Ctrl-C); returns its exit status.

    `on_ready` is called once it is in service. The log goes to the engine's log file. If this
    process dies, the engine stops too. Raises what `start` raises.
    """
    command = _supervisor_command(name, media, tcp, keys)
    ready, life = _Pipe(), _Pipe()
    process = None
    try:
        process = subprocess.Popen(
            [*command, "--ready-fd", str(ready.writer), "--life-fd", str(life.reader)],
            stdin=subprocess.DEVNULL,
            pass_fds=(ready.writer, life.reader),
            start_new_session=True,
            cwd="/",
            env=_environment(),
        )
        ready.close_writer()
        _await_start(name, ready.reader, START_TIMEOUT_S)
        if on_ready is not None:
            on_ready(Engine(name))
        return process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        ready.close()
        # The end of this pipe tells the supervisor to stop, however we got here.
        life.close()
        if process is not None:
            _wait_interrupted(process)


def _wait_interrupted(process: subprocess.Popen[bytes]) -> None:
    """Wait for the orderly end, which an impatient second Ctrl-C does not make faster."""
    while process.returncode is None:
        with contextlib.suppress(KeyboardInterrupt):
            process.wait()


class _Pipe:
    """A pipe whose ends are closed once, whatever happens."""

    def __init__(self) -> None:
        self.reader, self.writer = (_above_streams(fd) for fd in os.pipe())

    def close_writer(self) -> None:
        """Close our copy of the end that a child was given."""
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def close(self) -> None:
        """Close what is open."""
        self.close_writer()
        if self.reader >= 0:
            os.close(self.reader)
            self.reader = -1


def _above_streams(fd: int) -> int:
    """The same open file as descriptor 3 or above: a child's streams would replace a lower one."""
    if fd > 2:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def _supervisor_command(
    name: str, media: str, tcp: str | None, keys: str | os.PathLike[str] | None
) -> list[str]:
    """Check the arguments of a start; gives back the supervisor's command line."""
    config.check_name(name)
    config.check_media(media)
    if not segment.pmem_exists(name):
        # Raises the right error for a file that is gone, too.
        segment.attach_pmem(name).close()
    command = [sys.executable, "-m", "nova_mp.workers.supervisor", name, "--media", media]
    if tcp is not None:
        places = config.tcp_endpoints(tcp, 1)
        folder = default_folder() if keys is None else Path(keys).absolute()
        load_engine(folder)
        command += ["--tcp", places.coordinator, "--keys", str(folder)]
    config.make_runtime_path(name)
    return command


def _environment() -> dict[str, str]:
    """Environment in which a child finds this very package, wherever it was imported from."""
    parent = str(Path(nova_mp.core.__file__).parents[2])
    known = [*site.getsitepackages(), site.getusersitepackages()]
    environment = dict(os.environ)
    if parent not in known:
        paths = [parent, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    return environment


def _await_start(name: str, reader: int, timeout: float) -> None:
    """Wait for the supervisor's word: returns, or raises what kept it from starting."""
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    if not poller.poll(timeout * 1000):
        raise Timeout(
            f"the engine of arena '{name}' did not start in {timeout:.0f} s",
            f"see {config.runtime_path(name) / 'engine.log'}",
        )
    said = os.read(reader, 1 << 16)
    if not said:
        raise EngineFailed(
            f"the supervisor of arena '{name}' died while it started",
            f"see {config.runtime_path(name) / 'engine.log'}",
        )
    reply = codec.decode([said]).message
    if isinstance(reply, m.ErrorReply):
        raise m.error_of(reply)


# ----------------------------------------------------------------------------------- stop, crash


def stop(name: str, *, force: bool = False, timeout: float = STOP_TIMEOUT_S) -> None:
    """Stop an engine in an orderly way; returns once everything of it is gone.

    Workers answer what has arrived, the arena is unmounted clean. While processes are attached it
    is refused with ArenaBusy (`errno` EBUSY), unless `force`: then they get a moment to leave, and
    those that do not keep the volatile state alive, which the next start adopts.

    Raises EngineNotRunning, ArenaNotFound, and Timeout after `timeout` seconds.
    """
    record = running_engine(name)
    pidfd = identity.open_pidfd(record.pid, record.start_ticks)
    if pidfd is None:
        raise not_running(name)
    try:
        # If it is stopping already, somebody asked before us, and we wait for the same end.
        with contextlib.suppress(EngineNotRunning), ControlClient(name, timeout) as control:
            control.stop(force)
        if not identity.wait_dead([pidfd], timeout):
            raise Timeout(f"the engine of arena '{name}' is still stopping", "wait longer")
    finally:
        os.close(pidfd)


def crash(name: str) -> None:
    """Emulate a power failure: kill the processes, drop the volatile state, keep the medium.

    Kills the engine and every other process attached to the arena, but never the caller; file
    systems that the caller has attached are closed, and what it has mapped holds zeros. No error
    if no engine runs.

    Raises ArenaNotFound; ArenaBusy if a process does not die; EngineRunning if the engine cannot
    be reached, because its runtime folder is another.
    """
    from nova_mp.core import fs

    if not segment.pmem_exists(name):
        segment.attach_pmem(name).close()
    check_reachable(name)
    record = config.read_engine_record(name)
    if record is not None:
        # First the supervisor, or it would restart what is killed after.
        _kill(name, [(record.pid, record.start_ticks)])
        record = config.read_engine_record(name) or record
        _kill(name, [(pid, ticks) for _, pid, ticks in record.children])
    if segment.dram_exists(name):
        attached = _attached_processes(name)
        _kill(name, [(pid, ticks) for pid, ticks, _ in attached if pid != os.getpid()])
        with segment.attach_dram(name) as dram:
            fs.abandon_arena(dram.fd)
        segment.unlink_dram(name)
    config.clear_engine_files(name)


def _kill(name: str, processes: list[tuple[int, int]]) -> None:
    if not identity.kill_and_wait([(pid, ticks) for pid, ticks in processes if ticks]):
        raise ArenaBusy(
            f"processes of arena '{name}' do not die", "a process may hang in the kernel: see ps"
        )


def _attached_processes(name: str) -> list[tuple[int, int, str]]:
    """(pid, start ticks, role) of the processes that hold a slot of the arena and live."""
    from nova_mp.core import fs

    with segment.attach_pmem(name) as pmem, segment.attach_dram(name) as dram:
        try:
            with fs.Core(pmem.buf, dram.buf, dram.fd, role="supervisor", title="crash") as core:
                found = {(int(row["pid"]), str(row["role"])) for row in core.slots()}
        except (NovaError, OSError):
            # Volatile state that a killed mount left half made has no slots to read.
            return []
    return [(pid, ticks, role) for pid, role in found if (ticks := identity.start_ticks(pid))]

"""The supervisor's hold on an arena's memory: enter (mount, or adopt), and leave (unmount, or not).

Volatile state may be there when an engine starts: a killed engine left it. If processes are still
attached to it, it is their truth, locks and open files included, so it is adopted as it is. If
nobody is, it is dropped, and the arena is mounted from its logs.

Leaving is the same in reverse: with nobody attached the arena is unmounted clean; with somebody
attached the volatile state stays, for them and for the next start.
"""

from __future__ import annotations

import errno
import os
import time
from typing import Any

from nova_mp.cluster.log import EngineLog
from nova_mp.core import fs, segment
from nova_mp.errors import NovaError
from nova_mp.protocol import identity

CLIENTS_LEAVE_S = 2.0
CLIENTS_LOOK_S = 0.05


class Residence:
    """The segments of one arena, as the supervisor holds them."""

    def __init__(self, name: str, media: str, log: EngineLog) -> None:
        self._name = name
        self._media = media
        self._log = log
        self._pmem = segment.attach_pmem(name)
        self._dram: segment.Segment | None = None
        self.cpus = int(fs.read_superblock(self._pmem.buf)["cpus"])

    def enter(self) -> None:
        """Adopt the volatile state, or mount. Raises what mount raises, leaving nothing."""
        if segment.dram_exists(self._name):
            if self._adopt():
                return
            self._log.info("volatile state of a killed engine is dropped")
            segment.unlink_dram(self._name)
        base, limit = fs.dram_geometry(self._pmem.size_bytes, self.cpus)
        self._dram = segment.create_dram(self._name, base, limit)
        try:
            recovery = fs.mount(
                self._pmem.buf,
                self._dram.buf,
                self._dram.fd,
                cpus=self.cpus,
                media=self._media,
                dram_limit=limit,
            )
        except BaseException:
            self._dram.close()
            self._dram = None
            segment.unlink_dram(self._name)
            raise
        self._log.info("mounted", **recovery)

    def _adopt(self) -> bool:
        self._dram = segment.attach_dram(self._name)
        try:
            clients = self._clients()
        except (NovaError, OSError) as error:
            # A mount that was killed half-way leaves volatile state that is none.
            self._log.warning("volatile state cannot be read", error=str(error))
            clients = []
        if clients:
            self._log.info("volatile state is adopted", clients=clients)
            return True
        self._dram.close()
        self._dram = None
        return False

    def _clients(self) -> list[int]:
        """Process ids of attached clients that live."""
        assert self._dram is not None
        with fs.Core(
            self._pmem.buf, self._dram.buf, self._dram.fd, role="supervisor", title="supervisor"
        ) as core:
            core.reap()
            rows: list[dict[str, Any]] = core.slots()
        pids = {int(row["pid"]) for row in rows if row["role"] == "client"}
        return sorted(pid for pid in pids if identity.start_ticks(pid))

    def leave(self, force: bool) -> bool:
        """Unmount; gives back False when clients stayed, and the volatile state with them.

        With `force` they get CLIENTS_LEAVE_S to go: they were told by an event.
        """
        if self._dram is None:
            return True
        deadline = time.monotonic() + (CLIENTS_LEAVE_S if force else 0.0)
        clients = self._clients()
        while clients and time.monotonic() < deadline:
            # A client that closes its file system gives no sign; one that dies ends the wait.
            pidfds = [fd for pid in clients if (fd := identity.open_pidfd(pid)) is not None]
            identity.wait_dead(pidfds, CLIENTS_LOOK_S)
            for fd in pidfds:
                os.close(fd)
            clients = self._clients()
        try:
            if clients:
                raise OSError(errno.EBUSY, f"clients stay attached: {clients}")
            fs.unmount(self._pmem.buf, self._dram.buf, self._dram.fd)
        except OSError as error:
            # Somebody may also have attached after we looked.
            self._log.warning("not unmounted", reason=str(error))
            return False
        self._dram.close()
        self._dram = None
        segment.unlink_dram(self._name)
        self._log.info("unmounted")
        return True

    def close(self) -> None:
        """Unmap the segments."""
        if self._dram is not None:
            self._dram.close()
            self._dram = None
        self._pmem.close()

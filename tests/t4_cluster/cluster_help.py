"""What the engine tests share: engines to experiment on, other processes, waiting with a limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nova_mp
from nova_mp import config
from nova_mp.core import segment
from nova_mp.protocol import identity

LIMIT_S = 15.0


def eventually(what: str, holds: Callable[[], Any], limit_s: float = LIMIT_S) -> Any:
    """Wait until `holds()` is true and return it; what other processes do gives no event here."""
    deadline = time.monotonic() + limit_s
    while not (value := holds()):
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.02)
    return value


def processes(name: str) -> dict[str, int]:
    """Pids of the live processes of an engine, by title; the supervisor too."""
    record = config.read_engine_record(name)
    if record is None:
        return {}
    everybody = [("supervisor", record.pid, record.start_ticks), *record.children]
    return {title: pid for title, pid, ticks in everybody if identity.alive(pid, ticks)}


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Signal a process; with SIGKILL also wait until it is dead."""
    pidfd = os.pidfd_open(pid)
    signal.pidfd_send_signal(pidfd, number)
    if number == signal.SIGKILL:
        assert identity.wait_dead([pidfd], LIMIT_S)
    os.close(pidfd)


def assert_nothing_left(name: str, pids: dict[str, int]) -> None:
    """No process, no volatile state, no socket, no record of an engine that has ended."""
    alive = [title for title, pid in pids.items() if identity.start_ticks(pid)]
    assert not alive
    assert not segment.dram_exists(name)
    left = {path.name for path in config.runtime_path(name).iterdir()}
    assert left <= {"engine.log", "engine.lock"}


class Other:
    """Another Python process that runs `code`, prints lines, and reads lines."""

    def __init__(self, code: str, *arguments: str) -> None:
        # Where this process found the package, it is found there too.
        root = str(Path(nova_mp.__file__).parents[1])
        paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        self.popen = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        self.pid = self.popen.pid

    def say(self, line: str) -> None:
        """Send it a line."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(line + "\n")
        self.popen.stdin.flush()

    def hear(self) -> str:
        """Its next line; fails when it has none to say any more."""
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        assert line, f"the other process ended with status {self.popen.wait()}"
        return line.strip()

    def end(self) -> int:
        """Close its input and wait; its exit status."""
        if self.popen.stdin is not None:
            self.popen.stdin.close()
        try:
            return self.popen.wait(LIMIT_S)
        finally:
            self.popen.kill()
            self.popen.wait()
            if self.popen.stdout is not None:
                self.popen.stdout.close()

    def __enter__(self) -> Other:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.popen.kill()
        self.end()


ATTACHED = """
import sys, nova_mp
fs = nova_mp.attach(sys.argv[1], title="other")
print("attached", flush=True)
for line in sys.stdin:
    print(eval(line), flush=True)
fs.close()
"""


def attached(name: str) -> Other:
    """A process with the arena attached as `fs`; it answers lines with what they evaluate to."""
    other = Other(ATTACHED, name)
    assert other.hear() == "attached"
    return other

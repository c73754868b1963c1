"""What the machine was when a result was measured: a figure without it cannot be compared."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_PACKAGES = ("nova_mp", "pyzmq", "msgpack", "hdrhistogram", "psutil", "numpy", "rich")


def describe(*, cpus: int, processes: int = 0) -> dict[str, Any]:
    """Return the environment of a measurement.

    ``cpus`` is the number of emulated CPUs of the arena, ``processes`` that of the client
    processes; ``oversubscribed`` says whether either exceeds the cores that this process may use,
    which makes throughput figures a matter of scheduling.
    """
    cores = len(os.sched_getaffinity(0))
    memory = _meminfo()
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cores": cores,
        "cpus": cpus,
        "client_processes": processes,
        "oversubscribed": max(cpus, processes) > cores,
        "processor": _processor(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "optimised": not sys.flags.debug,
        "versions": {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
        "memory_bytes": memory.get("MemTotal", 0),
        "memory_available_bytes": memory.get("MemAvailable", 0),
        "shm_huge_pages": _selected(Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")),
        "load_average": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        return platform.processor()
    return platform.processor()


def _meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes; empty where there is none."""
    found: dict[str, int] = {}
    try:
        with open("/proc/meminfo", encoding="utf-8") as lines:
            for line in lines:
                name, _, rest = line.partition(":")
                fields = rest.split()
                if fields:
                    found[name] = int(fields[0]) * (1024 if fields[1:] == ["kB"] else 1)
    except OSError:
        return {}
    return found


def _selected(path: Path) -> str | None:
    """The bracketed choice of a sysfs file such as ``always [never] advise``."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return None
    start, end = text.find("["), text.find("]")
    return text[start + 1 : end] if 0 <= start < end else text.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the source tree this runs from, ``+`` appended if it was changed since."""
    where = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(where), "describe", "--always", "--dirty=+"],
            capture_output=True, text=True, timeout=10, check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None

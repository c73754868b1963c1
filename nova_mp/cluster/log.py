"""The engine's log: what its processes did, for people and for programs."""

from __future__ import annotations

import json
import os
import time
import traceback
from typing import Any

from nova_mp import config


class EngineLog:
    """The engine's log file: one JSON object a line, from all of its processes.

    A line is written by one call to a file opened for appending, so lines never mix.
    """

    def __init__(self, name: str, title: str) -> None:
        path = config.runtime_path(name) / "engine.log"
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._title = title

    def fileno(self) -> int:
        """The log's file descriptor, for output of child processes."""
        return self._fd

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        now = time.time_ns()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9))
        line = {
            "time": f"{stamp}.{now // 1000 % 10**6:06d}Z",
            "level": level,
            "process": self._title,
            "pid": os.getpid(),
            "event": event,
            **fields,
        }
        os.write(self._fd, json.dumps(line, default=repr).encode() + b"\n")

    def info(self, event: str, **fields: Any) -> None:
        """Something that happens in normal operation."""
        self._write("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Something that the engine coped with."""
        self._write("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Something that somebody should look at."""
        self._write("error", event, fields)

    def failure(self, event: str, error: BaseException) -> None:
        """An error with its traceback."""
        trace = "".join(traceback.format_exception(error))
        self._write("error", event, {"error": repr(error), "traceback": trace})

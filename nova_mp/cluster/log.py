"""The engine's log: what its processes did, for people and for programs.

One file for each engine; one JSON object a line. Lines are of level "error" (somebody should look
at it), "warning" (the engine coped with it), "info" (processes that come and go, mounts) and
"debug" (each change that clients asked for). NOVA_MP_LOG_LEVEL says from which level on they are
written: "info", unless it is set.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from typing import Any

from nova_mp import config

LEVELS = ("debug", "info", "warning", "error")
LINES_MAX = 500
LINES_WINDOW_S = 10.0
"""A process writes at most LINES_MAX lines in this time: clients may provoke as many as they like,
and are not to fill the disk. The next line says how many were left out."""


class EngineLog:
    """The engine's log file, as one of its processes writes it.

    A line is written by one call to a file opened for appending, so lines never mix.
    """

    def __init__(self, name: str, title: str) -> None:
        path = config.runtime_path(name) / "engine.log"
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._title = title
        wanted = os.environ.get("NOVA_MP_LOG_LEVEL", "")
        self._levels = LEVELS[LEVELS.index(wanted if wanted in LEVELS else "info") :]
        self._window_ends = 0.0
        self._written = 0
        self._left_out = 0

    def fileno(self) -> int:
        """The log's file descriptor, for output of child processes."""
        return self._fd

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        if level not in self._levels or self._too_many():
            return
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
        if self._left_out:
            line["lines_left_out"], self._left_out = self._left_out, 0
        os.write(self._fd, json.dumps(line, default=repr).encode() + b"\n")

    def _too_many(self) -> bool:
        now = time.monotonic()
        if now >= self._window_ends:
            self._window_ends = now + LINES_WINDOW_S
            self._written = 0
        self._written += 1
        self._left_out += self._written > LINES_MAX
        return self._written > LINES_MAX

    def debug(self, event: str, **fields: Any) -> None:
        """Something that happens often, and is of interest when something is wrong."""
        self._write("debug", event, fields)

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

"""What a command reports: its problems on stderr, one JSON object on request, and an exit code.

An error reads `nova-mp: cannot VERB 'OBJECT': REASON`, with what to do about it in the next line.
A command with several operands goes on after a problem; it has then done its work partly.
"""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import click

from nova_mp import errors
from nova_mp.cli.operands import ARENA_OPERAND, in_an_arena

OUTPUT_VERSION = 1

DONE, FAILED, USAGE, PARTLY, BUSY, NO_SPACE, CORRUPT = range(7)
TRY_AGAIN = 75
INTERRUPTED = 130
TERMINATED = 143

_CODE_OF_ERROR: list[tuple[type[errors.NovaError], int]] = [
    (errors.CorruptArena, CORRUPT),
    (errors.EngineRunning, BUSY),
    (errors.SlotsExhausted, TRY_AGAIN),
    (errors.Timeout, TRY_AGAIN),
]
_CODE_OF_ERRNO = {
    errno.EBUSY: BUSY,
    errno.ETXTBSY: BUSY,
    errno.ENOSPC: NO_SPACE,
    errno.EDQUOT: NO_SPACE,
    errno.EAGAIN: TRY_AGAIN,
    errno.ETIMEDOUT: TRY_AGAIN,
    errno.EINTR: TRY_AGAIN,
}
_HINT_OF_ERRNO = {
    errno.ENOENT: "see what is there: nova-mp ls {parent}",
    errno.ENOTDIR: "see what is there: nova-mp ls {parent}",
    errno.EEXIST: "choose another name, or see what is there: nova-mp stat {object}",
    errno.EISDIR: "it is a directory: list it with nova-mp ls, copy it with nova-mp cp -r",
    errno.ENOTEMPTY: "remove it with all that it holds: nova-mp rm -r {object}",
    errno.EROFS: "a snapshot never changes; copy from it with: nova-mp cp",
    errno.ENOSPC: "remove files, or snapshots that hold what was removed: nova-mp snapshot list",
    errno.EBUSY: "see who uses it: nova-mp status {arena}",
    errno.EACCES: "run it as the user who owns it",
    errno.EPERM: "run it as the user who owns it",
    errno.EXDEV: "copy it with nova-mp cp, then remove it",
    errno.ELOOP: "a symbolic link leads back to itself: look with nova-mp stat",
    errno.ENAMETOOLONG: "a name has 255 bytes at most: choose a shorter one",
    errno.EMFILE: "allow more open files: ulimit -n",
    errno.ENOMEM: "give the machine, or its containers, more memory",
    errno.EBADF: "see whether standard input or output is closed",
    errno.EIO: "stop the arena and check it: nova-mp fsck {arena}",
}
_HINT_OF_LOCAL_ERRNO = {
    errno.ENOENT: "see what is there: ls {parent}",
    errno.ENOTDIR: "see what is there: ls {parent}",
    errno.EEXIST: "choose another name, or see what is there: ls -l {object}",
    errno.EISDIR: "it is a directory: name a file, or copy it with nova-mp cp -r",
    errno.ENOTEMPTY: "remove first what it holds: see ls {object}",
    errno.EROFS: "that file system is read-only: choose another place",
    errno.ENOSPC: "free some space there: see df {parent}",
    errno.EBUSY: "see who uses it: fuser -v {object}",
    errno.EACCES: "see its permissions: ls -ld {parent} {object}",
    errno.EPERM: "see its permissions: ls -ld {parent} {object}",
    errno.ELOOP: "a symbolic link leads back to itself: see ls -l {object}",
    errno.EIO: "the medium below it may have failed: see dmesg",
}
_HINT_OF_VERB = {
    ("make", errno.ENOENT): "make the directories above it, too: nova-mp mkdir -p {object}",
    ("make", errno.EEXIST): "see what it is: nova-mp stat {object}; with -p a directory may exist",
    ("move", errno.EINVAL): "no directory can go into itself: choose another target",
    ("unfreeze", errno.EINVAL): "it is not frozen: see nova-mp status {arena}",
    ("take a snapshot of", errno.EEXIST): "choose another name; see: nova-mp snapshot list {arena}",
}


@dataclass(frozen=True)
class Problem:
    """One thing that could not be done: `cannot VERB 'OBJECT': REASON`, and a hint."""

    verb: str
    object: str
    reason: str
    hint: str
    exit_code: int

    def text(self) -> str:
        """The two lines (one without a hint) that people read."""
        lines = f"nova-mp: cannot {self.verb} '{printable(self.object)}': {self.reason}"
        return f"{lines}\n  hint: {self.hint}" if self.hint else lines


class Refused(Exception):
    """A command's own refusal, where no system error says it: reason, hint and exit code."""

    def __init__(self, reason: str, hint: str = "", exit_code: int = FAILED) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint
        self.exit_code = exit_code


class OutputFailed(Exception):
    """What is printed cannot be written; not a system error of the file that is printed."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.errno, error.strerror)
        self.errno = error.errno

    @property
    def closed(self) -> bool:
        """Whether the reader has gone away, having seen enough."""
        return self.errno == errno.EPIPE


class OutputStream(io.FileIO):
    """Standard output, whose errors are OutputFailed."""

    def write(self, data: Any, /) -> int:
        """Write; see `write(2)`."""
        try:
            return super().write(data)
        except BlockingIOError:
            raise
        except OSError as error:
            raise OutputFailed(error) from error


def output_problem(error: BaseException) -> Problem:
    """Explain why nothing more can be printed."""
    number = getattr(error, "errno", None) or errno.EIO
    reason = os.strerror(number)
    hint = "see where standard output goes to"
    if number in (errno.ENOSPC, errno.EDQUOT):
        hint = "free some space where standard output goes to"
    reason = reason[:1].lower() + reason[1:]
    return Problem("write", "standard output", reason, hint, _CODE_OF_ERRNO.get(number, FAILED))


def problem_of(error: BaseException, verb: str, what: str) -> Problem:
    """Explain `error`, which came up when `verb` was to be done to `what`."""
    if isinstance(error, Refused):
        return Problem(verb, what, error.reason, error.hint, error.exit_code)
    match = ARENA_OPERAND.fullmatch(what)
    arena = match["arena"] if match else what.partition("@")[0]
    if isinstance(error, errors.NovaError):
        hint = error.remedy
        if isinstance(error, errors.NoSuchSnapshot):
            hint = f"see which there are: nova-mp snapshot list {arena}"
        return Problem(verb, what, error.reason, hint, _code(error))
    if isinstance(error, OSError):
        reason = (error.strerror or str(error)).strip()
        reason = reason[:1].lower() + reason[1:]
        named = error.filename if error.filename is not None else what
        named = os.fsdecode(named) if isinstance(named, str | bytes) else str(named)
        if not what.endswith(named):
            reason = f"{printable(named)}: {reason}"
        hint = _hint(error.errno or 0, verb, what)
        hint = hint.format(parent=parent_of(what), object=what, arena=arena)
        return Problem(verb, what, reason, hint, _code(error))
    return Problem(verb, what, str(error), "", USAGE)


def _hint(number: int, verb: str, what: str) -> str:
    """What to do about a system error: for files in arenas, and for others."""
    if in_an_arena(what) or (number and "/" not in what and (verb, number) in _HINT_OF_VERB):
        return _HINT_OF_VERB.get((verb, number)) or _HINT_OF_ERRNO.get(number, "")
    return _HINT_OF_LOCAL_ERRNO.get(number) or _HINT_OF_ERRNO.get(number, "")


def _code(error: BaseException) -> int:
    for kind, code in _CODE_OF_ERROR:
        if isinstance(error, kind):
            return code
    if isinstance(error, ValueError):
        # A job file that cannot be run as it is written.
        return USAGE
    return _CODE_OF_ERRNO.get(getattr(error, "errno", None) or 0, FAILED)


def parent_of(operand: str) -> str:
    """`NAME:/a` for `NAME:/a/b`; a local path's parent for a local path."""
    head, colon, path = operand.partition(":/")
    if not colon:
        return os.path.dirname(operand) or "."
    return f"{head}:/{path.rstrip('/').rpartition('/')[0]}"


def printable(text: str) -> str:
    """`text` without what would move the cursor or ring the bell of a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


@dataclass
class Report:
    """The outcome of one command, collected while it runs."""

    command: str
    verb: str
    as_json: bool = False
    done: int = 0
    problems: list[Problem] = field(default_factory=list)
    exit_code: int | None = None

    @contextmanager
    def attempt(self, what: str, verb: str | None = None, *, counts: bool = True) -> Iterator[None]:
        """Count the block as done (unless it is only on the way), or take down why it failed.

        Takes system errors, the package's errors, and ValueError, with which the package answers
        arguments that make no sense. Everything else is a defect and shows its traceback.
        """
        try:
            yield
        except BrokenPipeError:
            raise
        except (OSError, errors.NovaError, Refused, ValueError) as error:
            self.problem(problem_of(error, verb or self.verb, what))
        else:
            self.done += counts

    def problem(self, problem: Problem) -> None:
        """Take down a problem and say it at once."""
        if not problem.hint:
            problem = replace(problem, hint=f"see how it is used: nova-mp {self.command} --help")
        self.problems.append(problem)
        sys.stdout.flush()
        click.echo(problem.text(), err=True)

    def say(self, text: str = "") -> None:
        """Print a line for people; with --json there is none."""
        if not self.as_json:
            click.echo(text)

    def finish(self, payload: dict[str, Any] | None = None) -> int:
        """Print the JSON object if one is wanted; returns the exit code."""
        code = self._code()
        if self.as_json:
            result: dict[str, Any] = {"output_version": OUTPUT_VERSION, "command": self.command}
            result |= payload or {}
            result["errors"] = [asdict(problem) for problem in self.problems]
            result["exit_code"] = code
            click.echo(json.dumps(result, indent=2, default=str))
        return code

    def _code(self) -> int:
        if self.exit_code is not None:
            return self.exit_code
        if not self.problems:
            return DONE
        return PARTLY if self.done else self.problems[0].exit_code

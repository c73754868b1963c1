"""Python's open modes as flags, with the errors that the builtin `open` gives for bad ones."""

from __future__ import annotations

import os
from typing import NamedTuple

_FLAGS = {
    "r": os.O_RDONLY,
    "w": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    "a": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    "x": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
}


class OpenMode(NamedTuple):
    """What a mode string asks for; `binary_mode` is that of the binary file below a text one."""

    flags: int
    text: bool
    binary_mode: str


def parse_mode(
    mode: str,
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
) -> OpenMode:
    """Take a mode of Python's `open` apart; ValueError or TypeError as the builtin gives them.

    As there, a mode without `b` is a text mode.
    """
    if not isinstance(mode, str):
        raise TypeError(f"open() argument 'mode' must be str, not {type(mode).__name__}")
    letters = set(mode)
    if letters - set("rwaxbt+") or len(mode) > len(letters):
        raise ValueError(f"invalid mode: {mode!r}")
    kinds = letters & set(_FLAGS)
    if len(kinds) != 1:
        raise ValueError("must have exactly one of create/read/write/append mode")
    text = "b" not in letters
    if "t" in letters and "b" in letters:
        raise ValueError("can't have text and binary mode at once")
    if not text:
        for name, value in (("encoding", encoding), ("errors", errors), ("newline", newline)):
            if value is not None:
                raise ValueError(f"binary mode doesn't take {_article(name)} {name} argument")
    elif buffering == 0:
        raise ValueError("can't have unbuffered text I/O")
    kind = kinds.pop()
    flags = _FLAGS[kind]
    if "+" in letters:
        flags = flags & ~os.O_WRONLY | os.O_RDWR
    shown = "rb+" if kind == "w" and "+" in letters else kind + "b" + "+" * ("+" in letters)
    return OpenMode(flags, text, shown)


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def access_of(flags: int) -> tuple[bool, bool]:
    """(readable, writable) of `os.O_*` flags."""
    access = flags & os.O_ACCMODE
    return access in (os.O_RDONLY, os.O_RDWR), access in (os.O_WRONLY, os.O_RDWR)


def mode_of(flags: int) -> str:
    """The binary mode string that describes `os.O_*` flags best."""
    readable, writable = access_of(flags)
    if flags & os.O_APPEND:
        return "ab+" if readable else "ab"
    if flags & os.O_EXCL and flags & os.O_CREAT:
        return "xb+" if readable else "xb"
    return "rb+" if readable and writable else "wb" if writable else "rb"

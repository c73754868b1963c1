"""Field tables of the on-media format, read from the declaration itself.

`layout.pxd` is the one place that declares the format. This module parses it in plain Python, so
that tools which must not depend on native code (fsck, dump, the format document's test) work from
the same names, offsets and sizes as the compiled file system.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_SOURCE = Path(__file__).with_name("layout.pxd")
_CTYPES = {"uint8_t": ("B", 1), "uint16_t": ("H", 2), "uint32_t": ("I", 4), "uint64_t": ("Q", 8)}
_CONSTANT = re.compile(r"^    ([A-Z][A-Z0-9_]*) = ([0-9A-Fa-fx <]+?)\s*(?:#\s*(.*))?$")
_STRUCT = re.compile(r"^cdef packed struct (nv_\w+):")
_FIELD = re.compile(r"^    (uint\d+_t) (\w+?)(?:\[(\d+)\])?\s*(?:#\s*(.*))?$")


@dataclass(frozen=True)
class Field:
    """One field of a packed struct: `offset` and `size` in bytes, `code` for the struct module."""

    name: str
    offset: int
    size: int
    code: str
    meaning: str


@dataclass(frozen=True)
class Struct:
    """One packed struct; `size` in bytes."""

    name: str
    size: int
    fields: tuple[Field, ...]

    @property
    def format(self) -> str:
        """Little-endian format string for the `struct` module."""
        return "<" + "".join(field.code for field in self.fields)

    def offset(self, name: str) -> int:
        """Byte offset of the field called `name`."""
        return next(field.offset for field in self.fields if field.name == name)


@cache
def _parse() -> tuple[dict[str, int], dict[str, str], dict[str, Struct]]:
    constants: dict[str, int] = {}
    meanings: dict[str, str] = {}
    structs: dict[str, Struct] = {}
    current: str | None = None
    fields: list[Field] = []
    for line in _SOURCE.read_text().splitlines():
        if match := _STRUCT.match(line):
            current, fields = match[1], []
        elif line and not line.startswith(" "):
            current = None
        elif current is not None and (match := _FIELD.match(line)):
            code, width = _CTYPES[match[1]]
            count = int(match[3] or 1)
            offset = fields[-1].offset + fields[-1].size if fields else 0
            code = code if match[3] is None else f"{count * width}s"
            fields.append(Field(match[2], offset, width * count, code, match[4] or ""))
            structs[current] = Struct(current, offset + width * count, tuple(fields))
        elif current is None and (match := _CONSTANT.match(line)):
            left, _, right = match[2].partition("<<")
            constants[match[1]] = int(left, 0) << int(right or "0", 0)
            meanings[match[1]] = match[3] or ""
    return constants, meanings, structs


def constants() -> dict[str, int]:
    """Named constants of the format."""
    return dict(_parse()[0])


def constant_meanings() -> dict[str, str]:
    """The one-line meaning of each constant."""
    return dict(_parse()[1])


def structs() -> dict[str, Struct]:
    """Packed structs of the format, by name."""
    return dict(_parse()[2])

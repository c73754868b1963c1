"""The tables of docs/FORMAT.md, made from the declaration: run this file to bring them up to date.

Rewrites the tables in place, and leaves the text around them alone. A struct that has no section
yet must be given one by hand: its heading, and what it is for.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATH = ROOT / "docs" / "FORMAT.md"
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from nova_mp.core import layout_fields  # noqa: E402
from nova_mp.tools.findings import CODES  # noqa: E402

SECTION = re.compile(r"^### `(nv_\w+)`: \d+ bytes$", re.MULTILINE)
TABLE = re.compile(r"^\|.*\n(?:\|.*\n)+", re.MULTILINE)


def table(heading: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; bars in cells are escaped."""
    lines = [heading, ["---"] * len(heading)]
    lines += [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def struct_table(name: str) -> str:
    """Fields of a struct."""
    fields = layout_fields.structs()[name].fields
    rows = [[str(f.offset), str(f.size), f"`{f.name}`", f.meaning] for f in fields]
    return table(["offset", "bytes", "field", "meaning"], rows)


def constant_table() -> str:
    """Constants; magic numbers in hexadecimal."""
    meanings = layout_fields.constant_meanings()
    rows = [
        [f"`{name}`", f"0x{value:08X}" if name.startswith("MAGIC_") else str(value), meanings[name]]
        for name, value in layout_fields.constants().items()
    ]
    return table(["constant", "value", "meaning"], rows)


def finding_table() -> str:
    """Findings of the checker."""
    rows = [[code, each.meaning, each.invariants] for code, each in CODES.items()]
    return table(["code", "meaning", "invariants"], rows)


def _replace(text: str, start: int, make: Callable[[], str]) -> str:
    match = TABLE.search(text, start)
    assert match, "no table after the heading"
    return text[: match.start()] + make() + text[match.end() :]


def rewritten(text: str) -> str:
    """`text` with its tables made anew."""
    text = _replace(text, text.index("## Constants"), constant_table)
    text = _replace(text, text.index("## Findings of the checker"), finding_table)
    for name, declared in layout_fields.structs().items():
        heading = f"### `{name}`: {declared.size} bytes"
        text = re.sub(rf"^### `{name}`: \d+ bytes$", heading, text, flags=re.MULTILINE)
        if heading in text:
            start = text.index(heading)
            text = _replace(text, start, lambda name=name: struct_table(name))  # type: ignore[misc]
    return text


if __name__ == "__main__":
    PATH.write_text(rewritten(PATH.read_text()))

"""docs/FORMAT.md, the field tables and the compiled core say the same about the format."""

from __future__ import annotations

import importlib
import re
import struct
from pathlib import Path

import pytest
from t0_layout.format_tables import PATH, SECTION, TABLE, rewritten

from nova_mp.core import layout_fields
from nova_mp.tools import fsck

DOC = PATH.read_text()
STRUCTS = layout_fields.structs()
K = layout_fields.constants()


def rows(text: str) -> list[list[str]]:
    """Cells of the first table in `text`, without its heading."""
    match = TABLE.search(text)
    assert match
    lines = match[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_struct_is_documented() -> None:
    headings = {match[0] for match in SECTION.finditer(DOC)}
    assert headings == {f"### `{name}`: {STRUCTS[name].size} bytes" for name in STRUCTS}


def test_every_table_is_what_the_declaration_says() -> None:
    """Names, offsets, sizes, values, meanings: see format_tables.py for how to bring them up."""
    found = [match[0] for match in TABLE.finditer(DOC)]
    expected = [match[0] for match in TABLE.finditer(rewritten(DOC))]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == theirs, "run: python tests/t0_layout/format_tables.py"


@pytest.mark.parametrize("wrong", ["| 24 | 8 |", "| `BLOCK_SHIFT` | 12 |", "FSCK-405"])
def test_a_wrong_table_is_noticed(wrong: str) -> None:
    """The comparison can fail: a changed offset, value or code is not what is declared."""
    damaged = DOC.replace(wrong, wrong.replace("4", "7").replace("12", "13"))
    assert damaged != DOC
    assert rewritten(damaged) == DOC


def test_map_agrees_with_constants() -> None:
    table = rows(DOC[DOC.index("## Map of an arena") :])
    blocks = [row[0] for row in table]
    heads, journals, data = K["TABLE_HEADS_NR"], K["JOURNALS_NR"], K["DATA_NR"]
    assert blocks == [
        "0",
        f"{heads} and {heads + K['TABLE_HEADS_BLOCKS'] - 1}",
        str(journals - 1),
        f"{journals} to {data - 1}",
        f"{data} to last - 1",
        "last",
    ]
    assert journals + K["MAX_CPUS"] == data


def test_cited_invariants_are_defined() -> None:
    defined = set(re.findall(r"\*\*(FMT-\d+)\*\*", DOC))
    core = Path(layout_fields.__file__).parent
    for header in core.glob("*.pxd"):
        text = header.read_text()
        defined |= set(re.findall(r"^#   ([A-Z]+-\d+)  ", text, re.MULTILINE))
    cited = {name for code in fsck.CODES.values() for name in code.invariants.split(", ")}
    assert cited <= defined
    assert {name for name in defined if name.startswith("FMT-")} <= cited


@pytest.mark.parametrize("name", STRUCTS)
def test_fields_are_packed_and_aligned(name: str) -> None:
    declared = STRUCTS[name]
    assert struct.calcsize(declared.format) == declared.size
    position = 0
    for field in declared.fields:
        assert field.offset == position
        position += field.size
        if field.code in ("H", "I", "Q"):
            assert field.offset % field.size == 0, f"{field.name} is not aligned"
    # LAY-1
    assert 64 % declared.size == 0 or declared.size % 64 == 0


def test_commit_words_are_aligned_words() -> None:
    """LAY-3: what commits something is one aligned store of 8 bytes."""
    words = {
        "nv_inode": ("state", "log_head_off", "log_tail_off", "delete_epoch_id"),
        "nv_journal": ("commit",),
        "nv_log_page_tail": ("next_page_off",),
        "nv_snapshot_info": ("deleted",),
        "nv_chunk_header": ("next_chunk_off",),
        "nv_table_head": ("first_chunk_off",),
    }
    for name, fields in words.items():
        for field in fields:
            found = next(each for each in STRUCTS[name].fields if each.name == field)
            assert found.size == 8 and found.offset % 8 == 0, f"{name}.{field}"


def test_compiled_core_agrees() -> None:
    layout = pytest.importorskip("nova_mp.core.layout", reason="the core is not built")
    layout = importlib.import_module(layout.__name__)
    assert {
        name: {field.name: (field.offset, field.size) for field in declared.fields}
        for name, declared in STRUCTS.items()
    } == layout.FIELDS
    assert K["FORMAT_VERSION"] == layout.FORMAT

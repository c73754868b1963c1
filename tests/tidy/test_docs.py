"""What the documents say of the tree: files, links, invariants and functions that exist."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
from tidy import test_layers, tree

from nova_mp.tools.findings import CODES

DOCS = tree.files(("docs", "README.md", "CONTRIBUTING.md"), (".md",))
NOTES = tree.files(("docs/notes", "docs/decisions"), (".md",))
SOURCES = tree.files(("nova_mp", "workers", "bench"), tree.PYTHON + tree.CYTHON)
ARCHITECTURE = tree.ROOT / "docs" / "ARCHITECTURE.md"

INVARIANT = re.compile(r"\b[A-Z]{2,}-\d+\b")
DECLARATION = re.compile(r"^(?:# *| *- | *)([A-Z]{2,}-\d+)(?: +|:)", re.M)
# Names that look like an invariant's.
FOREIGN = {"CRC-32", "UTF-8", "UTC-0"}


@functools.cache
def declared() -> set[str]:
    """Invariants that some head declares: the number at a line's start, and then its text; and the
    checker's findings."""
    found: set[str] = set(CODES)
    for path in SOURCES:
        found |= set(DECLARATION.findall(path.read_text()))
    return found


@pytest.mark.parametrize("path", DOCS, ids=tree.relative)
def test_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text())
    broken = [t for t in targets if "://" not in t and not (path.parent / t).exists()]
    assert not broken, f"{tree.relative(path)} links to what is not there: {broken}"


@functools.cache
def words() -> set[str]:
    """Every name in the code."""
    return {word for path in SOURCES for word in re.findall(r"\w+", path.read_text())}


def test_levels_of_the_core_are_drawn() -> None:
    text = ARCHITECTURE.read_text().split("Inside the core", 1)[1]
    drawn = [set(line.strip().split(", ")) for line in re.findall(r"^    (.+)$", text, re.M)]
    assert drawn == test_layers.CORE_LEVELS[::-1]


def test_every_file_has_its_line() -> None:
    text = ARCHITECTURE.read_text()
    missing = []
    for path in SOURCES:
        if path.name == "__init__.py":
            continue
        sections = re.split(r"^### ", text, flags=re.M)
        folder = tree.relative(path.parent)
        section = next((s for s in sections if s.startswith(f"{folder}\n")), "")
        name = path.stem if path.suffix in tree.CYTHON else path.name
        if f"`{name}`" not in section:
            missing.append(tree.relative(path))
    assert not missing, f"docs/ARCHITECTURE.md has no line for {missing}"


@pytest.mark.parametrize("path", NOTES, ids=tree.relative)
def test_cited_invariants_exist(path: Path) -> None:
    cited = set(INVARIANT.findall(path.read_text())) - FOREIGN
    unknown = cited - declared()
    assert not unknown, f"{tree.relative(path)} cites {sorted(unknown)}, which no file declares"


# The tools cite the rules of docs/FORMAT.md and number their own findings.
CITING = [path for path in SOURCES if path.parent.name != "tools"]


@pytest.mark.parametrize("path", CITING, ids=tree.relative)
def test_invariants_cited_in_code_exist(path: Path) -> None:
    unknown = set(INVARIANT.findall(path.read_text())) - FOREIGN - declared()
    assert not unknown, f"{tree.relative(path)} cites {sorted(unknown)}, which no file declares"


@pytest.mark.parametrize("path", NOTES, ids=tree.relative)
def test_named_functions_exist(path: Path) -> None:
    names = re.findall(r"`([a-z]+(?:_[a-z0-9]+)+)(?:\(\))?`", path.read_text())
    gone = sorted({name for name in names if name not in words()})
    assert not gone, f"{tree.relative(path)} speaks of {gone}, which is nowhere in the code"

"""Sizes, line lengths, declarations of the core, and what no file may hold."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from tidy import tree

LINE_COLUMNS = 100
FILE_LINES = 600
FUNCTION_LINES = 70

CODE = tree.files(suffixes=tree.PYTHON + tree.CYTHON)
WIDE = tree.files(suffixes=tree.PYTHON + tree.CYTHON + tree.HEADER)
PRODUCT = tree.files(("nova_mp", "workers", "bench"))
CORE = tree.files(("nova_mp/core",), tree.CYTHON)

# The boundary turns Python objects into pointers and back, so its own helpers may hold the GIL.
BOUNDARY = {
    "layout", "boundary", "arena", "process", "handle", "fold", "view", "admin", "fs", "mapped"
}  # fmt: skip


@pytest.mark.parametrize("path", WIDE, ids=tree.relative)
def test_size_and_line_length(path: Path) -> None:
    lines = path.read_text().split("\n")
    assert len(lines) <= FILE_LINES, f"{tree.relative(path)} has {len(lines)} lines: cut it"
    wide = [number for number, line in enumerate(lines, 1) if len(line) > LINE_COLUMNS]
    assert not wide, f"{tree.relative(path)}: more than {LINE_COLUMNS} columns in lines {wide}"
    trailing = [number for number, line in enumerate(lines, 1) if line != line.rstrip()]
    assert not trailing, f"{tree.relative(path)}: trailing blanks in lines {trailing}"


@pytest.mark.parametrize("path", CODE, ids=tree.relative)
def test_functions_fit_a_page(path: Path) -> None:
    long = [f"{f.name} ({f.lines} lines)" for f in tree.functions(path) if f.lines > FUNCTION_LINES]
    assert not long, f"{tree.relative(path)}: over {FUNCTION_LINES} lines: {', '.join(long)}"


@pytest.mark.parametrize("path", PRODUCT, ids=tree.relative)
def test_modules_say_what_they_are(path: Path) -> None:
    text = path.read_text()
    assert not text.strip() or ast.get_docstring(ast.parse(text)), f"{path.name}: no docstring"


@pytest.mark.parametrize("path", PRODUCT, ids=tree.relative)
def test_no_error_is_swallowed_blindly(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            blind = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            empty = all(isinstance(line, ast.Pass | ast.Continue) for line in node.body)
            assert not (blind and empty), f"{tree.relative(path)}:{node.lineno} swallows everything"


_CDEF = re.compile(r"^\s*cp?def\s+(?!class\b|struct\b|packed\b|union\b|enum\b|extern\b|public\b)"
                   r"(?:inline\s+)?([^=(]*?)(\w+)\s*\((.*)\)\s*(.*?):?$")  # fmt: skip


def declarations(path: Path) -> list[tuple[int, str, str]]:
    """(line, name, what follows the arguments) of each cdef function that is Cython's own."""
    found, extern_indent = [], -1
    for number, line in tree.statements(path):
        if not line.strip():
            continue
        indent = len(line) - len(line.lstrip())
        if extern_indent >= 0 and indent > extern_indent:
            continue
        extern_indent = indent if re.match(r"\s*cdef\s+extern\b", line) else -1
        match = _CDEF.match(line)
        if match and extern_indent < 0:
            found.append((number, match[2], match[4]))
    return found


@pytest.mark.parametrize("path", CORE, ids=tree.relative)
def test_core_functions_neither_raise_nor_hold_the_gil(path: Path) -> None:
    wrong = []
    for number, name, tail in declarations(path):
        quiet = re.fullmatch(r"(noexcept|except\s*\??\s*-1)\s+nogil", tail.strip())
        if not quiet and not (path.stem in BOUNDARY and "nogil" not in tail):
            wrong.append(f"{tree.relative(path)}:{number} {name}: `{tail}`")
    assert not wrong, "say `noexcept nogil` or `except -1 nogil`:\n" + "\n".join(wrong)


def locked_with_the_gil(path: Path) -> list[int]:
    """Lines in which Python code takes or drops a lock, or a block without the GIL keeps one.

    Such a lock would be held while the interpreter is waited for, and so by a thread that stores
    into a mapped file, and waits for whoever holds the lock.
    """
    wrong, quiet, block, balance = [], -1, -1, 0
    for number, line in tree.statements(path):
        indent = len(line) - len(line.lstrip())
        if not line.strip() or (quiet >= 0 and indent > quiet):
            continue
        quiet = indent if (match := _CDEF.match(line)) and "nogil" in match[4] else -1
        if block >= 0 and indent <= block:
            wrong += [number] * (balance != 0)
            block = -1
        if line.strip() == "with nogil:":
            block, balance = indent, 0
        takes, drops = (len(re.findall(rf"\b{name}\(", line))
                        for name in ("(?:lock_take|inode_lock)", "lock_drop"))  # fmt: skip
        balance += takes - drops
        wrong += [number] * bool(quiet < 0 and block < 0 and (takes or drops))
    return wrong


@pytest.mark.parametrize("path", [p for p in CORE if p.stem in BOUNDARY], ids=tree.relative)
def test_no_lock_is_held_while_the_interpreter_is_waited_for(path: Path) -> None:
    assert not (wrong := locked_with_the_gil(path)), f"{tree.relative(path)}: lines {wrong}"


# Written so that the patterns do not match their own text.
FORBIDDEN = {
    "a path of some machine": re.compile(r"(?<![\w.])/(?:home|root|Users|work)/\w"),
    "a host of a package registry": re.compile(
        r"https?://[^\s)\"']*(?:registry|artifact|nexus|devpi|mirror|files\.pythonhosted)", re.I
    ),
    "a package index": re.compile(r"(?:extra-)?index[-_]url\s*[=\s]\s*\S", re.I),
    "a conflict marker": re.compile(r"^(?:<{7}|>{7}) ", re.M),
}


@pytest.mark.parametrize(
    "path", [p for p in tree.files(tree.CODE + tree.PROSE, ()) if p.suffix not in (".so", ".c")],
    ids=tree.relative,
)  # fmt: skip
def test_nothing_of_one_machine(path: Path) -> None:
    text = path.read_text(errors="replace")
    for what, pattern in FORBIDDEN.items():
        match = pattern.search(text)
        assert not match, f"{tree.relative(path)} holds {what}: {match[0] if match else ''}"

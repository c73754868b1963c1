"""The project's own sources as the tidy tests see them: files, functions, imports."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = ("nova_mp", "workers", "bench", "examples", "tests", "setup.py")
PROSE = ("docs", "config", ".ci", "Makefile", "README.md", "CONTRIBUTING.md", "pyproject.toml")
PYTHON, CYTHON, HEADER = (".py",), (".pyx", ".pxd"), (".h",)


@dataclass(frozen=True)
class Function:
    """One function: its name, the line of its `def`, and how many lines it takes."""

    name: str
    line: int
    lines: int


@dataclass(frozen=True)
class Import:
    """`module` is imported in line `line`; for `from x import y` it is x.y, y module or not."""

    module: str
    line: int


def files(tops: tuple[str, ...] = CODE, suffixes: tuple[str, ...] = PYTHON) -> list[Path]:
    """Files below `tops`, without the links that an in-place build makes."""
    found: list[Path] = []
    for top in tops:
        start = ROOT / top
        if start.is_file() and (not suffixes or start.suffix in suffixes):
            found.append(start)
        for folder, folders, names in start.walk() if hasattr(start, "walk") else _walk(start):
            folders[:] = [f for f in folders if not (folder / f).is_symlink() and f[0] != "_"]
            found += [folder / n for n in names if not suffixes or Path(n).suffix in suffixes]
    return sorted(found)


def _walk(start: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    import os

    for folder, folders, names in os.walk(start):
        yield Path(folder), folders, names


def relative(path: Path) -> str:
    """`path` as it is written in messages."""
    return str(path.relative_to(ROOT))


def module_name(path: Path) -> str:
    """The dotted name under which `path` is imported."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] in ("workers", "bench"):
        parts.insert(0, "nova_mp")
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def imports(path: Path) -> list[Import]:
    """Everything `path` imports or cimports, anywhere in it, with relative names made absolute.

    What only a type checker reads (`if TYPE_CHECKING:`) is left out: it makes no dependency.
    """
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package.pop()
    if path.suffix in CYTHON:
        return list(_cython_imports(path, package))
    return list(_python_imports(ast.parse(path.read_text()), package))


def _absolute(module: str, level: int, package: list[str]) -> str:
    if not level:
        return module
    base = package[: len(package) - level + 1]
    return ".".join([*base, module] if module else base)


def _python_imports(tree: ast.AST, package: list[str]) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from _python_imports(other, package)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node.module or "", node.level, package)
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node.lineno)
        else:
            yield from _python_imports(node, package)


_FROM = re.compile(r"^\s*from\s+(\.*)([\w.]*)\s+c?import\s+(.+)$")
_IMPORT = re.compile(r"^\s*c?import\s+([\w., ]+)$")


def _cython_imports(path: Path, package: list[str]) -> Iterator[Import]:
    for number, line in statements(path):
        if match := _FROM.match(line):
            base = _absolute(match[2], len(match[1]), package)
            for name in match[3].strip("() ").split(","):
                if name.strip():
                    yield Import(f"{base}.{name.split()[0]}", number)
        elif match := _IMPORT.match(line):
            for name in match[1].split(","):
                yield Import(name.split()[0], number)


def statements(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, text) of Cython code, comments gone and lines joined inside brackets.

    Docstrings lose their contents. It is no parser: it sees enough of `cdef` lines and imports.
    """
    text = re.sub(r'("""|\'\'\')(.*?)\1', lambda m: '""' + "\n" * m[2].count("\n"),
                  path.read_text(), flags=re.DOTALL)  # fmt: skip
    pending, start, depth = "", 0, 0
    for number, raw in enumerate(text.split("\n"), 1):
        line = re.sub(r"(^|\s)#.*$", "", raw).rstrip()
        depth += sum(map(line.count, "([{")) - sum(map(line.count, ")]}"))
        pending, start = (f"{pending} {line.strip()}", start) if pending else (line, number)
        if depth <= 0:
            yield start, pending
            pending, depth = "", 0


def functions(path: Path) -> list[Function]:
    """Functions of a Python or Cython file, nested ones too."""
    if path.suffix in CYTHON:
        return list(_cython_functions(path.read_text().split("\n")))
    return [
        Function(node.name, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


_HEAD = re.compile(r"^(\s*)(?:def|cp?def\s+(?!class\b)(?:inline\s+)?[\w\s*\[\],.]*?)\s*(\w+)\s*\(")


def _cython_functions(lines: list[str]) -> Iterator[Function]:
    for number, line in enumerate(lines):
        match = _HEAD.match(line)
        if not match:
            continue
        last = head = number
        while head < len(lines) and not lines[head].rstrip().endswith(":"):
            head += 1
        for at in range(head + 1, len(lines)):
            if lines[at].strip():
                if len(lines[at]) - len(lines[at].lstrip()) <= len(match[1]):
                    break
                last = at
        yield Function(match[2], number + 1, last - number + 1)

"""The tidy tests can fail: what they look for is found in small examples."""

from __future__ import annotations

from pathlib import Path

import pytest
from tidy import test_style, tree


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(tree, "ROOT", tmp_path)
    folder = tmp_path / "nova_mp" / "core"
    folder.mkdir(parents=True)
    return folder


def test_python_imports_are_made_absolute(example: Path) -> None:
    path = example / "a.py"
    path.write_text(
        "from __future__ import annotations\n"
        "import zmq\nfrom . import b\nfrom ..errors import X\n"
        "if TYPE_CHECKING:\n    import nova_mp.cli\n"
        "def f():\n    from nova_mp.client import base\n"
    )
    assert [(i.module, i.line) for i in tree.imports(path)][1:] == [
        ("zmq", 2),
        ("nova_mp.core.b", 3),
        ("nova_mp.errors.X", 4),
        ("nova_mp.client.base", 8),
    ]


def test_cython_imports(example: Path) -> None:
    path = example / "a.pyx"
    path.write_text(
        '"""from x import y"""\nfrom nova_mp.core.log cimport (append,\n    commit)\n'
        "from . cimport pmem\ncimport cython, libc.stdint\n"
    )
    assert [i.module for i in tree.imports(path)] == [
        "nova_mp.core.log.append",
        "nova_mp.core.log.commit",
        "nova_mp.core.pmem",
        "cython",
        "libc.stdint",
    ]


def test_cdef_declarations(example: Path) -> None:
    path = example / "a.pxd"
    path.write_text(
        'cdef extern from "arch.h" nogil:\n    int skipped(int x)\n'
        "cdef struct s:\n    int x\n"
        "cdef inline int good(int x,\n                     int y) noexcept nogil\n"
        "cdef u64 *bad(s *x)\n"
        "cdef u64[4] table\n"
    )
    assert test_style.declarations(path) == [(5, "good", "noexcept nogil"), (7, "bad", "")]


def test_function_lengths(example: Path) -> None:
    path = example / "a.pyx"
    path.write_text(
        "cdef int f(int x,\n           int y) noexcept nogil:\n    x += 1\n\n    return x\n\n\n"
        "def g():\n    return 1\n\n\ncdef class C(Base):\n    cdef int x\n"
    )
    assert [(f.name, f.line, f.lines) for f in tree.functions(path)] == [("f", 1, 5), ("g", 8, 2)]


def test_locks_and_the_interpreter(example: Path) -> None:
    path = example / "a.pyx"
    path.write_text(
        "cdef int quiet(int x) noexcept nogil:\n    lock_take(c, l)\n    return 0\n"
        "def good(self):\n    with nogil:\n        lock_take(c, l)\n        lock_drop(c, l)\n"
        "def bad(self):\n    with nogil:\n        rc = inode_lock(c, 1, 0, &h)\n"
        "    read(h)\n    lock_drop(c, l)\n"
    )
    assert test_style.locked_with_the_gil(path) == [11, 12]

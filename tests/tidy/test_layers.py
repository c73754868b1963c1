"""Who may import whom: downward only, as docs/ARCHITECTURE.md draws it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tidy import tree

# A file may import from lower layers, and from its own.
LAYERS = [
    {"errors", "version"},
    {"core"},
    {"config", "protocol"},
    {"client", "cluster"},
    {"adapters", "tools"},
    {"cli", "workers", "bench"},
]
LAYER = {package: rank for rank, names in enumerate(LAYERS) for package in names}

# Inside the core a module imports from lower levels only; fs.pyx stands on top of all.
CORE_LEVELS = [
    {"arch", "layout", "layout_fields", "dram", "segment"},
    {"pmem"},
    {"sync"},
    {"alloc"},
    {"pages"},
    {"log"},
    {"snaptable", "journal", "index", "dir", "stores"},
    {"snaplist"},
    {"snapshot", "listsave"},
    {"itable"},
    {"inode"},
    {"extent"},
    {"mapping"},
    {"file", "xattr"},
    {"walk"},
    {"namei"},
    {"rename"},
    {"reclaim"},
    {"repair"},
    {"faults"},
    {"recovery"},
    {"boundary", "arena", "forks"},
    {"process", "fold"},
    {"mapped"},
    {"handle"},
    {"view"},
    {"admin"},
    {"fs"},
]
CORE_LEVEL = {module: rank for rank, names in enumerate(CORE_LEVELS) for module in names}

ZMQ_USERS = {"client", "workers", "bench"}
CORE_REFUSES = {"logging", "socket", "zmq", "msgpack", "asyncio", "multiprocessing"}

SOURCES = tree.files(("nova_mp", "workers", "bench"), tree.PYTHON + tree.CYTHON)


def package_of(module: str) -> str | None:
    """Which part of nova_mp `module` names; "" for the public names of nova_mp itself."""
    parts = module.split(".")
    if parts[0] != "nova_mp":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in LAYER else ""


def outgoing(path: Path) -> list[tuple[tree.Import, str]]:
    return [(i, p) for i in tree.imports(path) if (p := package_of(i.module)) is not None]


def test_every_part_has_a_layer() -> None:
    parts = {tree.module_name(path).split(".")[1] for path in SOURCES if path.parent != tree.ROOT
             and len(tree.module_name(path).split(".")) > 1}  # fmt: skip
    assert parts <= set(LAYER), f"no layer for {sorted(parts - set(LAYER))}"


@pytest.mark.parametrize("path", SOURCES, ids=tree.relative)
def test_imports_point_down(path: Path) -> None:
    own = package_of(tree.module_name(path)) or ""
    wrong = []
    for found, other in outgoing(path):
        where = f"{tree.relative(path)}:{found.line} imports {found.module}"
        if other == own:
            continue
        if other == "workers":
            wrong.append(f"{where}; processes are started, never imported")
        elif other == "bench" and own != "cli":
            wrong.append(f"{where}; only cli imports bench")
        elif not own:
            if LAYER[other] > LAYER["tools"]:
                wrong.append(f"{where}; the public names come from below")
        elif not other:
            # `import nova_mp` brings the public API: for those who use it, not for its parts.
            if LAYER[own] < LAYER["tools"]:
                wrong.append(f"{where}; a part imports the module that it needs")
        elif LAYER[other] > LAYER[own]:
            wrong.append(f"{where}, which is a layer above")
    assert not wrong, "\n".join(wrong)


def test_packages_have_no_cycle() -> None:
    edges: dict[str, set[str]] = {package: set() for package in LAYER}
    for path in SOURCES:
        if own := package_of(tree.module_name(path)):
            edges[own] |= {other for _, other in outgoing(path) if other and other != own}
    while leaves := [package for package, others in edges.items() if not others]:
        for package in leaves:
            del edges[package]
        for others in edges.values():
            others.difference_update(leaves)
    assert not edges, f"these packages import each other: {edges}"


@pytest.mark.parametrize("path", SOURCES, ids=tree.relative)
def test_zmq_stays_at_the_edge(path: Path) -> None:
    if package_of(tree.module_name(path)) not in ZMQ_USERS:
        users = [i.line for i in tree.imports(path) if i.module.split(".")[0] == "zmq"]
        assert not users, f"{tree.relative(path)} imports zmq in line {users}"


CORE = tree.files(("nova_mp/core",), tree.PYTHON + tree.CYTHON)


@pytest.mark.parametrize("path", CORE, ids=tree.relative)
def test_core_levels(path: Path) -> None:
    if path.name == "__init__.py":
        return
    own = CORE_LEVEL.get(path.stem)
    assert own is not None, f"core module {path.stem} has no level in this test"
    wrong = []
    for found in tree.imports(path):
        parts = found.module.split(".")
        if parts[0] in CORE_REFUSES and path.suffix in tree.CYTHON:
            wrong.append(f"{tree.relative(path)}:{found.line}: the core knows no {parts[0]}")
        other = parts[2] if parts[:2] == ["nova_mp", "core"] and len(parts) > 2 else path.stem
        if other != path.stem and CORE_LEVEL.get(other, 99) > own:
            wrong.append(f"{tree.relative(path)}:{found.line} imports {other} from a level above")
    assert not wrong, "\n".join(wrong)

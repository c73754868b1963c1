"""Shows what is in an arena: its structures as they lie on the medium, decoded.

Structure  `dump` gives JSON-able data, `format_dump` makes text of it. What can be shown:
           superblock, inodes, inode:N, log:N, journal, tables, snapshots, block:N, tree.
Invariants Like fsck: plain Python, nothing is written, committed journals count as done (`journal`
           shows them as they are).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from nova_mp.tools.fsck import Checker
from nova_mp.tools.image import (
    BLOCK_BYTES,
    DTYPES,
    SUPERBLOCK,
    TABLE_HEAD,
    TYPE_MASK,
    Image,
    ImageError,
    K,
    Source,
    ignore,
    inode_csum,
    open_image,
    redo_journals,
)
from nova_mp.tools.logs import TYPE_NAMES, Entry, Log, LogReader
from nova_mp.tools.replay import BLOCK_BITS, BLOCK_MASK, Replayed, Replayer, Snapshots

WHAT = (
    "superblock", "inodes", "inode:N", "log:N", "journal", "tables", "snapshots", "block:N", "tree",
)  # fmt: skip
TYPE_TITLES = {4: "directory", 8: "file", 10: "symlink"}
_HIDDEN = ("entry_type", "flags", "slots", "name_len", "csum", "epoch_id", "name", "data")
_STATES = {K["MOUNT_CLEAN"]: "clean", K["MOUNT_DIRTY"]: "dirty"}


def dump(source: Source, what: str) -> Any:
    """One part of an arena (an arena's name, an image's path, or a buffer) as JSON-able data.

    `what` is one of WHAT, with a number in place of N. Raises ValueError for another `what`,
    ImageError (a ValueError) if the arena has no such object or cannot be read at all, and
    FileNotFoundError if there is no such arena.
    """
    kind, colon, number = what.partition(":")
    if kind in _NUMBERED and colon:
        if not number.isdecimal():
            raise ValueError(f"bad number in '{what}'")
    elif kind not in _PLAIN or colon:
        raise ValueError(f"cannot dump '{what}': it must be one of {', '.join(WHAT)}")
    with open_image(source) as image:
        if kind == "superblock":
            return _superblock(image)
        image.limit(image.superblock()["size_bytes"] // BLOCK_BYTES)
        if image.blocks <= K["DATA_NR"]:
            raise ImageError(f"an arena of {image.blocks} blocks has no data area")
        if kind == "journal":
            return _journal(image)
        redo_journals(image, ignore, ignore)
        return _NUMBERED[kind](image, int(number)) if colon else _PLAIN[kind](image)


def text(value: bytes) -> str:
    """Bytes as JSON-able text: bytes that are no UTF-8 become surrogates, as in file names."""
    return value.decode("utf-8", "backslashreplace")


def _json(fields: dict[str, Any]) -> dict[str, Any]:
    skipped = ("reserved", "padding")
    return {
        key: value.hex() if isinstance(value, bytes) else value
        for key, value in fields.items()
        if key not in skipped
    }


# -- superblock, journals, tables


def _superblock(image: Image) -> dict[str, Any]:
    copies = []
    for copy in image.superblocks():
        fields = _json(copy.fields)
        fields["label"] = text(copy.fields["label"].rstrip(b"\0"))
        fields["mount_state"] = _STATES.get(fields["mount_state"], fields["mount_state"])
        copies.append({"block_nr": copy.block_nr, "valid": copy.valid, **fields})
    return {"bytes": SUPERBLOCK.size, "copies": copies}


def _journal(image: Image) -> list[dict[str, Any]]:
    found = []
    for cpu in range(K["MAX_CPUS"]):
        count, csum, records = image.journal(cpu)
        if count or csum:
            good = bool(records) and csum == image.journal_csum(cpu, count)
            words = [{"word_off": offset, "value": value} for offset, value in records]
            found.append({"cpu": cpu, "count": count, "committed": good, "records": words})
    return found


def _tables(image: Image) -> list[dict[str, Any]]:
    tables = []
    for table in range(K["MAX_CPUS"]):
        head_off = K["TABLE_HEADS_NR"] * BLOCK_BYTES + table * TABLE_HEAD.size
        chunks = []
        for number, nr in image.chunks(table, ignore):
            used = sum(1 for _ in image.chunk_inodes(table, number, nr))
            chunks.append({"chunk": number, "block_nr": nr, "inodes": used})
        if image.word(head_off):
            tables.append({"table": table, "head_off": head_off, "chunks": chunks})
    return tables


# -- inodes and logs


def _slots(image: Image) -> list[tuple[int, dict[str, Any]]]:
    return [
        found
        for table in range(K["MAX_CPUS"])
        for number, nr in image.chunks(table, ignore)
        for found in image.chunk_inodes(table, number, nr)
    ]


def _inode_fields(ino: int, inode: dict[str, Any]) -> dict[str, Any]:
    dtype = DTYPES.get(inode["mode"] & TYPE_MASK, 0)
    return {
        **_json(inode),
        "ino": ino,
        "type": TYPE_TITLES.get(dtype, "unknown"),
        "mode": f"{inode['mode']:#o}",
        "csum_ok": inode["csum"] == inode_csum(inode),
    }


def _inodes(image: Image) -> list[dict[str, Any]]:
    return [_inode_fields(ino, inode) for ino, inode in _slots(image)]


def _read(image: Image, ino: int) -> tuple[dict[str, Any], Log, list[str]]:
    inode = image.inode(ino)
    if inode["state"] == K["INODE_FREE"]:
        raise ImageError(f"inode {ino} is not in use")
    inode["ino"] = ino
    problems: list[str] = []
    reader = LogReader(image, lambda code, message, where: problems.append(f"{code} {message}"))
    return inode, reader.read(inode), problems


def _extents(pages: dict[int, int]) -> list[dict[str, int]]:
    extents: list[dict[str, int]] = []
    for page in sorted(pages):
        epoch, nr = pages[page] >> BLOCK_BITS, pages[page] & BLOCK_MASK
        last = extents[-1] if extents else {"pgoff": -2, "block_nr": 0, "pages": 0, "epoch_id": 0}
        count = last["pages"]
        joins = last["pgoff"] + count == page and last["block_nr"] + count == nr
        if joins and last["epoch_id"] == epoch:
            last["pages"] += 1
        else:
            extents.append({"pgoff": page, "block_nr": nr, "pages": 1, "epoch_id": epoch})
    return extents


def _inode(image: Image, ino: int) -> dict[str, Any]:
    inode, log, problems = _read(image, ino)
    state = Replayer(Snapshots([]), ignore).replay(inode, log)
    names = [
        {"name": text(name.name), "ino": name.ino, "type": TYPE_TITLES.get(name.dtype, "unknown")}
        for name in state.names.values()
    ]
    now = {key: getattr(state, key) for key in ("size", "nlink", "uid", "gid")}
    times = {key: getattr(state, key) for key in ("mtime_ns", "ctime_ns", "atime_ns")}
    return {
        **_inode_fields(ino, inode),
        "log": {"pages": log.pages, "reserve": log.reserve, "entries": len(log.entries)},
        "now": {"mode": f"{state.mode:#o}", **now, **times},
        "xattrs": {text(name): text(value) for name, value in state.xattrs.items()},
        "extents": _extents(state.pages),
        "names": names,
        "problems": problems,
    }


def _entry(entry: Entry) -> dict[str, Any]:
    fields = {key: value for key, value in _json(entry.fields).items() if key not in _HIDDEN}
    shown = {
        "offset": entry.offset,
        "type": TYPE_NAMES[entry.kind],
        "epoch_id": entry.epoch_id,
        "flags": entry.flags,
        **fields,
    }
    if TYPE_NAMES[entry.kind] == "dentry":
        shown["ino"], shown["file_type"] = entry.ino, TYPE_TITLES.get(entry.dtype, "unknown")
    if entry.name:
        shown["name"] = text(entry.name)
    if entry.value:
        shown["value"] = text(entry.value)
    return shown


def _log(image: Image, ino: int) -> dict[str, Any]:
    inode, log, problems = _read(image, ino)
    return {
        "ino": ino,
        "log_head_off": inode["log_head_off"],
        "log_tail_off": inode["log_tail_off"],
        "pages": log.pages,
        "reserve": log.reserve,
        "entries": [_entry(entry) for entry in log.entries],
        "problems": problems,
    }


def _snapshots(image: Image) -> list[dict[str, Any]]:
    entries = _log(image, K["SNAPSHOT_INO"])["entries"]
    return [
        {
            "epoch_id": entry["epoch_id"],
            "name": entry.get("name"),
            "create_time_ns": entry["create_time_ns"],
            "deleted": bool(entry["deleted"]),
            "nvmm_page_off": entry["nvmm_page_off"],
            "offset": entry["offset"],
        }
        for entry in entries
        if entry["type"] == "snapshot_info"
    ]


# -- whole arena


def _block(image: Image, nr: int) -> dict[str, Any]:
    checker = Checker(image)
    checker.run()
    data = image.page(nr)
    return {
        "block_nr": nr,
        "offset": nr * BLOCK_BYTES,
        "kind": checker.blocks.kind(nr),
        "owner": checker.blocks.describe(nr),
        "hex": [data[at : at + 32].hex() for at in range(0, BLOCK_BYTES, 32)],
    }


def _tree(image: Image) -> list[dict[str, Any]]:
    """All names, depth first, by path; a directory that is its own ancestor is shown once."""
    replayer = Replayer(Snapshots([]), ignore)
    reader = LogReader(image, ignore)
    states: dict[int, Replayed] = {}
    for ino, inode in _slots(image):
        if ino != K["SNAPSHOT_INO"]:
            inode["ino"] = ino
            states[ino] = replayer.replay(inode, reader.read(inode))
    found: list[dict[str, Any]] = []
    stack = [("/", K["ROOT_INO"])]
    shown: set[int] = set()
    while stack:
        path, ino = stack.pop()
        state = states.get(ino)
        if state is None:
            found.append({"path": path, "ino": ino, "type": "missing"})
            continue
        kind = TYPE_TITLES.get(DTYPES.get(state.file_type, 0), "unknown")
        size = {"mode": f"{state.mode:#o}", "nlink": state.nlink, "size": state.size}
        found.append({"path": path, "ino": ino, "type": kind, **size})
        if state.is_directory and ino not in shown:
            shown.add(ino)
            names = sorted(state.names.values(), key=lambda name: name.name, reverse=True)
            stack += [(f"{path.rstrip('/')}/{text(name.name)}", name.ino) for name in names]
    return found


_PLAIN: dict[str, Callable[[Image], Any]] = {
    "superblock": _superblock,
    "inodes": _inodes,
    "journal": _journal,
    "tables": _tables,
    "snapshots": _snapshots,
    "tree": _tree,
}
_NUMBERED: dict[str, Callable[[Image, int], Any]] = {
    "inode": _inode,
    "log": _log,
    "block": _block,
}


# ----------------------------------------------------------------------------------- for people


def _lines(data: Any, indent: str) -> list[str]:
    lines = []
    if isinstance(data, dict):
        for key, value in data.items():
            if isinstance(value, dict | list) and value and not _short(value):
                lines += [f"{indent}{key}:", *_lines(value, indent + "  ")]
            else:
                lines.append(f"{indent}{key}: {_scalar(value)}")
    else:
        for item in data:
            if isinstance(item, dict):
                pairs = (f"{key}={_scalar(value)}" for key, value in item.items())
                lines.append(indent + "  ".join(pairs))
            else:
                lines.append(f"{indent}{_scalar(item)}")
    return lines


def _short(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, int) for item in value)


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value)


def format_dump(data: Any) -> str:
    """What `dump` gave, as text for people."""
    return "\n".join(_lines(data, "")) if data else "nothing"

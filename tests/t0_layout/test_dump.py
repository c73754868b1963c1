"""dump shows what the builder built, in JSON-able form, and names what it cannot show."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from t0_layout.builder import BLOCK, ROOT, K, Sample

from nova_mp.tools.dump import WHAT, dump, format_dump
from nova_mp.tools.fsck import check
from nova_mp.tools.image import ImageError, crc32c

ALL = [what.replace(":N", ":1") for what in WHAT]


@pytest.fixture
def sample() -> Sample:
    return Sample()


@pytest.mark.parametrize("what", ALL)
def test_everything_is_json_and_text(sample: Sample, what: str) -> None:
    data = dump(sample.data, what)
    assert json.loads(json.dumps(data)) == data
    assert format_dump(data)


def test_superblock(sample: Sample) -> None:
    first, second = dump(sample.data, "superblock")["copies"]
    assert first["valid"] and second["valid"] and second["block_nr"] == sample.blocks - 1
    assert (first["label"], first["mount_state"], first["epoch_id"]) == ("built", "clean", 4)


def test_inode_and_log(sample: Sample) -> None:
    inode = dump(sample.data, f"inode:{sample.a}")
    assert inode["now"]["size"] == BLOCK and inode["now"]["nlink"] == 1 and not inode["problems"]
    assert [(e["pgoff"], e["block_nr"]) for e in inode["extents"]] == [(0, sample.old_block)]
    entries = dump(sample.data, f"log:{sample.a}")["entries"]
    types = [entry["type"] for entry in entries]
    assert types == [
        "setattr", "write", "link_change", "xattr", "write", "link_change", "setattr", "xattr",
    ]  # fmt: skip
    assert entries[3]["name"] == "user.colour"
    assert [entry["offset"] for entry in entries] == sample.offsets[sample.a]


def test_tree_snapshots_tables_and_journal(sample: Sample) -> None:
    tree = dump(sample.data, "tree")
    paths = [entry["path"] for entry in tree]
    assert paths[0] == "/" and "/docs/deep/file-79" in paths and "/docs/deep/file-7" not in paths
    assert len(paths) == len(set(paths))
    snapshots = dump(sample.data, "snapshots")
    assert [(s["epoch_id"], s["deleted"]) for s in snapshots] == [(1, False), (2, False), (3, True)]
    assert [table["table"] for table in dump(sample.data, "tables")] == [0, 1]
    assert dump(sample.data, "journal") == []
    sample.journal(1, [(sample.inode_off(sample.a), 1)])
    (journal,) = dump(sample.data, "journal")
    assert journal["cpu"] == 1 and journal["committed"]


def test_block_names_its_owner(sample: Sample) -> None:
    assert dump(sample.data, f"block:{sample.old_block}")["kind"] == "data"
    assert dump(sample.data, f"block:{sample.old_block + 1}")["kind"] == "held"
    assert dump(sample.data, "block:0")["kind"] == "head"
    assert "log of inode" in dump(sample.data, f"block:{sample.chunks[1, 0] + 16}")["owner"]


@pytest.mark.parametrize("what", ["nothing", "inode", "inode:x", "inode:-1", "tree:5", "log:"])
def test_unknown_what(sample: Sample, what: str) -> None:
    with pytest.raises(ValueError, match=r"cannot dump|bad number"):
        dump(sample.data, what)


@pytest.mark.parametrize("what", ["inode:0", "inode:40000000", "log:500", "block:100000"])
def test_missing_object(sample: Sample, what: str) -> None:
    with pytest.raises(ImageError):
        dump(sample.data, what)


def test_damage_raises_nothing_but_image_errors(sample: Sample) -> None:
    rng = random.Random(5)
    good = bytes(sample.data)
    used = [offset for offset, byte in enumerate(good) if byte]
    for _ in range(15):
        data = bytearray(good)
        for _ in range(20):
            data[rng.choice(used)] = rng.randrange(256)
        for what in ALL:
            try:
                json.dumps(dump(data, what))
            except ImageError:
                continue


def test_image_files_and_missing_arenas(sample: Sample, tmp_path: Path) -> None:
    path = tmp_path / "arena.img"
    path.write_bytes(sample.data)
    assert check(path).ok and check(str(path)).ok
    assert dump(path, "tree")[0]["ino"] == ROOT
    with pytest.raises(FileNotFoundError):
        check("t0-no-such-arena")
    with pytest.raises(FileNotFoundError):
        check(tmp_path / "missing")
    path.write_bytes(b"short")
    assert check(path).codes() == {"FSCK-101"}


def test_crc32c_vectors() -> None:
    """The vectors of RFC 3720, B.4, and the check value of the polynomial."""
    assert crc32c(b"") == 0
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(bytes(range(31, -1, -1))) == 0x113FDB5C


def test_format_of_nothing() -> None:
    assert format_dump([]) == "nothing"
    assert K["ROOT_INO"] == ROOT

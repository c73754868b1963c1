"""The timed loops, run on a directory against itself: both sides must do the same work."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from nova_mp.bench.peers import DirectoryFileSystem
from nova_mp.bench.timing import Case, Subject, collector_off, compare, take_turns

CASES = [
    Case("write", "pwrite", 200, 4096, 65536),
    Case("read", "preadinto", 200, 4096, 65536),
    Case("large", "pwrite", 8, 1 << 18, 1 << 20, "sequential"),
    Case("create", "create", 600),
    Case("stat", "stat", 600),
]


def subject_of(case: Case, tmp_path: Path) -> Subject:
    (tmp_path / "ours").mkdir()
    file_system = DirectoryFileSystem(str(tmp_path / "ours"))
    return Subject(case, file_system, "/case", str(tmp_path / "peer"), 1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_both_sides_do_the_same(tmp_path: Path, case: Case) -> None:
    with closing(subject_of(case, tmp_path)) as subject:
        times = take_turns((subject.ours(), subject.theirs()), 3)
        row = compare(case, *times)
        left = sorted(os.listdir(tmp_path / "ours" / "case"))
        assert left == sorted(os.listdir(tmp_path / "peer"))
        if left == ["data"]:
            ours = (tmp_path / "ours" / "case" / "data").read_bytes()
            assert ours == (tmp_path / "peer" / "data").read_bytes()
            assert len(ours) == case.working_set_bytes
    assert row["repeats"] == 3
    assert row["nova_mp_ns"] > 0
    assert row["ratio"] > 0
    assert os.listdir(tmp_path / "ours") == []


def test_the_collector_comes_back() -> None:
    import gc

    with collector_off():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_an_unknown_operation_is_refused(tmp_path: Path) -> None:
    with (
        closing(subject_of(Case("x", "dance", 1), tmp_path)) as subject,
        pytest.raises(ValueError, match="dance"),
    ):
        subject.ours()

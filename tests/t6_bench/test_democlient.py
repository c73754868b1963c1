"""A demo client on a plain directory: its history explains what is there, and only that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nova_mp.bench import demo, democlient
from nova_mp.bench.democlient import DemoClient
from nova_mp.bench.demoplan import Options, collect_tree, folders_of, make_folders, make_plan
from nova_mp.bench.loadclient import Target, clock
from nova_mp.bench.oracle import Oracle, Taken, Violation
from nova_mp.bench.peers import DirectoryFileSystem
from nova_mp.bench.pool import Pool
from nova_mp.errors import NovaError


def source_tree(root: Path) -> str:
    for index in range(60):
        folder = root / f"package{index % 4}" / "inner"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"module{index}.py").write_bytes(bytes([index]) * (index * 397))
    (root / "__pycache__").mkdir()
    (root / "__pycache__" / "ignored.pyc").write_bytes(b"x")
    return str(root)


def run_client(tmp_path: Path, seed: int) -> tuple[DemoClient, DirectoryFileSystem, int]:
    """Import and rewrite; also gives a moment between the two phases."""
    (tmp_path / "source").mkdir()
    (tmp_path / "target").mkdir()
    items, size = collect_tree(source_tree(tmp_path / "source"), 1 << 24)
    target = Target("directory", str(tmp_path / "target"))
    file_system = target.connect()
    make_folders(file_system, folders_of([path for _, path in items]))
    client = DemoClient(lambda value: None, target, 0, items, 256 << 10, seed)
    assert client.load() == size
    assert client.import_tree(clock())["files"] == 60
    between = clock()
    result = client.mutate(clock(), clock() + 600_000_000)
    assert result["operations"] > 0
    assert set(result["latency"]) >= {"create", "open", "pread", "pwrite", "rename", "truncate",
                                      "unlink"}
    return client, file_system, between


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_history_explains_the_files(tmp_path: Path, seed: int) -> None:
    client, file_system, _ = run_client(tmp_path, seed)
    files, folders = democlient.digest(file_system)
    Oracle([client.hand_over()]).check_final(files)
    assert folders == {"/tree"} | {f"/tree/package{n}{inner}" for n in range(4)
                                   for inner in ("", "/inner")}
    client.finish()


def test_the_imported_state_is_a_moment_of_the_history(tmp_path: Path) -> None:
    client, _, between = run_client(tmp_path, 4)
    items, _ = collect_tree(str(tmp_path / "source"), 1 << 24)
    (tmp_path / "copy").mkdir()
    copy = DirectoryFileSystem(str(tmp_path / "copy"))
    make_folders(copy, folders_of([path for _, path in items]))
    for source, path in items:
        Path(copy.real(path)).write_bytes(Path(source).read_bytes())
    found, _ = democlient.digest(copy)
    cut = Oracle([client.hand_over()]).check(Taken(1, between, between + 1), found)
    assert cut == [120]  # a create and a pwrite for each of 60 files


@pytest.mark.parametrize("damage", ["flip", "cut", "lose", "add"])
def test_damage_is_seen(tmp_path: Path, damage: str) -> None:
    client, file_system, _ = run_client(tmp_path, 5)
    files, _ = democlient.digest(file_system)
    victim = Path(file_system.real(max(files, key=lambda path: files[path][0])))
    match damage:
        case "flip":
            data = bytearray(victim.read_bytes())
            data[len(data) // 2] ^= 0x10
            victim.write_bytes(data)
        case "cut":
            victim.write_bytes(victim.read_bytes()[:-1])
        case "lose":
            victim.unlink()
        case "add":
            victim.with_name("stranger").write_bytes(b"")
    found, _ = democlient.digest(file_system)
    with pytest.raises(Violation):
        Oracle([client.hand_over()]).check_final(found)


def test_a_read_that_gives_other_bytes_is_seen(tmp_path: Path) -> None:
    client, file_system, _ = run_client(tmp_path, 6)
    for path in client.window:
        Path(file_system.real(path)).write_bytes(b"something else")
    with pytest.raises(Violation, match="other bytes"):
        for _ in range(3):
            client._read()


def test_the_working_set_stays_small(tmp_path: Path) -> None:
    client, _, _ = run_client(tmp_path, 7)
    client._turn_window()
    assert sum(len(client.content[path]) for path in client.window) <= 2 * client.window_bytes


def test_the_plan_fits_what_a_snapshot_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(seconds=5, rate=20, size=512 << 20)
    plan = make_plan(options)
    assert plan.items
    assert plan.tree_bytes <= plan.arena_bytes / 4
    assert 100 * 4 * plan.window_bytes + 3 * plan.tree_bytes <= plan.arena_bytes


def test_too_little_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    usage: Any = type("Usage", (), {"free": 10 << 20})
    monkeypatch.setattr("nova_mp.bench.demoplan.shutil.disk_usage", lambda path: usage)
    with pytest.raises(NovaError, match="10 MiB free"):
        make_plan(Options())


def test_an_empty_tree_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NovaError, match="no files"):
        collect_tree(str(tmp_path), 1 << 20)


def test_reading_the_live_files_one_by_one_is_no_snapshot(tmp_path: Path) -> None:
    """What makes a snapshot is that it is one moment: a walk over files that change is not."""
    (tmp_path / "source").mkdir()
    (tmp_path / "target").mkdir()
    items, _ = collect_tree(source_tree(tmp_path / "source"), 1 << 24)
    target = Target("directory", str(tmp_path / "target"))
    make_folders(target.connect(), folders_of([path for _, path in items]))
    arguments = [(target, index, items[index::2], 256 << 10, 1) for index in range(2)]
    with Pool(democlient.main, arguments) as pool:
        pool.collect(60.0)
        pool.call("load")
        pool.call("import_tree", clock())
        end = clock() + 500_000_000
        pool.post("mutate", clock(), end)
        walked: list[tuple[Taken, dict[str, tuple[int, int]]]] = []
        wrong = 0
        while clock() < end:
            began = clock()
            try:
                files, _ = democlient.digest(target.connect())
            except FileNotFoundError:
                wrong += 1  # it was renamed before its turn came
            else:
                walked.append((Taken(len(walked) + 1, began, clock()), files))
        pool.collect(60.0)
        histories = pool.call("hand_over")
    oracle = Oracle(histories)
    for taken, files in walked:
        try:
            oracle.check(taken, files)
        except Violation:
            wrong += 1
    assert wrong > 0


@pytest.mark.parametrize("words", [
    "--cpus 999", "--cpus 0", "--seconds nan", "--seconds inf", "--rate -1", "--size lots",
    "--out /nonexistent/x", "--out /", "--tree /nonexistent",
])
def test_arguments_that_make_no_sense(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        demo.parse_arguments(words.split())
    assert ended.value.code == 2
    assert words.split(maxsplit=1)[0] in capsys.readouterr().err

"""The verbs for files and snapshots: what they do, print, and say when they cannot."""

from __future__ import annotations

import base64
import errno
import io
import os
import stat
import threading
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from cli_help import Cli, contents

import nova_mp
from nova_mp.client.base import FileSystem
from nova_mp.client.transfer import ItemCopier


@pytest.fixture
def cli(
    engine: Any,
    attached: FileSystem,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Cli]:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    attached.make_dir("/data", 0o755)
    attached.make_dir("/data/sub", 0o755)
    attached.write_bytes("/data/one", b"one\n")
    attached.write_bytes("/data/sub/two", b"x" * 5000)
    attached.symlink("one", "/data/link")
    yield Cli(attached, {"demo": engine.name}, monkeypatch, capsys)
    for snapshot in attached.snapshots.list():
        attached.snapshots.delete(snapshot)


@pytest.fixture
def other(cli: Cli, arena_prefix: str) -> Iterator[FileSystem]:
    """A second arena, a small one, which the command calls `other`."""
    name = f"{arena_prefix}other"
    cli.names["other"] = name
    nova_mp.mkfs(name, size=16 << 20, cpus=1)
    try:
        with nova_mp.start(name), nova_mp.attach(name) as fs:
            yield fs
    finally:
        nova_mp.destroy(name)


def tree_of(root: Path) -> dict[str, str]:
    """Every path below `root` with its contents or target."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        else:
            found[name] = "/" if path.is_dir() else path.read_text()
    return found


DATA = {"link": "-> one", "one": "one\n", "sub": "/", "sub/two": "x" * 5000}

# ---- ls, cat, stat, tree, du


def test_ls_prints_names(cli: Cli) -> None:
    assert cli("ls", "demo:/data").out == "link\none\nsub\n"
    assert cli("ls", "demo:/data/one").out == "/data/one\n"
    assert cli("ls", "-d", "demo:/data").out == "/data\n"
    assert cli("ls", "demo:").out == "data\n"


def test_ls_recursive_and_several(cli: Cli) -> None:
    expected = "demo:/:\ndata\n\ndemo:/data:\nlink\none\nsub\n\ndemo:/data/sub:\ntwo\n"
    assert cli("ls", "-R", "demo:/").out == expected
    assert cli("ls", "demo:/data/sub", "demo:/").out == "demo:/data/sub:\ntwo\n\ndemo:/:\ndata\n"


def test_ls_long(cli: Cli) -> None:
    cli.demo.utime("/data/one", ns=(0, 1_500_000_000_123_456_789))
    lines = cli("ls", "-l", "demo:/data").out.splitlines()
    assert lines[0].split() == ["MODE", "LINKS", "UID", "GID", "SIZE", "MODIFIED", "NAME"]
    assert "link -> one" in lines[1]
    bare = cli("ls", "-l", "-H", "-p", "demo:/data").out.splitlines()
    assert len(bare) == 3
    assert bare[1].split("\t")[4:] == ["4", "1500000000.123456789", "one"]


def test_ls_json(cli: Cli) -> None:
    result = cli("ls", "--json", "demo:/data", "demo:/nothing")
    assert result.code == 3
    assert result.json["listings"][0]["directory"] == "demo:/data"
    rows = {row["name"]: row for row in result.json["listings"][0]["entries"]}
    assert rows["one"]["size_bytes"] == 4
    assert rows["link"]["target"] == "one"
    assert result.json["errors"][0]["object"] == "demo:/nothing"
    assert result.json["exit_code"] == 3


def test_names_that_are_not_text(cli: Cli) -> None:
    name = os.fsdecode(b"\xff\x1b[31m")
    cli.demo.write_bytes(f"/{name}", b"")
    assert cli("ls", "--json", "demo:/").json["listings"][0]["entries"][1]["name"] == name


def test_cat(cli: Cli) -> None:
    assert cli("cat", "demo:/data/one", "demo:/data/one").out == "one\none\n"
    cli.demo.write_bytes("/raw", b"\xff\0")
    files = cli("cat", "--json", "demo:/data/one", "demo:/raw").json["files"]
    assert files[0]["contents"] == "one\n"
    assert base64.b64decode(files[1]["contents"]) == b"\xff\0"


def test_what_is_not_there(cli: Cli) -> None:
    for verb in ("ls", "cat", "rm", "stat", "tree", "du"):
        result = cli(verb, "demo:/data/nothing")
        assert result.code == 1, verb
        assert "'demo:/data/nothing': no such file or directory" in result.err
        assert "hint: see what is there: nova-mp ls demo:/data\n" in result.err
        assert "Traceback" not in result.err


def test_an_engine_that_does_not_run(cli: Cli, arena_prefix: str) -> None:
    name = f"{arena_prefix}idle"
    nova_mp.mkfs(name, size=16 << 20, cpus=1)
    try:
        for args in (["ls", f"{name}:/"], ["snapshot", "list", name], ["cp", "here", f"{name}:/"]):
            result = cli(*args)
            assert result.code == 1
            assert f"hint: start it with: nova-mp start {name}" in result.err
    finally:
        nova_mp.destroy(name)
    assert f"hint: make it with: nova-mp mkfs {name}" in cli("ls", f"{name}:/").err


def test_stat(cli: Cli) -> None:
    result = cli("stat", "demo:/data/link", "demo:/data/one")
    assert "symbolic link to one" in result.out
    assert "4 B (4 bytes)" in result.out
    found = cli("stat", "-L", "--json", "demo:/data/link").json["files"][0]
    assert (found["kind"], found["size_bytes"]) == ("file", 4)


def test_tree(cli: Cli) -> None:
    assert cli("tree", "demo:/").out == (
        "demo:/\n└── data\n    ├── link -> one\n    ├── one\n    └── sub\n        └── two\n"
        "\n2 directories, 3 files\n"
    )
    assert "two" not in cli("tree", "-L", "2", "demo:/").out
    assert "one" not in cli("tree", "-d", "demo:/").out
    trees = cli("tree", "--json", "demo:/").json["trees"]
    assert trees[0]["children"][0]["children"][2]["children"] == [{"name": "two", "kind": "file"}]


def test_du_counts_a_file_once(cli: Cli) -> None:
    cli.demo.link("/data/sub/two", "/data/sub/again")
    cli.demo.link("/data/sub/two", "/data/elsewhere")
    rows = [line.split("\t") for line in cli("du", "-H", "-p", "demo:/data").out.splitlines()]
    assert [row[2] for row in rows] == ["demo:/data/sub", "demo:/data"]
    link_bytes = len("one")
    assert rows[1][1] == str(5000 + 4 + link_bytes)
    assert cli("du", "-s", "demo:/", "demo:/data").out.count("demo:/") == 2
    assert len(cli("du", "-d", "1", "--json", "demo:/").json["usage"]) == 2


# ---- cp, mv, rm, mkdir


def test_cp_files_in_and_out(cli: Cli) -> None:
    Path("local").write_text("text")
    assert cli("cp", "local", "demo:/new").code == 0
    assert cli("cp", "local", "demo:/data", "-v").out == "local -> demo:/data/local\n"
    assert cli("cp", "demo:/data/one", "demo:/data/link", ".").code == 0
    assert (Path("one").read_text(), Path("link").read_text()) == ("one\n", "one\n")
    assert cli("cat", "demo:/new").out == "text"


def test_cp_keeps_modes_and_times(cli: Cli) -> None:
    Path("local").write_text("text")
    os.chmod("local", 0o640)
    os.utime("local", ns=(1, 1_500_000_000_123_456_789))
    cli("cp", "local", "demo:/new")
    found = cli.demo.stat("/new")
    assert stat.S_IMODE(found.st_mode) == 0o640
    assert found.st_mtime_ns == 1_500_000_000_123_456_789


def test_cp_keeps_further_names_and_holes(cli: Cli) -> None:
    cli.demo.link("/data/one", "/data/sub/uno")
    with cli.demo.open("/data/sparse", "wb") as file:
        file.pwrite(b"end", 4 << 20)
    assert cli("cp", "-r", "demo:/data", "out").code == 0
    assert Path("out/one").samefile("out/sub/uno")
    assert Path("out/sparse").stat().st_blocks * 512 < 1 << 20
    again = cli("cp", "-r", "--json", "out", "demo:/").json
    assert cli.demo.stat("/out/one").st_ino == cli.demo.stat("/out/sub/uno").st_ino
    assert cli.demo.stat("/out/sparse").st_blocks == 8
    assert again["bytes"] == 4 + 5000 + (4 << 20) + 3, "further names are not counted"


def test_cp_trees(cli: Cli, other: FileSystem) -> None:
    assert cli("cp", "-r", "demo:/data", "out").code == 0
    assert tree_of(Path("out")) == DATA
    assert cli("cp", "-r", "out", "other:/").code == 0
    assert contents(other, "/out") == DATA
    # A second time it goes over what is there; a root has no name, so its contents are copied.
    result = cli("cp", "-r", "--json", "out", "other:/")
    assert result.code == 0
    assert [result.json[key] for key in ("files", "directories", "links")] == [2, 2, 1]
    assert cli("cp", "-r", "other:/", "all").code == 0
    assert cli("cp", "-r", "other:/", "all").code == 0
    assert tree_of(Path("all/out")) == DATA


def test_cp_refuses_what_makes_no_sense(cli: Cli) -> None:
    Path("a").touch()
    Path("b").touch()
    for args, words in [
        (["demo:/data", "out"], "it is a directory\n  hint: copy it with all that it holds: cp -r"),
        (["-r", "demo:/data", "demo:/data/sub"], "cannot be copied into itself"),
        (["-r", "demo:/", "demo:/data"], "cannot be copied into itself"),
        (["a", "demo"], "none of these is in an arena\n  hint: write demo:/ for"),
        (["demo:/data/one", "demo:/data/one"], "is the same file"),
        (["a", "b", "demo:/new"], "cannot copy to 'demo:/new': not a directory"),
        (["a", "demo@1:/"], "cannot copy to 'demo@1:/': "),
        (["a", "demo:/no/such"], "no such file or directory"),
    ]:
        result = cli("cp", *args)
        assert result.code == 1, args
        assert words in result.err, args
    assert contents(cli.demo, "/data") == DATA


def test_cp_goes_on_after_a_problem(cli: Cli) -> None:
    Path("tree/bad").mkdir(parents=True)
    Path("tree/good").write_text("good")
    Path("tree/bad/file").write_text("never")
    os.mkfifo("tree/pipe")
    cli.demo.make_dir("/tree")
    cli.demo.write_bytes("/tree/bad", b"in the way")
    result = cli("cp", "-r", "--json", "tree", "demo:/")
    assert result.code == 3
    assert {error["object"] for error in result.json["errors"]} == {"tree/bad", "tree/pipe"}
    assert contents(cli.demo, "/tree") == {"bad": "in the way", "good": "good"}


def test_cp_leaves_no_half_file(cli: Cli, other: FileSystem) -> None:
    Path("large").write_bytes(b"x" * (24 << 20))
    result = cli("cp", "large", "other:/")
    assert result.code == 5
    assert "no space left on device" in result.err
    assert other.listdir("/") == []
    with other.open("/full", "wb") as file, pytest.raises(OSError, match="No space") as caught:
        while True:
            file.write(bytes(4096))
    assert caught.value.errno == errno.ENOSPC
    Path("small").write_bytes(b"x" * 50000)
    assert cli("cp", "small", "other:/").code == 5
    assert other.listdir("/") == ["full"]


def test_cp_no_clobber(cli: Cli) -> None:
    Path("one").write_text("mine")
    assert cli("cp", "-n", "--json", "demo:/data/one", "one").json["skipped"] == 1
    assert Path("one").read_text() == "mine"


def test_cp_from_a_pipe(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"piped")))
    assert cli("cp", "-", "demo:/piped").code == 0
    assert cli("cat", "demo:/piped").out == "piped"
    result = cli("cp", "-", "demo:/data")
    assert result.code == 1
    assert "name the file to be written" in result.err


def test_cp_into_a_pipe_leaves_it_alone(cli: Cli) -> None:
    os.mkfifo("pipe", 0o600)
    before = os.stat("pipe")
    cli.demo.chmod("/data/one", 0o666)
    found: list[bytes] = []
    for source, text in (("demo:/data/one", b"one\n"), ("demo:/data/sub/two", b"x" * 5000)):
        reader = threading.Thread(target=lambda: found.append(Path("pipe").read_bytes()))
        reader.start()
        assert cli("cp", source, "pipe").code == 0
        reader.join(20)
        assert found.pop() == text
    refused = cli("mv", "demo:/data/one", "pipe")
    assert refused.code == 1
    assert "'pipe' is a device, a pipe or a socket" in refused.err
    assert cli.demo.exists("/data/one")
    after = os.stat("pipe")
    assert (after.st_mode, after.st_ino) == (before.st_mode, before.st_ino)


def test_cp_to_standard_output(cli: Cli) -> None:
    result = cli("cp", "-v", "demo:/data/one", "demo:/data/link", "-")
    assert (result.code, result.out) == (0, "one\none\n")
    assert "demo:/data/one -> -" in result.err
    with cli.demo.open("/data/sparse", "wb") as file:
        file.pwrite(b"end", 2 << 20)
        file.truncate(3 << 20)
    assert cli("cp", "-r", "demo:/data/sparse", "-").out == cli.demo.read_text("/data/sparse")
    assert cli("cp", "-r", "demo:/data/link", "-").out == "one\n"
    for args, code, words in [
        (["-r", "demo:/data", "-"], 1, "only files can be written to standard output"),
        (["--json", "demo:/data/one", "-"], 2, "leave out --json"),
    ]:
        result = cli("cp", *args)
        assert (result.code, words in result.err) == (code, True)
    assert os.listdir() == []


def test_cp_keeps_what_was_there_when_it_fails(
    cli: Cli, other: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    other.write_bytes("/f", b"old")
    other.symlink("f", "/link")
    Path("large").write_bytes(b"x" * (24 << 20))
    for target in ("other:/f", "other:/link"):
        assert cli("cp", "large", target).code == 5
        with open("large", "rb") as stdin:
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(stdin))
            assert cli("cp", "-", target).code == 5
    assert other.read_bytes("/link") == b"old"
    assert sorted(other.listdir("/")) == ["f", "link"]
    other.chmod("/f", 0o640)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"piped")))
    assert cli("cp", "-", "other:/link").code == 0
    assert other.read_bytes("/f") == b"piped"
    assert stat.S_IMODE(other.stat("/f").st_mode) == 0o640
    assert other.islink("/link")


def test_what_was_just_created_is_not_overwritten(cli: Cli) -> None:
    for folder in "xyz":
        Path(folder).mkdir()
    Path("x/f").write_text("first")
    Path("y/f").write_text("second")
    os.link("x/f", "z/f")
    os.link("x/f", "z/g")
    cli.demo.make_dir("/d")
    cli.demo.write_bytes("/d/f", b"what was there may go")
    expected = {"f": "first", "g": "first"}
    for verb in ("cp", "mv"):
        result = cli(verb, "x/f", "y/f", "z/f", "z/g", "demo:/d")
        assert result.code == 3
        for source in ("y/f", "z/f"):
            line = f"'{source}': will not overwrite just-created 'demo:/d/f'"
            assert line in result.err
        assert contents(cli.demo, "/d") == expected
    assert tree_of(Path()) == {"x": "/", "y": "/", "y/f": "second", "z": "/", "z/f": "first"}
    assert cli("mv", "demo:/d/g", "demo:/data/sub", "demo:/").code == 0
    cli.demo.make_dir("/e")
    cli.demo.write_bytes("/e/g", b"other")
    assert cli("mv", "demo:/g", "demo:/e/g", "demo:/data").code == 3
    assert cli.demo.read_bytes("/e/g") == b"other"
    assert cli.demo.read_bytes("/data/g") == b"first"


@pytest.mark.parametrize("alias", ["alias", "tcp://127.0.0.1:7000"])
def test_one_arena_under_two_names(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, engine: Any, alias: str
) -> None:
    cli.names["alias"] = engine.name
    connect = nova_mp.connect
    monkeypatch.setattr(nova_mp, "connect", lambda name: connect(engine.name))
    result = cli("cp", "demo:/data/one", f"{alias}:/data/one")
    assert result.code == 1
    assert "is the same file" in result.err
    assert "cannot be copied into itself" in cli("cp", "-r", "demo:/data", f"{alias}:/data/x").err
    assert cli("mv", "demo:/data/one", f"{alias}:/data/one").code == 0
    assert cli.demo.read_bytes("/data/one") == b"one\n"
    inode = cli.demo.stat("/data/one").st_ino
    assert cli("mv", f"{alias}:/data/one", "demo:/data/moved").code == 0
    assert cli.demo.stat("/data/moved").st_ino == inode


def test_two_arenas_have_inodes_of_the_same_number(cli: Cli, other: FileSystem) -> None:
    numbers = []
    for fs, text in ((cli.demo, b"demo"), (other, b"other")):
        for name in range(64):
            fs.write_bytes(f"/{name}", text)
        numbers.append({fs.stat(f"/{name}").st_ino: name for name in range(64)})
    both = max(numbers[0].keys() & numbers[1].keys())
    assert cli("cp", f"demo:/{numbers[0][both]}", f"other:/{numbers[1][both]}").code == 0
    assert other.read_bytes(f"/{numbers[1][both]}") == b"demo"


def test_a_slash_at_the_end_of_a_target(cli: Cli) -> None:
    Path("a").write_text("a")
    Path("folder").mkdir()
    for verb, target in product(
        ("cp", "mv"), ("demo:/new/", "demo:/data/one/", "demo:/data/one/.")
    ):
        result = cli(verb, "a", target)
        assert result.code == 1, target
        assert "not a directory" in result.err
    for target in ("new/", "a/"):
        assert "not a directory" in cli("cp", "demo:/data/one", target).err
    assert contents(cli.demo, "/") == {"data": "/"} | {f"data/{k}": v for k, v in DATA.items()}
    assert cli("cp", "a", "demo:/data/").code == 0
    assert cli("cp", "-r", "folder", "demo:/new/").code == 0
    assert cli("cp", "-r", "demo:/data", "made/").code == 0
    assert cli.demo.isdir("/new")
    assert tree_of(Path("made")) == DATA | {"a": "a"}


def test_mv(cli: Cli) -> None:
    assert cli("mv", "demo:/data/one", "demo:/data/three").code == 0
    assert cli("mv", "-n", "demo:/data/three", "demo:/data/sub/two").code == 1
    assert cli("mv", "demo:/data", "out").code == 0
    assert not cli.demo.exists("/data")
    assert Path("out/three").read_text() == "one\n"
    assert cli("mv", "out", "demo:/back").code == 0
    assert not Path("out").exists()
    moved = cli("mv", "--json", "demo:/back", "demo:/nothing", "demo:/").json
    assert moved["moved"] == [{"source": "demo:/back", "target": "demo:/back"}]


def test_mv_refuses(cli: Cli) -> None:
    cli("snapshot", "create", "demo")
    for args, words in [
        (["demo@1:/data", "demo:/x"], "a snapshot never changes"),
        (["a", "b"], "none of these is in an arena"),
        (["demo:/", "out"], "it is the root of the arena"),
    ]:
        result = cli("mv", *args)
        assert result.code == 1
        assert words in result.err


def test_mv_keeps_the_source_when_a_part_is_not_copied(cli: Cli) -> None:
    Path("tree").mkdir()
    Path("tree/file").touch()
    os.mkfifo("tree/pipe")
    result = cli("mv", "tree", "demo:/tree")
    assert result.code == 1
    assert "the source was left as it is" in result.err
    assert Path("tree/file").exists()


def test_mv_does_not_take_standard_input(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("-").write_text("a file")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"piped")))
    for operands in (["-", "demo:/x"], ["./-", "-", "demo:/data"], ["demo:/data/one", "-"]):
        result = cli("mv", *operands)
        assert result.code == 2
        assert "hint: a file of this name is ./-" in result.err
    assert Path("-").read_text() == "a file"
    assert contents(cli.demo, "/data") == DATA
    assert cli("mv", "./-", "demo:/x").code == 0
    assert cli.demo.read_bytes("/x") == b"a file"


@pytest.mark.parametrize("slash", ["", "/"])
def test_mv_keeps_what_comes_or_changes_meanwhile(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, slash: str
) -> None:
    (tree := Path("tree")).mkdir()
    for name in ("early/a", "late/b", "gone/c", "top"):
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_text(name)
    os.link("tree/gone/c", "tree/gone/linked")
    copy_file = ItemCopier.copy_file

    def meddled(self: ItemCopier, item: Any) -> None:
        copy_file(self, item)
        if item.source.endswith("top"):
            (tree / "early/new").write_text("new")
            (tree / "late/b").write_text("B changed")

    monkeypatch.setattr(ItemCopier, "copy_file", meddled)
    result = cli("mv", "--json", f"tree{slash}", "demo:/tree")
    assert result.code == 3
    assert result.json["moved"] == []
    assert [(error["object"], error["reason"]) for error in result.json["errors"]] == [
        ("tree/late/b", "it has changed since it was copied"),
        ("tree/early/new", "it was added while the rest was copied"),
    ]
    left = {"early": "/", "early/new": "new", "late": "/", "late/b": "B changed"}
    assert tree_of(tree) == left
    assert contents(cli.demo, "/tree")["late/b"] == "late/b"


def test_mv_replaces_no_directory_that_holds_something(cli: Cli) -> None:
    Path("out/data").mkdir(parents=True)
    assert cli("mv", "demo:/data/sub", "out/data").code == 0
    cli.demo.mkdir("/new/data/x", parents=True)
    for target in ("out", "demo:/new"):
        result = cli("mv", "demo:/data", target)
        assert f"'{target}/data' is a directory that is not empty" in result.err
    assert Path("out/data/sub/two").exists()


def test_rm(cli: Cli) -> None:
    result = cli("rm", "demo:/data")
    assert result.code == 1
    assert "hint: remove it with all that it holds: rm -r demo:/data" in result.err
    assert cli("rm", "demo:/data/one", "demo:/data/nothing").code == 3
    assert cli("rm", "-f", "demo:/data/nothing").code == 0
    assert cli("rm", "-r", "--json", "demo:/data").json["removed"] == ["demo:/data"]
    assert cli("ls", "demo:/").out == ""
    assert "it is the root" in cli("rm", "-r", "demo:/").err


def test_mkdir(cli: Cli) -> None:
    assert cli("mkdir", "demo:/a/b").code == 1
    assert cli("mkdir", "-p", "demo:/a/b", "demo:/a/b").code == 0
    assert cli("mkdir", "demo:/a").code == 1
    assert cli("mkdir", "-m", "700", "demo:/private").code == 0
    found = cli.demo.stat("/private")
    assert stat.S_IMODE(found.st_mode) == 0o700


# ---- snapshots


def test_snapshots(cli: Cli) -> None:
    assert "take one: nova-mp snapshot create demo" in cli("snapshot", "list", "demo").out
    said = cli("snapshot", "create", "demo", "--name", "first").out
    first = said.split()[1]
    assert said == f"snapshot {first} of demo; look into it: nova-mp ls demo@first:/\n"
    assert cli("snapshot", "create", "demo", "--name", "first").code == 1
    second = cli("snapshot", "create", "--json", "demo").json["snapshot"]["id"]
    assert second == int(first) + 1
    cli.demo.write_bytes("/data/sub/two", b"y" * 5000)
    lines = cli("snapshot", "list", "demo").out.splitlines()
    assert lines[1].split()[:2] == [first, "first"]
    made = cli.demo.snapshots.get("first").created.timestamp()
    bare = [row.split("\t") for row in cli("snapshot", "list", "-Hp", "demo").out.splitlines()]
    assert [row[:2] for row in bare] == [[first, "first"], [str(second), "-"]]
    assert float(bare[0][2]) == pytest.approx(made)
    # Both need the old blocks, which are in the list of the older one.
    assert [row[3:] for row in bare] == [["1", "0", "8192", "0", "-"], ["0", "0", "0", "0", "-"]]
    assert "first" in cli("snapshot", "show", "demo", first).out
    assert cli("cat", "demo@first:/data/sub/two").out == "x" * 5000
    assert cli("ls", "demo@first:/data").out == "link\none\nsub\n"
    result = cli("rm", "demo@first:/data/one")
    assert result.code == 1
    assert "read-only" in result.err
    assert "a snapshot never changes" in result.err
    deleted = cli("snapshot", "delete", "--json", "demo", "first", str(second), "999999")
    assert deleted.code == 3
    assert [row["id"] for row in deleted.json["deleted"]] == [int(first), second]
    assert "nova-mp snapshot list demo" in deleted.err
    assert cli("snapshot", "wait", "demo").code == 0
    assert cli("snapshot", "show", "demo", "first").code == 1
    assert cli("ls", "demo@first:/").code == 1


def test_deleting_several_snapshots(cli: Cli) -> None:
    def ids() -> list[int]:
        return [row["id"] for row in cli("snapshot", "list", "--json", "demo").json["snapshots"]]

    for number in range(1, 8):
        cli("snapshot", "create", "demo", "--name", f"s{number}")
        cli.demo.write_bytes("/data/sub/two", b"%d" % number * 5000)
    s = dict(enumerate(ids(), 1))
    shown = cli("snapshot", "delete", "demo", f"{s[2]}..{s[4]}", "s3", "--dry-run")
    assert shown.code == 0
    first_words = [line.split()[0] for line in shown.out.splitlines()]
    assert first_words == ["ID", *(str(s[n]) for n in (2, 3, 4)), "together"]
    wanted = cli("snapshot", "delete", "demo", "s2..s4", "--dry-run", "--json").json
    assert wanted["would_free_bytes"] == 3 * 8192
    assert len(wanted["would_delete"]) == 3
    assert ids() == [s[n] for n in range(1, 8)]
    assert cli("snapshot", "delete", "demo", f"{s[1]}..{s[3]}", f"0..{s[2]}").code == 0
    assert ids() == [s[n] for n in range(4, 8)]
    lost = f"{s[1]}..{s[3]}"
    for operands, words in (([lost], f"no snapshot in {lost}"), (["7..5"], "5..7"), (["x"], "x")):
        refused = cli("snapshot", "delete", "demo", *operands)
        assert refused.code in (1, 2)
        assert words in refused.err

    with cli.demo.snapshots.open("s5"):
        busy = cli("snapshot", "delete", "demo", "s5")
        assert busy.code == 4, "busy"
        assert "the snapshot is open" in busy.err
        assert cli("snapshot", "delete", "demo", f"{s[4]}..{s[6]}").code == 3, "partly done"
        assert ids() == [s[5], s[7]]
        later = cli("snapshot", "delete", "--json", "demo", "s5", "--defer").json
        assert (later["deleted"], [row["id"] for row in later["deferred"]]) == ([], [s[5]])
        rows = cli("snapshot", "list", "--json", "demo").json["snapshots"]
        assert [row["deferred"] for row in rows] == [True, False]
    assert cli("snapshot", "delete", "demo", "s7", "--dry-run").code == 0
    assert s[7] in ids()

"""The command on real engines: a newcomer's tour, exit codes, interruption, terminals."""

from __future__ import annotations

import itertools
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from t4_cluster.cluster_help import assert_nothing_left, processes

import nova_mp
from nova_mp import config
from nova_mp.core import segment
from nova_mp.protocol import identity

COMMAND = [sys.executable, "-m", "nova_mp.cli.main"]
_numbers = itertools.count()


def run(*args: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run the command; its errors must never be tracebacks."""
    done = subprocess.run(
        [*COMMAND, *args], capture_output=True, text=True, timeout=60, check=False, **kwargs
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def ok(*args: str, **kwargs: Any) -> str:
    """Run the command; it must do all it was asked for, and have nothing to complain about."""
    done = run(*args, **kwargs)
    assert (done.returncode, done.stderr) == (0, ""), (args, done)
    return done.stdout


def read_json(*args: str) -> dict[str, Any]:
    value = json.loads(ok(*args, "--json"))
    assert value["output_version"] == 1
    return dict(value)


def discard(name: str) -> None:
    if segment.pmem_exists(name) or segment.registered(name) is not None:
        nova_mp.destroy(name, force=True)


@pytest.fixture
def name(arena_prefix: str) -> Iterator[str]:
    """The name of an arena that does not exist yet; whatever comes of it is removed."""
    name = f"{arena_prefix}cli{next(_numbers)}"
    yield name
    discard(name)


@pytest.fixture(scope="module")
def running(arena_prefix: str) -> Iterator[str]:
    """An arena whose engine runs during this file."""
    name = f"{arena_prefix}cli-running"
    nova_mp.mkfs(name, "32MiB", 2)
    nova_mp.start(name)
    yield name
    discard(name)


def test_a_newcomers_tour(name: str, tmp_path: Path) -> None:
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "data" / "one").write_text("one\n")
    (tmp_path / "data" / "sub" / "two").write_bytes(b"x" * 100_000)
    assert f"start it: nova-mp start {name}" in ok("mkfs", name, "--size", "32MiB", "--cpus", "2")
    assert "stopped" in ok("status", name)
    assert f"{name} runs: 2 workers" in ok("start", name)
    ok("cp", "-r", str(tmp_path / "data"), f"{name}:/")
    assert ok("ls", f"{name}:/data") == "one\nsub\n"
    assert f"look into it: nova-mp ls {name}@first:/" in ok(
        "snapshot", "create", name, "--name", "first"
    )
    ok("rm", "-r", f"{name}:/data")
    assert ok("ls", f"{name}:/") == ""
    ok("cp", "-r", f"{name}@first:/data", str(tmp_path / "back"))
    assert (tmp_path / "back" / "one").read_text() == "one\n"
    assert (tmp_path / "back" / "sub" / "two").read_bytes() == b"x" * 100_000
    row = read_json("snapshot", "list", name)["snapshots"][0]
    assert row["exclusive_bytes"] >= 100_000
    ok("snapshot", "delete", name, "first")
    ok("snapshot", "wait", name, "--timeout", "30")
    assert "running" in ok("status", name)
    assert "is sound" in ok("fsck", name)
    ok("stop", name)
    assert "is sound" in ok("fsck", name)
    ok("destroy", name)
    assert run("status", name).returncode == 1


def test_a_crash_is_recovered(name: str) -> None:
    ok("mkfs", name, "--size", "16MiB", "--cpus", "1", "--label", "for a test")
    ok("start", name)
    ok("cp", "-", f"{name}:/kept", input="kept")
    ok("snapshot", "create", name, "--name", "s")
    ok("crash", name)
    found = read_json("status", name)["arena"]
    assert (found["state"], found["label"]) == ("crashed", "for a test")
    assert "the next start recovers it" in ok("status", name)
    assert "is sound" in ok("fsck", name)
    assert "recovered" in ok("start", name)
    assert ok("cat", f"{name}:/kept", f"{name}@s:/kept") == "keptkept"
    recovery = read_json("status", name)["arena"]["stats"]["recovery"]
    assert recovery["entries"] > 0
    assert "after a crash: " in ok("status", name)


def test_lists_for_scripts(running: str) -> None:
    rows = [line.split("\t") for line in ok("status", "-H", "-p").splitlines()]
    mine = next(row for row in rows if row[0] == running)
    assert mine[1:3] == ["running", str(32 << 20)]
    assert int(mine[3]) > 0
    assert running in {arena["name"] for arena in read_json("status")["arenas"]}


def test_dump(running: str) -> None:
    assert "version" in ok("dump", running, "superblock")
    assert read_json("dump", running, "inodes")["dump"]
    wrong = run("dump", running, "nonsense")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "superblock" in wrong.stderr
    assert run("dump", running, "inode:999999").returncode == 1


def test_stat_shows_what_the_arena_knows(running: str) -> None:
    ok("cp", "-", f"{running}:/file", input="12345")
    found = read_json("stat", f"{running}:/file")["files"][0]
    assert (found["kind"], found["size_bytes"], found["links"]) == ("file", 5, 1)
    assert found["birth_ns"] > 0
    assert "5 B (5 bytes)" in ok("stat", f"{running}:/file")


def test_freeze(running: str) -> None:
    assert f"nova-mp unfreeze {running}" in ok("freeze", running, "--timeout", "30")
    assert "frozen" in ok("status", running)
    checked = read_json("fsck", running)["report"]
    assert (checked["statistics"]["arena"]["state"], checked["notes"]) == ("frozen", [])
    ok("unfreeze", running)
    assert read_json("fsck", running)["report"]["statistics"]["arena"]["state"] == "mounted"
    assert run("unfreeze", running).returncode == 1


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["mkfs", "{}", "--size", "16MiB"], 1, "exists"),
        (["mkfs", "{}-big", "--size", "900TiB"], 5, "needs"),
        (["mkfs", "{}-small", "--size", "4KiB"], 2, ""),
        (["start", "{}"], 4, "runs already"),
        (["destroy", "{}"], 4, "nova-mp stop"),
        (["start", "{}-none"], 1, "nova-mp mkfs"),
        (["stop", "{}-none"], 1, "nova-mp mkfs"),
        (["destroy", "{}-none"], 1, ""),
        (["crash", "{}-none"], 1, ""),
        (["fsck", "{}-none"], 1, "nova-mp mkfs"),
        (["ls", "{}-none:/"], 1, "nova-mp mkfs"),
        (["ls", "{}@none:/"], 1, "nova-mp snapshot list"),
    ],
)
def test_refusals(running: str, args: list[str], code: int, words: str) -> None:
    done = run(*[arg.format(running) for arg in args])
    assert (done.returncode, done.stdout) == (code, ""), done
    assert done.stderr.startswith("nova-mp: cannot ")
    assert words in done.stderr


def test_stop_waits_for_nobody(name: str) -> None:
    nova_mp.mkfs(name, "16MiB", 1)
    nova_mp.start(name)
    with nova_mp.attach(name):
        done = run("stop", name)
        assert done.returncode == 4
    ok("stop", name)
    assert "nova-mp start" in run("ls", f"{name}:/").stderr


def test_no_space(name: str, tmp_path: Path) -> None:
    nova_mp.mkfs(name, "16MiB", 1)
    nova_mp.start(name)
    large = tmp_path / "large"
    large.write_bytes(bytes(range(256)) * (4096 * 20))
    done = run("cp", str(large), f"{name}:/large")
    assert done.returncode == 5
    assert "no space left on device" in done.stderr
    assert ok("ls", f"{name}:/") == ""
    assert "is sound" in ok("fsck", name)


def test_a_damaged_arena(name: str) -> None:
    nova_mp.mkfs(name, "16MiB", 1)
    path = segment.pmem_path(name)
    with path.open("r+b") as file:
        file.write(b"\xff" * 8192)
        file.seek(-4096, os.SEEK_END)
        file.write(b"\xff" * 4096)
    for verb in ("fsck", "start", "status"):
        done = run(verb, name)
        assert done.returncode == 6, (verb, done)


def test_ctrl_c_ends_a_copy_without_a_trace(running: str) -> None:
    process = subprocess.Popen(
        [*COMMAND, "cp", "-", f"{running}:/interrupted"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write("x" * (1 << 20))
    process.stdin.flush()
    with nova_mp.attach(running) as fs:
        # It gets its own name when all of it is there.
        wait_until(lambda: any("interrupted" in name for name in fs.listdir("/")))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert not any("interrupted" in name for name in fs.listdir("/"))
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err


def test_what_is_attached_is_shown_and_does_not_keep_a_forced_stop(name: str) -> None:
    nova_mp.mkfs(name, "16MiB", 1)
    ok("start", name)
    code = f"import nova_mp; fs = nova_mp.attach({name!r}, title='mine'); print(); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as client:
        assert client.stdin is not None and client.stdout is not None
        client.stdout.readline()
        rows = [line.split("\t") for line in ok("status", name, "-H").splitlines()]
        assert ["mine", str(client.pid), "attached", "0"] in rows
        held = run("stop", name)
        assert held.returncode == 4
        assert f"nova-mp stop {name} --force" in held.stderr
        ok("stop", name, "--force")
        held = run("destroy", name)
        assert held.returncode == 4
        assert f"nova-mp destroy {name} --force" in held.stderr
        ok("destroy", name, "--force")
        client.stdin.close()


@pytest.mark.parametrize("closed", ["1>&-", "0<&- 1>&-", "0<&- 1>&- 2>&-"])
def test_a_start_with_closed_streams(name: str, closed: str) -> None:
    nova_mp.mkfs(name, "16MiB", 1)
    command = f'"{sys.executable}" -m nova_mp.cli.main start {name} {closed}'
    done = subprocess.run(["sh", "-c", command], timeout=60, check=False)
    assert done.returncode == 0
    ok("stop", name)
    # The same from a program that does not mend its streams.
    code = f"import nova_mp; nova_mp.start({name!r}).stop()"
    command = f'"{sys.executable}" -c "{code}" {closed}'
    assert subprocess.run(["sh", "-c", command], timeout=60, check=False).returncode == 0


def test_output_goes_wrong(running: str, tmp_path: Path) -> None:
    with nova_mp.attach(running) as fs:
        fs.mkdir("/many")
        for number in range(2000):
            fs.mkdir(f"/many/{number:0>100}")
        with fs.open("/sparse", "w+b") as file:
            file.truncate(1 << 40)
        fs.mkdir("/\udcff")
        fs.mkdir("/\udcff/in")
    command = f'"{sys.executable}" -m nova_mp.cli.main ls {running}:/many'
    piped = f"set -o pipefail; {command} | head -1"
    head = subprocess.run(["bash", "-c", piped], stdout=subprocess.DEVNULL, check=False)
    assert head.returncode == 0
    full = subprocess.run(
        ["sh", "-c", f"{command} > /dev/full"], stderr=subprocess.PIPE, text=True, check=False
    )
    assert full.returncode == 5
    assert "standard output" in full.stderr and "remove files" not in full.stderr
    large = run("cat", "--json", f"{running}:/sparse")
    assert (large.returncode, "too large" in large.stderr) == (1, True)
    for line in (f"nova-mp ls {running}:/\udcff/", f"nova-mp ls {running}:/"):
        environment = {**os.environ, "_NOVA_MP_COMPLETE": "bash_complete", "NOVA_MP_LINE": line}
        run(env=environment)


def test_foreground_stops_at_ctrl_c(name: str) -> None:
    nova_mp.mkfs(name, "16MiB", 1)
    process = subprocess.Popen(
        [*COMMAND, "start", name, "--foreground"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: nova_mp.status(name)["state"] == "running" or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "Ctrl-C stops it" in out
    assert nova_mp.status(name)["state"] == "stopped"


@pytest.mark.parametrize("way", [[], ["--foreground"]], ids=["background", "foreground"])
@pytest.mark.parametrize("sign", ["engine.lock", "engine.json", "worker-0.sock", "events.sock"])
def test_ctrl_c_during_a_start_leaves_nothing(name: str, way: list[str], sign: str) -> None:
    nova_mp.mkfs(name, "16MiB", 2)
    process = subprocess.Popen(
        [*COMMAND, "start", name, *way], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    seen = config.runtime_path(name) / sign
    while not seen.exists() and process.poll() is None:
        # Closely, to be there before the start is over.
        continue
    pids = processes(name)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    # The start may have been over, so that nothing was interrupted.
    assert process.returncode == 0 if way else process.returncode in (0, 130)
    if not way and process.returncode == 0:
        assert "runs" in out
        nova_mp.stop(name)
    # The last to go is the supervisor, which has told of its end a moment before it.
    wait_until(lambda: not any(identity.start_ticks(pid) for pid in pids.values()))
    assert_nothing_left(name, pids)
    assert nova_mp.status(name)["state"] == "stopped"


JOB = """
[arena]
size = "32MiB"
cpus = 1

[[clients]]
count = 1
mix = { read = 50, write = 50 }
files = 1
file_size = "64KiB"

[[peers]]
kind = "tmpfs"

[run]
warmup = "10ms"
duration = "50ms"
repeats = 1
"""


def test_bench_run(tmp_path: Path) -> None:
    job, out, page = tmp_path / "job.toml", tmp_path / "out.json", tmp_path / "out.html"
    job.write_text(JOB)
    text = ok("bench", "run", str(job), "--json", str(out), "--html", str(page))
    assert "NOVA_MP/PEER" in text
    assert f"written: {page}" in text
    assert "<!doctype html>" in page.read_text()
    result = json.loads(out.read_text())
    assert (result["output_version"], result["kind"]) == (1, "load")
    printed = read_json("bench", "run", str(job))
    assert printed["total"]["operations"] > 0
    wrong = run("bench", "run", "nonsense")
    assert wrong.returncode == 1
    assert "micro.toml" in wrong.stderr
    job.write_text("[arena")
    broken = run("bench", "run", str(job), "--json", str(tmp_path / "none.json"))
    assert (broken.returncode, "hint: " in broken.stderr) == (2, True)
    assert not (tmp_path / "none.json").exists()
    folder = run("bench", "run", str(job), "--json", str(tmp_path))
    assert (folder.returncode, "name a file in it" in folder.stderr) == (2, True)


def wait_until(condition: Any) -> None:
    """Poll: these events are in other processes, which tell nobody."""
    import time

    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def on_a_terminal(*args: str, interrupt_at: str = "") -> tuple[int, str]:
    """Run the command on a pseudo terminal: exit code and what was drawn.

    Ctrl-C comes once it has drawn `interrupt_at`.
    """
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *args], stdin=follower, stdout=follower, stderr=follower, close_fds=True
    )
    os.close(follower)
    drawn = b""
    while True:
        try:
            piece = os.read(leader, 1 << 16)
        except OSError:
            # The terminal hangs up when the last process lets go of it.
            break
        if not piece:
            break
        drawn += piece
        if interrupt_at and interrupt_at.encode() in drawn:
            process.send_signal(signal.SIGINT)
            interrupt_at = ""
    os.close(leader)
    return process.wait(timeout=30), drawn.decode(errors="replace")


def test_progress_is_for_terminals(running: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(20):
        (tree / str(number)).write_bytes(b"x" * 10_000)
    code, drawn = on_a_terminal("cp", "-r", str(tree), f"{running}:/drawn")
    assert code == 0
    assert "\x1b[" in drawn
    assert "copied 20 files, 1 directories" in drawn
    assert ok("cp", "-r", str(tree), f"{running}:/silent") == ""


def test_completion_looks_into_running_arenas(running: str) -> None:
    ok("mkdir", "-p", f"{running}:/complete/me")
    ok("cp", "-", f"{running}:/complete/file", input="")

    def completions(line: str) -> list[str]:
        environment = {**os.environ, "_NOVA_MP_COMPLETE": "bash_complete", "NOVA_MP_LINE": line}
        return run(env=environment).stdout.split()

    assert f"plain,{running}" in completions("nova-mp start ")
    assert f"plain,{running}:/" in completions(f"nova-mp ls {running[:-1]}")
    assert completions(f"nova-mp ls {running}:/compl") == [f"plain,{running}:/complete/"]
    assert completions(f"nova-mp cat {running}:/complete/") == [
        f"plain,{running}:/complete/file",
        f"plain,{running}:/complete/me/",
    ]
    assert completions("nova-mp ls none:/") == []

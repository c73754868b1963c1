"""Job files: what is read, and what is refused with a place and a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from nova_mp.bench.crowd import is_crowd, load_crowd
from nova_mp.bench.echo import is_echo, load_echo
from nova_mp.bench.job import JobError, find_preset, load_job, read_arena, read_tables
from nova_mp.bench.mapped import is_mapped, load_mapped
from nova_mp.bench.micro import is_micro, load_micro
from nova_mp.bench.snapshots import is_snapshots, load_snapshots
from nova_mp.bench.units import parse_duration, show_bytes, show_ns, show_rate

CONFIG = Path(__file__).resolve().parents[2] / "config"
PRESETS = sorted([*CONFIG.glob("media-*.toml"), *CONFIG.glob("engine-*.toml")])
JOBS = sorted(set(CONFIG.glob("*.toml")) - set(PRESETS))

LEAST = """
[[clients]]
mix = { read = 1 }
"""


def job_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_job_that_is_delivered_can_be_read(path: Path) -> None:
    if is_micro(path):
        assert load_micro(path).cases
    elif is_snapshots(path):
        assert load_snapshots(path)[0].cpus
    elif is_crowd(path):
        assert any(load_crowd(path)[1:])
    elif is_echo(path):
        assert load_echo(path).depth > 1
    elif is_mapped(path):
        assert load_mapped(path)[0].repeats
    else:
        assert load_job(path).clients


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_is_an_arena(path: Path) -> None:
    assert read_arena(read_tables(path)["arena"]).size_bytes > 0


def test_defaults(tmp_path: Path) -> None:
    job = load_job(job_file(tmp_path, LEAST))
    assert job.name == "job"
    assert job.arena.cpus == 2
    assert job.clients[0].mode == "attached"
    assert job.clients[0].rate == 0
    assert job.snapshots.every_ns == 0
    assert not job.run.verify


def test_all_keys(tmp_path: Path) -> None:
    job = load_job(job_file(tmp_path, """
        name = "all"
        [arena]
        size = "64MiB"
        cpus = 3
        media = "pmem"
        [snapshots]
        every = "50ms"
        keep = 2
        [[clients]]
        name = "a"
        count = 2
        mode = "remote"
        mix = { read = 70, write = 30 }
        block = "16KiB"
        pattern = "sequential"
        files = 2
        file_size = "1MiB"
        rate = 100.5
        poisson = true
        [[peers]]
        kind = "tmpfs"
        [run]
        warmup = "10ms"
        duration = 2.5
        repeats = 7
        seed = 3
        verify = true
    """))
    assert job.name == "all"
    assert (job.arena.size_bytes, job.arena.cpus, job.arena.media) == (64 << 20, 3, "pmem")
    assert (job.snapshots.every_ns, job.snapshots.keep) == (50_000_000, 2)
    group = job.clients[0]
    assert (group.name, group.count, group.mode) == ("a", 2, "remote")
    assert group.mix == (("read", 70.0), ("write", 30.0))
    assert group.blocks_per_file == 64
    assert (group.rate, group.poisson) == (100.5, True)
    assert (job.run.warmup_ns, job.run.duration_ns) == (10_000_000, 2_500_000_000)
    assert job.peers[0].path == "/dev/shm"
    assert job.processes == 2


@pytest.mark.parametrize(("text", "reason"), [
    ("", "lacks 'clients'"),
    ("clients = []", "no clients"),
    (LEAST + "patern = 'random'", "unknown keys: patern"),
    (LEAST + "pattern = 'spiral'", "expected one of random"),
    (LEAST + "count = 0", "whole number from 1"),
    (LEAST + "count = true", "whole number"),
    (LEAST + "block = '4QiB'", "block"),
    (LEAST + "block = '2MiB'\nfile_size = '1MiB'", "smaller than block"),
    (LEAST + "rate = -1", "not negative"),
    ("[[clients]]\nmix = { red = 1 }", "unknown operations red"),
    ("[[clients]]\nmix = { read = 0 }", "all shares are zero"),
    (LEAST + "file_size = '2GiB'", "arena has"),
    (LEAST + "[run]\nverify = 'yes'", "true or false"),
    (LEAST + "[run]\nduration = 'long'", "duration"),
    (LEAST + "block = 32\n[run]\nverify = true", "at least 64 bytes"),
    (LEAST + "[[peers]]\nkind = 'directory'", "lacks 'path'"),
    (LEAST + "name='a'\n[[clients]]\nname='a'\nmix={read=1}", "one name"),
    ("arena = 3\n" + LEAST, "expected a table"),
    ("x = [", "not TOML"),
    ("include = ['nowhere.toml']\n" + LEAST, "no preset 'nowhere.toml'"),
    ("include = 'media-pmem.toml'\n" + LEAST, "expected a list of file names"),
    ("include = ['job.toml']\n" + LEAST, "includes itself"),
    (LEAST + "rate = inf", "not negative"),
    (LEAST + "[run]\nduration = nan", "has an end"),
])
def test_what_does_not_fit_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(JobError, match=reason):
        load_job(job_file(tmp_path, text))


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_bytes(b"\x80\x81")
    with pytest.raises(JobError, match="UTF-8"):
        load_job(tmp_path / "job.toml")
    with pytest.raises(JobError, match="is a directory"):
        load_job(tmp_path)


def test_a_preset_comes_first_and_the_job_wins(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('[arena]\nsize = "64MiB"\ncpus = 4\n', encoding="utf-8")
    path = job_file(tmp_path, 'include = ["base.toml"]\n[arena]\ncpus = 3\n' + LEAST)
    arena = load_job(path).arena
    assert (arena.size_bytes, arena.cpus) == (64 << 20, 3)


def test_presets_are_found_in_the_source_tree(tmp_path: Path) -> None:
    assert find_preset("media-pmem.toml", tmp_path).is_file()


@pytest.mark.parametrize(("text", "ns"), [
    ("100ms", 100_000_000), ("2s", 2_000_000_000), ("50us", 50_000), ("7ns", 7),
    ("1min", 60_000_000_000), ("1.5 s", 1_500_000_000), (3, 3_000_000_000), (0.25, 250_000_000),
])
def test_durations(text: str | float, ns: int) -> None:
    assert parse_duration(text) == ns


@pytest.mark.parametrize("text", ["", "ms", "-1s", -1, "3 fortnights", True])
def test_bad_durations(text: str | float) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


def test_figures_for_people() -> None:
    assert show_ns(87) == "87 ns"
    assert show_ns(3_420) == "3.42 us"
    assert show_ns(1_250_000) == "1.25 ms"
    assert show_bytes(4096) == "4 KiB"
    assert show_bytes(3 << 29) == "1.5 GiB"
    assert show_rate(1_250_000) == "1.25 M/s"
    assert show_rate(12) == "12 /s"

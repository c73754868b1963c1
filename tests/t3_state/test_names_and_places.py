"""Names, sizes, registry, runtime folders, and the segments that they lead to."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from multiprocessing import shared_memory
from pathlib import Path

import pytest

from nova_mp import config
from nova_mp.core import segment
from nova_mp.errors import ArenaExists, ArenaNotFound, NotEnoughMemory, NovaError
from nova_mp.protocol import identity


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("4096", 4096), ("64MiB", 64 << 20), ("1.5GiB", 3 << 29), ("2g", 2 << 30), ("1 KB", 1024)],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert config.parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "x", "-1", "0", "1PiB", "1e9", 0, -5, True])
def test_bad_sizes(text: str | int) -> None:
    with pytest.raises(ValueError, match="bad size"):
        config.parse_size(text)


def test_sizes_for_people() -> None:
    shown = [segment.format_size(n) for n in (0, 1023, 1024, 1536 << 20, 5 << 40)]
    assert shown == ["0 B", "1023 B", "1 KiB", "1.5 GiB", "5 TiB"]


@pytest.mark.parametrize("name", ["", ".x", "a/b", "a b", "x" * 65, "-a", "a\n"])
def test_bad_names(name: str) -> None:
    with pytest.raises(ValueError, match="bad arena name"):
        segment.check_name(name)


def test_runtime_folders_are_private() -> None:
    folder = config.make_runtime_path("some")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o755)
    assert stat.S_IMODE(config.make_runtime_path("some").stat().st_mode) == 0o700
    folder.rmdir()
    folder.symlink_to(folder.parent)
    with pytest.raises(NovaError, match="not a directory of yours"):
        config.make_runtime_path("some")
    folder.unlink()


def test_endpoints() -> None:
    local = config.endpoints("n", 2)
    assert local.coordinator == f"ipc://{config.runtime_path('n')}/coordinator.sock"
    assert len(set(local.workers)) == 2
    far = config.tcp_endpoints("10.0.0.1:700", 2)
    assert far == config.tcp_endpoints("tcp://10.0.0.1:700", 2)
    assert far.coordinator == "tcp://10.0.0.1:700"
    assert far.events == "tcp://10.0.0.1:701"
    assert far.workers == ("tcp://10.0.0.1:702", "tcp://10.0.0.1:703")
    for bad in ("10.0.0.1", "tcp://x", "x:0", "tcp://x:65535", "ipc://x:1"):
        with pytest.raises(ValueError, match="bad address"):
            config.tcp_endpoints(bad, 2)


def test_a_path_too_long_for_a_socket_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOVA_MP_RUNTIME_DIR", "/tmp/" + "x" * 90)
    with pytest.raises(NovaError, match="too long for a socket"):
        config.endpoints("n", 2)


def test_pmem_is_reserved_and_shared(arena_prefix: str) -> None:
    name = f"{arena_prefix}seg"
    with segment.create_pmem(name, 10_000) as pmem:
        assert pmem.size_bytes == 12_288
        info = os.stat(segment.pmem_path(name))
        assert info.st_blocks * 512 >= 12_288
        assert stat.S_IMODE(info.st_mode) == 0o600
        pmem.buf[:5] = b"hello"
        with pytest.raises(ArenaExists):
            segment.create_pmem(name, 4096)
    assert name in segment.arena_names()
    with segment.attach_pmem(name) as again:
        assert bytes(again.buf[:5]) == b"hello"
    segment.unlink_pmem(name)
    with pytest.raises(ArenaNotFound):
        segment.attach_pmem(name)
    with pytest.raises(ArenaNotFound):
        segment.unlink_pmem(name)


def test_segments_are_those_of_multiprocessing(arena_prefix: str) -> None:
    """Its SharedMemory opens them; and a process of ours that attaches and exits removes none."""
    name = f"{arena_prefix}mp"
    segment.create_pmem(name, 4096).close()
    theirs = shared_memory.SharedMemory(f"nova_mp.{name}.pmem")
    theirs.buf[0] = 7
    theirs.close()
    look = f"from nova_mp.core.segment import *; print(attach_pmem({name!r}).buf[0])"
    done = subprocess.run(
        [sys.executable, "-c", look],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout == "7\n"
    assert segment.pmem_exists(name)
    # Unlinking through their object also takes it off the list of their resource tracker.
    theirs.unlink()


def test_what_does_not_fit_is_refused_and_leaves_nothing(arena_prefix: str) -> None:
    name = f"{arena_prefix}huge"
    with pytest.raises(NotEnoughMemory, match=r"needs 1 TiB, .* has ") as caught:
        segment.create_pmem(name, 1 << 40)
    assert caught.value.errno == errno.ENOSPC
    assert not segment.pmem_exists(name)


def test_dram_reserves_its_base_only(arena_prefix: str) -> None:
    name = f"{arena_prefix}dram"
    with segment.create_dram(name, 1 << 20, 64 << 20) as dram:
        assert dram.size_bytes == 64 << 20
        used = os.fstat(dram.fd).st_blocks * 512
        assert 1 << 20 <= used < 4 << 20
        with pytest.raises(FileExistsError):
            segment.create_dram(name, 4096, 4096)
    segment.unlink_dram(name)
    assert not segment.dram_exists(name)
    segment.unlink_dram(name)


def test_an_arena_in_a_file(arena_prefix: str, tmp_path: Path) -> None:
    name, file = f"{arena_prefix}file", tmp_path / "arena"
    segment.create_pmem(name, 8192, f"file:{file}").close()
    assert file.stat().st_size == 8192
    assert name in segment.arena_names()
    with pytest.raises(ArenaExists):
        segment.create_pmem(name, 8192, f"file:{tmp_path / 'other'}")
    with pytest.raises(ArenaExists):
        segment.create_pmem(f"{name}2", 8192, f"file:{file}")
    file.rename(tmp_path / "moved")
    with pytest.raises(ArenaNotFound, match="is gone"):
        segment.attach_pmem(name)
    segment.unlink_pmem(name)
    assert name not in segment.arena_names()
    with pytest.raises(ValueError, match="bad backing"):
        segment.create_pmem(name, 8192, "disk")


def test_a_pid_is_told_from_its_successor() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ticks = identity.start_ticks(child.pid)
    assert identity.alive(child.pid, ticks)
    assert not identity.alive(child.pid, ticks + 1)
    assert identity.open_pidfd(child.pid, ticks + 1) is None
    assert identity.kill_and_wait([(child.pid, ticks + 1)]), "nobody to kill"
    assert child.poll() is None
    assert identity.kill_and_wait([(child.pid, ticks)])
    # A zombie is dead, although its pid is still taken.
    assert not identity.alive(child.pid, ticks)
    child.communicate()

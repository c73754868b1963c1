"""The examples run as they are, and leave nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import nova_mp

pytest.importorskip("numpy")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LIMIT_S = 120


def started(out: Path, seconds: str) -> subprocess.Popen[str]:
    package = str(Path(nova_mp.__file__).parents[1])
    paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return subprocess.Popen(
        [sys.executable, str(EXAMPLES / "simulation.py"), "--seconds", seconds, "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )


def pictures(data: bytes) -> list[bytes]:
    """The pixels of a GIF's frames, told from the format and not from who wrote it."""
    assert data[:6] == b"GIF89a" and data[-1:] == b";"
    at, found = 13 + 3 * (2 << (data[10] & 7)), []
    while data[at : at + 1] != b";":
        image = data[at] == 0x2C
        at += 11 if image else 2
        bits, packed = data[at - 1], b""
        while size := data[at]:
            packed += data[at + 1 : at + 1 + size]
            at += 1 + size
        at += 1
        if image:
            found.append(unpacked(packed, bits))
    return found


def unpacked(packed: bytes, bits: int) -> bytes:
    """LZW with codes of growing width."""
    clear, out = 1 << bits, bytearray()
    table: list[bytes] = []
    width, held, have, before = bits + 1, 0, 0, b""
    for byte in packed:
        held |= byte << have
        have += 8
        while have >= width:
            code, held, have = held & ((1 << width) - 1), held >> width, have - width
            if code == clear:
                table = [bytes([i]) for i in range(clear)] + [b"", b""]
                width, before = bits + 1, b""
                continue
            if code == clear + 1:
                return bytes(out)
            word = table[code] if code < len(table) else before + before[:1]
            out += word
            if before:
                table.append(before + word[:1])
                if len(table) == 1 << width and width < 12:
                    width += 1
            before = word
    raise AssertionError("the picture has no end")


def test_the_simulation_goes_on_while_snapshots_become_frames(tmp_path: Path) -> None:
    out = tmp_path / "simulation.gif"
    process = started(out, "2")
    said, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors
    _, steps, snapshots, frames = (int(number) for number in re.findall(r"^(\d+) ", said, re.M))
    assert steps and snapshots and frames, said
    assert "0 of them torn" in said
    found = pictures(out.read_bytes())
    assert len(found) == frames
    assert {len(pixels) for pixels in found} == {256 * 256}
    assert not list(Path("/dev/shm").glob(f"*simulation-{process.pid}*"))


@pytest.mark.parametrize(("seconds", "out"), [
    ("nan", "a.gif"), ("-1", "a.gif"), ("inf", "a.gif"), ("1", "missing/a.gif"), ("1", "."),
])
def test_what_makes_no_sense_is_refused(tmp_path: Path, seconds: str, out: str) -> None:
    process = started(tmp_path / out, seconds)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, "Traceback" in errors) == (2, False), errors


@pytest.mark.parametrize("after_s", [0.6, 1.2])
def test_ctrl_c_may_come_early(tmp_path: Path, after_s: float) -> None:
    process = started(tmp_path / "simulation.gif", "600")
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=after_s)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode in (0, 130, -signal.SIGINT), errors
    assert "Traceback" not in errors
    assert not list(Path("/dev/shm").glob(f"*simulation-{process.pid}*"))


def test_ctrl_c_ends_the_simulation_cleanly(tmp_path: Path) -> None:
    out = tmp_path / "simulation.gif"
    process = started(out, "600")
    assert process.stdout is not None
    assert "at work" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors
    assert "interrupted" in errors and "Traceback" not in errors
    assert out.read_bytes().endswith(b";")
    assert not list(Path("/dev/shm").glob(f"*simulation-{process.pid}*"))

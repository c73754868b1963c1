"""A simulation that never stops, and pictures of it that are moments.

Four processes share a grid in a mapped file and let two substances react and diffuse on it, each in
a band of its own, reading its neighbours' edges. A fifth process takes 100 snapshots a second, a
sixth draws frames out of the snapshots into a GIF. Nobody waits for the pictures: stores are held
back for less than a millisecond while a snapshot is taken.

A band goes to step n + 1 only when both neighbours have finished step n, which it sees in counters
that lie in the same file. So no moment shows neighbours more than a step apart; the sixth process
looks whether that is so in each snapshot it draws.

    python examples/simulation.py --seconds 10 --out simulation.gif

Needs numpy (pip install nova-mp[numpy]) and nothing else. Ctrl-C ends it early, with a whole GIF.
"""

from __future__ import annotations

import argparse
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import time
from pathlib import Path
from typing import IO, Any

import nova_mp

if __name__ == "__main__":
    # Until there is something to clean up, Ctrl-C just ends it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
try:
    import numpy as np
except ModuleNotFoundError:
    sys.exit("simulation.py: numpy is not installed\nhint: pip install nova-mp[numpy]")

BANDS = 4
SIZE = 256
"""Rows and columns of the grid."""
HEADER = 4096
"""Bytes before the grid: how many steps each band has made."""
FIELD = SIZE * SIZE * 4
KEEP = 8
START_S = 60.0
SECONDS_MAX = 86400
FRAMES_PER_SECOND = 10
PALETTE = 128
PATH = "/grid"


# ------------------------------------------------------------------------------- the simulation


def arrays(mapping: Any) -> tuple[Any, Any]:
    """The counters, and both substances, one grid each."""
    steps = np.frombuffer(mapping, dtype=np.int64, count=BANDS)
    fields = np.frombuffer(mapping, dtype=np.float32, offset=HEADER).reshape(2, SIZE, SIZE)
    return steps, fields


def prepare(fs: Any) -> None:
    """A grid with a few drops in it."""
    fields = np.zeros((2, SIZE, SIZE), dtype=np.float32)
    fields[0] = 1
    draw = np.random.default_rng(1)
    for row, column in draw.integers(8, SIZE - 8, (24, 2)):
        fields[:, row - 4 : row + 4, column - 4 : column + 4] = [[[0.5]], [[0.25]]]
    fs.write_bytes(PATH, bytes(HEADER) + fields.tobytes())


def react(above: Any, band: Any, below: Any) -> Any:
    """One step (Gray and Scott) of a band, between the rows next to it."""
    padded = np.concatenate((above, band, below), axis=1)
    diffusion = padded[:, :-2] + padded[:, 2:] - 4 * band
    diffusion += np.roll(band, 1, axis=2) + np.roll(band, -1, axis=2)
    a, b = band
    reaction = a * b * b
    change = np.stack((0.16 * diffusion[0] - reaction + 0.035 * (1 - a),
                       0.08 * diffusion[1] + reaction - 0.1 * b))
    return band + change


def simulate(name: str, own: int, ready: Any, stop: Any, told: Any) -> None:
    """One band; stores of compiled loops go straight into the file."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    rows = SIZE // BANDS
    before, after = (own - 1) % BANDS, (own + 1) % BANDS
    with nova_mp.attach(name, title=f"band {own}") as fs, fs.open(PATH, "r+b") as file:
        steps, fields = arrays(file.mmap())
        band, edges = fields[:, own * rows : (own + 1) * rows], None
        ready.wait()
        while not stop.is_set():
            if min(steps[before], steps[after]) < steps[own]:
                os.sched_yield()
                continue
            edges = fields[:, own * rows - 1], fields[:, (own + 1) * rows % SIZE]
            band[:] = react(edges[0][:, None], band, edges[1][:, None])
            steps[own] += 1
        told.put(("band", own, int(steps[own])))
        # The mapping is closed with the file system, when nothing refers to it any more.
        del steps, fields, band
        edges = None


# -------------------------------------------------------------------------------- the snapshots


def take_snapshots(name: str, ready: Any, stop: Any, told: Any) -> None:
    """A hundred a second; the oldest are deleted, or will be when nobody looks at them any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    taken: list[int] = []
    total = 0
    with nova_mp.attach(name, title="snapshots") as fs:
        ready.wait()
        due = time.monotonic()
        while not stop.wait(max(0.0, due - time.monotonic())):
            taken.append(fs.snapshots.create().epoch_id)
            total += 1
            if len(taken) > KEEP:
                fs.snapshots.delete(taken.pop(0))
            due = max(due + 0.01, time.monotonic() - 0.1)
    told.put(("snapshots", total))


def draw_frames(name: str, out: str, ready: Any, stop: Any, told: Any) -> None:
    """Frames out of the newest snapshots, into a GIF."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    drawn = torn = 0
    with nova_mp.attach(name, title="frames") as fs, open(out, "wb") as file:
        gif_begin(file)
        ready.wait()
        while not stop.wait(1 / FRAMES_PER_SECOND):
            newest = fs.snapshots.list()[-1:]
            if not newest:
                continue
            try:
                old = fs.snapshots.open(newest[0].epoch_id)
            except nova_mp.NoSuchSnapshot:
                continue  # deleted since it was listed; there are newer ones
            with old:
                steps, frame = picture(old)
            drawn += 1
            torn += max(abs(int(steps[i]) - int(steps[i - 1])) for i in range(BANDS)) > 1
            gif_frame(file, frame)
        file.write(b"\x3b")
    told.put(("frames", drawn, torn))


def picture(old: Any) -> tuple[Any, Any]:
    """Counters and picture of a snapshot, whose file is mapped as well: nothing is copied."""
    with old.open(PATH, "rb") as file, file.mmap(writable=False) as mapping:
        steps, fields = arrays(mapping)
        found = steps.copy(), np.clip(fields[1] * 3 * PALETTE, 0, PALETTE - 1).astype(np.uint8)
        del steps, fields
    return found


# -------------------------------------------------------------------------------------- the GIF


def gif_begin(file: IO[bytes]) -> None:
    """Size, palette, and that it is played again and again."""
    file.write(b"GIF89a" + SIZE.to_bytes(2, "little") * 2 + b"\xe6\x00\x00")
    shade = np.linspace(0, 1, PALETTE)
    colours = np.stack((shade**0.5, shade**2, 0.3 + 0.7 * np.sin(shade * np.pi / 2)), axis=1)
    file.write((colours * 255).astype(np.uint8).tobytes())
    file.write(b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00")


def gif_frame(file: IO[bytes], frame: Any) -> None:
    """One picture.

    Codes of LZW have 8 bits until the table holds 256 of them. It is told to forget all before
    that, so every pixel is a byte, and no library is needed.
    """
    run = 120
    pixels = frame.reshape(-1)
    padded = np.zeros(-(-pixels.size // run) * run, dtype=np.uint8)
    padded[: pixels.size] = pixels
    clear = np.full((padded.size // run, 1), PALETTE, dtype=np.uint8)
    codes = np.hstack((clear, padded.reshape(-1, run))).tobytes()
    codes = codes[: len(codes) - (padded.size - pixels.size)] + bytes([PALETTE + 1])
    delay = 100 // FRAMES_PER_SECOND
    file.write(b"\x21\xf9\x04\x00" + delay.to_bytes(2, "little") + b"\x00\x00")
    file.write(b"\x2c" + bytes(4) + SIZE.to_bytes(2, "little") * 2 + b"\x00\x07")
    for at in range(0, len(codes), 255):
        part = codes[at : at + 255]
        file.write(bytes([len(part)]) + part)
    file.write(b"\x00")


# ------------------------------------------------------------------------------------- all of it


def run(name: str, seconds: float, out: str) -> dict[str, Any]:
    """Start the six processes, let them work, and collect what they did."""
    context = multiprocessing.get_context("spawn")
    stop, told = context.Event(), context.Queue()
    ready = context.Barrier(BANDS + 3)
    common = (ready, stop, told)
    everybody = [
        *(context.Process(target=simulate, args=(name, own, *common)) for own in range(BANDS)),
        context.Process(target=take_snapshots, args=(name, *common)),
        context.Process(target=draw_frames, args=(name, out, *common)),
    ]
    began = 0.0
    try:
        # Ctrl-C at a terminal is for all of them; they ignore it from their first moment.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for process in everybody:
            process.start()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        await_all(ready, everybody)
        began = time.monotonic()
        print(f"{len(everybody)} processes at work for {seconds:g} s", flush=True)
        multiprocessing.connection.wait([process.sentinel for process in everybody], seconds)
    except KeyboardInterrupt:
        # One is enough: what comes now must not be cut short.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("interrupted", file=sys.stderr)
        if not began:
            give_up(everybody)
            raise SystemExit(130) from None
    except BaseException:
        give_up(everybody)
        raise
    took = time.monotonic() - began
    stop.set()
    for process in everybody:
        process.join()
    failed = [process.name for process in everybody if process.exitcode]
    if failed:
        raise SystemExit(f"simulation.py: {', '.join(failed)} failed")
    found: dict[str, Any] = {"bands": [0] * BANDS, "seconds": took}
    for _ in everybody:
        kind, *values = told.get()
        if kind == "band":
            found["bands"][values[0]] = values[1]
        else:
            found[kind] = values
    return found


def await_all(ready: Any, everybody: list[Any]) -> None:
    """Wait until all processes are there; SystemExit if one of them is not coming."""
    deadline = time.monotonic() + START_S
    while ready.n_waiting < len(everybody):
        ended = multiprocessing.connection.wait([each.sentinel for each in everybody], 0.02)
        if ended or time.monotonic() > deadline:
            raise SystemExit("simulation.py: its processes did not start")
    ready.wait(START_S)


def give_up(everybody: list[Any]) -> None:
    """End processes that have nothing to show yet."""
    for process in everybody:
        if process.pid is not None:
            process.kill()
            process.join()


def positive(text: str) -> float:
    """A number of seconds, from the command line."""
    seconds = float(text)
    if not 0 < seconds <= SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"more than 0 and at most {SECONDS_MAX} are possible")
    return seconds


def main() -> None:
    """Make an arena, run the simulation on it, say what was done, leave nothing behind."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=positive, default=10.0)
    parser.add_argument("--out", default="simulation.gif", help="the GIF (default: %(default)s)")
    options = parser.parse_args()
    try:
        # Now, and not when everything runs.
        with open(options.out, "ab"):
            pass
    except OSError as error:
        parser.error(f"--out: {options.out}: {error.strerror}")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        simulation(options.seconds, options.out)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except (nova_mp.NovaError, OSError) as error:
        sys.exit(f"simulation.py: {error}")


def simulation(seconds: float, out: str) -> None:
    """The arena, and all that happens on it."""
    name = f"simulation-{os.getpid()}"
    nova_mp.mkfs(name, size="64MiB", cpus=2)
    try:
        with nova_mp.start(name):
            with nova_mp.attach(name) as fs:
                prepare(fs)
            found = run(name, seconds, out)
    finally:
        nova_mp.destroy(name, force=True)
    drawn, torn = found["frames"]
    print(f"{min(found['bands'])} steps of {SIZE} x {SIZE} cells in {BANDS} processes")
    print(f"{found['snapshots'][0]} snapshots in {found['seconds']:.1f} s")
    print(f"{drawn} frames in {out}, {Path(out).stat().st_size >> 10} KiB; "
          f"{torn} of them torn")


if __name__ == "__main__":
    main()

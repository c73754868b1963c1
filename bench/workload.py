"""Operation streams: which call, on which file, at which offset.

All randomness is drawn before the clock starts. A stream is a list of steps that is run round and
round; it is long enough that the blocks it touches are the group's whole working set, up to
`STREAM_STEPS_MAX` steps. A step's call is bound (function and arguments), so that the timed part of
the loop is one call and nothing else.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from .job import ClientGroup
from .peers import Bound, bind_create, bind_fsync, bind_path, bind_read, bind_rename, bind_write
from .records import Recorder

STREAM_STEPS = 16_384
STREAM_STEPS_MAX = 262_144
# "hot": this share of the operations goes to this share of the blocks.
HOT_OPERATIONS, HOT_BLOCKS = 0.9, 0.1


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of a stream; ``file`` and ``block`` say where, for all but create."""

    operation: str
    file: int
    block: int


def positions(group: ClientGroup, count: int, rng: random.Random) -> list[int]:
    """``count`` block positions (file * blocks_per_file + block) in the group's pattern.

    A random pattern is permutations of all blocks, one after the other: each block is touched
    equally often, so the working set is what the job file says.
    """
    total = group.files * group.blocks_per_file
    if group.pattern == "sequential":
        start = rng.randrange(total)
        return [(start + index) % total for index in range(count)]
    order = list(range(total))
    rng.shuffle(order)
    if group.pattern == "hot":
        hot = max(1, int(total * HOT_BLOCKS))
        cold = order[hot:] or order
        return [
            order[rng.randrange(hot)] if rng.random() < HOT_OPERATIONS else rng.choice(cold)
            for _ in range(count)
        ]
    found: list[int] = []
    while len(found) < count:
        found += order
        rng.shuffle(order)
    return found[:count]


def make_stream(group: ClientGroup, seed: int) -> list[Step]:
    """The steps of one client; the same seed gives the same steps."""
    rng = random.Random(seed)
    total = group.files * group.blocks_per_file
    count = min(max(STREAM_STEPS, total), STREAM_STEPS_MAX)
    names = [name for name, _ in group.mix]
    edges = list(accumulate(share for _, share in group.mix))
    places = positions(group, count, rng)
    return [
        Step(
            names[bisect_left(edges, rng.random() * edges[-1])],
            *divmod(place, group.blocks_per_file),
        )
        for place in places
    ]


class Workload:
    """One client's files on a file system (an arena's or a peer's), laid out and ready to run."""

    def __init__(self, file_system: Any, group: ClientGroup, client: int, seed: int) -> None:
        self.file_system = file_system
        self.group = group
        self.client = client
        self.seed = seed
        self.folder = f"/client-{client}"
        self.recorder = Recorder(client, group.blocks_per_file, _record_bytes(group), seed)
        self.stream = make_stream(group, seed * 1_000_003 + client)
        self.files: list[Any] = []
        self._buffer = bytearray(group.block_bytes)
        self._data = random.Random(seed).randbytes(group.block_bytes)

    def path(self, file: int) -> str:
        """Where a file of this client is."""
        return f"{self.folder}/file-{file}"

    def lay_out(self, verify: bool) -> None:
        """Make the files and fill them whole, in records when they will be verified."""
        self.file_system.mkdir(self.folder)
        size = self.group.block_bytes
        for index in range(self.group.files):
            file = self.file_system.open(self.path(index), "x+b")
            self.files.append(file)
            for block in range(self.group.blocks_per_file):
                data = self.recorder.fill(index, block) if verify else self._data
                written = file.pwrite(data, block * size)
                if written != size:
                    raise OSError(f"short write: {written} of {size} bytes")

    def bind(self, step: Step) -> Bound:
        """The call of a step, for loops that do not verify."""
        offset = step.block * self.group.block_bytes
        match step.operation:
            case "read":
                return bind_read(self.files[step.file], self._buffer, offset)
            case "write":
                return bind_write(self.files[step.file], self._data, offset)
            case "stat":
                return bind_path(self.file_system, "stat", self.path(step.file))
            case "create":
                return bind_create(self.file_system, f"{self.folder}/scratch")
            case "rename":
                return bind_rename(self.file_system, self.path(step.file))
            case "fsync":
                return bind_fsync(self.files[step.file])
        raise ValueError(f"unknown operation {step.operation!r}")

    def prepare(self, step: Step) -> Bound:
        """The call of a step with a fresh record to write, for loops that verify."""
        if step.operation == "write":
            record = self.recorder.fill(step.file, step.block)
            return bind_write(self.files[step.file], record, step.block * self.group.block_bytes)
        return self.bind(step)

    def check(self, step: Step) -> None:
        """Check what the step's call has just read; raises RecordError."""
        if step.operation == "read":
            self.recorder.check(self._buffer, step.file, step.block)

    def check_everything(self, file_system: Any | None = None) -> dict[int, int]:
        """Read all blocks, from this file system or a snapshot of it, and check each record.

        Returns the sequence number found at each position; raises RecordError.
        """
        found: dict[int, int] = {}
        size, per_file = self.group.block_bytes, self.group.blocks_per_file
        for index in range(self.group.files):
            with (file_system or self.file_system).open(self.path(index), "rb") as file:
                for block in range(per_file):
                    data = file.pread(size, block * size)
                    found[index * per_file + block] = self.recorder.inspect(data, index, block)
        return found

    def bytes_of(self, operation: str) -> int:
        """Bytes of user data that one operation moves."""
        return self.group.block_bytes if operation in ("read", "write") else 0

    def close(self) -> None:
        """Close all files."""
        while self.files:
            self.files.pop().close()


def _record_bytes(group: ClientGroup) -> int:
    """The recorder of a group that cannot verify is never used; it only needs to be valid."""
    return max(group.block_bytes, 64)

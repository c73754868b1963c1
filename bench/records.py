"""Self-describing, checksummed blocks, and what a snapshot of them may hold.

A job with ``verify = true`` writes each block as one record: who wrote it, which block of which
file it is, the writer's sequence number, and a CRC32 over all of it. So a torn block, a block of
another file, a stale one and a lost one each look different, without a copy of the data being kept.

One client owns its files, and writes with increasing sequence numbers; the order of its writes is
its `history`. A snapshot must hold a prefix of it: for some n, each block as the last of the first
n writes left it. `check_prefix` decides that.
"""

from __future__ import annotations

import random
import struct
import zlib
from array import array
from collections.abc import Mapping

# magic, client, file, block, sequence, length of the record, CRC32 of the record with this field 0
_HEADER = struct.Struct("<8sIIQQII")
_CRC = struct.Struct("<I")
_MAGIC = b"NOVArec1"
_CRC_OFFSET = _HEADER.size - _CRC.size
RECORD_BYTES_MIN = 64
SECTOR_BYTES = 512


class RecordError(Exception):
    """A block that does not hold what was written to it; the text says in which way."""


class Recorder:
    """Fills and checks the records of one client; not shared between threads.

    ``history[n - 1]`` is the position (``file * blocks_per_file + block``) of the write with
    sequence number n. The first writes are those that laid the files out.
    """

    def __init__(self, client: int, blocks_per_file: int, block_bytes: int, seed: int) -> None:
        if block_bytes < RECORD_BYTES_MIN:
            raise ValueError(f"a record needs {RECORD_BYTES_MIN} bytes, a block has {block_bytes}")
        self.client = client
        self.blocks_per_file = blocks_per_file
        self.block_bytes = block_bytes
        self.history = array("Q")
        self.latest: dict[int, int] = {}
        noise = random.Random(f"{seed}/{client}").randbytes(block_bytes)
        self._buffer = bytearray(noise)
        ends = {*range(SECTOR_BYTES, block_bytes + 1, SECTOR_BYTES), block_bytes}
        # Stamps neither overlap each other nor the header.
        self._stamps = sorted(end for end in ends if end == block_bytes or block_bytes - end >= 8)

    def fill(self, file: int, block: int) -> bytearray:
        """The record of the next write to this block, in a buffer that the next call reuses.

        The write counts as done from here on: call it right before the write.
        """
        position = file * self.blocks_per_file + block
        self.history.append(position)
        sequence = len(self.history)
        self.latest[position] = sequence
        buffer = self._buffer
        _HEADER.pack_into(
            buffer, 0, _MAGIC, self.client, file, block, sequence, self.block_bytes, 0
        )
        # Each sector ends with bytes of this version, so that a block of which any part is old
        # cannot be mistaken for the new one, or for the old.
        stamp = sequence.to_bytes(8, "big")
        for end in self._stamps:
            buffer[end - 8 : end] = stamp
        _CRC.pack_into(buffer, _CRC_OFFSET, zlib.crc32(buffer))
        return buffer

    def check(self, data: bytes | bytearray | memoryview, file: int, block: int) -> int:
        """Check a block that was read while no write of it was under way.

        Returns its sequence number; raises RecordError when it is not the latest one written.
        """
        sequence = self.inspect(data, file, block)
        expected = self.latest.get(file * self.blocks_per_file + block, 0)
        if sequence != expected:
            raise RecordError(
                f"client {self.client} file {file} block {block}: holds write {sequence},"
                f" the latest was {expected}"
            )
        return sequence

    def inspect(self, data: bytes | bytearray | memoryview, file: int, block: int) -> int:
        """Check that a block is one whole record of its place, and return its sequence number."""
        where = f"client {self.client} file {file} block {block}"
        if len(data) != self.block_bytes:
            raise RecordError(f"{where}: {len(data)} bytes instead of {self.block_bytes}")
        magic, client, of_file, of_block, sequence, length, crc = _HEADER.unpack_from(data, 0)
        if magic != _MAGIC:
            raise RecordError(f"{where}: not a record (starts with {bytes(data[:8])!r})")
        copy = bytearray(data)
        _CRC.pack_into(copy, _CRC_OFFSET, 0)
        if zlib.crc32(copy) != crc or length != self.block_bytes:
            raise RecordError(f"{where}: torn, the checksum does not fit its bytes")
        if (client, of_file, of_block) != (self.client, file, block):
            raise RecordError(
                f"{where}: holds a record of client {client} file {of_file} block {of_block}"
            )
        return int(sequence)


def check_prefix(history: array[int], found: Mapping[int, int], low: int, high: int) -> int:
    """Check that a snapshot holds exactly the first n writes for some n, and return the n.

    ``found`` maps each position to the sequence number read from the snapshot. n must be in
    ``low..high``: ``low`` writes had returned before the snapshot was asked for, and only ``high``
    had begun when it was there. Raises RecordError with the first write that is missing or extra.
    """
    newest = max(found.values(), default=0)
    if newest > high:
        raise RecordError(f"write {newest} began after the snapshot was complete (at {high})")
    count = max(newest, low)
    expected: dict[int, int] = {}
    for index in range(count):
        expected[history[index]] = index + 1
    for position, sequence in found.items():
        if expected.get(position, 0) != sequence:
            raise RecordError(
                f"position {position} holds write {sequence}, but the snapshot holds write"
                f" {newest} and {low} had returned, so write {expected.get(position, 0)} is missing"
            )
    missing = expected.keys() - found.keys()
    if missing:
        raise RecordError(f"position {min(missing)} is missing from the snapshot")
    return count

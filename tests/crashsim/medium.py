"""What is on the medium when power fails: a model of write-back caches, fed with a trace.

Structure  A trace is a sequence of stores, non-temporal copies, write-backs (flushes) and fences.
           A store goes to the cache. A flush starts writing its lines back; a copy past the cache
           is on its way at once; a fence waits for all that is on its way. Until then each line
           may, or may not, have reached the medium, independently of all others, because caches
           evict as they like.
Invariants
    MED-1  Stores to one line reach the medium in program order: what is there is a prefix of them.
    MED-2  Eight aligned bytes arrive together or not at all; of a longer store any words may.
    MED-3  After a fence, a line holds all stores up to its last flush before that fence.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

STORE, COPY_NT, FLUSH, FENCE = 1, 2, 3, 4
LINE = 64
WORD = 8
RECORD = struct.Struct("<QQII")
ALL = 1 << 30


@dataclass(frozen=True)
class Event:
    """One record of a trace. `data` is what was stored, empty for flushes and fences."""

    kind: int
    offset: int
    length: int
    data: bytes = b""


def events(trace: bytes) -> Iterator[Event]:
    """Parse what `Core.trace_stop` gives."""
    at = 0
    while at + RECORD.size <= len(trace):
        offset, length, kind, zero = RECORD.unpack_from(trace, at)
        if kind not in (STORE, COPY_NT, FLUSH, FENCE) or zero:
            raise ValueError(f"not a trace: kind {kind} at byte {at}")
        at += RECORD.size
        data = b""
        if kind in (STORE, COPY_NT):
            data = trace[at : at + length]
            at += length
        yield Event(kind, offset, length, data)
    if at != len(trace):
        raise ValueError(f"the trace ends in the middle of a record, at byte {len(trace)}")


def replay(image: bytes, trace: bytes) -> bytes:
    """The image after all stores of a trace."""
    result = bytearray(image)
    for event in events(trace):
        if event.data:
            result[event.offset : event.offset + event.length] = event.data
    return bytes(result)


@dataclass
class Pending:
    """Stores to one line that no fence has made persistent: (offset in the line, bytes)."""

    stores: list[tuple[int, bytes]] = field(default_factory=list)
    flushed: int = 0
    """So many of them are on their way."""


@dataclass(frozen=True)
class Choice:
    """What reached the medium of one line: so many of its stores, and of the next these words."""

    stores: int
    words: int = 0


def changed_lines(before: bytes, after: bytes) -> list[int]:
    """Lines in which two images of the medium differ."""
    starts = range(0, len(before), LINE)
    return [at // LINE for at in starts if before[at : at + LINE] != after[at : at + LINE]]


class Medium:
    """Persistent contents, and what is between cache and medium."""

    def __init__(self, image: bytes) -> None:
        self.image = bytearray(image)
        self.pending: dict[int, Pending] = {}

    def feed(self, event: Event) -> None:
        """Take the next event of the trace."""
        if event.kind == FENCE:
            self._fence()
            return
        first, last = event.offset // LINE, (event.offset + event.length - 1) // LINE
        for line in range(first, last + 1 if event.length else first):
            if event.kind == FLUSH:
                if line in self.pending:
                    self.pending[line].flushed = len(self.pending[line].stores)
                continue
            start = max(event.offset, line * LINE)
            end = min(event.offset + event.length, (line + 1) * LINE)
            part = event.data[start - event.offset : end - event.offset]
            held = self.pending.setdefault(line, Pending())
            held.stores.append((start - line * LINE, part))
            if event.kind == COPY_NT:
                held.flushed = len(held.stores)

    def _fence(self) -> None:
        for line in [line for line, held in self.pending.items() if held.flushed]:
            held = self.pending[line]
            self.image[line * LINE : (line + 1) * LINE] = self.line(line, Choice(held.flushed))
            del held.stores[: held.flushed]
            held.flushed = 0
            if not held.stores:
                del self.pending[line]

    def line(self, line: int, choice: Choice) -> bytes:
        """Contents of a line on the medium if `choice` of its pending stores reached it."""
        found = bytearray(self.image[line * LINE : (line + 1) * LINE])
        stores = self.pending[line].stores
        for start, data in stores[: choice.stores]:
            found[start : start + len(data)] = data
        if choice.words and choice.stores < len(stores):
            start, data = stores[choice.stores]
            for at in range(start - start % WORD, start + len(data), WORD):
                if choice.words >> (at // WORD) & 1:
                    low, high = max(at, start), min(at + WORD, start + len(data))
                    found[low:high] = data[low - start : high - start]
        return bytes(found)

    def state(self, choices: dict[int, Choice]) -> dict[int, bytes]:
        """Lines that differ from `image` if these choices reached the medium."""
        found = {}
        for line, choice in choices.items():
            data = self.line(line, choice)
            if data != self.image[line * LINE : (line + 1) * LINE]:
                found[line] = data
        return found

    def choices(
        self, rng: random.Random, recent: set[int], singles: int, subsets: int
    ) -> Iterator[tuple[str, dict[int, Choice]]]:
        """States worth trying, each with its name: none, all, one line, all but one, any.

        `recent` are lines that the running operation stored to; of these at most `singles` are
        tried alone. `subsets` is how many random states are added, half of them torn.
        """
        lines = sorted(self.pending)
        yield "none", {}
        yield "all", {line: Choice(ALL) for line in lines}
        tried = sorted(recent & self.pending.keys())
        if len(tried) > singles:
            tried = rng.sample(tried, singles)
        for line in tried:
            yield f"only line {line * LINE:#x}", {line: Choice(ALL)}
            yield (
                f"all but line {line * LINE:#x}",
                {other: Choice(ALL) for other in lines if other != line},
            )
        for number in range(subsets if lines else 0):
            share = rng.choice((0.1, 0.5, 0.9))
            state = {}
            for line in lines:
                if rng.random() < share:
                    stores = len(self.pending[line].stores)
                    kept = rng.choice((stores, rng.randrange(stores + 1)))
                    state[line] = Choice(kept, rng.getrandbits(8) if number % 2 else 0)
            yield f"random {number}", state

"""Messages that are almost right, and messages that are nothing at all.

Every request that the protocol has is a seed, as a client would send it. A mutation changes a field
of it, or its bytes, or its frames; some messages are made up from nothing. What could do harm by
being right (stop, freeze, filling the arena) is left out by `harmless`.
"""

from __future__ import annotations

import random
import struct
from typing import Any

import msgpack

from nova_mp.errors import NovaError
from nova_mp.protocol import codec, fileops
from nova_mp.protocol import messages as m

Frames = list[bytes]

NUMBERS = (0, 1, -1, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, -(2**63), 2**64 - 1, 4096)
TEXTS = ("", "\x00", "/", "x" * 300, "x" * 70_000, "\udcff", "..", "/fuzz/a", "stop", "1@2:/")
VALUES: tuple[Any, ...] = (
    None, True, False, 0.0, -1.5, 1e300, float("inf"), float("nan"), [], {}, [[]], {"a": {}},
    *NUMBERS, *TEXTS, *(text.encode(errors="surrogateescape") for text in TEXTS),
)  # fmt: skip

# Headers that declare more than there is, or nest deeper than anybody should go.
MONSTERS = (
    *(kind + b"\xff\xff\xff\xff" for kind in (b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9")),
    *(kind + b"\x7f\xff\xff\xff" + b"\x00" * 64 for kind in (b"\xdd", b"\xdf", b"\xc6")),
    *(kind * depth for kind in (b"\x91", b"\x81", b"\x81\x01") for depth in (100, 2000, 100_000)),
    b"\x81\xa1t" * 5000,
    b"\x84" + b"\xa1t\xa4ping" * 4,
    b"\xc7\x0c\xff" + b"\xff" * 12,
    b"\xd6\xff" + b"\xff" * 4,
)


def seeds(handle: int, paths: tuple[bytes, ...]) -> list[tuple[dict[str, Any], Frames]]:
    """Every request as (fields of its header, payload); `handle` is of an open file."""
    found = []
    for registration in m.registrations():
        fields: dict[str, Any] = {"t": registration.type_name, "v": m.VERSION}
        for number, field in enumerate(registration.fields):
            fields[field.name] = _sensible(field, handle, paths[number % len(paths)])
        payload = [b"payload" * 9] if registration.cls in _WITH_PAYLOAD else []
        found.append((fields, payload))
    return found


_WITH_PAYLOAD = (fileops.Pwrite, fileops.Append, fileops.WriteFile, fileops.SetXattr)


def _sensible(field: m.Field, handle: int, path: bytes) -> Any:
    if field.name == "handle":
        return handle
    if field.default is not m.MISSING:
        return field.default
    kinds: dict[str, Any] = {
        "int": 1, "float": 0.1, "str": "user.x", "bytes": path, "bool": False,
        "tuple[int, ...]": [1], "tuple[str, ...]": ["a"],
    }  # fmt: skip
    return kinds.get(field.annotation.split(" | ")[0])


class Mutator:
    """An endless stream of messages, the same for the same seed, of one client."""

    def __init__(
        self, seed: int, handle: int, paths: tuple[bytes, ...], client: bytes = b"f" * 16
    ) -> None:
        self._random = random.Random(seed)
        self._seeds = seeds(handle, paths)
        self._client = client
        self._number = 1 << 32

    def message(self) -> Frames:
        """The next message; it may even be valid."""
        while True:
            choice = self._random.random()
            frames = self._made_up() if choice < 0.1 else self._changed(choice < 0.7)
            if self.harmless(frames):
                return frames

    def _changed(self, by_field: bool) -> Frames:
        chance = self._random
        fields, payload = self._request()
        if by_field:
            for _ in range(chance.choice((1, 1, 2, 3))):
                self._change_field(fields)
        if chance.random() < 0.2:
            fields = self._batch(fields, payload)
            payload = []
        try:
            header = msgpack.packb(fields, use_bin_type=True, unicode_errors="surrogateescape")
        except (OverflowError, ValueError):
            header = b"\xc1"
        frames = [header, *payload]
        if not by_field:
            at = chance.randrange(len(frames))
            frames[at] = self._change_bytes(frames[at])
        if chance.random() < 0.1:
            self._change_frames(frames)
        return frames

    def _request(self) -> tuple[dict[str, Any], Frames]:
        fields, payload = self._random.choice(self._seeds)
        self._number += 1
        return {**fields, "id": codec.request_id(self._client, self._number)}, payload

    def _batch(self, fields: dict[str, Any], payload: Frames) -> dict[str, Any]:
        """A batch of this request and of others, which are proper ones."""
        chance = self._random
        maps: list[Any] = [{**fields, "p": payload} if payload else fields]
        for _ in range(chance.choice((0, 1, 3, 8))):
            other, parts = self._request()
            maps.append({**other, "p": parts} if parts else other)
        for one in maps:
            one.pop("v", None)
        chance.shuffle(maps)
        whole: dict[str, Any] = {"t": codec.BATCH, "v": m.VERSION, "of": maps}
        if chance.random() < 0.5:
            whole["o"] = self._number - chance.randrange(len(maps) + 1)
        if chance.random() < 0.2:
            self._change_field(whole)
        return whole

    def _change_field(self, fields: dict[str, Any]) -> None:
        chance = self._random
        name = chance.choice(list(fields) or ["t"])
        action = chance.random()
        if action < 0.1:
            fields.pop(name, None)
        elif action < 0.15:
            fields[chance.choice(("extra", "", "id", "t"))] = chance.choice(VALUES)
        elif action < 0.3 and isinstance(fields.get(name), int):
            fields[name] = fields[name] ^ (1 << chance.randrange(63))
        else:
            fields[name] = chance.choice(VALUES)

    def _change_bytes(self, frame: bytes) -> bytes:
        chance, data = self._random, bytearray(frame)
        for _ in range(chance.choice((1, 1, 2, 8))):
            at = chance.randrange(len(data) + 1)
            action = chance.randrange(5)
            if action == 0:
                del data[at:]
            elif action == 1:
                data[at:at] = chance.randbytes(chance.randrange(9))
            elif action == 2:
                del data[at : at + chance.randrange(9)]
            elif action == 3:
                data[at:at] = chance.choice(MONSTERS)[:200]
            elif at < len(data):
                data[at] ^= 1 << chance.randrange(8)
        return bytes(data)

    def _change_frames(self, frames: Frames) -> None:
        chance = self._random
        action = chance.randrange(5)
        if action == 0:
            frames.insert(0, b"")
        elif action == 1:
            frames += [b""] * chance.choice((1, 2, 3, 5, 8, 13, 21, 34, 55, 1100))
        elif action == 2:
            frames.reverse()
        elif action == 3:
            frames += frames
        else:
            frames.append(bytes(chance.choice((1, 8, 64, 512, 4096, 4096, 4096, 1 << 17))))

    def _made_up(self) -> Frames:
        chance = self._random
        action = chance.randrange(4)
        if action == 0:
            return [chance.choice(MONSTERS)]
        if action == 1:
            return [chance.randbytes(chance.randrange(200)) for _ in range(chance.randrange(1, 4))]
        if action == 2:
            return [struct.pack(">BI", chance.randrange(0xC4, 0xE0), chance.getrandbits(32))]
        return [b""] * chance.randrange(1, 5)

    def harmless(self, frames: Frames) -> bool:
        """Whether a message does no harm by being valid; few of those that make things pass."""
        try:
            found = codec.decode_all(frames)
        except NovaError:
            return True
        good = [one.message for one in found if isinstance(one, codec.Envelope)]
        return all(map(self._does_no_harm, good))

    def _does_no_harm(self, message: Any) -> bool:
        if isinstance(message, m.Stop | m.Freeze | fileops.Fallocate | fileops.Rename):
            return False
        if isinstance(message, m.SnapshotCreate | m.SnapshotDelete):
            return self._random.random() < 0.001
        if isinstance(message, fileops.Open | fileops.OpenView | fileops.WriteFile):
            return self._random.random() < 0.02
        if isinstance(message, fileops.MakeDir | fileops.Symlink | fileops.Link | fileops.SetXattr):
            return self._random.random() < 0.02
        return True

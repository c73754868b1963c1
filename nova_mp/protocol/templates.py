"""Messages of numbers alone, as msgpack that is laid out in advance: packed by one call.

A template is the map that `codec` would make of such a message, with every number in nine bytes, so
that each is at a fixed place. Reads, writes and their replies are nearly all that a busy worker
gets and gives; with templates each takes a third of the time. Whatever does not look exactly like a
template (from elsewhere, or in other order) is left to the general decoder, and means the same.
"""

from __future__ import annotations

import struct
from typing import Any

import msgpack

from nova_mp.protocol import messages

KEY_BYTES = 16
"""So much of a message's start tells templates apart."""

_ID = b"\xa2id\xc4\x18"
_NUMBER = b"\xd3"
_PAYLOAD = b"\xa1p\x91\xc6"


class Template:
    """One message type, alone or with one inline payload behind it."""

    __slots__ = (
        "_constants",
        "_layout",
        "_parts",
        "_values_of",
        "cls",
        "key",
        "size",
        "with_payload",
    )

    def __init__(self, registration: messages.Registration, with_payload: bool) -> None:
        self.cls = registration.cls
        self.with_payload = with_payload
        pack = msgpack.Packer(use_bin_type=True).pack
        count = 3 + len(registration.names) + with_payload
        head = bytes([0x80 | count]) + pack("t") + pack(registration.type_name)
        head += pack("v") + pack(messages.VERSION) + _ID
        # The constants between the variable parts: before the id, and before each number.
        self._constants = (head, *(pack(name) + _NUMBER for name in registration.names))
        layout = f">{len(head)}s24s" + "".join(f"{len(one)}sq" for one in self._constants[1:])
        if with_payload:
            self._constants += (_PAYLOAD,)
            layout += f"{len(_PAYLOAD)}sI"
        self._layout = struct.Struct(layout)
        self._parts: list[Any] = [part for constant in self._constants for part in (constant, 0)]
        self._values_of = registration.values_of
        self.size = self._layout.size
        self.key = head[:KEY_BYTES]

    def encode(self, message: Any, ident: bytes, payload: Any) -> bytes:
        """The frame; struct.error when a number does not fit."""
        parts = self._parts.copy()
        parts[1] = ident
        if not self.with_payload:
            parts[3::2] = self._values_of(message)
            return self._layout.pack(*parts)
        parts[3:-1:2] = self._values_of(message)
        parts[-1] = len(payload)
        return b"".join((self._layout.pack(*parts), payload))

    def decode(self, frame: Any) -> tuple[Any, bytes, tuple[bytes, ...]] | None:
        """Message, request id and payload; None if the frame does not fit the template."""
        if len(frame) < self.size:
            return None
        parts = self._layout.unpack_from(frame)
        if parts[::2] != self._constants:
            return None
        if not self.with_payload:
            return (self.cls(*parts[3::2]), parts[1], ()) if len(frame) == self.size else None
        if len(frame) - self.size != parts[-1]:
            return None
        return self.cls(*parts[3:-1:2]), parts[1], (bytes(frame[self.size :]),)


BY_CLASS: dict[type, tuple[Template, Template]] = {}
"""Of each message of numbers alone: its templates without and with payload."""

BY_KEY: dict[bytes, Template] = {}
"""Templates by the first KEY_BYTES of a frame."""


def add(*classes: type) -> None:
    """Make templates for these messages; ValueError if one has other fields than numbers."""
    for cls in classes:
        registration = messages.registration(cls)
        if registration.plain is None or any(kind is not int for kind in registration.plain):
            raise ValueError(f"{cls.__name__} is not of numbers alone")
        both = Template(registration, False), Template(registration, True)
        BY_CLASS[cls] = both
        for template in both:
            if template.key in BY_KEY:
                raise ValueError(f"the templates of two messages start with {template.key!r}")
            BY_KEY[template.key] = template

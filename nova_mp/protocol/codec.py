"""Messages to frames and back.

The first frame is a msgpack map {"t": type, "v": version, "id": request id, ...fields}. Payload,
bulk data that belongs to a message, follows in frames of its own, which are not copied; if it is
small it is in the map, as "p": one frame less costs a message less than a copy of some KiB.

A batch is one frame with many such maps: {"t": "batch", "v": version, "of": [map, ...]}; those have
no version and no payload outside. "o", in a request or in a batch, is for `cluster/worker.py`.

Decoding trusts nothing: it checks sizes, type name, version, and each field's presence and type,
and raises ProtocolError. A message of a batch that does not fit harms none of the others. Strings
that are not UTF-8 travel by surrogate escapes, as in `os.fsdecode`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgpack

from nova_mp.errors import NovaError, ProtocolError, VersionMismatch
from nova_mp.protocol import messages, templates

HEADER_BYTES_MAX = 16 << 20
PAYLOAD_BYTES_MAX = 256 << 20
PAYLOAD_FRAMES_MAX = 1024
REQUEST_ID_BYTES = 24
"""A client's UUID (16 bytes) and its sequence number (8 bytes, big-endian)."""

INLINE_BYTES_MAX = 32 << 10
"""Payload of a message up to this size is in the map; larger is cheaper to lend than to copy."""

BATCH_MESSAGES_MAX = 128
BATCH = "batch"
"""The type of a frame with many messages."""

Buffer = bytes | bytearray | memoryview
_NO_ID = b""
# One for all: packing does not give up the GIL, and making a packer costs more than most messages.
_packer = msgpack.Packer(use_bin_type=True, unicode_errors="surrogateescape")


class Envelope(NamedTuple):
    """A decoded message with its request id (empty when nobody waits for it) and its payload.

    `oldest` is None, or the lowest sequence number that the sender waited for when it sent this.
    """

    message: Any
    request_id: bytes
    payload: Sequence[Buffer]
    oldest: int | None = None


class Rejected(NamedTuple):
    """A message of a batch that does not fit, its request id if that can be read, and why."""

    request_id: bytes
    error: NovaError


def request_id(client: bytes, sequence: int) -> bytes:
    """Unique id of a client's request; sending it again means the same request."""
    return client + sequence.to_bytes(8, "big")


def client_of(request_id: bytes) -> bytes:
    """The client that made a request id."""
    return request_id[:16]


def sequence_of(request_id: bytes) -> int:
    """The sequence number in a request id."""
    return int.from_bytes(request_id[16:], "big")


# ------------------------------------------------------------------------------------- encoding


def fits_batch(payload: Sequence[Buffer]) -> bool:
    """Whether a message with this payload can be one of a batch."""
    return not payload or sum(map(len, payload)) <= INLINE_BYTES_MAX


def encode(
    message: Any, request_id: bytes = b"", payload: Sequence[Buffer] = (), oldest: int | None = None
) -> list[Buffer]:
    """Frames of `message`. Payload that is not small is passed on, not copied."""
    both = templates.BY_CLASS.get(type(message))
    if both is not None and oldest is None and len(request_id) == REQUEST_ID_BYTES:
        try:
            if not payload:
                return [both[0].encode(message, request_id, b"")]
            if len(payload) == 1 and len(payload[0]) <= INLINE_BYTES_MAX:
                return [both[1].encode(message, request_id, payload[0])]
        except struct.error:
            # A number that a template has no room for: what follows says whether it may be sent.
            both = None
    registration = messages.registration(type(message))
    fields = {"t": registration.type_name, "v": messages.VERSION, "id": request_id}
    fields.update(zip(registration.names, registration.values_of(message), strict=True))
    if oldest is not None:
        fields["o"] = oldest
    if not payload:
        return [_packer.pack(fields)]
    if sum(map(len, payload)) <= INLINE_BYTES_MAX:
        fields["p"] = payload
        return [_packer.pack(fields)]
    return [_packer.pack(fields), *payload]


def check(message: Any) -> None:
    """Raise OverflowError, TypeError or ValueError for a message that has no encoding."""
    _packer.pack(messages.registration(type(message)).values_of(message))


def encode_batch(
    several: Iterable[tuple[Any, bytes, Sequence[Buffer]]], oldest: int | None = None
) -> Buffer:
    """The one frame of a batch of (message, request id, small payload)."""
    maps = []
    for message, ident, payload in several:
        registration = messages.registration(type(message))
        fields = {"t": registration.type_name, "id": ident}
        fields.update(zip(registration.names, registration.values_of(message), strict=True))
        if payload:
            fields["p"] = payload
        maps.append(fields)
    whole = {"t": BATCH, "v": messages.VERSION, "of": maps}
    if oldest is not None:
        whole["o"] = oldest
    packed: bytes = _packer.pack(whole)
    return packed


# ------------------------------------------------------------------------------------- decoding


def _unpack(header: Buffer) -> dict[str, Any]:
    try:
        fields = msgpack.unpackb(
            header, raw=False, use_list=False, strict_map_key=True, unicode_errors="surrogateescape"
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"message is not msgpack: {error}") from error
    if type(fields) is not dict:
        raise ProtocolError("message is not a map")
    return fields


def _unpack_frames(frames: Sequence[Buffer]) -> dict[str, Any]:
    """The map in the first frame, of our version, if all frames have sizes that are allowed."""
    if not 1 <= len(frames) <= 1 + PAYLOAD_FRAMES_MAX:
        raise ProtocolError(f"message of {len(frames)} frames")
    if len(frames[0]) > HEADER_BYTES_MAX:
        raise ProtocolError(f"message header of {len(frames[0])} bytes")
    if len(frames) > 1 and sum(map(len, frames)) - len(frames[0]) > PAYLOAD_BYTES_MAX:
        raise ProtocolError("message payload is too large")
    fields = _unpack(frames[0])
    version = fields.pop("v", None)
    if version != messages.VERSION:
        raise VersionMismatch(
            f"message of protocol version {version!r:.40}, this package speaks {messages.VERSION}",
            "use the same version of nova_mp on both sides",
        )
    return fields


def decode(frames: Sequence[Buffer]) -> Envelope:
    """The message in `frames`; raises ProtocolError, or VersionMismatch for another version."""
    fields = _unpack_frames(frames)
    oldest = _oldest(fields.pop("o", None))
    return _envelope(fields, frames[1:], oldest)


def decode_all(frames: Sequence[Buffer]) -> Sequence[Envelope | Rejected]:
    """The message in `frames`, or those of the batch that it is; raises as `decode` does."""
    if len(frames) == 1:
        template = templates.BY_KEY.get(bytes(frames[0][: templates.KEY_BYTES]))
        decoded = None if template is None else template.decode(frames[0])
        if decoded is not None:
            # As Envelope(...) does it, in half the time.
            return (tuple.__new__(Envelope, (*decoded, None)),)
    fields = _unpack_frames(frames)
    oldest = _oldest(fields.pop("o", None))
    if fields.get("t") != BATCH:
        return (_envelope(fields, frames[1:], oldest),)
    several = fields.pop("of", None)
    if type(several) is not tuple or not 1 <= len(several) <= BATCH_MESSAGES_MAX:
        raise ProtocolError(f"a batch is of 1 to {BATCH_MESSAGES_MAX} messages")
    if len(frames) > 1 or len(fields) > 1:
        raise ProtocolError("a batch has nothing but messages")
    found: list[Envelope | Rejected] = []
    for one in several:
        ident = one.get("id", _NO_ID) if type(one) is dict else _NO_ID
        try:
            if type(one) is not dict:
                raise ProtocolError("message is not a map")
            found.append(_envelope(one, (), oldest))
        except ProtocolError as error:
            found.append(Rejected(ident if _is_id(ident) else _NO_ID, error))
    return found


def _oldest(value: Any) -> int | None:
    if value is not None and (type(value) is not int or value < 0):
        raise ProtocolError("bad sequence number")
    return value


def _envelope(fields: dict[str, Any], payload: Sequence[Buffer], oldest: int | None) -> Envelope:
    """The message of a map, which it takes apart."""
    take = fields.pop
    registration = messages.registration_by_name(take("t", None))
    ident: Any = take("id", _NO_ID)
    if ident != _NO_ID and not _is_id(ident):
        raise ProtocolError("bad request id")
    inline = take("p", None)
    if inline is not None:
        if payload or type(inline) is not tuple or len(inline) > PAYLOAD_FRAMES_MAX:
            raise ProtocolError("bad payload")
        for part in inline:
            if type(part) is not bytes:
                raise ProtocolError("bad payload")
        payload = inline
    # Most messages have all their fields, and those are numbers: two looks and no loop.
    message = None
    if registration.plain is not None and len(fields) == len(registration.names):
        try:
            values = registration.pick(fields)
            if tuple(map(type, values)) == registration.plain:
                message = registration.cls(*values)
        except KeyError:
            # Another field in place of one: what is wrong is said below.
            message = None
    if message is None:
        message = _checked(registration, fields)
    return tuple.__new__(Envelope, (message, ident, payload, oldest))


def _is_id(ident: Any) -> bool:
    return type(ident) is bytes and len(ident) == REQUEST_ID_BYTES


def _checked(registration: messages.Registration, fields: dict[str, Any]) -> Any:
    """The message of these fields, each looked at; raises ProtocolError."""
    values = []
    for field in registration.fields:
        value = fields.pop(field.name, field.default)
        if value is messages.MISSING:
            raise ProtocolError(f"{registration.type_name}: field '{field.name}' is missing")
        if not field.check(value):
            raise ProtocolError(
                f"{registration.type_name}: field '{field.name}' is not {field.annotation}"
            )
        values.append(value)
    if fields:
        raise ProtocolError(f"{registration.type_name}: unknown field {min(map(str, fields))!r}")
    return registration.cls(*values)


def peek_request_id(frames: Sequence[Buffer]) -> bytes:
    """Request id of a message that may be malformed, so that its sender can be told; else b""."""
    if not frames or len(frames[0]) > HEADER_BYTES_MAX:
        return _NO_ID
    try:
        ident: Any = _unpack(frames[0]).get("id")
    except ProtocolError:
        return _NO_ID
    return bytes(ident) if _is_id(ident) else _NO_ID

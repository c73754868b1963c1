"""Messages to frames and back.

The first frame is a msgpack map {"t": type, "v": version, "id": request id, ...fields}; any further
frames are raw payload, for bulk data that is not to be copied into the map. Decoding trusts
nothing: it checks sizes, type name, version, and each field's presence and type, and raises
ProtocolError. Strings that are not UTF-8 travel by surrogate escapes, as in `os.fsdecode`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack

from nova_mp.errors import ProtocolError, VersionMismatch
from nova_mp.protocol import messages

HEADER_BYTES_MAX = 16 << 20
PAYLOAD_BYTES_MAX = 256 << 20
PAYLOAD_FRAMES_MAX = 1024
REQUEST_ID_BYTES = 24
"""A client's UUID (16 bytes) and its sequence number (8 bytes, big-endian)."""

Buffer = bytes | bytearray | memoryview


class Envelope(NamedTuple):
    """A decoded message with its request id (empty when nobody waits for it) and its payload."""

    message: Any
    request_id: bytes
    payload: Sequence[Buffer]


def request_id(client: bytes, sequence: int) -> bytes:
    """Unique id of a client's request; sending it again means the same request."""
    return client + sequence.to_bytes(8, "big")


def client_of(request_id: bytes) -> bytes:
    """The client that made a request id."""
    return request_id[:16]


def encode(message: Any, request_id: bytes = b"", payload: Sequence[Buffer] = ()) -> list[Buffer]:
    """Frames of `message`. Payload buffers are passed on, not copied."""
    registration = messages.registration(type(message))
    fields: dict[str, Any] = {
        "t": registration.type_name,
        "v": messages.VERSION,
        "id": request_id,
    }
    for field in registration.fields:
        fields[field.name] = getattr(message, field.name)
    header = msgpack.packb(fields, use_bin_type=True, unicode_errors="surrogateescape")
    return [header, *payload]


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


def decode(frames: Sequence[Buffer]) -> Envelope:
    """The message in `frames`; raises ProtocolError, or VersionMismatch for another version."""
    if not 1 <= len(frames) <= 1 + PAYLOAD_FRAMES_MAX:
        raise ProtocolError(f"message of {len(frames)} frames")
    header, payload = frames[0], frames[1:]
    if len(header) > HEADER_BYTES_MAX:
        raise ProtocolError(f"message header of {len(header)} bytes")
    if sum(map(len, payload)) > PAYLOAD_BYTES_MAX:
        raise ProtocolError("message payload is too large")
    fields = _unpack(header)
    version = fields.pop("v", None)
    if version != messages.VERSION:
        raise VersionMismatch(
            f"message of protocol version {version!r:.40}, this package speaks {messages.VERSION}",
            "use the same version of nova_mp on both sides",
        )
    registration = messages.registration_by_name(fields.pop("t", None))
    ident = fields.pop("id", b"")
    if type(ident) is not bytes or len(ident) not in (0, REQUEST_ID_BYTES):
        raise ProtocolError("bad request id")
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
    return Envelope(registration.cls(*values), ident, payload)


def peek_request_id(frames: Sequence[Buffer]) -> bytes:
    """Request id of a message that may be malformed, so that its sender can be told; else b""."""
    if not frames or len(frames[0]) > HEADER_BYTES_MAX:
        return b""
    try:
        ident = _unpack(frames[0]).get("id")
    except ProtocolError:
        return b""
    return ident if type(ident) is bytes and len(ident) == REQUEST_ID_BYTES else b""

"""Messages to frames and back, and what is refused."""

from __future__ import annotations

import dataclasses
import pickle
import random
from typing import Any

import msgpack
import pytest

from nova_mp import errors
from nova_mp.protocol import codec, fileops, messages, templates

ID = codec.request_id(b"c" * 16, 7)
SAMPLES: dict[str, Any] = {
    "int": -5,
    "float": 2.5,
    "str": "n\u00e4me\udcff",
    "bytes": b"/p\xff",
    "bool": True,
    "tuple[str, ...]": ("a", "b"),
    "tuple[int, ...]": (1, 2),
    "dict[str, Any]": {"a": [1, None, {"b": b"x"}]},
    "tuple[dict[str, Any], ...]": ({"pid": 1},),
}


def sample(registration: messages.Registration) -> Any:
    values = []
    for field in registration.fields:
        annotation = field.annotation.split(" | ")[0]
        values.append(SAMPLES[annotation])
    return registration.cls(*values)


def as_sent(value: Any) -> Any:
    return tuple(map(as_sent, value)) if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("registration", messages.registrations(), ids=lambda r: r.type_name)
def test_every_message_survives_the_wire(registration: messages.Registration) -> None:
    message = sample(registration)
    frames = codec.encode(message, ID, [b"payload", memoryview(b"more")])
    envelope = codec.decode(frames)
    assert type(envelope.message) is registration.cls
    for field in registration.fields:
        got, sent = getattr(envelope.message, field.name), getattr(message, field.name)
        if isinstance(sent, dict):
            assert got.keys() == sent.keys()
        else:
            assert got == as_sent(sent)
    assert envelope.request_id == ID
    assert [bytes(frame) for frame in envelope.payload] == [b"payload", b"more"]


def test_small_payload_is_in_the_map_and_large_is_lent() -> None:
    small, large = b"x" * codec.INLINE_BYTES_MAX, bytearray(codec.INLINE_BYTES_MAX + 1)
    assert len(codec.encode(messages.Done(), ID, [small])) == 1
    frames = codec.encode(messages.Done(), ID, [large])
    assert frames[1] is large
    assert codec.fits_batch([small])
    assert not codec.fits_batch([large])


@pytest.mark.parametrize("cls", templates.BY_CLASS, ids=lambda cls: cls.__name__)
def test_templates_are_what_the_general_way_makes(cls: Any) -> None:
    for payload in ((), (b"abc",), (memoryview(b"abc"),), (b"",)):
        for number in (0, 1, -1, 2**31, 2**63 - 1, -(2**63)):
            message = cls(*[number] * len(messages.registration(cls).names))
            (frame,) = codec.encode(message, ID, payload)
            fields = msgpack.unpackb(frame)
            assert fields.pop("p", []) == [bytes(part) for part in payload]
            assert fields.pop("id") == ID
            again = [msgpack.packb({**fields, "id": ID, **({"p": payload} if payload else {})})]
            (found,) = codec.decode_all([frame])
            (general,) = codec.decode_all(again)
            assert found[:2] == general[:2] == (message, ID)
            assert isinstance(found, codec.Envelope)
            assert isinstance(general, codec.Envelope)
            assert list(found.payload) == list(general.payload) == [bytes(one) for one in payload]
            assert templates.BY_KEY[frame[: templates.KEY_BYTES]].decode(frame) is not None


def test_what_nearly_fits_a_template_is_looked_at_in_general() -> None:
    (frame,) = codec.encode(fileops.Pread(1, 2, 3), ID)
    for at in range(len(frame)):
        for bit in range(8):
            noise = bytearray(frame)
            noise[at] ^= 1 << bit
            try:
                (found,) = codec.decode_all([bytes(noise)])
            except (errors.ProtocolError, errors.VersionMismatch):
                continue
            assert isinstance(found, codec.Envelope)
            assert found != codec.Envelope(fileops.Pread(1, 2, 3), ID, ())
    huge = codec.encode(fileops.Pread(1, 2, 2**64 - 1), ID)
    assert codec.decode(huge).message == fileops.Pread(1, 2, 2**64 - 1)


def test_a_batch_survives_the_wire() -> None:
    several = [
        (fileops.Pwrite(1, 2), codec.request_id(b"c" * 16, 1), (b"abc", memoryview(b"d"))),
        (fileops.Stat(b"/x"), codec.request_id(b"c" * 16, 2), ()),
    ]
    found = codec.decode_all([codec.encode_batch(several, 1)])
    for one, (message, ident, payload) in zip(found, several, strict=True):
        assert isinstance(one, codec.Envelope)
        assert (one.message, one.request_id, one.oldest) == (message, ident, 1)
        assert [bytes(part) for part in one.payload] == [bytes(part) for part in payload]
    alone = codec.encode(fileops.Stat(b"/x"), ID, (), 5)
    assert codec.decode_all(alone) == (codec.Envelope(fileops.Stat(b"/x"), ID, [], 5),)


def batch(*maps: Any, **more: Any) -> list[bytes]:
    whole = {"t": "batch", "v": messages.VERSION, "of": maps, **more}
    return [msgpack.packb(whole, use_bin_type=True)]


def test_a_bad_message_harms_no_other_of_its_batch() -> None:
    good = {"t": "ping", "id": ID}
    bad = [5, {"t": "pong", "id": ID}, {"t": "ping", "id": b"?"}, {"t": "batch", "of": [good]}]
    first, *refused, last = codec.decode_all(batch(good, *bad, good))
    assert first == last == codec.Envelope(messages.Ping(), ID, ())
    assert [one.request_id for one in refused if isinstance(one, codec.Rejected)] == [
        b"", ID, b"", b""
    ]  # fmt: skip


@pytest.mark.parametrize(
    "frames",
    [
        batch(),
        batch(*[{"t": "ping"}] * (codec.BATCH_MESSAGES_MAX + 1)),
        batch({"t": "ping"}, more=1),
        batch({"t": "ping"}, o=-1),
        [*batch({"t": "ping"}), b"payload"],
    ],
)
def test_bad_batches_are_refused(frames: list[bytes]) -> None:
    with pytest.raises(errors.ProtocolError):
        codec.decode_all(frames)
    with pytest.raises(errors.ProtocolError):
        codec.decode(frames)


def test_messages_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        messages.Pong("one").engine_id = "two"


def packed(**fields: Any) -> list[bytes]:
    return [msgpack.packb({"v": messages.VERSION, "id": ID, **fields}, use_bin_type=True)]


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([], "0 frames"),
        ([b""], "not msgpack"),
        ([b"\xc1"], "not msgpack"),
        ([b"\x01"], "not a map"),
        ([b"\x81\x01\x01"], "not msgpack"),
        (packed(t="nonsense"), "unknown message type"),
        (packed(t=["ping"]), "unknown message type"),
        (packed(t="pong"), "'engine_id' is missing"),
        (packed(t="pong", engine_id=5), "'engine_id' is not str"),
        (packed(t="ping", extra=1), "unknown field"),
        (packed(t="snapshot-delete", epoch_id=True), "'epoch_id' is not int"),
        (packed(t="snapshot-delete", epoch_id=1, timeout_s=float("nan")), "'timeout_s'"),
        (packed(t="snapshot-create", name="x" * 70_000), "'name'"),
        (packed(t="ping", id=b"short"), "request id"),
        (packed(t="ping", o="1"), "sequence number"),
        (packed(t="ping", p=b"x"), "bad payload"),
        (packed(t="ping", p=[1]), "bad payload"),
        ([*packed(t="ping", p=[b"x"]), b"y"], "bad payload"),
        ([*packed(t="ping"), *[b""] * (codec.PAYLOAD_FRAMES_MAX + 1)], "frames"),
        ([b"\x91" * 5000], "not msgpack"),
    ],
)
def test_what_does_not_fit_is_refused(frames: list[bytes], reason: str) -> None:
    with pytest.raises(errors.ProtocolError, match=reason):
        codec.decode(frames)


def test_another_version_is_refused() -> None:
    with pytest.raises(errors.VersionMismatch):
        codec.decode([msgpack.packb({"t": "ping", "v": messages.VERSION + 1})])


@pytest.mark.parametrize("seed", range(20))
def test_noise_never_gives_anything_but_a_refusal(seed: int) -> None:
    rng = random.Random(seed)
    good = codec.encode(fileops.Open(b"/a/b", 2), ID)[0]
    for _ in range(500):
        noise = bytearray(good)
        for _ in range(rng.randrange(1, 6)):
            noise[rng.randrange(len(noise))] = rng.randrange(256)
        try:
            envelope = codec.decode([bytes(noise[: rng.randrange(len(noise) + 1)])])
        except (errors.ProtocolError, errors.VersionMismatch):
            continue
        assert dataclasses.is_dataclass(envelope.message)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file or directory", "/a"),
        OSError(39, "Directory not empty", b"/a", None, "/b"),
        ValueError("bad mode"),
        errors.NoSuchSnapshot("no snapshot 3", "list them"),
        errors.ArenaBusy("processes are attached", "stop with force"),
    ],
)
def test_errors_arrive_as_they_were(error: Exception) -> None:
    (frame,) = codec.encode(messages.error_reply(error))
    got = messages.error_of(codec.decode([frame]).message)
    assert type(got) is type(error)
    assert str(got) == str(error)
    for attribute in ("errno", "filename", "filename2", "reason", "remedy"):
        assert getattr(got, attribute, None) == getattr(error, attribute, None)


@pytest.mark.parametrize("kind", errors.NOVA_ERRORS.values(), ids=lambda kind: kind.__name__)
def test_nova_errors_pickle_and_speak(kind: type[errors.NovaError]) -> None:
    copy = pickle.loads(pickle.dumps(kind("because", "do this")))
    assert type(copy) is kind
    assert str(copy) == "because; do this"
    assert str(kind("because")) == "because"


def test_two_messages_cannot_share_a_name() -> None:
    with pytest.raises(TypeError, match="two messages"):
        messages.message("ping")(type("Other", (), {}))


@pytest.mark.parametrize(
    "error",
    [
        errors.ProtocolError("x" * 100_000),
        ValueError("x" * 100_000),
        RecursionError("x" * 100_000),
        OSError(5, "x" * 100_000, "y" * 100_000, None, b"z" * 3_000_000),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_that_quote_what_is_too_long_can_be_sent(error: Exception) -> None:
    frames = codec.encode(messages.error_reply(error), ID)
    reply = codec.decode(frames).message
    assert len(reply.reason) < 2000
    assert isinstance(messages.error_of(reply), Exception)

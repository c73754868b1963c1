"""The file-operation server: handles, views and sessions, and what strangers may send it."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model.worker import ModelCore

from nova_mp.cluster.fileops import FileOpServer
from nova_mp.errors import ProtocolError
from nova_mp.protocol import codec, messages
from nova_mp.protocol import fileops as ops

ONE, TWO = b"session one", b"session two"


class SnapshotCore(ModelCore):
    """A core whose only snapshot, 7, is the directory itself."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.closed = 0

    def snapshot_frees(self, epoch_ids: tuple[int, ...]) -> int:
        return 4096 * len(epoch_ids)

    def snapshot_open(self, epoch_id: int) -> Any:
        assert epoch_id == 7
        return self

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def core() -> Iterator[SnapshotCore]:
    with tempfile.TemporaryDirectory(prefix="nova-host-", dir="/dev/shm") as folder:
        yield SnapshotCore(folder)


@pytest.fixture
def server(core: SnapshotCore) -> Iterator[FileOpServer]:
    made = FileOpServer(core)
    yield made
    made.validate()
    made.close()
    assert made.counts() == {"sessions": 0, "files": 0, "views": 0}


def opened(server: FileOpServer, session: bytes, name: bytes = b"/f", view: int = 0) -> int:
    flags = os.O_RDONLY if view else os.O_RDWR | os.O_CREAT
    reply, _ = server.handle(session, ops.Open(name, flags, 0o600, view))
    return int(reply.handle)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_every_request_has_a_handler_and_a_reply(server: FileOpServer) -> None:
    requests = [
        found.cls
        for found in messages.registrations()
        if found.cls.__module__ == ops.__name__ and found.cls not in ops.REPLIES.values()
    ]
    assert set(requests) == set(ops.REPLIES)
    assert set(requests) == set(server._handlers)
    assert set(requests) > ops.RETRYABLE


def test_handles_end_with_their_session(server: FileOpServer) -> None:
    before = descriptors()
    mine = [opened(server, ONE, b"/f%d" % number) for number in range(5)]
    other = opened(server, TWO)
    assert len(set(mine)) == 5
    server.handle(ONE, ops.Close(mine[0]))
    server.validate()
    server.drop_session(ONE)
    server.validate()
    assert server.counts() == {"sessions": 1, "files": 1, "views": 0}
    server.handle(TWO, ops.Pwrite(other, 0), (b"still open",))
    with pytest.raises(OSError) as caught:
        server.handle(ONE, ops.Pread(mine[1], 1, 0))
    assert caught.value.errno == errno.ESTALE
    server.drop_session(TWO)
    server.drop_session(TWO)
    assert descriptors() == before


def test_a_handle_serves_all_sessions_of_a_client(server: FileOpServer) -> None:
    handle = opened(server, ONE)
    server.handle(TWO, ops.Pwrite(handle, 0), (b"shared",))
    reply, payload = server.handle(ONE, ops.Pread(handle, 100, 0))
    assert (reply.count, bytes(payload[0])) == (6, b"shared")
    server.handle(TWO, ops.Close(handle))
    server.validate()
    server.handle(ONE, ops.Close(handle))


def test_views_end_with_their_session(server: FileOpServer, core: SnapshotCore) -> None:
    opened(server, TWO)
    view = server.handle(ONE, ops.OpenView(7))[0].view
    handle = opened(server, ONE, b"/f", view)
    from_elsewhere = opened(server, TWO, b"/f", view)
    server.validate()
    server.handle(ONE, ops.CloseView(view))
    server.validate()
    for stale in (handle, from_elsewhere):
        with pytest.raises(OSError) as caught:
            server.handle(ONE, ops.StatFile(stale))
        assert caught.value.errno == errno.ESTALE
    with pytest.raises(OSError) as caught:
        server.handle(ONE, ops.Stat(b"/f", True, view))
    assert caught.value.errno == errno.ESTALE
    server.handle(ONE, ops.OpenView(7))
    server.drop_session(ONE)
    assert core.closed == 2


def test_a_failed_open_opens_nothing(server: FileOpServer) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        server.handle(ONE, ops.Open(b"/missing", os.O_RDONLY))
    assert caught.value.filename == b"/missing"
    assert server.counts() == {"sessions": 0, "files": 0, "views": 0}


def test_appends_need_a_file_opened_for_them(server: FileOpServer) -> None:
    handle = opened(server, ONE)
    with pytest.raises(ProtocolError):
        server.handle(ONE, ops.Append(handle), (b"x",))
    flags = os.O_WRONLY | os.O_APPEND
    end = server.handle(ONE, ops.Open(b"/f", flags))[0].handle
    assert server.handle(ONE, ops.Append(end), (b"abc",))[0] == ops.Written(3, 3)


def test_payload_in_several_frames_is_one_write(server: FileOpServer) -> None:
    handle = opened(server, ONE)
    server.handle(ONE, ops.Pwrite(handle, 1), (b"ab", memoryview(b"cd"), b"", b"e"))
    assert bytes(server.handle(ONE, ops.ReadFile(b"/f"))[1][0]) == b"\0abcde"
    server.handle(ONE, ops.Pwrite(handle, 0))


def test_sizes_are_limited(server: FileOpServer) -> None:
    handle = opened(server, ONE)
    with pytest.raises(ProtocolError):
        server.handle(ONE, ops.Pread(handle, ops.TRANSFER_BYTES_MAX + 1, 0))
    large = memoryview(bytes(ops.TRANSFER_BYTES_MAX // 2 + 1))
    with pytest.raises(ProtocolError):
        server.handle(ONE, ops.Pwrite(handle, 0), (large, large))
    server.handle(ONE, ops.TruncateFile(handle, ops.TRANSFER_BYTES_MAX + 1))
    with pytest.raises(OSError) as caught:
        server.handle(ONE, ops.ReadFile(b"/f"))
    assert caught.value.errno == errno.EFBIG
    # A large count costs no more memory than the file has bytes.
    server.handle(ONE, ops.TruncateFile(handle, 10))
    assert server.handle(ONE, ops.Pread(handle, ops.TRANSFER_BYTES_MAX, 3))[0] == ops.Data(7)
    assert server.handle(ONE, ops.Pread(handle, ops.TRANSFER_BYTES_MAX, 1 << 40))[0] == ops.Data(0)


def test_what_is_no_file_operation(server: FileOpServer) -> None:
    for stranger in (messages.Ping(), messages.Done(), ops.Data(1)):
        assert not server.handles(stranger)
        with pytest.raises(ProtocolError):
            server.handle(ONE, stranger)


VALUES = {
    "int": st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 5000),
    "bool": st.booleans(),
    "str": st.sampled_from(["user.a", "", "x" * 300, "user.\0"]),
    "bytes": st.sampled_from([b"/f", b"/", b"", b"/d/e", b"/\xff", b"/n" * 3000]),
    "tuple[int, ...]": st.lists(st.integers(-2, 2**63 - 1), max_size=4).map(tuple),
    "int | None": st.none() | st.integers(-(2**63), 2**63 - 1),
}
REQUESTS = st.sampled_from(sorted(set(ops.REPLIES) - {ops.OpenView}, key=lambda cls: cls.__name__))


@given(data=st.data())
def test_any_request_gets_its_reply_or_an_error(data: st.DataObject) -> None:
    """Values that no client of ours would send, through the codec, harm nobody."""
    with tempfile.TemporaryDirectory(prefix="nova-host-", dir="/dev/shm") as folder:
        # One level down, since the root is not safe from fs-rename and fs-remove-dir here.
        os.mkdir(f"{folder}/root")
        with contextlib.closing(FileOpServer(SnapshotCore(f"{folder}/root"))) as server:
            handle = opened(server, TWO)
            for _ in range(data.draw(st.integers(1, 8))):
                any_request(data, server, handle)
                server.validate()


def any_request(data: st.DataObject, server: FileOpServer, handle: int) -> None:
    """Draw a request, send it through the codec, and look at what comes back."""
    request = data.draw(REQUESTS)
    fields = {
        field.name: handle
        if field.name == "handle" and data.draw(st.booleans())
        else data.draw(VALUES[field.annotation])
        for field in messages.registration(request).fields
    }
    for name in {"size", "length", "offset"} & set(fields):
        # The machine's own tmpfs would really reserve what fs-fallocate asks for.
        fields[name] = min(fields[name], 1 << 20)
    message = codec.decode(codec.encode(request(**fields))).message
    try:
        reply, payload = server.handle(ONE, message, (b"payload",))
    except (OSError, ValueError, OverflowError, ProtocolError) as error:
        codec.encode(messages.error_reply(error))
    else:
        assert type(reply) is ops.REPLIES[request]
        codec.decode(codec.encode(reply, payload=payload))

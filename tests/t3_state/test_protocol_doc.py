"""docs/PROTOCOL.md lists every message with exactly its fields, and the replies that are given."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nova_mp.protocol import fileops, messages

DOC = Path(__file__).resolve().parents[2] / "docs" / "PROTOCOL.md"
ROW = re.compile(r"^\| `([a-z-]+)` \|(.*)\|$")
# Words in code type that are no fields: Python's names for what a field holds.
NOT_FIELDS = re.compile(r"os\.\S+|STAT_FIELDS")


def rows() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in DOC.read_text().splitlines():
        if match := ROW.match(line):
            assert match[1] not in found, f"{match[1]} stands in two tables"
            found[match[1]] = [cell.strip() for cell in match[2].split("|")]
    return found


ROWS = rows()
OURS = [r for r in messages.registrations() if r.cls.__module__.startswith("nova_mp.")]


def test_no_message_is_missing_or_made_up() -> None:
    assert set(ROWS) == {registration.type_name for registration in OURS}


@pytest.mark.parametrize("registration", OURS, ids=lambda r: r.type_name)
def test_fields_are_those_of_the_declaration(registration: messages.Registration) -> None:
    cells = ROWS[registration.type_name]
    # Tables of the control path say first who sends it to whom.
    content = cells[1] if "→" in cells[0] or cells[0].startswith(("reply", "event")) else cells[0]
    named = [word for word in re.findall(r"`([^`]+)`", content) if not NOT_FIELDS.match(word)]
    assert sorted(named) == sorted(field.name for field in registration.fields)


@pytest.mark.parametrize(
    "request_class", sorted(fileops.REPLIES, key=lambda c: c.__name__), ids=lambda c: c.__name__
)
def test_replies_to_file_operations(request_class: type) -> None:
    _, reply, again = ROWS[messages.registration(request_class).type_name]
    assert reply == f"`{messages.registration(fileops.REPLIES[request_class]).type_name}`"
    assert (again == "again") == (request_class in fileops.RETRYABLE)


def test_numbers() -> None:
    from nova_mp.client import connection, keys
    from nova_mp.cluster import ledger, worker
    from nova_mp.protocol import codec

    text = DOC.read_text()
    assert f"**Version** is {messages.VERSION}." in text
    assert f"is {codec.REQUEST_ID_BYTES} bytes" in text
    assert f"{codec.HEADER_BYTES_MAX >> 20} MiB header" in text
    assert f"{codec.PAYLOAD_BYTES_MAX >> 20} MiB payload" in text
    assert f"{codec.PAYLOAD_FRAMES_MAX:,} payload frames" in text
    assert f"the last {ledger.REPLIES_REMEMBERED:,}" in text
    assert f"{ledger.REQUESTS_MAX:,} requests wait" in text
    assert f"the last {worker.REPLIES_REMEMBERED} replies" in text
    assert f"{worker.SESSION_IDLE_S:.0f} s without a message" in text
    assert f"has {worker.SESSIONS_MAX:,} sessions at most" in text
    assert f"been idle for {connection.KEEP_ALIVE_S:.0f} s" in text
    assert f"heartbeats every {keys.HEARTBEAT_MS // 1000} s" in text
    assert f"drop it after {keys.HEARTBEAT_TIMEOUT_MS // 1000} s of silence" in text

"""nova-mp cat: print files."""

from __future__ import annotations

import base64
import sys
from typing import Any

import click

from nova_mp.cli.command import verb
from nova_mp.cli.operands import Arenas, Operand, OperandType
from nova_mp.cli.report import Refused, Report
from nova_mp.client.transfer import CHUNK_BYTES

JSON_BYTES_MAX = 256 << 20
"""The object takes several times as much memory while it is made."""


@verb(
    "cat",
    "print",
    examples="""
        nova-mp cat demo:/notes.txt
        nova-mp cat demo@first:/notes.txt     as it was in snapshot `first`
        nova-mp cat demo:/a demo:/b > both
    """,
)
@click.argument("operands", type=OperandType(), nargs=-1, required=True, metavar="NAME:/PATH...")
def command(report: Report, operands: tuple[Operand, ...]) -> dict[str, Any]:
    """Print files.

    With --json the contents are text where they are UTF-8, and base64 otherwise; of files up to
    256 MiB.
    """
    files = []
    with Arenas() as arenas:
        for operand in operands:
            with report.attempt(str(operand)), arenas.open(operand).open(operand.path) as file:
                if report.as_json:
                    files.append({"path": str(operand), **_contents(_all_of(file))})
                else:
                    _print(file)
    return {"files": files}


def _print(file: Any) -> None:
    sys.stdout.flush()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    while count := file.readinto(buffer):
        data = buffer[:count]
        while len(data):
            data = data[sys.stdout.buffer.write(data) :]
    sys.stdout.buffer.flush()


def _all_of(file: Any) -> bytes:
    try:
        data = bytes(file.read(JSON_BYTES_MAX + 1))
        if len(data) <= JSON_BYTES_MAX:
            return data
    except MemoryError:
        pass
    raise Refused("it is too large for a JSON object", "print it without --json, or copy it")


def _contents(data: bytes) -> dict[str, Any]:
    try:
        return {"encoding": "utf-8", "contents": data.decode()}
    except UnicodeDecodeError:
        return {"encoding": "base64", "contents": base64.b64encode(data).decode()}

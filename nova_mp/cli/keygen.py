"""nova-mp keygen: make keys for access by TCP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nova_mp.cli.command import verb
from nova_mp.cli.report import Refused, Report


@verb(
    "keygen",
    "make keys in",
    examples="""
        nova-mp keygen                          the engine's keys, and those of a first client
        nova-mp keygen --client laptop          keys for one more client
        nova-mp start demo --tcp 127.0.0.1:7000
        nova-mp ls tcp://127.0.0.1:7000:/
    """,
)
@click.option("--client", metavar="NAME", help="Make keys for one more client, and let it in.")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where; by default NOVA_MP_KEYS, or `keys` in the state directory.",
)
@click.option("--force", is_flag=True, help="Replace keys that there are; the old ones end.")
def command(
    report: Report, client: str | None, folder: Path | None, force: bool
) -> dict[str, Any] | None:
    """Make keys for access by TCP.

    The folder then holds engine.key; a NAME.key for each client, to be copied to where the client
    is; and authorized, the list of the clients that are let in. Take a line out of it to shut a
    client out. All of them are for you alone (mode 0600).
    """
    from nova_mp.client import keys

    place = keys.default_folder() if folder is None else folder.absolute()
    with report.attempt(str(place)):
        try:
            if client is None:
                files = keys.make_engine(place, force)
            else:
                files = keys.make_client(place, client, force)
        except FileExistsError as error:
            raise Refused(
                f"{error.filename} is there already",
                "replace it with --force, or make another client's with --client NAME",
            ) from None
        report.say("\n".join(f"written: {path}" for path in files))
        return {"folder": str(place), "files": [str(path) for path in files]}
    return None

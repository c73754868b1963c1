"""CURVE keys: what lets a client in over TCP, and what tells it that it talks to its engine.

A folder (mode 0700) holds `engine.key`, the engine's pair; a file `NAME.key` for each client, with
its own pair and the engine's public key, which is all that a client on another machine needs; and
`authorized`, the public keys that engines let in, one a line, each with its client's name. Keys are
32 bytes, written as 64 hexadecimal digits. Secret keys are in files of mode 0600, and one that
others may read is refused.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from nova_mp.core import segment
from nova_mp.errors import AccessRefused, NovaError

KEY_BYTES = 32
ENGINE = "engine"
CLIENT = "client"
"""The client whose keys are made along with the engine's, and used unless others are named."""

HEARTBEAT_MS = 5_000
HEARTBEAT_TIMEOUT_MS = 20_000
"""A TCP connection whose other side says nothing for so long, heartbeats included, is dead."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_REMEDY = "make keys with: nova-mp keygen"


@dataclass(frozen=True, slots=True, repr=False)
class Keys:
    """A pair of keys; a client's with the public key of the engine that it expects to meet.

    It has no text of its own, so that no secret gets into a log or a traceback.
    """

    public: bytes
    secret: bytes
    engine: bytes = b""


# ----------------------------------------------------------------------------------- the folder


def default_folder() -> Path:
    """Folder of the keys unless one is given: NOVA_MP_KEYS, or `keys` in the state directory."""
    if given := os.environ.get("NOVA_MP_KEYS"):
        return Path(given).absolute()
    return segment.state_root() / "keys"


def check_curve() -> None:
    """Raise NovaError when this ZeroMQ was built without CURVE (that is, without libsodium)."""
    if not zmq.has("curve"):
        raise NovaError(
            "the installed ZeroMQ has no CURVE, without which there is no access by TCP",
            "install pyzmq from a wheel, or build libzmq with libsodium",
        )


def make_engine(folder: Path, force: bool = False) -> list[Path]:
    """Make the engine's keys and those of a first client; gives back the files written.

    Raises FileExistsError when there are some, unless `force`: then all clients need new keys.
    """
    check_curve()
    _make_folder(folder)
    for path in (_file(folder, ENGINE), _file(folder, CLIENT), folder / "authorized"):
        if path.exists() and not force:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    public, secret = _pair()
    segment.write_json(_file(folder, ENGINE), {"public": public, "secret": secret})
    _write_authorized(folder, [])
    return [_file(folder, ENGINE), *make_client(folder, CLIENT, force=True)]


def make_client(folder: Path, name: str, force: bool = False) -> list[Path]:
    """Make keys for one more client, and let it in; gives back the files written.

    Raises FileExistsError when it has some, unless `force`: then its old ones let nobody in.
    """
    check_curve()
    if not _NAME.fullmatch(name) or name == ENGINE:
        raise ValueError(f"bad client name {name!r}: letters, digits, _ . - and not '{ENGINE}'")
    engine = _load(_file(folder, ENGINE))
    path = _file(folder, name)
    if path.exists() and not force:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    public, secret = _pair()
    wanted = {"public": public, "secret": secret, "engine": engine.public.hex()}
    segment.write_json(path, wanted)
    others = [line for line in _authorized_lines(folder) if line.split()[1:] != [name]]
    _write_authorized(folder, [*others, f"{public} {name}"])
    return [path, folder / "authorized"]


def load_engine(folder: Path) -> Keys:
    """The engine's keys. Raises NovaError when there are none, or when others may read them."""
    check_curve()
    return _load(_file(folder, ENGINE))


def load_client(place: str | os.PathLike[str] | None = None) -> Keys:
    """A client's keys: `place` is their file, or the folder with `client.key`; None: the default.

    Raises NovaError when there are none, or when others may read them.
    """
    check_curve()
    path = default_folder() if place is None else Path(place)
    found = _load(_file(path, CLIENT) if path.is_dir() or not path.exists() else path)
    if not found.engine:
        raise NovaError(f"{path} holds an engine's keys, not a client's", _REMEDY)
    return found


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.key"


def _pair() -> tuple[str, str]:
    public, secret = zmq.curve_keypair()
    return _decode(public), _decode(secret)


def _decode(z85: bytes) -> str:
    from zmq.utils import z85 as coding

    return bytes(coding.decode(z85)).hex()


def _make_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & 0o022:
        raise NovaError(f"others may write to {folder}", f"chmod 700 {folder}")


def _load(path: Path) -> Keys:
    data = segment.read_json(path)
    if data is None:
        raise NovaError(f"there are no keys at {path}", _REMEDY)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise NovaError(f"others may read the secret key in {path}", f"chmod 600 {path}")
    try:
        found = Keys(*(bytes.fromhex(data.get(key, "")) for key in ("public", "secret", "engine")))
    except (TypeError, ValueError):
        found = Keys(b"", b"")
    if {len(found.public), len(found.secret), len(found.engine) or KEY_BYTES} != {KEY_BYTES}:
        raise NovaError(f"{path} holds no keys", _REMEDY)
    return found


def _authorized_lines(folder: Path) -> list[str]:
    try:
        return (folder / "authorized").read_text().splitlines()
    except FileNotFoundError:
        return []


def _write_authorized(folder: Path, lines: list[str]) -> None:
    segment.write_text(folder / "authorized", "".join(f"{line}\n" for line in lines))


class Authorized:
    """The public keys that are let in, with the names of their clients; the file may change."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def name_of(self, public: bytes) -> str | None:
        """The client with this public key; None when it is not let in.

        The file is read each time, so that a client is let in or shut out without a restart.
        """
        for line in _authorized_lines(self._folder):
            key, _, name = line.partition(" ")
            if key.lower() == public.hex():
                return name.strip() or key
        return None


# ---------------------------------------------------------------------------------- the sockets


def watch_over(socket: Any) -> None:
    """Let a socket notice dead TCP connections: by heartbeats, which its peer answers."""
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS)


def unlock(socket: Any, address: str, keys: Keys | None) -> None:
    """Prepare a client's socket for `address`, before it connects; only TCP takes keys."""
    if not address.startswith("tcp://"):
        return
    if keys is None:
        raise AccessRefused(f"{address} is reached with keys only", _REMEDY)
    watch_over(socket)
    if "[" in address:
        socket.setsockopt(zmq.IPV6, 1)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
    socket.setsockopt(zmq.CURVE_SERVERKEY, keys.engine)

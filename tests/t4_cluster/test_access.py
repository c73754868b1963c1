"""Who gets in: sockets and segments are the owner's alone, and TCP takes keys."""

from __future__ import annotations

import itertools
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from t4_cluster.test_cli_engine import ok, run

import nova_mp
from nova_mp import config
from nova_mp.client import keys
from nova_mp.core import segment
from nova_mp.protocol import codec
from nova_mp.protocol import messages as m

_numbers = itertools.count()
CPUS = 1


def free_ports(count: int) -> int:
    """The first of `count` ports in a row that nobody listens at now."""
    for first in range(20_000 + os.getpid() % 20_000, 60_000, count):
        held = []
        try:
            for port in range(first, first + count):
                held.append(socket.socket())
                held[-1].bind(("127.0.0.1", port))
            return first
        except OSError:
            continue
        finally:
            for each in held:
                each.close()
    raise AssertionError("no free ports")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an engine's keys and those of a first client."""
    found = tmp_path_factory.mktemp("keys")
    keys.make_engine(found)
    return found


@pytest.fixture(scope="module")
def engine(arena_prefix: str, folder: Path) -> Iterator[nova_mp.Engine]:
    """An engine that listens on TCP as well."""
    name = f"{arena_prefix}tcp{next(_numbers)}"
    nova_mp.mkfs(name, "32MiB", cpus=CPUS)
    try:
        tcp = f"127.0.0.1:{free_ports(2 + CPUS)}"
        with nova_mp.start(name, tcp=tcp, keys=folder) as started:
            yield started
    finally:
        nova_mp.destroy(name, force=True)


def test_a_client_with_keys_gets_in(engine: nova_mp.Engine, folder: Path) -> None:
    assert engine.tcp_address is not None
    assert nova_mp.status(engine.name)["tcp_address"] == engine.tcp_address
    with nova_mp.connect(engine.tcp_address, keys=folder) as fs:
        fs.write_bytes("/far", b"away")
        assert fs.read_bytes("/far") == b"away"
        assert fs.snapshots.create("far").name == "far"
        fs.snapshots.delete("far")
    # Those of this machine need none.
    with nova_mp.connect(engine.name) as fs:
        assert fs.read_bytes("/far") == b"away"


def test_the_command_gets_in(engine: nova_mp.Engine, folder: Path) -> None:
    environment = {**os.environ, "NOVA_MP_KEYS": str(folder)}
    place = f"{engine.tcp_address}:/"
    assert ok("cp", "-", f"{place}told", input="by TCP", env=environment) == ""
    assert ok("cat", f"{place}told", env=environment) == "by TCP"
    assert "told" in ok("ls", place, env=environment)
    done = run("ls", place)
    assert done.returncode == 1
    assert "nova-mp keygen" in done.stderr


def test_without_keys_nothing_listens(engine: nova_mp.Engine, arena_prefix: str) -> None:
    empty = f"{arena_prefix}none"
    with pytest.raises(nova_mp.NovaError, match="nova-mp keygen"):
        nova_mp.start(engine.name, tcp="127.0.0.1:7000", keys=f"/nonexistent/{empty}")
    with pytest.raises(nova_mp.NovaError, match="nova-mp keygen"):
        nova_mp.connect(engine.tcp_address or "", keys=f"/nonexistent/{empty}")
    with pytest.raises(ValueError, match="bad address"):
        nova_mp.start(engine.name, tcp="nowhere", keys=keys.default_folder())


def test_a_client_that_is_not_listed_is_refused(
    engine: nova_mp.Engine, folder: Path, tmp_path: Path
) -> None:
    address = engine.tcp_address or ""
    file = keys.make_client(folder, "guest")[0]
    assert keys.load_client(file).engine == keys.load_client(folder).engine
    with nova_mp.connect(address, keys=file) as fs:
        assert isinstance(fs.listdir("/"), list)
    listed = folder / "authorized"
    lines = [line for line in listed.read_text().splitlines() if not line.endswith("guest")]
    listed.write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(nova_mp.AccessRefused, match="does not let these keys in") as caught:
        nova_mp.connect(address, keys=file)
    assert isinstance(caught.value, PermissionError)
    # Keys that were made for another engine.
    keys.make_engine(tmp_path / "other")
    with pytest.raises(nova_mp.AccessRefused, match="other keys"):
        nova_mp.connect(address, keys=tmp_path / "other")


def test_plain_sockets_are_not_answered(engine: nova_mp.Engine) -> None:
    places = config.tcp_endpoints(engine.tcp_address or "", CPUS)
    for address in (places.coordinator, *places.workers):
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.connect(address)
            hello = m.Hello(nova_mp.__version__)
            dealer.send_multipart(codec.encode(hello, codec.request_id(b"p" * 16, 1)))
            assert not dealer.poll(300)
    with zmq.Context() as context, context.socket(zmq.SUB) as subscriber:
        subscriber.setsockopt(zmq.SUBSCRIBE, b"")
        subscriber.connect(places.events)
        assert not subscriber.poll(300)


def test_sockets_and_segments_are_the_owners_alone(engine: nova_mp.Engine) -> None:
    runtime = config.runtime_path(engine.name)
    assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
    sockets = sorted(runtime.glob("*.sock"))
    assert len(sockets) == 2 + CPUS
    shared = [segment.pmem_path(engine.name), segment.dram_path(engine.name)]
    others = [runtime / "engine.json", runtime / "engine.log", runtime / "engine.lock"]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in sockets + shared + others}
    assert set(modes.values()) == {0o600}, modes


def test_key_files(tmp_path: Path) -> None:
    place = tmp_path / "keys"
    told = json.loads(ok("keygen", "--folder", str(place), "--json"))
    assert {Path(file).name for file in told["files"]} == {"engine.key", "client.key", "authorized"}
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in place.iterdir()} == {0o600}
    engine, client = keys.load_engine(place), keys.load_client(place)
    assert client.engine == engine.public
    assert keys.Authorized(place).name_of(client.public) == "client"
    assert keys.Authorized(place).name_of(engine.public) is None
    assert engine.secret.hex() not in repr(engine) + str(engine)

    refused = run("keygen", "--folder", str(place))
    assert refused.returncode == 1
    assert "--force" in refused.stderr
    assert keys.load_engine(place) == engine
    ok("keygen", "--folder", str(place), "--client", "second")
    assert run("keygen", "--folder", str(place), "--client", "second").returncode == 1
    before = keys.load_client(place / "second.key")
    ok("keygen", "--folder", str(place), "--client", "second", "--force")
    assert keys.Authorized(place).name_of(before.public) is None
    ok("keygen", "--folder", str(place), "--force")
    assert keys.load_engine(place) != engine
    assert keys.Authorized(place).name_of(client.public) is None


@pytest.mark.parametrize("wrong", ["mode", "contents", "length"])
def test_key_files_that_cannot_be_trusted(tmp_path: Path, wrong: str) -> None:
    keys.make_engine(tmp_path)
    path = tmp_path / "engine.key"
    if wrong == "mode":
        path.chmod(0o640)
    else:
        data: Any = {"public": "00", "secret": 5} if wrong == "contents" else {"public": "00" * 9}
        path.write_text(json.dumps(data))
    with pytest.raises(nova_mp.NovaError, match=r"others may read|holds no keys"):
        keys.load_engine(tmp_path)
    with pytest.raises(nova_mp.NovaError, match="not a client's"):
        keys.load_client(keys.make_engine(tmp_path / "other")[0])
    with pytest.raises(ValueError, match="bad client name"):
        keys.make_client(tmp_path / "other", "../up")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("tcp://127.0.0.1:{port}", "refused"),
        ("tcp://no-such-host.invalid:{port}", "nobody listens"),
    ],
)
def test_an_address_without_a_listener_is_told_at_once(
    folder: Path, address: str, reason: str
) -> None:
    began = time.monotonic()
    with pytest.raises(nova_mp.EngineNotRunning, match=reason):
        nova_mp.connect(address.format(port=free_ports(2 + CPUS)), keys=folder)
    # A resolver may try for a while, but not for the whole time limit of a request.
    assert time.monotonic() - began < 25


@pytest.mark.parametrize("address", ["tcp://", "tcp://host", "tcp://host:0", "tcp://host:port"])
def test_addresses_that_are_none(folder: Path, address: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        nova_mp.connect(address, keys=folder)


def test_ipv6(arena_prefix: str, folder: Path) -> None:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
    name = f"{arena_prefix}six"
    nova_mp.mkfs(name, "32MiB", 1)
    try:
        with (
            nova_mp.start(name, tcp=f"[::1]:{free_ports(3)}", keys=folder) as engine,
            nova_mp.connect(str(engine.tcp_address), keys=folder) as fs,
        ):
            fs.write_bytes("/file", b"six")
            assert fs.read_bytes("/file") == b"six"
            assert fs.snapshots.create().epoch_id == 1
    finally:
        nova_mp.destroy(name, force=True)

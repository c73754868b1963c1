"""Operation streams, and a whole load on a plain directory: no engine is needed for either."""

from __future__ import annotations

import os
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from nova_mp.bench import loadclient
from nova_mp.bench.histogram import Histogram
from nova_mp.bench.job import ClientGroup
from nova_mp.bench.loadclient import LoadClient, Target, clock
from nova_mp.bench.peers import DirectoryFileSystem, file_system_of, scratch_directory
from nova_mp.bench.pool import ClientFailed, Pool, SharedNumbers
from nova_mp.bench.records import RecordError
from nova_mp.bench.workload import Workload, make_stream


def group(**changes: Any) -> ClientGroup:
    values: dict[str, Any] = {
        "name": "g", "count": 1, "mode": "attached", "mix": (("read", 70.0), ("write", 30.0)),
        "block_bytes": 4096, "pattern": "random", "files": 2, "file_bytes": 65536,
    }
    return ClientGroup(**(values | changes))


def test_the_same_seed_gives_the_same_stream() -> None:
    assert make_stream(group(), 5) == make_stream(group(), 5)
    assert make_stream(group(), 5) != make_stream(group(), 6)


def test_a_random_pattern_touches_each_block_equally_often() -> None:
    places = Counter((step.file, step.block) for step in make_stream(group(), 1))
    assert len(places) == 32
    assert max(places.values()) - min(places.values()) <= 1


def test_a_sequential_pattern_goes_on() -> None:
    stream = make_stream(group(pattern="sequential"), 1)
    places = [step.file * 16 + step.block for step in stream]
    assert all((b - a) % 32 == 1 for a, b in pairwise(places))


def test_a_hot_pattern_has_hot_blocks() -> None:
    stream = make_stream(group(pattern="hot", files=10), 1)
    common = Counter((step.file, step.block) for step in stream).most_common(16)
    assert 0.85 < sum(count for _, count in common) / len(stream) < 0.95


def test_the_mix_is_kept() -> None:
    kinds = Counter(step.operation for step in make_stream(group(), 1))
    assert 0.67 < kinds["read"] / kinds.total() < 0.73


def test_every_operation_runs_on_a_directory(tmp_path: Path) -> None:
    mix = tuple((name, 1.0) for name in ("read", "write", "stat", "create", "rename", "fsync"))
    work = Workload(DirectoryFileSystem(str(tmp_path)), group(mix=mix), 0, 1)
    work.lay_out(verify=False)
    seen = set()
    for step in work.stream[:200]:
        function, arguments = work.bind(step)
        function(*arguments)
        seen.add(step.operation)
    work.close()
    assert len(seen) == 6
    assert sorted(os.listdir(tmp_path / "client-0")) == ["file-0", "file-1"]


def load_client(tmp_path: Path, marks: Any = None, **changes: Any) -> LoadClient:
    client = LoadClient(Target("directory", str(tmp_path)), group(**changes), 0, 1, marks)
    client.lay_out()
    return client


def test_a_closed_loop_counts_what_it_did(tmp_path: Path) -> None:
    client = load_client(tmp_path)
    start = clock() + 300_000_000
    result = client.measure(start, 20_000_000, 100_000_000)
    client.finish()
    service = Histogram.unpack(result["latency"]["service"])
    # How many calls fit is the machine's affair; that each is counted once is ours.
    assert result["operations"] == service.count > 0
    parts = [Histogram.unpack(one).count for one in result["by_operation"].values()]
    assert sum(parts) == service.count
    assert result["bytes"] == service.count * 4096
    assert result["began"] >= start + 20_000_000
    assert result["ended"] >= start + 120_000_000
    assert Histogram.unpack(result["latency"]["lag"]).max == 0


def test_a_second_measurement_goes_on_in_the_stream(tmp_path: Path) -> None:
    client = load_client(tmp_path)
    first = client.measure(clock(), 0, 20_000_000)
    second = client.measure(clock(), 0, 20_000_000)
    client.finish()
    for result in (first, second):
        counts = {k: Histogram.unpack(v).count for k, v in result["by_operation"].items()}
        assert sum(counts.values()) == result["operations"]


def test_an_open_loop_keeps_to_its_schedule(tmp_path: Path) -> None:
    client = load_client(tmp_path, rate=2000.0)
    result = client.measure(clock() + 300_000_000, 50_000_000, 100_000_000)
    client.finish()
    assert result["operations"] == 200


def test_a_slow_operation_delays_those_after_it_and_they_are_charged(tmp_path: Path) -> None:
    """A pause of 20 ms in one call of a loop at 1 ms: about 20 operations answer late."""
    client = load_client(tmp_path, rate=1000.0, mix=(("read", 1.0),))
    function, arguments = client.bound[30]
    ready = clock() + 300_000_000

    def slow(*values: Any) -> Any:
        loadclient.wait_until(clock() + 20_000_000)
        return function(*values)

    client.bound[30] = (slow, arguments)
    result = client.measure(ready, 0, 100_000_000)
    client.finish()
    latency = {name: Histogram.unpack(one) for name, one in result["latency"].items()}
    assert latency["service"].percentile(50) < 10_000_000
    assert latency["response"].percentile(90) > 5_000_000
    assert latency["response"].max >= 20_000_000


def test_a_poisson_schedule_has_the_rate(tmp_path: Path) -> None:
    client = load_client(tmp_path, rate=10_000.0, poisson=True)
    window = loadclient.Window(0, 0, 1_000_000_000)
    starts = list(client._schedule(window))
    client.finish()
    assert starts == sorted(starts)
    assert 9_500 < len(starts) < 10_500


def test_verification_checks_reads_and_all_blocks(tmp_path: Path) -> None:
    marks = SharedNumbers(2)
    client = load_client(tmp_path, marks)
    client.measure(clock(), 0, 50_000_000)
    assert client.check_live() == 32
    assert marks[0] == marks[1] == len(client.workload.recorder.history)
    client.finish()


def test_verification_sees_a_block_that_somebody_changed(tmp_path: Path) -> None:
    client = load_client(tmp_path, SharedNumbers(2))
    with open(tmp_path / "client-0" / "file-1", "r+b") as file:
        file.seek(5 * 4096 + 100)
        file.write(b"?")
    with pytest.raises(RecordError, match="file 1 block 5: torn"):
        client.check_live()
    with pytest.raises(RecordError):
        client.measure(clock(), 0, 500_000_000)
    client.finish()


def test_clients_in_processes(tmp_path: Path) -> None:
    target = Target("directory", str(tmp_path))
    arguments = [(target, group(), index, 1, None) for index in range(2)]
    with Pool(loadclient.main, arguments) as pool:
        assert pool.collect(60.0) == [None, None]
        pool.call("lay_out")
        results = pool.call("measure", clock() + 10_000_000, 0, 20_000_000)
        assert all(result["operations"] > 0 for result in results)
        with pytest.raises(ClientFailed, match="no_such_verb"):
            pool.call("no_such_verb")


def test_a_client_that_dies_is_named(tmp_path: Path) -> None:
    target = Target("directory", str(tmp_path))
    with Pool(loadclient.main, [(target, group(), 0, 1, None)]) as pool:
        pool.collect(60.0)
        pool.processes[0].kill()
        with pytest.raises(ClientFailed, match=r"client 0 died \(exit code -9\)"):
            pool.call("lay_out")


def test_a_client_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        Pool(loadclient.main, [(Target("directory", str(tmp_path)), None, 0, 1, None)]) as pool,
        pytest.raises(ClientFailed, match="AttributeError"),
    ):
        pool.collect(60.0)


def test_the_scratch_directory_goes_away(tmp_path: Path) -> None:
    with scratch_directory(str(tmp_path)) as where:
        (Path(where) / "left over").write_bytes(b"x")
        assert file_system_of(where) != "unknown"
    assert not os.path.exists(where)

"""What every test shares: the right build, places of its own for engines, names for arenas, the
file systems under test, and a look at what is left behind."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent
DEBUG_BUILD = ROOT / "build" / "debug"
DEBUG = os.environ.get("NOVA_MP_DEBUG", "") not in ("", "0")

if DEBUG:
    # First in the path, before any test's own folder, so that no test sees the optimised build.
    sys.path.insert(0, str(DEBUG_BUILD))

    import nova_mp

    if not Path(nova_mp.__file__).is_relative_to(DEBUG_BUILD):
        raise pytest.UsageError(f"NOVA_MP_DEBUG is set, but nova_mp comes from {nova_mp.__file__}")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background jobs so, and their children inherit it: nobody could interrupt them.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# An engine of its own for each test would be slow; one that is reused shows what it leaks.
ARENA_BYTES = 256 << 20
ARENA_CPUS = 2

hypothesis.settings.register_profile(
    "nova",
    # What replays a failure is printed with it. Time limits say nothing on a shared machine.
    print_blob=True,
    deadline=None,
    suppress_health_check=[
        # Tests that share a file system empty it themselves before each example.
        hypothesis.HealthCheck.function_scoped_fixture,
        hypothesis.HealthCheck.too_slow,
    ],
)
hypothesis.settings.load_profile("nova")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Choose the seed of all random examples, unless it was given, so that it can be printed."""
    if config.getoption("hypothesis_seed", default=None) is None:
        config.option.hypothesis_seed = random.SystemRandom().randrange(1 << 32)


def pytest_report_header(config: pytest.Config) -> str:
    return f"random examples: replay with --hypothesis-seed={config.option.hypothesis_seed}"


# --------------------------------------------------------------------------- nothing is left behind


def _segments(prefix: str) -> list[Path]:
    return sorted(Path("/dev/shm").glob(f"nova_mp.{prefix}*"))


def _processes(folder: str) -> list[psutil.Process]:
    """Processes of engines whose sockets are below `folder`, whoever started them."""
    found = []
    for process in psutil.process_iter():
        try:
            place = process.environ().get("NOVA_MP_RUNTIME_DIR", "")
            # Forked helpers of the tests (multiprocessing's, say) are not engines.
            engine = process.name().startswith("nova-") or any(
                word.startswith("nova_mp.workers") for word in process.cmdline()
            )
        except psutil.Error:
            continue
        if engine and place.startswith(folder):
            found.append(process)
    return found


@pytest.fixture(scope="session", autouse=True)
def private_places() -> Iterator[None]:
    """Sockets, logs and registry entries of this session go to a short directory of its own.

    Processes that still run there at the end are killed, and fail the session.
    """
    folder = tempfile.mkdtemp(prefix="nv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOVA_MP_RUNTIME_DIR", f"{folder}/run")
        patch.setenv("NOVA_MP_STATE_DIR", f"{folder}/state")
        yield
    left = _processes(folder)
    shown = [(process.pid, process.cmdline()) for process in left]
    for process in left:
        process.kill()
    sockets = sorted(str(path) for path in Path(folder).rglob("*.sock"))
    shutil.rmtree(folder, ignore_errors=True)
    assert not left, f"tests left processes behind: {shown}"
    assert not sockets, f"tests left sockets behind: {sockets}"


@pytest.fixture(scope="session")
def arena_prefix() -> Iterator[str]:
    """A prefix for arena names that no other session uses; segments left under it fail the run."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    prefix = f"t{os.getpid()}{worker}-"
    yield prefix
    left = _segments(prefix)
    for path in left:
        path.unlink(missing_ok=True)
    assert not left, f"tests left segments behind: {[path.name for path in left]}"


# --------------------------------------------------------------------------- the engine under test


@pytest.fixture(scope="session")
def engine(private_places: None, arena_prefix: str) -> Iterator[Any]:
    """A running engine with a small arena, for all tests of the session."""
    import nova_mp

    name = f"{arena_prefix}fs"
    nova_mp.mkfs(name, size=ARENA_BYTES, cpus=ARENA_CPUS)
    try:
        started = nova_mp.start(name)
        try:
            yield started
        finally:
            try:
                started.stop()
            except nova_mp.NovaError:
                # It does not stop in an orderly way: that is a failure, but no reason to leave it.
                nova_mp.crash(name)
                raise
    finally:
        nova_mp.destroy(name)


@pytest.fixture(scope="session")
def file_systems(engine: Any) -> Iterator[dict[str, Any]]:
    """One attached and one remote file system of the engine."""
    import nova_mp

    with nova_mp.attach(engine.name) as attached, nova_mp.connect(engine.name) as remote:
        yield {"attached": attached, "remote": remote}


@pytest.fixture(params=["attached", "remote"])
def fs(request: pytest.FixtureRequest, file_systems: dict[str, Any]) -> Iterator[Any]:
    """An empty file system, attached in one run of the test, and remote in another."""
    found = file_systems[request.param]
    _clear(found)
    yield found
    _clear(found)


@pytest.fixture
def attached(file_systems: dict[str, Any]) -> Iterator[Any]:
    """An empty file system, attached."""
    found = file_systems["attached"]
    _clear(found)
    yield found
    _clear(found)


@pytest.fixture
def pair(fs: Any) -> Iterator[Any]:
    """The file system under test, and a directory of tmpfs to compare it with."""
    from model.differential import Pair
    from model.host import HostFileSystem

    with tempfile.TemporaryDirectory(prefix="nova-host-", dir="/dev/shm") as folder:
        yield Pair(fs, HostFileSystem(folder))


def _clear(found: Any) -> None:
    for entry in list(found.scandir("/")):
        if entry.is_dir(follow_symlinks=False):
            found.rmtree(entry.path)
        else:
            found.unlink(entry.path)

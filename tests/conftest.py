"""What every test shares: the right build, places of its own for engines, names for arenas."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

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


def _segments(prefix: str) -> list[Path]:
    return sorted(Path("/dev/shm").glob(f"nova_mp.{prefix}*"))


@pytest.fixture(scope="session", autouse=True)
def private_places() -> Iterator[None]:
    """Sockets, logs and registry entries of this session go to a short directory of its own."""
    folder = tempfile.mkdtemp(prefix="nv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOVA_MP_RUNTIME_DIR", f"{folder}/run")
        patch.setenv("NOVA_MP_STATE_DIR", f"{folder}/state")
        yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def arena_prefix() -> Iterator[str]:
    """A prefix for arena names that no other session uses; segments left under it fail the run."""
    prefix = f"t{os.getpid()}-"
    yield prefix
    left = _segments(prefix)
    for path in left:
        path.unlink(missing_ok=True)
    assert not left, f"tests left segments behind: {[path.name for path in left]}"

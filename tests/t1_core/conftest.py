"""Arenas for the tests of mapped files."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from crashsim.arena import MIB, Arena, arena


@pytest.fixture
def a() -> Iterator[Arena]:
    with arena(16 * MIB) as opened:
        yield opened
        gc.collect()


@pytest.fixture(params=("userfaultfd", "signal"))
def protected(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Arena]:
    """An arena, with each kind of write protection."""
    if request.param == "signal":
        monkeypatch.setenv("NOVA_MP_MMAP_PROTECTION", "signal")
    with arena(16 * MIB) as opened:
        yield opened
        gc.collect()

"""Whatever an image holds, the checker reports and never raises; dump raises ImageError at most."""

from __future__ import annotations

import random

import pytest
from t0_layout.builder import BLOCK, K, Sample

from nova_mp.tools.fsck import check, format_report

SEEDS = range(8)
PER_SEED = 25
WORDS = (0, 1, 0xFF, 1 << 16, 0xFFFFFFFF, 1 << 40, (1 << 64) - 1, K["DATA_NR"] * BLOCK)


def used_offsets(data: bytes) -> list[int]:
    """Offsets of bytes that are not zero: damage elsewhere is mostly in free blocks."""
    return [offset for offset, byte in enumerate(data) if byte]


@pytest.fixture(scope="module")
def good() -> bytes:
    return bytes(Sample().data)


@pytest.fixture(scope="module")
def used(good: bytes) -> list[int]:
    return used_offsets(good)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_damage_never_raises(seed: int, good: bytes, used: list[int]) -> None:
    rng = random.Random(seed)
    for round_nr in range(PER_SEED):
        data = bytearray(good)
        for _ in range(rng.choice((1, 2, 5, 50))):
            offset = rng.choice(used)
            how = rng.randrange(3)
            if how == 0:
                data[offset] ^= 1 << rng.randrange(8)
            elif how == 1:
                data[offset] = rng.randrange(256)
            else:
                word = offset & ~7
                data[word : word + 8] = rng.choice(WORDS).to_bytes(8, "little")
        try:
            format_report(check(data))
        except Exception as error:
            raise AssertionError(f"seed {seed}, round {round_nr}") from error


@pytest.mark.parametrize("seed", SEEDS)
def test_swapped_blocks_never_raise(seed: int, good: bytes) -> None:
    rng = random.Random(seed)
    last = len(good) // BLOCK - 1
    for _ in range(PER_SEED // 5):
        data = bytearray(good)
        for _ in range(5):
            one, other = rng.randrange(K["DATA_NR"], last) * BLOCK, rng.randrange(last) * BLOCK
            data[one : one + BLOCK] = good[other : other + BLOCK]
        check(data)


@pytest.mark.parametrize(
    "size", [0, 1, 511, BLOCK, BLOCK + 1, 131 * BLOCK, 133 * BLOCK, 200 * BLOCK]
)
def test_short_images_are_reported(size: int, good: bytes) -> None:
    assert not check(good[:size]).ok
    assert not check(bytes(size)).ok


def test_noise_is_reported() -> None:
    noise = random.Random(1).randbytes(300 * BLOCK)
    assert check(noise).codes() == {"FSCK-101"}
    magic = K["MAGIC_SUPERBLOCK"].to_bytes(4, "little")
    version = K["FORMAT_VERSION"].to_bytes(4, "little")
    report = check(magic + noise[4:8] + version + noise[12:])
    assert "FSCK-102" in report.codes()

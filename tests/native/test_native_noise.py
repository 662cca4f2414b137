"""The extension's noise is that of graph/noise.py, bit for bit, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from scoregraph import _native
from scoregraph.graph import noise

pytestmark = pytest.mark.native

FEATURES = _native.cpu_features()
ISAS = [
    "scalar",
    *(["avx2"] if FEATURES.get("avx2") and FEATURES.get("fma") else []),
    *(["avx512"] if FEATURES.get("avx512f") and FEATURES.get("avx512dq") else []),
]

# Random123, kat_vectors: philox4x32 with 10 rounds.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, words):
    assert tuple(_native.philox4x32(counter, key)) == words


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("seed", "site", "micro"),
    [(0, 0, 0), (7, 1, 19), (2**64 - 1, 2**32 - 1, 2**32 - 1), (0x0123456789ABCDEF, 3, 1000)],
)
def test_a_quarter_million_normals_are_the_same_bits(isa, seed, site, micro):
    """Four streams of 250,001 numbers: a million values, and a length that ends within a Philox group."""
    count = 250_001
    found = np.frombuffer(_native.normals(seed, site, micro, count, isa), np.uint32)
    expected = noise.normals(seed, site, micro, count).view(np.uint32)
    assert np.array_equal(found, expected)


def test_the_largest_and_smallest_normals_are_the_same_bits():
    """The tails of the polynomials: of the first groups of 20,000 seeds, the hundred with the extreme values."""
    seeds = np.arange(20_000, dtype=np.uint64)
    expected = noise.normals(seeds, 0, 0, 4)
    order = np.argsort(np.abs(expected).max(axis=1))
    assert np.abs(expected).max() > 4
    for index in (*order[:50], *order[-50:]):
        found = np.frombuffer(_native.normals(int(seeds[index]), 0, 0, 4), np.uint32)
        assert np.array_equal(found, expected[index].view(np.uint32))


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match="avx9"):
        _native.normals(0, 0, 0, 4, "avx9")

"""The noise: Random123's known answers, accuracy of the polynomials, and the distribution."""

import numpy as np
import pytest
from scipy import stats

from scoregraph.graph import noise

# Random123 1.14, examples/kat_vectors, philox4x32 with 10 rounds: counter, key, answer.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


# normals(seed=7, site=3, micro=2, count=8), as the bits of float32.
GOLDEN = ["3d0529a3", "3bab53b4", "3faf7b1b", "be281df0", "bf601c50", "3f8fce13", "bd87314c", "3f2a77ea"]


def words(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter: str, key: str, answer: str):
    assert tuple(int(w) for w in noise.philox4x32(words(counter), words(key))) == words(answer)


def test_philox_broadcasts_over_counters():
    counters = np.arange(7, dtype=np.uint64)
    many = noise.philox4x32((counters, 0, 5, 9), (1, 2))
    for i in range(7):
        assert [int(w[i]) for w in many] == [int(w) for w in noise.philox4x32((i, 0, 5, 9), (1, 2))]


def all_uniforms() -> np.ndarray:
    """Every u the generator can make: the odd multiples of 2^-24 in (0, 1)."""
    return np.arange(1, 1 << 24, 2, dtype=np.uint32).astype(np.float32) * np.float32(2.0**-24)


def test_log_is_accurate_and_negative_on_every_uniform():
    u = all_uniforms()
    ours = noise.log_f32(u)
    exact = np.log(u.astype(np.float64))
    assert ours.dtype == np.float32
    assert (ours < 0).all()
    assert np.abs(ours / exact - 1).max() < 1e-7


def test_cos_and_sin_are_accurate_on_every_angle():
    for start in range(0, 1 << 24, 1 << 22):
        j = np.arange(start, start + (1 << 22), dtype=np.uint32)
        cosine, sine = noise.cos_sin_turn(j)
        angle = j.astype(np.float64) * (2 * np.pi * 2.0**-24)
        assert cosine.dtype == sine.dtype == np.float32
        assert np.abs(cosine - np.cos(angle)).max() < 1e-7
        assert np.abs(sine - np.sin(angle)).max() < 1e-7


def test_constants_are_the_float32_values_they_name():
    assert np.float32(noise.TURN) == np.float32(2 * np.pi * 2.0**-24)
    assert int(np.float32(np.sqrt(0.5)).view(np.int32)) == noise.SQRT_HALF_BITS


def test_golden_bits_never_change():
    """The first eight numbers of one stream, as bits. Every saved picture and every other backend depends on them."""
    z = noise.normals(seed=7, site=3, micro=2, count=8)
    assert [f"{int(b):08x}" for b in z.view(np.uint32)] == GOLDEN


def test_elements_do_not_depend_on_where_the_draw_starts():
    whole = noise.normals(11, 0, 0, 103)
    for start, count in [(0, 1), (1, 5), (3, 100), (4, 4), (99, 4), (102, 1)]:
        assert np.array_equal(noise.normals(11, 0, 0, count, start), whole[start : start + count])


def test_a_batch_of_seeds_is_each_seed_alone():
    seeds = noise.sample_seeds(2**64 - 2, 4)
    assert seeds.tolist() == [2**64 - 2, 2**64 - 1, 0, 1]
    batch = noise.normals(seeds, 5, 6, 50)
    assert batch.shape == (4, 50)
    for row, seed in zip(batch, seeds, strict=True):
        assert np.array_equal(row, noise.normals(int(seed), 5, 6, 50))


def test_elements_beyond_32_bits_have_their_own_counter():
    start = 4 * 2**32
    far = noise.normals(1, 0, 0, 8, start=start)
    assert not np.array_equal(far, noise.normals(1, 0, 0, 8))
    w = noise.philox4x32((0, 1, 0, 0), (1, 0))
    assert far[0] == noise.normal_pair(np.atleast_1d(w[0]), np.atleast_1d(w[1]))[0][0]


def test_the_distribution_is_standard_normal():
    n = 1 << 22
    z = noise.normals(20240229, 1, 4, n).astype(np.float64)
    # Four standard errors of each sample moment of a normal distribution.
    assert abs(z.mean()) < 4 / np.sqrt(n)
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((z**3).mean()) < 4 * np.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 4 * np.sqrt(96 / n)
    assert stats.kstest(z[: 1 << 18], "norm").pvalue > 0.001
    for limit in (3.0, 4.0, 4.5):
        expected = n * 2 * stats.norm.sf(limit)
        assert abs((np.abs(z) > limit).sum() - expected) < 4 * np.sqrt(expected)
    assert np.abs(z).max() < np.sqrt(2 * 24 * np.log(2)) + 1e-6


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 5, 8, 64])
def test_neighbours_are_uncorrelated(lag: int):
    z = noise.normals(9, 0, 0, 1 << 20).astype(np.float64)
    n = z.size - lag
    assert abs((z[:-lag] * z[lag:]).sum() / n) < 4.5 / np.sqrt(n)
    assert abs((z[:-lag] ** 2 * z[lag:] ** 2).sum() / n - 1) < 4.5 * np.sqrt(8 / n)


@pytest.mark.parametrize("other", [(4, 1, 1), (3, 2, 1), (3, 1, 2), (3 + 2**32, 1, 1), (3, 2**31, 1), (3, 1, 2**31)])
def test_seeds_sites_and_micro_steps_are_independent(other: tuple[int, int, int]):
    n = 1 << 19
    a = noise.normals(3, site=1, micro=1, count=n).astype(np.float64)
    b = noise.normals(other[0], site=other[1], micro=other[2], count=n).astype(np.float64)
    assert abs((a * b).mean()) < 4 / np.sqrt(n)
    assert abs((a**2 * b**2).mean() - 1) < 4 * np.sqrt(8 / n)

"""Integer weights: ranges, rounding, exact sums, the search for scales, and bf16 bits."""

import numpy as np
import pytest

from scoregraph.passes.quantize.integer_weights import RANGE, bf16_bits, integer_weights

RNG = np.random.default_rng(3)


def weights(*shape: int) -> np.ndarray:
    """Normal numbers, one channel of zeros, one with an outlier, and scales over six decades."""
    w = RNG.standard_normal(shape).astype(np.float32)
    w *= np.logspace(-3, 3, shape[0], dtype=np.float32).reshape(-1, *[1] * (len(shape) - 1))
    w[0] = 0.0
    w[1].flat[0] *= 50
    return w


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("dtype", RANGE)
@pytest.mark.parametrize(("shape", "block"), [((6, 96), 0), ((6, 96), 32), ((5, 8, 3, 3), 0)])
def test_weights_stay_in_range_and_their_sums_are_exact(dtype, shape, block, clip):
    w = weights(*shape)
    made = integer_weights(w, dtype, block, clip=clip)
    low, high = RANGE[dtype]
    assert made.q.shape == w.shape
    assert made.q.dtype == np.int8
    assert low <= made.q.min()
    assert made.q.max() <= high
    blocks = made.q.reshape(shape[0], -1, block or w[0].size)
    assert made.scale.shape == made.total.shape == blocks.shape[:2]
    np.testing.assert_array_equal(made.total, blocks.astype(np.int64).sum(axis=2))
    assert not made.q[0].any()
    assert (made.scale[0] == 0).all()


@pytest.mark.parametrize("dtype", ["i8", "i7", "i6"])
def test_every_weight_is_within_half_a_step(dtype):
    w = weights(6, 96)
    made = integer_weights(w, dtype, 32)
    step = np.repeat(made.scale, 32, axis=1)
    assert (np.abs(made.q * step - w) <= 0.5001 * step).all()
    assert np.abs(made.q).max() == RANGE[dtype][1], "the largest weight has the largest number"


def error(w: np.ndarray, made) -> np.ndarray:
    """The squared error of each block."""
    blocks = made.q.reshape(*made.scale.shape, -1) * made.scale[:, :, None].astype(np.float64)
    return np.square(blocks - w.reshape(blocks.shape)).sum(axis=2)


@pytest.mark.parametrize("dtype", RANGE)
def test_the_search_errs_no_more_than_the_largest_weight_as_the_end(dtype):
    w = weights(40, 96)
    plain, searched = (error(w, integer_weights(w, dtype, clip=clip)) for clip in (False, True))
    assert (searched <= plain * 1.001).all(), "up to float32 sums"
    if dtype in ("i4", "i2"):
        assert searched.sum() < 0.8 * plain.sum()


def test_the_level_beyond_the_largest_goes_to_the_longer_side():
    """-8 … 7 with a negative scale holds 0 … 8 as well as -8 … 0 does with a positive one."""
    w = np.array([[8.0, 3.0, -2.0, 1.0], [-8.0, -3.0, 2.0, -1.0]], np.float32)
    made = integer_weights(w, "i4", clip=True)
    assert made.scale[:, 0].tolist() == [-1.0, 1.0]
    np.testing.assert_array_equal(made.q * made.scale, w)


def test_bf16_bits_are_those_of_torch():
    torch = pytest.importorskip("torch")
    w = np.concatenate([weights(40, 96).ravel(), RNG.integers(0, 2**31 - 2**24, 4000, np.uint32).view(np.float32)])
    expected = torch.from_numpy(w).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(bf16_bits(w), expected)

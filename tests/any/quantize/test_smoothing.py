"""Smoothing: the expected error is the one that rounding makes, λ evens out channels, and products stay the same."""

from __future__ import annotations

import numpy as np
import pytest
import quantized_networks as q
from hypothesis import given
from hypothesis import strategies as st

import scoregraph as sg
from scoregraph.errors import CannotCalibrate
from scoregraph.passes.quantize.calibrate import Calibration
from scoregraph.passes.quantize.integer_weights import integer_weights
from scoregraph.passes.quantize.observe import Statistics, in_groups
from scoregraph.passes.quantize.smoothing import FLOOR, Looks, Smoothing, Weights, expected_error, smoothing_of

RNG = np.random.default_rng(3)
LABEL = np.linspace(-1.0, 1.0, 12).reshape(4, 3)


def channels(sizes: np.ndarray, looks: int = 3, rows: int = 400) -> np.ndarray:
    """Values [n, M, C] with channels of these sizes."""
    return RNG.standard_normal((looks, rows, len(sizes))) * sizes


def looked_at(x: np.ndarray) -> Looks:
    return Looks(np.minimum(x.min(axis=1), 0), np.maximum(x.max(axis=1), 0), np.square(x).mean(axis=1))


def rounded(x: np.ndarray) -> np.ndarray:
    """On a dynamic grid for each look, as docs/plan-format.md says."""
    low, high = np.minimum(x.min(axis=(1, 2)), 0), np.maximum(x.max(axis=(1, 2)), 0)
    scale = ((high - low) / 255)[:, None, None]
    zero = np.rint(-low[:, None, None] / scale)
    return scale * (np.clip(np.rint(x / scale) + zero, 0, 255) - zero)


def answer(x: np.ndarray, w: np.ndarray, factor: np.ndarray, block: int = 0) -> np.ndarray:
    made = integer_weights((w * factor).astype(np.float32), "i8", block)
    scale = np.repeat(made.scale, block or w.shape[1], axis=1)
    return rounded(x / factor) @ (made.q * scale).T


@pytest.mark.parametrize("block", [0, 32])
@pytest.mark.parametrize("spread", [0.0, 1.0, 2.0])
def test_the_expected_error_is_that_of_rounding(spread, block):
    sizes = np.exp(spread * RNG.standard_normal(64))
    x, w = channels(sizes), RNG.standard_normal((48, 64)) / 8
    looks, weights = looked_at(x), [Weights.of(w.astype(np.float32), block, 127)]
    for factor in (np.ones(64), sizes**0.5, sizes):
        measured = np.square(answer(x, w, factor, block) - x @ w.T).sum(axis=2).mean()
        assert expected_error(looks, weights, factor, 255) == pytest.approx(measured, rel=0.15)


def test_taps_of_a_kernel_count_each():
    """A convolution is a product with a row for each tap and channel."""
    w = RNG.standard_normal((8, 16, 3, 3)).astype(np.float32)
    looks = looked_at(channels(np.ones(16)))
    flat = Weights.of(w.transpose(0, 2, 3, 1).reshape(8, -1), 0, 127)
    tiled = Looks(*(np.tile(each, 9) for each in (looks.low, looks.high, looks.power)))
    found = expected_error(looks, [Weights.of(w, 0, 127)], np.ones(16), 255)
    assert found == pytest.approx(expected_error(tiled, [flat], np.ones(144), 255), rel=0.02)


def test_unlike_channels_gain_and_like_ones_have_no_factor():
    sizes = np.exp(2.0 * RNG.standard_normal(64))
    x, w = channels(sizes), RNG.standard_normal((48, 64)).astype(np.float32)
    chosen = smoothing_of(looked_at(x), [Weights.of(w, 0, 127)], 255)
    assert chosen is not None
    factor = np.array(chosen.factor)
    assert np.log(factor).mean() == pytest.approx(0.0, abs=1e-3)
    exact = x @ w.T
    plain, smooth = (q.sqnr(answer(x, w, each), exact) for each in (np.ones(64), factor))
    assert smooth > plain + 6
    even = Looks(-np.ones((1, 64)), np.ones((1, 64)), np.full((1, 64), 0.3))
    assert smoothing_of(even, [Weights.of(np.sign(w), 0, 127)], 255) is None


def test_a_strength_that_is_asked_for_is_taken():
    looks, weights = looked_at(channels(np.array([1.0, 4.0]))), [Weights.of(np.eye(2, dtype=np.float32), 0, 127)]
    chosen = smoothing_of(looks, weights, 255, alpha=1.0)
    assert chosen is not None
    assert (chosen.alpha, chosen.of) == (1.0, "largest")
    largest = np.maximum(looks.high, -looks.low).max(axis=0)
    assert chosen.factor[1] / chosen.factor[0] == pytest.approx(largest[1] / largest[0], rel=1e-3)


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_factors_are_bounded_whatever_is_silent(seed, alpha):
    """A channel that was all zeros, of values or of weights, has no factor that its later values could not bear."""
    rng = np.random.default_rng(seed)
    x = channels(np.exp(8 * rng.standard_normal(12)) * (rng.random(12) < 0.6))
    w = (rng.standard_normal((4, 12)) * (rng.random(12) < 0.6)).astype(np.float32)
    looks = looked_at(x)
    chosen = smoothing_of(looks, [Weights.of(w, 0, 127)], 255, alpha)
    if not looks.power.any():
        assert chosen is None
        return
    assert chosen is not None
    factor = np.array(chosen.factor)
    assert np.isfinite(factor).all()
    assert factor.min() > 0
    assert factor.max() / factor.min() <= 1.01 / FLOOR


def test_a_group_of_steps_has_one_extent():
    low, high = -RNG.random((2, 4, 3)).astype(np.float32), RNG.random((2, 4, 3)).astype(np.float32)
    seen = in_groups(Statistics(low, high, np.ones_like(low)), 2)
    for rows in (slice(0, 2), slice(2, 4)):
        np.testing.assert_array_equal(seen.low[:, rows], np.broadcast_to(low[:, rows].min(axis=(0, 1)), (2, 2, 3)))
        np.testing.assert_array_equal(seen.high[:, rows], np.broadcast_to(high[:, rows].max(axis=(0, 1)), (2, 2, 3)))


def compiled(kind: str, recipe: str, **options) -> sg.CompiledPlan:
    return sg.compile(q.guided(kind), device="reference", quant=recipe, **{"use_cache": False, **options})


def smooth_operands(plan: sg.CompiledPlan) -> list[str]:
    return [call.op for segment in plan.plan.segments for call in segment.calls if "smooth" in call.ins]


def test_convolutions_are_smoothed_unless_told_otherwise():
    plan = compiled("image", "w8a8")
    assert smooth_operands(plan)
    assert set(smooth_operands(plan)) <= {"group_norm", "quantize"}
    found = Calibration.from_json(plan.stages["quantization"])
    assert all(isinstance(each, Smoothing) for each in found.smoothing)
    exact = compiled("image", "none").run(label=LABEL)["sample"]
    smooth, plain = (
        q.sqnr(compiled("image", text).run(label=LABEL)["sample"], exact) for text in ("w8a8", "w8a8:smooth=no")
    )
    assert smooth > plain - 1, "channels of random weights are alike"
    assert not smooth_operands(compiled("image", "w8a8:smooth=no"))


def test_linear_layers_are_smoothed_when_asked_for():
    assert "quantization" not in compiled("tokens", "w8a8").stages, "nothing is looked at"
    plan = compiled("tokens", "w8a8:smooth=yes")
    assert smooth_operands(plan)
    assert q.sqnr(plan.run(label=LABEL)["sample"], compiled("tokens", "none").run(label=LABEL)["sample"]) > 35


def test_static_grids_are_of_smoothed_values():
    plan = compiled("image", "w8a8:groups=2")
    found = Calibration.from_json(plan.stages["quantization"])
    assert any(found.smoothing)
    assert Calibration.from_json(found.to_json()) == found
    exact = compiled("image", "none").run(label=LABEL)["sample"]
    assert q.sqnr(plan.run(label=LABEL)["sample"], exact) > 28


def test_what_nothing_bounds_is_not_smoothed_unless_asked_for():
    net = q.network("image")
    plan = sg.compile(net, device="reference", quant="w8a8", use_cache=False)
    assert not smooth_operands(plan)
    assert "nothing bounds" in plan.stages["smoothing"]
    with pytest.raises(CannotCalibrate, match="nothing bounds"):
        sg.compile(net, device="reference", quant="w8a8:smooth=yes", use_cache=False)
    given = sg.compile(net, device="reference", quant="w8a8", calibrate_on=q.example("image"), use_cache=False)
    assert smooth_operands(given)

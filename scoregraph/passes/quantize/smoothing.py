"""A factor for each channel of what products read, so that one grid serves channels of unlike size.

The product of v / λ and w λ, λ for each input channel, is that of v and w; what is rounded differs. λ moves the spread
of the channels from the values, which share a grid, into the weights (SmoothQuant, Xiao et al. 2023, eq. 4):

    λ_c = a_c^α / max|w_c|^(1 - α)        a: each channel's largest magnitude, or its root mean square

α and the statistic are those of the least expected error of the products' answers (AWQ, Lin et al. 2023, searches α by
running layers; here it is a closed form). Rounding to steps of s errs by s²/12 on average, and in a channel that lies
within half a step by no more than its power:

    of values     Σ_c min(s²/12, power_c/λ_c²) Σ_ok (λ_c w)²         s = (max_c high_c/λ_c - min_c low_c/λ_c) / A
    of weights    Σ_c power_c/λ_c² Σ_ok min(s_o²/12, (λ_c w)²)       s_o = max |λ w_o| / W
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scoregraph.passes.quantize.integer_weights import RANGE
from scoregraph.passes.quantize.observe import Floats, Statistics, in_groups
from scoregraph.passes.quantize.recipe import TOP, Recipe
from scoregraph.passes.quantize.sites import Selection
from scoregraph.plan.draft import Draft

ALPHAS = tuple(step / 20 for step in range(21))
"""The strengths that are tried."""

FLOOR = 1e-3
"""The least size of a channel, as a share of the largest one's: what was silent while looked at may yet speak."""

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Smoothing:
    """λ of the values of one site.

    Attributes:
        alpha: how much of the channels' spread goes into the weights.
        of: the statistic that tells a channel's size, ``largest`` or ``rms``.
        factor: λ of each channel; their geometric mean is 1.
    """

    alpha: float
    of: str
    factor: tuple[float, ...]


@dataclass(frozen=True)
class Weights:
    """What of a product's weights the expected error depends on.

    Attributes:
        largest, power: [O, C], the largest magnitude and the mean square over the taps of each output and channel.
        taps: of the kernel; 1 in a linear layer.
        block: channels that share a scale.
        top: the largest whole number.
    """

    largest: Doubles
    power: Doubles
    taps: int
    block: int
    top: int

    @classmethod
    def of(cls, w: Floats, block: int, top: int) -> Weights:
        """Of weights [O, C] or [O, C, kh, kw]; ``block`` 0: all channels share a scale."""
        taps = w.reshape(*w.shape[:2], -1).astype(np.float64)
        largest, power = np.abs(taps).max(axis=2), np.square(taps).mean(axis=2)
        return cls(largest, power, taps.shape[2], block or w.shape[1], top)


@dataclass(frozen=True)
class Looks:
    """What was seen of a value at n times: low and high [n, C] of the grid's extent, power [n, C]."""

    low: Doubles
    high: Doubles
    power: Doubles

    @classmethod
    def of(cls, statistics: Sequence[Statistics], groups: int) -> Looks:
        """All samples and rows that read the value, each with its own grid; with ``groups``, with its group's."""
        parts = [in_groups(each, groups) if groups else each for each in statistics]
        low, high, power = (
            np.concatenate([getattr(part, name).reshape(-1, part.low.shape[-1]) for part in parts])
            for name in ("low", "high", "power")
        )
        read = power.any(axis=1)
        return cls(*(each[read].astype(np.float64) for each in (low, high, power)))


def expected_error(looks: Looks, weights: Sequence[Weights], factor: Doubles, top: int) -> float:
    """The squared error of the products' answers that rounding is expected to make, summed over their outputs and
    averaged over the looks; the formula is above."""
    power = looks.power / factor**2
    step = ((looks.high / factor).max(axis=1) - (looks.low / factor).min(axis=1)) / top
    of_values = np.minimum(step[:, None] ** 2 / 12, power)
    total = 0.0
    for w in weights:
        scaled = w.power * factor**2
        step_of_block = (w.largest * factor).reshape(len(scaled), -1, w.block).max(axis=2) / w.top
        of_weights = np.minimum(np.repeat(step_of_block, w.block, axis=1) ** 2 / 12, scaled)
        total += w.taps * float((of_values @ scaled.sum(axis=0) + power @ of_weights.sum(axis=0)).mean())
    return total


def smoothing_of(looks: Looks, weights: Sequence[Weights], top: int, alpha: float | None = None) -> Smoothing | None:
    """λ of the least expected error; None where that is without one. ``alpha`` asks for a strength of the largest."""
    if not looks.power.any():
        return None
    largest = np.maximum(looks.high, -looks.low).max(axis=0)
    sizes = {"largest": largest, "rms": np.sqrt(looks.power.mean(axis=0))}
    of_weights = _floored(np.max([w.largest.max(axis=0) for w in weights], axis=0))
    if alpha is not None:
        return _rounded(alpha, "largest", _factor(_floored(largest), of_weights, alpha))
    best: Smoothing | None = None
    least = expected_error(looks, weights, np.ones(len(largest)), top)
    for of, size in sizes.items():
        for strength in ALPHAS:
            tried = _rounded(strength, of, _factor(_floored(size), of_weights, strength))
            error = expected_error(looks, weights, np.array(tried.factor), top)
            if error < least:
                best, least = tried, error
    return best


def smoothings(
    draft: Draft, recipe: Recipe, selection: Selection, statistics: Sequence[Statistics]
) -> tuple[Smoothing | None, ...]:
    """λ of each site that the recipe smooths; sites whose products share weights have the same."""
    found: list[Smoothing | None] = [None] * len(statistics)
    for sites, refs, op in families(draft, selection):
        if not recipe.smooths(op):
            continue
        block = recipe.block if op == "linear" else 0
        top = RANGE[recipe.weights_of(op)][1]
        weights = [Weights.of(draft.arrays[int(ref[1:])], block, top) for ref in refs]
        looks = Looks.of([statistics[i] for i in sites], recipe.groups)
        smoothing = smoothing_of(looks, weights, TOP[recipe.activations], recipe.alpha)
        for i in sites:
            found[i] = smoothing
    return tuple(found)


def families(draft: Draft, selection: Selection) -> list[tuple[list[int], list[str], str]]:
    """Sites and the weights of their products, in sets that have no weights in common; and the operation."""
    found: list[tuple[list[int], list[str], str]] = []
    for (segment, at), site in selection.products.items():
        call = draft.plan.segments[segment].calls[at]
        near = [each for each in found if site in each[0] or call.ins["w"] in each[1]]
        sites = dict.fromkeys([i for each in near for i in each[0]] + [site])
        refs = dict.fromkeys([ref for each in near for ref in each[1]] + [call.ins["w"]])
        found = [*(each for each in found if each not in near), (list(sites), list(refs), call.op)]
    return found


def _factor(size: Doubles, of_weights: Doubles, alpha: float) -> Doubles:
    raw = np.log(size) * alpha - np.log(of_weights) * (1 - alpha)
    return np.exp(raw - raw.mean())


def _floored(size: Doubles) -> Doubles:
    """No channel smaller than ``FLOOR`` of the largest; ones, if all are silent."""
    return np.maximum(size, FLOOR * size.max()) if size.any() else np.ones_like(size)


def _rounded(alpha: float, of: str, factor: Doubles) -> Smoothing:
    """To four digits: plans keep what they were made with as text."""
    return Smoothing(alpha, of, tuple(float(f"{each:.4g}") for each in factor))

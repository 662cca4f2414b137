"""Weights as small whole numbers with one scale per output channel, or per block of inputs of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

RANGE = {"i8": (-127, 127), "i7": (-63, 63), "i6": (-31, 31), "i4": (-8, 7), "i2": (-2, 1)}
"""The whole numbers of each type (docs/plan-format.md, Formats)."""

CLIPPED = np.linspace(1.0, 0.4, 13)
"""Shares of the largest magnitude that the search lets the range end at."""


@dataclass(frozen=True)
class IntegerWeights:
    """w ≈ q * scale.

    Attributes:
        q: int8, in the shape of the weights.
        scale: float32 [N, G], G blocks of each output's inputs.
        total: float32 [N, G], the exact sums of the whole numbers of each block.
    """

    q: NDArray[np.int8]
    scale: Floats
    total: Floats


def integer_weights(w: Floats, dtype: str, block: int = 0, *, clip: bool = False) -> IntegerWeights:
    """Weights rounded to nearest on a symmetric grid.

    Args:
        w: [N, K], or [O, I, kh, kw] with all of an output's weights in one block.
        dtype: a key of ``RANGE``.
        block: inputs that share a scale; 0: all of an output's.
        clip: search each block's scale for the least squared error. Types of few levels have one more on the negative
            side, so the search also tries a negative scale, which gives that level to the larger side.
    """
    outputs = w.shape[0]
    blocks = w.reshape(outputs, -1 if block else 1, block or w[0].size).astype(np.float32)
    low, high = RANGE[dtype]
    largest = np.abs(blocks).max(axis=2)
    scale = largest / np.float32(high)
    if clip:
        scale = _searched(blocks, largest, low, high)
    q = _rounded(blocks, scale, low, high)
    total = q.sum(axis=2, dtype=np.int64).astype(np.float32)  # below 2^24 in magnitude up to K = 132 000
    return IntegerWeights(q.astype(np.int8).reshape(w.shape), scale, total)


def _rounded(blocks: Floats, scale: Floats, low: int, high: int) -> Floats:
    """The nearest whole number of each weight, within the range; a block of zeros has scale 0."""
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale != 0.0)
    return np.clip(np.rint(blocks * inverse[:, :, None]), low, high)


def _searched(blocks: Floats, largest: Floats, low: int, high: int) -> Floats:
    """For each block the candidate scale whose rounding errs least."""
    best = largest / np.float32(high)
    least = np.full(largest.shape, np.inf)
    ends = [high] if low == -high else [high, -low, low]
    for end in ends:
        for share in CLIPPED:
            scale = (largest * np.float32(share / end)).astype(np.float32)
            error = np.square(_rounded(blocks, scale, low, high) * scale[:, :, None] - blocks).sum(axis=2)
            better = error < least
            best, least = np.where(better, scale, best), np.where(better, error, least)
    return best.astype(np.float32)


def bf16_bits(w: Floats) -> NDArray[np.uint16]:
    """float32 rounded to nearest even to bf16, as its bits."""
    bits = np.ascontiguousarray(w, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)

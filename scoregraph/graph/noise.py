"""Noise that is the same everywhere: Philox4x32-10 and one fixed polynomial for the normal distribution.

A normal number is a pure function of (seed of the sample, element, micro-step, site). There is no generator state, so
the batch, the tiling, the number of threads, the device and skipped draws cannot change it.

This file is the definition; every other backend ports it operation by operation and must reach the same bits. So each
float32 line below is one IEEE operation per operator, in the written order: multiply, add, subtract, correctly rounded
square root; never a fused multiply-add, never a library's log, cos or sin. All products of integers are exact.

Sources: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); the polynomials are those of Moshier's
Cephes library (logf, sinf, cosf).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

UInt32 = NDArray[np.uint32]
# Always float32 at run time (tested); numpy's type stubs widen float32 arithmetic, so the static type says less.
Float32 = NDArray[np.floating[Any]]

# Philox4x32: the multipliers of the two halves and the Weyl increments of the key.
PHILOX_M0 = 0xD2511F53
PHILOX_M1 = 0xCD9E8D57
PHILOX_W0 = 0x9E3779B9
PHILOX_W1 = 0xBB67AE85
PHILOX_ROUNDS = 10

# log(m) on [sqrt(1/2), sqrt(2)) with f = m - 1:  f - f*f/2 + f*f*f*P(f); P from the highest power down.
LOG_POLYNOMIAL = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
SQRT_HALF_BITS = 0x3F3504F3  # the bits of float32(sqrt(1/2))
# ln 2 in two parts: the high part has few bits, so that k * LN2_HIGH is exact for |k| < 2^15.
LN2_HIGH = 0.693359375
LN2_LOW = -2.12194440e-4

# sin(x) = x + x*z*S(z) and cos(x) = 1 - z/2 + z*z*C(z) on [-pi/4, pi/4] with z = x*x.
SIN_POLYNOMIAL = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COS_POLYNOMIAL = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
TURN = 3.7450704e-07  # float32(2 pi / 2^24): radians in one 2^-24th of a turn


def philox4x32(counter: tuple[ArrayLike, ...], key: tuple[ArrayLike, ...]) -> tuple[UInt32, UInt32, UInt32, UInt32]:
    """Four random words for a counter of four 32-bit words and a key of two; arrays broadcast."""
    c0, c1, c2, c3 = (np.asarray(word, dtype=np.uint64) for word in counter)
    k0, k1 = (np.asarray(word, dtype=np.uint64) for word in key)
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    for _ in range(PHILOX_ROUNDS):
        product0 = np.uint64(PHILOX_M0) * c0  # 32 x 32 -> 64 bits, exact
        product1 = np.uint64(PHILOX_M1) * c2
        c0, c1, c2, c3 = (product1 >> half) ^ c1 ^ k0, product1 & low, (product0 >> half) ^ c3 ^ k1, product0 & low
        k0 = (k0 + np.uint64(PHILOX_W0)) & low
        k1 = (k1 + np.uint64(PHILOX_W1)) & low
    return c0.astype(np.uint32), c1.astype(np.uint32), c2.astype(np.uint32), c3.astype(np.uint32)


def _horner(x: Float32, coefficients: tuple[float, ...]) -> Float32:
    """``(((c0*x + c1)*x + c2)*x + …)``, a multiply and an add per step, each rounded to float32."""
    total = np.full_like(x, np.float32(coefficients[0]))
    for coefficient in coefficients[1:]:
        total = total * x
        total = total + np.float32(coefficient)
    return total


def log_f32(u: Float32) -> Float32:
    """Natural logarithm of a normal positive float32, relative error below 1e-7 on (0, 1)."""
    bits = u.view(np.int32)
    # u = 2^k * m with m in [sqrt(1/2), sqrt(2)): the shift is arithmetic, so k is the floor.
    k = (bits - np.int32(SQRT_HALF_BITS)) >> np.int32(23)
    m = (bits - (k << np.int32(23))).view(np.float32)
    e = k.astype(np.float32)
    f = m - np.float32(1.0)
    z = f * f
    y = _horner(f, LOG_POLYNOMIAL)
    y = y * f
    y = y * z
    y = y + e * np.float32(LN2_LOW)
    y = y - z * np.float32(0.5)
    y = f + y
    return y + e * np.float32(LN2_HIGH)


def cos_sin_turn(j: UInt32) -> tuple[Float32, Float32]:
    """``cos(2 pi v), sin(2 pi v)`` for ``v = j * 2^-24``, 0 <= j < 2^24; absolute error below 1e-7."""
    # The nearest quarter turn is removed in integers, which is exact: |r| <= 2^21 is an eighth of a turn.
    quarter = (j + np.uint32(1 << 21)) >> np.uint32(22)  # 0 … 4
    r = j.astype(np.int32) - (quarter << np.uint32(22)).astype(np.int32)
    x = r.astype(np.float32) * np.float32(TURN)
    z = x * x
    s = _horner(z, SIN_POLYNOMIAL)
    s = s * z
    s = s * x
    s = s + x
    c = _horner(z, COS_POLYNOMIAL)
    c = c * z
    c = c * z
    c = c - z * np.float32(0.5)
    c = c + np.float32(1.0)
    # Quarter turns swap and negate: (c, s), (-s, c), (-c, -s), (s, -c). The sign is a multiplication by +1 or -1.
    swap = (quarter & np.uint32(1)) == 1
    cos_sign = np.float32(1.0) - ((quarter + np.uint32(1)) & np.uint32(2)).astype(np.float32)
    sin_sign = np.float32(1.0) - (quarter & np.uint32(2)).astype(np.float32)
    return np.where(swap, s, c) * cos_sign, np.where(swap, c, s) * sin_sign


def normal_pair(word_a: UInt32, word_b: UInt32) -> tuple[Float32, Float32]:
    """Two independent standard normals from two random words (Box and Muller); at most 5.77 in size."""
    odd = np.uint32(2) * (word_a >> np.uint32(9)) + np.uint32(1)
    u = odd.astype(np.float32) * np.float32(2.0**-24)  # in (0, 1), exact
    radius = np.sqrt(np.float32(-2.0) * log_f32(u))
    cosine, sine = cos_sin_turn(word_b >> np.uint32(8))
    return radius * cosine, radius * sine


def normals(seed: ArrayLike, site: int, micro: int, count: int, start: int = 0) -> Float32:
    """Standard normals of elements ``start … start+count-1`` of one noise site at one micro-step.

    ``seed`` is the sample's own 64-bit seed, or an array of them; the result has shape ``[*seed.shape, count]``.
    Elements are numbered row-major within the sample; ``site`` and ``micro`` are 32-bit.
    """
    seeds = np.asarray(seed, dtype=np.uint64)[..., None]
    first = start // 4
    groups = np.arange(first, (start + count + 3) // 4, dtype=np.uint64)
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    w0, w1, w2, w3 = philox4x32(
        (groups & low, groups >> half, np.uint64(micro), np.uint64(site)),
        (seeds & low, seeds >> half),
    )
    z0, z1 = normal_pair(w0, w1)
    z2, z3 = normal_pair(w2, w3)
    z = np.stack((z0, z1, z2, z3), axis=-1).reshape(*seeds.shape[:-1], -1)
    return z[..., start - 4 * first :][..., :count]


def sample_seeds(seed: int, batch: int) -> NDArray[np.uint64]:
    """The seeds of the samples of one run: sample i has ``seed + i`` modulo 2^64."""
    return np.array([(seed + i) % 2**64 for i in range(batch)], dtype=np.uint64)

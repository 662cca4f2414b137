"""The noise of ``scoregraph.graph.noise`` in torch: the same operations on int64 and float32 tensors, the same bits."""

from __future__ import annotations

import torch
from torch import Tensor

from scoregraph.graph import noise as definition

LOW = 0xFFFFFFFF


def philox4x32(counter: tuple[Tensor, ...], key: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random words; words are int64 tensors in 0 … 2^32 - 1 that broadcast.

    The 64-bit products wrap around in int64; their bits are right, so a mask after the arithmetic shift gives the high
    word.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(definition.PHILOX_ROUNDS):
        product0 = definition.PHILOX_M0 * c0
        product1 = definition.PHILOX_M1 * c2
        high0 = (product0 >> 32) & LOW
        high1 = (product1 >> 32) & LOW
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, product1 & LOW, high0 ^ c3 ^ k1, product0 & LOW
        k0 = (k0 + definition.PHILOX_W0) & LOW
        k1 = (k1 + definition.PHILOX_W1) & LOW
    return c0, c1, c2, c3


def _horner(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    total = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x
        total = total + coefficient
    return total


def log_f32(u: Tensor) -> Tensor:
    """Natural logarithm of float32 in (0, 1), by the definition's polynomial."""
    bits = u.view(torch.int32)
    k = (bits - definition.SQRT_HALF_BITS) >> 23
    m = (bits - (k << 23)).view(torch.float32)
    e = k.to(torch.float32)
    f = m - 1.0
    z = f * f
    y = _horner(f, definition.LOG_POLYNOMIAL)
    y = y * f
    y = y * z
    y = y + e * definition.LN2_LOW
    y = y - z * 0.5
    y = f + y
    return y + e * definition.LN2_HIGH


def cos_sin_turn(j: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of j 2^-24ths of a turn; j int64 in 0 … 2^24 - 1."""
    quarter = (j + (1 << 21)) >> 22
    x = (j - (quarter << 22)).to(torch.float32) * definition.TURN
    z = x * x
    s = _horner(z, definition.SIN_POLYNOMIAL)
    s = s * z
    s = s * x
    s = s + x
    c = _horner(z, definition.COS_POLYNOMIAL)
    c = c * z
    c = c * z
    c = c - z * 0.5
    c = c + 1.0
    swap = (quarter & 1) == 1
    cos_sign = 1.0 - ((quarter + 1) & 2).to(torch.float32)
    sin_sign = 1.0 - (quarter & 2).to(torch.float32)
    return torch.where(swap, s, c) * cos_sign, torch.where(swap, c, s) * sin_sign


def normal_pair(word_a: Tensor, word_b: Tensor) -> tuple[Tensor, Tensor]:
    """Two float32 normals from two words."""
    u = (2 * (word_a >> 9) + 1).to(torch.float32) * 2.0**-24
    # torch's float32 sqrt is not always correctly rounded on a CPU; a float64 one, rounded once more, is.
    radius = torch.sqrt((-2.0 * log_f32(u)).double()).float()
    cosine, sine = cos_sin_turn(word_b >> 8)
    return radius * cosine, radius * sine


def normals(seeds: Tensor, site: int, micro: int, count: int) -> Tensor:
    """float32 [B, count]: the normals of elements 0 … count-1 for the samples' seeds (int64 [B], bits of uint64)."""
    groups = torch.arange((count + 3) // 4, dtype=torch.int64)[None, :]
    seeds = seeds[:, None]
    counter = (groups & LOW, groups >> 32, torch.tensor(micro), torch.tensor(site))
    w0, w1, w2, w3 = philox4x32(counter, (seeds & LOW, (seeds >> 32) & LOW))
    z = torch.stack((*normal_pair(w0, w1), *normal_pair(w2, w3)), dim=-1)
    return z.reshape(len(seeds), -1)[:, :count]

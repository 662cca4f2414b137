"""Convolution with weights transformed for minimal filtering, as docs/plan-format.md writes it down."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

_B = {
    4: ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    3: ((1, -1, 0), (0, 1, 0), (0, 1, -1)),
}
"""Bᵀ by the number of positions along an axis."""

_A = {4: ((1, 1, 1, 0), (0, 1, -1, -1)), 3: ((1, 1, 0), (0, 1, -1))}
"""Aᵀ, likewise."""


def filtered(x: Tensor, w: Tensor, padding: Sequence[int]) -> Tensor:
    """The sums of a 3x3 convolution of stride 1 of ``x`` [n, I, H, W], for ``w`` [points, points, O, I].

    With 3 points, of x upsampled 2x2; ``padding`` (top, left, bottom, right) is 1 then.
    """
    points = len(w)
    step = 2 if points == 4 else 1
    top, left, bottom, right = padding
    repeat = 3 - step
    rows = x.shape[2] * repeat + top + bottom - 2
    columns = x.shape[3] * repeat + left + right - 2
    # An odd last output has a whole tile, too.
    x = functional.pad(x, (left, right + columns % 2, top, bottom + rows % 2))
    b, a = (torch.tensor(matrix[points], dtype=x.dtype) for matrix in (_B, _A))
    tiles = x.unfold(2, points, step).unfold(3, points, step)
    v = torch.einsum("pj,nihwjk,qk->pqnihw", b, tiles, b)
    m = torch.einsum("pqoi,pqnihw->pqnohw", w, v)
    y = torch.einsum("jp,pqnohw,kq->nohjwk", a, m, a)
    return y.flatten(4, 5).flatten(2, 3)[:, :, :rows, :columns]

"""Damaged copies of a module: the third branch of perturbed guidance (``guidance.slg``, ``pag``)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from scoregraph.errors import UnknownName, here


class Skipped(nn.Module):
    """Stands where a layer was and passes on what came first: the hidden state."""

    def forward(self, hidden: Any, *rest: Any, **options: Any) -> Any:
        """``hidden``."""
        return hidden


def without_layers(module: nn.Module, names: Sequence[str]) -> nn.Module:
    """A copy of ``module`` in which the submodules ``names`` do nothing (skip-layer guidance; Stability AI 2024).

    A name is a path as in ``named_modules()``: ``"transformer_blocks.7"``. A layer must take the hidden state first and
    answer one of the same shape. Weights that the copy shares with the module are stored once in a plan.

    Raises ``UnknownName``.
    """
    known = [name for name, _ in module.named_modules() if name]
    made = copy.deepcopy(module)
    for name in names:
        if name not in known:
            raise UnknownName(kind=f"layer of {type(module).__name__}", name=name, known=known, where=here())
        parent, _, last = name.rpartition(".")
        setattr(made.get_submodule(parent), last, Skipped())
    return made

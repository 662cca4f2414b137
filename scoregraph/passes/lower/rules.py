"""The registry of lowering rules: what each operator of a tensor program becomes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Rule = Callable[..., Any]
"""``rule(drafter, site, *args, **kwargs)``: tensors come as ``Value``s and symbolic sizes as ``Batch``es; a tensor goes
back as a ``Value``, several as a tuple."""

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of the named operators."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register

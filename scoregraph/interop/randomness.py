"""Noise that is ours while a scheduler draws: every normal comes from a function, in the order of the draws."""

from __future__ import annotations

from collections.abc import Callable
from math import isclose
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

Source = Callable[[torch.Size], Tensor]
"""Shape -> normals, float64."""


class OtherRandomnessError(Exception):
    """A scheduler drew something else than normals."""


class InjectedNormals(TorchFunctionMode):
    """Within this context ``torch.randn`` and ``randn_like`` ask ``source``; other random functions are refused.

    diffusers draws by ``randn_tensor``, which calls ``torch.randn``, so nothing of it needs to be replaced.
    """

    _REFUSED = frozenset({"rand", "rand_like", "randint", "normal", "normal_", "bernoulli", "multinomial", "randperm"})

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Sees every torch function that is called within the context."""
        kwargs = kwargs or {}
        if func is torch.randn_like:
            return self.source(args[0].shape).to(kwargs.get("dtype") or args[0].dtype)
        if func is torch.randn:
            shape = kwargs.get("size", args[0] if args and not isinstance(args[0], int) else args)
            return self.source(torch.Size(shape)).to(kwargs.get("dtype") or torch.get_default_dtype())
        if getattr(func, "__name__", "") in self._REFUSED:
            raise OtherRandomnessError(f"it draws with torch.{func.__name__}")
        return func(*args, **kwargs)


class BrownianPath:
    """Takes the place of a scheduler's Brownian tree: the increments of one path, from injected normals.

    ``path(s, t)`` is (W_t - W_s) / sqrt(|t - s|). An interval that begins where the last one began and goes on beyond
    its end u contains it: W_t - W_s = (W_u - W_s) + sqrt(|t - u|) z with a fresh normal z. So the two halves of a step
    of DPM-Solver-SDE share their noise. All other intervals are apart from the last one; those that would need a
    bridge are refused.

    Attributes:
        shape: what the next increment is shaped like; the driver says it before every step.
        increment: W_u - W_s of the last interval, a register of the machine.
    """

    def __init__(self) -> None:
        self.shape = torch.Size()
        self.interval: tuple[float, float] | None = None
        self.increment: Tensor | None = None

    def __call__(self, s: Tensor | float, t: Tensor | float) -> Tensor:
        """Draws one normal of ``shape``, float64."""
        s, t = float(s), float(t)
        z = torch.randn(self.shape, dtype=torch.float64)
        if self.interval is not None and self.increment is not None and isclose(s, self.interval[0], rel_tol=1e-6):
            u = self.interval[1]
            if abs(t - s) < abs(u - s):
                raise OtherRandomnessError("its noise bridges two points of a Brownian path")
            self.increment = self.increment + abs(t - u) ** 0.5 * z
        else:
            self.increment = abs(t - s) ** 0.5 * z
        self.interval = (s, t)
        return self.increment / max(abs(t - s), 1e-300) ** 0.5

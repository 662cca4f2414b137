"""Guidance: how the answers of several branches become one prediction, m = sum_k w_k m_k with sum w = 1.

A rule names its branches in order and gives their weights at any point of a schedule. Weights that change along the way
(an interval) are one row per micro-step, so all of guidance folds into the sampler's table:

    table = sampler.table(schedule, prediction, time, space)
    table = table.fold_guidance(rule.table_weights(table))

Scales have two conventions in the literature, one apart. ``cfg`` and the rest take the one of Imagen and diffusers
unless told otherwise: 1 is off. ``convention="ho"`` is that of Ho and Salimans, LLaDA, Muse and MaskGIT: 0 is off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from scoregraph.errors import BadWeights, OptionOutOfRange, here
from scoregraph.graph import options
from scoregraph.graph.mixture import At, Mix
from scoregraph.graph.spec import Spec
from scoregraph.graph.table import StepTable, check_weights

CONVENTIONS = ("imagen", "ho")


@dataclass(frozen=True)
class Guidance(Spec):
    """Family of guidance rules: linear mixes of predictions with one weight per branch and step."""

    family: ClassVar[str] = "guidance"

    @property
    def roles(self) -> tuple[str, ...]:
        """What each branch is, in the order in which ``g.fuse`` takes them."""
        raise TypeError(f"{type(self).__name__} does not define roles")

    @property
    def branches(self) -> int:
        """How many predictions the rule mixes."""
        return len(self.roles)

    def weights(self, step: int, steps: int, alpha: float, sigma: float) -> tuple[float, ...] | None:
        """The weight of each branch at loop step ``step`` of ``steps``, at the point (alpha, sigma). Their sum is 1.

        A rule with a ``combine`` of its own gives the weights of the steps in which it is off, and None where
        ``combine`` decides.
        """
        raise TypeError(f"{type(self).__name__} does not define weights")

    def memory(self) -> tuple[str, ...]:
        """The registers that ``combine`` reads and keeps from call to call, by name (a running average, say)."""
        return ()

    def numbers(self, step: int, steps: int, alpha: float, sigma: float) -> dict[str, float]:
        """Numbers of the rule's own that change along the way, by name: ``at[name]`` in ``combine``."""
        return {}

    def combine(self, branches: tuple[Mix, ...], at: At) -> Mix:
        """The guided prediction, where it takes more than weights: anything that ``graph.mixture`` can say."""
        raise TypeError(f"{type(self).__name__} does not define combine")

    def table_weights(self, table: StepTable) -> tuple[tuple[float, ...], ...]:
        """The weights at every micro-step of a table, [rows][branches]; raises ``BadWeights`` if a sum is not 1."""
        steps = table.steps
        points = zip(steps, table.values("alpha"), table.values("sigma"), strict=True)
        rows: list[tuple[float, ...]] = []
        for i, (step, alpha, sigma) in enumerate(points):
            row = self.weights(step, steps[-1] + 1, alpha, sigma)
            if row is None:
                raise BadWeights(problem=f"{self} gives no weights at micro-step {i}, and has no combine of its own")
            check_weights(row, self.branches, f"{self} at micro-step {i}")
            rows.append(row)
        return tuple(rows)


@dataclass(frozen=True)
class Single(Guidance):
    """One branch, as it is."""

    name: ClassVar[str] = "single"

    @property
    def roles(self) -> tuple[str, ...]:
        """(the only one,)."""
        return ("only",)

    def weights(self, step: int, steps: int, alpha: float, sigma: float) -> tuple[float, ...]:
        """1."""
        return (1.0,)


@dataclass(frozen=True)
class Cfg(Guidance):
    """Classifier-free guidance (Ho and Salimans 2022): away from the second branch, towards the first.

    ``convention="imagen"``: cond * scale + uncond * (1 - scale), off at 1. ``convention="ho"``: cond * (1 + scale) -
    uncond * scale, off at 0. The second branch may be a negative prompt instead of the empty condition.

    With ``low`` and ``high`` guidance is on only where low <= kappa < high, with kappa = sigma / alpha (Kynkäänniemi et
    al. 2024); elsewhere the second branch has weight exactly 0 and is not evaluated.
    """

    name: ClassVar[str] = "cfg"
    scale: float
    convention: str = "imagen"
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        options.real(self, "scale")
        options.choice(self, "convention", CONVENTIONS)
        options.optional_real(self, "low", low=0.0)
        options.optional_real(self, "high", low=0.0)
        if self.low is not None and self.high is not None:
            options.ordered(self, "low", "high")

    @property
    def roles(self) -> tuple[str, ...]:
        """(cond, uncond): the conditional one first."""
        return ("cond", "uncond")

    def weights(self, step: int, steps: int, alpha: float, sigma: float) -> tuple[float, ...]:
        """(scale, 1 - scale) in the convention of Imagen."""
        kappa = sigma / alpha if alpha else math.inf
        on = (self.low is None or kappa >= self.low) and (self.high is None or kappa < self.high)
        scale = self.scale if self.convention == "imagen" else 1.0 + self.scale
        return (scale, 1.0 - scale) if on else (1.0, 0.0)


@dataclass(frozen=True)
class Compose(Guidance):
    """Composition (Liu et al. 2022): every condition pulls from the unconditional branch with its own weight.

    uncond * (1 - sum w) + sum_i cond_i * w_i. A negative weight means NOT. The conditions come first, in the order of
    ``scales``, and the unconditional branch last.
    """

    name: ClassVar[str] = "compose"
    scales: tuple[float, ...]

    def __post_init__(self) -> None:
        options.reals(self, "scales", at_least=1)

    @property
    def roles(self) -> tuple[str, ...]:
        """(cond0, cond1, …, uncond)."""
        return (*(f"cond{i}" for i in range(len(self.scales))), "uncond")

    def weights(self, step: int, steps: int, alpha: float, sigma: float) -> tuple[float, ...]:
        """(w_0, w_1, …, 1 - sum w)."""
        return (*self.scales, 1.0 - math.fsum(self.scales))


@dataclass(frozen=True)
class Edit(Guidance):
    """Two scales for a text and an image condition (Brooks et al. 2023, InstructPix2Pix).

    uncond * (1 - image_scale) + image * (image_scale - text_scale) + both * text_scale, off at 1 each.
    """

    name: ClassVar[str] = "edit"
    text_scale: float
    image_scale: float

    def __post_init__(self) -> None:
        options.real(self, "text_scale")
        options.real(self, "image_scale")

    @property
    def roles(self) -> tuple[str, ...]:
        """(both conditions, the image only, none)."""
        return ("both", "image", "uncond")

    def weights(self, step: int, steps: int, alpha: float, sigma: float) -> tuple[float, ...]:
        """(text_scale, image_scale - text_scale, 1 - image_scale)."""
        return (self.text_scale, self.image_scale - self.text_scale, 1.0 - self.image_scale)


@dataclass(frozen=True)
class Weighted(Guidance):
    """Weights in plain numbers: one row for all steps, or one row per step.

    ``rows`` holds rows of ``count`` weights, one after the other; each row sums to 1.
    """

    name: ClassVar[str] = "weighted"
    count: int
    rows: tuple[float, ...]

    def __post_init__(self) -> None:
        options.whole(self, "count", low=1)
        options.reals(self, "rows", at_least=1)
        if len(self.rows) % self.count:
            expected = f"a whole number of rows of {self.count}"
            raise OptionOutOfRange(spec=self.name, option="rows", expected=expected, value=self.rows, where=here())

    @property
    def roles(self) -> tuple[str, ...]:
        """(branch0, branch1, …)."""
        return tuple(f"branch{i}" for i in range(self.count))

    def weights(self, step: int, steps: int, alpha: float, sigma: float) -> tuple[float, ...]:
        """Row ``step``; the only row if there is one; the last one past the end."""
        row = min(step, len(self.rows) // self.count - 1)
        return self.rows[row * self.count : (row + 1) * self.count]


single = Single
cfg = Cfg
compose = Compose
edit = Edit
weighted = Weighted

"""Linear guidance: weights that are the same for every sample, sum w = 1. They cost nothing: the table holds them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from scoregraph.errors import OptionOutOfRange, here
from scoregraph.graph import options
from scoregraph.graph.guidance.base import CONVENTIONS, Guidance, Scaled


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
class Cfg(Scaled):
    """Classifier-free guidance (Ho and Salimans 2022): away from the second branch, towards the first.

    ``convention="imagen"``: cond * scale + uncond * (1 - scale), off at 1. ``convention="ho"``: cond * (1 + scale) -
    uncond * scale, off at 0. The second branch may be a negative prompt instead of the empty condition.
    """

    name: ClassVar[str] = "cfg"

    def weights(self, step: int, steps: int, alpha: float, sigma: float) -> tuple[float, ...]:
        """(scale, 1 - scale) in the convention of Imagen."""
        return (self.strength, 1.0 - self.strength) if self.is_on(step, steps, alpha, sigma) else self.off


@dataclass(frozen=True)
class Autoguidance(Cfg):
    """Guidance by a weaker version of the same network (Karras et al. 2024): weak + scale * (strong - weak)."""

    name: ClassVar[str] = "autoguidance"

    @property
    def roles(self) -> tuple[str, ...]:
        """(strong, weak), usually two networks under the same condition."""
        return ("strong", "weak")


@dataclass(frozen=True)
class CfgSteps(Guidance):
    """Classifier-free guidance with a scale of its own in every step; the last one serves the steps beyond."""

    name: ClassVar[str] = "cfg_steps"
    scales: tuple[float, ...]
    convention: str = "imagen"

    def __post_init__(self) -> None:
        options.reals(self, "scales", at_least=1)
        options.choice(self, "convention", CONVENTIONS)

    @property
    def roles(self) -> tuple[str, ...]:
        """(cond, uncond)."""
        return ("cond", "uncond")

    def weights(self, step: int, steps: int, alpha: float, sigma: float) -> tuple[float, ...]:
        """(scale, 1 - scale) with the scale of the step, in the convention of Imagen."""
        scale = self.scales[min(step, len(self.scales) - 1)] + (self.convention == "ho")
        return (scale, 1.0 - scale)


@dataclass(frozen=True)
class CfgPlusPlus(Guidance):
    """CFG++ (Chung et al. 2024): x0 of uncond + scale * (cond - uncond), with a scale from 0 to 1, but eps of uncond.

    So the step leads to the guided clean sample without leaving the unguided noise (their algorithm 2).
    """

    name: ClassVar[str] = "cfg_pp"
    splits: ClassVar[bool] = True
    scale: float

    def __post_init__(self) -> None:
        options.real(self, "scale")

    @property
    def roles(self) -> tuple[str, ...]:
        """(cond, uncond)."""
        return ("cond", "uncond")

    def weights(self, step: int, steps: int, alpha: float, sigma: float) -> tuple[float, ...]:
        """(scale, 1 - scale), for x0."""
        return (self.scale, 1.0 - self.scale)


@dataclass(frozen=True)
class Perturbed(Guidance):
    """Away from what a damaged network says: perturbed attention (Ahn et al. 2024, PAG), skipped layers (SLG, STG),
    smoothed energies (SEG), which differ only in how the third answer is made.

    cond + (cfg - 1) * (cond - uncond) + scale * (cond - perturbed); off at ``scale`` 0 and ``cfg`` 1. Without ``cfg``
    there is no unconditional branch. The perturbation works in steps floor(start * steps) < step < floor(stop * steps):
    diffusers leaves the first one out, here that holds only if ``start`` is given.
    """

    name: ClassVar[str] = "perturbed"
    scale: float
    cfg: float | None = None
    start: float | None = None
    stop: float = 1.0

    def __post_init__(self) -> None:
        options.real(self, "scale")
        options.optional_real(self, "cfg")
        options.optional_real(self, "start", low=0.0, high=1.0)
        options.real(self, "stop", low=0.0, high=1.0)
        if self.start is not None:
            options.ordered(self, "start", "stop")

    @property
    def roles(self) -> tuple[str, ...]:
        """(cond, uncond, perturbed), or (cond, perturbed) without ``cfg``."""
        return ("cond", "perturbed") if self.cfg is None else ("cond", "uncond", "perturbed")

    def weights(self, step: int, steps: int, alpha: float, sigma: float) -> tuple[float, ...]:
        """(cfg + scale, 1 - cfg, -scale)."""
        begun = self.start is None or step > int(self.start * steps)
        push = self.scale if begun and step < int(self.stop * steps) else 0.0
        if self.cfg is None:
            return (1.0 + push, -push)
        return (self.cfg + push, 1.0 - self.cfg, -push)


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
negative = Cfg
autoguidance = Autoguidance
cfg_steps = CfgSteps
cfg_pp = CfgPlusPlus
perturbed = Perturbed
pag = Perturbed
slg = Perturbed
compose = Compose
edit = Edit
weighted = Weighted

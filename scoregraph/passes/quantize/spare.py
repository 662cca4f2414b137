"""Which layers stay in float32 because the answer bears their rounding least, found by measuring the answer.

How far a layer's own answer is off does not tell what that does to the samples: a norm behind it may divide by almost
nothing. So sets of layers are quantized, everything else in float32, and the samples are compared. Errors of layers
add up nearly as if they were independent; hence the noise of a set bounds that of each of its layers, and halving the
set with the largest bound first finds the layers that lose most without measuring each of them.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scoregraph.passes.quantize.sites import Selection, layer
from scoregraph.plan.dims import parse_dim, per_unit
from scoregraph.plan.draft import Draft

Doubles = NDArray[np.float64]

NEGLIGIBLE = 1e-3
"""Sets with less than this share of the noise of all layers are not looked into."""


LOST = 1e6
"""The most noise that a sample counts for: of one that is no number any more, too."""


@dataclass(frozen=True)
class Layer:
    """The products of one layer, and their multiply-adds for a sample."""

    name: str
    cost: int


@dataclass(frozen=True)
class Measurement:
    """Layers that were quantized together, and the noise of the samples, as a share of their power."""

    layers: tuple[Layer, ...]
    noise: float

    @property
    def bound(self) -> float:
        """No layer among them makes more noise for each multiply-add, as far as noise adds up."""
        return self.noise / min(layer.cost for layer in self.layers)


def noise_of_samples(got: Sequence[Doubles], exact: Sequence[Doubles]) -> float:
    """How far samples are off, as a share of their power, at most ``LOST``: the mean over outputs [B, n]."""
    shares: list[Doubles] = []
    for values, wanted in zip(got, exact, strict=True):
        power = np.square(wanted).sum(axis=1)
        with np.errstate(over="ignore", invalid="ignore"):  # lost is lost
            shares.append(np.square(values - wanted).sum(axis=1) / np.maximum(power, np.finfo(np.float64).tiny))
    return float(np.nan_to_num(np.minimum(shares, LOST), nan=LOST).mean())


def layers_of(draft: Draft, selection: Selection) -> list[Layer]:
    """What a recipe quantizes, layer by layer, in the order of the plan."""
    costs: dict[str, int] = {}
    for segment, at in selection.products:
        call = draft.plan.segments[segment].calls[at]
        w = draft.arrays[int(call.ins["w"][1:])]
        answers = per_unit(parse_dim(d) for d in draft.plan.buffers[int(call.outs["y"][1:])].shape)
        name = layer(draft.plan, call)
        costs[name] = costs.get(name, 0) + answers * (w.size // len(w))
    return [Layer(name, cost) for name, cost in costs.items()]


def most_sensitive(
    layers: Sequence[Layer],
    share: float,
    noise_of: Callable[[Sequence[str]], float],
    told: Callable[[int, Sequence[Measurement]], None] = lambda _measured, _found: None,
) -> list[Measurement]:
    """The layers with the most noise for each multiply-add, until a share of all of these is spent.

    Args:
        layers: in the order of the plan; sets are runs of neighbours.
        share: of the multiply-adds of all layers that may be spent.
        noise_of: measures the noise of quantizing these layers and no others.
        told: called with the number of measurements and what was found by them.

    Returns:
        The layers, one each, the most sensitive first.
    """
    left = share * sum(each.cost for each in layers)
    found: list[Measurement] = []
    heap: list[tuple[float, int, Measurement]] = []
    measured = 0

    def measure(group: tuple[Layer, ...]) -> Measurement:
        nonlocal measured
        made = Measurement(group, noise_of([each.name for each in group]))
        heapq.heappush(heap, (-made.bound, measured, made))
        measured += 1
        told(measured, found)
        return made

    everything = measure(tuple(layers)).noise if layers else 0.0
    while heap:
        _, _, widest = heapq.heappop(heap)
        group = tuple(each for each in widest.layers if each.cost <= left)
        if not group or widest.noise <= NEGLIGIBLE * everything:
            continue
        if len(widest.layers) == 1:
            found.append(widest)
            left -= group[0].cost
        else:
            middle = len(group) // 2
            for half in (group[:middle], group[middle:]):
                if half:
                    measure(half)
    return found

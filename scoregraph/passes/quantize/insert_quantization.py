"""Products of float32 become products of whole numbers, or of bf16.

    y = linear(x, w)   ──▶   q, grid = quantize(x);            y = linear(q, w8, grid, wscale, wsum)
                       ──▶   q, grid = quantize(x, 1/λ);       y = linear(q, (λ w)8, grid, wscale, wsum)

Grids are dynamic (measured on x as the plan runs) or static (found by ``calibrate`` before). A loop keeps the static
grids of all its sites in one constant [groups, sites, 2]; one ``select_row`` a step picks those of the step's group,
which a column of the loop's table names. With one group the grids are constants themselves.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from scoregraph.passes.base import Fuel, Miss, PassResult
from scoregraph.passes.quantize.calibrate import GROUP_COLUMN, Calibration
from scoregraph.passes.quantize.integer_weights import Floats, bf16_bits, integer_weights
from scoregraph.passes.quantize.observe import add_column, groups_of_rows
from scoregraph.passes.quantize.recipe import TOP, Recipe
from scoregraph.passes.quantize.sites import Place, Selection, layer, select
from scoregraph.plan.dims import product
from scoregraph.plan.draft import Draft, Drafter, Value
from scoregraph.plan.schema import Call, Segment

QUAD = 4
"""Channels of a quantized image that are stored side by side."""


@dataclass(frozen=True)
class InsertQuantization:
    """Every product that ``sites.select`` finds computes in the recipe's formats.

    Attributes:
        recipe: the formats.
        calibration: the ranges of the sites, for static grids, and what smooths them.
        spared: the names of layers that stay in float32 because they lose most (``spare``).
    """

    recipe: Recipe
    calibration: Calibration | None = None
    spared: frozenset[str] = frozenset()
    name: ClassVar[str] = "insert-quantization"

    def run(self, module: Draft, fuel: Fuel | None = None) -> PassResult[Draft]:
        """Rewrites: products and attentions that changed. Misses: products that stay in float32.

        Products that share weights change together, so fuel is spent for each constant of weights."""
        selection = _without(module, select(module, self.recipe), self.spared)
        selection = _affordable(module, selection, fuel or Fuel())
        if not selection.products and not selection.attentions:
            return PassResult(module, misses=selection.misses)
        made = _Insertion(module, self.recipe, self.calibration, selection).run()
        ops = [module.plan.segments[place[0]].calls[place[1]].op for place in selection.products]
        counters = dict(Counter(map(self.recipe.name_of, ops)))
        counters["smoothed"] = sum(made is not None for made in self.calibration.smoothing) if self.calibration else 0
        counters["grids"] = len(set(selection.products.values())) if self.recipe.is_integer else 0
        counters[f"attention in {self.recipe.attention}"] = len(selection.attentions)
        return PassResult(
            made,
            rewrites=len(selection.products) + len(selection.attentions),
            counters={name: count for name, count in counters.items() if count},
            misses=selection.misses,
        )


def _without(module: Draft, selection: Selection, spared: frozenset[str]) -> Selection:
    """The selection less some layers. Its sites stay, since a calibration speaks of them in order."""
    names = {place: layer(module.plan, module.plan.segments[place[0]].calls[place[1]]) for place in selection.products}
    products = {place: site for place, site in selection.products.items() if names[place] not in spared}
    misses = [Miss("it is spared: it loses most", name) for name in names.values() if name in spared]
    return replace(selection, products=products, misses=(*selection.misses, *misses))


def _affordable(module: Draft, selection: Selection, fuel: Fuel) -> Selection:
    """The part of a selection that fuel allows."""
    weights = {place: module.plan.segments[place[0]].calls[place[1]].ins["w"] for place in selection.products}
    allowed = {w: fuel.spend() for w in dict.fromkeys(weights.values())}
    products = {place: site for place, site in selection.products.items() if allowed[weights[place]]}
    attentions = tuple(place for place in selection.attentions if fuel.spend())
    return replace(selection, products=products, attentions=attentions)


class _Insertion:
    """One run of the pass."""

    def __init__(self, draft: Draft, recipe: Recipe, calibration: Calibration | None, selection: Selection) -> None:
        self.drafter = Drafter.reopen(draft)
        self.plan, self.arrays = draft.plan, draft.arrays
        self.recipe, self.calibration, self.selection = recipe, calibration, selection
        self.weights: dict[str, dict[str, str]] = {}  # the operands that replace w
        self.operands: dict[int, dict[str, str]] = {}  # of each site, those that replace x

    def run(self) -> Draft:
        """All segments with their new calls; constants that nothing reads any more are left for ``drop-unread``."""
        segments = [self._segment(n, segment) for n, segment in enumerate(self.plan.segments)]
        plan = self.plan.model_copy(update={"tables": tuple(self.drafter.tables)})
        return self.drafter.closed(plan, segments)

    def _segment(self, number: int, segment: Segment) -> Segment:
        static, calls = self._static_grids(number, segment) if self.recipe.is_static else ({}, [])
        for at, call in enumerate(segment.calls):
            place = (number, at)
            if place in self.selection.attentions:
                call = call.model_copy(update={"attrs": {**call.attrs, "format": self.recipe.attention}})
            if place in self.selection.products:
                calls += self._product(place, call, static)
            else:
                calls.append(call)
        return segment.model_copy(update={"calls": tuple(calls)})

    def _product(self, place: Place, call: Call, static: dict[int, str]) -> list[Call]:
        """The product in the recipe's formats, behind what quantizes its operand if no call before it did."""
        site = self.selection.products[place]
        weights = self._weights(call, self._factor(site))
        if not self.recipe.is_integer:
            return [call.model_copy(update={"ins": {**call.ins, **weights}})]
        calls: list[Call] = []
        if site not in self.operands:
            quantize = self._quantize(call, static.get(site), self._factor(site))
            calls.append(quantize)
            grid = quantize.outs.get("ygrid") or quantize.ins["ygrid"]
            self.operands[site] = {"x": quantize.outs["y"], "grid": grid}
        ins = {**call.ins, **weights, **self.operands[site]}
        calls.append(
            call.model_copy(update={"ins": ins, "attrs": {**call.attrs, "chain": self.recipe.chain_of(call.op)}})
        )
        return calls

    def _factor(self, site: int) -> Floats | None:
        """λ of the channels of a site, float32 [C]."""
        chosen = None if self.calibration is None else self.calibration.smoothing[site]
        return None if chosen is None else np.array(chosen.factor, np.float32)

    def _quantize(self, reader: Call, static: str | None, factor: Floats | None) -> Call:
        """The call that quantizes what ``reader`` reads: a grid a row of a matrix, or a sample of an image."""
        x, name = self.drafter.value(reader.ins["x"]), self.plan.buffers[int(reader.ins["x"][1:])].name
        shape, rows = x.shape, product(x.shape[:-1])
        if reader.op == "conv2d":
            n, channels, high, wide = x.shape
            assert isinstance(channels, int), "the batch stands outermost"
            rows, shape = n, (n, -(-channels // QUAD), high, wide, QUAD)
        y = self.drafter.new(shape, self.recipe.activations, f"{name} in {self.recipe.activations}")
        ins, outs = {"x": reader.ins["x"]}, {"y": y.storage}
        if static is None:
            outs["ygrid"] = self.drafter.new((rows, 2), name=f"grid of {name}").storage
        else:
            ins["ygrid"] = static
        if factor is not None:
            ins["smooth"] = self.drafter.constant(1 / factor, f"smooth of {name}").storage
        return Call(op="quantize", ins=ins, outs=outs, site=reader.site, variants=reader.variants)

    def _weights(self, call: Call, factor: Floats | None) -> dict[str, str]:
        """The operands in place of w, its channels times λ; made once for all calls that share it, and λ with it."""
        ref, recipe = call.ins["w"], self.recipe
        if ref not in self.weights:
            w, name = self.arrays[int(ref[1:])], self.plan.constants[int(ref[1:])].name
            if factor is not None:
                w = w * factor.reshape(1, -1, *[1] * (w.ndim - 2))
            if recipe.is_integer:
                block = recipe.block if call.op == "linear" else 0
                dtype = recipe.weights_of(call.op)
                made = integer_weights(w, dtype, block, clip=recipe.clip)
                operands = {
                    "w": self.drafter.constant(made.q, name, dtype),
                    "wscale": self.drafter.constant(made.scale, f"{name} scale"),
                    "wsum": self.drafter.constant(made.total, f"{name} sum"),
                }
            else:
                operands = {"w": self.drafter.constant(bf16_bits(w), name, "bf16")}
            self.weights[ref] = {role: value.storage for role, value in operands.items()}
        return self.weights[ref]

    def _static_grids(self, number: int, segment: Segment) -> tuple[dict[int, str], list[Call]]:
        """The grid of each site of a segment, and the call that picks them for a row."""
        assert self.calibration is not None, "static grids come from a calibration"
        wanted = set(self.selection.products.values())
        sites = [i for i, s in enumerate(self.selection.sites) if s.place[0] == number and i in wanted]
        if not sites:
            return {}, []
        top = TOP[self.recipe.activations]
        grids = np.stack([self.calibration.grids(i, self.recipe.groups, top) for i in sites], axis=1)
        if len(grids) == 1:
            chosen = {i: (f"grid of {self.selection.sites[i].name}", grids[:, at]) for at, i in enumerate(sites)}
            return {i: self.drafter.constant(grid, name).storage for i, (name, grid) in chosen.items()}, []
        assert segment.table is not None, "only rows of a table fall into groups"
        of_row = groups_of_rows(self.plan.tables[segment.table].rows, self.recipe.groups)
        column = add_column(self.drafter, segment.table, GROUP_COLUMN, of_row)
        name = f"grids of {segment.name}"
        picked = self.drafter.new((len(sites), 2), name=name)
        attrs: dict[str, Any] = {"table": segment.table, "column": column, "axis": 0}
        ins = {"x": self.drafter.constant(grids, name).storage}
        pick = Call(op="select_row", ins=ins, outs={"y": picked.storage}, attrs=attrs, site=name)
        views = {i: Value(picked.storage, (1, 2), (2, 1), 2 * at) for at, i in enumerate(sites)}
        return {i: self.drafter.ref(view) for i, view in views.items()}, [pick]

"""A loop over a schedule as calls: per row of its table, the networks' answers, then one fused sampler step.

    step_input ─▶ network calls ─▶ (gram, quantile ─▶ scalars) ─▶ sampler_step, which prepares the next input ─▶ record

Rows that read different answers are variants of the same body: their calls stand side by side, each for its rows only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from scoregraph.errors import UncoveredNode
from scoregraph.graph import nodes as n
from scoregraph.graph import values as v
from scoregraph.graph.energies import Energy
from scoregraph.graph.formula import Formula
from scoregraph.graph.table import StepTable
from scoregraph.passes.lower import shape as shapes
from scoregraph.passes.sampling.algebra import joint_score
from scoregraph.passes.sampling.batch_branches import answers_of
from scoregraph.passes.sampling.drop_dead_branches import variant_keys
from scoregraph.passes.sampling.fold_tables import scale_column, time_column
from scoregraph.passes.sampling.machine import clean_gradients
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Drafter, Value


class Outside(Protocol):
    """What a loop needs of the lowering around it."""

    drafter: Drafter
    draws: dict[int, int]
    bank_input: Value | None

    def refuse(self, node: n.Node, reason: str, cure: str) -> UncoveredNode:
        """The error for a node that no backend compiles."""
        ...

    def value(self, node: n.Node) -> Value:
        """The buffer of a value that stands outside of the loop."""
        ...

    def condition(self, node: n.Node) -> tuple[Value, ...]:
        """The encoded tensors of one branch, [B, …] each."""
        ...

    def start(self, node: n.Node, table: StepTable, number: int) -> Value:
        """The state before the first step."""
        ...

    def filled(self, shape: Sequence[int | Batch], value: float, dtype: str, name: str) -> Value:
        """A buffer with one number everywhere."""
        ...

    def program(self, net: v.NetRef, part: str, inputs: Sequence[Value], branches: int = 1) -> list[Value]:
        """The calls of one part of a network."""
        ...

    def shares_prefix(self, net: v.NetRef, varying: Sequence[bool]) -> bool:
        """Whether a score network does work that does not depend on its ``varying`` inputs."""
        ...


@dataclass
class Mover:
    """One sampler step of the loop while it is lowered.

    Attributes:
        number: of its table in the plan.
        registers: the buffers, the state first.
        conditions: per score, each encoded condition for all branches; by the branches that are evaluated.
    """

    step: n.SamplerStep
    table: StepTable
    number: int
    registers: list[Value]
    inputs: dict[tuple[int, int], Value] = field(default_factory=dict[tuple[int, int], Value])
    observed: dict[int, Value] = field(default_factory=dict[int, Value])

    def column(self, name: str) -> int:
        """The index of a column."""
        return self.table.columns.index(name)


@dataclass(frozen=True)
class Variant:
    """Rows that read the same answers, those numbered ``live``; if ``on``, every sample has coefficients of its own."""

    number: int
    live: tuple[int, ...]
    on: bool


def variants_of(table: StepTable) -> list[Variant]:
    """The variants of a folded table, in the order of their numbers; one if its rows are all alike."""
    if "variant" not in table.columns:
        everything = tuple(range(table.branches))
        return [Variant(0, everything, "on" in table.columns)]
    keys = variant_keys(table)
    return [
        Variant(i, tuple(k for k in range(table.branches) if mask >> k & 1), bool(on))
        for i, (mask, on) in enumerate(keys)
    ]


@dataclass
class LoopLowering:
    """Lowers one loop; ``run`` gives the values that leave it."""

    outside: Outside
    loop: n.Loop
    batched: dict[tuple[n.Node, tuple[int, ...]], list[Value]] = field(
        default_factory=dict[tuple[n.Node, tuple[int, ...]], list[Value]]
    )
    moving: list[Mover] = field(default_factory=list[Mover])
    said: dict[tuple[str, n.Node, n.Node], Value] = field(default_factory=dict[tuple[str, n.Node, n.Node], Value])

    @property
    def drafter(self) -> Drafter:
        """The plan in the making."""
        return self.outside.drafter

    def run(self) -> tuple[list[Value], dict[str, Value]]:
        """The carried values after the loop, and what it emitted by name."""
        movers = [self._mover(i) for i in range(len(self.loop.results))]
        moving = [mover for mover in movers if isinstance(mover, Mover)]
        records = self._records(moving)
        for mover in moving:
            self._prepare(mover)
        first = moving[0]
        variant = first.column("variant") if "variant" in first.table.columns else None
        self.drafter.begin(self.loop.name, first.number, variant)
        self._record(records, "before")
        # All networks look at the states as they were before the row, so no state moves before all have answered.
        self.moving = moving
        # Steps that read a divergence come first: what the network says there need not be asked again.
        order = sorted(moving, key=lambda m: not any(isinstance(leaf, n.Divergence) for leaf in m.step.preds))
        answers = [(mover, self._answers(mover)) for mover in order]
        for mover, found in answers:
            for kind, values in found:
                self._step(mover, kind, values)
        self._record(records, "behind")
        self.drafter.begin(f"after-{self.loop.name}")
        carried = [mover.registers[0] if isinstance(mover, Mover) else mover for mover in movers]
        return carried, {name: record for name, (_, _, record) in records.items()}

    # --- before the loop -------------------------------------------------------------------------

    def _mover(self, index: int) -> Mover | Value:
        """The step that moves a carried value; the value itself if nothing does."""
        result, init = self.loop.results[index], self.loop.init[index]
        if isinstance(result, n.LoopVar) and result.index == index:
            return self.outside.value(init)
        if not isinstance(result, n.SamplerStep) or result.table is None or "live" not in result.table.columns:
            reason = "the loop does not end in one continuous sampler step whose prediction could be folded into it"
            raise self.outside.refuse(result, reason, "the stage fold-step says what was in the way: plan.stages")
        table = result.table
        if self.outside.bank_input is not None and result.site in self.outside.draws:
            first, drawing = self.outside.draws[result.site], drawing_rows(result)
            draws = [first + sum(drawing[:i]) if drawn else 0 for i, drawn in enumerate(drawing)]
            table = table.with_report(draw=draws)
        name = self.loop.name if index == 0 else f"{self.loop.name}.{index}"
        number = self.drafter.table(name, table.columns, table.float32())
        x = self.outside.start(init, table, number)
        memory = [self.outside.filled(x.shape, 0.0, "f32", name) for name in table.registers[1:]]
        return Mover(result, table, number, [x, *memory])

    def _prepare(self, mover: Mover) -> None:
        """What is fixed in the loop: the conditions of all branches, and the first input of the networks."""
        for kind in variants_of(mover.table):
            for leaf, branches in live_leaves(mover.step, kind.live):
                if isinstance(leaf, n.Score):
                    self._branches(leaf, branches)
            leaf = prepared_leaf(mover, kind)
            if leaf is not None:
                x_in = self._input(mover, kind, leaf)
                attrs = {"table": mover.number, "column": mover.column("c_in"), "row": 0}
                self.drafter.call("step_input", {"x": mover.registers[0]}, {"xin": x_in}, attrs, self.loop.name)

    def _input(self, mover: Mover, kind: Variant, leaf: tuple[n.Score, tuple[int, ...]]) -> Value:
        """The buffer that the sampler step fills for the first network of a variant."""
        key = (kind.number, 0)
        if key not in mover.inputs:
            shape = mover.registers[0].shape[1:]
            name = f"{self.loop.name}.x_in{kind.number}"
            rows = self._rows(leaf[0], len(leaf[1]))
            mover.inputs[key] = self.drafter.new((Batch(rows), *shape), name=name)
        return mover.inputs[key]

    def _branches(self, score: n.Score, branches: tuple[int, ...]) -> list[Value]:
        """Each encoded condition for some branches: [KB, …], branch j of sample b in row b*K + j."""
        key = (score, branches)
        if key not in self.batched:
            per_branch = [self.outside.condition(score.conds[i]) for i in branches]
            self.batched[key] = [self._interleave(list(parts)) for parts in zip(*per_branch, strict=True)]
        return self.batched[key]

    def _interleave(self, parts: Sequence[Value]) -> Value:
        count, shape = len(parts), parts[0].shape[1:]
        if count == 1:
            return parts[0]
        whole = self.drafter.new((Batch(count), *shape), parts[0].dtype, "branches")
        split = shapes.view(self.drafter, whole, (Batch(), count, *shape), "branches")
        for j, part in enumerate(parts):
            target = shapes.select(split, 1, j)
            self.drafter.call("copy", {"x": self.drafter.as_buffer(part)}, {"y": target}, site="branches")
        return whole

    # --- answers ---------------------------------------------------------------------------------

    def _answers(self, mover: Mover) -> list[tuple[Variant, dict[n.Node, list[Value]]]]:
        """The answers of every variant's networks, by leaf: the operands p of the sampler step."""
        found: list[tuple[Variant, dict[n.Node, list[Value]]]] = []
        kinds = variants_of(mover.table)
        for kind in kinds:
            with self.drafter.only_in(*([kind.number] if len(kinds) > 1 else [])):
                values: dict[n.Node, list[Value]] = {}
                ready = prepared_leaf(mover, kind)
                for leaf, branches in live_leaves(mover.step, kind.live):
                    if isinstance(leaf, n.Score):
                        x_in = self._input(mover, kind, ready) if ready is not None and ready[0] is leaf else None
                        values[leaf] = self._score(mover, leaf, branches, x_in)
                    elif isinstance(leaf, n.EnergyGrad):
                        values[leaf] = [self._gradient(mover, leaf, values)]
                    else:
                        assert isinstance(leaf, n.Divergence)
                        values[leaf] = [self._divergence(mover, leaf)]
                found.append((kind, values))
        return found

    def _time(self, mover: Mover, net: v.NetRef, branches: int) -> Value:
        t = self.drafter.new((Batch(branches),), name=f"{self.loop.name}.t")
        attrs = {"table": mover.number, "column": mover.column(time_column(mover.table, net))}
        self.drafter.call("step_time", {}, {"t": t}, attrs, self.loop.name)
        return t

    def _scaled(self, mover: Mover, net: v.NetRef, branches: int) -> Value:
        """The state as a network reads it."""
        x = mover.registers[0]
        x_in = self.drafter.new((Batch(branches), *x.shape[1:]), name=f"{self.loop.name}.x_in.{net.name}")
        attrs = {"table": mover.number, "column": mover.column(scale_column(mover.table, net))}
        self.drafter.call("step_input", {"x": x}, {"xin": x_in}, attrs, self.loop.name)
        return x_in

    def _score(self, mover: Mover, score: n.Score, branches: tuple[int, ...], x_in: Value | None) -> list[Value]:
        net, count = score.net, len(branches)
        said = self.said.get((net.name, score.x, score.conds[branches[0]])) if count == 1 else None
        if said is not None:
            return [said]
        rows = self._rows(score, count)
        x_in = self._scaled(mover, net, rows) if x_in is None else x_in
        t = self._time(mover, net, rows)
        self.drafter.evaluates(net.name, count)
        answer = self.outside.program(net, "score", [x_in, t, *self._branches(score, branches)], count)[0]
        return split_variance(self.drafter, answer, net, count)

    def _rows(self, score: n.Score, branches: int) -> int:
        """How many rows per sample state and time have at the network's input: one, where branches share a prefix."""
        conditions = len(self._branches(score, (0,)))
        shares = branches > 1 and self.outside.shares_prefix(score.net, [False, False, *[True] * conditions])
        return 1 if shares else branches

    def _gradient(self, mover: Mover, grad: n.EnergyGrad, known: Mapping[n.Node, list[Value]]) -> Value:
        energy, net = grad.energy, grad.net
        assert isinstance(energy, Energy)
        if net is None:
            raise self.outside.refuse(grad, "it has no network that says the energy", "give g.energy(…, net=…)")
        values = [self.outside.value(value) for value in grad.values]
        time = self._time(mover, net, 1)
        root = "root.grad" if energy.rooted else "grad"
        score = joint_score(grad)
        if score is not None:
            number = clean_gradients(mover.step.preds).index(grad)
            x_in, t = self._scaled(mover, score.net, 1), self._time(mover, score.net, 1)
            p, q = (self._by_row(mover, f"g{number}_{name}") for name in "pq")
            self.drafter.evaluates(score.net.name)
            ins = [x_in, t, *self._branches(score, (0,)), time, *values, p, q]
            found = self.outside.program(score.net, f"score.energy.{root}:{net.name}", ins)
        else:
            x = mover.registers[0] if grad.pred is None else self._clean(mover, grad, known)
            found = self.outside.program(net, f"energy.{root}", [x, time, *values])
        self.drafter.evaluates(net.name)
        return self.drafter.dense(found[0], net.name)

    def _by_row(self, mover: Mover, column: str) -> Value:
        """[B] with the row's entry of a column everywhere."""
        made = self.drafter.new((Batch(),), name=f"{self.loop.name}.{column}")
        attrs = {"table": mover.number, "column": mover.column(column)}
        self.drafter.call("step_time", {}, {"t": made}, attrs, self.loop.name)
        return made

    def _clean(self, mover: Mover, grad: n.EnergyGrad, known: Mapping[n.Node, list[Value]]) -> Value:
        """The clean sample that a gradient's prediction implies: a machine with the registers [x0, x]."""
        x = mover.registers[0]
        x0 = self.drafter.new(x.shape, name=f"{self.loop.name}.x0")
        self.drafter.call("fill", {}, {"x": x0}, {"value": 0.0}, f"{self.loop.name}.x0")
        at = mover.column(f"g{clean_gradients(mover.step.preds).index(grad)}_a0")
        width = mover.table.branches
        operands, numbers = self._operands(mover, tuple(range(width)), known)
        attrs = {
            "table": mover.number, "a": at, "b": at + 4, "c": at + 4 + 2 * width,
            "cin": -1, "site": 0, "answers": numbers, "width": width,
        }  # fmt: skip
        state = {"r0": x0, "r1": x}
        self.drafter.call("sampler_step", {**state, **operands}, state, attrs, f"{self.loop.name}.x0")
        return x0

    def _divergence(self, mover: Mover, leaf: n.Divergence) -> Value:
        """-div eps(X) of a network about another carried state, [B, 1]; its answer serves that state's step, too."""
        owner = next(m for m in self.moving if m.step.state is leaf.x)
        net = leaf.net
        x_in, t = self._scaled(owner, net, 1), self._time(owner, net, 1)
        probe = [] if leaf.probe is None else [self.outside.value(leaf.probe)]
        part = "score.divergence" if leaf.probe is None else "score.jvp"
        self.drafter.evaluates(net.name)
        found = self.outside.program(net, part, [x_in, t, *self.outside.condition(leaf.cond), *probe])
        m, trace = (self.drafter.dense(value, net.name) for value in found)
        self.said[net.name, leaf.x, leaf.cond] = m
        made = self.drafter.new((Batch(), 1), name=f"{self.loop.name}.thinning")
        constant, gain = mover.column("thinning.constant"), mover.column("thinning.gain")
        program = [["in", 0, 0], ["row", gain], ["mul", 0, 1], ["row", constant], ["add", 2, 3]]
        attrs = {"table": mover.number, "program": program, "results": [4]}
        self.drafter.call("scalars", {"x0": shapes.unsqueeze(trace, 1)}, {"y": made}, attrs, self.loop.name)
        return made

    # --- the step --------------------------------------------------------------------------------

    def _operands(
        self, mover: Mover, live: tuple[int, ...], known: Mapping[n.Node, list[Value]]
    ) -> tuple[dict[str, Value], list[int]]:
        """The operands p0, p1, … that exist, and the numbers of the answers they hold."""
        values: list[Value] = []
        numbers: list[int] = []
        first = 0
        variance: Value | None = None
        for leaf in mover.step.preds:
            count = answers_of(leaf)
            if leaf in known:
                values.append(known[leaf][0])
                numbers += [first + i for i in range(count) if first + i in live]
                if variance is None and len(known[leaf]) > 1:
                    variance = known[leaf][1]
            first += count
        if variance is not None:
            values.append(variance)
            numbers.append(first)
        return {f"p{i}": value for i, value in enumerate(values)}, numbers

    def _step(self, mover: Mover, kind: Variant, known: Mapping[n.Node, list[Value]]) -> None:
        table, formula, step = mover.table, mover.step.formula, mover.step
        several = len(variants_of(table)) > 1
        registers = {f"r{i}": register for i, register in enumerate(mover.registers)}
        operands, numbers = self._operands(mover, kind.live, known)
        with self.drafter.only_in(*([kind.number] if several else [])):
            attrs: dict[str, Any] = {"table": mover.number, "answers": numbers, "width": table.branches}
            extras: dict[str, Value] = {}
            coefficients: Value | None = None
            if formula is not None:
                coefficients = self._statistics(mover, kind, registers, operands, attrs, formula)
                extras = self._elementwise(mover, registers, operands, attrs, formula, coefficients)
            bank = self.outside.bank_input if "draw" in table.columns else None
            ins = {**registers, **operands, **extras, "coef": coefficients, "bank": bank}
            outs = {**registers, **{f"xin{number}": x for (number, _), x in mover.inputs.items()}}
            call = {**attrs, **self._layout(mover, coefficients is not None), "site": step.site}
            call |= {"cin": mover.column("c_in") if mover.inputs else -1}
            if several:
                call["variant"] = mover.column("variant")
            if bank is not None:
                call["draw"] = mover.column("draw")
            if formula is not None and formula.results:
                call |= {
                    "estimates": table.estimates,
                    "program": numbered(formula.elementwise, table),
                    "results": list(formula.results),
                    "draws": formula.draws,
                }
            self.drafter.call("sampler_step", ins, outs, call, str(step.rule))

    def _layout(self, mover: Mover, per_sample: bool) -> dict[str, int]:
        """Where the coefficients stand: in the table's row, or in the sample's own."""
        table = mover.table
        r, k = len(table.registers), table.branches
        sizes = {"a": r * r, "b": r * k, "c": r, "e": table.estimates * (r + k), "h": r * table.outputs}
        at = 0 if per_sample else 2
        layout: dict[str, int] = {}
        for name, size in sizes.items():
            if size or name in ("a", "b", "c"):
                layout[name] = at
            at += size
        return layout

    def _statistics(
        self,
        mover: Mover,
        kind: Variant,
        registers: Mapping[str, Value],
        operands: Mapping[str, Value],
        attrs: Mapping[str, Any],
        formula: Formula,
    ) -> Value | None:
        """Inner products, then the programs per sample: the coefficients of a step, and what it observes."""
        table, drafter, name = mover.table, self.drafter, self.loop.name
        wanted = formula.coefficients if kind.on else ()
        if not wanted and not formula.observations:
            return None
        sources: dict[str, Value] = {}
        sums = drafter.new((Batch(), max(len(formula.statistics), 1)), name=f"{name}.gram")
        if formula.statistics:
            f = mover.column("f0_0")
            call = {**attrs, "f": f, "forms": table.forms, "stats": [list(pair) for pair in formula.statistics]}
            drafter.call("gram", {**registers, **operands}, {"g": sums}, call, name)
        else:
            drafter.call("fill", {}, {"x": sums}, {"value": 0.0}, name)
        sources["x0"] = sums
        scalars = [extra for extra in mover.step.extras if isinstance(extra.type, v.Scalar)]
        for i, extra in enumerate(scalars):
            sources[f"x{1 + i}"] = shapes.unsqueeze(self.outside.value(extra), 1)
        program = numbered(formula.per_sample, table)
        made: Value | None = None
        if wanted:
            made = drafter.new((Batch(), len(wanted)), name=f"{name}.coef")
            call = {"table": mover.number, "program": program, "results": list(wanted)}
            drafter.call("scalars", sources, {"y": made}, call, name)
        for i, result in enumerate(formula.observations):
            if i not in mover.observed:
                mover.observed[i] = drafter.new((Batch(), 1), name=f"{name}.norm{i}")
            call = {"table": mover.number, "program": program, "results": [result]}
            drafter.call("scalars", sources, {"y": mover.observed[i]}, call, name)
        return made

    def _elementwise(
        self,
        mover: Mover,
        registers: Mapping[str, Value],
        operands: Mapping[str, Value],
        attrs: Mapping[str, Any],
        formula: Formula,
        coefficients: Value | None,
    ) -> dict[str, Value]:
        """The extra operands of the elementwise program: the step's own, then quantiles."""
        shape = mover.registers[0].shape
        values = [
            shapes.expand(self._aligned(self.outside.value(extra), len(shape)), shape)
            for extra in mover.step.extras
            if not isinstance(extra.type, v.Scalar)
        ]
        layout = self._layout(mover, coefficients is not None)
        width = len(mover.table.registers) + mover.table.branches
        for estimate, q in formula.quantiles:
            y = self.drafter.new((Batch(), 1), name=f"{self.loop.name}.quantile")
            call = {**attrs, "e": layout["e"] + estimate * width, "q": q}
            self.drafter.call(
                "quantile", {**registers, **operands, "coef": coefficients}, {"y": y}, call, self.loop.name
            )
            values.append(shapes.expand(self._aligned(y, len(shape)), shape))
        return {f"x{i}": value for i, value in enumerate(values)}

    def _aligned(self, value: Value, rank: int) -> Value:
        """[B, …] with dimensions of size 1 put in behind the batch until it has ``rank`` of them."""
        if len(value.shape) == 2 and value.shape[1] == 1:
            value = shapes.squeeze(value, [1])
            while len(value.shape) < rank:
                value = shapes.unsqueeze(value, -1)
        while len(value.shape) < rank:
            value = shapes.unsqueeze(value, 1)
        return value

    # --- what is emitted -------------------------------------------------------------------------

    def _records(self, movers: Sequence[Mover]) -> dict[str, tuple[n.Observe, Mover, Value]]:
        """Room for what the loop emits: [B, steps, …]."""
        records: dict[str, tuple[n.Observe, Mover, Value]] = {}
        for emit in self.loop.emits:
            assert isinstance(emit, n.Emit)
            seen = emit.value
            owner = next((m for m in movers if isinstance(seen, n.Observe) and m.step is seen.step), None)
            if not isinstance(seen, n.Observe) or owner is None:
                cure = "emit the state, a prediction about it, a norm or a log-probability"
                raise self.outside.refuse(emit, f"a {seen.op} in a loop", cure)
            steps = owner.table.steps[-1] + 1
            shape = () if seen.what in ("statistic", "log_prob") else owner.registers[0].shape[1:]
            room = self.outside.filled((Batch(), steps, *shape), 0.0, "f32", emit.name)
            records[emit.name] = (seen, owner, room)
        return records

    def _record(self, records: Mapping[str, tuple[n.Observe, Mover, Value]], when: str) -> None:
        for name, (seen, owner, room) in records.items():
            if (seen.what == "before") != (when == "before"):
                continue
            slot = {"before": "first", "after": "last", "log_prob": "last"}.get(seen.what, "called")
            value = self._observed(seen, owner, name)
            attrs = {"table": owner.number, "column": owner.column(slot)}
            self.drafter.call("record", {"x": value}, {"y": room}, attrs, name)

    def _observed(self, seen: n.Observe, owner: Mover, name: str) -> Value:
        match seen.what:
            case "before" | "after":
                return owner.registers[0]
            case "register":
                return owner.registers[seen.index]
            case "statistic":
                return shapes.squeeze(owner.observed[seen.index], [1])
            case _:
                return self._log_prob(seen, owner, name)

    def _log_prob(self, seen: n.Observe, owner: Mover, name: str) -> Value:
        """log N(x'; mean, c^2): -|z|^2 / 2 - E (ln c + ln(2 pi) / 2), and 0 where nothing is drawn."""
        z = owner.registers[seen.index]
        elements = int(np.prod([d for d in z.shape[1:] if isinstance(d, int)]))
        squares = self.drafter.new(z.shape, name=f"{name}.squares")
        self.drafter.call("pointwise", {"x0": z}, {"y": squares}, {"program": [["square", 0]]}, name)
        total = self.drafter.new((Batch(),), name=f"{name}.sum")
        axes = list(range(1, len(z.shape)))
        self.drafter.call("reduce", {"x": squares}, {"y": total}, {"kind": "sum", "axes": axes}, name)
        made = self.drafter.new((Batch(), 1), name=f"{name}.value")
        c = owner.column("c0")
        program = [
            ["in", 0, 0], ["const", -0.5], ["mul", 0, 1],
            ["row", c], ["abs", 3], ["const", 1e-37], ["max", 4, 5], ["log", 6],
            ["const", 0.5 * float(np.log(2 * np.pi))], ["add", 7, 8], ["const", float(elements)], ["mul", 9, 10],
            ["sub", 2, 11], ["const", 0.0], ["where", 3, 12, 13],
        ]  # fmt: skip
        attrs = {"table": owner.number, "program": program, "results": [14]}
        self.drafter.call("scalars", {"x0": shapes.unsqueeze(total, 1)}, {"y": made}, attrs, name)
        return shapes.squeeze(made, [1])


def drawing_rows(step: n.SamplerStep) -> list[bool]:
    """Which rows of a folded step draw noise."""
    assert step.table is not None
    always = step.formula is not None and step.formula.draws
    return [always or bool(step.table.row(i).c.any()) for i in range(len(step.table.rows))]


def live_leaves(step: n.SamplerStep, live: Sequence[int]) -> list[tuple[n.Node, tuple[int, ...]]]:
    """The operands of a step of which some answer is live, with the branches that are."""
    found: list[tuple[n.Node, tuple[int, ...]]] = []
    first = 0
    for leaf in step.preds:
        count = answers_of(leaf)
        branches = tuple(i for i in range(count) if first + i in live)
        if branches:
            found.append((leaf, branches))
        first += count
    return found


def prepared_leaf(mover: Mover, kind: Variant) -> tuple[n.Score, tuple[int, ...]] | None:
    """The score whose input the sampler step writes along with the state: the first one, if it reads c_in."""
    for leaf, branches in live_leaves(mover.step, kind.live):
        if isinstance(leaf, n.Score):
            return (leaf, branches) if scale_column(mover.table, leaf.net) == "c_in" else None
    return None


def numbered(program: Sequence[Sequence[Any]], table: StepTable) -> list[list[Any]]:
    """A program with columns by number."""
    return [[op, table.columns.index(args[0])] if op in ("row", "next") else [op, *args] for op, *args in program]


def split_variance(drafter: Drafter, answer: Value, net: v.NetRef, branches: int) -> list[Value]:
    """A network's answer, and what it says of its variance if it does: the second half of the channels, branch 0."""
    if not net.variance:
        return [drafter.dense(answer, net.name)]
    answer = drafter.dense(answer, net.name)
    channels = answer.shape[1]
    assert isinstance(channels, int)
    half = channels // 2
    split = shapes.view(drafter, answer, (Batch(), branches, *answer.shape[1:]), net.name)
    variance = shapes.narrow(shapes.select(split, 1, 0), 1, half, half)
    return [shapes.narrow(answer, 1, 0, half), variance]

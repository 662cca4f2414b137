"""What the networks of a loop say in a row: scores, gradients of energies, divergences, as operands of the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scoregraph.graph import nodes as n
from scoregraph.graph import values as v
from scoregraph.graph.energies import Energy
from scoregraph.passes.lower import shape as shapes
from scoregraph.passes.lower.mover import Mover, Outside, Variant, interleave, live_leaves, prepared_leaf, variants_of
from scoregraph.passes.sampling.algebra import joint_score
from scoregraph.passes.sampling.batch_branches import answers_of
from scoregraph.passes.sampling.fold_tables import scale_column, time_column
from scoregraph.passes.sampling.layout import clean_gradients
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Drafter, Value


@dataclass
class Answers:
    """Lowers the network calls of one loop.

    Attributes:
        movers: the sampler steps of the loop.
        said: answers that came with a divergence, by network, state and condition.
    """

    outside: Outside
    loop: n.Loop
    movers: Sequence[Mover]
    batched: dict[tuple[n.Node, tuple[int, ...]], list[Value]] = field(
        default_factory=dict[tuple[n.Node, tuple[int, ...]], list[Value]]
    )
    said: dict[tuple[str, n.Node, n.Node], Value] = field(default_factory=dict[tuple[str, n.Node, n.Node], Value])

    @property
    def drafter(self) -> Drafter:
        """The plan in the making."""
        return self.outside.drafter

    def prepare(self, mover: Mover) -> None:
        """What is fixed in the loop: conditions of all branches, extra operands, the first input of the networks."""
        for extra in mover.step.extras:
            self.outside.value(extra)
        for kind in variants_of(mover.table):
            for leaf, branches in live_leaves(mover.step, kind.live):
                self._fix(leaf, branches)
            ready = prepared_leaf(mover, kind)
            if ready is not None:
                x_in = self.input(mover, kind, ready)
                attrs = {"table": mover.number, "column": mover.column("c_in"), "row": 0}
                self.drafter.call("step_input", {"x": mover.registers[0]}, {"xin": x_in}, attrs, self.loop.name)

    def _fix(self, leaf: n.Node, branches: tuple[int, ...]) -> None:
        """Compute what a network reads and no step changes."""
        match leaf:
            case n.Score():
                self._branches(leaf, branches)
            case n.EnergyGrad():
                for value in leaf.values:
                    self.outside.value(value)
                if (score := joint_score(leaf)) is not None:
                    self._branches(score, (0,))
            case n.Divergence():
                self.outside.condition(leaf.cond)
                if leaf.probe is not None:
                    self.outside.value(leaf.probe)
            case _:
                pass

    def of(self, mover: Mover) -> list[tuple[Variant, dict[n.Node, list[Value]]]]:
        """The answers of every variant's networks, by leaf: the operands p of the sampler step."""
        found: list[tuple[Variant, dict[n.Node, list[Value]]]] = []
        kinds = variants_of(mover.table)
        for kind in kinds:
            with self.drafter.only_in(*([kind.number] if len(kinds) > 1 else [])):
                values: dict[n.Node, list[Value]] = {}
                ready = prepared_leaf(mover, kind)
                for leaf, branches in live_leaves(mover.step, kind.live):
                    if isinstance(leaf, n.Score):
                        x_in = self.input(mover, kind, ready) if ready is not None and ready[0] is leaf else None
                        values[leaf] = self._score(mover, leaf, branches, x_in)
                    elif isinstance(leaf, n.EnergyGrad):
                        values[leaf] = [self._gradient(mover, leaf, values)]
                    else:
                        assert isinstance(leaf, n.Divergence)
                        values[leaf] = [self._divergence(mover, leaf)]
                found.append((kind, values))
        return found

    def operands(
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
        if variance is not None and first < mover.table.branches:  # else its sampler does not ask for it
            values.append(variance)
            numbers.append(first)
        return {f"p{i}": value for i, value in enumerate(values)}, numbers

    # --- inputs ------------------------------------------------------------------------------------

    def input(self, mover: Mover, kind: Variant, leaf: tuple[n.Score, tuple[int, ...]]) -> Value:
        """The buffer that the sampler step fills for the first network of a variant."""
        if kind.number not in mover.inputs:
            shape = mover.registers[0].shape[1:]
            name = f"{self.loop.name}.x_in{kind.number}"
            rows = self._rows(leaf[0], len(leaf[1]))
            mover.inputs[kind.number] = self.drafter.new((Batch(rows), *shape), name=name)
        return mover.inputs[kind.number]

    def _branches(self, score: n.Score, branches: tuple[int, ...]) -> list[Value]:
        """Each encoded condition for some branches: [KB, …], branch j of sample b in row b*K + j."""
        key = (score, branches)
        if key not in self.batched:
            per_branch = [self.outside.condition(score.conds[i]) for i in branches]
            self.batched[key] = [interleave(self.drafter, list(parts)) for parts in zip(*per_branch, strict=True)]
        return self.batched[key]

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

    # --- calls ---------------------------------------------------------------------------------

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
        operands, numbers = self.operands(mover, tuple(range(width)), known)
        attrs = {
            "table": mover.number, "a": at, "b": at + 4, "c": at + 4 + 2 * width,
            "cin": -1, "site": 0, "answers": numbers, "width": width,
        }  # fmt: skip
        state = {"r0": x0, "r1": x}
        self.drafter.call("sampler_step", {**state, **operands}, state, attrs, f"{self.loop.name}.x0")
        return x0

    def _divergence(self, mover: Mover, leaf: n.Divergence) -> Value:
        """-div eps(X) of a network about another carried state, [B, 1]; its answer serves that state's step, too."""
        owner = next(m for m in self.movers if m.step.state is leaf.x)
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

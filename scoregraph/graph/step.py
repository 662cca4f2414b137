"""The body of a loop while it is being written: what it carries, where it stands in time, how its values move."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scoregraph.errors import (
    LoopStillOpen,
    LoopWithoutStep,
    ScoregraphError,
    StepAdvancedTwice,
    StepNotTaken,
    UnknownName,
    WrongOperand,
    here,
)
from scoregraph.graph import nodes as n
from scoregraph.graph.analysis import moved_by
from scoregraph.graph.node import Node
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.rules import carried, expect, family
from scoregraph.graph.samplers import Sampler
from scoregraph.graph.schedules import Schedule
from scoregraph.graph.spec import Spec
from scoregraph.graph.values import Latent, Pred, Time, Tokens

if TYPE_CHECKING:
    from scoregraph.graph.builder import GraphBuilder, Operand


class Step:
    """The body of a loop: the values it carries, where it stands in time, and how its state moves."""

    def __init__(
        self,
        builder: GraphBuilder,
        name: str,
        init: tuple[Operand, ...],
        schedule: Spec | None = None,
        max_iters: int | None = None,
    ) -> None:
        self.builder = builder
        self.schedule = schedule
        self.max_iters = max_iters
        self.emits: list[n.Emit] = []
        self.where = here()
        self._init = tuple(builder.use(value) for value in init)
        self._active: Node | None = None
        self._loop: n.Loop | n.While | None = None
        try:
            if max_iters is None:
                family(schedule, ["schedule"])
            self._carried = tuple(carried(node.type) for node in self._init)
            expect(f"the state of the loop {name}", self._carried[0] if self._carried else Time(), Latent, Tokens)
        except ScoregraphError as error:
            raise error.at(self.where) from None
        self.name = builder.loop_name(name)
        self._results: list[Node | None] = [None] * len(self._init)

    @property
    def vars(self) -> tuple[n.LoopVar, ...]:
        """The carried values at the start of a step."""
        self.builder.check_step(self)
        return tuple(n.LoopVar(self.name, i, kind) for i, kind in enumerate(self._carried))

    @property
    def x(self) -> n.LoopVar:
        """The state at the start of a step."""
        return self.vars[0]

    @property
    def time(self) -> n.StepTime:
        """Where the loop stands on its schedule."""
        if self.schedule is None:
            raise WrongOperand(operand="time", expected="that of a loop over a schedule", got="a while", where=here())
        return self.builder.node(n.StepTime, self.name)

    def advance(self, rule: Spec, pred: Node, *, index: int = 0) -> n.SamplerStep:
        """Move the state by a sampler and a prediction (latents), or by a select rule and logits (tokens).

        ``index`` is the number of the carried value that moves: 0 is the state; another may move beside it. A sampler
        that chooses its own steps makes the loop a while, which ends when every sample is at the end of the schedule.
        """
        builder, where = self.builder, here()
        builder.check_step(self)
        self._check_index(index, lowest=0)
        self._check_unset(index)
        time = None if self.schedule is None else self.time
        step = builder.node(n.SamplerStep, rule, self.vars[index], (builder.use(pred),), time, builder.site())
        moved = step.preds[0].type
        prediction = moved.prediction if isinstance(moved, Pred) else None
        if isinstance(rule, Sampler) and isinstance(self.schedule, Schedule) and isinstance(prediction, Prediction):
            rule.check(self.schedule, prediction, where)
            if any(n.moves_mean(grad) for fusion in n.fusions_of(step.preds[0]) for grad in fusion.grads):
                builder.check_draws(step)
        self._results[index] = step
        return step

    def inpaint(self, known: Operand, mask: Operand, noise: Node) -> n.Inpaint:
        """Put the known part back after the step: where ``mask`` is 0, the state is ``known`` at its noise level."""
        builder = self.builder
        builder.check_step(self)
        moved = self._moved("inpainting")
        kept = builder.node(n.Inpaint, moved, builder.use(known), builder.use(mask), builder.use(noise), self.time)
        self._results[0] = kept
        return kept

    @property
    def log_prob(self) -> n.LogProb:
        """log p(x' | x) of the step this loop takes, per sample."""
        self.builder.check_step(self)
        return self.builder.log_prob(self._moved("its log-probability"))

    def _moved(self, what: str) -> Node:
        """What the state has become in this body."""
        moved = self._results[0]
        if moved is None:
            raise StepNotTaken(loop=self.name, what=what, where=here())
        return moved

    def carry(self, index: int, value: Node) -> None:
        """Set a carried value other than the state for the next step; without this it stays as it is."""
        self.builder.check_step(self)
        self._check_index(index, lowest=1)
        self._check_unset(index)
        self._results[index] = self.builder.use(value)

    def go_on(self, mask: Node) -> None:
        """Go on with a while as long as ``mask``, of the values at the start of a step, holds anywhere."""
        self.builder.check_step(self)
        self._active = self.builder.use(mask)

    @property
    def result(self) -> n.Get:
        """The state after the last step."""
        return self.results[0]

    @property
    def results(self) -> tuple[n.Get, ...]:
        """All carried values after the last step."""
        if self._loop is None:
            raise LoopStillOpen(what="its result", loop=self.name, where=here())
        loop = self._loop
        return tuple(self.builder.node(n.Get, loop, i) for i in range(len(self._results)))

    def __enter__(self) -> Step:
        self.builder.open.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                self._close()
        finally:
            self.builder.open.remove(self)

    def _close(self) -> None:
        if self._results[0] is None:
            raise LoopWithoutStep(loop=self.name, missing="step.advance(sampler, pred)", where=self.where)
        results = tuple(kept if kept is not None else var for kept, var in zip(self._results, self.vars, strict=True))
        builder, emits = self.builder, tuple(self.emits)
        step = moved_by(results[0])
        rule = None if step is None else step.rule
        if isinstance(rule, Sampler) and rule.adaptive and self.schedule is not None:
            going = builder.node(n.Unfinished, self.time)
            limit: int = vars(rule)["max_rounds"]
            self._loop = builder.node(n.While, self.name, limit, self._init, results, going, emits, self.schedule)
            return
        if self.max_iters is None:
            self._loop = builder.node(n.Loop, self.name, self.schedule, self._init, results, emits)
            return
        if self._active is None:
            raise LoopWithoutStep(loop=self.name, missing="step.go_on(mask)", where=self.where)
        self._loop = builder.node(n.While, self.name, self.max_iters, self._init, results, self._active, emits)

    def _check_index(self, index: int, lowest: int) -> None:
        if not lowest <= index < len(self._results):
            known = [str(i) for i in range(lowest, len(self._results))]
            raise UnknownName(kind=f"carried value of {self.name}", name=str(index), known=known, where=here())

    def _check_unset(self, index: int) -> None:
        if self._results[index] is not None:
            raise StepAdvancedTwice(index=index, loop=self.name, where=here())

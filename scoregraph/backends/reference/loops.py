"""Loops over a schedule: what is carried, the steps that move it, and what a turn of the loop shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from scoregraph.backends.reference import textbook
from scoregraph.backends.reference.moments import Interpreter, Memory, Moment, Scope
from scoregraph.backends.reference.movers import Mover, Seen
from scoregraph.backends.reference.textbook import Point, Walk
from scoregraph.graph import nodes as n
from scoregraph.graph import values as v
from scoregraph.graph.samplers import Sampler
from scoregraph.graph.schedules import Grid, Schedule


@dataclass
class LoopRun:
    """One loop while it runs.

    Attributes:
        carry: the carried values as the step begins.
        movers: the sampler steps that follow tables, by the number of the value they move.
        book: what a sampler that follows its paper keeps between steps.
    """

    run: Interpreter
    loop: n.Loop
    scope: Scope
    record: Callable[[str, Any], None]
    carry: list[Any] = field(default_factory=list[Any])
    movers: dict[int, Mover] = field(default_factory=dict[int, Mover])
    book: dict[str, Any] = field(default_factory=dict[str, Any])
    memory: Memory = field(default_factory=Memory)

    def __post_init__(self) -> None:
        if not isinstance(self.loop.schedule, Schedule):
            raise self.run.refusal(self.loop, "the reference interprets continuous schedules")
        self.schedule = self.loop.schedule
        self.grid: Grid = self.schedule.grid()
        self.steps = {i: step for i, result in enumerate(self.loop.results) if (step := _step_of(result)) is not None}
        for step in self.steps.values():
            if not isinstance(step.rule, Sampler) or not isinstance(step.state, n.LoopVar):
                raise self.run.refusal(step, "the reference interprets samplers of the loop's own state")
        self.by_the_book = len(self.steps) == 1 and all(map(self._known, self.steps.values()))
        if not self.by_the_book:
            self.movers = {i: Mover.of(self.run, step, self.schedule) for i, step in self.steps.items()}

    def _known(self, step: n.SamplerStep) -> bool:
        """Whether a step is one of the papers', as they state it, and nothing is asked about its rows."""
        observed = any(isinstance(emit, n.Emit) and isinstance(emit.value, n.LogProb) for emit in self.loop.emits)
        fusions = [fusion for pred in step.preds for fusion in n.fusions_of(pred)]
        split = any(getattr(fusion.guidance, "splits", False) for fusion in fusions)
        pulled = any(n.moves_mean(grad) for fusion in fusions for grad in fusion.grads)
        return step.table is None and textbook.knows(step.rule) and not (observed or split or pulled)

    def values(self) -> list[Any]:
        """All steps; what is carried behind the last one."""
        self.carry = [self._start(i) for i in range(len(self.loop.init))]
        for i, mover in self.movers.items():
            mover.start(self.carry[i])
        for step in range(self.grid.steps):
            self._turn(step)
        return self.carry

    def _start(self, i: int) -> Any:
        """What a loop begins with: noise, and clean samples, are brought to the first noise level."""
        init = self.loop.init[i]
        value = self.run.value(init, self.scope)
        if not isinstance(init.type, v.Noise | v.Start):
            return value
        space = init.type.latent.space
        first = Moment.start(self.grid, 0).point(space)
        if isinstance(init.type, v.Start):
            clean, noise = value
            return first.alpha * clean + first.sigma * noise
        if i in self.movers:
            return self.movers[i].table.init_scale * value
        return (1.0 if space == "vp" else first.sigma) * value

    def _body(self, carry: list[Any], moment: Moment) -> Scope:
        """A scope in which the loop's variables have the values of ``carry`` at ``moment``."""
        known: dict[n.Node, Any] = {n.StepTime(self.loop.name): moment}
        for i, value in enumerate(carry):
            known[n.LoopVar(self.loop.name, i, _carried(self.loop.init[i].type))] = value
        return Scope(self.loop.name, self.scope, known, dict(self.memory))

    # --- one step --------------------------------------------------------------------------------

    def _turn(self, step: int) -> None:
        """One step of everything that is carried, then what the loop emits."""
        moved, body, seen = self._by_the_book(step) if self.by_the_book else self._by_rows(step)
        for i, result in enumerate(self.loop.results):
            inner = _step_of(result)
            if inner is None:
                moved[i] = self.run.value(result, body)
                continue
            body.known[inner] = moved[i]
            if i in seen:
                body.known[n.LogProb(inner)] = seen[i].log_prob + 0.0 * moved[i].flatten(1)[:, 0]
            if isinstance(result, n.Inpaint):
                moved[i] = body.known[result] = self._inpainted(result, moved[i], step, body)
                if i in self.movers:
                    self.movers[i].registers[0] = moved[i]
            if i in seen:
                seen[i].after = moved[i]
        for emit in self.loop.emits:
            assert isinstance(emit, n.Emit)
            self.record(emit.name, self._emitted(emit.value, body, seen))
        self.carry = moved

    def _inpainted(self, node: n.Inpaint, state: Tensor, step: int, body: Scope) -> Tensor:
        """mask * state + (1 - mask) * (alpha' known + sigma' noise), at the point where the step ends."""
        assert isinstance(node.type, v.Latent)
        mask, known, noise = (self.run.value(given, body) for given in (node.mask, node.known, node.noise))
        end = Moment.start(self.grid, step).end(node.type.space)
        return mask * state + (1.0 - mask) * (end.alpha * known + end.sigma * noise)

    def _emitted(self, value: n.Node, body: Scope, seen: dict[int, Seen]) -> Any:
        """What a turn shows: variables as the step began, everything else at its first network call."""
        if isinstance(value, n.LoopVar):
            return self.carry[value.index]
        if not isinstance(value, n.Observe):
            return self.run.value(value, body)
        found = next(seen[i] for i, mover in self.movers.items() if mover.step is value.step)
        match value.what:
            case "before":
                return found.before
            case "after":
                return found.after
            case "register":
                return found.registers[value.index]
            case "statistic":
                return found.statistics[value.index]
            case _:
                return found.log_prob + 0.0 * found.after.flatten(1)[:, 0]

    def _by_rows(self, step: int) -> tuple[list[Any], Scope, dict[int, Seen]]:
        """All rows of a step, those of several movers side by side: networks see states as they were before a row."""
        rows = {i: mover.rows(step) for i, mover in self.movers.items()}
        if len({len(found) for found in rows.values()}) > 1:
            raise self.run.refusal(self.loop, "two samplers that call networks at different points of a step")
        now = list(self.carry)
        for i, mover in self.movers.items():
            mover.registers[0] = now[i]
        seen = {i: Seen(before=now[i], after=now[i]) for i in self.movers}
        shown: Scope | None = None
        body = self._body(now, Moment.start(self.grid, step))
        for turn in range(len(next(iter(rows.values()), []))):
            after: dict[int, list[Tensor]] = {}
            for i, mover in self.movers.items():
                row = rows[i][turn]
                body = self._body(now, mover.moment(self.grid, row))
                after[i] = mover.turn(row, body, seen[i])
                self.memory.update(body.remembered)
                if shown is None and mover.calls(row):
                    shown = body
            for i, registers in after.items():
                self.movers[i].registers = registers
                now[i] = registers[0]
        return now, body if shown is None else shown, seen

    def _by_the_book(self, step: int) -> tuple[list[Any], Scope, dict[int, Seen]]:
        """The only sampler step, as its paper states it."""
        ((i, node),) = self.steps.items()
        latent, (pred,) = node.state.type, node.preds
        assert isinstance(latent, v.Latent)
        assert isinstance(pred.type, v.Pred)
        kind = pred.type.prediction
        here = Moment.start(self.grid, step)
        there = Moment(self.grid, step, Point(self.grid.alpha[step + 1], self.grid.sigma[step + 1]))
        bodies: list[Scope] = []
        calls = self.book.setdefault("calls", [0])

        def denoise(x: Tensor, point: Point) -> Tensor:
            moment = here if point == here.point(latent.space) else there
            body = self._body([*self.carry[:i], x, *self.carry[i + 1 :]], moment)
            bodies.append(body)
            calls[0] += 1
            (m,) = self.run.value(pred, body)
            self.memory.update(body.remembered)
            return textbook.clean(kind, m, x, point)

        walk = Walk(
            x=self.carry[i],
            here=here.point(latent.space),
            there=there.point(latent.space),
            denoise=denoise,
            # Noise belongs to the network call before it.
            noise=lambda: self.run.normals(latent, node.site, calls[0] - 1),
            prediction=kind,
            memory=self.book,
        )
        moved = list(self.carry)
        moved[i] = textbook.STEPS[node.rule.name](node.rule, walk)
        return moved, bodies[0], {}


def _step_of(result: n.Node) -> n.SamplerStep | None:
    """The sampler step in a loop's result, below what puts known parts back."""
    inner = result.state if isinstance(result, n.Inpaint) else result
    return inner if isinstance(inner, n.SamplerStep) else None


def _carried(kind: v.ValueType) -> v.ValueType:
    """The type of a loop variable that starts as ``kind``."""
    return kind.latent if isinstance(kind, v.Noise | v.Start) else kind

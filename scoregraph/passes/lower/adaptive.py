"""A loop whose sampler chooses its own steps, as rounds of calls: the stages of an embedded Runge-Kutta method, then
the decision about the step, all per sample.

    round:  per stage  scalars ─▶ step_input, step_time ─▶ network ─▶ sampler_step (slopes, next stage's state)
            at the end rms of the error ─▶ scalars (accept? next length) ─▶ sampler_step (take it or leave it)

The stages are rows of a table; what depends on a sample's own s and h are its coefficients. The first round has length
0: it evaluates the first slope where the method wants one from the step before, and is always accepted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from scoregraph.graph import nodes as n
from scoregraph.graph import values as v
from scoregraph.graph.expression import Expr, clamp, column, constant, given, hypot, log, maximum, sqrt, trace, where
from scoregraph.graph.expression import Value as Number
from scoregraph.graph.guidance import Guidance
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.samplers.runge_kutta import GROW, SAFETY, SHRINK, RungeKutta
from scoregraph.graph.schedules import Discrete, Grid, Schedule
from scoregraph.passes.lower import shape as shapes
from scoregraph.passes.lower.answers import split_variance
from scoregraph.passes.lower.mover import Outside
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Drafter, Value
from scoregraph.plan.schema import Repeat

STATE, KEPT, SLOPE = 0, 1, 2
"""Registers: what the network sees, the state at the beginning of the step, the first slope."""

SOURCE, POSITION, LENGTH, ACTIVE, OK = 0, 0, 1, 2, 3
"""A sample's own numbers, operand 0 of every program: s, h, whether it is still on its way, whether it was accepted."""


@dataclass
class AdaptiveLowering:
    """Lowers one such loop; ``run`` gives the state that leaves it."""

    outside: Outside
    loop: n.While
    columns: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    # --- what is integrated ------------------------------------------------------------------------

    @property
    def drafter(self) -> Drafter:
        """The plan in the making."""
        return self.outside.drafter

    @cached_property
    def step(self) -> n.SamplerStep:
        """The step of the loop."""
        step = self.loop.results[0]
        if len(self.loop.results) != 1 or not isinstance(step, n.SamplerStep) or not isinstance(step.rule, RungeKutta):
            raise self._refusal(
                "the loop is not that of one adaptive sampler", "use step.advance(sg.samplers.rk45(), …)"
            )
        if self.loop.emits:
            raise self._refusal("it emits values, though every sample has its own steps", "emit after the loop")
        return step

    @property
    def rule(self) -> RungeKutta:
        """The method."""
        assert isinstance(self.step.rule, RungeKutta)
        return self.step.rule

    @cached_property
    def grid(self) -> Grid:
        """The schedule, of which only the ends count."""
        assert isinstance(self.loop.schedule, Schedule)
        assert isinstance(self.step.state.type, v.Latent)
        return self.loop.schedule.grid().in_space(self.step.state.type.space)

    @cached_property
    def ends(self) -> tuple[float, float]:
        """s where the solver starts and where it stops: the last point with noise."""
        points = [self.grid.point(0), self.grid.point(self.grid.steps)]
        if points[1].sigma == 0.0:
            points[1] = self.grid.point(self.grid.steps - 1)
        first, last = (at.sigma / (at.alpha + at.sigma) for at in points)
        if first == last:
            raise self._refusal("its schedule has one noise level only", "give the schedule at least two steps")
        return first, last

    @cached_property
    def answers(self) -> tuple[n.Score, list[float]]:
        """The network with all its branches, and their weights, which must be the same everywhere."""
        pred = self.step.preds[0]
        scores = list(pred.preds) if isinstance(pred, n.FusedScore) else [pred]
        weights: list[float] = [1.0]
        if isinstance(pred, n.FusedScore):
            rows = self._weights(pred.guidance)
            if pred.grads or pred.scale is not None or any(row is None or row != rows[0] for row in rows):
                reason = "an adaptive sampler needs guidance with the same weights everywhere, and no gradients"
                raise self._refusal(reason, "use sg.guidance.cfg without an interval, or a sampler with fixed steps")
            weights = list(rows[0] or ())
        merged: list[n.Score] = []
        for score in scores:
            if not isinstance(score, n.Score) or (merged and (score.net, score.x) != (merged[0].net, merged[0].x)):
                reason = "an adaptive sampler reads the branches of one network, and nothing in between"
                raise self._refusal(reason, "use a sampler with fixed steps")
            merged.append(score)
        if merged[0].net.time == "angle":
            raise self._refusal("its network is told an angle", "use a sampler with fixed steps")
        conds = tuple(cond for score in merged for cond in score.conds)
        return n.Score(merged[0].net, merged[0].x, merged[0].time, conds), weights

    def _weights(self, rule: object) -> list[tuple[float, ...] | None]:
        """A rule's weights all along the schedule: at its points and, as the solver stops anywhere, between them."""
        if not isinstance(rule, Guidance) or rule.splits:
            return [None]
        grid, rows = self.grid, list[tuple[float, ...] | None]()
        for i in range(grid.steps):
            here, there = (at.sigma / (at.alpha + at.sigma) for at in (grid.point(i), grid.point(i + 1)))
            for share in np.linspace(0.0, 1.0, 64, endpoint=False).tolist():
                alpha, sigma, _ = _point(grid.space, here + share * (there - here))
                rows.append(rule.weights(i, grid.steps, alpha, sigma))
        return rows

    def _refusal(self, reason: str, cure: str) -> Exception:
        return self.outside.refuse(self.loop, reason, cure)

    # --- formulas, per sample ------------------------------------------------------------------------

    def _formulas(self, s: Number) -> tuple[Number, Number, Number, Number]:
        """(time or ln kappa, factor of the network's input, P, Q) at s: eps - x0 = P x_f + Q m."""
        net = self.answers[0].net
        assert isinstance(net.latent, v.Latent)
        assert isinstance(net.prediction, Prediction)
        alpha, sigma, norm = _point(net.latent.space, s)
        (p, q), (p_eps, q_eps) = net.prediction.to_x0(alpha, sigma), net.prediction.to_eps(alpha, sigma)
        c_in = net.prediction.c_in(alpha, sigma)
        return _time(net.time, s), c_in * norm, (p_eps - p) * norm, q_eps - q

    def _number(self, values: Sequence[float]) -> Expr:
        """Numbers by row as a column."""
        if not any(values):
            return constant(0.0)
        name = f"k{len(self.columns)}"
        for known, same in self.columns.items():
            if same == list(values):
                return column(known)
        self.columns[name] = list(values)
        return column(name)

    # --- lowering ------------------------------------------------------------------------------------

    def run(self) -> Value:
        """The state after the loop, in the space of its latent."""
        drafter, name, (start, stop) = self.drafter, self.loop.name, self.ends
        self._conditions()
        y = self._start()
        slots = self._slots()
        registers = [y, *(self.outside.filled(y.shape, 0.0, "f32", f"{name}.r{i}") for i in range(1, slots))]
        drafter.call("copy", {"x": y}, {"y": registers[KEPT]}, site=name)
        own = self._own(start)
        active = self.outside.filled((Batch(),), 1.0, "f32", f"{name}.active")
        inputs, machine, decide = self._programs(slots)
        rows = np.array([*self.columns.values()]).T
        names = ["last", *self.columns]
        last = np.zeros((len(rows), 1))
        last[-1] = 1.0
        number = drafter.table(name, names, np.concatenate([last, rows], axis=1))
        repeat = Repeat(active=int(active.storage[1:]), limit=self.rule.max_rounds)
        here = {"table": number}
        drafter.begin(name, number, 0, repeat)
        m = self._evaluate(own, registers[STATE], here, inputs, names)
        coef = drafter.new((Batch(), len(machine[1])), name=f"{name}.coef")
        self._scalars({"x0": own}, coef, machine, here, names)
        self._move(registers, coef, number, m)
        with drafter.only_in(1):
            norm = self._error(registers)
            after = drafter.new(own.shape, name=f"{name}.after")
            self._scalars({"x0": own, "x1": norm}, after, decide, here, names)
            drafter.call("copy", {"x": after}, {"y": own}, site=name)
            drafter.call("copy", {"x": shapes.select(own, 1, ACTIVE)}, {"y": active}, site=name)
            taken = self._take(slots)
            choice = drafter.new((Batch(), len(taken[1])), name=f"{name}.choice")
            self._scalars({"x0": own}, choice, taken, here, names)
            self._move(registers, choice, number, None)
        drafter.begin(f"after-{name}")
        return self._finish(registers[STATE], own, {**here, "row": len(rows) - 1}, inputs, names, stop)

    def _conditions(self) -> None:
        for cond in self.answers[0].conds:
            self.outside.condition(cond)

    def _start(self) -> Value:
        """x_f = x / (alpha + sigma) at the first point."""
        init, at = self.loop.init[0], self.grid.point(0)
        norm = at.alpha + at.sigma
        assert isinstance(self.step.state.type, v.Latent)
        if isinstance(init, n.Noise):
            scale = math.hypot(at.alpha, at.sigma) if self.step.state.type.space == "vp" else at.sigma
            return self.outside.noise(init, scale / norm)
        if not isinstance(init.type, v.Latent):
            raise self._refusal("an adaptive loop cannot start from it", "start from g.noise(net.latent) or a latent")
        given_state = self.outside.value(init)
        y = self.drafter.new(given_state.shape, name="x")
        program = [["const", 1.0 / norm], ["mul", 0, 1]]
        self.drafter.call("pointwise", {"x0": given_state}, {"y": y}, {"program": program}, self.loop.name)
        return y

    def _own(self, start: float) -> Value:
        """Every sample's s, h, active, accepted before the first round."""
        row = np.zeros((1, 4))
        row[0, [POSITION, ACTIVE]] = start, 1.0
        constant_row = self.drafter.as_buffer(self.drafter.constant(row, f"{self.loop.name}.start"))
        own = self.drafter.new((Batch(), 4), name=f"{self.loop.name}.own")
        spread = Value(constant_row.storage, (Batch(), 4), (0, 1))
        self.drafter.call("copy", {"x": spread}, {"y": own}, site=self.loop.name)
        return own

    def _slots(self) -> int:
        """Registers: the state twice, the slopes of all stages but the last; at least those of error and last slope."""
        tableau = self.rule.tableau
        return 2 + max(len(tableau.c) - 1, 3 if tableau.first_same_as_last else 2)

    def _programs(self, slots: int) -> tuple[Any, Any, Any]:
        """The programs of a row: what the network is given; the coefficients of the step; the decision at the end."""
        tableau, (_, weights) = self.rule.tableau, self.answers
        stages = range(1, len(tableau.c)) if tableau.first_same_as_last else range(len(tableau.c))
        s, h = given(SOURCE, POSITION), given(SOURCE, LENGTH)
        at = s + h * self._number([tableau.c[i] for i in stages])
        time, scale, p, q = self._formulas(at)
        inputs = trace([time, scale])
        kept, slope, gain, slope_gain = _stage_matrices(self.rule, slots, list(stages))
        entries: list[Number] = []
        for j in range(slots):
            for k in range(slots):
                entry = self._number(kept[:, j, k].tolist()) + h * self._number(slope[:, j, k].tolist())
                if k == STATE:
                    entry = entry + self._share(gain, slope_gain, j, h) * p
                entries.append(entry)
        for j in range(slots):
            entries += [self._share(gain, slope_gain, j, h) * q * weight for weight in weights]
        entries += [0.0] * slots
        return inputs, trace(entries), self._decision()

    def _share(self, gain: np.ndarray, slope_gain: np.ndarray, j: int, h: Expr) -> Expr:
        """What register j takes of the new slope."""
        return self._number(gain[:, j].tolist()) + h * self._number(slope_gain[:, j].tolist())

    def _decision(self) -> Any:
        """(s, h, active, accepted) after a round, from those before it and the mean square of the scaled error."""
        start, stop = self.ends
        s, h, active = (given(SOURCE, i) for i in (POSITION, LENGTH, ACTIVE))
        rms = sqrt(given(1, 0))
        opening = 1.0 - where(h, 1.0, 0.0)  # no step yet: the first slope was evaluated
        good = rms < 1.0
        ok = where(opening, 1.0, good)
        moved = where(ok, s + h, s)
        factor = clamp(SAFETY * maximum(rms, 1e-10) ** (-1.0 / self.rule.tableau.order), SHRINK, where(good, GROW, 1.0))
        length = where(opening, self.rule.first * (stop - start), h * factor)
        left = stop - moved
        # Towards the end h and what is left have the same sign; the shorter one is the next step.
        direction = math.copysign(1.0, stop - start)
        shorter = where(direction * length < direction * left, length, left)
        going = abs(stop - start) * 1e-6 < direction * left
        return trace([moved, where(going, shorter, 0.0), active * going, ok])

    def _take(self, slots: int) -> Any:
        """The coefficients that take the step, or leave it: the first slope of the next step, and the state.

        A method whose first slope is known begins its next step with the second stage, so the state moves on to where
        that is evaluated; a sample that is done has length 0 and stays.
        """
        ok, h, tableau = given(SOURCE, OK), given(SOURCE, LENGTH), self.rule.tableau
        entries: list[Number] = []
        for j in range(slots):
            row: list[Number] = [0.0] * slots
            if j in (STATE, KEPT):
                row[STATE], row[KEPT] = ok, 1.0 - ok
            if tableau.first_same_as_last and j in (STATE, SLOPE):
                share = h * tableau.a[1][0] if j == STATE else 1.0
                row[SLOPE + 2], row[SLOPE] = share * ok, share * (1.0 - ok)
            entries += row
        return trace([*entries, *[0.0] * slots])

    def _evaluate(self, own: Value, state: Value, rows: dict[str, int], inputs: Any, names: Sequence[str]) -> Value:
        """What the network says of a state at every sample's own time; ``rows`` says which table, and which row."""
        drafter, name, (score, _) = self.drafter, self.loop.name, self.answers
        program, (time, scale) = inputs
        clock, factor = (drafter.new((Batch(), 1), name=f"{name}.at") for _ in range(2))
        self._scalars({"x0": own}, clock, (program, (time,)), rows, names)
        self._scalars({"x0": own}, factor, (program, (scale,)), rows, names)
        branches, attrs = len(score.conds), {**rows, "column": 0}
        x_in = drafter.new((Batch(branches), *state.shape[1:]), name=f"{name}.x_in")
        drafter.call("step_input", {"x": state, "coef": factor}, {"xin": x_in}, attrs, name)
        t = drafter.new((Batch(branches),), name=f"{name}.t")
        drafter.call("step_time", {"time": self._clock(shapes.squeeze(clock, [1]))}, {"t": t}, attrs, name)
        drafter.evaluates(score.net.name, branches)
        conditions = self.outside.branches(score)
        answer = self.outside.program(score.net, "score", [x_in, t, *conditions])[0]
        return split_variance(drafter, answer, score.net, branches)[0]

    def _clock(self, time: Value) -> Value:
        """The network's time: as it is, or the training timestep of a noise level."""
        if self.answers[0].net.time != "timestep":
            return time
        assert isinstance(self.loop.schedule, Schedule)
        levels, timesteps = _timestep_curve(self.loop.schedule, self.grid)
        xs = self.drafter.constant(np.asarray(levels), f"{self.loop.name}.levels")
        ys = self.drafter.constant(np.asarray(timesteps), f"{self.loop.name}.timesteps")
        y = self.drafter.new((Batch(),), name=f"{self.loop.name}.timestep")
        self.drafter.call("interpolate", {"x": time, "xs": xs, "ys": ys}, {"y": y}, {}, self.loop.name)
        return y

    def _scalars(
        self, ins: dict[str, Value], y: Value, program: Any, rows: dict[str, int], names: Sequence[str]
    ) -> None:
        instructions, results = program
        listed = [[op, names.index(args[0])] if op == "row" else [op, *args] for op, *args in instructions]
        attrs = {**rows, "program": listed, "results": list(results)}
        self.drafter.call("scalars", ins, {"y": y}, attrs, self.loop.name)

    def _move(self, registers: Sequence[Value], coef: Value, number: int, m: Value | None) -> None:
        """One pass of the register machine with every sample's own coefficients."""
        count, branches = len(registers), 0 if m is None else len(self.answers[1])
        state = {f"r{i}": register for i, register in enumerate(registers)}
        attrs = {
            "table": number, "a": 0, "b": count * count, "c": count * (count + branches),
            "cin": -1, "site": self.step.site,
        }  # fmt: skip
        self.drafter.call("sampler_step", {**state, "p0": m, "coef": coef}, state, attrs, str(self.rule))

    def _error(self, registers: Sequence[Value]) -> Value:
        """The mean square of e / (atol + rtol max(|y|, |y'|)), [B, 1]."""
        drafter, name = self.drafter, self.loop.name
        new, old, error = registers[STATE], registers[KEPT], registers[SLOPE + 1]
        squares = drafter.new(new.shape, name=f"{name}.squares")
        program = [
            ["abs", 1], ["abs", 2], ["max", 3, 4], ["const", self.rule.rtol], ["mul", 5, 6],
            ["const", self.rule.atol], ["add", 7, 8], ["div", 0, 9], ["square", 10],
        ]  # fmt: skip
        ins = {"x0": error, "x1": old, "x2": new}
        drafter.call("pointwise", ins, {"y": squares}, {"program": program}, name)
        norm = drafter.new((Batch(),), name=f"{name}.error")
        axes = list(range(1, len(new.shape)))
        drafter.call("reduce", {"x": squares}, {"y": norm}, {"kind": "mean", "axes": axes}, name)
        return shapes.unsqueeze(norm, 1)

    def _finish(
        self, y: Value, own: Value, rows: dict[str, int], inputs: Any, names: Sequence[str], stop: float
    ) -> Value:
        """The state at the schedule's end: its last point, or the clean sample, one jump away."""
        assert isinstance(self.step.state.type, v.Latent)
        score, weights = self.answers
        assert isinstance(score.net.prediction, Prediction)
        alpha, sigma, norm = _point(self.step.state.type.space, stop)
        drafter, name = self.drafter, self.loop.name
        x = drafter.new(y.shape, name=f"{name}.x")
        if self.grid.point(self.grid.steps).sigma > 0.0:
            program: list[list[Any]] = [["const", norm], ["mul", 0, 1]]
            drafter.call("pointwise", {"x0": y}, {"y": x}, {"program": program}, name)
            return x
        p, q = score.net.prediction.to_x0(float(alpha), float(sigma))
        # The stage's own program serves once more, at length 0 of the last row.
        m = self._evaluate(own, y, rows, inputs, names)
        split = shapes.view(drafter, m, (Batch(), len(weights), *y.shape[1:]), name)
        parts = {f"x{1 + i}": shapes.select(split, 1, i) for i in range(len(weights))}
        program = [["const", p * float(norm)], ["mul", 0, 1 + len(weights)]]
        total = len(weights) + 2
        for i, weight in enumerate(weights):
            program += [["const", q * weight], ["mul", 1 + i, total + 1], ["add", total, total + 2]]
            total += 3
        drafter.call("pointwise", {"x0": y, **parts}, {"y": x}, {"program": program}, name)
        return x


def _point(space: str, s: Number) -> tuple[Any, Any, Any]:
    """(alpha, sigma, alpha + sigma) in a space, at s of the straight path; formulas that can be traced."""
    if space == "flow":
        return 1.0 - s, s, 1.0
    if space == "kappa":
        return 1.0, s / (1.0 - s), 1.0 / (1.0 - s)
    norm: Any = hypot(1.0 - s, s)  # pyright: ignore[reportArgumentType]
    return (1.0 - s) / norm, s / norm, 1.0 / norm


def _time(convention: str, s: Number) -> Number:
    """What a network calls time at s; for training timesteps ln kappa, which a curve turns into one."""
    match convention:
        case "none":
            return 0.0
        case "flow":
            return s
        case "flow1000":
            return 1000.0 * s
        case "sigma":
            return s / (1.0 - s)
        case "c_noise":
            return 0.25 * log(s / (1.0 - s))
        case _:
            return log(s / (1.0 - s))


def _timestep_curve(schedule: Schedule, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """ln kappa, ascending, and the training timesteps there: every one where the schedule is one of training steps."""
    if isinstance(schedule, Discrete):
        squares = schedule.alphas_cumprod
        levels = 0.5 * (np.log1p(-squares) - np.log(np.maximum(squares, 1e-300)))
        return levels, np.arange(len(levels), dtype=np.float64)
    noisy = [kappa for kappa in grid.kappa if 0.0 < kappa < math.inf]
    levels = np.linspace(math.log(min(noisy)), math.log(max(noisy)), 4097)
    return levels, np.array([schedule.timestep_at(math.exp(level)) for level in levels])


def _stage_matrices(
    rule: RungeKutta, slots: int, stages: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Per row: new_j = sum_l (kept_jl + h slope_jl) r_l + (gain_j + h slope_gain_j) k, where k is the new slope."""
    t = rule.tableau
    rows, count = len(stages), len(t.c)
    kept, slope = np.zeros((rows, slots, slots)), np.zeros((rows, slots, slots))
    gain, slope_gain = np.zeros((rows, slots)), np.zeros((rows, slots))
    for row, i in enumerate(stages):
        kept[row, KEPT, KEPT] = 1.0
        last = i == count - 1
        following = t.b if i + 1 >= count else (*t.a[i + 1], *[0.0] * count)
        if last and t.first_same_as_last:
            kept[row, STATE, STATE] = 1.0  # the stage's state is the solution already
        else:
            kept[row, STATE, KEPT] = 1.0
            slope[row, STATE, SLOPE : SLOPE + i] = following[:i]
            slope_gain[row, STATE] = following[i]
        if last:
            # The slopes in between are done with: their registers take the error and the last slope.
            slope[row, SLOPE + 1, SLOPE : SLOPE + i] = t.e[:i]
            slope_gain[row, SLOPE + 1] = t.e[i]
            kept[row, SLOPE, SLOPE] = 1.0
            if t.first_same_as_last:
                gain[row, SLOPE + 2] = 1.0
        else:
            for j in range(i):
                kept[row, SLOPE + j, SLOPE + j] = 1.0
            gain[row, SLOPE + i] = 1.0
    return kept, slope, gain, slope_gain

"""``as_diffusers``: one of our samplers behind the interface of a diffusers scheduler, for the pipelines of others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from scoregraph.errors import ImportedElsewhere, here
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.samplers import Sampler
from scoregraph.graph.schedules import Schedule
from scoregraph.graph.table import StepTable

PREDICTION_TYPES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction", "flow": "flow_prediction"}


class Config(dict[str, Any]):
    """A configuration as diffusers has them: entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the configuration has no entry {name!r}") from None


@dataclass
class StepOutput:
    """What ``step`` gives: the next sample, and the clean sample that the network's answer implies."""

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None

    def __getitem__(self, index: int) -> Tensor | None:
        """Pipelines also take it for a tuple."""
        return (self.prev_sample, self.pred_original_sample)[index]


class TableScheduler:
    """The interface of a diffusers scheduler around a step table; made by ``as_diffusers``.

    A timestep is one network call, so a sampler of two calls per step has ``order`` 2. Where the loop stands is
    counted, never searched for, apart from the very first call. ``set_begin_index`` starts in the middle (image to
    image), with the history of a multistep sampler empty as at any start.
    """

    _compatibles: ClassVar[list[str]] = []

    def __init__(
        self, sampler: Sampler, schedule: Schedule, prediction: Prediction, space: str, time: str, train_steps: int
    ) -> None:
        self.sampler, self.schedule, self.prediction = sampler, schedule, prediction
        self.space, self.time = space, time
        self.config = Config(
            num_train_timesteps=train_steps,
            prediction_type=PREDICTION_TYPES.get(prediction.name, prediction.name),
            sampler=str(sampler),
            schedule=str(schedule),
            steps_offset=getattr(schedule, "offset", 0),
            clip_sample=False,
        )
        self.generator: torch.Generator | None = None
        self.set_timesteps(schedule.grid().steps)

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    # --- the schedule ---

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Lay the schedule out anew with so many steps, and start from its beginning."""
        steps = self.schedule.grid().steps
        if num_inference_steps != steps:
            if "steps" not in {f.name for f in fields(self.schedule)}:
                raise ImportedElsewhere(has=f"{steps} steps", got=str(num_inference_steps), where=here())
            self.schedule = replace(self.schedule, steps=num_inference_steps)
        self.num_inference_steps = num_inference_steps
        self.table = self._table(self.schedule)
        self._calls = [i for i, call in enumerate(self.table.values("calls")) if call]
        times = torch.tensor([self.table.values("t")[i] for i in self._calls], dtype=torch.float64)
        whole = bool((times == times.round()).all())
        self.timesteps = times.to(torch.int64 if whole else torch.float32).to(device)
        kappa = [s / a if a else float("inf") for a, s in map(self._level, range(len(self._calls)))]
        last = self.table.values("sigma_next")[-1] / self.table.values("alpha_next")[-1]
        self.sigmas = torch.tensor([*kappa, last], dtype=torch.float32)
        of_step = self.table.steps
        self.order = max(sum(of_step[i] == step for i in self._calls) for step in set(of_step))
        self.init_noise_sigma = self.table.init_scale
        self._begin_index: int | None = None
        self._restart(self.table)

    def _table(self, schedule: Schedule) -> StepTable:
        table = self.sampler.table(schedule, self.prediction, self.time, self.space)
        if table.branches != 1 or table.estimates:
            raise ImportedElsewhere(has="a network of one answer", got=f"{self.sampler}", where=here())
        return table

    def _restart(self, running: StepTable) -> None:
        """Begin with the first row of ``running``."""
        self._running = running
        self._row = 0
        self._step_index: int | None = None
        self._registers: list[Tensor | None] = [None] * len(running.registers)
        self._prepared: Tensor | None = None

    @property
    def step_index(self) -> int | None:
        """The number of the next call, once the first was made."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The number of the first call, if a pipeline set it."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start with this call; it must be the first of its step."""
        self._begin_index = begin_index
        if begin_index == 0:
            self._restart(self.table)
            return
        step = self.table.steps[self._calls[begin_index]]
        self._restart(self._table(replace(self.schedule, skip=step)))

    def _level(self, call: int) -> tuple[float, float]:
        """(alpha, sigma) of a call."""
        row = self._calls[call]
        return self.table.values("alpha")[row], self.table.values("sigma")[row]

    def index_for_timestep(self, timestep: float | Tensor) -> int:
        """The number of the first call at a timestep."""
        found = (self.timesteps == torch.as_tensor(timestep, device=self.timesteps.device)).nonzero()
        if not len(found):
            raise ValueError(f"{float(timestep):g} is none of the timesteps {self.timesteps.tolist()}")
        return int(found[0])

    # --- the loop ---

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """What the network is to see: c_in x, behind whatever noise the sampler adds before its first call."""
        self._begin(timestep)
        before = self._before_call(sample)  # moves on to the row of the call
        return self._running.values("c_in")[self._row] * before

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> StepOutput | tuple[Tensor, Tensor | None]:
        """The next sample. ``generator`` draws what noise there is, unless ``variance_noise`` is it."""
        self._begin(timestep)
        self.generator = generator
        x, m = self._before_call(sample).float(), model_output.float()
        clean = self._clean(x, m, sample.dtype)
        x = self._advance(x, m, variance_noise)
        while self._row < len(self._running.rows) and not self._running.values("calls")[self._row]:
            x = self._advance(x, None, None)
        self._prepared = None
        assert self._step_index is not None
        self._step_index += 1
        x = x.to(sample.dtype)
        return StepOutput(x, clean) if return_dict else (x, clean)

    def _clean(self, x: Tensor, m: Tensor, dtype: torch.dtype) -> Tensor | None:
        """x0 as the network's answer has it; None where an eps network cannot tell, at alpha = 0."""
        alpha, sigma = self._running.values("alpha")[self._row], self._running.values("sigma")[self._row]
        if self.prediction.singular and alpha == 0.0:
            return None
        p, q = self.prediction.to_x0(alpha, sigma)
        return (p * x + q * m).to(dtype)

    def _begin(self, timestep: float | Tensor | None) -> None:
        """Find the first call by its timestep, unless a pipeline said its number."""
        if self._step_index is not None:
            return
        if self._begin_index is None and timestep is not None:
            index = self.index_for_timestep(timestep)
            if index:
                self.set_begin_index(index)
        self._step_index = self._begin_index or 0

    def _before_call(self, sample: Tensor) -> Tensor:
        """The state behind the rows that come before the first call; computed once."""
        while self._row < len(self._running.rows) and not self._running.values("calls")[self._row]:
            self._prepared = self._advance((sample if self._prepared is None else self._prepared).float(), None, None)
        return sample if self._prepared is None else self._prepared.to(sample.dtype)

    def _advance(self, x: Tensor, m: Tensor | None, noise: Tensor | None) -> Tensor:
        """One row of the machine, in float32."""
        a, b, c = self._running.matrices(self._row)
        held = [x, *self._registers[1:]]
        if c.any() and noise is None:
            device = x.device if self.generator is None else self.generator.device
            noise = torch.randn(x.shape, generator=self.generator, device=device).to(x.device)
        after: list[Tensor | None] = []
        for j in range(len(held)):
            terms = [float(a[j, k]) * r for k, r in enumerate(held) if a[j, k] and r is not None]
            if m is not None and b[j, 0]:
                terms.append(float(b[j, 0]) * m)
            if noise is not None and c[j]:
                terms.append(float(c[j]) * noise.float())
            after.append(sum(terms[1:], terms[0]) if terms else None)
        self._row += 1
        self._registers = after
        return torch.zeros_like(x) if after[0] is None else after[0]

    # --- the way to noise ---

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x0 + sigma eps at each sample's timestep, which must be one of the schedule's."""
        chosen = timesteps.flatten().tolist()
        levels = [self._level(self.index_for_timestep(t)) for t in chosen]
        shape = (-1, *[1] * (original_samples.dim() - 1))
        alpha, sigma = (
            torch.tensor(values, dtype=original_samples.dtype, device=original_samples.device).reshape(shape)
            for values in zip(*levels, strict=True)
        )
        return alpha * original_samples + sigma * noise


def as_diffusers(
    sampler: Sampler,
    schedule: Schedule,
    prediction: Prediction,
    *,
    space: str | None = None,
    time: str = "timestep",
    train_steps: int = 1000,
    config: Mapping[str, Any] | None = None,
) -> TableScheduler:
    """A sampler on a schedule as a scheduler for a diffusers pipeline::

        pipe.scheduler = sg.samplers.as_diffusers(
            sg.samplers.dpmpp_2m(), sg.schedules.scaled_linear(steps=20, offset=1), sg.predictions.eps()
        )

    ``space`` is that of the pipeline's latents (the schedule's own if it is not given), ``time`` what its network is
    told. ``config`` adds entries that a pipeline looks for in ``scheduler.config``.
    """
    made = TableScheduler(sampler, schedule, prediction, space or schedule.grid().space, time, train_steps)
    made.config.update(config or {})
    return made

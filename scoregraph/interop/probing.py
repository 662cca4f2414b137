"""Reads a scheduler's step as a linear map, by giving it unit vectors.

A step of a diffusion scheduler works element by element. So give it a sample of P elements in which input j is 1 at
element j and 0 elsewhere, where the inputs are x, the answer m, every normal it draws, and every tensor that it keeps
from earlier steps: element j of what comes out is then the coefficient of input j. One call of ``step`` reads a row.

The steps are probed on copies, taken along a run on random data with a smooth, non-linear network. That run is also
what the table is compared with at the end, and so finds everything that is not linear, or not element by element.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from scoregraph.interop.driving import Call, Driver, Scheduler
from scoregraph.interop.randomness import InjectedNormals

DRAWS = 4
"""More normals than any step draws."""

AMPLITUDES = (1.0, 1e4)
"""Sizes of the random inputs on which the coefficients are tried: a clamp far out shows in the second."""

ROUNDING = 1e-5
"""How far a step may be from its coefficients, relative to the sum of the terms: schedulers compute in float32."""

Vector = dict[str, float]
"""A linear combination of inputs by name: "x", "m", "z0" …, and the paths of kept tensors; zeros are left out."""


class NotLinearError(Exception):
    """A step is not a linear map; the text says where it was seen."""


@dataclass(frozen=True)
class ProbedStep:
    """One micro-step: the state after it, and what the scheduler keeps, in terms of what was before."""

    call: Call
    c_in: float
    x: Vector
    kept: Mapping[str, Vector]
    level: tuple[float, float] | None


@dataclass(frozen=True)
class ProbedRun:
    """All micro-steps, and the run beside which they were probed.

    Attributes:
        steps: the micro-steps, in order.
        states: the state before every micro-step and at the end, float64 [2, …]; the first is ``init_scale`` noise.
        draws: the normals of every micro-step, each shaped like the state.
        init_scale: the standard deviation of the first state.
    """

    steps: list[ProbedStep] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    draws: list[list[Tensor]] = field(default_factory=list)
    init_scale: float = 1.0


def network(x: Tensor, time: float) -> Tensor:
    """A smooth stand-in that mixes the elements of a sample, and does not mind how large they are."""
    flat = x.flatten(1)
    flat = flat / (1.0 + flat.square().mean(dim=1, keepdim=True)).sqrt()
    shifted = flat.roll(1, dims=1) - 0.5 * flat.roll(5, dims=1)
    return (0.8 * torch.tanh(shifted + 0.1 * flat + time / (1.0 + abs(time))) + 0.3 * flat.cos()).reshape(x.shape)


def sample_shape(rank: int) -> tuple[int, ...]:
    """Two samples, of sizes that nothing else in a scheduler has."""
    return (2, *(3, 5, 7, 4)[: rank - 1])


def probe(scheduler: Scheduler, driver: Driver) -> ProbedRun:
    """Run a scheduler on which ``set_timesteps`` was called, and probe every micro-step on the way.

    Raises ``NotLinearError`` where a step is no linear map of finite coefficients; what ``step`` raises passes through.
    """
    driver.prepare(scheduler)
    run = ProbedRun(init_scale=driver.init_scale(scheduler))
    generator = torch.Generator().manual_seed(0)
    normals = torch.randn
    shape = sample_shape(driver.rank)
    x = run.init_scale * normals(shape, generator=generator, dtype=torch.float64)
    run.states.append(x)
    for call in driver.calls(scheduler):
        probed = _probe_step(copy.deepcopy(scheduler), driver, call, shape)
        for amplitude in AMPLITUDES:
            _check_step(copy.deepcopy(scheduler), driver, probed, shape, amplitude)
        run.steps.append(probed)
        drawn: list[Tensor] = []

        def draw(size: torch.Size, drawn: list[Tensor] = drawn) -> Tensor:
            drawn.append(normals(size, generator=generator, dtype=torch.float64))
            return drawn[-1]

        with torch.no_grad():
            m = torch.zeros(shape, dtype=torch.float64)
            x_in = driver.scale(scheduler, x.clone(), call) if call.network else x
            if call.network:
                m = network(x_in.double(), call.time)
            with InjectedNormals(draw):
                x = driver.step(scheduler, m, call, x.clone()).double()
        run.states.append(x)
        run.draws.append(drawn)
    return run


def _probe_step(scheduler: Scheduler, driver: Driver, call: Call, shape: tuple[int, ...]) -> ProbedStep:
    """The coefficients of one micro-step, read from a copy of the scheduler that may be spoiled."""
    level = driver.level(copy.deepcopy(scheduler), call)
    kept: dict[str, Tensor] = dict(kept_tensors(scheduler, shape))
    names = ["x", "m", *kept, *(f"z{i}" for i in range(DRAWS))]
    unit = (1, len(names) + 1, *[1] * (driver.rank - 2))  # one more element, in which every input is 0

    def one_hot(name: str) -> Tensor:
        made = torch.zeros(len(names) + 1, dtype=torch.float64)
        made[names.index(name)] = 1.0
        return made.reshape(unit)

    where = f"step {call.index}"

    def read(what: str, found: Tensor) -> Vector:
        *numbers, constant = found.detach().double().flatten().tolist()
        if len(numbers) != len(names):
            raise NotLinearError(f"{what} has another shape than the sample at {where}")
        if not all(map(isfinite, [*numbers, constant])):
            raise NotLinearError(f"the scheduler itself gives numbers that are not finite for {what} at {where}")
        if constant != 0.0:
            raise NotLinearError(f"{what} is {constant:.3g} at {where} where every input is 0")
        return {name: number for name, number in zip(names, numbers, strict=True) if number != 0.0}

    drawn = 0

    def draw(size: torch.Size) -> Tensor:
        nonlocal drawn
        if size != unit:
            raise NotLinearError(f"it draws normals of the shape {tuple(size)} for a sample of the shape {unit}")
        drawn += 1
        if drawn > DRAWS:
            raise NotLinearError(f"it draws more than {DRAWS} normals at step {call.index}")
        return one_hot(f"z{drawn - 1}")

    replace_tensors(scheduler, shape, lambda path, _: one_hot(path))
    with torch.no_grad():
        x_in = read("the network's input", driver.scale(scheduler, one_hot("x"), call)) if call.network else {"x": 1.0}
        if x_in.keys() - {"x"}:
            raise NotLinearError(f"the network's input is more than a multiple of x at step {call.index}")
        with InjectedNormals(draw):
            x = read("the next sample", driver.step(scheduler, one_hot("m"), call, one_hot("x")))
    after = {path: read(path, tensor) for path, tensor in kept_tensors(scheduler, unit)}
    return ProbedStep(call, x_in.get("x", 0.0), x, {path: v for path, v in after.items() if v}, level)


def _check_step(
    scheduler: Scheduler, driver: Driver, probed: ProbedStep, shape: tuple[int, ...], amplitude: float
) -> None:
    """Raise unless a step does on random data what its coefficients say; the scheduler is a copy to be spoiled."""
    generator = torch.Generator().manual_seed(probed.call.index)
    normals = torch.randn
    names = [path for path, _ in kept_tensors(scheduler, shape)]
    inputs = {name: amplitude * normals(shape, generator=generator, dtype=torch.float64) for name in ["x", "m", *names]}
    draws = [normals(shape, generator=generator, dtype=torch.float64) for _ in range(DRAWS)]
    inputs |= {f"z{i}": z for i, z in enumerate(draws)}
    unused = iter(draws)
    replace_tensors(scheduler, shape, lambda path, _: inputs[path].clone())

    def check(what: str, found: Tensor, vector: Vector) -> None:
        terms = [number * inputs[name] for name, number in vector.items()]
        expected = sum(terms, torch.zeros(shape, dtype=torch.float64))
        size = sum((term.abs() for term in terms), torch.zeros(shape, dtype=torch.float64)).max()
        error = float((found.double() - expected).abs().max() / size.clamp(min=1e-30))
        if not error <= ROUNDING:
            raise NotLinearError(
                f"at step {probed.call.index} {what} differs by {error:.1e} from the sum of its terms for inputs of "
                f"size {amplitude:g}"
            )

    with torch.no_grad():
        if probed.call.network:
            x_in = driver.scale(scheduler, inputs["x"].clone(), probed.call)
            check("the network's input", x_in, {"x": probed.c_in})
        with InjectedNormals(lambda _: next(unused)):
            x = driver.step(scheduler, inputs["m"].clone(), probed.call, inputs["x"].clone())
    check("the next sample", x, probed.x)
    for path, tensor in kept_tensors(scheduler, shape):
        check(path, tensor, probed.kept.get(path, {}))


# --- what a scheduler keeps ---


def kept_tensors(scheduler: Scheduler, shape: Sequence[int]) -> list[tuple[str, Tensor]]:
    """Every tensor of the sample's shape that a scheduler holds, by its path: ``model_outputs[1]``, ``last_sample``."""
    found: list[tuple[str, Tensor]] = []

    def record(path: str, tensor: Tensor) -> Tensor:
        found.append((path, tensor))
        return tensor

    replace_tensors(scheduler, shape, record)
    return found


def replace_tensors(scheduler: Scheduler, shape: Sequence[int], by: Callable[[str, Tensor], Tensor]) -> None:
    """Put ``by(path, tensor)`` in the place of every tensor of the sample's shape."""
    for path, owner, key, tensor in list(_walk(scheduler, "", set())):
        if tensor.shape == torch.Size(shape):
            if isinstance(owner, dict | list):
                owner[key] = by(path, tensor)
            else:
                setattr(owner, key, by(path, tensor))


def _walk(owner: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any, Any, Tensor]]:
    """(path, owner, key, tensor) of all tensors below an object, a dict or a list; configurations hold none."""
    if id(owner) in seen:
        return
    seen.add(id(owner))
    if isinstance(owner, dict):
        entries = [(f"{path}[{key!r}]", key, value) for key, value in owner.items()]
    elif isinstance(owner, list):
        entries = [(f"{path}[{i}]", i, value) for i, value in enumerate(owner)]
    else:
        attributes = ((key, value) for key, value in vars(owner).items() if key != "_internal_dict")
        entries = [(f"{path}.{key}".lstrip("."), key, value) for key, value in attributes]
    for name, key, value in entries:
        if isinstance(value, Tensor):
            yield name, owner, key, value
        elif isinstance(value, dict | list) or _is_part(value):
            yield from _walk(value, name, seen)


def _is_part(value: Any) -> bool:
    """Whether an attribute is a scheduler itself (UniPC's ``solver_p``), or a path of noise."""
    return hasattr(value, "set_timesteps") or hasattr(value, "increment")


def identifier(path: str) -> str:
    """A path as a register's name: ``model_outputs[1]`` becomes model_outputs_1."""
    return re.sub(r"\W+", "_", path).strip("_")

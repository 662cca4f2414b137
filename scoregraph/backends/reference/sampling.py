"""The calls of sampling loops: noise, lookups in the step table, and the register machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoregraph.backends.reference.elementwise import evaluate
from scoregraph.backends.reference.frame import Attrs, Frame, Roles, numbered, spread

Coefficient = float | Tensor
"""One number for the batch, or one per sample: [B]."""


def noise(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
    """x[s, e] = scale * normal(seed_s, e, micro, site), or scale * bank[s, draw, e]."""
    z = frame.normals(attrs, attrs["micro"], attrs.get("draw", 0), frame.shape("x"), ins.get("bank"))
    return attrs["scale"] * z


def step_time(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
    """table[row, column] everywhere; with ``time`` [B], t[b*K + j] = time[b]."""
    shape = frame.shape("t")
    if "time" in ins:
        return ins["time"].repeat_interleave(shape[0] // ins["time"].shape[0])
    return torch.full(shape, frame.entry(attrs, attrs["column"]), dtype=frame.dtype)


def step_input(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
    """xin[b*K + j] = q * x[b], q from the table or from the sample's own coefficients."""
    x = ins["x"]
    branches = frame.shape("xin")[0] // x.shape[0]
    if "coef" in ins:
        scaled = spread(ins["coef"][:, attrs["column"]], x) * x
    else:
        scaled = frame.entry(attrs, attrs["column"]) * x
    return scaled.repeat_interleave(branches, dim=0)


@dataclass(frozen=True)
class Machine:
    """Registers, answers and coefficients of one call of the register machine.

    Attributes:
        registers: R tensors [B, …].
        answers: K tensors [B, …], all branches of p0, p1, … in order.
        numbers: which of the ``width`` answers that the columns speak of these are.
        entries: the coefficients: of the table's row, or [B, n], one row per sample.
    """

    registers: Sequence[Tensor]
    answers: Sequence[Tensor]
    numbers: Sequence[int]
    width: int
    entries: Sequence[float] | Tensor

    @classmethod
    def of(cls, ins: Roles, attrs: Attrs, frame: Frame) -> Machine:
        """The machine of a call with roles r*, p* and perhaps coef."""
        registers = numbered(ins, "r")
        batch, *shape = registers[0].shape
        answers: list[Tensor] = []
        for p in numbered(ins, "p"):
            answers += p.reshape(batch, -1, *shape).unbind(dim=1)
        numbers = attrs.get("answers") or range(len(answers))
        entries = ins["coef"] if "coef" in ins else frame.entries(attrs)
        return cls(registers, answers, numbers, attrs.get("width") or len(answers), entries)

    def __getitem__(self, column: int) -> Coefficient:
        return self.entries[:, column] if isinstance(self.entries, Tensor) else self.entries[column]

    def form(self, base: int, number: int) -> Tensor:
        """Form ``number`` of those whose coefficients begin at column ``base``: sum_l q r_l + sum_k q m_k."""
        r = len(self.registers)
        row = base + number * (r + self.width)
        terms = [(self[row + i], register) for i, register in enumerate(self.registers)]
        terms += [(self[row + r + k], m) for k, m in zip(self.numbers, self.answers, strict=True)]
        return total(terms, self.registers[0])


def total(terms: Iterable[tuple[Coefficient, Tensor]], like: Tensor) -> Tensor:
    """The sum of products in order; a term whose coefficient is exactly 0 is not read."""
    result = torch.zeros_like(like)
    for q, value in terms:
        if isinstance(q, Tensor):
            per_sample = spread(q, like)
            result = torch.where(per_sample != 0.0, result + per_sample * value, result)
        elif q != 0.0:
            result = result + q * value
    return result


def _is_zero(q: Coefficient) -> bool:
    return not bool(q.any()) if isinstance(q, Tensor) else q == 0.0


def sampler_step(ins: Roles, attrs: Attrs, frame: Frame) -> dict[str, Tensor]:
    """new_j = sum_l A r_l + sum_k B m_k + C z + sum_i H y_i, y = program(e, z, x…); see docs/plan-format.md."""
    machine = Machine.of(ins, attrs, frame)
    registers, r = machine.registers, len(machine.registers)
    z = _fresh(machine, ins, attrs, frame)
    y = _outputs(machine, z, ins, attrs, frame)
    results: dict[str, Tensor] = {}
    for j in range(r):
        terms = [(machine[attrs["a"] + j * r + i], register) for i, register in enumerate(registers)]
        b = attrs["b"] + j * machine.width
        terms += [(machine[b + k], m) for k, m in zip(machine.numbers, machine.answers, strict=True)]
        terms.append((machine[attrs["c"] + j], z))
        terms += [(machine[attrs["h"] + j * len(y) + i], value) for i, value in enumerate(y)]
        results[f"r{j}"] = total(terms, registers[0])
    following = frame.following(attrs)
    if following is not None and attrs.get("cin", -1) >= 0:
        variant = 0 if frame.variant is None else int(following[frame.variant])
        role = f"xin{variant}"
        if role in frame.outs:
            branches = frame.shape(role)[0] // registers[0].shape[0]
            results[role] = (following[attrs["cin"]] * results["r0"]).repeat_interleave(branches, dim=0)
    return results


def _fresh(machine: Machine, ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
    """z, drawn only in rows that use it; NaN elsewhere, which a wrong reader would show."""
    like = machine.registers[0]
    drawn = attrs.get("draws", False) or any(
        not _is_zero(machine[attrs["c"] + j]) for j in range(len(machine.registers))
    )
    if not drawn:
        return torch.full_like(like, torch.nan)
    draw = int(frame.entry(attrs, attrs["draw"])) if "bank" in ins else 0
    return frame.normals(attrs, frame.micro(attrs), draw, tuple(like.shape), ins.get("bank"))


def _outputs(machine: Machine, z: Tensor, ins: Roles, attrs: Attrs, frame: Frame) -> list[Tensor]:
    """The values ``results`` of the elementwise program."""
    if not attrs.get("results"):
        return []
    like = machine.registers[0]
    estimates = [machine.form(attrs["e"], i) for i in range(attrs.get("estimates", 0))]
    extras = [x.to(frame.dtype) for x in numbered(ins, "x")]

    def everywhere(value: float) -> Tensor:
        return torch.full_like(like, value)

    leaves = {
        "const": everywhere,
        "row": lambda column: everywhere(frame.entry(attrs, column)),
        "coef": lambda i: spread(ins["coef"][:, i], like).expand_as(like),
    }
    values = evaluate(attrs["program"], [*estimates, z, *extras], leaves)
    return [values[i] for i in attrs["results"]]


def record(ins: Roles, attrs: Attrs, frame: Frame) -> dict[str, Tensor]:
    """y[b, slot] = x[b] with slot = table[row, column]; a negative slot writes nothing."""
    slot = int(frame.entry(attrs, attrs["column"]))
    if slot < 0:
        return {}
    y = frame.outs["y"].clone()
    y[:, slot] = ins["x"]
    return {"y": y}

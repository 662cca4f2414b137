"""What the launches of calls are made with: the plan's memory, and the shapes in which kernels take it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

from scoregraph.backends.triton.launch import Launch
from scoregraph.backends.triton.memory import Memory
from scoregraph.errors import UncoveredCall
from scoregraph.plan.schema import Call, Plan, Table

if TYPE_CHECKING:
    import torch

GROUPS = 256  # groups of four elements in one program of the noise and the sampler step
BLOCK = 1024  # elements in one program of an elementwise kernel


@dataclass(frozen=True)
class Scope:
    """What a launch depends on beside its call: the plan, its memory, the table of its segment, and the next row.

    ``following`` is the variant of the next row (0 in a segment without variants, and behind the last row).
    """

    plan: Plan
    memory: Memory
    table: int | None = None
    following: int = 0

    def table_at(self, number: int) -> Table:
        """The table whose id is ``number``."""
        return next(table for table in self.plan.tables if table.id == number)

    def lookup(self, number: int) -> dict[str, Any]:
        """The arguments by which a kernel reads table ``number``."""
        table = self.table_at(number)
        return {"table": self.memory[f"c{table.constant}"], "columns": len(table.columns)}


def refuse(call: Call, reason: str) -> NoReturn:
    """Raise the error about a call that has no kernel."""
    raise UncoveredCall(device="triton", op=call.op, site=call.site or "(no site)", reason=reason)


def collapse(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """The fewest dimensions that walk the same elements in the same order for all of ``strides``; at least one."""
    kept = [d for d, size in enumerate(shape) if size != 1]
    sizes: list[int] = []
    steps: list[list[int]] = [[] for _ in strides]
    for d in kept:
        if sizes and all(out[-1] == s[d] * shape[d] for out, s in zip(steps, strides, strict=True)):
            sizes[-1] *= shape[d]
            for out, s in zip(steps, strides, strict=True):
                out[-1] = s[d]
        else:
            sizes.append(shape[d])
            for out, s in zip(steps, strides, strict=True):
                out.append(s[d])
    if not sizes:
        return (1,), [(0,) for _ in strides]
    return tuple(sizes), [tuple(out) for out in steps]


def with_row(call: Call, scope: Scope, launch: Launch) -> Launch:
    """``launch`` at the current row, or at the row the call fixes."""
    if "row" in call.attrs:
        return replace(launch, arguments={**launch.arguments, "row": call.attrs["row"]}, site=call.site)
    if scope.table is None:
        refuse(call, "it reads the current row outside of a loop")
    return replace(launch, takes_row=True, site=call.site)


def dense(call: Call, scope: Scope, ref: str) -> torch.Tensor:
    """The tensor of a ref, which has no gaps."""
    tensor = scope.memory[ref]
    if not tensor.is_contiguous():
        refuse(call, f"{ref} has gaps: shape {tuple(tensor.shape)}, strides {tuple(tensor.stride())}")
    return tensor


def numbered(roles: Mapping[str, str], letter: str) -> list[str]:
    """The refs of roles ``r0, r1, …`` in order."""
    found = {int(role[1:]): ref for role, ref in roles.items() if role[0] == letter and role[1:].isdigit()}
    return [found[i] for i in sorted(found)]


def blocks(n: int, block: int) -> int:
    """How many programs of ``block`` elements cover ``n``."""
    return max(1, -(-n // block))


def block(n: int, most: int) -> int:
    """A power of two that covers ``n``, at most ``most``."""
    return min(most, 1 << max(0, n - 1).bit_length())

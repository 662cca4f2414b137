"""What a kernel call sees besides its operands: where its results go, the tables, the row, the seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scoregraph.backends.reference.noise import normals

Roles = Mapping[str, Tensor]
Attrs = Mapping[str, Any]


@dataclass(frozen=True)
class Frame:
    """Around one call.

    Attributes:
        outs: the buffers its results go to, as they stand before the call.
        tables: the step tables by id, float [rows, columns].
        row: the current row; None outside of loops.
        seeds: int64 [B], the samples' noise keys.
        site: where the call came from.
        variant: the column that says which variant a row is; None if the segment has none.
        round: how many rounds of a repeated segment are complete.
        dtypes: the plan's types of the results by role, f32 where none is stated.
    """

    outs: Roles
    tables: Mapping[int, Tensor]
    row: int | None
    seeds: Tensor
    dtype: torch.dtype
    site: str
    variant: int | None = None
    round: int = 0
    dtypes: Mapping[str, str] = field(default_factory=dict[str, str])

    def shape(self, role: str) -> tuple[int, ...]:
        """The planned shape of a result."""
        return tuple(self.outs[role].shape)

    def current(self, attrs: Attrs) -> int:
        """The row a call reads: the loop's, unless the attrs fix one."""
        row = attrs.get("row")
        row = self.row if row is None else row
        assert row is not None, f"{self.site}: a call outside of loops reads a table without a row"
        return row

    def entries(self, attrs: Attrs) -> list[float]:
        """table[row, ·]."""
        return self.tables[attrs["table"]][self.current(attrs)].tolist()

    def entry(self, attrs: Attrs, column: int) -> float:
        """table[row, column]."""
        return self.entries(attrs)[column]

    def following(self, attrs: Attrs) -> list[float] | None:
        """table[row + 1, ·]; None behind the last row."""
        table = self.tables[attrs["table"]]
        row = self.current(attrs) + 1
        return None if row == table.shape[0] else table[row].tolist()

    def normals(self, attrs: Attrs, micro: int, draw: int, shape: tuple[int, ...], bank: Tensor | None) -> Tensor:
        """z [B, …] of one draw: row ``draw`` of the noise bank if the plan has one, else that of counter ``micro``."""
        if bank is not None:
            return bank[:, draw].reshape(shape)
        count = torch.Size(shape[1:]).numel()
        return normals(self.seeds, attrs["site"], micro, count).reshape(shape).to(self.dtype)

    def micro(self, attrs: Attrs) -> int:
        """The number of the current micro-step, over all rounds."""
        return self.round * self.tables[attrs["table"]].shape[0] + self.current(attrs)


Op = Callable[[Roles, Attrs, Frame], "Tensor | dict[str, Tensor]"]


def numbered(roles: Roles, prefix: str) -> list[Tensor]:
    """The tensors of roles r0, r1, … in order."""
    found = {int(role[1:]): value for role, value in roles.items() if role[0] == prefix and role[1:].isdigit()}
    return [found[i] for i in sorted(found)]


def spread(per_sample: Tensor, like: Tensor) -> Tensor:
    """[B] as [B, 1, …], to multiply a tensor of the rank of ``like``."""
    return per_sample.reshape(-1, *[1] * (like.dim() - 1))

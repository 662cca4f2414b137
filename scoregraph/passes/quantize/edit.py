"""A draft while a pass adds buffers, constants and columns to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoregraph.plan.dims import Batch, dump_dim
from scoregraph.plan.draft import Draft
from scoregraph.plan.schema import Buffer, Constant, Segment, Table, View


class Edit:
    """Parts are added under the next free numbers; ``build`` gives the new draft, the old one stays as it was."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.buffers: list[Buffer] = list(draft.plan.buffers)
        self.constants: list[Constant] = list(draft.plan.constants)
        self.tables: list[Table] = list(draft.plan.tables)
        self.arrays: dict[int, NDArray[Any]] = dict(draft.arrays)

    def buffer(self, name: str, shape: Sequence[int | Batch], dtype: str = "f32") -> str:
        """A new dense buffer."""
        return self._add(Buffer.model_validate({"id": 0, "name": name, "dtype": dtype, "shape": _dumped(shape)}))

    def view(self, of: str, shape: Sequence[int | Batch], strides: Sequence[int], offset: int = 0) -> str:
        """A window onto a buffer, or onto what that is a window of; ``offset`` counts from its first element."""
        seen = self.buffers[int(of[1:])]
        base, first = (seen.id, 0) if seen.view is None else (seen.view.base, seen.view.offset)
        view = View(base=base, offset=first + offset, strides=tuple(strides))
        return self._add(seen.model_copy(update={"shape": tuple(_dumped(shape)), "view": view}))

    def _add(self, buffer: Buffer) -> str:
        number = len(self.buffers)
        self.buffers.append(buffer.model_copy(update={"id": number}))
        return f"b{number}"

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """A new float32 constant."""
        number = len(self.constants)
        self.constants.append(Constant(id=number, name=name, shape=array.shape))
        self.arrays[number] = np.ascontiguousarray(array, np.float32)
        return f"c{number}"

    def retype(self, ref: str, array: NDArray[Any], dtype: str) -> None:
        """Other values of another type in a constant's place."""
        number = int(ref[1:])
        self.constants[number] = self.constants[number].model_copy(update={"dtype": dtype})
        self.arrays[number] = array

    def column(self, table: int, name: str, values: NDArray[Any]) -> int:
        """A new last column of a table; gives its index."""
        old = self.tables[table]
        rows = np.concatenate([self.arrays[old.constant], values[:, None]], axis=1)
        made = self.constant(f"table.{old.name}", rows)
        self.tables[table] = old.model_copy(update={"columns": (*old.columns, name), "constant": int(made[1:])})
        return len(old.columns)

    def build(self, segments: Sequence[Segment], **others: object) -> Draft:
        """The draft with these segments, and other fields of the plan by name."""
        update = {
            "segments": tuple(segments),
            "buffers": tuple(self.buffers),
            "constants": tuple(self.constants),
            "tables": tuple(self.tables),
            **others,
        }
        return Draft(self.draft.plan.model_copy(update=update), self.arrays, self.draft.counters)


def _dumped(shape: Sequence[int | Batch]) -> list[int | str]:
    return [dump_dim(d) for d in shape]

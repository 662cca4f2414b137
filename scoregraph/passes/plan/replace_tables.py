"""The same plan for other steps, noise levels, guidance scales: new tables, nothing compiled again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from scoregraph.graph import nodes as n
from scoregraph.graph.graph import Graph
from scoregraph.graph.table import StepTable
from scoregraph.passes.quantize.calibrate import GROUP_COLUMN
from scoregraph.plan.schema import Call, Constant, Plan, Table


def replace_tables(plan: Plan, arrays: Mapping[int, np.ndarray], graph: Graph) -> tuple[Plan, dict[int, np.ndarray]]:
    """``plan`` with the tables of ``graph``, and its constants.

    Args:
        plan: compiled from a graph of the same structure (``passes.sampling.structure``).
        arrays: the plan's constants by id, packed.
        graph: folded; its loops have the names of the plan's tables, and their times unless the plan serves others.
    """
    constants, made = list(plan.constants), dict(arrays)
    read = {ref for segment in plan.segments for call in segment.calls for ref in call.ins.values()}
    steps = {name: step for node in graph.nodes if isinstance(node, n.Loop) for name, step in _steps(node)}
    scales = {
        start.site: step.table.init_scale
        for loop in graph.nodes
        if isinstance(loop, n.Loop)
        for start, step in zip(loop.init, loop.results, strict=True)
        if isinstance(start, n.Noise) and isinstance(step, n.SamplerStep) and step.table is not None
    }
    tables: list[Table] = []
    for table in plan.tables:
        if table.name not in steps:  # the stages of an adaptive method, which depend on the structure only
            tables.append(table)
            continue
        columns, values = _with_groups(table, arrays, steps[table.name])
        number = len(constants) if f"c{table.constant}" in read else table.constant
        constants[number : number + 1] = [Constant(id=number, name=f"table.{table.name}", shape=values.shape)]
        made[number] = values
        tables.append(table.model_copy(update={"rows": len(values), "columns": columns, "constant": number}))

    def rescaled(call: Call) -> Call:
        if call.op != "noise" or call.attrs["site"] not in scales:
            return call
        return call.model_copy(update={"attrs": {**call.attrs, "scale": scales[call.attrs["site"]]}})

    segments = tuple(s.model_copy(update={"calls": tuple(map(rescaled, s.calls))}) for s in plan.segments)
    update = {"constants": tuple(constants), "tables": tuple(tables), "segments": segments}
    return plan.model_copy(update=update), made


def _with_groups(table: Table, arrays: Mapping[int, np.ndarray], new: StepTable) -> tuple[tuple[str, ...], np.ndarray]:
    """The columns and rows of a new table, with the groups of static grids if the old one has them.

    A row's group is that of the old row nearest to it in time: the ranges of a layer's values follow the noise level.
    """
    values = new.float32()
    if GROUP_COLUMN not in table.columns:
        return new.columns, values
    old = np.asarray(arrays[table.constant]).reshape(table.rows, len(table.columns))
    told = np.abs(values[:, new.column("t"), None] - old[None, :, table.columns.index("t")])
    groups = old[told.argmin(axis=1), table.columns.index(GROUP_COLUMN)]
    return (*new.columns, GROUP_COLUMN), np.concatenate([values, groups[:, None]], axis=1)


def serves_other_tables(plan: Plan) -> bool:
    """Whether a plan holds nothing that was computed for the rows of its tables (``tabulate-time``, ``batch-rows``)."""
    calls = [call for segment in plan.segments for call in segment.calls]
    return not any(call.op == "select_row" and "column" not in call.attrs for call in calls)


def times(graph: Graph) -> str:
    """What tabulated values depend on in the tables of a graph: the number of rows and the times in them."""
    lines: list[str] = []
    for node in graph.nodes:
        for name, table in _steps(node) if isinstance(node, n.Loop) else ():
            values = table.float32()
            columns = [i for i, column in enumerate(table.columns) if is_time(column)]
            lines.append(f"{name} {values.shape[0]} {values[:, columns].tobytes().hex()}")
    return "\n".join(lines)


def is_time(column: str) -> bool:
    """Whether a table's column holds times as a network is told them."""
    return column == "t" or column.startswith("t.")


def _steps(loop: n.Loop) -> Iterator[tuple[str, StepTable]]:
    """The tables of a loop by their names in a plan."""
    for i, step in enumerate(loop.results):
        assert isinstance(step, n.SamplerStep | n.LoopVar), "the graph is folded"
        if isinstance(step, n.SamplerStep):
            assert step.table is not None, "the graph is folded"
            yield table_name(loop, i), step.table


def table_name(loop: n.Loop, index: int) -> str:
    """What a plan calls the table of a loop's carried value number ``index``."""
    return loop.name if index == 0 else f"{loop.name}.{index}"

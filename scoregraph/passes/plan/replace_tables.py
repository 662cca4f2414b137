"""The same plan for other steps, noise levels, guidance scales: new tables, nothing compiled again."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from scoregraph.graph import nodes as n
from scoregraph.graph.graph import Graph
from scoregraph.plan.schema import Call, Constant, Plan, Table


def replace_tables(plan: Plan, arrays: Mapping[int, np.ndarray], graph: Graph) -> tuple[Plan, dict[int, np.ndarray]]:
    """``plan`` with the tables of ``graph``, and its constants.

    Args:
        plan: compiled from a graph of the same structure (``passes.sampling.structure``).
        arrays: the plan's constants by id, packed.
        graph: folded; its loops have the names of the plan's tables.
    """
    constants, made = list(plan.constants), dict(arrays)
    loops = {node.name: node for node in graph.nodes if isinstance(node, n.Loop)}
    scales: dict[int, float] = {}
    tables: list[Table] = []
    for table in plan.tables:
        loop = loops[table.name]
        step = loop.results[0]
        assert isinstance(step, n.SamplerStep), "a table belongs to a sampler step"
        assert step.table is not None, "the graph is folded"
        number = len(constants)
        values = step.table.float32()
        constants.append(Constant(id=number, name=f"table.{table.name}", shape=values.shape))
        made[number] = values
        update = {"rows": len(values), "columns": step.table.columns, "constant": number}
        tables.append(table.model_copy(update=update))
        if isinstance(loop.init[0], n.Noise):
            scales[loop.init[0].site] = step.table.init_scale

    def rescaled(call: Call) -> Call:
        if call.op != "noise" or call.attrs["site"] not in scales:
            return call
        return call.model_copy(update={"attrs": {**call.attrs, "scale": scales[call.attrs["site"]]}})

    segments = tuple(s.model_copy(update={"calls": tuple(map(rescaled, s.calls))}) for s in plan.segments)
    # The old tables stay as constants that nothing reads: numbering is by position, and they are small.
    update = {"constants": tuple(constants), "tables": tuple(tables), "segments": segments}
    return plan.model_copy(update=update), made

"""Operators that move the window: nothing is computed, and a copy is made only where strides cannot say it."""

from __future__ import annotations

import operator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensor_plans import aten, check

RESHAPED = {
    "view merges": (lambda x: aten.view.default(x, [-1, 12]), (3, 4)),
    "view splits": (lambda x: aten.view.default(x, [aten.sym_size.int(x, 0), 3, 2, 2]), (3, 4)),
    "view into the batch and back": (
        lambda x: aten.view.default(aten.view.default(x, [-1, 4]), [aten.sym_size.int(x, 0), 3, 4]),
        (3, 4),
    ),
    "sizes times numbers": (
        lambda x: aten.view.default(x, [aten.sym_size.int(x, 0) * 3, 4]),
        (3, 4),
    ),
    "a size divided": (
        lambda x: aten.view.default(
            aten.view.default(x, [-1, 2]), [operator.floordiv(aten.sym_size.int(x, 0) * 6, 6), 12]
        ),
        (3, 4),
    ),
    "flatten": (lambda x: aten.flatten.using_ints(x, 1, 2), (3, 4, 5)),
    "flatten to the end": (lambda x: aten.flatten.using_ints(x, -2), (3, 4, 5)),
    "unflatten": (lambda x: aten.unflatten.int(x, 2, [2, -1]), (3, 4)),
    "permute": (lambda x: aten.permute.default(x, [0, 3, 1, 2]), (3, 4, 5)),
    "transpose": (lambda x: aten.transpose.int(x, 1, -1), (3, 4, 5)),
    "t": (lambda x, w: aten.t.default(w), (3,)),
    "einsum": (lambda x: aten.einsum.default("nhwc->nchw", [x]), (3, 4, 5)),
    "unsqueeze": (lambda x: aten.unsqueeze.default(x, 1), (3, 4)),
    "unsqueeze at the end": (lambda x: aten.unsqueeze.default(x, -1), (3, 4)),
    "squeeze": (lambda x: aten.squeeze.dim(x, 2), (3, 1, 4)),
    "squeeze that does nothing": (lambda x: aten.squeeze.dim(x, 1), (3, 1, 4)),
    "squeeze dims": (lambda x: aten.squeeze.dims(x, [1, 3]), (1, 4, 1)),
    "expand": (lambda x: aten.expand.default(x, [-1, 3, -1]), (1, 4)),
    "slice": (lambda x: aten.slice.Tensor(x, 1, 1, 3), (4, 5)),
    "slice from behind": (lambda x: aten.slice.Tensor(x, 2, -3, 2**63 - 1), (4, 5)),
    "slice in steps": (lambda x: aten.slice.Tensor(x, 2, 1, 2**63 - 1, 2), (4, 6)),
    "slice of the whole batch": (lambda x: aten.slice.Tensor(x, 0, 0, 2**63 - 1), (4,)),
    "select": (lambda x: aten.select.int(x, 1, -1), (3, 4)),
    "split": (lambda x: aten.split.Tensor(x, 2, 1)[2], (5, 3)),
    "split with sizes": (lambda x: aten.split_with_sizes.default(x, [1, 3], 2)[1], (5, 4)),
    "chunk": (lambda x: aten.chunk.default(x, 3, -1)[1], (2, 7)),
    "unbind": (lambda x: aten.unbind.int(x, 1)[1], (3, 4)),
    "clone": (lambda x: aten.clone.default(x), (3,)),
}


@pytest.mark.parametrize("case", RESHAPED)
def test_windows_show_what_torch_shows(case):
    function, shape = RESHAPED[case]
    weights = [torch.arange(6.0).reshape(2, 3)] if case == "t" else []
    ops = check(function, shape, weights=weights)
    assert set(ops) <= {"copy"}
    assert len(ops) <= 2


def test_a_reshape_in_order_costs_nothing_and_of_a_permutation_a_copy():
    assert check(lambda x: aten.view.default(x, [-1, 2, 6]), (3, 4)) == []
    assert check(lambda x: aten.reshape.default(aten.permute.default(x, [0, 2, 1]), [-1, 12]), (3, 4)) == ["copy"]


def test_concatenation_and_stack():
    assert check(lambda x, y: aten.cat.default([x, y, x], 1), (2, 3), (4, 3)) == ["copy"] * 3
    assert check(lambda x, y: aten.stack.default([x, y], -1), (2, 3), (2, 3)) == ["copy"] * 2
    ops = check(
        lambda x, y, w: aten.cat.default([x, aten.expand.default(w, [aten.sym_size.int(x, 0), -1])], 1),
        (3,),
        (1,),
        weights=[torch.ones(1, 2)],
    )
    assert ops.count("copy") == 3


WINDOWS = ["permute", "split", "merge", "slice", "select", "unsqueeze", "squeeze", "expand", "cat"]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_chains_of_windows(data):
    """Any chain of views of random shapes, the batch in front, gives torch's numbers at every batch."""
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3), label="shape")
    steps = data.draw(st.lists(st.sampled_from(WINDOWS), min_size=1, max_size=5), label="steps")
    sizes, chain = list(shape), []
    for step in steps:
        rank = len(sizes)
        axis = data.draw(st.integers(0, max(rank - 1, 0)), label="axis")
        if step == "permute":
            order = data.draw(st.permutations(range(rank)), label="order")
            chain.append(lambda x, o=tuple(order): aten.permute.default(x, [0, *(i + 1 for i in o)]))
            sizes = [sizes[i] for i in order]
        elif step == "split" and rank and sizes[axis] % 2 == 0 and rank < 6:
            sizes[axis : axis + 1] = [2, sizes[axis] // 2]
            chain.append(lambda x, s=tuple(sizes): aten.reshape.default(x, [aten.sym_size.int(x, 0), *s]))
        elif step == "merge" and rank > 1 and axis + 1 < rank:
            sizes[axis : axis + 2] = [sizes[axis] * sizes[axis + 1]]
            chain.append(lambda x, s=tuple(sizes): aten.reshape.default(x, [aten.sym_size.int(x, 0), *s]))
        elif step == "slice" and rank:
            start = data.draw(st.integers(0, sizes[axis] - 1), label="start")
            stride = data.draw(st.integers(1, 2), label="stride")
            chain.append(lambda x, a=axis + 1, s=start, t=stride: aten.slice.Tensor(x, a, s, 2**63 - 1, t))
            sizes[axis] = len(range(start, sizes[axis], stride))
        elif step == "select" and rank:
            index = data.draw(st.integers(-sizes[axis], sizes[axis] - 1), label="index")
            chain.append(lambda x, a=axis + 1, i=index: aten.select.int(x, a, i))
            del sizes[axis]
        elif step == "unsqueeze" and rank < 6:
            chain.append(lambda x, a=axis + 1: aten.unsqueeze.default(x, a))
            sizes.insert(axis, 1)
        elif step == "squeeze" and rank:
            chain.append(lambda x, a=axis + 1: aten.squeeze.dim(x, a))
            if sizes[axis] == 1:
                del sizes[axis]
        elif step == "expand" and 1 in sizes:
            sizes[sizes.index(1)] = 3
            chain.append(lambda x, s=tuple(sizes): aten.expand.default(x, [-1, *s]))
        elif step == "cat" and rank:
            chain.append(lambda x, a=axis + 1: aten.cat.default([x, x], a))
            sizes[axis] *= 2

    def function(x):
        for move in chain:
            x = move(x)
        return x

    check(function, shape, tolerance=0.0)

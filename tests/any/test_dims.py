"""Strides of reshaped windows agree with torch's ``view`` wherever it succeeds, for several batches at once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoregraph.plan.dims import Batch, at, dense_strides, dump_dim, parse_dim, per_unit, view_strides


@pytest.mark.parametrize("text", [7, "B", "2B", "12B"])
def test_dimension_text_parses_back(text):
    assert dump_dim(parse_dim(text)) == text


def test_sizes_scale_with_the_batch():
    assert at((Batch(2), 3), 5) == (10, 3)
    assert per_unit((Batch(2), 3, 4)) == 24
    assert Batch(6) // 3 == Batch(2)
    assert Batch(6) // Batch(2) == 3


def test_a_batch_that_is_not_outermost_has_no_dense_strides():
    assert dense_strides((3, Batch())) is None
    assert dense_strides((1, Batch(), 4)) == (0, 4, 1)


@settings(max_examples=300, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4),
    order=st.randoms(use_true_random=False),
    target=st.permutations([2, 3, 4]),
)
def test_view_strides_agree_with_torch(sizes, order, target):
    shape = (Batch(), *sizes)
    axes = list(range(1, len(shape)))
    order.shuffle(axes)
    axes = [0, *axes]
    total = 1
    for n in sizes:
        total *= n
    wanted = tuple(t for t in target if total % t == 0)[:1]
    rest = total
    for t in wanted:
        rest //= t
    new = (Batch(), *wanted, rest)
    strides = dense_strides(shape)
    assert strides is not None
    permuted = tuple(shape[a] for a in axes)
    found = view_strides(permuted, tuple(strides[a] for a in axes), new)
    for batch in (2, 5):
        tensor = torch.arange(batch * total).reshape(at(shape, batch)).permute(axes)
        try:
            expected = tensor.view(at(new, batch))
        except RuntimeError:
            expected = None
        assert (found is None) == (expected is None)
        if found is not None and expected is not None:
            got = torch.as_strided(tensor, at(new, batch), found, tensor.storage_offset())
            assert torch.equal(got, expected)

"""Capture: the program is the module, at every batch, or a clear refusal."""

import copy

import pytest
import torch
from torch import nn

from scoregraph import errors
from scoregraph.models.capture import capture, relative_error


class Mlp(nn.Module):
    """A plain score network: a state, a time with sinusoids, a class label."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 32)
        self.time = nn.Linear(8, 32)
        self.label = nn.Embedding(5, 32)
        self.drop = nn.Dropout(0.5)
        self.leave = nn.Linear(32, 6)

    def forward(self, x, t, label):
        frequencies = torch.exp(-torch.arange(4, device=x.device) / 4).to(x.dtype)
        angle = t[:, None] * frequencies
        time = self.time(torch.cat([angle.cos(), angle.sin()], dim=-1))
        return self.leave(self.drop(torch.relu(self.enter(x) + time + self.label(label)))) * 1.0


def mlp_examples(batch=2):
    torch.manual_seed(1)
    return torch.randn(batch, 6), torch.rand(batch), torch.arange(batch)


def test_the_program_is_the_module_in_both_precisions():
    torch.manual_seed(0)
    module = Mlp().eval()
    program = capture(module, mlp_examples(), prove_at=(1, 2, 3))
    assert program.inputs == ("x", "t", "label")
    assert set(program.report.proved) == {1, 2, 3}
    assert max(program.report.proved.values()) <= 1e-10
    twin = copy.deepcopy(program.module).double()
    for batch in (1, 2, 3, 5):
        x, t, label = mlp_examples(batch)
        assert relative_error(program(x, t, label), module(x, t, label)) <= 1e-6
        exact = copy.deepcopy(module).double()(x.double(), t.double(), label)
        assert relative_error(twin(x.double(), t.double(), label), exact) <= 1e-12


def test_what_has_no_effect_is_gone_and_constants_are_folded():
    program = capture(Mlp(), mlp_examples())
    operators = set(program.report.operators)
    assert not operators & {"aten.dropout.default", "aten.arange.default", "aten.exp.default", "aten._to_copy.default"}
    assert program.report.operators["aten.mul.Tensor"] == 1, "the product with 1.0 is no operation"
    assert program.report.folded == 1
    assert sum(program.report.dropped.values()) >= 2
    assert all(value.dtype == torch.float32 for value in program.module.state_dict().values())
    values = [node.meta["val"] for node in program.module.graph.nodes if "val" in node.meta]
    assert not [value for value in values if isinstance(value, torch.Tensor) and value.dtype == torch.float64]
    assert "proved" not in str(program.report)
    assert "error in float64" in str(program.report)


def test_the_module_given_is_not_touched():
    module = Mlp().train()
    before = copy.deepcopy(module.state_dict())
    capture(module, mlp_examples())
    assert module.training
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert all(p.dtype == torch.float32 and p.requires_grad for p in module.parameters())


def test_the_example_may_have_batch_one():
    program = capture(Mlp(), [value[:1] for value in mlp_examples()])
    assert program(*mlp_examples(4)).shape == (4, 6)


class Answers(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.layer(x))


@pytest.mark.parametrize(
    "wrap", [lambda y: (y, y + 1), lambda y: [y], lambda y: {"sample": y}, lambda y: {"other": None, "first": y}]
)
def test_the_first_tensor_of_a_structured_answer_is_the_answer(wrap):
    module = Answers(wrap).eval()
    program = capture(module, [torch.randn(2, 3)])
    x = torch.randn(4, 3)
    assert relative_error(program(x), module.layer(x)) <= 1e-6


class Rule(nn.Module):
    """A module made of one function."""

    def __init__(self, rule):
        super().__init__()
        self.rule = rule

    def forward(self, x):
        return self.rule(x)


def test_a_branch_on_the_batch_is_accepted_where_both_sides_are_one_program():
    def rule(x):
        if x.shape[0] >= 64:
            x = x.contiguous()
        return 2.0 * x

    report = capture(Rule(rule), [torch.randn(2, 4)]).report
    assert report.traced == (3, 64)
    assert report.batch == (1, None)
    assert any("B < 64 at test_capture.py" in condition for condition in report.conditions)


def differs_from_64(x):
    if x.shape[0] >= 64:
        return x
    return 2.0 * x


def differs_at_even(x):
    if x.shape[0] % 2 == 0:
        return x
    return 2.0 * x


@pytest.mark.parametrize(
    ("rule", "batch", "line"),
    [
        (differs_from_64, 64, "if x.shape[0] >= 64:"),
        (differs_at_even, 2, "if x.shape[0] % 2 == 0:"),
    ],
)
def test_a_branch_on_the_batch_is_refused_where_the_sides_differ(rule, batch, line):
    with pytest.raises(errors.NarrowBatch) as caught:
        capture(Rule(rule), [torch.randn(2, 4)], prove_at=(1,))
    assert f"at batch {batch} it is another" in str(caught.value)
    assert line in str(caught.value)


def test_a_fixed_batch_is_refused():
    class Fixed(nn.Module):
        def forward(self, x):
            return x * torch.ones(3, 1, dtype=x.dtype)

    # At batch 1 ones(3, 1) broadcasts, so only the proof's first answer can run: batch 3.
    with pytest.raises(errors.NarrowBatch) as caught:
        capture(Fixed(), [torch.randn(3, 4)], prove_at=(3,))
    assert "only while B = 3" in str(caught.value)


def test_control_flow_on_values_is_refused_with_its_line():
    def rule(x):
        if (x > 0).all():
            return x
        return 2.0 * x

    with pytest.raises(errors.DataDependentFlow) as caught:
        capture(Rule(rule), [torch.randn(2, 4)])
    assert "if (x > 0).all():" in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_shape_that_depends_on_values_is_refused():
    def rule(x):
        return x[x > 0].sum() + x

    with pytest.raises((errors.CaptureFailed, errors.MixedSamples)):
        capture(Rule(rule), [torch.randn(2, 4)])


def test_leaving_torch_is_refused_with_line_and_shape():
    def rule(x):
        return x + torch.from_numpy(x.detach().numpy() * 0)

    with pytest.raises(errors.CaptureFailed) as caught:
        capture(Rule(rule), [torch.randn(2, 4)])
    assert "x.detach().numpy()" in str(caught.value)
    assert "x [B, 4]" in str(caught.value)


def test_a_module_that_does_not_run_is_refused_with_its_own_line():
    with pytest.raises(errors.CaptureFailed) as caught:
        capture(Rule(lambda x: x @ torch.ones(7, 7, dtype=x.dtype)), [torch.randn(2, 4)])
    assert "cannot be multiplied" in str(caught.value)


def test_samples_must_not_meet():
    with pytest.raises(errors.MixedSamples):
        capture(Rule(lambda x: x - x.mean(dim=0)), [torch.randn(2, 4)])


def test_random_numbers_are_refused():
    with pytest.raises((errors.ImpureModule, errors.MixedSamples)):
        capture(Rule(lambda x: x + torch.rand_like(x)), [torch.randn(2, 4)])
    with pytest.raises(errors.ImpureModule) as caught:
        capture(Rule(lambda x: x + 1e-13 * torch.rand_like(x)), [torch.randn(2, 4)])
    assert "rand_like" in str(caught.value)
    with pytest.raises(errors.ImpureModule) as caught:
        capture(Rule(lambda x: x + 1e-13 * nn.functional.dropout(x, training=True)), [torch.randn(2, 4)])
    assert "dropout" in str(caught.value)


def test_written_buffers_are_refused():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls.add_(1)
            return 2.0 * x

    with pytest.raises(errors.ImpureModule) as caught:
        capture(Counting(), [torch.randn(2, 4)])
    assert "'calls'" in str(caught.value)


def test_state_outside_the_trace_is_caught_by_value():
    class Drifting(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            return x if self.calls <= 2 else 2.0 * x

    with pytest.raises(errors.CaptureMismatch):
        capture(Drifting(), [torch.randn(2, 4)])


@pytest.mark.parametrize(
    ("examples", "problem"),
    [
        ([torch.randn(2, 4), torch.randn(3)], "different batches"),
        ([torch.tensor(1.0)], "no batch in front"),
        ([3], "is a int, not a tensor"),
        ([], "no inputs"),
    ],
)
def test_examples_that_do_not_fit(examples, problem):
    with pytest.raises(errors.WrongExample) as caught:
        capture(Rule(lambda x: x), examples)
    assert problem in str(caught.value)

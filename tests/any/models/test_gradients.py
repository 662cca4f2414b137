"""Gradients of energies and divergences of networks, captured, compiled and run in float64 against autograd."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from energy_cases import MODULES, energy, oracle
from torch import Tensor, nn

import scoregraph as sg
from scoregraph import errors, models
from scoregraph.backends.reference import Reference
from scoregraph.models.adm import ADMConfig, ADMUNet
from scoregraph.models.capture import TensorProgram
from scoregraph.passes.base import run_passes
from scoregraph.passes.lower.program import lower_program
from scoregraph.passes.plan.pipeline import plan_passes
from scoregraph.passes.tensor import pipeline
from scoregraph.plan import files
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Drafter
from scoregraph.plan.schema import InputSpec, OutputSpec


def compiled(program: TensorProgram, *inputs: Tensor) -> list[Tensor]:
    """A tensor program through all tensor passes, lowering and memory planning, on the reference backend in float64."""
    drafter = Drafter("program", "reference")
    drafter.begin("once")
    values = []
    for i, given in enumerate(inputs):
        dtype = "f32" if given.is_floating_point() else "i64"
        values.append(drafter.new((Batch(), *given.shape[1:]), dtype, f"x{i}"))
        drafter.inputs.append(InputSpec(name=f"x{i}", buffer=int(values[-1].storage[1:])))
    module, _ = pipeline.run(program.module)
    for i, made in enumerate(lower_program(drafter, module, values, "net")):
        whole = drafter.dense(drafter.as_buffer(made))
        drafter.outputs.append(OutputSpec(name=f"y{i}", buffer=int(drafter.ref(whole)[1:])))
    draft, _ = run_passes(plan_passes("reference"), drafter.build(), show=lambda draft: "")
    plan, constants = files.lay_out(draft.plan, draft.arrays)
    given = {f"x{i}": (v.double() if v.is_floating_point() else v).numpy() for i, v in enumerate(inputs)}
    seeds = np.arange(len(inputs[0]), dtype=np.uint64)
    made = Reference("float64", planned=True).compile(plan, constants).run(given, seeds)
    return [torch.from_numpy(made[f"y{i}"]) for i in range(len(made))]


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    assert got.shape == expected.shape
    assert float((got - expected).abs().max()) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("part", ["energy", "energy.grad"])
def test_energies_and_their_gradients(name, part):
    network = energy(name)
    program = network.capture_part(part)
    for batch in (1, 4):
        inputs = network.example(batch)
        expected = oracle(network, *inputs)[part == "energy.grad"]
        # Constants that were folded are float32 in a captured program; those of "shapes" and of losses are exact.
        close(compiled(program, *inputs)[0], expected)


def test_a_normalized_measurement_divides_by_its_residual():
    network = energy("measurement")
    inputs = network.example(4)
    value, gradient = oracle(network, *inputs)
    rooted = compiled(network.capture_part("energy.root.grad"), *inputs)[0]
    residual = (2 * value).sqrt()[:, None, None, None]
    close(rooted, gradient / residual)


class Score(nn.Module):
    """m [n, 3] of x, t and a condition, twice as wide as the state where a variance is learned."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(3 + 1 + 2, 8), nn.Linear(8, width)

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        return self.leave(torch.tanh(self.enter(torch.cat([x, t[:, None], c], 1))))


def score() -> models.Network:
    torch.manual_seed(5)
    example = {"x": torch.randn(2, 3), "t": torch.rand(2), "c": torch.randn(2, 2)}
    return models.from_module(Score(), example, prediction="eps", time="t")


def test_gradients_go_through_a_score_network():
    network = score()
    pull = models.energy(Pull(), (torch.randn(2, 3), torch.rand(2), torch.randn(2, 3)), values=["y"], time="sigma")
    x, t, c = network.score_example(4)
    s, y, p, q = torch.rand(4), torch.randn(4, 3), torch.rand(4), -torch.rand(4)
    for rooted in (False, True):
        part = f"score.energy.{'root.' if rooted else ''}grad:Pull"
        got = compiled(network.capture_part(part, {"Pull": pull}), x, t, c, s, y, p, q)[0]
        m = copy.deepcopy(network.score).double()
        state = x.double().requires_grad_()
        x0 = p.double()[:, None] * state + q.double()[:, None] * m(state, t.double(), c.double())
        value = Pull()(x0, s.double(), y.double())
        close(got, torch.autograd.grad(((2 * value).sqrt() if rooted else value).sum(), state)[0])


class Pull(nn.Module):
    """(1 + t) |x - y|^2 / 2."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return (1 + t) * (x - y).square().sum(1) / 2


def test_the_divergence_is_the_trace_of_the_jacobian():
    network = score()
    x, t, c = (value.double() for value in network.score_example(4))
    module = copy.deepcopy(network.score).double()
    jacobian = torch.func.vmap(torch.func.jacrev(lambda *one: module(*(v[None] for v in one))[0]))(x, t, c)
    m, trace = compiled(network.capture_part("score.divergence"), x, t, c)
    close(m, module(x, t, c).detach())
    close(trace, jacobian.diagonal(dim1=1, dim2=2).sum(1).detach())
    probe = torch.randn(4, 3, dtype=torch.float64)
    m, estimate = compiled(network.capture_part("score.jvp"), x, t, c, probe)
    close(m, module(x, t, c).detach())
    signs = probe.sign()
    close(estimate, torch.einsum("bi,bij,bj->b", signs, jacobian, signs).detach())


def test_a_divergence_of_images_keeps_their_shape():
    class Denoiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x, t):
            return torch.tanh(self.convolution(x)) * t[:, None, None, None]

    torch.manual_seed(1)
    network = models.from_module(Denoiser(), {"x": torch.randn(2, 1, 3, 4), "t": torch.rand(2)}, prediction="eps")
    x, t = torch.randn(2, 1, 3, 4, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    module = copy.deepcopy(network.score).double()
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x, t: module(x[None], t[None])[0].flatten()))(x, t)
    m, trace = compiled(network.capture_part("score.divergence"), x, t)
    close(m, module(x, t).detach())
    close(trace, jacobian.reshape(2, 12, 12).diagonal(dim1=1, dim2=2).sum(1).detach())


@pytest.mark.slow
def test_gradients_go_through_a_whole_unet():
    """ADM: scale-shift group norms, resampling, attention."""
    config = ADMConfig(2, 2, 8, (1, 2), blocks=1, attention=(1,), head_width=8, label_width=4, groups=4)
    torch.manual_seed(0)
    unet = ADMUNet(config)
    for parameter in unet.parameters():
        parameter.data = torch.randn(parameter.shape) * 0.2
    example = (torch.randn(2, 2, 8, 8), torch.rand(2), torch.randn(2, 4))
    network = models.from_module(unet, example, prediction="v", name="adm")
    pull = models.energy(Misfit(), (torch.randn(2, 2, 8, 8),) * 2, values=["y"])
    x, t, label = network.score_example(2)
    program = network.capture_part("score.energy.grad:Misfit", {"Misfit": pull})
    # Against autograd before its frequencies were rounded to float32, and what lowering makes of it against itself.
    assert max(program.report.proved.values()) < 1e-12
    inputs = (x, t, label, torch.zeros(2), torch.randn(2, 2, 8, 8), torch.rand(2), -torch.rand(2))
    close(compiled(program, *inputs)[0], copy.deepcopy(program.module).double()(*(v.double() for v in inputs)))


class Misfit(nn.Module):
    """|x - y|^2 / 2."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x - y).square().flatten(1).sum(1) / 2


def test_a_learned_variance_is_not_part_of_the_answer():
    network = score()
    wide = Score(width=6)
    wide.leave.weight.data[:3], wide.leave.bias.data[:3] = (
        network.score.module.leave.weight,
        network.score.module.leave.bias,
    )
    wide.enter = network.score.module.enter
    object.__setattr__(network, "score", wide)
    x, t, c = (value.double() for value in network.score_example(2))
    m, _ = compiled(network.capture_part("score.divergence"), x, t, c)
    close(m, copy.deepcopy(wide).double()(x, t, c)[:, :3].detach())


def test_an_energy_by_itself_is_a_plan():
    network = energy("looked-up")
    plan = sg.compile(network, device="reference", use_cache=False)
    inputs = network.example(4)
    made = plan.run(**dict(zip(("x", "t", "label"), (value.numpy() for value in inputs), strict=True)))
    value, gradient = oracle(network, *inputs)
    np.testing.assert_allclose(made["energy"], value.numpy(), rtol=1e-5)
    np.testing.assert_allclose(made["grad"], gradient.numpy(), atol=1e-6)


# --- what cannot be captured --------------------------------------------------------------------


def refused(function, *shape: int) -> None:
    class Energy(nn.Module):
        def forward(self, x):
            return function(x)

    models.energy(Energy(), (torch.randn(2, *shape),)).capture_part("energy.grad")


def test_an_energy_that_mixes_samples_is_refused():
    with pytest.raises(errors.MixedSamples):
        refused(lambda x: (x - x.mean(0)).square().sum(1), 3)


def test_an_energy_that_branches_on_its_values_is_refused():
    with pytest.raises(errors.DataDependentFlow):
        refused(lambda x: x.sum(1) if x.sum() > 0 else x.square().sum(1), 3)


def test_an_energy_that_draws_is_refused():
    with pytest.raises((errors.ImpureModule, errors.MixedSamples)):
        refused(lambda x: (x + torch.randn_like(x)).square().sum(1), 3)


def test_an_energy_without_a_gradient_is_refused():
    with pytest.raises(errors.CaptureFailed, match="grad"):
        refused(lambda x: x.detach().square().sum(1), 3)


def test_a_batch_that_is_written_into_the_energy_is_refused():
    with pytest.raises(errors.ScoregraphError):
        refused(lambda x: x.reshape(3, -1).square().sum(1), 3)


@pytest.mark.parametrize(
    ("example", "values"),
    [((torch.randn(2, 3),), ["y"]), ((torch.randn(2),), []), ((torch.ones(2, 3, dtype=torch.int64),), [])],
)
def test_examples_that_do_not_fit_are_refused(example, values):
    with pytest.raises(errors.WrongExample):
        models.energy(Pull(), example, values=values)


def test_one_number_for_the_whole_batch_is_refused():
    class Loss(nn.Module):
        def forward(self, x):
            return x.square().mean()

    with pytest.raises(errors.WrongEnergy, match="2 samples"):
        models.energy(Loss(), (torch.randn(2, 3),))

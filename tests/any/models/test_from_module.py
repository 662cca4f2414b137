"""Modules become networks: roles, conditions, answers, and what is refused."""

import pytest
import torch
from torch import nn

from scoregraph import errors, models
from scoregraph.graph.prediction import Eps
from scoregraph.models.capture import capture, relative_error

diffusers = pytest.importorskip("diffusers")


def dit(layers, heads, width):
    torch.manual_seed(0)
    module = diffusers.DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        in_channels=4,
        out_channels=8,
        num_layers=layers,
        sample_size=32 if width > 100 else 8,
        patch_size=2,
        num_embeds_ada_norm=1000,
    )
    size = module.config.sample_size
    inputs = {
        "hidden_states": torch.randn(2, 4, size, size),
        "timestep": torch.tensor([10, 900]),
        "class_labels": torch.tensor([3, 999]),
    }
    return module, inputs


def unet():
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        layers_per_block=1,
    )


def check(network, module_answer, **tolerance):
    """The captured score equals the module at batches 1 and 3, and the proof in float64 stood at 1, 2 and 3."""
    program = capture(network.score, network.score_example(), name=network.ref.name, prove_at=(1, 2, 3))
    assert max(program.report.proved.values()) <= 1e-10
    for batch in (1, 3):
        inputs = network.score_example(batch)
        with torch.no_grad():
            assert relative_error(program(*inputs), module_answer(*inputs)) <= 1e-5
    return program


def dit_network(module, inputs):
    bounds = {"class_labels": {"low": 0, "high": 999, "null": 1000}}
    return models.from_module(module, inputs, prediction="eps", conds=bounds, half="first", name="dit")


def check_dit(module, inputs):
    network = dit_network(module, inputs)
    (label,) = network.ref.conds
    assert (label.name, label.shape, label.dtype, label.null) == ("class_labels", (), "i64", 1000)
    assert (network.ref.time, network.latent.space) == ("timestep", "vp")

    def answer(x, t, y):
        return module(x, t, class_labels=y).sample[:, :4]

    program = check(network, answer)
    assert not set(program.report.operators) & {"aten._to_copy.default", "aten.arange.start", "aten.exp.default"}
    return program


def test_a_small_diffusion_transformer():
    check_dit(*dit(layers=2, heads=2, width=32))


@pytest.mark.slow
def test_a_diffusion_transformer_of_twelve_layers():
    program = check_dit(*dit(layers=12, heads=6, width=384))
    assert program.report.operators["aten.scaled_dot_product_attention.default"] == 12


def test_a_unet_whose_branch_on_the_batch_is_harmless():
    module = unet()
    network = models.from_module(module, (torch.randn(2, 3, 16, 16), torch.tensor(5)), prediction=Eps())
    assert network.ref.name == "UNet2DModel"
    program = check(network, lambda x, t: module(x, t).sample)
    assert program.report.traced == (3, 64)
    assert any("upsampling.py" in condition for condition in program.report.conditions)


class Denoiser(nn.Module):
    """A plain module with its own argument names."""

    def __init__(self, out=4):
        super().__init__()
        self.layer = nn.Linear(4, out)

    def forward(self, noisy, sigma, hint=None, scale: float = 1.0):
        shown = noisy if hint is None else noisy + hint
        return self.layer(shown) * scale / sigma[:, None]


EXAMPLES = {"noisy": torch.randn(2, 4), "sigma": torch.rand(2) + 0.5}


def test_a_plain_module_by_names_and_constants():
    module = Denoiser()
    inputs = {**EXAMPLES, "hint": torch.randn(2, 4), "scale": 3.0}
    network = models.from_module(module, inputs, prediction="edm(sigma_data=0.7)")
    assert [cond.name for cond in network.ref.conds] == ["hint"]
    assert network.ref.conds[0].null is None
    assert (network.ref.time, network.latent.space) == ("c_noise", "kappa")
    check(network, lambda x, t, hint: module(x, t, hint, scale=3.0))


def test_positions_and_conventions():
    network = models.from_module(Denoiser(), tuple(EXAMPLES.values()), prediction="x0")
    assert network.ref.time == "sigma"
    network = models.from_module(
        Denoiser(), tuple(EXAMPLES.values()), prediction="flow", convention="flow1000", name="other"
    )
    assert (network.ref.name, network.ref.time, network.latent.space) == ("other", "flow1000", "flow")


def test_times_stay_integers_where_the_module_looks_them_up():
    class Lookup(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(1000, 4)

        def forward(self, x, t):
            return x + self.table(t)

    module = Lookup()
    network = models.from_module(module, (torch.randn(2, 4), torch.tensor([1, 2])), prediction="eps")
    x = torch.randn(2, 4)
    assert torch.equal(network.score(x, torch.tensor([7.0, 8.0])), module(x, torch.tensor([7, 8])))


@pytest.mark.parametrize(
    ("inputs", "options", "problem"),
    [
        (EXAMPLES, {"x": "image"}, "x='image' is not a tensor among the example inputs"),
        ({"hint": torch.randn(2, 4), "sigma": torch.rand(2)}, {}, "none of the arguments looks like x"),
        (EXAMPLES, {"conds": ["text"]}, "'text' is not a condition"),
        ({**EXAMPLES, "hint": torch.randn(2, 4)}, {"conds": []}, "the tensor 'hint' has no role"),
        ({**EXAMPLES, "hnt": torch.randn(2, 4)}, {}, "forward has no argument 'hnt'"),
        ([torch.randn(2, 4)] * 5, {}, "5 example inputs for 4 named arguments"),
    ],
)
def test_roles_that_are_not_clear(inputs, options, problem):
    with pytest.raises(errors.UnclearRole) as caught:
        models.from_module(Denoiser(), inputs, prediction="eps", **options)
    assert problem in str(caught.value)
    assert "test_from_module.py:" in str(caught.value), "the place is the user's line"


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        ({"noisy": torch.arange(2), "sigma": torch.rand(2)}, "expected floats [batch, channels, ...]"),
        ({"noisy": torch.randn(2, 4), "sigma": torch.rand(3)}, "has not the batch of 'noisy', 2"),
    ],
)
def test_examples_that_do_not_fit(inputs, problem):
    with pytest.raises(errors.WrongExample) as caught:
        models.from_module(Denoiser(), inputs, prediction="eps")
    assert problem in str(caught.value)


def test_an_answer_of_another_shape_names_the_cure():
    with pytest.raises(errors.WrongAnswer) as caught:
        models.from_module(Denoiser(out=8), EXAMPLES, prediction="eps")
    assert 'half="first"' in str(caught.value)
    assert models.from_module(Denoiser(out=8), EXAMPLES, prediction="eps", half="second").latent.shape == (4,)
    with pytest.raises(errors.WrongAnswer) as caught:
        models.from_module(Denoiser(out=3), EXAMPLES, prediction="eps")
    assert "answers in the shape of its state" in str(caught.value)


def test_a_module_that_does_not_run_says_where():
    with pytest.raises(errors.CaptureFailed) as caught:
        models.from_module(Denoiser(), {**EXAMPLES, "hint": torch.randn(2, 5)}, prediction="eps")
    assert "noisy + hint" in str(caught.value)


def test_an_unknown_prediction_suggests():
    with pytest.raises(errors.UnknownName) as caught:
        models.from_module(Denoiser(), EXAMPLES, prediction="epsilon")
    assert "eps" in str(caught.value)

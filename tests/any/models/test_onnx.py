"""Whole ONNX graphs: exported networks, what exporters take apart, shape arithmetic, errors."""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import onnxruntime
import torch
from onnx import numpy_helper, parser
from torch import nn

import scoregraph as sg
from scoregraph import errors, models
from scoregraph.models import terrain
from scoregraph.models.onnx import graph as onnx_graph
from scoregraph.models.onnx import onnx_module


def exported(module, examples, path, names, opset=18):
    """The file of ``torch.onnx.export`` with a symbolic batch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), examples, str(path), input_names=names, dynamo=True, verbose=False, opset_version=opset,
            dynamic_shapes=tuple({0: torch.export.Dim.DYNAMIC} for _ in examples), external_data=False,
        )  # fmt: skip
    return path


def kernels(target) -> Counter:
    """How often each kernel is called in the plan of a network."""
    plan = sg.compile(target, device="reference", use_cache=False).plan
    return Counter(call.op for segment in plan.segments for call in segment.calls)


def runtime(path, **feeds):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


class Block(nn.Module):
    """What exporters take apart: group norm with SiLU, GELU, attention, a layer norm, an embedding of time."""

    def __init__(self, approximate="none"):
        super().__init__()
        self.conv = nn.Conv2d(4, 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.time = nn.Linear(8, 16)
        self.qkv = nn.Linear(16, 48)
        self.tokens = nn.LayerNorm(16)
        self.gelu = nn.GELU(approximate=approximate)
        self.out = nn.Conv2d(16, 4, 1)

    def forward(self, sample, timestep):
        frequencies = torch.exp(-torch.arange(4) / 4.0)
        angles = timestep[:, None] * frequencies
        embedding = self.time(torch.cat([angles.sin(), angles.cos()], dim=1))
        h = nn.functional.silu(self.norm(self.conv(sample)))
        h = h + embedding[:, :, None, None]
        rows = self.tokens(h.flatten(2).transpose(1, 2))
        q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.qkv(rows).chunk(3, dim=-1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        h = h + self.gelu(mixed).transpose(1, 2).reshape(h.shape)
        return self.out(h)


EXAMPLES = (torch.randn(3, 4, 8, 8), torch.tensor([1.0, 400.0, 900.0]))


@pytest.fixture(scope="module", params=["none", "tanh"])
def block(request, tmp_path_factory):
    """A module, its file, and its examples."""
    torch.manual_seed(0)
    module = Block(request.param).eval()
    folder = tmp_path_factory.mktemp("onnx")
    return module, exported(module, EXAMPLES, folder / "block.onnx", ["sample", "timestep"]), EXAMPLES


def test_what_was_taken_apart_is_whole_again(block):
    """The plan of the file has the kernels of the plan of the module: nothing was lost on the way."""
    module, path, (x, t) = block
    network = models.from_onnx(path, prediction="eps")
    assert network.ref.latent.shape == (4, 8, 8)
    captured = models.from_module(module, {"sample": x, "timestep": t}, prediction="eps")
    assert kernels(network) == kernels(captured)


def test_a_plan_of_a_file_is_onnx_runtime(block):
    _, path, _ = block
    plan = sg.compile(models.from_onnx(path, prediction="eps"), device="reference", use_cache=False)
    for batch in (1, 2, 5):
        x = np.random.default_rng(batch).standard_normal((batch, 4, 8, 8)).astype(np.float32)
        t = np.linspace(3.0, 700.0, batch, dtype=np.float32)
        expected = runtime(path, sample=x, timestep=t)
        error = np.abs(plan.run(x=x, t=t)["m"] - expected).max() / np.abs(expected).max()
        assert error <= 1e-5, batch


def test_the_source_of_a_module_shows_the_nodes(block):
    _, path, _ = block
    code = onnx_module(path).code
    assert "def forward(self, sample, timestep):" in code
    for operator in ("GroupNormalization", "LayerNormalization", "Gelu"):
        assert code.count(f" = {operator}(") == 1
    for operator in ("InstanceNormalization", "Erf", "Tanh"):
        assert f" = {operator}(" not in code


def test_two_graphs_of_the_same_weights_have_two_fingerprints():
    files = [small(f"y = {operator}(x)", inputs="float[B, 4] x, float[B] t") for operator in ("Tanh", "Sin")]
    prints = {models.from_onnx(file, prediction="eps").ref.fingerprint for file in files}
    assert len(prints) == 2


def small(body, inputs="float[B, 6, 8] x", outputs="y", opset=18):
    """A model from ONNX's own text form."""
    results = ", ".join(f"float[B] {name}" for name in outputs.split())
    head = f'ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]'
    return parser.parse_model(f"<{head}> small ({inputs}) => ({results}) {{{body}}}")


SHAPE_ARITHMETIC = {
    "reshape to computed sizes": """
        s = Shape(x)  i0 = Constant<value_int=0>()  n = Gather(s, i0)  axes = Constant<value_ints=[0]>()
        nn = Unsqueeze(n, axes)  rest = Constant<value_ints=[2, -1]>()  to = Concat<axis=0>(nn, rest)
        y = Reshape(x, to)""",
    "a vector of sizes, halved": """
        s = Shape(x)  one = Constant<value_ints=[1]>()  two = Constant<value_ints=[2]>()
        far = Constant<value_ints=[9]>()  tail = Slice(s, one, far)  half = Div(tail, two)
        z = Constant<value_ints=[0, 2]>()  w = Constant<value_ints=[2]>()
        to = Concat<axis=0>(z, half, w)  y = Reshape(x, to)""",
    "expand to a shape with -1 replaced": """
        s = Shape(x)  want = Constant<value_ints=[-1, 6, 8]>()  minus = Constant<value_ints=[-1]>()
        m = Equal(want, minus)  to = Where(m, s, want)  one = Constant<value_floats=[0.5]>()  e = Expand(one, to)
        y = Add(x, e)""",
    "range over a size": """
        s = Shape<start=1, end=2>(x)  axes = Constant<value_ints=[0]>()  k = Squeeze(s, axes)
        zero = Constant<value_int=0>()  step = Constant<value_int=1>()  r = Range(zero, k, step)
        f = Cast<to=1>(r)  last = Constant<value_ints=[1]>()  column = Unsqueeze(f, last)  y = Add(x, column)""",
    "a constant of a shape with the batch": """
        s = Shape(x)  c = ConstantOfShape<value = float[1] {2.5}>(s)  y = Mul(x, c)""",
    "the square root of a width": """
        s = Shape<start=-1>(x)  axes = Constant<value_ints=[0]>()  w = Squeeze(s, axes)  f = Cast<to=1>(w)
        r = Sqrt(f)  y = Div(x, r)""",
    "split, then one piece": """
        a, b, c = Split<axis=1, num_outputs=3>(x)  y = Concat<axis=1>(c, a)""",
    "a mask that a row fails whole": """
        zero = Constant<value_float=0.0>()  m = Softmax(x)  n = IsNaN(m)  y = Where(n, zero, m)""",
}


@pytest.mark.parametrize("case", SHAPE_ARITHMETIC)
def test_shape_arithmetic_keeps_the_batch_symbolic(case):
    made = small(SHAPE_ARITHMETIC[case])
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    module = onnx_module(made)
    program = models.capture.capture(module, (torch.randn(3, 6, 8),), name="small")
    for batch in (1, 4):
        x = torch.randn(batch, 6, 8)
        (expected,) = session.run(None, {"x": x.numpy()})
        np.testing.assert_allclose(program(x).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_layer_norm_of_before_opset_17_is_one():
    body = """
        m = ReduceMean<axes=[-1]>(x)  d = Sub(x, m)  two = Constant<value_float=2.0>()  p = Pow(d, two)
        v = ReduceMean<axes=[-1]>(p)  e = Constant<value_float=0.00001>()  ve = Add(v, e)  s = Sqrt(ve)  n = Div(d, s)
        w = Constant<value_floats=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]>()
        b = Constant<value_floats=[1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]>()
        nw = Mul(n, w)  y = Add(nw, b)"""  # fmt: skip
    code = onnx_module(small(body, opset=13)).code
    assert code.count("LayerNormalization(") == 1
    assert len(code.splitlines()) == 3


@pytest.mark.parametrize("last", ["y = Mul(p, half)", "q = Mul(p, half)  y = Add(q, half)"])
def test_a_gelu_is_known_by_its_values(last):
    """The same operations with another result are not GELU, and stay."""
    body = f"""
        r = Constant<value_float=1.4142135>()  d = Div(x, r)  e = Erf(d)  one = Constant<value_float=1.0>()
        a = Add(e, one)  p = Mul(x, a)  half = Constant<value_float=0.5>()  {last}"""
    code = onnx_module(small(body)).code
    assert code.count("Gelu(") == 1
    wrong = onnx_module(small(body.replace("1.4142135", "1.5"))).code
    assert "Gelu(" not in wrong
    assert "Erf(" in wrong


def test_halves_are_read_as_floats():
    made = small("f = Cast<to=1>(c)  y = Mul(x, f)")
    made.graph.initializer.append(numpy_helper.from_array(np.arange(1.0, 9.0).astype(np.float16), "c"))
    module = onnx_module(made)
    assert torch.equal(module(torch.ones(2, 6, 8))[0, 0], torch.arange(1.0, 9.0))


def test_an_open_size_is_given_by_name():
    made = small("y = Softmax(x)", inputs="float[B, tokens, 8] x")
    with pytest.raises(errors.BadOnnx, match="the size 'tokens' of its input 'x'"):
        onnx_module(made)
    assert onnx_module(made, sizes={"tokens": 5})(torch.zeros(2, 5, 8)).shape == (2, 5, 8)


def test_one_output_of_several():
    made = small("y = Tanh(x)  z = Sin(x)", outputs="y z")
    x = torch.randn(2, 6, 8)
    both = onnx_module(made)(x)
    assert torch.equal(onnx_module(made, outputs=["z"])(x), both[1])
    with pytest.raises(errors.BadOnnx, match="choose of: y, z"):
        onnx_module(made, outputs=["q"])


MISTAKES = {
    "an operator nobody covers": ("y = Det(x)", errors.UnsupportedOnnx, "operator Det of node .* inputs are .*6, 8"),
    "another domain": ("y = com.microsoft.FastGelu(x)", errors.UnsupportedOnnx, "com.microsoft.FastGelu"),
    "a form that is not covered": (
        "i = Constant<value_int=1>()  y = CumSum<reverse=1>(x, i)", errors.UnsupportedOnnx, "running sum that is",
    ),
    "a batch that the file fixes": (
        "to = Constant<value_ints=[3, 48]>()  y = Reshape(x, to)", errors.BadOnnx, "Reshape .* fails on",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_name_the_node(case):
    body, error, words = MISTAKES[case]
    with pytest.raises(error, match=words):
        onnx_module(small(body))


def test_an_old_opset_is_refused():
    with pytest.raises(errors.BadOnnx, match="opset 9"):
        onnx_module(small("y = Tanh(x)", opset=9))


def test_a_wrong_rewrite_does_not_get_through(monkeypatch):
    """The comparison in float64 is what stands between a pattern and a wrong number."""
    monkeypatch.setitem(
        onnx_graph.OPERATORS, "Linear", lambda x, w, bias=None: nn.functional.linear(x, w * 1.001, bias)
    )
    made = small("w = Constant<value = float[8, 2] {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}>()  y = MatMul(x, w)")
    with pytest.raises(errors.OnnxMismatch, match="its own graph"):
        onnx_module(made)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("terrain_diffusion") is None, reason="the terrain weights are absent")
def test_the_terrain_file_is_what_load_reads_from_it():
    """A group norm in four pieces, 139 times; attention through einsum; and D, which scales F, around all of it."""
    module = onnx_module(terrain.weights_file())
    assert module.code.count(" = GroupNormalization(") == 139
    assert " = InstanceNormalization(" not in module.code
    network = models.load("terrain")
    sigma, prediction = 5.0, network.ref.prediction
    x, feature = sigma * torch.randn(1, 1, 128, 128), torch.full((1,), 0.5)
    p, q = prediction.to_x0(1.0, sigma)
    with torch.no_grad():
        answer = network.score(x * prediction.c_in(1.0, sigma), torch.tensor([math.log(sigma) / 4]), feature[:, None])
        expected = (p * x + q * answer).clamp(-1, 1)
        got = module(x, torch.tensor([sigma]), feature)
    assert float((got - expected).abs().max()) <= 2e-5


@pytest.mark.slow
def test_a_dit_of_diffusers(tmp_path):
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    net = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=2, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10,
    ).eval()  # fmt: skip

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, hidden_states, timestep, class_labels):
            return self.net(hidden_states, timestep=timestep, class_labels=class_labels, return_dict=False)[0]

    examples = {
        "hidden_states": torch.randn(3, 4, 8, 8),
        "timestep": torch.tensor([1, 5, 900]),
        "class_labels": torch.tensor([1, 2, 3]),
    }
    path = exported(Plain(), tuple(examples.values()), tmp_path / "dit.onnx", list(examples))
    conds = {"class_labels": {"low": 0, "high": 9, "null": 10}}
    network = models.from_onnx(path, prediction="eps", conds=conds)
    plan = sg.compile(network, device="reference", use_cache=False)
    given = {
        "hidden_states": np.ones((2, 4, 8, 8), np.float32),
        "timestep": np.array([7, 70]),
        "class_labels": np.array([4, 5]),
    }
    expected = runtime(path, **given)
    got = plan.run(
        x=given["hidden_states"], t=given["timestep"].astype(np.float32), class_labels=given["class_labels"]
    )["m"]
    assert np.abs(got - expected).max() / np.abs(expected).max() <= 1e-5
    captured = models.from_module(net, examples, prediction="eps", conds=conds)
    assert kernels(network) == kernels(captured)

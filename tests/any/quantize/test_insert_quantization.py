"""insert-quantization: which products change and to what, which do not and why, and that they compute what is said."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from quantized_networks import sqnr

from scoregraph.backends.reference import Reference
from scoregraph.passes.base import Fuel, PassResult
from scoregraph.passes.quantize.calibrate import Calibration
from scoregraph.passes.quantize.insert_quantization import InsertQuantization
from scoregraph.passes.quantize.integer_weights import integer_weights
from scoregraph.passes.quantize.recipe import parse_recipe
from scoregraph.plan import files
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Draft, Drafter, Value
from scoregraph.plan.schema import Call, InputSpec, OutputSpec

RNG = np.random.default_rng(1)
ROWS = 4


class Net:
    """A drafter with inputs and layers; ``loop`` makes what follows run per row."""

    def __init__(self, *, loop: bool = False) -> None:
        self.d = Drafter("net", "reference")
        self.d.begin("before")
        self.x = self.d.new((Batch(), 6, 32), name="x")
        self.d.inputs.append(InputSpec(name="h", buffer=0))
        if loop:
            table = self.d.table("steps", ("t",), np.linspace(1, 0, ROWS, dtype=np.float32)[:, None])
            self.d.begin("steps", table)

    def weights(self, *shape: int, name: str = "w") -> Value:
        w = RNG.standard_normal(shape).astype(np.float32) / np.sqrt(np.prod(shape[1:]))
        return self.d.constant(w, f"{name}.weight")

    def linear(self, x: Value, w: Value, **extra: Value) -> Value:
        y = self.d.new((*x.shape[:-1], w.shape[0]), name="y")
        self.d.call("linear", {"x": x, "w": w, **extra}, {"y": y}, {"act": "none"}, "site")
        return y

    def conv(self, x: Value, w: Value) -> Value:
        y = self.d.new((x.shape[0], w.shape[0], *x.shape[2:]), name="image")
        attrs = {"stride": [1, 1], "padding": [1, 1], "act": "none"}
        self.d.call("conv2d", {"x": x, "w": w}, {"y": y}, attrs, "site")
        return y

    def image(self, channels: int = 8) -> Value:
        x = self.d.new((Batch(), channels, 5, 4), name="picture")
        self.d.inputs.append(InputSpec(name=f"picture{channels}", buffer=int(x.storage[1:])))
        return x

    def done(self, *outs: Value) -> Draft:
        """Outputs are copies, so that no product writes one."""
        for i, value in enumerate(outs):
            y = self.d.new(value.shape)
            self.d.call("softmax", {"x": value}, {"y": y}, site="end")
            self.d.outputs.append(OutputSpec(name=f"y{i}", buffer=int(y.storage[1:])))
        return self.d.build()


def inner(net: Net, *outs: Value) -> Draft:
    """The draft where ``outs`` are followed by one more, last layer each, which stays as it is."""
    return net.done(*(net.linear(out, net.d.constant(np.eye(out.shape[-1], dtype=np.float32), "end")) for out in outs))


def insert(draft: Draft, text: str = "w8a8", **options) -> PassResult[Draft]:
    recipe = parse_recipe(text)
    assert recipe is not None
    return InsertQuantization(recipe, **options).run(draft)


def calls(draft: Draft, *ops: str) -> list[Call]:
    return [call for segment in draft.plan.segments for call in segment.calls if call.op in ops]


def dtypes(draft: Draft, refs: Sequence[str]) -> list[str]:
    parts = {"b": draft.plan.buffers, "c": draft.plan.constants}
    return [parts[ref[0]][int(ref[1:])].dtype for ref in refs]


def run(draft: Draft, seed: int = 0) -> dict[str, np.ndarray]:
    plan, constants = files.lay_out(draft.plan, draft.arrays)
    rng = np.random.default_rng(seed)
    inputs = {s.name: rng.standard_normal([3, *plan.buffers[s.buffer].shape[1:]]) for s in plan.inputs}
    return Reference("float64").compile(plan, constants).run(inputs, np.zeros(3, np.uint64))


def reasons(result: PassResult[Draft]) -> dict[str, str]:
    return {miss.node: miss.reason for miss in result.misses}


def test_a_linear_layer_reads_whole_numbers():
    net = Net()
    draft = inner(net, net.linear(net.x, net.weights(24, 32)))
    result = insert(draft)
    assert (result.rewrites, result.counters) == (1, {"w8a8": 1, "grids": 1})
    assert reasons(result) == {"end": "it is the last layer"}
    quantize, linear = calls(result.module, "quantize", "linear")[:2]
    assert quantize.ins == {"x": "b0"}
    assert dtypes(result.module, list(quantize.outs.values())) == ["u8", "f32"]
    assert linear.attrs == {"act": "none", "chain": 0}
    assert (linear.ins["x"], linear.ins["grid"]) == (quantize.outs["y"], quantize.outs["ygrid"])
    buffers = result.module.plan.buffers
    assert buffers[int(quantize.outs["y"][1:])].shape == ("B", 6, 32)
    assert buffers[int(quantize.outs["ygrid"][1:])].shape == ("6B", 2), "a grid a token"
    assert dtypes(result.module, [linear.ins[role] for role in ("w", "wscale", "wsum")]) == ["i8", "f32", "f32"]
    assert sqnr(run(result.module)["y0"], run(draft)["y0"]) > 35


def test_an_image_is_quantized_per_sample_in_quads():
    net = Net()
    mixed = net.conv(net.image(), net.weights(12, 8, 3, 3))
    y = net.d.new((Batch(), 8, 5, 4))
    net.d.call("conv2d", {"x": mixed, "w": net.weights(8, 12, 1, 1)}, {"y": y}, {"stride": [1, 1], "padding": [0, 0]})
    draft = net.done(y)
    result = insert(draft, "w8a7")
    (quantize,) = calls(result.module, "quantize")
    shapes = [result.module.plan.buffers[int(ref[1:])].shape for ref in quantize.outs.values()]
    assert shapes == [("B", 2, 5, 4, 4), ("B", 2)]
    assert calls(result.module, "conv2d")[0].attrs["chain"] == 1
    assert sqnr(run(result.module)["y0"], run(draft)["y0"]) > 35


def test_convolutions_have_no_weights_that_share_bytes():
    net = Net()
    draft = net.done(net.conv(net.conv(net.image(), net.weights(8, 8, 3, 3)), net.weights(8, 8, 3, 3, name="end")))
    result = insert(draft, "w4a8")
    assert result.counters == {"w8a8": 1, "grids": 1}
    assert {c.dtype for c in result.module.plan.constants} == {"f32", "i8"}
    assert [call.attrs.get("chain") for call in calls(result.module, "conv2d")] == [0, None]


@pytest.mark.parametrize(
    ("text", "floor"),
    [("w8a8", 38), ("w8a7", 33), ("w7a7", 31), ("w6a7", 27), ("w4a8", 17), ("w4a8:block=32", 18), ("bf16", 45)],
)
def test_the_noise_of_each_recipe(text, floor):
    net = Net()
    draft = inner(net, net.linear(net.linear(net.x, net.weights(96, 32)), net.weights(64, 96, name="v")))
    plain, result = run(draft)["y0"], insert(draft, text)
    assert result.rewrites == 2
    logits, exact = np.log(run(result.module)["y0"]), np.log(plain)
    centred = [v - v.mean(axis=-1, keepdims=True) for v in (logits, exact)]  # a softmax ends the plan
    assert sqnr(*centred) > floor


def test_the_numbers_are_those_of_the_formula():
    net = Net()
    w = net.weights(20, 32)
    draft = inner(net, net.linear(net.x, w))
    made = integer_weights(draft.arrays[int(w.storage[1:])], "i8")
    result = insert(draft).module
    constants = {c.name: result.arrays[c.id] for c in result.plan.constants}
    np.testing.assert_array_equal(constants["w.weight"], made.q)
    np.testing.assert_array_equal(constants["w.weight scale"], made.scale)
    np.testing.assert_array_equal(constants["w.weight sum"], made.total)
    blocked = insert(draft, "w6a7:block=32").module
    assert {c.name: tuple(c.shape) for c in blocked.plan.constants}["w.weight scale"] == (20, 1)


def test_products_of_one_value_share_its_numbers():
    net = Net()
    q, k = net.linear(net.x, net.weights(32, 32)), net.linear(net.x, net.weights(32, 32, name="v"))
    result = insert(inner(net, q, k))
    (quantize,) = calls(result.module, "quantize")
    first, second, *_ = calls(result.module, "linear")
    assert first.ins["x"] == second.ins["x"] == quantize.outs["y"]
    assert result.counters == {"w8a8": 2, "grids": 1}


def test_a_value_written_anew_is_quantized_anew():
    net = Net()
    x = net.d.new((Batch(), 6, 32))
    net.d.call("softmax", {"x": net.x}, {"y": x})
    first = net.linear(x, net.weights(32, 32))
    net.d.call("softmax", {"x": first}, {"y": x})
    second = net.linear(x, net.weights(32, 32, name="v"))
    draft = inner(net, second)
    result = insert(draft)
    assert len(calls(result.module, "quantize")) == 2
    assert sqnr(run(result.module)["y0"], run(draft)["y0"]) > 35


def test_rows_of_other_variants_do_not_share():
    net = Net(loop=True)
    made = []
    for variants in ((0,), (1,), ()):
        with net.d.only_in(*variants):
            made.append(net.linear(net.x, net.weights(32, 32, name=f"w{len(made)}")))
    result = insert(inner(net, *made))
    assert [call.variants for call in calls(result.module, "quantize")][:3] == [(0,), (1,), ()]


def test_weights_change_for_all_of_their_readers():
    net = Net()
    w = net.weights(32, 32)
    y = net.linear(net.linear(net.x, w), w)
    result = insert(inner(net, y))
    assert result.counters == {"w8a8": 2, "grids": 2}
    assert len([c for c in result.module.plan.constants if c.name.endswith("scale")]) == 1


def embedded(net: Net) -> Value:
    """One row per sample, of inputs: what is known of time and label."""
    known = net.d.new((Batch(), 32), name="embedded")
    net.d.inputs.append(InputSpec(name="embedded", buffer=int(known.storage[1:])))
    return known


def keeps_embedding(net: Net) -> Value:
    return net.linear(net.linear(embedded(net), net.weights(32, 32)), net.weights(32, 32, name="v"))


def modulates(net: Net) -> Value:
    """x is normed, scaled and shifted by the halves of a product of one row per sample."""
    halves = net.linear(embedded(net), net.weights(64, 32))
    scale, shift = (Value(halves.storage, (Batch(), 32), (64, 1), offset) for offset in (0, 32))
    y = net.d.new((Batch(), 6, 32))
    net.d.call("layer_norm", {"x": net.x, "scale": scale, "shift": shift}, {"y": y}, {"eps": 1e-5, "act": "none"})
    return y


def keeps_computed(net: Net) -> Value:
    w = net.d.new((32, 32))
    net.d.call("fill", {}, {"x": w}, {"value": 0.5})
    return net.linear(net.x, w)


def keeps_tied(net: Net) -> Value:
    w, index = net.weights(16, 32), net.d.new((Batch(),), "i64")
    net.d.call("embedding", {"index": index, "w": w}, {"y": net.d.new((Batch(), 32))})
    return net.linear(net.x, w)


KEPT = {
    "it embeds what every layer reads": ("w8a8", keeps_embedding, "w"),
    "the recipe keeps modulations": ("w8a8:modulation=no", modulates, "w"),
    "its weights are computed": ("w8a8", keeps_computed, "site"),
    "it is too small to gain": ("w8a8", lambda net: net.linear(net.x, net.weights(8, 32)), "w"),
    "its 30 inputs are no multiple of 4": (
        "w8a8",
        lambda net: net.linear(net.linear(net.x, net.weights(30, 32, name="v")), net.weights(20, 30)),
        "w",
    ),
    "its 96 inputs are no multiple of the block 64": (
        "w4a8:block=64",
        lambda net: net.linear(net.linear(net.x, net.weights(96, 32, name="v")), net.weights(20, 96)),
        "w",
    ),
    "its 31 inputs are not even": (
        "bf16",
        lambda net: net.linear(net.linear(net.x, net.weights(31, 32, name="v")), net.weights(20, 31)),
        "w",
    ),
    "its 10 channels are no multiple of 4": (
        "w8a8",
        lambda net: net.conv(net.image(10), net.weights(8, 10, 3, 3)),
        "w",
    ),
    "the recipe keeps convolutions": ("w8a8:conv=no", lambda net: net.conv(net.image(), net.weights(8, 8, 3, 3)), "w"),
    "it is a shortcut of values that no norm has evened out": (
        "w8a8",
        lambda net: net.conv(net.conv(net.image(), net.weights(24, 8, 3, 3, name="v")), net.weights(8 * 4, 24, 1, 1)),
        "w",
    ),
    "convolutions have no bf16 form": ("bf16", lambda net: net.conv(net.image(), net.weights(8, 8, 3, 3)), "w"),
    "the recipe keeps it": ("w8a8:keep=q*|w", lambda net: net.linear(net.x, net.weights(32, 32)), "w"),
    "its weights are also read where they stay in float32": ("w8a8", keeps_tied, "w"),
}


@pytest.mark.parametrize("reason", KEPT)
def test_what_is_kept_says_why(reason):
    text, build, node = KEPT[reason]
    net = Net()
    y = build(net)
    last = net.conv(y, net.weights(8, int(y.shape[1]), 3, 3, name="end")) if len(y.shape) == 4 else None
    draft = net.done(last) if last is not None else inner(net, y)
    result = insert(draft, text)
    assert reasons(result)[node] == reason
    kept = [c for c in result.module.plan.constants if c.name == "w.weight"]
    assert all(c.dtype == "f32" for c in kept)


@pytest.mark.parametrize("recipe", ["w8a8", "w8a8:block=32", "bf16"])
def test_modulations_are_quantized_with_a_grid_a_sample(recipe):
    net = Net()
    draft = inner(net, modulates(net))
    result = insert(draft, recipe)
    assert reasons(result) == {"end": "it is the last layer"}
    if recipe != "bf16":
        (quantize,) = calls(result.module, "quantize")
        assert result.module.plan.buffers[int(quantize.outs["ygrid"][1:])].shape == ("B", 2)
    logits, exact = (np.log(run(each)["y0"]) for each in (result.module, draft))
    assert 35 < sqnr(logits, exact) < 70


def test_what_modulates_and_is_read_otherwise_is_kept():
    net = Net()
    halves = net.linear(embedded(net), net.weights(32, 32))
    y = net.d.new((Batch(), 6, 32))
    net.d.call("layer_norm", {"x": net.x, "scale": halves}, {"y": y}, {"eps": 1e-5, "act": "none"})
    result = insert(net.done(net.linear(y, net.weights(32, 32, name="end")), halves))
    assert reasons(result)["w"] == "it embeds what every layer reads"


def test_what_runs_once_is_kept_where_there_is_a_loop():
    net = Net()
    outside = net.linear(net.x, net.weights(32, 32, name="encoder"))
    table = net.d.table("steps", ("t",), np.zeros((2, 1), np.float32))
    net.d.begin("steps", table)
    net.linear(outside, net.weights(32, 32, name="layer"))
    result = insert(net.done(outside))
    assert reasons(result) == {"encoder": "it runs once, outside of the loop"}
    assert result.rewrites == 1


def sampling() -> Draft:
    """A loop: state, first layer, middle, residual middle, last layer, step."""
    net = Net(loop=True)
    x_in = net.d.new((Batch(), 6, 32), name="xin")
    net.d.call("step_input", {"x": net.x}, {"xin": x_in}, {"table": 0, "column": 0})
    h = net.linear(x_in, net.weights(32, 32, name="first"))
    h = net.linear(h, net.weights(32, 32, name="middle"))
    h = net.linear(h, net.weights(32, 32, name="other"), residual=x_in)
    answer = net.linear(h, net.weights(32, 32, name="last"))
    flat = net.d.new((Batch(), 6, 32), name="copy")
    net.d.call("copy", {"x": answer}, {"y": flat})
    attrs = {"table": 0, "a": 0, "b": 0, "c": 0, "site": 0, "cin": -1}
    net.d.call("sampler_step", {"r0": net.x, "p0": flat}, {"r0": net.x}, attrs)
    return net.d.build()


def test_the_first_and_the_last_layer_are_kept():
    result = insert(sampling())
    assert reasons(result) == {"first": "it is the first layer", "last": "it is the last layer"}
    types = {c.name.removesuffix(".weight"): c.dtype for c in result.module.plan.constants if "weight" in c.name}
    assert [types[name] for name in ("first", "middle", "other", "last")] == ["f32", "i8", "i8", "f32"]


def ranges(rows: int, sites: int) -> Calibration:
    low = tuple(tuple(-1.0 - i - r for r in range(rows)) for i in range(sites))
    high = tuple(tuple(-2 * v for v in row) for row in low)
    return Calibration((0,), {}, ("s",) * sites, low, high, (None,) * sites)


def test_static_grids_follow_the_group_of_the_row():
    calibration = ranges(ROWS, 2)
    result = insert(sampling(), "w8a8:groups=2", calibration=calibration)
    plan = result.module.plan
    (pick,) = calls(result.module, "select_row")
    grids = result.module.arrays[int(pick.ins["x"][1:])]
    assert grids.shape == (2, 2, 2)
    for group, site in np.ndindex(2, 2):
        np.testing.assert_array_equal(grids[group, site], calibration.grids(site, 2, 255)[group])
    # The widest range of a group's rows: -(1 + site + last row) … twice that upwards.
    np.testing.assert_allclose(grids[:, 0, 0] * 255, [3 * 2.0, 3 * 4.0], rtol=1e-6)
    table = plan.tables[0]
    assert table.columns == ("t", "grid group")
    np.testing.assert_array_equal(result.module.arrays[table.constant][:, 1], [0, 0, 1, 1])
    assert pick.attrs == {"table": 0, "column": 1, "axis": 0}
    assert plan.segments[1].calls[0] == pick
    for site, call in enumerate(calls(result.module, "quantize")):
        view = plan.buffers[int(call.ins["ygrid"][1:])]
        assert (view.shape, view.view.offset, f"b{view.view.base}") == ((1, 2), 2 * site, pick.outs["y"])
        assert call.outs.keys() == {"y"}


def test_one_group_needs_no_column():
    calibration = ranges(ROWS, 2)
    result = insert(sampling(), "w8a8:groups=1", calibration=calibration)
    assert not calls(result.module, "select_row")
    assert result.module.plan.tables[0].columns == ("t",)
    for site, call in enumerate(calls(result.module, "quantize")):
        grid = result.module.arrays[int(call.ins["ygrid"][1:])]
        np.testing.assert_array_equal(grid, calibration.grids(site, 1, 255))


def test_attention_changes_its_format():
    net = Net()
    heads = net.d.new((Batch(), 2, 6, 16))
    net.d.call(
        "attention", dict.fromkeys("qkv", Value("b0", heads.shape, (192, 16, 32, 1))), {"y": heads}, {"scale": 1}
    )
    draft = net.done(heads)
    result = insert(draft, "w8a8:attention=i8")
    assert result.counters == {"attention in i8": 1}
    assert calls(result.module, "attention")[0].attrs["format"] == "i8"
    assert insert(result.module, "w8a8:attention=i8").rewrites == 0
    assert insert(draft, "w8a8").module is draft


def test_twice_is_as_once():
    draft = sampling()
    once = insert(draft).module
    again = insert(once)
    assert (again.rewrites, again.module) == (0, once)
    assert set(reasons(again).values()) == {
        *("it is the first layer", "it is the last layer", "its weights are i8 in layout plain")
    }


def test_fuel_is_spent_by_weights():
    draft = sampling()
    recipe = parse_recipe("w8a8")
    assert [InsertQuantization(recipe).run(draft, Fuel(n)).rewrites for n in range(4)] == [0, 1, 2, 2]

"""The reference's quantized and bf16 operands against loops over whole numbers and numpy's float32 arithmetic."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from scoregraph.backends.reference import formats
from scoregraph.backends.reference.frame import Frame
from scoregraph.backends.reference.ops import OPS

RNG = np.random.default_rng(7)
GENERATOR = torch.Generator().manual_seed(2)
TORCH = {"f32": torch.float64, "u8": torch.uint8, "u7": torch.uint8, "bf16": torch.bfloat16}


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def run(op: str, ins: dict, attrs: dict, shape: tuple[int, ...], dtype: str = "f32", grid_rows: int = 0) -> dict:
    """The results by role; with ``grid_rows`` the grid of y is measured."""
    outs = {"y": torch.zeros(shape, dtype=TORCH[dtype])}
    outs |= {"ygrid": torch.zeros(grid_rows, 2, dtype=torch.float64)} if grid_rows else {}
    frame = Frame(outs, {}, None, torch.zeros(1), torch.float64, "site", dtypes={"y": dtype, "ygrid": "f32"})
    made = OPS[op](ins, attrs, frame)
    return {"y": made} if isinstance(made, torch.Tensor) else made


def by_hand(row: np.ndarray, top: int) -> tuple[np.ndarray, np.float32, np.float32]:
    """A row's numbers, scale and zero, in the page's words."""
    row = row.astype(np.float32)
    lo, hi = np.float32(min(0.0, row.min())), np.float32(max(0.0, row.max()))
    span = np.float32(hi - lo)
    if span < np.float32(top) / np.finfo(np.float32).max:  # its inverse would be infinite
        return np.zeros(len(row)), np.float32(0), np.float32(0)
    scale, inv = np.float32(span / np.float32(top)), np.float32(np.float32(top) / span)
    zero = np.rint(np.float32(-lo * inv))
    return np.clip(np.rint(row * inv) + zero, 0, top), scale, zero


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(["u8", "u7"]),
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=12),
    st.sampled_from([-1.0, 0.0, 1e-3]),
)
def test_a_row_is_quantized_as_the_page_says(dtype, values, other):
    top = formats.TOP[dtype]
    x = torch.tensor([values, [other] * len(values)], dtype=torch.float64)
    made = run("quantize", {"x": x}, {}, tuple(x.shape), dtype, grid_rows=2)
    for i, row in enumerate(x.numpy()):
        q, scale, zero = by_hand(row, top)
        np.testing.assert_array_equal(made["y"][i].numpy(), q)
        assert tuple(made["ygrid"][i].numpy()) == (scale, zero)


def test_a_value_is_no_further_off_than_half_a_step_and_zero_is_exact():
    x = randn(40, 64) * torch.logspace(-6, 6, 40)[:, None].double()
    x[:, 3] = 0.0
    made = run("quantize", {"x": x}, {}, (40, 64), "u8", grid_rows=40)
    grid = made["ygrid"].double()
    back = grid[:, :1] * (made["y"].double() - grid[:, 1:])
    assert (back[:, 3] == 0.0).all()
    assert ((back - x).abs() <= 0.501 * grid[:, :1] + 0.5 * grid[:, :1] * (x.abs() > 0)).all()
    # The largest and the smallest share one rounded zero, so only they may be a whole step off.
    assert ((back - x).abs() <= 0.51 * grid[:, :1]).double().mean() > 0.98


def test_rows_without_a_range_or_with_nan():
    x = torch.zeros(5, 4)
    x[1] = 1e-39  # its inverse overflows
    x[2, 1], x[3, 2] = math.nan, math.inf
    x[4] = torch.tensor([0.0, 1.0, 2.0, 255.0])
    made = run("quantize", {"x": x}, {}, (5, 4), "u8", grid_rows=5)
    scale, zero = made["ygrid"].T
    assert scale[:2].tolist() == [0.0, 0.0]
    assert scale[2:4].isnan().all()
    assert (zero == 0.0).all()
    assert (made["y"][:4] == 0).all()
    assert made["y"][4].tolist() == [0, 1, 2, 255]


def test_a_static_grid_clips():
    x = torch.tensor([[-9.0, -1.0, 0.0, 0.26, 0.5, 9.0]])
    grid = torch.tensor([[0.5, 3.0]])
    assert run("quantize", {"x": x, "ygrid": grid}, {}, (1, 6), "u7")["y"].tolist() == [[0, 1, 3, 4, 4, 21]]
    still = torch.zeros(1, 2)
    assert run("quantize", {"x": x, "ygrid": still}, {}, (1, 6), "u8")["y"].tolist() == [[0] * 6]


def test_a_grid_row_covers_its_share_of_the_rows():
    x = randn(6, 8)
    made = run("quantize", {"x": x}, {}, (6, 8), "u8", grid_rows=2)
    halves = run("quantize", {"x": x.reshape(2, 24)}, {}, (2, 24), "u8", grid_rows=2)
    assert torch.equal(made["y"].flatten(), halves["y"].flatten())
    assert torch.equal(made["ygrid"], halves["ygrid"])


def test_images_are_stored_in_quads():
    x = randn(2, 6, 3, 5)
    made = run("quantize", {"x": x}, {}, (2, 2, 3, 5, 4), "u8", grid_rows=2)
    flat = run("quantize", {"x": x.flatten(1)}, {}, (2, 90), "u8", grid_rows=2)
    assert torch.equal(made["ygrid"], flat["ygrid"])
    plain = flat["y"].reshape(x.shape)
    for n, c, h, w in itertools.product(range(2), range(6), range(3), range(5)):
        assert made["y"][n, c // 4, h, w, c % 4] == plain[n, c, h, w]
    assert torch.equal(formats.from_quads(made["y"], 6), plain)


@pytest.mark.parametrize("static", [False, True])
def test_smooth_multiplies_the_channels_before_they_are_measured(static):
    """Of rows and of images; the grid is that of the products."""
    given = {"ygrid": torch.tensor([[0.05, 90.0]])} if static else {}
    smooth = torch.tensor([0.25, 8.0, 1.0, 3.0, 0.5, 1.5], dtype=torch.float64)
    x = randn(4, 6)
    made = run("quantize", {"x": x, "smooth": smooth, **given}, {}, (4, 6), "u8", grid_rows=0 if static else 4)
    after = run("quantize", {"x": x * smooth, **given}, {}, (4, 6), "u8", grid_rows=0 if static else 4)
    assert made.keys() == after.keys()
    assert all(torch.equal(made[role], after[role]) for role in made)
    image = randn(2, 6, 3, 5)
    rows = 0 if static else 2
    made = run("quantize", {"x": image, "smooth": smooth, **given}, {}, (2, 2, 3, 5, 4), "u8", grid_rows=rows)
    after = run("quantize", {"x": image * smooth[:, None, None], **given}, {}, (2, 2, 3, 5, 4), "u8", grid_rows=rows)
    assert made.keys() == after.keys()
    assert all(torch.equal(made[role], after[role]) for role in made)


def test_a_smoothed_product_is_the_product():
    """Exactly, where the bytes are: whole numbers of steps, factors that are powers of two."""
    x, w = integers(-3, 3, 4, 32).double(), integers(-15, 15, 5, 32).double()
    smooth = torch.tensor([0.5, 1.0, 2.0, 4.0]).repeat(8).double()
    grid = torch.tensor([[0.5, 128.0]])
    q = run("quantize", {"x": x, "smooth": smooth, "ygrid": grid}, {}, (4, 32), "u8")["y"]
    fourth = (4.0 * w / smooth).to(torch.int8)  # whole, of steps of a quarter
    ins = {
        "x": q,
        "grid": grid,
        "w": fourth,
        "wscale": torch.full((5, 1), 0.25),
        "wsum": fourth.sum(1)[:, None].double(),
    }
    torch.testing.assert_close(run("linear", ins, {}, (4, 5))["y"], x @ w.T, rtol=1e-12, atol=1e-12)


def test_smooth_belongs_to_quantized_results():
    with pytest.raises(AssertionError, match="smooth"):
        run("quantize", {"x": randn(2, 4), "smooth": torch.ones(4)}, {}, (2, 4), "bf16")


def integers(low: int, high: int, *shape: int) -> torch.Tensor:
    """Whole numbers in low … high, the ends among them."""
    values = RNG.integers(low, high, size=shape, endpoint=True)
    values.flat[0], values.flat[-1] = low, high
    return torch.from_numpy(values)


RANGES = {"i8": (-127, 127), "i7": (-63, 63), "i6": (-31, 31), "i4": (-8, 7), "i2": (-2, 1)}


@pytest.mark.parametrize("weights", RANGES)
@pytest.mark.parametrize(("top", "groups", "rows"), [(255, 1, 6), (127, 3, 2), (255, 3, 1)])
def test_linear_of_whole_numbers(weights, top, groups, rows):
    m, n, k = 6, 5, 96
    x, w = integers(0, top, m, k), integers(*RANGES[weights], n, k)
    wscale = randn(n, groups).abs()
    grid = torch.stack([randn(rows).abs(), integers(0, top, rows).double()], dim=1)
    wsum = w.reshape(n, groups, -1).sum(-1)
    expected = torch.zeros(m, n, dtype=torch.float64)
    for i, j, g in itertools.product(range(m), range(n), range(groups)):
        inputs = range(g * k // groups, (g + 1) * k // groups)
        scale, zero = grid[i // (m // rows)].tolist()
        total = sum(int(x[i, c]) * int(w[j, c]) for c in inputs) - int(zero) * int(wsum[j, g])
        expected[i, j] += total * (scale * float(wscale[j, g]))
    bias, residual, gate = randn(n), randn(m, n), randn(2, n)
    ins = {"x": x.to(torch.uint8), "w": w.to(torch.int8), "grid": grid, "wscale": wscale, "wsum": wsum.double()}
    ins |= {"bias": bias, "residual": residual, "gate": gate}
    made = run("linear", ins, {"act": "silu"}, (m, n))["y"]
    expected = residual + gate.repeat_interleave(3, 0) * functional.silu(expected + bias)
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-9)


def test_linear_at_the_extremes_of_its_sums():
    """255 · 127 · 65 536 is the largest sum of u8 and i8 that 32 bits hold."""
    k = 65_536
    x = torch.full((2, k), 255, dtype=torch.uint8)
    w = torch.stack([torch.full((k,), 127), torch.full((k,), -127)]).to(torch.int8)
    ones = {"wscale": torch.ones(2, 1), "wsum": torch.tensor([[127.0 * k], [-127.0 * k]])}
    low = run("linear", {"x": x, "w": w, "grid": torch.tensor([[1.0, 0.0]]), **ones}, {}, (2, 2))["y"]
    assert low.tolist() == [[255 * 127 * k, -255 * 127 * k]] * 2
    high = run("linear", {"x": x, "w": w, "grid": torch.tensor([[1.0, 255.0]]), **ones}, {}, (2, 2))["y"]
    assert high.tolist() == [[0, 0]] * 2


def test_linear_writes_a_static_grid():
    x, w = randn(3, 8), randn(4, 8)
    grid = torch.tensor([[0.02, 100.0]])
    made = run("linear", {"x": x, "w": w, "ygrid": grid}, {"act": "relu"}, (3, 4), "u8")
    after = run("quantize", {"x": functional.relu(x @ w.T), "ygrid": grid}, {}, (3, 4), "u8")
    assert made.keys() == {"y"}
    assert torch.equal(made["y"], after["y"])


@pytest.mark.parametrize(
    ("stride", "padding", "up"), [(1, (1, 1, 1, 1), 1), (2, (0, 0, 1, 1), 1), (1, (1, 1, 1, 1), 2)]
)
def test_convolution_of_whole_numbers(stride, padding, up):
    """Padding is the value 0, whatever the zero of the grid."""
    n, i, o = 2, 6, 5
    q, w = integers(0, 255, n, i, 4, 5), integers(-127, 127, o, i, 3, 3)
    grid = torch.stack([randn(n).abs(), integers(0, 255, n).double()], dim=1)
    wscale, bias, emb = randn(o, 1).abs(), randn(o), randn(n, o)
    value = grid[:, 0, None, None, None] * (q - grid[:, 1, None, None, None])
    value = functional.interpolate(value, scale_factor=up, mode="nearest")
    top, left, bottom, right = padding
    value = functional.pad(value, (left, right, top, bottom))
    expected = functional.conv2d(value, w.double() * wscale[:, :, None, None], bias, stride) + emb[:, :, None, None]
    ins = {"x": formats.quads(q).to(torch.uint8), "w": w.to(torch.int8), "grid": grid, "wscale": wscale}
    ins |= {"wsum": w.sum((1, 2, 3))[:, None].double(), "bias": bias, "emb": emb}
    attrs = {"stride": [stride, stride], "padding": list(padding), "up": [up, up], "act": "none"}
    made = run("conv2d", ins, attrs, tuple(expected.shape))["y"]
    torch.testing.assert_close(made, expected, rtol=1e-11, atol=1e-9)


def test_norms_write_what_quantize_would_make_of_them():
    x, image = randn(4, 6, 8), randn(2, 8, 3, 3)
    scale, shift, smooth = randn(2, 8), randn(2, 8), randn(8).abs()
    square = {"groups": 2, "eps": 1e-5, "act": "silu"}
    cases = [
        ("layer_norm", {"x": x, "scale": scale, "shift": shift}, {"eps": 1e-6, "act": "none"}, (4, 6, 8), 24),
        ("rms_norm", {"x": x, "scale": scale, "shift": shift}, {"eps": 1e-6}, (4, 6, 8), 24),
        (
            "group_norm",
            {"x": image, "scale": scale, "shift": shift},
            square,
            None,
            2,
        ),
    ]
    for op, ins, attrs, shape, rows in cases:
        plain = run(op, ins, attrs, shape or tuple(image.shape))["y"]
        stored = shape or (2, 2, 3, 3, 4)
        for factors in ({}, {"smooth": smooth}):
            expected = run("quantize", {"x": plain, **factors}, {}, stored, "u7", grid_rows=rows)
            if op == "group_norm":  # its grid is measured otherwise, which the next test checks
                ygrid = run(op, {**ins, **factors}, attrs, stored, "u7", grid_rows=rows)["ygrid"]
                given = run("quantize", {"x": plain, **factors, "ygrid": ygrid}, {}, stored, "u7")
                expected = {"y": given["y"], "ygrid": ygrid}
            made = run(op, {**ins, **factors}, attrs, stored, "u7", grid_rows=rows)
            assert torch.equal(made["y"], expected["y"])
            assert torch.equal(made["ygrid"], expected["ygrid"])


ACTS = {
    "none": lambda v: v,
    "relu": functional.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "quick_gelu": lambda v: v * torch.sigmoid(1.702 * v),
    "gelu_erf": functional.gelu,
    "gelu_tanh": lambda v: functional.gelu(v, approximate="tanh"),
}


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize(("gain", "offset"), [(1.0, 0.0), (0.05, 0.4), (0.05, -3.0), (0.2, -1.2), (0.01, -1.27846)])
def test_a_group_norm_measures_the_image_of_an_interval(act, gain, offset):
    """Against many points between the least and the largest normalised value of each channel."""
    x, smooth = randn(2, 8, 3, 3), randn(8)
    affine = {"weight": torch.full((8,), gain).double(), "bias": torch.full((8,), offset).double()}
    attrs = {"groups": 2, "eps": 1e-5, "act": act}
    v = run("group_norm", {"x": x, **affine}, {**attrs, "act": "none"}, tuple(x.shape))["y"].flatten(2)
    low, high = v.amin(-1, keepdim=True), v.amax(-1, keepdim=True)
    image = ACTS[act](low + (high - low) * torch.linspace(0, 1, 20_001, dtype=torch.float64)) * smooth[:, None]
    lo, hi = image.amin((1, 2)).clamp(max=0.0), image.amax((1, 2)).clamp(min=0.0)
    made = run("group_norm", {"x": x, **affine, "smooth": smooth}, attrs, (2, 2, 3, 3, 4), "u8", grid_rows=2)["ygrid"]
    torch.testing.assert_close(made[:, 0].double(), (hi - lo) / 255, rtol=1e-6, atol=0)
    assert ((made[:, 1] - (255 * -lo / (hi - lo)).nan_to_num(0.0)).abs() <= 0.501).all()


def test_modulated_rms_norm_is_the_formula():
    x, scale, shift = randn(4, 6, 8), randn(2, 8), randn(2, 8)
    made = run("rms_norm", {"x": x, "scale": scale, "shift": shift}, {"eps": 1e-6}, (4, 6, 8))["y"]
    rows = functional.rms_norm(x, (8,), None, 1e-6).reshape(2, 12, 8)
    expected = rows * (1 + scale[:, None]) + shift[:, None]
    torch.testing.assert_close(made, expected.reshape(4, 6, 8), rtol=1e-11, atol=1e-12)


def test_bf16_rounds_to_nearest_even():
    bits = np.array([0x3F800000, 0x3F808000, 0x3F818000, 0x3F808001, 0xBF80FFFF], np.uint32)
    made = run("quantize", {"x": torch.from_numpy(bits.view(np.float32))}, {}, (5,), "bf16")["y"]
    upper = made.view(torch.int16).numpy().view(np.uint16)
    assert [hex(v) for v in upper] == ["0x3f80", "0x3f80", "0x3f82", "0x3f81", "0xbf81"]


def test_linear_of_bf16_rounds_both_operands():
    x, w = randn(3, 8), randn(4, 8).to(torch.bfloat16)
    expected = formats.bf16(x) @ w.double().T
    torch.testing.assert_close(run("linear", {"x": x, "w": w}, {}, (3, 4))["y"], expected)
    torch.testing.assert_close(run("linear", {"x": x.to(torch.bfloat16), "w": w}, {}, (3, 4))["y"], expected)


@pytest.mark.parametrize(("kind", "db"), [("bf16", 40.0), ("i8", 36.0)])
def test_attention_formats_are_close_to_attention(kind, db):
    q, k, v, mask = randn(2, 3, 40, 32), randn(2, 3, 50, 32) + 2.0, randn(2, 3, 50, 32), randn(2, 1, 40, 50)
    expected = functional.scaled_dot_product_attention(q, k, v, mask, scale=0.2)
    ins = {"q": q, "k": k, "v": v, "mask": mask}
    made = run("attention", ins, {"scale": 0.2, "format": kind}, tuple(q.shape))["y"]
    noise = (made - expected).square().sum() / expected.square().sum()
    assert -10 * math.log10(noise) > db
    # Equal values average to themselves: the weights sum to one after they are rounded.
    ins["v"] = torch.full_like(v, 0.625)
    made = run("attention", ins, {"scale": 0.2, "format": kind}, tuple(q.shape))["y"]
    torch.testing.assert_close(made, torch.full_like(made, 0.625), rtol=1e-12, atol=0)


def test_select_row_follows_the_row_or_a_column():
    x = randn(3, 4)
    tables = {0: torch.tensor([[0.0, 2.0], [0.0, 1.0]])}
    frame = Frame({"y": torch.zeros(4)}, tables, 1, torch.zeros(1), torch.float64, "site")
    select = OPS["select_row"]
    assert torch.equal(select({"x": x}, {"table": 0, "axis": 0}, frame), x[1])
    assert torch.equal(select({"x": x}, {"table": 0, "column": 1, "axis": 0}, frame), x[1])
    assert torch.equal(select({"x": x}, {"table": 0, "column": 1, "axis": 1}, frame), x[:, 1])
    first = Frame({"y": torch.zeros(4)}, tables, 0, torch.zeros(1), torch.float64, "site")
    assert torch.equal(select({"x": x}, {"table": 0, "column": 1, "axis": 0}, first), x[2])

# Triton functions are Python only in syntax: an argument is a pointer, a block or a constant, and no stub says which.
# pyright: basic, reportIndexIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
"""The Triton kernels. docs/plan-format.md says what each computes; ``calls.py`` with which arguments.

Conventions: ``n`` is the number of elements of one sample; ``table`` is float32 [rows, columns] and ``row`` the
micro-step, so that a loop needs no value back from the device; pointers are to dense float32 unless strides are passed
beside them. Offsets that grow with the batch are 64-bit. A sample holds fewer than 2^31 elements.

The noise and the sampler step fix every rounding: they are launched with ``enable_fp_fusion=False``, and use only
multiply, add, subtract and ``sqrt_rn``.
"""

import triton
import triton.language as tl

from scoregraph.graph import noise as definition

PHILOX_M0 = tl.constexpr(definition.PHILOX_M0)
PHILOX_M1 = tl.constexpr(definition.PHILOX_M1)
PHILOX_W0 = tl.constexpr(definition.PHILOX_W0)
PHILOX_W1 = tl.constexpr(definition.PHILOX_W1)
PHILOX_ROUNDS = tl.constexpr(definition.PHILOX_ROUNDS)
LOG_POLYNOMIAL = tl.constexpr(definition.LOG_POLYNOMIAL)
SIN_POLYNOMIAL = tl.constexpr(definition.SIN_POLYNOMIAL)
COS_POLYNOMIAL = tl.constexpr(definition.COS_POLYNOMIAL)
SQRT_HALF_BITS = tl.constexpr(definition.SQRT_HALF_BITS)
LN2_HIGH = tl.constexpr(definition.LN2_HIGH)
LN2_LOW = tl.constexpr(definition.LN2_LOW)
TURN = tl.constexpr(definition.TURN)
LEVELS = tl.constexpr(13)  # a tile of inner products has at most 2^13 elements

# --- Noise: scoregraph/graph/noise.py, operation by operation ----------------------------------


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Four random words; all arguments and results are uint32 blocks of one shape."""
    for _ in tl.static_range(PHILOX_ROUNDS):
        high0 = tl.umulhi(c0, PHILOX_M0)
        high1 = tl.umulhi(c2, PHILOX_M1)
        low0 = c0 * PHILOX_M0
        low1 = c2 * PHILOX_M1
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 = k0 + PHILOX_W0
        k1 = k1 + PHILOX_W1
    return c0, c1, c2, c3


@triton.jit
def horner(x, COEFFICIENTS: tl.constexpr):
    """``((c0*x + c1)*x + c2)*x + …``: the highest power first, a multiply and an add per step."""
    total = tl.full(x.shape, COEFFICIENTS.value[0], tl.float32)
    for i in tl.static_range(1, len(COEFFICIENTS.value)):
        total = total * x
        total = total + COEFFICIENTS.value[i]
    return total


@triton.jit
def log_f32(u):
    """Natural logarithm of a normal positive float32."""
    bits = u.to(tl.int32, bitcast=True)
    k = (bits - SQRT_HALF_BITS) >> 23
    m = (bits - (k << 23)).to(tl.float32, bitcast=True)
    e = k.to(tl.float32)
    f = m - 1.0
    z = f * f
    y = horner(f, LOG_POLYNOMIAL)
    y = y * f
    y = y * z
    y = y + e * LN2_LOW
    y = y - z * 0.5
    y = f + y
    return y + e * LN2_HIGH


@triton.jit
def cos_sin_turn(j):
    """``cos(2 pi v), sin(2 pi v)`` for ``v = j * 2^-24``, 0 <= j < 2^24."""
    quarter = (j + (1 << 21)) >> 22
    r = j.to(tl.int32) - (quarter << 22).to(tl.int32)
    x = r.to(tl.float32) * TURN
    z = x * x
    s = horner(z, SIN_POLYNOMIAL)
    s = s * z
    s = s * x
    s = s + x
    c = horner(z, COS_POLYNOMIAL)
    c = c * z
    c = c * z
    c = c - z * 0.5
    c = c + 1.0
    swap = (quarter & 1) == 1
    cos_sign = 1.0 - ((quarter + 1) & 2).to(tl.float32)
    sin_sign = 1.0 - (quarter & 2).to(tl.float32)
    return tl.where(swap, s, c) * cos_sign, tl.where(swap, c, s) * sin_sign


@triton.jit
def normal_pair(word_a, word_b):
    """Two independent standard normals from two random words (Box and Muller)."""
    u = (2 * (word_a >> 9) + 1).to(tl.float32) * 5.9604644775390625e-08  # 2^-24
    radius = tl.sqrt_rn(-2.0 * log_f32(u))
    cosine, sine = cos_sin_turn(word_b >> 8)
    return radius * cosine, radius * sine


@triton.jit
def normals(seed, group, micro, site):
    """Standard normals [G, 4] of elements ``4*group … 4*group+3``; ``group`` is int32 [G], ``seed`` an int64 scalar.

    The high word of the element counter is 0, since a sample holds fewer than 2^31 elements.
    """
    c0 = group.to(tl.uint32)
    zero = c0 * 0
    key = seed.to(tl.uint64)
    k0 = zero + (key & 0xFFFFFFFF).to(tl.uint32)
    k1 = zero + (key >> 32).to(tl.uint32)
    w0, w1, w2, w3 = philox4x32(c0, zero, zero + micro.to(tl.uint32), zero + site.to(tl.uint32), k0, k1)
    z0, z1 = normal_pair(w0, w1)
    z2, z3 = normal_pair(w2, w3)
    # join puts its operands on a new last axis: [G, 2, 2] in the order z0 z1 z2 z3.
    return tl.reshape(tl.join(tl.join(z0, z2), tl.join(z1, z3)), (group.shape[0], 4))


@triton.jit
def fresh(bank, draw, draws, seeds, sample, group, element, inside, n, micro, site):
    """Unit normals of one draw: row ``draw`` of the noise bank [samples, draws, n], or generated without one."""
    if bank is not None:
        return tl.load(bank + (sample * draws + draw) * n + element, mask=inside, other=0.0)
    return normals(tl.load(seeds + sample), group, micro, site)


@triton.jit(do_not_specialize=["micro", "site", "draw"])
def noise(x, bank, seeds, draw, draws, micro, site, scale, n, GROUPS: tl.constexpr):
    """``x[s, e] = scale * normal``; grid (samples, blocks of GROUPS groups of four elements)."""
    sample = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    element = group[:, None] * 4 + tl.arange(0, 4)[None, :]
    z = fresh(bank, draw, draws, seeds, sample, group, element, element < n, n, micro, site)
    tl.store(x + sample * n + element, scale * z, mask=element < n)


# --- The loop: table lookups and linear forms --------------------------------------------------


@triton.jit(do_not_specialize=["row"])
def step_time(t, time, table, row, columns, column, n, BRANCHES: tl.constexpr, BLOCK: tl.constexpr):
    """Every element of ``t`` := ``table[row, column]``, or element i := ``time[i // BRANCHES]``."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if time is not None:
        value = tl.load(time + i // BRANCHES, mask=i < n, other=0.0)
    else:
        value = tl.full((BLOCK,), 0.0, tl.float32) + tl.load(table + row * columns + column)
    tl.store(t + i, value, mask=i < n)


@triton.jit(do_not_specialize=["row"])
def step_input(x, x_in, coef, coefs, table, row, columns, column, n, BRANCHES: tl.constexpr, BLOCK: tl.constexpr):
    """``x_in[b*K + j] = q * x[b]``, q = ``table[row, column]`` or ``coef[b, column]``; grid (samples, blocks)."""
    sample = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    weights = coef + sample * coefs if coef is not None else table + row * columns
    value = tl.load(weights + column) * tl.load(x + sample * n + e, mask=e < n, other=0.0)
    for j in tl.static_range(BRANCHES):
        tl.store(x_in + (sample * BRANCHES + j) * n + e, value, mask=e < n)


@triton.jit(do_not_specialize=["row"])
def record(x, y, table, row, columns, column, slots, n, BLOCK: tl.constexpr):
    """``y[b, slot] = x[b]``, slot = ``table[row, column]`` if that is not negative; grid (samples, blocks)."""
    sample = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    slot = tl.load(table + row * columns + column).to(tl.int64)
    inside = e < tl.where(slot >= 0, n, 0)
    tl.store(y + (sample * slots + slot) * n + e, tl.load(x + sample * n + e, mask=inside), mask=inside)


@triton.jit
def add_registers(total, weights, registers, sample, n, element, inside):
    """``total + sum_l weights[l] r_l``, in that order; a term whose weight is 0 is not read."""
    for i in tl.static_range(len(registers)):
        a = tl.load(weights + i)
        if a != 0.0:
            total += a * tl.load(registers[i] + sample * n + element, mask=inside, other=0.0)
    return total


@triton.jit
def add_answers(total, weights, predictions, strides, sample, element, inside, ANSWERS: tl.constexpr):
    """``total + sum_k weights[k] m_k`` over the answers that are there; a term whose weight is 0 is not read.

    Args:
        predictions: tuple of [samples * K_p, n], the branches of a sample side by side, rows ``strides`` apart.
        ANSWERS: for each prediction, which of the answers that the weights speak of its K_p branches are.
    """
    for p in tl.static_range(len(predictions)):
        for k in tl.static_range(len(ANSWERS[p])):
            b = tl.load(weights + ANSWERS[p][k])
            if b != 0.0:
                branch = sample * len(ANSWERS[p]) + k
                total += b * tl.load(predictions[p] + branch * strides[p] + element, mask=inside, other=0.0)
    return total


@triton.jit
def pairwise_sum(x):
    """The sum [1] of a block whose size is a power of two: neighbours first, the same order everywhere."""
    for _ in tl.static_range(LEVELS):
        if x.shape[0] > 1:
            even, odd = tl.split(tl.reshape(x, (x.shape[0] // 2, 2)))
            x = even + odd
    return x


# --- Activations -------------------------------------------------------------------------------


@triton.jit
def tanh(x):
    """Hyperbolic tangent to a few units in the last place: Cephes tanhf, which has no branch that overflows."""
    z = x * x
    near = (((-5.70498872745e-3 * z + 2.06390887954e-2) * z - 5.37397155531e-2) * z + 1.33314422036e-1) * z
    near = (near - 3.33332819422e-1) * z * x + x
    e = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - e) / (1.0 + e)
    return tl.where(tl.abs(x) < 0.625, near, tl.where(x < 0.0, -far, far))


@triton.jit
def sigmoid(x):
    """``1 / (1 + exp(-x))`` without overflow."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0.0, e, 1.0) / (1.0 + e)


@triton.jit
def gelu_tanh(x):
    """``x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))``."""
    return 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


@triton.jit
def gelu_erf(x):
    """``x/2 (1 + erf(x / sqrt 2))``."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def activate(x, ACT: tl.constexpr):
    """The activation named ACT; ``none`` is the identity."""
    if ACT == "silu":
        x = x * sigmoid(x)
    if ACT == "gelu_tanh":
        x = gelu_tanh(x)
    if ACT == "gelu_erf":
        x = gelu_erf(x)
    if ACT == "relu":
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if ACT == "tanh":
        x = tanh(x)
    if ACT == "sigmoid":
        x = sigmoid(x)
    if ACT == "quick_gelu":
        x = x * sigmoid(1.702 * x)
    return x


# --- Linear ------------------------------------------------------------------------------------


@triton.jit
def linear(
    x,
    w,
    bias,
    residual,
    gate,
    y,
    M,
    N,
    K,
    x_inner,
    x_outer_stride,
    x_stride,
    gate_rows,
    gate_stride,
    ACT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``y = residual + gate * act(x wᵀ + bias)``, all in float32; grid (blocks of N, blocks of M).

    Row m of x starts at ``(m // x_inner) * x_outer_stride + (m % x_inner) * x_stride``; w is [N, K]; bias [N],
    residual [M, N] and gate may be None; row m uses row ``m // gate_rows`` of gate.
    The tile does not depend on M, so a sample's result does not depend on the batch it came in.
    """
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    rows = (m // x_inner).to(tl.int64) * x_outer_stride + (m % x_inner) * x_stride
    total = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    for start in range(0, K, BLOCK_K):
        here = start + k
        x_tile = tl.load(x + rows[:, None] + here[None, :], mask=(m < M)[:, None] & (here < K)[None, :], other=0.0)
        w_tile = tl.load(
            w + n[None, :].to(tl.int64) * K + here[:, None], mask=(here < K)[:, None] & (n < N)[None, :], other=0.0
        )
        total = tl.dot(x_tile, w_tile, total, input_precision="ieee")
    inside = (m < M)[:, None] & (n < N)[None, :]
    if bias is not None:
        total += tl.load(bias + n, mask=n < N, other=0.0)[None, :]
    total = activate(total, ACT)
    if gate is not None:
        gates = gate + (m // gate_rows).to(tl.int64)[:, None] * gate_stride + n[None, :]
        total *= tl.load(gates, mask=inside, other=0.0)
    at = m.to(tl.int64)[:, None] * N + n[None, :]
    if residual is not None:
        total += tl.load(residual + at, mask=inside, other=0.0)
    tl.store(y + at, total, mask=inside)


# --- Elementwise over strided views ------------------------------------------------------------


@triton.jit
def offset(i, sizes, strides):
    """Where element ``i`` (int64, row-major) of a view of ``sizes`` lies, in elements."""
    at = i * 0
    for back in tl.static_range(len(sizes)):
        size = sizes[len(sizes) - 1 - back]
        at += (i % size) * strides[len(sizes) - 1 - back]
        i = i // size
    return at


@triton.jit
def copy(x, y, total, sizes, x_strides, y_strides, BLOCK: tl.constexpr):
    """``y := x``, any dtype: permutes, slices, concatenates and expands by strides alone."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < total
    tl.store(y + offset(i, sizes, y_strides), tl.load(x + offset(i, sizes, x_strides), mask=inside), mask=inside)


@triton.jit
def fill(y, value, total, sizes, y_strides, BLOCK: tl.constexpr):
    """Every element of ``y`` := ``value``."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + offset(i, sizes, y_strides), tl.full((BLOCK,), 0.0, tl.float32) + value, mask=i < total)

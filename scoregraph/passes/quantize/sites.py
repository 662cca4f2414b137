"""Which products a recipe reaches, and why others stay in float32.

A product is a ``linear`` or ``conv2d`` of constant weights. What is kept: the embeddings of time and label (they have
one row per sample, and their errors reach every layer), the first and the last layer (they read the state and write the
answer, whose errors nothing evens out), what runs once around a loop, what the integer kernels do not take, and what
the recipe's patterns name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from scoregraph.passes.base import Miss
from scoregraph.passes.plan.liveness import owner, owner_of
from scoregraph.passes.quantize.recipe import Recipe
from scoregraph.plan.dims import Batch, has_batch, parse_dim, product
from scoregraph.plan.draft import Draft
from scoregraph.plan.schema import Call, Plan, Segment

PRODUCTS = ("linear", "conv2d")

FEW = 512
"""Weights below which a product is not worth the quantization of its operand."""

_MIXING = frozenset({*PRODUCTS, "matmul", "attention", "embedding", "gram", "quantile"})
"""Operations behind which a value no longer is the state it was made of."""

_MODULATING = frozenset({"scale", "shift", "gate", "emb"})
"""Roles of what modulates all rows of a sample alike."""

Place = tuple[int, int]
"""A call: the number of its segment, and its index in it."""


@dataclass(frozen=True)
class Site:
    """A value that is quantized: read by one product, or by several that read it at the same state.

    Attributes:
        place: the first of the calls that read it.
        ref: the operand x of those calls.
        name: of the first call's layer.
    """

    place: Place
    ref: str
    name: str


@dataclass(frozen=True)
class Selection:
    """What a recipe does to a plan.

    Attributes:
        sites: the values to quantize, in the order of the plan.
        products: the site each chosen call reads.
        attentions: the attention calls that change their format.
        misses: the products that stay as they are, and why.
    """

    sites: tuple[Site, ...] = ()
    products: dict[Place, int] = field(default_factory=dict[Place, int])
    attentions: tuple[Place, ...] = ()
    misses: tuple[Miss, ...] = ()


def select(draft: Draft, recipe: Recipe) -> Selection:
    """The products of ``draft`` that compute in the formats of ``recipe``."""
    plan = draft.plan
    repeated = {call.ins["w"] for place, call in _calls(plan) if call.op in PRODUCTS and _in_loop(plan, place)}
    reasons = {
        place: _reason(draft, recipe, place, call, repeated) for place, call in _calls(plan) if call.op in PRODUCTS
    }
    reasons = _with_ends(plan, reasons)
    reasons = _with_shared_weights(plan, reasons)
    chosen = {place for place, reason in reasons.items() if not reason}
    misses = tuple(Miss(reason, layer(plan, _at(plan, place))) for place, reason in reasons.items() if reason)
    sites, products = _sites(plan, chosen)
    attentions: tuple[Place, ...] = ()
    if recipe.attention != "f32":
        attentions = tuple(
            place
            for place, call in _calls(plan)
            if call.op == "attention"
            and call.attrs.get("format", "f32") == "f32"
            and _in_loop(plan, place)
            and not recipe.keeps(call.site)
        )
    return Selection(sites, products, attentions, misses)


def layer(plan: Plan, product: Call) -> str:
    """What a product is called: as its weights are, where they have a name."""
    w = product.ins["w"]
    named = plan.constants[int(w[1:])].name if w[0] == "c" else ""
    return named.removesuffix(".weight") or product.site


def _calls(plan: Plan) -> Iterator[tuple[Place, Call]]:
    for number, segment in enumerate(plan.segments):
        for at, call in enumerate(segment.calls):
            yield (number, at), call


def _at(plan: Plan, place: Place) -> Call:
    return plan.segments[place[0]].calls[place[1]]


def _in_loop(plan: Plan, place: Place) -> bool:
    """Whether a call runs at every step; in a plan without loops everything counts."""
    return plan.segments[place[0]].is_loop or not any(segment.is_loop for segment in plan.segments)


def _reason(draft: Draft, recipe: Recipe, place: Place, call: Call, repeated: set[str]) -> str:
    """Why a product by itself stays as it is; empty if nothing speaks against it. ``repeated`` are weights of loops."""
    plan, x, w = draft.plan, call.ins["x"], call.ins["w"]
    if w[0] != "c":
        return "its weights are computed"
    constant = plan.constants[int(w[1:])]
    if constant.dtype != "f32" or constant.layout != "plain":
        return f"its weights are {constant.dtype} in layout {constant.layout}"
    if x[0] == "c":
        return "it reads a constant"
    if recipe.keeps(layer(plan, call)):
        return "the recipe keeps it"
    if w not in repeated:
        return "it runs once, outside of the loop"
    if call.op == "conv2d" and not recipe.conv:
        return "the recipe keeps convolutions"
    if call.op == "conv2d" and not recipe.is_integer:
        return "convolutions have no bf16 form"
    if draft.arrays[constant.id].size < FEW:
        return "it is too small to gain"
    shape = tuple(parse_dim(d) for d in plan.buffers[int(x[1:])].shape)
    if not has_batch(shape):
        return "it is the same for all samples"
    rows = product(shape[:-1] if call.op == "linear" else (shape[0], *shape[2:]))
    if isinstance(rows, Batch) and rows.k <= _branches(plan.segments[place[0]]):
        if not _modulates(plan, call):
            return "it embeds what every layer reads"
        if not recipe.modulation:
            return "the recipe keeps modulations"
    if call.op == "conv2d" and tuple(constant.shape[2:]) == (1, 1) and _is_raw(plan, x):
        return "it is a shortcut of values that no norm has evened out"
    return _unfit(recipe, call.op, constant.shape[1])


def _modulates(plan: Plan, product: Call) -> bool:
    """Whether a product's answer scales, shifts or gates that of other layers, and does nothing else.

    Its weights are as many as those of a layer of tokens and are read for a single row: a quarter of the bytes is a
    quarter of its time.
    """
    made = _owners(plan, product.outs.values())
    roles = {role for _, call in _calls(plan) for role, ref in call.ins.items() if _owners(plan, (ref,)) & made}
    return bool(roles) and roles <= _MODULATING


def _is_raw(plan: Plan, ref: str) -> bool:
    """Whether an image is what products and sums left, at least in part.

    The streams of a U-Net are many times wider in some channels than in others, above all where one of the way down
    is put beside one of the way up; a grid for all of them leaves the narrow ones a few steps.
    """
    wanted, seen = [owner(plan, ref)], set[int | None]()
    while wanted:
        number = wanted.pop()
        if number in seen:
            continue
        seen.add(number)
        for _, call in _calls(plan):
            if number not in _owners(plan, call.outs.values()):
                continue
            if call.op in ("copy", "avg_pool2d", "max_pool2d", "upsample_nearest"):
                wanted += _owners(plan, call.ins.values())
            elif call.op in (*PRODUCTS, "pointwise"):
                return True
    return False


def _unfit(recipe: Recipe, op: str, inputs: int) -> str:
    """Why kernels do not take a product of so many inputs."""
    if not recipe.is_integer:
        return "" if inputs % 2 == 0 else f"its {inputs} inputs are not even"
    if inputs % 4:
        return f"its {inputs} {'inputs' if op == 'linear' else 'channels'} are no multiple of 4"
    if op == "linear" and recipe.block and inputs % recipe.block:
        return f"its {inputs} inputs are no multiple of the block {recipe.block}"
    return ""


def _branches(segment: Segment) -> int:
    """Rows per sample of what a network computes once per sample."""
    return max((use.branches for use in segment.networks), default=1)


def _with_ends(plan: Plan, reasons: dict[Place, str]) -> dict[Place, str]:
    """The first and the last layers of networks, found by following the state forwards and the answer backwards."""
    found = dict(reasons)
    for ends, reason in ((_first(plan), "it is the first layer"), (_last(plan), "it is the last layer")):
        for place in ends:
            found[place] = found[place] or reason
    return found


def _first(plan: Plan) -> set[Place]:
    """The products that read the networks' input, or what is made of it without another product."""
    states = {spec.buffer for spec in plan.inputs if spec.name == "x"} if not _has_loops(plan) else set[int]()
    for _, call in _calls(plan):
        if call.op in ("step_input", "sampler_step"):
            states |= _owners(plan, call.outs.values())
    return _reached(plan, states, forwards=True)


def _last(plan: Plan) -> set[Place]:
    """The products that write the networks' answer, or what it is made of without another product."""
    answers: set[int] = set()
    if not _has_loops(plan):
        answers = {owner_of(plan, spec.buffer) for spec in plan.outputs}
    for _, call in _calls(plan):
        if call.op == "sampler_step":
            answers |= _owners(plan, (ref for role, ref in call.ins.items() if role.startswith("p")))
    return _reached(plan, answers, forwards=False)


def _has_loops(plan: Plan) -> bool:
    return any(segment.is_loop for segment in plan.segments)


def _owners(plan: Plan, refs: Iterable[str]) -> set[int]:
    return {number for ref in refs if (number := owner(plan, ref)) is not None}


def _reached(plan: Plan, values: set[int], *, forwards: bool) -> set[Place]:
    """The first products met from ``values`` on, along the flow of data or against it."""
    found: set[Place] = set()
    calls = list(_calls(plan))
    for place, call in calls if forwards else reversed(calls):
        if call.op == "sampler_step":
            continue
        sources = call.ins if forwards else call.outs
        if call.op in PRODUCTS and forwards:
            sources = {"x": call.ins["x"]}  # a state added behind the product has been through nothing
        if not _owners(plan, sources.values()) & values:
            continue
        if call.op in PRODUCTS:
            found.add(place)
        if call.op not in _MIXING:
            values = values | _owners(plan, (call.outs if forwards else call.ins).values())
    return found


def _with_shared_weights(plan: Plan, reasons: dict[Place, str]) -> dict[Place, str]:
    """Weights are quantized for all of their readers or for none."""
    readers: dict[str, list[Place | None]] = {}
    for place, call in _calls(plan):
        for role, ref in call.ins.items():
            if ref[0] == "c":
                readers.setdefault(ref, []).append(place if role == "w" and place in reasons else None)
    found = dict(reasons)
    for place, reason in reasons.items():
        others = [] if reason else readers[_at(plan, place).ins["w"]]
        if any(other is None or reasons[other] for other in others):
            found[place] = "its weights are also read where they stay in float32"
        elif len({_at(plan, other).op for other in others if other is not None}) > 1:
            found[place] = "its weights are read by different operations"
    return found


@dataclass(frozen=True)
class _Window:
    """The elements that a product reads, and the form it wants them in: rows, or an image."""

    base: int
    offset: int
    strides: tuple[int, ...]
    shape: tuple[int | str, ...]
    op: str


def _window(plan: Plan, call: Call) -> _Window:
    buffer = plan.buffers[int(call.ins["x"][1:])]
    if buffer.view is None:
        return _Window(buffer.id, 0, (), buffer.shape, call.op)
    return _Window(buffer.view.base, buffer.view.offset, buffer.view.strides, buffer.shape, call.op)


def _sites(plan: Plan, chosen: set[Place]) -> tuple[tuple[Site, ...], dict[Place, int]]:
    """The values to quantize: calls share one that read the same elements between two writes."""
    sites: list[Site] = []
    products: dict[Place, int] = {}
    for number, segment in enumerate(plan.segments):
        known: dict[_Window, tuple[int, tuple[int, ...]]] = {}  # the site, and the variants of rows that have it
        for at, call in enumerate(segment.calls):
            if (number, at) in chosen:
                window = _window(plan, call)
                site, variants = known.get(window, (-1, ()))
                if site < 0 or (variants and variants != call.variants):
                    site = len(sites)
                    sites.append(Site((number, at), call.ins["x"], layer(plan, call)))
                    known[window] = (site, call.variants)
                products[number, at] = site
            written = _owners(plan, call.outs.values())
            known = {window: value for window, value in known.items() if window.base not in written}
    return tuple(sites), products

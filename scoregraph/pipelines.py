"""Folders of diffusers pipelines as sampling graphs: ``sg.pipelines.from_pretrained``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scoregraph.graph import guidance
from scoregraph.graph.builder import GraphBuilder
from scoregraph.graph.node import Node
from scoregraph.models.denoisers import Size
from scoregraph.models.network import Network
from scoregraph.models.pretrained import component, components
from scoregraph.models.pretrained import from_pretrained as network_of


def from_pretrained(
    folder: str | Path,
    *,
    steps: int = 50,
    guidance_scale: float = 1.0,
    size: Size | None = None,
    tokens: int | None = None,
    **scheduler: Any,
) -> GraphBuilder:
    """The whole pipeline as a graph: text encoder, guided sampling with the folder's scheduler, decoder::

        g = sg.pipelines.from_pretrained("stable-diffusion-v1-5", steps=25, guidance_scale=7.5)
        plan = sg.compile(g)
        plan.run(prompt=ids, negative_prompt=empty_ids, seed=7)["image"]  # [1, 3, 512, 512] in 0…1

    The inputs are the network's conditions (``sg.models.from_pretrained``), and with a ``guidance_scale`` other than 1
    those of the unconditional branch, ``negative_…``, where the network has no value of its own that stands for it.
    ``scheduler`` goes to ``sg.samplers.from_diffusers``: eta, mu, sigmas, ….

    Raises ``UnreadablePipeline`` and ``CannotImport``.
    """
    from scoregraph.interop.importer import from_diffusers

    folder = Path(folder)
    net = network_of(folder, size=size, tokens=tokens)
    imported = from_diffusers(component(folder, components(folder), "scheduler"), steps, **scheduler)
    g = GraphBuilder(net.ref.name)
    given = _condition(g, net)
    blank = _blank(g, net) if guidance_scale != 1.0 else None
    with g.loop(imported.schedule, g.noise(net)) as step:
        answer: Node = g.score(net, step, given)
        if blank is not None:
            answer = g.fuse(guidance.cfg(guidance_scale), answer, g.score(net, step, blank))
        step.advance(imported.sampler, answer)
    g.output(image=g.decode(net, step.result))
    return g


def _condition(g: GraphBuilder, net: Network, prefix: str = "") -> Node | None:
    """The conditions of the network as inputs of their names; None if it has none."""
    if not net.ref.conds:
        return None
    # Only text differs between the branches; an image that guides both is one input.
    text = ("prompt", "prompt_mask", "encoder_hidden_states", "encoder_attention_mask")
    named = {cond.name: g.input((prefix if cond.name in text else "") + cond.name) for cond in net.ref.conds}
    return g.condition(net, **named)


def _blank(g: GraphBuilder, net: Network) -> Node | None:
    """The unconditional branch: the null values where every condition has one, else inputs."""
    if all(cond.null is not None for cond in net.ref.conds):
        return g.condition(net, None) if net.ref.conds else None
    return _condition(g, net, "negative_")

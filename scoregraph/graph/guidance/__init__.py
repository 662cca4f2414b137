"""Guidance: how the answers of several branches become one prediction (``base``).

``linear`` rules are weights and fold into the sampler's table; those of ``per_sample`` have weights that depend on the
sample. A rule of one's own is a class with ``roles`` and ``weights``, or ``roles`` and ``combine``.
"""

from scoregraph.graph.guidance.base import CONVENTIONS, Guidance, Scaled
from scoregraph.graph.guidance.linear import (
    autoguidance,
    cfg,
    cfg_pp,
    cfg_steps,
    compose,
    edit,
    negative,
    pag,
    perturbed,
    single,
    slg,
    weighted,
)
from scoregraph.graph.guidance.per_sample import BySample, apg, cfg_zero_star, mambo_g, rescale, tcfg

__all__ = [
    "CONVENTIONS",
    "BySample",
    "Guidance",
    "Scaled",
    "apg",
    "autoguidance",
    "cfg",
    "cfg_pp",
    "cfg_steps",
    "cfg_zero_star",
    "compose",
    "edit",
    "mambo_g",
    "negative",
    "pag",
    "perturbed",
    "rescale",
    "single",
    "slg",
    "tcfg",
    "weighted",
]

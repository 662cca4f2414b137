"""Samplers: how a state moves from one point of a schedule to the next. One file a family.

Every sampler becomes a ``StepTable`` by ``sampler.table(schedule, prediction, time, space)``: see docs/samplers.md.
"""

from scoregraph.graph.samplers.base import Sampler
from scoregraph.graph.samplers.consistency import Consistency
from scoregraph.graph.samplers.ddim import Ddim
from scoregraph.graph.samplers.dpmpp import Dpmpp2m
from scoregraph.graph.samplers.euler import Euler, FlowEuler, Heun

ddim = Ddim
euler = Euler
heun = Heun
flow_euler = FlowEuler
dpmpp_2m = Dpmpp2m
consistency = Consistency

__all__ = ["Sampler", "consistency", "ddim", "dpmpp_2m", "euler", "flow_euler", "heun"]

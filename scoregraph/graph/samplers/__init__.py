"""Samplers: how a state moves from one point of a schedule to the next. One file a family.

Every sampler becomes a ``StepTable`` by ``sampler.table(schedule, prediction, time, space)``: see docs/samplers.md.
"""

from scoregraph.graph.samplers.base import Sampler
from scoregraph.graph.samplers.consistency import Consistency
from scoregraph.graph.samplers.ddim import Ddim
from scoregraph.graph.samplers.ddpm import Ddpm
from scoregraph.graph.samplers.deis import Deis
from scoregraph.graph.samplers.dpm_solver import DpmSolver
from scoregraph.graph.samplers.dpm_solver_single import DpmSolverSingle
from scoregraph.graph.samplers.dpmpp import Dpmpp2m, Dpmpp2mSde, Dpmpp3m, Dpmpp3mSde
from scoregraph.graph.samplers.euler import Euler, FlowEuler, Heun
from scoregraph.graph.samplers.lms import Lms
from scoregraph.graph.samplers.pndm import Ipndm, Pndm
from scoregraph.graph.samplers.sa_solver import SASolver
from scoregraph.graph.samplers.tabulated import Tabulated
from scoregraph.graph.samplers.unipc import UniPC

ddim = Ddim
ddpm = Ddpm
euler = Euler
heun = Heun
flow_euler = FlowEuler
dpm_solver = DpmSolver
dpm_solver_single = DpmSolverSingle
dpmpp_2m = Dpmpp2m
dpmpp_3m = Dpmpp3m
dpmpp_2m_sde = Dpmpp2mSde
dpmpp_3m_sde = Dpmpp3mSde
unipc = UniPC
deis = Deis
sa_solver = SASolver
pndm = Pndm
ipndm = Ipndm
lms = Lms
consistency = Consistency
tabulated = Tabulated

__all__ = [
    "Sampler",
    "consistency",
    "ddim",
    "ddpm",
    "deis",
    "dpm_solver",
    "dpm_solver_single",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "euler",
    "flow_euler",
    "heun",
    "ipndm",
    "lms",
    "pndm",
    "sa_solver",
    "tabulated",
    "unipc",
]

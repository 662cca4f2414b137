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
from scoregraph.graph.samplers.euler import Euler, EulerAncestral
from scoregraph.graph.samplers.flow import FlowAncestral, FlowEuler, FlowHeun
from scoregraph.graph.samplers.heun import Heun
from scoregraph.graph.samplers.kdpm2 import Dpmpp2sAncestral, DpmppSde, Kdpm2, Kdpm2Ancestral
from scoregraph.graph.samplers.lcm import Lcm
from scoregraph.graph.samplers.lms import Lms
from scoregraph.graph.samplers.pndm import Ipndm, Pndm
from scoregraph.graph.samplers.runge_kutta import HeunEuler, Rk23, Rk45
from scoregraph.graph.samplers.sa_solver import SASolver
from scoregraph.graph.samplers.sde import ReverseSde
from scoregraph.graph.samplers.tabulated import Tabulated
from scoregraph.graph.samplers.tcd import Tcd
from scoregraph.graph.samplers.unipc import UniPC

ddim = Ddim
ddpm = Ddpm
euler = Euler
euler_ancestral = EulerAncestral
heun = Heun
edm = Heun
kdpm2 = Kdpm2
kdpm2_ancestral = Kdpm2Ancestral
dpmpp_2s_ancestral = Dpmpp2sAncestral
dpmpp_sde = DpmppSde
flow_euler = FlowEuler
flow_heun = FlowHeun
flow_ancestral = FlowAncestral
reverse_sde = ReverseSde
heun_adaptive = HeunEuler
rk23 = Rk23
rk45 = Rk45
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
scm = Consistency
flow_stochastic = Consistency
lcm = Lcm
tcd = Tcd
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
    "dpmpp_2s_ancestral",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "edm",
    "euler",
    "euler_ancestral",
    "flow_ancestral",
    "flow_euler",
    "flow_heun",
    "flow_stochastic",
    "heun",
    "heun_adaptive",
    "ipndm",
    "kdpm2",
    "kdpm2_ancestral",
    "lcm",
    "lms",
    "pndm",
    "reverse_sde",
    "rk23",
    "rk45",
    "sa_solver",
    "scm",
    "tabulated",
    "tcd",
    "unipc",
]

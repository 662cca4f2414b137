"""The CPU backend: a plan runs whole in one call into compiled kernels. Loading it imports neither torch nor triton."""

from scoregraph.backends.cpu.backend import Cpu, CpuProgram, backend, describe

__all__ = ["Cpu", "CpuProgram", "backend", "describe"]

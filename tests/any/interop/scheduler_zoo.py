"""Every scheduler class that diffusers exports, and the settings under which it is tried."""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from dataclasses import dataclass, field
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers.schedulers as exported

STEPS = 7


def scheduler_class(name: str) -> type:
    """A class by name. Two want torchsde, whose Brownian tree the importer replaces; an empty module does for it."""
    found = getattr(exported, name)
    module = {
        "DPMSolverSDEScheduler": "scheduling_dpmsolver_sde",
        "CosineDPMSolverMultistepScheduler": "scheduling_cosine_dpmsolver_multistep",
    }.get(name)
    if module is None or "dummy" not in found.__module__:
        return found
    stand_in = types.ModuleType("torchsde")
    before = sys.modules.get("torchsde")
    sys.modules["torchsde"] = stand_in
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(importlib.import_module(f"diffusers.schedulers.{module}"), name)
    finally:
        del sys.modules["torchsde"]
        if before is not None:
            sys.modules["torchsde"] = before


EXPORTED = sorted(name for name in dir(exported) if name.endswith("Scheduler"))


@dataclass(frozen=True)
class Case:
    """A scheduler with a configuration, the arguments of ``from_diffusers``, and why it is refused, if it is."""

    scheduler: str
    config: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    steps: int = STEPS
    refused: str = ""

    def __str__(self) -> str:
        shown = {**self.config, **self.arguments}
        return f"{self.scheduler}({', '.join(f'{k}={v}' for k, v in shown.items())})-{self.steps}"

    def make(self) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return scheduler_class(self.scheduler)(**self.config)


def _case(name: str, refused: str = "", steps: int = STEPS, /, **settings: Any) -> Case:
    arguments = settings.pop("arguments", {})
    return Case(name, settings, arguments, steps, refused)


V, X0 = {"prediction_type": "v_prediction"}, {"prediction_type": "sample"}
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
UNCLIPPED = {"clip_sample": False}
TERMINAL = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", **V}

ACCEPTED = [
    _case("CMStochasticIterativeScheduler", clip_denoised=False),
    _case("CogVideoXDDIMScheduler", clip_sample=False),
    _case("CogVideoXDDIMScheduler", **V, rescale_betas_zero_snr=True, timestep_spacing="trailing"),
    _case("CogVideoXDPMScheduler"),
    _case("CogVideoXDPMScheduler", **V, timestep_spacing="trailing"),
    _case("ConsistencyDecoderScheduler", "", 2),
    _case("CosineDPMSolverMultistepScheduler"),
    _case("CosineDPMSolverMultistepScheduler", solver_order=1),
    _case("DDIMInverseScheduler", **UNCLIPPED),
    _case("DDIMInverseScheduler", **UNCLIPPED, **V),
    _case("DDIMParallelScheduler", **UNCLIPPED),
    _case("DDIMScheduler", **UNCLIPPED),
    _case("DDIMScheduler", **UNCLIPPED, **V, timestep_spacing="trailing"),
    _case("DDIMScheduler", **UNCLIPPED, **X0, timestep_spacing="linspace", set_alpha_to_one=False),
    _case("DDIMScheduler", **UNCLIPPED, **SD, steps_offset=1, arguments={"eta": 1.0}),
    _case("DDIMScheduler", **UNCLIPPED, **TERMINAL),
    _case("DDPMParallelScheduler", **UNCLIPPED),
    _case("DDPMScheduler", **UNCLIPPED),
    _case("DDPMScheduler", **UNCLIPPED, variance_type="fixed_large", **V),
    _case("DDPMScheduler", **UNCLIPPED, variance_type="fixed_small_log", timestep_spacing="trailing"),
    _case("DDPMScheduler", **UNCLIPPED, **X0, beta_schedule="squaredcos_cap_v2"),
    _case("DDPMWuerstchenScheduler"),
    _case("DDPMWuerstchenScheduler", scaler=2.0),
    _case("DEISMultistepScheduler"),
    _case("DEISMultistepScheduler", solver_order=3, use_karras_sigmas=True),
    _case("DEISMultistepScheduler", solver_order=1, **V),
    _case("DPMSolverMultistepInverseScheduler"),
    _case("DPMSolverMultistepScheduler"),
    _case("DPMSolverMultistepScheduler", solver_order=3, **SD, use_karras_sigmas=True),
    _case("DPMSolverMultistepScheduler", solver_type="heun", use_lu_lambdas=True, **V),
    _case("DPMSolverMultistepScheduler", algorithm_type="dpmsolver", solver_order=3, final_sigmas_type="sigma_min"),
    _case("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++"),
    _case("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++", solver_type="heun", solver_order=3),
    _case("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver", final_sigmas_type="sigma_min"),
    _case("DPMSolverMultistepScheduler", euler_at_final=True, beta_schedule="squaredcos_cap_v2"),
    _case("DPMSolverMultistepScheduler", **FLOW),
    _case("DPMSolverMultistepScheduler", **X0, use_exponential_sigmas=True),
    _case("DPMSolverMultistepScheduler", **TERMINAL),
    _case("DPMSolverMultistepScheduler", "", 50, use_exponential_sigmas=True),  # has timesteps twice
    _case("DPMSolverSDEScheduler"),
    _case("DPMSolverSDEScheduler", **SD, use_karras_sigmas=True, **V),
    _case("DPMSolverSinglestepScheduler"),
    _case("DPMSolverSinglestepScheduler", solver_order=3, solver_type="heun", lower_order_final=True),
    _case("DPMSolverSinglestepScheduler", algorithm_type="dpmsolver", final_sigmas_type="sigma_min"),
    _case("DPMSolverSinglestepScheduler", algorithm_type="sde-dpmsolver++", lower_order_final=True),
    _case("EDMDPMSolverMultistepScheduler"),
    _case("EDMDPMSolverMultistepScheduler", solver_order=3, sigma_schedule="exponential"),
    _case("EDMDPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++"),
    _case("EDMEulerScheduler"),
    _case("EDMEulerScheduler", **V, arguments={"s_churn": 10.0, "s_noise": 1.003}),
    _case("EulerAncestralDiscreteScheduler"),
    _case("EulerAncestralDiscreteScheduler", **SD, **V, timestep_spacing="trailing"),
    _case("EulerDiscreteScheduler"),
    _case("EulerDiscreteScheduler", **SD, use_karras_sigmas=True, arguments={"s_churn": 5.0}),
    _case("EulerDiscreteScheduler", **SD, **V, timestep_spacing="leading", steps_offset=1),
    _case("EulerDiscreteScheduler", use_beta_sigmas=True, final_sigmas_type="sigma_min"),
    _case("EulerDiscreteScheduler", timestep_type="continuous", **V, sigma_min=0.002, sigma_max=700.0),
    _case("FlowMapEulerDiscreteScheduler", shift=3.0),
    _case("FlowMatchEulerDiscreteScheduler"),
    _case("FlowMatchEulerDiscreteScheduler", shift=3.0, use_karras_sigmas=True),
    _case("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True, arguments={"mu": 0.8}),
    _case("FlowMatchEulerDiscreteScheduler", stochastic_sampling=True),
    _case("FlowMatchHeunDiscreteScheduler", shift=3.0),
    _case("FlowMatchLCMScheduler", shift=3.0),
    _case("HeliosDMDScheduler", arguments={"stage_index": 0}),
    _case("HeliosScheduler", arguments={"stage_index": 0}),
    _case("HeliosScheduler", scheduler_type="euler", stages=1, stage_range=[0, 1]),
    _case("HeunDiscreteScheduler"),
    _case("HeunDiscreteScheduler", **SD, **V, use_karras_sigmas=True, timestep_spacing="trailing"),
    _case("IPNDMScheduler"),
    _case("IPNDMScheduler", "", 50),
    _case("KDPM2AncestralDiscreteScheduler"),
    _case("KDPM2AncestralDiscreteScheduler", **V, use_karras_sigmas=True),
    _case("KDPM2DiscreteScheduler"),
    _case("KDPM2DiscreteScheduler", **SD, use_exponential_sigmas=True),
    _case("KarrasVeScheduler"),
    _case("KarrasVeScheduler", s_churn=0.0),
    _case("LCMScheduler"),
    _case("LCMScheduler", "", 4, **V),
    _case("LMSDiscreteScheduler"),
    _case("LMSDiscreteScheduler", **V, use_karras_sigmas=True, arguments={"order": 3}),
    _case("LTXEulerAncestralRFScheduler"),
    _case("LTXEulerAncestralRFScheduler", eta=0.0),
    _case("MiniMaxH3Scheduler"),
    _case("PNDMScheduler"),
    _case("PNDMScheduler", skip_prk_steps=True, **SD, steps_offset=1),
    _case("PNDMScheduler", skip_prk_steps=True, **V, set_alpha_to_one=True),
    _case("RFD4ProteinaScheduler", "", 40, schedule_mode="log", noise_mode="1/t", tsr_k=1.0, tsr_sigma=1.0),
    _case("RFD4ProteinaScheduler", "", 40, schedule_mode="power", noise_mode="tan", tsr_k=2.0, tsr_sigma=0.5),
    _case("SASolverScheduler"),
    _case("SASolverScheduler", predictor_order=3, corrector_order=4, **V, tau_func=None),
    _case("SASolverScheduler", use_karras_sigmas=True, algorithm_type="data_prediction"),
    _case("SCMScheduler", arguments={"intermediate_timesteps": None}),
    _case("SCMScheduler", "", 2),
    _case("ScoreSdeVeScheduler", correct_steps=0),
    _case("ScoreSdeVpScheduler"),
    _case("TCDScheduler"),
    _case("TCDScheduler", "", 4, **SD, arguments={"eta": 0.0}),
    _case("TCDScheduler", **V, arguments={"eta": 1.0}),
    _case("UnCLIPScheduler", **UNCLIPPED),
    _case("UnCLIPScheduler", **UNCLIPPED, **X0),
    _case("UniPCMultistepScheduler"),
    _case("UniPCMultistepScheduler", solver_order=3, use_karras_sigmas=True),
    _case("UniPCMultistepScheduler", solver_type="bh1", final_sigmas_type="sigma_min"),
    _case("UniPCMultistepScheduler", predict_x0=False, final_sigmas_type="sigma_min"),
    _case("UniPCMultistepScheduler", disable_corrector=[0, 1]),
    _case("UniPCMultistepScheduler", **FLOW),
]

REFUSED = [
    _case("AmusedScheduler", "tokens", mask_token_id=9),
    _case("BlockRefinementScheduler", "tokens"),
    _case("CMStochasticIterativeScheduler", "clip_denoised=True"),
    _case("DDIMInverseScheduler", "clip_sample=True"),
    _case("DDIMParallelScheduler", "clip_sample=True"),
    _case("DDIMScheduler", "clip_sample=True"),
    _case("DDIMScheduler", "clip_sample=True", clip_sample_range=1000.0),
    _case("DDIMScheduler", "thresholding=True", clip_sample=False, thresholding=True),
    _case("DDPMParallelScheduler", "clip_sample=True"),
    _case("DDPMScheduler", "clip_sample=True"),
    _case("DDPMScheduler", "variance_type='learned_range'", clip_sample=False, variance_type="learned_range"),
    _case("DPMSolverMultistepScheduler", "thresholding=True", thresholding=True),
    _case("DiscreteDDIMScheduler", "tokens"),
    _case("EntropyBoundScheduler", "tokens"),
    _case("LCMScheduler", "clip_sample=True", clip_sample=True),
    _case("PiflowScheduler", "n_grid"),
    _case("RePaintScheduler", "original_image and mask"),
    _case("ScoreSdeVeScheduler", "correct_steps=1"),
    _case("UnCLIPScheduler", "clip_sample=True"),
    _case("UniPCMultistepScheduler", "thresholding=True", thresholding=True),
    _case("VQDiffusionScheduler", "tokens", num_vec_classes=9),
    # What the library itself cannot compute (docs/sampler-accuracy.md): refused, and never silently wrong.
    _case(
        "DPMSolverMultistepScheduler",
        "not finite",
        20,
        use_karras_sigmas=True,
        final_sigmas_type="sigma_min",
        solver_type="heun",
    ),
    _case("UniPCMultistepScheduler", "not finite", solver_type="bh1"),
    _case("DDPMScheduler", "not finite", clip_sample=False, variance_type="fixed_large_log"),
    _case("DDIMScheduler", "not finite", clip_sample=False, rescale_betas_zero_snr=True, timestep_spacing="trailing"),
    _case("EulerAncestralDiscreteScheduler", "not finite", 4, beta_schedule="squaredcos_cap_v2"),
]

"""The schedulers of diffusers: which of them say how a network was trained that the methods can sample with."""

import math
from collections.abc import Mapping
from typing import Any

from pndm.config.errors import InputError

# Classes of diffusers whose networks the methods can sample with: a noise schedule ᾱ, or flow matching.
ALPHAS = {
    "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "DDIMParallelScheduler", "DDIMScheduler",
    "DDPMParallelScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler", "PNDMScheduler", "RePaintScheduler", "SASolverScheduler", "UnCLIPScheduler",
    "UniPCMultistepScheduler",
}  # fmt: skip
FLOWS = {"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"}

KARRAS = "its network is made for x = data + σ · noise, scaled and told log σ (EDM)"
CONSISTENCY = "its network jumps from any time to the image, so there is no ε to combine over steps"
WHY = {
    "EDMEulerScheduler": KARRAS,
    "EDMDPMSolverMultistepScheduler": KARRAS,
    "CosineDPMSolverMultistepScheduler": KARRAS,
    "ScoreSdeVeScheduler": "its network is made for x = data + σ · noise, and predicts the score",
    "CMStochasticIterativeScheduler": CONSISTENCY,
    "LCMScheduler": CONSISTENCY,
    "TCDScheduler": CONSISTENCY,
    "FlowMatchLCMScheduler": CONSISTENCY,
    "DDPMWuerstchenScheduler": "its times run from 1 to 0, and its ᾱ depends on the size of the image",
    "IPNDMScheduler": "its noise levels are its own, and not in its configuration",
}
# Settings that change what is sampled, and that no method here follows.
SETTINGS = {
    ("use_beta_sigmas", True): "there is no spacing like it",
    ("use_lu_lambdas", True): "for the same times set use_exponential_sigmas",
    ("invert_sigmas", True): "σ would rise from 0 to 1, but the methods take it falling",
    ("stochastic_sampling", True): "of the methods DDPM, and DDIM with eta, draw noise",
    ("timestep_type", "continuous"): KARRAS,
}
OWN = "set_timesteps takes times, or noise levels, of one's own"


def translated(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration in today's words: what predicts the image, releases of 2022 told by predict_epsilon false."""
    old = config.get("predict_epsilon") is False and "prediction_type" not in config
    return {**config, "prediction_type": "sample"} if old else dict(config)


def check_class(name: str) -> None:
    """Raise InputError for a class whose networks the methods cannot sample with."""
    if name not in ALPHAS | FLOWS:
        why = WHY.get(name, f"known are {', '.join(sorted(ALPHAS | FLOWS))}")
        raise InputError(f"the methods cannot sample with a network of {name}: {why}")


def check_followed(name: str, found: Mapping[str, Any]) -> None:
    """Raise InputError for settings of a class that change what is sampled, and that no method here follows."""
    by_sigma = bool(found.get("use_karras_sigmas") or found.get("use_exponential_sigmas"))
    followed = {"interpolation_type": "linear"} | dict.fromkeys(("sigma_min", "sigma_max") if by_sigma else ())
    if found.get("beta_schedule") == "squaredcos_cap_v2":  # the others do not fall below the usual limit, −5.1
        followed["lambda_min_clipped"] = -math.inf
    refused = [(key, why) for (key, value), why in SETTINGS.items() if found.get(key) == value]
    refused += [(key, OWN) for key, default in followed.items() if found.get(key, default) != default]
    for key, why in refused:
        raise InputError(f"{key} is {found[key]!r} in the configuration of {name}: {why}")

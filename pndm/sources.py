"""What `MethodScheduler.from_config` takes from the configuration of another scheduler, and which it refuses."""

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers

from pndm.config.errors import InputError
from pndm.runner.solver.methods import method_named
from pndm.times import THEIRS, halves_alone

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


def arguments_of(name: str) -> dict[str, inspect.Parameter]:
    """The arguments of a class of diffusers."""
    found = dict(inspect.signature(getattr(diffusers, name).__init__).parameters)
    return {key: argument for key, argument in found.items() if argument.default is not argument.empty}


def source_of(config: Mapping[str, Any]) -> str | None:
    """The class of diffusers that a configuration is of; None for a `MethodScheduler`, and where nothing tells.

    The configuration of a scheduler that was not loaded does not name its class. But it has all of its arguments.
    """
    if "method" in config:
        return None
    if "_class_name" in config:
        name = str(config["_class_name"])
        return None if name == "MethodScheduler" else name
    here = [name for name in (*sorted(ALPHAS | FLOWS), *WHY) if hasattr(diffusers, name)]  # older releases lack some
    # A class whose own requirements are missing is there without arguments.
    full = {name: keys for name in here if (keys := set(arguments_of(name))) and keys <= set(config)}
    return max(full, key=lambda name: len(full[name]), default=None)


def settings_from(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a `MethodScheduler`, from a scheduler's configuration. Raises InputError (a ValueError).

    What the configuration leaves out is the default of the class that it names. given: settings that come on top. Of
    a method and a solver file the one that is given takes the place of the other.
    """
    name = source_of(config)
    found = dict(config) if name is None else _translated(name, config, given)
    if given.get("solver") is not None:
        found["whole_timesteps"] = False
        found.pop("method", None)
    elif "method" in given:
        found.pop("solver", None)
    return found


def _translated(name: str, config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a `MethodScheduler`, from the configuration of a class of diffusers."""
    if name not in ALPHAS | FLOWS:
        why = WHY.get(name, f"known are {', '.join(sorted(ALPHAS | FLOWS))}")
        raise InputError(f"the methods cannot sample with a network of {name}: {why}")
    if not hasattr(diffusers, name):
        raise InputError(f"diffusers {diffusers.__version__} has no {name}, whose defaults are needed")
    defaults = {key: argument.default for key, argument in arguments_of(name).items()}
    found = defaults | {key: value for key, value in config.items() if key != "_use_default_values"}
    for (key, value), why in SETTINGS.items():
        if found.get(key) == value:
            raise InputError(f"{key} is {value!r} in the configuration of {name}: {why}")
    if name in FLOWS:
        found["prediction_type"] = "flow_prediction"
    if found.get("use_flow_sigmas"):
        found["shift"] = found["flow_shift"]
    if found.get("final_sigmas_type") == "sigma_min":
        found["set_alpha_to_one"] = False
    wanted = found | dict(given)
    method = wanted.get("method", "F-PNDM")
    method_named(method)
    by_sigma = wanted.get("use_karras_sigmas") or wanted.get("use_exponential_sigmas")
    if wanted.get("timestep_spacing") in THEIRS and not by_sigma and halves_alone(method):
        found.setdefault("whole_timesteps", True)
    return found

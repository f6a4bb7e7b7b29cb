"""What `MethodScheduler.from_config` takes from the configuration of another scheduler, and which it refuses."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import diffusers

from pndm.config.errors import InputError
from pndm.config.keys import resembling
from pndm.model.schedulers import ALPHAS, FLOWS, WHY, check_class, check_followed, translated

# The times of classes that have no setting for them, and classes that end at the noise of t = 0.
SPACED = {
    "DPMSolverSinglestepScheduler": "linspace",
    "UnCLIPScheduler": "linspace",
    "RePaintScheduler": "leading",
}
NOISY_ENDS = {"DEISMultistepScheduler", "SASolverScheduler"}
WORDS = {"flow_shift", "final_sigmas_type"}  # of theirs, for shift and set_alpha_to_one


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
    own = {key for key in config if not key.startswith("_")}
    if "_use_default_values" in config and own not in full.values():  # made by diffusers, and of no class of these
        others = (name for name in dir(diffusers) if name.endswith("Scheduler") and name not in here)
        full |= {name: own for name in others if set(arguments_of(name)) == own}
    return max(full, key=lambda name: len(full[name]), default=None)


def settings_from(config: Mapping[str, Any], given: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """Settings of a `MethodScheduler`, from a scheduler's configuration. Raises InputError (a ValueError).

    What the configuration leaves out is the default of the class that it names. given: settings that come on top, in
    the words of that class or of `MethodScheduler`, whose own are `known`. Of a method and a solver file the one that
    is given takes the place of the other.
    """
    name, config = source_of(config), translated(config)
    found = config if name is None else _defaults(name, config)
    wanted = found | dict(given)
    for key in given:
        if key not in {*known, *found, *WORDS} and (meant := resembling(key, known)):
            raise InputError(f"MethodScheduler has no setting {key}{meant}")
        if known and key in found and key not in {*known, *WORDS} and given[key] not in (False, None, found[key]):
            raise InputError(f"{key} is {given[key]!r}; no method here follows this setting of {name}")
    check_followed(name or "MethodScheduler", wanted)
    said = wanted if name else given  # a configuration of `MethodScheduler` was translated before
    if "flow_shift" in said and wanted.get("use_flow_sigmas"):
        found["shift"] = wanted["flow_shift"]
    if "final_sigmas_type" in said:
        found["set_alpha_to_one"] = wanted["final_sigmas_type"] != "sigma_min"
    if given.get("solver") is not None:
        found["whole_timesteps"] = False
        found.pop("method", None)
    elif "method" in given:
        found.pop("solver", None)
    return found


def _defaults(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a class of diffusers with what it leaves out, and what it is here."""
    check_class(name)
    if not hasattr(diffusers, name):
        raise InputError(f"diffusers {diffusers.__version__} has no {name}, whose defaults are needed")
    defaults = {key: argument.default for key, argument in arguments_of(name).items()}
    found = defaults | {key: value for key, value in config.items() if key != "_use_default_values"}
    found.setdefault("whole_timesteps", None)
    if name in FLOWS:
        found["prediction_type"] = "flow_prediction"
    elif name in SPACED:
        found.setdefault("timestep_spacing", SPACED[name])
    if name in NOISY_ENDS and "final_sigmas_type" not in found:
        found["set_alpha_to_one"] = False
    return found

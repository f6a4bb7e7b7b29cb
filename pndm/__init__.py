"""Pseudo numerical methods for diffusion models: the public names.

A name is imported when it is first used, so that `import pndm` is quick. Only `MethodScheduler` needs diffusers.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

# In a checkout the rooms lie beside this folder; an installed package has them inside.
if not (Path(__file__).parent / "runner").is_dir():
    __path__.append(str(Path(__file__).parent.parent))

if TYPE_CHECKING:
    from pndm.config.errors import InputError
    from pndm.config.load import load as load_experiment
    from pndm.model import load_model
    from pndm.pipeline import PipelineOutput, PNDMPipeline
    from pndm.runner.fetch import fetch
    from pndm.runner.measure.distance import frechet_distance
    from pndm.runner.solver.events import Draw, Method, NotFinite, Query, Step
    from pndm.runner.solver.methods import METHODS
    from pndm.runner.solver.multistep import Multistep
    from pndm.runner.solver.options import OPTIONS, Option
    from pndm.runner.solver.schedule import Schedule
    from pndm.runner.solver.sigma import SigmaSchedule
    from pndm.runner.solver.singlestep import Singlestep
    from pndm.runner.solver.solve import State, solve, trajectory
    from pndm.runner.solver.transfer import Classical, Data, Pseudo
    from pndm.scheduler import MethodScheduler

# Public name → its module, and its name there.
_PLACES = {
    "METHODS": ("pndm.runner.solver.methods", "METHODS"),
    "OPTIONS": ("pndm.runner.solver.options", "OPTIONS"),
    "Classical": ("pndm.runner.solver.transfer", "Classical"),
    "Data": ("pndm.runner.solver.transfer", "Data"),
    "Draw": ("pndm.runner.solver.events", "Draw"),
    "InputError": ("pndm.config.errors", "InputError"),
    "Method": ("pndm.runner.solver.events", "Method"),
    "MethodScheduler": ("pndm.scheduler", "MethodScheduler"),
    "Multistep": ("pndm.runner.solver.multistep", "Multistep"),
    "NotFinite": ("pndm.runner.solver.events", "NotFinite"),
    "Option": ("pndm.runner.solver.options", "Option"),
    "PNDMPipeline": ("pndm.pipeline", "PNDMPipeline"),
    "PipelineOutput": ("pndm.pipeline", "PipelineOutput"),
    "Pseudo": ("pndm.runner.solver.transfer", "Pseudo"),
    "Query": ("pndm.runner.solver.events", "Query"),
    "Schedule": ("pndm.runner.solver.schedule", "Schedule"),
    "SigmaSchedule": ("pndm.runner.solver.sigma", "SigmaSchedule"),
    "Singlestep": ("pndm.runner.solver.singlestep", "Singlestep"),
    "State": ("pndm.runner.solver.solve", "State"),
    "Step": ("pndm.runner.solver.events", "Step"),
    "fetch": ("pndm.runner.fetch", "fetch"),
    "frechet_distance": ("pndm.runner.measure.distance", "frechet_distance"),
    "load_experiment": ("pndm.config.load", "load"),
    "load_model": ("pndm.model", "load_model"),
    "solve": ("pndm.runner.solver.solve", "solve"),
    "trajectory": ("pndm.runner.solver.solve", "trajectory"),
}
__all__ = [
    "METHODS",
    "OPTIONS",
    "Classical",
    "Data",
    "Draw",
    "InputError",
    "Method",
    "MethodScheduler",
    "Multistep",
    "NotFinite",
    "Option",
    "PNDMPipeline",
    "PipelineOutput",
    "Pseudo",
    "Query",
    "Schedule",
    "SigmaSchedule",
    "Singlestep",
    "State",
    "Step",
    "fetch",
    "frechet_distance",
    "load_experiment",
    "load_model",
    "solve",
    "trajectory",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, inner = _PLACES[name]
    return getattr(import_module(module), inner)

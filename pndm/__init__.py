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
    from pndm.runner.measure.statistics import frechet_distance
    from pndm.runner.solver.events import NotFinite
    from pndm.runner.solver.methods import METHODS
    from pndm.runner.solver.schedule import Schedule
    from pndm.runner.solver.solve import State, solve, trajectory
    from pndm.scheduler import MethodScheduler

# Public name → its module, and its name there.
_PLACES = {
    "METHODS": ("pndm.runner.solver.methods", "METHODS"),
    "InputError": ("pndm.config.errors", "InputError"),
    "MethodScheduler": ("pndm.scheduler", "MethodScheduler"),
    "NotFinite": ("pndm.runner.solver.events", "NotFinite"),
    "PNDMPipeline": ("pndm.pipeline", "PNDMPipeline"),
    "PipelineOutput": ("pndm.pipeline", "PipelineOutput"),
    "Schedule": ("pndm.runner.solver.schedule", "Schedule"),
    "State": ("pndm.runner.solver.solve", "State"),
    "frechet_distance": ("pndm.runner.measure.statistics", "frechet_distance"),
    "load_experiment": ("pndm.config.load", "load"),
    "load_model": ("pndm.model", "load_model"),
    "solve": ("pndm.runner.solver.solve", "solve"),
    "trajectory": ("pndm.runner.solver.solve", "trajectory"),
}
__all__ = [
    "METHODS",
    "InputError",
    "MethodScheduler",
    "NotFinite",
    "PNDMPipeline",
    "PipelineOutput",
    "Schedule",
    "State",
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

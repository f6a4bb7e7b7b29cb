"""Pseudo numerical methods for diffusion models: the public names.

A name is imported when it is first used, so that `import pndm` is quick. Only `MethodScheduler` needs diffusers.
"""

from importlib import import_module
from importlib.util import find_spec
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

# Module → its public names. `load_experiment` is `load` there.
_MODULES = {
    "pndm.config.errors": "InputError",
    "pndm.config.load": "load_experiment",
    "pndm.model": "load_model",
    "pndm.pipeline": "PNDMPipeline PipelineOutput",
    "pndm.runner.fetch": "fetch",
    "pndm.runner.measure.distance": "frechet_distance",
    "pndm.runner.solver.events": "Draw Method NotFinite Query Step",
    "pndm.runner.solver.methods": "METHODS",
    "pndm.runner.solver.multistep": "Multistep",
    "pndm.runner.solver.options": "OPTIONS Option",
    "pndm.runner.solver.schedule": "Schedule",
    "pndm.runner.solver.sigma": "SigmaSchedule",
    "pndm.runner.solver.singlestep": "Singlestep",
    "pndm.runner.solver.solve": "State solve trajectory",
    "pndm.runner.solver.transfer": "Classical Data Pseudo",
    "pndm.scheduler": "MethodScheduler",
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names.split()}
__all__ = [
    "METHODS", "OPTIONS", "Classical", "Data", "Draw", "InputError", "Method", "MethodScheduler", "Multistep",
    "NotFinite", "Option", "PNDMPipeline", "PipelineOutput", "Pseudo", "Query", "Schedule", "SigmaSchedule",
    "Singlestep", "State", "Step", "fetch", "frechet_distance", "load_experiment", "load_model", "solve", "trajectory",
]  # fmt: skip
if not TYPE_CHECKING and not find_spec("diffusers"):
    __all__.remove("MethodScheduler")


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), "load" if name == "load_experiment" else name)

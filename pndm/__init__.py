"""The public names, for `import pndm` after `pip install .` or from the project's folder.

`MethodScheduler` is imported when it is asked for, since it alone needs diffusers.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

# In a checkout the rooms lie beside this folder; a wheel has them in it.
if not (Path(__file__).parent / "runner").is_dir():
    __path__.append(str(Path(__file__).parent.parent))

from pndm.config.errors import InputError
from pndm.model import load_model
from pndm.pipeline import PipelineOutput, PNDMPipeline
from pndm.runner.measure.statistics import frechet_distance
from pndm.runner.solver.events import NotFinite
from pndm.runner.solver.methods import METHODS, State, solve, trajectory
from pndm.runner.solver.schedule import Schedule

if TYPE_CHECKING:
    from pndm.scheduler import MethodScheduler

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
    "load_model",
    "solve",
    "trajectory",
]


def __getattr__(name: str) -> Any:
    if name == "MethodScheduler":
        from pndm.scheduler import MethodScheduler

        return MethodScheduler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

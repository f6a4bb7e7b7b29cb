"""The public names, for `import pndm` after `pip install .` or from the project's folder.

`MethodScheduler` is imported when it is asked for, since it alone needs diffusers.
"""

from typing import TYPE_CHECKING, Any

from config.errors import InputError
from model import load_model
from runner.events import NotFinite
from runner.method import METHODS, State, solve, trajectory
from runner.metric import frechet_distance
from runner.pipeline import PipelineOutput, PNDMPipeline
from runner.schedule import Schedule

if TYPE_CHECKING:
    from runner.scheduler import MethodScheduler

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
        from runner.scheduler import MethodScheduler

        return MethodScheduler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

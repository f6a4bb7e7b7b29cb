"""A search on a network in closed form."""

import pytest
import torch
from helpers import LINEAR, mixture

from pndm.runner.processes import Processes
from pndm.runner.search.problem import Problem


@pytest.fixture
def problem():
    """A mixture of Gaussians in four dimensions, in batches of 32."""
    return Problem(mixture(LINEAR, 3)[0], LINEAR, (4,), 0, Processes(torch.device("cpu")), 32)

"""Networks: the one UNet, and the published formats it can be read from."""

import os
from typing import Any

import torch

from pndm.config.errors import InputError
from pndm.model.checkpoint import read, state_dict_for
from pndm.model.machine import device_of
from pndm.model.settings import settings_of
from pndm.model.unet import UNet
from pndm.runner.solver.schedule import Schedule
from pndm.runner.solver.sigma import SigmaSchedule


def load_model(
    config: Any, checkpoint: Any = None, device: str | torch.device = "cpu", schedule: Schedule | None = None
) -> UNet:
    """The network of a `Model` section, in evaluation mode on `device`: network(x, t) → ε.

    config: a `Model` section, a dict as in the YAML files (or the validated section); None for a checkpoint that
    says its settings itself (a diffusers folder, a training file of this project). checkpoint: a path, a name on
    the hub, a state dict or training list in any format that `model.checkpoint` knows, or what its `read` returned;
    without one the weights are random. Half precision becomes float32, float64 stays. schedule: the `SigmaSchedule`
    whose t a network of EDM is told; EDM's own by default. Other networks need none.
    Raises InputError (a ValueError) naming the key, the device, or the first setting or tensors that do not fit.

        >>> import torch
        >>> from pndm import load_experiment, load_model
        >>> experiment = load_experiment("digits.yml")
        >>> network = load_model(experiment.Model, experiment.Sample.model_path)
        >>> tuple(network(torch.zeros(2, 1, 8, 8), torch.tensor([999.0, 0.0])).shape)
        (2, 1, 8, 8)
    """
    if isinstance(config, str | os.PathLike):
        raise InputError(f"load_model({str(config)!r}): a Model section comes first, or None; then the checkpoint")
    device = device_of(device)
    checkpoint = None if checkpoint is None else read(checkpoint)
    settings = checkpoint and checkpoint.settings if config is None else settings_of(config)
    if settings is None:
        raise InputError(f"{checkpoint.name if checkpoint else 'load_model'}: a Model section must say the settings")
    if settings.preconditioning and not isinstance(schedule, SigmaSchedule | None):
        raise InputError("a network of EDM needs a SigmaSchedule: Schedule.type must be edm", "Schedule.type")
    if checkpoint is None:
        network = UNet(settings, schedule)
    else:
        with torch.device("meta"):  # no memory, no random weights that the checkpoint would replace
            network = UNet(settings, schedule)
        network.load_state_dict(state_dict_for(network, checkpoint), assign=True)
    return network.to(device).eval().requires_grad_(False)

"""Whether a network was trained for what an experiment does with it."""

from pndm.config.errors import InputError
from pndm.config.files import ROOT
from pndm.config.load import load
from pndm.model import diffusers

# Bundled files that do not say what their networks have learned, and the experiments that do.
BUNDLED = {ROOT / "model" / f"{name}.safetensors": f"{name}.yml" for name in ("digits", "fashion")}


def check_prediction(source, remedy):
    """Raise InputError unless a `Checkpoint`'s network predicts ε, as far as its folder of diffusers says it."""
    training = diffusers.training_of(source.path)
    if training and training.prediction != "epsilon":
        message = f"{source.path}: the network predicts {training.prediction}, not ε; {remedy}"
        raise InputError(message, "Sample.model_path")


def check_training(source, experiment, schedule):
    """Raise InputError unless a `Checkpoint`'s network has learned the noise and the pixels of an experiment.

    As far as its file says it, or its folder of diffusers. schedule: the experiment's.
    """
    training, kind = diffusers.training_of(source.path), experiment.Schedule.type
    if training and not schedule.alike(training.noise):
        message = f"{source.path}: the network has learned another noise schedule; its scheduler_config.json says which"
        raise InputError(message, "Sample.model_path")
    names = ["Schedule.type", "Dataset.rescaled", "Dataset.logit_transform"]
    if kind != "edm":  # EDM's network is told σ, whatever the others are
        names += ["Schedule.diffusion_step"]
    if kind in ("linear", "quad"):
        names += ["Schedule.beta_start", "Schedule.beta_end"]
    bundled = source.path and BUNDLED.get(source.path.resolve())
    record = load(bundled).model_dump() if bundled else source.record
    for name in names:
        section, key = name.split(".")
        ours = getattr(getattr(experiment, section), key)
        held = record.get(section)
        if isinstance(held, dict) and held.get(key, ours) != ours:
            message = f"{name} is {ours!r}, but the network of {source.path} was trained with {held[key]!r}"
            raise InputError(message, name, "Sample.model_path")

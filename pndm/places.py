"""Where a run computes, and where it writes."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pndm.config.errors import InputError

if TYPE_CHECKING:
    import torch

CONFIG, TRAINING = "digits.yml", "temp/train"  # in place of --config and --train_path


def device(name: str) -> "torch.device":
    """The torch device of that name; `auto` is a GPU if there is one. Raises InputError when this machine has none."""
    import torch

    there = ["cpu"]
    for kind, module in (("cuda", torch.cuda), ("xpu", getattr(torch, "xpu", None))):
        if module is not None and module.is_available():
            there += [f"{kind}:{i}" for i in range(module.device_count())]
    if torch.backends.mps.is_available():
        there.append("mps")
    if name == "auto":
        name = there[min(1, len(there) - 1)]
    if f"{name}:0" in there:
        name = f"{name}:0"
    if name not in there:
        raise InputError(f"{name} is not there; this machine has {', '.join(there)}", "device")
    return torch.device(name)


def image_path(args: argparse.Namespace, settings: Any) -> Path:
    """Default folder of a sampling run: its name has what people compare."""
    from pndm.runner.solver.methods import METHODS
    from pndm.runner.solver.options import GRID_OPTIONS, OPTIONS

    if settings.solver:
        seed = f"_seed{settings.seed}" if settings.seed else ""
        return Path("temp/sample") / f"{Path(args.config or CONFIG).stem}_{Path(settings.solver).stem}{seed}"
    steps = f"{len(settings.times) - 1}times" if settings.times else settings.sample_speed
    parts = [Path(args.config or CONFIG).stem, settings.method]
    if not METHODS[settings.method].adaptive:
        parts.append(f"nfe{settings.nfe}" if settings.nfe else str(steps))
    parts += [value for value in (settings.spacing, settings.profile) if value not in ("uniform", "exact")]
    for name, option in (GRID_OPTIONS | OPTIONS).items():
        if (value := getattr(settings, name)) != option.default:
            parts.append(name if value is True else f"{name}{value:g}")
    beside = {"label": None, "guidance": 1, "seed": 0}
    parts += [f"{k}{getattr(settings, k)}" for k, default in beside.items() if getattr(settings, k) != default]
    return Path("temp/sample") / "_".join(parts)


def search_path(args: argparse.Namespace, settings: Any) -> Path:
    """Default folder of a search."""
    return Path("temp/search") / f"{Path(args.config or CONFIG).stem}_nfe{settings.nfe}"

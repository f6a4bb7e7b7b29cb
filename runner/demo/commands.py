"""How a cell is made again, to the byte: by the command line, by `solve`, and by a loop as in diffusers' pipelines."""

import json
import shlex
from dataclasses import dataclass, field

from pndm.runner.solver.sigma import SigmaSchedule

BEGIN = """\
import torch

from pndm import PNDMPipeline, load_experiment, {name}
from pndm.dataset import to_picture
from pndm.runner.random import noise
{imports}
experiment = load_experiment({config!r}, {overrides!r})
pipeline = PNDMPipeline.from_pretrained(
    experiment.Sample.model_path, experiment.model_dump(), device={device!r}, precision={precision!r}
)
x = torch.from_numpy(noise({seed}, range({images}), pipeline.shape)).to({device!r})
"""
MIX = """\
y = torch.from_numpy(noise({other}, range({images}), pipeline.shape)).to({device!r})
x = math.cos({share!r} * math.pi / 2) * x + math.sin({share!r} * math.pi / 2) * y
"""
DRAW = """\
draw = lambda step: torch.from_numpy(noise({seed}, range({images}), pipeline.shape, "step", step)).to({device!r})
"""
SOLVE = """\
with torch.inference_mode():
    *_, (x, t, calls) = solve({method!r}, pipeline.network, x, pipeline.schedule, {steps}, {profile!r}{options})
"""
SEARCHED = """\
solver = load_solver({file!r})
with torch.inference_mode():
    *_, (x, t, calls) = solve(solver.line, pipeline.network, x, pipeline.schedule, {steps}, times=solver.times)
"""
SCHEDULER = """\
scheduler = MethodScheduler(trained_betas=pipeline.schedule.betas.tolist(), method={method!r})
scheduler.set_timesteps(timesteps=grid_of(pipeline.schedule, {steps}, {spacing!r})[:-1])
"""
SEARCHED_SCHEDULER = """\
scheduler = MethodScheduler(trained_betas=pipeline.schedule.betas.tolist(), solver={file!r})
scheduler.set_timesteps({steps})
"""
LOOP = """\
with torch.inference_mode():
    for t in scheduler.timesteps:
        eps = pipeline.network(x, t.float().reshape(1).to(x.device))
        x = scheduler.step(eps, t, x).prev_sample
"""
END = """\
images = (pipeline.decode(x) * 255).round().to(torch.uint8).cpu()
for i, image in enumerate(images):
    to_picture(image).save(f"{i:06d}.png")
"""


# Keys of Sample that a cell's command says itself.
SAID = {"method", "solver", "spacing", "sample_speed", "nfe", "times", "seed", "total_num", "batch_size", "precision"}
SAID |= {"features", "metrics"}


@dataclass(frozen=True)
class Origin:
    """What the page was opened with. config: the experiment's name or path. overrides: "Section.key" → value."""

    config: str
    device: str = "cpu"
    overrides: dict = field(default_factory=dict)


def commands(cell, noise, origin):
    """(name, text) of each way to make a cell's images again; those that cannot are left out."""
    ways = {"command line": shell}
    # The programs call network(x, t) from standard normal noise: without classes, and not on EDM's σ.
    if not cell.sampling.classes and not isinstance(cell.sampling.schedule, SigmaSchedule):
        ways |= {"Python": python, "diffusers": diffusers}
    found = [(name, way(cell, noise, origin)) for name, way in ways.items()]
    return [(name, text) for name, text in found if text]


def shell(cell, noise, origin):
    """The command line; None of a mixed noise, for which it has no flag."""
    sampling = cell.sampling
    if noise.share:
        return None
    how = f"{cell.steps}steps" if cell.steps else "adaptive"
    flags = {"config": origin.config, "device": origin.device}
    said = SAID
    if cell.file:
        flags |= {"solver": cell.file}
        said = SAID | {"profile"}  # the solver file's method has none
    else:
        flags |= {"method": sampling.method, "spacing": sampling.options.get("spacing", "uniform")}
        flags |= {"sample_speed": sampling.steps} if sampling.steps else {}
    flags |= {"seed": noise.seed, "total_num": noise.images, "batch_size": noise.images}
    flags |= {"precision": cell.precision, "features": "none"}
    flags["image_path"] = f"temp/demo/{cell.row.method}_{cell.row.spacing}_{how}_seed{noise.seed}_{noise.images}"
    parts = [f"--{name} {shlex.quote(str(value))}" for name, value in flags.items()]
    more = {name: value for name, value in origin.overrides.items() if name.removeprefix("Sample.") not in said}
    parts += [f"--set {shlex.quote(f'{name}={json.dumps(value)}')}" for name, value in more.items()]
    return " \\\n    ".join(["python main.py --runner sample", *parts]) + "\n"


def python(cell, noise, origin):
    """A program that calls `solve`."""
    sampling = cell.sampling
    if cell.file:
        begin = _begin(cell, noise, origin, "solve", "from pndm.config.load import load_solver\n")
        return begin + SEARCHED.format(file=cell.file, steps=sampling.steps) + END
    options = "".join(f", {name}={value!r}" for name, value in sampling.options.items())
    options += ", noise=draw" if sampling.draws else ""
    how = {"method": sampling.method, "steps": sampling.steps or 1, "profile": sampling.profile, "options": options}
    draw = DRAW.format(**_values(cell, noise, origin)) if sampling.draws else ""
    return _begin(cell, noise, origin, "solve") + draw + SOLVE.format(**how) + END


def diffusers(cell, noise, origin):
    """A program that calls `MethodScheduler` as diffusers' pipelines do; None where it does not take the run."""
    sampling = cell.sampling
    if cell.file:
        begin = _begin(cell, noise, origin, "MethodScheduler")
        return begin + SEARCHED_SCHEDULER.format(file=cell.file, steps=sampling.steps) + LOOP + END
    if sampling.adaptive or sampling.draws or sampling.profile != "exact" or set(sampling.options) - {"spacing"}:
        return None
    spacing = sampling.options.get("spacing", "uniform")
    scheduler = SCHEDULER.format(method=sampling.method, steps=sampling.steps, spacing=spacing)
    begin = _begin(cell, noise, origin, "MethodScheduler", "from pndm.runner.solver.grid import grid_of\n")
    return begin + scheduler + LOOP + END


def _begin(cell, noise, origin, name, imports=""):
    """The lines up to the noise x; name, imports: what else is imported."""
    values = _values(cell, noise, origin)
    text = BEGIN.format(name=name, imports=imports, **values)
    return f"import math\n\n{text}{MIX.format(**values)}" if noise.share else text


def _values(cell, noise, origin):
    overrides = {name: ("this program", value) for name, value in origin.overrides.items()}
    more = {"config": origin.config, "device": origin.device, "precision": cell.precision, "overrides": overrides}
    return vars(noise) | more

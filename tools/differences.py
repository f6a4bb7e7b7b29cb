"""Where diffusers' PNDMScheduler defines things otherwise than F-PNDM here, and the size of each difference.

    python tools/differences.py

Both run on the bundled network from the same noise in float64, here by `MethodScheduler`. A row lets one definition
differ and the others be equal; its figure is the root-mean-square difference of the images, which are in [−1, 1].
"""

import argparse

import torch
from diffusers import PNDMScheduler

from pndm.config.load import load
from pndm.model import load_model
from pndm.runner.build import checkpoint_path
from pndm.runner.solver.schedule import Schedule
from pndm.runner.table.flow import distance
from pndm.scheduler import MethodScheduler

# What differs in each row: keys of both schedulers, keys of PNDMScheduler alone, keys of MethodScheduler alone, steps.
SAME = {"timestep_spacing": "leading", "set_alpha_to_one": True}
V = {"prediction_type": "v_prediction"}
ROWS = {
    "nothing: ᾱ is rounded to float32": ({}, {}, {}, (10, 20, 50)),
    "last step: to ᾱ(0) = 0.9999, not to 1": ({}, {"set_alpha_to_one": False}, {}, (10, 20, 50)),
    "start: a repeated call, no Runge–Kutta (`skip_prk_steps`)": ({}, {"skip_prk_steps": True}, {}, (10, 20, 50)),
    "half steps: cut to whole times": ({}, {}, {}, (8, 40)),
    "leading: steps of N // n, not N / n": ({}, {}, {"timestep_spacing": "uniform"}, (30, 60)),
    "trailing: every step N // n long, whatever the times": ({"timestep_spacing": "trailing"}, {}, {}, (30, 60)),
    "linspace: the same": ({"timestep_spacing": "linspace"}, {}, {}, (10, 20, 50)),
    "v prediction: v's combined, not ε's": (V, {}, {}, (10, 20, 50)),
    "Stable Diffusion's settings against the paper's": (
        {}, {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1}, {}, (10, 20, 50)),
}  # fmt: skip


def run(scheduler, network, x, steps):
    """The end of a pipeline's loop, and the network calls it took."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t.to(x.dtype).expand(len(x))), t, x).prev_sample
    return x, len(scheduler.timesteps)


def predicting(network, prediction, schedule):
    """The network, or the same as a prediction of v."""

    def v(x, t):
        alpha = x.new_tensor(schedule.alpha_cumprod(t.numpy())).reshape(-1, 1, 1, 1)
        return (network(x, t) - (1 - alpha).sqrt() * x) / alpha.sqrt()

    return v if prediction == "v_prediction" else network


@torch.inference_mode()
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16, help="how many (default 16)")
    args = parser.parse_args(argv)
    if args.images < 1:
        parser.error(f"--images is {args.images}, it must be at least 1")
    experiment, schedule = load("digits.yml"), Schedule("linear")
    network = load_model(experiment.Model, checkpoint_path(experiment.Sample.model_path)).double()
    noise = torch.randn(args.images, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    print("| what differs | steps | calls there | calls here | difference |")
    print("|---|---|---|---|---|")
    for name, (both, theirs, ours, counts) in ROWS.items():
        asked = predicting(network, both.get("prediction_type"), schedule)
        for steps in counts:
            x, calls = run(PNDMScheduler(**SAME | both | theirs), asked, noise, steps)
            y, mine = run(MethodScheduler(**SAME | both | ours), asked, noise, steps)
            print(f"| {name} | {steps} | {calls} | {mine} | {distance(x, y):.2g} |")
            name = ""


if __name__ == "__main__":
    main()

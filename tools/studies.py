"""Small studies whose figures the pages quote.

    python tools/studies.py flow --steps 100
    python tools/studies.py error
    python tools/studies.py preview
    python tools/studies.py noise
    python tools/studies.py ends

Each prints a table, in minutes on a CPU. Random numbers have fixed seeds.
"""

import argparse
import time

import numpy as np
import torch

from pndm.config.load import load, replaced
from pndm.dataset import encode, open_dataset
from pndm.model.engine import Engine
from pndm.runner.build import read_network, sampling_of
from pndm.runner.measure.distance import frechet_distance, standard_error
from pndm.runner.measure.statistics import Statistics
from pndm.runner.solver.analytic import GaussianMixture
from pndm.runner.solver.flow import FlowSchedule
from pndm.runner.solver.schedule import Schedule
from pndm.runner.table.flow import distance, flow_from
from pndm.scheduler import MethodScheduler
from pndm.tools.benchmark import positive

CPU = torch.device("cpu")
TOLERANCE = 1e-7  # of the exact flow
METHODS_FROM_NOISE = ("DDIM", "UniPC2-bh1", "UniPC2-bh2")


def table(*names):
    """Print the head of a table."""
    row(*names)
    print("|---" * len(names) + "|")


def row(*cells):
    """Print a row; numbers that are not whole have two digits."""
    told = [f"{cell:.2g}" if isinstance(cell, float) else str(cell) for cell in cells]
    print(f"| {' | '.join(told)} |", flush=True)


@torch.inference_mode()
def flow(args):
    """How far methods are from the exact flow on their way, and at clean data: the digits, float32."""
    experiment = load("digits.yml")
    network, exact = read_network(experiment)[0], {}
    double = read_network(experiment)[0].double()
    for method in ("DDIM", "S-PNDM", "F-PNDM", "FON"):
        sampling = sampling_of(replaced(experiment, method=method, sample_speed=args.steps))
        found = {state.t: state.x for state in sampling.states(network, range(args.images), CPU)}
        if not exact:
            times = [t for t in (500, 100, 20, 10, 0, -1) if t in found]  # those of the steps
            table("distance to the flow at", *(f"t = {t}" for t in times[:-1]), "clean data")
            t, x = sampling.span[0], sampling.start(range(args.images), CPU).double()
            for s in times:
                exact[s] = x = flow_from(x, t, s, sampling.schedule, double, TOLERANCE)
                t = s
        row(method, *(distance(found[t].double(), ends) for t, ends in exact.items()))


def error(args):
    """How good the standard error of a Fréchet distance is, on normal vectors.

    n in d dimensions, of mean `shift` and variance (1 + shift)², against mean 0 and variance 1.
    """
    table("d", "n", "shift", "distance", "spread of the distances", "root mean square of the errors")
    for d, n, shift in ((8, 1000, 0.2), (32, 400, 0.2), (64, 50, 0.2), (64, 5000, 0.2), (64, 5000, 0.0)):
        draw, found = torch.Generator().manual_seed(0), []
        mu, sigma = torch.zeros(d).double(), torch.eye(d).double()
        for _ in range(args.drawings):
            sums = Statistics(d)
            sums.update((1 + shift) * torch.randn(n, d, generator=draw) + shift, range(n))
            found.append((frechet_distance(*sums.moments(), mu, sigma), standard_error(sums, mu, sigma)))
        values, errors = np.array(found).T
        row(d, n, shift, float(values.mean()), float(values.std(ddof=1)), float(np.sqrt((errors**2).mean())))


@torch.inference_mode()
def preview(args):
    """How far the demo's exact flow, in float32 at a loose tolerance, is from that in float64: the digits."""
    table("followed in", "tolerance", "from t =", "calls an image", "seconds of processor", "error")
    experiment, exact = load("digits.yml"), {}
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-4)):
        network = read_network(experiment)[0].to(dtype)
        for t in (900.0, 667.0):
            asked = []

            def counted(x, t, network=network, asked=asked):
                asked.append(len(x))
                return network(x, t)

            begun, x = time.process_time(), sampling_of(experiment).noise(range(args.images), CPU).to(dtype)
            x = flow_from(x, t, -1.0, Schedule(), counted, tolerance).double()
            away = distance(x, exact.setdefault(t, x))
            calls, seconds = sum(asked) / args.images, time.process_time() - begun
            row(str(dtype).removeprefix("torch."), f"{tolerance:g}", f"{t:g}", f"{calls:.0f}", f"{seconds:.1f}", away)


def noise(args):
    """How far methods are from the exact flow of flow matching from σ = 1, where B(h) = h of bh1 is infinite.

    Data are normal numbers of a variance; steps are equal in σ.
    """
    table("variance", "steps", *METHODS_FROM_NOISE)
    x = torch.randn(64, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for variance in (0.3, 1.0, 4.0):
        for steps in (5, 20):
            row(variance, steps, *(from_noise(method, x, variance, steps) for method in METHODS_FROM_NOISE))


def from_noise(method, x, variance, steps):
    """The distance of a method's end from the exact flow's."""
    schedule = FlowSchedule()
    network = GaussianMixture(schedule, torch.zeros(1, 1).double(), torch.full((1, 1), variance).double())
    scheduler, y = MethodScheduler(method=method, prediction_type="flow_prediction"), x
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    for t in scheduler.timesteps:
        level = torch.full((len(y),), float(t)).double()
        scaled, alpha = y / schedule.scale(float(t)), schedule.alpha_cumprod(float(t))
        eps = network(scaled, level)
        velocity = eps - (scaled - (1 - alpha) ** 0.5 * eps) / alpha**0.5  # ε − x₀
        y = scheduler.step(velocity, t, y).prev_sample
    return distance(y, network.flow(x, 1000, 0))


def tf32(x):
    """float32 to the nearest number with ten digits after the point: what a tensor core is given in TF32."""
    whole, dropped = x.contiguous().view(torch.int32), 23 - 10
    return ((whole + (1 << (dropped - 1))) >> dropped << dropped).view(torch.float32)


@torch.inference_mode()
def ends(args):
    """What bf16 costs ε on the digits: as it is, and with the ends of the network in TF32 (as on a GPU) or in bf16.

    Ends are the first and the last convolution and the time's embedding. Figures are the rms of ε's error against
    float32, over ε's deviation.
    """
    table("t", "bf16", "with TF32 ends", "with bf16 ends")
    experiment = load("digits.yml")
    data = open_dataset(experiment.Dataset)
    x0 = encode(torch.stack([data[i] for i in range(args.images)]), experiment.Dataset)
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    exact = Engine(read_network(experiment)[0], CPU, "fp32")
    engines = [Engine(read_network(experiment)[0], CPU, "bf16") for _ in range(3)]
    for engine, cut in zip(engines[1:], (tf32, lambda x: x.bfloat16().float()), strict=True):
        for layer in (engine.plain.conv_in, engine.plain.conv_out, *engine.plain.temb.dense):
            layer.weight.data = cut(layer.weight.data)
            layer.register_forward_pre_hook(lambda _, inputs, cut=cut: (cut(inputs[0]),))
    rows = {}
    for t in (0, 10, 50, 500, 999):
        alpha = float(Schedule().alpha_cumprod(t))
        x, at = alpha**0.5 * x0 + (1 - alpha) ** 0.5 * eps, torch.tensor([float(t)])
        wanted = exact(x, at)
        rows[t] = [distance(engine(x, at), wanted) / wanted.std().item() for engine in engines]
        row(t, *(f"{value:.2e}" for value in rows[t]))
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="STUDY")
    sizes = {flow: {"steps": 100, "images": 8}, error: {"drawings": 200}, preview: {"images": 4}, noise: {}}
    for function, options in (sizes | {ends: {"images": 256}}).items():
        command = commands.add_parser(function.__name__, help=function.__doc__.splitlines()[0])
        command.set_defaults(function=function)
        for name, default in options.items():
            command.add_argument(f"--{name}", type=positive, default=default, metavar="N", help=f"default {default}")
    args = parser.parse_args(argv)
    args.function(args)


if __name__ == "__main__":
    main()

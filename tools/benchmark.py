"""Measure this project against others on the same inputs, alternating, in one run.

    python tools/benchmark.py frechet --json frechet.json
    python tools/benchmark.py sampling --images 1000 --steps 50
    python tools/benchmark.py network --config ddim_cifar10.yml --batch 16 --steps 4
    python tools/benchmark.py features --images 200
    python tools/benchmark.py precision --images 1000
    python tools/benchmark.py profile --config ddim_cifar10.yml --batch 16

Each benchmark prints a table and, with --json FILE, writes its figures and what they were measured on.
"""

import argparse
import operator
import os
import platform
import statistics
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np


def frechet(args):
    """`frechet_distance` against pytorch-fid's `calculate_frechet_distance`: seconds, and how far they differ.

    On moments of normal vectors whose variances spread over some three decades, as features' do.
    """
    from pndm.runner.measure.statistics import frechet_distance

    theirs = _pytorch_fid()
    rng = np.random.default_rng(0)
    scales = np.exp(rng.normal(-1, 1, args.dimension))

    def moments():
        turn = np.linalg.qr(rng.standard_normal((args.dimension, args.dimension)))[0]
        features = rng.standard_normal((args.images, args.dimension)) * scales @ turn
        return features.mean(0), np.cov(features, rowvar=False)

    inputs = *moments(), *moments()
    frechet_distance(*inputs)  # what the first call of a library does besides
    rounds = []
    for _ in range(args.repeat):
        ours, value = _timed(frechet_distance, *inputs)
        other, reference = _timed(theirs, *inputs)
        rounds.append({"seconds": ours, "pytorch_fid_seconds": other, "difference": abs(value / reference - 1)})
    ratio = statistics.median(r["pytorch_fid_seconds"] / r["seconds"] for r in rounds)
    print(f"{args.dimension} dimensions\n{'round':>7}{'here':>12}{'pytorch-fid':>14}{'ratio':>9}{'difference':>13}")
    for i, r in enumerate(rounds):
        print(
            f"{i:7}{r['seconds']:10.3f} s{r['pytorch_fid_seconds']:12.3f} s"
            f"{r['pytorch_fid_seconds'] / r['seconds']:9.1f}{r['difference']:13.1e}"
        )
    print(f"median ratio {ratio:.1f}")
    return {"dimension": args.dimension, "images": args.images, "rounds": rounds, "ratio": ratio}


def sampling(args):
    """The share of a sampling run that is not spent in the network: noise, steps, PNG files, statistics, record.

    By F-PNDM, on the bundled digits network, or on random weights and without statistics. The run is that of
    `--runner sample`, from its first batch to its last file; loading the network and the reference come before it.
    """
    import tempfile

    import torch
    from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

    from pndm.cli import device
    from pndm.config.schema import load, with_sample
    from pndm.model import checkpoint, load_model
    from pndm.model.unet import UNet
    from pndm.runner import sample

    where, inside = device("auto"), []

    def now():
        if where.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def enter(module, _):
        if isinstance(module, UNet):
            inside.append(-now())

    def leave(module, *_):
        if isinstance(module, UNet):
            inside[-1] += now()

    hooks = register_module_forward_pre_hook(enter), register_module_forward_hook(leave)
    values = {"total_num": args.images, "sample_speed": args.steps, "method": "F-PNDM"}
    values |= {"batch_size": args.batch} if args.batch else {}
    experiment, rounds = load(args.config), []
    for _ in range(args.repeat):
        inside.clear()
        with tempfile.TemporaryDirectory() as folder:
            if args.config != "digits.yml":
                torch.manual_seed(0)
                path = Path(folder) / "random.safetensors"
                checkpoint.save(path, load_model(experiment.Model).state_dict(), {"weights": "random"})
                values |= {"model_path": str(path), "features": "none"}
            record = sample.run(replaced(experiment, **values), where, Path(folder) / "run")
        share = 1 - sum(inside) / record["seconds"]
        rounds.append({name: record[name] for name in ("seconds", "images_per_second", "nfe")} | {"outside": share})
        print(f"{record['seconds']:.2f} s, {100 * share:.2f} % outside the network")
    for hook in hooks:
        hook.remove()
    outside = statistics.median(r["outside"] for r in rounds)
    print(f"median {100 * outside:.2f} % outside the network")
    return {"config": args.config, "steps": args.steps, "rounds": rounds, "outside": outside}


def network(args):
    """This project, a plain float32 loop of the same network, and diffusers' PNDM pipeline loop, on the same weights.

    The weights are random. The plain loop stands for the released code: float32, channels first, a time for every
    image, every intermediate image moved to the CPU. Each is alone in a process of its own; each round runs all three
    one after the other, and a product of two square matrices in bfloat16 and in float32, whose rate is what FLOP/s are
    a share of.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from pndm.cli import device
    from pndm.config.schema import load
    from pndm.model.unet import UNet, settings_of

    where = device("auto")
    section = load(args.config).Model
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        UNet(settings_of(section))(torch.zeros(1, *_shape(args.config)), torch.zeros(1))
    flops = counter.get_total_flops() * args.batch
    workers, rounds = {name: _Worker(name, args, where) for name in CONTENDERS}, []
    eps = {name: worker.eps for name, worker in workers.items()}
    for _ in range(args.repeat):
        found = {}
        for name, worker in workers.items():
            seconds, inside = worker.run()
            found[name] = {"calls_per_second": len(inside) / seconds, "outside": 1 - sum(inside) / seconds}
        for dtype in (torch.bfloat16, torch.float32):
            found[f"product_{str(dtype)[6:]}"] = _product_rate(dtype, args.side, where)
        rounds.append(found)
    peaks = {name: worker.end() for name, worker in workers.items()}
    product = {name: statistics.median(r[name] for r in rounds) for name in ("product_bfloat16", "product_float32")}
    print(
        f"{args.config}, batch {args.batch}, {flops / args.batch / 1e9:.3g} GFLOP an image and call; matrix product: "
        "{product_bfloat16:.3g} FLOP/s in bfloat16, {product_float32:.3g} in float32".format(**product)
    )
    print(f"{'':16}  calls/s  images/s   TFLOP/s  of bf16   ratio  outside  memory MiB  rms to plain")
    table = {}
    for name in CONTENDERS:

        def median(of, name=name):
            return statistics.median(of(r[name], r) for r in rounds)

        row = table[name] = {
            "calls_per_second": median(lambda mine, r: mine["calls_per_second"]),
            "images_per_second": median(lambda mine, r: mine["calls_per_second"] * args.batch / CALLS),
            "flops": median(lambda mine, r: mine["calls_per_second"] * flops),
            "share_of_product": median(lambda mine, r: mine["calls_per_second"] * flops / r["product_bfloat16"]),
            "ratio": median(lambda mine, r: mine["calls_per_second"] / r["plain"]["calls_per_second"]),
            "outside": median(lambda mine, r: mine["outside"]),
            "peak_bytes": peaks[name],
            "rms_to_plain": float((eps[name] - eps["plain"]).square().mean().sqrt() / eps["plain"].std()),
        }
        print(
            f"{name:16}{row['calls_per_second']:9.3f}{row['images_per_second']:10.4f}{row['flops'] / 1e12:10.3f}"
            f"{100 * row['share_of_product']:8.0f}%{row['ratio']:8.2f}{100 * row['outside']:8.2f}%"
            f"{row['peak_bytes'] / 2**20:12,.0f}{row['rms_to_plain']:14.1e}"
        )
    print(f"images/s: at {CALLS} calls an image, those of F-PNDM in 50 steps; ratio: to the plain loop")
    return {"config": args.config, "batch": args.batch, "flops": flops, "rounds": rounds, "table": table}


CALLS = 59  # of F-PNDM in 50 steps
CONTENDERS = ("here", "plain", "diffusers")


class _Worker:
    """A process with one contender, which runs its loop when it is told to."""

    def __init__(self, name, args, where):
        import multiprocessing

        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(name, vars(args) | {"function": None}, where, theirs))
        self.process.start()
        theirs.close()  # else the end of the process would go unnoticed
        self.eps = self.pipe.recv()

    def run(self):
        """(seconds of the loop, seconds of each network call)."""
        self.pipe.send(True)
        return self.pipe.recv()

    def end(self):
        """End the process; returns the bytes that it has held at most (on a GPU: there)."""
        self.pipe.send(False)
        return self.pipe.recv()


def _serve(name, args, where, pipe):
    import torch

    from pndm.model.engine import peak

    args = argparse.Namespace(**args)
    loop, network = _contender(name, args, where)
    torch.manual_seed(0)
    x, t = torch.randn(args.batch, *_shape(args.config)).to(where), torch.full((args.batch,), 500.0, device=where)
    with torch.inference_mode():
        pipe.send(network(x, t).float().cpu())
        while pipe.recv():
            pipe.send(_time_loop(loop, network, x, args.steps, where))
    pipe.send(peak(where))


def _shape(config):
    from pndm.config.load import load

    data = load(config).Dataset
    return data.channels, data.image_size, data.image_size


def _contender(name, args, where):
    """A loop(network, x, steps), and its network(x, t) → ε."""
    import torch
    from diffusers import PNDMScheduler, UNet2DModel

    from pndm.config.schema import load
    from pndm.model import load_model
    from pndm.model.engine import Engine, resolve
    from pndm.model.unet import settings_of
    from pndm.runner.solver.methods import solve
    from pndm.runner.solver.schedule import Schedule
    from pndm.runner.solver.transfer import phi

    section, schedule = load(args.config).Model, Schedule()
    torch.manual_seed(0)
    theirs = UNet2DModel(**_diffusers_config(settings_of(section), section.image_size)).eval()

    def ours(network, x, steps):
        for _ in solve("DDIM", network, x, schedule, steps):
            pass

    def released(network, x, steps):
        times = [k * 1000 // steps for k in reversed(range(steps))]
        kept = []
        for t, s in zip(times, [*times[1:], -1], strict=True):
            eps = network(x, torch.full((len(x),), float(t), device=x.device))
            x = phi(x, eps, schedule.alpha_cumprod(t), schedule.alpha_cumprod(s))
            kept.append(x.cpu())

    def diffusers(network, x, steps):
        scheduler = PNDMScheduler(beta_end=0.02, skip_prk_steps=True)
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t), t, x).prev_sample

    if name == "diffusers":
        theirs.to(where)
        return diffusers, lambda x, t: theirs(x, t).sample
    plain = load_model(section, theirs.state_dict(), where)
    if name == "plain":
        return released, plain
    return ours, Engine(plain, where, resolve(args.precision, where), args.compile)


def _diffusers_config(s, size):
    """The arguments of diffusers' UNet2DModel for a DDIM network's settings."""
    levels = range(len(s.multipliers))
    kinds = ["Attn" if level in s.attention else "" for level in levels]
    return {
        "sample_size": size,
        "in_channels": s.in_channels,
        "out_channels": s.out_channels,
        "block_out_channels": tuple(s.channels * m for m in s.multipliers),
        "layers_per_block": s.num_res_blocks,
        "down_block_types": tuple(f"{kind}DownBlock2D" for kind in kinds),
        "up_block_types": tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": s.norm_eps,
    }


def _time_loop(loop, network, x, steps, where):
    """(seconds of the loop, seconds of each network call)."""
    import torch

    inside = []

    def now():
        if where.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(x, t):
        start = now()
        eps = network(x, t)
        inside.append(now() - start)
        return eps

    start = now()
    loop(timed, x, steps)
    return now() - start, inside


def _product_rate(dtype, side, where, repeat=3):
    """FLOP/s of a product of two square matrices: of `repeat` in a row after a first, as the loops are timed."""
    import torch

    def products(product, a, b):
        for _ in range(repeat):
            product(a, b)

    a, b = (torch.randn(side, side, device=where).to(dtype) for _ in range(2))
    a @ b
    seconds, _ = _time_loop(products, torch.matmul, a, b, where)
    return repeat * 2 * side**3 / seconds


def features(args):
    """Images a second through pytorch-fid's Inception, with random weights, from uint8 images of 32×32."""
    import tempfile
    from unittest import mock

    import torch
    from pytorch_fid import inception

    from pndm.cli import device
    from pndm.runner.measure.features import EXTRACTORS

    where = device("auto")
    with (
        mock.patch.object(torch.nn.Module, "load_state_dict"),
        mock.patch.object(inception, "load_state_dict_from_url"),
    ):
        weights = inception.fid_inception_v3().state_dict()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pth"
        torch.save(weights, file)
        extractor = EXTRACTORS["inception"]((3, 32, 32), where, file)
    images = torch.randint(0, 256, (args.images, 3, 32, 32), dtype=torch.uint8)
    extractor(images[:50])
    rates = [args.images / _timed(extractor, images)[0] for _ in range(args.repeat)]
    print(f"{statistics.median(rates):.1f} images/s, the median of {', '.join(f'{rate:.1f}' for rate in rates)}")
    return {"images": args.images, "images_per_second": rates}


def precision(args):
    """How far bfloat16 takes images and distances from float32, for the methods at several steps, on the digits.

    The same noise in both; rms in grey levels of 255, before rounding; distances with their jackknife errors.
    """
    import torch

    from pndm.cli import device
    from pndm.config.schema import load, with_sample
    from pndm.runner import sample
    from pndm.runner.measure.fid import Measurement
    from pndm.runner.processes import Processes

    where = device("auto")
    measurement = Measurement.of(load("digits.yml"), where)
    rows = []
    print(f"{'method':8}{'steps':>6}{'rms':>7}{'float32':>18}{'bfloat16':>18}")
    for method in ("DDIM", "S-PNDM", "F-PNDM", "FON"):
        for steps in (10, 50, 250):
            images, distance = {}, {}
            for name in ("fp32", "bf16"):
                values = {"method": method, "sample_speed": steps, "precision": name, "total_num": args.images}
                experiment = replaced(load("digits.yml"), **values)
                sampler = sample.Sampler(experiment, Processes(where))
                measurement.reset()
                made = []
                for ids in sampler.batches(args.images):
                    made.append(sampler.make(ids, len(ids))())
                    measurement.update(ids, made[-1])
                images[name], card = torch.cat(made), measurement.card()
                distance[name] = {"value": card["value"], "error": card["error"]}
            rms = float((images["fp32"].double() - images["bf16"].double()).square().mean().sqrt())
            rows.append({"method": method, "steps": steps, "rms": rms} | distance)
            shown = "".join(f"{d['value']:11.4f} ± {d['error']:.4f}" for d in distance.values())
            print(f"{method:8}{steps:6}{rms:7.2f}{shown}", flush=True)
    return {"images": args.images, "rows": rows}


def profile(args):
    """Where the time of one network call goes, operator by operator (torch.profiler)."""
    import torch
    from torch.profiler import ProfilerActivity

    from pndm.cli import device

    where = device("auto")
    loop, network = _contender("here", args, where)
    x = torch.randn(args.batch, *_shape(args.config), device=where)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (where.type == "cuda")
    with torch.inference_mode():
        loop(network, x, 2)
        with torch.profiler.profile(activities=activities) as profiler:
            loop(network, x, args.repeat)
    own_time = operator.attrgetter("self_device_time_total" if where.type == "cuda" else "self_cpu_time_total")
    averages = profiler.key_averages()
    total = sum(map(own_time, averages))
    rows = []
    for event in sorted(averages, key=own_time, reverse=True)[:12]:
        share = own_time(event) / total
        rows.append({"operator": event.key, "share": share, "calls": event.count / args.repeat})
        print(f"{event.key:45}{100 * share:7.1f} %{event.count / args.repeat:7.0f} times a call")
    return {"config": args.config, "batch": args.batch, "milliseconds": total / args.repeat / 1000, "rows": rows}


def _pytorch_fid():
    """pytorch-fid's function; for SciPy from 1.18 on, whose `sqrtm` lacks `disp`, with that argument put back."""
    from inspect import signature

    from pytorch_fid import fid_score
    from scipy import linalg

    warnings.filterwarnings("ignore", category=DeprecationWarning)
    if "disp" not in signature(linalg.sqrtm).parameters:
        sqrtm = linalg.sqrtm
        linalg.sqrtm = lambda a, disp=True: sqrtm(a) if disp else (sqrtm(a), 0.0)
    return fid_score.calculate_frechet_distance


def _timed(function, *arguments):
    start = time.perf_counter()
    value = function(*arguments)
    return time.perf_counter() - start, value


def machine():
    """What figures depend on besides the code."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
    } | {name: version(name) for name in ("torch", "numpy", "scipy")}


def positive(text):
    if (value := int(text)) < 1:
        raise ValueError
    return value


def main(argv=None):
    from pndm.config.errors import InputError
    from pndm.config.schema import PRECISIONS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")

    def benchmark(function, **options):
        command = commands.add_parser(function.__name__, help=function.__doc__.splitlines()[0])
        command.set_defaults(function=function)
        command.add_argument("--json", metavar="FILE", help="write the figures there")
        command.add_argument("--repeat", type=positive, default=3, metavar="N", help="rounds (default 3)")
        for name, (default, meaning) in options.items():
            text = f"{meaning} (default {default})"
            command.add_argument(f"--{name}", type=positive, default=default, metavar="N", help=text)
        return command

    benchmark(frechet, dimension=(2048, "of the features"), images=(10_000, "that the moments are of"))
    command = benchmark(sampling, images=(1000, "to make"), steps=(50, "of the method"))
    command.add_argument("--config", default="digits.yml", metavar="NAME.yml", help="the network (default digits.yml)")
    command.add_argument("--batch", type=positive, metavar="N", help="images a network call (default the experiment's)")
    benchmark(features, images=(200, "to describe"))
    benchmark(precision, images=(1000, "for each method, steps and precision"))
    batch = {"batch": (16, "images a network call")}
    rounds = {"steps": (4, "network calls of a round"), "side": (4096, "of the square matrices; on a GPU 8192")}
    for function, more in ((network, rounds), (profile, {})):
        command = benchmark(function, **batch, **more)
        command.add_argument("--config", default="ddim_cifar10.yml", metavar="NAME.yml", help="a DDIM network")
        command.add_argument("--precision", default="auto", choices=PRECISIONS)
        command.add_argument("--compile", action="store_true", help="compile the network of this project")
    args = parser.parse_args(argv)
    try:
        figures = {"benchmark": args.benchmark, **args.function(args), "machine": machine()}
    except InputError as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        sys.exit(2)
    if args.json:
        from pndm.config.files import save_json

        save_json(args.json, figures)


if __name__ == "__main__":
    main()

"""Measure this project against others on the same inputs, alternating, in one run.

    python tools/benchmark.py frechet --json frechet.json
    python tools/benchmark.py sampling --images 1000 --steps 50

Each benchmark prints a table and, with --json FILE, writes its figures and what they were measured on.
"""

import argparse
import os
import platform
import statistics
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))


def frechet(args):
    """`frechet_distance` against pytorch-fid's `calculate_frechet_distance`: seconds, and how far they differ.

    On moments of normal vectors whose variances spread over some three decades, as features' do.
    """
    from runner.metric import frechet_distance

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

    On the bundled digits network, by F-PNDM. The run is that of `--runner sample`, from its first batch to its last
    file; loading the network and the reference come before it.
    """
    import tempfile

    import torch
    from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

    from config.schema import load
    from main import device
    from model.unet import UNet
    from runner import sample

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
    experiment = load("digits.yml", {f"Sample.{name}": (f"--{name}", value) for name, value in values.items()})
    rounds = []
    for _ in range(args.repeat):
        inside.clear()
        with tempfile.TemporaryDirectory() as folder:
            record = sample.run(experiment, where, Path(folder) / "run")
        share = 1 - sum(inside) / record["seconds"]
        rounds.append({name: record[name] for name in ("seconds", "images_per_second", "nfe")} | {"outside": share})
        print(f"{record['seconds']:.2f} s, {100 * share:.2f} % outside the network")
    for hook in hooks:
        hook.remove()
    outside = statistics.median(r["outside"] for r in rounds)
    print(f"median {100 * outside:.2f} % outside the network")
    return {"images": args.images, "steps": args.steps, "rounds": rounds, "outside": outside}


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

    benchmark(frechet, dimension=(2048, "of the features"), images=(10_000, "that the moments are of"))
    benchmark(sampling, images=(1000, "to make"), steps=(50, "of the method"))
    args = parser.parse_args(argv)
    figures = {"benchmark": args.benchmark, **args.function(args), "machine": machine()}
    if args.json:
        from config.files import save_json

        save_json(args.json, figures)


if __name__ == "__main__":
    main()

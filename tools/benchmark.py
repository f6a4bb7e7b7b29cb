"""Measure this project against others on the same inputs, alternating, in one run.

    python tools/benchmark.py frechet --json frechet.json
    python tools/benchmark.py sampling --images 1000 --steps 50
    python tools/benchmark.py network --config ddim_cifar10.yml --batch 16
    python tools/benchmark.py features --images 200
    python tools/benchmark.py precision --images 1000
    python tools/benchmark.py training --config fashion.yml
    python tools/benchmark.py profile --config ddim_cifar10.yml --batch 16
    torchrun --nproc_per_node=2 tools/benchmark.py team
    python tools/benchmark.py gpu --json gpu.json

Each benchmark prints a table and, with --json FILE, writes its figures and what they were measured on.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
import warnings
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import scipy.linalg
import torch
from torch.profiler import ProfilerActivity

from pndm.config.files import save_json
from pndm.config.load import load, replaced
from pndm.config.schema import PRECISIONS
from pndm.model import checkpoint, load_model
from pndm.model.engine import Engine, peak
from pndm.places import device
from pndm.runner import sample
from pndm.runner.build import load_network, sampling_of
from pndm.runner.measure.distance import frechet_distance, standard_error
from pndm.runner.measure.features import Extractor, make_extractor
from pndm.runner.measure.measurement import Measurement
from pndm.runner.measure.reference import moments_of
from pndm.runner.measure.statistics import Statistics
from pndm.runner.processes import end, processes
from pndm.tools import gpu as gpu_tool
from pndm.tools.contenders import Stopwatch, contender, network, own_times, random_inception, shape_of


def frechet(args):
    """`frechet_distance` against pytorch-fid's `calculate_frechet_distance`: seconds, and how far they differ.

    On moments of normal vectors whose variances spread over some three decades, as features' do.
    """
    from pytorch_fid.fid_score import calculate_frechet_distance as theirs

    warnings.filterwarnings("ignore", category=DeprecationWarning)
    sqrtm = scipy.linalg.sqrtm
    if "disp" not in signature(sqrtm).parameters:  # from SciPy 1.18 on; pytorch-fid passes it
        scipy.linalg.sqrtm = lambda a, disp=True: sqrtm(a) if disp else (sqrtm(a), 0.0)
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
    where, call = device("auto"), Engine.__call__

    def timed(*inputs):
        watch.mark()
        eps = call(*inputs)
        watch.mark()
        return eps

    values = {"total_num": args.images, "sample_speed": args.steps, "method": "F-PNDM"}
    values |= {"batch_size": args.batch} if args.batch else {}
    experiment, rounds = load(args.config), []
    for _ in range(args.repeat):
        watch = Stopwatch(where)
        with tempfile.TemporaryDirectory() as folder, mock.patch.object(Engine, "__call__", timed):
            if args.config != "digits.yml":
                torch.manual_seed(0)
                path = Path(folder) / "random.safetensors"
                checkpoint.save(path, load_model(experiment.Model).state_dict(), {"weights": "random"})
                values |= {"model_path": str(path), "features": "none"}
            record = sample.run(replaced(experiment, **values), where, Path(folder) / "run")
        share = 1 - sum(watch.seconds()) / record["seconds"]
        rounds.append({name: record[name] for name in ("seconds", "images_per_second", "nfe")} | {"outside": share})
        print(f"{record['seconds']:.2f} s, {100 * share:.2f} % outside the network")
    outside = statistics.median(r["outside"] for r in rounds)
    print(f"median {100 * outside:.2f} % outside the network")
    return {"config": args.config, "steps": args.steps, "rounds": rounds, "outside": outside}


def features(args):
    """Images a second through pytorch-fid's Inception, with random weights, from uint8 images of 32×32."""
    where = device("auto")
    with tempfile.TemporaryDirectory() as folder:
        extractor = make_extractor("inception", (3, 32, 32), where, random_inception(Path(folder)))
    images = torch.randint(0, 256, (args.images, 3, 32, 32), dtype=torch.uint8)
    extractor(images[:50])
    rates = [args.images / _timed(extractor, images)[0] for _ in range(args.repeat)]
    print(f"{statistics.median(rates):.1f} images/s, the median of {', '.join(f'{rate:.1f}' for rate in rates)}")
    return {"images": args.images, "images_per_second": rates}


def precision(args):
    """How far bfloat16 takes images and distances from float32, for the methods at several steps, on a bundled network.

    The same noise in both. What bfloat16 changes in the images is told in grey levels of 255: the rms, and the mean
    over pixels that are black in either. Distances have their jackknife errors.
    """
    where = device("auto")
    experiment = load(args.config)
    measurement = Measurement.of(experiment.Dataset, experiment.Sample, where)
    rows = []
    print(f"{'method':8}{'steps':>6}{'rms':>7}{'black':>8}{'float32':>18}{'bfloat16':>18}")
    for method in ("DDIM", "S-PNDM", "F-PNDM", "FON"):
        for steps in (10, 50, 250):
            images, distance = {}, {}
            for name in ("fp32", "bf16"):
                values = {"method": method, "sample_speed": steps, "precision": name, "total_num": args.images}
                experiment = replaced(experiment, **values)
                loaded, sampling = load_network(experiment, where), sampling_of(experiment)
                measurement.reset()
                made, size = [], experiment.Sample.batch_size
                for first in range(0, args.images, size):
                    ids = range(first, min(first + size, args.images))
                    made.append(sampling.launch(loaded.network, ids, where).result())
                    measurement.update(ids, made[-1])
                images[name], card = torch.cat(made), measurement.card()
                distance[name] = {"value": card["value"], "error": card["error"]}
            change = images["bf16"].double() - images["fp32"].double()
            black = (images["bf16"] == 0) | (images["fp32"] == 0)
            rms, lighter = float(change.square().mean().sqrt()), float(change[black].mean())
            rows.append({"method": method, "steps": steps, "rms": rms, "black": lighter} | distance)
            shown = "".join(f"{d['value']:11.4f} ± {d['error']:.4f}" for d in distance.values())
            print(f"{method:8}{steps:6}{rms:7.2f}{lighter:8.3f}{shown}", flush=True)
    return {"config": args.config, "images": args.images, "rows": rows}


def training(args):
    """Images a second of training in float32 and bfloat16, the reading of images included.

    Images are noise. Figures are wall time: on a shared machine their ratio says more than they do.
    """
    where, rounds = device("auto"), []
    size = SimpleNamespace(config=args.config, trained=args.batch, batch=args.batch, steps=args.steps)
    size.training = [("fp32", False), ("bf16", False)]
    for _ in range(args.repeat):
        with tempfile.TemporaryDirectory() as folder:
            rows = gpu_tool.training(size, where, Path(folder), None)
        rates = {row["precision"]: row["images_per_second"] for row in rows}
        rounds.append(rates)
        print(", ".join(f"{name} {rate:.3g} images/s" for name, rate in rates.items()), flush=True)
    gain = statistics.median(rates["bf16"] / rates["fp32"] for rates in rounds)
    print(f"median ratio {gain:.2f}")
    return {"config": args.config, "batch": args.batch, "rounds": rounds, "gain": gain}


def profile(args):
    """Where the time of one network call goes, operator by operator (torch.profiler)."""
    where = device("auto")
    loop, network = contender("here", args, where)
    if not args.compile:
        network.network = network.plain  # no operator is seen in a CUDA graph
    x = torch.randn(args.batch, *shape_of(args.config), device=where)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (where.type == "cuda")
    with torch.inference_mode():
        loop(network, x, 2)
        with torch.profiler.profile(activities=activities) as profiler:
            loop(network, x, args.repeat)
    events, rows = own_times(profiler, where), []
    total = sum(own for _, own in events)
    for event, own in events[:12]:
        share = own / total
        rows.append({"operator": event.key, "share": share, "calls": event.count / args.repeat})
        print(f"{event.key:45}{100 * share:7.1f} %{event.count / args.repeat:7.0f} times a call")
    # PyTorch calls it once for a convolution, whichever backend then computes it.
    convolutions = (
        sum(event.count for event in profiler.key_averages() if event.key == "aten::convolution") / args.repeat
    )
    figures = {"config": args.config, "batch": args.batch, "convolutions": convolutions, "rows": rows}
    return figures | {"milliseconds": total / args.repeat / 1000}


def team(args):
    """What statistics cost beside sampling and features, in as many processes as torchrun started.

    Normal vectors stand for features: `images` of them, dealt in batches of 512, and as many for the reference.
    """
    draw = torch.Generator().manual_seed(0)

    def normal(images):
        return torch.randn(len(images), args.dimension, generator=draw)

    extractor = Extractor("normal", args.dimension, None, None, normal)
    blank = Blank([torch.zeros(1, 1, 1, dtype=torch.uint8)] * args.images)
    found = {}
    with processes(torch.device("cpu")) as ranks:
        begun = time.perf_counter()

        def lap(name):
            nonlocal begun
            ranks.wait()
            found[name], begun = time.perf_counter() - begun, time.perf_counter()

        lap("start")
        reference = moments_of(blank, extractor, "cpu", ranks)
        lap("reference")
        sums, spent = Statistics(args.dimension), 0.0
        for first in ranks.deal(range(0, args.images, 512)):
            ids = range(first, min(first + 512, args.images))
            vectors = torch.randn(len(ids), args.dimension, generator=draw)
            spent += _timed(sums.update, vectors, ids)[0]
        lap("updates, with the drawing")
        found["updates alone, a process"] = float(ranks.total(torch.tensor(spent))) / ranks.size
        begun = time.perf_counter()
        sums.gather(ranks)
        lap("gather")
        standard_error(sums, reference.mu, reference.sigma, ranks)
        lap("error")
        with ranks.at_work():
            if ranks.first:
                frechet_distance(*sums.moments(), reference.mu, reference.sigma)
        lap("distance")
        found["most MiB of a process"] = -float(ranks.least(torch.tensor(-peak(ranks.device) / 2**20)))
        if ranks.first:
            print("\n".join(f"{name:28}{value:10.2f}" for name, value in found.items()))
        return {"processes": ranks.size, "images": args.images, "dimension": args.dimension} | found


class Blank(list):
    """Images that nobody looks at."""

    record = {"dataset": "none"}  # noqa: RUF012


def gpu(args):
    """Everything that only a GPU can tell, in at most nine minutes (tools/gpu.py)."""
    return gpu_tool.gpu(args, device("auto"))


def _timed(function, *arguments):
    start = time.perf_counter()
    value = function(*arguments)
    return time.perf_counter() - start, value


def machine():
    """What figures depend on besides the code."""
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
            text = f"{meaning} (default {default})" if default else meaning
            command.add_argument(f"--{name}", type=positive, default=default, metavar="N", help=text)
        return command

    benchmark(frechet, dimension=(2048, "of the features"), images=(10_000, "that the moments are of"))
    command = benchmark(sampling, images=(1000, "to make"), steps=(50, "of the method"))
    command.add_argument("--config", default="digits.yml", metavar="NAME.yml", help="the network (default digits.yml)")
    command.add_argument("--batch", type=positive, metavar="N", help="images a network call (default the experiment's)")
    benchmark(team, images=(50_000, "of each side"), dimension=(2048, "of the features"))
    benchmark(features, images=(200, "to describe"))
    command = benchmark(precision, images=(1000, "for each method, steps and precision"))
    command.add_argument("--config", default="digits.yml", choices=("digits.yml", "fashion.yml"), help="the network")
    command = benchmark(training, batch=(64, "images a step"), steps=(10, "of a round, after five that are not timed"))
    command.add_argument(
        "--config", default="fashion.yml", metavar="NAME.yml", help="the network (default fashion.yml)"
    )
    batch = {"batch": (16, "images a network call")}
    rounds = {"steps": (None, "network calls of a round: 4; on a GPU 50")}
    rounds |= {"side": (None, "of the square matrices: 4096; on a GPU 8192")}
    for function, more in ((network, rounds), (profile, {})):
        command = benchmark(function, **batch, **more)
        command.add_argument("--config", default="ddim_cifar10.yml", metavar="NAME.yml", help="a DDIM network")
        command.add_argument("--precision", default="auto", choices=PRECISIONS)
        command.add_argument("--compile", action="store_true", help="compile the network of this project")
    command = benchmark(gpu, minutes=(9, "after which the part at work is ended"))
    command.add_argument("--small", action="store_true", help="every part at reduced size, on any device")
    args = parser.parse_args(argv)
    if args.json and (Path(args.json).is_dir() or not Path(args.json).resolve().parent.is_dir()):
        parser.error(f"{args.json} must be a file in a folder that exists")
    try:
        figures = {"benchmark": args.benchmark, **args.function(args), "machine": machine()}
    except ValueError as error:  # also an InputError
        parser.exit(2, f"benchmark.py: {error}\n")
    if args.json:
        save_json(args.json, figures)


if __name__ == "__main__":
    main()
    end(0)

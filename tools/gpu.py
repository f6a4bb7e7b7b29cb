"""The benchmark `gpu`: everything that only a GPU can tell, in one command of at most nine minutes.

    python tools/benchmark.py gpu --json gpu.json

On a bare machine: torch with CUDA, what requirements.txt names, and for the part `tests` pytest and hypothesis. Weights
are random and images are noise, so nothing is downloaded. Each part runs in a process of its own, and the file is
written after each: one that fails, or finds no time, leaves its reason in place of its figures.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torchvision.transforms.functional import to_pil_image

from pndm.config.errors import InputError
from pndm.config.files import ROOT, save_json
from pndm.config.load import load, replaced
from pndm.model import backend, checkpoint, kernels, load_model
from pndm.model.engine import Engine, peak
from pndm.runner import sample
from pndm.runner.batches import batches
from pndm.runner.measure.distance import standard_error
from pndm.runner.measure.features import make_extractor
from pndm.runner.measure.statistics import Statistics
from pndm.runner.processes import Processes
from pndm.runner.solver.schedule import Schedule
from pndm.runner.solver.solve import solve
from pndm.runner.train import Trainer
from pndm.tools.contenders import CALLS, KINDS, clock, flops_of, own_times, product_rate, random_inception, shape_of

# Networks: (experiment, images a call, precision, how). "eager" is without CUDA graphs, "plain norms" without the
# Triton kernels; calls of few pixels, such as 128 images of 32×32, are CUDA graphs otherwise.
FULL = SimpleNamespace(
    side=8192,
    calls=10,
    networks=[
        *(("ddim_cifar10.yml", 512, precision, "") for precision in ("fp32", "tf32", "bf16")),
        ("ddim_cifar10.yml", 512, "bf16", "plain norms"),
        *(("ddim_cifar10.yml", n, "bf16", how) for n in (16, 64, 128, 256) for how in ("", "eager")),
        *(("digits.yml", 250, "bf16", how) for how in ("", "eager")),
        *(("fashion.yml", 100, "bf16", how) for how in ("", "eager")),
        ("ddim_celeba.yml", 128, "bf16", ""),
        ("ddim_church.yml", 16, "bf16", ""),
        ("ddim_cifar10.yml", 512, "bf16", "compiled"),
    ],
    profiles=["", "plain norms", "compiled"],
    described=5120,
    dimension=2048,
    config="ddim_cifar10.yml",
    batch=512,
    training=[("fp32", False), ("tf32", False), ("bf16", False), ("bf16", True)],
    trained=256,
    steps=20,
    images=10_240,
    speed=50,
    compile=True,
)
SMALL = SimpleNamespace(
    **vars(FULL)
    | {
        "side": 128,
        "calls": 2,
        "networks": [("digits.yml", 4, "fp32", ""), ("digits.yml", 4, "bf16", "plain norms")],
        "profiles": ["plain norms"],
        "described": 4,
        "dimension": 16,
        "config": "digits.yml",
        "batch": 2,
        "training": [("fp32", False), ("bf16", False)],
        "trained": 8,
        "steps": 2,
        "images": 4,
        "speed": 4,
        "compile": False,
    }
)


def gpu(args, where):
    """All parts in order, until `args.minutes` are over; returns the figures."""
    if where.type != "cuda" and not args.small:
        raise InputError("gpu needs an NVIDIA GPU; --small runs every part, at reduced size, on a CPU")
    size, end, figures = SMALL if args.small else FULL, time.monotonic() + 60 * args.minutes, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, part in PARTS.items():
            begun = time.monotonic()
            try:
                figures[name] = apart(part, size, where, Path(folder), end - begun)
            except TimeoutError:
                figures[name] = {"error": f"no time left of {args.minutes} minutes"}
            show(name, figures[name], time.monotonic() - begun)
            if args.json:
                save_json(args.json, figures)
    return figures


def apart(part, size, where, folder, seconds):
    """What a part returns, in a process of its own: after some errors of CUDA a process can do nothing more.

    Raises TimeoutError when the seconds are over.
    """
    if seconds < 0:
        raise TimeoutError
    context, end = multiprocessing.get_context("spawn"), time.monotonic() + seconds
    mine, theirs = context.Pipe(duplex=False)
    # The part ends what it has started itself, before it is ended.
    process = context.Process(target=answer, args=(part, size, where, folder, end - 5, theirs))
    process.start()
    theirs.close()
    try:
        if not mine.poll(seconds):
            raise TimeoutError
        return mine.recv()
    except EOFError:
        process.join()
        return {"error": f"its process ended with status {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def answer(part, size, where, folder, end, to):
    """Send what a part returns, or its error, through the pipe `to`."""
    backend.start()
    try:
        to.send(part(size, where, folder, end))
    except Exception as error:  # the other parts are worth having
        to.send({"error": f"{type(error).__name__}: {error}"})


def show(name, found, seconds):
    """Print the rows of one part."""
    print(f"\n{name} ({seconds:.0f} s)")
    for row in found if isinstance(found, list) else [found]:
        cells = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
        print("  " + ", ".join(cell for cell in cells if not cell.startswith("profile ")))
        for operator, share in row.get("profile", {}).items():
            print(f"    {100 * share:5.1f} %  {operator[:90]}")
    sys.stdout.flush()


def tests(size, where, folder, end):
    """tests/test_gpu.py in a process of its own; its last line says what passed."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--durations=0", "tests/test_gpu.py"]
    how = {"cwd": ROOT, "env": os.environ | {"PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True}
    done = subprocess.run(command, timeout=max(1, end - time.monotonic()), **how)
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return {"status": done.returncode, "said": (done.stdout.splitlines() or [done.stderr[-300:]])[-1], "failed": failed}


def products(size, where, folder, end):
    """FLOP/s of a product of square matrices; networks are a share of the fastest."""
    rates = {kind: product_rate(getattr(torch, kind), size.side, where) for kind in KINDS}
    if where.type == "cuda":
        with backend.tf32(True):
            rates["tf32"] = product_rate(torch.float32, size.side, where)
    return {"side": size.side} | rates


@torch.inference_mode()
def networks(size, where, folder, end):
    """Calls a second of each network by DDIM's steps, and what the calls consist of."""
    rows, product = [], max(product_rate(getattr(torch, kind), size.side, where) for kind in KINDS)
    for config, n, precision, how in size.networks:
        if rows and time.monotonic() > end - 180:  # the parts that follow are worth more
            break
        engine = x = None  # the one before takes memory
        if where.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        engine = Engine(random_network(config), where, precision, how == "compiled")
        if how == "eager":
            engine.network = engine.plain
        x = torch.randn(n, *shape_of(config), device=where)
        with mock.patch.object(kernels, "fused", lambda device: None) if how == "plain norms" else nullcontext():
            begun = clock(where)
            run(engine, x, 2)
            first = clock(where) - begun
            run(engine, x, size.calls)
            seconds = (clock(where) - begun - first) / size.calls
            row = {"config": config, "batch": n, "precision": precision, "how": how, "milliseconds": 1000 * seconds}
            row |= {
                "images_per_second": n / seconds / CALLS,
                "share_of_product": flops_of(config) * n / seconds / product,
            }
            row |= {"two_first_calls": first, "peak_mib": peak(where) / 2**20}
            if precision == "bf16" and n == max(size.networks[0][1], 4) and how in size.profiles:
                row["profile"] = profiled(engine, x, where)
        rows.append(row)
    return rows


def run(engine, x, steps):
    for _ in solve("DDIM", engine, x, Schedule(), steps):
        pass


def random_network(config):
    torch.manual_seed(0)
    with torch.inference_mode(False):
        return load_model(load(config).Model)


def profiled(engine, x, where):
    """The operators (kernels, on a GPU) that take most of two calls, and their shares."""
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (where.type == "cuda")) as profiler:
        run(engine, x, 2)
    events = own_times(profiler, where)
    total = sum(seconds for _, seconds in events) or 1
    return {event.key: seconds / total for event, seconds in events[:12]}


def measuring(size, where, folder, end):
    """Inception features a second, and what statistics of them cost, on the device where sums are made."""
    extractor = make_extractor("inception", (3, 32, 32), where, random_inception(folder))
    images = torch.randint(0, 256, (size.described, 3, 32, 32), dtype=torch.uint8, device=where)
    extractor.describe(images[:100])
    begun = clock(where)
    extractor.describe(images)
    rate = size.described / (clock(where) - begun)
    features = torch.randn(2 * size.described, size.dimension)
    statistics, begun = Statistics(size.dimension, device=where), clock(where)
    for first in range(0, len(features), 512):
        ids = range(first, min(first + 512, len(features)))
        statistics.update(features[ids.start : ids.stop], ids)
    summed, begun = clock(where) - begun, clock(where)
    standard_error(statistics, torch.zeros(size.dimension).double(), torch.eye(size.dimension).double())
    return {
        "features_per_second": rate,
        "summed_per_second": len(features) / summed,
        "error_seconds": clock(where) - begun,
    }


def training(size, where, folder, end):
    """Images a second of training, the reading of images included."""
    (folder / "images").mkdir()
    channels, height, width = shape_of(size.config)
    noise = np.random.default_rng(0).integers(0, 256, (2 * size.trained, height, width, channels), np.uint8)
    for i, image in enumerate(torch.from_numpy(noise).movedim(3, 1)):
        to_pil_image(image).save(folder / "images" / f"{i}.png")
    rows = []
    for precision, compile in size.training:
        values = {
            "Dataset.dataset": "FOLDER",
            "Dataset.path": str(folder / "images"),
            "Dataset.batch_size": size.trained,
        }
        values |= {"Train.precision": precision, "Train.compile": compile, "Sample.batch_size": size.batch}
        experiment = load(size.config, {key: ("--set", value) for key, value in values.items()})
        trainer = Trainer(experiment, Processes(where), folder / f"{precision}-{compile}")
        more = experiment.Train.seed, 1000, trainer.places, where, 0, size.steps + 5
        stream = batches(trainer.images, experiment.Dataset, *more)
        with backend.tf32(trainer.precision == "tf32"):
            begun = clock(where)
            for batch in islice(stream, 5):
                trainer.step(batch)
            first, begun = clock(where) - begun, clock(where)
            for batch in stream:
                trainer.step(batch)
        seconds = clock(where) - begun
        row = {"precision": precision, "compile": compile, "batch": size.trained, "five_first_steps": first}
        rows.append(row | {"images_per_second": size.steps * size.trained / seconds})
    return rows


def whole(size, where, folder, end):
    """A sampling run to its last file, by F-PNDM in 50 steps: Inception features, statistics, distance, error."""
    checkpoint.save(folder / "network.safetensors", random_network(size.config).state_dict(), {"weights": "random"})
    np.savez(folder / "reference.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    values = {"model_path": str(folder / "network.safetensors"), "statistics": str(folder / "reference.npz")}
    values |= {"features": "inception", "inception_path": str(random_inception(folder)), "total_num": size.images}
    values |= {
        "batch_size": size.batch,
        "method": "F-PNDM",
        "sample_speed": size.speed,
        "keep": 0,
        "compile": size.compile,
    }
    begun = time.monotonic()
    record = sample.run(replaced(load(size.config), **values), where, folder / "run")
    names = ("images", "nfe", "precision", "compile", "seconds", "images_per_second")
    return {name: record[name] for name in names} | {"with_start_and_distance": time.monotonic() - begun}


# The shortest first, so that one that takes long leaves the others their time; `networks` ends in time for `whole`.
PARTS = {part.__name__: part for part in (products, measuring, training, networks, whole, tests)}

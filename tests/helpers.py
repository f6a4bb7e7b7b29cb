"""What several tests share: the folders, the reference networks, a tiny experiment, ways to drive a method."""

import contextlib
import functools
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from data.fill import fill, uniform
from PIL import Image

from pndm.config.load import load
from pndm.model import checkpoint
from pndm.model.settings import settings_of
from pndm.model.unet import UNet
from pndm.runner.measure.statistics import Statistics
from pndm.runner.solver.analytic import GaussianMixture
from pndm.runner.solver.events import Query
from pndm.runner.solver.schedule import Schedule
from pndm.runner.solver.solve import trajectory

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data"
LINEAR = Schedule("linear")
MANIFEST = json.loads((DATA / "manifest.json").read_text())


# Networks of the published configurations, with reproducible weights.


def published_section(name):
    """The `Model` section of a configuration, as it was published."""
    if "config" in MANIFEST[name]:
        return MANIFEST[name]["config"]
    return yaml.safe_load((DATA / f"published_configs/{name}.yml").read_text())["Model"]


@functools.lru_cache(1)
def published_weights(name):
    """Its state dict under the published names, filled with the reference weights."""
    return {tensor: torch.from_numpy(fill(tensor, shape)) for tensor, shape in MANIFEST[name]["tensors"].items()}


def image_size(name):
    return published_section(name).get("image_size") or (16 if "small" in name else 32)


def network_input(n, size):
    """The input of the reference outputs: (n, 3, size, size) float32."""
    x = uniform("x", n * 3 * size * size).reshape(n, 3, size, size) * 1.7320508
    return torch.from_numpy(x.astype(np.float32))


def evaluate(network, size=16, dtype=torch.float32):
    """ε of a network on two images at two times."""
    with torch.inference_mode():
        return network(network_input(2, size).to(dtype), torch.tensor([7.0, 640.5], dtype=dtype))


# Methods on made-up networks.


def made_up(x, t):
    """The network of the reference trajectories."""
    t = t.view(-1, *[1] * (x.ndim - 1))
    return 0.8 * x * torch.cos(t / 400) + 0.3 * torch.sin(3 * x + t / 250)


def reference_noise():
    """The noise of the reference trajectories, float64 (2, 3, 4, 4)."""
    return torch.tensor(uniform("noise", 96).reshape(2, 3, 4, 4) * 1.7320508)


def last(states):
    """The last state of `solve`."""
    *_, state = states
    return state


def asked(method, steps, profile="exact", schedule=LINEAR):
    """Every t that a method asks about, in order."""
    times = []
    events, eps = trajectory(method, torch.zeros(1, 1), schedule, steps, profile), None
    while True:
        try:
            event = events.send(eps)
        except StopIteration:
            return times
        eps = None
        if isinstance(event, Query):
            times.append(event.t)
            eps = event.x * 0


def mixture(schedule, components, seed=0):
    """A Gaussian mixture in four dimensions, as a network, and noise for eight of its images."""
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=rng)  # noqa: E731
    return GaussianMixture(schedule, draw(components, 4), 0.05 + 0.3 * draw(components, 4).abs()), draw(8, 4)


# Runs of the command line.


class Tiny:
    """A small network with random weights on 8×8 images, as files of an experiment and a checkpoint."""

    def __init__(self, folder):
        tree = yaml.safe_load((ROOT / "config" / "digits.yml").read_text())
        tree["Model"] |= {"ch": 32, "ch_mult": [1], "attn_resolutions": []}
        tree["Sample"] |= {"total_num": 10, "batch_size": 4, "sample_speed": 4}
        tree["Sample"]["model_path"] = str(folder / "tiny.safetensors")
        self.config = folder / "tiny.yml"
        self.config.write_text(yaml.safe_dump(tree))
        torch.manual_seed(0)
        self.network = UNet(settings_of(load(str(self.config)).Model))
        self.model = folder / "tiny.safetensors"
        checkpoint.save(self.model, self.network.state_dict(), {"weights": "raw"})
        images = write_images(folder / "images", coloured_images(0, 96)[..., 0])
        # In place of the 1,797 digits: three steps of 32 images, or of 30, are an epoch, too, and take little time.
        self.few_images = ["--set", "Dataset.dataset=FOLDER", "--set", f"Dataset.path={images}"]

    def flags(self, folder, *more):
        """The command line of a sampling run into `folder`."""
        return ["--config", str(self.config), "--device", "cpu", "--image_path", str(folder), *more]


def process(*flags, launcher=(), **more):
    """Start main.py in a process of its own, with pipes; `launcher`: arguments between Python and main.py."""
    command = [sys.executable, *launcher, str(ROOT / "main.py"), *map(str, flags)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, **({"preexec_fn": attended} | more))


def torchrun(count, *flags, launcher=(), **more):
    """Start main.py on `count` processes of this machine, in a session of their own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}", *launcher]
    return process(*flags, launcher=launcher, **({"start_new_session": True} | more))


def ranks(count, *flags):
    """Start main.py as `count` ranks that have each other alone, without a torchrun, which takes seconds to start."""
    return [process(*flags, env=place) for place in places(count)]


def places(count):
    """The environment of each of `count` ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    return [os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def ended(runs, timeout=300):
    """(exit status, stderr) of each rank, once all have ended."""
    said = [run.communicate(timeout=timeout)[1] for run in runs]
    return [(run.returncode, err) for run, err in zip(runs, said, strict=True)]


def workers_of(run):
    """Process ids of what a torchrun has started; they are in sessions of their own and outlive it."""
    with contextlib.suppress(OSError):  # where the kernel lists them: pgrep takes a core from those it looks for
        threads = Path(f"/proc/{run.pid}/task").iterdir()
        return [int(pid) for thread in threads for pid in (thread / "children").read_text().split()]
    found = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def attended():
    """In a new process: let Ctrl-C work, which a shell switches off for what it runs in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def image_files(folder):
    """Name → bytes of the images in a run's folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("[0-9]*.png"))}


# Images and features.


def write_images(folder, images):
    """Write uint8 images (n, H, W, 3) or (n, H, W) as PNG; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    return folder


def coloured_images(seed, n, size=8, contrast=1.0):
    """Smooth uint8 images (n, size, size, 3) with noise."""
    rng = np.random.default_rng(seed)
    smooth = np.kron(rng.normal(128, 40 * contrast, (n, 4, 4, 3)), np.ones((1, size // 4, size // 4, 1)))
    return np.clip(smooth + rng.normal(0, 20, smooth.shape), 0, 255).astype(np.uint8)


def statistics_of(features, groups=20, batch=None):
    """`Statistics` of features (n, d), numbered from 0 on, a batch at a time."""
    features = torch.as_tensor(np.asarray(features, np.float64))
    total = Statistics(features.shape[1], groups)
    for first in range(0, len(features), batch or len(features)):
        part = features[first : first + (batch or len(features))]
        total.update(part, range(first, first + len(part)))
    return total


def scheduler_of(name, **settings):
    """A scheduler of diffusers; the test is skipped where the installed release lacks it or one of its settings."""
    kind = getattr(pytest.importorskip("diffusers"), name, None)
    if kind is None or not settings.keys() <= inspect.signature(kind.__init__).parameters.keys():
        pytest.skip(f"this release of diffusers has no {name} with {', '.join(settings)}")
    return kind(**settings)

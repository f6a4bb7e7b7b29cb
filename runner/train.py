"""Train a network to predict ε from √ᾱ_t · x_0 + √(1−ᾱ_t) · ε.

    python main.py --runner train --config digits.yml --train_path temp/train
    python main.py --runner train --config digits.yml --train_path temp/train --restart
    torchrun --nproc_per_node=8 main.py --runner train --config ddim_cifar10.yml --train_path temp/train

Everything random in step n follows from the seed and n alone, for the whole batch, of which each process takes
its part: a restart needs no stored random state and continues bit for bit, and the number of processes changes
the result by rounding alone. The folder holds the last checkpoints (`train-STEP.ckpt`, everything needed to
continue), `ema.safetensors` (the averaged network, for --model_path), `best.safetensors` (the average with the
least distance so far) and TensorBoard's files.
"""

import contextlib
import itertools
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from pndm.config.errors import InputError
from pndm.config.files import aside
from pndm.dataset import encode, open_dataset
from pndm.model import checkpoint
from pndm.model.ema import EMA
from pndm.model.engine import tf32
from pndm.model.unet import UNet, settings_of
from pndm.runner.build import sampling_of, schedule_of
from pndm.runner.folder import grid
from pndm.runner.measure.fid import Measurement
from pndm.runner.processes import processes
from pndm.runner.random import generator
from pndm.runner.solver.events import NotFinite

KEEP = 3  # checkpoints


def run(experiment, device, folder, restart=False, timeout=None):
    """Train `experiment` (a validated `Experiment`) on `device` in `folder` (a path). Raises InputError.

    timeout: minutes that a process waits for another. When torchrun restarts the processes, they continue.
    """
    with processes(device, timeout) as team:
        restart = restart or (team.restarted() and any(Path(folder).glob("train-*.ckpt")))
        Trainer(experiment, team, Path(folder), restart).train()


def check(experiment):
    """Raise InputError if the sampling that training does on the way cannot be done."""
    sampling_of(experiment)
    train, settings = experiment.Train, experiment.Sample
    if settings.batch_size == "auto":
        raise InputError("Sample.batch_size: auto is for --runner sample; training needs a number")
    if train.distance_num and (train.distance_num < 2 or settings.features == "none"):
        raise InputError("Train.distance_num: needs at least 2 images, and Sample.features")


def batches_of(images, dataset):
    """The number of whole batches of a `Dataset` section in its images. Raises InputError if there is none."""
    if len(images) < dataset.batch_size:
        raise InputError(f"Dataset.batch_size {dataset.batch_size} is above the {len(images)} images")
    return len(images) // dataset.batch_size


class Trainer:
    """State of one training run: network, average, optimizer, and the number of steps done."""

    def __init__(self, experiment, team, folder, restart=False):
        self.experiment, self.team, self.folder = experiment, team, folder
        self.device = team.device
        files = sorted(folder.glob("train-*.ckpt"), reverse=True)
        if files and not restart:
            raise InputError(f"--train_path: {folder} holds a training run; --restart continues it")
        if restart and not files:
            raise InputError(f"--restart: no train-STEP.ckpt in {folder} to continue from")
        dataset, train = experiment.Dataset, experiment.Train
        self.schedule, self.sampling = schedule_of(experiment), sampling_of(experiment)
        check(experiment)
        self.images = open_dataset(dataset)
        self.batches = batches_of(self.images, dataset)
        if dataset.batch_size < team.size:
            raise InputError(f"Dataset.batch_size {dataset.batch_size} is below the {team.size} processes")
        cuts = [rank * dataset.batch_size // team.size for rank in (team.rank, team.rank + 1)]
        self.part = slice(*cuts)  # this process's images of every batch

        self.measurement = Measurement.of(experiment, self.device) if train.distance_num else None

        torch.manual_seed(train.seed)
        self.network = UNet(settings_of(experiment.Model)).to(self.device)
        self.ema = EMA(self.network, train.ema_rate if train.ema else 0.0)
        self.optimizer = _optimizer(self.network, experiment.Optim)
        self.step, self.best = 0, float("inf")
        if restart:
            self._load(files)
        self.parallel = self.network
        if team.size > 1:
            self.parallel = DistributedDataParallel(self.network)

    def train(self):
        """Train to the end of the last epoch; raises KeyboardInterrupt, with a checkpoint kept, when told to stop."""
        train, dataset, first = self.experiment.Train, self.experiment.Dataset, self.team.first
        total = train.epoch * self.batches
        self.folder.mkdir(parents=True, exist_ok=True)
        order = itertools.islice(_order(len(self.images), dataset.batch_size, train.seed), self.step, total)
        mine = (batch[self.part] for batch in order)
        loader = DataLoader(self.images, batch_sampler=mine, num_workers=dataset.num_workers)
        quiet = None if first else True
        progress = tqdm(loader, initial=self.step, total=total, unit="step", dynamic_ncols=True, disable=quiet)
        with contextlib.ExitStack() as stack:
            stack.enter_context(tf32(False))
            stop = stack.enter_context(_soft_stop(self.team))
            stops = self.team.announce(lambda: stop.asked)
            log = None
            if first:
                log = stack.enter_context(contextlib.closing(SummaryWriter(self.folder, purge_step=self.step + 1)))
            for images in progress:
                loss, norm = self._step(images)
                stopped, stops = stops(), self.team.announce(lambda: stop.asked)
                logs = self.step % train.log_interval == 0
                saves = self.step % train.checkpoint_interval == 0 or self.step == total or stopped
                if (logs or saves) and not norm.isfinite():
                    raise InputError(f"the gradient is not finite at step {self.step}; a smaller Optim.lr may help")
                if logs:
                    loss = self.team.total(loss).item()
                    progress.set_postfix(loss=f"{loss:.3f}", refresh=False)
                    if first:
                        log.add_scalar("loss", loss, self.step)
                        log.add_scalar("gradient_norm", norm, self.step)
                        log.add_scalar("learning_rate", self.optimizer.param_groups[0]["lr"], self.step)
                if self.step % train.sample_interval == 0:
                    self._sample(log)
                if first and saves:
                    self._save()
                if stopped:
                    raise KeyboardInterrupt

    def _step(self, images):
        """One step on this process's uint8 images (n, C, H, W) of the batch.

        Returns this process's share of the loss and the gradient's norm, tensors on the device.
        """
        train, optim = self.experiment.Train, self.experiment.Optim
        n, total = self.experiment.Dataset.batch_size, self.schedule.diffusion_step
        rng = generator(train.seed, "batch", self.step)
        # Antithetic times, as in the released code: half are drawn, half mirrored.
        times = rng.integers(0, total, n // 2 + 1)
        times = np.concatenate([times, total - 1 - times])[:n][self.part]
        x0 = self._augment(images, rng).to(self.device)
        eps = torch.from_numpy(rng.standard_normal((n, *x0.shape[1:]), np.float32)[self.part]).to(self.device)
        alpha = torch.from_numpy(self.schedule.alphas_cumprod[times]).float().to(self.device)[:, None, None, None]
        x, t = alpha.sqrt() * x0 + (1 - alpha).sqrt() * eps, torch.from_numpy(times).to(self.device)
        torch.manual_seed(int(generator(train.seed, "dropout", self.step).integers(2**62)) + self.team.rank)

        self.network.train()
        self.optimizer.zero_grad()
        losses = []
        size = train.micro_batch or len(x)
        for first in range(0, len(x), size):
            micro = slice(first, first + size)
            # Processes exchange gradients once a step, in the last backward pass.
            waiting = self.team.size > 1 and first + size < len(x)
            with self.parallel.no_sync() if waiting else contextlib.nullcontext():
                with torch.autocast(self.device.type, torch.bfloat16, enabled=train.precision == "bf16"):
                    error = self.parallel(x[micro], t[micro]).float() - eps[micro]
                loss = (error.abs() if train.loss_type == "linear" else error**2).sum() / n
                (loss * self.team.size).backward()  # DistributedDataParallel averages over processes
            losses.append(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), optim.grad_clip or float("inf"))
        for group in self.optimizer.param_groups:
            group["lr"] = optim.lr * min(1.0, (self.step + 1) / max(1, train.warmup))
        self.optimizer.step()
        self.step += 1
        self.ema.update(self.network, self.step)
        return sum(losses), norm

    def _augment(self, images, rng):
        """This process's images as the network sees them, flipped and dequantized; draws for the whole batch."""
        d = self.experiment.Dataset
        n, shape = d.batch_size, tuple(images.shape[1:])
        if d.random_flip:
            flip = torch.from_numpy(rng.random(n)[self.part] < 0.5)
            images = torch.where(flip[:, None, None, None], images.flip(3), images)
        levels = images.float()
        if d.uniform_dequantization:
            levels = (levels + torch.from_numpy(rng.random((n, *shape), np.float32)[self.part])) * (255 / 256)
        if d.gaussian_dequantization:
            levels = levels + 2.55 * torch.from_numpy(rng.standard_normal((n, *shape), np.float32)[self.part])
        return encode(levels, d)

    @torch.inference_mode()
    def _sample(self, log):
        """Write a grid of the average's images, and their distance if `distance_num` says so; keep the best average.

        The images are those a sampling run of the experiment would make; every process makes its share.
        """
        e = self.experiment
        failed = False
        try:
            if log:
                log.add_image("sample", grid(torch.cat([images for _, images in self._images(range(64))])), self.step)
            for ids, images in self._images(range(e.Train.distance_num), self.team.share):
                self.measurement.update(ids, images)
        except NotFinite as error:
            failed = True
            print(f"no sample at step {self.step}: {error}", file=sys.stderr)
        if not e.Train.distance_num:
            return
        if self.team.total(torch.tensor(float(failed))):
            self.measurement.reset()
            return
        self.measurement.gather(self.team)
        if log:
            value = self.measurement.card()["value"]
            log.add_scalar(f"frechet_{e.Sample.features}", value, self.step)
            if value < self.best:
                self.best = value
                self._save_average("best.safetensors")
        self.measurement.reset()

    def _images(self, ids, share=lambda batches: batches):
        """(ids, images) by the average, batch after batch of those that `share` leaves."""
        size = self.experiment.Sample.batch_size
        for first in share(range(0, len(ids), size)):
            batch = ids[first : first + size]
            yield batch, self.sampling.launch(self.ema.network, batch, self.device).result()

    def _measured(self):
        """What makes two distances of averages comparable."""
        e = self.experiment
        beside = {"model_path", "inception_path", "total_num", "keep", "precision", "compile"}
        return {"distance_num": e.Train.distance_num, **e.Sample.model_dump(exclude=beside)}

    def _save(self):
        state = {
            "model": self.network.state_dict(),
            "ema": self.ema.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "best": self.best,
            "measured": self._measured(),
            "experiment": self.experiment.model_dump(),
        }
        with aside(self.folder / f"train-{self.step:08d}.ckpt") as file, open(file, "wb") as handle:
            try:
                torch.save(state, handle)
            except RuntimeError as error:  # what PyTorch's writer makes of an error of the file's, a full disk say
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
        self._save_average("ema.safetensors")
        for old in sorted(self.folder.glob("train-*.ckpt"))[:-KEEP]:
            old.unlink()

    def _save_average(self, name):
        e = self.experiment
        sections = {name: getattr(e, name).model_dump() for name in ("Schedule", "Dataset", "Model")}
        metadata = {"weights": "EMA" if e.Train.ema else "raw", "step": self.step, **sections}
        checkpoint.save(self.folder / name, self.ema.network.state_dict(), metadata)

    def _load(self, files):
        """Continue from the first of `files` that is whole."""
        for file in files:
            try:
                self._take(checkpoint.unpickle(file), file)
                break
            except _Different:
                raise
            except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
                if not isinstance(error, InputError):
                    error = InputError(f"{file}: not a checkpoint of a training run, or damaged")
                if file == files[-1]:
                    raise error from None
                print(f"{error}; going on from the checkpoint before it", file=sys.stderr)

    def _take(self, state, file):
        """Go on from a checkpoint's `state`. Raises _Different where it is of another run."""
        for section, mine in self.experiment.model_dump().items():
            for name, value in mine.items():
                theirs = state["experiment"].get(section, {}).get(name)
                if theirs != value and section != "Sample" and name not in _FREE:
                    raise _Different(f"--restart: {section}.{name} is {value!r}, {file} was trained with {theirs!r}")
        self.network.load_state_dict(state["model"])
        self.ema.network.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        if state.get("measured", self._measured()) == self._measured():
            self.best = state["best"]


class _Different(InputError):
    """A checkpoint is sound, and of another run."""


class _soft_stop:
    """While in this context, the first SIGINT or SIGTERM sets `asked`, so that the step under way is finished.

    A second one ends a process that is alone. Of several, each is told by torchrun as well as by whoever told that.
    """

    def __init__(self, team):
        self.team = team

    def __enter__(self):
        self.asked = False
        self.before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, *_):
        self.asked = True
        if self.team.size == 1:
            self.__exit__()

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)


# What may differ between the parts of one training run.
_FREE = {
    "epoch",
    "micro_batch",
    "log_interval",
    "sample_interval",
    "checkpoint_interval",
    "distance_num",
    "num_workers",
    "path",
}


def _order(count, batch_size, seed):
    """Batches of image numbers, epoch after epoch; the images left over at the end of one are skipped."""
    for epoch in itertools.count():
        order = generator(seed, "order", epoch).permutation(count)
        for first in range(0, count - batch_size + 1, batch_size):
            yield order[first : first + batch_size].tolist()


def _optimizer(network, optim):
    if optim.optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), optim.lr, momentum=0.9, weight_decay=optim.weight_decay)
    return torch.optim.Adam(
        network.parameters(), optim.lr, (optim.beta1, 0.999), optim.eps, optim.weight_decay, optim.amsgrad, fused=True
    )

"""Train a network to predict ε from √ᾱ_t · x_0 + √(1−ᾱ_t) · ε.

    python main.py --runner train --config digits.yml --train_path temp/train
    python main.py --runner train --config digits.yml --train_path temp/train --restart

Everything random in step n follows from the seed and n alone, so that a restart needs no stored random state
and continues bit for bit. The folder holds `train.ckpt` (everything needed to continue), `ema.safetensors`
(the averaged network, for --model_path) and TensorBoard's files.
"""

import contextlib
import itertools
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from config.errors import InputError
from dataset import decode, encode, open_dataset
from model import checkpoint
from model.ema import EMA
from model.unet import UNet, settings_of
from runner.method import solve
from runner.random import generator, noise
from runner.sample import grid, solver_options
from runner.schedule import Schedule


def run(experiment, device, folder, restart=False):
    """Train `experiment` (a validated `Experiment`) on `device` in `folder` (a path). Raises InputError."""
    trainer = Trainer(experiment, device, Path(folder), restart)
    trainer.train()


class Trainer:
    """State of one training run: network, average, optimizer, and the number of steps done."""

    def __init__(self, experiment, device, folder, restart):
        self.experiment, self.device, self.folder = experiment, device, folder
        self.file = folder / "train.ckpt"
        if self.file.exists() and not restart:
            raise InputError(f"--train_path: {folder} holds a training run; --restart continues it")
        if restart and not self.file.exists():
            raise InputError(f"--restart: no {self.file} to continue from")
        s = experiment.Schedule
        self.schedule = Schedule(s.type, s.beta_start, s.beta_end, s.diffusion_step)
        self.images = open_dataset(experiment.Dataset)
        self.batches = len(self.images) // experiment.Dataset.batch_size
        if not self.batches:
            raise InputError(
                f"Dataset.batch_size {experiment.Dataset.batch_size} is above the {len(self.images)} images"
            )

        torch.manual_seed(experiment.Train.seed)
        self.network = UNet(settings_of(experiment.Model)).to(device)
        self.ema = EMA(self.network, experiment.Train.ema_rate if experiment.Train.ema else 0.0)
        self.optimizer = _optimizer(self.network, experiment.Optim)
        self.step = 0
        if restart:
            self._load()

    def train(self):
        train, dataset = self.experiment.Train, self.experiment.Dataset
        total = train.epoch * self.batches
        self.folder.mkdir(parents=True, exist_ok=True)
        order = itertools.islice(_order(len(self.images), dataset.batch_size, train.seed), self.step, total)
        loader = DataLoader(self.images, batch_sampler=order, num_workers=dataset.num_workers)
        log = SummaryWriter(self.folder, purge_step=self.step + 1)
        progress = tqdm(loader, initial=self.step, total=total, unit="step", dynamic_ncols=True, disable=None)
        with contextlib.closing(log):
            for images in progress:
                loss, norm = self._step(images)
                if self.step % train.log_interval == 0:
                    progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
                    log.add_scalar("loss", loss, self.step)
                    log.add_scalar("gradient_norm", norm, self.step)
                    log.add_scalar("learning_rate", self.optimizer.param_groups[0]["lr"], self.step)
                if self.step % train.sample_interval == 0:
                    log.add_image("sample", self._sample(), self.step)
                if self.step % train.checkpoint_interval == 0 or self.step == total:
                    if not loss.isfinite():
                        raise InputError(f"the loss is {loss.item()} at step {self.step}; a smaller Optim.lr may help")
                    self._save()

    def _step(self, images):
        """One step on uint8 images (n, C, H, W). Returns loss and gradient norm, tensors on the device."""
        train, optim = self.experiment.Train, self.experiment.Optim
        n, total = len(images), self.schedule.diffusion_step
        rng = generator(train.seed, "batch", self.step)
        # Antithetic times, as in the released code: half are drawn, half mirrored.
        times = rng.integers(0, total, n // 2 + 1)
        times = np.concatenate([times, total - 1 - times])[:n]
        x0 = self._augment(images, rng).to(self.device)
        eps = torch.from_numpy(rng.standard_normal(x0.shape, np.float32)).to(self.device)
        alpha = torch.from_numpy(self.schedule.alphas_cumprod[times]).float().to(self.device)[:, None, None, None]
        t = torch.from_numpy(times).to(self.device)
        torch.manual_seed(int(generator(train.seed, "dropout", self.step).integers(2**63)))

        self.network.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=train.precision == "bf16"):
            predicted = self.network(alpha.sqrt() * x0 + (1 - alpha).sqrt() * eps, t).float()
        error = predicted - eps
        loss = (error.abs() if train.loss_type == "linear" else error**2).sum((1, 2, 3)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), optim.grad_clip or float("inf"))
        for group in self.optimizer.param_groups:
            group["lr"] = optim.lr * min(1.0, (self.step + 1) / max(1, train.warmup))
        self.optimizer.step()
        self.step += 1
        self.ema.update(self.network, self.step)
        return loss.detach(), norm

    def _augment(self, images, rng):
        d = self.experiment.Dataset
        if d.random_flip:
            flip = torch.from_numpy(rng.random(len(images)) < 0.5)
            images = torch.where(flip[:, None, None, None], images.flip(3), images)
        if not (d.uniform_dequantization or d.gaussian_dequantization):
            return encode(images, d)
        levels = images.float()
        if d.uniform_dequantization:
            levels = (levels + torch.from_numpy(rng.random(levels.shape, np.float32))) * (255 / 256)
        if d.gaussian_dequantization:
            levels = levels + 2.55 * torch.from_numpy(rng.standard_normal(levels.shape, np.float32))
        return encode(levels, d)

    @torch.no_grad()
    def _sample(self):
        """A grid of 64 images by the experiment's method, from the average; the noise is that of a sampling run."""
        e = self.experiment
        shape = (e.Dataset.channels, e.Dataset.image_size, e.Dataset.image_size)
        x = torch.from_numpy(noise(e.Sample.seed, range(64), shape)).to(self.device)
        for state in solve(
            e.Sample.method,
            self.ema.network,
            x,
            self.schedule,
            e.Sample.sample_speed,
            e.Sample.profile,
            **solver_options(e),
        ):
            x = state.x
        return grid(decode(x.cpu(), e.Dataset))

    def _save(self):
        state = {
            "model": self.network.state_dict(),
            "ema": self.ema.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "experiment": self.experiment.model_dump(),
        }
        aside = self.file.with_name(f".{self.file.name}.tmp")
        torch.save(state, aside)
        aside.replace(self.file)
        metadata = {"weights": "EMA", "step": str(self.step), "Model": self.experiment.Model.model_dump()}
        checkpoint.save(self.folder / "ema.safetensors", self.ema.network.state_dict(), metadata)

    def _load(self):
        state = checkpoint.unpickle(self.file)
        for section, mine in self.experiment.model_dump().items():
            for name, value in mine.items():
                theirs = state["experiment"].get(section, {}).get(name)
                if theirs != value and section != "Sample" and name not in _FREE:
                    raise InputError(
                        f"--restart: {section}.{name} is {value!r}, {self.file} was trained with {theirs!r}"
                    )
        self.network.load_state_dict(state["model"])
        self.ema.network.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


# What may differ between the parts of one training run.
_FREE = {"epoch", "log_interval", "sample_interval", "checkpoint_interval", "num_workers", "path"}


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

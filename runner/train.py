"""Train a network to predict ε from √ᾱ_t · x_0 + √(1−ᾱ_t) · ε.

    python main.py --runner train --config digits.yml --train_path temp/train
    python main.py --runner train --config digits.yml --train_path temp/train --restart
    torchrun --nproc_per_node=8 main.py --runner train --config ddim_cifar10.yml --train_path temp/train

A restart continues bit for bit (on the same machine), and the number of processes changes the result by rounding
alone, but for what dropout leaves out: `batches` says why. `checkpoints` says what is in the folder, beside
TensorBoard's files.
"""

import contextlib
import signal
import time
import warnings
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from pndm.config.errors import InputError, first_line
from pndm.dataset import open_dataset
from pndm.model import checkpoint, load_model
from pndm.model.backend import compiled, tf32
from pndm.model.ema import EMA
from pndm.model.engine import resolve
from pndm.model.settings import settings_of
from pndm.model.trained import check_prediction, check_training
from pndm.model.unet import UNet
from pndm.runner.advice import attention_nowhere
from pndm.runner.batches import batches, steps_of
from pndm.runner.build import checkpoint_path, schedule_of
from pndm.runner.checkpoints import TrainFolder, begun_by_this_torchrun
from pndm.runner.preview import Preview, check, comparable
from pndm.runner.processes import processes
from pndm.runner.progress import Progress
from pndm.runner.random import generator
from pndm.runner.trainlog import Log, Meter

FIRST_GRID = 100  # steps before the first grid of images
LOOK = 20, 5.0  # steps, and seconds, at most between two looks at whether a process is told to stop, on several GPUs


def run(experiment, device, folder, restart=False, timeout=None, minutes=None):
    """Train `experiment` (a validated `Experiment`) on `device` in `folder` (a path). Raises InputError.

    timeout: minutes that a process waits for another. minutes: after these the run ends with a checkpoint, as if it
    were finished. When torchrun starts the processes again after a failure, they continue what it began.
    """
    with processes(device, timeout) as team:
        path = Path(folder)
        again = team.restarted()
        restart = restart or team.any(again and begun_by_this_torchrun(path))
        try:
            Trainer(experiment, team, path, restart).train(minutes)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            message = f"a process that reads images has ended ({first_line(error)})"
            raise InputError(message, "Dataset.num_workers") from error


def weights_of(experiment, schedule):
    """The state of the network in Train.start, a path or a published name. Raises InputError."""
    try:
        source = checkpoint.read(checkpoint_path(experiment.Train.start))
        check_prediction(source, "training here is for ε")
        check_training(source, experiment, schedule)
        return load_model(experiment.Model, source, schedule=schedule).state_dict()
    except InputError as error:
        raise InputError(str(error), "Train.start") from None


class Trainer:
    """One training run: network, average, optimizer, and `done`, the number of steps done."""

    def __init__(self, experiment, team, folder, restart=False):
        self.experiment, self.team, self.device = experiment, team, team.device
        self.folder = TrainFolder(folder, restart)
        train, n = experiment.Train, experiment.Dataset.batch_size
        self.schedule = schedule_of(experiment)
        check(experiment)
        if team.first and not restart:
            attention_nowhere(experiment.Model)
        self.precision = resolve(train.precision, self.device, key="Train.precision")
        self.images = open_dataset(experiment.Dataset)
        self.steps = steps_of(experiment, len(self.images))
        if n < team.size:
            raise InputError(f"batch_size {n} is below the {team.size} processes", "Dataset.batch_size")
        self.places = range(team.rank * n // team.size, (team.rank + 1) * n // team.size)
        self.stop = Stop(team)
        self.preview = Preview(experiment, team, self._attend)

        torch.manual_seed(train.seed)
        self.network = UNet(settings_of(experiment.Model), self.schedule).to(self.device)
        if self.device.type == "cuda":  # on CPUs the gradients of group norms are slow in this layout
            self.network.to(memory_format=torch.channels_last)
        if train.start and not restart:
            self.network.load_state_dict(weights_of(experiment, self.schedule))
        self.ema = EMA(self.network, train.ema_rate if train.ema else 0.0)
        self.optimizer = _optimizer(self.network, experiment.Optim)
        self.done, self.best = 0, float("inf")
        if restart:
            self.folder.load(experiment, self._take, team.first)
        self.parallel = compiled(self.network, self.device, "Train.compile") if train.compile else self.network
        if team.size > 1:
            warnings.filterwarnings("ignore", "Grad strides do not match")  # those of 1×1 convolutions are arbitrary
            self.parallel = DistributedDataParallel(self.parallel)
        alphas = torch.from_numpy(self.schedule.alphas_cumprod)  # float64, in which 1 − ᾱ keeps its digits
        self.levels = torch.stack([alphas, alphas.sqrt(), (1 - alphas).sqrt()]).float().to(self.device)
        self.meter = Meter(self.schedule.diffusion_step, self.device)
        self.clipped = torch.zeros((), device=self.device)  # steps whose gradient was shortened, since the last log

    def train(self, minutes=None):
        """Train to the last step, or for `minutes`; both end with a checkpoint.

        Raises KeyboardInterrupt, with a checkpoint kept, when told to stop.
        """
        if self.done >= self.steps:
            if self.team.first:
                if self.folder.step_of("ema.safetensors") != self.done:  # a kill after the last checkpoint leaves that
                    with self.folder.locked():
                        self._save_average()
                print(f"{self.folder.path}: all {self.done:,} steps are done")
            return
        e, team = self.experiment, self.team
        end = time.monotonic() + 60 * minutes if minutes else float("inf")
        prepared = batches(
            self.images,
            e.Dataset,
            e.Train.seed,
            self.schedule.diffusion_step,
            self.places,
            self.device,
            self.done,
            self.steps,
        )
        with contextlib.ExitStack() as stack:
            stack.enter_context(tf32(self.precision == "tf32"))
            stack.enter_context(self.stop)
            if team.first:
                stack.enter_context(self.folder.locked())
            self.progress = stack.enter_context(Progress(team, self.steps, " steps", "training", self.done))
            log = stack.enter_context(contextlib.closing(Log(self.folder.path, e, team, self.progress, self.done)))
            log.expect(self.steps, end)
            for batch in stack.enter_context(contextlib.closing(prepared)):
                norm = self.step(batch)
                self.progress.add(int(team.first))
                stopped = self.stop.told(team.first and time.monotonic() > end)
                self._look(log, norm, stopped)
                if stopped:
                    break
        if team.any(self.stop.asked):
            raise KeyboardInterrupt
        if team.first:
            print(f"{self.done:,} steps of {e.Dataset.batch_size} images")
            grid = ", grid.png" * (self.folder.path / "grid.png").is_file()
            print(f"{self.folder.path}: ema.safetensors (for --model_path){grid}")

    def step(self, batch):
        """One step on this process's `Batch`; returns the gradient's norm, a tensor on the device."""
        train, optim = self.experiment.Train, self.experiment.Optim
        alpha, signal, noise = self.levels[:, batch.t, None, None, None]
        weight = (1 / alpha).clamp(max=train.loss_weight)
        x = signal * batch.x0 + noise * batch.eps
        torch.manual_seed(int(generator(train.seed, "dropout", self.done).integers(2**62)) + self.team.rank)

        self.network.train()
        self.optimizer.zero_grad()
        size = train.micro_batch or len(x)
        for first in range(0, len(x), size):
            part = slice(first, first + size)
            # Processes exchange gradients once a step, in the last backward pass.
            waiting = self.team.size > 1 and first + size < len(x)
            with self.parallel.no_sync() if waiting else contextlib.nullcontext():
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    error = self.parallel(x[part], batch.t[part]).float() - batch.eps[part]
                size_of_error = error.abs() if train.loss_type == "linear" else error**2
                loss = (weight[part] * size_of_error).sum() / self.experiment.Dataset.batch_size
                (loss * self.team.size).backward()  # DistributedDataParallel averages over processes
            self.meter.add(batch.t[part], error.detach(), loss.detach())
        most = optim.grad_clip or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), most)
        self.clipped += norm > most
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.step()
        self.done += 1
        self.ema.update(self.network, self.done)
        return norm

    def rate(self):
        """The learning rate of the coming step: it rises over `warmup` steps and falls over the last `decay` of all."""
        optim = self.experiment.Optim
        rise = (self.done + 1) / max(1, self.experiment.Train.warmup)
        fall = (self.steps - self.done) / (optim.decay * self.steps) if optim.decay else 1.0
        return optim.lr * min(1.0, rise, fall)

    def _attend(self):
        """While images are made: show that the run is alive; returns whether it is told to stop."""
        self.progress.add()
        return self.stop.asked

    def _look(self, log, norm, stopped):
        """After a step: write scalars, make images, keep a checkpoint, each when it is due."""
        train, done = self.experiment.Train, self.done
        logs = done % train.log_interval == 0
        saves = done % train.checkpoint_interval == 0 or done == self.steps or stopped
        if (logs or saves) and not norm.isfinite():
            raise InputError(f"the gradient is not finite at step {done}; a smaller Optim.lr may help", "Optim.lr")
        if logs:
            log.scalars(done, self.meter, norm, self.optimizer.param_groups[0]["lr"], self.clipped)
        measures = done % train.sample_interval == 0
        if not stopped and (measures or done == FIRST_GRID < train.sample_interval):
            with log.busy():
                self._sample(log, measures and train.distance_num)
        if self.team.first and saves:
            self._save()

    def _sample(self, log, measures):
        """Log a grid of the average's images, and their distance; keep the average with the least distance."""
        network, grid = self.ema.network, None
        if self.team.first:
            self.progress.add(extra="images for the grid", force=True)
            grid = self.preview.grid(network)
            if grid is not None:
                log.write(self.done, {}, grid)
                self.folder.save_grid(grid)
        self.team.wait()  # as long as the first works; the exchange of gradients would not
        if not measures:
            return
        self.progress.add(extra=f"distance of {self.experiment.Train.distance_num:,} images", force=True)
        value = self.preview.distance(network, skip=self.team.first and grid is None)
        if value is None:
            return
        log.write(self.done, {f"frechet_{self.experiment.Sample.features}": value})
        if value < self.best:
            self.best = value
            self.folder.save_network("best.safetensors", network, self.experiment, self.done)

    def _save(self):
        state = {
            "model": self.network.state_dict(),
            "ema": self.ema.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.done,
            "best": self.best,
            "measured": comparable(self.experiment),
            "experiment": self.experiment.model_dump(),
        }
        self.folder.save(state)
        self._save_average()

    def _save_average(self):
        self.folder.save_network("ema.safetensors", self.ema.network, self.experiment, self.done)

    def _take(self, state):
        """Continue from a checkpoint's `state`."""
        self.network.load_state_dict(state["model"])
        self.ema.network.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = state["step"]
        mine = comparable(self.experiment)
        if state.get("measured", mine) == mine:
            self.best = state["best"]


class Stop:
    """While in this context, the first SIGINT or SIGTERM sets `asked`, so that the step under way is finished.

    A second one ends a process that is alone. One of several may be told twice, by the user and by torchrun.
    """

    def __init__(self, team):
        self.team, self.asked = team, False
        self.pause, self.steps, self.looked = 1, 0, time.monotonic()

    def told(self, late):
        """Whether a process is told to stop, or is `late`. All processes call this after every step.

        A look is an exchange among them, which on GPUs waits for all that is queued. So several of these only look
        after some steps, fewer where a step takes long.
        """
        self.steps += 1
        if self.steps < self.pause:
            return False
        found = self.team.any(self.asked or late)
        if self.team.size > 1 and self.team.device.type == "cuda":
            most, seconds = LOOK
            enough = seconds * self.steps / max(time.monotonic() - self.looked, 1e-9)
            self.pause = int(self.team.least(torch.tensor(max(1.0, min(most, enough)))))
        self.steps, self.looked = 0, time.monotonic()
        return found

    def __enter__(self):
        self.before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, *_):
        self.asked = True
        if self.team.size == 1:
            self.__exit__()

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def _optimizer(network, optim):
    if optim.optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), optim.lr, momentum=0.9, weight_decay=optim.weight_decay)
    return torch.optim.Adam(
        network.parameters(), optim.lr, (optim.beta1, 0.999), optim.eps, optim.weight_decay, optim.amsgrad, fused=True
    )

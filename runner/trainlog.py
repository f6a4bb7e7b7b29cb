"""What a training run tells: scalars and images for TensorBoard, and the bar."""

import contextlib
import math
import threading
import time
from itertools import pairwise

import torch
from torch.utils.tensorboard import SummaryWriter

from pndm.runner.advice import all_clipped, few_images

EDGES = (0.0, 0.1, 0.4, 0.7, 0.9, 1.0)  # of the ranges of t, as shares of T


class Meter:
    """Sums over the images of several steps: the loss, and by range of t, ε's squared error and its mean's.

    times: T. Everything stays on the device until `result`.
    """

    def __init__(self, times, device):
        edges = [round(edge * times) for edge in EDGES]
        self.names = [f"{low}-{high - 1}" for low, high in pairwise(edges)]
        self.inner = torch.tensor(edges[1:-1], device=device)
        self.ranges = torch.zeros(3, len(self.names), device=device)  # images, Σ error², Σ (mean error)²
        self.loss = torch.zeros(1, device=device)

    def add(self, t, error, loss):
        """Take in images at t (n,): their error of ε (n, C, H, W), and their share of the loss, a number."""
        square, mean = (error**2).mean((1, 2, 3)), error.mean((1, 2, 3))
        values = torch.stack([torch.ones_like(square), square, mean**2])
        self.ranges.index_add_(1, torch.bucketize(t, self.inner, right=True), values)
        self.loss += loss

    def result(self, team):
        """(Σ loss, {range: (ε's mean squared error a pixel, root mean square of ε's mean error)}) of all processes.

        Ranges without images are left out. The sums begin anew.
        """
        loss, *sums = team.total(torch.cat([self.loss, self.ranges.flatten()])).tolist()
        self.loss.zero_()
        self.ranges.zero_()
        n = len(self.names)
        rows = zip(self.names, sums[:n], sums[n : 2 * n], sums[2 * n :], strict=True)
        return loss, {name: (square / k, (mean / k) ** 0.5) for name, k, square, mean in rows if k}


class Log:
    """Writes to TensorBoard, in the first process, and to the bar; `done` steps were done before."""

    def __init__(self, folder, experiment, team, progress, done):
        data, self.clip = experiment.Dataset, experiment.Optim.grad_clip
        self.folder, self.team, self.progress, self.writer, self.said = folder, team, progress, None, ""
        self.batch, self.pixels = data.batch_size, data.channels * data.image_size**2
        self.since, self.counted = time.monotonic(), done
        self.end, self.advised, self.trained = math.inf, not team.first, bool(experiment.Train.start)

    def expect(self, steps, end):
        """The run ends after `steps` steps in all, or when the clock (`time.monotonic`) is at `end`."""
        self.end = end
        if self.team.first and not (self.counted or self.trained):
            few_images(steps * self.batch, f"{steps:,} steps of {self.batch} images")

    def close(self):
        if self.writer:
            with self._named():
                self.writer.close()

    @contextlib.contextmanager
    def _named(self):
        """An error of writing, such as of a full disk, is given the folder's name."""
        try:
            yield
        except OSError as error:
            error.filename = str(self.folder)
            raise

    def scalars(self, step, meter, norm, rate, clipped):
        """Log what was seen since the last time: a mean over those steps; `norm` and `rate` are of step `step`.

        clipped: how many of those steps had their gradient shortened, a tensor that begins anew.
        """
        total, ranges = meter.result(self.team)
        if not self.team.first:
            return
        steps, now = step - self.counted, time.monotonic()
        loss = total / steps / self.pixels
        speed = steps * self.batch / max(now - self.since, 1e-9)
        self.since, self.counted = now, step
        busy = _gpu_busy(self.team.device)
        self.said = f"loss {loss:.4f}, {speed:.0f} images/s" + ("" if busy is None else f", GPU {busy} %")
        self.progress.add(extra=self.said)
        values = {
            "loss": loss,
            "gradient_norm": norm,
            "clipped": float(clipped) / steps,
            "learning_rate": rate,
            "images_per_second": speed,
        }
        for name, (square, mean) in ranges.items():
            values |= {f"error_by_t/{name}": square, f"mean_error_by_t/{name}": mean}
        if busy is not None:
            values["gpu_utilisation"] = busy
        self.write(step, values)
        if not self.advised:
            self._advise(step, speed, values, steps)
        clipped.zero_()

    def _advise(self, step, speed, values, steps):
        """After the first steps: say what they already tell of the rest."""
        self.advised = True
        if self.end < math.inf and not self.trained:
            seen = step * self.batch + speed * (self.end - self.since)
            few_images(round(max(seen, 0)), f"--minutes at {speed:.0f} images/s")
        if values["clipped"] == 1:
            all_clipped(self.clip, float(values["gradient_norm"]), steps)

    def write(self, step, values, grid=None):
        """Write numbers by their names, and a grid, uint8 (3, H, W). The first of them makes the events file."""
        with self._named():
            if self.writer is None:
                threading.excepthook = _told_later
                self.writer = SummaryWriter(self.folder, purge_step=step)
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
            if grid is not None:
                self.writer.add_image("sample", grid, step)

    @contextlib.contextmanager
    def busy(self):
        """While inside, something else than steps is done: the time does not count for the speed."""
        begun = time.monotonic()
        yield
        self.since += time.monotonic() - begun
        self.progress.add(extra=self.said)


def _told_later(failure):
    """Of a thread that failed to write: TensorBoard raises its error again at the next write."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


def _gpu_busy(device):
    """Per cent of the last second in which the GPU was busy; None where nothing says it."""
    if device.type != "cuda":
        return None
    try:
        return torch.cuda.utilization(device)
    except Exception:  # NVML has errors of its own, for a part of a GPU (MIG) say
        return None

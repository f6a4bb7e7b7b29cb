"""What training looks at on its way: a grid of the averaged network's images, and their distance from the data."""

import copy
import sys

import torch

from pndm.config.errors import InputError
from pndm.model.engine import Engine
from pndm.runner.build import precision_of, sampling_of
from pndm.runner.folder import grid
from pndm.runner.measure.measurement import Measurement
from pndm.runner.solver.events import NotFinite

GRID = 64  # images


def check(experiment):
    """Raise InputError if the images that training makes on the way cannot be made or measured."""
    sampling_of(experiment)
    train, settings = experiment.Train, experiment.Sample
    if getattr(experiment.Model, "labels", 0):
        raise InputError("networks with classes are not trained here; the datasets give no labels", "Model.labels")
    if settings.batch_size == "auto":
        raise InputError("batch_size auto is for sampling; training needs a number", "Sample.batch_size")
    if train.distance_num and (train.distance_num < 2 or settings.features == "none"):
        raise InputError("distance_num needs at least 2 images, and Sample.features", "Train.distance_num")


class NoImages(Exception):
    """The run was told to stop while images were made, or they are not finite."""


class Preview:
    """Makes images as a sampling run of the experiment would, by a copy of the averaged network.

    stopped() says whether the run is told to stop; it is asked before each network call. Raises InputError when the
    distance has no reference.
    """

    def __init__(self, experiment, team, stopped):
        self.experiment, self.team, self.stopped = experiment, team, stopped
        self.sampling = sampling_of(experiment)
        wanted = experiment.Train.distance_num
        settings = experiment.Sample.model_copy(update={"metrics": []})  # the Fréchet distance alone is looked at
        self.measurement = Measurement.of(experiment.Dataset, settings, team.device, team) if wanted else None
        precision_of(experiment, team.device)  # where timing decides it, all processes must ask at once

    def grid(self, network):
        """One uint8 image (3, H, W) of 64 images by `network`, or None where they cannot be made."""
        try:
            return grid(torch.cat([images for _, images in self._images(network, self._batches(GRID))]))
        except NoImages:
            return None

    def distance(self, network, skip=False):
        """The Fréchet distance of `distance_num` images; None where they cannot be made, and on ranks other than 0.

        Every rank makes its share of the images. If one is told to `skip`, none makes any.
        """
        batches = [] if skip else self._batches(self.experiment.Train.distance_num)
        failed = skip
        try:
            for ids, images in self._images(network, batches[self.team.rank :: self.team.size]):
                self.measurement.update(ids, images)
        except NoImages:
            failed = True
        self.team.wait()
        try:
            if self.team.any(failed):
                return None
            self.measurement.gather(self.team)
            return self.measurement.card()["value"] if self.team.first else None
        finally:
            self.measurement.reset()

    def _batches(self, count):
        size = self.experiment.Sample.batch_size
        return [range(count)[first : first + size] for first in range(0, count, size)]

    def _images(self, network, batches):
        """(ids, uint8 images) of each batch, a range of ids. Raises NoImages."""
        device = self.team.device
        engine = Engine(copy.deepcopy(network), device, precision_of(self.experiment, device))

        def attentive(x, t):
            self.team.beat()
            if self.stopped():
                raise NoImages
            return engine(x, t)

        try:
            for ids in batches:
                yield ids, self.sampling.launch(attentive, ids, device).result()
        except NotFinite as error:
            print(f"no images of the averaged network: {error}", file=sys.stderr)
            raise NoImages from None


def comparable(experiment):
    """What two distances must agree in to be compared."""
    beside = {"model_path", "inception_path", "total_num", "keep", "precision", "compile", "metrics"}
    return {"distance_num": experiment.Train.distance_num, **experiment.Sample.model_dump(exclude=beside)}

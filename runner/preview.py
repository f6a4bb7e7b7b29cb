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
    if settings.batch_size == "auto":
        raise InputError("batch_size auto is for sampling; training needs a number", "Sample.batch_size")
    if train.distance_num and (train.distance_num < 2 or settings.features == "none"):
        raise InputError("distance_num needs at least 2 images, and Sample.features", "Train.distance_num")


class Stopped(Exception):
    """The run was told to stop while images were made."""


class Preview:
    """Makes images as a sampling run of the experiment would, by a copy of the averaged network.

    stopped() says whether the run is told to stop; it is asked before each network call. Raises InputError when the
    distance has no reference.
    """

    def __init__(self, experiment, team, stopped):
        self.experiment, self.team, self.stopped = experiment, team, stopped
        self.sampling = sampling_of(experiment)
        data, sample = experiment.Dataset, experiment.Sample
        wanted = experiment.Train.distance_num
        self.measurement = Measurement.of(data, sample, team.device, team) if wanted else None

    def grid(self, network):
        """One uint8 image (3, H, W) of 64 images by `network`, or None where they cannot be made."""
        try:
            return grid(torch.cat([images for _, images in self._images(network, range(GRID))]))
        except (NotFinite, Stopped) as error:
            return self._explain(error)

    def distance(self, network, skip=False):
        """The Fréchet distance of `distance_num` images; None where they cannot be made, and on ranks other than 0.

        Every rank makes its share of the images. If one is told to `skip`, none makes any.
        """
        failed = float(skip)
        try:
            count = 0 if skip else self.experiment.Train.distance_num
            for ids, images in self._images(network, range(count), self.team.share):
                self.measurement.update(ids, images)
        except (NotFinite, Stopped) as error:
            failed = 1.0
            self._explain(error)
        try:
            if self.team.total(torch.tensor(failed)):
                return None
            self.measurement.gather(self.team)
            return self.measurement.card()["value"] if self.team.first else None
        finally:
            self.measurement.reset()

    def _images(self, network, ids, share=lambda batches: batches):
        """(ids, uint8 images) of the batches that `share` leaves."""
        e, device = self.experiment, self.team.device
        engine = Engine(copy.deepcopy(network), device, precision_of(e, device))

        def attentive(x, t):
            self.team.beat()
            if self.stopped():
                raise Stopped
            return engine(x, t)

        size = e.Sample.batch_size
        with torch.inference_mode():
            for first in share(range(0, len(ids), size)):
                batch = ids[first : first + size]
                yield batch, self.sampling.launch(attentive, batch, device).result()

    def _explain(self, error):
        if isinstance(error, NotFinite):
            print(f"no images of the averaged network: {error}", file=sys.stderr)


def comparable(experiment):
    """What two distances must agree in to be compared."""
    beside = {"model_path", "inception_path", "total_num", "keep", "precision", "compile"}
    return {"distance_num": experiment.Train.distance_num, **experiment.Sample.model_dump(exclude=beside)}

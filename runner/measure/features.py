"""What images are compared by: extractors from uint8 images to feature vectors.

To add one is to add a line to EXTRACTORS, for a network that gives one vector an image:

    "dinov2": network("dinov2", 1024, load, 224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),

where `load(path)` returns the network and the file of its weights. Nothing heavy is imported before it is used, since
the command line reads the names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

from pndm.config import published
from pndm.config.errors import InputError, first_line
from pndm.config.files import ROOT

MOST_PIXELS = 4096
CHUNK = 50  # images a network call, pytorch-fid's own; more only take more memory
INCEPTION = "pt_inception-2015-12-05"  # the name that they are published by
FID_HASH = "6726825d"  # how the SHA-256 of pytorch-fid's weights begins


@dataclass(frozen=True)
class Extractor:
    """A function from uint8 images (n, C, H, W) to features (n, dimension), and what identifies it.

    Two statistics can be compared when name, dimension and hash (SHA-256 of the weights, None without) agree.
    """

    name: str
    dimension: int
    hash: str | None
    resize: str | None
    function: Callable

    @property
    def identity(self):
        """A file name that only equal features have."""
        return "-".join([self.name, f"{self.dimension}", (self.hash or "")[:16]]).strip("-")

    def __call__(self, images):
        """Features of uint8 images (n, C, H, W): float64 (n, dimension), on the CPU."""
        return self.describe(images).cpu().double()

    def describe(self, images):
        """Features of uint8 images (n, C, H, W), on the extractor's device, where they may only be queued."""
        import torch

        from pndm.model.backend import tf32

        with torch.inference_mode(), tf32(False):
            return torch.cat([self.function(part) for part in images.split(CHUNK)])


def pixels(shape, device, path):
    """Grey levels in [0, 1]; for images (C, H, W) of at most 4096 values."""
    dimension = prod(shape)
    if dimension > MOST_PIXELS:
        raise InputError(
            f"features pixels: for images of at most {MOST_PIXELS} values, not {dimension}; use inception",
            "Sample.features",
        )
    return Extractor("pixels", dimension, None, None, lambda images: images.flatten(1).double() / 255)


def network(name, dimension, load, size, mean, std, mode="bicubic"):
    """An entry of EXTRACTORS: `load(path)` → (network, file of its weights).

    It sees levels in [0, 1], grey repeated to 3 channels, resized to size × size, less `mean`, over `std`.
    """

    def make(shape, device, path):
        import torch
        from torch.nn.functional import interpolate

        from pndm.model.checkpoint import sha256

        net, file = load(path)
        net = net.eval().to(device)
        shift, scale = (torch.tensor(v, device=device)[:, None, None] for v in (mean, std))

        def function(images):
            x = (images.to(device).float() / 255).expand(-1, 3, -1, -1)
            return net((interpolate(x, (size, size), mode=mode, antialias=mode == "bicubic") - shift) / scale)

        return Extractor(name, dimension, sha256(file), f"{mode} to {size}×{size}", function)

    return dimension, make


def load_inception(path):
    """pytorch-fid's Inception up to pool3, and the file of its weights: as given, in PyTorch's cache, or fetched.

    torchvision's network is made of pytorch-fid's blocks, whose pools differ. pytorch-fid's own class downloads the
    weights when it is made, wherever they are.
    """
    import torch
    from pytorch_fid import inception
    from torchvision.models import inception as parts

    from pndm.runner import fetch

    def last(channels):
        return (inception.FIDInceptionE_1 if channels == 1280 else inception.FIDInceptionE_2)(channels)

    if (file := inception_file(path)) is None:
        try:
            file = fetch.fetch(INCEPTION)
        except InputError as error:
            raise InputError(f"{error}; or set inception_path to where it is", "Sample.features") from None
    blocks = [parts.BasicConv2d, inception.FIDInceptionA, parts.InceptionB, inception.FIDInceptionC]
    blocks += [parts.InceptionD, last, parts.InceptionAux]
    net = parts.Inception3(1008, aux_logits=False, inception_blocks=blocks, init_weights=False)
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        message = f"{file}: not readable as weights ({type(error).__name__})"
        raise InputError(message, "Sample.inception_path") from None
    try:
        net.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        message = f"{file}: not the weights of pytorch-fid's Inception ({first_line(error)})"
        raise InputError(message, "Sample.inception_path") from None
    net.fc = torch.nn.Identity()
    return net, file


def fashion(shape, device, path):
    """The penultimate layer of a classifier of Fashion-MNIST (tools/classifier.py), for grey images."""
    from safetensors.torch import load_file

    from pndm.model.checkpoint import sha256
    from pndm.runner.measure.classifier import WIDTH, Classifier

    if tuple(shape) != (1, 28, 28):
        raise InputError(f"features fashion: for grey images of 28×28, not of {tuple(shape)}", "Sample.features")
    file = ROOT / "model" / "fashion_classifier.safetensors"
    net = Classifier().eval()
    net.load_state_dict(load_file(file))
    net.to(device)
    return Extractor("fashion", WIDTH, sha256(file), None, lambda images: net.features(images.to(device) / 127.5 - 1))


# name → features of an image (None: one for each of its values),
#        function (shape of an image (C, H, W), device, inception_path or None) → Extractor
EXTRACTORS = {
    "pixels": (None, pixels),
    "fashion": (128, fashion),
    "inception": network("inception", 2048, load_inception, 299, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear"),
}
# What a distance on features of that name is called, where the name alone does not say it.
TITLES = {"fashion": "Fashion-MNIST classifier features"}


def make_extractor(name, shape, device="cpu", path=None):
    """The extractor of that name for images of shape (C, H, W). Raises InputError."""
    if name not in EXTRACTORS:
        raise InputError(f"features {name!r} is not one of {', '.join(EXTRACTORS)}, none", "Sample.features")
    return EXTRACTORS[name][1](shape, device, path)


def dimension_of(name, shape):
    """How many features by that name an image of shape (C, H, W) has; none by `none`."""
    return 0 if name == "none" else EXTRACTORS[name][0] or prod(shape)


def is_fid(name, digest):
    """Whether features of that name and hash make an FID."""
    return name == "inception" and (digest or "").startswith(FID_HASH)


def inception_file(path):
    """pytorch-fid's weights: at `path`, a file or its folder; else in PyTorch's cache, or None. Raises InputError."""
    import torch

    name = published.named(INCEPTION).file.name
    if path is None:
        file = Path(torch.hub.get_dir()) / "checkpoints" / name
        return file if file.exists() else None
    for file in (Path(path), Path(path) / name):
        if file.is_file():
            return file
    message = f"no file {path}; inception_path is {name} of pytorch-fid, or a folder with it"
    raise InputError(message, "Sample.inception_path")

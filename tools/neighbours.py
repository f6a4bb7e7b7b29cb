"""The nearest training images of samples: a network that repeats its data makes images that are nearer than new ones.

    python tools/neighbours.py temp/sample/fashion_F-PNDM_50 --config fashion.yml --to temp/neighbours.png

For the pixels, and for the experiment's features, it prints the median and the least distance from a sample to its
nearest training image, and beside them those of as many test images, where the data set has some. The picture has three
rows: samples, the nearest image by pixels, the nearest one by features.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch.nn.functional import pad

from pndm.config.errors import InputError
from pndm.config.files import aside
from pndm.config.load import load
from pndm.dataset import batches, open_dataset, to_picture
from pndm.dataset.readers import KNOWN, image_files
from pndm.runner.folder import BETWEEN, grid, read_image
from pndm.runner.measure.features import make_extractor

CHUNK = 1000
COLUMNS, GAP = 16, 8  # of the picture, in images and pixels


def views_of(experiment, shape):
    """Name → function from uint8 images (n, C, H, W) to vectors (n, d): root-mean-square pixels in [0, 1], features."""
    size = torch.Size(shape).numel() ** 0.5
    views = {"pixels": lambda images: images.flatten(1).double() / 255 / size}
    if (name := experiment.Sample.features) not in ("none", "pixels"):
        views[f"features {name}"] = make_extractor(name, shape, path=experiment.Sample.inception_path)
    return views


def nearest(images, data, views):
    """View's name → (distance (n,), number in `data` (n,)) of the nearest of `data` to each image."""
    wanted = {name: view(images) for name, view in views.items()}
    found = {name: (torch.full((len(images),), torch.inf).double(), torch.zeros(len(images)).long()) for name in views}
    for ids, part in batches(data, CHUNK):
        for name, view in views.items():
            least, where = torch.cdist(wanted[name], view(part)).min(1)
            held, place = found[name]
            closer = least < held
            found[name] = least.where(closer, held), (where + ids[0]).where(closer, place)
    return found


def picture(rows):
    """uint8 images (n, C, H, W) of each row → one uint8 (3, H', W'): the rows below each other, COLUMNS at a time."""
    blocks = []
    for parts in zip(*(row.split(COLUMNS) for row in rows), strict=True):
        lines = [torch.cat([grid(image[None]) for image in part], 2) for part in parts]
        block = torch.cat(lines, 1)
        width = blocks[0].shape[2] if blocks else block.shape[2]
        blocks.append(pad(block, (0, width - block.shape[2], 0, GAP), value=BETWEEN))
    return pad(torch.cat(blocks, 1), (GAP, GAP, GAP, 0), value=BETWEEN)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of images, as a sampling run leaves it")
    parser.add_argument(
        "--config", default="digits.yml", help="experiment with the training images; default digits.yml"
    )
    parser.add_argument("--images", type=int, default=32, help="how many of the folder; default 32")
    parser.add_argument("--to", type=Path, help="file of the picture; default: none")
    args = parser.parse_args(argv)
    try:
        if args.images < 1:
            raise InputError(f"--images is {args.images}, it must be at least 1")
        if args.to and (args.to.is_dir() or not args.to.resolve().parent.is_dir()):
            raise InputError(f"--to {args.to} must be a file in a folder that exists")
        experiment = load(args.config)
        files = image_files(args.folder)[: args.images]
        if not files:
            raise InputError(f"{args.folder} has no images")
        read = [read_image(file) for file in files]
        data, section = open_dataset(experiment.Dataset), experiment.Dataset
        for file, image in zip(files, read, strict=True):
            if image.shape != data[0].shape:
                shapes = f"{tuple(image.shape)}, {section.dataset} has images of {tuple(data[0].shape)}"
                raise InputError(f"{file} is {shapes}; --config may name another data set")
        images = torch.stack(read)
        views = views_of(experiment, images[0].shape)
        sides = {f"{len(images)} samples": images}
        if section.dataset in KNOWN:
            new = open_dataset(section.model_copy(update={"split": "test"}))
            count = min(len(images), len(new))
            sides[f"{count} test images"] = torch.stack([new[i] for i in range(count)])
    except InputError as error:
        print(f"neighbours.py: {error}", file=sys.stderr)
        return 2
    found = nearest(torch.cat(list(sides.values())), data, views)
    for name, (distances, _) in found.items():
        for side, values in zip(sides, distances.split([*map(len, sides.values())]), strict=True):
            print(f"{side}, {name}: median {values.median():.4f}, least {values.min():.4f}")
    if args.to:
        shown = [places[: len(images)] for _, places in found.values()]
        rows = [images, *(torch.stack([data[int(i)] for i in places]) for places in shown)]
        try:
            with aside(args.to) as file:
                to_picture(picture(rows)).save(file, "PNG")
        except OSError as error:
            print(f"neighbours.py: {args.to}: {error.strerror or error}", file=sys.stderr)
            return 2
        print(args.to)
    return 0


if __name__ == "__main__":
    sys.exit(main())

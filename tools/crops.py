"""Cut small colour images from the two photographs that scikit-learn ships, to try the training of one's own network.

    python tools/crops.py temp/crops

Each is a random window of 32×32 pixels of a photograph made four times smaller, in equal numbers of both.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

SIZE, SMALLER = 32, 4


def crops(count):
    """`count` uint8 images (SIZE, SIZE, 3), the photographs in turn."""
    rng = np.random.default_rng(0)
    photographs = [Image.fromarray(photograph).reduce(SMALLER) for photograph in load_sample_images().images]
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        left, upper = (int(rng.integers(side - SIZE + 1)) for side in photograph.size)
        yield np.asarray(photograph.crop((left, upper, left + SIZE, upper + SIZE)))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for the images; must not exist yet")
    parser.add_argument("--count", type=int, default=500, help="number of images (500)")
    args = parser.parse_args(argv)
    problem = "" if args.count > 0 else f"--count is {args.count}, it must be at least 1"
    try:
        if not problem:
            args.folder.mkdir(parents=True)
    except FileExistsError:
        problem = f"{args.folder} is there already; choose another folder"
    except OSError as error:
        problem = f"{args.folder}: {error.strerror}"
    if problem:
        print(f"crops.py: {problem}", file=sys.stderr)
        return 2
    for i, image in enumerate(crops(args.count)):
        Image.fromarray(image).save(args.folder / f"{i:04d}.png")
    print(f"{args.folder}: {args.count} images of {SIZE}×{SIZE} pixels")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The bundled network from Python: by a pipeline, and by a loop over the states of a method.

python tools/example.py
python tools/example.py --method S-PNDM --steps 10 --out temp/example.png
"""

import argparse
import sys
from pathlib import Path

import torch

from pndm import METHODS, PNDMPipeline, solve
from pndm.config.files import aside
from pndm.dataset import to_picture
from pndm.runner.folder import grid


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=METHODS, default="F-PNDM")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("temp/example.png"))
    args = parser.parse_args(argv)
    try:
        show(args.method, args.steps, args.out)
    except (OSError, ValueError) as error:
        print(f"example.py: {error}", file=sys.stderr)
        return 2
    return 0


def show(method, steps, out):
    """Sample both ways, compare them, write the images to the file `out`."""
    # Image by image, each from its own noise.
    pipeline = PNDMPipeline.from_pretrained("digits.yml")
    images = pipeline(16, steps, generators(), "pt", method=method).images

    # The same without the pipeline: a network is any function of x and t that returns ε.
    random = generators()

    def noise(step=None):
        return torch.cat([torch.randn(1, 1, 8, 8, generator=generator) for generator in random])

    with torch.inference_mode():
        for state in solve(method, pipeline.network, noise(), pipeline.schedule, steps, noise=noise):
            clock = state.t if isinstance(state.t, float) else state.t.max()  # PF: a time for every image
            print(f"t = {clock:6.1f}, {state.nfe:.4g} network calls an image, deviation {state.x.std():.3f}")
    print(f"largest difference of the two: {((state.x + 1) / 2).clamp(0, 1).sub(images).abs().max():.1g}")

    out.parent.mkdir(parents=True, exist_ok=True)
    with aside(out) as file:
        to_picture(grid((images * 255).round().to(torch.uint8))).save(file, "PNG")
    print(out)


def generators():
    """A source of random numbers for each of the images."""
    return [torch.Generator().manual_seed(seed) for seed in range(16)]


if __name__ == "__main__":
    sys.exit(main())

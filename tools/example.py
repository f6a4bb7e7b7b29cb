"""The bundled network from Python: by a pipeline, and by a loop over the states of a method.

python tools/example.py
python tools/example.py --method S-PNDM --steps 10 --out temp/example.png
"""

import argparse
from pathlib import Path

import torch

from pndm import METHODS, PNDMPipeline, solve
from pndm.dataset import to_picture
from pndm.runner.folder import grid


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=METHODS, default="F-PNDM")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("temp/example.png"))
    args = parser.parse_args(argv)

    # Image by image, each from its own noise.
    pipeline = PNDMPipeline.from_pretrained("digits.yml")
    generators = [torch.Generator().manual_seed(seed) for seed in range(16)]
    images = pipeline(16, args.steps, generators, "pt", method=args.method).images

    # The same without the pipeline: a network is any function of x and t that returns ε.
    x = torch.cat([torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(16)])
    with torch.inference_mode():
        for state in solve(args.method, pipeline.network, x, pipeline.schedule, args.steps):
            clock = state.t if isinstance(state.t, float) else state.t.max()  # PF: a time for every image
            print(f"t = {clock:6.1f}, {state.nfe:.4g} network calls an image, deviation {state.x.std():.3f}")
    print(f"largest difference of the two: {((state.x + 1) / 2).clamp(0, 1).sub(images).abs().max():.1g}")

    args.out.parent.mkdir(parents=True, exist_ok=True)
    to_picture(grid((images * 255).round().to(torch.uint8))).save(args.out)
    print(args.out)


if __name__ == "__main__":
    main()

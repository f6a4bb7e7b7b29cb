"""What someone should hear early: before the samples of a training disappoint, before ranks differ."""

import functools
import sys

FEW = 20_000  # images, counted once for each time that they are seen; docs/train-your-own.md has the measurement


def few_images(seen, why):
    """Say so if a network that sees `seen` images in its training will sample noise; `why`: what decides the number."""
    if seen < FEW:
        say(f"{why}: the network will see {seen:,} images, and below {FEW:,} samples are mostly noise")


def all_clipped(clip, norm, steps):
    """Say that every one of the last `steps` gradients was longer than `clip`; the last one had this `norm`."""
    say(
        f"Optim.grad_clip {clip:g} has shortened each of the {steps} gradients so far, the last one from {norm:.3g}; "
        "leave it out, or set it to some times the usual gradient_norm"
    )


def attention_nowhere(model):
    """Say so if a `Model` section asks for attention at sizes that its network does not have."""
    widths = getattr(model, "ch_mult", None) or getattr(model, "channel_mult", ())
    sizes = [model.image_size // 2**i for i in range(len(widths))]
    if sizes and (lost := set(model.attn_resolutions) - set(sizes)):
        say(
            f"Model.attn_resolutions has {', '.join(map(str, sorted(lost)))}, but the network's sizes are "
            f"{', '.join(map(str, sizes))}"
        )


@functools.cache
def compiled_apart():
    """Say, once, that every rank compiles a network of its own."""
    say("this PyTorch chooses compiled kernels by timing, so the images of two ranks may differ by rounding")


def say(text):
    """Print a line on stderr."""
    print(f"note: {text}", file=sys.stderr)

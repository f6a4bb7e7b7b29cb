"""Group norm and SiLU in two kernels for images that are channels last, on NVIDIA GPUs (Triton).

PyTorch 2.11 copies such images to channels first and back for its own group norm, and SiLU reads and writes them once
more. `kernels.fused` says whether these kernels work here.
"""

import torch
import triton
import triton.language as tl

PIXELS = 1024  # of an image, that one program adds up
LANES = 64  # channels that one program loads at a time
ROWS = 32  # pixels that it loads at a time


@triton.jit
def place_of(channels, groups, pixels, C: tl.constexpr, CP: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr):
    """Groups of this program; offsets of its first ROWS pixels, (ROWS, G, CP), from x's start; the lanes that count."""
    group = tl.program_id(1) * G + tl.arange(0, G)
    lane = tl.arange(0, CP)[None, :]
    channel = group[:, None] * C + lane
    there = (lane < C) & (group[:, None] < groups)
    image = tl.program_id(0).to(tl.int64) * pixels * channels
    offsets = image + tl.arange(0, ROWS)[:, None, None] * channels + channel[None, :, :]
    return group, channel, there, offsets


@triton.jit
def moments(
    x, means, squares, pixels, channels, groups,
    C: tl.constexpr, CP: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Mean, and sum of squares about it, of each group in PIXELS pixels."""
    group, channel, there, offsets = place_of(channels, groups, pixels, C, CP, G, ROWS)
    first = tl.program_id(2) * PIXELS
    last = tl.minimum(first + PIXELS, pixels)
    row = tl.arange(0, ROWS)[:, None, None]
    image = tl.program_id(0).to(tl.int64) * pixels * channels
    # Sums are about each channel's first pixel, so that nothing cancels where the mean is large.
    origin = tl.load(x + image + first * channels + channel, there, 0.0).to(tl.float32)
    sums, sums2 = tl.zeros((G, CP), tl.float32), tl.zeros((G, CP), tl.float32)
    for begin in range(first, last, ROWS):
        mask = there[None, :, :] & (begin + row < last)
        value = tl.load(x + offsets + begin * channels, mask, 0.0).to(tl.float32) - origin[None, :, :]
        value = tl.where(mask, value, 0.0)
        sums += tl.sum(value, 0)
        sums2 += tl.sum(value * value, 0)
    count = (last - first) * 1.0
    shift = sums / count  # of each channel, from its origin
    mean = tl.sum(tl.where(there, origin + shift, 0.0), 1) / C
    apart = tl.where(there, origin + shift - mean[:, None], 0.0)
    square = tl.sum(tl.maximum(sums2 - sums * shift, 0.0) + count * apart * apart, 1)
    place = (tl.program_id(0) * tl.num_programs(2) + tl.program_id(2)) * groups + group
    tl.store(means + place, mean, group < groups)
    tl.store(squares + place, square, group < groups)


@triton.jit
def normalize(
    x, y, weight, bias, means, squares, pixels, channels, groups, eps,
    C: tl.constexpr, CP: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr, PIXELS: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """Join the parts of an image (Chan, Golub & LeVeque 1983), then write PIXELS of its pixels."""
    group, channel, there, offsets = place_of(channels, groups, pixels, C, CP, G, ROWS)
    mean, square = tl.zeros((G,), tl.float32), tl.zeros((G,), tl.float32)
    for part in range(tl.num_programs(2)):
        place = (tl.program_id(0) * tl.num_programs(2) + part) * groups + group
        seen = part * PIXELS * 1.0
        more = tl.minimum(pixels - part * PIXELS, PIXELS) * 1.0
        apart = tl.load(means + place, group < groups, 0.0) - mean
        mean += apart * (more / (seen + more))
        square += tl.load(squares + place, group < groups, 0.0) + C * apart * apart * (seen * more / (seen + more))
    scale = tl.load(weight + channel, there, 0.0).to(tl.float32)
    scale = scale * tl.rsqrt(square / (pixels * 1.0 * C) + eps)[:, None]
    shift = tl.load(bias + channel, there, 0.0).to(tl.float32)
    first = tl.program_id(2) * PIXELS
    row = tl.arange(0, ROWS)[:, None, None]
    for begin in range(first, tl.minimum(first + PIXELS, pixels), ROWS):
        mask = there[None, :, :] & (begin + row < pixels)
        at = offsets + begin * channels
        value = tl.load(x + at, mask, 0.0).to(tl.float32) - mean[None, :, None]
        value = value * scale[None, :, :] + shift[None, :, :]
        if SILU:
            value = value * tl.sigmoid(value)
        tl.store(y + at, value.to(y.dtype.element_ty), mask)


def group_norm(x, weight, bias, groups, eps, silu=False):
    """`F.group_norm` of x (n, C, H, W), contiguous as channels last, then SiLU if `silu`; returns a tensor like x.

    Sums are float32. The result of an image does not depend on the images beside it.
    """
    n, channels, height, width = x.shape
    pixels, size = height * width, channels // groups
    lanes = triton.next_power_of_2(size)
    together = min(max(1, LANES // lanes), triton.next_power_of_2(groups))
    parts = triton.cdiv(pixels, PIXELS)
    y = torch.empty_like(x)
    means, squares = x.new_empty((2, n, parts, groups), dtype=torch.float32)
    grid = n, triton.cdiv(groups, together), parts
    how = {"C": size, "CP": lanes, "G": together, "ROWS": ROWS, "PIXELS": PIXELS}
    with torch.cuda.device_of(x):  # Triton launches on the current GPU
        moments[grid](x, means, squares, pixels, channels, groups, **how)
        normalize[grid](x, y, weight, bias, means, squares, pixels, channels, groups, eps, **how, SILU=silu)
    return y

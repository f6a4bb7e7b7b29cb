"""The images of a table's cells, side by side, with their difference from the exact flow."""

import contextlib

import numpy as np
from PIL import Image

TILES = 4  # images shown of a cell
TILE = 0.85  # inches that they take
CONTRAST = 4  # of a difference


def read_cells(done, bench):
    """(label, budget) → (images, the exact flow's images or None) of the cells of the first profile and seed.

    done: pairs of a cell and its record. Images are lists of uint8 arrays (H, W[, 3]).
    """
    first, found = done[0][0], {}
    for cell, _ in done:
        if (cell.profile, cell.seed) == (first.profile, 0) and (images := read_images(bench.path(cell))):
            found[cell.label, cell.asked] = images, read_flow(bench.folder / "flow" / f"{cell.name}.npy")
    return found


def read_images(folder):
    """The first images of a sampling run's folder, up to one that is damaged or not there."""
    images = []
    with contextlib.suppress(Exception):  # Pillow raises nearly anything for a damaged file
        for i in range(TILES):
            images.append(np.asarray(Image.open(folder / f"{i:06d}.png")))
    return images


def read_flow(path):
    """The exact flow's images in a file of uint8 (n, C, H, W); None where there is none."""
    with contextlib.suppress(OSError, ValueError):
        images = np.load(path).transpose(0, 2, 3, 1)
        return [image[..., 0] if image.shape[-1] == 1 else image for image in images]
    return None


def tiles(images, unit):
    """Methods across, steps (or calls) down; of each cell the first images and their differences from the exact flow.

    The images of an adaptive method stand in every row.
    """
    from matplotlib.figure import Figure

    labels = list(dict.fromkeys(label for label, _ in images))
    budgets = sorted({budget for _, budget in images if budget}) or [None]
    wide = {}  # label → inches
    for (label, _), (_, flow) in images.items():
        wide[label] = max(wide.get(label, 0), TILE * (2.1 if flow else 1))
    size = (sum(wide.values()) + 0.15 * len(labels) + 0.6, (TILE + 0.1) * len(budgets) + 0.5)
    figure = Figure(size, layout="constrained")
    ratios = {"width_ratios": [wide[label] for label in labels]}
    panels = figure.subplots(len(budgets), len(labels), squeeze=False, gridspec_kw=ratios)
    for row, budget in zip(panels, budgets, strict=True):
        for panel, label in zip(row, labels, strict=True):
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(False)
            held = images.get((label, budget), images.get((label, None)))
            if held:
                panel.imshow(beside_flow(*held), cmap="gray", vmin=0, vmax=255)
        row[0].set_ylabel(f"{budget:g} {unit}" if budget else "adaptive", fontsize=10)
    for panel, label in zip(panels[0], labels, strict=True):
        panel.set_title(label.replace(" ", "\n"), fontsize=10)
    return figure


def beside_flow(images, flow):
    """Images in a square, and beside it, if `flow` is there, what they differ by: white is none."""
    if not flow:
        return square(images[:TILES])
    pairs = zip(images, flow, strict=False)
    apart = [255 - np.clip(CONTRAST * np.abs(a.astype(int) - b), 0, 255).astype(np.uint8) for a, b in pairs]
    left, right = square(images[: len(apart)]), square(apart)
    gap = np.full((len(left), max(2, left.shape[1] // 10), *left.shape[2:]), 255, np.uint8)
    return np.concatenate([left, gap, right], axis=1)


def square(images):
    """uint8 images (n, H, W[, 3]) → one, side by side in a square, a light line between them."""
    side = int(np.ceil(np.sqrt(len(images))))
    height, width = images[0].shape[:2]
    gap = max(1, width // 16)
    canvas = np.full((side * (height + gap) - gap, side * (width + gap) - gap, *images[0].shape[2:]), 255, np.uint8)
    for k, image in enumerate(images):
        top, left = k // side * (height + gap), k % side * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas

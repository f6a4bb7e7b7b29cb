"""Train the classifier of Fashion-MNIST whose features `--features fashion` compares images by.

    python tools/classifier.py --to temp/classifier.safetensors

Images are mirrored and shifted by up to 2 pixels at random; AdamW, one cycle of the learning rate, cross-entropy with
labels smoothed by 0.1. Prints the accuracy on the 10,000 test images, which choose nothing.
"""

import argparse
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy, pad
from tqdm import tqdm

from pndm.config.errors import InputError
from pndm.config.schema import DatasetSection
from pndm.dataset import encode, open_dataset
from pndm.dataset.readers import fashion_labels
from pndm.model.checkpoint import save
from pndm.model.engine import resolve
from pndm.runner.measure.classifier import Classifier

BATCH = 128
SHIFT = 2
LARGEST_RATE = 3e-3


def data(split, path=None):
    """The images (n, 1, 28, 28) of a split in [−1, 1], and their labels (n,)."""
    section = DatasetSection(dataset="FASHION", split=split, path=path, image_size=28, channels=1)
    return encode(open_dataset(section).items, section), fashion_labels(section).long()


def changed(images, random):
    """The images, half of them mirrored, each shifted by up to SHIFT pixels; black comes in at the edges."""
    size, n = images.shape[-1], len(images)
    padded = pad(images, (SHIFT,) * 4, value=-1)
    rows, columns = (torch.randint(0, 2 * SHIFT + 1, (n, 1), generator=random) + torch.arange(size) for _ in range(2))
    mirrored = torch.rand(n, 1, generator=random) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    return padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def train(images, labels, epochs, seed=0):
    """A `Classifier`, trained."""
    torch.manual_seed(seed)
    net, random = Classifier().train(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    fast = resolve("auto", torch.device("cpu")) == "bf16"
    steps = epochs * (len(images) // BATCH)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, LARGEST_RATE, steps)
    for step in tqdm(range(steps)):
        place = step % (len(images) // BATCH)
        if place == 0:
            order = torch.randperm(len(images), generator=random)
        ids = order[place * BATCH : (place + 1) * BATCH]
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            logits = net(changed(images[ids], random))
        loss = cross_entropy(logits.float(), labels[ids], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cycle.step()
    return net.eval()


@torch.inference_mode()
def accuracy(net, images, labels):
    """The share of images that the classifier names rightly."""
    right = [net(part).argmax(1) == truth for part, truth in zip(images.split(500), labels.split(500), strict=True)]
    return torch.cat(right).double().mean().item()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", required=True, help="file of the weights, .safetensors")
    parser.add_argument("--epochs", type=int, default=14, help="passes over the training images; default 14")
    parser.add_argument("--path", help="folder of Fashion-MNIST's files; default as for training")
    args = parser.parse_args(argv)
    to = Path(args.to).resolve()
    if to.suffix != ".safetensors" or to.is_dir() or not to.parent.is_dir():
        parser.error(f"--to {args.to} must be a .safetensors file in a folder that exists")
    if args.epochs < 1:
        parser.error(f"--epochs is {args.epochs}, it must be at least 1")
    try:
        images, tests = data("train", args.path), data("test", args.path)
    except (InputError, OSError) as error:
        parser.error(str(error))
    net = train(*images, args.epochs)
    share = accuracy(net, *tests)
    save(args.to, net.state_dict(), {"classifier": "FASHION", "epochs": args.epochs, "test_accuracy": share})
    print(f"{args.to}: {100 * share:.2f} % of the test images are named rightly")


if __name__ == "__main__":
    main()

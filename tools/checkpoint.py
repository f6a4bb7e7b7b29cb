"""The checkpoint doctor: what a file is, whose network it holds, and which experiment of config/ it fits.

    python tools/checkpoint.py temp/models/ddim_cifar10.ckpt
    python tools/checkpoint.py temp/models/ddim_cifar10.ckpt --to temp/models/ddim_cifar10.safetensors

FILE is anything that --model_path takes. --to writes it under this project's own names, with the Model section, the
kind of weights and the sha256 of the source as metadata; it never overwrites. A file that fits no experiment is
compared with the closest; one of EDM says its own settings. Exit status: 0 it fits one, 1 it fits none, 2 wrong input.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from pndm.config import published
from pndm.config.errors import InputError
from pndm.config.keys import Section
from pndm.config.load import files, load, model_section
from pndm.model import checkpoint, diffusers
from pndm.model.settings import settings_of
from pndm.model.trained import check_prediction
from pndm.model.unet import UNet
from pndm.runner import fetch

OWN = "no experiment of config/, but what the file itself says"


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def main(argv=None):
    """Run the command line `argv`; returns the exit status."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("file", metavar="FILE", help="checkpoint, diffusers folder, published name or hub name")
    parser.add_argument("--to", metavar="OUT.safetensors", help="write it under this project's own names")
    parser.add_argument("--bf16", action="store_true", help="with --to: round the weights to bfloat16, half the size")
    args = parser.parse_args(argv)
    if args.bf16 and not args.to:
        parser.error("--bf16 needs --to")
    try:
        return examine(args.file, args.to, args.bf16)
    except InputError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
    except OSError as error:
        print(f"{parser.prog}: {error.filename or args.file}: {error.strerror or error}", file=sys.stderr)
    return 2


def examine(file, to=None, rounded=False):
    """Print what `file` is, and convert it to `to`; returns the exit status. Raises InputError.

    rounded: whether the weights are written in bfloat16. They are computed with in float32 all the same.
    """
    target = Path(to) if to else None
    if target and (target.exists() or not target.parent.is_dir() or target.suffix != ".safetensors"):
        raise InputError(f"--to: {target} must be a new .safetensors file in a folder that exists")
    if not Path(file).exists() and (entry := published.manifest().get(file)):
        file = fetch.provide(entry)
    source = checkpoint.read(file)
    digest = checkpoint.sha256(source.path)
    candidates = [compare(path.name, load(path).Model, source) for path in files()]
    if (own := source.record.get("Model")) and all(candidate.differences for candidate in candidates):
        candidates.append(compare(OWN, model_section(own), source))
    fitting = [candidate.experiment for candidate in candidates if not candidate.differences]
    best = min(candidates, key=lambda candidate: len(candidate.differences))

    say("file", source.path)
    say("sha256", digest)
    entry = fetch.recognise(source.path, digest)
    if entry:
        say("published", f"{entry.name}: {entry.what} of {entry.of}, by {entry.by}; licence: {entry.licence}")
    say("format", source.format)
    say("weights", source.weights)
    say("parameters", f"{sum(v.numel() for v in source.tensors.values()):,} in {len(source.tensors):,} tensors")
    say("network", f"{'' if fitting else 'closest is '}{best.section.struc} under the names of {best.family}")
    if not fitting:
        say("fits", f"no experiment of config/; from {best.experiment} it differs in {len(best.differences):,}:")
        for difference in best.differences[:5]:
            say("", difference)
        if target:
            raise InputError(f"--to: {source.path} fits no experiment, so nothing is converted")
        return 1
    say("fits", ", ".join(fitting))
    if target:
        trained = training_record(source)
        metadata = {"Model": best.section.model_dump(), "weights": source.weights, "source_sha256": digest} | trained
        if licence := entry.licence if entry else source.record.get("licence"):
            metadata["licence"] = licence
        tensors = checkpoint.state_dict_for(best.network, source)
        if rounded:
            tensors = {name: value.bfloat16() for name, value in tensors.items()}
        checkpoint.save(target, tensors, metadata)
        say("written", target)
    return 0


def training_record(source):
    """What a `Checkpoint` says of the noise and the pixels that its network learned, as sections. Raises InputError."""
    check_prediction(source, "a converted file would not say so; sample from the folder itself")
    training = diffusers.training_of(source.path)
    if training and "type" not in training.schedule:
        message = f"{source.path}: no converted file can say its noise schedule; sample from the folder itself"
        raise InputError(message)
    found = {"Schedule": training.schedule} if training else {}
    return found | {name: source.record[name] for name in ("Schedule", "Dataset") if name in source.record}


def say(what, value):
    """Print a line of the report. Names in a file may hold codes for the terminal: they are not printed."""
    print(f"{what:12}{checkpoint.printable(str(value))}")


class Candidate(NamedTuple):
    """An experiment's network, without memory, and where a checkpoint differs from it under its closest family."""

    experiment: str
    section: Section
    network: UNet
    family: str
    differences: list


def compare(name, section, source):
    """The `Candidate` that an experiment of that name, with this `Model` section, is for a checkpoint."""
    with torch.device("meta"):
        network = UNet(settings_of(section))
    fit = checkpoint.closest(network, source.tensors)
    settings = checkpoint.contrast(source.settings, network.settings) if source.settings else ""
    return Candidate(name, section, network, fit.family, [settings] * bool(settings) + fit.differences)


if __name__ == "__main__":
    sys.exit(main())

"""The front door: flags and one YAML experiment in, one runner called. For example

    python main.py --runner sample --method F-PNDM --sample_speed 50
    python main.py --runner train --config digits.yml --train_path temp/train

Any value of the experiment can be laid over: --set Sample.batch_size=64.
"""

import argparse
import math
import os
import re
import signal
import sys
import time
from pathlib import Path

from pndm.config.errors import InputError
from pndm.runner.solver.events import NotFinite

PROGRAM = "pndm" if Path(sys.argv[0]).stem == "pndm" else "main.py"  # the installed command, or this file
RANK = int(os.environ.get("RANK", 0))  # of this process, where torchrun started several

# Which section of the experiment each flag lays itself over, by runner; a flag not named is the runner's own.
FEATURES = dict.fromkeys(("features", "inception_path"), "Sample")
SAMPLE = dict.fromkeys(
    ("method", "sample_speed", "nfe", "spacing", "times", "profile", "eta", "clip", "threshold", "rtol", "atol"),
    "Sample",
)
IMAGES = FEATURES | dict.fromkeys(("total_num", "batch_size", "model_path", "precision", "compile", "keep"), "Sample")
REFERENCE = dict.fromkeys(("statistics", "metrics"), "Sample")
RUNNERS = {
    "sample": SAMPLE | IMAGES | REFERENCE | {"seed": "Sample"} | dict.fromkeys(("image_path", "timeout", "plan")),
    "plan": SAMPLE | IMAGES | {"seed": "Sample"},
    "reproduce": IMAGES
    | REFERENCE
    | dict.fromkeys(("table", "methods", "steps", "seeds", "flow", "image_path", "timeout", "plan")),
    "train": SAMPLE
    | {"seed": "Train", "batch_size": "Dataset"}
    | dict.fromkeys(("train_path", "restart", "timeout", "plan")),
    "fid": FEATURES | {"metrics": "Sample", "paths": None, "out": None},
    "stats": FEATURES | {"paths": None, "out": None},
}
CONFIG = "digits.yml"
COMMON = {"runner", "config", "device", "set"}


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise SystemExit(complain(message))


def count(text):
    """A whole number, not below 0."""
    if (value := int(text)) < 0:
        raise ValueError
    return value


def minutes(text):
    """A positive number of minutes."""
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError
    return value


_OUT_OF_MEMORY = "the device is out of memory; a smaller --batch_size may fit"


def complain(message):
    """Print one line on stderr; returns the exit status of wrong input."""
    if RANK:
        # What is wrong for all processes is said by the first, whose end lets torchrun end this one meanwhile.
        try:
            time.sleep(5)
        except KeyboardInterrupt:
            return 2
        message = f"process {RANK}: {message}"
    print(f"{PROGRAM}: {message}", file=sys.stderr)
    return 2


def parser():
    from pndm.runner.measure.features import EXTRACTORS
    from pndm.runner.solver.grid import SPACINGS
    from pndm.runner.solver.methods import METHODS, PROFILES

    p = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add = p.add_argument
    add("--runner", default="sample", choices=RUNNERS, help="what to do (default sample)")
    add(
        "--config",
        metavar="NAME.yml",
        help="experiment: a path, or a file of config/ (default digits.yml)",
    )
    add("--method", metavar="M", help=f"numerical method: {', '.join(METHODS)}")
    add("--sample_speed", metavar="N", help="number of steps")
    add("--nfe", metavar="N", help="instead: number of network calls an image")
    add("--spacing", metavar="S", help=f"of the times: {', '.join(SPACINGS)} (default uniform)")
    add("--times", metavar="T,…", help="instead of both: the falling times themselves; the last, -1, is clean data")
    add("--profile", metavar="P", help=f"{' or '.join(PROFILES)}: the paper, or the released code with its quirks")
    add("--eta", metavar="X", help="DDIM: from 0, no noise in the steps, to 1, DDPM")
    add("--clip", action="store_true", default=None, help="methods that predict the image: clip it to [−1, 1]")
    add("--threshold", metavar="P", help="or threshold it by this quantile of its pixels, 0.995 for one")
    add("--rtol", metavar="X", help="PF: relative tolerance")
    add("--atol", metavar="X", help="PF: absolute tolerance")
    add("--device", default="auto", metavar="D", help="cpu, cuda, cuda:1, mps; default auto, a GPU if there is one")
    add("--model_path", metavar="F", help="checkpoint to sample from")
    add("--image_path", metavar="P", help="folder for the images (default temp/sample/CONFIG_METHOD_STEPS)")
    add("--total_num", metavar="K", help="number of images")
    add("--keep", metavar="K", help="images left as files, the first (default all; reproduce: 16)")
    add("--batch_size", metavar="B", help="images a network call, or auto: what the memory takes")
    add("--precision", metavar="P", help="of the network: fp32, tf32, bf16; default auto, bf16 where it is fast")
    add("--compile", action="store_true", default=None, help="compile the network: half a minute, then faster")
    add("--seed", metavar="S", help="seed of the noise (sample) or of everything random (train)")
    add("--train_path", metavar="T", help="folder of the training run (default temp/train)")
    add("--restart", action="store_true", default=None, help="continue the training run in --train_path")
    add("--timeout", type=minutes, metavar="M", help="several processes: minutes one waits for another (default 30)")
    add("--features", metavar="F", help=f"features of the Fréchet distance: {', '.join(EXTRACTORS)}, none")
    add("--metrics", metavar="M", help="beyond it: kid, prdc, or kid,prdc; features are kept in memory then")
    add("--statistics", metavar="FILE", help="statistics file to measure samples against (default the dataset itself)")
    add("--inception_path", metavar="FILE", help="pytorch-fid's Inception weights (default the torch hub's cache)")
    add("--table", metavar="NAME", help="reproduce: a table of config/tables, or a path (default digits)")
    add("--methods", metavar="M,...", help="reproduce: only these of the table")
    add("--steps", metavar="N,...", help="reproduce: only these of the table")
    add("--seeds", metavar="N", help="reproduce: only the first N seeds of the table")
    add("--flow", type=count, metavar="K", help="reproduce: images whose distance to the exact flow is measured")
    add("--plan", action="store_true", default=None, help="print what the run would do and cost, and do nothing")
    add("--out", metavar="FILE", help="fid: JSON card; stats: .npz (default temp/stats/NAME.npz)")
    add("paths", nargs="*", help="fid: two of folder, statistics .npz, images .npz or .npy; stats: a folder or none")
    add("--set", action="append", default=[], metavar="Section.key=value", help="lay a value over the experiment's")
    return p


def overrides_of(args):
    """What the flags lay over the experiment, as `config.schema.load` takes it. Raises InputError."""
    from pndm.config.schema import parse_set

    sections = RUNNERS[args.runner]
    overrides = {}
    for item in args.set:
        target, value = parse_set(item)
        overrides[target] = ("--set", value)
    for name, value in vars(args).items():
        if value == "" or (isinstance(value, list) and "" in value):
            raise InputError(f"--{name}: nothing is given")
        if value in (None, []) or name in COMMON:
            continue
        if name not in sections:
            able = ", ".join(runner for runner, flags in RUNNERS.items() if name in flags)
            flag = f"--{name}" if name != "paths" else f"path {value[0]}"
            raise InputError(f"{flag} does not go with --runner {args.runner}, only with {able}")
        if sections[name]:
            overrides[f"{sections[name]}.{name}"] = (f"--{name}", value)
    # Whichever of these is given here stands instead of what the file gives.
    given = [target for target in ("Sample.sample_speed", "Sample.nfe", "Sample.times") if target in overrides]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} exclude each other")
    if given:
        unset = ("--set", None)
        overrides = {"Sample.nfe": unset, "Sample.times": unset} | overrides
    return overrides


def experiment(args):
    """The validated experiment that the flags describe. Raises InputError."""
    from pndm.config.schema import load

    return load(args.config or CONFIG, overrides_of(args))


def reproduce(args):
    """The runner reproduce; returns the exit status."""
    from pndm.config.schema import load_table
    from pndm.runner.table import run as reproduce

    if args.config:
        raise InputError(f"--config {args.config}: a table names its experiments; --table FILE takes another table")
    path, table = load_table(args.table or "digits")
    folder = args.image_path or Path("temp/reproduce") / path.stem
    narrow = {name: getattr(args, name) for name in ("methods", "steps", "seeds")}
    laid, where = overrides_of(args), device(args.device)
    if args.plan:
        reproduce.show_plan(table, path, laid, where, **narrow)
        return 0
    failed = reproduce.run(table, path, laid, where, folder, args.timeout, args.flow, **narrow)
    for line in failed:
        print(f"{PROGRAM}: {line}", file=sys.stderr)
    return 2 if failed else 0


def device(name):
    """The torch device of that name. Raises InputError when this machine has none."""
    import torch

    there = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    there += ["mps"] if torch.backends.mps.is_available() else []
    if name == "auto":
        name = there[-1] if there[-1] == "mps" else there[min(1, len(there) - 1)]
    if name == "cuda" and len(there) > 1:
        name = "cuda:0"
    if name not in there:
        raise InputError(f"--device: {name} is not there; this machine has {', '.join(there)}")
    return torch.device(name)


def image_path(args, settings):
    """Default folder of a sampling run, one for each of what people compare."""
    name = f"{Path(args.config or CONFIG).stem}_{settings.method}"
    steps = f"{len(settings.times) - 1}times" if settings.times else settings.sample_speed
    steps = f"nfe{settings.nfe}" if settings.nfe else steps
    name += "" if settings.method == "PF" else f"_{steps}"
    name += "" if settings.spacing == "uniform" else f"_{settings.spacing}"
    name += "" if settings.profile == "exact" else f"_{settings.profile}"
    name += f"_eta{settings.eta:g}" if settings.eta else ""
    name += "_clip" if settings.clip else ""
    name += f"_threshold{settings.threshold:g}" if settings.threshold else ""
    name += "" if settings.seed == 0 else f"_seed{settings.seed}"
    return Path("temp/sample") / name


def distance(args, resolved):
    """The runners fid and stats, on paths, or on the experiment's dataset."""
    from pndm.dataset import open_dataset
    from pndm.dataset.readers import plain_folder
    from pndm.runner.measure import fid

    settings = resolved.Sample
    features = settings.features if args.features or (args.runner == "stats" and not args.paths) else "inception"
    if features == "none":
        if args.features:
            raise InputError(f"--features: none leaves --runner {args.runner} nothing to do")
        features = "inception"
    where = device(args.device)
    if args.runner == "fid":
        fid.compare(args.paths, features, where, settings.inception_path, args.out, settings.metrics)
        return
    if len(args.paths) > 1:
        raise InputError(f"--runner stats: {len(args.paths)} paths are given; it takes one folder, or --config alone")
    if args.paths and not Path(args.paths[0]).is_dir():
        raise InputError(f"{args.paths[0]}: no such folder")
    images = plain_folder(args.paths[0]) if args.paths else open_dataset(resolved.Dataset)
    name = Path(args.paths[0]).resolve().name if args.paths else Path(args.config or CONFIG).stem
    fid.make_statistics(images, features, where, args.out or f"temp/stats/{name}.npz", settings.inception_path)


def main(argv=None):
    """Run the command line `argv`; returns the exit status."""
    args = parser().parse_intermixed_args(argv)

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is a Ctrl-C
    try:
        if args.runner == "reproduce":
            return reproduce(args)
        resolved = experiment(args)
        if resolved.Sample.method == "PF" and args.sample_speed and not RANK:
            print(f"{PROGRAM}: PF chooses its own steps; --sample_speed has no effect", file=sys.stderr)
        if args.plan or args.runner == "plan":
            from pndm.runner import plan

            (plan.show_training if args.runner == "train" else plan.show)(resolved, device(args.device))
        elif args.runner == "sample":
            from pndm.runner import sample

            folder = args.image_path or image_path(args, resolved.Sample)
            sample.run(resolved, device(args.device), folder, args.timeout)
        elif args.runner in ("fid", "stats"):
            distance(args, resolved)
        else:
            from pndm.runner import train

            folder = args.train_path or "temp/train"
            train.run(resolved, device(args.device), folder, bool(args.restart), args.timeout)
    except (InputError, NotFinite) as error:
        return complain(error)
    except MemoryError:
        return complain(_OUT_OF_MEMORY)
    except OSError as error:
        return complain(f"{error.filename or 'a file'}: {error.strerror or error}")
    except KeyboardInterrupt:
        if not RANK:
            how = "--restart" if args.runner == "train" else "the same command"
            print(f"{PROGRAM}: interrupted; what was finished is kept, {how} continues", file=sys.stderr)
        return 130
    except RuntimeError as error:
        if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
            return complain(_OUT_OF_MEMORY)
        if "WORLD_SIZE" in os.environ and re.search("timed? ?out|connection closed|peer", str(error), re.IGNORECASE):
            return complain(f"another process did not answer ({str(error).splitlines()[0]})")
        raise
    return 0


def command():
    """The installed command `pndm`, and this file when it is run."""
    status = main()
    if "WORLD_SIZE" in os.environ:
        # gloo's threads now and then abort an interpreter that is tearing down, though all its work is done.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    command()

"""The command line: flags and one YAML experiment in, one runner called. For example

    python main.py --runner sample --method F-PNDM --sample_speed 50
    python main.py --runner train --config digits.yml --train_path temp/train

--set overrides any value of the experiment: --set Sample.batch_size=64.
"""

import argparse
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from pndm import early
from pndm.arguments import KEYS, OWN, count, minutes, overrides_of
from pndm.config.errors import InputError
from pndm.config.keys import at_home, nearest
from pndm.config.load import load, load_table, place_of
from pndm.places import CONFIG, TRAINING, image_path, search_path
from pndm.runner.solver.events import NotFinite
from pndm.runner.solver.methods import METHODS

Arguments: TypeAlias = argparse.Namespace
FULL = "out of memory|ALLOC_FAILED|can't allocate memory|map segment"  # in errors of PyTorch, CUDA, cuBLAS, the loader
SCRIPT = Path(sys.argv[0])  # the installed command, the package, or the file main.py
PROGRAM = "pndm" if SCRIPT.stem == "pndm" or SCRIPT.parts[-2:] == ("pndm", "__main__.py") else "main.py"
RUNNERS = {
    "sample": "make images and measure them",
    "train": "train a network",
    "fid": "the distance between two sets of images",
    "stats": "a statistics file of images",
    "search": "find the best sampler for a network and a number of calls",
    "plan": "what a sampling run would do and cost",
    "reproduce": "a table: many sampling runs",
    "check": "what a run or a table needs, and what of it is missing",
    "fetch": "download published files, by name or for a run or a table",
}


class Parser(argparse.ArgumentParser):
    """Ends with one line on an error."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: -"):
            given = message.split()[2].partition("=")[0]
            message = f"unknown flag {given}{nearest(given, self._option_string_actions)}"
        raise SystemExit(complain(message.removeprefix("argument ")))


def rank() -> int:
    """The rank of this process, where torchrun started several."""
    text = os.environ.get("RANK", "0")
    return int(text) if text.isdecimal() else 0


def complain(message: object) -> int:
    """Print one line on stderr; returns the exit status of wrong input."""
    if rank():
        # Rank 0 says what is wrong for all. It ends first, and torchrun ends this process during the sleep.
        time.sleep(5)
        message = f"process {rank()}: {message}"
    print(f"{PROGRAM}: {message}", file=sys.stderr)
    return 2


def parser() -> Parser:
    """The parser of the command line. Flags that set a key are made from the schema."""
    p = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    what = ", ".join(f"{name} ({meaning})" for name, meaning in RUNNERS.items())
    p.add_argument("--runner", default="sample", choices=RUNNERS, help=f"what to do: {what}; default sample")
    what = f"experiment: a path, or a file of config/ (default {CONFIG})"
    p.add_argument("--config", type=at_home, metavar="NAME.yml", help=what)
    p.add_argument(
        "--device", default="auto", metavar="D", help="cpu, cuda, cuda:1, xpu, mps; default: a GPU if there is one"
    )
    p.add_argument("--offline", action="store_true", help="download nothing")
    p.add_argument("--set", action="append", default=[], metavar="Section.key=value", help="override any value")
    keys = p.add_argument_group("values of the experiment")
    for flag in KEYS.values():
        how = {"action": "store_true", "default": None} if flag.switch else {"metavar": flag.metavar}
        keys.add_argument(f"--{flag.name}", help=flag.help.replace("%", "%%"), **how)
    add = p.add_argument_group("flags of a runner").add_argument
    add(
        "--image_path",
        type=at_home,
        metavar="P",
        help="folder for the images (default temp/sample/CONFIG_METHOD_STEPS, temp/reproduce/TABLE)",
    )
    add("--train_path", type=at_home, metavar="T", help=f"folder of the training run (default {TRAINING})")
    add("--restart", action="store_true", default=None, help="continue the training run in --train_path")
    add("--minutes", type=minutes, metavar="M", help="train: stop after M minutes, with a checkpoint")
    add("--timeout", type=minutes, metavar="M", help="minutes that one process waits for another (default 30)")
    add("--plan", action="store_true", default=None, help="print what the run would do and cost, and do nothing")
    what = "a table of config/tables, or a path (reproduce: default digits)"
    add("--table", type=at_home, metavar="NAME", help=what)
    add("--methods", metavar="M,...", help="reproduce: only these of the table; search: rank only these")
    add(
        "--noises",
        type=count,
        metavar="K",
        help="search: noises to search on (default 1024); half as many are held out",
    )
    add(
        "--time",
        type=minutes,
        metavar="M",
        help="search: end the fit after about M minutes, if it has not ended before",
    )
    where = "search: folder of what is found (default temp/search/CONFIG_nfeN)"
    add("--search_path", type=at_home, metavar="P", help=where)
    add("--steps", metavar="N,...", help="reproduce: only these of the table; train: N, the steps in all")
    add("--seeds", metavar="N", help="reproduce: only the first N seeds of the table")
    add("--flow", type=count, metavar="K", help="reproduce: images whose distance to the exact flow is measured")
    what = "reproduce: a table's cells.csv; the cells that it has are taken, not run"
    add("--cells", type=at_home, metavar="FILE", help=what)
    add("--out", type=at_home, metavar="FILE", help="fid: JSON card; stats: .npz (default temp/stats/NAME.npz)")
    paths = "fid: two of folder, statistics .npz, images .npz or .npy; stats: a folder or none; fetch: published names"
    add("paths", nargs="*", type=at_home, help=paths)
    return p


def experiment(args: Arguments) -> Any:
    """The validated experiment that the flags describe. Raises InputError."""
    return load(args.config or CONFIG, overrides_of(args))


def start(args: Arguments) -> Any:
    """The device of --device, and this process set up for it. Raises InputError when this machine has none.

    It is what imports PyTorch, which takes seconds: wrong input is found before.
    """
    from pndm.model import backend
    from pndm.places import device

    backend.start()
    return device(args.device)


def refuse_missing(overrides: Mapping[str, tuple[str | None, Any]]) -> None:
    """A published file's place that is given by hand is not downloaded, as the same place in an experiment is."""
    from pndm.config.published import absent

    for key, flag in (
        ("Sample.model_path", "--model_path "),
        ("Sample.statistics", "--statistics "),
        ("Train.start", ""),
    ):
        _, given = overrides.get(key, ("", None))
        if isinstance(given, str) and absent(given):
            from pndm.runner.fetch import refuse_place  # imports PyTorch

            refuse_place(given, key, flag)


def place(args: Arguments, keys: tuple[str, ...]) -> str:
    """What stands in front of an error about `keys`: the flag that set one of them, or the experiment's file."""
    file = "" if args.runner == "reproduce" or (args.paths and not args.config) else args.config or CONFIG
    try:
        places = {target: flag for target, (flag, value) in overrides_of(args).items() if flag and value is not None}
    except InputError:
        places, file = {}, ""
    chosen = [key for key in keys if "." not in key and (key, args.device) != ("device", "auto")]
    places |= {key: "" if key == "paths" else f"--{key}" for key in chosen}
    found = place_of(keys, places, file)
    return f"{found}: " if keys and found else ""


def reproduce(args: Arguments) -> int:
    """The runner reproduce; returns the exit status."""
    if args.config:
        raise InputError(f"{args.config}: a table names its experiments; --table FILE takes another table", "config")
    path, table = load_table(args.table or "digits")
    folder = args.image_path or Path("temp/reproduce") / path.stem
    narrow = {name: getattr(args, name) for name in ("methods", "steps", "seeds")}
    laid, where = overrides_of(args), start(args)
    from pndm.runner.table import run as table_run

    if args.plan:
        table_run.show_plan(table, path, laid, where, args.cells, **narrow)
        return 0
    failed = table_run.run(table, path, laid, where, folder, args.timeout, args.flow, args.cells, **narrow)
    for line in failed:
        print(f"{PROGRAM}: {line}", file=sys.stderr)
    return 2 if failed else 0


def check_or_fetch(args: Arguments) -> None:
    """The runners check and fetch."""
    from pndm.runner import needs
    from pndm.runner.table.cells import cells_of

    wanted = []
    if args.table and args.config:
        raise InputError(f"{args.config}: a table names its experiments; give one of --config and --table", "config")
    if args.table:
        path, table = load_table(args.table)
        wanted = [cell.experiment for cell in cells_of(table, path, overrides_of(args))[0]]
    elif args.config or args.runner == "check":
        wanted = [experiment(args)]
    elif overrides_of(args):
        raise InputError("--runner fetch: a value of an experiment is given, but no experiment; --config names one")
    found = needs.needs_of(wanted, training=not args.table)
    needs.obtain(args.paths, found, args.plan or args.runner == "check")


def distance(args: Arguments, resolved: Any) -> None:
    """The runners fid and stats, on paths, or on the experiment's dataset."""
    from pndm.dataset import open_dataset
    from pndm.dataset.readers import plain_folder
    from pndm.runner.measure import fid

    settings, given = resolved.Sample, "Sample.features" in overrides_of(args)
    features = settings.features if given or args.config or (args.runner == "stats" and not args.paths) else None
    if features == "none":
        if given:
            raise InputError(f"none leaves --runner {args.runner} nothing to do", "Sample.features")
        features = None  # as the images' records say, else inception
    where = start(args)
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


def dispatch(args: Arguments) -> int:
    """Call the runner; returns the exit status."""
    early.prepare()
    if args.runner not in OWN["paths"].split() and args.paths and args.paths[0] in RUNNERS:
        raise InputError(f"{args.paths[0]} is a runner; --runner {args.paths[0]} runs it")
    if args.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # huggingface_hub's own switch, which `config/published.py` reads, too
    if args.runner in ("check", "fetch"):
        check_or_fetch(args)
        return 0
    if not args.plan and args.runner != "plan":
        refuse_missing(overrides_of(args))
    if args.runner == "reproduce":
        return reproduce(args)
    resolved = experiment(args)
    method = resolved.Sample.method
    if METHODS[method].adaptive and args.sample_speed and not rank():
        print(f"{PROGRAM}: {method} chooses its own steps; --sample_speed has no effect", file=sys.stderr)
    if args.plan or args.runner == "plan":
        from pndm.runner import plan

        (plan.show_training if args.runner == "train" else plan.show)(resolved, start(args))
    elif args.runner == "sample":
        from pndm.runner import sample

        folder = args.image_path or image_path(args, resolved.Sample)
        sample.run(resolved, start(args), folder, args.timeout)
    elif args.runner == "search":
        from pndm.runner.search import run as search

        how = (args.methods, args.noises, args.time, args.timeout)
        folder = args.search_path or search_path(args, resolved.Sample)
        search.run(resolved, args.config or CONFIG, start(args), folder, *how, overrides_of(args))
    elif args.runner in ("fid", "stats"):
        distance(args, resolved)
    else:
        from pndm.runner import train

        folder = args.train_path or TRAINING
        train.run(resolved, start(args), folder, bool(args.restart), args.timeout, args.minutes)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv`; returns the exit status: 2 for wrong input, 130 for an interruption."""
    early.open_streams()
    args = parser().parse_intermixed_args(argv)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is a Ctrl-C
        remedy = "; a smaller --batch_size may fit" if args.runner in KEYS["batch_size"].keys else ""
        return attempt(lambda: dispatch(args), lambda keys: place(args, keys), remedy)
    except KeyboardInterrupt:  # also one that comes while an error is told
        if not rank():
            how = dict.fromkeys(("sample", "reproduce", "fetch"), "the same command")
            if any(Path(args.train_path or TRAINING).glob("train-*.ckpt")):
                how["train"] = "--restart"
            kept = f"; what was finished is kept, {how[args.runner]} continues" if args.runner in how else ""
            if args.runner == "train" and not kept:
                kept = "; there is no checkpoint"
            print(f"{PROGRAM}: interrupted{kept}", file=sys.stderr)
        return 130


def attempt(run: Callable[[], int], place: Callable[[tuple[str, ...]], str], remedy: str) -> int:
    """Call `run`; an error that it may raise is told in one line. Returns the exit status.

    place(keys): what stands in front of an error about them. remedy: what may help where memory is short.
    """
    full = f"the device is out of memory{remedy}"
    try:
        return run()
    except InputError as error:
        return complain(f"{place(error.keys)}{error}")
    except NotFinite as error:
        return complain(error)
    except MemoryError:
        return complain(full)
    except BrokenPipeError:
        return 141  # as of a program that SIGPIPE ends
    except OSError as error:
        file = error.filename or "standard output"
        broken = isinstance(error, FileExistsError) and Path(file).is_symlink() and not Path(file).exists()
        return complain(f"{file}: {'a link to nothing' if broken else error.strerror or error}")
    except (RuntimeError, ImportError) as error:
        text = str(error).partition("\n")[0]
        if re.search(FULL, text):
            return complain(full)
        raise


def command() -> None:
    """The installed command `pndm`, and main.py."""
    try:
        status = main()
    except Exception:
        if "WORLD_SIZE" not in os.environ:
            raise
        traceback.print_exc()  # and end, as below: NCCL may hang where the interpreter is torn down
        status = 1
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stdout = None
    except OSError as error:
        status = complain(f"standard output: {error.strerror}")
        sys.stdout = None
    if "WORLD_SIZE" in os.environ:
        from pndm.runner.processes import end

        end(status)
    sys.exit(status)

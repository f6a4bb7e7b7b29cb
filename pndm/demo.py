"""A page to look at: the same noise drawn by several methods at several numbers of calls.

pndm demo                                  the live page, on http://127.0.0.1:7860
pndm demo --export page.html --images 8    the same as one file
"""

import argparse
import glob
import os
from pathlib import Path
from typing import Any

from pndm import cli, early, places
from pndm.arguments import count
from pndm.config.errors import InputError
from pndm.config.files import aside
from pndm.config.keys import at_home
from pndm.config.load import FOLDER, load, parse_set, place_of

METHODS, CALLS = "DDIM,F-PNDM,DPM-Solver++2M", "10,20,40"
PORTS = 2**16 - 1


def parser() -> cli.Parser:
    """The parser of `pndm demo`."""
    p = cli.Parser(
        prog=f"{cli.PROGRAM} demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = p.add_argument
    add("--config", metavar="NAME.yml", default=places.CONFIG, help=f"experiment (default {places.CONFIG})")
    add("--model_path", metavar="F", help="checkpoint to sample from")
    add("--device", default="auto", metavar="D", help="cpu, cuda, cuda:1, xpu, mps; default: a GPU if there is one")
    add("--set", action="append", default=[], metavar="Section.key=value", help="override any value of the experiment")
    add("--methods", metavar="M,...", default=METHODS, help=f"rows (default {METHODS})")
    add("--spacings", metavar="S,...", default="uniform", help="each method on each of these (default uniform)")
    add("--solver", metavar="NAME", help="solver files of the method searched: {nfe} in it stands for the calls")
    add("--calls", metavar="N,...", default=CALLS, help=f"columns: network calls an image (default {CALLS})")
    add("--seed", metavar="S", default="0", help="seed of the noise (default 0)")
    add("--images", metavar="K", default="4", help="images of a cell (default 4)")
    add("--other", metavar="S", default="1", help="second seed (default 1)")
    add("--share", metavar="X", default="0", help="turn the noise towards that of the second seed: 0 not, 1 wholly")
    add("--limit", type=count, metavar="N", help="most images × calls of a request (default 20,000)")
    add("--export", type=at_home, metavar="FILE", help="write the page to a file; needs no Gradio")
    add("--host", metavar="H", default="127.0.0.1", help="address to listen on (default 127.0.0.1, this machine alone)")
    add("--port", type=count, metavar="P", default=7860, help="port to listen on (default 7860)")
    return p


def main(argv: list[str] | None = None) -> int:
    """Run `pndm demo` with the arguments `argv`; returns the exit status."""
    early.open_streams()
    args = parser().parse_args(argv)
    flags = {"Sample.model_path": "--model_path"} if args.model_path is not None else {}
    flags |= {target.partition("=")[0].strip(): "--set" for target in args.set}

    def place(keys: tuple[str, ...]) -> str:
        found = place_of(keys, flags | {key: f"--{key}" for key in keys if "." not in key}, "")
        return f"{found}: " if found else ""

    try:
        return cli.attempt(lambda: show(args), place, "; fewer --images may fit")
    except KeyboardInterrupt:
        return 130


def show(args: argparse.Namespace) -> int:
    """Open the page, or write it to a file; returns the exit status."""
    if args.export is None:
        require_gradio()
    early.prepare()
    from pndm.runner.demo.cells import Artist
    from pndm.runner.demo.commands import Origin
    from pndm.runner.demo.request import LIMIT, listed, request_of

    if args.port > PORTS:
        raise InputError(f"{args.port} is not a port; ports go up to {PORTS}", "port")
    overrides = {target: ("--set", value) for target, value in map(parse_set, args.set)}
    if args.model_path is not None:
        overrides["Sample.model_path"] = ("--model_path", args.model_path)
    cli.refuse_missing(overrides)
    experiment, device = load(args.config, overrides), cli.start(args)
    limit = LIMIT if args.limit is None else args.limit
    names = ("methods", "spacings", "calls", "seed", "images", "other", "share")
    chosen: dict[str, Any] = {name: getattr(args, name) for name in names}
    files = solver_files(args.solver, args.config)
    request = request_of(**chosen, limit=limit, files=files)
    origin = Origin(args.config, str(device), {target: value for target, (_, value) in overrides.items()})
    artist = Artist(experiment, device)
    loaded = artist.loaded(experiment)
    facts = f"{args.config}, {loaded.record['path']}, {loaded.precision} on {device}"
    if args.export is not None:
        return export(artist, request, origin, facts, Path(args.export))
    from pndm.runner.demo import app

    chosen |= {name: listed(name, chosen[name]) for name in ("methods", "spacings")}
    chosen["share"] = request.noise.share
    page = app.build(artist, origin, chosen, facts, limit, files)
    try:
        address = app.serve(page, args.host, args.port)
    except OSError:  # which Gradio words as a want of ports, whatever the reason
        where = f"{args.host}, port {args.port}"
        raise InputError(f"nothing can listen on {where}; choose another --host or --port", "port") from None
    print(f"{address} shows the page; Ctrl-C ends it", flush=True)
    page.block_thread()
    return 0


def solver_files(given: str | None, config: str) -> str | None:
    """The name of the solver files, as given or those of config/solvers for the experiment; None if it has none."""
    if given is not None and "{nfe}" not in given:
        raise InputError(f"{given!r} has no {{nfe}}, which stands for the number of calls", "solver")
    name = f"{Path(config).stem}_nfe"
    known = any((FOLDER / "solvers").glob(f"{glob.escape(name)}*.yml"))
    return given or (f"{name}{{nfe}}" if known else None)


def require_gradio() -> None:
    """Raises InputError where Gradio is missing."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise InputError("the live page needs Gradio: pip install .[demo]; --export FILE does without") from None


def export(artist: Any, request: Any, origin: Any, facts: str, path: Path) -> int:
    """Draw a request and write it to one HTML file; returns the exit status."""
    from pndm.runner.demo.cells import LEAST
    from pndm.runner.demo.page import document

    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is not a folder", "export")
    if path.is_dir() or not path.name:
        raise InputError(f"{path} is a folder; a file's name is needed", "export")
    cells = {}
    for cell in artist.draw(request):
        known = (cell.row, cell.asked) in cells
        cells[cell.row, cell.asked] = cell
        if cell.message:
            print(f"{cell.row.label}, {cell.asked} calls: {cell.message}", flush=True)
        elif known or cell.sampling.draws:
            apart = "" if cell.distance is None else f", {max(cell.distance, LEAST):.2g} from the exact flow"
            print(f"{cell.row.label}: {cell.nfe:.4g} calls{apart}", flush=True)
    with aside(path) as file:
        file.write_text(document("The same noise by several methods", facts, request, cells, origin), encoding="utf-8")
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    return 0

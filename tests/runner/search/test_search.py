"""The runner search, its solver files, and what takes them."""

import contextlib
import itertools
import json
import shlex
import shutil
import types

import numpy as np
import pytest
import torch
import yaml
from helpers import LINEAR, ended, image_files, ranks
from safetensors.torch import load_file, save_file

from pndm import cli as main
from pndm.config.errors import InputError
from pndm.config.load import load, load_solver
from pndm.config.solver import save_solver
from pndm.pipeline import PNDMPipeline
from pndm.runner.folder import read_image
from pndm.runner.processes import Processes
from pndm.runner.random import noise
from pndm.runner.search import run as search
from pndm.runner.search.problem import Problem

FAST = ("--noises", "17", "--methods", "iPNDM2,S-PNDM", "--device", "cpu", "--nfe", "4", "--batch_size", "64")
FAST += ("--total_num", "2", "--set", "Schedule.diffusion_step=40", "--set", "Schedule.beta_end=0.4")  # a short flow


def flags(tiny, folder, *more):
    return ["--runner", "search", "--config", tiny.config, "--search_path", folder, *FAST, *more]


@pytest.fixture(scope="module", autouse=True)
def little_effort():
    """A short fit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "MINIBATCH_CALLS", 60)
        yield


@pytest.fixture(scope="module")
def found(tiny, tmp_path_factory):
    """A search's folder with a searched solver, whoever won."""
    folder = tmp_path_factory.mktemp("search") / "run"
    assert main.main([str(flag) for flag in flags(tiny, folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def searched(found, tmp_path_factory):
    """A file with a table of weights, of the tiny network."""
    tree = load_solver(str(found / "solver.yml")).model_dump(exclude_none=True)
    tree["schedule"] = {"type": "linear", "beta_start": 0.0001, "beta_end": 0.02, "diffusion_step": 1000}
    weights = [[1.0], [1.5, -0.5], [1.9, -1.3, 0.4], [2.0, -1.5, 0.5, 0.1]]
    tree |= {"method": "searched", "times": [999, 600, 300, 50, -1], "told": [990, 610, 290, 40], "weights": weights}
    path = tmp_path_factory.mktemp("solver") / "tiny_nfe4.yml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_a_search_leaves_a_solver_a_ranking_and_a_record(found):
    held = {path.name for path in found.iterdir()}
    assert held == {"solver.yml", "search.json", "rank.csv", "rank.png"}
    rows = (found / "rank.csv").read_text().splitlines()
    assert rows[0] == "method,grid,distance,error,noises"
    distances = [float(row.split(",")[2]) for row in rows[1:]]
    assert distances == sorted(distances)
    record = json.loads((found / "search.json").read_text())
    solver = load_solver(str(found / "solver.yml"))
    held_out = {entry["label"]: entry["to_the_flow"][0] for entry in record["held_out"]}
    assert record["winner"] in held_out
    assert solver.calls == 4
    assert solver.found["noises"] == "17 searched on, 8 held out"
    assert any(key.startswith("frechet") and text.endswith(", 2 images") for key, text in solver.found.items())
    _, _, *given = shlex.split(solver.found["command"])
    args = main.parser().parse_args(given)
    assert (args.noises, args.methods, args.nfe, args.total_num) == (17, "iPNDM2,S-PNDM", "4", "2")
    assert main.overrides_of(args)["Schedule.beta_end"] == ("--set", 0.4)


@pytest.mark.slow
def test_the_same_seed_finds_the_same(found, tiny, cli, tmp_path):
    cli(*flags(tiny, tmp_path / "again"))
    first, again = (load_solver(str(folder / "solver.yml")) for folder in (found, tmp_path / "again"))
    assert first.digest == again.digest
    cli(*flags(tiny, tmp_path / "other", "--seed", "1", "--time", "0.001"))
    ranks = [(folder / "rank.csv").read_text() for folder in (found, tmp_path / "again", tmp_path / "other")]
    assert ranks[0] == ranks[1] != ranks[2]


def test_a_folder_with_the_solver_of_another_search_is_refused(found, searched, tiny, cli, tmp_path):
    shutil.copy(searched, tmp_path / "solver.yml")
    status, _, err = cli(*flags(tiny, tmp_path, "--nfe", "5"))
    assert status == 2 and "holds the solver of another network, or of other calls" in err
    (tmp_path / "solver.yml").write_text("[]")
    status, _, err = cli(*flags(tiny, tmp_path))
    assert status == 2 and err.startswith("main.py: --search_path: ") and "choose another folder" in err


def test_sampling_by_a_file_spends_exactly_its_calls(tiny, searched, cli, tmp_path):
    status, out, err = cli(*tiny.flags(tmp_path / "run", "--solver", searched))
    assert (status, err) == (0, "")
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (record["method"], record["nfe"], record["steps"]) == ("searched", 4, 4)
    assert record["solver"]["sha256"] == load_solver(str(searched)).digest
    assert "4 network calls an image" in out


def test_a_folder_of_another_solver_is_refused(tiny, searched, cli, tmp_path):
    cli(*tiny.flags(tmp_path / "run", "--solver", searched))
    tree = yaml.safe_load(searched.read_text())
    tree["told"][0] -= 1
    other = tmp_path / "other.yml"
    other.write_text(yaml.safe_dump(tree))
    status, _, err = cli(*tiny.flags(tmp_path / "run", "--solver", other))
    assert status == 2
    assert "holds" in err


def test_another_networks_file_is_refused_unless_it_is_forced(tiny, searched, cli, tmp_path):
    tree = yaml.safe_load(searched.read_text()) | {"network": "0" * 64}
    other = tmp_path / "other.yml"
    other.write_text(yaml.safe_dump(tree))
    status, _, err = cli(*tiny.flags(tmp_path / "run", "--solver", other))
    assert status == 2
    assert "searched on another network" in err
    assert "--any_network (Sample.any_network) takes it all the same" in err
    assert not (tmp_path / "run").exists()
    assert cli(*tiny.flags(tmp_path / "run", "--solver", other, "--any_network"))[0] == 0
    assert cli(*tiny.flags(tmp_path / "run2", "--solver", searched))[0] == 0
    assert image_files(tmp_path / "run") == image_files(tmp_path / "run2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"calls": 5}, "calls is 5, but the method makes 4"),
        ({"weights": [[1.0]]}, "weights must be 4 rows"),
        ({"told": [1000, 610, 290, 40]}, "told must be 4 times from 0 to 999"),
        ({"method": "PF"}, "neither searched nor a method of given times"),
        ({"method": "DDIM"}, "weights: only of method searched"),
        ({"times": [999, 600, 600, 50, -1]}, "wrong.yml: times must be two or more and fall"),
        ({"times": [2000, 900, 500, 50, -1]}, "wrong.yml: times must be two or more and fall from 999"),
        ({"times": []}, "wrong.yml: times must be two or more and fall"),
        ({"network": "abc"}, "network"),
        ({"colour": 1}, "unknown key colour"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(change, message, tiny, searched, cli, tmp_path):
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(yaml.safe_dump(yaml.safe_load(searched.read_text()) | change))
    status, _, err = cli(*tiny.flags(tmp_path / "run", "--solver", wrong))
    assert status == 2
    assert len(err.splitlines()) == 1
    assert "wrong.yml" in err
    assert message in err


@pytest.mark.parametrize("more", [("--method", "DDIM"), ("--sample_speed", "5"), ("--nfe", "4"), ("--spacing", "quad")])
def test_a_file_and_what_it_says_exclude_each_other(more, tiny, searched, cli, tmp_path):
    status, _, err = cli(*tiny.flags(tmp_path / "run", "--solver", searched, *more))
    assert status == 2
    assert err == f"main.py: --solver and {more[0]} exclude each other\n"


def test_a_file_of_another_schedule_is_refused(tiny, searched, cli, tmp_path):
    more = ("--solver", searched, "--set", "Schedule.type=cosine")
    status, _, err = cli(*tiny.flags(tmp_path / "run", *more))
    assert status == 2
    assert "another noise schedule" in err


def test_the_plan_shows_a_file_step_by_step(tiny, searched, cli):
    status, out, _ = cli("--runner", "plan", "--config", tiny.config, "--solver", searched, "--device", "cpu")
    assert status == 0
    assert "calls an image    4" in out


def test_a_pipeline_makes_the_images_of_the_command_line(tiny, searched, cli, tmp_path):
    cli(*tiny.flags(tmp_path / "run", "--solver", searched, "--precision", "fp32", "--total_num", "2"))
    pipeline = PNDMPipeline.from_pretrained(tiny.config)
    x = torch.from_numpy(noise(0, range(4), (1, 8, 8)))
    pipeline.network, network = (lambda x, t: network(x, t)), pipeline.network
    draws = iter([x])
    generator = torch.Generator()
    original = torch.randn
    torch.randn = lambda *shape, **how: next(draws)  # the command line's noise in place of its own
    try:
        images = pipeline(4, generator=generator, output_type="pt", solver=str(searched)).images
    finally:
        torch.randn = original
    for i in range(2):
        made = read_image(tmp_path / "run" / f"{i:06d}.png").numpy()
        assert np.abs(made.astype(int) - (images[i] * 255).round().numpy()).max() <= 1


def test_a_pipeline_refuses_another_networks_file(tiny, searched):
    pipeline = PNDMPipeline.from_pretrained(tiny.config)
    tree = yaml.safe_load(searched.read_text()) | {"network": "0" * 64}
    with pytest.raises(InputError, match="another network"):
        pipeline(1, solver=tree)
    assert len(pipeline(1, solver=tree, any_network=True).images) == 1
    with pytest.raises(InputError, match="rtol"):
        pipeline(1, solver=str(searched), rtol=1e-3)


def test_a_saved_solver_is_read_again(searched, tmp_path):
    solver = load_solver(str(searched))
    save_solver(tmp_path / "copy.yml", solver)
    assert load_solver(str(tmp_path / "copy.yml")) == solver


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--methods", "DDIM,XX"), "--methods: 'XX' is not one of DDIM"),
        (("--noises", "3"), "--noises: 3 are too few"),
        (("--noises", "0"), "--noises: 0 are too few"),
        (("--methods", "PF"), "none of PF can spend 4 network calls"),
        (("--set", "Sample.clip=true"), "--set: a search chooses the method and its times itself; leave out Sample"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_written(more, message, tiny, cli, tmp_path):
    status, _, err = cli(*flags(tiny, tmp_path / "run", *more))
    assert status == 2
    assert message in err
    assert not (tmp_path / "run").exists()


def test_calls_that_no_file_can_have_are_refused_at_once(tiny, cli, tmp_path):
    status, _, err = cli("--runner", "search", "--config", tiny.config, "--nfe", 10**6, "--search_path", tmp_path / "x")
    assert (status, err.count("\n")) == (2, 1)
    assert "1,000,000 network calls are more than a solver file has, 1,000" in err


def test_more_processes_than_noises_are_refused(tiny, cli, tmp_path, monkeypatch):
    team = types.SimpleNamespace(size=9, first=True)
    monkeypatch.setattr(search, "processes", lambda *_: contextlib.nullcontext(team))
    status, _, err = cli(*flags(tiny, tmp_path / "run"))
    assert (status, err) == (2, "main.py: --noises: 17 can be shared by 2 processes at most, not by 9\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("wild", "wanted"), [(1.0, False), (400.0, True), (0.0, False)])
def test_how_well_the_flow_is_known_is_said(wild, wanted):
    """A network that turns fast with t cannot be followed in 320 steps."""
    team = Processes(torch.device("cpu"))
    problem = Problem(lambda x, t: x * torch.sin(wild * t / 100), LINEAR, (1, 4, 4), 0, team, 4)
    problem.noises(4)
    said = search.Search.yardstick(types.SimpleNamespace(problem=problem))
    assert said.startswith(f"UniPC3-bh2 in {problem.steps} steps, known to ")
    assert said.endswith(", 0.001 is wanted") == wanted and (problem.steps == 320 or not wanted), said


@pytest.mark.slow
def test_the_calls_may_be_more_than_the_steps_that_the_flow_is_followed_in(tiny, cli, tmp_path, monkeypatch):
    monkeypatch.setattr(Problem, "enough_steps", lambda self, x: (3, 0.0))
    weights = shutil.copy(tiny.model, tmp_path / "my weights.safetensors")
    status, out, err = cli(*flags(tiny, tmp_path / "run", "--model_path", weights))
    assert status == 0, err
    assert load_solver(str(tmp_path / "run" / "solver.yml")).calls == 4
    _, _, *printed = shlex.split(out.splitlines()[-1].partition(": ")[2])
    assert cli(*printed, "--device", "cpu", "--image_path", tmp_path / "images")[0] == 0
    assert len(image_files(tmp_path / "images")) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "said"), [("steps", "the best so far"), ("frechet", "written without its distance")])
def test_an_interrupted_search_writes_what_it_has(tiny, cli, tmp_path, monkeypatch, stage, said):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(search.Search, stage, interrupted)
    status, out, err = cli(*flags(tiny, tmp_path / "run"))
    assert status == 0, err
    assert f"interrupted: {said}" in out
    written = load_solver(str(tmp_path / "run" / "solver.yml"))
    assert written.calls == 4 and ("frechet" in str(written.found)) == (stage == "steps")


def test_two_processes_share_the_noises_and_find_the_same(found, tiny, tmp_path):
    for status, err in ended(ranks(2, *flags(tiny, tmp_path / "run", "--time", "0.05"))):
        assert status == 0, err
    kept, *_ = tmp_path.glob("flow_*_1of2.pt")
    kept.unlink()  # as when one process was killed before it had written its share
    for status, err in ended(ranks(2, *flags(tiny, tmp_path / "run", "--time", "0.05"))):
        assert status == 0, err
    ours, theirs = (np.loadtxt(f / "rank.csv", delimiter=",", skiprows=1, usecols=2) for f in (found, tmp_path / "run"))
    assert theirs == pytest.approx(ours, rel=1e-3)


@pytest.mark.slow
def test_a_table_takes_files_as_a_method(tiny, searched, cli, tmp_path):
    table = {
        "experiment": str(tiny.config),
        "methods": ["DDIM", {"label": "searched", "solver": str(searched).replace("nfe4", "nfe{nfe}")}],
        "nfe": [4, 5],
        "images": 4,
        "flow": 2,
    }
    (tmp_path / "small.yml").write_text(yaml.safe_dump(table))
    folder = tmp_path / "table"
    run = ("--runner", "reproduce", "--table", tmp_path / "small.yml", "--image_path", folder, "--device", "cpu")
    assert cli(*run)[0] == 0
    records = {cell["cell"]: cell["record"] for cell in json.loads((folder / "cells.json").read_text())}
    assert set(records) == {"DDIM_nfe4_exact_seed0", "DDIM_nfe5_exact_seed0", "searched_nfe4_exact_seed0"}
    assert records["searched_nfe4_exact_seed0"]["nfe"] == 4
    flow = {entry["label"]: entry["rms"] for entry in json.loads((folder / "flow.json").read_text())}
    assert np.isfinite(flow["searched"])
    file = yaml.safe_load(searched.read_text()) | {"network": "0" * 64}
    (tmp_path / "other_nfe4.yml").write_text(yaml.safe_dump(file))
    table["methods"] = ["DDIM", {"label": "searched", "solver": str(tmp_path / "other_nfe{nfe}.yml")}]
    (tmp_path / "small.yml").write_text(yaml.safe_dump(table))
    status, _, err = cli(*run[:-4], "--image_path", tmp_path / "refused", "--device", "cpu")
    assert (status, err.count("main.py: ")) == (2, 1)
    assert "another network" in err


def test_a_flow_that_is_kept_is_of_its_network_schedule_seed_and_noises(tiny, tmp_path):
    """An equal search reads it; any other follows a flow of its own."""
    team, progress = Processes(torch.device("cpu")), types.SimpleNamespace(add=lambda count: None)

    def noises(count=4, held_out=False, digest="a", **changes):
        short = {"Schedule.diffusion_step": 10, "Schedule.beta_end": 0.9}
        given = {name.replace("__", "."): ("test", value) for name, value in changes.items()}
        given = {name: ("test", value) for name, value in short.items()} | given
        loaded = types.SimpleNamespace(network=lambda x, t: 0.5 * x, record={"sha256": digest})
        run = search.Search(load(str(tiny.config), given), loaded, team, tmp_path / "run", progress, None, "")
        return run.noises(count, held_out), run.problem.spent, run.problem.steps

    first, spent, steps = noises()
    again, none, known = noises()
    assert spent > 0 and none == 0 and known == steps
    assert (again.count, again.ids) == (first.count, first.ids)
    assert torch.equal(again.x, first.x) and torch.equal(again.ends, first.ends)
    for other in (
        {"count": 5},
        {"held_out": True},
        {"digest": "b"},
        {"Sample__seed": 1},
        {"Schedule__beta_end": 0.8},
        {"Model__ch": 64},
    ):
        assert noises(**other)[1] > 0, other


def test_a_fit_has_settled_when_a_whole_round_of_minibatches_is_hardly_better_than_the_one_before():
    first = [0.5 + 0.1 * i for i in range(4)]  # minibatches differ
    assert not search.settled(first, 4)
    assert not search.settled([*first, *first[:-1]], 4)
    assert search.settled([*first, *first], 4)
    assert not search.settled([*first, *(0.9 * value for value in first)], 4)


@pytest.mark.parametrize("effort, steps", [(np.inf, 3 * search.MINIBATCHES - 1), (9, 10)])
def test_a_fit_goes_on_with_all_noises_once_the_minibatches_have_settled(monkeypatch, effort, steps):
    """Or once they have made the calls that are allowed."""
    spent, asked = itertools.count(1), []

    def fit(problem, parameters, vector, minibatches, scale):
        asked.append((vector, minibatches))
        yield from (("of all", value) for value in (0.5, 0.4, 0.4, 0.3))

    monkeypatch.setattr(search, "fit", fit)
    monkeypatch.setattr(search, "MINIBATCH_CALLS", effort)
    first = [1.0] * (search.MINIBATCHES - 1) + [0.9] * search.MINIBATCHES
    going = ((f"step {i}", value) for i, value in enumerate([*first, *[0.9] * 100], 1))
    whole = types.SimpleNamespace(count=1)
    run = types.SimpleNamespace(problem=None, spent=lambda: next(spent))
    found = list(search.Search.steps(run, (1.0, 0, "parameters", "start", going), whole, 1.0, 0))
    assert found[steps - 1 :] == [(f"step {steps}", 0.9), ("of all", 0.5), ("of all", 0.4), ("of all", 0.4)]
    assert asked == [(f"step {steps}", [whole])]


def test_a_network_that_is_not_finite_ends_in_one_line(tiny, cli, tmp_path):
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in load_file(tiny.model).items()}
    save_file(broken, tmp_path / "broken.safetensors")
    status, _, err = cli(*flags(tiny, tmp_path / "run", "--model_path", tmp_path / "broken.safetensors"))
    assert status == 2
    assert "no method ends in finite images" in err and err.count("\n") == 1

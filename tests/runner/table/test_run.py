"""The runner reproduce: cells that are sampling runs, tables that can be stopped, and what is made of them."""

import csv
import json
import os
import re
import shutil
import signal
import statistics
import time
from dataclasses import replace

import pytest
import torch
import yaml
from helpers import DATA, ROOT, ended, ranks, torchrun, workers_of

from pndm import cli as main
from pndm.config.files import alone
from pndm.config.load import FOLDER, load_table
from pndm.config.table import Table
from pndm.model import checkpoint
from pndm.runner import sample
from pndm.runner.processes import Processes
from pndm.runner.solver.published import PROFILES
from pndm.runner.table import cells as made_of
from pndm.runner.table import figures, report, results, tables
from pndm.runner.table.results import Row

TABLE = {
    "methods": ["DDIM", "F-PNDM", {"label": "PF 1e-2", "method": "PF", "rtol": 0.01, "atol": 0.01}],
    "steps": [4, 5],
    "profiles": ["exact", "published"],
    "images": 10,
    "seeds": 2,
    "flow": 0,
    "more": [{"steps": [8]}],
}


@pytest.fixture
def table(tiny, tmp_path):
    """Write a table of the tiny network; table(key=value, …) → the flags that run it into tmp_path / "table"."""

    def write(name="small", **changes):
        path = tmp_path / f"{name}.yml"
        path.write_text(yaml.safe_dump({"experiment": str(tiny.config)} | TABLE | changes))
        flags = ["--runner", "reproduce", "--table", path, "--device", "cpu", "--image_path", tmp_path / "table"]
        return [str(flag) for flag in flags]

    return write


@pytest.fixture
def undrawn(monkeypatch):
    """Leave the figures out, which take longer than all the rest."""
    monkeypatch.setattr(figures, "save", lambda drawn, folder: {})


def cells(folder):
    """Cell → its record without what depends on the clock."""
    timed = ("seconds", "images_per_second", "device", "made")
    found = {}
    for path in sorted((folder / "cells").glob("*/result.json")):
        record = json.loads(path.read_text())
        found[path.parent.name] = {name: value for name, value in record.items() if name not in timed}
    return found


def written(folder):
    return {path.parent.name: path.stat().st_mtime_ns for path in (folder / "cells").glob("*/result.json")}


def test_a_cell_is_the_sampling_run_with_its_settings(table, tiny, cli, undrawn, tmp_path):
    status, out, err = cli(*table(images=18, steps=[5], more=[]))
    assert status == 0
    assert "10 cells, 0 of them finished" in out
    assert "left out, PF 1e-2: profile 'published' takes no options and has fixed tolerances" in err
    made = cells(tmp_path / "table")
    assert len(made) == 10
    for name, flags in {
        "F-PNDM_5_published_seed1": ["--sample_speed", 5, "--profile", "published", "--seed", 1],
        "DDIM_5_exact_seed0": ["--method", "DDIM", "--sample_speed", 5],
        "PF-1e-2_exact_seed1": ["--method", "PF", "--rtol", 0.01, "--atol", 0.01, "--seed", 1],
    }.items():
        assert cli(*tiny.flags(tmp_path / name, "--total_num", 18, *flags))[0] == 0
        alone = json.loads((tmp_path / name / "result.json").read_text())
        for key in ("frechet", "nfe", "method", "steps", "profile", "seed", "fingerprint", "checkpoint", "world_size"):
            assert made[name][key] == alone[key], (name, key)
        for i in range(made_of.KEEP):
            file = f"{i:06d}.png"
            assert (tmp_path / "table/cells" / name / file).read_bytes() == (tmp_path / name / file).read_bytes()
        assert not (tmp_path / "table/cells" / name / f"{made_of.KEEP:06d}.png").exists()


def test_a_cell_that_was_sampled_into_its_folder_is_taken(table, tiny, cli, undrawn, tmp_path):
    name = "DDIM_5_exact_seed0"
    sampled = tiny.flags(tmp_path / "table/cells" / name, "--method", "DDIM", "--sample_speed", 5, "--total_num", 10)
    assert cli(*sampled)[0] == 0
    before = written(tmp_path / "table")
    status, out, _ = cli(*table(methods=["DDIM"], profiles=["exact"], seeds=1, more=[]))
    assert (status, "2 cells, 1 of them finished" in out) == (0, True)
    assert written(tmp_path / "table")[name] == before[name]
    with open(tmp_path / "table/cells.csv", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 2


def test_only_what_is_missing_is_run(table, cli, undrawn, tmp_path):
    flags, count = table(methods=["DDIM", "F-PNDM"], profiles=["exact"]), 10
    assert cli(*flags, "--methods", "DDIM", "--steps", "4,8", "--seeds", 1)[0] == 0
    before = written(tmp_path / "table")
    assert set(before) == {"DDIM_4_exact_seed0", "DDIM_8_exact_seed0"}
    (tmp_path / "table/cells/DDIM_8_exact_seed0/result.json").unlink()
    status, out, _ = cli(*flags)
    assert (status, f"{count} cells, 1 of them finished" in out) == (0, True)
    after = written(tmp_path / "table")
    assert len(after) == count
    assert after["DDIM_4_exact_seed0"] == before["DDIM_4_exact_seed0"]
    entries = json.loads((tmp_path / "table/cells.json").read_text())
    assert {entry["cell"] for entry in entries} == set(after)
    cli(*flags, "--steps", "4")
    assert written(tmp_path / "table") == after
    assert len(json.loads((tmp_path / "table/cells.json").read_text())) == count


def text_of(rows, flow=(), **keys):
    """table.md of made-up rows."""
    table = Table(**{"experiment": "", "methods": ["DDIM"], "images": 10} | keys)
    return report.markdown("made up", tables.explanation(table, rows, flow), tables.tables_of(table, rows, flow))


SMALL = {"methods": ["DDIM", "F-PNDM"], "profiles": ["exact"], "images": 40}


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory):
    """The cells of a small table, made in one go."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "small.yml").write_text(yaml.safe_dump({"experiment": str(tiny.config)} | TABLE | SMALL))
    flags = [
        "--runner",
        "reproduce",
        "--table",
        folder / "small.yml",
        "--device",
        "cpu",
        "--image_path",
        folder / "run",
    ]
    assert main.main([str(flag) for flag in flags]) == 0
    return cells(folder / "run")


def test_a_killed_table_goes_on_with_the_cells_that_are_missing(table, undisturbed, cli, tmp_path):
    """Two processes that share the cells, of which one dies, and torchrun ends the other; then one process."""
    flags = table(**SMALL)
    run = torchrun(2, *flags)
    while len(written(tmp_path / "table")) < 3 and run.poll() is None:
        time.sleep(0.005)
    os.kill(workers_of(run)[-1], signal.SIGKILL)
    run.communicate(timeout=300)
    assert run.returncode != 0
    before = written(tmp_path / "table")
    assert 3 <= len(before) < len(undisturbed)
    assert not (tmp_path / "table/report.html").exists()
    assert cli(*flags)[0] == 0
    assert before.items() <= written(tmp_path / "table").items()
    assert cells(tmp_path / "table") == undisturbed
    assert (tmp_path / "table/report.html").exists()


def test_a_cell_that_was_stopped_goes_on_after_its_last_batch(table, undisturbed, cli, undrawn, tmp_path, monkeypatch):
    """The bar knows what is left of it, though that is less than a cell takes."""
    flags, make, expected = table(**SMALL), sample.Sampler.make, []

    def stop(self, wanted, size, progress=None):
        if wanted.start == 5 * size:
            raise KeyboardInterrupt
        return make(self, wanted, size, progress)

    with monkeypatch.context() as patched:
        patched.setattr(sample.Sampler, "make", stop)
        assert cli(*flags)[0] == 130
    (stopped,) = (path.parent.parent.name for path in (tmp_path / "table" / "cells").glob("*/features/*"))
    expect = Processes.counter

    def counter(self, name):
        add = expect(self, name)
        return lambda n: (name.startswith("correction") and n and expected.append(n), add(n))[1]

    monkeypatch.setattr(Processes, "counter", counter)
    assert cli(*flags)[0] == 0
    assert cells(tmp_path / "table") == undisturbed
    made = json.loads((tmp_path / "table" / "cells" / stopped / "result.json").read_text())["made"]
    size = undisturbed[stopped]["config"]["Sample"]["batch_size"]
    assert made == 40 - 5 * size
    assert expected[0] == -undisturbed[stopped]["nfe"] * 5 * size
    assert not list((tmp_path / "table").glob("cells/*/features"))


def test_processes_share_the_cells(table, undisturbed, tmp_path):
    for status, err in ended(ranks(2, *table(**SMALL))):
        assert status == 0, err
    assert cells(tmp_path / "table") == undisturbed


def test_rows_are_means_over_the_seeds(table, cli, undrawn, tmp_path):
    cli(*table(methods=["F-PNDM"], more=[]))
    lines = list(csv.DictReader((tmp_path / "table/cells.csv").open()))
    assert len(lines) == 8
    seeds = [line for line in lines if (line["label"], line["steps"], line["profile"]) == ("F-PNDM", "5", "exact")]
    values = [float(line["distance"]) for line in seeds]
    for line in seeds:
        assert float(line["mean_over_seeds"]) == pytest.approx(statistics.fmean(values), rel=1e-12)
        assert float(line["deviation_over_seeds"]) == pytest.approx(abs(values[0] - values[1]) / 2**0.5, rel=1e-9)
        assert (line["nfe"], line["seeds"], line["images"]) == ("14", "2", "10")
        assert line["config.Model.ch"] == "32"
        assert len(line["checkpoint.sha256"]) == 64
    text = (tmp_path / "table/table.md").read_text()
    mean = statistics.fmean(values)
    assert "| method | 4 | 5 |" in text
    assert f"{mean:.{2 if mean >= 1 else 4}f} ± " in next(line for line in text.splitlines() if "F-PNDM" in line)


def test_profiles_are_compared_seed_by_seed(table, cli, undrawn, tmp_path):
    cli(*table(methods=["DDIM"], more=[]))
    entries = {
        e["cell"]: e["record"]["frechet"]["value"] for e in json.loads((tmp_path / "table/cells.json").read_text())
    }
    apart = [entries[f"DDIM_5_published_seed{n}"] - entries[f"DDIM_5_exact_seed{n}"] for n in (0, 1)]
    text = (tmp_path / "table/table.md").read_text().split("published minus exact")[1]
    assert f"{statistics.fmean(apart):+.4f} ± {statistics.stdev(apart):.4f} |" in text


def test_profiles_are_compared_only_where_they_take_equal_steps_and_calls():
    def row(profile, budget, steps, distance):
        numbers = (budget, steps, budget, 1, 10, distance, None, 0.01, 1.0, 5, "FID", {0: distance})
        return Row("FON", profile, *numbers)

    rows = [row(profile, 9, 9, 0.3 + 0.1 * (profile == "exact")) for profile in PROFILES]
    rows += [row(profile, 5, steps, 0.5) for profile, steps in zip(PROFILES, (2, 1), strict=True)]
    title, table = text_of(rows, nfe=[5, 9]).split("Profile published minus exact, ")[1].split(":\n", 1)
    assert title.startswith("from the same noise, by network calls;")
    assert [line for line in table.splitlines() if "FON" in line] == ["| FON | -0.1000 |"]


def test_seconds_stand_beside_the_papers_for_its_batch_and_its_steps():
    """500 images in batches of 128: 512 are made, the paper's batch."""

    def row(steps, seconds):
        return Row("DDIM", "exact", steps, steps, steps, 1, 500, 0.5, None, 0.01, seconds, 128, "FID", {0: 0.5})

    text = text_of([row(10, 7.0), row(50, 100.0)], paper={"seconds_per_step": {"DDIM": 0.337}})
    lines = text.split("Seconds a step of 512 images")[1].split("\n\n")[1].splitlines()
    assert lines[2:] == ["| DDIM | exact | 128 | 2.000 | 0.337 |"]


def test_seconds_are_those_of_one_process_and_of_all_batches():
    record = {"seconds": 10.0, "images": 500, "config": {"Sample": {"batch_size": 50}}}
    assert results.seconds_of(record) == 10
    assert results.seconds_of(record | {"world_size": 8, "made": 250}) == 160
    assert results.seconds_of(record | {"images": 460, "made": 500}) == 10  # the last batch is made whole


def test_the_least_calls_are_those_of_the_first_row_that_is_as_good():
    def row(label, steps, nfe, distance):
        return Row(label, "exact", steps, steps, nfe, 1, 10, distance, None, 0.01, 1.0, 5, "FID", {0: distance})

    rows = [row("DDIM", n, n, 10 / n) for n in (10, 100, 1000)]
    rows += [row("F-PNDM", n, n + 9, distance) for n, distance in ((5, 0.0106), (11, 0.0104), (20, 0.0099))]
    text = text_of(rows)
    assert "5% above DDIM's in 1000 steps" in text
    line = next(line for line in text.split("The fewest calls")[1].splitlines() if line.startswith("| F-PNDM"))
    assert [part.strip() for part in line.strip("|").split("|")] == [
        "F-PNDM",
        "11",
        "20",
        "0.0104",
        "50 times fewer",
    ]


def by_seeds(label, steps, distances):
    """A row whose distances over the seeds 0, 1, … are these."""
    numbers = (len(distances), 10, statistics.fmean(distances), None, 0.01, 1.0, 5, "FID")
    return Row(label, "exact", steps, steps, steps, *numbers, dict(enumerate(distances)))


def test_the_fewest_calls_show_the_distances_of_the_seeds_that_decided():
    """DDIM in 1000 steps has one seed, S-PNDM two."""
    rows = [by_seeds("DDIM", 10, [3.0]), by_seeds("DDIM", 1000, [0.79]), by_seeds("S-PNDM", 20, [0.8, 0.9])]
    line = next(line for line in text_of(rows).split("The fewest calls")[1].splitlines() if "S-PNDM" in line)
    assert "| 0.8000 |" in line.replace("  ", " ")


@pytest.mark.parametrize(
    ("worse", "as_good"), [([0.03, 0.11], True), ([0.030, 0.031], False), ([0.1, 0.1, 0.1], False)]
)
def test_a_method_is_as_good_if_a_t_test_over_the_seeds_does_not_tell_it_from_the_best(worse, as_good):
    rows = [by_seeds("S-PNDM", 5, [1.3 + d for d in worse]), by_seeds("F-PNDM", 5, [1.3] * len(worse))]
    line = next(line for line in text_of(rows).split("The best by")[1].splitlines() if line.startswith("| 5 |"))
    assert ("S-PNDM" in line) == as_good


def test_the_best_is_the_best_over_the_seeds_that_all_have():
    """F-PNDM has the easier seed alone."""
    rows = [by_seeds("F-PNDM", 20, [0.8585]), by_seeds("FON", 20, [0.8493, 0.8781])]
    text = text_of(rows)
    assert "| F-PNDM | 0.8585 ± 0.0100 ¹ |" in text
    assert "| FON | **0.8637 ± 0.0100** |" in text
    assert "A number raised behind the distance is that of its seeds, where they are fewer than 2." in text
    assert "| 20 | FON | 0.8637 ± 0.0100 | F-PNDM |" in text  # worse by less than the error of the best
    assert results.best(rows)[20].label == "FON"


def test_rows_without_a_seed_in_common_are_compared_by_their_means():
    rows = [by_seeds("FON", 20, [0.845]), replace(by_seeds("DDIM", 20, [0.84]), by_seed={7: 0.84})]
    assert results.best(rows)[20].label == "DDIM"
    assert "| 20 | DDIM | 0.8400 ± 0.0100 | FON |" in text_of(rows)


def test_a_small_deviation_of_a_large_distance_is_shown():
    row = replace(by_seeds("FON", 10, [1.3, 1.3034]), deviation=0.0017)
    assert "| FON | 1.3017 ± 0.0017 |" in text_of([row])


def test_there_is_no_comparison_with_ddim_in_a_table_without_it():
    assert "The fewest calls" not in text_of([by_seeds("FON", n, [1 / n]) for n in (5, 10)])


def test_more_calls_are_called_more():
    def row(label, steps, distance):
        return Row(label, "exact", steps, steps, steps, 1, 10, distance, None, 0.01, 1.0, 5, "FID", {0: distance})

    rows = [row("DDIM", 10, 1.0), row("DDIM", 50, 0.5), row("Heun", 50, 0.5), row("slow", 200, 0.4)]
    lines = text_of(rows).split("The fewest calls")[1].splitlines()
    found = {line.split(" | ")[0].strip("| "): line.split(" | ")[-1].strip("| ") for line in lines if " | " in line}
    assert found["Heun"] == "as many"
    assert found["slow"] == "4 times more"


def test_numbers_that_stand_for_a_smaller_one_are_not_run_by_themselves(table, cli, tmp_path):
    """F-PNDM's run for 8 calls is that for 5."""
    flags = table(methods=["F-PNDM", "DDIM"], steps=[], nfe=[5, 8], profiles=["exact"], more=[])
    for more in ([], ["--plan"]):
        status, _, err = cli(*flags, "--methods", "F-PNDM", "--steps", 8, *more)
        assert (status, err) == (2, "main.py: --steps: F-PNDM has no 8 in table small; it has 5\n")
    assert not (tmp_path / "table").exists()


def test_the_best_is_bold_and_what_the_seeds_cannot_tell_from_it_is_named():
    def row(label, calls, *distances):
        mean, deviation = statistics.fmean(distances), statistics.stdev(distances)
        by_seed = dict(enumerate(distances))
        return Row(label, "exact", calls, calls, calls, 3, 10, mean, deviation, None, 1.0, 5, "FID", by_seed)

    rows = [row("DDIM", 5, 0.5, 0.6, 0.7), row("FON", 5, 0.2, 0.3, 0.4), row("Heun", 5, 0.19, 0.31, 0.41)]
    rows += [row("near", 5, 0.1987, 0.3087, 0.4187), row("far", 5, 0.2102, 0.3202, 0.4302)]
    rows += [row("DDPM", 5, 0.21, 0.31, 0.41), row("DDIM", 10, 0.1, 0.1, 0.1), row("FON", 10, 0.2, 0.2, 0.2)]
    text = text_of(rows, nfe=[5, 10])
    assert "| FON | **0.3000 ± 0.1000** | 0.2000 ± 0.0000 |" in text
    assert "| DDIM | 0.6000 ± 0.1000 | **0.1000 ± 0.0000** |" in text
    # Heun is worse by half a standard error of the difference, near by 1.5, far by 3.5; DDPM by 0.01 with every seed,
    # though its deviation is ten times that.
    assert "| 5 | FON | 0.3000 ± 0.1000 | Heun, near |" in text
    assert "| 10 | DDIM | 0.1000 ± 0.0000 | none |" in text


def test_a_schedule_of_fewer_steps(table, cli, tmp_path):
    flags = ["--set", "Schedule.diffusion_step=300", "--steps", "4", "--methods", "DDIM", "--flow", "1"]
    assert cli(*table(images=2, profiles=["exact"], seeds=1), *flags)[0] == 0
    assert (tmp_path / "table/report.html").exists()


def test_the_flow_of_one_step_is_its_transfer(table, cli, undrawn, tmp_path):
    status, _, err = cli(*table(methods=["DDIM"], steps=[1], profiles=["exact"], seeds=1, flow=2, more=[]))
    assert (status, "not finite" in err) == (0, False)
    (entry,) = json.loads((tmp_path / "table/flow.json").read_text())
    assert entry["rms"] < 1e-5


def test_distances_to_the_flow_stand_in_the_table():
    flow = [
        {"label": "DDIM", "budget": 5, "rms": 0.2, "images": 8},
        {"label": "FON", "budget": 5, "rms": 0.1, "images": 8},
    ]
    flow += [{"label": "DDIM", "budget": 9, "rms": 0.05, "images": 8}]
    row = Row("DDIM", "exact", 5, 5, 5, 1, 10, 0.5, None, 0.01, 1.0, 5, "FID", {0: 0.5})
    text = text_of([row], flow)
    assert "| DDIM | 0.2 | **0.05** |\n| FON | **0.1** |  |" in text.split("Distance to the exact flow")[1]


def test_the_papers_values_stand_beside_ours_and_unknown_ones_stay_blank(table, cli, undrawn, tmp_path):
    paper = {"fid": {"DDIM": {4: {"value": 7.5, "basis": "quoted"}, "best": {"value": 5.0, "basis": "inferred"}}}}
    cli(*table(paper=paper, profiles=["exact"], seeds=1))
    text = (tmp_path / "table/table.md").read_text()
    known = next(line for line in text.splitlines() if line.startswith("| DDIM | exact | 4 |"))
    assert [part.strip() for part in known.split("|")][6:9] == ["7.5", "quoted", ""]  # pixels are no FID
    row = Row("DDIM", "exact", 4, 4, 4, 1, 10, 8.25, None, 0.01, 1.0, 5, "FID", {0: 8.25})
    assert "| DDIM | exact | 4 | 4 | 8.25 ± 0.01 | 7.5 | quoted | +0.75 |" in text_of([row], paper=paper)
    unknown = next(line for line in text.splitlines() if line.startswith("| DDIM | exact | 5 |"))
    assert [part.strip() for part in unknown.split("|")][6:9] == ["", "", ""]
    assert "best of DDIM" in text


def test_calls_under_more_alone_are_calls():
    table = Table(experiment="digits.yml", methods=["Heun"], images=10, more=[{"nfe": [10]}])
    row = Row("Heun", "exact", 10, 5, 9, 1, 10, 0.5, None, 0.01, 1.0, 5, "FID", {0: 0.5})
    (first, *_) = tables.tables_of(table, [row])
    assert first.title == "Profile exact, by network calls:" and "(9)" in first.body[0][1]


def test_bundled_tables_hold_the_papers_values_as_they_were_read_and_no_others():
    reference = yaml.safe_load((DATA / "paper_tables.yml").read_text())
    paths = {path.stem: path for path in (FOLDER / "tables").glob("*.yml")}
    assert {*reference, "digits", "pf"} <= set(paths)
    for name, path in paths.items():
        table = load_table(name)[1]
        known = reference.get(name, {"fid": {}})
        said = {
            label: {steps: value.model_dump() for steps, value in values.items()}
            for label, values in table.paper.fid.items()
        }
        assert said == known["fid"], name
        assert table.paper.seconds_per_step == known.get("seconds_per_step", {})
        assert table.experiment == known.get("config", table.experiment)
        found, _ = made_of.cells_of(table, path, {})
        assert len({cell.name for cell in found}) == len(found)
        assert all(cell.experiment.Sample.total_num == table.images for cell in found)


def test_tables_of_the_paper_run_its_protocol():
    for name in ("cifar10_linear", "cifar10_cosine", "celeba", "lsun_church", "lsun_bedroom"):
        path, table = load_table(name)
        found, _ = made_of.cells_of(table, path, {})
        assert table.images == 50_000
        assert {"DDIM", "S-PNDM", "F-PNDM", "FON"} == {cell.label for cell in found}
        assert {"exact", "published"} == {cell.profile for cell in found}
        made = {(cell.label, cell.budget.asked) for cell in found}
        known = [(label, steps) for label, values in table.paper.fid.items() for steps in values if steps != "best"]
        assert made.issuperset(known)
        assert {5, 10, 20, 50, 100} <= {steps for _, steps in made}
        assert name.startswith("lsun") or {250, 500, 1000} <= {steps for _, steps in made}
    path, table = load_table("cifar10_linear")
    repeated = {(cell.budget.asked, cell.seed) for cell in made_of.cells_of(table, path, {})[0]}
    assert {(steps, seed) for steps in (10, 20, 50) for seed in range(4)} <= repeated  # the paper's Table 7


def test_every_cell_s_noise_schedule_is_the_one_that_its_network_was_trained_with(table, tiny, cli, undrawn, tmp_path):
    record = {"weights": "EMA", "Schedule": {"type": "linear", "beta_start": 1e-4, "beta_end": 0.02}}
    checkpoint.save(tmp_path / "trained.safetensors", tiny.network.state_dict(), record)
    entries = []
    for label, last in (("own", 0.02), ("other", 0.03)):
        tree = yaml.safe_load(tiny.config.read_text())
        tree["Schedule"]["beta_end"] = last
        tree["Sample"]["model_path"] = str(tmp_path / "trained.safetensors")
        (tmp_path / f"{label}.yml").write_text(yaml.safe_dump(tree))
        entries.append({"label": label, "method": "DDIM", "experiment": str(tmp_path / f"{label}.yml")})
    status, _, err = cli(*table(methods=entries))
    assert status == 2
    assert "Schedule.beta_end is 0.03, but the network of" in err and "was trained with 0.02" in err


def test_a_profile_that_cannot_run_a_count_is_left_out(table, cli, undrawn, tmp_path):
    status, _, err = cli(*table(methods=["DDIM"], steps=[3, 4], seeds=1, more=[]))
    assert status == 0
    assert "left out, DDIM 3: profile 'published' cannot run 3 steps" in err
    assert set(cells(tmp_path / "table")) == {"DDIM_3_exact_seed0", "DDIM_4_exact_seed0", "DDIM_4_published_seed0"}


def test_calls_that_cannot_be_spent_stand_for_the_most_below_them(table, cli, undrawn, tmp_path):
    """F-PNDM spends 1, 5, 9, 13, 14, … calls, iPNDM4 any number, Heun 1, 3, 5, …; a third of 3 is too few."""
    methods = ["iPNDM4", "F-PNDM", "Heun"]
    changes = {"steps": [], "nfe": [9, 8, 3], "profiles": ["exact"], "seeds": 1, "more": [{"nfe": [7]}]}
    status, _, err = cli(*table(methods=methods, **changes))
    assert (status, err.count("left out")) == (0, 1)
    assert "left out, F-PNDM 3: method F-PNDM cannot spend 3 network calls or half of them; it can spend 1 or 5" in err
    spent = {"iPNDM4": (9, 8, 3, 7), "F-PNDM": (9, 5), "Heun": (9, 7, 3)}
    assert set(cells(tmp_path / "table")) == {f"{m}_nfe{n}_exact_seed0" for m, counts in spent.items() for n in counts}
    for name, record in cells(tmp_path / "table").items():
        assert f"_nfe{record['nfe']}_" in name
    rows = [line.strip("| ").split(" | ") for line in (tmp_path / "table/table.md").read_text().splitlines()]
    rows = {row[0]: [re.sub(r"[\d.]+ ± [\d.]+|\*", "", entry).strip() for entry in row] for row in rows[::-1]}
    assert rows["method"] == ["method", "3", "7", "8", "9"]
    assert rows["F-PNDM"] == ["F-PNDM", "", "(5)", "", ""]


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--total_num", 11], "Sample.total_num is 10 there and 11 here"),
        (["--batch_size", 5], "Sample.batch_size is 4 there and 5 here"),
        (["--set", "Schedule.type=cosine"], "Schedule.type is linear there and cosine here"),
        (["--features", "none"], "Sample.features is pixels there and none here"),
        (["--set", "Dataset.rescaled=false"], "Dataset.rescaled is True there and False here"),
    ],
)
def test_a_folder_with_another_table_is_refused(table, cli, undrawn, tmp_path, flags, said):
    narrow = table(methods=["DDIM"], seeds=1)
    cli(*narrow)
    before = {path: path.read_bytes() for path in (tmp_path / "table").rglob("*") if path.is_file()}
    status, _, err = cli(*narrow, *flags)
    assert (status, err.count("\n")) == (2, 1)
    assert said in err
    assert {path: path.read_bytes() for path in (tmp_path / "table").rglob("*") if path.is_file()} == before


def test_a_number_of_seeds_of_5000_digits_is_one_line(table, cli):
    status, _, err = cli(*table(), "--seeds", "9" * 5000)
    assert (status, err.count("\n")) == (2, 1)


def test_a_folder_that_another_run_works_in_is_refused(table, cli, undrawn, tmp_path):
    flags = table(methods=["DDIM"], seeds=1)
    (tmp_path / "table").mkdir()
    with alone(tmp_path / "table", "image_path"):
        status, _, err = cli(*flags)
    assert (status, err.count("\n")) == (2, 1)
    assert "--image_path: another run is at work in" in err
    assert not list((tmp_path / "table").iterdir())
    assert cli(*flags)[0] == 0


def test_the_page_names_the_command_that_made_it(table, cli, tmp_path):
    flags = [*table(methods=["DDIM"], seeds=1, more=[], images=2), "--set", "Sample.batch_size=2", "--steps"]
    for steps in ("4", "5"):
        cli(*flags, steps)
        page = (tmp_path / "table/report.html").read_text(encoding="utf-8")
        # The second part alone would not make what the page shows.
        assert f"--set Sample.batch_size=2{' --steps 4' if steps == '4' else ''}</dd>" in page
    assert "<dt>written</dt><dd>20" in page


def test_all_seeds_of_equal_calls_are_one_row(table, cli):
    """Heun makes 19 calls for 20 and for 19, and the seeds of both numbers are of one row."""
    more = [{"nfe": [18, 19]}]
    flags = table(methods=["DDIM", "Heun"], steps=[], nfe=[20], profiles=["exact"], seeds=2, more=more)
    out = cli(*flags, "--plan")[1]
    assert [line.split()[:2] for line in out.splitlines() if "Heun" in line and line.split()[4] == "19"] == [
        ["2", "Heun"]
    ]


def test_a_distance_to_the_flow_is_of_the_cell_that_has_the_name(table, cli, undrawn, tmp_path):
    for method, error in (("DDIM", None), ("F-PNDM", None)):
        changes = {"steps": [4], "profiles": ["exact"], "seeds": 1, "more": [], "flow": 2}
        assert cli(*table(methods=[{"label": "mine", "method": method}], **changes))[0] == 0
        [error] = json.loads((tmp_path / "table/flow.json").read_text())
        shutil.rmtree(tmp_path / "table/cells")
        if method == "DDIM":
            before = error
    assert (before["nfe"], error["nfe"]) == (4, 13) and before["rms"] != error["rms"]


def test_cells_from_a_reference_that_has_changed_are_refused(table, tiny, cli, undrawn, tmp_path):
    flags = table(methods=["DDIM"], profiles=["exact"], seeds=1, more=[])
    images = tmp_path / "table" / "cells" / "DDIM_4_exact_seed0"
    assert cli(*flags)[0] == 0
    file, before = tmp_path / "st.npz", written(tmp_path / "table")
    shutil.copytree(images, tmp_path / "images")
    measured = [*flags, "--statistics", file]
    flags = [flag if flag != str(tmp_path / "table") else str(tmp_path / "other") for flag in measured]
    said = []
    for change in ("nothing", "an image", "their number"):
        image = tmp_path / "images/000003.png"
        if change == "an image":
            shutil.copy(tmp_path / "images/000004.png", image)
        elif change == "their number":
            image.unlink()
        assert cli("--runner", "stats", tmp_path / "images", "--features", "pixels", "--out", file)[0] == 0
        status, _, err = cli(*flags)
        said.append(status)
    assert said == [0, 2, 2]
    assert "are from a reference that has changed since; choose another folder" in err and err.count("\n") == 1
    assert written(tmp_path / "table") == before


def test_records_of_an_older_schema_still_count(table, cli, undrawn, tmp_path):
    """A key that was added since, with a default that means what was done before, makes no cell another."""
    flags = table(methods=["DDIM"], seeds=1)
    cli(*flags)
    for path in (tmp_path / "table/cells").glob("*/result.json"):
        record = json.loads(path.read_text())
        del record["config"]["Sample"]["keep"], record["config"]["Sample"]["metrics"]
        del record["fingerprint"]["Sample.metrics"], record["fingerprint"]["Sample.eta"]
        path.write_text(json.dumps(record))
    before = written(tmp_path / "table")
    assert cli(*flags)[0] == 0
    assert written(tmp_path / "table") == before


@pytest.mark.parametrize("damage", [{"config": None}, {"frechet": {"value": 1.0}}, {"nfe": "many"}, {"made": 0}])
def test_a_damaged_record_is_one_line_that_names_it(damage, table, cli, undrawn, tmp_path):
    flags = table(methods=["DDIM"], seeds=1, more=[])
    cli(*flags)
    path = sorted((tmp_path / "table/cells").glob("*/result.json"))[0]
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    status, _, err = cli(*flags)
    assert (status, err) == (2, f"main.py: {path}: damaged, or of another version; delete it and run again\n")


def test_the_plan_in_docs_is_the_output_of_its_command(cli):
    flags = ["--method", "F-PNDM", "--sample_speed", "10"]
    status, out, _ = cli("--runner", "plan", *flags, "--device", "cpu")
    page = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    assert status == 0
    assert f"    python main.py --runner plan {' '.join(flags)}\n" in page
    plan = out.partition("time  ")[0].splitlines()
    assert len(plan) == 14
    assert "".join(f"    {line}\n" for line in plan) in page


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--steps", "abc"], "--steps: 'abc' is not in table small: 4, 5, 8"),
        (["--steps", "4,"], "--steps: '' is not in table small"),
        (["--methods", "PF 1e-2", "--set", "Sample.rtol=0.1"], "--set: PF 1e-2 of table"),
        (["--set", "Sample.solver=digits_nfe8"], "--set: a table sets Sample.solver itself"),
        (["--methods", "DDIM,PNDM"], "--methods: 'PNDM' is not in table small: DDIM, F-PNDM, PF 1e-2"),
        (["--seeds", "3"], "--seeds: '3' is not a number from 1 to 2, as table small has"),
        (["--seeds", "one"], "--seeds: 'one' is not a number"),
        (["--total_num", "1"], "--total_num: a distance needs at least 2 images"),
        (["--flow", "-1"], "--flow: '-1' is not a whole number"),
        (["--table", "nothing"], "--table: no file nothing.yml, here or in config/tables/, which has celeba.yml"),
        (["--config", "digits.yml"], "--config: digits.yml: a table names its experiments"),
        (["--method", "DDIM"], "--method does not go with --runner reproduce"),
        (["--model_path", "nothing.ckpt"], "--model_path: no file nothing.ckpt"),
        (["--statistics", "nothing.npz"], "--statistics: no file nothing.npz; --runner stats makes it"),
        (["--set", "Dataset.path=nothing", "--set", "Dataset.dataset=CELEBA"], "nothing"),
        (
            ["--table", "celeba"],
            "3 things are missing. network: no file temp/models/ddim_celeba.ckpt; it is at https://drive",
        ),
    ],
)
def test_wrong_input_ends_in_one_line_and_writes_nothing(table, cli, tmp_path, flags, said):
    base = table()
    status, out, err = cli(*base, *flags)
    assert (status, out) == (2, "")
    assert said in err
    assert err.startswith("main.py: ")
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["small.yml"]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"stpes": [3]}, "unknown key stpes; did you mean steps?"),
        ({"steps": ["many"]}, "steps.0 is 'many'"),
        ({"images": 1}, "images is 1"),
        ({"profiles": ["exakt"]}, "profiles.0 is 'exakt'"),
        ({"more": [{"step": [3]}]}, "unknown key more.0.step; did you mean steps?"),
        ({"methods": ["PNDM"]}, "PNDM: Sample.method is 'PNDM'"),
        ({"methods": [{"method": "DDIM", "speed": 3}]}, "DDIM: unknown key Sample.speed"),
        ({"methods": ["DDIM", {"method": "DDIM", "eta": 0.5}]}, "two methods are called DDIM"),
        ({"methods": ["DDIM", {"label": "DDIM*", "method": "FON"}]}, "DDIM and DDIM* would share folders"),
        ({"methods": [{"label": "PF", "method": "DDIM"}, {"label": "PF_4", "method": "PF"}]}, "would share folders"),
        ({"methods": [{"method": "DDIM", "times": [999, -1]}]}, "DDIM: times is not a key of a method"),
        ({"methods": [{}]}, "methods"),
        ({"methods": [{"eta": 0.5}]}, "methods: an entry has neither `method` nor `label`"),
        ({"sample": {"seed": 3}}, "DDIM: seed is not a key of a method"),
        ({"methods": [{"method": "DDIM", "label": "$DDIM"}]}, "label '$DDIM': it must be printable, without , | $"),
        (
            {"methods": [{"method": "DDIM", "label": "DDIM, quad"}]},
            "label 'DDIM, quad': it must be printable, without ,",
        ),
        ({"methods": [{"method": "DDIM", "label": 5}]}, "label 5: it must be a text"),
        (
            {"methods": ["DDIM", {"label": "clothes", "method": "DDIM", "experiment": "fashion.yml"}]},
            "Sample.features is 'pixels' in DDIM and 'fashion' in clothes; the distances of a table are of one kind",
        ),
        ({"steps": [True]}, "steps"),
        ({"methods": [{"method": "DDIM", 3: 4}]}, "DDIM: a key of Sample must be a name"),
        ({"sample": {"batch_size": "auto"}}, "batch_size auto does not go with a table"),
        ({"nfe": [5]}, "steps and nfe exclude each other in a table"),
        ({"methods": ["DDIM"], "steps": [], "more": []}, "there is nothing to run (no steps are given)"),
        (
            {"methods": ["DDIM"], "steps": [2000], "more": []},
            "Sample.sample_speed 2000 is above Schedule.diffusion_step 1000",
        ),
        ({"experiment": "nothing.yml"}, "small.yml: experiment: no file nothing.yml"),
        ({"sample": {"features": "colours"}}, "features 'colours' is not one of pixels, fashion, inception, none"),
        ({"paper": {"fid": {"DDIM": {5: {"value": 1, "basis": "heard"}}}}}, "basis is 'heard'"),
        ({"paper": {"fid": {"DDIM": {"few": {}}}}}, "paper.fid.DDIM.few is 'few'; input should be a valid integer"),
        ({"paper": {"seconds_per_step": {"PF": "x"}}}, "paper.seconds_per_step.PF is 'x'"),
    ],
)
def test_a_wrong_table_is_named_with_its_key(table, cli, tmp_path, changes, said):
    status, out, err = cli(*table(**changes))
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "table").exists()


def test_a_cell_that_fails_leaves_the_others_standing(table, tiny, cli, undrawn, tmp_path):
    tensors = {name: value.clone() for name, value in tiny.network.state_dict().items()}
    tensors["conv_out.bias"] += torch.nan
    checkpoint.save(tmp_path / "nan.safetensors", tensors, {})
    broken = {"label": "broken", "method": "F-PNDM", "model_path": str(tmp_path / "nan.safetensors")}
    flags = table(methods=[broken, "DDIM"], steps=[4], profiles=["exact"], more=[])
    status, out, err = cli(*flags)
    assert status == 2
    assert err.count("ε is not finite from step 1 of 4") == 2
    assert "main.py: broken_4_exact_seed1: " in err
    assert set(cells(tmp_path / "table")) == {"DDIM_4_exact_seed0", "DDIM_4_exact_seed1"}
    assert "| DDIM |" in out
    assert "broken" not in out
    status, out, _ = cli(*flags, "--methods", "broken", "--image_path", tmp_path / "none")
    assert (status, "DDIM" in out) == (2, False)
    assert not cells(tmp_path / "none")


def test_keep_leaves_files_out_and_nothing_else(tiny, cli, tmp_path):
    cli(*tiny.flags(tmp_path / "all"))
    assert cli(*tiny.flags(tmp_path / "some", "--keep", 3))[0] == 0
    held = {path.name for path in (tmp_path / "some").iterdir()}
    assert held == {"000000.png", "000001.png", "000002.png", "grid.png", "result.json", "run.json"}
    records = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("all", "some")]
    assert records[0]["frechet"] == records[1]["frechet"]
    status, out, _ = cli(*tiny.flags(tmp_path / "some", "--keep", 3))
    assert (status, "already holds these 10 images" in out) == (0, True)
    status, _, err = cli(*tiny.flags(tmp_path / "some", "--keep", 3, "--seed", 1))
    assert (status, "Sample.seed is 0 there and 1 here" in err) == (2, True)


def test_no_files_at_all(tiny, cli, tmp_path):
    assert cli(*tiny.flags(tmp_path / "none", "--keep", 0))[0] == 0
    assert {path.name for path in (tmp_path / "none").iterdir()} == {"result.json", "run.json"}
    assert "already holds" in cli(*tiny.flags(tmp_path / "none", "--keep", 0))[1]
    assert cli(*tiny.flags(tmp_path / "none", "--keep", 0, "--seed", 1))[0] == 2

"""Plans: what the methods ask for, read off the methods themselves."""

import io
import re

import numpy as np
import pytest
import torch
from helpers import ROOT
from PIL import Image

from pndm.config.load import load, load_solver
from pndm.runner import plan
from pndm.runner.build import sampling_of


def experiment(method, steps, profile="exact", config="digits.yml"):
    values = {"method": method, "sample_speed": steps, "profile": profile}
    return load(config, {f"Sample.{name}": ("test", value) for name, value in values.items()})


@pytest.mark.parametrize(
    "method, steps, profile, calls, orders",
    [
        ("DDIM", 6, "exact", [1] * 6, [1] * 6),
        ("S-PNDM", 6, "exact", [2] + [1] * 5, [2] * 6),
        ("F-PNDM", 6, "exact", [4, 4, 4, 1, 1, 1], [4] * 6),
        ("FON", 6, "exact", [4, 4, 4, 1, 1, 1], [4] * 6),
        ("F-PNDM", 2, "exact", [4, 1], [4, 2]),  # the step into clean data has a history of one
        ("FON", 3, "exact", [4, 4, 1], [4, 4, 3]),
        ("S-PNDM", 1, "exact", [1], [1]),
        ("S-PNDM", 1, "published", [2], [2]),  # it ends short of clean data
        ("FON", 5, "published", [4, 4, 4, 1, 1], [4] * 5),
    ],
)
def test_calls_and_orders_are_the_methods_own(method, steps, profile, calls, orders):
    found = plan.lines(experiment(method, steps, profile))
    assert [line.calls for line in found] == calls
    assert [line.order for line in found] == orders


@pytest.mark.parametrize("method", ["DDIM", "S-PNDM", "F-PNDM", "FON"])
def test_the_calls_planned_are_those_counted(tiny, cli, tmp_path, method):
    for steps in (1, 3, 7):
        asked = experiment(method, steps, config=str(tiny.config))
        states = list(sampling_of(asked).states(lambda x, t: 0 * x, range(2), "cpu"))
        found = plan.lines(asked)
        assert sum(line.calls for line in found) == plan.count_calls(asked) == states[-1].nfe
        assert [line.s for line in found] == [state.t for state in states]


def test_times_and_levels_are_those_of_the_grid():
    exact = plan.lines(experiment("F-PNDM", 10))
    assert [line.t for line in exact] == [900 - 100 * i for i in range(10)]
    assert [line.s for line in exact] == [*(800 - 100 * i for i in range(9)), -1]
    levels = sampling_of(experiment("F-PNDM", 10)).schedule.alphas_cumprod
    assert [line.alpha for line in exact] == pytest.approx([levels[900 - 100 * i] for i in range(10)])
    assert exact[-1].alpha_s == 1
    published = plan.lines(experiment("F-PNDM", 10, "published"))
    assert [line.alpha for line in published] == pytest.approx([levels[901 - 100 * i] for i in range(10)])
    assert published[-1].alpha_s == pytest.approx(0.9999)


def test_a_plan_writes_nothing_and_says_what_it_costs(tiny, cli, tmp_path):
    status, out, err = cli(*tiny.flags(tmp_path / "run", "--sample_speed", 5, "--plan"))
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[1][:3] == ["1", "800.00", "600.00"]
    assert lines[5][:3] == ["5", "0.00", "-1.00"]
    assert ["calls", "an", "image", "14"] in lines
    assert ["images", "×", "calls", "168"] in lines  # three batches of 4
    assert "time" in out
    assert "memory" in out
    assert not (tmp_path / "run").exists()


def test_a_plan_compiles_nothing(tiny, cli, tmp_path, monkeypatch):
    monkeypatch.setattr("pndm.model.engine.frozen", lambda *_: pytest.fail("the network was compiled"))
    status, out, _ = cli(*tiny.flags(tmp_path / "run", "--sample_speed", 5, "--plan", "--compile"))
    assert status == 0 and "of network calls, not compiled, " in out


def test_an_adaptive_method_needs_no_number_of_steps(tiny, cli, tmp_path):
    flags = ["--method", "PF", "--rtol", "0.5", "--atol", "0.5", "--set", "Schedule.diffusion_step=20", "--plan"]
    assert cli(*tiny.flags(tmp_path / "run", *flags))[0] == 0


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--sample_speed", "30", "--profile", "published"], "cannot run 30 steps"),
        (["--method", "PF", "--profile", "published", "--rtol", "0.1"], "fixed tolerances"),
        (["--image_path", "x"], "--image_path does not go with --runner plan"),
    ],
)
def test_what_cannot_be_run_cannot_be_planned(cli, flags, said):
    status, out, err = cli("--runner", "plan", *flags)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_without_its_checkpoint_a_plan_is_not_calibrated_and_loads_nothing(cli, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("pndm.runner.fetch.download", lambda *_: pytest.fail("something was downloaded"))
    status, out, err = cli("--plan", "--config", "ddim_celeba.yml", "--method", "DDIM", "--sample_speed", "2")
    assert status == 0
    assert "not calibrated" in out
    assert "a plan downloads nothing" in err and "temp/models/ddim_celeba.ckpt" in err
    assert "100,096" in out  # 782 batches of 128, twice


def test_adaptive_methods_are_tried_on_a_few_images(tiny, cli, tmp_path):
    status, out, _ = cli(*tiny.flags(tmp_path / "run", "--method", "PF", "--rtol", 0.1, "--atol", 0.1, "--plan"))
    assert status == 0
    assert "PF chooses its steps" in out
    assert f"mean of {plan.PILOT} images" in out


def test_tables_and_training_have_plans(tiny, cli, tmp_path):
    flags = ["--runner", "reproduce", "--steps", "5,10", "--seeds", 2, "--methods", "DDIM,F-PNDM", "--device", "cpu"]
    status, out, _ = cli(*flags, "--image_path", tmp_path / "table", "--plan")
    assert status == 0
    assert f"{2 * 5000 * 2 * (5 + 10 + 14 + 19):,}" in out
    assert not (tmp_path / "table").exists()
    flags = ["--runner", "train", "--config", tiny.config, "--train_path", tmp_path / "train", "--plan"]
    status, out, _ = cli(*flags, "--device", "cpu")
    assert status == 0
    assert "33,600 of 64 images" in out and "on 8 GPUs 8 images each" in out
    assert not (tmp_path / "train").exists()
    assert cli("--runner", "fid", "--plan")[0] == 2


def test_the_time_of_a_training_is_that_of_three_calls_for_each_image_of_a_step(tiny, cli, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "calibrate", lambda *_: plan.Calibration(seconds=0.001, memory=0))
    flags = ["--runner", "train", "--config", tiny.config, "--train_path", tmp_path / "run", "--plan"]
    status, out, _ = cli(*flags, "--steps", 500, "--batch_size", 20, "--device", "cpu")
    assert status == 0
    assert "\ntime              30.0 s, a step taken as three network calls, " in out
    parameters = int(re.search(r"parameters +([\d,]+)", out)[1].replace(",", ""))
    assert parameters == sum(p.numel() for p in tiny.network.parameters())
    assert re.search(r"disk +([\d.]+) MB", out)[1] == f"{14 * 4 * parameters / 1e6:.3g}"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_is_timed_in_its_own_precision(tiny, cli, tmp_path, monkeypatch, precision):
    def calibrate(network, *_):
        with torch.inference_mode():
            inner.append(network.conv_in(torch.zeros(1, 1, 8, 8)).dtype)
        return plan.Calibration(seconds=0.001, memory=0)

    inner = []
    monkeypatch.setattr(plan, "calibrate", calibrate)
    flags = ["--runner", "train", "--config", tiny.config, "--train_path", tmp_path / "run", "--plan"]
    assert cli(*flags, "--set", f"Train.precision={precision}", "--device", "cpu")[0] == 0
    assert inner == [torch.bfloat16 if precision == "bf16" else torch.float32]


@pytest.mark.parametrize(("features", "dimension"), [("pixels", 64), ("none", 0)])
def test_the_memory_of_a_run_is_the_networks_and_that_of_twenty_matrices(tiny, cli, monkeypatch, features, dimension):
    monkeypatch.setattr(plan, "calibrate", lambda *_: plan.Calibration(seconds=0.5, memory=5_000_000))
    flags = ["--runner", "plan", "--config", tiny.config, "--features", features, "--device", "cpu"]
    status, out, _ = cli(*flags, "--method", "DDIM", "--sample_speed", 5)
    assert status == 0
    assert "\ntime              30.0 s of network calls, " in out  # 12 images in whole batches, 5 calls
    assert f"\nmemory            {(5_000_000 + 20 * 8 * dimension**2) / 1e6:.3g} MB\n" in out


def test_a_calibration_grows_with_the_batch(monkeypatch, tiny):
    """Of a network that takes 1 ms and holds 1 kB for each image, on 100 kB."""
    held, clock = [100_000], [0.0]

    def network(x, t):
        held[0] = max(held[0], 100_000 + 1000 * len(x))
        clock[0] += 0.001 * len(x)
        return x

    monkeypatch.setattr(plan, "peak", lambda device: held[0])
    monkeypatch.setattr(plan.time, "perf_counter", lambda: clock[0])
    for batch, most in ((64, 64), (3000, 1024)):
        held[0] = 100_000
        experiment = load(str(tiny.config), {"Sample.batch_size": ("test", batch)})
        found = plan.calibrate(network, experiment, torch.device("cpu"))
        assert found.seconds == pytest.approx(0.001)
        assert found.memory == 100_000 + 1000 * batch
        assert held[0] == 100_000 + 1000 * most


def test_help_of_the_plan_names_a_command_that_runs(cli):
    command = next(line for line in (ROOT / "runner/plan.py").read_text().splitlines() if "python main.py" in line)
    assert cli(*command.split()[2:], "--device", "cpu")[0] == 0


def test_the_times_of_a_solver_file_are_those_of_x():
    asked = load("digits.yml", {"Sample.solver": ("test", "digits_nfe5")})
    *starts, end = load_solver("digits_nfe5").times
    found = plan.lines(asked)
    assert [line.t for line in found] == starts and [line.s for line in found] == [*starts[1:], end]
    assert sampling_of(asked).begins == starts[0]


def test_the_features_of_an_unfinished_run_take_the_disk_that_the_plan_says(tmp_path):
    np.save(tmp_path / "batch.npy", np.zeros((250, 64), np.float64))  # digits: 8×8 grey levels, batches of 250
    some = {"Sample.total_num": ("test", 500), "Sample.keep": ("test", 16)}
    assert plan.features_size(load("digits.yml", some)) == 2 * (tmp_path / "batch.npy").stat().st_size
    assert plan.features_size(load("digits.yml")) == 0


@pytest.mark.parametrize(("config", "size"), [("digits.yml", 8), ("ddim_cifar10.yml", 32), ("ddim_church.yml", 256)])
def test_no_image_is_larger_on_the_disk_than_the_plan_says(config, size):
    experiment, file = load(config), io.BytesIO()
    shape = (size, size, 3)[: 2 + (experiment.Dataset.channels == 3)]
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    assert 0.8 * plan.file_size(experiment) < len(file.getvalue()) <= plan.file_size(experiment)

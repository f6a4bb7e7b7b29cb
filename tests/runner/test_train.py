"""Training: what a step computes, and that a run continues bit for bit after whatever stopped it."""

import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ROOT, process, workers_of
from PIL import Image
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pndm import cli as main
from pndm.config.errors import InputError
from pndm.config.load import load
from pndm.model import checkpoint, load_model
from pndm.model.ema import EMA
from pndm.runner import checkpoints, train
from pndm.runner.batches import augment, draw, image_order
from pndm.runner.checkpoints import TrainFolder
from pndm.runner.preview import Preview
from pndm.runner.processes import Processes
from pndm.runner.solver.schedule import Schedule
from pndm.runner.train import Trainer
from pndm.runner.trainlog import Meter

SHORT = ["--set", "Train.checkpoint_interval=5", "--set", "Train.sample_interval=5", "--set", "Train.log_interval=5"]
SHORT += ["--set", "Sample.batch_size=64"]  # a grid in one call


def flags(tiny, folder, epochs, *more):
    """A training run of `epochs` × 3 steps."""
    batch = ["--batch_size", "599", "--set", f"Train.epoch={epochs}"]
    return [
        "--runner",
        "train",
        "--config",
        tiny.config,
        "--device",
        "cpu",
        "--train_path",
        folder,
        *batch,
        *SHORT,
        *more,
    ]


def quick(tiny, folder, epochs, *more):
    """The same on few images, for what is not compared with `straight`."""
    return flags(tiny, folder, epochs, *tiny.few_images, "--batch_size", 32, *more)


def experiment(tiny, **values):
    return load(str(tiny.config), {name.replace("_", ".", 1): ("--set", value) for name, value in values.items()})


def newest(folder):
    return max(folder.glob("train-*.ckpt"))


def state(folder):
    return torch.load(newest(folder), weights_only=True)


def trainer(tiny, folder, **values):
    return Trainer(experiment(tiny, **values), Processes(torch.device("cpu")), folder)


def loss_of(run):
    """Take a step on the first 64 images; the mean over them of the loss, summed over the pixels."""
    run.step(draw(run.images[:64], run.experiment.Dataset, 0, run.done, range(64), 1000))
    loss, _ = run.meter.result(run.team)
    return loss


def assert_same(a, b):
    """Equal to the bit, through nested dicts and lists."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            assert_same(a[name], b[name])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            assert_same(left, right)
    else:
        assert a == b


@pytest.fixture(scope="module")
def straight(tiny, tmp_path_factory):
    """A run of 12 steps, undisturbed."""
    folder = tmp_path_factory.mktemp("straight")
    assert main.main([str(flag) for flag in flags(tiny, folder, 4)]) == 0
    return folder


def test_a_run_leaves_checkpoint_average_and_scalars(tiny, straight):
    assert state(straight)["step"] == 12
    log = EventAccumulator(str(straight)).Reload()
    assert {"loss", "gradient_norm", "learning_rate"} <= set(log.Tags()["scalars"])
    assert [event.step for event in log.Scalars("loss")] == [5, 10]
    assert [event.step for event in log.Images("sample")] == [5, 10]
    average = load_model(experiment(tiny).Model, straight / "ema.safetensors")
    assert_same(average.state_dict(), state(straight)["ema"])


def test_the_average_can_be_sampled_from(tiny, straight, cli, tmp_path):
    assert cli(*tiny.flags(tmp_path / "run", "--model_path", straight / "ema.safetensors"))[0] == 0


def test_a_run_in_two_parts_ends_with_the_same_bits(tiny, straight, cli, tmp_path):
    assert cli(*flags(tiny, tmp_path, 2))[0] == 0
    assert state(tmp_path)["step"] == 6
    assert cli(*flags(tiny, tmp_path, 4, "--restart"))[0] == 0
    mine, theirs = state(tmp_path), state(straight)
    for name in ("model", "ema", "optimizer", "step"):
        assert_same(mine[name], theirs[name])
    for damage in (lambda file: file.unlink(), lambda file: file.write_bytes(b"{")):
        damage(tmp_path / "ema.safetensors")  # as when it was killed between the last checkpoint and the average
        assert cli(*flags(tiny, tmp_path, 4, "--restart"))[0] == 0
        average = load_model(experiment(tiny).Model, tmp_path / "ema.safetensors")
        assert_same(average.state_dict(), mine["ema"])


def test_a_killed_run_ends_with_the_same_bits(tiny, straight, cli, tmp_path):
    command = [sys.executable, str(ROOT / "main.py"), *map(str, flags(tiny, tmp_path, 4))]
    run = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("train-*.ckpt")) and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert state(tmp_path)["step"] in (5, 10)
    (tmp_path / ".train-00000015.ckpt.1.tmp").touch()  # as when it was killed while it wrote
    assert cli(*flags(tiny, tmp_path, 4, "--restart"))[0] == 0
    assert not list(tmp_path.glob(".*"))
    for name in ("model", "ema", "optimizer", "step"):
        assert_same(state(tmp_path)[name], state(straight)[name])


@pytest.mark.parametrize("kind", ["linear", "square"])
def test_loss_is_the_formula(tiny, tmp_path, kind, monkeypatch):
    """With a network that answers zero, the loss is the mean over images of Σ|ε| or Σε²; ε is standard normal."""
    run = trainer(tiny, tmp_path, Train_loss_type=kind)
    seen = {}
    forward = run.network.forward

    def zero(x, t):
        seen.update(x=x, t=t)
        return forward(x, t) * 0

    monkeypatch.setattr(run.network, "forward", zero)
    assert loss_of(run) == pytest.approx(64 * (1.0 if kind == "square" else np.sqrt(2 / np.pi)), rel=0.1)
    times = seen["t"]
    assert torch.equal(times[33:], 999 - times[:31])  # antithetic
    batch = draw(run.images[:64], run.experiment.Dataset, 0, 0, range(64), 1000)
    alpha = torch.from_numpy(Schedule().alphas_cumprod)[times].view(-1, 1, 1, 1)
    wanted = alpha.sqrt() * batch.x0 + (1 - alpha).sqrt() * batch.eps
    torch.testing.assert_close(seen["x"].double(), wanted, rtol=0, atol=1e-5)


def test_training_lowers_the_loss(tiny, tmp_path):
    run = trainer(tiny, tmp_path, Optim_lr=2e-3)
    losses = [loss_of(run) for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:5])


def test_learning_rate_warms_up(tiny, tmp_path, monkeypatch):
    run = trainer(tiny, tmp_path, Train_warmup=4, Optim_lr=0.1)
    rates, step = [], run.optimizer.step
    monkeypatch.setattr(run.optimizer, "step", lambda: rates.append(run.optimizer.param_groups[0]["lr"]) or step())
    for _ in range(6):
        loss_of(run)
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


def test_the_optimizer_is_told_its_settings(tiny, tmp_path):
    values = {"beta1": 0.7, "eps": 1e-5, "weight_decay": 0.1, "amsgrad": True}
    run = trainer(tiny, tmp_path, **{f"Optim_{name}": value for name, value in values.items()})
    found = run.optimizer.param_groups[0]
    assert found["betas"] == (0.7, 0.999)
    assert [found[name] for name in ("eps", "weight_decay", "amsgrad")] == [1e-5, 0.1, True]


def test_dropout_is_another_in_every_step_and_the_same_in_the_same(tiny, tmp_path):
    losses = []
    for done in (0, 0, 1):
        run = trainer(tiny, tmp_path, Model_dropout=0.5)
        run.done = done
        run.step(draw(run.images[:64], run.experiment.Dataset, 0, 0, range(64), 1000))
        losses.append(run.meter.result(run.team)[0])
    assert losses[0] == losses[1] != losses[2]


def test_average_follows_its_formula():
    network = torch.nn.Linear(1, 1, bias=False)
    ema = EMA(network, 0.5)
    expected = network.weight.item()
    for step in range(1, 8):
        with torch.no_grad():
            network.weight.fill_(step)
        ema.update(network, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        assert ema.network.weight.item() == pytest.approx(expected, rel=1e-6)


def test_every_epoch_shows_every_image_once_in_its_own_order():
    order = image_order(10, 5, seed=3)
    epochs = [next(order) + next(order) for _ in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("dequantization", ["uniform", "gaussian"])
def test_dequantization_and_flips_keep_the_range(tiny, tmp_path, dequantization):
    values = {f"Dataset_{dequantization}_dequantization": True, "Dataset_random_flip": True}
    run = trainer(tiny, tmp_path, Dataset_batch_size=500, **values)
    images = run.images[:500]
    x = augment(images, run.experiment.Dataset, [np.random.default_rng(i) for i in range(500)])
    plain = images.float() / 127.5 - 1
    flipped = (x - plain.flip(3)).abs().amax((1, 2, 3)) < (x - plain).abs().amax((1, 2, 3))
    assert 0.4 < flipped.float().mean() < 0.6
    straightened = torch.where(flipped[:, None, None, None], x.flip(3), x)
    deviation = straightened - plain
    if dequantization == "gaussian":
        assert deviation.std() == pytest.approx(0.02, rel=0.05)
    else:  # uniform over a grey level
        share = (straightened + 1) * 128 - images
        assert share.min() > -1e-3 and share.max() < 1 + 1e-3
        assert share.std() == pytest.approx(12**-0.5, rel=0.05)
    assert abs(deviation.mean()) < 0.005


@pytest.mark.parametrize(
    "more, said",
    [
        ([], "holds a training run; --restart continues it"),
        (["--restart", "--set", "Optim.lr=0.5"], "Optim.lr is 0.5"),
        (["--restart", "--set", "Model.ch=64"], "Model.ch is 64"),
    ],
)
def test_a_folder_with_a_run_is_not_overwritten(tiny, straight, cli, more, said):
    before = newest(straight).read_bytes()
    status, _, err = cli(*flags(tiny, straight, 4, *more))
    assert (status, err.count("\n")) == (2, 1)
    assert said in err
    assert newest(straight).read_bytes() == before


def test_wrong_input_is_named(tiny, cli, tmp_path):
    for more, said in (
        (["--restart"], "there is no train-STEP.ckpt in "),
        (["--batch_size", "1798"], "above the 1797 images"),
        (["--nfe", "10"], "9 in 3 steps or 13 in 4 steps"),
        (["--total_num", "5"], "--total_num does not go with --runner train"),
        (["--plan", "--eta", "0.5"], "takes no option eta"),
        (["--plan", "--batch_size", "1798"], "above the 1797 images"),
        (["--set", "Sample.batch_size=auto"], "batch_size auto is for sampling; training needs a number"),
        (["--set", "Train.distance_num=1"], "distance_num needs at least 2 images"),
        (["--set", "Train.distance_num=4", "--set", "Sample.features=none"], "and Sample.features"),
    ):
        status, _, err = cli(*flags(tiny, tmp_path / "new", 1), *more)
        assert (status, err.count("\n")) == (2, 1)
        assert said in err
        assert not (tmp_path / "new").exists()


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tiny, straight, cli, tmp_path):
    shutil.copytree(straight, tmp_path / "run")
    newest(tmp_path / "run").write_bytes(newest(straight).read_bytes()[:-5000])
    status, _, err = cli(*flags(tiny, tmp_path / "run", 4, "--restart"))
    assert status == 0
    assert "the run continues from the checkpoint before it" in err
    assert err.count("\n") == 1
    assert_same(state(tmp_path / "run")["model"], state(straight)["model"])


@pytest.mark.parametrize("content", [{}, [1], {"experiment": 5}, None])
def test_a_foreign_checkpoint_gives_way_to_the_one_before(tiny, straight, cli, tmp_path, content):
    shutil.copytree(straight, tmp_path / "run")
    foreign = tmp_path / "run" / "train-00000013.ckpt"
    if content is None:  # cut where PyTorch finds no end of the archive, and says so as of a file system's error
        foreign.write_bytes(newest(straight).read_bytes()[:20_000])
    else:
        torch.save(content, foreign)
    status, _, err = cli(*flags(tiny, tmp_path / "run", 4, "--restart"))
    assert (status, err.count("\n")) == (0, 1)
    assert f"{foreign}: " in err and "the run continues from the checkpoint before it" in err


def test_only_the_last_checkpoints_are_kept(straight):
    assert sorted(path.name for path in straight.glob("train-*")) == [f"train-{n:08d}.ckpt" for n in (5, 10, 12)]


def test_the_best_average_is_kept_with_its_distance(tiny, cli, tmp_path):
    distance = ["--set", "Train.distance_num=30", "--set", "Sample.sample_speed=4"]
    metrics = ["--set", "Sample.metrics=[prdc]"]  # of samples, not of what a training looks at
    assert cli(*quick(tiny, tmp_path / "run", 4), *distance, *metrics)[0] == 0
    log = EventAccumulator(str(tmp_path / "run")).Reload()
    values = {event.step: event.value for event in log.Scalars("frechet_pixels")}
    assert list(values) == [5, 10]
    best = min(values, key=values.get)
    with safe_open(tmp_path / "run" / "best.safetensors", "pt") as file:
        assert json.loads(file.metadata()["record"])["step"] == best
    assert state(tmp_path / "run")["best"] == pytest.approx(values[best], rel=1e-6)
    more = ["--model_path", tmp_path / "run" / "best.safetensors", "--total_num", 30, "--batch_size", 64]
    assert cli(*tiny.flags(tmp_path / "images"), *tiny.few_images, *more)[0] == 0
    record = json.loads((tmp_path / "images" / "result.json").read_text())
    assert record["frechet"]["value"] == pytest.approx(values[best], rel=1e-5)


def test_the_best_is_not_compared_with_one_of_another_distance(tiny, cli, tmp_path):
    def best(epochs, *more):
        given = ["--set", "Sample.sample_speed=4", *more]
        assert cli(*quick(tiny, tmp_path, epochs, *given))[0] == 0
        return state(tmp_path)["best"]

    first = best(2, "--set", "Train.distance_num=60")
    assert best(4, "--restart", "--set", "Train.distance_num=4") > first


def test_an_average_that_cannot_be_sampled_from_does_not_end_the_run(tiny, cli, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.ones(()))
    more = ["--set", "Optim.lr=1e30", "--set", "Train.distance_num=4", "--set", "Sample.sample_speed=4"]
    status, _, err = cli(*quick(tiny, tmp_path, 2, *more))
    assert status == 0
    assert err.count("no images of the averaged network: ε is not finite") == 1


def test_a_full_disk_ends_in_one_line_with_the_last_checkpoint_kept(tiny, straight, tmp_path):
    """The operating system refuses files beyond 100 kB: TensorBoard's fit, a checkpoint does not."""
    shutil.copytree(straight, tmp_path / "run")
    command = [sys.executable, str(ROOT / "main.py"), *map(str, flags(tiny, tmp_path / "run", 6, "--restart"))]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # noqa: E731
    run = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert run.returncode == 2
    assert "File too large" in run.stderr
    assert run.stderr.count("main.py: ") == 1
    assert newest(tmp_path / "run").read_bytes() == newest(straight).read_bytes()
    assert not list((tmp_path / "run").glob(".*"))


def test_bfloat16_computes_the_same_within_its_precision(tiny, tmp_path):
    runs = [trainer(tiny, tmp_path, Train_precision=precision) for precision in ("fp32", "bf16")]
    losses = [[loss_of(run) for _ in range(5)] for run in runs]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert {value.dtype for value in runs[1].network.state_dict().values()} == {torch.float32}


def test_a_gradient_that_is_not_finite_is_named_and_not_saved(tiny, cli, tmp_path):
    status, _, err = cli(*quick(tiny, tmp_path, 4, "--set", "Optim.lr=1e30"))
    assert (status, err.count("main.py: ")) == (2, 1)
    assert "the gradient is not finite at step 5" in err
    assert not list(tmp_path.glob("train-*"))


def test_being_told_to_stop_leaves_a_checkpoint_of_the_step_under_way(tiny, straight, cli, tmp_path):
    command = [sys.executable, str(ROOT / "main.py"), *map(str, flags(tiny, tmp_path, 4))]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("events*")) and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(signal.SIGTERM)
    err = run.communicate()[1]
    assert run.returncode == 130
    assert err.splitlines()[-1].startswith("main.py: interrupted")
    assert 1 <= state(tmp_path)["step"] < 12
    assert cli(*flags(tiny, tmp_path, 4, "--restart"))[0] == 0
    assert_same(state(tmp_path)["optimizer"], state(straight)["optimizer"])


def test_a_group_that_is_told_to_stop_leaves_a_checkpoint(tiny, tmp_path):
    """As a scheduler tells all processes of a job, those that read images among them."""
    command = [sys.executable, str(ROOT / "main.py"), *map(str, flags(tiny, tmp_path, 400))]
    pipes = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    run = subprocess.Popen([*command, "--set", "Dataset.num_workers=1"], **pipes)
    while not list(tmp_path.glob("events*")) and run.poll() is None:
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGTERM)
    err = run.communicate()[1]
    assert run.returncode == 130, err
    assert err.splitlines()[-1].startswith("main.py: interrupted")
    assert state(tmp_path)["step"] >= 1


def test_a_reader_that_dies_is_one_line(tiny, tmp_path):
    run = process(*flags(tiny, tmp_path / "run", 400), "--set", "Dataset.num_workers=1")
    while not list(tmp_path.glob("run/events*")) and run.poll() is None:
        time.sleep(0.01)
    for worker in workers_of(run):
        os.kill(worker, signal.SIGKILL)
    err = run.communicate()[1]
    assert run.returncode == 2, err
    assert err.splitlines()[-1].startswith("main.py: --set: a process that reads images has ended (DataLoader worker")
    assert "Traceback" not in err


def test_a_copy_of_a_checkpoint_is_the_users(straight, tmp_path):
    shutil.copytree(straight, tmp_path / "run")
    before = TrainFolder(tmp_path / "run", restart=True).checkpoints
    copies = [tmp_path / "run" / name for name in ("train-best.ckpt", "train-00000012-old.ckpt")]
    for copy in copies:
        shutil.copy(before[-1], copy)
    folder = TrainFolder(tmp_path / "run", restart=True)
    assert folder.checkpoints == before
    for step in (100_000_000, 20, 21):
        folder.save({"step": step})
    assert {path.name for path in (tmp_path / "run").glob("train-*.ckpt")} == {
        *("train-100000000.ckpt", "train-00000021.ckpt", "train-00000020.ckpt"),
        *(copy.name for copy in copies),
    }


def test_processes_that_are_started_again_continue_only_what_their_torchrun_began(tiny, cli, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "torchrun", lambda: "one torchrun")
    assert cli(*quick(tiny, tmp_path, 1))[0] == 0
    monkeypatch.setattr(Processes, "restarted", lambda self: True)
    status, out, _ = cli(*quick(tiny, tmp_path, 1))
    assert (status, "steps are done" in out) == (0, True)
    monkeypatch.setattr(checkpoints, "torchrun", lambda: "another")
    status, _, err = cli(*quick(tiny, tmp_path, 1))
    assert status == 2 and "holds a training run; --restart continues it" in err


def test_learning_rate_falls_to_zero_over_the_last_share(tiny, tmp_path):
    run = trainer(tiny, tmp_path, Train_steps=8, Train_warmup=0, Optim_decay=0.5, Optim_lr=0.1)
    rates = []
    for _ in range(8):
        loss_of(run)
        rates.append(run.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.1, 0.075, 0.05, 0.025])


def test_large_times_weigh_by_their_noise_up_to_the_largest_weight(tiny, tmp_path, monkeypatch):
    """With a network that answers zero, every time's loss is its weight times Σε², which is 64 on average."""
    run = trainer(tiny, tmp_path, Train_loss_weight=20)
    forward = run.network.forward
    monkeypatch.setattr(run.network, "forward", lambda x, t: forward(x, t) * 0)
    t = draw(run.images[:64], run.experiment.Dataset, 0, 0, range(64), 1000).t
    weights = np.minimum(1 / run.schedule.alphas_cumprod[t.numpy()], 20)
    assert loss_of(run) == pytest.approx(64 * weights.mean(), rel=0.1)


def test_a_process_draws_its_own_part_of_the_batch(tiny, tmp_path):
    section = experiment(tiny, Dataset_random_flip=True, Dataset_uniform_dequantization=True).Dataset
    images = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8)
    whole = draw(images, section, 3, 7, range(64), 1000)
    part = draw(images[20:40], section, 3, 7, range(20, 40), 1000)
    assert all(torch.equal(a[20:40], b) for a, b in zip(whole, part, strict=True))
    assert not torch.equal(whole.eps, draw(images, section, 3, 8, range(64), 1000).eps)


def test_errors_are_logged_by_ranges_of_t(straight):
    tags = EventAccumulator(str(straight)).Reload().Tags()["scalars"]
    ranges = ["0-99", "100-399", "400-699", "700-899", "900-999"]
    assert {f"{kind}_by_t/{t}" for kind in ("error", "mean_error") for t in ranges} <= set(tags)
    assert "images_per_second" in tags


def test_the_meter_sorts_errors_by_t(tiny, tmp_path):
    meter = Meter(1000, torch.device("cpu"))
    error = torch.tensor([1.0, 1.0, -3.0])[:, None, None, None].expand(3, 1, 2, 2)
    meter.add(torch.tensor([0, 99, 999]), error, torch.tensor(7.0))
    loss, ranges = meter.result(Processes(torch.device("cpu")))
    assert loss == 7
    assert ranges == {"0-99": (1.0, 1.0), "900-999": (9.0, 3.0)}
    assert meter.result(Processes(torch.device("cpu"))) == (0, {})


def test_the_number_of_steps_can_be_given(tiny, cli, tmp_path):
    assert cli(*quick(tiny, tmp_path, 4, "--set", "Train.steps=2"))[0] == 0
    assert state(tmp_path)["step"] == 2


def test_a_run_ends_after_its_minutes_and_can_continue(tiny, straight, cli, tmp_path):
    given = {"Train_epoch": 4, "Dataset_batch_size": 599, "Train_sample_interval": 5}
    train.run(experiment(tiny, **given), torch.device("cpu"), tmp_path, minutes=1e-6)
    assert state(tmp_path)["step"] == 1
    assert cli(*flags(tiny, tmp_path, 4, "--restart"))[0] == 0
    assert_same(state(tmp_path)["model"], state(straight)["model"])


def test_two_runs_in_one_folder_are_refused(tiny, cli, tmp_path):
    with TrainFolder(tmp_path).locked():
        status, _, err = cli(*quick(tiny, tmp_path, 1))
    assert (status, err.count("\n")) == (2, 1)
    assert "another process trains in this folder" in err
    assert cli(*quick(tiny, tmp_path, 1))[0] == 0


def test_several_gpus_look_for_a_stop_often_enough_for_slow_steps(monkeypatch):
    """A look makes a GPU wait; between the signal and the end there are 30 seconds."""
    clock, looks = [0.0], []

    def any_of_them(flag):
        looks.append(clock[0])
        return flag

    team = SimpleNamespace(size=2, device=torch.device("cuda"), any=any_of_them, least=lambda value: value)
    monkeypatch.setattr(train.time, "monotonic", lambda: clock[0])
    for seconds, steps in ((0.01, 20), (0.5, 10), (60.0, 1)):
        stop = train.Stop(team)
        for _ in range(100):
            clock[0] += seconds
            assert not stop.told(late=False)
        last = [b - a for a, b in itertools.pairwise(looks)][-3:]
        assert last == pytest.approx([steps * seconds] * 3)
    stop.asked = True
    clock[0] += 60
    assert stop.told(late=False)


@pytest.mark.parametrize("restart", [False, True])
def test_a_folder_in_which_another_run_has_trained_meanwhile_is_refused(tmp_path, restart):
    """Between the look at its checkpoints and its lock."""
    if restart:
        TrainFolder(tmp_path).save({"step": 1})
    folder = TrainFolder(tmp_path, restart)
    TrainFolder(tmp_path, restart).save({"step": 2})
    (tmp_path / checkpoints.LOCK).write_text("another's")
    with pytest.raises(InputError, match="another process has trained in this folder meanwhile"), folder.locked():
        pytest.fail("the other run's checkpoint would be lost")
    assert (tmp_path / checkpoints.LOCK).read_text() == "another's"
    assert (tmp_path / "train-00000002.ckpt").exists()


def test_a_failed_run_leaves_nothing(tiny, cli, tmp_path):
    folder = tmp_path / "a" / "b"
    assert cli(*quick(tiny, folder, 4, "--set", "Optim.lr=1e30", "--set", "Train.log_interval=1"))[0] == 2
    assert not (tmp_path / "a").exists()


def test_being_told_to_stop_is_heard_at_the_next_network_call(tiny):
    calls = []

    def stopped():
        calls.append(1)
        return len(calls) > 3

    preview = Preview(experiment(tiny, Train_distance_num=20), Processes(torch.device("cpu")), stopped)
    assert preview.grid(tiny.network) is None
    assert len(calls) == 4
    assert preview.distance(tiny.network) is None
    assert len(calls) == 5


def test_a_broken_image_is_one_line_whoever_reads_it(tiny, cli, tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(8):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "images" / "5.png").write_bytes(b"no image")
    data = ["--set", "Dataset.dataset=FOLDER", "--set", f"Dataset.path={tmp_path / 'images'}", "--batch_size", "4"]
    for workers in (0, 2):
        more = [*data, "--set", f"Dataset.num_workers={workers}"]
        status, _, err = cli(*flags(tiny, tmp_path / "run", 1), *more)
        assert (status, err.count("main.py: ")) == (2, 1)
        assert "5.png: not a readable image" in err
        assert "Traceback" not in err


def test_a_checkpoint_without_a_newer_key_can_be_continued(tiny, straight, cli, tmp_path):
    shutil.copytree(straight, tmp_path / "run")
    old = state(straight)
    del old["experiment"]["Train"]["loss_weight"], old["experiment"]["Optim"]["decay"]
    torch.save(old, newest(tmp_path / "run"))
    assert cli(*flags(tiny, tmp_path / "run", 5, "--restart"))[0] == 0
    assert state(tmp_path / "run")["step"] == 15


def test_a_run_begins_with_the_weights_that_it_is_given(tiny, tmp_path):
    given = experiment(tiny, Train_start=str(tiny.model), Dataset_batch_size=599)
    begun = Trainer(given, Processes(torch.device("cpu")), tmp_path / "begun")
    known = tiny.network.state_dict()
    assert all(torch.equal(value, known[name]) for name, value in begun.network.state_dict().items())
    assert all(torch.equal(value, known[name]) for name, value in begun.ema.network.state_dict().items())


@pytest.mark.parametrize(
    ("start", "line"),
    [("missing.ckpt", "no file missing.ckpt"), ("model/digits.safetensors", "does not fit")],
)
def test_weights_to_begin_with_that_are_missing_or_do_not_fit_are_one_line(tiny, cli, tmp_path, start, line):
    status, _, err = cli(*flags(tiny, tmp_path / "run", 1, "--set", f"Train.start={start}"))
    assert status == 2
    assert line in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_that_fails_removes_what_is_its_own(tmp_path):
    (tmp_path / ".mine.tmp").write_text("mine")
    (tmp_path / ".grid.png.123.tmp").write_text("left by a process that was killed")
    with pytest.raises(KeyError), TrainFolder(tmp_path).locked():
        for name in ("notes.txt", "grid.png", "best.safetensors", "events.out.tfevents.1"):
            (tmp_path / name).touch()
        (tmp_path / "plots").mkdir()
        raise KeyError
    assert {path.name for path in tmp_path.iterdir()} == {".mine.tmp", "notes.txt", "plots"}


def test_a_trained_network_without_its_checkpoints_is_not_overwritten(tiny, straight, cli, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copy(straight / "ema.safetensors", tmp_path / "run")
    status, _, err = cli(*quick(tiny, tmp_path / "run", 1))
    assert (status, err.count("\n")) == (2, 1)
    assert "holds a trained network, ema.safetensors, and no checkpoint; choose another folder" in err


def test_a_checkpoint_whose_data_were_lost_gives_way_to_the_one_before(tiny, straight, cli, tmp_path):
    """As a machine that loses its power may leave a file: as long as it was, with zeros in it."""
    shutil.copytree(straight, tmp_path / "run")
    with zipfile.ZipFile(newest(tmp_path / "run")) as archive:
        entry = max(archive.infolist(), key=lambda entry: entry.file_size)
    with open(newest(tmp_path / "run"), "r+b") as file:
        file.seek(entry.header_offset + 200)
        file.write(bytes(entry.file_size // 2))
    status, _, err = cli(*flags(tiny, tmp_path / "run", 4, "--restart"))
    assert (status, err.count("\n")) == (0, 1)
    assert "damaged or cut short; the run continues from the checkpoint before it" in err
    assert_same(state(tmp_path / "run")["model"], state(straight)["model"])


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("Schedule.type=cosine", "Schedule.type is 'cosine', but the network of "),
        ("Schedule.beta_end=0.03", "Schedule.beta_end is 0.03, but the network of "),
        ("Dataset.rescaled=false", "Dataset.rescaled is False, but the network of "),
    ],
)
def test_a_network_is_used_as_it_was_trained(tiny, straight, cli, tmp_path, change, line):
    network = straight / "ema.safetensors"
    for command in (
        tiny.flags(tmp_path / "images", "--model_path", network),
        flags(tiny, tmp_path / "run", 1, "--set", f"Train.start={network}"),
    ):
        status, _, err = cli(*command, "--set", change)
        assert (status, err.count("\n")) == (2, 1)
        assert line in err and f"{network} was trained with " in err
    assert not list(tmp_path.iterdir())


def test_weights_without_an_average_are_called_raw(tiny, cli, tmp_path):
    assert cli(*quick(tiny, tmp_path, 1, "--set", "Train.ema=false"))[0] == 0
    assert [checkpoint.read(file).weights for file in (newest(tmp_path), tmp_path / "ema.safetensors")] == ["raw"] * 2


def test_a_disk_that_is_full_for_the_log_is_one_line(tiny, tmp_path):
    few = ["--set", "Train.checkpoint_interval=1000", "--set", "Train.log_interval=1"]
    command = [sys.executable, str(ROOT / "main.py"), *map(str, quick(tiny, tmp_path / "run", 60, *few))]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # noqa: E731
    run = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    assert f"main.py: {tmp_path / 'run'}: File too large" in run.stderr


def test_what_is_kept_of_an_interrupted_run_is_what_there_is(tiny, straight, cli, tmp_path, monkeypatch):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "dispatch", interrupted)
    assert cli(*flags(tiny, tmp_path, 1)) == (130, "", "main.py: interrupted; there is no checkpoint\n")
    kept = "main.py: interrupted; what was finished is kept, --restart continues\n"
    assert cli(*flags(tiny, straight, 1)) == (130, "", kept)

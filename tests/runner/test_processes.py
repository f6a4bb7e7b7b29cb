"""Runs on several real processes (gloo): the same images to the byte, the same training to rounding."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from helpers import ROOT, image_files, torchrun, workers_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pndm import cli as main
from pndm.config.errors import InputError
from pndm.runner.processes import Processes, processes

PATIENCE = 300  # seconds for what takes twenty on an idle machine
TRAIN = ["--runner", "train", "--device", "cpu", "--set", "Train.log_interval=1"]


def train_state(folder):
    return torch.load(max(folder.glob("train-*.ckpt")), weights_only=True)


def training(tiny, folder, epochs):
    """A training run of `epochs` × 3 steps.

    Without clipping, which hides the scale of a gradient. SGD, since Adam turns the rounding noise of weights without
    effect (a bias before its group norm) into whole steps.
    """
    sgd = f"--batch_size 32 --set Optim.optimizer=sgd --set Optim.lr=1e-5 --set Train.epoch={epochs}".split()
    sgd += ["--set", "Optim.grad_clip=null"]
    return [*TRAIN, "--config", tiny.config, *tiny.few_images, *sgd, "--train_path", folder]


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory):
    """A training run of 9 steps on one process, whose batch of 32 three processes cannot share evenly."""
    folder = tmp_path_factory.mktemp("alone")
    assert main.main([str(flag) for flag in training(tiny, folder, 3)]) == 0
    return folder


def losses(folder):
    return [event.value for event in EventAccumulator(str(folder)).Reload().Scalars("loss")]


@pytest.mark.parametrize(
    "parts",
    [[(2, 3, ["--set", "Train.micro_batch=5"])], [(2, 1, []), (3, 3, ["--restart"])]],
    ids=["2, accumulating", "2, then 3"],
)
def test_training_does_not_depend_on_the_number_of_processes(tiny, alone, tmp_path, parts):
    for count, epochs, more in parts:
        run = torchrun(count, *training(tiny, tmp_path, epochs), *more)
        err = run.communicate(timeout=PATIENCE)[1]
        assert run.returncode == 0, err
    mine, theirs = train_state(tmp_path), train_state(alone)
    assert mine["step"] == theirs["step"] == 9
    for part in ("model", "ema"):
        for name, value in theirs[part].items():
            torch.testing.assert_close(mine[part][name], value, rtol=1e-6, atol=1e-6)
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=1e-6)
    assert len(losses(alone)) == 9


def count_images(folder):
    return sum(1 for _ in folder.glob("[0-9]*.png"))


SAMPLE = ["--total_num", 200, "--sample_speed", 20]


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main.main([str(flag) for flag in tiny.flags(folder, *SAMPLE)]) == 0
    return folder


@pytest.mark.parametrize("count", [3])
def test_sampling_does_not_depend_on_the_number_of_processes(tiny, tmp_path, undisturbed, count):
    run = torchrun(count, *tiny.flags(tmp_path / "run", *SAMPLE))
    out, err = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, err
    assert out.count("200 images by F-PNDM") == 1
    assert image_files(tmp_path / "run") == image_files(undisturbed)
    mine, theirs = (json.loads((folder / "result.json").read_text()) for folder in (tmp_path / "run", undisturbed))
    assert mine["world_size"] == count
    assert mine["nfe"] == theirs["nfe"]
    assert mine["frechet"] == theirs["frechet"]
    assert (tmp_path / "run" / "grid.png").read_bytes() == (undisturbed / "grid.png").read_bytes()


def test_stochastic_sampling_does_not_depend_on_the_number_of_processes(tiny, cli, tmp_path):
    flags = ["--total_num", 30, "--method", "DDPM", "--sample_speed", 5]
    assert cli(*tiny.flags(tmp_path / "alone", *flags))[0] == 0
    run = torchrun(2, *tiny.flags(tmp_path / "run", *flags))
    assert run.wait(timeout=PATIENCE) == 0
    assert image_files(tmp_path / "run") == image_files(tmp_path / "alone")


def test_killed_runs_of_changing_size_end_with_the_same_bytes(tiny, tmp_path, undisturbed):
    """SIGKILL at random moments, the next run with another number of processes each time."""
    rng = random.Random(0)
    folder, kills = tmp_path / "run", 0
    for count in (2, 1, 3, 1, 2, 3):
        run = torchrun(count, *tiny.flags(folder, *SAMPLE))
        wanted, workers = count_images(folder) + rng.randint(0, 5), []
        while (count_images(folder) < wanted or len(workers) < count) and run.poll() is None:
            workers = workers_of(run)
            time.sleep(0.004)
        time.sleep(rng.random() * 0.02)
        if run.poll() is None:
            for worker in [*workers, run.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
            kills += 1
        run.communicate()
    assert kills >= 3, "a fast machine may be done before the last"
    assert image_files(folder).items() <= image_files(undisturbed).items()
    assert main.main([str(flag) for flag in tiny.flags(folder, *SAMPLE)]) == 0
    assert image_files(folder) == image_files(undisturbed)


def test_a_process_that_dies_takes_the_run_down_and_the_rest_is_made_later(tiny, cli, tmp_path, undisturbed):
    """Without restarts: torchrun ends the others, and the same command completes the folder."""
    folder = tmp_path / "run"
    run = torchrun(2, *tiny.flags(folder, *SAMPLE))
    while count_images(folder) < 8 and run.poll() is None:
        time.sleep(0.005)
    os.kill(workers_of(run)[-1], signal.SIGKILL)
    run.communicate(timeout=PATIENCE)
    assert run.returncode != 0
    assert cli(*tiny.flags(folder, *SAMPLE))[0] == 0
    assert image_files(folder) == image_files(undisturbed)


def test_processes_that_die_are_replaced(tiny, tmp_path, undisturbed):
    """With `--max-restarts`: the run ends complete, without anybody's help."""
    folder = tmp_path / "run"
    run = torchrun(2, *tiny.flags(folder, *SAMPLE), launcher=["--max-restarts=2"])
    wanted, before = 8, []
    for victim in (0, 1):  # the second as soon as there are others, for they may soon be done
        while (count_images(folder) < wanted or len(set(workers_of(run)) - {*before}) < 2) and run.poll() is None:
            time.sleep(0.005)
        before += (started := sorted({*workers_of(run)} - {*before}))
        os.kill(started[victim], signal.SIGKILL)
    err = run.communicate(timeout=PATIENCE)[1]
    assert run.returncode == 0, err
    assert image_files(folder) == image_files(undisturbed)
    assert json.loads((folder / "result.json").read_text())["images"] == 200


def test_a_process_that_never_comes_is_not_waited_for_beyond_the_timeout(tiny, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    command = [sys.executable, str(ROOT / "main.py"), *map(str, tiny.flags(tmp_path / "run", "--timeout", 0.1))]
    run = subprocess.Popen(command, env=os.environ | place, stderr=subprocess.PIPE, text=True)
    while run.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            break
        time.sleep(0.05)
    silent = dist.TCPStore("127.0.0.1", port, 2, is_master=False, timeout=timedelta(seconds=5))
    err = run.communicate(timeout=PATIENCE)[1]
    assert run.returncode == 2
    assert err.splitlines()[-1].startswith("main.py: another process did not answer (")
    assert "Traceback" not in err
    del silent


@pytest.mark.parametrize("victim", [0, 1])
def test_one_process_told_to_stop_stops_all_with_a_checkpoint(tiny, tmp_path, victim):
    run = torchrun(2, *training(tiny, tmp_path, 1000))
    while not list(tmp_path.glob("events*")) and run.poll() is None:
        time.sleep(0.01)
    os.kill(workers_of(run)[victim], signal.SIGTERM)
    err = run.communicate(timeout=PATIENCE)[1]
    assert run.returncode != 0
    assert train_state(tmp_path)["step"] >= 1, err


def teams(timeout):
    """Two processes that are threads of this one, with a store between them."""
    store = dist.HashStore()
    return [Processes(torch.device("cpu"), rank, 2, store, timeout / 60) for rank in (0, 1)]


def test_a_process_at_work_is_waited_for_beyond_the_timeout():
    first, second = teams(timeout=2.5)
    order = []

    def work():
        for _ in range(25):
            time.sleep(0.2)
            second.beat()
        order.append("worked")
        second.wait()
        second.wait()

    thread = threading.Thread(target=work)
    thread.start()
    first.wait()
    order.append("met")
    first.wait()
    thread.join()
    assert order == ["worked", "met"]


def test_a_process_that_does_nothing_is_not():
    with pytest.raises(RuntimeError, match="timed out"):
        teams(timeout=0.5)[0].wait()


def test_wrong_input_ends_all_processes_with_one_line_from_the_first(tiny, tmp_path):
    run = torchrun(2, *tiny.flags(tmp_path / "run", "--method", "nothing"))
    err = run.communicate(timeout=PATIENCE)[1]
    assert run.returncode != 0
    assert err.count("Sample.method is 'nothing'") == 1
    assert not (tmp_path / "run").exists()


def test_the_launcher_adds_nothing_to_that_line(tiny, tmp_path):
    command = [sys.executable, ROOT / "tools" / "launch.py", "--standalone", "--nproc_per_node=2", ROOT / "main.py"]
    command += tiny.flags(tmp_path / "run", "--method", "nothing")
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert "Sample.method is 'nothing'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_launchers_own_flags_that_are_wrong_are_one_line():
    command = [sys.executable, ROOT / "tools" / "launch.py", "--nproc_per_node=abc", ROOT / "main.py"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (2, "launch.py: Unsupported nproc_per_node value: abc\n")


@pytest.mark.parametrize("when", ["starting", "sampling"])
def test_processes_whose_torchrun_was_killed_end_too(tiny, tmp_path, when):
    run = torchrun(2, *tiny.flags(tmp_path / "run", "--total_num", 100_000))
    while len(workers_of(run)) < 2 and run.poll() is None:
        time.sleep(0.01)
    while when == "sampling" and count_images(tmp_path / "run") < 8 and run.poll() is None:
        time.sleep(0.01)
    run.kill()
    err = run.communicate(timeout=PATIENCE)[1]  # the workers hold the pipe until they have ended
    assert "Traceback" not in err, err
    assert count_images(tmp_path / "run") < 100_000


@pytest.mark.parametrize(
    "variables, said",
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "2", "RANK": "abc"}, "RANK is 'abc'"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE is 2, but MASTER_ADDR and MASTER_PORT are not set"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "x"}, "MASTER_PORT is 'x'"),
    ],
)
def test_wrong_variables_of_torchrun_are_named(monkeypatch, variables, said):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=said), processes(torch.device("cpu")):
        pass


@pytest.mark.parametrize("variables, said", [({}, b"done\ntorn down\n"), ({"WORLD_SIZE": "2"}, b"done\n")])
def test_one_of_several_processes_ends_without_tearing_down_the_interpreter(variables, said):
    program = "import atexit; from pndm.runner.processes import end;"
    program += "atexit.register(print, 'torn down'); print('done'); end(3)"
    run = subprocess.run([sys.executable, "-c", program], env=os.environ | variables, stdout=subprocess.PIPE, cwd=ROOT)
    assert (run.returncode, run.stdout) == (3, said)


@pytest.mark.parametrize("kind", ["xpu", "mps"])
def test_several_processes_on_a_device_that_cannot_join_are_refused(monkeypatch, kind):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=f"^{kind}: several processes"), processes(torch.device(kind)):
        pass


def test_every_item_is_dealt_to_one_process():
    """The fast one gets more of them, and a second deal begins anew."""
    first, second = teams(timeout=60)
    slow, fast = first.deal(range(5)), second.deal(range(5))
    assert [next(slow), *fast] == [0, 1, 2, 3, 4]
    assert [*slow] == []
    assert [*second.deal("ab"), *first.deal("ab")] == ["a", "b"]


def test_a_process_in_one_long_call_is_waited_for():
    first, second = teams(timeout=2.5)

    def work():
        with first.at_work():
            time.sleep(5)
        first.wait()

    thread = threading.Thread(target=work)
    thread.start()
    second.wait()
    thread.join()


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    here = pytest.raises(InputError, match=r"^cuda:9 is not there; this machine has 2 GPUs")
    with here, processes(torch.device("cuda:9")):
        pass

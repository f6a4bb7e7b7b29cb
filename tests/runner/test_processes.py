"""Runs on several real processes (gloo): the same images to the byte, the same training to rounding."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT

import main

TRAIN = ["--runner", "train", "--device", "cpu", "--set", "Train.epoch=3", "--set", "Train.log_interval=1"]


def torchrun(count, *flags, **more):
    """Start main.py on `count` processes of this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*launcher, str(ROOT / "main.py"), *map(str, flags)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
        **more,
    )


def train_state(folder):
    return torch.load(max(folder.glob("train-*.ckpt")), weights_only=True)


@pytest.mark.parametrize("count, more", [(2, []), (3, []), (2, ["--set", "Train.micro_batch=100"])])
def test_training_does_not_depend_on_the_number_of_processes(tiny, tmp_path_factory, tmp_path, count, more):
    """With a global batch that the processes cannot share evenly. SGD, since Adam turns the rounding noise of
    weights without effect (a bias before its group norm) into whole steps."""
    flags = [
        *TRAIN,
        "--config",
        tiny.config,
        "--batch_size",
        598,
        "--set",
        "Optim.optimizer=sgd",
        "--set",
        "Optim.lr=1e-4",
    ]
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert main.main([str(flag) for flag in [*flags, "--train_path", alone]]) == 0
    run = torchrun(count, *flags, *more, "--train_path", together)
    out, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    mine, theirs = train_state(together), train_state(alone)
    assert mine["step"] == theirs["step"] == 9
    for part in ("model", "ema"):
        for name, value in theirs[part].items():
            torch.testing.assert_close(mine[part][name], value, rtol=1e-6, atol=1e-6)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    losses = [[e.value for e in EventAccumulator(str(f)).Reload().Scalars("loss")] for f in (alone, together)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert len(losses[0]) == 9

"""What a user meets around the program: odd values, odd streams, odd terminals, impatience."""

import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT, process


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags, said",
    [
        (["--set", "Sample.seed=2024-13-45"], "--set Sample.seed=2024-13-45: not YAML"),
        (["--set", "Sample.seed=!!int x"], "not YAML"),
        (["--set", "Sample.seed=!!float x"], "not YAML"),
        (["--set", "Sample.seed=!!timestamp x"], "not YAML"),
        (["--set", "Sample.seed=" + "[" * 3000], "nested too deeply"),
        (["--set", "Sample.seed=" + "9" * 5000], "not YAML"),
        (["--set", "Sample.seed=0x" + "f" * 5000], "not YAML"),
        (["--set", "Sample.times=&a [*a]"], "not YAML: found unconstructable recursive node"),
        (["--set", 'Dataset.path="a\\0b"'], "not YAML: a text has a NUL character"),
        (["--set", "Schedule.diffusion_step=100000"], "leave ᾱ = 1.18576e-322, nothing of the data"),
        (["--set", "Sample.seed=yes"], "Sample.seed is True; it must be a number, not yes or no"),
        (["--set", "Sample.keep=true"], "Sample.keep is True; it must be a number"),
        (["--set", "Sample.model_path=''"], "Sample.model_path is ''"),
        (["--set", "Model.num_res_blocks=1000000"], "less than or equal to 64"),
        (["--set", "Model.ch=1000000000"], "less than or equal to 16384"),
        (["--set", "Schedule.diffusion_step=1000000000"], "less than or equal to 100000"),
        (["--set", "Schedule.beta_start=1e-320"], "Schedule.beta_start is '1e-320'"),
        (["--set", "Optim.lr=.inf"], "Optim.lr is inf; input should be a finite number"),
        (["--set", "Optim.weight_decay=.inf"], "finite"),
        (["--set", "Model.type=complex"], "Model.type is 'complex'; only 'simple' is possible here"),
        (["--set", "Schedule.use_kl=true"], "Schedule.use_kl is True; only False is possible here"),
        (["--metod", "DDIM"], "unknown flag --metod; did you mean --method?"),
        (["--method", "F-PDNM"], "did you mean F-PNDM?"),
        (["--timeout", "0"], "--timeout: '0' is not a positive number of minutes"),
        (["--timeout", "1e12"], "at most 1,000,000"),
        (["--set", "Model.=5"], "--set: Model.=5 is not of the form Section.key=value"),
        (
            ["--batch_size", "Auto"],
            "should be a valid integer, unable to parse string as an integer, or input should be 'auto'",
        ),
        (["--set", "Dataset.dataset=LSUN", "--runner", "train"], "--set: LSUN needs a category"),
        (
            ["--runner", "search", "--methods", "DDPM", "--nfe", "5"],
            "methods that draw noise or choose their own steps",
        ),
        (["--runner", "reproduce", "--flow", "x"], "--flow: 'x' is not a whole number, at least 0"),
        (["--runner", "reproduce", "--seeds", "١"], "--seeds: '١' is not a number from 1 to 3"),
        (["--runner", "reproduce", "--set", "Sample.nfe=4"], "a table sets Sample.nfe itself"),
        (["--runner", "reproduce", "--table", "nothing"], "no file nothing.yml, here or in config/tables/"),
    ],
)
def test_a_value_that_makes_no_sense_ends_in_one_line(cli, flags, said):
    status, out, err = cli(*flags)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_a_dangling_link_is_no_folder(cli, tiny, tmp_path):
    (tmp_path / "run").symlink_to(tmp_path / "nothing")
    status, _, err = cli(*tiny.flags(tmp_path / "run"))
    assert (status, err.count("\n")) == (2, 1)
    assert f"--image_path: {tmp_path / 'run'} is a link to nothing" in err


@pytest.mark.parametrize("flags", ["train --train_path", "reproduce --image_path", "search --nfe 4 --search_path"])
def test_a_dangling_link_is_no_folder_of_other_runners(cli, tmp_path, flags):
    (tmp_path / "run").symlink_to(tmp_path / "nothing")
    status, _, err = cli("--runner", *flags.split(), tmp_path / "run", "--device", "cpu")
    assert (status, err.splitlines()[-1]) == (2, f"main.py: {tmp_path / 'run'}: a link to nothing")


def shell(command, **environment):
    """Run a shell command in which MAIN stands for this project's command line."""
    command = command.replace("MAIN", f"{sys.executable} {ROOT / 'main.py'}")
    environment = os.environ | environment
    return subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, timeout=300)


@pytest.mark.slow
def test_a_closed_stderr_stops_nothing(tiny, tmp_path):
    done = shell(f"MAIN {' '.join(tiny.flags(tmp_path / 'run'))} 2>&-")
    assert done.returncode == 0
    assert (tmp_path / "run" / "result.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"LC_ALL": "C", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "latin-1"}])
def test_an_encoding_without_greek_letters_stops_nothing(tiny, tmp_path, environment):
    flags = " ".join(tiny.flags(tmp_path / "run"))
    done = shell(f"MAIN --help && MAIN {flags} --plan && MAIN {flags}", **environment)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.slow
def test_a_reader_who_has_seen_enough_gets_no_complaint(tiny, tmp_path):
    done = shell(f"MAIN {' '.join(tiny.flags(tmp_path / 'run'))} --plan | head -n 1; echo ${{PIPESTATUS[0]}}")
    _, status = done.stdout.split(b"\n", 1)
    assert (status, done.stderr) in [(b"141\n", b""), (b"0\n", b"")]  # 0 where all was written before it left


@pytest.mark.slow
def test_a_full_device_is_named(tiny, tmp_path):
    done = shell(f"MAIN {' '.join(tiny.flags(tmp_path / 'run'))} --plan > /dev/full")
    assert done.returncode == 2
    assert done.stderr.decode() == "main.py: standard output: No space left on device\n"


def test_too_little_memory_to_start_is_one_line(tiny, tmp_path):
    done = shell(f"ulimit -v 1000000; MAIN {' '.join(tiny.flags(tmp_path / 'run'))}")
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1, done.stderr.decode()


@pytest.mark.parametrize("after", [0.05, 0.2])
def test_impatience_at_the_start_gets_no_traceback(tiny, tmp_path, after):
    run = process(*tiny.flags(tmp_path / "run"))
    time.sleep(after)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    if run.returncode == 1:  # Python itself was still starting, and no line of this project had run
        assert str(ROOT / "main.py") not in err and str(ROOT / "pndm") not in err
    else:
        assert run.returncode in (-signal.SIGINT, 130)
        assert "Traceback" not in err


@pytest.mark.slow
def test_two_different_runs_that_begin_together_do_not_share_a_folder(tiny, tmp_path):
    runs = [process(*tiny.flags(tmp_path / "run", "--sample_speed", n, "--total_num", 40)) for n in (2, 3)]
    ends = [(run.communicate(timeout=300)[1], run.returncode) for run in runs]
    assert sorted(status for _, status in ends) == [0, 2]
    refused = next(err for err, status in ends if status == 2)
    assert "--image_path: " in refused and refused.count("\n") == 1

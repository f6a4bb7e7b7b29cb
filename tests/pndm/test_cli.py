"""The command line as a clumsy user meets it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT

from pndm import cli as main
from pndm.config.load import words_of


def test_help_loads_nothing_heavy():
    code = (
        "import sys\nfrom pndm import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "print({'torch', 'scipy', 'diffusers', 'matplotlib'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip().endswith("set()")
    for said in ("F-PNDM", "--sample_speed N      number of steps", "train: images in a training batch", "--eta X"):
        assert said in out


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--runner", "smaple"], "invalid choice: 'smaple'"),
        (["--config", "nothing.yml"], "--config: no file nothing.yml"),
        (["--method", "F-PDNM"], "--method: Sample.method is 'F-PDNM'"),
        (["--sample_speed", "0"], "--sample_speed: Sample.sample_speed is '0'"),
        (["--sample_speed", "-3"], "--sample_speed: Sample.sample_speed is '-3'"),
        (["--sample_speed", "1001"], "Sample.sample_speed 1001 is above"),
        (["--sample_speed", "abc"], "--sample_speed: Sample.sample_speed is 'abc'"),
        (["--profile", "published", "--sample_speed", "30"], "cannot run 30 steps; it can run 1, 2, 4, 5, 8, 10"),
        (["--profile", "published", "--sample_speed", "1000"], "cannot run 1000 steps"),
        (["--profile", "published", "--method", "PF", "--rtol", "1e-3"], "fixed tolerances"),
        (["--method", "DDIM", "--rtol", "1e-3"], "takes no option rtol"),
        (["--method", "Heun", "--nfe", "10"], "--nfe: method Heun cannot spend 10 network calls; it can spend 9 in 5"),
        (
            ["--method", "Heun", "--nfe", "9", "--threshold", "0.9"],
            "--threshold: method Heun takes no option threshold",
        ),
        (["--precision", "tf32"], "--precision: precision tf32 needs"),
        (["--method", "f-pndm"], "; did you mean F-PNDM?"),
        (["--config", "Digits.yml"], "; did you mean digits.yml?"),
        (["train"], "train is a runner; --runner train runs it"),
        (["--set", "Sample.precision=tf32", "--device", "cpu"], "--set: precision tf32 needs"),
        (["--method", "PF", "--nfe", "10"], "spends what its tolerances take"),
        (["--nfe", "0"], "--nfe: Sample.nfe is '0'"),
        (["--nfe", "9", "--sample_speed", "9"], "--sample_speed and --nfe exclude each other"),
        (["--nfe", "9", "--set", "Sample.times=[9, 0]"], "--nfe and Sample.times exclude each other"),
        (["--spacing", "even"], "--spacing: Sample.spacing is 'even'"),
        (["--spacing", "quad", "--times", "9,0"], "exclude each other"),
        (["--times", "9,x"], "--times: Sample.times.1 is 'x'"),
        (["--times", "9,10"], "two or more and fall"),
        (["--method", "Heun", "--profile", "published"], "DDIM, S-PNDM, F-PNDM, FON, PF alone"),
        (["--method", "DDIM", "--eta", "2"], "--eta: Sample.eta is '2'"),
        (["--eta", "0.5"], "method F-PNDM takes no option eta"),
        (["--method", "UniPC2-bh1", "--clip", "--threshold", "0.9"], "clip and threshold exclude each other"),
        (["--method", "DDIM", "--clip", "--set", "Dataset.rescaled=false"], "need images in [−1, 1]"),
        (["--method", "PF", "--compile"], "--compile: PF asks about ever fewer images"),
        (["--set", "Schedule.beta_end=0.999"], "leave ᾱ = 0, nothing of the data"),
        (["--method", "Heun", "--times", "999,500,-0.5"], "which may be −1 (clean data)"),
        (["--image_path", ""], "--image_path: nothing is given"),
        (["--total_num", "10000000000"], "--total_num: Sample.total_num is '10000000000'"),
        (["--plan", "--batch_size", "auto"], "--batch_size: auto is found by running"),
        (["--plan", "--eta", "0.5"], "--eta: method F-PNDM takes no option eta"),
        (["--sample_speed", "1001"], "main.py: --sample_speed: Sample.sample_speed 1001 is above"),
        (["--set", "Dataset.image_size=16"], "main.py: --set: Model.image_size 8 is not Dataset.image_size 16"),
        (["--batch_size", "99999999"], "--batch_size: Sample.batch_size is '99999999'"),
        (["--total_num", "0"], "--total_num: Sample.total_num is '0'"),
        (["--batch_size", "1.5"], "--batch_size: Sample.batch_size is '1.5'"),
        (["--set", "Sample.batchsize=3"], "--set: unknown key Sample.batchsize; did you mean batch_size?"),
        (["--set", "nonsense"], "--set: nonsense is not of the form"),
        (["--restart"], "--restart does not go with --runner sample, only with train"),
        (["--train_path", "x"], "--train_path does not go with --runner sample"),
        (["--samplespeed", "3"], "unknown flag --samplespeed; did you mean --sample_speed?"),
        (["--device", "cuda:77"], "--device: cuda:77 is not there; this machine has cpu"),
        (["--device", "gpu"], "--device: gpu is not there"),
        (["--model_path", "nothing.ckpt"], "--model_path: no file nothing.ckpt"),
        (["--model_path", "{tmp}/empty"], "not a checkpoint"),
        (["--model_path", "{tmp}/text"], "not a checkpoint"),
        (["--model_path", "{tmp}/code.pt"], "executing code"),
        (["--model_path", "{tmp}/cut.safetensors"], "damaged"),
        (["--set", "Model.ch=64"], "does not fit the Model section"),
        (["--set", "Model.ch=48"], "a multiple of 32 is needed"),
    ],
)
def test_wrong_input_ends_in_one_line_and_writes_nothing(cli, tiny, tmp_path, flags, said):
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("these are not the weights you are looking for")
    torch.save({"model": Hostile()}, tmp_path / "code.pt")
    (tmp_path / "cut.safetensors").write_bytes(tiny.model.read_bytes()[:-1000])
    before = sorted(tmp_path.rglob("*"))
    flags = [flag.replace("{tmp}", str(tmp_path)) for flag in flags]
    status, out, err = cli(*tiny.flags(tmp_path / "run"), *flags)
    assert (status, out) == (2, "")
    assert said in err
    assert err.startswith("main.py: ")
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


class Hostile:
    """Unpickling this would run a command."""

    def __reduce__(self):
        return print, ("executed",)


def test_pf_says_that_it_chooses_its_steps(cli, tiny, tmp_path):
    status, out, err = cli(*tiny.flags(tmp_path / "run"), "--method", "PF", "--sample_speed", "7", "--total_num", "2")
    assert status == 0
    assert "PF chooses its own steps" in err
    assert "adaptive steps" in out


def test_default_folders_tell_runs_apart():
    def name(*flags):
        args = main.parser().parse_args(list(flags))
        return main.image_path(args, main.experiment(args).Sample).name

    assert name() == "digits_F-PNDM_50"
    assert name("--method", "DDIM", "--sample_speed", "10", "--seed", "3") == "digits_DDIM_10_seed3"
    assert name("--profile", "published") == "digits_F-PNDM_50_published"
    assert name("--method", "PF") == "digits_PF"
    assert name("--method", "Heun", "--nfe", "9", "--spacing", "quad") == "digits_Heun_nfe9_quad"
    assert name("--method", "DDIM", "--times", "9,5,0", "--eta", "0.5") == "digits_DDIM_2times_eta0.5"


def test_a_count_on_the_command_line_stands_instead_of_the_file_s(tmp_path):
    (tmp_path / "nfe.yml").write_text((ROOT / "config" / "digits.yml").read_text() + "  nfe: 20\n")
    args = main.parser().parse_args(["--config", str(tmp_path / "nfe.yml"), "--sample_speed", "7"])
    settings = main.experiment(args).Sample
    assert (settings.nfe, settings.sample_speed) == (None, 7)


def test_a_method_or_a_count_stands_instead_of_the_file_s_solver(tmp_path):
    (tmp_path / "file.yml").write_text((ROOT / "config" / "digits.yml").read_text() + "  solver: digits_nfe5\n")

    def settings(*flags):
        args = main.parser().parse_args(["--config", str(tmp_path / "file.yml"), *flags])
        return main.experiment(args).Sample

    assert settings().solver == "digits_nfe5"
    assert (settings("--method", "DDIM").solver, settings("--method", "DDIM").method) == (None, "DDIM")
    undone = settings("--set", "Sample.solver=null", "--method", "DDIM")
    assert (undone.solver, undone.method) == (None, "DDIM")
    assert settings("--set", "Sample.nfe=null", "--sample_speed", "20").sample_speed == 20


def test_the_words_of_a_command_line_set_the_same_again():
    given = ["--runner", "reproduce", "--compile", "--total_num", "10", "--set", "Sample.keep=null"]
    given += ["--set", "Model.attn_resolutions=[16]", "--set", "Sample.label=é", "--precision", "bf16"]
    laid = main.overrides_of(main.parser().parse_args(given))
    again = main.parser().parse_args(["--runner", "reproduce", *words_of(laid)])
    assert main.overrides_of(again) == laid


def test_a_leading_tilde_is_the_home_folder(tiny, cli, tmp_path, monkeypatch):
    """The shell leaves it as it is in --image_path=~/images and in YAML."""
    monkeypatch.setenv("HOME", str(tmp_path))
    given = ["--set", f"Sample.model_path=~/{tiny.model.name}", "--image_path=~/images"]
    (tmp_path / tiny.model.name).write_bytes(tiny.model.read_bytes())
    assert cli("--config", tiny.config, *given, "--total_num", 2, "--sample_speed", 2, "--device", "cpu")[0] == 0
    assert (tmp_path / "images" / "result.json").exists() and not Path("~").exists()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_too_little_memory_is_one_line_however_it_is_said(cli, monkeypatch, error):
    def full(args):
        raise error

    monkeypatch.setattr(main, "dispatch", full)
    said = "main.py: the device is out of memory; a smaller --batch_size may fit\n"
    assert cli("--runner", "sample") == (2, "", said)


@pytest.mark.parametrize(("runner", "kept"), [("sample", "the same command continues"), ("fid", "interrupted\n")])
def test_an_interruption_says_what_is_kept(cli, monkeypatch, runner, kept):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "dispatch", interrupted)
    status, _, err = cli("--runner", runner)
    assert status == 130 and kept in err


@pytest.mark.parametrize(("rank", "says"), [("0", "main.py: interrupted\n"), ("1", "")])
def test_an_interruption_while_an_error_is_told_is_no_traceback(cli, monkeypatch, rank, says):
    """As when torchrun ends the other processes, because the first has told the error."""

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(main, "place", interrupted)
    assert cli("--runner", "fid", "nowhere", "nowhere") == (130, "", says)

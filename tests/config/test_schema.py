from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from helpers import DATA
from hypothesis import given
from hypothesis import strategies as st

from pndm.config.errors import InputError
from pndm.config.load import files, load, load_solver, parse_set
from pndm.config.schema import Experiment, difference

PUBLISHED = sorted((DATA / "published_configs").glob("*.yml"))
CIFAR10 = str(DATA / "published_configs" / "ddim_cifar10.yml")


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_files_load_unchanged(path):
    experiment, tree = load(str(path)).model_dump(), yaml.safe_load(path.read_text())
    for section, values in tree.items():
        for name, value in values.items():
            assert experiment[section][name] == value


@pytest.mark.parametrize("path", files(), ids=lambda path: path.stem)
def test_every_experiment_here_loads_by_its_name(path):
    assert load(path.name) == load(str(path))


def test_flags_lie_over_the_file_and_are_read_as_their_type():
    experiment = load(CIFAR10, {"Sample.batch_size": ("--batch_size", "7"), "Optim.lr": ("--set", "1e-3")})
    assert experiment.Sample.batch_size == 7
    assert experiment.Optim.lr == 1e-3


def test_every_key_has_a_meaning():
    sections = [field.annotation for field in Experiment.model_fields.values()]
    models = [struc for section in sections for struc in getattr(section, "__args__", (section,))]
    assert len(models) == 10
    for model in models:
        for name, field in model.model_fields.items():
            assert field.description or name == "struc", (model, name)


def test_logits_are_not_defined_of_levels_with_normal_noise():
    keys = {"rescaled": False, "logit_transform": True, "gaussian_dequantization": True}
    with pytest.raises(InputError, match=r"gaussian_dequantization leaves \[0, 1\], outside which logit_transform"):
        load(CIFAR10, {f"Dataset.{name}": ("--set", value) for name, value in keys.items()})


@pytest.mark.parametrize(
    "target, value, said",
    [
        ("Sample.batchsize", 3, "unknown key Sample.batchsize; did you mean batch_size?"),
        ("Sample.zzz", 3, "unknown key Sample.zzz; known are method, sample_speed"),
        ("Smaple.seed", 3, "no section 'Smaple'; did you mean Sample?"),
        ("Model.chh", 3, "unknown key Model.chh; did you mean ch?"),
        ("Model.struc", "UNet", "Model.struc is 'UNet'; it is one of DDIM, iDDPM, PF, PF_deep"),
        ("Model.ch_mult", [], "Model.ch_mult is []"),
        ("Model.ch_mult", [1, 0], "Model.ch_mult.1 is 0; input should be greater than or equal to 1"),
        ("Model.image_size", 64, "Model.image_size 64 is not Dataset.image_size 32"),
        ("Sample.sample_speed", "abc", "Sample.sample_speed is 'abc'; input should be a valid integer"),
        ("Sample.sample_speed", 0, "greater than or equal to 1"),
        ("Sample.sample_speed", 1001, "above Schedule.diffusion_step 1000"),
        ("Sample.sample_speed", 2.5, "valid integer"),
        ("Sample.method", "RK4", "it must be one of DDIM, S-PNDM, F-PNDM, FON, PF, "),
        ("Sample.spacing", "even", "one of uniform, quad, trailing, logsnr, karras"),
        ("Sample.times", "1,a", "Sample.times.1 is 'a'"),
        ("Sample.nfe", 0, "greater than or equal to 1"),
        ("Sample.eta", 1.5, "less than or equal to 1"),
        ("Sample.profile", "fast", "one of exact, published"),
        ("Sample.seed", -1, "greater than or equal to 0"),
        ("Schedule.type", "cos", "one of linear, quad, cosine"),
        ("Schedule.beta_end", 1.0, "less than 1"),
        ("Schedule.beta_start", 0.5, "beta_start 0.5 is above beta_end 0.02"),
        ("Schedule.noise_schedule", "cosine", "contradicts type 'linear'"),
        ("Dataset.channels", 2, "1 or 3"),
        ("Dataset.logit_transform", True, "exclude each other"),
        ("Train.loss_type", "L1", "'linear' or 'square'"),
        ("Optim.lr", 0, "greater than 0"),
        ("Sample.batch_size", True, "batch_size is True; it must be a number, not yes or no"),
        ("Model.ch_mult", [True, 2], "ch_mult is [True, 2]; it must be a number"),
        ("Dataset.channels", True, "channels is True; it must be a number"),
        ("Sample.mpi4py", {1, 2}, "mpi4py is no text, number, list or mapping"),
    ],
)
def test_wrong_values_are_named_with_flag_section_and_key(target, value, said):
    with pytest.raises(InputError) as error:
        load(CIFAR10, {target: ("--flag", value)})
    assert said in str(error.value)
    assert str(error.value).startswith("--flag: ")


@pytest.mark.parametrize(
    "text, said",
    [
        ("Schedule: [1", "not YAML"),
        ("- a\n- b", "a mapping of sections"),
        ("", "a mapping of sections"),
        ("Schedule: {}\nDataset: {}\n", "Dataset.dataset is missing"),
        ("Sample:\n  seed: 1\n  seed: 2\n", ":3: not YAML: key 'seed' stands twice"),
        ("Sample: {}\nSample: {}\n", "key 'Sample' stands twice"),
        ("Smple: {}\n", "unknown section Smple; did you mean Sample?"),
        ("int: {}\n", "unknown section int;"),
        ("Schedule: 5\n", "Schedule is 5"),
        ("Sample: !!python/object/apply:os.system ['true']\n", "not YAML"),
        (b"\xff\xfe\x00", "not YAML"),
    ],
)
def test_a_wrong_file_is_named_in_one_line(tmp_path, text, said):
    path = tmp_path / "wrong.yml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as error:
        load(str(path))
    assert str(error.value).startswith(str(path))
    assert said in str(error.value)


def test_a_missing_file_names_those_there_are():
    with pytest.raises(InputError, match=r"digits\.yml"):
        load("quux-quux-quux.yml")


@pytest.mark.slow
@given(st.text(), st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers())))
def test_whatever_is_set_ends_in_an_experiment_or_in_one_line(name, value):
    with suppress(InputError):
        load(CIFAR10, {f"Sample.{name}": ("--set", value)})


def test_set_is_split_and_read_as_yaml():
    assert parse_set("Model.ch_mult=[1, 2]") == ("Model.ch_mult", [1, 2])
    assert parse_set("Sample.model_path=a=b") == ("Sample.model_path", "a=b")
    for wrong in ("Model", "Model.ch", "ch=3", "Model.ch=[1"):
        with pytest.raises(InputError, match=r"Section\.key=value|not YAML"):
            parse_set(wrong)


def test_a_solver_file_may_be_named_by_a_path():
    assert load_solver(Path("digits_nfe8")) == load_solver("digits_nfe8.yml")
    with pytest.raises(InputError, match=r"^no file nowhere\.yml"):
        load_solver(Path("nowhere.yml"))


def test_calls_and_times_stand_without_a_number_of_steps_that_fits():
    short = {"Schedule.diffusion_step": ("--set", 20)}
    for name, value in (("nfe", 10), ("times", [19, 5, -1])):
        assert load("digits.yml", short | {f"Sample.{name}": ("--set", value)}).Schedule.diffusion_step == 20
    with pytest.raises(InputError, match="sample_speed 50 is above"):
        load("digits.yml", short)


def test_a_difference_shows_a_hash_by_its_beginning_and_a_path_whole():
    one, other = "a1" * 32, "/data/" + "s" * 58
    found = difference({"checkpoint": one, "file": other}, {"checkpoint": "b" + one[1:], "file": other[:-1] + "t"})
    assert found == "checkpoint is a1a1a1a1a1a1… there and b1a1a1a1a1a1… here"
    assert other in difference({"file": other}, {"file": other[:-1] + "t"})
    assert str(10**63) in difference({"seed": 10**63}, {"seed": 1})

"""The sample runner: what a run's folder holds, and that an image is its number's and nothing else's."""

import contextlib
import hashlib
import json
import os
import resource
import shutil
import signal
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from helpers import image_files, process
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pndm import cli as main
from pndm.config.errors import InputError
from pndm.config.files import save_json
from pndm.config.load import load
from pndm.config.schema import fingerprint
from pndm.dataset import open_dataset
from pndm.model import checkpoint
from pndm.model.engine import resolve
from pndm.runner import folder as folder_module
from pndm.runner import sample
from pndm.runner.folder import open_folder
from pndm.runner.measure.distance import frechet_distance
from pndm.runner.measure.features import Extractor
from pndm.runner.processes import Processes
from pndm.runner.random import Ahead, generator, noise


def images(folder):
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("[0-9]*.png"))]).astype(int)


def test_one_image_in_one_step_is_told_in_the_singular(tiny, cli, tmp_path):
    out = cli(*tiny.flags(tmp_path / "run"), "--method", "DDIM", "--sample_speed", "1", "--total_num", "1")[1]
    assert "1 image by DDIM in 1 step, 1 network call an image, " in out


def test_a_finished_folder_holds_what_is_promised(tiny, cli, tmp_path):
    status, out, err = cli(*tiny.flags(tmp_path / "run"))
    assert (status, err) == (0, "")
    assert "10 images by F-PNDM in 4 steps, 13 network calls" in out
    held = {path.name for path in (tmp_path / "run").iterdir()}
    assert held == {f"{i:06d}.png" for i in range(10)} | {"grid.png", "result.json", "run.json"}
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    wanted = {"method": "F-PNDM", "steps": 4, "nfe": 13, "profile": "exact", "seed": 0, "images": 10, "world_size": 1}
    assert {name: record[name] for name in wanted} == wanted
    assert record["checkpoint"]["sha256"] == hashlib.sha256(tiny.model.read_bytes()).hexdigest()
    assert record["images_per_second"] == pytest.approx(12 / record["seconds"], rel=0.01)  # three batches of 4
    assert record["config"]["Model"]["ch"] == 32
    assert record["options"] == {}
    assert record["precision"] == resolve("auto", torch.device("cpu"))
    assert record["versions"]["torch"] == torch.__version__
    assert record["frechet"]["images"] == 10
    assert record["frechet"]["features"] == "pixels"


def test_distance_is_that_of_the_written_images(tiny, cli, tmp_path):
    cli(*tiny.flags(tmp_path / "run", "--total_num", 70))
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    mine = images(tmp_path / "run").reshape(70, -1) / 255
    data = torch.stack(list(open_dataset(load(str(tiny.config)).Dataset))).flatten(1).double().numpy() / 255
    direct = frechet_distance(mine.mean(0), np.cov(mine.T), data.mean(0), np.cov(data.T))
    assert record["frechet"]["value"] == pytest.approx(direct, rel=1e-10)
    assert record["frechet"]["reference"]["images"] == 1797


def test_bytes_do_not_depend_on_how_many_images_are_made(tiny, cli, tmp_path):
    cli(*tiny.flags(tmp_path / "few", "--total_num", 6))
    cli(*tiny.flags(tmp_path / "many", "--total_num", 11))
    few, many = image_files(tmp_path / "few"), image_files(tmp_path / "many")
    assert len(few) == 6
    assert few.items() <= many.items()


def test_what_an_image_depends_on_is_what_the_schema_says(tiny, cli, tmp_path):
    cli(*tiny.flags(tmp_path / "run"))
    held = json.loads((tmp_path / "run" / "run.json").read_text())
    decided = fingerprint(load(str(tiny.config)), "images")
    assert held.keys() == decided.keys() | {"steps", "checkpoint", "precision"}
    assert {name: held[name] for name in decided} == decided
    assert not held.keys() & {"Sample.sample_speed", "Sample.nfe", "Sample.total_num", "Model.dropout", "Optim.lr"}
    # The same images, however their number of steps is told.
    assert cli(*tiny.flags(tmp_path / "run", "--nfe", 13))[0] == 0


def test_a_key_that_is_new_leaves_old_folders_valid(tiny, cli, tmp_path):
    cli(*tiny.flags(tmp_path / "run"))
    file = tmp_path / "run" / "run.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "Sample.eta"}))
    assert cli(*tiny.flags(tmp_path / "run", "--total_num", 11))[0] == 0


@pytest.mark.parametrize(
    "flags, steps, nfe, options",
    [
        (["--method", "DPM-Solver++2M", "--nfe", 6, "--spacing", "logsnr"], 6, 6, {"spacing": "logsnr"}),
        (["--method", "Heun", "--nfe", 5, "--spacing", "karras"], 3, 5, {"spacing": "karras"}),
        (["--method", "DDIM", "--times", "900,400,-1", "--clip"], 2, 2, {"clip": True, "times": [900, 400, -1]}),
        (["--method", "DDIM", "--eta", 0.5, "--threshold", 0.9], 4, 4, {"eta": 0.5, "threshold": 0.9}),
        (["--method", "UniPC3-bh2", "--set", "Sample.times=[999, 300, 0]"], 2, 2, {"times": [999, 300, 0]}),
    ],
)
def test_the_record_says_what_was_run(tiny, cli, tmp_path, flags, steps, nfe, options):
    status, _, err = cli(*tiny.flags(tmp_path / "run", "--total_num", 2, *flags))
    assert (status, err) == (0, "")
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (record["steps"], record["nfe"], record["options"]) == (steps, nfe, options)
    assert {f"Sample.{name}": value for name, value in options.items()}.items() <= record["fingerprint"].items()


def test_a_finished_run_grows_to_more_images(tiny, cli, tmp_path):
    cli(*tiny.flags(tmp_path / "grown", "--total_num", 5))
    kept = (tmp_path / "grown" / "000001.png").stat().st_mtime_ns
    assert cli(*tiny.flags(tmp_path / "grown", "--total_num", 11))[0] == 0
    cli(*tiny.flags(tmp_path / "once", "--total_num", 11))
    assert image_files(tmp_path / "grown") == image_files(tmp_path / "once")
    assert (tmp_path / "grown" / "000001.png").stat().st_mtime_ns == kept
    assert json.loads((tmp_path / "grown" / "result.json").read_text())["images"] == 11


def test_a_distance_is_measured_again_when_what_it_is_measured_against_has_changed(tiny, cli, tmp_path):
    def value(*flags):
        assert cli(*tiny.flags(tmp_path / "run", "--total_num", 6, *flags))[0] == 0
        return json.loads((tmp_path / "run" / "result.json").read_text())["frechet"]["value"]

    value()
    images = image_files(tmp_path / "run")
    for path, count in ((tmp_path / "few", 3), (tmp_path / "more", 6)):
        path.mkdir()
        for name in list(images)[:count]:
            shutil.copy(tmp_path / "run" / name, path)
    file = tmp_path / "st.npz"
    found = []
    for folder in ("few", "more"):
        assert cli("--runner", "stats", tmp_path / folder, "--features", "pixels", "--out", file)[0] == 0
        found.append(value("--statistics", file))
    assert found[1] < 1e-6 < found[0]
    before = (tmp_path / "run" / "result.json").stat().st_mtime_ns
    value("--statistics", file)
    assert (tmp_path / "run" / "result.json").stat().st_mtime_ns == before
    folder = ["--set", "Dataset.dataset=FOLDER", "--set", f"Dataset.path={tmp_path / 'few'}"]
    far = value(*folder)
    for name in list(images)[3:]:
        shutil.copy(tmp_path / "run" / name, tmp_path / "few")
    assert value(*folder) < 1e-6 < far
    assert image_files(tmp_path / "run") == images


def test_a_continued_run_says_how_long_it_takes_by_what_it_makes_itself(tiny, cli, tmp_path, monkeypatch):
    bars = []

    class Kept(sample.Progress):
        def __enter__(self):
            bars.append(self)
            return super().__enter__()

    monkeypatch.setattr(sample, "Progress", Kept)
    for total, there in ((6, 0), (11, 6), (12, 11)):
        assert cli(*tiny.flags(tmp_path / "run", "--total_num", total, "--batch_size", 1))[0] == 0
        assert (bars[-1].initial, bars[-1].bar.n) == (there, total)
        assert f"{total}/{total} images 00:10<00:00,  {(total - there) / 10:.2f} images/s" in bars[-1].line(seconds=10)
    (tmp_path / "run" / "result.json").unlink()
    assert cli(*tiny.flags(tmp_path / "run", "--total_num", 12, "--batch_size", 1))[0] == 0
    assert (bars[-1].initial, bars[-1].bar.n) == (11, 12)  # one image is made again


def test_a_stochastic_image_has_noise_of_its_own_in_every_step(tiny, cli, tmp_path):
    """Among fewer, among more, continued, and in batches of another size: the same, and other with another seed."""
    flags = ["--method", "DDPM", "--nfe", 5, "--precision", "fp32"]
    cli(*tiny.flags(tmp_path / "many", *flags, "--total_num", 11))
    many = image_files(tmp_path / "many")
    for name, more in (("few", []), ("seed", ["--seed", 1])):
        cli(*tiny.flags(tmp_path / name, *flags, *more, "--total_num", 6))
    assert image_files(tmp_path / "few").items() <= many.items()
    assert not image_files(tmp_path / "seed").items() & many.items()
    cli(*tiny.flags(tmp_path / "few", *flags, "--total_num", 11))
    assert image_files(tmp_path / "few") == many
    cli(*tiny.flags(tmp_path / "one", *flags, "--total_num", 11, "--batch_size", 1))
    assert np.abs(images(tmp_path / "one") - images(tmp_path / "many")).max() <= 1
    cli(*tiny.flags(tmp_path / "ddim", "--method", "DDIM", "--nfe", 5, "--total_num", 11))
    assert np.abs(images(tmp_path / "ddim") - images(tmp_path / "many")).mean() > 5


def test_noise_of_the_steps_is_pinned_and_of_no_other_name():
    drawn = [noise(0, [0, 1], (3,), stream, step) for stream in ("sampling", "step") for step in (0, 1)]
    assert len(np.unique(np.concatenate(drawn))) == 24
    np.testing.assert_allclose(noise(0, [1], (3,), "step", 2)[0], STEP, rtol=1e-6)


STEP = [1.5499169827, 0.9953777194, -0.2538328767]


@pytest.mark.parametrize("method", [["F-PNDM"], ["PF", "--rtol", "0.01", "--atol", "0.01"]], ids=["F-PNDM", "PF"])
def test_images_do_not_depend_on_the_batch_size_beyond_rounding(tiny, cli, tmp_path, method):
    for size in (1, 3, 10):
        cli(*tiny.flags(tmp_path / str(size), "--batch_size", size, "--precision", "fp32", "--method", *method))
    for size in (1, 3):
        assert np.abs(images(tmp_path / str(size)) - images(tmp_path / "10")).max() <= 1


def test_an_image_with_any_kind_of_damage_is_one_line(tiny, cli, tmp_path):
    cli(*tiny.flags(tmp_path / "run"))
    file = tmp_path / "run" / "000001.png"
    whole = file.read_bytes()
    (tmp_path / "run" / "result.json").unlink()
    for damaged in (b"", whole[:50], whole[:11] + b"\x05" + whole[12:]):  # Pillow raises a ValueError for the last
        file.write_bytes(damaged)
        status, _, err = cli(*tiny.flags(tmp_path / "run"))
        assert (status, err.count("\n")) == (2, 1)
        assert "000001.png: not a readable image" in err


def test_missing_images_come_back_with_the_same_bytes(tiny, cli, tmp_path):
    cli(*tiny.flags(tmp_path / "run"))
    before = image_files(tmp_path / "run")
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    kept = (tmp_path / "run" / "000008.png").stat().st_mtime_ns
    for name in ("000001.png", "000002.png", "000007.png"):
        (tmp_path / "run" / name).unlink()
    assert cli(*tiny.flags(tmp_path / "run"))[0] == 0
    assert image_files(tmp_path / "run") == before
    assert (tmp_path / "run" / "000008.png").stat().st_mtime_ns == kept
    again = json.loads((tmp_path / "run" / "result.json").read_text())
    assert again["frechet"] == record["frechet"]
    assert again["nfe"] == record["nfe"]


def test_the_record_of_more_images_is_kept_where_they_are_not_files(tiny, cli, tmp_path):
    assert cli(*tiny.flags(tmp_path / "run", "--total_num", 8, "--keep", 0))[0] == 0
    record = (tmp_path / "run/result.json").read_bytes()
    status, _, err = cli(*tiny.flags(tmp_path / "run", "--total_num", 4))
    assert status == 2 and "already holds the record of 8 images" in err
    assert (tmp_path / "run/result.json").read_bytes() == record


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run.json", "result.json"])
@pytest.mark.parametrize("content", ["[]", "5", "{", ""])
def test_damaged_records(tiny, cli, tmp_path, name, content):
    assert cli(*tiny.flags(tmp_path / "run"))[0] == 0
    (tmp_path / "run" / name).write_text(content)
    status, _, err = cli(*tiny.flags(tmp_path / "run"))
    assert (status, err.count("damaged; delete the folder")) == ((2, 1) if name == "run.json" else (0, 0))


@pytest.mark.slow
def test_a_record_that_lacks_what_is_told_of_it_is_made_again(tiny, cli, tmp_path):
    assert cli(*tiny.flags(tmp_path / "run"))[0] == 0
    file = tmp_path / "run/result.json"
    whole = json.loads(file.read_text())
    for name, value in [("solver", ...), ("checkpoint", ...), ("frechet", {}), ("nfe", None)]:
        record = {key: held for key, held in (whole | {name: value}).items() if held is not ...}
        file.write_text(json.dumps(record))
        assert cli(*tiny.flags(tmp_path / "run"))[0] == 0
        assert json.loads(file.read_text())["frechet"] == whole["frechet"]


def test_images_beyond_the_number_asked_for_are_not_left_in_the_folder(tiny, cli, tmp_path):
    """As a killed run of several processes may leave them: the last batch without the first."""
    assert cli(*tiny.flags(tmp_path / "run"))[0] == 0
    for name in ("result.json", *(f"{i:06d}.png" for i in range(8))):
        (tmp_path / "run" / name).unlink()
    status, _, err = cli(*tiny.flags(tmp_path / "run", "--total_num", 8))
    assert status == 2 and "already holds 000009.png of this run" in err


def test_an_image_of_another_size_is_named(tiny, cli, tmp_path):
    assert cli(*tiny.flags(tmp_path / "run"))[0] == 0
    Image.new("L", (5, 5)).save(tmp_path / "run/000001.png")
    status, _, err = cli(*tiny.flags(tmp_path / "run", "--total_num", 11))
    assert status == 2 and "000001.png: not of this run's image size" in err


def test_a_complete_run_is_not_made_again(tiny, cli, tmp_path):
    cli(*tiny.flags(tmp_path / "run"))
    before = (tmp_path / "run" / "result.json").stat().st_mtime_ns
    status, out, _ = cli(*tiny.flags(tmp_path / "run"))
    assert status == 0
    assert "already holds these 10 images" in out
    assert (tmp_path / "run" / "result.json").stat().st_mtime_ns == before


def test_a_lost_record_is_made_again(tiny, cli, tmp_path):
    cli(*tiny.flags(tmp_path / "run"))
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    (tmp_path / "run" / "result.json").unlink()
    assert cli(*tiny.flags(tmp_path / "run"))[0] == 0
    again = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (again["nfe"], again["frechet"]) == (record["nfe"], record["frechet"])


def test_seeds_and_images_have_noise_of_their_own():
    drawn = np.concatenate([noise(seed, range(50), (1, 8, 8)) for seed in (0, 1)])
    assert len(np.unique(drawn.reshape(100, -1), axis=0)) == 100
    assert np.array_equal(noise(0, [7], (1, 8, 8))[0], drawn[7])
    assert abs(drawn.mean()) < 0.05
    assert abs(drawn.std() - 1) < 0.05


def test_noise_is_pinned():
    """A change of these numbers, by NumPy or here, would change every image ever made."""
    np.testing.assert_allclose(noise(0, [0], (3,))[0], PINNED[0], rtol=1e-6)
    np.testing.assert_allclose(noise(1234, [2**40], (3,))[0], PINNED[1], rtol=1e-6)
    assert generator(0, "order", 0).permutation(6).tolist() == PINNED[2]


PINNED = [[0.0599110350, 0.0155596342, -1.1644384861], [-1.5529762506, -0.1028061435, 0.2341959924], [2, 1, 3, 4, 0, 5]]


STOPPED = ["--total_num", 48, "--sample_speed", 50]


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main.main([str(flag) for flag in tiny.flags(folder, *STOPPED)]) == 0
    return image_files(folder)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_keeps_what_is_finished_and_goes_on_to_the_same_bytes(tiny, cli, tmp_path, undisturbed, stop):
    flags = tiny.flags(tmp_path / "run", *STOPPED)
    run = process(*flags)
    while len(image_files(tmp_path / "run")) < 8 and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(stop)
    since = time.monotonic()
    err = run.communicate()[1]
    if stop != signal.SIGKILL:
        assert time.monotonic() - since < 10  # about 1 s on an idle machine
        assert run.returncode == 130
        assert err.startswith("main.py: interrupted")
        assert err.count("\n") == 1
    done = image_files(tmp_path / "run")
    assert 8 <= len(done) < 48
    assert done.items() <= undisturbed.items()
    assert not (tmp_path / "run" / "result.json").exists()
    assert cli(*flags)[0] == 0
    assert image_files(tmp_path / "run") == undisturbed
    assert not list((tmp_path / "run").glob(".*"))


def distance_of(folder):
    return json.loads((folder / "result.json").read_text())["frechet"]


def test_a_killed_run_that_keeps_few_images_goes_on_to_the_same_distance(tiny, cli, tmp_path, undisturbed):
    flags = tiny.flags(tmp_path / "run", *STOPPED, "--keep", 6)
    run = process(*flags)
    while len(list(tmp_path.glob("run/features/*/*.npy"))) < 3 or len(image_files(tmp_path / "run")) < 6:
        assert run.poll() is None
        time.sleep(0.01)
    run.kill()
    run.communicate()
    there = len(list(tmp_path.glob("run/features/*/*.npy")))
    assert 3 <= there < 12
    assert not (tmp_path / "run/result.json").exists()
    assert cli(*flags)[0] == 0
    assert json.loads((tmp_path / "run/result.json").read_text())["made"] == 48 - 4 * there
    assert cli(*tiny.flags(tmp_path / "whole", *STOPPED))[0] == 0
    assert distance_of(tmp_path / "run") == distance_of(tmp_path / "whole")
    files = image_files(tmp_path / "run")
    assert len(files) == 6 and files.items() <= undisturbed.items()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {*files, "grid.png", "run.json", "result.json"}


@pytest.fixture
def stopped(tiny, cli, tmp_path, monkeypatch):
    """The flags of a run of 12 images that keeps none, and was stopped after the first two of its three batches."""
    flags = tiny.flags(tmp_path / "run", "--total_num", 12, "--keep", 0)
    make = sample.Sampler.make

    def stop(self, wanted, size, progress=None):
        if wanted.start == 8:
            raise KeyboardInterrupt
        return make(self, wanted, size, progress)

    with monkeypatch.context() as patched:
        patched.setattr(sample.Sampler, "make", stop)
        assert cli(*flags)[0] == 130
    assert len(list(tmp_path.glob("run/features/*/*.npy"))) == 2
    return flags


def test_features_of_an_unfinished_run_belong_to_its_images(stopped, cli, tmp_path):
    status, _, err = cli(*stopped, "--method", "DDIM")
    assert status == 2 and "holds images of another run (Sample.method is F-PNDM there and DDIM here" in err
    assert len(list(tmp_path.glob("run/features/*/*.npy"))) == 2


@pytest.mark.parametrize("damage", [b"", b"no array", "of one image"])
def test_damaged_features_of_an_unfinished_run_are_named(stopped, cli, tmp_path, damage):
    file = sorted(tmp_path.glob("run/features/*/*.npy"))[1]
    file.write_bytes(damage) if isinstance(damage, bytes) else np.save(file, np.load(file)[:1])
    status, _, err = cli(*stopped)
    assert status == 2 and err == f"main.py: {file}: damaged; delete it and run again\n"
    file.unlink()
    assert cli(*stopped)[0] == 0


def test_an_unfinished_run_is_measured_anew_on_other_features(stopped, cli, tmp_path):
    status, _, err = cli(*stopped, "--features", "none")
    assert (status, err) == (0, "")
    record = json.loads((tmp_path / "run/result.json").read_text())
    assert (record["frechet"], record["made"]) == (None, 12)
    assert not (tmp_path / "run/features").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, said",
    [
        (["--method", "DDIM"], "Sample.method is F-PNDM there and DDIM here"),
        (["--sample_speed", "5"], "steps is 4 there and 5 here"),
        (["--seed", "1"], "Sample.seed is 0 there and 1 here"),
        (["--profile", "published"], "Sample.profile is exact there and published here"),
        (["--batch_size", "5"], "Sample.batch_size is 4 there and 5 here"),
        (["--spacing", "karras"], "Sample.spacing is uniform there and karras here"),
        (["--times", "999,500,250,100,-1"], "Sample.times is None there and [999.0, 500.0, 250.0, 100.0, -1.0] here"),
        (["--set", "Schedule.type=cosine"], "Schedule.type is linear there and cosine here"),
        (["--method", "DDIM", "--total_num", "3"], "Sample.method is F-PNDM there and DDIM here"),
        (["--total_num", "3"], "already holds 000009.png of this run, beyond the 3 images"),
    ],
)
def test_a_folder_with_other_images_is_refused(tiny, cli, tmp_path, change, said):
    cli(*tiny.flags(tmp_path / "run"))
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    status, _, err = cli(*tiny.flags(tmp_path / "run", *change))
    assert status == 2
    assert said in err
    assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize("name", ["000000.png", "00007.png"])
def test_a_folder_with_foreign_images_is_refused(tiny, cli, tmp_path, name):
    Image.new("L", (8, 8)).save(tmp_path / name)
    status, _, err = cli(*tiny.flags(tmp_path))
    assert status == 2
    assert "no run.json says" in err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_of_two_runs_that_begin_together_in_a_folder_the_second_is_refused(tmp_path, monkeypatch):
    """The other one made its images while this one waited for the folder."""
    first, alone = {"Sample.seed": 1}, folder_module.alone

    @contextlib.contextmanager
    def late(path, *more):
        save_json(path / "run.json", first)
        (path / "000000.png").touch()
        with alone(path, *more):
            yield

    monkeypatch.setattr(folder_module, "alone", late)
    team = Processes(torch.device("cpu"))
    with (
        pytest.raises(InputError, match=r"holds images of another run \(Sample.seed is 1 there and 2 here\)"),
        open_folder(tmp_path / "run", {"Sample.seed": 2}, team, None, (1, 8, 8)),
    ):
        pytest.fail("two runs are at work in one folder")
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == first
    assert (tmp_path / "run" / "000000.png").exists()


@pytest.mark.parametrize("method", ["F-PNDM", "PF"])
def test_nan_from_the_network_is_named_with_its_step(tiny, cli, tmp_path, method):
    tensors = {name: value.clone() for name, value in tiny.network.state_dict().items()}
    tensors["conv_out.bias"] += torch.nan
    checkpoint.save(tmp_path / "nan.safetensors", tensors, {})
    flags = tiny.flags(tmp_path / "run", "--model_path", tmp_path / "nan.safetensors", "--method", method)
    status, _, err = cli(*flags)
    assert status == 2
    assert ("from step 1 of 4 on (to t = 500)" if method == "F-PNDM" else "not finite between t = 999 and") in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    assert cli(*flags)[0] == 2
    assert not list((tmp_path / "run").iterdir())


def test_a_folder_left_by_a_run_without_images_is_taken(tiny, cli, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    assert cli(*tiny.flags(tmp_path))[0] == 0
    assert json.loads((tmp_path / "run.json").read_text())["Sample.method"] == "F-PNDM"


def limited(size):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("size, left", [(60, set()), (4000, {f"{i:06d}.png" for i in range(100)} | {"run.json"})])
def test_a_full_disk_ends_in_one_line_with_whole_files_kept(tiny, tmp_path, size, left):
    """The operating system refuses to write more than `size` bytes a file: too few for run.json, or for the grid."""
    run = process(*tiny.flags(tmp_path / "run", "--total_num", 100), preexec_fn=limited(size))
    err = run.communicate()[1]
    assert run.returncode == 2
    assert "File too large" in err
    assert str(tmp_path / "run") in err
    assert err.count("\n") == 1
    assert {path.name for path in (tmp_path / "run").glob("*")} == left


def test_a_folder_removed_under_a_run_ends_it_in_one_line(tiny, tmp_path):
    run = process(*tiny.flags(tmp_path / "run", *STOPPED))
    while len(image_files(tmp_path / "run")) < 8 and run.poll() is None:
        time.sleep(0.01)
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    err = run.communicate()[1]
    assert run.returncode == 2
    assert "No such file or directory" in err
    assert err.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_read_only_folder_is_named(tiny, cli, tmp_path):
    tmp_path.chmod(0o500)
    status, _, err = cli(*tiny.flags(tmp_path / "run"))
    assert (status, err.count("\n")) == (2, 1)
    assert "Permission denied" in err


def test_a_target_below_a_file_is_named(tiny, cli, tmp_path):
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file", tmp_path / "file" / "run"):
        status, _, err = cli(*tiny.flags(target))
        assert (status, err.count("\n")) == (2, 1)
        assert "ot a" in err


def test_batches_begun_ahead_are_the_same_images(tiny, cli, tmp_path, monkeypatch):
    """As on a GPU, which is given the next batch before the last one is asked for."""
    cli(*tiny.flags(tmp_path / "run"))
    monkeypatch.setattr("pndm.runner.sample.AHEAD", {"cpu": 1})
    cli(*tiny.flags(tmp_path / "ahead"))
    assert np.array_equal(images(tmp_path / "run"), images(tmp_path / "ahead"))


def test_features_are_queued_before_the_next_batch_is_begun(tiny, cli, tmp_path, monkeypatch):
    monkeypatch.setattr("pndm.runner.sample.AHEAD", {"cpu": 1})
    seen, make, describe = [], sample.Sampler.make, Extractor.describe

    def making(sampler, ids, size, progress):
        seen.append("make")
        return make(sampler, ids, size, progress)

    def describing(extractor, images):
        seen.append(len(images))
        return describe(extractor, images)

    monkeypatch.setattr(sample.Sampler, "make", making)
    monkeypatch.setattr(Extractor, "describe", describing)
    assert cli(*tiny.flags(tmp_path / "run", "--batch_size", 4))[0] == 0
    assert seen[seen.index("make") :] == ["make", 4, "make", 4, "make", 2], "what fills the last batch is not described"


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**20), st.integers(1, 9), st.integers(1, 5), st.integers(1, 4) | st.none())
def test_noise_drawn_ahead_is_the_noise_of_its_step(first, images, threads, steps):
    ids = range(first, first + images)
    ahead = Ahead(3, ids, (2, 2), steps, threads)
    for step in range(steps or 3):
        assert np.array_equal(ahead(step), noise(3, ids, (2, 2), "step", step))


def test_noise_is_drawn_a_step_ahead_and_no_further(monkeypatch):
    begun = []

    def drawn(seed, ids, shape, stream, step):
        begun.append(step)
        return noise(seed, ids, shape, stream, step)

    monkeypatch.setattr("pndm.runner.random.noise", drawn)
    ahead = Ahead(0, range(4), (1,), 3, 1)
    for step, wanted in enumerate(([0, 1], [0, 1, 2], [0, 1, 2])):
        ahead(step)
        ahead.pool.submit(int).result()  # after what was begun
        assert begun == wanted


def test_its_threads_end_with_it():
    before = {*threading.enumerate()}
    ahead = Ahead(0, range(4), (1,), 3, 2)
    ahead(0)
    gone, own = weakref.ref(ahead), {*threading.enumerate()} - before
    del ahead
    assert gone() is None and own
    for thread in own:
        thread.join(10)
        assert not thread.is_alive()


def test_a_folder_of_a_network_that_does_not_predict_noise_is_refused(tiny, cli, tmp_path):
    shutil.copy(tiny.model, tmp_path / "network.safetensors")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "scheduler_config.json").write_text('{"prediction_type": "v_prediction"}')
    own = ["--model_path", tmp_path / "network.safetensors"]
    status, _, err = cli(*tiny.flags(tmp_path / "run", *own))
    assert status == 2 and "predicts v_prediction, not ε; PNDMPipeline can" in err and err.count("\n") == 1
    start = ["--set", f"Train.start={tmp_path / 'network.safetensors'}", "--train_path", tmp_path / "train"]
    status, _, err = cli("--runner", "train", "--config", tiny.config, "--device", "cpu", *start)
    assert status == 2 and "not ε" in err and not (tmp_path / "train").exists()
    (tmp_path / "config.json").unlink()  # what remains is of another network
    assert cli(*tiny.flags(tmp_path / "run", *own))[0] == 0


def test_a_folders_precision_is_refused_where_the_device_has_none_such(tiny, cli, tmp_path):
    assert cli(*tiny.flags(tmp_path / "run"))[0] == 0
    held = json.loads((tmp_path / "run/run.json").read_text())
    (tmp_path / "run/run.json").write_text(json.dumps(held | {"precision": "tf32"}))  # begun on a GPU
    (tmp_path / "run/result.json").unlink()
    status, _, err = cli(*tiny.flags(tmp_path / "run"))
    assert status == 2 and "precision tf32 needs an NVIDIA GPU" in err and err.count("\n") == 1


def test_automatic_batch_size_is_kept_by_the_folder(tiny, cli, tmp_path, monkeypatch):
    flags = tiny.flags(tmp_path / "run", "--batch_size", "auto", "--features", "none")
    assert cli(*flags)[0] == 0
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["config"]["Sample"]["batch_size"] == 64
    monkeypatch.setattr("pndm.runner.sample.largest_batch", lambda *_: 2)
    assert cli(*flags, "--total_num", 12)[:2] != (2, "")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["config"]["Sample"]["batch_size"] == 64

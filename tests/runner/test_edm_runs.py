"""EDM's networks from the command line: its steps, classes, guidance, tables."""

import json

import pytest
import torch
import yaml
from data.edm import install, section, snapshot, write
from helpers import ROOT, image_files

from pndm.config.load import load, load_table
from pndm.model.settings import settings_of
from pndm.model.unet import UNet
from pndm.pipeline import PNDMPipeline
from pndm.runner import plan
from pndm.runner.build import read_network, sampling_of, schedule_of
from pndm.runner.demo.cells import LEAST, Artist
from pndm.runner.demo.commands import Origin, commands
from pndm.runner.demo.request import request_of
from pndm.runner.solver.methods import METHODS
from pndm.runner.table.cells import cells_of
from pndm.runner.table.flow import distance, exact_flow

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """An experiment with a small class-conditional network of EDM, from a pickle as EDM writes it."""
    folder = tmp_path_factory.mktemp("edm")
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        write(folder / "network.pkl", snapshot("edm_ddpmpp"))
    tree = {
        "Schedule": {"type": "edm"},
        "Dataset": {"dataset": "FOLDER", "image_size": 16, "channels": 3},
        "Model": section("edm_ddpmpp"),
        "Sample": {
            "method": "Heun",
            "sample_speed": 3,
            "spacing": "karras",
            "total_num": 6,
            "batch_size": 6,
            "precision": "fp32",
            "model_path": str(folder / "network.pkl"),
        },
    }
    (folder / "edm.yml").write_text(yaml.safe_dump(tree))
    return folder / "edm.yml"


@pytest.fixture
def run(config, cli, tmp_path):
    """run(flag, ...) → (exit status, images by name, record, stderr) of a sampling run."""
    count = 0

    def sample(*flags):
        nonlocal count
        count += 1
        folder = tmp_path / str(count)
        status, _, error = cli("--config", config, "--device", "cpu", "--image_path", folder, *flags)
        record = json.loads((folder / "result.json").read_text()) if status == 0 else None
        return status, image_files(folder) if status == 0 else {}, record, error

    return sample


def test_images_of_each_own_class_and_of_one(run):
    _, own, record, _ = run()
    assert (record["nfe"], record["method"]) == (5, "Heun")
    assert "EDM pickle" in record["checkpoint"]["format"]
    _, again, _, _ = run("--batch_size", 2)
    assert own.keys() == again.keys()
    _, two, record, _ = run("--label", 2)
    assert record["config"]["Sample"]["label"] == 2
    assert any(own[name] != two[name] for name in own)
    experiment = load("edm_cifar10_cond.yml")
    seen = []
    network = sampling_of(experiment).conditioned(lambda x, t, labels: seen.append(labels), range(1000), "cpu")
    network(None, None)
    counts = torch.bincount(seen[0], minlength=10)
    assert len(counts) == 10 and counts.min() > 60, "every class has its share"
    first = []
    sampling_of(experiment).conditioned(lambda x, t, labels: first.append(labels), range(5), "cpu")(None, None)
    assert torch.equal(first[0], seen[0][:5]), "the class of an image depends on its number alone"


def test_the_class_of_an_image_follows_from_the_seed():
    def classes(seed):
        seen, experiment = [], load("edm_cifar10_cond.yml", {"Sample.seed": ("test", seed)})
        network = sampling_of(experiment).conditioned(lambda x, t, labels: seen.append(labels), range(100), "cpu")
        network(None, None)
        return seen[0]

    assert torch.equal(classes(0), classes(0))
    assert 60 < (classes(0) != classes(1)).sum() < 100, "of ten classes nine in ten differ"


def test_guidance_doubles_the_calls(run, config):
    status, guided, record, _ = run("--guidance", 1.5, "--label", 1)
    assert (status, record["nfe"]) == (0, 10)
    _, plain, _, _ = run("--label", 1)
    assert guided != plain
    _, _, record, _ = run("--guidance", 1.5, "--nfe", 10)
    assert (record["steps"], record["nfe"]) == (3, 10)
    asked = load(str(config), {"Sample.guidance": ("test", 2.0)})
    assert plan.count_calls(asked) == 10
    assert plan.most_calls(asked, 15) == 14


def test_limits_of_sigma_and_a_noisy_end(run):
    _, whole, _, _ = run()
    _, same, _, _ = run("--sigma_min", 0.002, "--sigma_max", 80)
    assert whole == same
    _, other, record, _ = run("--sigma_max", 40, "--noisy_end")
    assert (record["nfe"], record["options"]["noisy_end"]) == (6, True)
    assert other != whole


@pytest.mark.parametrize("method", [name for name, line in METHODS.items() if not line.adaptive])
def test_every_method_runs(run, method):
    status, images, _, error = run("--method", method, "--nfe", "9" if method == "DPM-Solver-2S" else "10")
    if status:  # of the methods that cannot spend 10 calls
        assert "cannot spend" in error
    else:
        assert len(images) == 6


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--label", 4], "--label: Sample.label is 4; the network knows classes 0 to 3"),
        (["--method", "PF"], "one label for all"),
        (["--guidance", 2, "--nfe", 9], "a multiple of 2"),
        (["--sigma_max", 100], "--sigma_max: sigma_min 0.002 and sigma_max 100"),
        (["--spacing", "uniform", "--sigma_min", 1], "logsnr or karras alone"),
        (["--set", "Schedule.type=linear"], "networks of EDM are told σ"),
        (["--set", "Schedule.sigma_min=90"], "not below sigma_max"),
        (["--set", "Model.preconditioning=VP"], "preconditioning"),
        (["--set", "Model.labels=5"], "labels"),
        (["--profile", "published"], "published"),
    ],
)
def test_wrong_input_ends_in_one_line(run, flags, said):
    status, _, _, error = run(*flags)
    assert status == 2
    assert said in error and error.count("\n") == 1


def test_images_start_from_the_greatest_sigma_times_noise():
    """EDM's x = σ_max · noise, over √(1+σ²); of other schedules the noise itself."""
    cpu = CPU
    for flags, scale in (({}, 80 / 6401**0.5), ({"sigma_max": 3}, 3 / 10**0.5)):
        given = {f"Sample.{name}": ("test", value) for name, value in flags.items()}
        sampling = sampling_of(load("edm_cifar10.yml", given))
        torch.testing.assert_close(sampling.start(range(2), cpu), scale * sampling.noise(range(2), cpu))
    sampling = sampling_of(load("ddim_cifar10.yml"))
    assert torch.equal(sampling.start(range(2), cpu), sampling.noise(range(2), cpu))


def test_a_pipeline_starts_from_sigma_times_noise_too():
    experiment, seen = load("edm_cifar10.yml", {"Schedule.sigma_max": ("test", 2.0)}), []

    def network(x, t):
        seen.append(x)
        return torch.zeros_like(x)

    pipeline = PNDMPipeline(network, schedule_of(experiment), (3, 4, 4))
    pipeline(2, 3, torch.Generator().manual_seed(0), method="DDIM", spacing="karras", output_type="pt")
    wanted = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 / 5**0.5
    torch.testing.assert_close(seen[0], wanted)


def test_guidance_needs_classes(cli):
    status, _, error = cli("--config", "edm_cifar10.yml", "--guidance", 2, "--runner", "plan")
    assert status == 2 and "knows no classes" in error


def test_networks_with_classes_are_not_trained(cli, config, tmp_path):
    status, _, error = cli("--runner", "train", "--config", config, "--train_path", tmp_path / "train")
    assert status == 2 and "not trained" in error and not (tmp_path / "train").exists()


@pytest.mark.parametrize("architecture", ["DDPM++", "NCSN++"])
def test_networks_are_trained_in_edms_frame(architecture, config, cli, tmp_path):
    """Frozen frequencies stay, all other weights move, and the average samples."""
    tree = yaml.safe_load(config.read_text())
    tree["Dataset"] = {"dataset": "DIGITS", "image_size": 8, "channels": 1, "batch_size": 8}
    tree["Model"] |= {"architecture": architecture, "image_size": 8, "in_channels": 1, "labels": 0, "num_blocks": 1}
    tree["Train"] = {"steps": 4, "loss_weight": 1000, "precision": "fp32"}
    tree["Sample"] |= {"model_path": str(tmp_path / "train/ema.safetensors"), "sample_speed": 2}
    (tmp_path / "digits.yml").write_text(yaml.safe_dump(tree))
    flags = ["--config", tmp_path / "digits.yml", "--device", "cpu"]
    assert cli("--runner", "train", *flags, "--train_path", tmp_path / "train")[0] == 0
    state = torch.load(tmp_path / "train/train-00000004.ckpt", weights_only=True)
    torch.manual_seed(0)
    before = UNet(settings_of(load(str(tmp_path / "digits.yml")).Model)).state_dict()
    same = [name for name, value in state["model"].items() if torch.equal(value, before[name])]
    assert same == [name for name in before if "freqs" in name]
    assert cli(*flags, "--image_path", tmp_path / "images")[0] == 0
    assert len(image_files(tmp_path / "images")) == 6


@pytest.mark.parametrize("name", ["edm_cifar10", "edm_ffhq"])
def test_tables_run_the_published_protocol(name):
    path, table = load_table(name)
    cells, _ = cells_of(table, path, {})
    assert path.parent == ROOT / "config" / "tables"
    published = {(label, calls) for label, values in table.paper.fid.items() for calls in values}
    made = {(cell.label, cell.budget.calls) for cell in cells}
    assert published <= made
    assert {cell.seed for cell in cells} == {0, 1, 2}
    for cell in cells:
        sampling = sampling_of(cell.experiment)
        assert sampling.options["spacing"] in ("karras", "logsnr")
        assert sampling.options.get("noisy_end", False) == (cell.label != "Heun EDM")


def test_a_search_is_refused(cli, config, tmp_path):
    status, _, error = cli("--runner", "search", "--config", config, "--nfe", 5, "--search_path", tmp_path / "found")
    assert status == 2 and "type is edm" in error and not (tmp_path / "found").exists()


def test_tables_of_networks_with_classes(cli, config, tmp_path):
    """The exact flow is that of one class; with a class for each image there is none."""
    table = {"experiment": str(config), "methods": ["DDIM"], "nfe": [4], "images": 2, "flow": 2}
    (tmp_path / "small.yml").write_text(yaml.safe_dump(table))
    command = ["--runner", "reproduce", "--table", tmp_path / "small.yml", "--device", "cpu", "--features", "none"]
    for name, more, count in (("each", [], 0), ("one", ["--set", "Sample.label=1"], 1)):
        status, _, error = cli(*command, "--image_path", tmp_path / name, *more)
        assert status == 0, error
        flow = tmp_path / name / "flow.json"
        assert len(json.loads(flow.read_text()) if flow.exists() else []) == count


def test_cells_of_the_demo(config):
    request = request_of("DDIM", "karras", "4", images=2)
    for label, known in ((None, False), (1, True)):
        given = {"Sample.label": ("test", label)}
        *_, cell = Artist(load(str(config), given), CPU).draw(request)
        assert cell.images is not None and (cell.distance is not None) == known
        if known:
            asked = load(str(config), given | {"Sample.nfe": ("test", 4), "Sample.method": ("test", "DDIM")})
            network = read_network(asked)[0]
            ends = exact_flow(asked, network, CPU, 2, 1e-6)
            assert cell.distance == pytest.approx(distance(cell.x, ends), abs=LEAST)
        assert [name for name, _ in commands(cell, request.noise, Origin(str(config)))] == ["command line"]


def test_cells_of_the_demo_count_both_calls_of_guidance(config):
    given = {"Sample.label": ("test", 1), "Sample.guidance": ("test", 2.0)}
    cells = {
        cell.asked: cell for cell in Artist(load(str(config), given), CPU).draw(request_of("DDIM", "karras", "1,5"))
    }
    assert (cells[5].message, cells[5].steps, cells[5].nfe) == ("", 2, 4)
    assert cells[1].message == "DDIM spends 2 calls at least"

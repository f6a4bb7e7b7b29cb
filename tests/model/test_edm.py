"""EDM's networks: parity with its own code, its sampler, its classes, and its pickles."""

import math

import numpy as np
import pytest
import torch
from data.edm import NETWORKS, REFERENCE, SIGMAS, classes, install, noise, published, section, snapshot, weights, write
from helpers import last, published_section

from pndm.config.errors import InputError
from pndm.config.load import load
from pndm.model import load_model
from pndm.model.checkpoint import closest, read
from pndm.model.engine import Engine
from pndm.model.guidance import Conditional, Guided
from pndm.model.settings import settings_of
from pndm.model.unet import UNet
from pndm.runner.solver.schedule import Schedule
from pndm.runner.solver.sigma import SigmaSchedule
from pndm.runner.solver.solve import solve
from pndm.tools import checkpoint as doctor

SMALL = [name for name in NETWORKS if name != "edm_cifar10"]


def eps_of(network, name, dtype):
    """ε at the reference's images, noise levels and classes."""
    count = len(REFERENCE[f"{name}.eps"])
    sigma = torch.tensor(SIGMAS if count == 4 else SIGMAS[1:3], dtype=torch.float64)
    inner = noise(name, "x", count) * ((0.25 + sigma**2) / (1 + sigma**2)).sqrt().reshape(-1, 1, 1, 1)
    t = torch.from_numpy(network.schedule.time(-np.log(sigma.numpy())))
    with torch.inference_mode():
        return network(inner.to(dtype), t.to(dtype), classes(name, count))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_outputs_are_those_of_edms_code(name, dtype):
    eps, expected = eps_of(load_model(section(name), weights(name, dtype)), name, dtype), REFERENCE[f"{name}.eps"]
    assert np.abs(eps.numpy() - expected).max() < 1e-4 * expected.std()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_published_tensor_has_a_place(name):
    with torch.device("meta"):
        network = UNet(settings_of(section(name)))
    fit = closest(network, weights(name))
    assert (fit.family, fit.differences) == ("EDM", [])
    used = [tensor for source in fit.sources.values() for tensor in source.names]
    assert sorted(used) == sorted(weights(name))


@pytest.mark.slow
@pytest.mark.parametrize("name, limit", [("edm_ddpmpp", 1e-6), ("vp_ddpmpp", 1e-5)])
def test_heun_is_edms_sampler(name, limit):
    """From the same noise, by 35 calls in 18 steps: to `limit` of the images' deviation, in float64.

    The embedding of the time is float32 here, that of the reference is not; a VP network's times go up to 999.
    """
    network, expected = load_model(section(name), weights(name)), REFERENCE[f"{name}.images"]
    schedule = network.schedule
    start = noise(name, "noise", 2) * (1 - schedule.alpha_cumprod(999)) ** 0.5
    labelled = Conditional(network, classes(name, 2)) if classes(name, 2) is not None else network
    with torch.inference_mode():
        state = last(solve("Heun", labelled, start, schedule, 18, spacing="karras"))
    assert np.abs(state.x.numpy() - expected).max() < limit * expected.std()
    assert state.nfe == 35


def test_one_time_for_all_images_and_classes():
    network = load_model(section("edm_ddpmpp"), weights("edm_ddpmpp"))
    x, labels = noise("edm_ddpmpp", "x", 4), torch.tensor([0, 1, 2, 3])
    t = torch.tensor([500.5], dtype=torch.float64)
    with torch.inference_mode():
        together = network(x, t, labels)
        apart = torch.cat([network(x[i : i + 1], t, labels[i : i + 1]) for i in range(4)])
        same = network(x, t.expand(4), torch.tensor([2]))
        none = network(x, t, torch.full((4,), -1)) - network(x, t)
    assert (together - apart).abs().max() < 1e-12
    assert (same - network(x, t, torch.full((4,), 2))).abs().max() < 1e-12
    assert none.abs().max() < 1e-12
    assert (together - same).abs()[0].max() > 1e-3, "the classes make a difference"


def test_labels_are_for_networks_with_classes():
    network = UNet(settings_of(published_section("ddim_small")))
    with pytest.raises(ValueError, match="labels are given to a network without classes"):
        network(torch.zeros(1, 3, 16, 16), torch.tensor([5.0]), torch.tensor([0]))


@pytest.mark.parametrize("wrong", [-2, 4])
@pytest.mark.parametrize("engine", [False, True])
def test_labels_are_classes_of_the_network(wrong, engine):
    network = load_model(section("edm_ddpmpp"), weights("edm_ddpmpp"))
    network = Engine(network, torch.device("cpu")) if engine else network
    Conditional(network, torch.tensor([-1, 3]))
    with pytest.raises(ValueError, match="labels are from 0 to 3, or -1, for a network of 4 classes"):
        Conditional(network, torch.tensor([0, wrong]))


def test_guidance_counts_its_calls():
    network = load_model(section("edm_ddpmpp"), weights("edm_ddpmpp"))
    x, without = noise("edm_ddpmpp", "x", 2), Conditional(network, None)
    guided = Guided(Conditional(network, torch.tensor([1])), without, 1.5)
    assert guided.broadcasts_time
    with torch.inference_mode():
        state = last(solve("Heun", guided, x, network.schedule, 3, spacing="karras"))
        plain = last(solve("Heun", guided.conditional, x, network.schedule, 3, spacing="karras"))
        unit = Guided(guided.conditional, without, 1.0)
        same = last(solve("Heun", unit, x, network.schedule, 3, spacing="karras"))
    assert (state.nfe, plain.nfe) == (10, 5)
    assert (state.x - plain.x).abs().max() > 1e-3
    assert (same.x - plain.x).abs().max() < 1e-9


def test_the_levels_of_the_schedule_reach_the_network():
    """The same σ, told by another range, gives the same ε."""
    wide = SigmaSchedule(1e-3, 200, 500)
    networks = [load_model(section("edm_ncsnpp"), weights("edm_ncsnpp"), schedule=s) for s in (None, wide)]
    outputs = [eps_of(network, "edm_ncsnpp", torch.float64) for network in networks]
    assert networks[1].schedule is wide
    assert (outputs[0] - outputs[1]).abs().max() < 1e-4
    with pytest.raises(InputError, match="needs a SigmaSchedule"):
        load_model(section("edm_ncsnpp"), schedule=Schedule())


def test_bfloat16_inside_stays_close():
    network = load_model(section("edm_ncsnpp"), weights("edm_ncsnpp", torch.float32))
    exact = eps_of(network, "edm_ncsnpp", torch.float32)
    network.set_inner(torch.bfloat16)
    rounded = eps_of(network, "edm_ncsnpp", torch.float32)
    assert 0 < (rounded - exact).square().mean().sqrt() < 0.03 * exact.std()


@pytest.mark.parametrize(
    "values, said",
    [
        ({"architecture": "U-ViT"}, "Model.architecture is 'U-ViT'"),
        ({"model_channels": 30}, "Model.model_channels is 30; a multiple of 4 is needed"),
        ({"architecture": "ADM", "channel_mult": [2, 2]}, "that of ADM begins with 1"),
        ({"architecture": "ADM", "model_channels": 48}, "cannot be divided into heads of 64"),
        ({"image_size": 15}, "cannot be halved 1 times"),
        ({"preconditioning": "iDDPM"}, "Model.preconditioning"),
    ],
)
def test_wrong_settings_are_named(values, said):
    with pytest.raises(InputError, match=said):
        settings_of(section("edm_ddpmpp") | values)


@pytest.mark.parametrize("name", SMALL)
def test_a_pickle_of_edms_format_is_read(name, tmp_path, monkeypatch):
    install(monkeypatch)
    source = read(write(tmp_path / "network.pkl", snapshot(name)))
    assert source.weights == "EMA" and "CC BY-NC-SA 4.0" in source.format
    assert source.settings == settings_of(section(name))
    eps = eps_of(load_model(None, source), name, torch.float32)
    assert torch.equal(eps, eps_of(load_model(section(name), weights(name, torch.float32)), name, torch.float32))


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_every_protocol_of_binary_pickles_is_read(protocol, tmp_path, monkeypatch):
    install(monkeypatch)
    source = read(write(tmp_path / "network.pkl", snapshot("vp_ddpmpp"), protocol))
    assert source.settings == settings_of(section("vp_ddpmpp"))


def test_a_state_dict_of_edm_is_read(tmp_path):
    """As torch.save writes it: with the constant filters, and the embedding of augmentations."""
    extra = {"model.enc.8x8_down.conv0.resample_filter": torch.ones(1, 1, 2, 2) / 4}
    torch.save(published("edm_ddpmpp") | extra, tmp_path / "a.pt")
    network = load_model(section("edm_ddpmpp"), tmp_path / "a.pt")
    expected = eps_of(
        load_model(section("edm_ddpmpp"), weights("edm_ddpmpp", torch.float32)), "edm_ddpmpp", torch.float32
    )
    assert torch.equal(eps_of(network, "edm_ddpmpp", torch.float32), expected)


@pytest.mark.parametrize("file", ["edm_cifar10", "edm_cifar10_cond", "edm_ffhq", "edm_afhqv2", "edm_imagenet64"])
def test_published_experiments(file):
    """EDM's own numbers of parameters, in millions: its paper's table 7 has 56, 62 and 296."""
    experiment = load(f"{file}.yml")
    with torch.device("meta"):
        network = UNet(settings_of(experiment.Model))
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    assert math.isclose(millions, {"edm_ffhq": 62, "edm_afhqv2": 62, "edm_imagenet64": 296}.get(file, 56), abs_tol=0.6)


@pytest.mark.slow
def test_the_doctor_converts_a_pickle(tmp_path, monkeypatch, capsys):
    """One that fits no experiment is written with the settings that it says itself, and read again."""
    install(monkeypatch)
    file, target = write(tmp_path / "network.pkl", snapshot("edm_ncsnpp")), tmp_path / "network.safetensors"
    assert doctor.main([str(file), "--to", str(target)]) == 0
    said = capsys.readouterr().out
    assert "EDM under the names of EDM" in said and "CC BY-NC-SA 4.0" in said and "what the file itself says" in said
    assert "CC BY-NC-SA 4.0" in read(target).format  # the licence goes with the weights
    before, after = (eps_of(load_model(None, path), "edm_ncsnpp", torch.float32) for path in (file, target))
    assert torch.equal(before, after)
    assert read(target).weights == "EMA"

"""What needs an NVIDIA GPU: the same images and distances as a CPU's, batches begun ahead, TF32, compilation."""

import copy
import json
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pndm.config.load import load
from pndm.model import kernels, load_model
from pndm.model.engine import Engine
from pndm.runner import sample
from pndm.runner.measure.distance import frechet_distance

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def pixels(folder):
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("[0-9]*.png"))]).astype(int)


@pytest.mark.parametrize("more", [[], ["--method", "PF"], ["--method", "DDPM"], ["--method", "UniPC3-bh2"]])
def test_images_are_those_of_the_cpu(tiny, cli, tmp_path, more):
    for device in ("cpu", "cuda"):
        flags = tiny.flags(tmp_path / device, "--precision", "fp32", "--total_num", 30, *more, "--device", device)
        assert cli(*flags)[0] == 0
    assert np.abs(pixels(tmp_path / "cpu") - pixels(tmp_path / "cuda")).max() <= 1


def test_a_compiled_network_makes_the_same_images(tiny, cli, tmp_path):
    for name, more in (("eager", []), ("compiled", ["--compile"])):
        flags = tiny.flags(tmp_path / name, "--precision", "fp32", "--total_num", 30, *more, "--device", "cuda")
        assert cli(*flags)[0] == 0
    assert np.abs(pixels(tmp_path / "eager") - pixels(tmp_path / "compiled")).max() <= 1


def test_missing_images_come_back_with_the_same_bytes(tiny, cli, tmp_path):
    """Batches that were begun while others were written."""
    flags = tiny.flags(tmp_path, "--total_num", 30, "--device", "cuda")
    assert cli(*flags)[0] == 0
    before = {path: path.read_bytes() for path in tmp_path.glob("[0-9]*.png")}
    for path in sorted(before)[::3]:
        path.unlink()
    assert cli(*flags)[0] == 0
    assert {path: path.read_bytes() for path in tmp_path.glob("[0-9]*.png")} == before


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
def test_the_second_gpu(tiny, cli, tmp_path):
    for device in ("cuda:0", "cuda:1"):
        assert cli(*tiny.flags(tmp_path / device, "--device", device))[0] == 0
    assert (pixels(tmp_path / "cuda:0") == pixels(tmp_path / "cuda:1")).all()


def test_tf32_is_coarser(tiny):
    x, t = torch.randn(4, 1, 8, 8, device="cuda"), torch.full((4,), 500.0, device="cuda")
    full, rounded, half = (
        Engine(copy.deepcopy(tiny.network), torch.device("cuda"), p)(x, t) for p in ("fp32", "tf32", "bf16")
    )
    apart, further = ((eps - full).abs().mean().item() for eps in (rounded, half))
    assert 0 < apart < further


@pytest.mark.parametrize("shape", [(2, 128, 32, 32), (1, 384, 16, 16), (1, 64, 256, 256)])
def test_group_norm_in_triton(shape):
    ours = kernels.fused(torch.device("cuda"))
    assert ours, "Triton does not work here"
    x, weight, bias = 30 + torch.randn(shape, device="cuda"), *torch.randn(2, shape[1], device="cuda")
    wanted = F.silu(F.group_norm(x.double(), 32, weight.double(), bias.double(), 1e-6))
    found = ours(x.contiguous(memory_format=torch.channels_last), weight, bias, 32, 1e-6, True)
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_a_graph_says_what_the_network_says(tiny):
    run, eager = (Engine(copy.deepcopy(tiny.network), torch.device("cuda")) for _ in range(2))
    eager.network = eager.plain
    with torch.inference_mode():
        for t in (500.0, 3.0, 500.0):
            x, t = torch.randn(4, 1, 8, 8, device="cuda"), torch.tensor([t], device="cuda")
            assert torch.equal(run(x, t), eager(x, t))
    assert len(run.network.held) == 1


def test_a_graph_outlives_a_compilation(tiny):
    """Inductor's own graphs share the libraries' workspaces."""
    x, t = torch.randn(4, 1, 8, 8, device="cuda"), torch.tensor([500.0], device="cuda")
    graph, compiled = (Engine(copy.deepcopy(tiny.network), torch.device("cuda"), compile=c) for c in (False, True))
    with torch.inference_mode():
        before = graph(x, t)
        compiled.prepare(tuple(x.shape), torch.device("cuda"))
        for _ in range(3):
            assert torch.allclose(compiled(x, t), before, atol=1e-4)
            assert torch.equal(graph(x, t), before)


@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-4), ("tf32", 1e-2), ("bf16", 3e-2)])
@pytest.mark.parametrize("n", [16, 256])
def test_a_network_of_full_size_is_that_of_pytorchs_own_kernels(precision, most, n):
    """With a CUDA graph (16 images) and without (256), with Triton's group norm."""
    torch.manual_seed(0)
    network = load_model(load("ddim_cifar10.yml").Model)
    x, t = torch.randn(n, 3, 32, 32, device="cuda"), torch.tensor([300.0], device="cuda")
    plain, run = (
        Engine(copy.deepcopy(network), torch.device("cuda"), "fp32"),
        Engine(network, torch.device("cuda"), precision),
    )
    plain.network = plain.plain
    with torch.inference_mode():
        with mock.patch.object(kernels, "fused", lambda device: None):
            wanted = plain(x, t)
        assert (run(x, t) - wanted).square().mean().sqrt() < most * wanted.square().mean().sqrt()


def test_a_killed_run_goes_on_by_its_features(tiny, cli, tmp_path, monkeypatch):
    flags = [*tiny.flags(tmp_path / "run", "--total_num", 30, "--device", "cuda"), "--keep", "0"]
    make = sample.Sampler.make

    def stop(self, wanted, size, progress=None):
        if wanted.start >= 20:
            raise KeyboardInterrupt
        return make(self, wanted, size, progress)

    with monkeypatch.context() as patched:
        patched.setattr(sample.Sampler, "make", stop)
        assert cli(*flags)[0] == 130
    assert cli(*flags)[0] == 0
    assert cli(*tiny.flags(tmp_path / "whole", "--total_num", 30, "--device", "cuda"))[0] == 0
    cards = [json.loads((tmp_path / name / "result.json").read_text())["frechet"] for name in ("run", "whole")]
    assert cards[0] == cards[1]


def test_distances_are_computed_there():
    torch.zeros(1, device="cuda")
    variances = torch.rand(2, 300, dtype=torch.float64) + 0.1
    means = torch.randn(2, 300, dtype=torch.float64)
    expected = ((means[0] - means[1]) ** 2).sum() + ((variances[0].sqrt() - variances[1].sqrt()) ** 2).sum()
    found = frechet_distance(means[0], variances[0].diag(), means[1], variances[1].diag(), "cuda")
    assert found == pytest.approx(expected.item(), rel=1e-9)

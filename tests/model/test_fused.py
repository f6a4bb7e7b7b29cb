"""Group norm and SiLU in one: run by Triton's interpreter on the CPU, and compiled, without a GPU, for one."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers import evaluate, network_input, published_section, published_weights

from pndm.model import kernels, load_model
from pndm.model.engine import Engine

triton = pytest.importorskip("triton")
from pndm.model import fused  # noqa: E402, it needs Triton

POINTERS = {"x", "y", "weight", "bias"}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # it counts when Triton is imported: hence a process of its own
interpreted = pytest.mark.skipif(not INTERPRETED, reason="run by test_by_the_interpreter")


@pytest.mark.skipif(INTERPRETED, reason="this is its process")
def test_by_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


def last(x):
    return x.contiguous(memory_format=torch.channels_last)


@interpreted
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((2, 128, 8, 8), 32), ((1, 384, 4, 4), 32), ((2, 32, 5, 7), 8), ((1, 64, 40, 40), 32), ((3, 12, 33, 31), 3)],
)
def test_it_is_group_norm(shape, groups, silu):
    """Groups of 4, 12 and 30 channels; images of one part and of two."""
    torch.manual_seed(0)
    x, weight, bias = last(30 + torch.randn(shape)), *torch.randn(2, shape[1])
    wanted = F.group_norm(x.double(), groups, weight.double(), bias.double(), 1e-6)
    wanted = F.silu(wanted) if silu else wanted
    ours = fused.group_norm
    found = ours(x, weight, bias, groups, 1e-6, silu)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found - wanted).abs().max() < 1e-5 * (1 + wanted.abs().max())
    alone = ours(last(x[:1]), weight, bias, groups, 1e-6, silu)
    assert torch.equal(alone, found[:1]), "an image does not depend on those beside it"
    half = ours(x.bfloat16(), weight.bfloat16(), bias.bfloat16(), groups, 1e-6, silu)
    exact = F.group_norm(x.bfloat16().double(), groups, weight.bfloat16().double(), bias.bfloat16().double(), 1e-6)
    exact = F.silu(exact) if silu else exact
    assert half.dtype == torch.bfloat16
    assert ((half - exact).abs() <= 2**-7 * exact.abs() + 1e-4).all(), (
        "the interpreter cuts digits off where a GPU rounds"
    )


@interpreted
@pytest.mark.parametrize("name", ["ddim_small", "iddpm_small"])
def test_a_network_says_the_same_with_it(monkeypatch, name):
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return fused.group_norm(*arguments)

    network = load_model(published_section(name), published_weights(name))
    reference = evaluate(network)
    monkeypatch.setattr(kernels, "fused", lambda device: counted)
    eps = evaluate(Engine(network, torch.device("cpu")))
    assert (eps - reference).abs().max() < 1e-4 * reference.std()
    norms = sum(isinstance(module, torch.nn.GroupNorm) for module in network.modules())
    assert len(calls) == norms, "every group norm is one of these"
    assert 0 < sum(activate for *_, activate in calls) < norms
    network(network_input(1, 16), torch.zeros(1))
    assert len(calls) == norms, "with gradients, PyTorch's own is used"


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="there is nothing to compile")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("size", "lanes"), [(4, 4), (12, 16), (32, 32)])
def test_it_compiles_for_a_gpu(monkeypatch, tmp_path, capability, size, lanes):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for kernel, more in ((fused.moments, {}), (fused.normalize, {"SILU": True})):
        fixed = {"C": size, "CP": lanes, "G": 64 // lanes, "ROWS": 32, "PIXELS": 1024, **more}
        kinds = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(POINTERS & set(kernel.arg_names), "*bf16")
        kinds |= {"means": "*fp32", "squares": "*fp32"} | ({"eps": "fp32"} if more else {})
        source = ASTSource(kernel, kinds | dict.fromkeys(fixed, "constexpr"), fixed)
        built = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        assert built.asm["cubin"] and built.metadata.shared < 48 * 1024


@interpreted
@pytest.mark.parametrize("fault", ["no compiler", "wrong"])
def test_where_it_fails_pytorch_is_used(monkeypatch, fault):
    """What a GPU would be asked: here every tensor of the trial is put on the CPU."""

    def broken(x, *_):
        if fault == "no compiler":
            raise RuntimeError("Failed to find C compiler")
        return 0 * x

    assert kernels.fused(torch.device("cpu")) is None
    linspace, ones = torch.linspace, torch.ones
    monkeypatch.setattr(torch, "linspace", lambda *a, device: linspace(*a))
    monkeypatch.setattr(torch, "ones", lambda *a, device: ones(*a))
    assert kernels.fused.__wrapped__(torch.device("cuda")) is fused.group_norm
    monkeypatch.setattr(fused, "group_norm", broken)
    assert kernels.fused.__wrapped__(torch.device("cuda")) is None

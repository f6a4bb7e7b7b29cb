"""The engine changes how fast a network is, not what it says."""

import copy
import functools
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers import MANIFEST, evaluate, network_input, published_section, published_weights
from hypothesis import given, settings
from hypothesis import strategies as st

from pndm.config.errors import InputError
from pndm.model import backend, engine, kernels, load_model
from pndm.model.backend import Graphs
from pndm.model.blocks import GroupNorm
from pndm.model.engine import Engine, largest_batch, resolve
from pndm.model.settings import Settings
from pndm.runner.solver.schedule import Schedule
from pndm.runner.solver.solve import solve
from pndm.tools import studies

CPU = torch.device("cpu")
SMALL = [name for name in MANIFEST if "small" in name]


def network(name="ddim_small"):
    return load_model(published_section(name), published_weights(name))


def difference(eps, reference):
    """Root-mean-square difference, as a share of the reference's deviation."""
    return ((eps - reference).square().mean().sqrt() / reference.std()).item()


@pytest.mark.parametrize("name", SMALL)
def test_float32_is_the_same(name):
    reference = evaluate(network(name))
    assert difference(evaluate(Engine(network(name), CPU)), reference) < 1e-5


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_differs_by_its_rounding(name):
    reference = evaluate(network(name))
    eps = evaluate(Engine(network(name), CPU, "bf16"))
    assert eps.dtype == torch.float32 and eps.is_contiguous()
    assert 1e-5 < difference(eps, reference) < 0.03


def test_the_ends_of_the_network_keep_float32():
    """x is not rounded: two inputs that bfloat16 cannot tell apart are told apart."""
    run = Engine(network(), CPU, "bf16")
    x = network_input(1, 16)
    with torch.inference_mode():
        one, other = (run(v, torch.tensor([0.0])) for v in (x, (x.bfloat16().float())))
    assert not torch.equal(one, other)
    assert len(one.unique()) > len(one.bfloat16().unique())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_time_for_all_images_is_embedded_once(precision):
    run = Engine(network(), CPU, precision)
    x = network_input(3, 16)
    with torch.inference_mode():
        once, each = run(x, torch.tensor([640.5])), run(x, torch.full((3,), 640.5))
    assert difference(once, each) < {"fp32": 1e-5, "bf16": 0.01}[precision]


def test_the_state_stays_float32():
    run = Engine(network(), CPU, "bf16")
    with torch.inference_mode():
        states = list(solve("F-PNDM", run, network_input(2, 16), Schedule(), 4))
    assert {state.x.dtype for state in states} == {torch.float32}


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 3),
    st.sampled_from([32, 64, 96]),
    st.integers(2, 9),
    st.integers(2, 9),
    st.floats(-3, 3, allow_subnormal=False),
)
def test_group_norm_does_not_depend_on_the_layout(n, channels, height, width, mean):
    norm = GroupNorm(channels, Settings())
    torch.manual_seed(channels)
    torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    x = mean + torch.randn(n, channels, height, width)
    with torch.inference_mode():
        found = norm(x.contiguous(memory_format=torch.channels_last))
        wanted = F.group_norm(x.double(), 32, norm.weight.double(), norm.bias.double(), 1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found - wanted).abs().max() < 2e-5 * (1 + wanted.abs().max())


@pytest.mark.parametrize("value", [0.5, 7.3, 58.0])
def test_group_norm_of_a_constant_is_nothing(value):
    """All that is left are rounding errors, which the root of 1 / eps = 1000 enlarges."""
    x = torch.full((2, 64, 8, 8), value).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert GroupNorm(64, Settings())(x).abs().max() < 1e-3 * value


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_tf32_is_for_those_that_round_more_and_while_they_run(precision):
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before, seen = [backend.allow_tf32 for backend in backends], []
    inner = network()
    inner.register_forward_hook(lambda *_: seen.append([backend.allow_tf32 for backend in backends]))
    Engine(inner, CPU, precision)(torch.zeros(1, 3, 16, 16), torch.zeros(1))
    assert seen == [[precision != "fp32"] * 2]
    assert [backend.allow_tf32 for backend in backends] == before


@pytest.mark.slow
def test_tf32_at_the_ends_adds_little_to_the_error_of_bf16():
    """The first and the last convolution and the time's embedding, as a GPU computes them."""
    for bf16, with_tf32_ends, with_bf16_ends in studies.ends(SimpleNamespace(images=64)).values():
        assert with_tf32_ends != bf16
        assert with_tf32_ends < 1.2 * bf16 < with_bf16_ends


class Replayed:
    """A CUDA graph's stand-in on a CPU: its inputs and its result stay where they were captured."""

    def __init__(self, function, *inputs):
        self.function, self.inputs = function, [value.clone() for value in inputs]
        self.result = function(*self.inputs)

    def __call__(self, *values):
        for place, value in zip(self.inputs, values, strict=True):
            place.copy_(value)
        return self.result.copy_(self.function(*self.inputs))


@pytest.mark.slow
def test_a_graph_is_captured_once_a_shape_and_its_result_is_kept():
    """F-PNDM combines four ε's: were they overwritten, the images would be others."""
    captured = []

    def capture(function, *inputs):
        captured.append(inputs[0].shape[0])
        return Replayed(function, *inputs)

    eager, graphs = Engine(network(), CPU), Engine(network(), CPU)
    graphs.network = Graphs(graphs.plain, capture, largest=3 * 16**2, most=2)
    with torch.inference_mode():
        for n in (2, 4, 3, 1, 2):  # 4 images have too many pixels, and 1 comes when two shapes are held
            wanted, found = (list(solve("F-PNDM", run, network_input(n, 16), Schedule(), 5)) for run in (eager, graphs))
            assert all(torch.equal(a.x, b.x) for a, b in zip(wanted, found, strict=True))
    assert captured == [2, 3]
    x = network_input(2, 16).requires_grad_()
    for run in (eager, graphs):
        run(x, torch.zeros(1)).sum().backward()
    assert x.grad.abs().sum() > 0 and not graphs(network_input(2, 16), torch.zeros(1)).is_inference()


def test_one_thread_calls_the_networks_at_a_time():
    """A graph has one place for x, and TF32 is a setting of the process: the demo draws in several threads."""
    inside, most = [], []

    class Slow(torch.nn.Module):
        def set_inner(self, dtype):
            pass

        def forward(self, x, t):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()
            return x

    engines = [Engine(Slow(), CPU), Engine(Slow(), CPU)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: engines[i % 2](torch.ones(1), torch.ones(1)), range(8)))
    assert max(most) == 1


def test_on_a_cpu_no_graph_is_left():
    moved = Engine(network(), CPU)
    moved.network = Graphs(moved.plain)
    moved.to("cpu")
    assert moved.network is moved.plain


def test_what_cannot_be_captured_is_called(recwarn):
    calls = []

    def capture(function, *inputs):
        calls.append(inputs)
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    graphs = Graphs(torch.add, capture)
    assert [graphs(torch.ones(1, 1), torch.ones(1)).item() for _ in range(2)] == [2, 2] and len(calls) == 1
    assert [str(w.message) for w in recwarn if "CUDA graph" in str(w.message)] == [
        "no CUDA graph of the network: operation not permitted when stream is capturing"
    ]


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.slow
def test_compiled(tiny):
    from torch._dynamo.utils import counters

    x, t = torch.randn(4, 1, 8, 8), torch.tensor([500.0])
    run = Engine(copy.deepcopy(tiny.network), CPU, compile=True)
    with torch.inference_mode():
        x, t = x.clone(), t.clone()  # as a run makes them: compiled code depends on the mode they were made in
        run.prepare(x.shape, CPU)
        frames = counters["frames"]["ok"]
        first = run(x, t)
        assert counters["frames"]["ok"] == frames, "it was compiled for this shape before"
        assert torch.allclose(first, tiny.network(x, t), atol=1e-5)
        kept = first.clone()
        run(-x, t)
    assert torch.equal(first, kept), "a result is not overwritten by the next call"
    laid_out = counters["inductor"]["mkldnn_conv_weight_pack_matcher_count"] > 0
    assert laid_out == (torch.__version__ >= "2.15")


def test_no_compiler(monkeypatch, tiny, cli, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    status, _, err = cli(*tiny.flags(tmp_path / "run", "--compile"))
    assert status == 2 and err.startswith("main.py: ") and err.count("\n") == 1
    assert err.endswith("compile needs a C++ compiler, and there is no no-such-compiler\n")
    assert not (tmp_path / "run").exists()
    status, _, err = cli("--runner", "train", "--train_path", tmp_path / "run", "--set", "Train.compile=true")
    assert status == 2 and err.endswith("compile needs a C++ compiler, and there is no no-such-compiler\n")
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(InputError, match=r"^compile needs a C compiler, and there is no no-such-compiler$"):
        backend.compiled(tiny.network, torch.device("cuda"), "Sample.compile")
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"^compile needs a C compiler, and there is no gcc or clang$"):
        backend.compiled(tiny.network, torch.device("cuda"), "Sample.compile")


def test_which_precision_auto_is(monkeypatch):
    for able, wanted in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(engine, "has_bfloat16", lambda device, able=able: able)
        assert resolve("auto", CPU) == wanted
        assert resolve("auto", CPU, smooth=False) == "fp32"
        assert resolve("bf16", CPU, smooth=False) == "bf16"
    said = r"^precision tf32 needs an NVIDIA GPU since Ampere \(2020\); cpu can do fp32 and bf16$"
    with pytest.raises(InputError, match=said) as caught:
        resolve("tf32", CPU)
    assert caught.value.keys == ("Sample.precision", "device")
    with pytest.raises(InputError, match="tf32") as caught:
        resolve("tf32", CPU, key="Train.precision")
    assert caught.value.keys[0] == "Train.precision"
    with pytest.raises(InputError, match=r"^precision 'x' is not one of auto, fp32, tf32, bf16$") as caught:
        resolve("x", CPU)
    assert caught.value.keys == ("Sample.precision",)


@pytest.mark.parametrize("faster", [True, False])
def test_an_unknown_processor_is_timed(monkeypatch, faster):
    monkeypatch.setattr(engine, "has_bfloat16", lambda device: None)
    monkeypatch.setattr(engine, "faster_by_timing", lambda: faster)
    monkeypatch.setattr(engine, "faster_for_all", functools.cache(engine.faster_for_all.__wrapped__))
    assert resolve("auto", CPU) == ("bf16" if faster else "fp32")


def test_timing_is_short_and_leaves_the_threads_alone():
    threads, start = torch.get_num_threads(), time.process_time()
    assert engine.faster_by_timing.__wrapped__() in (True, False)
    assert time.process_time() - start < 1 and torch.get_num_threads() == threads


def test_adaptive_methods_are_not_given_bfloat16(tiny, cli, tmp_path):
    flags = ["--method", "PF", "--rtol", "0.1", "--atol", "0.1", "--features", "none", "--total_num", 1]
    assert cli(*tiny.flags(tmp_path / "run", *flags))[0] == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["precision"] == "fp32"


@pytest.mark.parametrize(("free", "wanted"), [(100, 4), (1, 1), (10**9, 64)])
def test_batches_that_fit(monkeypatch, free, wanted):
    """Each image takes 10 of `free` units, of which half may be used."""
    peak = [1000]

    def call(x, t):
        peak.append(max(*peak, 1000 + 10 * len(x)))

    monkeypatch.setattr(engine, "free_memory", lambda device: free)
    monkeypatch.setattr(engine, "peak", lambda device: peak[-1])
    size = largest_batch(call, (1, 8, 8), CPU)
    assert size == wanted or 10 * size <= free / 2 < 20 * size


@pytest.mark.slow
def test_memory_is_measured():
    assert 2**20 < engine.free_memory(CPU) < 2**50
    before = engine.peak(CPU)
    torch.ones(before // 4 + 2**26).sum()
    assert engine.peak(CPU) >= before + 2**26


def test_the_first_process_decides_for_all_what_timing_says(monkeypatch):
    monkeypatch.setattr(engine, "has_bfloat16", lambda device: None)
    monkeypatch.setattr(engine, "faster_by_timing", lambda: True)
    monkeypatch.setattr(engine, "faster_for_all", functools.cache(engine.faster_for_all.__wrapped__))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    asked = []

    def broadcast(values):
        asked.append(values[0])
        values[0] = False

    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    for _ in range(2):
        assert engine.resolve("auto", torch.device("cpu")) == "fp32"
    assert asked == [True], "later calls need no other process"


@torch.inference_mode()
def test_group_norm_of_float64_is_summed_in_float64():
    """Of few channels a group, for which there is a way of its own on a CPU, in bfloat16."""
    x = torch.randn(2, 32, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 3
    weight, bias = torch.linspace(0.5, 2, 32, dtype=torch.float64), torch.linspace(-1, 1, 32, dtype=torch.float64)
    found = kernels.group_norm(x.to(memory_format=torch.channels_last), weight, bias, 32, 1e-6)
    torch.testing.assert_close(found, F.group_norm(x, 32, weight, bias, 1e-6), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("groups", [8, 4, 2])
@torch.inference_mode()
def test_group_norm_of_bfloat16_rounds_pixel_by_pixel(groups):
    """So that rounding does not shift whole channels: an error in the mean of ε is enlarged by 1/√ᾱ at large t."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(4, 32, 28, 28, generator=generator) + 1).bfloat16().to(memory_format=torch.channels_last)
    weight, bias = (torch.randn(32, generator=generator).bfloat16() for _ in range(2))
    found = kernels.group_norm(x, weight, bias, groups, 1e-6)
    error = found.double() - F.group_norm(x.double(), groups, weight.double(), bias.double(), 1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last) and found.dtype == torch.bfloat16
    assert error.mean((2, 3)).square().mean().sqrt() < 0.15 * error.square().mean().sqrt()


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype, rtol, atol", [(torch.bfloat16, 2**-8, 1e-5), (torch.float32, 1e-5, 1e-5), (torch.float64, 1e-12, 1e-12)]
)
@torch.inference_mode()
def test_compiled_group_norm_rounds_once(dtype, rtol, atol):
    """Also where the mean is large beside the deviation."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(3, 32, 14, 14, generator=generator) + 4).to(dtype, memory_format=torch.channels_last)
    norm = GroupNorm(32, Settings(norm_groups=8)).requires_grad_(False)
    for value in norm.parameters():
        value.copy_(torch.randn(32, generator=generator).to(dtype))
    found = backend.frozen(norm.to(dtype), CPU, "Sample.compile")(x, activate=True)
    expected = F.silu(F.group_norm(x.double(), 8, norm.weight.double(), norm.bias.double(), norm.eps))
    assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=atol)

"""What the machine is, and how the process is set up for it."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT

from pndm import early
from pndm.model import backend, machine

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def processor(monkeypatch):
    """processor(*features): pretend to have a processor with these instruction sets, on which nothing is capped."""
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)

    def pretend(*features, architecture="x86_64", library=True):
        monkeypatch.setattr(machine, "cpu_features", lambda: set(features))
        monkeypatch.setattr(machine.platform, "machine", lambda: architecture)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: library)

    return pretend


class TestBfloat16:
    @pytest.mark.parametrize(
        ("features", "architecture", "fast"),
        [
            ({"avx2", "avx512_f"}, "x86_64", False),
            ({"avx2", "avx512_bf16"}, "AMD64", True),
            ({"avx2", "amx_bf16"}, "x86_64", True),
            ({"neon", "sve"}, "aarch64", False),
            ({"neon", "sve_bf16"}, "aarch64", True),
            ({"asimd", "svebf16"}, "aarch64", True),
            ({"asimd", "bf16"}, "aarch64", True),
            (set(), "x86_64", None),
            ({"rv64gc"}, "riscv64", None),
        ],
    )
    def test_by_the_instructions_of_the_processor(self, processor, features, architecture, fast):
        processor(*features, architecture=architecture)
        assert machine.has_bfloat16(CPU) is fast

    def test_without_onednn_only_timing_tells(self, processor):
        processor("bf16", architecture="arm64", library=False)
        assert machine.has_bfloat16(CPU) is None

    @pytest.mark.parametrize(
        ("cap", "fast"),
        [("AVX2", False), ("avx512_core", False), ("AVX512_CORE_BF16", True), ("DEFAULT", True), ("", True)],
    )
    def test_onednn_that_is_kept_from_it_emulates_it(self, processor, monkeypatch, cap, fast):
        processor("avx512_bf16")
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
        assert machine.has_bfloat16(CPU) is fast

    @pytest.mark.parametrize("known", [True, False], ids=["by PyTorch", "by Linux"])
    def test_this_processor_is_read(self, monkeypatch, known):
        if not known:
            monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
        assert not sys.platform.startswith("linux") or machine.cpu_features()

    @pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
    def test_nvidia(self, monkeypatch, capability, fast):
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        assert machine.has_bfloat16(GPU) is fast

    @pytest.mark.parametrize(
        ("name", "fast"), [("gfx90a:sramecc+:xnack-", True), ("gfx942", True), ("gfx950", True), ("gfx906", False)]
    )
    def test_rocm_goes_by_the_architecture(self, monkeypatch, name, fast):
        monkeypatch.setattr(torch.version, "hip", "6.4")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(gcnArchName=name))
        assert machine.has_bfloat16(GPU) is fast

    @pytest.mark.parametrize("kind", ["mps", "xpu"])
    def test_what_was_not_measured_is_float32(self, kind):
        assert machine.has_bfloat16(torch.device(kind)) is False


@pytest.fixture
def linux(tmp_path, monkeypatch):
    """linux(cpus, files): the folder of a made-up /proc and /sys, on a machine where `cpus` are free."""

    def make(cpus, files):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(cpus), raising=False)
        monkeypatch.setattr(os, "process_cpu_count", lambda: len(cpus), raising=False)
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return make


def siblings(pairs):
    return {
        f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": f"{pair[0]},{pair[1]}\n"
        for pair in pairs
        for cpu in pair
    }


class TestPhysicalCores:
    def test_affinity(self, linux):
        assert machine.physical_cores(linux({0, 5, 7}, {})) == 3

    def test_two_threads_of_a_core_are_one(self, linux):
        root = linux({0, 1, 4}, siblings([(0, 4), (1, 5)]))
        assert machine.physical_cores(root) == 2

    @pytest.mark.parametrize(("quota", "cores"), [("max", 8), ("350000", 3), ("20000", 1), ("9999999", 8)])
    def test_quota_of_version_2(self, linux, quota, cores):
        files = {"proc/self/cgroup": "0::/pod/task\n", "sys/fs/cgroup/pod/cpu.max": f"{quota} 100000\n"}
        assert (
            machine.physical_cores(linux(range(8), files | {"sys/fs/cgroup/pod/task/cpu.max": "max 100000"})) == cores
        )

    @pytest.mark.parametrize(("quota", "cores"), [("-1", 8), ("400000", 4)])
    @pytest.mark.parametrize("place", ["docker/1/", ""], ids=["its own", "seen from inside"])
    def test_quota_of_version_1(self, linux, quota, cores, place):
        folder = f"sys/fs/cgroup/cpu/{place}"
        files = {"proc/self/cgroup": "3:cpuset:/\n2:cpuacct,cpu:/docker/1\n"}
        files |= {f"{folder}cpu.cfs_quota_us": f"{quota}\n", f"{folder}cpu.cfs_period_us": "100000\n"}
        assert machine.physical_cores(linux(range(8), files)) == cores

    def test_here(self):
        assert 1 <= machine.physical_cores() <= os.cpu_count()


class TestThreads:
    @pytest.fixture(autouse=True)
    def cores(self, monkeypatch):
        monkeypatch.setattr(backend, "physical_cores", lambda: 8)
        for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
            monkeypatch.delenv(name, raising=False)

    def test_all_cores(self):
        assert backend.threads() == 8

    @pytest.mark.parametrize(("processes", "threads"), [("1", 8), ("3", 2), ("16", 1), ("x", 8)])
    def test_processes_share_them(self, monkeypatch, processes, threads):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert backend.threads() == threads

    @pytest.mark.parametrize(("wanted", "threads"), [("3", 3), ("5,2", 5), ("", 8), ("0", 8), ("many", 8)])
    def test_the_environment_wins(self, monkeypatch, wanted, threads):
        monkeypatch.setenv("OMP_NUM_THREADS", wanted)
        assert backend.threads() == threads

    @pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="reads /proc")
    @pytest.mark.parametrize(("given", "threads"), [({}, 2), ({"OMP_NUM_THREADS": "3"}, 3)])
    def test_what_torchrun_set_is_no_wish(self, given, threads):
        """torchrun sets OMP_NUM_THREADS to 1 where nobody did, for the processes that it starts."""
        worker = "from pndm.model import backend; backend.physical_cores = lambda: 4; print(backend.threads())"
        launcher = (
            "import os, subprocess, sys; os.environ.setdefault('OMP_NUM_THREADS', '1');"
            "os.environ |= {'TORCHELASTIC_RUN_ID': '0', 'LOCAL_WORLD_SIZE': '2'};"
            f"subprocess.run([sys.executable, '-c', {worker!r}], check=True)"
        )
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | given
        command = [sys.executable, "-c", launcher]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout == f"{threads}\n"


def test_start_sets_the_threads(monkeypatch):
    before = torch.get_num_threads()
    try:
        monkeypatch.setattr(backend, "threads", lambda: 2)
        backend.start()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_waiting_threads_sleep_unless_the_user_says_otherwise(monkeypatch, name):
    for other in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(other, raising=False)
    early.prepare()
    assert os.environ.pop("OMP_WAIT_POLICY") == "PASSIVE"
    monkeypatch.setenv(name, "7")
    early.prepare()
    assert os.environ.get("OMP_WAIT_POLICY") == ("7" if name == "OMP_WAIT_POLICY" else None)


def test_the_command_line_prepares_before_pytorch_is_imported():
    code = "import sys, pndm.cli, pndm.early; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    "flags",
    [
        "--method DDIN",
        "--runner train --set Train.stepz=3",
        "--config nowhere.yml",
        "--runner reproduce --table nowhere",
    ],
)
def test_wrong_input_is_told_before_pytorch_is_imported(flags):
    code = "import sys; from pndm.cli import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    command = [sys.executable, "-c", code, *flags.split()]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "2 False\n"


def test_attention_works_with_pytorch_held_to_older_instructions():
    """On a processor with AMX, PyTorch's fused kernel raises in bfloat16."""
    code = (
        "import torch; from pndm.model.kernels import attention;"
        "q = torch.linspace(-3, 3, 2 * 64 * 64).sin().view(2, 1, 64, 64);"
        "wanted = torch.softmax(q @ q.mT / 8, 3) @ q;"
        "print((attention(*3 * [q.bfloat16()]) - wanted).abs().max().item() < 0.02)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "ONEDNN_MAX_CPU_ISA"}
    environment["ATEN_CPU_CAPABILITY"] = "avx2"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"


@pytest.mark.parametrize(
    "setting",
    [
        "pass",
        "torch.set_float32_matmul_precision('medium')",
        "backends.cuda.matmul.allow_tf32 = True",
        "backends.fp32_precision = 'tf32'",
        "backends.cuda.matmul.fp32_precision = 'tf32'",
        "backends.cudnn.fp32_precision = 'ieee'",
    ],
)
def test_tf32_takes_a_program_as_it_is_and_leaves_it_so(setting):
    """PyTorch refuses to read its old settings where the new ones were set otherwise."""
    if "fp32_precision" in setting and not hasattr(torch.backends.cudnn, "conv"):
        pytest.skip("a setting of newer versions")
    code = f"""
import torch
from torch import backends
from pndm.model.backend import tf32

def settings():
    places = [getattr(backends.cudnn, name, backends.cudnn) for name in ("conv", "rnn")] + [backends.cuda.matmul]
    for place in [*places, backends.cudnn]:
        for name in ("fp32_precision", "allow_tf32"):
            try:
                yield getattr(place, name, None)
            except RuntimeError:
                yield "refused"

{setting}
before = list(settings())
for allowed in (True, False):
    with tf32(allowed):
        assert backends.cuda.matmul.allow_tf32 == backends.cudnn.allow_tf32 == allowed
        if hasattr(backends.cudnn, "conv"):
            assert backends.cudnn.conv.fp32_precision == ("tf32" if allowed else "ieee")
assert all(b in (a, "refused") for a, b in zip(settings(), before, strict=True))
if "backends.fp32" in {setting!r}:
    backends.fp32_precision = "ieee"
    assert backends.cudnn.conv.fp32_precision == backends.cuda.matmul.fp32_precision == "ieee", "it is pinned"
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")

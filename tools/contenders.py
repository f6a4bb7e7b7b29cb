"""The benchmark `network`: three contenders on the same weights, each in a process of its own (tools/benchmark.py)."""

import operator
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import median
from unittest import mock

import torch
from torch.autograd import DeviceType
from torch.utils.flop_counter import FlopCounterMode

from pndm.config.load import load
from pndm.model import backend, load_model
from pndm.model.engine import Engine, peak, resolve
from pndm.model.settings import settings_of
from pndm.model.unet import UNet
from pndm.places import device
from pndm.runner.solver.schedule import Schedule
from pndm.runner.solver.solve import solve
from pndm.runner.solver.transfer import phi

CALLS = 59  # of F-PNDM in 50 steps
CONTENDERS = ("here", "plain", "diffusers")
KINDS = ("bfloat16", "float32")  # of matrix products: which is faster depends on the processor


def network(args):
    """This project, a plain float32 loop of the same network, and diffusers' PNDM pipeline loop, on the same weights.

    The weights are random. The plain loop stands for the released code: float32, channels first, a time for every
    image, every intermediate image moved to the CPU. Each is alone in a process of its own; each round runs all three
    one after the other, and a product of two square matrices in bfloat16 and in float32; FLOP/s are a share of the
    faster one's rate.
    """
    where = device("auto")
    args.steps = args.steps or (50 if where.type == "cuda" else 4)
    args.side = args.side or (8192 if where.type == "cuda" else 4096)
    flops = flops_of(args.config) * args.batch
    workers = {name: ProcessPoolExecutor(1, get_context("spawn"), start, (name, args, where)) for name in CONTENDERS}
    eps = {name: worker.submit(predict).result() for name, worker in workers.items()}
    rounds = []
    for _ in range(args.repeat):
        found = {}
        for name, worker in workers.items():
            seconds, inside = worker.submit(run).result()
            found[name] = {"calls_per_second": len(inside) / seconds, "outside": 1 - sum(inside) / seconds}
        for kind in KINDS:
            found[f"product_{kind}"] = product_rate(getattr(torch, kind), args.side, where)
        rounds.append(found)
    products = [median(r[f"product_{kind}"] for r in rounds) for kind in KINDS]
    print(
        f"{args.config}, batch {args.batch}, {flops / args.batch / 1e9:.3g} GFLOP an image and call; matrix product: "
        f"{products[0]:.3g} FLOP/s in bfloat16, {products[1]:.3g} in float32"
    )
    print(f"{'':16}  calls/s  images/s   TFLOP/s  of best   ratio  outside  memory MiB  rms to plain")
    table = {}
    for name in CONTENDERS:
        calls = median(r[name]["calls_per_second"] for r in rounds)
        row = table[name] = {
            "calls_per_second": calls,
            "images_per_second": calls * args.batch / CALLS,
            "flops": calls * flops,
            "share_of_product": median(r[name]["calls_per_second"] * flops / fastest(r) for r in rounds),
            "ratio": median(r[name]["calls_per_second"] / r["plain"]["calls_per_second"] for r in rounds),
            "outside": median(r[name]["outside"] for r in rounds),
            "peak_bytes": workers[name].submit(peak, where).result(),
            "rms_to_plain": float((eps[name] - eps["plain"]).square().mean().sqrt() / eps["plain"].std()),
        }
        print(
            f"{name:16}{calls:9.3f}{row['images_per_second']:10.4f}{row['flops'] / 1e12:10.3f}"
            f"{100 * row['share_of_product']:8.0f}%{row['ratio']:8.2f}{100 * row['outside']:8.2f}%"
            f"{row['peak_bytes'] / 2**20:12,.0f}{row['rms_to_plain']:14.1e}"
        )
    print(f"of best: of the faster matrix product; images/s: at {CALLS} calls an image; ratio: to the plain loop")
    return {"config": args.config, "batch": args.batch, "flops": flops, "rounds": rounds, "table": table}


def fastest(found):
    """The rate of a round's faster matrix product."""
    return max(found[f"product_{kind}"] for kind in KINDS)


def flops_of(config):
    """Floating-point operations of a call of an experiment's network, for one image."""
    # In inference mode PyTorch 2.4 counts nothing.
    with torch.inference_mode(False), torch.device("meta"), FlopCounterMode(display=False) as counter:
        UNet(settings_of(load(config).Model))(torch.zeros(1, *shape_of(config)), torch.zeros(1))
    return counter.get_total_flops()


held: dict = {}  # in the process of a contender: its loop and what that takes


def start(name, args, where):
    """Make this process the contender's, and let it do what it does once: compile, choose kernels."""
    if name == "here":
        backend.start()
    loop, network = contender(name, args, where)
    torch.manual_seed(0)
    with torch.inference_mode():
        x = torch.randn(args.batch, *shape_of(args.config)).to(where)
    held.update(loop=loop, network=network, x=x, where=where)
    run(2)
    held.update(steps=args.steps)


@torch.inference_mode()
def predict():
    """ε of the contender's network, asked as its loop asks."""
    x, network = held["x"], held["network"]
    t = x.new_full((1,), 500.0).expand(1 if getattr(network, "broadcasts_time", False) else len(x))
    with backend.tf32(False):
        return network(x, t).float().cpu()


@torch.inference_mode()
def run(steps=None):
    """(seconds of the contender's loop, seconds of each network call). Only the engine may round to TF32."""
    with backend.tf32(False):
        return time_loop(**held | ({"steps": steps} if steps else {}))


def shape_of(config):
    return load(config).Dataset.shape


def contender(name, args, where):
    """A loop(network, x, steps), and its network(x, t) → ε."""
    from diffusers import PNDMScheduler, UNet2DModel

    section, schedule = load(args.config).Model, Schedule()
    torch.manual_seed(0)
    theirs = UNet2DModel(**diffusers_config(settings_of(section), section.image_size)).eval()

    def ours(network, x, steps):
        for _ in solve("DDIM", network, x, schedule, steps):
            pass

    def released(network, x, steps):
        times = [k * 1000 // steps for k in reversed(range(steps))]
        kept = []
        for t, s in zip(times, [*times[1:], -1], strict=True):
            eps = network(x, torch.full((len(x),), float(t), device=x.device))
            x = phi(x, eps, schedule.alpha_cumprod(t), schedule.alpha_cumprod(s))
            kept.append(x.cpu())

    def diffusers(network, x, steps):
        scheduler = PNDMScheduler(beta_end=0.02, skip_prk_steps=True)
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t), t, x).prev_sample

    if name == "diffusers":
        theirs.to(where)
        return diffusers, lambda x, t: theirs(x, t).sample
    plain = load_model(section, theirs.state_dict(), where)
    if name == "plain":
        return released, plain
    return ours, Engine(plain, where, resolve(args.precision, where), args.compile)


def diffusers_config(s, size):
    """The arguments of diffusers' UNet2DModel for a DDIM network's settings."""
    levels = range(len(s.multipliers))
    kinds = ["Attn" if level in s.attention else "" for level in levels]
    return {
        "sample_size": size,
        "in_channels": s.in_channels,
        "out_channels": s.out_channels,
        "block_out_channels": tuple(s.channels * m for m in s.multipliers),
        "layers_per_block": s.num_res_blocks,
        "down_block_types": tuple(f"{kind}DownBlock2D" for kind in kinds),
        "up_block_types": tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": s.norm_eps,
        "norm_num_groups": s.norm_groups,
    }


def clock(where):
    """Seconds, when the device has done what it was given."""
    if where.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class Stopwatch:
    """Takes the time of spans of work on a device; on a GPU nothing waits for it meanwhile."""

    def __init__(self, where):
        self.gpu, self.marks = where.type == "cuda", []

    def mark(self):
        """The beginning of a span, then its end, and so on."""
        self.marks.append(torch.cuda.Event(enable_timing=True) if self.gpu else time.perf_counter())
        if self.gpu:
            self.marks[-1].record()

    def seconds(self):
        """Of each span."""
        if self.gpu:
            torch.cuda.synchronize()
        pairs = zip(self.marks[::2], self.marks[1::2], strict=True)
        return [a.elapsed_time(b) / 1000 if self.gpu else b - a for a, b in pairs]


def time_loop(loop, network, x, steps, where):
    """(seconds of the loop, seconds of each network call)."""
    watch = Stopwatch(where)

    def timed(x, t):
        watch.mark()
        eps = network(x, t)
        watch.mark()
        return eps

    timed.broadcasts_time = getattr(network, "broadcasts_time", False)
    start = clock(where)
    loop(timed, x, steps)
    return clock(where) - start, watch.seconds()


def product_rate(dtype, side, where):
    """FLOP/s of a product of two square matrices: of several in a row after a first; a GPU's clock takes more."""
    a, b = (torch.randn(side, side, device=where).to(dtype) for _ in range(2))
    a @ b
    repeat, start = 3 if where.type == "cpu" else 100, clock(where)
    for _ in range(repeat):
        a @ b
    return repeat * 2 * side**3 / (clock(where) - start)


def own_times(profiler, where):
    """(event, its own time in µs) of a torch.profiler, most first: kernels on a GPU, else operators."""
    events = profiler.key_averages()
    if where.type == "cuda":  # the operators' device time is that of their kernels, which are events, too
        events = [e for e in events if e.device_type == DeviceType.CUDA and not getattr(e, "is_user_annotation", False)]
    own = operator.attrgetter("self_device_time_total" if where.type == "cuda" else "self_cpu_time_total")
    return sorted(((event, own(event)) for event in events), key=lambda pair: -pair[1])


def random_inception(folder):
    """A file in `folder` with weights for pytorch-fid's Inception, random ones."""
    from pytorch_fid import inception

    file = folder / "weights.pth"
    if file.exists():
        return file
    with (
        mock.patch.object(torch.nn.Module, "load_state_dict"),
        mock.patch.object(inception, "load_state_dict_from_url"),
    ):
        weights = inception.fid_inception_v3().state_dict()
    torch.save(weights, file)
    return file

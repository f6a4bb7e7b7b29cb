"""The benchmark `network`: three contenders on the same weights, each in a process of its own (tools/benchmark.py)."""

import argparse
import statistics
import time


def network(args):
    """This project, a plain float32 loop of the same network, and diffusers' PNDM pipeline loop, on the same weights.

    The weights are random. The plain loop stands for the released code: float32, channels first, a time for every
    image, every intermediate image moved to the CPU. Each is alone in a process of its own; each round runs all three
    one after the other, and a product of two square matrices in bfloat16 and in float32, whose rate is what FLOP/s are
    a share of.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from pndm.cli import device
    from pndm.config.load import load
    from pndm.model.settings import settings_of
    from pndm.model.unet import UNet

    where = device("auto")
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        UNet(settings_of(load(args.config).Model))(torch.zeros(1, *shape_of(args.config)), torch.zeros(1))
    flops = counter.get_total_flops() * args.batch
    workers, rounds = {name: Worker(name, args, where) for name in CONTENDERS}, []
    eps = {name: worker.eps for name, worker in workers.items()}
    for _ in range(args.repeat):
        found = {}
        for name, worker in workers.items():
            seconds, inside = worker.run()
            found[name] = {"calls_per_second": len(inside) / seconds, "outside": 1 - sum(inside) / seconds}
        for dtype in (torch.bfloat16, torch.float32):
            found[f"product_{str(dtype)[6:]}"] = product_rate(dtype, args.side, where)
        rounds.append(found)
    peaks = {name: worker.end() for name, worker in workers.items()}
    product = {name: statistics.median(r[name] for r in rounds) for name in ("product_bfloat16", "product_float32")}
    print(
        f"{args.config}, batch {args.batch}, {flops / args.batch / 1e9:.3g} GFLOP an image and call; matrix product: "
        "{product_bfloat16:.3g} FLOP/s in bfloat16, {product_float32:.3g} in float32".format(**product)
    )
    print(f"{'':16}  calls/s  images/s   TFLOP/s  of bf16   ratio  outside  memory MiB  rms to plain")
    table = {}
    for name in CONTENDERS:
        row = table[name] = _row(name, rounds, args.batch, flops)
        row["peak_bytes"] = peaks[name]
        row["rms_to_plain"] = float((eps[name] - eps["plain"]).square().mean().sqrt() / eps["plain"].std())
        print(
            f"{name:16}{row['calls_per_second']:9.3f}{row['images_per_second']:10.4f}{row['flops'] / 1e12:10.3f}"
            f"{100 * row['share_of_product']:8.0f}%{row['ratio']:8.2f}{100 * row['outside']:8.2f}%"
            f"{row['peak_bytes'] / 2**20:12,.0f}{row['rms_to_plain']:14.1e}"
        )
    print(f"images/s: at {CALLS} calls an image, those of F-PNDM in 50 steps; ratio: to the plain loop")
    return {"config": args.config, "batch": args.batch, "flops": flops, "rounds": rounds, "table": table}


def _row(name, rounds, batch, flops):
    """The medians over the rounds of one contender."""

    def median(of):
        return statistics.median(of(r[name]["calls_per_second"], r) for r in rounds)

    return {
        "calls_per_second": median(lambda calls, r: calls),
        "images_per_second": median(lambda calls, r: calls * batch / CALLS),
        "flops": median(lambda calls, r: calls * flops),
        "share_of_product": median(lambda calls, r: calls * flops / r["product_bfloat16"]),
        "ratio": median(lambda calls, r: calls / r["plain"]["calls_per_second"]),
        "outside": median(lambda calls, r: r[name]["outside"]),
    }


CALLS = 59  # of F-PNDM in 50 steps
CONTENDERS = ("here", "plain", "diffusers")


class Worker:
    """A process with one contender, which runs its loop when it is told to."""

    def __init__(self, name, args, where):
        import multiprocessing

        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(name, vars(args) | {"function": None}, where, theirs))
        self.process.start()
        theirs.close()  # else the end of the process would go unnoticed
        self.eps = self.pipe.recv()

    def run(self):
        """(seconds of the loop, seconds of each network call)."""
        self.pipe.send(True)
        return self.pipe.recv()

    def end(self):
        """End the process; returns the bytes that it has held at most (on a GPU: there)."""
        self.pipe.send(False)
        return self.pipe.recv()


def serve(name, args, where, pipe):
    import torch

    from pndm.model import backend
    from pndm.model.engine import peak

    if name == "here":
        backend.start()
    args = argparse.Namespace(**args)
    loop, network = contender(name, args, where)
    torch.manual_seed(0)
    x, t = torch.randn(args.batch, *shape_of(args.config)).to(where), torch.full((args.batch,), 500.0, device=where)
    with torch.inference_mode():
        pipe.send(network(x, t).float().cpu())
        while pipe.recv():
            pipe.send(time_loop(loop, network, x, args.steps, where))
    pipe.send(peak(where))


def shape_of(config):
    from pndm.config.load import load

    data = load(config).Dataset
    return data.channels, data.image_size, data.image_size


def contender(name, args, where):
    """A loop(network, x, steps), and its network(x, t) → ε."""
    import torch
    from diffusers import PNDMScheduler, UNet2DModel

    from pndm.config.load import load
    from pndm.model import load_model
    from pndm.model.engine import Engine, resolve
    from pndm.model.settings import settings_of
    from pndm.runner.solver.schedule import Schedule
    from pndm.runner.solver.solve import solve
    from pndm.runner.solver.transfer import phi

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
    }


def time_loop(loop, network, x, steps, where):
    """(seconds of the loop, seconds of each network call)."""
    import torch

    inside = []

    def now():
        if where.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(x, t):
        start = now()
        eps = network(x, t)
        inside.append(now() - start)
        return eps

    start = now()
    loop(timed, x, steps)
    return now() - start, inside


def product_rate(dtype, side, where, repeat=3):
    """FLOP/s of a product of two square matrices: of `repeat` in a row after a first, as the loops are timed."""
    import torch

    def products(product, a, b):
        for _ in range(repeat):
            product(a, b)

    a, b = (torch.randn(side, side, device=where).to(dtype) for _ in range(2))
    a @ b
    seconds, _ = time_loop(products, torch.matmul, a, b, where)
    return repeat * 2 * side**3 / seconds

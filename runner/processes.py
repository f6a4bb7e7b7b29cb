"""The processes of a run: one, or as many as torchrun started, each with its device."""

import os
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

TIMEOUT = 30.0  # minutes


@dataclass(frozen=True)
class Processes:
    """Who this process is among `size`. The methods do nothing that costs when there is one."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def restarted(self):
        """Whether torchrun has started these processes again after one of them failed (`--max-restarts`)."""
        return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0

    @property
    def first(self):
        return self.rank == 0

    def share(self, items):
        """This process's items: every size-th, from its rank on."""
        return items[self.rank :: self.size]

    def wait(self):
        """Until all processes are here."""
        self.total(torch.zeros(1))

    def total(self, tensor, operation=dist.ReduceOp.SUM):
        """The sum of a tensor over all processes, on the CPU."""
        if self.size == 1:
            return tensor.cpu()
        tensor = tensor.to(self.device, copy=True)
        dist.all_reduce(tensor, operation)
        return tensor.cpu()

    def least(self, tensor):
        """The least of a tensor over all processes, on the CPU."""
        return self.total(tensor, dist.ReduceOp.MIN)

    def counter(self, name):
        """add(n) → the sum of all that any process has added under this name; none waits for another.

        Counts through torchrun's own store, anew when it has started the processes again.
        """
        if self.size == 1:
            return _Count().add
        store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
        key = f"{name}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        return lambda n: store.add(key, n)

    def deal(self, items):
        """This process's items, one after another: each the next that no process has taken yet."""
        taken = self.counter("taken")
        while (i := taken(1) - 1) < len(items):
            yield items[i]

    def from_others(self, tensors):
        """For the first process: every other's tensors, process by process; the others send theirs.

        They may differ in shape from process to process, not in number, dtype or number of dimensions.
        """
        for rank in range(1, self.size):
            if self.rank == rank:
                for tensor in tensors:
                    dist.send(torch.tensor(tensor.shape, device=self.device), 0)
                    dist.send(tensor.to(self.device).contiguous(), 0)
            elif self.first:
                yield [self._receive(tensor, rank).cpu() for tensor in tensors]

    def _receive(self, like, rank):
        shape = torch.zeros(like.ndim, dtype=torch.int64, device=self.device)
        dist.recv(shape, rank)
        tensor = torch.empty(shape.tolist(), dtype=like.dtype, device=self.device)
        dist.recv(tensor, rank)
        return tensor


class _Count:
    def __init__(self):
        self.total = 0

    def add(self, n):
        self.total += n
        return self.total


@contextmanager
def processes(device, timeout=None):
    """A `Processes` for this one, joined with the others if torchrun started several (NCCL on GPUs, gloo on CPUs).

    A process that waits for another longer than `timeout` minutes (30) ends with an error, and torchrun ends them all.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield Processes(device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=timeout or TIMEOUT))
    team = Processes(device, dist.get_rank(), size)
    yield team
    team.wait()
    # Not after an error, when the others may be gone, and not with gloo, whose teardown now and then hangs or aborts:
    # there the process ends with the group in place (main.py).
    if device.type == "cuda":
        dist.destroy_process_group()

"""The processes of a run: one, or as many as torchrun started, each with its device."""

import os
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from pndm.config.errors import InputError

TIMEOUT = 30.0  # minutes


@dataclass
class Processes:
    """Who this process is among `size`. The methods do nothing that costs when there is one."""

    device: torch.device
    rank: int = 0
    size: int = 1
    store: dist.Store | None = None
    timeout: float = TIMEOUT
    last_beat: float = 0.0

    def restarted(self):
        """Whether torchrun has started these processes again after one of them failed (`--max-restarts`)."""
        # The count is that of the machine whose process failed; on the others it stays as it was.
        return int(self.total(torch.tensor(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))))) > 0

    @property
    def first(self):
        return self.rank == 0

    def share(self, items):
        """This process's items: every size-th, from its rank on."""
        return items[self.rank :: self.size]

    def beat(self):
        """Say, as often as one likes, that this process is at work, for those that wait for it."""
        if self.size > 1 and time.monotonic() - self.last_beat > 1:
            self.last_beat = time.monotonic()
            self.store.add("beats", 1)

    def wait(self, watch=lambda: None):
        """Until all processes are here; those at work (`beat`) may take their time. `watch` is called meanwhile.

        Raises RuntimeError when none has been at work for `timeout` minutes.
        """
        if self.size == 1:
            return
        arrived, seen, since = self.counter("arrived"), None, 0
        expected = -(-arrived(1) // self.size) * self.size  # none comes to the next wait before all have come to this
        while arrived(0) < expected:
            if (beats := self.store.add("beats", 0)) != seen:
                seen, since = beats, time.monotonic()
            elif time.monotonic() - since > 60 * self.timeout:
                raise RuntimeError("timed out waiting for it")
            time.sleep(0.1)
            watch()

    def announce(self, flag):
        """Begin to ask whether flag() is true of any process; returns a function with the answer.

        Nobody waits before that is called. Of one process it is what flag() is then.
        """
        if self.size == 1:
            return flag
        told = torch.tensor([float(flag())], device=self.device)
        work = dist.all_reduce(told, dist.ReduceOp.MAX, async_op=True)

        def answer():
            work.wait()
            return bool(told.item())

        return answer

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
        """add(n) → the sum of all that any process has added under this name; none waits for another."""
        return _Count().add if self.size == 1 else lambda n: self.store.add(name, n)

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


def _meet(store, rank, size):
    """The part of a store that is only for the `size` processes that were started together.

    torchrun keeps its store when it starts processes again, and in it the addresses of the dead.
    """
    me = uuid.uuid4().hex
    if rank == 0:
        store.set("first", me)
        for other in range(1, size):
            name = store.get(f"{me}/{other}").decode()
            store.set(f"{name}/first", me)
        return dist.PrefixStore(me, store)
    while not store.check([f"{me}/first"]):
        first = store.get("first").decode()  # maybe still of the last one, who answers no more
        store.set(f"{first}/{rank}", me)
        time.sleep(0.01)
    return dist.PrefixStore(store.get(f"{me}/first").decode(), store)


@contextmanager
def processes(device, timeout=None):
    """A `Processes` for this one, joined with the others if torchrun started several (NCCL on GPUs, gloo on CPUs).

    A process that waits longer than `timeout` minutes (30) for others that are not at work ends with an error, and
    torchrun ends them all. Raises InputError when there are fewer GPUs than processes.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if device.type == "cuda":
        if size > 1:
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if device.index is not None:
            if device.index >= (there := torch.cuda.device_count()):
                raise InputError(f"--nproc_per_node: more processes than the {there} GPUs of this machine")
            torch.cuda.set_device(device)
    if size == 1:
        yield Processes(device)
        return
    patience = timedelta(minutes=timeout or TIMEOUT)
    store, rank, size = next(dist.rendezvous("env://", timeout=patience))
    store = _meet(store, rank, size)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)
    team = Processes(device, rank, size, store, timeout or TIMEOUT)
    yield team
    team.wait()
    team.total(torch.zeros(1))  # not before all have read that in the store, which may be the first process's
    # Not after an error, when the others may be gone, and not with gloo, whose teardown now and then hangs or aborts:
    # there the process ends with the group in place (main.py).
    if device.type == "cuda":
        dist.destroy_process_group()

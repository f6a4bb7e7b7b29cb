"""The processes of a run: one, or as many as torchrun started, each with its device."""

import os
import re
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist

from pndm.config.errors import InputError, first_line

TIMEOUT = 30.0  # minutes that a rank waits for others that do nothing
GRACE = 30.0  # seconds for a rank to stop by itself after its torchrun has ended

T = TypeVar("T")


@dataclass
class Processes:
    """This process, one of `size`, by its rank. With one process no method communicates.

    Where a method says "all ranks call it", every rank must call those methods in the same order.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    store: Any = field(default_factory=dist.HashStore)
    timeout: float = TIMEOUT
    last_beat: float = 0.0
    deals: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0

    def restarted(self) -> bool:
        """Whether torchrun has restarted the ranks after one of them failed (`--max-restarts`). All ranks call it."""
        # torchrun raises the count only on the machine where a rank failed.
        return self.any(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0)

    def deal(self, items: Sequence[T]) -> Iterator[T]:
        """This rank's items, one after another: each time the first item that no rank has taken. All ranks call it.

        A fast rank takes more items than a slow one. To take an item counts as a heartbeat.
        """
        self.deals += 1
        taken = self.counter(f"taken by deal {self.deals}")
        while (i := taken(1) - 1) < len(items):
            self.beat()
            yield items[i]

    def counter(self, name: str) -> Callable[[int], int]:
        """add(n) → the sum of what all ranks have added under this name so far. No rank waits."""
        return partial(self.store.add, name)

    def beat(self) -> None:
        """Send a heartbeat to the ranks that wait, at most one a second: this rank is at work."""
        if self.size > 1 and time.monotonic() - self.last_beat > 1:
            self.last_beat = time.monotonic()
            self.store.add("beats", 1)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Send heartbeats from a thread during one long call, such as a distance in 2,048 dimensions on rank 0."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(1.1):
                self.beat()

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def wait(self, watch: Callable[[], None] = lambda: None) -> None:
        """Wait until all ranks are here, for as long as those at work send heartbeats. All ranks call it.

        watch: called ten times a second meanwhile, or more often. Raises RuntimeError after `timeout` minutes without a
        heartbeat.
        """
        if self.size == 1:
            return
        arrived, seen, since, pause = self.counter("arrived"), None, 0.0, 0.001
        expected = -(-arrived(1) // self.size) * self.size  # no rank comes to the next wait before all came to this one
        while arrived(0) < expected:
            if (beats := self.store.add("beats", 0)) != seen:
                seen, since = beats, time.monotonic()
            elif time.monotonic() - since > 60 * self.timeout:
                raise RuntimeError("timed out waiting for it")
            time.sleep(pause := min(1.5 * pause, 0.1))
            watch()

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank. All ranks call it."""
        return bool(self.total(torch.tensor(float(flag))))

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all ranks, on the CPU. All ranks call it."""
        return self._reduced(tensor, dist.ReduceOp.SUM)

    def least(self, tensor: torch.Tensor) -> torch.Tensor:
        """The minimum of a tensor over all ranks, on the CPU. All ranks call it."""
        return self._reduced(tensor, dist.ReduceOp.MIN)

    def _reduced(self, tensor: torch.Tensor, operation: Any) -> torch.Tensor:
        if self.size == 1:
            return tensor.cpu()
        tensor = tensor.to(self.device, copy=True)
        dist.all_reduce(tensor, operation)
        return tensor.cpu()

    def broadcast(self, tensor: torch.Tensor, source: int) -> torch.Tensor:
        """The tensor of rank `source`, on all ranks; each gives one of its shape and dtype. All ranks call it."""
        if self.size == 1:
            return tensor
        theirs = torch.empty_like(tensor, device=self.device)
        if self.rank == source:
            theirs = tensor.to(self.device).contiguous()
        dist.broadcast(theirs, source)
        return theirs.to(tensor.device)

    def collect(self, tensors: Sequence[torch.Tensor], to: int) -> list[list[torch.Tensor]]:
        """Send this rank's tensors to rank `to`. That rank gets those of every rank, on the CPU, in order of ranks.

        The others get an empty list. All ranks call it.
        """
        mine = [tensor.cpu() for tensor in tensors]
        if self.size == 1:
            return [mine]
        gathered: list[Any] = [None] * self.size if self.rank == to else []
        dist.gather_object(mine, gathered or None, to)
        return gathered

    def exchange(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Send each rank its tensor (n_rank, …). Returns those for this rank, joined in order of ranks, on the CPU.

        All ranks call it, with tensors of one dtype and of one shape but for n.
        """
        mine = torch.cat(list(tensors)).to(self.device)
        if self.size == 1:
            return mine.cpu()
        sent = torch.tensor([len(tensor) for tensor in tensors], device=self.device)
        received = torch.zeros_like(sent)
        dist.all_to_all_single(received, sent)
        theirs = mine.new_empty(int(received.sum()), *mine.shape[1:])
        dist.all_to_all_single(theirs, mine, received.tolist(), sent.tolist())
        return theirs.cpu()


ALONE = Processes(torch.device("cpu"))  # this process by itself, for sums on the CPU


@contextmanager
def processes(device: torch.device, timeout: float | None = None) -> Iterator[Processes]:
    """The ranks that torchrun started, joined (NCCL on GPUs, gloo on CPUs); without torchrun, this process alone.

    timeout: minutes (default 30) that a rank waits for others that do nothing; then all end. Raises InputError when
    torchrun's variables are wrong, when there are more ranks than GPUs, for a device that several ranks cannot join on,
    and when another rank no longer answers.
    """
    size, rank = _number("WORLD_SIZE", 1), _number("RANK", 0)
    if size > 1 and device.type not in ("cpu", "cuda"):
        raise InputError(f"{device.type}: several processes compute on CPUs or on NVIDIA's and AMD's GPUs", "device")
    if device.type == "cuda":
        if size > 1:
            device = torch.device("cuda", _number("LOCAL_RANK", 0))
        if device.index is not None:
            if device.index >= (there := torch.cuda.device_count()):
                if size == 1:
                    raise InputError(f"{device} is not there; this machine has {there} GPUs", "device")
                raise InputError(f"more processes than the {there} GPUs of this machine (torchrun's --nproc_per_node)")
            torch.cuda.set_device(device)
    if size == 1:
        yield Processes(device)
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise InputError(f"WORLD_SIZE is {size}, but {' and '.join(missing)} are not set; torchrun sets them all")
    _number("MASTER_PORT", 0)
    _stop_with_torchrun()
    try:
        team = _join(device, rank, size, timeout or TIMEOUT)
        yield team
        team.wait()
        team.total(torch.zeros(1))  # rank 0 may host the store: no rank ends before all have read it
    except RuntimeError as error:
        if _lost(error):
            raise InputError(f"another process did not answer ({first_line(error)})") from error
        raise
    # Only NCCL's group is taken down, and not after an error, when other ranks may be gone. gloo's teardown sometimes
    # hangs or aborts: there the process ends with the group in place (`end`).
    if device.type == "cuda":
        dist.destroy_process_group()


def end(status: int) -> NoReturn:
    """End this process with its exit status. A program that joins `processes` ends by it."""
    if "WORLD_SIZE" in os.environ:
        # gloo's threads now and then abort an interpreter that is tearing down, though all its work is done.
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        os._exit(status)
    sys.exit(status)


def _number(name: str, default: int) -> int:
    """A variable that torchrun sets, as a number from 0. Raises InputError."""
    text = os.environ.get(name, str(default))
    if not (text.isascii() and text.isdecimal()):
        raise InputError(f"the environment variable {name} is {text!r}; torchrun sets it to a whole number from 0")
    return int(text)


def _join(device: torch.device, rank: int, size: int, timeout: float) -> Processes:
    patience = timedelta(minutes=timeout)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        _find_torchrun(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    store, rank, size = next(dist.rendezvous("env://", timeout=patience))
    store = _meet(store, rank, size, patience)
    gpu = device if device.type == "cuda" else None
    backend = "nccl" if gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience, device_id=gpu)
    return Processes(device, rank, size, store, timeout)


def _find_torchrun(host: str, port: int) -> None:
    """Raise RuntimeError when nothing answers where torchrun hosts the store: it has been killed meanwhile.

    torchrun hosts the store before it starts the ranks. PyTorch would look for it until the timeout.
    """
    for left in reversed(range(5)):
        try:
            socket.create_connection((host, port), timeout=10).close()
            return
        except OSError as error:
            if not left:
                raise RuntimeError(f"no torchrun at {host}:{port}, connection refused: {error}") from error
            time.sleep(1)


def _meet(store: dist.Store, rank: int, size: int, patience: timedelta) -> dist.Store:
    """The part of the store that belongs to the `size` ranks that were started together.

    torchrun keeps its store when it restarts the ranks. The store then still holds the addresses of the dead ranks.
    """
    me = uuid.uuid4().hex
    if rank == 0:
        store.set("first", me)
        for other in range(1, size):
            name = store.get(f"{me}/{other}").decode()
            store.set(f"{name}/first", me)
        return dist.PrefixStore(me, store)
    end = time.monotonic() + patience.total_seconds()
    while not store.check([f"{me}/first"]):
        first = store.get("first").decode()  # may be that of a dead rank 0, which never answers
        store.set(f"{first}/{rank}", me)
        if time.monotonic() > end:
            raise RuntimeError("timed out waiting for rank 0")
        time.sleep(0.01)
    return dist.PrefixStore(store.get(f"{me}/first").decode(), store)


def _stop_with_torchrun() -> None:
    """Watch torchrun, the parent process. When it has been killed, stop this rank: as by Ctrl-C, else by force."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    torchrun = os.getppid()

    def watch() -> None:
        while os.getppid() == torchrun:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(GRACE)  # a rank that waits for another in PyTorch's code sees no signal
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def torchrun() -> str:
    """Names the torchrun that started this rank: machine, process and its start, in clock ticks; "" without one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ""
    try:
        begun = Path(f"/proc/{os.getppid()}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        begun = "?"
    return f"{socket.gethostname()} {os.getppid()} {begun}"


def _lost(error: RuntimeError) -> bool:
    """Whether an error says that another rank, or the store, does not answer. gloo raises plain RuntimeErrors."""
    said = re.search(r"timed? ?out|connection (closed|reset|refused)|broken pipe|peer", str(error), re.IGNORECASE)
    return isinstance(error, dist.DistError) or said is not None

"""The processes of one run: who they are, which device each has, and the few things they exchange.

One process unless `torchrun` or Ray Train started several; nothing else in `train/` asks how many there are.
"""

import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

CPU = torch.device("cpu")
# How long processes wait for the one that evaluates, finds neighbours or writes. A group's own limit (10 minutes for NCCL) is for steps;
# of a process that died torchrun and Ray Train tell the others at once.
_LONGEST_WAIT = timedelta(days=1)
# Its present name; under the old one, in older releases of torch, gloo may lack it.
_REDUCE_SCATTER = getattr(distributed, "reduce_scatter_single", None)


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among those of the run."""

    rank: int = 0
    size: int = 1
    local_size: int = 1  # processes on this host
    device: torch.device = CPU
    patient: distributed.ProcessGroup | None = None  # the same processes, in no hurry
    subgroups: dict[int, distributed.ProcessGroup] = field(default_factory=dict, compare=False)  # by their number

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def gather(self, features: torch.Tensor, groups: int = 1) -> torch.Tensor:
        """Return every process's rows in rank order, with gradients: each process gets the sum of what all ranks' losses sent it.

        With `groups` above 1, which divides the processes, these are the rows of as many neighbouring processes as a group has. All processes
        must ask alike.
        """
        if self.size == groups:
            return features
        members = self._join(groups) if groups > 1 else None
        gathered: torch.Tensor = _Gather.apply(features, self.size // groups, members)  # type: ignore[no-untyped-call]
        return gathered

    def _join(self, groups: int) -> distributed.ProcessGroup:
        """Return the group of this process among `groups`, which are made when first asked for."""
        if groups not in self.subgroups:
            share = self.size // groups
            # Every process must make all of them, in one order.
            made = [distributed.new_group(range(first, first + share)) for first in range(0, self.size, share)]
            self.subgroups[groups] = made[self.rank // share]
        return self.subgroups[groups]

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Return the mean of a detached value over the processes."""
        if self.size == 1:
            return value.detach()
        total = value.detach().clone()
        distributed.all_reduce(total)
        return total / self.size

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Return the sum of a detached value over the processes."""
        total = value.detach().clone()
        if self.size > 1:
            distributed.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:
        """Tell whether the flag is set on any process; all must ask at the same step."""
        if self.size == 1:
            return flag
        raised = torch.tensor(float(flag), device=self.device)
        distributed.all_reduce(raised)
        return bool(raised.item() > 0)

    def wait(self) -> None:
        """Return when every process has arrived, however long one of them takes."""
        if self.size > 1:
            distributed.barrier(group=self.patient)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, size: int, members: distributed.ProcessGroup | None) -> torch.Tensor:
        ctx.size, ctx.members = size, members
        parts = [torch.empty_like(features) for _ in range(size)]
        distributed.all_gather(parts, features.contiguous(), group=members)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _sum_own_rows(gradients[0].contiguous(), ctx.size, ctx.members), None, None


def _sum_own_rows(gradient: torch.Tensor, size: int, members: distributed.ProcessGroup | None) -> torch.Tensor:
    """Return this process's rows of the sum over the `size` processes of a group, or all."""
    # Half the traffic of all_reduce, which also brings what is other processes' to know.
    reduce = _REDUCE_SCATTER or (distributed.reduce_scatter_tensor if gradient.is_cuda else None)
    if reduce is None:
        total = gradient.clone()  # the caller's may belong to others too
        distributed.all_reduce(total, group=members)
        return total.chunk(size)[distributed.get_rank(members)]
    own = gradient.new_empty(len(gradient) // size, *gradient.shape[1:])
    reduce(own, gradient, group=members)
    return own


@contextmanager
def join_world() -> Iterator[World]:
    """Join the processes that `torchrun` started (and leave them at the end), or those Ray Train has joined already."""
    created = False
    if not distributed.is_initialized() and distributed.is_torchelastic_launched():
        if torch.cuda.is_available():
            torch.cuda.set_device(distributed.get_node_local_rank())
        _join_torchrun()
        created = True
    try:
        world = _describe()
        yield world
        for group in (world.patient, *world.subgroups.values()):
            if group is not None:
                distributed.destroy_process_group(group)
    finally:
        if created:
            distributed.destroy_process_group()


def num_threads(world: World, wanted: int) -> int:
    """Return the torch threads of one process: `wanted`, or its share of the CPUs this process may use."""
    return wanted or max(1, len(os.sched_getaffinity(0)) // world.local_size)


def num_loaders(world: World, wanted: int | None) -> int:
    """Return the loader processes of one training process: `wanted`, or as many as its share of the CPUs bears.

    Beside a GPU that is all but two, which feed the GPU; where the CPUs train themselves, two.
    """
    if wanted is not None:
        return wanted
    share = len(os.sched_getaffinity(0)) // world.local_size
    return max(2, share - 2) if world.device.type == "cuda" else 2


def _join_torchrun() -> None:
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.elastic.utils.api import get_env_variable_or_raise
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://"))
    # torchrun keeps one store for all its restarts: without a prefix of its own, a restarted group meets the addresses of dead processes.
    attempt = get_env_variable_or_raise("TORCHELASTIC_RESTART_COUNT")
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=PrefixStore(f"attempt_{attempt}", store),
        rank=rank,
        world_size=size,
    )


def wrap_towers(model: nn.Module, world: World) -> nn.Module:
    """Return the model with gradients averaged over the processes, or the model itself where there is one process."""
    if world.size == 1:
        return model
    with warnings.catch_warnings():
        # The new name of the argument does not exist in older releases of torch.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(model, broadcast_buffers=False)


def _describe() -> World:
    device = torch.device("cuda", _local_rank()) if torch.cuda.is_available() else CPU
    if not distributed.is_initialized():
        return World(device=device)
    return World(
        rank=distributed.get_rank(),
        size=distributed.get_world_size(),
        local_size=_count_local(),
        device=device,
        patient=distributed.new_group(backend="gloo", timeout=_LONGEST_WAIT),
    )


def _local_rank() -> int:
    if not distributed.is_initialized():
        return torch.cuda.current_device()
    return distributed.get_node_local_rank(fallback_rank=torch.cuda.current_device())


def _count_local() -> int:
    hosts: list[str | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(hosts, socket.gethostname())
    return hosts.count(socket.gethostname())

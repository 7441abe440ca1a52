"""The tensor-parallel group over torch.distributed: gloo between CPU processes, NCCL between GPUs.

Rendezvous is a file in the private run directory, and both backends are pinned to the loopback
interface: nothing listens beyond it.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from lightllm_server.layers.tensor_parallel import SingleRank, TensorParallel

__all__ = ["DistributedRanks", "Ranks", "Solo", "join_ranks"]

# between the collectives of a step, and until the group is made once all have come
_STEP_TIMEOUT = timedelta(seconds=30)
# ranks import and load at their own speed, and the supervisor ends all where one fails
_LOAD_TIMEOUT = timedelta(hours=1)
_RENDEZVOUS = "ranks.rendezvous"


class _Store(Protocol):
    """What is used of torch's key-value store between the ranks."""

    def add(self, key: str, amount: int, /) -> int: ...

    def set(self, key: str, value: bytes, /) -> None: ...

    def wait(self, keys: list[str], timeout: timedelta, /) -> None: ...


class Ranks(TensorParallel, Protocol):
    """What the engine needs of the group beside what the layers need."""

    def meet(self) -> None:
        """Wait for the others to get here too, however long their loading takes. Once."""
        ...

    def broadcast(self, tensor: torch.Tensor, /) -> torch.Tensor:
        """Rank 0's tensor, written into `tensor` on the others."""
        ...

    def smallest(self, value: int, /) -> int:
        """The minimum over the ranks."""
        ...

    def largest(self, value: int, /) -> int:
        """The maximum over the ranks."""
        ...


class Solo(SingleRank):
    """The group of one."""

    def meet(self) -> None:
        """Nobody else is to come."""

    def broadcast(self, tensor: torch.Tensor, /) -> torch.Tensor:
        return tensor

    def smallest(self, value: int, /) -> int:
        return value

    def largest(self, value: int, /) -> int:
        return value


class DistributedRanks:
    """A joined group; every call but `meet` is a collective that raises RuntimeError after 30 s
    without a peer.
    """

    def __init__(self, rank: int, size: int, device: torch.device, store: _Store) -> None:
        self.rank = rank
        self.size = size
        self._device = device
        self._store = store

    def meet(self) -> None:
        """Raises RuntimeError after an hour."""
        _meet(self._store, "loaded", self.size)

    def all_reduce(self, tensor: torch.Tensor, /) -> torch.Tensor:
        dist.all_reduce(tensor)
        return tensor

    def all_gather(self, tensor: torch.Tensor, /) -> torch.Tensor:
        rows, width = tensor.shape
        gathered = tensor.new_empty(self.size * rows, width)
        dist.all_gather_into_tensor(gathered, tensor.contiguous())
        # [size, rows, width] -> [rows, size * width]
        return gathered.view(self.size, rows, width).transpose(0, 1).reshape(rows, -1)

    def broadcast(self, tensor: torch.Tensor, /) -> torch.Tensor:
        dist.broadcast(tensor, src=0)
        return tensor

    def smallest(self, value: int, /) -> int:
        return self._reduce(value, dist.ReduceOp.MIN)

    def largest(self, value: int, /) -> int:
        return self._reduce(value, dist.ReduceOp.MAX)

    def _reduce(self, value: int, operation: dist.ReduceOp.RedOpType) -> int:
        tensor = torch.tensor([value], dtype=torch.int64, device=self._device)
        dist.all_reduce(tensor, op=operation)
        return int(tensor.item())


def join_ranks(rank: int, size: int, run_dir: Path, device: torch.device) -> Ranks:
    """Meet the other ranks; raises RuntimeError if they do not come within an hour."""
    if size == 1:
        return Solo()
    store, _, _ = next(rendezvous(f"file://{run_dir / _RENDEZVOUS}", rank, size))
    _meet(store, "started", size)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    os.environ["NCCL_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=_STEP_TIMEOUT,
        device_id=device if device.type == "cuda" else None,
    )
    return DistributedRanks(rank, size, device, store)


def _meet(store: _Store, place: str, size: int) -> None:
    """Wait until `size` ranks have come to `place`; raises RuntimeError."""
    if store.add(f"{place}/count", 1) == size:
        store.set(f"{place}/all", b"1")
    store.wait([f"{place}/all"], _LOAD_TIMEOUT)

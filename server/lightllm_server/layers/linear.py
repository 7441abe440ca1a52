"""Linear layers, split over the tensor-parallel ranks by columns (outputs) or rows (inputs).

Every layer names its checkpoint tensors in `loaders()`; once the last of them is loaded, the
weight is packed for the device and the original is freed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch

from lightllm_kernels.linear import Linear, pack_linear
from lightllm_server.layers.parameter import Loader, WeightOptions, WeightSource, load_slice
from lightllm_server.layers.tensor_parallel import TensorParallel, divide

__all__ = [
    "MergedColumnParallelLinear",
    "QKVParallelLinear",
    "RowParallelLinear",
]


@dataclass(frozen=True, slots=True)
class _Shard:
    """One checkpoint weight's share of a local weight.

    shape: of the whole checkpoint weight; index: the part that this rank holds; offset: its first
    local row.
    """

    shape: tuple[int, int]
    index: tuple[slice, slice]
    offset: int

    @property
    def local_rows(self) -> slice:
        rows = self.index[0]
        return slice(self.offset, self.offset + rows.stop - rows.start)


class _ShardedLinear:
    """A local weight [rows, columns] that fills from one or more checkpoint weights."""

    def __init__(
        self, shards: Mapping[str, _Shard], *, bias: bool, keep_bias: bool, options: WeightOptions
    ) -> None:
        self._shards = shards
        self._format = options.linear_format
        rows = max(shard.local_rows.stop for shard in shards.values())
        columns = next(iter(shards.values())).index[1]
        dtype, device = options.dtype, options.device
        width = columns.stop - columns.start
        self._weight: torch.Tensor | None = torch.empty(rows, width, dtype=dtype, device=device)
        self._bias = torch.empty(rows, dtype=dtype, device=device) if bias else None
        self._keep_bias = keep_bias
        self._pending = {f"{n}.{k}" for n in shards for k in (("weight", "bias")[: 1 + bias])}
        self._linear: Linear | None = None

    def loaders(self) -> dict[str, Loader]:
        """Checkpoint name (`<part>.weight`, `<part>.bias`) -> loader."""
        return {name: partial(self._load, name) for name in sorted(self._pending)}

    def _load(self, name: str, source: WeightSource) -> None:
        part, _, kind = name.rpartition(".")
        shard = self._shards[part]
        assert self._weight is not None, f"{name} was loaded twice"
        if kind == "weight":
            load_slice(self._weight[shard.local_rows], source, shard.shape, shard.index)
        else:
            assert self._bias is not None, f"{name} has no destination"
            load_slice(self._bias[shard.local_rows], source, shard.shape[:1], shard.index[:1])
        self._pending.discard(name)
        if not self._pending:
            self._linear = pack_linear(
                self._weight, self._bias if self._keep_bias else None, weight_format=self._format
            )
            # a packed weight is a copy: the original goes now, not when all layers are loaded
            self._weight = self._bias = None

    def _apply(self, hidden: torch.Tensor) -> torch.Tensor:
        assert self._linear is not None, f"not loaded: {sorted(self._pending)}"
        return self._linear(hidden)


class MergedColumnParallelLinear(_ShardedLinear):
    """Several linear layers of one input as one product; each is split by outputs.

    parts: checkpoint name -> outputs over all ranks. ValueError unless each divides by the ranks.
    """

    def __init__(
        self,
        in_features: int,
        parts: Mapping[str, int],
        *,
        bias: bool,
        tp: TensorParallel,
        options: WeightOptions,
    ) -> None:
        shards: dict[str, _Shard] = {}
        offset = 0
        for name, outputs in parts.items():
            local = divide(f"outputs of {name}", outputs, tp.size)
            rows = slice(tp.rank * local, (tp.rank + 1) * local)
            shards[name] = _Shard((outputs, in_features), (rows, slice(0, in_features)), offset)
            offset += local
        super().__init__(shards, bias=bias, keep_bias=bias, options=options)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: [T, in] -> [T, local outputs of all parts side by side]."""
        return self._apply(hidden)


class QKVParallelLinear(_ShardedLinear):
    """Query, key and value projections as one product, split by heads.

    With fewer KV heads than ranks, ranks / KV heads neighbouring ranks hold a copy of the same KV
    head.
    Local outputs: num_heads query heads, then num_kv_heads key heads, then as many value heads.
    """

    def __init__(
        self,
        in_features: int,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        bias: bool,
        tp: TensorParallel,
        options: WeightOptions,
        names: tuple[str, str, str] = ("q_proj", "k_proj", "v_proj"),
    ) -> None:
        self.num_heads = divide("num_heads", num_heads, tp.size)
        if num_kv_heads >= tp.size:
            self.num_kv_heads = divide("num_kv_heads", num_kv_heads, tp.size)
            first_kv_head = tp.rank * self.num_kv_heads
        else:
            self.num_kv_heads = 1
            first_kv_head = tp.rank // divide("ranks per KV head: ranks", tp.size, num_kv_heads)
        shards: dict[str, _Shard] = {}
        offset = 0
        kv = (num_kv_heads, first_kv_head, self.num_kv_heads)
        query = (num_heads, tp.rank * self.num_heads, self.num_heads)
        for name, (total, first, local) in zip(names, (query, kv, kv), strict=True):
            rows = slice(first * head_dim, (first + local) * head_dim)
            index = (rows, slice(0, in_features))
            shards[name] = _Shard((total * head_dim, in_features), index, offset)
            offset += local * head_dim
        super().__init__(shards, bias=bias, keep_bias=bias, options=options)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: [T, in] -> [T, (num_heads + 2 num_kv_heads) * head_dim]."""
        return self._apply(hidden)


class RowParallelLinear(_ShardedLinear):
    """One linear layer, split by inputs; the ranks' products are summed. The first rank adds the
    bias.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        name: str,
        bias: bool,
        tp: TensorParallel,
        options: WeightOptions,
    ) -> None:
        self._tp = tp
        local = divide(f"inputs of {name}", in_features, tp.size)
        index = (slice(0, out_features), slice(tp.rank * local, (tp.rank + 1) * local))
        shard = _Shard((out_features, in_features), index, 0)
        super().__init__({name: shard}, bias=bias, keep_bias=bias and tp.rank == 0, options=options)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: [T, local inputs] -> [T, out], complete on every rank."""
        return self._tp.all_reduce(self._apply(hidden))

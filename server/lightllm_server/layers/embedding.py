"""Token embedding and output head, the vocabulary padded to a multiple of the ranks and split over
them.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from lightllm_kernels.linear import Linear, pack_linear
from lightllm_server.layers.parameter import Loader, WeightOptions, WeightSource, load_slice
from lightllm_server.layers.tensor_parallel import TensorParallel

__all__ = ["ParallelLMHead", "VocabParallelEmbedding"]


class _VocabShard:
    """Rows `first … first+local` of a [vocab, hidden] table; rows past the vocabulary are zero."""

    def __init__(self, vocab_size: int, hidden_size: int, tp: TensorParallel) -> None:
        self.shape = (vocab_size, hidden_size)
        self.local = -(-vocab_size // tp.size)
        self.first = min(tp.rank * self.local, vocab_size)
        self.valid = min(self.local, vocab_size - self.first)

    def load(self, source: WeightSource, options: WeightOptions) -> torch.Tensor:
        """The local table [local, hidden]."""
        hidden = self.shape[1]
        table = torch.zeros(self.local, hidden, dtype=options.dtype, device=options.device)
        index = (slice(self.first, self.first + self.valid), slice(0, hidden))
        load_slice(table[: self.valid], source, self.shape, index)
        return table


class VocabParallelEmbedding:
    """Token ids to vectors; every rank looks up its own ids and the sum completes the others."""

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        *,
        name: str,
        tp: TensorParallel,
        options: WeightOptions,
    ) -> None:
        self._shard = _VocabShard(vocab_size, hidden_size, tp)
        self._name, self._tp, self._options = name, tp, options
        self._table: torch.Tensor | None = None
        self._tied: list[ParallelLMHead] = []

    def loaders(self) -> dict[str, Loader]:
        """Checkpoint name -> loader."""
        return {f"{self._name}.weight": self._load}

    def tie(self, head: ParallelLMHead) -> None:
        """Let `head` use this table too; before loading."""
        self._tied.append(head)

    def _load(self, source: WeightSource) -> None:
        self._table = self._shard.load(source, self._options)
        for head in self._tied:
            head.set_table(self._table)

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """ids: [T] int32 or int64, each below the vocabulary's size -> [T, E] model dtype."""
        assert self._table is not None, f"{self._name} is not loaded"
        if self._tp.size == 1:
            return functional.embedding(ids, self._table)
        local = ids - self._shard.first
        elsewhere = (local < 0) | (local >= self._shard.local)
        hidden = functional.embedding(local.masked_fill_(elsewhere, 0), self._table)
        return self._tp.all_reduce(hidden.masked_fill_(elsewhere.unsqueeze(1), 0.0))


class ParallelLMHead:
    """Hidden states to float32 logits of the whole vocabulary.

    name: of its own checkpoint tensor. tied_to: the embedding whose table it uses instead.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        *,
        name: str,
        tp: TensorParallel,
        options: WeightOptions,
        tied_to: VocabParallelEmbedding | None = None,
    ) -> None:
        self._shard = _VocabShard(vocab_size, hidden_size, tp)
        self._name, self._tp, self._options = name, tp, options
        self._linear: Linear | None = None
        self._is_tied = tied_to is not None
        if tied_to is not None:
            tied_to.tie(self)

    def loaders(self) -> dict[str, Loader]:
        """Checkpoint name -> loader; empty for a tied head."""
        return {} if self._is_tied else {f"{self._name}.weight": self._load}

    def _load(self, source: WeightSource) -> None:
        self.set_table(self._shard.load(source, self._options))

    def set_table(self, table: torch.Tensor) -> None:
        """table: [local vocab, E]; keeps it or a packed copy."""
        self._linear = pack_linear(table, None, weight_format=self._options.linear_format)

    def __call__(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """hidden: [N, E], the rows to be sampled only -> [N, V] float32 on every rank.

        Writes into `out` if given and returns it.
        """
        assert self._linear is not None, f"{self._name} is not loaded"
        # the slice drops the padding, a no-op without any
        logits = self._tp.all_gather(self._linear(hidden))[:, : self._shard.shape[0]]
        return logits.float() if out is None else out.copy_(logits)

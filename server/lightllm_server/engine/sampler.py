"""Chooses each row's next token; keeps per row of the request table what its sampling parameters
ask for.

Logprobs are those of the model: log softmax of the raw logits, before penalties, bias and
temperature. Noise depends on (seed, choice, position, token id) alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lightllm_kernels.logprobs import token_logprobs, top_logprobs
from lightllm_kernels.penalties import add_logit_bias
from lightllm_kernels.sample_tokens import RandomRows, sample_tokens
from lightllm_server.engine.staging import Uploader, make_uploader
from lightllm_server.engine.token_counts import TokenCounts
from lightllm_server.messages import SamplingParams, TopLogprob
from lightllm_server.router.step_plan import Int32Array, RowStart, StepPlan

__all__ = ["Sampled", "Sampler", "noise_seed"]

_NO_TOPS = -1
# below, logits divided by it may leave float32, and the best token has all the mass anyway
_MIN_TEMPERATURE = 1e-5
_WORD = 2**64 - 1


def noise_seed(seed: int, choice: int) -> int:
    """The seed of one of a request's `n` choices, signed 64 bit; choice 0 keeps the request's
    seed.
    """
    # the golden ratio's odd multiple spreads neighbouring choices over all bits (splitmix64)
    folded = (seed + choice * 0x9E3779B97F4A7C15) & _WORD
    return folded - 2**64 if folded >= 2**63 else folded


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a step drew, on the device: ids [N] int64, logprobs [N] float32, and the best of some
    rows.

    top_counts: index among the N → how many alternatives it asked for, in the order of the rows of
    top_logprobs, top_ids [K, k].
    """

    ids: torch.Tensor
    logprobs: torch.Tensor
    top_counts: dict[int, int]
    top_logprobs: torch.Tensor | None = None
    top_ids: torch.Tensor | None = None

    def tops(self) -> dict[int, tuple[TopLogprob, ...]]:
        """The alternatives as messages carry them; waits for the device."""
        if self.top_logprobs is None or self.top_ids is None:
            return {}
        values, ids = self.top_logprobs.tolist(), self.top_ids.tolist()
        return {
            index: tuple(map(TopLogprob, ids[i][:count], values[i][:count]))
            for i, (index, count) in enumerate(self.top_counts.items())
        }


class Sampler:
    """Per-row state in numpy tables, since rows are chosen on the host; penalty counts on the
    device.
    """

    def __init__(
        self,
        *,
        num_rows: int,
        vocab_size: int,
        eos_ids: tuple[int, ...],
        device: torch.device,
        uploader: Uploader | None = None,
    ) -> None:
        self._eos_ids = eos_ids
        self._uploader = make_uploader(device) if uploader is None else uploader
        self._temperature = np.zeros(num_rows, np.float32)
        self._top_k = np.zeros(num_rows, np.int64)
        self._top_p = np.ones(num_rows, np.float32)
        self._min_p = np.zeros(num_rows, np.float32)
        self._seeds = np.zeros(num_rows, np.int64)
        self._tops = np.full(num_rows, _NO_TOPS, np.int32)
        self._min_new_tokens = np.zeros(num_rows, np.int32)
        self._params: dict[int, SamplingParams] = {}
        self._biases: dict[int, tuple[tuple[int, ...], tuple[float, ...]]] = {}
        self._counts = TokenCounts(num_rows, vocab_size, device, self._uploader)

    def start(self, start: RowStart) -> None:
        """Set a row's state; forgets what the row was before."""
        row, sampling = start.row, start.sampling
        greedy = sampling.temperature < _MIN_TEMPERATURE
        self._temperature[row] = 0.0 if greedy else sampling.temperature
        self._top_k[row] = sampling.top_k
        self._top_p[row] = sampling.top_p
        self._min_p[row] = sampling.min_p
        self._seeds[row] = noise_seed(sampling.seed, start.choice)
        self._tops[row] = _NO_TOPS if sampling.logprobs is None else sampling.logprobs
        self._min_new_tokens[row] = sampling.min_new_tokens
        self._params[row] = sampling
        self._biases.pop(row, None)
        if sampling.logit_bias:
            bias = sampling.logit_bias
            self._biases[row] = tuple(bias), tuple(bias.values())
        self._counts.start(start)

    def sample(self, logits: torch.Tensor, plan: StepPlan) -> Sampled:
        """Draw the step's tokens.

        logits: [N, V], row i for `plan.sample_rows[i]`; float32 and not shared with the caller, or
        any other dtype.
        """
        rows = plan.sample_rows
        assert len(logits) == len(rows), (logits.shape, len(rows))
        raw = logits.float()
        adjusted = self._adjust(raw, rows, plan.sample_out_lens)
        random_rows = self._random_rows(rows, plan.sample_positions)
        ids = sample_tokens(adjusted, random_rows)
        self._counts.add(rows, ids)
        return self._with_tops(Sampled(ids, token_logprobs(raw, ids), {}), raw, rows)

    def _random_rows(self, rows: Int32Array, positions: Int32Array) -> RandomRows | None:
        """The rows that are not greedy; rows: [N] of the request table, positions: [N]."""
        drawn = np.flatnonzero(self._temperature[rows] > 0)
        if not len(drawn):
            return None
        table = rows[drawn]
        top_k, top_p, min_p = self._top_k[table], self._top_p[table], self._min_p[table]
        # two arrays instead of seven: each costs tens of microseconds to make into a tensor
        integers = np.stack([drawn, top_k, self._seeds[table], positions[drawn]], dtype=np.int64)
        numbers = np.stack([self._temperature[table], top_p, min_p])
        integer_rows, number_rows = self._uploader.upload(integers, numbers)
        row_indices, top_ks, seeds, places = integer_rows.unbind()
        temperatures, top_ps, min_ps = number_rows.unbind()
        has_top_p = bool((top_p < 1).any())
        return RandomRows(
            rows=row_indices,
            temperature=temperatures,
            top_k=top_ks,
            top_p=top_ps,
            min_p=min_ps,
            seeds=seeds,
            positions=places,
            max_top_k=int(top_k.max()) if (top_k > 0).all() else 0,
            truncates=has_top_p or bool((top_k > 0).any() or (min_p > 0).any()),
            has_top_p=has_top_p,
        )

    def _adjust(self, raw: torch.Tensor, rows: Int32Array, out_lens: Int32Array) -> torch.Tensor:
        """Penalties, bias and masks, on a copy if there are any."""
        entries: list[tuple[int, int, float]] = []
        if self._biases:
            for index, row in enumerate(rows.tolist()):
                for token_id, value in zip(*self._biases.get(row, ((), ())), strict=True):
                    entries.append((index, token_id, value))
        for index in np.flatnonzero(out_lens < self._min_new_tokens[rows]).tolist():
            entries += [(index, token_id, float("-inf")) for token_id in self._ends(rows[index])]
        penalised = self._counts.penalised(rows)
        if not entries and penalised is None:
            return raw
        adjusted = raw.clone()
        if penalised is not None:
            penalised.apply(adjusted)
        if entries:
            indices, ids, values = zip(*entries, strict=True)
            add_logit_bias(
                adjusted,
                *self._uploader.upload(
                    np.array(indices, np.int64),
                    np.array(ids, np.int64),
                    np.array(values, np.float32),
                ),
            )
        return adjusted

    def _ends(self, row: int) -> set[int]:
        """The ids that would end the row."""
        sampling = self._params[int(row)]
        return {*sampling.stop_token_ids, *(() if sampling.ignore_eos else self._eos_ids)}

    def _with_tops(self, sampled: Sampled, raw: torch.Tensor, rows: Int32Array) -> Sampled:
        wanted = self._tops[rows]
        indices = np.flatnonzero(wanted > 0)
        if not len(indices):
            return sampled
        (chosen_rows,) = self._uploader.upload(indices)
        chosen = raw.index_select(0, chosen_rows)
        values, ids = top_logprobs(chosen, int(wanted.max()))
        counts = dict(zip(indices.tolist(), wanted[indices].tolist(), strict=True))
        return Sampled(sampled.ids, sampled.logprobs, counts, values, ids)

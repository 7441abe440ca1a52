"""How much of the KV cache a set of requests will need: the policies, pure arithmetic over arrays.

`EfficientAdmission` is LightLLM's peak estimate (`Efficient Router`, lightllm 2023 `req_queue.py`)
without its defects; `PastFutureAdmission` takes that peak over output lengths drawn from a history;
`ConservativeAdmission` reserves the worst case. Not here: which requests are asked for
(`admission_scan.py`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lightllm_server.router.node_table import NodeTable
from lightllm_server.router.output_lengths import OutputLengths, quantiles
from lightllm_server.router.row_table import BoolArray, IntArray

__all__ = [
    "AdmissionPolicy",
    "ConservativeAdmission",
    "EfficientAdmission",
    "Occupancy",
    "PastFutureAdmission",
    "peak_of",
    "policy",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Occupancy:
    """B rows that run or ask to, as if all of them ran. Cached prefixes that nobody holds count as
    free.

    held: [B] tokens that only this row holds once it is prefilled.
    nodes: [B] number of the tree node of each one's shared prefix. out_lens: [B] tokens sampled so
    far, those in flight included. limits: [B] most output tokens. exact: [B] whether the limit will
    be reached for certain. prefill_steps: [B] steps until it is prefilled, at least.
    keys: [B] a number for each row, the same whenever it is asked for. preemptions: [B] how often
    its request was preempted.
    """

    held: IntArray
    nodes: IntArray
    out_lens: IntArray
    limits: IntArray
    exact: BoolArray
    prefill_steps: IntArray
    keys: IntArray
    preemptions: IntArray
    tree: NodeTable

    def held_in(self, order: IntArray) -> IntArray:
        """[B] tokens held per row in `order`; what several share counts for the first of them."""
        held: IntArray = self.held[order] + self.tree.shares(self.nodes[order])
        return held


class AdmissionPolicy(ABC):
    """Foresees how much cache a set of rows will need; what needs more than there is must wait.

    `peak` must be monotone: no row that joins lowers it.
    """

    @abstractmethod
    def peak(self, rows: Occupancy) -> int:
        """Slots that `rows` need together at their worst moment; 0 without rows."""

    def observe(self, out_len: int) -> None:  # noqa: B027
        """An output ended by itself after `out_len` tokens: at an eos, a stop id or stop string."""


def peak_of(rows: Occupancy, remaining: IntArray) -> int:
    """The highest of the moments when a row ends, the longer-running still there; 0 without rows.

    remaining: [B] tokens that each row will still take. With the rows sorted by remaining length b,
    longest first, and holding a: peak = max_i(b_i × i + Σ_{j≤i} a_j).
    """
    if not len(remaining):
        return 0
    order = np.argsort(-remaining, kind="stable")
    counts = np.arange(1, len(order) + 1)
    return int((remaining[order] * counts + np.cumsum(rows.held_in(order))).max())


class EfficientAdmission(AdmissionPolicy):
    """Admit while the estimated peak fits; preemption is the net under the estimate.

    Without `ignore_eos`, a request is expected to have min(max_new_tokens, max(1.1 × out, mean))
    output tokens, where `mean` is that of the last `window` outputs that ended by
    themselves, at most `expected_new_tokens`, which it is as long as none has. (LightLLM always
    expects 1024, which leaves most of the cache empty where answers are short.)
    steps_in_flight: added to every remaining length, since a step is planned before the last one is
    read.
    """

    def __init__(
        self, *, expected_new_tokens: int = 1024, window: int = 1000, steps_in_flight: int = 1
    ) -> None:
        self._lengths = OutputLengths(window)
        self._expected_new_tokens = expected_new_tokens
        self._steps_in_flight = steps_in_flight

    def observe(self, out_len: int) -> None:
        self._lengths.add(out_len)

    def peak(self, rows: Occupancy) -> int:
        expected = self._expected_new_tokens
        if len(self._lengths):
            expected = min(expected, math.ceil(self._lengths.mean))
        guess = np.maximum((rows.out_lens * 1.1).astype(np.int64), expected)
        total = np.where(rows.exact, rows.limits, np.minimum(rows.limits, guess))
        return peak_of(rows, total - rows.out_lens + self._steps_in_flight + rows.prefill_steps)


class PastFutureAdmission(AdmissionPolicy):
    """Admit while the peak over drawn output lengths fits (Past-Future scheduler, ASPLOS 2025).

    Each request is expected to become as long as one of the last `window` outputs that ended by
    themselves and are longer than it is so far, drawn once per request by `seed`: so a request that
    is refused has not better luck a step later. Its limit is expected where that is certain
    (`ignore_eos`), where no known output is longer, and of a request that was preempted
    `max_preemptions` times.
    reserved: added to the peak, as a part of it, unless all lengths are certain: what ends late and
    what ends early do not quite cancel out.
    steps_in_flight: as in `EfficientAdmission`.
    """

    def __init__(
        self,
        *,
        window: int = 1000,
        seed: int = 0,
        max_preemptions: int = 2,
        reserved: float = 0.03,
        steps_in_flight: int = 1,
    ) -> None:
        self._lengths = OutputLengths(window)
        self._seed = seed
        self._max_preemptions = max_preemptions
        self._reserved = reserved
        self._steps_in_flight = steps_in_flight

    def observe(self, out_len: int) -> None:
        self._lengths.add(out_len)

    def peak(self, rows: Occupancy) -> int:
        drawn, known = self._lengths.draw(rows.out_lens, quantiles(rows.keys, self._seed))
        worst = rows.exact | ~known | (rows.preemptions >= self._max_preemptions)
        total = np.where(worst, rows.limits, np.minimum(rows.limits, drawn))
        remaining = total - rows.out_lens + self._steps_in_flight + rows.prefill_steps
        peak = peak_of(rows, remaining)
        return math.ceil(peak * (1 + self._reserved)) if (total < rows.limits).any() else peak


class ConservativeAdmission(AdmissionPolicy):
    """Admit what fits if every request uses all its max_new_tokens: preempts nothing, ever."""

    def peak(self, rows: Occupancy) -> int:
        """The sum of all worst cases."""
        held = rows.held_in(np.arange(len(rows.held)))
        return int(held.sum() + (rows.limits - rows.out_lens).sum())


def policy(name: Literal["efficient", "past-future", "conservative"]) -> AdmissionPolicy:
    """The policy of the command line's name."""
    match name:
        case "efficient":
            return EfficientAdmission()
        case "past-future":
            return PastFutureAdmission()
        case "conservative":
            return ConservativeAdmission()

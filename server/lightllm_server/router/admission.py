"""How much of the KV cache a set of requests will need: the policies, pure arithmetic over arrays.

`EfficientAdmission` is LightLLM's peak estimate (`Efficient Router`, lightllm 2023 `req_queue.py`)
without its defects, in expectation where lengths are uncertain; `PastFutureAdmission` takes that
peak over output lengths drawn from a history; `ConservativeAdmission` reserves the worst case. Not
here: which requests are asked for (`admission_scan.py`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lightllm_server.router.node_table import NodeTable
from lightllm_server.router.output_lengths import FloatArray, OutputLengths, quantiles
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

# into which `EfficientAdmission` divides the time to come, at most
_SPANS = 12


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

    def divide(self, first: IntArray, others: IntArray) -> tuple[IntArray, int]:
        """[B] tokens held per row, those of `first` in their order, then those of `others`; and the
        tokens that one of `others` holds with any row together, which count for none.
        """
        order = np.concatenate([first, others])
        shares, common = self.tree.divide(self.nodes[order], len(first))
        return self.held[order] + shares, common


class AdmissionPolicy(ABC):
    """Foresees how much cache a set of rows will need; what needs more than there is must wait.

    `peak` must have room for all that the rows hold and a token more for each, and be monotone: no
    row that joins lowers it.
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
    """Admit while the expected occupancy fits at every moment; preemption is the net under it.

    A request ends as the last `window` outputs did that ended by themselves and are longer than it
    is so far, and at its limit at the latest. Where its limit is certain (`ignore_eos`) that is its
    length; where no known output is longer, LightLLM's guess min(max_new_tokens, max(1.1 × out,
    expected_new_tokens)). If all lengths are such, the peak is LightLLM's. A prefix that several
    rows share is expected to stay.
    reserved: added to what is uncertain, as a part of it.
    horizon: steps beyond which nothing uncertain is foreseen: by then much will have ended, and
    what is in the way is young, and cheap to compute again.
    steps_in_flight: added to every remaining length, since a step is planned before the last one is
    read.
    """

    def __init__(
        self,
        *,
        expected_new_tokens: int = 1024,
        window: int = 300,
        reserved: float = 0.01,
        horizon: int = 64,
        steps_in_flight: int = 1,
    ) -> None:
        self._lengths = OutputLengths(window)
        self._expected_new_tokens = expected_new_tokens
        self._reserved = reserved
        self._steps_in_flight = steps_in_flight
        # of spans of the time to come, which become longer with the distance
        self._last_steps = np.unique(np.geomspace(1, horizon, _SPANS).astype(np.int64))
        self._first_steps = np.concatenate([[1], self._last_steps[:-1] + 1])

    def observe(self, out_len: int) -> None:
        self._lengths.add(out_len)

    def peak(self, rows: Occupancy) -> int:
        outs, delays = rows.out_lens, self._steps_in_flight + rows.prefill_steps
        longest = self._lengths.longest
        # rows of one length, known or guessed
        fixed = rows.exact | (outs >= longest)
        guess = np.maximum((outs * 1.1).astype(np.int64), self._expected_new_tokens)
        guess[~fixed] = longest
        total = np.where(rows.exact, rows.limits, np.minimum(rows.limits, guess))
        remaining = total - outs + delays
        if fixed.all():
            return peak_of(rows, remaining)
        first, others = np.flatnonzero(fixed), np.flatnonzero(~fixed)
        first = first[np.argsort(-remaining[first], kind="stable")]
        held, common = rows.divide(first, others)
        held_by_fixed, held_by_others = np.split(held, [len(first)])
        alive, tokens = self._lengths.survivors(
            held_by_others, outs[others], remaining[others], delays[others], self._first_steps
        )
        expected = (tokens + self._last_steps * alive) * (1 + self._reserved)
        peak = _peak_beside(held_by_fixed, remaining[first], self._last_steps, expected)
        return math.ceil(peak) + common


def _peak_beside(held: IntArray, remaining: IntArray, steps: IntArray, others: FloatArray) -> float:
    """The highest of the moments when one of N rows ends or a span does, with what others hold.

    held, remaining: [N] as in `peak_of`, longest first. steps: [M] the last of each span of the
    time to come. others: [M] tokens that others hold in it at most, then none.
    """
    tokens = np.concatenate([[0], np.cumsum(held)])
    counts = np.searchsorted(-remaining, -steps, side="right")
    at_steps = steps * counts + tokens[counts] + others
    at_ends = remaining * np.arange(1, len(held) + 1) + tokens[1:]
    at_ends = at_ends + np.append(others, 0.0)[np.searchsorted(steps, remaining)]
    return float(np.concatenate([at_steps, at_ends]).max())


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

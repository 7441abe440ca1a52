"""How much of the KV cache a set of requests will need: the policies, pure arithmetic over arrays.

`EfficientAdmission` is LightLLM's peak estimate (`Efficient Router`, lightllm 2023 `req_queue.py`)
without its defects; `ConservativeAdmission` reserves the worst case. Not here: which requests are
asked for (`admission_scan.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from lightllm_server.router.node_table import NodeTable
from lightllm_server.router.row_table import BoolArray, IntArray

__all__ = ["AdmissionPolicy", "ConservativeAdmission", "EfficientAdmission", "Occupancy", "policy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Occupancy:
    """B rows that run or ask to, as if all of them ran. Cached prefixes that nobody holds count as
    free.

    held: [B] tokens that only this row holds once it is prefilled.
    nodes: [B] number of the tree node of each one's shared prefix. out_lens: [B] tokens sampled so
    far, those in flight included. limits: [B] most output tokens. exact: [B] whether the limit will
    be reached for certain. prefill_steps: [B] steps until it is prefilled, at least.
    """

    held: IntArray
    nodes: IntArray
    out_lens: IntArray
    limits: IntArray
    exact: BoolArray
    prefill_steps: IntArray
    tree: NodeTable

    def held_in(self, order: IntArray) -> IntArray:
        """[B] tokens held per row in `order`; what several share counts for the first of them."""
        held: IntArray = self.held[order] + self.tree.shares(self.nodes[order])
        return held


class AdmissionPolicy(Protocol):
    """Foresees how much cache a set of rows will need; what needs more than there is must wait.

    `peak` must be monotone: no row that joins lowers it.
    """

    def peak(self, rows: Occupancy) -> int:
        """Slots that `rows` need together at their worst moment; 0 without rows."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EfficientAdmission:
    """Admit while the estimated peak fits; preemption is the net under the estimate.

    Without `ignore_eos`, a request is expected to have min(max_new_tokens, max(1.1 × out,
    expected_new_tokens)) output tokens.
    steps_in_flight: added to every remaining length, since a step is planned before the last one is
    read.
    """

    expected_new_tokens: int = 1024
    steps_in_flight: int = 1

    def peak(self, rows: Occupancy) -> int:
        """The highest of the moments when a row ends, the longer-running still there.

        With rows sorted by remaining length b, longest first, and holding a: peak = max_i(b_i × i +
        Σ_{j≤i} a_j).
        """
        if not len(rows.held):
            return 0
        guess = np.maximum((rows.out_lens * 1.1).astype(np.int64), self.expected_new_tokens)
        total = np.where(rows.exact, rows.limits, np.minimum(rows.limits, guess))
        remaining = total - rows.out_lens + self.steps_in_flight + rows.prefill_steps
        order = np.argsort(-remaining, kind="stable")
        counts = np.arange(1, len(order) + 1)
        return int((remaining[order] * counts + np.cumsum(rows.held_in(order))).max())


@dataclass(frozen=True, slots=True)
class ConservativeAdmission:
    """Admit what fits if every request uses all its max_new_tokens: preempts nothing, ever."""

    def peak(self, rows: Occupancy) -> int:
        """The sum of all worst cases."""
        held = rows.held_in(np.arange(len(rows.held)))
        return int(held.sum() + (rows.limits - rows.out_lens).sum())


def policy(name: Literal["efficient", "conservative"]) -> AdmissionPolicy:
    """The policy of the command line's name."""
    return EfficientAdmission() if name == "efficient" else ConservativeAdmission()

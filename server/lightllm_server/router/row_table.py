"""What the scheduler knows of each request-table row, as arrays, so that a step over 1000 rows
costs microseconds.

Lives here: the arrays and the free rows. Not here: slots changing hands (`slot_ledger.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lightllm_server.router.node_table import ROOT
from lightllm_server.router.request import Choice
from lightllm_server.router.step_plan import Int32Array

__all__ = ["RowTable"]

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class RowTable:
    """R rows. A row is free, or belongs to one choice from its admission on.

    slots: [R, M] slot of each position; only `path_lens[row]` … `lengths[row]`-1 are kept up to
    date.
    tokens: [R, M] token of each position, as far as known. known_lens: [R] how far that is.
    lengths: [R] positions that planned steps have written. path_lens: [R] those at the front that
    the tree owns.
    nodes: [R] number of the node that owns them.
    targets: [R] positions to be prefilled before the first sample. out_lens: [R] tokens sampled,
    those in flight included.
    limits: [R] most output tokens. exact: [R] whether the limit will be reached for certain
    (ignore_eos).
    request_ids, indices: [R] of the choices. keys: [R] a number for each choice, the same whenever
    it runs, -1 where free. own_stops: [R] whether it has stop ids of its own.
    preemptions: [R] times that its request was preempted.
    active: [R] not free. decodable: [R] the next step may decode it.
    """

    def __init__(self, max_rows: int, max_len: int) -> None:
        self.max_rows = max_rows
        # touched page by page: address space, not memory
        self.slots: npt.NDArray[np.int32] = np.empty((max_rows, max_len), dtype=np.int32)
        self.tokens: npt.NDArray[np.int32] = np.empty((max_rows, max_len), dtype=np.int32)
        self.known_lens: IntArray = np.zeros(max_rows, dtype=np.int64)
        self.lengths: IntArray = np.zeros(max_rows, dtype=np.int64)
        self.path_lens: IntArray = np.zeros(max_rows, dtype=np.int64)
        self.nodes: IntArray = np.zeros(max_rows, dtype=np.int64)
        self.targets: IntArray = np.zeros(max_rows, dtype=np.int64)
        self.out_lens: IntArray = np.zeros(max_rows, dtype=np.int64)
        self.limits: IntArray = np.zeros(max_rows, dtype=np.int64)
        self.exact: BoolArray = np.zeros(max_rows, dtype=np.bool_)
        self.request_ids: IntArray = np.zeros(max_rows, dtype=np.int64)
        self.indices: IntArray = np.zeros(max_rows, dtype=np.int64)
        self.keys: IntArray = np.full(max_rows, -1, dtype=np.int64)
        self.own_stops: BoolArray = np.zeros(max_rows, dtype=np.bool_)
        self.preemptions: IntArray = np.zeros(max_rows, dtype=np.int64)
        self.active: BoolArray = np.zeros(max_rows, dtype=np.bool_)
        self.decodable: BoolArray = np.zeros(max_rows, dtype=np.bool_)
        self.choices: npt.NDArray[Any] = np.full(max_rows, None, dtype=object)
        self._free = list(range(max_rows - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_active(self) -> int:
        return self.max_rows - len(self._free)

    def take(self, choice: Choice) -> int:
        """Give a free row to `choice`, with what it knows but nothing written yet."""
        row = self._free.pop()
        num_known = len(choice.known)
        self.tokens[row, :num_known] = choice.known
        self.known_lens[row] = num_known
        self.request_ids[row] = choice.request_id
        self.indices[row] = choice.index
        self.choices[row] = choice
        self.active[row] = True
        self.lengths[row] = self.path_lens[row] = self.targets[row] = 0
        self.nodes[row] = ROOT
        self.out_lens[row] = len(choice.output_ids)
        self.limits[row] = choice.limit
        sampling = choice.request.message.sampling
        self.exact[row] = sampling.ignore_eos
        self.keys[row] = choice.key
        self.own_stops[row] = bool(sampling.stop_token_ids)
        self.preemptions[row] = choice.request.num_preemptions
        return row

    def give_back(self, row: int) -> None:
        """The row is free; its choice takes the output along."""
        choice = self.choices[row]
        start = len(choice.request.prompt)
        choice.output_ids = self.tokens[row, start : self.known_lens[row]].tolist()
        self.choices[row] = None
        self.keys[row] = -1
        self.active[row] = self.decodable[row] = False
        self._free.append(row)

    def write(self, row: int, slots: npt.NDArray[np.int32]) -> None:
        """The next positions of `row` are written to `slots` [any length]."""
        start = int(self.lengths[row])
        self.slots[row, start : start + len(slots)] = slots
        self.lengths[row] = start + len(slots)

    def write_decoded(self, rows: npt.NDArray[np.int64], slots: npt.NDArray[np.int32]) -> None:
        """One position more for each of `rows`, and one sample: rows, slots: [D]."""
        self.slots[rows, self.lengths[rows]] = slots
        self.lengths[rows] += 1
        self.count_samples(rows)

    def count_samples(self, rows: npt.NDArray[np.int64]) -> None:
        """A sample of each of `rows` [any length] is planned; at the limit it was the last."""
        self.out_lens[rows] += 1
        self.decodable[rows] = self.out_lens[rows] < self.limits[rows]

    def are_amid(self, rows: Int32Array, keys: IntArray, out_lens: Int32Array) -> BoolArray:
        """[N] whether a token of `rows` [N] after `out_lens` [N] others is neither first nor last.

        keys: [N] of the choices that had the rows when the token was planned; False for those that
        have left. A stop id may end the output nevertheless.
        """
        amid: BoolArray = (out_lens > 0) & (out_lens + 1 < self.limits[rows])
        amid &= self.keys[rows] == keys
        return amid

    def add_token(self, row: int, token_id: int) -> None:
        """The next token of `row` is known."""
        at = self.known_lens[row]
        self.tokens[row, at] = token_id
        self.known_lens[row] = at + 1

    def add_tokens(self, rows: Int32Array, token_ids: IntArray) -> None:
        """As `add_token`, for rows [any length, each once] together."""
        lens = self.known_lens[rows]
        self.tokens[rows, lens] = token_ids
        self.known_lens[rows] = lens + 1

    def has_decoded(self, choice: Choice) -> bool:
        """A token sampled since the choice's row began is known: its prefill steps are done."""
        return bool(self.known_lens[choice.row] > len(choice.known))

    def num_outputs(self, choice: Choice) -> int:
        """Output tokens known of a choice, whether it has a row or not."""
        if choice.row < 0:
            return len(choice.output_ids)
        return int(self.known_lens[choice.row]) - len(choice.request.prompt)

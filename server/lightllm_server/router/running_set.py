"""The requests that hold rows of the request table: how they come by rows and slots, take part in
steps, and lose them.

Not here: which request starts or gives way (`scheduler.py`), and whose a slot is
(`slot_ledger.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lightllm_server.router.prefill_set import PrefillSet, waiting_siblings
from lightllm_server.router.prefix_cache import Node
from lightllm_server.router.request import Choice, Request
from lightllm_server.router.row_table import IntArray
from lightllm_server.router.slot_ledger import SlotLedger
from lightllm_server.router.step_builder import PlannedStep, StepBuilder
from lightllm_server.router.step_plan import Int32Array

__all__ = ["RunningSet"]

_NO_SLOTS: Int32Array = np.empty(0, dtype=np.int32)


class RunningSet:
    """prefill: the rows that have known tokens still to be computed.

    recomputed_tokens_total: positions prefilled again after a preemption.
    """

    def __init__(self, ledger: SlotLedger) -> None:
        self.ledger = ledger
        self.rows = ledger.rows
        self.prefill = PrefillSet(ledger.rows)
        self.recomputed_tokens_total = 0
        self._requests: dict[int, Request] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests.values())

    def __contains__(self, request: Request) -> bool:
        return request.request_id in self._requests

    def oldest_first(self) -> list[Request]:
        """In the order of arrival."""
        return sorted(self._requests.values(), key=lambda request: request.order)

    def start(self, request: Request, node: Node) -> None:
        """Give rows to all live choices; the first prefills behind `node`, the others wait for the
        prompt.
        """
        self._requests[request.request_id] = request
        lead, *siblings = request.live
        for choice in (lead, *siblings):
            choice.row = self.rows.take(choice)
        self.ledger.begin(lead, node)
        self.prefill.add(lead)
        for choice in siblings:
            self.ledger.reserve(choice)
        if siblings and node.end == len(request.prompt):
            self._share_prompt(lead)

    def take_step(
        self, step: int, chunks: list[tuple[Choice, int]], decode_rows: IntArray
    ) -> PlannedStep:
        """Step number `step`: choices that prefill so many tokens, and rows [D] that decode one.

        Hands out the slots and notes what the step will have written.
        """
        builder = StepBuilder(step, self.rows)
        num_prefill = sum(count for _, count in chunks)
        slots = self.ledger.allocate(num_prefill + len(decode_rows))
        at = 0
        sampled: list[int] = []
        for choice, count in chunks:
            sampled += self._take_chunk(builder, choice, slots[at : at + count])
            at += count
        planned = builder.build(decode_rows, slots)
        self.rows.write_decoded(decode_rows, slots[at:])
        self.rows.count_samples(np.array(sampled, dtype=np.int64))
        return planned

    def release(self, choice: Choice, *, keep: bool) -> None:
        """Take the choice's row; with `keep`, what is certain of its KV may stay as cache."""
        self.prefill.discard(choice)
        self.ledger.release(choice, keep=keep)

    def remove(self, request: Request, *, keep: bool) -> None:
        """Take all its rows."""
        del self._requests[request.request_id]
        for choice in request.live:
            self.release(choice, keep=keep)

    def has_decoded(self, request: Request) -> bool:
        """It runs, and has got a token since it started."""
        return request in self and any(map(self.rows.has_decoded, request.live))

    def check_invariants(self) -> None:
        """Raise AssertionError unless rows, slots and prefills agree."""
        self.ledger.check_invariants()
        live = [choice for request in self for choice in request.live]
        assert len(live) == self.rows.num_active, (len(live), self.rows.num_active)
        assert all(choice.row >= 0 for choice in live), "a running choice has no row"
        assert all(choice.row >= 0 for choice in self.prefill), "a prefill without a row"
        decodable = set(np.flatnonzero(self.rows.decodable).tolist())
        prefilling = {choice.row for choice in self.prefill}
        assert not decodable & prefilling, (decodable, prefilling)

    def _take_chunk(self, builder: StepBuilder, choice: Choice, slots: Int32Array) -> list[int]:
        """Plan the row's next tokens into `slots`; returns the rows sampled at their end."""
        start = int(self.rows.lengths[choice.row])
        end = start + len(slots)
        if not choice.started:
            assert choice.node is not None, "a row starts without a node"
            builder.start(choice, self.ledger.tree.path_slots(choice.node))
        builder.chunk(choice, start, len(slots))
        self.rows.write(choice.row, slots)
        self.recomputed_tokens_total += max(0, min(end, choice.computed) - start)
        self.ledger.cache_chunk(choice, builder.step)
        siblings: list[Choice] = []
        if end == len(choice.request.prompt) and waiting_siblings(choice):
            siblings = self._share_prompt(choice)
        if end < len(choice.known):
            return []
        self.prefill.discard(choice)
        for sibling in siblings:
            builder.start(sibling, _NO_SLOTS)
            builder.copy(choice, sibling, end)
        sampled = [choice, *siblings]
        for one in sampled:
            builder.sample(one, end)
        return [one.row for one in sampled]

    def _share_prompt(self, lead: Choice) -> list[Choice]:
        """The prompt is computed: its slots become the waiting siblings' too, who are returned."""
        siblings = waiting_siblings(lead)
        self.ledger.share(lead)
        for choice in siblings:
            assert lead.node is not None, "a prompt without a node"
            self.ledger.begin(choice, lead.node)
            if choice.output_ids:
                self.prefill.add(choice)
        return siblings

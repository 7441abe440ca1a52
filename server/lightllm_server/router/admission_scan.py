"""Which requests at the head of the queue may start: strictly first come, first served.

Lives here: looking at the queue, rows and token budget. Not here: whether a set of requests fits
into the cache (`admission.py`), and starting them (`scheduler.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

from lightllm_server.router.admission import AdmissionPolicy, Occupancy
from lightllm_server.router.node_table import ROOT
from lightllm_server.router.prefill_set import PrefillSet
from lightllm_server.router.prefix_cache import Node
from lightllm_server.router.queue import WaitingQueue
from lightllm_server.router.request import Request
from lightllm_server.router.row_table import IntArray
from lightllm_server.router.slot_ledger import SlotLedger

__all__ = ["MAX_PROMPT_SHARE", "AdmissionScan"]

# a prompt counts as at most this part of the prefill budget when the next ones ask to join: as many
# long prompts may be prefilled side by side
MAX_PROMPT_SHARE = 8
# so few free rows are asked for all at once
_FEW_ROWS = 8
# and so many while the policy refuses nothing
_MANY_ROWS = 32


class AdmissionScan:
    """Asks the policy as rarely as it can: one request costs one question, k cost about 2 log k, or
    one while it refuses nothing.

    open: whether anything happened since the head of the queue was refused that could let it in.
    """

    def __init__(
        self,
        queue: WaitingQueue,
        ledger: SlotLedger,
        policy: AdmissionPolicy,
        *,
        max_batch_tokens: int,
    ) -> None:
        self._queue = queue
        self._ledger = ledger
        self._policy = policy
        self._max_batch_tokens = max_batch_tokens
        self.open = True
        self._has_refused = False

    def choose(
        self, budget: int, prefill: PrefillSet, oldest_step: int
    ) -> list[tuple[Request, Node]]:
        """The requests to start now, in order, each with the node of its cached prefix.

        budget: tokens that this step may prefill. prefill: the rows that have not finished theirs.
        oldest_step: steps before it are committed.
        """
        num_free = self._ledger.rows.num_free
        if not (self.open and self._queue and num_free and budget > 0):
            return []
        source = self._candidates(budget, prefill, oldest_step)
        candidates: list[tuple[Request, Node]] = []
        running = self._running()
        fitting, too_many = 0, 0
        # the policy is monotone: double until it refuses, then halve
        tried = min(num_free, _MANY_ROWS)
        if self._has_refused and num_free > _FEW_ROWS:
            tried = 1
        while not too_many or too_many - fitting > 1:
            candidates.extend(islice(source, max(0, tried - len(candidates))))
            tried = min(tried, len(candidates))
            if tried == fitting:
                break
            joined = _join(running, candidates[:tried], self._max_batch_tokens)
            if self._policy.peak(joined) <= self._ledger.slots.num_slots:
                fitting = tried
            else:
                too_many = tried
            tried = (fitting + too_many) // 2 if too_many else 2 * fitting + 1
        if candidates:
            self._has_refused = too_many > 0
        if candidates and not fitting and not self._ledger.rows.num_active:
            # an estimate may be too careful for a request that has the cache for itself
            fitting = 1
        # refused by the policy: only a change of what runs can help
        self.open = fitting > 0 or not candidates
        return candidates[:fitting]

    def candidate(self, request: Request) -> Node:
        """The cached prefix that it would start with; brings its known tokens up to date."""
        live = request.live
        for choice in live:
            choice.recall()
        lead = live[0]
        # the newest known token is always computed: its logits are needed
        limit = len(lead.known) - 1
        if len(live) > 1:
            # the siblings start where the prompt ends
            limit = min(limit, len(request.prompt))
        return self._ledger.find(lead, limit)

    def fits(self, candidates: list[tuple[Request, Node]]) -> bool:
        """Ask the policy about the running rows and the candidates together."""
        joined = _join(self._running(), candidates, self._max_batch_tokens)
        return self._policy.peak(joined) <= self._ledger.slots.num_slots

    def peak(self) -> int:
        """Slots that the running rows will need at their worst moment, as the policy foresees."""
        return self._policy.peak(self._running())

    def _candidates(
        self, budget: int, prefill: PrefillSet, oldest_step: int
    ) -> Iterator[tuple[Request, Node]]:
        """The requests that rows and token budget allow to start now."""
        share = max(1, budget // MAX_PROMPT_SHARE)
        num_rows = self._ledger.rows.num_free
        total = sum(min(need, share) for need in prefill.needs())
        for request in self._queue:
            live = request.live
            num_rows -= len(live)
            if num_rows < 0 or total >= budget or request.resume_after >= oldest_step:
                return
            node = self.candidate(request)
            total += min(len(live[0].known) - node.end, share)
            yield request, node

    def _running(self) -> Occupancy:
        """The running rows."""
        table = self._ledger.rows
        rows = np.flatnonzero(table.active)
        targets, path_lens = table.targets[rows], table.path_lens[rows]
        lengths = np.maximum(table.lengths[rows], path_lens)
        to_prefill = np.maximum(targets - lengths, 0)
        return Occupancy(
            held=lengths + to_prefill - path_lens,
            nodes=table.nodes[rows],
            out_lens=table.out_lens[rows],
            limits=table.limits[rows],
            exact=table.exact[rows],
            keys=table.keys[rows],
            preemptions=table.preemptions[rows],
            prefill_steps=-(-to_prefill // self._max_batch_tokens),
            tree=self._ledger.tree.table,
        )


def _join(
    running: Occupancy, candidates: list[tuple[Request, Node]], max_batch_tokens: int
) -> Occupancy:
    """The candidates' rows beside the running ones, as if they had started."""
    held, nodes, out_lens, limits, exact, keys, preemptions = [], [], [], [], [], [], []
    for request, node in candidates:
        for i, choice in enumerate(request.live):
            # siblings get the prompt from the first
            held.append(len(choice.known) - (len(request.prompt) if i else node.end))
            nodes.append(ROOT if i else node.number)
            out_lens.append(len(choice.output_ids))
            limits.append(choice.limit)
            exact.append(request.message.sampling.ignore_eos)
            keys.append(choice.key)
            preemptions.append(request.num_preemptions)
    prefill_steps = -(-np.array(held, dtype=np.int64) // max_batch_tokens)
    return Occupancy(
        held=_append(running.held, held),
        nodes=_append(running.nodes, nodes),
        out_lens=_append(running.out_lens, out_lens),
        limits=_append(running.limits, limits),
        exact=np.concatenate([running.exact, np.array(exact, dtype=np.bool_)]),
        keys=_append(running.keys, keys),
        preemptions=_append(running.preemptions, preemptions),
        prefill_steps=np.concatenate([running.prefill_steps, prefill_steps]),
        tree=running.tree,
    )


def _append(array: IntArray, values: list[int]) -> IntArray:
    return np.concatenate([array, np.array(values, dtype=np.int64)])

"""Which requests at the head of the queue may start: strictly first come, first served.

Lives here: looking at the queue, rows and token budget. Not here: whether a set of requests fits
into the cache (`admission.py`), and starting them (`scheduler.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

from lightllm_server.router.admission import AdmissionPolicy, Occupancy
from lightllm_server.router.prefix_cache import Node
from lightllm_server.router.queue import WaitingQueue
from lightllm_server.router.request import Choice, Request
from lightllm_server.router.row_table import IntArray
from lightllm_server.router.slot_ledger import SlotLedger

__all__ = ["MAX_PROMPT_SHARE", "AdmissionScan"]

# a prompt counts as at most this part of the prefill budget when the next ones ask to join: as many
# long prompts may be prefilled side by side
MAX_PROMPT_SHARE = 8


class AdmissionScan:
    """Asks the policy as rarely as it can: one request costs one question, k cost about 2 log k.

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

    def choose(self, budget: int, asked: list[int], oldest_step: int) -> list[tuple[Request, Node]]:
        """The requests to start now, in order, each with the node of its cached prefix.

        budget: tokens that this step may prefill. asked: what each running row would still prefill.
        oldest_step: steps before it are committed.
        """
        if not self.open or not self._queue or budget <= 0:
            return []
        source = self._candidates(budget, asked, oldest_step)
        candidates: list[tuple[Request, Node]] = []
        fitting, too_many = 0, 0
        # the policy is monotone: double until it refuses, then halve
        while not too_many or too_many - fitting > 1:
            tried = (fitting + too_many) // 2 if too_many else 2 * fitting + 1
            candidates.extend(islice(source, max(0, tried - len(candidates))))
            tried = min(tried, len(candidates))
            if tried == fitting:
                break
            if self.fits(candidates[:tried]):
                fitting = tried
            else:
                too_many = tried
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
        return self._policy.fits(self._occupancy(candidates))

    def _candidates(
        self, budget: int, asked: list[int], oldest_step: int
    ) -> Iterator[tuple[Request, Node]]:
        """The requests that rows and token budget allow to start now."""
        share = max(1, budget // MAX_PROMPT_SHARE)
        num_rows = self._ledger.rows.num_free
        total = sum(min(need, share) for need in asked)
        for request in self._queue:
            live = request.live
            num_rows -= len(live)
            if num_rows < 0 or total >= budget or request.resume_after >= oldest_step:
                return
            node = self.candidate(request)
            total += min(len(live[0].known) - node.end, share)
            yield request, node

    def _occupancy(self, candidates: list[tuple[Request, Node]]) -> Occupancy:
        """The running rows, and those of the candidates as if they were."""
        table = self._ledger.rows
        rows = np.flatnonzero(table.active)
        nodes: list[Node | None] = [choice.node for choice in table.choices[rows].tolist()]
        joining: list[Choice] = []
        held = []
        for request, node in candidates:
            prompt_len = len(request.prompt)
            for i, choice in enumerate(request.live):
                joining.append(choice)
                nodes.append(None if i else node)
                held.append(len(choice.known) - (prompt_len if i else node.end))
        targets, path_lens = table.targets[rows], table.path_lens[rows]
        lengths = np.maximum(table.lengths[rows], path_lens)
        to_prefill = np.concatenate([np.maximum(targets - lengths, 0), _int64(held)])
        exact = np.array([c.request.message.sampling.ignore_eos for c in joining], dtype=np.bool_)
        out_lens = _int64([len(choice.output_ids) for choice in joining])
        limits = _int64([choice.limit for choice in joining])
        return Occupancy(
            num_slots=self._ledger.slots.num_slots,
            held=np.concatenate([np.maximum(lengths, targets) - path_lens, _int64(held)]),
            nodes=nodes,
            out_lens=np.concatenate([table.out_lens[rows], out_lens]),
            limits=np.concatenate([table.limits[rows], limits]),
            exact=np.concatenate([table.exact[rows], exact]),
            prefill_steps=-(-to_prefill // self._max_batch_tokens),
            tree=self._ledger.tree,
        )


def _int64(values: list[int]) -> IntArray:
    return np.array(values, dtype=np.int64)

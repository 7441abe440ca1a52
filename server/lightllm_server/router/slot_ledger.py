"""Who holds which KV slot: the free list, the prefix tree, or a row. Every slot is in exactly one
of the three.

A row's positions 0 … path_len-1 belong to the tree (its choice locks the node), the rest are the
row's own. Slots given back may
be handed out by the same plan: whatever still writes to them was launched before, on the same
stream.
"""

from __future__ import annotations

import numpy as np

from lightllm_server.router.kv_slots import KvSlots
from lightllm_server.router.prefix_cache import Node, PrefixCache
from lightllm_server.router.request import Choice
from lightllm_server.router.row_table import RowTable
from lightllm_server.router.step_plan import Int32Array

__all__ = ["SlotLedger"]


class SlotLedger:
    """Moves slots around; without a `prefix_cache` requests share nothing."""

    def __init__(self, slots: KvSlots, rows: RowTable, prefix_cache: PrefixCache | None) -> None:
        self.slots = slots
        self.rows = rows
        self.caching = prefix_cache is not None
        # without caching the tree only carries the prompts of n > 1, detached
        self.tree = prefix_cache or PrefixCache()

    @property
    def num_available(self) -> int:
        """Slots that can be had without taking them from a request."""
        return self.slots.num_free + self.tree.num_evictable

    def allocate(self, count: int) -> Int32Array:
        """[count] slots, evicting cached prefixes as far as needed."""
        for freed in self.tree.evict(max(0, count - self.slots.num_free)):
            self.slots.free(freed)
        return self.slots.allocate(count)

    def find(self, choice: Choice, limit: int) -> Node:
        """The longest usable prefix of at most `limit` of the choice's known tokens."""
        request = choice.request
        # prompt logprobs need the logits of every prompt token
        usable = limit if self.caching and not request.prompt_logprobs_due else 0
        return self.tree.find(request.message.cache_salt, choice.known[:usable])

    def begin(self, choice: Choice, node: Node) -> None:
        """The choice's row starts with the path of `node`; locks it."""
        self.tree.lock(node)
        self._hold(choice, node)
        row = choice.row
        self.rows.lengths[row] = node.end
        self.rows.targets[row] = len(choice.known)

    def reserve(self, choice: Choice) -> None:
        """The choice's row will start with the whole prompt, once a sibling has computed it."""
        self.rows.path_lens[choice.row] = len(choice.request.prompt)
        self.rows.targets[choice.row] = len(choice.known)

    def cache_chunk(self, choice: Choice, step: int) -> bool:
        """Move what the row holds privately, its newest chunk, into the tree; whether that was
        possible.

        Not if the tree already has these tokens: the row keeps its copy then, and its later chunks.
        """
        assert choice.node is not None, "a chunk of a row that holds no node"
        if not self.caching or choice.private:
            return False
        row, start = choice.row, choice.node.end
        end = int(self.rows.lengths[row])
        tokens, slots = choice.known[start:end], self.rows.slots[row, start:end]
        child = self.tree.extend(choice.node, tokens, slots, step)
        if child is None:
            choice.private = True
            return False
        self._hold(choice, child)
        return True

    def share(self, choice: Choice) -> None:
        """Move the rest of the row's positions below a node that its siblings can lock."""
        assert choice.node is not None, "nothing to share"
        row, start = choice.row, choice.node.end
        end = int(self.rows.lengths[row])
        if start < end:
            self._hold(choice, self.tree.detach(choice.node, self.rows.slots[row, start:end]))

    def release(self, choice: Choice, *, keep: bool) -> None:
        """Free the choice's row and slots; with `keep`, what is certain of them stays in the tree
        as cache.

        Certain is what was computed before the newest known token: nothing of a step in flight.
        """
        row, node = choice.row, choice.node
        if node is not None:
            start, end = node.end, int(self.rows.lengths[row])
            private = self.rows.slots[row, start:end].copy()
            if keep and self.caching and node.cached and self.rows.has_decoded(choice):
                certain = int(self.rows.known_lens[row]) - 1
                known = max(0, min(end, certain) - start)
                if known:
                    tokens = self.rows.tokens[row, start : start + known]
                    self.slots.free(self.tree.insert(node, tokens, private[:known]))
                    private = private[known:]
            self.slots.free(private)
            for freed in self.tree.unlock(node):
                self.slots.free(freed)
        self.rows.give_back(row)
        choice.reset()

    def purge(self, steps: set[int]) -> set[Node]:
        """Forget what abandoned steps were to write; returns the tree nodes that held it."""
        purged, freed = self.tree.purge(steps)
        for slots in freed:
            self.slots.free(slots)
        return purged

    def check_invariants(self) -> None:
        """Raise AssertionError unless every slot and every row is accounted for once."""
        rows = self.rows
        choices: list[Choice] = [choice for choice in rows.choices if choice is not None]
        assert len(choices) == rows.num_active, (len(choices), rows.num_active)
        assert int(rows.active.sum()) == rows.num_active, (rows.active.sum(), rows.num_active)
        parts = [self.slots.free_slots()]
        holders = []
        for choice in choices:
            row = choice.row
            assert rows.choices[row] is choice, (row, choice.request_id, choice.index)
            if choice.node is None:
                continue
            assert rows.path_lens[row] == choice.node.end, (rows.path_lens[row], choice.node.end)
            assert rows.nodes[row] == choice.node.number, (rows.nodes[row], choice.node.number)
            holders.append(choice.node)
            parts.append(rows.slots[row, rows.path_lens[row] : rows.lengths[row]])
        parts.extend(self.tree.check_invariants(holders))
        everything = np.sort(np.concatenate(parts))
        total = self.slots.num_slots
        assert len(everything) == total, (len(everything), total)
        assert np.array_equal(everything, np.arange(total)), "a slot is held twice"

    def _hold(self, choice: Choice, node: Node) -> None:
        choice.node = node
        self.rows.path_lens[choice.row] = node.end
        self.rows.nodes[choice.row] = node.number

"""Radix tree over token ids: which KV slots hold which prefix, who uses them, and which may go.

A node is a run of tokens with their slots; its path from the root spells a prefix of length `end`.
A holder locks one node, and with it the whole path. Unlocked nodes stay as cache and are evicted
least recently used first, the deepest of a path before what lies above it, and only as many tokens
as are needed.

A *detached* node hangs below its parent without being found by anybody: slots that several rows
share (the prompt of `n` > 1) where the tree has another copy or is switched off, and what a failed
step left behind. It is freed with its last lock.

The tree owns the slots of its nodes; slots that it gives up are returned to the caller, who frees
them. Source of the idea: RadixAttention (SGLang, arXiv 2312.07104). Not here: the free list
(`kv_slots.py`), private slots of rows (`slot_ledger.py`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from weakref import WeakValueDictionary

import numpy as np

from lightllm_server.router.node_table import ROOT, NodeTable
from lightllm_server.router.step_plan import Int32Array

__all__ = ["Node", "PrefixCache"]

_EMPTY: Int32Array = np.empty(0, dtype=np.int32)


class Node:
    """tokens, slots: [length]; end: length of the path up to and with this node; number: its place
    in the `NodeTable`; step: the newest step that writes its slots, -1 if none can be in flight.
    """

    __slots__ = (
        "__weakref__",
        "cached",
        "children",
        "end",
        "locks",
        "number",
        "parent",
        "salt",
        "slots",
        "step",
        "tokens",
    )

    def __init__(
        self,
        parent: Node | None,
        tokens: Int32Array,
        slots: Int32Array,
        *,
        salt: str,
        step: int = -1,
        cached: bool = True,
    ) -> None:
        self.parent = parent
        self.tokens = tokens
        self.slots = slots
        self.end: int = (parent.end if parent else 0) + len(tokens)
        self.salt = salt
        self.step = step
        self.cached = cached
        self.children: dict[int, Node] = {}
        self.locks = 0
        self.number = ROOT


class PrefixCache:
    """One tree per `cache_salt`. All lengths and counts are in tokens (= slots)."""

    def __init__(self) -> None:
        # a tree lives as long as a node of it, or somebody who found its root
        self._roots: WeakValueDictionary[str, Node] = WeakValueDictionary()
        # least recently used first; a node stands before its parent, so the first one is always a
        # leaf
        self._unlocked: OrderedDict[Node, None] = OrderedDict()
        self.table = NodeTable()
        self.num_evictable = 0
        self.num_cached = 0
        self.num_detached = 0

    # ------------------------------------------------------------ finding and holding

    def find(self, salt: str, tokens: Int32Array) -> Node:
        """Node of the longest cached prefix of `tokens`, the root without one; not locked yet."""
        root = self._roots.get(salt)
        if root is None:
            root = self._roots[salt] = Node(None, _EMPTY, _EMPTY, salt=salt)
        return self._descend(root, tokens)[0]

    def lock(self, node: Node) -> None:
        """One more holder of the path of `node`."""
        at: Node | None = node
        while at is not None:
            if at.locks == 0 and at.parent is not None and at.cached:
                del self._unlocked[at]
                self.num_evictable -= len(at.slots)
            at.locks += 1
            at = at.parent

    def unlock(self, node: Node) -> list[Int32Array]:
        """One holder less; the slots of detached nodes that nobody holds any more are returned."""
        freed: list[Int32Array] = []
        at: Node | None = node
        while at is not None:
            at.locks -= 1
            assert at.locks >= 0, f"node ending at {at.end} unlocked once too often"
            if at.locks == 0 and at.parent is not None:
                if at.cached:
                    self._unlocked[at] = None
                    self.num_evictable += len(at.slots)
                else:
                    self.num_detached -= len(at.slots)
                    self.table.remove(at.number)
                    freed.append(at.slots)
            at = at.parent
        return freed

    def path_slots(self, node: Node) -> Int32Array:
        """Slots of positions 0 … node.end-1: [node.end]."""
        parts = [at.slots for at in _path(node)]
        return np.concatenate([_EMPTY, *parts[::-1]])

    # ------------------------------------------------------------ growing

    def extend(self, node: Node, tokens: Int32Array, slots: Int32Array, step: int) -> Node | None:
        """Hang a chunk that `step` writes below `node`; returns the node to be held instead.

        None if the tree already knows the chunk's first token there, or `node` is detached: nothing
        changes then. A chunk that nobody else has met grows in place, so that paths stay short.
        """
        if not node.cached or int(tokens[0]) in node.children:
            return None
        if node.step >= 0 and node.locks == 1 and not node.children:
            node.tokens = np.concatenate([node.tokens, tokens])
            node.slots = np.concatenate([node.slots, slots])
            node.end += len(slots)
            node.step = step
            self.table.lengths[node.number] = len(node.slots)
            self.num_cached += len(slots)
            return node
        child = self._add(node, tokens, slots, step)
        child.locks = 1
        return child

    def detach(self, node: Node, slots: Int32Array) -> Node:
        """Hang slots below `node` that only its holder knows; the lock moves on to the new node."""
        # never matched, so what stands in for its tokens does not matter
        child = Node(node, slots, slots.copy(), salt=node.salt, cached=False)
        child.number = self.table.add(node.number, len(slots))
        child.locks = 1
        self.num_detached += len(slots)
        return child

    def insert(self, node: Node, tokens: Int32Array, slots: Int32Array) -> Int32Array:
        """Cache what a holder of `node` computed below it, before it unlocks.

        Returns the slots of the tokens that the tree already had; it owns the others now.
        """
        end, num_known = self._descend(node, tokens)
        if num_known < len(tokens):
            leaf = self._add(end, tokens[num_known:], slots[num_known:], -1)
            self._unlocked[leaf] = None
            self.num_evictable += len(leaf.slots)
        for at in _path(end):
            if at.locks == 0 and at.parent is not None:
                self._unlocked.move_to_end(at)
        return slots[:num_known]

    # ------------------------------------------------------------ shrinking

    def evict(self, count: int) -> list[Int32Array]:
        """Give up `count` tokens, at most `num_evictable`, and return their slots."""
        assert count <= self.num_evictable, f"evict {count} of {self.num_evictable} tokens"
        freed: list[Int32Array] = []
        while count > 0:
            leaf = next(iter(self._unlocked))
            assert not leaf.children, f"node ending at {leaf.end} is older than its child"
            keep = max(0, len(leaf.slots) - count)
            freed.append(leaf.slots[keep:])
            cut = len(leaf.slots) - keep
            count -= cut
            self.num_evictable -= cut
            self.num_cached -= cut
            if keep:
                leaf.tokens, leaf.slots = leaf.tokens[:keep], leaf.slots[:keep]
                leaf.end -= cut
                self.table.lengths[leaf.number] = keep
            else:
                self._remove_leaf(leaf)
        return freed

    def purge(self, steps: set[int]) -> tuple[set[Node], list[Int32Array]]:
        """Forget all that `steps`, every one in flight, were to write, and all below it.

        Returns the nodes forgotten and the slots of those that nobody holds; the others are
        detached.
        """
        tops = [n for root in self._roots.values() for n in _subtree(root) if n.step in steps]
        purged: set[Node] = set()
        freed: list[Int32Array] = []
        for top in tops:
            if top in purged:
                continue
            assert top.parent is not None
            top.parent.children.pop(int(top.tokens[0]), None)
            for node in list(_subtree(top)):
                purged.add(node)
                freed.extend(self._forget(node))
        return purged, freed

    # ------------------------------------------------------------ accounting

    def leads_through(self, node: Node | None, nodes: set[Node]) -> bool:
        """Whether the path of `node` has one of `nodes`."""
        return any(at in nodes for at in _path(node))

    def check_invariants(self, holders: list[Node]) -> list[Int32Array]:
        """Compare locks, lengths and sums with `holders`, one entry per lock; return the slots of
        all nodes.

        Raises:
            AssertionError: with the values that disagree.
        """
        locks: dict[Node, int] = {}
        for holder in holders:
            for node in [*_path(holder), _root(holder)]:
                locks[node] = locks.get(node, 0) + 1
        cached = {n for root in self._roots.values() for n in _subtree(root) if n.parent}
        detached = {n for n in locks if not n.cached}
        for root in self._roots.values():
            assert root.locks == locks.get(root, 0), (root.salt, root.locks, locks.get(root, 0))
        for node in cached | detached:
            assert node.parent is not None
            assert node.locks == locks.get(node, 0), (node.end, node.locks, locks.get(node, 0))
            assert node.end == node.parent.end + len(node.slots), (node.end, node.parent.end)
            assert self.table.lengths[node.number] == len(node.slots), (node.end, node.number)
            assert self.table.parents[node.number] == node.parent.number, (node.end, node.number)
            assert len(node.tokens) == len(node.slots) > 0, (len(node.tokens), len(node.slots))
            assert node.cached == (node in cached), (node.end, node.cached)
        unlocked = {n for n in cached if n.locks == 0}
        assert unlocked == set(self._unlocked), (len(unlocked), len(self._unlocked))
        place = {node: i for i, node in enumerate(self._unlocked)}
        for node in unlocked:
            for child in node.children.values():
                assert place[child] < place[node], (child.end, node.end)
        sums = (_length(cached), _length(unlocked), _length(detached))
        counts = (self.num_cached, self.num_evictable, self.num_detached)
        assert sums == counts, (sums, counts)
        return [node.slots for node in cached | detached]

    # ------------------------------------------------------------ inside

    def _descend(self, node: Node, tokens: Int32Array) -> tuple[Node, int]:
        """Follow `tokens` down from `node`: where they leave the tree, how many it knew."""
        at = 0
        while at < len(tokens):
            child = node.children.get(int(tokens[at]))
            if child is None:
                break
            known = _common_length(child.tokens, tokens[at:])
            at += known
            if known < len(child.tokens):
                return self._split(child, known), at
            node = child
        return node, at

    def _split(self, node: Node, length: int) -> Node:
        """Cut `node` after `length` tokens; it stays the lower part, returns the upper."""
        assert node.parent is not None
        upper = Node(
            node.parent, node.tokens[:length], node.slots[:length], salt=node.salt, step=node.step
        )
        upper.locks = node.locks
        upper.number = self.table.add(node.parent.number, length)
        self.table.parents[node.number] = upper.number
        self.table.lengths[node.number] -= length
        node.parent.children[int(node.tokens[0])] = upper
        node.tokens, node.slots = node.tokens[length:], node.slots[length:]
        node.parent = upper
        upper.children[int(node.tokens[0])] = node
        if upper.locks == 0:
            # just found, so it counts as used now, and so does all above it
            self._unlocked[upper] = None
            for above in _path(upper.parent):
                if above.locks == 0:
                    self._unlocked.move_to_end(above)
        return upper

    def _add(self, parent: Node, tokens: Int32Array, slots: Int32Array, step: int) -> Node:
        # copies: the plan's arrays and the row table's are not ours
        child = Node(parent, tokens.copy(), slots.copy(), salt=parent.salt, step=step)
        child.number = self.table.add(parent.number, len(slots))
        parent.children[int(tokens[0])] = child
        self.num_cached += len(slots)
        return child

    def _remove_leaf(self, leaf: Node) -> None:
        assert leaf.parent is not None
        del self._unlocked[leaf]
        del leaf.parent.children[int(leaf.tokens[0])]
        self.table.remove(leaf.number)

    def _forget(self, node: Node) -> list[Int32Array]:
        """Detach a node of a purged subtree; return its slots if nobody holds it."""
        length = len(node.slots)
        node.cached = False
        node.children = {}
        self.num_cached -= length
        if node.locks:
            self.num_detached += length
            return []
        del self._unlocked[node]
        self.num_evictable -= length
        self.table.remove(node.number)
        return [node.slots]


def _path(node: Node | None) -> Iterator[Node]:
    """The node and all above it, without the root."""
    while node is not None and node.parent is not None:
        yield node
        node = node.parent


def _root(node: Node) -> Node:
    while node.parent is not None:
        node = node.parent
    return node


def _subtree(top: Node) -> Iterator[Node]:
    """The node and all below it; children are read before the caller may clear them."""
    stack = [top]
    while stack:
        node = stack.pop()
        stack.extend(node.children.values())
        yield node


def _length(nodes: Iterable[Node]) -> int:
    return sum(len(node.slots) for node in nodes)


def _common_length(known: Int32Array, tokens: Int32Array) -> int:
    """How many leading elements two arrays share."""
    length = min(len(known), len(tokens))
    differs = known[:length] != tokens[:length]
    first = int(differs.argmax()) if length else 0
    return first if length and differs[first] else length

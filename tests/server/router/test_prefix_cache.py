"""The radix tree: finding, sharing, evicting, forgetting."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lightllm_server.router.prefix_cache import Node, PrefixCache
from lightllm_server.router.step_plan import Int32Array


def ids(values: Iterable[int]) -> Int32Array:
    return np.array(list(values), dtype=np.int32)


def store(tree: PrefixCache, tokens: list[int], first_slot: int, salt: str = "") -> list[int]:
    """Compute a whole prompt and leave it in the tree; returns the slots that were duplicates."""
    root = tree.find(salt, ids([]))
    tree.lock(root)
    slots = ids(range(first_slot, first_slot + len(tokens)))
    duplicates = tree.insert(root, ids(tokens), slots)
    assert tree.unlock(root) == []
    return duplicates.tolist()


def hit(tree: PrefixCache, tokens: list[int], salt: str = "") -> list[int]:
    """Slots of the longest prefix found."""
    return tree.path_slots(tree.find(salt, ids(tokens))).tolist()


def evict(tree: PrefixCache, count: int) -> list[int]:
    return [slot for part in tree.evict(count) for slot in part.tolist()]


def test_the_longest_prefix_is_found_to_the_token() -> None:
    tree = PrefixCache()
    assert store(tree, [1, 2, 3, 4], 10) == []
    assert hit(tree, [1, 2, 3, 4, 5]) == [10, 11, 12, 13]
    assert hit(tree, [1, 2, 9]) == [10, 11]
    assert hit(tree, [9]) == []
    # the search has cut the run in two; nothing was lost
    assert hit(tree, [1, 2, 3]) == [10, 11, 12]
    assert (tree.num_cached, tree.num_evictable) == (4, 4)
    tree.check_invariants([])


def test_what_the_tree_has_already_comes_back_as_duplicates() -> None:
    tree = PrefixCache()
    store(tree, [1, 2, 3], 10)
    assert store(tree, [1, 2, 7, 8], 20) == [20, 21]
    assert hit(tree, [1, 2, 7, 8]) == [10, 11, 22, 23]
    assert store(tree, [1, 2, 3], 30) == [30, 31, 32]
    assert tree.num_cached == 5
    tree.check_invariants([])


def test_salts_share_nothing() -> None:
    tree = PrefixCache()
    store(tree, [1, 2, 3], 10, salt="a")
    store(tree, [1, 2, 3], 20, salt="b")
    assert hit(tree, [1, 2, 3], salt="a") == [10, 11, 12]
    assert hit(tree, [1, 2, 3], salt="b") == [20, 21, 22]
    assert hit(tree, [1, 2, 3]) == []


def test_least_recently_used_goes_first_from_its_end_and_no_more_than_needed() -> None:
    tree = PrefixCache()
    store(tree, [1, 2, 3], 10)
    store(tree, [4, 5, 6], 20)
    # using the older one makes it the younger
    node = tree.find("", ids([1, 2, 3]))
    tree.lock(node)
    tree.unlock(node)
    assert evict(tree, 2) == [21, 22]
    assert hit(tree, [4, 5, 6]) == [20]
    assert evict(tree, 2) == [20, 12]
    assert hit(tree, [1, 2, 3]) == [10, 11]
    assert evict(tree, 2) == [10, 11]
    assert (tree.num_cached, tree.num_evictable) == (0, 0)
    tree.check_invariants([])


def test_leaves_go_before_what_lies_above_them() -> None:
    tree = PrefixCache()
    store(tree, [1, 2, 3], 10)
    store(tree, [1, 2, 4], 20)
    assert evict(tree, 1) == [12]
    assert evict(tree, 1) == [22]
    assert evict(tree, 1) == [11]
    tree.check_invariants([])


def test_locked_paths_stay() -> None:
    tree = PrefixCache()
    store(tree, [1, 2, 3, 4], 10)
    node = tree.find("", ids([1, 2]))
    tree.lock(node)
    assert tree.num_evictable == 2
    assert evict(tree, 2) == [12, 13]
    assert tree.num_evictable == 0
    tree.check_invariants([node])
    tree.unlock(node)
    assert evict(tree, 2) == [10, 11]


def test_a_chunk_can_be_found_as_soon_as_it_is_launched() -> None:
    tree = PrefixCache()
    root = tree.find("", ids([]))
    tree.lock(root)
    node = tree.extend(root, ids([1, 2]), ids([5, 6]), step=0)
    assert node is not None
    longer = tree.extend(node, ids([3]), ids([7]), step=1)
    assert longer is not None
    assert hit(tree, [1, 2, 3, 4]) == [5, 6, 7]
    # nobody had met the first chunk, so the path is one node still
    assert longer is node
    tree.check_invariants([longer])
    # an equal chunk of somebody else is not taken in
    other = tree.find("", ids([1, 2]))
    tree.lock(other)
    assert tree.extend(other, ids([3]), ids([9]), step=1) is None
    tree.check_invariants([longer, other])


def test_detached_slots_are_nobodys_hit_and_end_with_their_last_holder() -> None:
    tree = PrefixCache()
    store(tree, [1], 3)
    node = tree.find("", ids([1]))
    tree.lock(node)
    shared = tree.detach(node, ids([8, 9]))
    tree.lock(shared)
    assert hit(tree, [1, 8, 9]) == [3]
    assert tree.path_slots(shared).tolist() == [3, 8, 9]
    assert tree.extend(shared, ids([4]), ids([4]), step=0) is None
    tree.check_invariants([shared, shared])
    assert tree.unlock(shared) == []
    freed = tree.unlock(shared)
    assert [part.tolist() for part in freed] == [[8, 9]]
    assert (tree.num_detached, tree.num_evictable) == (0, 1)
    tree.check_invariants([])


def test_a_failed_steps_chunks_are_forgotten_with_all_below_them() -> None:
    tree = PrefixCache()
    store(tree, [1, 2], 10)
    holder: Node | None = tree.find("", ids([1, 2]))
    assert holder is not None
    tree.lock(holder)
    bad = tree.extend(holder, ids([3, 4]), ids([13, 14]), step=7)
    assert bad is not None
    follower = tree.extend(bad, ids([5]), ids([15]), step=8)
    assert follower is not None
    # somebody has found half of the bad chunk, so that it is in two pieces
    hitter = tree.find("", ids([1, 2, 3]))
    tree.lock(hitter)
    purged, freed = tree.purge({7, 8})
    assert freed == []
    assert hit(tree, [1, 2, 3, 4, 5]) == [10, 11]
    assert tree.leads_through(follower, purged)
    assert tree.leads_through(hitter, purged)
    assert not tree.leads_through(tree.find("", ids([1, 2])), purged)
    tree.check_invariants([follower, hitter])
    slots = [slot for part in tree.unlock(follower) for slot in part.tolist()]
    assert slots == [14, 15]
    assert [part.tolist() for part in tree.unlock(hitter)] == [[13]]
    tree.check_invariants([])


def test_shared_tokens_count_for_the_first_holder_only() -> None:
    tree = PrefixCache()
    store(tree, [1, 2, 3, 4], 10)
    store(tree, [1, 2, 5], 20)
    nodes = [tree.find("", ids(tokens)) for tokens in ([1, 2, 3, 4], [1, 2, 5], [1, 2], [])]
    numbers = np.array([node.number for node in nodes])
    assert tree.table.shares(numbers).tolist() == [4, 1, 0, 0]
    assert tree.table.shares(numbers[::-1]).tolist() == [0, 2, 1, 2]
    assert tree.table.shares(numbers[:0]).tolist() == []
    # trimming shortens what is counted
    evict(tree, 1)
    assert tree.table.shares(numbers[:1]).tolist() == [3]


def test_many_nodes_fit_into_the_table() -> None:
    tree = PrefixCache()
    for first in range(200):
        store(tree, [first, 1], 2 * first)
    numbers = np.array([tree.find("", ids([first, 1])).number for first in range(200)])
    assert tree.table.shares(numbers).tolist() == [2] * 200
    assert len(evict(tree, 400)) == 400
    tree.check_invariants([])

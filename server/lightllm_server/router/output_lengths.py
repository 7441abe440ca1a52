"""How long outputs were lately, and how long others may become: an empirical distribution.

Lives here: lengths and draws. Not here: what follows for the cache (`admission.py`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lightllm_server.router.row_table import BoolArray, IntArray

__all__ = ["OutputLengths", "quantiles"]

FloatArray = npt.NDArray[np.float64]


class OutputLengths:
    """The last `window` output lengths; older ones are forgotten."""

    def __init__(self, window: int) -> None:
        self._ring: IntArray = np.zeros(window, dtype=np.int64)
        self._sorted: IntArray = np.zeros(window, dtype=np.int64)
        self._count = 0
        self._next = 0
        self._sum = 0

    def __len__(self) -> int:
        return self._count

    @property
    def mean(self) -> float:
        """Of at least one."""
        return self._sum / self._count

    def add(self, length: int) -> None:
        """Note one output's length; the oldest gives way."""
        lengths, count = self._sorted, self._count
        if count == len(self._ring):
            oldest = int(self._ring[self._next])
            self._sum -= oldest
            gone = int(np.searchsorted(lengths, oldest))
            lengths[gone : count - 1] = lengths[gone + 1 : count]
            count -= 1
        at = int(np.searchsorted(lengths[:count], length))
        lengths[at + 1 : count + 1] = lengths[at:count]
        lengths[at] = length
        self._ring[self._next] = length
        self._next = (self._next + 1) % len(self._ring)
        self._count = count + 1
        self._sum += length

    def draw(self, out_lens: IntArray, shares: FloatArray) -> tuple[IntArray, BoolArray]:
        """A length for each output, from the known ones that are longer than it is so far.

        out_lens: [B] tokens so far. shares: [B] in [0, 1), which quantile of those longer ones.
        Returns the lengths [B], and where one was known [B]; elsewhere the length means nothing.
        """
        known = self._sorted[: self._count]
        first = np.searchsorted(known, out_lens, side="right")
        longer = self._count - first
        at = first + (shares * longer).astype(np.int64)
        return self._sorted[np.minimum(at, max(0, self._count - 1))], longer > 0


def quantiles(keys: IntArray, seed: int) -> FloatArray:
    """[B] numbers in [0, 1), uniform over `keys` [B] and the same for the same key and seed.

    The finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
    """
    mixed = keys.astype(np.uint64) + np.uint64((0x9E3779B97F4A7C15 * (seed + 1)) % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53

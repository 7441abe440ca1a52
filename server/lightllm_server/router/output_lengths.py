"""How long outputs were lately, and how long others may become: an empirical distribution.

Lives here: lengths, draws and survival. Not here: what follows for the cache (`admission.py`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lightllm_server.router.row_table import BoolArray, IntArray

__all__ = ["FloatArray", "OutputLengths", "quantiles"]

FloatArray = npt.NDArray[np.float64]


class OutputLengths:
    """The last `window` output lengths; older ones are forgotten."""

    def __init__(self, window: int) -> None:
        self._ring: IntArray = np.zeros(window, dtype=np.int64)
        self._sorted: IntArray = np.zeros(window, dtype=np.int64)
        self._count = 0
        self._next = 0
        # by length, how many are longer; 0 from the longest on
        self._longer: FloatArray = np.zeros(1024)

    @property
    def longest(self) -> int:
        """0 without any."""
        return int(self._sorted[self._count - 1]) if self._count else 0

    def add(self, length: int) -> None:
        """Note one output's length; the oldest gives way."""
        lengths, count = self._sorted, self._count
        if count == len(self._ring):
            oldest = int(self._ring[self._next])
            gone = int(np.searchsorted(lengths, oldest))
            lengths[gone : count - 1] = lengths[gone + 1 : count]
            count -= 1
            self._longer[:oldest] -= 1
        at = int(np.searchsorted(lengths[:count], length))
        lengths[at + 1 : count + 1] = lengths[at:count]
        lengths[at] = length
        self._ring[self._next] = length
        self._next = (self._next + 1) % len(self._ring)
        self._count = count + 1
        if length >= len(self._longer):
            self._longer = np.concatenate([self._longer, np.zeros(length)])
        self._longer[:length] += 1

    def survivors(
        self,
        weights: IntArray,
        out_lens: IntArray,
        remaining: IntArray,
        delays: IntArray,
        steps: IntArray,
    ) -> tuple[FloatArray, FloatArray]:
        """How many outputs will still go on at steps to come, each as likely as those known ones
        did that are longer than it is so far.

        weights: [B]. out_lens: [B] tokens so far, less than `longest`. remaining: [B] steps to the
        end at the latest. delays: [B] steps that do not count towards the length. steps: [M] from 1
        on; an output takes part in step s if it becomes longer than out_lens + s - delays - 1.
        Returns the expected number [M], and the expected sum of their weights [M].
        """
        # in 32 bits, and with rows along the last dimension, since it is done for each question
        at = steps.astype(np.int32)[:, None] + (out_lens - delays - 1).astype(np.int32)
        np.maximum(at, out_lens, out=at, casting="same_kind")
        shares = self._longer.take(at, mode="clip")
        shares *= steps[:, None] <= remaining
        per_output = 1 / self._longer[out_lens]
        return shares @ per_output, shares @ (weights * per_output)

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

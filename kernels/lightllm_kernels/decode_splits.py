"""Into how many parts decode attention splits each context: chosen on the host before the lengths
of the replays of a CUDA graph are known.
"""

from __future__ import annotations

from functools import cache

import torch

__all__ = ["choose_num_splits", "num_multiprocessors"]

# programs per multiprocessor: as many as run there at once, and enough to keep the memory busy
_PROGRAMS_PER_MULTIPROCESSOR = 4
# a part's least tokens: below two blocks nothing is loaded ahead
_MIN_SPLIT = 128
# its most, also where rows alone fill the GPU: else the last part of a long row runs on alone.
# Bounded in number, because each part costs scratch memory for every row.
_LONG_SPLIT, _MAX_BALANCING = 2048, 16
_MAX_SPLITS = 128


def choose_num_splits(rows: int, kv_heads: int, max_len: int, *, multiprocessors: int) -> int:
    """Enough parts to fill the GPU and to even out long rows, but none of less than two blocks in
    the longest row.

    max_len: the longest context that the batch may ever hold; a shorter one uses fewer parts, since
    the device rounds a part up to whole blocks, and to two of them at least.
    """
    programs = max(1, rows * kv_heads)
    filling = -(-_PROGRAMS_PER_MULTIPROCESSOR * multiprocessors // programs)
    balancing = min(-(-max_len // _LONG_SPLIT), _MAX_BALANCING)
    return max(1, min(max(filling, balancing), -(-max_len // _MIN_SPLIT), _MAX_SPLITS))


@cache
def num_multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; 1 off a GPU."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)

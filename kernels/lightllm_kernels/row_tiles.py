"""How the kernels that work on whole rows see a tensor [..., E], and how much of it one program
takes.
"""

from __future__ import annotations

import torch

from lightllm_kernels.checks import require_rows

__all__ = ["MAX_ROW", "row_strides", "row_tile"]

# the longest row that one program holds in its registers
MAX_ROW = 16384
# elements of a tile that holds several short rows, and rows at most
_TILE, _MAX_TILE_ROWS = 2048, 16


def row_strides(**tensors: torch.Tensor) -> tuple[int, int, list[int]]:
    """tensors: all [..., E] with the same leading dimensions and contiguous in E
    -> (rows, rows per group, for each tensor the stride of a group and of a row).

    Row r begins at r // per group * group's stride + r % per group * row's stride. ValueError if
    two strides are not enough, as of a tensor that is not a view of one with two dimensions.
    """
    for name, tensor in tensors.items():
        require_rows(name, tensor)
    first = next(iter(tensors.values()))
    # neighbouring dimensions whose strides fit in every tensor become one
    merged: list[tuple[int, tuple[int, ...]]] = []
    for dim, length in enumerate(first.shape[:-1]):
        strides = tuple(tensor.stride(dim) for tensor in tensors.values())
        if length == 1:
            continue
        if merged and merged[-1][1] == tuple(length * stride for stride in strides):
            merged[-1] = (merged[-1][0] * length, strides)
        else:
            merged.append((length, strides))
    if len(merged) > 2:
        raise ValueError(f"the rows of {', '.join(tensors)} have more than two strides")
    unused = (1, (0,) * len(tensors))
    (groups, group_strides), (per_group, strides) = [unused] * (2 - len(merged)) + merged
    both = zip(group_strides, strides, strict=True)
    return groups * per_group, per_group, [stride for pair in both for stride in pair]


def row_tile(size: int) -> tuple[int, int, int]:
    """(rows, elements, warps) of the tile in which one program handles rows of `size` elements.

    16 elements a thread: enough loads at once. The longest rows have 32: with 32 warps instead
    ptxas keeps to 32 registers and spills.
    """
    if size > MAX_ROW:
        raise ValueError(f"rows of {size} elements are longer than {MAX_ROW}")
    elements = 1 << max(size - 1, 0).bit_length()
    rows = max(1, min(_TILE // elements, _MAX_TILE_ROWS))
    return rows, elements, min(16, max(4, rows * elements // 512))

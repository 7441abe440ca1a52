"""Matrix products with weights prepared once at load: y = x Wᵀ + b.

CUDA: torch's own (cuBLAS). CPU: oneDNN with the weight reordered into its blocked layout where that
dtype is supported; float16 weights with float32 arithmetic where that loses nothing or is asked
for; or int8.

Measured on one AVX2 core (EPYC Milan), ms of CPU at 16 rows of a 768 → 4096 product with cold
weights: torch's own (MKL) 3.2, oneDNN 2.5, float16 weights 1.35, int8 0.8 (oneDNN's int8, without
VNNI, 1.9). At 256 rows all are equal but int8, which takes 0.6 of the others' time.
"""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

import torch
from torch.nn import functional

from lightllm_kernels.checks import require, require_shape
from lightllm_kernels.int8_linear import pack_int8_linear

__all__ = [
    "HalfWeightLinear",
    "Linear",
    "OneDnnLinear",
    "PlainLinear",
    "WeightFormat",
    "half_weights_supported",
    "pack_linear",
]

# "model": the dtype of the activations
WeightFormat: TypeAlias = Literal["model", "float16", "int8"]

# oneDNN blocks a weight for a number of rows; any number runs, this one was best from 1 to 256 rows
_ROWS_HINT = 16
_LARGEST_HALF = 65504.0
# below this many elements a packed product's fixed cost (25 µs against 5) outweighs its speed
_SMALL_WEIGHT = 2**18


class Linear(Protocol):
    """hidden: [T, in] -> [T, out], a new tensor of the same dtype."""

    def __call__(self, hidden: torch.Tensor, /) -> torch.Tensor: ...


class PlainLinear:
    """The weight as it is."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, hidden: torch.Tensor, /) -> torch.Tensor:
        return functional.linear(hidden, self._weight, self._bias)


class OneDnnLinear:
    """The weight in oneDNN's blocked layout."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)
        self._bias = bias
        self._product = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, hidden: torch.Tensor, /) -> torch.Tensor:
        out: torch.Tensor = self._product(hidden, self._weight, self._bias, "none", [], "")
        return out


class HalfWeightLinear:
    """Float16 weights, read at half the memory traffic and widened on the fly; float32 arithmetic.

    Exact for a checkpoint of float16 and for normal bfloat16 values; float32 ones are rounded to 11
    bits. ValueError where a weight exceeds float16's range or this torch has no fbgemm.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        require(half_weights_supported(), "float16 weights need a torch with fbgemm")
        wide = weight.float()
        largest = float(wide.abs().max())
        require(largest <= _LARGEST_HALF, f"weight {largest} exceeds float16's {_LARGEST_HALF}")
        self._weight = torch.ops.quantized.linear_prepack_fp16(
            wide, None if bias is None else bias.float()
        )
        self._product = torch.ops.quantized.linear_dynamic_fp16.default

    def __call__(self, hidden: torch.Tensor, /) -> torch.Tensor:
        out: torch.Tensor = self._product(hidden.float(), self._weight)
        return out.to(hidden.dtype)


def half_weights_supported() -> bool:
    """Whether `HalfWeightLinear` runs here."""
    return "fbgemm" in torch.backends.quantized.supported_engines


def _fits_half(weight: torch.Tensor) -> bool:
    """Whether a float32 weight came from float16 or bfloat16 and keeps its values in float16."""
    if weight.dtype != torch.float32 or not half_weights_supported():
        return False
    # bfloat16 has a wider range: its tiniest values move by at most half of float16's smallest step
    tolerance = min(2**-25, float(weight.abs().max()) * 2**-14)
    return bool(((weight.half().float() - weight).abs() <= tolerance).all())


def _onednn_supports(dtype: torch.dtype) -> bool:
    if not torch._C._has_mkldnn:
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def pack_linear(
    weight: torch.Tensor, bias: torch.Tensor | None, *, weight_format: WeightFormat = "model"
) -> Linear:
    """Prepare a weight for the device it is on.

    weight: [out, in]; bias: [out] or None, same dtype
    weight_format: "model" keeps the values (a float32 weight that is really a half precision one is
    stored as such on the CPU); float16 or int8 (CPU only) store the weight so; int8 also quantises
    the activations, per token, at run time
    Keeps the weight or a packed copy; the caller drops its own reference, so that a packed
    weight frees the original.
    """
    require_shape("weight", weight, -1, -1)
    if bias is not None:
        require_shape("bias", bias, weight.shape[0])
    if weight_format != "model":
        device = weight.device
        require(device.type == "cpu", f"{weight_format} weights are for the CPU, got {device}")
        return (pack_int8_linear if weight_format == "int8" else HalfWeightLinear)(weight, bias)
    if weight.device.type != "cpu" or weight.numel() < _SMALL_WEIGHT:
        return PlainLinear(weight, bias)
    if _fits_half(weight):
        return HalfWeightLinear(weight, bias)
    return (OneDnnLinear if _onednn_supports(weight.dtype) else PlainLinear)(weight, bias)

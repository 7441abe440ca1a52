"""Int8 matrix products on the CPU: weights per output channel, activations per token, both
symmetric.

Each row of activations is scaled by its own absmax, so a token's result does not depend on the
batch and one outlier does not cost its neighbours their precision (torch's `linear_dynamic` has one
scale for the whole batch: 4 times the error with outliers in the input).

Two forms: fbgemm's and oneDNN's. Without VNNI instructions fbgemm is 2 to 3 times as fast (its AVX2
kernel needs products that fit 16 bits, so weights then keep 7 bits); with them oneDNN can win.
`pack_int8_linear` times both once per process.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import cache, partial

import torch

from lightllm_kernels.checks import require

__all__ = ["FbgemmInt8Linear", "OneDnnInt8Linear", "pack_int8_linear", "quantise_weight"]

# activations are stored unsigned around this zero point: 1 … 255
_ZERO_POINT = 128
_ACTIVATION_STEPS = 127
# a row of zeros divides by this instead
_SMALLEST_ABSMAX = 1e-30


def quantise_weight(weight: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """weight: [out, in] -> (int8 [out, in] within ±steps, scales float32 [out])."""
    wide = weight.float()
    scales = wide.abs().amax(1).clamp_(min=_SMALLEST_ABSMAX) / steps
    return wide.div(scales.unsqueeze(1)).round_().to(torch.int8), scales


def _absmax(hidden: torch.Tensor) -> torch.Tensor:
    return hidden.abs().amax(-1, keepdim=True).clamp_(min=_SMALLEST_ABSMAX)


class FbgemmInt8Linear:
    """hidden [T, in] -> [T, out] in hidden's dtype, by fbgemm."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        quantised, scales = quantise_weight(weight, _weight_steps())
        zero_points = torch.zeros(weight.shape[0], dtype=torch.int64)
        with warnings.catch_warnings():
            # torch announces the end of its quantised tensors; packing is their only use here
            warnings.filterwarnings("ignore", message=".*quantize_per_channel")
            tensor = torch._make_per_channel_quantized_tensor(quantised, scales, zero_points, 0)
        engine = torch.backends.quantized.engine
        torch.backends.quantized.engine = "fbgemm"
        self._packed = torch.ops.quantized.linear_prepack(tensor, None)
        torch.backends.quantized.engine = engine
        self._bias = bias
        self._product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default

    def __call__(self, hidden: torch.Tensor, /) -> torch.Tensor:
        absmax = _absmax(hidden.float())
        scaled = hidden / absmax
        out: torch.Tensor = self._product(
            scaled, 1 / _ACTIVATION_STEPS, _ZERO_POINT, self._packed
        ).mul_(absmax)
        if self._bias is not None:
            out.add_(self._bias)
        return out.to(hidden.dtype)


class OneDnnInt8Linear:
    """hidden [T, in] -> [T, out] in hidden's dtype, by oneDNN."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        quantised, self._scales = quantise_weight(weight, _weight_steps())
        self._packed = torch.ops.onednn.qlinear_prepack(quantised, None)
        self._zero_points = torch.zeros(weight.shape[0], dtype=torch.int64)
        self._bias = bias
        self._product = torch.ops.onednn.qlinear_pointwise.default

    def __call__(self, hidden: torch.Tensor, /) -> torch.Tensor:
        absmax = _absmax(hidden.float())
        steps = (hidden * (_ACTIVATION_STEPS / absmax)).round_().add_(_ZERO_POINT)
        out: torch.Tensor = self._product(
            steps.to(torch.uint8), 1 / _ACTIVATION_STEPS, _ZERO_POINT, self._packed, self._scales,
            self._zero_points, None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        out.mul_(absmax)
        if self._bias is not None:
            out.add_(self._bias)
        return out.to(hidden.dtype)


def _weight_steps() -> int:
    # without VNNI two products at a time are added in 16 bits: 2 * 255 * 63 fits, 2 * 255 * 127
    # saturates
    return 127 if torch.cpu._is_vnni_supported() else 63


Int8Form = type[FbgemmInt8Linear] | type[OneDnnInt8Linear]


def _best_seconds(functions: list[Callable[[], object]]) -> list[float]:
    """Each function's best time, taken in turns so that a disturbance hits all of them."""
    best = [float("inf")] * len(functions)
    for _ in range(20):
        for index, function in enumerate(functions):
            start = time.perf_counter()
            function()
            best[index] = min(best[index], time.perf_counter() - start)
    return best


@cache
def _fastest_form() -> Int8Form:
    engines = torch.backends.quantized.supported_engines
    forms: list[Int8Form] = []
    if "fbgemm" in engines:
        forms.append(FbgemmInt8Linear)
    if "onednn" in engines:
        forms.append(OneDnnInt8Linear)
    require(bool(forms), f"this torch has no int8 matrix product for the CPU (engines: {engines})")
    if len(forms) == 1:
        return forms[0]
    # a decode step's shape; some 20 ms in all
    weight, hidden = torch.ones(1024, 768), torch.ones(16, 768)
    seconds = _best_seconds([partial(form(weight, None), hidden) for form in forms])
    return forms[seconds.index(min(seconds))]


def pack_int8_linear(
    weight: torch.Tensor, bias: torch.Tensor | None
) -> FbgemmInt8Linear | OneDnnInt8Linear:
    """weight: [out, in], bias: [out] or None, on the CPU -> the form that is faster on this
    machine.
    """
    return _fastest_form()(weight, bias)

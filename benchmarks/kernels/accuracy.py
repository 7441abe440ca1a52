"""How far a kernel's result is from its reference's."""

from __future__ import annotations

import torch

__all__ = ["TOLERANCE", "require_close", "worst_error"]

# a wrong or missing key of n is an error of about 1/√n in its row
TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 1e-2}


def worst_error(out: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest ‖out - wanted‖ / ‖wanted‖ of any vector along the last dimension: of a row and
    head, so that a wrong one is not lost among larger ones. Of one dimension, of any number.
    """
    out, wanted = out.float(), wanted.float()
    if wanted.dim() == 1:
        out, wanted = out.unsqueeze(-1), wanted.unsqueeze(-1)
    sizes = wanted.norm(dim=-1).clamp(min=1e-9)
    return float(((out - wanted).norm(dim=-1) / sizes).max())


def require_close(out: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> float:
    """The worst error; AssertionError if it is more than `dtype` allows, or NaN."""
    error = worst_error(out, wanted)
    if not error <= TOLERANCE[dtype]:
        raise AssertionError(f"relative error {error:.2e}, allowed {TOLERANCE[dtype]:.0e}")
    return error

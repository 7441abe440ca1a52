"""The MLP's gate."""

from __future__ import annotations

import torch

from lightllm_kernels.gated_activation import silu_and_mul
from lightllm_kernels.workspace import Workspace

__all__ = ["SiluAndMul"]


class SiluAndMul:
    """silu(gate) * up."""

    def __call__(self, gate_up: torch.Tensor, workspace: Workspace) -> torch.Tensor:
        """gate_up: [T, 2I], gate and up side by side -> [T, I], which aliases `workspace`."""
        shape = (gate_up.shape[0], gate_up.shape[1] // 2)
        return silu_and_mul(gate_up, out=workspace.take("activation", shape, gate_up.dtype))

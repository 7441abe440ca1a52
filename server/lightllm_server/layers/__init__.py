"""Layers of the models: tensor-parallel linear and embedding, norm, rotary, activation, attention.

Plain classes that hold tensors, run under `torch.inference_mode`; no router state, no model names.
"""

__all__: list[str] = []

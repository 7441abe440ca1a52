"""The LLaMA family (also Mistral and Qwen2 within one attention window), over a flattened batch
of tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from lightllm_server.layers.activation import SiluAndMul
from lightllm_server.layers.attention import Attention, AttentionState
from lightllm_server.layers.embedding import ParallelLMHead, VocabParallelEmbedding
from lightllm_server.layers.linear import (
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from lightllm_server.layers.norm import RMSNorm
from lightllm_server.layers.parameter import Loader, WeightOptions
from lightllm_server.layers.rotary import RopeScaling, RotaryEmbedding
from lightllm_server.layers.tensor_parallel import TensorParallel
from lightllm_server.models.config import ModelConfig

__all__ = ["LlamaForCausalLM"]


class LlamaAttention:
    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        rotary: RotaryEmbedding,
        tp: TensorParallel,
        options: WeightOptions,
    ) -> None:
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            bias=config.qkv_bias,
            tp=tp,
            options=options,
        )
        self.attention = Attention(
            layer,
            num_heads=self.qkv_proj.num_heads,
            num_kv_heads=self.qkv_proj.num_kv_heads,
            head_dim=config.head_dim,
            rotary=rotary,
        )
        self.o_proj = RowParallelLinear(
            config.num_heads * config.head_dim,
            config.hidden_size,
            name="o_proj",
            bias=config.output_bias,
            tp=tp,
            options=options,
        )

    def __call__(self, hidden: torch.Tensor, state: AttentionState) -> torch.Tensor:
        """hidden: [T, E] -> [T, E]."""
        return self.o_proj(self.attention(self.qkv_proj(hidden), state))


class LlamaMLP:
    def __init__(self, config: ModelConfig, tp: TensorParallel, options: WeightOptions) -> None:
        inner = config.intermediate_size
        self.gate_up_proj = MergedColumnParallelLinear(
            config.hidden_size,
            {"gate_proj": inner, "up_proj": inner},
            bias=config.mlp_bias,
            tp=tp,
            options=options,
        )
        self.activation = SiluAndMul()
        self.down_proj = RowParallelLinear(
            inner,
            config.hidden_size,
            name="down_proj",
            bias=config.mlp_bias,
            tp=tp,
            options=options,
        )

    def __call__(self, hidden: torch.Tensor, state: AttentionState) -> torch.Tensor:
        """hidden: [T, E] -> [T, E]."""
        return self.down_proj(self.activation(self.gate_up_proj(hidden), state.workspace))


class LlamaLayer:
    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        rotary: RotaryEmbedding,
        tp: TensorParallel,
        options: WeightOptions,
    ) -> None:
        size, eps = config.hidden_size, config.rms_norm_eps
        self.attention_norm = RMSNorm(size, eps, name="input_layernorm", options=options)
        self.attention = LlamaAttention(config, layer, rotary, tp, options)
        self.mlp_norm = RMSNorm(size, eps, name="post_attention_layernorm", options=options)
        self.mlp = LlamaMLP(config, tp, options)

    def __call__(
        self, hidden: torch.Tensor | None, residual: torch.Tensor, state: AttentionState
    ) -> torch.Tensor:
        """hidden: [T, E] the layer before, None for the first; residual: [T, E], changed in place.

        Returns [T, E], still to be added to `residual`.
        """
        if hidden is None:
            hidden = self.attention_norm(residual)
        else:
            hidden = self.attention_norm.add(hidden, residual)
        hidden = self.attention(hidden, state)
        return self.mlp(self.mlp_norm.add(hidden, residual), state)

    def loaders(self) -> dict[str, Loader]:
        """Checkpoint name below `model.layers.N.` -> loader."""
        attention = {**self.attention.qkv_proj.loaders(), **self.attention.o_proj.loaders()}
        mlp = {**self.mlp.gate_up_proj.loaders(), **self.mlp.down_proj.loaders()}
        return {
            **self.attention_norm.loaders(),
            **self.mlp_norm.loaders(),
            **{f"self_attn.{name}": loader for name, loader in attention.items()},
            **{f"mlp.{name}": loader for name, loader in mlp.items()},
        }


class LlamaForCausalLM:
    """One rank's share of the model. `max_length` is the longest sequence that will be asked
    for.
    """

    def __init__(
        self, config: ModelConfig, *, max_length: int, tp: TensorParallel, options: WeightOptions
    ) -> None:
        rope = config.rope
        rotary = RotaryEmbedding(
            rotary_dim=rope.rotary_dim,
            theta=rope.theta,
            max_length=max_length,
            scaling=RopeScaling(
                kind=rope.kind,
                factor=rope.factor,
                low_freq_factor=rope.low_freq_factor,
                high_freq_factor=rope.high_freq_factor,
                original_max_position=rope.original_max_position,
            ),
            device=options.device,
        )
        vocab, size = config.vocab_size, config.hidden_size
        self.embedding = VocabParallelEmbedding(
            vocab, size, name="model.embed_tokens", tp=tp, options=options
        )
        self.layers = [
            LlamaLayer(config, layer, rotary, tp, options) for layer in range(config.num_layers)
        ]
        self.norm = RMSNorm(size, config.rms_norm_eps, name="model.norm", options=options)
        self.lm_head = ParallelLMHead(
            vocab,
            size,
            name="lm_head",
            tp=tp,
            options=options,
            tied_to=self.embedding if config.tie_word_embeddings else None,
        )

    def forward(
        self, token_ids: torch.Tensor, state: AttentionState, on_layer: Callable[[], None]
    ) -> torch.Tensor:
        """token_ids: [T] -> the residual stream [T, E] after the last layer, for `logits`.

        on_layer: called when a layer is done (on CUDA: launched).
        """
        residual = self.embedding(token_ids)
        hidden = None
        for layer in self.layers:
            hidden = layer(hidden, residual, state)
            on_layer()
        assert hidden is not None, "a model has at least one layer"
        return residual.add_(hidden)

    def logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """hidden: [N, E] rows of what `forward` returned -> [N, V] float32, in `out` if given."""
        return self.lm_head(self.norm(hidden), out)

    def loaders(self) -> dict[str, Loader]:
        """Checkpoint name -> loader; the names are those of `llama_tensors.expected_tensors`."""
        loaders = {
            **self.embedding.loaders(),
            **self.norm.loaders(),
            **self.lm_head.loaders(),
        }
        for index, layer in enumerate(self.layers):
            loaders |= {f"model.layers.{index}.{n}": load for n, load in layer.loaders().items()}
        return loaders

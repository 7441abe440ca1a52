"""Names and shapes of the tensors in a LLaMA checkpoint of Hugging Face's layout. No torch here."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightllm_server.models.config import ModelConfig

__all__ = ["IGNORED", "expected_tensors"]

# old checkpoints store the rotary frequencies, which follow from the config
IGNORED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, inner, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    query = config.num_heads * config.head_dim
    key = config.num_kv_heads * config.head_dim
    tensors: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = (vocab, hidden)
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        linears = {
            "self_attn.q_proj": (query, hidden, config.qkv_bias),
            "self_attn.k_proj": (key, hidden, config.qkv_bias),
            "self_attn.v_proj": (key, hidden, config.qkv_bias),
            "self_attn.o_proj": (hidden, query, config.output_bias),
            "mlp.gate_proj": (inner, hidden, config.mlp_bias),
            "mlp.up_proj": (inner, hidden, config.mlp_bias),
            "mlp.down_proj": (hidden, inner, config.mlp_bias),
        }
        for name, (rows, columns, has_bias) in linears.items():
            tensors[f"{prefix}{name}.weight"] = (rows, columns)
            if has_bias:
                tensors[f"{prefix}{name}.bias"] = (rows,)
        tensors[f"{prefix}input_layernorm.weight"] = (hidden,)
        tensors[f"{prefix}post_attention_layernorm.weight"] = (hidden,)
    return tensors

"""Rotary tables against transformers' own, and what scaling means."""

from __future__ import annotations

import pytest
import torch

from lightllm_server.layers.rotary import RopeScaling, RotaryEmbedding

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def rotate(heads, positions, *, dim=32, theta=500000.0, **scaling):
    rotary = RotaryEmbedding(
        rotary_dim=dim,
        theta=theta,
        max_length=4096,
        scaling=RopeScaling(**scaling),
        device=torch.device("cpu"),
    )
    rotated = heads.clone()
    rotary(rotated, positions)
    return rotated


def oracle(heads, positions, *, dim, theta, parameters):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    config = LlamaConfig(
        head_dim=dim,
        hidden_size=4 * dim,
        num_attention_heads=4,
        max_position_embeddings=1024,
        rope_parameters={"rope_theta": theta, **parameters},
    )
    cos, sin = LlamaRotaryEmbedding(config)(heads, positions.unsqueeze(0))
    states = heads.transpose(0, 1).unsqueeze(0)
    return apply_rotary_pos_emb(states, states, cos, sin)[0][0].transpose(0, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {"rope_type": "default"}),
        ({"kind": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {"kind": "llama3", "original_max_position": 256, **LLAMA3},
            {"rope_type": "llama3", "original_max_position_embeddings": 256, **LLAMA3},
        ),
        (
            {"kind": "dynamic", "factor": 2.0, "original_max_position": 1024},
            {"rope_type": "dynamic", "factor": 2.0},
        ),
    ],
    ids=lambda value: str(value.get("rope_type", "")) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_equal_to_transformers(ours, theirs, theta, assert_close):
    positions = torch.tensor([0, 1, 63, 500, 1023])
    heads = torch.randn(5, 4, 32)
    actual = rotate(heads, positions, theta=theta, **ours)
    expected = oracle(heads, positions, dim=32, theta=theta, parameters=theirs)
    assert_close(actual, expected, atol=1e-4)


def test_linear_scaling_stretches_positions(assert_close):
    heads = torch.randn(3, 2, 32)
    stretched = rotate(heads, torch.tensor([0, 40, 400]), kind="linear", factor=4.0)
    assert_close(stretched, rotate(heads, torch.tensor([0, 10, 100])), atol=1e-5)


def test_llama3_keeps_the_fast_pairs_and_slows_the_slow_ones(assert_close):
    heads = torch.randn(1, 1, 32)
    position = torch.tensor([80])
    scaled = rotate(heads, position, kind="llama3", original_max_position=256, **LLAMA3)
    plain = rotate(heads, position)
    slowed = rotate(heads, torch.tensor([10]))
    assert_close(scaled[..., [0, 16]], plain[..., [0, 16]])
    assert_close(scaled[..., [15, 31]], slowed[..., [15, 31]])
    assert float((scaled - plain).abs().max()) > 1e-3


def test_partial_rotation_leaves_the_rest_alone(assert_close):
    heads = torch.randn(2, 3, 32)
    positions = torch.tensor([5, 900])
    rotated = rotate(heads, positions, dim=8)
    assert torch.equal(rotated[..., 8:], heads[..., 8:])
    assert_close(rotated[..., :8], rotate(heads[..., :8], positions, dim=8))

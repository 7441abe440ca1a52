"""Norm, rotary and activation against their references."""

from __future__ import annotations

import pytest
import torch

from lightllm_kernels.gated_activation import (
    gelu_and_mul,
    gelu_and_mul_reference,
    silu_and_mul,
    silu_and_mul_reference,
)
from lightllm_kernels.layer_norm import layer_norm, layer_norm_reference
from lightllm_kernels.rms_norm import add_rms_norm, rms_norm, rms_norm_reference
from lightllm_kernels.rotary_embedding import rotary_embedding, rotary_embedding_reference

SIZES = (1, 7, 63, 123, 1000)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", SIZES)
def test_rms_norm(tokens, dtype, assert_close):
    hidden = torch.randn(tokens, 2 * 96).to(dtype)[:, ::2][:, :95]
    weight = torch.randn(95).to(dtype)
    assert_close(rms_norm(hidden, weight, 1e-5), rms_norm_reference(hidden, weight, 1e-5))


def test_rms_norm_in_place_and_tiny_rows(assert_close):
    hidden, weight = torch.randn(5, 64), torch.randn(64)
    hidden[0] = 0.0
    hidden[1] *= 1e-6
    expected = rms_norm_reference(hidden, weight, 1e-5)
    out = rms_norm(hidden, weight, 1e-5, out=hidden)
    assert out is hidden
    assert_close(out, expected)
    assert not out[0].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_rms_norm_updates_the_residual(dtype, assert_close):
    hidden, residual = torch.randn(7, 96).to(dtype), torch.randn(7, 96).to(dtype)
    weight = torch.randn(96).to(dtype)
    total = hidden + residual
    normed = add_rms_norm(hidden, residual, weight, 1e-6)
    assert torch.equal(residual, total)
    assert_close(normed, rms_norm_reference(total, weight, 1e-6))


def test_rms_norm_refuses_a_wrong_weight():
    with pytest.raises(ValueError, match=r"weight must have shape \[8\], got \[9\]"):
        rms_norm(torch.randn(2, 8), torch.randn(9), 1e-6)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", SIZES)
def test_layer_norm(tokens, dtype, has_bias, assert_close):
    hidden = torch.randn(tokens, 2 * 96).to(dtype)[:, ::2][:, :95]
    weight = torch.randn(95).to(dtype)
    bias = torch.randn(95).to(dtype) if has_bias else None
    expected = layer_norm_reference(hidden, weight, bias, 1e-5)
    assert_close(layer_norm(hidden, weight, bias, 1e-5), expected)
    out = torch.empty(tokens, 95, dtype=dtype)
    assert layer_norm(hidden, weight, bias, 1e-5, out=out) is out
    assert_close(out, expected)


def test_layer_norm_refuses_a_wrong_bias():
    with pytest.raises(ValueError, match=r"bias must have shape \[8\], got \[9\]"):
        layer_norm(torch.randn(2, 8), torch.randn(8), torch.randn(9), 1e-6)


def _tables(positions, half):
    angles = torch.outer(torch.arange(positions).float(), 10000.0 ** -torch.linspace(0, 1, half))
    return angles.cos(), angles.sin()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "dim", "width"), [(3, 64, 64), (12, 80, 20), (1, 6, 2)])
@pytest.mark.parametrize("tokens", SIZES)
def test_rotary(tokens, heads, dim, width, dtype, assert_close):
    cos, sin = _tables(2000, width // 2)
    positions = torch.randint(0, 2000, (tokens,), dtype=torch.int32)
    # heads of a wider product: rows are not contiguous
    states = torch.randn(tokens, heads + 5, dim).to(dtype)
    query, key, rest = states[:, :heads], states[:, heads : heads + 2], states[:, heads + 2 :]
    expected_query = rotary_embedding_reference(query, cos, sin, positions)
    expected_key = rotary_embedding_reference(key, cos, sin, positions)
    untouched = rest.clone()
    rotary_embedding(query, key, cos, sin, positions)
    assert_close(query, expected_query)
    assert_close(key, expected_key)
    assert torch.equal(rest, untouched)
    assert torch.equal(query[..., width:], expected_query[..., width:])


def test_rotary_of_query_and_key_in_one_pass(assert_close):
    cos, sin = _tables(50, 8)
    positions = torch.tensor([0, 49, 7])
    states = torch.randn(3, 5, 16)
    expected = rotary_embedding_reference(states, cos, sin, positions)
    rotary_embedding(states, None, cos, sin, positions)
    assert_close(states, expected)
    assert not torch.equal(states[1], torch.zeros_like(states[1]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary_interleaved(dtype, assert_close):
    cos, sin = _tables(50, 6)
    positions = torch.tensor([0, 49, 7, 7])
    states = torch.randn(4, 5, 20).to(dtype)
    query, key = states[:, :3], states[:, 3:]
    expected = rotary_embedding_reference(states, cos, sin, positions, interleaved=True)
    # a pair is a complex number, turned by its angle
    turned = torch.view_as_complex(states[..., :12].float().unflatten(-1, (6, 2)).contiguous())
    turned = turned * torch.complex(cos[positions], sin[positions]).unsqueeze(1)
    assert_close(expected[..., :12], torch.view_as_real(turned).flatten(-2).to(dtype))
    rotary_embedding(query, key, cos, sin, positions, interleaved=True)
    assert_close(states, expected)
    assert torch.equal(states[..., 12:], expected[..., 12:])


def test_rotary_keeps_norms_and_relative_angles(assert_close):
    cos, sin = _tables(100, 16)
    query, key = torch.randn(1, 1, 32), torch.randn(1, 1, 32)

    def score(query_position, key_position):
        rotated = torch.cat([query, key])
        rotary_embedding(rotated, None, cos, sin, torch.tensor([query_position, key_position]))
        return (rotated[0] * rotated[1]).sum()

    assert_close(score(30, 10), score(95, 75))
    assert abs(float(score(30, 10) - score(30, 11))) > 1e-3


def test_rotary_refuses_a_table_wider_than_the_head():
    cos, sin = _tables(4, 16)
    with pytest.raises(ValueError, match="rotary width 32 exceeds head_dim 16"):
        rotary_embedding(torch.randn(1, 1, 16), None, cos, sin, torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", SIZES)
def test_silu_and_mul(tokens, dtype, assert_close):
    gate_up = torch.randn(tokens, 200).to(dtype)[:, :126]
    expected = silu_and_mul_reference(gate_up)
    assert_close(silu_and_mul(gate_up), expected)
    out = torch.empty(tokens, 63, dtype=dtype)
    assert silu_and_mul(gate_up, out=out) is out
    assert_close(out, expected)


def test_silu_and_mul_refuses_an_odd_width():
    with pytest.raises(ValueError, match="even, got 7"):
        silu_and_mul(torch.randn(2, 7))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", SIZES)
def test_gelu_and_mul(tokens, dtype, approximate, assert_close):
    gate_up = torch.randn(tokens, 200).to(dtype)[:, :126]
    expected = gelu_and_mul_reference(gate_up, approximate=approximate)
    assert_close(gelu_and_mul(gate_up, approximate=approximate), expected)
    out = torch.empty(tokens, 63, dtype=dtype)
    assert gelu_and_mul(gate_up, approximate=approximate, out=out) is out
    assert_close(out, expected)


def test_gelu_and_mul_refuses_another_approximation():
    with pytest.raises(ValueError, match="none or tanh, got 'sigmoid'"):
        gelu_and_mul(torch.randn(2, 8), approximate="sigmoid")

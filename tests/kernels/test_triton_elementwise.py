"""The Triton kernels of norms, rotary, activations and the KV write against their references: in
the interpreter, or compiled where there is a GPU.
"""

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
from lightllm_kernels.row_tiles import row_strides
from lightllm_kernels.triton_launch import triton_everywhere
from lightllm_kernels.write_kv import quantise, write_kv, write_kv_reference

SIZES = (1, 7, 63, 123, 1000)
BFLOAT16 = pytest.param(torch.bfloat16, marks=pytest.mark.gpu)
DTYPES = (torch.float32, torch.float16, BFLOAT16)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _triton():
    with triton_everywhere(), torch.device(DEVICE):
        yield


def strided(*shape, dtype):
    """A tensor of the shape in a wider one: only its last dimension is contiguous."""
    return torch.randn(*shape[:-1], 2, shape[-1] + 3).to(dtype)[..., 1, : shape[-1]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", SIZES)
def test_rms_norm(tokens, dtype, assert_close):
    hidden, weight = strided(tokens, 95, dtype=dtype), torch.randn(95).to(dtype)
    before = hidden.clone()
    assert_close(rms_norm(hidden, weight, 1e-5), rms_norm_reference(hidden, weight, 1e-5))
    assert torch.equal(hidden, before)


@pytest.mark.parametrize("size", [1, 2, 64, 2049, 5120, 16384])
def test_norms_of_any_width(size, assert_close):
    hidden, weight, bias = torch.randn(3, size) + 2, torch.randn(size), torch.randn(size)
    assert_close(rms_norm(hidden, weight, 1e-6), rms_norm_reference(hidden, weight, 1e-6))
    expected = layer_norm_reference(hidden, weight, bias, 1e-6)
    assert_close(layer_norm(hidden, weight, bias, 1e-6), expected)


def test_norm_of_heads_in_place(assert_close):
    states = torch.randn(5, 9, 16)
    heads, others = states[:, 2:7], states[:, [0, 1, 7, 8]]
    weight = torch.randn(16)
    expected = rms_norm_reference(heads, weight, 1e-6)
    assert rms_norm(heads, weight, 1e-6, out=heads) is heads
    assert_close(heads, expected)
    assert torch.equal(states[:, [0, 1, 7, 8]], others)


def test_rms_norm_of_tiny_rows(assert_close):
    hidden, weight = torch.randn(5, 64), torch.randn(64)
    hidden[0] = 0.0
    hidden[1] *= 1e-6
    normed = rms_norm(hidden, weight, 1e-5)
    assert_close(normed, rms_norm_reference(hidden, weight, 1e-5))
    assert not normed[0].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", SIZES)
def test_add_rms_norm_updates_the_residual(tokens, dtype, assert_close):
    hidden, residual = strided(tokens, 96, dtype=dtype), strided(tokens, 96, dtype=dtype)
    weight = torch.randn(96).to(dtype)
    total = hidden + residual
    normed = add_rms_norm(hidden, residual, weight, 1e-6)
    assert torch.equal(residual, total)
    assert_close(normed, rms_norm_reference(total, weight, 1e-6))


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", SIZES)
def test_layer_norm(tokens, dtype, has_bias, assert_close):
    hidden, weight = strided(tokens, 95, dtype=dtype), torch.randn(95).to(dtype)
    bias = torch.randn(95).to(dtype) if has_bias else None
    expected = layer_norm_reference(hidden, weight, bias, 1e-5)
    assert_close(layer_norm(hidden, weight, bias, 1e-5), expected)
    out = torch.empty(tokens, 95, dtype=dtype)
    assert layer_norm(hidden, weight, bias, 1e-5, out=out) is out
    assert_close(out, expected)


def test_layer_norm_keeps_its_digits_beside_a_large_mean(assert_close):
    differences = torch.randn(4, 512)
    weight, bias = torch.ones(512), torch.zeros(512)
    normed = layer_norm(differences + 4096, weight, bias, 1e-6)
    expected = layer_norm_reference(differences.double() + 4096, weight, bias, 1e-6)
    assert_close(normed, expected.float(), rtol=1e-3, atol=1e-3)


def test_no_rows_are_no_work():
    empty, weight = torch.randn(0, 8), torch.randn(8)
    assert rms_norm(empty, weight, 1e-6).shape == (0, 8)
    assert layer_norm(empty, weight, None, 1e-6).shape == (0, 8)
    assert silu_and_mul(empty).shape == (0, 4)


def test_a_row_too_long_and_a_wrong_stride_are_refused():
    with pytest.raises(ValueError, match="longer than 16384"):
        rms_norm(torch.randn(1, 16385), torch.randn(16385), 1e-6)
    with pytest.raises(ValueError, match="the last dimension of hidden must have stride 1"):
        rms_norm(torch.randn(4, 8).T, torch.randn(4), 1e-6)
    with pytest.raises(ValueError, match="the rows of hidden, residual, out have more than two"):
        rms_norm(torch.randn(4, 6, 8, 3)[::2, ::2, ::2], torch.randn(3), 1e-6)


def test_row_strides_join_what_they_can():
    states = torch.zeros(6, 4, 5, 3)
    assert row_strides(states=states) == (120, 120, [0, 3])
    assert row_strides(states=states[:, :, 1:3]) == (48, 2, [15, 3])
    assert row_strides(states=states[::2, 1]) == (15, 5, [120, 3])
    assert row_strides(states=states[:1, :1, :1]) == (1, 1, [0, 0])
    # contiguous beside strided: both have a group
    both = row_strides(wide=states[:, 0, :2], out=torch.zeros(6, 2, 3))
    assert both == (12, 2, [60, 3, 6, 3])


def tables(positions, half):
    angles = torch.outer(torch.arange(positions).float(), 10000.0 ** -torch.linspace(0, 1, half))
    return angles.cos(), angles.sin()


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "heads", "dim", "width"),
    [(1, 3, 64, 64), (7, 12, 80, 20), (63, 5, 6, 2), (123, 1, 48, 48), (2, 1000, 8, 6)],
)
def test_rotary(tokens, heads, dim, width, dtype, interleaved, assert_close):
    cos, sin = tables(2000, width // 2)
    positions = torch.randint(0, 2000, (tokens,), dtype=torch.int32)
    # heads of a wider product: rows are not contiguous
    states = torch.randn(tokens, heads + 5, dim).to(dtype)
    query, key, rest = states[:, :heads], states[:, heads : heads + 2], states[:, heads + 2 :]
    both = [
        rotary_embedding_reference(s, cos, sin, positions, interleaved=interleaved)
        for s in (query, key)
    ]
    untouched = rest.clone()
    rotary_embedding(query, key, cos, sin, positions, interleaved=interleaved)
    for actual, expected in zip((query, key), both, strict=True):
        assert_close(actual, expected)
        assert torch.equal(actual[..., width:], expected[..., width:])
    assert torch.equal(rest, untouched)


def test_rotary_of_one_tensor_and_many_heads(assert_close):
    cos, sin = tables(50, 64)
    positions = torch.tensor([0, 49, 7])
    states = torch.randn(3, 37, 128)
    expected = rotary_embedding_reference(states, cos, sin, positions)
    rotary_embedding(states, None, cos, sin, positions)
    assert_close(states, expected)


def test_the_styles_differ_by_an_order_of_dims(assert_close):
    cos, sin = tables(50, 8)
    positions = torch.tensor([3, 49])
    halves = torch.randn(2, 4, 16)
    pairs = halves.unflatten(-1, (2, 8)).transpose(-1, -2).flatten(-2).contiguous()
    rotary_embedding(halves, None, cos, sin, positions)
    rotary_embedding(pairs, None, cos, sin, positions, interleaved=True)
    assert_close(pairs, halves.unflatten(-1, (2, 8)).transpose(-1, -2).flatten(-2))


ACTIVATIONS = {
    "silu": (silu_and_mul, silu_and_mul_reference, {}),
    "gelu": (gelu_and_mul, gelu_and_mul_reference, {}),
    "gelu tanh": (gelu_and_mul, gelu_and_mul_reference, {"approximate": "tanh"}),
}


# of the interpreter's exp
@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "inner"), [(63, 1), (123, 7), (1, 63), (7, 123), (3, 1000)])
def test_gated_activations(tokens, inner, dtype, activation, assert_close):
    op, reference, options = ACTIVATIONS[activation]
    gate_up = 3 * strided(tokens, 2 * inner, dtype=dtype)
    expected = reference(gate_up, **options)
    assert_close(op(gate_up, **options), expected)
    out = torch.empty(tokens, inner + 7, dtype=dtype)[:, :inner]
    assert op(gate_up, out=out, **options) is out
    assert_close(out, expected)


# of the interpreter's exp
@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_wide_and_extreme_rows(activation, assert_close):
    op, reference, options = ACTIVATIONS[activation]
    gate_up = torch.randn(2, 2 * 2500)
    gate_up[0, :6] = torch.tensor([-1e4, -90.0, -0.0, 1e-30, 90.0, 1e4])
    assert_close(op(gate_up, **options), reference(gate_up, **options))


@pytest.mark.parametrize("heads", [1, 3, 12])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 7, 63, 123])
def test_write_kv(tokens, dtype, heads):
    # views of a QKV product, value before key
    product = torch.randn(tokens, 4 * heads, 20).to(dtype)
    value, key = product[:, heads : 2 * heads], product[:, 2 * heads : 3 * heads]
    slots = torch.randperm(200)[:tokens]
    kv = torch.randn(201, 2 * heads, 20).to(dtype)
    expected = kv.clone()
    write_kv(key, value, kv, None, slots)
    write_kv_reference(key, value, expected, None, slots)
    assert torch.equal(kv, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "heads", "dim"), [(1, 1, 128), (7, 3, 80), (123, 5, 20)])
def test_write_kv_stores_the_bits_of_quantise(tokens, heads, dim, dtype):
    product = torch.randn(tokens, 3 * heads, dim).to(dtype)
    key, value = product[:, heads : 2 * heads], product[:, 2 * heads :]
    # ties, zeros, scales that fp16 rounds to its smallest numbers or to none
    key[0, 0] = torch.arange(dim) / 2
    value[0, 0] = 0.0
    value[-1, -1] *= 2e-5
    key[-1, -1] *= 1e-7
    slots = torch.randperm(200)[:tokens]
    kv = torch.randint(-9, 9, (201, 2 * heads, dim), dtype=torch.int8)
    scales = torch.randn(201, 2 * heads).half()
    expected, expected_scales = kv.clone(), scales.clone()
    write_kv(key, value, kv, scales, slots)
    expected[slots], expected_scales[slots] = quantise(torch.cat([key, value], 1))
    assert torch.equal(scales, expected_scales)
    assert torch.equal(kv, expected)


def test_write_kv_rounds_each_value_as_quantise_does():
    states = torch.randn(40, 1, 256) * torch.logspace(-4, 4, 40).view(-1, 1, 1)
    kv, scales = torch.zeros(41, 2, 256, dtype=torch.int8), torch.zeros(41, 2).half()
    write_kv(states, -states, kv, scales, torch.arange(40))
    expected, expected_scales = quantise(torch.cat([states, -states], 1))
    assert torch.equal(scales[:40], expected_scales)
    assert torch.equal(kv[:40], expected)


def test_write_kv_to_the_padding_slot_many_times():
    key = torch.randn(9, 2, 16)
    kv = torch.zeros(5, 4, 16)
    write_kv(key, -key, kv, None, torch.tensor([4, 4, 0, 4, 2, 4, 4, 4, 4]))
    assert torch.equal(kv[[0, 2]], torch.cat([key, -key], 1)[[2, 4]])
    assert not kv[[1, 3]].any()

"""Every rank's share, put together, is the whole layer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lightllm_server.layers.linear import (
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from lightllm_server.layers.tensor_parallel import SingleRank


def affine(hidden, weight, bias):
    return hidden @ weight.T + (0 if bias is None else bias)


def parameters(name, outputs, inputs, bias):
    tensors = {f"{name}.weight": torch.randn(outputs, inputs)}
    if bias:
        tensors[f"{name}.bias"] = torch.randn(outputs)
    return tensors


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_column_parallel(size, bias, options, load, ranks, assert_close):
    tensors = parameters("gate", 8, 10, bias) | parameters("up", 16, 10, bias)
    hidden = torch.randn(3, 10)
    gates, ups = [], []
    for tp in ranks(size):
        layer = MergedColumnParallelLinear(
            10, {"gate": 8, "up": 16}, bias=bias, tp=tp, options=options
        )
        gate, up = load(layer, tensors)(hidden).split([8 // size, 16 // size], -1)
        gates.append(gate)
        ups.append(up)
    for name, parts in (("gate", gates), ("up", ups)):
        expected = affine(hidden, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))
        assert_close(torch.cat(parts, -1), expected)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_row_parallel_adds_its_bias_once(size, bias, options, load, ranks, assert_close):
    tensors = parameters("down", 6, 16, bias)
    hidden = torch.randn(5, 16)
    total = sum(
        load(RowParallelLinear(16, 6, name="down", bias=bias, tp=tp, options=options), tensors)(
            part
        )
        for tp, part in zip(ranks(size), hidden.chunk(size, -1), strict=True)
    )
    assert_close(total, affine(hidden, tensors["down.weight"], tensors.get("down.bias")))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"), [(12, 4, 1), (12, 4, 2), (12, 4, 4), (8, 2, 4), (4, 1, 4)]
)
def test_qkv(heads, kv_heads, size, bias, options, load, ranks, assert_close):
    dim, inputs = 6, 10
    tensors = parameters("q_proj", heads * dim, inputs, bias)
    tensors |= parameters("k_proj", kv_heads * dim, inputs, bias)
    tensors |= parameters("v_proj", kv_heads * dim, inputs, bias)
    hidden = torch.randn(3, inputs)
    whole = {
        name: affine(hidden, tensors[f"{name}.weight"], tensors.get(f"{name}.bias")).view(
            3, -1, dim
        )
        for name in ("q_proj", "k_proj", "v_proj")
    }
    group = heads // kv_heads
    for tp in ranks(size):
        layer = QKVParallelLinear(
            inputs,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=dim,
            bias=bias,
            tp=tp,
            options=options,
        )
        out = load(layer, tensors)(hidden).view(3, -1, dim)
        local, local_kv = layer.num_heads, layer.num_kv_heads
        assert out.shape[1] == local + 2 * local_kv
        query, key, value = out.split([local, local_kv, local_kv], 1)
        first = tp.rank * local
        assert_close(query, whole["q_proj"][:, first : first + local])
        # each local query head finds the KV head it belongs to
        for head in range(local):
            kv_head, local_head = (first + head) // group, head // (local // local_kv)
            assert_close(key[:, local_head], whole["k_proj"][:, kv_head])
            assert_close(value[:, local_head], whole["v_proj"][:, kv_head])


def test_what_cannot_be_split_is_refused(options, ranks):
    tp = ranks(4)[0]
    with pytest.raises(ValueError, match="outputs of up = 6 cannot be split over 4"):
        MergedColumnParallelLinear(8, {"up": 6}, bias=False, tp=tp, options=options)
    with pytest.raises(ValueError, match="inputs of down = 6 cannot be split over 4"):
        RowParallelLinear(6, 8, name="down", bias=False, tp=tp, options=options)
    heads = {"head_dim": 4, "bias": False, "tp": tp, "options": options}
    with pytest.raises(ValueError, match="num_heads = 6"):
        QKVParallelLinear(8, num_heads=6, num_kv_heads=2, **heads)
    with pytest.raises(ValueError, match="cannot be split over 3"):
        QKVParallelLinear(8, num_heads=12, num_kv_heads=3, **heads)


def test_a_wrong_shape_names_both(options, load):
    layer = MergedColumnParallelLinear(8, {"up": 6}, bias=False, tp=SingleRank(), options=options)
    with pytest.raises(ValueError, match=r"has shape \[6, 9\], expected \[6, 8\]"):
        load(layer, {"up.weight": torch.randn(6, 9)})


def test_the_checkpoint_may_have_another_dtype(options, load, assert_close):
    weight = torch.randn(64, 96).bfloat16()
    layer = MergedColumnParallelLinear(96, {"up": 64}, bias=False, tp=SingleRank(), options=options)
    hidden = torch.randn(4, 96)
    out = load(layer, {"up.weight": weight})(hidden)
    assert out.dtype == torch.float32
    assert_close(out, hidden @ weight.float().T, atol=1e-4)


@pytest.mark.parametrize(("field", "error"), [("int8", 0.03), ("float16", 5e-4)])
def test_compressed_weights(field, error, options, load, ranks):
    tensors = parameters("down", 64, 128, True)
    hidden = torch.randn(5, 128)
    expected = affine(hidden, tensors["down.weight"], tensors["down.bias"])
    compressed = replace(options, **{field: True})
    total = sum(
        load(
            RowParallelLinear(128, 64, name="down", bias=True, tp=tp, options=compressed), tensors
        )(part.contiguous())
        for tp, part in zip(ranks(2), hidden.chunk(2, -1), strict=True)
    )
    assert 0 < float((total - expected).norm() / expected.norm()) < error


@pytest.mark.parametrize("reverse", [False, True])
def test_loading_order_is_free(reverse, options, source, assert_close):
    layer = MergedColumnParallelLinear(
        4, {"gate": 3, "up": 5}, bias=True, tp=SingleRank(), options=options
    )
    tensors = parameters("gate", 3, 4, True) | parameters("up", 5, 4, True)
    for name, loader in sorted(layer.loaders().items(), reverse=reverse):
        loader(source(tensors[name]))
    hidden = torch.randn(2, 4)
    gate, up = layer(hidden).split([3, 5], -1)
    assert_close(gate, affine(hidden, tensors["gate.weight"], tensors["gate.bias"]))
    assert_close(up, affine(hidden, tensors["up.weight"], tensors["up.bias"]))

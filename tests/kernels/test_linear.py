"""Packed matrix products against float64."""

from __future__ import annotations

import pytest
import torch

from lightllm_kernels.int8_linear import (
    FbgemmInt8Linear,
    OneDnnInt8Linear,
    pack_int8_linear,
    quantise_weight,
)
from lightllm_kernels.linear import HalfWeightLinear, OneDnnLinear, PlainLinear, pack_linear

ROWS = (1, 7, 63, 123)
ENGINES = torch.backends.quantized.supported_engines


def int8_forms():
    forms = [("fbgemm", FbgemmInt8Linear), ("onednn", OneDnnInt8Linear)]
    return [pytest.param(form, id=name) for name, form in forms if name in ENGINES]


def float_forms():
    forms = [(PlainLinear, torch.float32), (OneDnnLinear, torch.float32)]
    forms += [(PlainLinear, torch.bfloat16), (pack_linear, torch.float32)]
    forms += [(pack_linear, torch.bfloat16), (pack_linear, torch.float16)]
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        forms.append((OneDnnLinear, torch.bfloat16))
    return forms


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("form", "dtype"), float_forms())
@pytest.mark.parametrize("rows", ROWS)
def test_float(rows, form, dtype, with_bias):
    weight = torch.randn(600, 450).to(dtype)
    bias = torch.randn(600).to(dtype) if with_bias else None
    hidden = torch.randn(rows, 450).to(dtype)
    expected = hidden.double() @ weight.double().T + (bias.double() if with_bias else 0)
    actual = form(weight, bias)(hidden)
    assert actual.dtype == dtype
    error = (actual.double() - expected).norm() / expected.norm()
    assert float(error) < (1e-6 if dtype == torch.float32 else 5e-3)


def relative_error(actual, expected):
    return float((actual.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", int8_forms())
@pytest.mark.parametrize("rows", ROWS)
def test_int8(rows, form, dtype):
    weight, bias = torch.randn(200, 130), torch.randn(200)
    hidden = torch.randn(rows, 130).to(dtype)
    expected = hidden.double() @ weight.double().T + bias.double()
    actual = form(weight.to(dtype), bias.to(dtype))(hidden)
    assert actual.dtype == dtype
    # 7-bit weights: half a step of 1/63 of each row's absmax, on random signs
    assert relative_error(actual, expected) < 0.025


@pytest.mark.parametrize("form", int8_forms())
def test_int8_rows_do_not_see_their_neighbours(form, assert_close):
    linear = form(torch.randn(64, 96), None)
    hidden = torch.randn(20, 96)
    together = linear(torch.cat([hidden, torch.randn(3, 96) * 1e4]))
    assert_close(together[:20], linear(hidden), rtol=0, atol=0)
    assert_close(together[4:5], linear(hidden[4:5]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", int8_forms())
def test_int8_extremes_do_not_saturate(form):
    # the largest products that int8 can make, all of one sign
    weight, hidden = torch.full((64, 256), 3.0), torch.full((5, 256), -2.0)
    weight[1], hidden[1] = -3.0, 2.0
    expected = hidden.double() @ weight.double().T
    assert relative_error(form(weight, None)(hidden), expected) < 1e-5


@pytest.mark.parametrize("form", int8_forms())
def test_int8_zero_rows(form):
    weight = torch.randn(64, 96)
    weight[3] = 0.0
    hidden = torch.randn(4, 96)
    hidden[2] = 0.0
    out = form(weight, None)(hidden)
    assert bool(out.isfinite().all())
    assert not out[2].any()
    assert not out[:, 3].any()


@pytest.mark.skipif("fbgemm" not in ENGINES, reason="this torch has no fbgemm")
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("rows", ROWS)
def test_half_weights_round_the_weight_alone(rows, with_bias):
    weight, hidden = torch.randn(200, 130), torch.randn(rows, 130)
    weight[0] *= 1e-6
    bias = torch.randn(200) if with_bias else None
    expected = hidden.double() @ weight.half().double().T + (bias.double() if with_bias else 0)
    assert relative_error(HalfWeightLinear(weight, bias)(hidden), expected) < 1e-6


@pytest.mark.skipif("fbgemm" not in ENGINES, reason="this torch has no fbgemm")
def test_half_weights_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="exceeds float16's 65504"):
        HalfWeightLinear(torch.full((8, 8), 70000.0), None)


@pytest.mark.skipif("fbgemm" not in ENGINES, reason="this torch has no fbgemm")
def test_only_weights_of_half_precision_are_stored_so_unasked():
    weight = torch.randn(512, 512)
    assert isinstance(pack_linear(weight[:64], None), PlainLinear), "small ones are not packed"
    assert isinstance(pack_linear(weight, None), OneDnnLinear)
    assert isinstance(pack_linear(weight.half().float(), None), HalfWeightLinear)
    coarse = weight.bfloat16().float()
    coarse[0, 0] = 1e-9
    assert isinstance(pack_linear(coarse, None), HalfWeightLinear)
    coarse[0, 0] = 1e5
    assert isinstance(pack_linear(coarse, None), OneDnnLinear)
    assert isinstance(pack_linear(weight, None, weight_format="float16"), HalfWeightLinear)


def test_formats():
    weight = torch.randn(8, 8)
    int8 = pack_linear(weight, None, weight_format="int8")
    assert isinstance(int8, (FbgemmInt8Linear, OneDnnInt8Linear))
    with pytest.raises(ValueError, match="int8 weights are for the CPU, got meta"):
        pack_linear(weight.to("meta"), None, weight_format="int8")


def test_quantise_weight_leaves_the_weight_alone():
    weight = torch.randn(5, 9)
    before = weight.clone()
    quantised, scales = quantise_weight(weight, 127)
    assert torch.equal(weight, before)
    assert int(quantised.abs().max()) == 127
    error = quantised * scales.unsqueeze(1) - weight
    assert float(error.abs().max()) < float(scales.max()) * 0.51


def test_packing_picks_a_form_this_machine_has():
    assert isinstance(
        pack_int8_linear(torch.randn(8, 8), None), (FbgemmInt8Linear, OneDnnInt8Linear)
    )


def test_packing_refuses_a_wrong_bias():
    with pytest.raises(ValueError, match=r"bias must have shape \[8\], got \[9\]"):
        pack_linear(torch.randn(8, 4), torch.randn(9))

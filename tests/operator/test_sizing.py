"""Tensor-parallel size from the GPU count, KV cache type from model and nodes."""

from __future__ import annotations

import pytest

from lightllm_operator.errors import RefusedError
from lightllm_operator.facts import ModelFacts, NodeGpu
from lightllm_operator.sizing import kv_choice, tensor_parallel_size
from operator_objects import spec_of

A100 = NodeGpu(node="a", product="NVIDIA-A100-SXM4-80GB", compute=(8, 0))
V100 = NodeGpu(node="v", product="Tesla-V100-SXM2-16GB", compute=(7, 0))
UNKNOWN = NodeGpu(node="u", product=None, compute=None)


def model(valid_tp: tuple[int, ...], *, int8: bool = True) -> ModelFacts:
    return ModelFacts(
        heads=12,
        kv_heads=4,
        valid_tp=valid_tp,
        int8_supported=int8,
        int8_reason="llama attention" if int8 else "the family has no int8 KV",
    )


@pytest.mark.parametrize(
    ("gpus", "valid", "size"),
    [(4, (1, 2, 4), 4), (4, (1, 2, 3, 6), 3), (3, (1, 2, 4, 8), 2), (0, (1, 2), 1), (1, (1, 2), 1)],
)
def test_the_largest_size_that_gpus_and_model_allow(gpus, valid, size):
    assert tensor_parallel_size(spec_of(gpu={"count": gpus}), model(valid)) == size


def test_an_explicit_size_is_taken():
    spec = spec_of(gpu={"count": 4}, tensorParallelSize=2)
    assert tensor_parallel_size(spec, model((1, 2, 4))) == 2


def test_an_impossible_size_is_refused_with_those_that_work():
    spec = spec_of(gpu={"count": 4}, tensorParallelSize=3)
    with pytest.raises(RefusedError, match=r"got 3, .* allow 1, 2, 4;") as refused:
        tensor_parallel_size(spec, model((1, 2, 4, 8)))
    assert refused.value.reason == "InvalidTensorParallel"


@pytest.mark.parametrize(
    ("nodes", "dtype", "says"),
    [
        ([A100], "int8", "all 1 matching nodes"),
        ([A100, V100], "model", "node v has Tesla-V100-SXM2-16GB (compute capability 7.0 < 7.5)"),
        ([A100, UNKNOWN], "auto", "unknown"),
        ([], "auto", "unknown"),
        (None, "auto", "unknown"),
    ],
)
def test_auto_follows_all_matching_nodes(nodes, dtype, says):
    choice = kv_choice(spec_of(gpu={"count": 1}), model((1,)), nodes)
    assert choice.dtype == dtype
    assert says in choice.reason


def test_auto_follows_the_model():
    choice = kv_choice(spec_of(gpu={"count": 1}), model((1,), int8=False), [A100])
    assert (choice.dtype, choice.reason) == ("model", "the family has no int8 KV")


def test_on_the_cpu_the_server_chooses():
    assert kv_choice(spec_of(gpu={"count": 0}), model((1,)), None).dtype == "auto"


@pytest.mark.parametrize(
    ("facts", "nodes"), [(model((1,), int8=False), [A100]), (model((1,)), [V100])]
)
def test_an_explicit_int8_is_never_quietly_replaced(facts, nodes):
    spec = spec_of(gpu={"count": 1}, kvCache={"dtype": "Int8"})
    with pytest.raises(RefusedError, match="Int8 is impossible") as refused:
        kv_choice(spec, facts, nodes)
    assert refused.value.reason == "UnsupportedKVCache"


def test_the_users_word_is_taken():
    spec = spec_of(gpu={"count": 1}, kvCache={"dtype": "Model"})
    assert kv_choice(spec, model((1,)), [A100]).dtype == "model"

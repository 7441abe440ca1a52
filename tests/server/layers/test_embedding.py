"""Embedding and output head, whole and split."""

from __future__ import annotations

import pytest
import torch

from lightllm_server.layers.embedding import ParallelLMHead, VocabParallelEmbedding
from lightllm_server.layers.tensor_parallel import SingleRank

VOCAB, HIDDEN = 13, 6


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_embedding_of_an_odd_vocabulary(size, options, load, ranks):
    table = torch.randn(VOCAB, HIDDEN)
    ids = torch.tensor([0, 12, 5, 5, 6, 7])
    before = ids.clone()
    total = 0
    for tp in ranks(size):
        layer = VocabParallelEmbedding(VOCAB, HIDDEN, name="embed", tp=tp, options=options)
        total = total + load(layer, {"embed.weight": table})(ids)
    assert torch.equal(total, table[ids])
    assert torch.equal(ids, before)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_head_of_an_odd_vocabulary(size, options, load, ranks, assert_close):
    table, hidden = torch.randn(VOCAB, HIDDEN), torch.randn(3, HIDDEN)
    parts = []
    for tp in ranks(size):
        layer = ParallelLMHead(VOCAB, HIDDEN, name="lm_head", tp=tp, options=options)
        # collect what each rank would send
        tp.all_gather = lambda tensor: (parts.append(tensor), torch.zeros(3, VOCAB + 5))[1]
        assert load(layer, {"lm_head.weight": table})(hidden).shape == (3, VOCAB)
    gathered = torch.cat(parts, -1)
    assert gathered.shape[1] >= VOCAB
    assert_close(gathered[:, :VOCAB], hidden @ table.T)


def test_head_returns_float32(options, load):
    layer = ParallelLMHead(VOCAB, HIDDEN, name="lm_head", tp=SingleRank(), options=options)
    load(layer, {"lm_head.weight": torch.randn(VOCAB, HIDDEN)})
    assert layer(torch.randn(2, HIDDEN)).dtype == torch.float32


def test_a_tied_head_uses_the_embedding(options, load, assert_close):
    shared = {"tp": SingleRank(), "options": options}
    embedding = VocabParallelEmbedding(VOCAB, HIDDEN, name="embed", **shared)
    head = ParallelLMHead(VOCAB, HIDDEN, name="lm_head", tied_to=embedding, **shared)
    table, hidden = torch.randn(VOCAB, HIDDEN), torch.randn(2, HIDDEN)
    assert head.loaders() == {}
    load(embedding, {"embed.weight": table})
    assert_close(head(hidden), hidden @ table.T)


def test_a_table_of_another_size_is_refused(options, load):
    layer = VocabParallelEmbedding(VOCAB, HIDDEN, name="e", tp=SingleRank(), options=options)
    with pytest.raises(ValueError, match=r"has shape \[12, 6\], expected \[13, 6\]"):
        load(layer, {"e.weight": torch.randn(12, HIDDEN)})

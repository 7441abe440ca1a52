"""Sizes found by running: tokens per step on the CPU, and the KV cache slots that memory holds.

Every rank runs through this in the same order, since each probe is a collective; what the ranks
must agree on is reduced over them.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from lightllm_server.config import ServerConfig
from lightllm_server.engine.host_memory import PeakMemory, read_host_memory
from lightllm_server.engine.shard import ModelShard
from lightllm_server.errors import ConfigError
from lightllm_server.messages import SamplingParams
from lightllm_server.router.step_plan import RowStart, StepPlan

__all__ = ["probe_plan", "size_engine"]

# a step on the CPU should stay below half a second, since aborts wait for it: aim below
_STEP_SECONDS = 0.4
_LONG_PROBE_SECONDS = 0.2
_MAX_RUNS = 6
_RUNS_NS = 250_000_000
_MIN_BATCH_TOKENS = 64
_MAX_BATCH_TOKENS = 8192
_PROBE_CONTEXT = 2048
# more slots than this are never reached by a CPU's speed, and their prefix tree would cost more
# than it saves
_CPU_MAX_SLOTS = 2**18
_MIN_SLOTS = 16
# raw and adjusted logits, and two temporaries of the sampler
_LOGITS_COPIES = 4


def size_engine(config: ServerConfig, shard: ModelShard) -> int:
    """Choose the tokens per step and make the KV pool; returns the tokens per step.

    Raises ConfigError if memory does not hold what was asked for, or holds next to nothing.
    """
    shard.forward(probe_plan(shard, min(_MIN_BATCH_TOKENS, _most_probed(shard))))
    tokens = config.router.batch_max_tokens or _choose_batch_tokens(shard)
    shard.make_pool(_choose_slots(config, shard, tokens))
    return tokens


def probe_plan(shard: ModelShard, num_tokens: int) -> StepPlan:
    """A step of prefill chunks over long contexts; every slot is the pool's padding.

    num_tokens: at most half of what all rows hold at full length.
    """
    context = min(shard.max_length, _PROBE_CONTEXT)
    longest = max(1, context // 2)
    lens = [longest] * (num_tokens // longest)
    if num_tokens % longest:
        lens.append(num_tokens % longest)
    padding = shard.num_slots
    starts = [context - length for length in lens]
    empty = np.zeros(0, np.int32)
    return StepPlan(
        step=0,
        token_ids=np.zeros(num_tokens, np.int32),
        chunk_rows=np.arange(len(lens), dtype=np.int32),
        chunk_starts=np.array(starts, np.int32),
        chunk_lens=np.array(lens, np.int32),
        decode_rows=empty,
        decode_positions=empty,
        slots=np.full(num_tokens, padding, np.int32),
        sample_token_index=np.array([num_tokens - 1], np.int32),
        sample_rows=np.zeros(1, np.int32),
        sample_positions=np.array([context], np.int32),
        sample_out_lens=np.zeros(1, np.int32),
        prompt_logprob_chunks=empty,
        starts=tuple(
            RowStart(
                row=row,
                choice=0,
                prefix_slots=np.full(start, padding, np.int32),
                sampling=SamplingParams(),
                prompt_len=context,
            )
            for row, start in enumerate(starts)
        ),
    )


def _most_probed(shard: ModelShard) -> int:
    return shard.num_rows * max(1, min(shard.max_length, _PROBE_CONTEXT) // 2)


def _choose_batch_tokens(shard: ModelShard) -> int:
    """CUDA: the most. CPU: what a step of `_STEP_SECONDS` holds, a multiple of 64."""
    most = min(_MAX_BATCH_TOKENS, _most_probed(shard))
    if shard.device.type == "cuda":
        return most
    tokens = min(_MIN_BATCH_TOKENS, most)
    seconds = _seconds(shard, tokens)
    longer = min(most, int(tokens * _LONG_PROBE_SECONDS / seconds))
    if longer > tokens:
        # a longer step costs less per token
        tokens, seconds = longer, _seconds(shard, longer)
    chosen = int(tokens * _STEP_SECONDS / seconds) // 64 * 64
    return max(_MIN_BATCH_TOKENS, min(chosen, _MAX_BATCH_TOKENS))


def _seconds(shard: ModelShard, num_tokens: int) -> float:
    """The fastest of a few runs (something else may be using the cores), on the slowest rank."""
    plan = probe_plan(shard, num_tokens)
    fastest, spent, runs = 2**62, 0, 0
    # the ranks must run equally often, hence the decision over what the slowest spent
    while runs < 2 or (runs < _MAX_RUNS and shard.ranks.largest(spent) < _RUNS_NS):
        began = time.perf_counter_ns()
        shard.sample_logits(shard.forward(plan), plan)
        nanoseconds = time.perf_counter_ns() - began
        fastest, spent, runs = min(fastest, nanoseconds), spent + nanoseconds, runs + 1
    return max(1, shard.ranks.largest(fastest)) / 1e9


def _choose_slots(config: ServerConfig, shard: ModelShard, batch_tokens: int) -> int:
    room = _room_for_cache(config, shard, batch_tokens) // shard.layout.bytes_per_token
    room = shard.ranks.smallest(room)
    wanted = config.engine.max_total_token_num
    if wanted is not None:
        if wanted > room:
            raise ConfigError(
                f"--max-total-token-num is {wanted}, but --mem-fraction "
                f"{config.engine.mem_fraction:g} of the memory holds {max(room, 0)} slots of "
                f"{shard.layout.bytes_per_token} bytes beside the weights"
            )
        return wanted
    if room < _MIN_SLOTS:
        raise ConfigError(
            f"--mem-fraction {config.engine.mem_fraction:g} of the memory leaves room for "
            f"{max(room, 0)} KV cache slots beside the weights, needed: {_MIN_SLOTS} at least"
        )
    most = shard.num_rows * shard.max_length
    if shard.device.type == "cpu":
        most = min(most, _CPU_MAX_SLOTS)
    return min(room, most)


def _room_for_cache(config: ServerConfig, shard: ModelShard, batch_tokens: int) -> int:
    """Bytes on this rank, after weights and the largest step, which is run to see what it takes."""
    fraction = config.engine.mem_fraction
    plan = probe_plan(shard, min(batch_tokens, _most_probed(shard)))
    logits = _LOGITS_COPIES * 4 * shard.num_rows * shard.model_config.vocab_size
    if shard.device.type == "cuda":
        torch.cuda.synchronize(shard.device)
        torch.cuda.reset_peak_memory_stats(shard.device)
        shard.sample_logits(shard.forward(plan), plan)
        torch.cuda.synchronize(shard.device)
        free, total = torch.cuda.mem_get_info(shard.device)
        reserved = torch.cuda.memory_reserved(shard.device)
        elsewhere = total - free - reserved
        peak = torch.cuda.max_memory_allocated(shard.device)
        return int(total * fraction) - elsewhere - peak - logits
    before = read_host_memory()
    peak_memory = PeakMemory()
    shard.sample_logits(shard.forward(plan), plan)
    share = (int(before.total * fraction) - before.used) // shard.ranks.size
    return share - peak_memory.growth() - logits

"""Sizes found by running: tokens per step on the CPU, and the KV cache slots that memory holds.

Every rank runs through this in the same order, since each probe is a collective; what the ranks
must agree on is reduced over them.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import torch

from lightllm_kernels.cpu_decode_attention import decode_bytes_per_token
from lightllm_kernels.cpu_prefill_attention import prefill_bytes_per_position
from lightllm_server.config import ServerConfig
from lightllm_server.engine.cuda_graphs import CudaRecorder
from lightllm_server.engine.host_memory import PeakMemory, read_host_memory
from lightllm_server.engine.probe_plans import (
    PROBE_CONTEXT,
    largest_plan,
    most_probed,
    probe_plan,
)
from lightllm_server.engine.sampler import Sampler
from lightllm_server.engine.shard import ModelShard
from lightllm_server.errors import ConfigError
from lightllm_server.router.step_plan import StepPlan

__all__ = ["size_engine"]

logger = logging.getLogger(__name__)

# a step on the CPU should stay below half a second, since aborts wait for it: aim below
_STEP_SECONDS = 0.4
_LONG_PROBE_SECONDS = 0.1
_MAX_RUNS = 6
_RUNS_NS = 150_000_000
_MIN_BATCH_TOKENS = 64
_MAX_BATCH_TOKENS = 8192
# more slots than this are never reached by a CPU's speed, and their prefix tree would cost more
# than it saves
_CPU_MAX_SLOTS = 2**18
_MIN_SLOTS = 16
# on the CPU: raw and adjusted logits, and two temporaries of the sampler
_LOGITS_COPIES = 4


@dataclass(frozen=True, slots=True)
class _Measured:
    """Tokens per step, and the bytes that the largest such step takes beside weights, cache and
    what is kept from step to step; on the CPU without its sampling.
    """

    batch_tokens: int
    step_bytes: int


def size_engine(config: ServerConfig, shard: ModelShard) -> int:
    """Choose the tokens per step and make the KV pool; returns the tokens per step.

    Raises ConfigError if memory does not hold what was asked for, or holds next to nothing.
    """
    shard.ranks.meet()
    shard.forward(probe_plan(shard, min(_MIN_BATCH_TOKENS, most_probed(shard))))
    if shard.device.type == "cpu":
        measured = _measure_cpu(config, shard)
        shard.make_pool(_choose_slots(config, shard, measured))
        return measured.batch_tokens
    measured = _measure_cuda(config, shard)
    reason = _why_no_graphs(config, shard)
    recorder = None
    if reason is None:
        recorder = CudaRecorder(torch.cuda.Stream(shard.device))  # type: ignore[no-untyped-call]
        graph_bytes = _measure_graphs(config, shard, recorder)
        measured = _Measured(measured.batch_tokens, measured.step_bytes + graph_bytes)
    else:
        logger.info("decode steps are launched kernel by kernel: %s", reason)
    shard.make_pool(_choose_slots(config, shard, measured))
    if recorder is not None:
        began = time.monotonic()
        shard.record_graphs(recorder.with_new_pool(), shard.tick)
        seconds = time.monotonic() - began
        logger.info("recorded CUDA graphs in %.1f s, about %d MiB", seconds, graph_bytes >> 20)
    return measured.batch_tokens


def _why_no_graphs(config: ServerConfig, shard: ModelShard) -> str | None:
    if config.engine.disable_cudagraph:
        return "asked for with --disable-cudagraph"
    if shard.ranks.size > 1:
        # the watchdog that ends a rank whose peer is lost does not see replayed collectives
        return "with --tp above 1 a replayed graph would wait for a lost rank forever"
    return None


def _measure_graphs(config: ServerConfig, shard: ModelShard, recorder: CudaRecorder) -> int:
    """Bytes of all graphs, recorded over the pool of no slots and forgotten again.

    What they share with eager steps (static inputs, workspaces) is made here and stays, so that it
    counts as used memory afterwards.
    """
    shard.prepare_graphs(config.engine.graph_max_batch_size)
    free: list[int] = []

    def note_free() -> None:
        torch.cuda.synchronize(shard.device)
        # a recording begins by this too: what it gives back must not hide what it takes
        torch.cuda.empty_cache()
        free.append(torch.cuda.mem_get_info(shard.device)[0])

    shard.record_graphs(recorder, note_free)
    shard.forget_graphs()
    return max(0, free[0] - free[-1])


def _measure_cuda(config: ServerConfig, shard: ModelShard) -> _Measured:
    tokens = config.router.batch_max_tokens or min(_MAX_BATCH_TOKENS, most_probed(shard))
    torch.cuda.reset_peak_memory_stats(shard.device)
    _run_and_sample(shard, largest_plan(shard, tokens))
    torch.cuda.synchronize(shard.device)
    # scratch memory that the step has left behind is in use already
    kept = torch.cuda.memory_allocated(shard.device)
    return _Measured(tokens, torch.cuda.max_memory_allocated(shard.device) - kept)


def _run_and_sample(shard: ModelShard, plan: StepPlan) -> None:
    """With a sampler of its own, whose tables are freed: they count as the step's."""
    logits = shard.sample_logits(shard.forward(plan), plan)
    if shard.ranks.rank:
        # rank 0 samples for all
        return
    model = shard.model_config
    sampler = Sampler(
        num_rows=shard.num_rows,
        vocab_size=model.vocab_size,
        eos_ids=model.eos_ids,
        device=shard.device,
        uploader=shard.uploader,
    )
    for start in plan.starts:
        sampler.start(start)
    sampler.sample(logits, plan)


def _measure_cpu(config: ServerConfig, shard: ModelShard) -> _Measured:
    """Unless told the tokens per step: what one of `_STEP_SECONDS` holds, a multiple of 64."""
    most = min(_MAX_BATCH_TOKENS, most_probed(shard))
    memory = PeakMemory()
    if (told := config.router.batch_max_tokens) is not None:
        _run(shard, probe_plan(shard, min(told, most_probed(shard))))
        return _Measured(told, memory.growth())
    tokens = min(_MIN_BATCH_TOKENS, most)
    seconds = _step_seconds(shard, tokens)
    longer = min(most, int(tokens * _LONG_PROBE_SECONDS / seconds))
    if longer > 2 * tokens:
        # a longer step costs less per token
        memory = PeakMemory()
        tokens, seconds = longer, _step_seconds(shard, longer)
    chosen = int(tokens * _STEP_SECONDS / seconds) // 64 * 64
    chosen = max(_MIN_BATCH_TOKENS, min(chosen, _MAX_BATCH_TOKENS))
    # activations grow with the tokens
    return _Measured(chosen, int(memory.growth() * max(1.0, chosen / tokens)))


def _run(shard: ModelShard, plan: StepPlan) -> None:
    shard.sample_logits(shard.forward(plan), plan)


def _step_seconds(shard: ModelShard, num_tokens: int) -> float:
    """The fastest of a few runs, on the slowest rank.

    Measured in this thread's CPU time, which equals the time on the clock when the cores are ours:
    what the other processes of the server take while they start must not count for good.
    """
    plan = probe_plan(shard, num_tokens)
    fastest, spent, runs = 2**62, 0, 0
    # the ranks must run equally often, hence the decision over what the slowest spent
    while runs < 2 or (runs < _MAX_RUNS and shard.ranks.largest(spent) < _RUNS_NS):
        began = time.thread_time_ns()
        _run(shard, plan)
        nanoseconds = time.thread_time_ns() - began
        fastest, spent, runs = min(fastest, nanoseconds), spent + nanoseconds, runs + 1
    return max(1, shard.ranks.largest(fastest)) / 1e9


def _choose_slots(config: ServerConfig, shard: ModelShard, measured: _Measured) -> int:
    slot_bytes = _slot_bytes(shard)
    room = _room_for_cache(config, shard, measured) // slot_bytes
    room = max(0, shard.ranks.smallest(room))
    wanted = config.engine.max_total_token_num
    share = f"--mem-fraction {config.engine.mem_fraction:g} of the memory"
    if wanted is not None and wanted > room:
        raise ConfigError(
            f"--max-total-token-num is {wanted}, but {share} holds {room} slots of "
            f"{slot_bytes} bytes beside the weights"
        )
    if wanted is not None:
        return wanted
    if room < _MIN_SLOTS:
        raise ConfigError(
            f"{share} leaves room for {room} KV cache slots beside the weights, needed: "
            f"{_MIN_SLOTS} at least"
        )
    most = shard.num_rows * shard.max_length
    if shard.device.type == "cpu":
        most = min(most, _CPU_MAX_SLOTS)
    return min(room, most)


def _slot_bytes(shard: ModelShard) -> int:
    """Bytes of a slot, with what reading it takes: on the CPU, decode attention lays the keys and
    values of all running requests out once more, and keeps that memory.
    """
    layout = shard.layout
    size = layout.bytes_per_token
    if shard.device.type == "cpu":
        size += decode_bytes_per_token(
            shard.num_heads, layout.num_kv_heads, layout.head_dim, layout.dtype
        )
    return size


def _long_context_bytes(shard: ModelShard, num_tokens: int) -> int:
    """What a step's prefill takes on the CPU beyond the context that it was measured with."""
    layout = shard.layout
    unmeasured = max(0, shard.max_length - PROBE_CONTEXT)
    return unmeasured * prefill_bytes_per_position(
        num_tokens, layout.num_kv_heads, layout.head_dim, layout.dtype, shard.dtype
    )


def _room_for_cache(config: ServerConfig, shard: ModelShard, measured: _Measured) -> int:
    """Bytes on this rank, beside the weights and the largest step; negative if those do not fit."""
    fraction = config.engine.mem_fraction
    step = measured.step_bytes
    if shard.device.type == "cuda":
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(shard.device)
        return int(total * fraction) - (total - free) - step
    step += _LOGITS_COPIES * 4 * shard.num_rows * shard.model_config.vocab_size
    step += _long_context_bytes(shard, measured.batch_tokens)
    memory = read_host_memory()
    # the ranks share the machine, and what they have loaded is in use already
    return (int(memory.total * fraction) - memory.used) // shard.ranks.size - step

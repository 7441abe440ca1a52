"""Every kernel against its reference at the shapes of real models, then each kernel's benchmark."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accuracy import require_close
from cases import Case, Figures, IncompleteError
from sampling_cases import penalties, sampling

from lightllm_kernels.attention_batch import make_decode_batch, make_prefill_batch
from lightllm_kernels.attention_options import AttentionOptions
from lightllm_kernels.decode_attention import decode_attention, decode_attention_reference
from lightllm_kernels.gated_activation import (
    gelu_and_mul,
    gelu_and_mul_reference,
    silu_and_mul,
    silu_and_mul_reference,
)
from lightllm_kernels.layer_norm import layer_norm, layer_norm_reference
from lightllm_kernels.logprobs import token_logprobs, token_logprobs_reference
from lightllm_kernels.prefill_attention import prefill_attention, prefill_attention_reference
from lightllm_kernels.rms_norm import add_rms_norm, rms_norm_reference
from lightllm_kernels.rotary_embedding import rotary_embedding, rotary_embedding_reference
from lightllm_kernels.triton_launch import triton_everywhere
from lightllm_kernels.workspace import Workspace
from lightllm_kernels.write_kv import dequantise, quantise, write_kv, write_kv_reference

ROOT = Path(__file__).parents[2]
# (query heads, KV heads, head dim): LLaMA-7B, Llama-3-8B, Phi-3's odd width
REAL_HEADS = ((32, 32, 128), (32, 8, 128), (32, 32, 96))
# the other rows of the shipped table: Llama-3.2-1B, Phi-2, Gemma
OTHER_HEADS = ((32, 8, 64), (32, 32, 80), (16, 16, 256))
OPTIONS = {
    "ALiBi": {"alibi": True},
    "window": {"window": 100},
    "soft cap": {"soft_cap": 1.5},
    "ALiBi, window, soft cap": {"alibi": True, "window": 900, "soft_cap": 2.0},
}


def check(out: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> Figures:
    return {"relative_error": float(f"{require_close(out, wanted, dtype):.1e}")}


def attention(
    device: torch.device,
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    lens: list[int],
    *,
    decode: bool,
    int8: bool,
    alibi: bool = False,
    **others: Any,
) -> Figures:
    """lens: contexts; a prefill chunk is the last half of each. alibi, others: options."""
    query_heads, kv_heads, dim = heads
    slots = sum(lens) + 1
    kv = torch.randn(slots + 1, 2 * kv_heads, dim, device=device).to(dtype)
    scales = None
    if int8:
        kv, scales = quantise(kv)
    table = torch.zeros(len(lens), max(lens), dtype=torch.int32, device=device)
    order, begin = torch.randperm(slots, dtype=torch.int32, device=device), 0
    for row, length in enumerate(lens):
        table[row, :length] = order[begin : begin + length]
        begin += length
    slopes = torch.linspace(0.01, 0.3, query_heads, device=device) if alibi else None
    options = AttentionOptions(alibi_slopes=slopes, **others)
    workspace, rows = Workspace(device), list(range(len(lens)))
    given: dict[str, Any] = {"scale": dim**-0.5, "options": options}
    if decode:
        query = torch.randn(len(lens), query_heads, dim, device=device).to(dtype)
        batch = make_decode_batch(table, rows, lens, padding_slot=slots)
        out = decode_attention(query, kv, scales, table, batch, workspace=workspace, **given)
        wanted = decode_attention_reference(query, kv, scales, table, batch, **given)
    else:
        starts = [length // 2 for length in lens]
        chunk_lens = [length - start for length, start in zip(lens, starts, strict=True)]
        query = torch.randn(sum(chunk_lens), query_heads, dim, device=device).to(dtype)
        chunks = make_prefill_batch(table, rows, starts, chunk_lens, dtype=dtype)
        out = prefill_attention(query, kv, scales, table, chunks, workspace=workspace, **given)
        wanted = prefill_attention_reference(query, kv, scales, table, chunks, **given)
    return check(out, wanted, dtype)


def norms(device: torch.device, dtype: torch.dtype, tokens: int, width: int) -> Figures:
    """The worst error."""
    hidden, other = (torch.randn(tokens, width, device=device).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(width, device=device).to(dtype) for _ in range(2))
    residual = other.clone()
    normed = add_rms_norm(hidden, residual, weight, 1e-5)
    pairs = [(normed, rms_norm_reference(other + hidden, weight, 1e-5)), (residual, other + hidden)]
    pairs.append(
        (layer_norm(hidden, weight, bias, 1e-5), layer_norm_reference(hidden, weight, bias, 1e-5))
    )
    return _worst(pairs, dtype)


def gates_and_rotary(device: torch.device, dtype: torch.dtype, tokens: int, width: int) -> Figures:
    """The worst error."""
    hidden = torch.randn(tokens, width, device=device).to(dtype)
    pairs = [(silu_and_mul(hidden), silu_and_mul_reference(hidden))]
    for form in ("none", "tanh"):
        out = gelu_and_mul(hidden, approximate=form)
        pairs.append((out, gelu_and_mul_reference(hidden, approximate=form)))
    angles = torch.outer(torch.arange(tokens, device=device), torch.rand(8, device=device))
    tables = (angles.cos(), angles.sin(), torch.arange(tokens, device=device))
    for interleaved in (False, True):
        states = torch.randn(tokens, 3, 16, device=device).to(dtype)
        rotated = rotary_embedding_reference(states, *tables, interleaved=interleaved)
        rotary_embedding(states, None, *tables, interleaved=interleaved)
        pairs.append((states, rotated))
    return _worst(pairs, dtype)


def logprobs(device: torch.device, tokens: int, vocab: int) -> Figures:
    logits = torch.randn(tokens, vocab, device=device)
    ids = torch.randint(0, vocab, (tokens,), device=device)
    return check(token_logprobs(logits, ids), token_logprobs_reference(logits, ids), logits.dtype)


def _worst(pairs: list[tuple[torch.Tensor, torch.Tensor]], dtype: torch.dtype) -> Figures:
    return max((check(*pair, dtype) for pair in pairs), key=lambda f: f["relative_error"])


def kv_write(
    device: torch.device, dtype: torch.dtype, tokens: int, heads: int, dim: int, *, int8: bool
) -> Figures:
    key, value = (torch.randn(tokens, heads, dim, device=device).to(dtype) for _ in range(2))
    slots = torch.randperm(2 * tokens, device=device)[:tokens]
    pools = []
    for write in (write_kv, write_kv_reference):
        pool_dtype = torch.int8 if int8 else dtype
        kv = torch.zeros(2 * tokens, 2 * heads, dim, dtype=pool_dtype, device=device)
        scales = (
            torch.zeros(2 * tokens, 2 * heads, dtype=torch.float16, device=device) if int8 else None
        )
        write(key, value, kv, scales, slots)
        pools.append(kv if scales is None else dequantise(kv, scales))
    return check(*pools, torch.float16 if int8 else dtype)


def own_tests() -> Figures:
    """tests/kernels on this device, those marked gpu included."""
    parallel = ["-n", "8"] if importlib.util.find_spec("xdist") else []
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-rf", "--tb=short", *parallel]
    # another torch may warn of other things; the compile gate needs no GPU
    command += ["-W", "default", "--ignore", "tests/kernels/test_ahead_of_time.py"]
    command += ["-m", "(gpu or not slow) and not whole", "tests/kernels"]
    paths = [*(str(ROOT / name) for name in ("kernels", "server")), os.environ.get("PYTHONPATH")]
    # nothing is installed on the machine of the check
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | environment,
    )
    lines = result.stdout.strip().splitlines() or [""]
    figures: Figures = {"pytest": lines[-1]}
    if result.returncode:
        print(result.stdout[-20000:], file=sys.stderr)
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        raise IncompleteError("\n".join(failed)[:3000] or f"status {result.returncode}", figures)
    return figures


def benchmark(path: Path, device: torch.device, *, tiny: bool) -> Figures:
    """The rows that a kernel's benchmark returns."""
    sys.path.insert(0, str(path.parent))
    try:
        module = importlib.import_module(path.stem)
    finally:
        sys.path.pop(0)
    with torch.inference_mode():
        rows = module.run(device, tiny)
    if failed := [row["name"] for row in rows if "error" in row]:
        raise IncompleteError(f"no figure for {', '.join(failed)}", {"rows": rows})
    return {"rows": rows}


def in_triton(run: partial[Figures]) -> Figures:
    """Through the Triton kernel also without a GPU, in the interpreter."""
    with triton_everywhere(), torch.inference_mode():
        torch.manual_seed(0)
        return run()


def make_cases(device: torch.device, *, tiny: bool) -> list[Case]:
    # the interpreter computes garbage from bfloat16
    dtypes = (torch.float16,) if tiny else (torch.float16, torch.bfloat16, torch.float32)
    tokens, width = (7, 48) if tiny else (1000, 4096)
    cases = []
    for dtype in dtypes:
        kind = str(dtype).removeprefix("torch.")
        given = (device, dtype, tokens, width)
        cases.append(_case(f"norms, {kind}", "bench_norm", norms, *given))
        name = f"gated activations, rotary, {kind}"
        cases.append(_case(name, "bench_elementwise", gates_and_rotary, *given))
        for int8 in (False, True):
            name = f"{'int8 KV' if int8 else 'KV'} write, {kind}"
            given_heads = (2, 16 if tiny else 128)
            run = partial(kv_write, int8=int8)
            cases.append(_case(name, "bench_elementwise", run, device, dtype, tokens, *given_heads))
        cases += _attention_cases(device, dtype, tiny=tiny)
    rows, vocab = (10, 300) if tiny else (100, 128256)
    cases.append(_case("logprobs", "bench_sampling", logprobs, device, rows, vocab))
    cases.append(Case("sampling", partial(sampling, device, rows, vocab), "bench_sampling"))
    # its reference goes token by token
    few = (3, 300) if tiny else (8, 5000)
    cases.append(Case("penalties", partial(penalties, device, *few), "bench_sampling"))
    for path in sorted((ROOT / "benchmarks" / "kernels").glob("bench_*.py")):
        if "\ndef run(device" in path.read_text():
            run = partial(benchmark, path, device, tiny=tiny)
            cases.append(Case(path.stem, run, needs_checked=path.stem))
    if not tiny:
        # last: it takes the longest
        cases.append(Case("tests/kernels", own_tests))
    return cases


def _case(name: str, checks: str, run: Callable[..., Figures], *given: Any) -> Case:
    return Case(name, partial(in_triton, partial(run, *given)), checks)


def _attention_cases(device: torch.device, dtype: torch.dtype, *, tiny: bool) -> list[Case]:
    lens = [5, 33] if tiny else [1, 17, 128, 1000, 2048, 4000]
    kind = str(dtype).removeprefix("torch.")
    # (heads, int8 pool, options)
    settings: list[tuple[tuple[int, int, int], bool, str]] = []
    for heads in ((4, 2, 16),) if tiny else (*REAL_HEADS, *OTHER_HEADS):
        settings += [(heads, False, ""), (heads, True, "")]
    if dtype == torch.float16:
        settings += [((4, 2, 16) if tiny else REAL_HEADS[1], False, name) for name in OPTIONS]
    cases = []
    for heads, int8, options in settings:
        for what in ("decode", "prefill"):
            parts = [f"{what} attention", "int8 KV" if int8 else "KV", kind, f"heads {heads}"]
            run = partial(attention, decode=what == "decode", int8=int8, **OPTIONS.get(options, {}))
            name = ", ".join([*parts, *([options] if options else [])])
            cases.append(_case(name, f"bench_{what}_attention", run, device, dtype, heads, lens))
    return cases

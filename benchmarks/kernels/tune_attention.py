"""Choose the rows of lightllm_kernels/attention_configs.py.

    .venv/bin/python benchmarks/kernels/tune_attention.py            # on a GPU: by time
    .venv/bin/python benchmarks/kernels/tune_attention.py --compile  # anywhere: what each one needs

Prints, per row of the table, the candidates that are right in order of their time, the row's own
one marked; with --compile registers, stack and shared memory of each candidate.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import bench_decode_attention as decode_bench
import bench_prefill_attention as prefill_bench
import torch
from device_time import median_ms

from lightllm_kernels import attention_configs
from lightllm_kernels.attention_batch import DecodeBatch, PrefillBatch
from lightllm_kernels.attention_configs import AttentionConfig, ConfigKey, every_lookup_gives
from lightllm_kernels.decode_attention import decode_attention
from lightllm_kernels.prefill_attention import prefill_attention
from lightllm_kernels.triton_launch import compile_only, triton_everywhere
from lightllm_kernels.workspace import Workspace

SUPPORT = Path(__file__).parents[2] / "tests" / "support"
_CANDIDATES = {
    "decode": [
        AttentionConfig(16, n, warps, stages)
        for n, warps, stages in product((32, 64, 128), (2, 4, 8), (3, 5))
    ],
    "prefill": [
        AttentionConfig(m, n, warps, stages)
        for m, n, warps, stages in product((64, 128), (32, 64, 128), (4, 8), (3, 5))
    ],
}
_TINY_CANDIDATES = [AttentionConfig(16, n, 4, 3) for n in (16, 32)]


def _setup(key: ConfigKey, device: torch.device, *, tiny: bool) -> Any:
    """What the benchmark of the op measures, at the row's shape."""
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    kv_heads = 1 if tiny else 8
    shape = {"heads": kv_heads * key.group, "kv_heads": kv_heads, "dim": key.head_dim}
    if key.op == "prefill":
        return prefill_bench.Setup(
            prefill_bench.Case(
                name=str(key), chunks=1, start=0, length=20 if tiny else 4096, dtype=dtype, **shape
            ),
            device,
        )
    length = 40 if tiny else 2048
    return decode_bench.Setup(
        decode_bench.Case(
            name=str(key),
            rows=1 if tiny else 32,
            shortest=length,
            longest=length,
            # the bound by which recorded steps choose their splits
            max_request_len=4 * length,
            layers=1 if tiny else 4,
            dtype=dtype,
            **shape,
        ),
        device,
    )


def _time(setup: Any, config: AttentionConfig, *, int8: bool, repeats: int) -> float | None:
    """ms, or None if the GPU cannot run it or its result is wrong."""
    from triton.runtime.errors import OutOfResources

    with every_lookup_gives(config):
        try:
            setup.check(int8)
        except (OutOfResources, AssertionError):
            return None
        return median_ms(lambda: setup.ours(int8), setup.device, repeats=repeats)


def run(device: torch.device, tiny: bool) -> list[dict[str, Any]]:
    """Per row of the table that this device uses: its candidates as (ms, config), best first.
    `tiny`: a few rows and candidates, only to see that it runs, also interpreted.
    """
    sm = attention_configs.compute_capability(device)
    sm = max((k.sm for k, _ in attention_configs.rows() if k.sm <= sm), default=80)
    rows = [row for row in attention_configs.rows() if row[0].sm == sm]
    if tiny:
        rows = [row for row in rows if row[0].head_dim == 64 and row[0].group == 4]
    results = []
    with torch.inference_mode(), triton_everywhere():
        for key, shipped in rows:
            setup, int8 = _setup(key, device, tiny=tiny), key.kv_kind == "int8"
            candidates = _TINY_CANDIDATES if tiny else _CANDIDATES[key.op]
            timed = [
                (ms, config)
                for config in dict.fromkeys([*candidates, *([] if tiny else [shipped])])
                if (ms := _time(setup, config, int8=int8, repeats=1 if tiny else 10)) is not None
            ]
            results.append(
                {
                    "key": key,
                    "shipped": shipped,
                    "timed": sorted(timed, key=lambda pair: pair[0]),
                }
            )
            del setup
    return results


def _empty(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _compile(key: ConfigKey, config: AttentionConfig) -> None:
    """Launch the row's kernels on tensors that exist in shape only."""
    heads, dim, dtype = 8 * key.group, key.head_dim, torch.bfloat16
    int8 = key.kv_kind == "int8"
    kv = _empty(1000, 16, dim, dtype=torch.int8 if int8 else dtype)
    given = (
        _empty(64, heads, dim, dtype=dtype),
        kv,
        _empty(1000, 16, dtype=torch.float16) if int8 else None,
        _empty(64, 4096),
    )
    others = {"scale": 0.1, "workspace": Workspace("meta")}
    with every_lookup_gives(config):
        if key.op == "decode":
            decode = DecodeBatch(_empty(64), _empty(64), (4096,) * 64, 999, 4)
            decode_attention(*given, decode, **others)
        else:
            ints = (_empty(2), _empty(2), _empty(2), _empty(3))
            prefill_attention(*given, PrefillBatch(*ints, 64, ()), **others)


def _compiled() -> Iterator[str]:
    """A line per candidate; the groups of a row compile to the same."""
    # what the compile gate uses
    sys.path.insert(0, str(SUPPORT))
    from ahead_of_time import compile_only_driver
    from ahead_of_time.compiled_kernel import examine

    for key, shipped in attention_configs.rows():
        if key.group != 1:
            continue
        compile_only_driver.activate(key.sm)
        for config in dict.fromkeys([shipped, *_CANDIDATES[key.op]]):
            kernels: list[Any] = []
            try:
                with compile_only(kernels.append):
                    _compile(key, config)
            except Exception as error:  # the compiler's own errors have no common base
                yield f"{key} {config}: {str(error).splitlines()[0]}"
                continue
            needs = examine(kernels[0], launcher=key.op, case="", seconds=0.0)
            yield (
                f"{key.op:8s}{key.kv_kind:6s} sm_{key.sm} D {key.head_dim:3d}  "
                f"{_short(config):16s} registers {needs.registers:3d}  "
                f"stack {needs.stack_bytes:5d}  shared {needs.shared_bytes:6d}"
                f"{'  shipped' if config == shipped else ''}"
            )


def _short(config: AttentionConfig) -> str:
    numbers = (config.block_m, config.block_n, config.num_warps, config.num_stages)
    return f"({', '.join(map(str, numbers))})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compile", action="store_true")
    if parser.parse_args().compile:
        for line in _compiled():
            print(line, flush=True)
        return
    if not torch.cuda.is_available():
        parser.error("no GPU: only --compile")
    for result in run(torch.device("cuda"), tiny=False):
        print(result["key"])
        for ms, config in result["timed"][:4]:
            mark = "  shipped" if config == result["shipped"] else ""
            print(f"    {_short(config)}  {ms:.4f} ms{mark}", flush=True)


if __name__ == "__main__":
    main()

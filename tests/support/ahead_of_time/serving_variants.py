"""`python -m ahead_of_time.serving_variants`: which compiled forms of each kernel a server needs.

A real engine on the CPU whose kernels are compiled instead of run: the arguments are those of real
steps, with the addresses that the packed uploads of each step have. Prints per kernel the forms
that the warm-up compiled, and those that varied steps compiled after it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

os.environ.pop("TRITON_INTERPRET", None)

import torch

from ahead_of_time import compile_only_driver, gate
from engine_driver import server_config
from lightllm_kernels import attention_configs, decode_attention
from lightllm_kernels.triton_launch import compile_only
from lightllm_server.engine import shard as shard_module
from lightllm_server.engine.parallel import Solo
from lightllm_server.engine.probe_plans import probe_plan, warm_plans
from lightllm_server.engine.runner import ModelRunner
from lightllm_server.engine.shard import ModelShard
from lightllm_server.engine.staging import PinnedUploader
from lightllm_server.messages import SamplingParams
from lightllm_server.models.config import ModelConfig
from lightllm_server.router.step_plan import StepPlan
from lightllm_server.status_page import StatusPage
from tiny_llama import tiny_llama

__all__ = ["main"]

_SM, _MULTIPROCESSORS = 90, 132
_MOST_ROWS, _MOST_SPLITS = 8, 17
_SAMPLINGS = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.7),
    SamplingParams(temperature=0.7, top_p=0.9, logprobs=3),
    SamplingParams(
        temperature=0.7,
        top_k=5,
        repetition_penalty=1.2,
        presence_penalty=0.1,
        logit_bias={3: 1.0, 4: -1.0},
    ),
)


class _Copied:
    """The event of a copy that is done at once."""

    def record(self) -> None: ...

    def query(self) -> bool:
        return True


def _served_plans(shard: ModelShard) -> Iterator[StepPlan]:
    """Every number of rows with every kind of sampling, every number of splits."""
    for sampling in _SAMPLINGS:
        for rows in range(1, _MOST_ROWS + 1):
            yield probe_plan(shard, 0, sampling, decode_lens=[5] * rows)
            yield probe_plan(shard, 4 * rows + 1, sampling, decode_lens=[700] * rows)
    for splits in range(1, _MOST_SPLITS + 1):
        yield probe_plan(shard, 32, decode_lens=[128 * splits, 9])


def _uploader(device: torch.device) -> PinnedUploader:
    return PinnedUploader(device, make_event=_Copied, pin=False)


def main() -> int:
    """Write {kernel: [forms after the warm-up, forms at the end]} to stdout."""
    gate.use_cache()
    compile_only_driver.activate(_SM)
    forms: dict[str, set[str]] = defaultdict(set)
    model_dir = tiny_llama(hidden_size=256, intermediate_size=512)
    config = server_config(model_dir, dtype="float16", load_format="dummy")
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(shard_module, "make_uploader", _uploader),
        mock.patch.object(decode_attention, "num_multiprocessors", return_value=_MULTIPROCESSORS),
        mock.patch.object(attention_configs, "compute_capability", return_value=_SM),
        torch.inference_mode(),
    ):
        row = StatusPage.create(Path(folder) / "page", ["router"])["router"]
        runner = ModelRunner(config, ModelConfig.from_dir(model_dir), Solo(), row)
        shard = runner._shard
        with (
            compile_only(lambda compiled: forms[compiled.src.fn.__name__].add(compiled.hash)),
            # what no kernel writes is read as an index later
            mock.patch.object(torch, "empty", torch.zeros),
        ):
            for plan in warm_plans(shard):
                runner._forward(plan)
            warm = {kernel: len(hashes) for kernel, hashes in forms.items()}
            for plan in _served_plans(shard):
                runner._forward(plan)
        runner.close()
    counts = {kernel: [warm.get(kernel, 0), len(hashes)] for kernel, hashes in forms.items()}
    json.dump(counts, sys.stdout, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())

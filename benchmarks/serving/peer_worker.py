"""One peer engine in a process of its own: loads the model, then runs a round per line of stdin.

    python peer_worker.py ENGINE MODEL_DIR DTYPE THREADS arrival|presorted

First line out: `{"version", "command"}`. Then, for every request list that comes in as
`[[prompt_ids, output_len], …]`, one line `{"seconds", "ttft": […], "tpot": […]}` with times in
seconds. Static batches: of the requests in order of arrival, or, where the peer may know all of
them beforehand, of prompts of similar length, which is less padding for one, and for the other
fewer prompt tokens that are decoded one by one. Only the tokens asked for count as useful.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from workload import Request, batches, by_length

# runs one batch and returns, for each of its requests, the times at which its tokens were there
BatchRunner = Callable[[list[Request]], list[list[float]]]


def load_transformers(model_dir: str, dtype: str, threads: int) -> tuple[BatchRunner, str, str]:
    """Greedy `generate` on left-padded batches, until the longest of the batch is done."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    model = transformers.LlamaForCausalLM.from_pretrained(model_dir, dtype=getattr(torch, dtype))
    model.eval()
    model.generation_config.eos_token_id = None

    class StepTimes(transformers.LogitsProcessor):
        """Notes when each step's logits are there; changes nothing."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            self.times.append(time.perf_counter())
            return scores

    def run(batch: list[Request]) -> list[list[float]]:
        longest = max(len(request.prompt_ids) for request in batch)
        pads = [longest - len(request.prompt_ids) for request in batch]
        rows = [[0] * pad + request.prompt_ids for pad, request in zip(pads, batch, strict=True)]
        mask = [[0] * pad + [1] * (longest - pad) for pad in pads]
        steps = StepTimes()
        num_steps = max(request.output_len for request in batch)
        with torch.inference_mode():
            output = model.generate(
                input_ids=torch.tensor(rows),
                attention_mask=torch.tensor(mask),
                max_new_tokens=num_steps,
                do_sample=False,
                pad_token_id=0,
                logits_processor=transformers.LogitsProcessorList([steps]),
            )
        assert output.shape == (len(batch), longest + num_steps), output.shape
        return [steps.times[: request.output_len] for request in batch]

    command = f"LlamaForCausalLM.generate(do_sample=False), dtype={dtype}, left-padded"
    return run, transformers.__version__ + f" (torch {torch.__version__})", command


def load_ctranslate2(model_dir: str, dtype: str, threads: int) -> tuple[BatchRunner, str, str]:
    """Greedy `generate_batch`; a callback ends each sequence at its own length."""
    import ctranslate2

    generator = ctranslate2.Generator(
        model_dir, device="cpu", compute_type=dtype, inter_threads=1, intra_threads=threads
    )
    with open(os.path.join(model_dir, "vocabulary.json"), encoding="utf-8") as file:
        vocabulary = json.load(file)

    def run(batch: list[Request]) -> list[list[float]]:
        times: list[list[float]] = [[] for _ in batch]

        def on_token(step: Any) -> bool:
            times[step.batch_id].append(time.perf_counter())
            return len(times[step.batch_id]) >= batch[step.batch_id].output_len

        num_steps = max(request.output_len for request in batch)
        results = generator.generate_batch(
            [[vocabulary[token] for token in request.prompt_ids] for request in batch],
            max_length=num_steps,
            min_length=num_steps,
            include_prompt_in_result=False,
            sampling_topk=1,
            callback=on_token,
        )
        for request, result in zip(batch, results, strict=True):
            assert len(result.sequences_ids[0]) >= request.output_len - 1, "a sequence ended early"
        return times

    command = f"Generator.generate_batch(sampling_topk=1), compute_type={dtype}"
    return run, ctranslate2.__version__, command


LOADERS = {"transformers": load_transformers, "ctranslate2": load_ctranslate2}


def run_round(run: BatchRunner, groups: list[list[Request]]) -> dict[str, Any]:
    """Every batch after the other; TTFT counts from the start of the request's batch."""
    ttft, tpot = [], []
    start = time.perf_counter()
    for batch in groups:
        batch_start = time.perf_counter()
        for request, times in zip(batch, run(batch), strict=True):
            assert len(times) == request.output_len, (len(times), request.output_len)
            ttft.append(times[0] - batch_start)
            tpot.append((times[-1] - times[0]) / max(1, len(times) - 1))
    return {"seconds": time.perf_counter() - start, "ttft": ttft, "tpot": tpot}


def main() -> None:
    engine, model_dir, dtype, threads, order = sys.argv[1:]
    grouped = {"arrival": batches, "presorted": by_length}[order]
    # stdout is the protocol's; what the libraries print goes to stderr
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    run, version, command = LOADERS[engine](model_dir, dtype, int(threads))
    print(json.dumps({"version": version, "command": command}), file=out, flush=True)
    for line in sys.stdin:
        requests = [Request(prompt_ids=ids, output_len=length) for ids, length in json.loads(line)]
        print(json.dumps(run_round(run, grouped(requests))), file=out, flush=True)


if __name__ == "__main__":
    main()

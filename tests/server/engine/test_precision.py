"""Every dtype of model, weights and KV cache stays within a stated distance of float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine_driver import EngineDriver
from lightllm_server.engine.runner import ModelRunner
from lightllm_server.errors import ConfigError
from llama_oracle import CASES, logits, write_oracle

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6]
# options → largest difference of a prompt token's logprob. These random weights make noisy
# softmaxes, in which rounding shows more than in a trained model
TOLERANCES = [
    ({"kv_dtype": "int8"}, 0.1),
    ({"weight_dtype": "int8"}, 0.25),
    ({"weight_dtype": "float16"}, 0.02),
    ({"dtype": "float16"}, 0.02),
    ({"dtype": "bfloat16"}, 0.15),
    ({"dtype": "bfloat16", "kv_dtype": "int8"}, 0.25),
    ({"dtype": "bfloat16", "weight_dtype": "int8"}, 0.35),
]


def prompt_logprobs(driver: EngineDriver) -> list[float]:
    request = driver.add(PROMPT, max_new_tokens=4, prompt_logprobs=0)
    driver.run()
    reported = driver.opened[request].prompt_logprobs
    assert reported is not None
    return [value for value in reported.logprobs if value is not None]


@pytest.mark.parametrize(("options", "tolerance"), TOLERANCES)
def test_logprobs_are_close(
    tmp_path: Path,
    make_runner: Callable[..., ModelRunner],
    options: dict[str, str],
    tolerance: float,
) -> None:
    oracle = write_oracle(tmp_path, CASES["12 heads, 4 KV heads"])
    runner = make_runner(tmp_path, **options)
    for option, dtype in options.items():
        assert getattr(runner.info(), option) == dtype
    wanted = logits(oracle, PROMPT).log_softmax(-1)
    expected = [float(wanted[i, token]) for i, token in enumerate(PROMPT[1:])]
    got = prompt_logprobs(EngineDriver(runner))
    assert got == pytest.approx(expected, abs=tolerance)
    # it is not float32 that ran
    assert got != pytest.approx(expected, abs=1e-5)
    # a chunk reads its own tokens back from the cache, so chunking changes rounding at most
    chunked = prompt_logprobs(EngineDriver(runner, max_batch_tokens=4))
    assert chunked == pytest.approx(got, abs=tolerance)


def test_int8_kv_is_refused_where_unsupported(
    tmp_path: Path, make_runner: Callable[..., ModelRunner]
) -> None:
    case = CASES["new dialect, GQA"]
    write_oracle(tmp_path, case)
    config = (tmp_path / "config.json").read_text().replace('"head_dim": 16', '"head_dim": 512')
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ConfigError, match="--kv-dtype int8 is not supported: head_dim 512"):
        make_runner(tmp_path, kv_dtype="int8")

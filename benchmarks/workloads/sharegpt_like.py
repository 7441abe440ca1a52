"""Lengths like ShareGPT's under the filter of LightLLM's published benchmark.

Prompts are short questions and pasted texts, outputs short and long answers: two log-normal
mixtures, of which only pairs are kept that the filter keeps (prompt and output >= 4 tokens, prompt
<= 1024, together <= 2048). Set so that the kept ones have the means of published runs on the real
file under this filter: 227 and 188 tokens (sgl-project/sglang#1639), 224 and 198
(sgl-project/sglang#2805), 230 and 203 (vllm-project/vllm#18566). Nothing but the means is known.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["MAX_PROMPT_LEN", "MAX_TOTAL_LEN", "MIN_LEN", "lengths"]

MAX_PROMPT_LEN, MAX_TOTAL_LEN, MIN_LEN = 1024, 2048, 4
# share of the long ones, then mean and deviation of the logarithms: long, short
_PROMPT = (0.55, (5.9, 0.8), (3.35, 0.9))
_OUTPUT = (0.7, (5.38, 0.6), (3.2, 1.0))

IntArray = npt.NDArray[np.int64]
_Mixture = tuple[float, tuple[float, float], tuple[float, float]]


def lengths(number: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Prompt and output lengths of `number` requests, in tokens, [number] each."""
    drawn = 4 * number + 100
    prompts, outputs = _draw(_PROMPT, drawn, rng), _draw(_OUTPUT, drawn, rng)
    kept = (prompts >= MIN_LEN) & (outputs >= MIN_LEN)
    kept &= (prompts <= MAX_PROMPT_LEN) & (prompts + outputs <= MAX_TOTAL_LEN)
    return prompts[kept][:number], outputs[kept][:number]


def _draw(mixture: _Mixture, number: int, rng: np.random.Generator) -> IntArray:
    share, long, short = mixture
    is_long = rng.random(number) < share
    return np.where(is_long, rng.lognormal(*long, number), rng.lognormal(*short, number)).astype(
        np.int64
    )

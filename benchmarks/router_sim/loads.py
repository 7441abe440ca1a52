"""Requests that arrive: seeded, the same for every policy.

Lives here: lengths, limits and times of arrival. Not here: token ids (`simulation.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from device import LLAMA_3_8B, LLAMA_7B, Device

sys.path.insert(0, str(Path(__file__).parents[1] / "workloads"))

import sharegpt_like
from sharegpt_like import MAX_TOTAL_LEN

__all__ = ["LOADS", "MAX_TOTAL_LEN", "Load", "Requests"]

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Requests:
    """N requests in order of arrival, [N] each.

    arrivals: seconds. output_lens: where each ends by itself. limits: max_new_tokens.
    ignore_eos: whether the limit is the end for certain.
    """

    arrivals: FloatArray
    prompt_lens: IntArray
    output_lens: IntArray
    limits: IntArray
    ignore_eos: bool = False

    def __len__(self) -> int:
        return len(self.arrivals)


@dataclass(frozen=True, kw_only=True)
class Load:
    """rates: requests/s, about and above what the device can take. seconds: of arrivals, at each.
    shape: (number, rate, generator) → requests.
    """

    name: str
    what: str
    rates: tuple[float, ...]
    seconds: float
    shape: Callable[[int, float, np.random.Generator], Requests]
    device: Device = LLAMA_7B

    def requests(self, number: int, rate: float, seed: int) -> Requests:
        return self.shape(number, rate, np.random.default_rng(seed))


def _poisson(number: int, rate: float, rng: np.random.Generator) -> FloatArray:
    return np.cumsum(rng.exponential(1 / rate, number))


def _outputs(
    number: int, rng: np.random.Generator, median: float | FloatArray, sigma: float
) -> IntArray:
    """Log-normal around `median`, within the bounds."""
    lens = np.asarray(median) * rng.lognormal(0, sigma, number)
    return np.clip(lens, sharegpt_like.MIN_LEN, 1500).astype(np.int64)


def _open_ended(arrivals: FloatArray, prompts: IntArray, outputs: IntArray) -> Requests:
    """Nobody says how long: the limit is the rest of the context, as for a chat."""
    return Requests(
        arrivals=arrivals, prompt_lens=prompts, output_lens=outputs, limits=MAX_TOTAL_LEN - prompts
    )


def _sharegpt(number: int, rate: float, rng: np.random.Generator) -> Requests:
    prompts, outputs = sharegpt_like.lengths(number, rng)
    return _open_ended(_poisson(number, rate, rng), prompts, outputs)


def _sharegpt_forced(number: int, rate: float, rng: np.random.Generator) -> Requests:
    prompts, outputs = sharegpt_like.lengths(number, rng)
    return Requests(
        arrivals=_poisson(number, rate, rng),
        prompt_lens=prompts,
        output_lens=outputs,
        limits=outputs,
        ignore_eos=True,
    )


def _sharegpt_bounded(number: int, rate: float, rng: np.random.Generator) -> Requests:
    """Clients ask for one to four times what they get."""
    prompts, outputs = sharegpt_like.lengths(number, rng)
    limits = np.minimum(outputs * rng.uniform(1, 4, number), MAX_TOTAL_LEN - prompts)
    return Requests(
        arrivals=_poisson(number, rate, rng),
        prompt_lens=prompts,
        output_lens=outputs,
        limits=np.maximum(limits.astype(np.int64), outputs),
    )


def _mixed(number: int, rate: float, rng: np.random.Generator) -> Requests:
    """Four of five are short questions with short answers, the fifth writes an essay."""
    essay = rng.random(number) < 0.2
    prompts = np.where(essay, rng.integers(100, 500, number), rng.integers(16, 128, number))
    outputs = np.where(essay, _outputs(number, rng, 900.0, 0.25), _outputs(number, rng, 40.0, 0.5))
    return _open_ended(_poisson(number, rate, rng), prompts, outputs)


def _switch(number: int, rate: float, rng: np.random.Generator) -> Requests:
    """Half-way, all at once, outputs become ten times as long, so that the history misleads; the
    rate falls in proportion."""
    late = np.arange(number) >= number // 2
    prompts = rng.integers(32, 256, number)
    outputs = _outputs(number, rng, np.where(late, 700.0, 70.0), 0.3)
    gaps = rng.exponential(1, number) / np.where(late, rate, 4 * rate)
    return _open_ended(np.cumsum(gaps), prompts, outputs)


def _drift(number: int, rate: float, rng: np.random.Generator) -> Requests:
    """All outputs are long and become longer all the time."""
    prompts = rng.integers(32, 256, number)
    outputs = _outputs(number, rng, np.linspace(400.0, 1200.0, number), 0.1)
    return _open_ended(_poisson(number, rate, rng), prompts, outputs)


def _bursts(number: int, rate: float, rng: np.random.Generator) -> Requests:
    """The ShareGPT-like requests in bursts: all of 20 s come within two."""
    prompts, outputs = sharegpt_like.lengths(number, rng)
    smooth = _poisson(number, rate, rng)
    arrivals = smooth - smooth % 20 + (smooth % 20) / 10
    return _open_ended(arrivals, prompts, outputs)


LOADS = (
    Load(
        name="sharegpt",
        what="ShareGPT-like lengths, ends unknown, max_new_tokens = rest of 2048",
        rates=(40.0, 60.0),
        seconds=40.0,
        shape=_sharegpt,
    ),
    Load(
        name="sharegpt-forced",
        what="the same lengths forced by ignore_eos, as LightLLM's benchmark does",
        rates=(40.0, 60.0),
        seconds=40.0,
        shape=_sharegpt_forced,
    ),
    Load(
        name="sharegpt-bounded",
        what="the same lengths, max_new_tokens one to four times the output",
        rates=(40.0, 60.0),
        seconds=40.0,
        shape=_sharegpt_bounded,
    ),
    Load(
        name="sharegpt-bursts",
        what="the same lengths, the arrivals of 20 s within 2 s",
        rates=(35.0,),
        seconds=60.0,
        shape=_bursts,
    ),
    Load(
        name="mixed",
        what="80 % short answers (about 40 tokens), 20 % long ones (about 900)",
        rates=(32.0, 40.0),
        seconds=60.0,
        shape=_mixed,
    ),
    Load(
        name="switch",
        what="half-way the outputs grow from about 70 to about 700 tokens",
        rates=(16.0, 24.0),
        seconds=90.0,
        shape=_switch,
    ),
    Load(
        name="drift",
        what="outputs grow steadily from 400 to 1200 tokens",
        rates=(10.0, 13.0),
        seconds=90.0,
        shape=_drift,
    ),
    Load(
        name="sharegpt, 8B",
        what="the first load on LLaMA-3-8B: 1000 rows bind before the cache does",
        rates=(110.0,),
        seconds=40.0,
        shape=_sharegpt,
        device=LLAMA_3_8B,
    ),
)

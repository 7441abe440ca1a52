"""Matrix products of the benchmark's 125M LLaMA in each weight format, beside torch's own.

    .venv/bin/python benchmarks/kernels/bench_linear.py

Prints ms per call. Weights are larger than the caches, as in a model: each call takes the next of
several copies.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import cycle

import torch
from measure import best_ms, require_passing

from lightllm_kernels.int8_linear import FbgemmInt8Linear, OneDnnInt8Linear
from lightllm_kernels.linear import HalfWeightLinear, OneDnnLinear, PlainLinear

SHAPES = ((768, 1280), (768, 768), (768, 4096), (2048, 768), (768, 32000))
ROWS = (1, 16, 64, 256)
FORMS = {
    "torch (baseline)": PlainLinear,
    "oneDNN": OneDnnLinear,
    "float16 weights": HalfWeightLinear,
    "int8 fbgemm": FbgemmInt8Linear,
    "int8 oneDNN": OneDnnInt8Linear,
}
COLD_BYTES = 64 * 2**20


Product = Callable[[torch.Tensor], torch.Tensor]


def setup(inputs: int, outputs: int, form: Callable[..., Product]) -> Product:
    """A product whose weight is not in the caches when it is called."""
    copies = max(1, COLD_BYTES // (inputs * outputs * 4))
    linears = cycle([form(torch.randn(outputs, inputs) * 0.02, None) for _ in range(copies)])

    def product(hidden: torch.Tensor) -> torch.Tensor:
        return next(linears)(hidden)

    return product


def main() -> None:
    require_passing("test_linear.py")
    print(f"{torch.get_num_threads()} threads; ms at rows = {', '.join(map(str, ROWS))}")
    with torch.inference_mode():
        for inputs, outputs in SHAPES:
            for name, form in FORMS.items():
                linear = setup(inputs, outputs, form)
                inputs_of = [torch.randn(rows, inputs) for rows in ROWS]
                times = [best_ms(partial(linear, hidden)) for hidden in inputs_of]
                row = "  ".join(f"{ms:9.3f}" for ms in times)
                print(f"{inputs:5d} -> {outputs:5d}  {name:18s} {row}", flush=True)


if __name__ == "__main__":
    main()

"""The environment variables of each child: CPU threads and memory arenas, set before any import."""

from __future__ import annotations

import os
from collections.abc import Mapping

from lightllm_server.cpu_features import available_cores

__all__ = ["child_environment"]

_THREADS = "OMP_NUM_THREADS"


def child_environment(
    role: str, tp: int, base: Mapping[str, str] | None = None, cores: int | None = None
) -> dict[str, str]:
    """`base` (default: this process's) with what the role needs; `cores` defaults to what we have.

    Only router and ranks compute: they share the cores, unless the user set OMP_NUM_THREADS.
    """
    environment = dict(os.environ if base is None else base)
    # forked tokenizer threads would compete with the model, and warn on every fork
    environment["TOKENIZERS_PARALLELISM"] = "false"
    if role in ("router", "rank"):
        share = max(1, (cores or available_cores()) // tp)
        environment.setdefault(_THREADS, str(share))
        return environment
    environment[_THREADS] = "1"
    # each thread's malloc arena keeps what it once used; these processes must stay small
    environment.setdefault("MALLOC_ARENA_MAX", "2")
    return environment

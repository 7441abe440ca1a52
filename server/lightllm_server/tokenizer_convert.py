"""Converts a tokenizer of an older layout to `tokenizer.json`, with transformers.

Run as a process of its own, so that no process of the server imports transformers:
`python -m lightllm_server.tokenizer_convert MODEL_DIR TARGET`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["convert"]


def convert(model_dir: Path, target: Path) -> None:
    """Write `target`; raises what transformers raises (OSError, ValueError, ImportError, …)."""
    # never asks a hub, never runs code of the model
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        model_dir, local_files_only=True, trust_remote_code=False, use_fast=True
    )
    partial = target.with_suffix(".partial")
    tokenizer.backend_tokenizer.save(str(partial))
    os.replace(partial, target)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))

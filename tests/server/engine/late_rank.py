"""One rank of test_parallel.py's group: rank 1 comes late to start, to load and to a step."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch

from lightllm_server.engine import parallel

STEP_S = 2.0
LATE_S = 6.0


def main() -> None:
    rank, late_to = int(sys.argv[1]), sys.argv[3]
    parallel._STEP_TIMEOUT = timedelta(seconds=STEP_S)

    def arrive(place: str) -> None:
        if rank == 1 and place == late_to:
            time.sleep(LATE_S)

    arrive("start")
    ranks = parallel.join_ranks(rank, 2, Path(sys.argv[2]), torch.device("cpu"))
    arrive("load")
    ranks.meet()
    arrive("step")
    print(ranks.largest(rank), flush=True)
    # as every process of the server ends: at Python's own exit, gloo's threads may abort it
    os._exit(0)


main()

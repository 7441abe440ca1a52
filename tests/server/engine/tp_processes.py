"""One rank of test_tensor_parallel.py's real processes; rank 0 prints what it generated. Each runs
until it is killed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

from engine_driver import EngineDriver, server_config
from lightllm_server.engine import rank_process
from lightllm_server.engine.build import build_runner
from lightllm_server.status_page import StatusPage


def open_page(path: Path, size: int, rank: int) -> StatusPage:
    names = ["router", *(f"rank-{other}" for other in range(1, size))]
    if rank == 0:
        StatusPage.create(path.with_suffix(".new"), names)
        path.with_suffix(".new").rename(path)
    while not path.exists():
        time.sleep(0.05)
    return StatusPage(path)


def main() -> None:
    model_dir, rank, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    run_dir = model_dir / "run"
    page = open_page(run_dir / "status", size, rank)
    config = server_config(model_dir, tp=size)
    if rank > 0:
        rank_process.run(config, run_dir, page, rank)
    else:
        driver = EngineDriver(build_runner(config, run_dir, page["router"]))
        (tokens,) = driver.generate([[3, 1, 4, 1, 5, 9, 2, 6]], max_new_tokens=8)
        print(*tokens, flush=True)
        # stay among the ranks
        sys.stdin.read()


main()

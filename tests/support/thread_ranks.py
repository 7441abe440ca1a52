"""Tensor-parallel ranks as threads of one process: tp is tested without starting any."""

from __future__ import annotations

import operator
import queue
import threading
from collections.abc import Callable
from functools import reduce
from pathlib import Path

import torch

from engine_driver import server_config
from lightllm_server.engine.profile import size_engine
from lightllm_server.engine.rank_plans import from_message, to_message
from lightllm_server.engine.rank_process import carry_out
from lightllm_server.engine.runner import ModelRunner
from lightllm_server.engine.shard import ModelShard
from lightllm_server.messages import Codec, RankToRank
from lightllm_server.models.config import ModelConfig
from lightllm_server.router.step_plan import StepPlan
from lightllm_server.status_page import StatusPage

__all__ = ["ThreadedTensorParallel"]


class _Meeting:
    """Where all ranks put a value and take everybody's."""

    def __init__(self, size: int) -> None:
        self.values: list[object] = [None] * size
        self.barrier = threading.Barrier(size, timeout=30)

    def exchange(self, rank: int, value: object) -> list[object]:
        self.values[rank] = value
        self.barrier.wait()
        values = list(self.values)
        self.barrier.wait()
        return values


class ThreadRank:
    """One thread's view of the group."""

    def __init__(self, rank: int, size: int, meeting: _Meeting) -> None:
        self.rank, self.size, self._meeting = rank, size, meeting

    def _all(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        return self._meeting.exchange(self.rank, tensor.clone())  # type: ignore[return-value]

    def meet(self) -> None:
        self._meeting.barrier.wait()

    def all_reduce(self, tensor: torch.Tensor, /) -> torch.Tensor:
        return reduce(operator.add, self._all(tensor))

    def all_gather(self, tensor: torch.Tensor, /) -> torch.Tensor:
        return torch.cat(self._all(tensor), dim=-1)

    def broadcast(self, tensor: torch.Tensor, /) -> torch.Tensor:
        return tensor.copy_(self._all(tensor)[0])

    def smallest(self, value: int, /) -> int:
        return min(self._meeting.exchange(self.rank, value))  # type: ignore[type-var]

    def largest(self, value: int, /) -> int:
        return max(self._meeting.exchange(self.rank, value))  # type: ignore[type-var]


class ThreadedTensorParallel:
    """`runner` is rank 0's; plans reach the others encoded, as between processes."""

    def __init__(self, model_dir: Path, run_dir: Path, size: int, **options: object) -> None:
        config = server_config(model_dir, tp=size, **options)
        model_config = ModelConfig.from_dir(model_dir)
        names = ["router", *(f"rank-{rank}" for rank in range(1, size))]
        page = StatusPage.create(run_dir / "tp-status", names)
        meeting = _Meeting(size)
        self._queues: list[queue.SimpleQueue[bytes]] = []
        self._threads = []
        self._codec: Codec[RankToRank] = Codec(RankToRank)

        @torch.inference_mode()
        def run_rank(rank: int, plans: queue.SimpleQueue[bytes]) -> None:
            ranks = ThreadRank(rank, size, meeting)
            shard = ModelShard(config, model_config, ranks, page[f"rank-{rank}"])
            size_engine(config, shard)
            while frame := plans.get():
                carry_out(shard, from_message(self._codec.decode(frame)))

        for rank in range(1, size):
            self._queues.append(queue.SimpleQueue())
            target: Callable[..., None] = run_rank
            thread = threading.Thread(target=target, args=(rank, self._queues[-1]), daemon=True)
            thread.start()
            self._threads.append(thread)
        ranks = ThreadRank(0, size, meeting)
        self.runner = ModelRunner(config, model_config, ranks, page["router"], others=self)

    def send(self, plan: StepPlan, /) -> None:
        for plans in self._queues:
            plans.put(self._codec.encode(to_message(plan)))

    def close(self) -> None:
        for plans in self._queues:
            # an empty frame is the end
            plans.put(b"")
        for thread in self._threads:
            thread.join(10)
        self.runner.close()

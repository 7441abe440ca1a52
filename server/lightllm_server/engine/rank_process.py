"""A tensor-parallel rank above 0: loads its share, then carries out rank 0's plans."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
import zmq

from lightllm_server.channels import Receiver, rank_socket, socket_path
from lightllm_server.config import ServerConfig
from lightllm_server.engine.device import resolve_device
from lightllm_server.engine.parallel import join_ranks
from lightllm_server.engine.profile import size_engine
from lightllm_server.engine.rank_plans import from_message
from lightllm_server.engine.shard import ModelShard
from lightllm_server.messages import Codec, RankToRank
from lightllm_server.models.config import ModelConfig
from lightllm_server.router.step_plan import StepPlan
from lightllm_server.status_page import Field, State, StatusPage

__all__ = ["run"]

logger = logging.getLogger(__name__)

_POLL_MS = 1000


@torch.inference_mode()
def run(config: ServerConfig, run_dir: Path, page: StatusPage, rank: int) -> None:
    """Until killed; any error is the end of the process, since the ranks share every step."""
    row = page[f"rank-{rank}"]
    row.state = State.LOADING
    codec: Codec[RankToRank] = Codec(RankToRank)
    from_rank_0 = Receiver(zmq.Context(), socket_path(run_dir, rank_socket(rank)), codec)
    model_config = ModelConfig.from_dir(config.engine.model_dir)
    device = resolve_device(config.engine, rank)
    ranks = join_ranks(rank, config.engine.tp, run_dir, device)
    shard = ModelShard(config, model_config, ranks, row)
    size_engine(config, shard)
    row.state = State.READY
    logger.info("rank %d is ready", rank)
    while True:
        message = from_rank_0.receive(_POLL_MS)
        if message is None:
            continue
        row[Field.WORK] = 1
        carry_out(shard, from_message(message))
        row[Field.WORK] = 0


def carry_out(shard: ModelShard, plan: StepPlan) -> None:
    """Take part in a step: every collective of rank 0 in the same order."""
    if shard.replays(plan):
        shard.replay(plan)
    else:
        hidden = shard.forward(plan)
        for _ in shard.prompt_logits(hidden, plan):
            # rank 0 scores the prompt; the head needs all ranks
            pass
        if len(plan.sample_rows):
            shard.sample_logits(hidden, plan)
    if len(plan.sample_rows):
        ids = torch.empty(len(plan.sample_rows), dtype=torch.int64, device=shard.device)
        shard.keep_ids(plan, shard.ranks.broadcast(ids))

"""Plans on their way from rank 0 to the other ranks: the arrays of a StepPlan as bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zmq

from lightllm_server.channels import Sender, rank_socket, socket_path
from lightllm_server.messages import Codec, RankStep, RankToRank, SamplingParams
from lightllm_server.router.step_plan import Int32Array, RowCopy, RowStart, StepPlan

__all__ = ["RankSenders", "from_message", "to_message"]

_DTYPE = np.dtype("<i4")
_EMPTY = np.zeros(0, np.int32)
# other ranks sample nothing
_NO_SAMPLING = SamplingParams()


def to_message(plan: StepPlan) -> RankStep:
    """What the other ranks need of a plan."""
    prefixes = [start.prefix_slots for start in plan.starts]
    copies = [(copy.src_row, copy.dst_row, copy.length) for copy in plan.copies]
    return RankStep(
        step=plan.step,
        start_rows=_pack(np.array([start.row for start in plan.starts], np.int32)),
        start_lens=_pack(np.array([len(prefix) for prefix in prefixes], np.int32)),
        start_slots=_pack(np.concatenate(prefixes) if prefixes else _EMPTY),
        token_ids=_pack(plan.token_ids),
        chunk_rows=_pack(plan.chunk_rows),
        chunk_starts=_pack(plan.chunk_starts),
        chunk_lens=_pack(plan.chunk_lens),
        decode_rows=_pack(plan.decode_rows),
        decode_positions=_pack(plan.decode_positions),
        slots=_pack(plan.slots),
        sample_token_index=_pack(plan.sample_token_index),
        sample_rows=_pack(plan.sample_rows),
        copies=_pack(np.array(copies, np.int32).reshape(-1)),
        prompt_logprob_chunks=_pack(plan.prompt_logprob_chunks),
    )


def from_message(message: RankStep) -> StepPlan:
    """The plan again, without what sampling needs. Raises ValueError if its bytes are no int32s."""
    lens = _unpack(message.start_lens)
    prefixes = np.split(_unpack(message.start_slots), np.cumsum(lens)[:-1]) if len(lens) else []
    return StepPlan(
        step=message.step,
        token_ids=_unpack(message.token_ids),
        chunk_rows=_unpack(message.chunk_rows),
        chunk_starts=_unpack(message.chunk_starts),
        chunk_lens=_unpack(message.chunk_lens),
        decode_rows=_unpack(message.decode_rows),
        decode_positions=_unpack(message.decode_positions),
        slots=_unpack(message.slots),
        sample_token_index=_unpack(message.sample_token_index),
        sample_rows=_unpack(message.sample_rows),
        sample_positions=_EMPTY,
        sample_out_lens=_EMPTY,
        prompt_logprob_chunks=_unpack(message.prompt_logprob_chunks),
        starts=tuple(
            RowStart(row=row, choice=0, prefix_slots=prefix, sampling=_NO_SAMPLING, prompt_len=0)
            for row, prefix in zip(_unpack(message.start_rows).tolist(), prefixes, strict=True)
        ),
        copies=tuple(RowCopy(*copy) for copy in _unpack(message.copies).reshape(-1, 3).tolist()),
    )


def _pack(array: Int32Array) -> bytes:
    return array.astype(_DTYPE, copy=False).tobytes()


def _unpack(data: bytes) -> Int32Array:
    # a copy, since torch refuses to share memory that may not be written
    return np.frombuffer(data, _DTYPE).astype(np.int32)


class RankSenders:
    """Sends each launched plan to the ranks 1 … size-1; raises ChannelError if one does not
    read.
    """

    def __init__(self, context: zmq.Context[Any], run_dir: Path, size: int) -> None:
        codec: Codec[RankToRank] = Codec(RankToRank)
        self._senders = [
            Sender(context, socket_path(run_dir, rank_socket(rank)), codec)
            for rank in range(1, size)
        ]

    def send(self, plan: StepPlan, /) -> None:
        message = to_message(plan)
        for sender in self._senders:
            sender.send(message)

"""Ready only after a real token: one request through the whole chain before anybody else's."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from lightllm_server.api.call import Call, collect
from lightllm_server.api.in_flight import InFlight
from lightllm_server.engine_info import EngineInfo, read_engine_info
from lightllm_server.errors import EngineError
from lightllm_server.messages import SamplingParams, TextOptions
from lightllm_server.status_page import State, StatusPage

__all__ = ["wait_for_engine", "warm_up"]

logger = logging.getLogger(__name__)

_POLL_S = 0.02


async def wait_for_engine(page: StatusPage, run_dir: Path) -> EngineInfo:
    """What the router resolved, once it, detok and the tokenize workers are ready."""
    rows = [row for name, row in page.rows.items() if name not in ("api", "supervisor")]
    while any(row.state is not State.READY for row in rows):  # noqa: ASYNC110
        # a shared page has no events
        await asyncio.sleep(_POLL_S)
    return read_engine_info(run_dir)


async def warm_up(in_flight: InFlight) -> None:
    """Generate two tokens: one prefill and one decode step. Raises EngineError where it fails."""
    with Call(in_flight) as call:
        sampling = SamplingParams(max_new_tokens=2, ignore_eos=True)
        call.submit([(0,)], [sampling], TextOptions(), cache_salt="warm-up", arrived_ns=0)
        (result,) = await collect(call, 1, 1)
    if result.choices[0].num_tokens != 2:
        raise EngineError(f"the warm-up gave {result.choices[0].num_tokens} tokens, not 2")
    logger.info("a first answer went through the whole chain")

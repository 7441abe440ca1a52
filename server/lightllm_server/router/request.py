"""A request inside the router, and its choices: what is known of each, and where it stands.

Lives here: state of one request. Not here: what many requests share (`slot_ledger.py`, `queue.py`)
and decisions (`scheduler.py`).
"""

from __future__ import annotations

import numpy as np

from lightllm_server.messages import Generate, Opened, PromptLogprobs
from lightllm_server.router.prefix_cache import Node
from lightllm_server.router.step_plan import Int32Array

__all__ = ["Choice", "Request"]


class Choice:
    """One of the `n` continuations of a request.

    row: row of the request table, -1 while it has none. node: the prefix that it shares through the
    tree (None: not begun).
    key: a number of its own, the same whenever it runs.
    output_ids: up to when the row began; later ones are in the row table, until the row is given
    back. known: [prompt + output] ids known when the row began.
    started: its `RowStart` was planned. private: its next chunks stay out of the tree, which has a
    copy.
    computed: positions that had their KV before a preemption threw it away.
    ended: nothing more is to come, whatever is in flight.
    """

    __slots__ = (
        "computed",
        "ended",
        "index",
        "key",
        "known",
        "limit",
        "node",
        "output_ids",
        "private",
        "request",
        "request_id",
        "row",
        "started",
        "stop_ids",
    )

    def __init__(
        self, request: Request, index: int, *, limit: int, stop_ids: frozenset[int]
    ) -> None:
        self.request = request
        # copies of the request's, for the loop over all tokens of a step
        self.request_id = request.request_id
        self.limit = limit
        self.stop_ids = stop_ids
        self.index = index
        # an `n` is at most 1024
        self.key = (request.order << 16) + index
        self.output_ids: list[int] = []
        self.computed = 0
        self.ended = False
        self.reset()

    def reset(self) -> None:
        """Forget the row, not the tokens."""
        self.row = -1
        self.node: Node | None = None
        self.known: Int32Array = self.request.prompt
        self.started = False
        self.private = False

    def recall(self) -> None:
        """Bring `known` up to date before a row begins: it is what will be prefilled."""
        if self.output_ids:
            outputs = np.array(self.output_ids, dtype=np.int32)
            self.known = np.concatenate([self.request.prompt, outputs])


class Request:
    """order: place in the order of arrival. limit: output tokens of each choice at most.

    num_preemptions: how often the cache was full and it had to give way. resume_after: after that,
    the last step that may still bring a token of it.
    """

    __slots__ = (
        "cached_tokens",
        "choices",
        "limit",
        "message",
        "num_preemptions",
        "opened",
        "order",
        "preempted",
        "prompt",
        "prompt_logprobs",
        "prompt_logprobs_due",
        "request_id",
        "resume_after",
        "started_ns",
    )

    def __init__(
        self,
        message: Generate,
        *,
        order: int,
        prompt: Int32Array,
        limit: int,
        stop_ids: frozenset[int],
    ) -> None:
        self.message = message
        self.request_id = message.request_id
        self.order = order
        self.prompt = prompt
        self.limit = limit
        self.choices = [
            Choice(self, i, limit=limit, stop_ids=stop_ids) for i in range(message.sampling.n)
        ]
        self.opened = False
        self.preempted = False
        self.num_preemptions = 0
        self.started_ns = 0
        self.cached_tokens = 0
        self.resume_after = -1
        self.prompt_logprobs_due = message.sampling.prompt_logprobs is not None
        self.prompt_logprobs: list[PromptLogprobs] = []

    @property
    def live(self) -> list[Choice]:
        """The choices that are not over; the first of them prefills the prompt for all."""
        return [choice for choice in self.choices if not choice.ended]

    def open(self) -> Opened:
        """The request's first word to detok, with the prompt's logprobs if all of them came."""
        self.opened = True
        self.prompt_logprobs_due = False
        message = self.message
        logprobs = tuple(value for part in self.prompt_logprobs for value in part.logprobs)
        tops = tuple(top for part in self.prompt_logprobs for top in part.tops)
        complete = 0 < len(logprobs) == len(self.prompt)
        self.prompt_logprobs = []
        return Opened(
            self.request_id,
            message.prompt_ids,
            message.sampling.n,
            message.text,
            PromptLogprobs(logprobs, tops) if complete else None,
        )

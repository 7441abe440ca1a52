"""The requests that wait, first come first served, with preempted ones at the head."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from lightllm_server.router.request import Request

__all__ = ["WaitingQueue"]


class WaitingQueue:
    """Every operation takes constant time, also leaving from the middle."""

    def __init__(self) -> None:
        self._requests: OrderedDict[int, Request] = OrderedDict()
        self.num_preempted = 0
        self.num_tokens = 0

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests.values())

    def __contains__(self, request: Request) -> bool:
        return request.request_id in self._requests

    def append(self, request: Request) -> None:
        """A new request goes to the end."""
        self._requests[request.request_id] = request
        self.num_tokens += len(request.prompt)

    def put_first(self, request: Request) -> None:
        """A preempted request goes to the head."""
        self.append(request)
        self._requests.move_to_end(request.request_id, last=False)
        self.num_preempted += 1

    def remove(self, request: Request) -> None:
        """The request is admitted or over."""
        del self._requests[request.request_id]
        self.num_tokens -= len(request.prompt)
        self.num_preempted -= request.preempted

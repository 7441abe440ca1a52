"""What a step, or a message, brings for detok: collected here, sent as one `TokenBatch`."""

from __future__ import annotations

from dataclasses import dataclass, field

from lightllm_server.messages import Ended, Opened, SampledToken, TokenBatch

__all__ = ["Events"]


@dataclass(slots=True)
class Events:
    opened: list[Opened] = field(default_factory=list)
    tokens: list[SampledToken] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.opened or self.tokens or self.ended)

    def batch(self) -> TokenBatch:
        return TokenBatch(
            opened=tuple(self.opened), tokens=tuple(self.tokens), ended=tuple(self.ended)
        )

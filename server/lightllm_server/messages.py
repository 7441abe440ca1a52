"""The messages between the processes: one frozen Struct each, one closed union per hop, msgpack.

    api  ──EncodeText|EncodeChat──▶ tokenize worker ──Encoded|EncodeFailed──▶ api
    api  ──Generate|Abort──▶ router ──TokenBatch──▶ detok ──TextBatch──▶ api
                             router ◀──Stopped── detok
    rank 0 ──RankStep──▶ rank 1 … tp-1

Lives here: the schema and its encoding. Not here: sockets (`channels.py`), validation of client
input (`api/openai_schema.py`, `api/lightllm_schema.py`). Decoding raises `msgspec.ValidationError`
or `msgspec.DecodeError` on anything else than a well-formed message of the hop.

Messages are frozen, so no cycle goes through them and the garbage collector need not know them.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, NewType, TypeVar

import msgspec
from msgspec import Meta

__all__ = [
    "Abort",
    "ApiToRouter",
    "ApiToTokenizer",
    "ChatMessage",
    "ChoiceText",
    "Codec",
    "DetokToApi",
    "DetokToRouter",
    "EncodeChat",
    "EncodeFailed",
    "EncodeText",
    "Encoded",
    "Ended",
    "FinishReason",
    "Generate",
    "Opened",
    "Outcome",
    "PromptLogprobs",
    "PromptText",
    "RankStep",
    "RankToRank",
    "RequestId",
    "RouterToDetok",
    "SampledToken",
    "SamplingParams",
    "Stopped",
    "TextBatch",
    "TextOptions",
    "TokenBatch",
    "TokenizerToApi",
    "TopLogprob",
]

RequestId = NewType("RequestId", int)
T = TypeVar("T")

FinishReason = Literal["stop", "length", "abort"]
Outcome = Literal["finished", "aborted", "failed"]

TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Choice = Annotated[int, Meta(ge=0, le=1023)]
Id = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class _Message(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True, kw_only=True, gc=False
):
    """Base of all messages: immutable, tagged by class name, unknown fields refused."""


class _Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Base of what repeats inside a message: encoded as an array, without field names."""


# ---------------------------------------------------------------- api ⇄ tokenize workers


class ChatMessage(_Part, frozen=True):
    role: str
    content: str
    # of the participant, "" where none is given; what becomes of it is the template's choice
    name: str = ""


class EncodeText(_Message, frozen=True, kw_only=True):
    """Tokenize one text; `add_special_tokens` as the model's tokenizer.json defines them."""

    job_id: Id
    text: str
    add_special_tokens: bool = True


class EncodeChat(_Message, frozen=True, kw_only=True):
    """Render the model's chat template, then tokenize without adding special tokens."""

    job_id: Id
    messages: tuple[ChatMessage, ...]
    add_generation_prompt: bool = True


class Encoded(_Message, frozen=True, kw_only=True):
    job_id: Id
    token_ids: tuple[TokenId, ...]


class EncodeFailed(_Message, frozen=True, kw_only=True):
    """The text cannot be encoded; `error` may be shown to the client."""

    job_id: Id
    error: str


ApiToTokenizer = EncodeText | EncodeChat
TokenizerToApi = Encoded | EncodeFailed


# ---------------------------------------------------------------- api → router


class SamplingParams(_Message, frozen=True, kw_only=True):
    """How to choose tokens; every value is validated and bounded by the api, again by the router.

    temperature 0 (or below 1e-5) means greedy; top_k 0 and top_p 1 switch the filters off. `seed`
    is always set (the api draws one where the client gave none). `logprobs`: None = no
    alternatives, k = the k best beside each sampled token (the sampled token's own logprob always
    travels). `prompt_logprobs` likewise for the prompt's tokens.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: Count = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[TokenId, float] = {}
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    n: Annotated[int, Meta(ge=1, le=1024)] = 1
    max_new_tokens: Count = 16
    min_new_tokens: Count = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[TokenId, ...] = ()
    logprobs: Annotated[int, Meta(ge=0, le=100)] | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=100)] | None = None

    @property
    def has_penalties(self) -> bool:
        """Whether the tokens so far change the logits of the next one."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


class TextOptions(_Message, frozen=True, kw_only=True):
    """What detok needs to know of a request; the router passes it on unread."""

    stop: tuple[str, ...] = ()
    # stop strings count from this token on
    min_new_tokens: Count = 0
    include_stop: bool = False
    skip_special_tokens: bool = True
    # per-token text of the LightLLM routes and logprobs need every token reported, also those
    # with no text yet
    every_token: bool = False
    # report each token's own bytes too: one that is a part of a character has no text
    token_bytes: bool = False


class Generate(_Message, frozen=True, kw_only=True):
    """One accepted request.

    `accepted_ns` is CLOCK_MONOTONIC; `cache_salt` separates tenants in the prefix cache.
    """

    request_id: Id
    prompt_ids: tuple[TokenId, ...]
    sampling: SamplingParams
    text: TextOptions = TextOptions()
    cache_salt: str = ""
    accepted_ns: Id = 0


class Abort(_Message, frozen=True, kw_only=True):
    """The client is gone. Unknown and finished ids are no error."""

    request_id: Id


ApiToRouter = Generate | Abort


# ---------------------------------------------------------------- router → detok → api


class TopLogprob(_Part, frozen=True):
    token_id: TokenId
    logprob: float
    # filled by detok: the text, and the bytes where they are asked for and known
    text: str = ""
    token_bytes: bytes | None = None


class PromptLogprobs(_Part, frozen=True):
    """`logprobs[i]` is the logprob of prompt token i given those before it (None for the first)."""

    logprobs: tuple[float | None, ...]
    tops: tuple[tuple[TopLogprob, ...], ...] = ()
    # filled by detok: the text of each prompt token, concatenating to the prompt's text
    texts: tuple[str, ...] = ()


class Opened(_Part, frozen=True):
    """First word of a request to detok, in the batch of its first token or of its end."""

    request_id: Id
    prompt_ids: tuple[TokenId, ...]
    n: Choice
    text: TextOptions
    prompt_logprobs: PromptLogprobs | None = None


class SampledToken(_Part, frozen=True):
    """One token of one choice; `finish_reason` is set on its last (eos and stop ids too)."""

    request_id: Id
    choice: Choice
    token_id: TokenId
    logprob: float
    finish_reason: FinishReason | None = None
    # the last token is an eos or a stop id: it counts as generated but has no text
    is_stop_token: bool = False
    tops: tuple[TopLogprob, ...] = ()


class Ended(_Part, frozen=True):
    """The one terminal word of a request, after the last token of its last choice.

    Times are CLOCK_MONOTONIC ns; `started_ns` is 0 if the request never ran.
    `error` is set for the outcome "failed" and may be shown to the client.
    """

    request_id: Id
    outcome: Outcome
    error: str = ""
    cached_tokens: Count = 0
    started_ns: Id = 0


class TokenBatch(_Message, frozen=True, kw_only=True):
    """All of one step: read in the order opened, tokens, ended."""

    opened: tuple[Opened, ...] = ()
    tokens: tuple[SampledToken, ...] = ()
    ended: tuple[Ended, ...] = ()


class ChoiceText(_Part, frozen=True):
    """New text of one choice, up to what a stop string may still take back.

    Concatenated over a choice, `text` is exactly the choice's text. `token_ids`, `logprobs`,
    `tops` and `token_texts` are of the tokens
    reported with this piece, in order; `token_texts` concatenate to `text` over the choice when
    `every_token` is set. `num_tokens` counts the choice's tokens so far.
    """

    request_id: Id
    choice: Choice
    text: str
    num_tokens: Count
    token_ids: tuple[TokenId, ...] = ()
    logprobs: tuple[float, ...] = ()
    token_texts: tuple[str, ...] = ()
    special: tuple[bool, ...] = ()
    tops: tuple[tuple[TopLogprob, ...], ...] = ()
    finish_reason: FinishReason | None = None
    # the stop string or the text of the stop token id that ended the choice, if any
    matched_stop: str | None = None
    # as `token_ids` where asked for: b"" for a token that the text leaves out, None if not known
    token_bytes: tuple[bytes | None, ...] = ()


class PromptText(_Part, frozen=True):
    """The prompt's logprobs with their texts, once per request that asked for them."""

    request_id: Id
    prompt_logprobs: PromptLogprobs


class TextBatch(_Message, frozen=True, kw_only=True):
    """Read in the order prompts, choices, ended."""

    prompts: tuple[PromptText, ...] = ()
    choices: tuple[ChoiceText, ...] = ()
    ended: tuple[Ended, ...] = ()


RouterToDetok = TokenBatch
DetokToApi = TextBatch


# ---------------------------------------------------------------- detok → router


class Stopped(_Message, frozen=True, kw_only=True):
    """A stop string ended this choice: free it. Unknown and finished choices are no error.

    Detok ends the choice's text by itself; the router answers with `Ended` when the last choice
    is over.
    """

    request_id: Id
    choice: Choice


DetokToRouter = Stopped


# ---------------------------------------------------------------- rank 0 → other ranks


class RankStep(_Message, frozen=True, kw_only=True):
    """A step without what only sampling needs. Every field of bytes is a little-endian int32 array.

    Shapes as in `router/step_plan.py`.
    """

    step: Id
    start_rows: bytes
    start_lens: bytes
    start_slots: bytes
    token_ids: bytes
    chunk_rows: bytes
    chunk_starts: bytes
    chunk_lens: bytes
    decode_rows: bytes
    decode_positions: bytes
    slots: bytes
    sample_token_index: bytes
    sample_rows: bytes
    # rows of children that get the prompt's slots: source row, destination row, length
    copies: bytes
    prompt_logprob_chunks: bytes


RankToRank = RankStep


class Codec(Generic[T]):
    """Encodes and decodes the messages of one hop; `kind` is the hop's union or its only Struct."""

    def __init__(self, kind: Any) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(kind)

    def encode(self, message: T) -> bytes:
        return self._encoder.encode(message)

    def decode(self, frame: bytes) -> T:
        """Raise ValueError (msgspec.MsgspecError is one) if the frame is no message of this hop."""
        message: T = self._decoder.decode(frame)
        return message

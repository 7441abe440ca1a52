"""OpenAI's request schemas, with the extensions that vLLM made common.

Neutral fields (`user`, `store`, `metadata` …) are accepted and ignored. Fields that would change
the answer and are not supported are declared as such, so that the 400 names them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from lightllm_server.api.fields import (
    Frequency,
    Label,
    LogitBias,
    Metadata,
    MinP,
    Prompt,
    RepetitionPenalty,
    Samples,
    Schema,
    Seed,
    StopIds,
    StopStrings,
    Text,
    TokenCount,
    TopK,
    TopP,
    Unsupported,
)

__all__ = ["ChatRequest", "CompletionRequest", "Message", "OpenAiSampling"]


class StreamOptions(Schema):
    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class OpenAiSampling(Schema):
    """What `/v1/completions` and `/v1/chat/completions` share."""

    model: Label | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: TopP | None = None
    n: Samples | None = None
    max_tokens: TokenCount | None = None
    presence_penalty: Frequency | None = None
    frequency_penalty: Frequency | None = None
    logit_bias: LogitBias | None = None
    seed: Seed | None = None
    stop: StopStrings | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # neutral
    user: Label | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    service_tier: Label | None = None
    prompt_cache_key: Label | None = None
    safety_identifier: Label | None = None
    # extensions
    top_k: TopK | None = None
    min_p: MinP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    ignore_eos: bool | None = None
    min_tokens: TokenCount | None = None
    stop_token_ids: StopIds | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None


class CompletionRequest(OpenAiSampling):
    prompt: Prompt
    best_of: Samples | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    add_special_tokens: bool | None = None
    suffix: Unsupported = None
    response_format: Unsupported = None


class TextPart(Schema):
    type: Literal["text"]
    text: Text


def _content_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "<text>"
    return "<parts>" if isinstance(value, list) else None


Content = Annotated[
    Annotated[Text, Tag("<text>")]
    | Annotated[
        list[TextPart], Field(min_length=1, max_length=1024, fail_fast=True), Tag("<parts>")
    ],
    Discriminator(
        _content_kind,
        custom_error_type="content_type",
        custom_error_message="must be a string or an array of text parts",
    ),
]


class Message(Schema):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content
    name: Label | None = None
    refusal: Unsupported = None
    audio: Unsupported = None
    tool_calls: Unsupported = None
    tool_call_id: Unsupported = None
    function_call: Unsupported = None

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class TextFormat(Schema):
    type: Literal["text"]


class ChatRequest(OpenAiSampling):
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096, fail_fast=True)]
    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: TextFormat | None = None
    # before their choices: the first error is the one that is named
    tools: Unsupported = None
    functions: Unsupported = None
    tool_choice: Literal["none"] | None = None
    parallel_tool_calls: bool | None = None
    function_call: Literal["none"] | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    audio: Unsupported = None
    prediction: Unsupported = None
    reasoning_effort: Unsupported = None
    verbosity: Unsupported = None
    web_search_options: Unsupported = None

"""LightLLM's request schema for `/generate` and `/generate_stream`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lightllm_server.api.fields import (
    Frequency,
    Label,
    LogitBias,
    MinP,
    OnePrompt,
    RepetitionPenalty,
    Samples,
    Schema,
    Seed,
    StopIds,
    StopStrings,
    TokenCount,
    TopK,
    TopP,
    Unsupported,
)

__all__ = ["CompatRequest", "GenerateParameters", "GenerateRequest"]


class GenerateParameters(Schema):
    """Sampling as LightLLM names it: without `do_sample` the best token is taken."""

    do_sample: bool = False
    presence_penalty: Frequency = 0.0
    frequency_penalty: Frequency = 0.0
    repetition_penalty: RepetitionPenalty = 1.0
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    top_p: TopP = 1.0
    top_k: TopK = -1
    min_p: MinP = 0.0
    ignore_eos: bool = False
    max_new_tokens: Annotated[TokenCount, Field(ge=1)] = 16
    min_new_tokens: TokenCount = 0
    stop_sequences: StopStrings | None = None
    stop_token_ids: StopIds | None = None
    logit_bias: LogitBias | None = None
    seed: Seed | None = None
    n: Samples | None = None
    best_of: Samples = 1
    return_details: bool = False
    skip_special_tokens: bool = True
    add_special_tokens: bool = True
    # known from LightLLM, not supported here
    exponential_decay_length_penalty: Unsupported = None
    regular_constraint: Unsupported = None
    guided_grammar: Unsupported = None
    guided_json: Unsupported = None
    allowed_token_ids: Unsupported = None


class MultimodalParams(Schema):
    """Only text is served: images and audio must be empty."""

    images: Unsupported = None
    audios: Unsupported = None


class GenerateRequest(Schema):
    inputs: OnePrompt
    parameters: GenerateParameters = GenerateParameters()
    multimodal_params: MultimodalParams | None = None
    model: Label | None = None


class CompatRequest(GenerateRequest):
    """`POST /`: `stream` selects between the two routes."""

    stream: bool = False

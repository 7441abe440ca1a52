"""Types of request fields that several schemas share; each has its bounds.

Bounds that depend on the model or on options (vocabulary, lengths, `--max-n`) are checked in
`sampling.py` and `prompts.py`, where they are known.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

__all__ = [
    "MAX_TEXT_CHARS",
    "UNSUPPORTED",
    "Frequency",
    "Label",
    "LogitBias",
    "Metadata",
    "MinP",
    "OnePrompt",
    "Prompt",
    "RepetitionPenalty",
    "Samples",
    "Schema",
    "Seed",
    "StopIds",
    "StopStrings",
    "Text",
    "TokenCount",
    "TokenIdList",
    "TopK",
    "TopP",
    "Unsupported",
]

# the type of error of a field that is known and not supported
UNSUPPORTED = "unsupported"
# a ceiling for the schema; the prompt limit of `prompts.py` is what refuses in practice
MAX_TEXT_CHARS = 2**30
_MAX_TOKENS = 2**24
_MAX_PROMPTS = 1024


class Schema(BaseModel):
    """Base of all request schemas: nothing is coerced, unknown fields and NaN are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


Text = Annotated[str, Field(max_length=MAX_TEXT_CHARS)]
Label = Annotated[str, Field(max_length=512)]
TokenIdValue = Annotated[int, Field(ge=0, le=2**31 - 1)]
# lists stop at their first error: a client could make us describe a million
TokenIdList = Annotated[list[TokenIdValue], Field(max_length=_MAX_TOKENS, fail_fast=True)]
TokenCount = Annotated[int, Field(ge=0, le=_MAX_TOKENS)]
Samples = Annotated[int, Field(ge=1, le=128)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
TopP = Annotated[float, Field(gt=0, le=1)]
TopK = Annotated[int, Field(ge=-1, le=2**31 - 1)]
MinP = Annotated[float, Field(ge=0, le=1)]
Frequency = Annotated[float, Field(ge=-2, le=2)]
RepetitionPenalty = Annotated[float, Field(ge=0.01, le=100)]
StopIds = Annotated[list[TokenIdValue], Field(max_length=64, fail_fast=True)]
LogitBias = Annotated[
    dict[
        Annotated[str, Field(max_length=10, pattern=r"^[0-9]+$")],
        Annotated[float, Field(ge=-100, le=100)],
    ],
    Field(max_length=1024),
]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


def _refuse_value(value: Any) -> Any:
    if value is None or value == []:
        return value
    raise PydanticCustomError(UNSUPPORTED, "not supported by this server, leave it out")


# a field that is known and not supported: only null and [] may be given
Unsupported = Annotated[
    Annotated[list[None], Field(max_length=0)] | None,
    BeforeValidator(_refuse_value),
    Field(description="Not supported by this server."),
]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_StopString = Annotated[str, Field(min_length=1, max_length=1024)]
StopStrings = Annotated[
    list[_StopString],
    Field(max_length=16, fail_fast=True),
    BeforeValidator(
        _as_list,
        json_schema_input_type=_StopString | Annotated[list[_StopString], Field(max_length=16)],
    ),
]


def _prompt_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "<text>"
    if not isinstance(value, list):
        return None
    first = value[0] if value else None
    if isinstance(first, str):
        return "<texts>"
    return "<id lists>" if isinstance(first, list) else "<ids>"


OnePrompt = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[TokenIdList, Field(min_length=1), Tag("<ids>")],
    Discriminator(
        lambda value: "<text>" if isinstance(value, str) else "<ids>",
        custom_error_type="prompt_type",
        custom_error_message="must be a string or an array of token ids",
    ),
]
Prompt = Annotated[
    Annotated[Text, Tag("<text>")]
    | Annotated[
        list[Text], Field(min_length=1, max_length=_MAX_PROMPTS, fail_fast=True), Tag("<texts>")
    ]
    | Annotated[TokenIdList, Field(min_length=1), Tag("<ids>")]
    | Annotated[
        list[Annotated[TokenIdList, Field(min_length=1)]],
        Field(min_length=1, max_length=_MAX_PROMPTS, fail_fast=True),
        Tag("<id lists>"),
    ],
    Discriminator(
        _prompt_kind,
        custom_error_type="prompt_type",
        custom_error_message=(
            "must be a string, an array of strings, of token ids, or of arrays of token ids"
        ),
    ),
]

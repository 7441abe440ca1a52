"""The OpenAPI description of bodies that routes parse themselves."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from lightllm_server.version import version

__all__ = ["install_openapi", "request_body"]

_REF = "#/components/schemas/{model}"
_SCHEMAS: list[type[BaseModel]] = []


def request_body(schema: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads `schema` from its body."""
    _SCHEMAS.append(schema)
    reference = {"$ref": _REF.format(model=schema.__name__)}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": reference}}}
    }


def install_openapi(app: FastAPI) -> None:
    """Make `/openapi.json` describe the bodies that routes parse themselves."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title="LightLLM server", version=version(), routes=app.routes)
            models = [(schema, "validation") for schema in dict.fromkeys(_SCHEMAS)]
            _, definitions = models_json_schema(models, ref_template=_REF)  # type: ignore[arg-type]
            components = document.setdefault("components", {}).setdefault("schemas", {})
            components.update(definitions.get("$defs", {}))
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]

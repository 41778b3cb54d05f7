"""A page of the routes, from the OpenAPI document, without scripts and external files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

pages_router = APIRouter(include_in_schema=False)

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "summary{cursor:pointer;padding:.3rem 0}code,pre{font:14px ui-monospace,monospace}pre{overflow:auto}"
    "b{display:inline-block;min-width:4rem}"
)


@pages_router.get("/docs", response_class=HTMLResponse)
def page(request: Request) -> HTMLResponse:
    """Every route: what it does, what it takes and what it answers."""
    return HTMLResponse(page_of(request.app.openapi()))


def page_of(document: Mapping[str, Any]) -> str:
    """The page of an OpenAPI document.

    Args:
        document: version 3.
    """
    routes = "".join(
        _route(method.upper(), path, operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    )
    shapes = "".join(
        f"<details id='{escape(name)}'><summary><code>{escape(name)}</code></summary>{_json(shape)}</details>"
        for name, shape in sorted(document.get("components", {}).get("schemas", {}).items())
    )
    title = escape(document["info"]["title"])
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{title}</title><style>{_STYLE}</style>"
        f"<h1>{title}</h1><p>{escape(document['info'].get('summary', ''))} "
        "The same for programs: <code>/openapi.json</code>.</p>"
        f"<h2>Routes</h2>{routes}<h2>Shapes</h2>{shapes}</html>"
    )


def _route(method: str, path: str, operation: Mapping[str, Any]) -> str:
    parameters = "".join(
        f"<li><code>{escape(parameter['name'])}</code> in the {escape(parameter['in'])}: "
        f"{escape(parameter.get('description', ''))}</li>"
        for parameter in operation.get("parameters", ())
    )
    body = operation.get("requestBody", {}).get("content", {})
    taken = "".join(f"<p>Takes {_shape(kind.get('schema', {}))}</p>" for kind in body.values())
    answers = "".join(
        f"<li>{escape(code)}: {escape(answer.get('description', ''))}"
        + "".join(f" {_shape(kind.get('schema', {}))}" for kind in answer.get("content", {}).values())
        + "</li>"
        for code, answer in operation.get("responses", {}).items()
    )
    return (
        f"<details><summary><b>{method}</b> <code>{escape(path)}</code> {escape(operation.get('description', ''))}"
        f"</summary><ul>{parameters}</ul>{taken}<p>Answers</p><ul>{answers}</ul></details>"
    )


def _shape(schema: Mapping[str, Any]) -> str:
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    return f"<a href='#{escape(name)}'><code>{escape(name)}</code></a>" if name else _json(schema)


def _json(value: Any) -> str:
    return f"<pre>{escape(json.dumps(value, indent=1))}</pre>" if value else ""

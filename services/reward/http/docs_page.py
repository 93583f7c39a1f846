"""``/docs``: the OpenAPI document as one page of HTML.

Design: FastAPI's own pages load their scripts from a CDN, which fails without internet and runs a
stranger's code beside the token that a reader enters. This page has no script and loads nothing, at a
hundred lines instead of megabytes in the wheel. The price: requests are tried with the printed curl
commands, not in the page.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""The page's Content-Security-Policy."""

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "pre{background:#f4f4f4;padding:.8em;overflow:auto;font-size:13px}"
    "h2{border-top:1px solid #ccc;padding-top:.8em}"
)


def docs_page(document: Mapping[str, Any], url: str) -> str:
    """An OpenAPI document as HTML; ``url`` is the service's, for the curl commands."""
    title = escape(document["info"]["title"])
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    return (
        f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(_body(document, url))}'
        "</body></html>\n"
    )


def _body(document: Mapping[str, Any], url: str) -> Iterator[str]:
    yield f"<h1>{escape(document['info']['title'])}</h1>"
    yield f"<p>{escape(document['info'].get('description', ''))} A service that is not open requires "
    yield 'a header: <code>Authorization: Bearer TOKEN</code>. <a href="openapi.json">openapi.json</a></p>'
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield from _operation(method.upper(), path, operation, url)
    yield "<h2>Schemas</h2>"
    for name, schema in document.get("components", {}).get("schemas", {}).items():
        yield f'<div id="{escape(name)}">{_folded(name, schema)}</div>'


def _operation(method: str, path: str, operation: Mapping[str, Any], url: str) -> Iterator[str]:
    yield f"<h2><code>{method} {escape(path)}</code> {escape(operation.get('summary', ''))}</h2>"
    yield f"<p>{escape(operation.get('description', ''))}</p>"
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    command = f"curl -s {shlex.quote(url + path)}"
    if "example" in body:
        example = shlex.quote(json.dumps(body["example"], ensure_ascii=False))
        command += f" -H 'content-type: application/json' \\\n  -d {example}"
    yield f"<pre>{escape(command)}</pre>"
    if "schema" in body:
        yield _folded("Request", body["schema"])
    for status, response in operation["responses"].items():
        schema = response.get("content", {}).get("application/json", {}).get("schema", {})
        name = schema.get("$ref", "").rpartition("/")[2]
        link = f'<a href="#{escape(name)}">{escape(name)}</a>' if name else ""
        yield f"<div>{escape(status)} {escape(response.get('description', ''))} {link}</div>"


def _folded(title: str, value: Any) -> str:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text, quote=False)}</pre></details>"

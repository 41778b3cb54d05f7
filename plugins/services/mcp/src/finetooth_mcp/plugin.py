"""A face of the server for assistants: tools of the Model Context Protocol."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Face, hookimpl


@hookimpl
def ft_faces() -> Iterable[Face]:
    yield Face(name="mcp", build="finetooth_mcp.face:McpFace", summary="MCP tools by which an assistant fine-tunes")

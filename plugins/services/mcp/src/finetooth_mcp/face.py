"""The face: MCP's two transports, callers and their keys, and errors as results of one line."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import mcp_types as types
from finetooth_hooks import FaceBase, FinetoothError, UserError
from finetooth_hooks.faces import Asgi, FaceCaller, FaceService
from finetooth_recipes.problems import unknown_key
from finetooth_wire.bounds import brief
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from pydantic import ValidationError

from finetooth_mcp.rows import Readers
from finetooth_mcp.tools import INSTRUCTIONS, TOOLS, Desk, Tool

LOGGER = logging.getLogger("finetooth.mcp")

PATH = "/mcp"

VALUES = 2**17
"""Most bytes of a request over HTTP: the protocol's library reads it at once, and all other requests wait for that."""

KEY = "FT_API_KEY"
"""Variable with the caller's API key, for a client on standard input of a server with keys."""


class McpFace(FaceBase):
    """See `finetooth_hooks.faces.Face`. Each request over HTTP has its own session of the transport, so a restart loses
    none, and each needs its key."""

    capabilities = frozenset({"stdio"})
    path = PATH

    def app(self, service: FaceService) -> tuple[Asgi, AbstractAsyncContextManager[Any]]:
        """Streamable HTTP. The server checks the size of bodies, keys and access."""
        manager = StreamableHTTPSessionManager(make_server(service), json_response=True, stateless=True)

        async def handle(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
            message = await receive()  # the server passes the whole body
            if message.get("body", b"").count(b",") >= VALUES:
                raise UserError(f"a request of more than {VALUES} values", action="send fewer rows at once")
            first: list[Any] = [message]
            await manager.handle_request(scope, lambda: _given(first, receive), send)

        return handle, manager.run()

    async def stdio(self, service: FaceService) -> None:
        """Standard input and output, until the input ends."""
        server = make_server(service)
        async with stdio_server() as (reading, writing):
            await server.run(reading, writing, server.create_initialization_options())


async def _given(first: list[Any], receive: Any) -> Any:
    """First the received message, then the next ones."""
    return first.pop() if first else await receive()


def make_server(service: FaceService) -> Server[Any]:
    """MCP's side of a service."""
    readers = Readers(service)

    async def list_tools(context: Any, params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[described(tool) for tool in TOOLS.values()])

    async def call_tool(context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        try:
            request = context.request
            caller = service.caller(os.environ.get(KEY) or None) if request is None else request.state.caller
        except FinetoothError as error:
            return error_result(str(error))
        desk = Desk(service, readers, caller, started=request is None)
        return await call_tool_result(desk, params.name, params.arguments or {})

    return Server("finetooth", version="1", instructions=INSTRUCTIONS, on_list_tools=list_tools, on_call_tool=call_tool)


def described(tool: Tool) -> types.Tool:
    """A tool as clients see it."""
    schema = tool.takes.model_json_schema()
    schema.pop("description", None)  # not for clients
    return types.Tool(
        name=tool.name,
        description=tool.about,
        input_schema=schema,
        annotations=types.ToolAnnotations(
            read_only_hint=tool.reads, destructive_hint=tool.destroys, open_world_hint=False
        ),
    )


async def call_tool_result(desk: Desk, name: str, arguments: Mapping[str, Any]) -> types.CallToolResult:
    """The result of a tool; an error is a result too, which the assistant can read and fix."""
    tool = TOOLS.get(name)
    if tool is None:
        return error_result(f"no tool has the name {name!r} (use one of {', '.join(TOOLS)})")
    outcome = "failed"
    try:
        reply = await tool.run(desk, tool.takes.model_validate(arguments))
        outcome = str(reply.get("state", "done"))
    except ValidationError as error:
        return error_result(one_line(error, tool, arguments))
    except FinetoothError as error:
        return error_result(str(error))
    except Exception as error:
        LOGGER.error("tool %s failed", name, exc_info=error)
        return error_result("the server failed; its own log says why")
    finally:
        record(desk.service, desk.caller, name, arguments, outcome)
    return types.CallToolResult(
        content=[types.TextContent(type="text", text=json.dumps(reply))], structured_content=reply
    )


def record(service: FaceService, caller: FaceCaller, name: str, arguments: Mapping[str, Any], outcome: str) -> None:
    """Write a line into the audit record."""
    service.record(f"mcp {name}", caller, model=str(arguments.get("session") or ""), outcome=outcome)


def error_result(message: str) -> types.CallToolResult:
    """An error of one line."""
    text = brief(" ".join(message.split()))
    return types.CallToolResult(content=[types.TextContent(type="text", text=text)], is_error=True)


def one_line(error: ValidationError, tool: Tool, arguments: Mapping[str, Any]) -> str:
    """The first problem with the arguments; an unknown one before all others."""
    if unknown := unknown_key(error, tool.takes, arguments, noun="argument"):
        return str(unknown)
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']} (see the tool's input schema)"

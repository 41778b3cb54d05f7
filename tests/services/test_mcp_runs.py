"""A run begun, watched and looked at by tool calls alone, by the official client."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import yaml

mcp = pytest.importorskip("mcp")
from mcp.client import Client  # noqa: E402
from mcp.client.streamable_http import streamable_http_client  # noqa: E402


@pytest.mark.slow
def test_an_assistant_starts_a_run_and_reads_it(
    serve: Any, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetooth_saving.runs.processes import BEGUN

    monkeypatch.chdir(tmp_path)
    rows = {"name": "tasks", "task": "family", "count": 8, "seed": 5}
    recipe = {"model": str(tiny_llama), "data": {"train": rows, "renderer": "chatml"}, "train": {"max_length": 256}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    served = serve("mcp", keyless=False)
    key = served.service.keys.create("operator", ("admin",))

    async def go() -> dict[str, Any]:
        http = httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=60)
        async with http, Client(streamable_http_client(f"{served.url}/mcp", http_client=http)) as client:

            async def call(tool: str, **arguments: Any) -> Any:
                result = await client.call_tool(tool, arguments)
                assert not result.is_error, result.content[0].text
                return result.structured_content

            asked = ["train.max_steps=2", "train.batch_size=4"]
            assert (await call("start_run", recipe="recipe.yaml", name="first", overrides=asked))["run"] == "first"
            assert await asyncio.to_thread(BEGUN[-1].wait) == 0
            assert [one["run"] for one in (await call("list_runs"))["runs"]] == ["first"]
            assert (await call("diagnose_run", run="first"))["wrong"] == []
            return await call("show_run", run="first")  # type: ignore[no-any-return]

    shown = asyncio.run(go())
    assert (shown["status"], shown["steps"]) == ("done", 2) and len(shown["curves"]["loss"]) == 2

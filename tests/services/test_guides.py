"""The scripts of the guides run as they stand, but for the server's address and the model's name."""

from __future__ import annotations

import ast
import asyncio
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

GUIDES = Path(__file__).parents[2] / "docs/guides"
ADDRESS = "http://server:8420"


def block(guide: str, language: str) -> str:
    """The first block of a language in a guide."""
    found = re.search(rf"^```{language}\n(.*?)^```$", (GUIDES / guide).read_text(encoding="utf-8"), re.S | re.M)
    assert found is not None
    return found[1]


def run(script: str, url: str) -> list[str]:
    """What a script printed."""
    assert ADDRESS in script
    done = subprocess.run(
        [sys.executable, "-c", script.replace(ADDRESS, url)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_loss_of_ones_own_in_twenty_lines(serve: Any) -> None:
    served = serve("api")
    said = run(block("sdk.md", "python"), served.url)
    losses = [float(line.split()[0]) for line in said[:5]]
    assert losses[4] < losses[0]
    assert [one.id for one in served.service.checkpoints.all("local")] == [said[-1]]


def test_the_first_script_of_the_guide_to_serving(serve: Any) -> None:
    served = serve("api")
    served.service.settings.models["smollm2-135m"] = served.service.settings.models["tiny"]
    said = run(block("serve.md", "python"), served.url)
    losses = [float(line) for line in said[:5]]
    assert losses[4] < losses[0] and len(served.service.checkpoints.all("local")) == 1


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_first_requests_without_a_client(serve: Any) -> None:
    served = serve("api")
    served.service.settings.models["smollm2-135m"] = served.service.settings.models["tiny"]
    text = (GUIDES / "serve.md").read_text(encoding="utf-8").partition("### Without the client")[2]
    script = text.partition("```sh\n")[2].partition("```")[0].replace("curl ", "echo; curl -sS ")
    done = subprocess.run(["bash", "-c", script.replace(ADDRESS, served.url)], capture_output=True, check=True)
    calls = [json.loads(line) for line in done.stdout.splitlines() if line]
    assert [(call["operation"], call["state"], call["session"]) for call in calls] == [
        (operation, "done", "my-session") for operation in ("create", "forward_backward", "step")
    ]
    assert calls[1]["result"]["targets"] == 3 and calls[2]["result"]["step"] == 1


@pytest.mark.slow
def test_the_official_client_in_a_script(serve: Any) -> None:
    pytest.importorskip("mcp")
    said = run(block("assistant.md", "python"), serve("mcp").url)
    losses = [float(line) for line in said[:5]]
    assert losses == sorted(losses, reverse=True), "it does not learn step by step"
    assert "completions" in said[5] and "checkpoint" in said[6]


@pytest.mark.slow
def test_what_an_assistants_settings_name_starts(tiny_llama: Path, tmp_path: Path) -> None:
    pytest.importorskip("mcp")
    from mcp import Client, StdioServerParameters

    named = json.loads(block("assistant.md", "json"))["mcpServers"]["finetooth"]
    swapped = {"smollm2-135m": str(tiny_llama), "runs/assistant": str(tmp_path)}
    arguments = [swapped.get(one, one) for one in named["args"]] + ["--set", "data.renderer=chatml"]
    command = shutil.which(named["command"], path=str(Path(sys.executable).parent))
    assert command is not None

    async def go() -> Any:
        async with Client(StdioServerParameters(command=command, args=arguments)) as client:
            tools = [tool.name for tool in (await client.list_tools()).tools]
            told = (GUIDES / "assistant.md").read_text(encoding="utf-8")
            assert all(f"`{tool}`" in told for tool in tools)
            return (await client.call_tool("list_models", {})).structured_content

    assert asyncio.run(go())["models"][0]["name"] == str(tiny_llama)


@pytest.mark.slow
def test_openais_client_in_scripts(serve: Any) -> None:
    """All of the guide's scripts, one after the other as they are read."""
    pytest.importorskip("openai")
    served = serve("openai")
    models = served.service.settings.models
    models["smollm2-135m"] = models["runs/mine"] = models["tiny"]
    text = (GUIDES / "serve-openai.md").read_text(encoding="utf-8")
    # a random model may end its answer at once where it draws
    text = re.sub(r"(stream=True|store=False)\)", r"\1, temperature=0)", text)
    said = run("".join(re.findall(r"^```python\n(.*?)^```$", text, re.S | re.M)), served.url)
    assert said[0] == "['tiny', 'smollm2-135m', 'runs/mine']"
    assert re.fullmatch(r"['\"].*['\"] \d+", said[1])
    parts = re.fullmatch(r"(.*)(\{'kind'.*?\})\n(.*)", "\n".join(said[2:]), re.S)
    assert parts is not None, said
    told, shape, responded = parts.groups()
    pet = ast.literal_eval(shape)
    assert len(told) > 10 and responded and pet["kind"] in ("cat", "dog") and 0 <= pet["age"] <= 30

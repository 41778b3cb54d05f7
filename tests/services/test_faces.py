"""REST, the Tinker wire and MCP in one process, on one registry of models: what one client makes, the others see."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from typing import Any

import finetooth
import numpy as np
import pytest
from finetooth_hooks import Datum

pytest.importorskip("tinker")
pytest.importorskip("mcp")
from mcp.client import Client

TOKENS = [10, 20, 30, 40, 50, 60]
SCRIPT = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
import numpy as np, tinker
from tinker import types

tokens, base = json.loads(sys.argv[1]), sys.argv[2]
service = tinker.ServiceClient()
training = service.create_lora_training_client(base_model=base, rank=4, seed=11)
weights = np.ones(len(tokens) - 1, np.float32)
inputs = {"target_tokens": np.asarray(tokens[1:]), "weights": weights}
row = types.Datum(types.ModelInput.from_ints(tokens[:-1]), inputs)
losses = []
for _ in range(4):
    losses.append(training.forward_backward([row], "cross_entropy").result().metrics["loss:sum"])
    training.optim_step(types.AdamParams(learning_rate=0.02)).result()
scored = training.forward([row], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].tolist()
path = training.save_state("kept").result().path
print(json.dumps({"losses": losses, "logprobs": scored, "path": path, "model": training.model_id}), flush=True)
os._exit(0)  # the client leaves a thread running, which now and then aborts a process that ends in the usual way
"""


def tinker_client(url: str) -> dict[str, Any]:
    """What the public client, in a process of its own, did and saw."""
    environment = {**os.environ, "TINKER_BASE_URL": url, "TINKER_API_KEY": "tml-local", "TINKER_TELEMETRY": "0"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(TOKENS), "tiny"],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


async def tools(url: str, *calls: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Results of tools, called by the official client."""
    async with Client(f"{url}/mcp") as client:
        results = [await client.call_tool(name, arguments) for name, arguments in calls]
    assert not any(result.is_error for result in results), results
    return [result.structured_content for result in results]


@pytest.mark.slow
def test_three_clients_of_one_server(serve: Any) -> None:
    served = serve("api", "tinker", "mcp")
    with finetooth.Client(served.url, patience=10) as client:
        ours = client.session("tiny", adapter={"name": "lora", "rank": 2})
        data = [Datum.from_tokens(TOKENS)]
        untrained = ours.logprobs(data)[0]
        ours.forward_backward(data)
        ours.step()
        theirs = tinker_client(served.url)
        assert theirs["losses"][-1] < theirs["losses"][0]
        assert theirs["losses"][0] == pytest.approx(-float(np.sum(untrained)), rel=1e-5), "not the same base model"

        made = {ours.id: 4, theirs["model"]: 11}  # calls by session, the one that made it included
        listed, kept, scored = asyncio.run(
            tools(
                served.url,
                ("list_sessions", {}),
                ("list_checkpoints", {}),
                ("logprobs", {"session": theirs["model"], "rows": [{"tokens": TOKENS}]}),
            )
        )
        assert {one["id"]: one["calls"] for one in listed["sessions"]} == made
        assert [one["name"] for one in kept["checkpoints"]] == ["kept"] and theirs["path"].endswith("/weights/kept")
        np.testing.assert_allclose(scored["rows"][0]["logprobs"], theirs["logprobs"], atol=1e-6)

        assert {one.id for one in client.sessions()} == set(made)
        again = client.session(checkpoint=kept["checkpoints"][0]["id"])  # what a Tinker script saved, over REST
        np.testing.assert_allclose(again.logprobs(data)[0], theirs["logprobs"], atol=1e-6)
        assert not np.allclose(ours.logprobs(data)[0], theirs["logprobs"], atol=1e-2), "one model for both"

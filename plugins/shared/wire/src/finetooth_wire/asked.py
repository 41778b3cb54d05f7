"""A model behind OpenAI's protocol, asked for the next message of a conversation."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from finetooth_hooks import UserError

KEY = "OPENAI_API_KEY"
"""The variable with the key of a server that wants one."""
PATIENCE = 600.0
"""Seconds that an answer may take."""


def next_message(
    address: str,
    model: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> str:
    """What the model says next: its text, and its calls of tools as a line of JSON each.

    Args:
        address: of the server, `http://127.0.0.1:8420/v1`.
        model: as the server calls it.
        tokens: that the answer has at most.

    Raises:
        UserError: nothing answers.
    """
    body = {"model": model, "messages": list(messages), "max_tokens": tokens, "temperature": temperature, "seed": seed}
    headers = {"content-type": "application/json", "authorization": f"Bearer {os.environ.get(KEY) or 'none'}"}
    request = urllib.request.Request(f"{address.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            message = json.load(answer)["choices"][0]["message"]
    except urllib.error.HTTPError as error:
        reply = " ".join(error.read().decode("utf-8", "replace").split())[:500]
        raise UserError(f"{model} at {address}: {reply}", action="say less, or see what the server knows") from error
    except OSError as error:
        reason = getattr(error, "reason", error)  # of an URLError, which says `<urlopen error ...>`
        why = getattr(reason, "strerror", None) or reason
        action = "start the server (ft serve openai --model RUN), or correct its address"
        raise UserError(f"no server answers at {address}: {why}", action=action) from error
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"what {address} sends back does not read as OpenAI's chat completions",
            action="give the address of its /v1",
        ) from error
    calls = [json.dumps(call.get("function", call), ensure_ascii=False) for call in message.get("tool_calls") or ()]
    return "\n".join(filter(None, ((message.get("content") or "").strip(), *calls)))

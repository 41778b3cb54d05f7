"""A stand-in for a vLLM server: its documented HTTP interface on the loopback, over numbers made from a seed.

As vLLM does, it answers texts where no JSON is promised, takes what a request leaves out from the model's
generation_config.json, ends answers at the model's own end unless told not to, pauses before it sleeps, and puts
penalties before the temperature and `min_p` before `top_k`.
"""

from __future__ import annotations

import json
import math
import random
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from finetooth_serversamplers.worker import Weights

VOCABULARY = 64
STOP = 0
NOTHING_ELSE = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
"""What vLLM takes where neither the request nor the model says it."""


class Model:
    """Takes weights as vLLM's models do."""

    def __init__(self) -> None:
        self.has: dict[str, Any] = {}

    def load_weights(self, weights: Any) -> None:
        self.has = dict(weights)

    def modules(self) -> list[Any]:
        return []


class Worker(Weights):
    """A worker of vLLM's with the extension mixed in."""

    def __init__(self) -> None:
        self.model_runner = SimpleNamespace(model=Model())


class StandIn:
    """What the server does, and what it was asked. Attributes that begin with `lie` make it answer otherwise.

    Attributes:
        asked: paths and bodies, in order.
        hangs: it takes a request for completions and never answers.
        defaults: what the model's generation_config.json says of sampling.
        ends: the model's own end.
        unknown: paths that it does not know, since it was started without what they need.
        without_lora: it may load adapters, and was started without --enable-lora.
        older: it has neither `/is_paused` nor pauses.
        formless: it ignores `structured_outputs`. Else any form allows what its own length divides, and the end.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.adapters: dict[str, str] = {}
        self.processed = True
        self.hangs = False
        self.lies: dict[str, Any] = {}
        self.asleep = self.paused = self.older = self.without_lora = self.formless = False
        self.defaults: dict[str, Any] = {}
        self.ends: int | None = None
        self.unknown: frozenset[str] = frozenset()
        self.workers = [Worker(), Worker()]
        self.released = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def handler(self) -> type[BaseHTTPRequestHandler]:
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None: ...

            def do_GET(self) -> None:
                self.respond(*stand_in.answer(self.path, None))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.respond(*stand_in.answer(self.path, json.loads(body) if body else None))

            def respond(self, status: int, content: Any) -> None:
                text = content if isinstance(content, str) else "" if content is None else json.dumps(content)
                data = text.encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        return Handler

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        self.asked.append((path, body))
        if path in self.unknown or (self.older and path in ("/is_paused", "/resume")):
            return 404, {"detail": "Not Found"}
        if path == "/health":
            return 200, None
        if path == "/v1/models":
            base = [{"id": "tiny", "parent": None}]
            return 200, {
                "data": base + [{"id": one, "parent": "tiny", "root": at} for one, at in self.adapters.items()]
            }
        if path == "/v1/load_lora_adapter":
            if not (Path(body["lora_path"]) / "adapter_config.json").is_file():
                error = {"message": f"No adapter found for {body['lora_path']}", "type": "NotFoundError", "code": 404}
                return 404, {"error": error}
            if self.without_lora:
                message = "Call to add_lora method failed: Worker failed with error 'LoRA is not enabled. ...'"
                error = {"message": message, "type": "InternalServerError", "code": 500}
                return 500, {"error": error}
            if not self.lies.get("loads"):
                self.adapters[body["lora_name"]] = body["lora_path"]
            return 200, f"Success: LoRA adapter '{body['lora_name']}' added successfully."
        if path == "/v1/unload_lora_adapter":
            del self.adapters[body["lora_name"]]
            return 200, f"Success: LoRA adapter '{body['lora_name']}' removed successfully."
        if path == "/is_sleeping":
            return 200, {"is_sleeping": self.asleep}
        if path in ("/sleep?level=1", "/wake_up"):
            self.asleep = path != "/wake_up"
            self.paused |= self.asleep and not self.older
            return 200, None
        if path == "/is_paused":
            return 200, {"is_paused": self.paused}
        if path == "/resume":
            self.paused = False
            return 200, {"status": "resumed"}
        if path == "/collective_rpc":
            said = [getattr(one, body["method"])(*body["args"]) for one in self.workers]
            return 200, {"results": self.lies.get("results", said)}
        if path == "/reset_prefix_cache":
            return 200, None
        if self.hangs or self.asleep or self.paused:
            self.released.wait()
        if self.lies.get("status"):
            return self.lies["status"], {"message": "out of memory"}
        return 200, self.completions(body)

    def completions(self, body: Any) -> Any:
        choices = [self.choice(body, i) for i in range(body["n"])]
        return {"model": body["model"], "choices": choices, **self.lies.get("answer", {})}

    def choice(self, body: Any, index: int) -> Any:
        """Tokens from the softmax of fixed numbers, as vLLM would say them."""
        draws = random.Random(f"{body['seed']}/{index}/{body['prompt']}")
        tokens: list[int] = []
        logprobs, top = [], []
        ends = {STOP, *([] if body.get("ignore_eos") or self.ends is None else [self.ends])}
        while len(tokens) < body["max_tokens"] and not ends & set(tokens[-1:]):
            read = [*body["prompt"], *tokens]
            table = self.table(body, processed=True, read=read)
            kept = [one for one in table if table[one] > -9000]
            tokens.append(draws.choices(kept, [math.exp(table[one]) for one in kept])[0])
            said = self.table(body, processed=self.processed, read=read)
            logprobs.append(said[tokens[-1]])
            best = sorted(said, key=lambda one: -said[one])[: body["logprobs"] or 0]
            top.append({f"token_id:{one}": said[one] for one in dict.fromkeys([tokens[-1], *best])})
        return {
            "index": index,
            "text": "0000000" if self.form(body) == {"regex": "0{7}"} else "",
            "token_ids": tokens,
            "prompt_token_ids": body["prompt"],
            "finish_reason": "stop" if tokens[-1] in ends else "length",
            "logprobs": {"token_logprobs": logprobs, "tokens": [f"token_id:{one}" for one in tokens],
                         "top_logprobs": top},
            **self.lies.get("choice", {}),
        }  # fmt: skip

    def table(self, body: Any, *, processed: bool, read: Sequence[int] = ()) -> dict[int, float]:
        """Log-probabilities; those of tokens that sampling leaves out are -9999, as vLLM writes them."""
        asked = {**NOTHING_ELSE, **(self.defaults if processed else {}), **(body if processed else {})}
        logits = {token: 3.0 * math.sin(token + 1) for token in range(VOCABULARY)}
        for token in set(read) & set(logits):
            penalty = asked["repetition_penalty"]
            logits[token] *= penalty if logits[token] < 0 else 1 / penalty
        if processed:
            logits = {token: value / body["temperature"] for token, value in logits.items()}
        form = self.form(body)
        if form:  # before all else, and so in raw log-probabilities too
            logits = {token: value for token, value in logits.items() if token % len(str(form)) in (0, 1)}
        most = max(logits.values())
        kept = [one for one in logits if math.exp(logits[one] - most) >= asked["min_p"]]
        kept = sorted(kept, key=lambda one: -logits[one])[: asked["top_k"] or None]
        total = math.log(sum(math.exp(logits[one]) for one in kept))
        return {token: logits[token] - total if token in kept else -9999.0 for token in range(VOCABULARY)}

    def form(self, body: Any) -> Any:
        """What answers are held to."""
        return None if self.formless else body.get("structured_outputs")

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def paths(self) -> list[str]:
        """What was asked, in order."""
        return [path for path, _ in self.asked]

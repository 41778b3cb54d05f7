"""A process beside the attacks that asks the server for one thing again and again, and says how long each took.

    python watch.py health URL              GET /health on a new connection each time
    python watch.py victim URL KEY MODEL SAMPLER
                                            a turn of another tenant: rows of training, a step, some tokens; of about
                                            a second where nobody else asks for anything, so that twice as long is no
                                            noise

Each line of its output is `BEGUN SECONDS PROBLEM`, times by the clock that all processes share; PROBLEM is `-` where
there was none.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

PAUSE = {"health": 0.2, "victim": 0.1}
PATIENCE = 60.0
ROWS, LENGTH, CALLS, TOKENS = 16, 64, 6, 48
"""Of a turn: rows of a call of training and their tokens, such calls, and tokens that are sampled."""
TURN, MOST_ROWS = 1.0, 128
"""Seconds that a turn takes about, with more rows than `ROWS` on a fast machine, up to so many."""


def main() -> None:
    """Until it is ended."""
    role, url, *more = sys.argv[1:]
    port = int(urlsplit(url).port or 0)
    ask = health(port) if role == "health" else victim(port, *more)
    while True:
        begun, problem = time.monotonic(), "-"
        try:
            ask()
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            problem = f"{type(error).__name__}:{error}".replace(" ", "_")[:300]
        print(f"{begun:.4f} {time.monotonic() - begun:.4f} {problem}", flush=True)
        time.sleep(PAUSE[role])


def health(port: int) -> Callable[[], None]:
    """Asks whether the server works."""

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", "/health")
            answer = connection.getresponse()
            if answer.status != 200:
                raise ValueError(f"status {answer.status}")
        finally:
            connection.close()

    return ask


def victim(port: int, key: str, model: str, sampler: str) -> Callable[[], None]:
    """Trains and samples."""
    tokens, targets = list(range(5, 5 + LENGTH)), list(range(6, 6 + LENGTH))
    rows = [{"tokens": tokens, "targets": targets, "id": f"{model}-{n}"} for n in range(MOST_ROWS)]
    count = ROWS

    def post(path: str, body: Any) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            headers = {"X-API-Key": key, "Content-Type": "application/json"}
            connection.request("POST", path, json.dumps(body), headers)
            answer = connection.getresponse()
            found = json.loads(answer.read())
            while answer.status == 202:
                connection.request("GET", f"/v1/calls/{found['id']}?wait=30", headers=headers)
                answer = connection.getresponse()
                found = json.loads(answer.read())
            if answer.status != 200 or found["state"] != "done":
                raise ValueError(f"{path} {answer.status} {found}")
        finally:
            connection.close()

    def ask() -> None:
        for _ in range(CALLS):
            post(f"/v1/sessions/{model}/forward_backward?wait=30", {"data": rows[:count], "loss": "cross_entropy"})
        post(f"/v1/sessions/{model}/step?wait=30", {})
        sampling = {"max_tokens": TOKENS, "stop_ids": []}
        post(f"/v1/samplers/{sampler}/generate?wait=30", {"prompt": [5, 6, 7], "sampling": sampling})

    ask()  # the first is slower than others
    begun = time.monotonic()
    ask()
    count = min(MOST_ROWS, max(ROWS, round(ROWS * TURN / (time.monotonic() - begun))))
    return ask


if __name__ == "__main__":
    main()

"""`self_rewarding` end to end: the judge is the model, rounds are a chain, a killed run goes on."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import finetooth
import numpy as np
import pytest
from finetooth_core.cli import main
from finetooth_hooks import DataError, Datum, FinetoothError
from finetooth_hooks.data.examples import Task
from finetooth_hooks.rollouts import Rollout
from finetooth_selfrewarding.judging import BEGINNING, RUBRIC, OwnJudge

sys.path.insert(0, str(Path(__file__).parents[1] / "torture"))

from killing import differences, left, rewound  # type: ignore[import-not-found]

PROMPTS = [f"What is {n} + 3?" for n in range(6)]


@pytest.fixture
def rounds(recipe: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """A recipe of two rounds over six prompts, two steps each; keyword arguments go into its method."""
    rows = [{"prompt": prompt, "answer": "5"} for prompt in PROMPTS]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def make(**method: Any) -> Any:
        return recipe(
            data={"train": str(tmp_path / "asked.jsonl"), "format": "task", "renderer": "chatml"},
            method={"name": "self_rewarding", "num_generations": 3, "max_completion_length": 8, **method},
            train={"batch_size": 3, "precision": "fp32", "max_length": 256, "epochs": 2},
            evaluate={"evaluators": []},
        )  # fmt: skip

    return make


def files(folder: Path) -> list[list[dict[str, Any]]]:
    return [
        [json.loads(line) for line in path.read_text().splitlines()] for path in sorted((folder / "rounds").iterdir())
    ]


def test_rounds_are_a_chain_and_the_judge_is_the_model(
    rounds: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Points of the first round by hand: the base model's distribution over the digits behind the judge's prompt."""
    given = rounds()
    assert finetooth.run(given).steps == 4
    folder = Path(given["output"])
    first, second = files(folder)
    assert main(["rollouts", str(folder)]) == 2
    assert f"read {folder / 'rounds' / '0002.jsonl'}" in capsys.readouterr().err, (
        "ft rollouts says where its answers are"
    )
    assert (first[0]["round"], first[0]["weights"], first[0]["parent"]) == (1, 0, "")
    assert (second[0]["round"], second[0]["weights"]) == (2, 2)
    assert second[0]["parent"] == hashlib.sha256((folder / "rounds" / "0001.jsonl").read_bytes()).hexdigest()
    assert len(first) == len(second) == 7 and first[0]["answers"] == 18
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = [line["metrics"] for line in steps if line["event"] == "step"]
    assert [one["round"] for one in found] == [1, 1, 2, 2]
    # the policy is the reference when a round begins: every reward of a pair is 0
    assert [one["rewards/margins"] == pytest.approx(0.0, abs=1e-5) for one in found] == [True, False, True, False]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    engine = finetooth.engine({**given, "output": str(folder) + "-again"})  # LoRA begins as its base
    rows = {line["id"]: line for line in first[1:]}
    assert all(line["scores"][0] > line["scores"][1] for line in rows.values())
    line = first[1]
    prompt = PROMPTS[int(line["id"].rpartition(":")[2]) - 1]
    asked = RUBRIC.replace("{prompt}", prompt).replace("{answer}", line["chosen"])
    asking = [{"role": "user", "content": asked}]
    tokens = tokenizer.apply_chat_template(asking, add_generation_prompt=True, return_dict=False)
    tokens += tokenizer.encode(BEGINNING, add_special_tokens=False)
    datum = Datum.from_tokens([*tokens, tokens[0]])
    logits = engine.forward([datum], returns=("logits",), train=False).outputs[0]["logits"][-1].astype(np.float64)
    share = np.exp([logits[tokenizer.encode(str(n), add_special_tokens=False)[0]] for n in range(6)])
    assert line["scores"][0] == pytest.approx(float(share @ np.arange(6) / share.sum()), rel=1e-4)


def test_a_killed_run_goes_on_bit_for_bit(rounds: Callable[..., Any]) -> None:
    """Killed in the middle of the first round; the reference of the second is then where the first ended."""
    given = rounds() | {"checkpoint": {"every": 1, "keep_last": 9}}
    finetooth.run(given)
    folder = Path(given["output"])
    whole = rewound(folder, 1)
    assert finetooth.resume(folder).steps == 4
    assert differences(left(whole), left(folder)) == []
    assert files(whole) == files(folder)


def test_answers_that_nothing_tells_apart_end_the_run(rounds: Callable[..., Any]) -> None:
    """Rewards judge in place of the model; all are 0 here."""
    given = rounds(rewards=[{"name": "exact_match", "column": "answer"}])
    with pytest.raises(FinetoothError, match=r"method\.rewards.*nothing to prefer"):
        finetooth.run(given)


def test_a_judge_behind_a_server_says_what_is_preferred(rounds: Callable[..., Any]) -> None:
    """Iterative DPO with another model as judge: a reply's score is a tenth of the points that it gives, here by a
    sum over what it was asked, and the best and the worst answer are the pair."""

    class Judge(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked = "".join(str(message["content"]) for message in body["messages"])
            points = zlib.crc32(asked.encode()) % 11
            message = {"role": "assistant", "content": f"Score: {points}"}
            said = {"id": "1", "object": "chat.completion", "created": 0, "model": "judge",
                    "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}  # fmt: skip
            text = json.dumps(said).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *given: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Judge) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        given = rounds(rewards=[{"name": "llm_judge", "base_url": url, "model": "judge", "rubric": "Short is good."}])
        finetooth.run(given)
        server.shutdown()
    first, second = files(Path(given["output"]))
    for line in (*first[1:], *second[1:]):
        best, worst = line["scores"]
        assert best > worst and {round(10 * best, 6) % 1, round(10 * worst, 6) % 1} == {0}


def test_a_rubric_that_does_not_show_the_answer_is_refused(rounds: Callable[..., Any]) -> None:
    with pytest.raises(FinetoothError, match=r"method\.rubric: it does not say \{answer\}"):
        finetooth.run(rounds(rubric="Is {prompt} a good question?"))


def test_a_judges_prompt_that_the_model_cannot_read_is_refused_before_anything_is_sampled(
    rounds: Callable[..., Any],
) -> None:
    made = rounds(rubric="{prompt} {answer} " + 2048 * "x")
    with pytest.raises(DataError, match=r"tokens of the judge's prompt and .* more than the 512") as told:
        finetooth.run(made)
    assert "shorten method.rubric" in told.value.action
    assert not (Path(made["output"]) / "rounds").exists()


def test_an_answer_that_becomes_longer_as_text_is_left_out() -> None:
    """Half a character is written as one of three bytes."""
    notes: list[str] = []
    context = SimpleNamespace(
        tokenizer=SimpleNamespace(encode=lambda text: list(text.encode())), note=notes.append,
        renderer=SimpleNamespace(prompt=lambda messages: list(messages[0].content.encode())),
        facts=SimpleNamespace(max_positions=32),
    )  # fmt: skip
    judge = OwnJudge(context, "{prompt} {answer}")
    rollouts = [Rollout("a", "a", (1,), (2,), (0.0,), (0,), text, "stop") for text in ("short", 30 * "?")]
    read: list[int] = []

    class Reader:
        def forward(self, data: Any, **given: Any) -> Any:
            read.extend(map(len, data))
            return SimpleNamespace(outputs=[{"logprobs": np.zeros((len(datum), 6))} for datum in data])

    (kept,) = judge.scored(Reader(), rollouts, {"a": Task("ask")})
    assert kept.text == "short" and kept.reward == 2.5 and read == [len(b"ask shortScore: ")]
    assert "1 answers" in notes[0]

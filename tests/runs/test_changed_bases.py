"""A base that has changed since a run was trained over it: every use says so, and names the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import finetooth
import pytest
from finetooth_hooks import FinetoothError

Make = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, and a run over it that can be resumed."""
    place = tmp_path_factory.mktemp("changed")
    base = Path(shutil.copytree(tiny_model, place / "base"))
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (place / "rows.jsonl").write_text(json.dumps(row) + "\n")
    finetooth.run(
        {
            "model": str(base),
            "data": {"train": {"name": "tasks", "task": "family", "count": 8, "seed": 5}, "renderer": "chatml"},
            "method": "sft",
            "adapter": {"name": "lora", "rank": 2},
            "train": {"batch_size": 8, "precision": "fp32", "max_length": 256, "max_steps": 1},
            "checkpoint": {"every": 1},
            "trackers": [],
            "output": str(place / "run"),
        }
    )
    return place


def change(base: Path, name: str) -> None:
    """Another content of the same length: headers and sizes stay as they were."""
    if name == "model.safetensors":
        from safetensors.torch import load_file, save_file

        tensors = load_file(base / name)
        tensors["model.norm.weight"][0] += 0.1
        save_file(tensors, base / name, {"format": "pt"})
    else:
        text = (base / name).read_text()
        (base / name).write_text(text.replace("max_position_embeddings", "max_position_embeddingz"))


USES: dict[str, Callable[[Path, Path], list[str]]] = {
    "merge": lambda run, to: ["merge", str(run), "--output", str(to)],
    "export": lambda run, to: ["export", str(run), "--to", "safetensors", "--output", str(to)],
    "chat": lambda run, to: ["chat", str(run), "--prompt", "Hello", "--max-tokens", "1"],
    "eval": lambda run, to: ["eval", str(run), "--evaluator", "loss", "--data", str(run.parent / "rows.jsonl")],
    "resume": lambda run, to: ["resume", str(run), "train.max_steps=2"],
    "push": lambda run, to: ["push", str(run), "--to", "hf:a/b", "--dry-run"],
    "artifact": lambda run, to: ["merge", str(run / "artifact"), "--output", str(to)],
}


@pytest.mark.parametrize("use", USES)
def test_every_command_names_the_file_that_changed(trained: Path, ft: Any, tmp_path: Path, use: str) -> None:
    place = Path(shutil.copytree(trained, tmp_path / "copy"))
    recipe = place / "run" / "recipe.yaml"
    base = trained / "base"  # recipes name it by its absolute path
    before = (base / "model.safetensors").read_bytes()
    change(base, "model.safetensors")
    try:
        code, out, err = ft(*USES[use](recipe.parent, tmp_path / "out"))
    finally:
        (base / "model.safetensors").write_bytes(before)
    assert code == 2, (out, err)
    assert "model.safetensors" in err and not (tmp_path / "out").exists()


def test_a_reward_model_over_a_changed_base_scores_nothing(
    trained: Path, recipe: Make, ft: Any, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(trained / "base", tmp_path / "base"))
    asked = [{"role": "user", "content": "a"}]
    row = {"prompt": asked, **{side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}}
    (tmp_path / "pairs.jsonl").write_text((json.dumps(row) + "\n") * 2)
    data = {"train": str(tmp_path / "pairs.jsonl"), "renderer": "chatml"}
    train = {"batch_size": 2, "precision": "fp32", "max_length": 64, "max_steps": 1}
    made = recipe(model=str(base), method="rm", data=data, train=train, trackers=[], output=str(tmp_path / "run"))
    finetooth.run(made)
    assert ft("score", tmp_path / "run", tmp_path / "pairs.jsonl")[0] == 0
    there = base.rename(tmp_path / "there")
    assert ft("score", tmp_path / "run", tmp_path / "pairs.jsonl")[0] == 2
    code, _, err = ft("score", tmp_path / "run", tmp_path / "pairs.jsonl", f"model={there}")
    assert code == 0, err
    there.rename(base)
    change(base, "model.safetensors")
    code, out, err = ft("score", tmp_path / "run", tmp_path / "pairs.jsonl")
    assert code == 2 and "model.safetensors" in err, (out, err)


def test_a_server_takes_no_adapter_over_a_changed_base(trained: Path, ft: Any, tmp_path: Path) -> None:
    base = Path(shutil.copytree(trained / "base", tmp_path / "base"))
    change(base, "model.safetensors")
    code, out, err = ft(
        "serve", "openai", "--model", base, "--adapter", trained / "run", "--port", "0", "--folder", tmp_path / "server"
    )
    assert code == 2 and "model.safetensors" in err, (out, err)


def test_the_next_stage_and_another_beginning_refuse_it_too(trained: Path, recipe: Make, tmp_path: Path) -> None:
    base = trained / "base"
    before = (base / "config.json").read_bytes()
    change(base, "config.json")
    adapter = {"name": "lora", "rank": 2, "resume_from": str(trained / "run")}
    try:
        for sections in ({"model": str(trained / "run")}, {"model": str(base), "adapter": adapter}):
            with pytest.raises(FinetoothError, match=r"config\.json has another content") as told:
                finetooth.session(recipe(**sections), data=False).plan  # noqa: B018
            assert told.value.exit_code == 2 and told.value.action
    finally:
        (base / "config.json").write_bytes(before)


def test_the_same_content_elsewhere_is_the_same_base(trained: Path, recipe: Make, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(trained / "base", tmp_path / "moved"))
    adapter = {"name": "lora", "rank": 2, "resume_from": str(trained / "run")}
    session = finetooth.session(recipe(model=str(moved), adapter=adapter), data=False)
    assert session.plan.picks["adapter"] == "finetooth-lora:lora"
    change(moved, "model.safetensors")
    with pytest.raises(FinetoothError, match=r"files differ: model\.safetensors has another content"):
        finetooth.session(recipe(model=str(moved), adapter=adapter), data=False).plan  # noqa: B018


def test_the_artifact_and_the_checkpoint_keep_the_sha256_of_every_file_that_matters(trained: Path) -> None:
    base = trained / "base"
    kept = [json.loads(path.read_text()) for path in sorted((trained / "run").rglob("manifest.json"))]
    for manifest in kept:
        assert {"model.safetensors", "config.json", "tokenizer.json"} <= manifest["base"].keys()
        for name, digest in manifest["base"].items():
            assert digest == sha256((base / name).read_bytes()).hexdigest()
    assert len({manifest["base_digest"] for manifest in kept}) == 1 and len(kept) == 2


@pytest.fixture
def moved(trained: Path, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A copy of the run, and where its base lies now."""
    base, there = trained / "base", trained / "elsewhere"
    run = Path(shutil.copytree(trained / "run", tmp_path / "run"))
    shutil.copy(trained / "rows.jsonl", tmp_path)
    base.rename(there)
    try:
        yield run, there
    finally:
        there.rename(base)


def test_a_base_that_was_moved_is_taken_where_the_recipe_says_it_is(
    moved: tuple[Path, Path], ft: Any, tmp_path: Path
) -> None:
    run, there = moved
    recipe = run / "recipe.yaml"
    for use, words in USES.items():
        code, _, err = ft(*words(run, tmp_path / use))
        assert code == 2 and err.count("model=NEW, or model: NEW in the run's recipe.yaml") == 1, (use, err)
    recipe.write_text(recipe.read_text().replace(str(there.parent / "base"), str(there)))
    for use, words in USES.items():
        code, _, err = ft(*words(run, tmp_path / use))
        assert code == 0, (use, err)


@pytest.mark.parametrize("use", ["merge", "export", "push", "artifact"])
def test_a_command_line_says_where_a_moved_base_is(moved: tuple[Path, Path], ft: Any, tmp_path: Path, use: str) -> None:
    """For this command alone; the content is compared as ever."""
    run, there = moved
    other = Path(shutil.copytree(there, tmp_path / "other"))
    change(other, "model.safetensors")
    words = USES[use](run, tmp_path / use)
    code, _, err = ft(*words, f"model={other}")
    assert code == 2 and "model.safetensors has another content" in err, err
    code, _, err = ft(*words, f"model={there}")
    assert code == 0, err
    code, _, err = ft(*USES[use](run, tmp_path / "again"))
    assert code == 2 and "model=NEW" in err, err
    if use != "export":
        code, _, err = ft(*USES[use](run, tmp_path / "again"), "seed=3")
        assert code == 2 and "'seed=3': of a run that was trained, only the place of its base can be set" in err, err


def test_a_run_goes_on_over_the_same_content_elsewhere_and_over_no_other(moved: tuple[Path, Path], ft: Any) -> None:
    run, there = moved
    other = Path(shutil.copytree(there, run.parent / "other"))
    change(other, "model.safetensors")
    code, _, err = ft("resume", run, "train.max_steps=2", f"model={other}")
    assert code == 2 and "model.safetensors" in err and "--accept-changes" in err, err
    code, _, err = ft("resume", run, "train.max_steps=2", f"model={there}")
    assert code == 0 and "changed: model.name" in err, err
    for command in (["chat", str(run), "--prompt", "a", "--max-tokens", "1"], USES["merge"](run, run / "merged")):
        code, _, err = ft(*command)
        assert code == 0, err
    code, _, err = ft(*USES["chat"](run, run), f"model={other}")
    assert code == 2 and "model.safetensors has another content" in err, err

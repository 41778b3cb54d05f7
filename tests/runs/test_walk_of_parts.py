"""Every adapter and every optimizer that is installed: five steps, killed behind a checkpoint, taken up again, bit for
bit the run that nobody disturbed; and what it trained, written by `ft export`, is what other code loads."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetooth_core.plugins import manager

sys.path.insert(0, str(Path(__file__).parents[1] / "torture"))

from killing import Zygote, differences, left, tail  # type: ignore[import-not-found]

pytestmark = pytest.mark.slow

ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("full", {}),
    "freeze": ("freeze", {"layers": 1}),
    "lisa": ("lisa", {"layers": 1, "every": 2}),
    "qat": ("qat", {"format": "int4"}),
    "lora": ("lora", {"rank": 4, "dropout": 0.1}),
    "rslora": ("lora", {"rank": 4, "rslora": True}),
    "dora": ("lora", {"rank": 4, "dora": True}),
    "loraplus": ("lora", {"rank": 4, "loraplus_ratio": 16}),
    "pissa": ("lora", {"rank": 4, "init": "pissa"}),
    "olora": ("lora", {"rank": 4, "init": "olora"}),
    "eva": ("lora", {"rank": 4, "init": "eva", "init_rows": 4}),
    "loftq": ("lora", {"rank": 4, "init": "loftq"}),
    "relora": ("relora", {"rank": 4, "every": 2, "warm_up": 1}),
    "oft": ("oft", {}),
    "boft": ("boft", {}),
    "vera": ("vera", {}),
    "ia3": ("ia3", {}),
}
"""By a name of its own: the entry, and its options."""
UNCLIPPED = ("lomo", "adalomo")
"""They update inside backward, before a norm is known."""
OTHERWISE = {"loftq": {"quantization": "int4"}}
ENTRIES = {kind: [one.entry.name for one in manager.start().catalog.all(kind)] for kind in ("adapter", "optimizer")}


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    made = Zygote({})
    yield made
    made.close()


def test_none_is_left_out() -> None:
    assert {entry for entry, _ in ADAPTERS.values()} == set(ENTRIES["adapter"])


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter(recipe: Callable[..., Any], ft: Any, tmp_path: Path, zygote: Zygote, name: str) -> None:
    entry, options = ADAPTERS[name]
    walk(recipe(adapter={"name": entry, **options}, **OTHERWISE.get(name, {})), ft, tmp_path, zygote)


@pytest.mark.parametrize("name", ENTRIES["optimizer"])
def test_an_optimizer(recipe: Callable[..., Any], ft: Any, tmp_path: Path, zygote: Zygote, name: str) -> None:
    given = recipe(optimizer={"name": name, "learning_rate": 1e-3}, adapter="full")
    if name in UNCLIPPED:
        given["train"]["max_grad_norm"] = 0
    if name.endswith("_8bit") or name.startswith("paged_"):
        pytest.importorskip("bitsandbytes")
    if name.startswith("paged_"):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(given), encoding="utf-8")
        code, _, said = ft("run", tmp_path / "recipe.yaml")
        assert code == 2 and "runs on cuda" in said
        return
    walk(given, ft, tmp_path, zygote)


def walk(given: dict[str, Any], ft: Any, folder: Path, zygote: Zygote) -> None:
    """One case."""
    tasks = {"name": "tasks", "task": "family"}
    given["data"] = {
        "train": {**tasks, "count": 20, "seed": 5}, "eval": {**tasks, "split": "eval", "count": 4, "seed": 1},
        "renderer": "chatml",
    }  # fmt: skip
    given["train"] |= {"batch_size": 4, "max_steps": 5}
    given |= {"evaluate": {"evaluators": ["loss"], "every": 5}, "checkpoint": {"every": 1, "keep_last": 9}}
    for name in ("whole", "killed"):
        place = folder / name
        place.mkdir()
        (place / "recipe.yaml").write_text(yaml.safe_dump({**given, "output": str(place / "run")}), encoding="utf-8")
    whole, killed = (folder / name for name in ("whole", "killed"))
    assert zygote.run(whole, "run", str(whole / "recipe.yaml")) == 0, tail(whole)
    assert zygote.run(killed, "run", str(killed / "recipe.yaml"), kill_at="rename:3:after") == -9, tail(killed)
    assert list((killed / "run" / "checkpoints").glob("step-*")) and not (killed / "run" / "result.json").exists()
    assert zygote.run(killed, "resume", str(killed / "run")) == 0, tail(killed)
    assert differences(left(whole / "run"), left(killed / "run")) == []
    code, out, said = ft("export", killed / "run", "--to", "safetensors", "precision=fp32", "--output", folder / "out")
    assert code == 0, said
    scores = re.search(r"loss ([\d.]+) of the run, ([\d.]+) of the written model", out)
    assert scores is not None and float(scores[2]) == pytest.approx(float(scores[1]), abs=1e-3), out
    if find_spec("transformers") is not None:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder / "out")
        assert all(bool(one.isfinite().all()) for one in model.parameters())

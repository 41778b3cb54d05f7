"""What a refusal for memory suggests is accepted when it is followed, on machines that are made up (`machines.py`)."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from machines import GIB, Machine, as_torch_sees

MACHINES = {
    "sm_90": Machine("NVIDIA H100", (9, 0), 40, count=2),
    "sm_75": Machine("Tesla T4", (7, 5), 40, host=16),
    "gfx1100": Machine("AMD Radeon RX 7900 XTX", "gfx1100", 40, units=48),
    "gfx1010": Machine("AMD Radeon RX 5700 XT", "gfx1010", 40, units=20),
}
LONG = "Why is it so that " + "and ".join(f"the number {n} comes before the number {n + 1} " for n in range(40))
CHECKPOINTING = "train.gradient_checkpointing=true"
Suggestion = list[str]
"""Settings as on the command line, all of which are to be changed."""


@pytest.fixture
def check(ft: Callable[..., tuple[int, str, str]], tmp_path: Path) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """`ft check` on a machine."""

    def on(machine: Machine, recipe: dict[str, Any], *settings: str) -> tuple[int, str, str]:
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("finetooth_torch.planning.peak_flops.measured_peak", lambda *given: 1e13)
            patch.setattr("finetooth_torch.planning.memory.host_overhead", lambda: GIB)
            as_torch_sees(machine, patch)
            return ft("-p", "no:finetooth-bitsandbytes", "check", file, *settings)

    yield on


@pytest.fixture
def larger(tiny_llama: Path, tmp_path: Path) -> Path:
    """The config of a Llama whose layers take more than the framework; the weights, which nothing reads, are tiny."""
    shutil.copytree(tiny_llama, tmp_path / "larger")
    config = tmp_path / "larger/config.json"
    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
             "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 4096}  # fmt: skip
    config.write_text(json.dumps({**json.loads(config.read_text(encoding="utf-8")), **sizes}), encoding="utf-8")
    return tmp_path / "larger"


@pytest.fixture
def recipes(
    larger: Path, recipe: Callable[..., Any], online_recipe: Callable[..., Any], tmp_path: Path
) -> dict[str, Any]:
    """By method: rows of some hundred tokens of which all is kept."""
    (tmp_path / "pairs.jsonl").write_text(
        "".join(f'{{"prompt": "{LONG}", "chosen": "{n}, {LONG}", "rejected": "{n} {LONG}"}}\n' for n in range(16))
    )
    (tmp_path / "rows.jsonl").write_text(
        "".join(f'{{"prompt": "{n}: {LONG}", "completion": "{LONG}"}}\n' for n in range(16))
    )
    train = {"batch_size": 8, "max_length": 2048, "excess_length": "truncate"}
    data = {name: {"train": str(tmp_path / f"{name}.jsonl"), "renderer": "chatml"} for name in ("pairs", "rows")}
    answers = {"name": "grpo", "num_generations": 4, "max_completion_length": 1200}
    made = {
        "sft": recipe(data=data["rows"], train=train, adapter="full"),
        "dpo": recipe(data=data["pairs"], method="dpo", train=train),
        "grpo": online_recipe(answers, {"batch_size": 2, "max_steps": 4, "precision": "auto"})(),
    }
    return {method: {**of, "model": str(larger)} for method, of in made.items()}


def suggestions(said: str) -> list[Suggestion]:
    """What a refusal says would fit."""
    advice = said.partition("what would fit: ")[2].partition("; or run it all the same")[0]
    each = [re.sub(r" \([\d.]+ [GMK]B\)$", "", one) for one in advice.split("; ") if one]
    return [re.split(r" (?:with )?(?=[a-z_.]+=)", one) for one in each]


def test_what_a_refusal_says_is_read() -> None:
    said = "memory: x (what would fit: a.b=1 c=d (2.00 GB); e=f with g.h=i (300 MB); or run it all the same with x)"
    assert suggestions(said) == [["a.b=1", "c=d"], ["e=f", "g.h=i"]]
    assert suggestions("no installed plugin makes it fit (with a=b it would still take 3 GB)") == []


@pytest.mark.slow  # several plans each
@pytest.mark.parametrize("given", [(), ("train.micro_batch_tokens=4096", "train.gradient_checkpointing=false")])
@pytest.mark.parametrize("share", [0.6, 0.3])
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("method", ["sft", "dpo", "grpo"])
def test_every_suggestion_fits_when_it_is_followed(
    check: Callable[..., Any], recipes: dict[str, Any], method: str, machine: str, share: float, given: tuple[str, ...]
) -> None:
    """On devices that have room for a share of what the run takes beside the framework, at the least where the recipe
    leaves it open."""
    roomy, least = replace(MACHINES[machine], memory=64.0), ("train.micro_batch_tokens=1536", CHECKPOINTING)
    code, out, err = check(roomy, recipes[method], "--json", *(given or least))
    assert code == 0, err
    parts = json.loads(out)["memory"]["parts"]
    framework = parts["overhead"]
    tight = replace(roomy, memory=(framework + share * (sum(parts.values()) - framework)) / GIB)
    code, _, err = check(tight, recipes[method], *given)
    assert code == 2 and err.count("\n") == 1 and " at the peak (" in err, err
    named = suggestions(err)
    assert ("no installed plugin makes it fit" in err) is not bool(named), err
    for settings in named:
        assert method != "grpo" or not any(one.startswith("train.max_length=") for one in settings), err
        code, _, again = check(tight, recipes[method], *given, *settings)
        assert code == 0, (settings, err, again)
    print(method, machine, share, given, named or err)

"""An option that no entry has is refused when the run is planned, wherever a recipe or an option picks an entry."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import finetooth
import pytest
from finetooth_core.plugins.builders import options_model
from finetooth_core.plugins.manager import start
from finetooth_core.settings.recipe import Recipe
from finetooth_hooks import RecipeError

WRONG = {"wrong_option": 1}
ENTRIES: dict[str, dict[str, Any]] = {
    "adapter": {"name": "lora"}, "backend": {"name": "torch"}, "evaluator": {"name": "exact_match"},
    "exporter": {"name": "safetensors"}, "family": {"name": "llama"}, "format": {"name": "task"},
    "gate": {"name": "finite"}, "hardware": {"name": "cpu"}, "kernel": {"name": "torch"}, "launcher": {"name": "local"},
    "loader": {"name": "transformers"}, "method": {"name": "sft"}, "optimizer": {"name": "adamw"},
    "processor": {"name": "transformers"}, "quantizer": {"name": "int4"}, "renderer": {"name": "chatml"},
    "schedule": {"name": "constant"}, "source": {"name": "tasks", "task": "family"}, "store": {"name": "disk"},
    "strategy": {"name": "ddp"}, "tracker": {"name": "jsonl"},
}  # fmt: skip
"""One of each kind that settings pick."""
PICKS: dict[str, dict[str, Any]] = {
    "attention": {"name": "sdpa"}, "environment": {"name": "single_turn"}, "format": {"name": "int4"},
    "loss": {"name": "sigmoid"}, "losses": {"name": "sigmoid"}, "quantization": {"name": "int4"},
    "reward": {"name": "number_match"}, "rewards": {"name": "number_match"}, "sampler": {"name": "engine"},
}  # fmt: skip
"""One for each option that picks an entry, by its name."""
OPTIONS = (
    "method.best_of_n.rewards", "method.best_of_n.environment", "method.best_of_n.sampler", "method.dpo.loss",
    "method.dpo.losses", "method.ebft_strided.sampler", "method.gkd.sampler", "method.pretrain.loss", "method.prm.loss",
    "method.rm.loss", "method.self_rewarding.sampler", "method.self_rewarding.loss", "method.self_rewarding.rewards",
    "method.sft.loss", "method.trl.rewards", "reward.model.quantization", "sampler.python_function.sampler",
    "adapter.qat.format", "backend.torch.attention", "evaluator.exact_match.reward",
)  # fmt: skip
"""Options that pick an entry: one entry of those that share a model of options."""
ELSEWHERE = {"strategy.diloco.within", "source.remote.source"}
"""Built for several processes, or for an address."""
PICKING = (
    "method", "reward", "sampler", "environment", "adapter", "quantizer", "backend", "strategy", "launcher",
    "evaluator", "source", "store", "tracker",
)  # fmt: skip
"""Kinds whose options are looked through."""
NEEDED = {
    "method.gkd": {"teacher": "smollm2-135m"}, "method.trl": {"trainer": "grpo"},
    "reward.model": {"path": "smollm2-135m"}, "sampler.python_function": {"module": "json", "function": "loads"},
}  # fmt: skip


def settings() -> Iterator[Any]:
    """Every pick of a recipe, by the marks in its schema."""

    def marks(node: Any, path: tuple[str, ...], wrap: Callable[[Any], Any]) -> Iterator[Any]:
        if isinstance(node, list):
            for item in node:
                yield from marks(item, path, wrap)
        elif isinstance(node, dict) and isinstance(node.get("pick"), str):
            yield pytest.param(path, node["pick"], wrap, id=".".join((*path, str(wrap("")))))
        elif isinstance(node, dict):
            for key, child in node.items():
                inner = {"items": lambda pick: [pick], "additionalProperties": lambda pick: {"rms_norm": pick}}
                more = () if key in (*inner, "anyOf", "properties", "$defs") else (key.removesuffix("Section").lower(),)
                yield from marks(child, (*path, *more), inner.get(key, wrap))

    yield from marks(Recipe.model_json_schema(), (), lambda pick: pick)


@pytest.mark.parametrize(("path", "kind", "wrap"), list(settings()))
def test_of_a_setting(recipe: Callable[..., Any], path: tuple[str, ...], kind: str, wrap: Callable[[Any], Any]) -> None:
    made = recipe()
    made["model"] = {"name": made["model"]}
    section = made.setdefault(path[0], {}) if len(path) > 1 else made
    section[path[-1]] = wrap({**ENTRIES[kind], **WRONG})
    refused(made, f"{'.'.join(path)}.")


@pytest.mark.parametrize("option", OPTIONS)
def test_of_an_option(recipe: Callable[..., Any], option: str) -> None:
    kind, name, option = option.split(".")
    if name == "trl":
        pytest.importorskip("finetooth_trl", reason="an optional plugin")
    wrong = {**PICKS[option], **WRONG}
    pick = {
        "name": name,
        **NEEDED.get(f"{kind}.{name}", {}),
        option: [wrong] if option in ("rewards", "losses") else wrong,
    }
    if kind == "evaluator":
        refused(recipe(evaluate={"evaluators": [pick]}), "evaluate.evaluators.")
    elif kind in ("reward", "sampler"):
        rollouts = {"name": "grpo", **({"rewards": [pick]} if kind == "reward" else {"sampler": pick})}
        refused(recipe(method=rollouts, data={"train": ENTRIES["source"], "format": "task"}))
    else:
        refused(recipe(**{kind: pick}), f"{kind}.")


def test_no_option_that_picks_is_left_out() -> None:
    found: dict[tuple[type, str], str] = {}
    catalog = start().catalog
    for kind in PICKING:
        for registered in catalog.all(kind):
            model = options_model(registered.entry, registered.distribution)
            for name, field in model.model_fields.items():
                declares = next(of for of in reversed(model.__mro__) if name in getattr(of, "model_fields", {}))
                if re.search(r"str \| .*(Mapping|dict)\[str, typing.Any\]", str(field.annotation)):
                    found.setdefault((declares, name), f"{kind}.{registered.entry.name}.{name}")
    assert not set(found.values()) - {*OPTIONS, *ELSEWHERE}


def refused(recipe: Any, setting: str = "") -> None:
    """Planning says that there is no such option, and under which setting."""
    with pytest.raises(RecipeError, match=rf"^{re.escape(setting)}.*wrong_option: unknown option of ") as caught:
        finetooth.session(recipe).decide()
    assert caught.value.exit_code == 2

"""Sums of adapters by a model's name, asked by OpenAI's own client and held against weights that were summed in
float64."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
from finetooth_core.cli.start_options import StartOptions
from finetooth_core.cli.state import State
from finetooth_hooks import Datum, Sampling, UserError
from finetooth_hooks.faces import StackPart
from finetooth_server.batches.stacks import MARK
from finetooth_server.keeping.served_adapters import served_adapters
from finetooth_server.settings import Limits, ServedAdapter
from safetensors.numpy import load_file, save_file

openai = pytest.importorskip("openai")

ASK: dict[str, Any] = {"prompt": "It was", "temperature": 0, "max_tokens": 10, "logprobs": 0}
WEIGHTS = {"red": 1.0, "blue": -0.5}
TARGETS = {"red": ("q_proj", "down_proj"), "blue": ("q_proj", "v_proj", "up_proj")}
RANK = {"red": 3, "blue": 5}


def write_adapter(folder: Path, base: Path, name: str, *, made_for: str = "") -> dict[str, np.ndarray]:
    """A LoRA in peft's layout with numbers of its own; returns what it adds to each weight, in float64."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn, tensors, added = np.random.default_rng(len(name)), {}, {}
    for key, weight in load_file(base / "model.safetensors").items():
        module = key.removesuffix(".weight")
        if module.rpartition(".")[2] not in TARGETS[name]:
            continue
        a = drawn.normal(0, 0.2, (RANK[name], weight.shape[1])).astype(np.float32)
        b = drawn.normal(0, 0.2, (weight.shape[0], RANK[name])).astype(np.float32)
        tensors |= {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}
        added[key] = 2.0 * b.astype(np.float64) @ a.astype(np.float64)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "base_model_name_or_path": made_for or str(base), "r": RANK[name],
        "lora_alpha": 2 * RANK[name], "target_modules": list(TARGETS[name]), "bias": "none", "task_type": "CAUSAL_LM",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return added


@pytest.fixture(scope="module")
def added(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, np.ndarray]]]:
    folder = tmp_path_factory.mktemp("adapters")
    return {name: (folder / name, write_adapter(folder / name, tiny_llama, name)) for name in WEIGHTS}


@pytest.fixture(scope="module")
def adapters(added: Any, served_recipe: dict[str, Any], tiny_llama: Path) -> dict[str, ServedAdapter]:
    found = served_adapters(
        State(StartOptions()), [str(folder) for folder, _ in added.values()], {"tiny": served_recipe}
    )
    return {Path(name).name: one for name, one in found.items()}


@pytest.fixture(scope="module")
def client(serve: Callable[..., Any], adapters: dict[str, ServedAdapter]) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{serve('openai', adapters=adapters).url}/v1", api_key="none", max_retries=0) as made:
        yield made


def summed(added: Any, base: Path, folder: Path, recipe: dict[str, Any], weights: dict[str, float]) -> Any:
    """What a whole model says whose weights are the base and the sum."""
    shutil.copytree(base, folder)
    whole = {name: x.astype(np.float64) for name, x in load_file(base / "model.safetensors").items()}
    for name, weight in weights.items():
        for key, delta in added[name][1].items():
            whole[key] += weight * delta
    save_file({n: x.astype(np.float32) for n, x in whole.items()}, folder / "model.safetensors", {"format": "pt"})
    state, own = State(StartOptions()), {**recipe, "model": str(folder)}
    (prompt,) = [state.context(own).tokenizer.encode(ASK["prompt"])]
    return state.engine(own).generate([prompt], Sampling(max_tokens=10, temperature=0.0))[0][0]


@pytest.mark.parametrize(
    ("model", "weights"),
    [("red", {"red": 1.0}), ("red+blue*-0.5", WEIGHTS), ("blue*-0.5+red", WEIGHTS), ("red*0.25", {"red": 0.25})],
)
def test_a_name_says_the_sum(
    client: Any, added: Any, tiny_llama: Path, served_recipe: dict[str, Any], tmp_path: Path, model: str,
    weights: dict[str, float],
) -> None:  # fmt: skip
    wanted = summed(added, tiny_llama, tmp_path / "whole", served_recipe, weights)
    said = client.completions.create(model=model, **ASK)
    assert said.choices[0].text == wanted.text and said.model == model
    np.testing.assert_allclose(said.choices[0].logprobs.token_logprobs, wanted.logprobs, atol=1e-4)
    bare = client.completions.create(model="tiny", **ASK).choices[0].logprobs.token_logprobs
    assert not np.allclose(bare, wanted.logprobs, atol=1e-3)


def test_adapters_are_listed_and_what_cannot_be_is_refused_by_name(client: Any) -> None:
    assert [(one.id, one.root) for one in client.models.list()] == [("tiny", "tiny"), ("red", "tiny"), ("blue", "tiny")]
    for name, said in (
        ("red+green", "no adapter has the name 'green'"),
        ("red+red", "it names red twice"),
        ("red*much", "the weight 'much' of red must be a number other than 0"),
        ("red+tiny", "model red+tiny: tiny is not an adapter"),
    ):
        with pytest.raises(openai.BadRequestError, match="model") as refused:
            client.completions.create(model=name, **ASK)
        assert said in str(refused.value) and "\n" not in refused.value.body["message"]


def test_likeliest_tokens_of_a_folder_by_itself(
    client: Any, added: Any, tiny_llama: Path, served_recipe: dict[str, Any], tmp_path: Path
) -> None:
    """Its rank is not that of the served recipe, and its config is older than rsLoRA and DoRA."""
    wanted = summed(added, tiny_llama, tmp_path / "whole", served_recipe, {"red": 1.0})
    said = client.completions.create(model="red", **{**ASK, "logprobs": 2}).choices[0].logprobs
    np.testing.assert_allclose(said.token_logprobs, wanted.logprobs, atol=1e-4)
    assert all(len(top) == 2 for top in said.top_logprobs)
    np.testing.assert_allclose([max(top.values()) for top in said.top_logprobs], wanted.logprobs, atol=1e-4)


@pytest.mark.parametrize("model", ["red+blue*-0.5", "red*0.25"])
def test_likeliest_tokens_of_a_sum_are_refused_by_the_field_that_asks(client: Any, model: str) -> None:
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "logprobs": True}
    for field, create, given in (
        ("logprobs", client.completions.create, {**ASK, "logprobs": 2}),
        ("top_logprobs", client.chat.completions.create, {**chat, "top_logprobs": 2}),
    ):
        assert create(model=model, **{**given, field: 0}).choices[0].logprobs, "what is drawn is known of a sum"
        with pytest.raises(openai.BadRequestError, match="sum of adapters") as refused:
            create(model=model, **given)
        assert refused.value.body["param"] == field and "ask one adapter by itself" in refused.value.body["message"]


def test_a_stack_of_two_bases_is_refused(
    serve: Callable[..., Any], adapters: dict[str, ServedAdapter], served_recipe: dict[str, Any]
) -> None:
    other = ServedAdapter("other", served_recipe, adapters["blue"].folder)
    served = serve("openai", adapters={"red": adapters["red"], "blue": other})
    served.service.settings.models["other"] = served_recipe
    with (
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.BadRequestError, match="red adds to tiny, and blue to other"),
    ):
        client.completions.create(model="red+blue", **ASK)


def test_what_no_batch_can_hold_is_refused_and_others_answer(
    serve: Callable[..., Any], adapters: dict[str, ServedAdapter]
) -> None:
    served = serve("openai", adapters=adapters, limits=Limits(held=0))
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        assert client.completions.create(model="tiny", **ASK).choices[0].text
        with pytest.raises(openai.BadRequestError, match="ask each adapter by itself"):
            client.completions.create(model="red+blue", **ASK)


def test_a_stack_that_no_sampler_names_is_swept(serve: Callable[..., Any], adapters: dict[str, ServedAdapter]) -> None:
    served = serve("openai", adapters=adapters)
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        client.completions.create(model="red+blue", **ASK)
    folder = served.service.settings.folder / "stacks"
    (sampled,) = folder.glob("*.json")
    parts = [StackPart(adapter="red"), StackPart(adapter="blue", weight=2.0)]
    left, fresh = (served.service.stacks.write("local", parts[:count]) for count in (1, 2))
    for path in folder.glob("*.json"):
        if path.stem not in fresh:
            os.utime(path, (1, 1))
    served.service._tidy()
    assert {path.stem for path in folder.glob("*.json")} == {sampled.stem, fresh.removeprefix(MARK)}
    assert left.removeprefix(MARK) not in {sampled.stem, fresh.removeprefix(MARK)}


@pytest.mark.slow
def test_checkpoints_of_clients_are_stacked_too(serve: Callable[..., Any], adapters: dict[str, ServedAdapter]) -> None:
    """A checkpoint and its opposite add nothing; with an adapter of the command line it adds to it."""
    served = serve("api", "openai", adapters=adapters)
    with finetooth.Client(served.url, patience=10) as owner:
        session = owner.session("tiny", adapter={"name": "lora", "rank": 4})
        for _ in range(4):
            session.forward_backward([Datum.from_tokens([5, 6, 7, 8, 9])])
            session.step()
        session.save("first")
    with openai.OpenAI(base_url=f"{served.url}/openai/v1", api_key="none", max_retries=0) as client:
        said = {
            name: client.completions.create(model=name, **ASK).choices[0].logprobs.token_logprobs
            for name in ("first", "red", "first+red", "red+first", "red+first*0.000001")
        }
    np.testing.assert_allclose(said["first+red"], said["red+first"], atol=1e-4)
    np.testing.assert_allclose(said["red+first*0.000001"], said["red"], atol=1e-3)
    assert not np.allclose(said["first+red"], said["red"], atol=1e-2)


def test_adapters_of_the_command_line_are_checked(
    tiny_llama: Path, served_recipe: dict[str, Any], added: Any, tmp_path: Path
) -> None:
    state, red = State(StartOptions()), str(added["red"][0])
    write_adapter(tmp_path / "strange", tiny_llama, "red", made_for="acme/strange")
    for given, said in (
        ([str(tmp_path / "none")], "it holds no adapter"),
        ([str(tiny_llama)], "it holds whole weights"),
        ([red, red], "it is served under this name already"),
        ([str(tmp_path / "strange")], f"was trained over acme/strange, but the base given here is {tiny_llama}"),
    ):
        with pytest.raises(UserError, match="--adapter") as refused:
            served_adapters(state, given, {"tiny": served_recipe})
        assert said in str(refused.value)

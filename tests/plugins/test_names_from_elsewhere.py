"""What other tools call things: everything that is suggested in its place is there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetooth_core.plugins import manager
from finetooth_core.plugins.catalog import Catalog, Registered
from finetooth_core.settings.recipe import Recipe, load, validate_options
from finetooth_core.settings.schema import field_in, recipe_schema
from finetooth_hooks import FinetoothError, PluginError, RecipeError
from finetooth_importer.their_names import ABSENT, SETTINGS
from finetooth_recipes.aliases import ALIASES


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return manager.start().catalog


def test_every_setting_that_is_meant_is_in_the_schema(catalog: Catalog) -> None:
    assert len(SETTINGS) > 200
    schema = recipe_schema(catalog)  # once, as `field_schema` builds the part of it that a setting needs each time
    for setting in sorted({meant.setting for meant in SETTINGS.values()} - {""}):
        assert field_in(schema, setting), setting


def test_no_name_of_theirs_is_one_of_ours() -> None:
    assert not set(SETTINGS) & set(Recipe.model_fields)
    assert not set(SETTINGS) & set(ALIASES)


def test_what_has_no_setting_says_what_to_do() -> None:
    assert all(meant.setting or meant.advice for meant in SETTINGS.values())


def test_entries_with_other_names_take_the_options_that_these_imply(catalog: Catalog) -> None:
    known = [(kind, one, name) for kind in catalog.kinds for one in catalog.all(kind) for name in one.entry.elsewhere]
    assert len(known) > 30
    for kind, one, name in known:
        entry = one.entry
        assert not any(other.entry.name == name for other in catalog.all(kind)), name
        if entry.elsewhere[name]:
            try:
                validate_options(catalog, kind, {"name": one.full_name, **entry.elsewhere[name]})
            except RecipeError as error:  # what only the user can say, such as a teacher
                assert "is required and missing" in str(error)
    several = {name for kind, _, name in known if sum((kind, name) == (k, n) for k, _, n in known) > 1}
    assert several == {"gpu"}  # which of them is meant, the machine says


def test_what_is_absent_is_absent(catalog: Catalog) -> None:
    for kind, names in ABSENT.items():
        assert not set(names) & {one.entry.name for one in catalog.all(kind)}
        assert not set(names) & set(catalog.index.get(kind, {}))


MEANT = [
    ("train.warmup_steps", "schedule.warmup_steps"),
    ("train.learning_rate", "optimizer.learning_rate"),
    ("optimizer.lr", "optimizer.learning_rate"),
    ("template", "data.renderer"),
    ("lora_r", "adapter.rank"),
    ("adapter.r", "adapter.rank"),
    ("adapter.lora_alpha", "adapter.alpha"),
    ("cutoff_len", "train.max_length"),
    ("max_seq_length", "train.max_length"),
    ("save_total_limit", "checkpoint.keep_last"),
    ("base", "model"),
    ("gpu", "hardware"),
    ("lerning_rate", "optimizer.learning_rate"),
    ("train.learningrat", "optimizer.learning_rate"),
    ("cutof_len", "train.max_length"),
]


@pytest.mark.parametrize("framework", ["torch", "mlx"])
@pytest.mark.parametrize(("written", "setting"), MEANT)
def test_a_setting_of_theirs_names_ours(catalog: Catalog, written: str, setting: str, framework: str) -> None:
    with pytest.raises(FinetoothError, match=rf"did you mean {setting}\?"):
        recipe = load({"model": "m"}, [f"{written}=1"])
        for kind in ("adapter", "optimizer"):
            pick: Any = getattr(recipe, kind)
            if isinstance(pick, dict):
                validate_options(
                    catalog, kind, {**pick, "name": catalog.default(kind, framework=framework).full_name}, kind
                )


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("base", "did you mean model?"),
        ("lora.rank", "set adapter: {name: lora, rank: 16, alpha: 32, dropout: 0.05, targets: [q_proj, v_proj]}"),
        ("data.corpus", "did you mean data.train?"),
        ("examples", "did you mean data.examples?"),
        ("data.validation", "did you mean data.eval?"),
        ("data.customer_data", "did you mean data.classification.customer_data?"),
        ("customer_data", "did you mean data.classification.customer_data?"),
        ("data.licence", "did you mean data.classification.licence?"),
        ("data.pii", "did you mean data.classification.pii?"),
        ("egress", "did you mean data.classification.egress?"),
        ("data.egress", "did you mean data.classification.egress?"),
        ("train.egress", "did you mean data.classification.egress?"),
        ("train.batch", "did you mean train.batch_size?"),
        ("train.iterations", "did you mean train.max_steps?"),
        (
            "train.select_on",
            "set checkpoint.select_on: eval/loss, which keeps the step with the lowest",
        ),
        ("register.sign", "export: [{name: registry, model: ..., channel: candidate}]"),
    ],
)
def test_words_of_a_recipe_with_a_corpus_name_ours(written: str, said: str) -> None:
    """What `ft import` reads as corpus-recipe, where somebody types it."""
    with pytest.raises(RecipeError) as told:
        load({"model": "m"}, [f"{written}=1"])
    assert "unknown setting" in str(told.value) and said in str(told.value)


def test_an_option_of_another_entry_is_not_named_as_what_is_meant(catalog: Catalog) -> None:
    with pytest.raises(RecipeError, match=r"adapter\.unfrozen_parameters: .*\(it is an option of another adapter"):
        validate_options(catalog, "adapter", {"name": "finetooth-lora:lora", "unfrozen_parameters": ["x"]}, "adapter")
    for written, meant, name in (("max_tokens", "max_completion_length", "grpo"), ("dpo_beta", "beta", "dpo")):
        with pytest.raises(RecipeError, match=rf"\(method\.{meant} is an option of another method"):
            validate_options(catalog, "method", {"name": "sft", written: 5}, "method")
        with pytest.raises(RecipeError, match=rf"\(did you mean method\.{meant}\?"):
            validate_options(catalog, "method", {"name": name, written: 5}, "method")


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("adapter", "qlora", "did you mean 'lora' and the quantizer 'nf4'?"),
        ("quantizer", "bnb_4bit", "did you mean 'nf4'?"),
        ("quantizer", "q4", "did you mean 'nf4'?"),
        ("adapter", "dora", "did you mean {name: lora, dora: true}?"),
        ("format", "sharegpt", "did you mean 'chat'?"),
        ("hardware", "nvidia", "did you mean 'cuda'?"),
        ("hardware", "AMD", "did you mean 'rocm'?"),
        ("optimizer", "AdamW_torch", "did you mean 'adamw'?"),
        ("method", "ipo", "did you mean {name: dpo, loss: ipo}?"),
        ("method", "xpo", "no package of finetooth brings xpo: it compares answers that it samples two by two"),
        ("method", "gspo", "did you mean {name: grpo, importance_sampling_level: sequence}?"),
        ("method", "dpoo", "did you mean 'dpo'?"),
        ("backend", "gpu", "'gpu' is a hardware, not a backend"),
        ("optimizer", "cosine", "'cosine' is a schedule, not an optimizer"),
    ],
)
def test_an_entry_of_theirs_names_ours_or_that_there_is_none(catalog: Catalog, kind: str, name: str, said: str) -> None:
    with pytest.raises(PluginError) as told:
        catalog.get(kind, name)
    assert f"no {kind} {name!r}; installed: " in str(told.value)
    assert f"({said}" in str(told.value)


@pytest.mark.parametrize(
    ("here", "build", "said"),
    [
        ("rocm", "rocm", "'rocm'"),
        ("rocm", "cuda", "'rocm'"),  # whose own message then says that this torch is not for it
        ("cuda", "cuda", "'cuda'"),
        ("", "rocm", "'rocm'"),
        ("", "", "'cuda' (an NVIDIA GPU) or 'rocm' (an AMD GPU)"),
        ("both", "rocm", "'rocm'"),
    ],
)
def test_a_gpu_is_the_one_that_is_here(here: str, build: str, said: str) -> None:
    """Not always NVIDIA's: on an AMD machine that would only say that this build of torch is for another one."""
    registered = manager.start().catalog.all("hardware")
    made = [
        Registered(
            replace(
                one.entry,
                in_machine=lambda name=one.entry.name: "a GPU" if here in (name, "both") else "",
                built_for=lambda name=one.entry.name: build == name,
            ),
            one.distribution,
            one.version,
        )
        for one in registered
        if one.entry.name in ("cuda", "rocm")
    ]
    with pytest.raises(PluginError) as told:
        Catalog(made).get("hardware", "gpu")
    assert f"(did you mean {said}?)" in str(told.value)


@pytest.mark.parametrize("word", ["trust_remote_code", "revision"])
def test_an_option_of_a_loader_names_the_loader(word: str) -> None:
    from finetooth_core.plugins.option_hints import with_option_hints

    recipe = {"model": "m", word: True, "template": "x"}  # which is known to mean something else
    with pytest.raises(RecipeError) as told:
        load(recipe)
    hinted = with_option_hints(told.value, recipe, ())
    assert f"loader: {{name: transformers, {word}: ...}}" in str(hinted)

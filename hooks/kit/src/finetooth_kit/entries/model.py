"""Checks of loaders, families, hardware and backends."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from finetooth_hooks.capabilities import ENGINE
from finetooth_hooks.entries import Backend, Family, Loader
from finetooth_hooks.errors import UserError
from finetooth_hooks.protocols import HardwareFacts, ModelFacts

from finetooth_kit.checks import CheckSkipped, EntryCase, check_for, expect, expect_instance, fail

_FRAMEWORKS = {"torch", "mlx", "numpy"}
_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 4,  # every fourth layer of some hybrids has attention
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 97,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}


@check_for("loader")
def missing_model_is_refused(case: EntryCase) -> None:
    """A reference to nothing is a UserError that names it."""
    assert isinstance(case.entry, Loader)
    unknown = sorted(set(case.entry.frameworks) - _FRAMEWORKS)
    expect(not unknown, "entry.frameworks", unknown, f"of {sorted(_FRAMEWORKS)}")
    paths = [str(case.folder / f"no-such-model{suffix}") for suffix in ("", ".gguf", ".safetensors")]
    reference = next((path for path in paths if case.entry.claims(path) is not None), None)
    if reference is None:
        raise CheckSkipped("it claims no path")
    loader = case.build()
    try:
        loader.describe(reference)
    except UserError as error:
        expect("no-such-model" in str(error), f"describe({reference!r})", error, "a message that names it")
    else:
        fail(f"describe({reference!r})", "a description", "a UserError that names it")


def _tiny_model(model_type: str) -> tuple[Any, dict[str, Any]]:
    try:
        torch, transformers = import_module("torch"), import_module("transformers")
        config = _tiny_config(transformers, model_type)
        if config.get_text_config() is not config:  # of a model that also sees or hears
            config = transformers.AutoConfig.for_model(model_type, text_config=_SIZES)
        if config.to_dict().get("head_dim", 8) is None:  # some models cannot do without
            config.head_dim = 8
        if config.to_dict().get("layer_types", ()) is None:
            config.layer_types = ["full_attention"] * _SIZES["num_hidden_layers"]
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
    except ImportError as error:
        raise CheckSkipped(f"{error.name} is not installed") from error
    except ValueError as error:
        raise CheckSkipped(f"transformers knows no causal model {model_type!r}") from error
    return model, config.to_dict()


def _tiny_config(transformers: Any, model_type: str) -> Any:
    """
    Raises:
        CheckSkipped: a model of this type cannot have these sizes.
        ValueError: transformers does not know the type.
    """
    invalid = import_module("huggingface_hub.errors").StrictDataclassError
    try:
        return transformers.AutoConfig.for_model(model_type, **_SIZES)
    except invalid as error:
        raise CheckSkipped(f"transformers takes no {model_type!r} of the kit's sizes: {error}") from error


@check_for("family")
def facts_match_the_model(case: EntryCase) -> None:
    """For each model type that transformers knows: module paths exist in a tiny model, and sizes are its own."""
    assert isinstance(case.entry, Family)
    if not case.entry.model_types:
        raise CheckSkipped("the entry names no model_types")
    family = case.build()
    if case.entry.registers:
        module, _, function = case.entry.registers.partition(":")
        register = getattr(import_module(module), function, None)
        expect(callable(register), "entry.registers", case.entry.registers, "package.module:function of a function")
        assert register is not None
        register()
    for model_type in sorted(case.entry.model_types):
        model, config = _tiny_model(model_type)
        facts = family.facts(config)
        expect_instance(facts, ModelFacts, f"facts(config of {model_type})")
        got = (facts.hidden_size, facts.layers, facts.heads, facts.kv_heads, facts.vocab_size, facts.max_positions)
        expect(got == (32, 4, 4, 2, 97, 128), f"sizes of {model_type}", got, "(32, 4, 4, 2, 97, 128), its config's")
        layers = _submodule(model, facts.layer_path, "layer_path")
        expect(len(layers) == 4, f"len({facts.layer_path})", len(layers), "4")
        _submodule(model, facts.body, "body")
        head = _submodule(model, facts.head.module, "head.module")
        expect(tuple(head.weight.shape) == (97, 32), facts.head.module, tuple(head.weight.shape), "(97, 32)")
        linear = {name.rpartition(".")[2] for name, module in layers.named_modules() if _is_linear(module)}
        expect(
            {*facts.linear_targets, *facts.untargeted} == linear and not {*facts.linear_targets} & {*facts.untargeted},
            f"linear_targets of {model_type}",
            f"{facts.linear_targets}, untargeted {facts.untargeted}",
            f"{sorted(linear)}",
        )
        inside = set(facts.attention_targets) <= linear and facts.attention_targets
        expect(inside, f"attention_targets of {model_type}", facts.attention_targets, f"some of {sorted(linear)}")
        expect(0 <= facts.first_loss[0] < facts.first_loss[1], "first_loss", facts.first_loss, "(low, high)")


def _submodule(model: Any, path: str, name: str) -> Any:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        fail(f"facts.{name} = {path!r}", error, "the path of a module of the model")


def _is_linear(module: Any) -> bool:
    return type(module).__name__ == "Linear"


@check_for("hardware")
def facts_or_a_reason(case: EntryCase) -> None:
    """`missing` says why it cannot be used, in words; if it can, its facts are consistent."""
    hardware = case.build()
    missing = hardware.missing()
    expect_instance(missing, str, "missing()")
    if missing:
        expect("\n" not in missing, "missing()", repr(missing), "one line")
        return
    facts = hardware.facts()
    expect_instance(facts, HardwareFacts, "facts()")
    expect(facts.memory > 2**20, "facts().memory", facts.memory, "bytes of the whole device")
    expect(facts.device and facts.label, "facts()", facts, "a device and a label")
    known = {"fp64", "fp32", "bf16", "fp16", "fp8"}
    expect(facts.precisions and set(facts.precisions) <= known, "facts().precisions", facts.precisions, f"of {known}")
    both = set(facts.precisions) & set(facts.slow_precisions)
    expect(not both, "facts()", f"{sorted(both)} both native and slow", "one or the other")
    again = hardware.facts()
    expect(again.lasting == facts.lasting, "facts(), a second time", again, f"{facts}, but for what is free")


@check_for("backend")
def capabilities_are_known(case: EntryCase) -> None:
    """Framework and capabilities are words of the contract, and what is built has `plan` and `engine`.

    The engine has checks of its own (`backend_checks`); one with other parts than the kit's is tried with
    `finetooth_kit.parametrize_engine`.
    """
    assert isinstance(case.entry, Backend)
    unknown = sorted(set(case.entry.capabilities) - set(ENGINE))
    expect(not unknown, "entry.capabilities", unknown, f"of {sorted(ENGINE)}")
    expect(case.entry.framework in _FRAMEWORKS, "entry.framework", case.entry.framework, f"of {sorted(_FRAMEWORKS)}")
    backend = case.build()
    for name in ("plan", "engine"):
        expect(name in dir(backend), f"built.{name}", "missing", "a method")

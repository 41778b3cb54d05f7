"""A decoder whose layers several ranks have, computed rank by rank in one process."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finetooth_hooks import PlanError
from finetooth_hooks.protocols import ModelTensors
from finetooth_torch.offload.mapped_memory import MAPS, is_clean, mappings
from finetooth_torch.precision import DTYPES
from finetooth_torch.staged.body import StagedLayers, numbers_of
from finetooth_torch.staged.reading import read_into_files, read_own_layers, standing_in
from finetooth_transformers.assembling import by_tensor
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen3Config,
)

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4,
}  # fmt: skip


def model_of(config: PretrainedConfig) -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = AutoModel.from_config(config)
    return made.eval()


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("config", [LlamaConfig(**SMALL), Gemma2Config(**SMALL), Qwen3Config(**SMALL)])
def test_ranks_compute_what_one_process_does(config: PretrainedConfig, ranks: int) -> None:
    """Of families that scale embeddings and mix kinds of layers too; the model is as before afterwards."""
    body = model_of(config)
    tokens = torch.arange(9)[None] + 3
    with torch.no_grad():
        whole = body(input_ids=tokens).last_hidden_state
        layers = StagedLayers(list(body.layers), ranks)  # type: ignore[arg-type]
        assert [number for rank in range(ranks) for number in layers.of(rank)] == list(range(5))
        layers.check(body)
        assert torch.equal(body(input_ids=tokens).last_hidden_state, whole)


def test_layers_that_share_more_than_states_are_refused() -> None:
    """A layer that reads what an earlier one kept."""
    body = model_of(LlamaConfig(**SMALL))
    kept: list[torch.Tensor] = []
    layers = list(body.layers)  # type: ignore[arg-type]
    layers[0].register_forward_hook(lambda _, __, output: kept.append(output * 0.5))
    layers[4].register_forward_hook(lambda _, __, output: output + kept[-1])
    with pytest.raises(PlanError, match="layers of this model cannot be divided among ranks: its ranks compute other"):
        StagedLayers(layers, 2).check(body)


class Recorded:
    """A loader whose tensors are remembered as they are read."""

    capabilities = frozenset({"tensors"})

    def __init__(self, folder: Path) -> None:
        self.read: list[str] = []
        self._folder = folder

    def tensors(self, reference: str, *, framework: str, precision: str) -> ModelTensors:
        config, dtype = AutoConfig.from_pretrained(self._folder), DTYPES[precision]
        tensors = by_tensor(
            self._folder, config, AutoModelForCausalLM, dtype=dtype, packing=None, trust_remote_code=False
        )
        assert tensors is not None

        def read(name: str) -> torch.Tensor:
            self.read.append(name)
            number: torch.Tensor = tensors.read(name)
            return number

        return replace(tensors, read=read)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_reads_its_own_layers_and_what_lies_in_none(tmp_path: Path, rank: int, tied: bool) -> None:
    """In bf16, with numbers as transformers loads them; a whole pass goes through made-up ones, and leaves nothing."""
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(LlamaConfig(**SMALL, tie_word_embeddings=tied)).save_pretrained(tmp_path)
    loader, numbered = Recorded(tmp_path), [number in numbers_of(rank, 2, 5) for number in range(5)]
    facts, stages = SimpleNamespace(layer_path="model.layers"), SimpleNamespace(rank=rank, world=2)
    base: Any = SimpleNamespace(loader=loader, model=SimpleNamespace(reference="m"), facts=facts)
    model: Any = read_own_layers(base, "bf16", "cpu", stages)  # type: ignore[arg-type]
    whole = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)

    def own(name: str) -> bool:
        return not name.startswith("model.layers.") or numbered[int(name.split(".")[2])]

    wanted = dict(whole.named_parameters())
    assert sorted(loader.read) == sorted(filter(own, wanted))
    assert {name for name, of in model.named_parameters() if not of.is_meta} == set(filter(own, wanted))
    assert all(torch.equal(of, wanted[name]) for name, of in model.named_parameters() if own(name))
    before = {name: id(of) for name, of in model.named_parameters()}
    state = torch.get_rng_state()
    with standing_in(model, list(model.model.layers)), torch.no_grad():
        assert model(input_ids=torch.arange(9)[None] + 3).logits.isfinite().all()
        model.model.layers[0 if rank else 4].mlp.up_proj.weight.requires_grad_(False)
        alike = [layer.mlp.up_proj.weight.data_ptr() for layer in model.model.layers]
        assert len(set(alike)) == sum(numbered) + 1  # of one layer that stands for all others
    assert {name: id(of) for name, of in model.named_parameters()} == before
    assert [of.requires_grad for of in model.parameters()].count(False) == 1
    assert torch.equal(torch.get_rng_state(), state)


def no_room(**_: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("written", "precision"), [("float32", "bf16"), ("bfloat16", "fp32")])
@pytest.mark.parametrize("config", [LlamaConfig(**SMALL, tie_word_embeddings=True), Gemma3TextConfig(**SMALL)])
def test_another_precision_than_that_of_the_files_lies_in_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: PretrainedConfig, written: str, precision: str, full: bool
) -> None:
    """Numbers as transformers loads them, buffers too (Gemma 3 rounds a factor of its embeddings); none of a weight is
    memory of the process, unless TMPDIR is full."""
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).to(getattr(torch, written)).save_pretrained(tmp_path)
    base: Any = SimpleNamespace(loader=Recorded(tmp_path), model=SimpleNamespace(reference="m"))
    if full:
        monkeypatch.setattr(tempfile, "TemporaryFile", no_room)
    model: Any = read_into_files(base, precision)
    wanted = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=DTYPES[precision])
    for kind in ("named_parameters", "named_buffers"):
        ours, theirs = dict(getattr(model, kind)()), dict(getattr(wanted, kind)())
        assert ours.keys() == theirs.keys()
        assert all(ours[name].dtype == of.dtype and torch.equal(ours[name], of) for name, of in theirs.items())
    if MAPS.exists():
        known = mappings()
        assert {is_clean(of, known) for of in model.parameters()} == {not full}


def test_a_model_whose_layers_share_weights_is_not_read_in_parts(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(LlamaConfig(**SMALL)).save_pretrained(tmp_path)
    loader = Recorded(tmp_path)
    tensors = loader.tensors("m", framework="torch", precision="fp32")
    name = "model.layers.4.mlp.up_proj.weight"
    tensors.model.all_tied_weights_keys = {name: name.replace("4", "0")}
    shared = SimpleNamespace(tensors=lambda *_, **__: tensors)
    facts, stages = SimpleNamespace(layer_path="model.layers"), SimpleNamespace(rank=0, world=2)
    base: Any = SimpleNamespace(loader=shared, model=SimpleNamespace(reference="m"), facts=facts)
    assert read_own_layers(base, "fp32", "cpu", stages) is None  # type: ignore[arg-type]
    assert not loader.read

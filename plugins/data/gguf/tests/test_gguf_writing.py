"""Files that are written: names by the gguf package's own mapping, numbers by what is read back, refusals by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from finetooth_gguf import writing
from finetooth_gguf.weights import build_config, build_model
from finetooth_modelfiles.gguf import container
from gguf import GGUFReader, get_tensor_name_map
from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES
from transformers import AutoConfig, AutoModelForCausalLM

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GEMMA = {"head_dim": 24, "query_pre_attn_scalar": 24, "sliding_window": 5}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 24}),
    "mistral": ("llama", {"head_dim": 24, "sliding_window": None}),
    "gemma2": ("gemma2", {**GEMMA, "attn_logit_softcapping": 40.0, "final_logit_softcapping": 20.0}),
    "gemma3_text": ("gemma3", GEMMA),
    "phi3": ("phi3", {"sliding_window": 100}),
}
SPELLING = writing.Spelling(
    tuple(f"t{n}" for n in range(96)), (1,) * 96, (), {"bos": 1, "eos": 2, "padding": 0}, False, None
)


def config_of(kind: str, **changes: Any) -> dict[str, Any]:
    return dict(AutoConfig.for_model(kind, **SIZES | MODELS[kind][1] | changes).to_dict())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model with random weights, and the file that is written of it."""

    def write(kind: str) -> tuple[Any, Path]:
        folder = tmp_path_factory.mktemp(kind)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES | MODELS[kind][1]))
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
        model.eval().save_pretrained(folder)
        writing.write(folder, SPELLING, "gpt-2", folder / "model.gguf", "f32", kind)
        return model, folder / "model.gguf"

    return write


@pytest.mark.parametrize("kind", MODELS)
def test_a_written_file_computes_what_transformers_does(kind: str, written: Any) -> None:
    model, path = written(kind)
    file = container.read(path)
    loaded: Any = build_model(file, build_config(file), torch.float32)
    ids = torch.arange(1, 49).reshape(2, 24)
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", MODELS)
def test_tensors_are_called_as_the_gguf_package_maps_them(kind: str, written: Any) -> None:
    model, path = written(kind)
    label = MODELS[kind][0]
    architecture = next(known for known, name in MODEL_ARCH_NAMES.items() if name == label)
    assert isinstance(architecture, MODEL_ARCH)
    names = get_tensor_name_map(architecture, SIZES["num_hidden_layers"])
    tied = set(model.all_tied_weights_keys)
    expected = {names.get_name(name, (".weight", ".bias")) for name in model.state_dict() if name not in tied}
    assert {tensor.name for tensor in GGUFReader(path).tensors} == expected


def test_gemma_states_what_llama_cpp_reads(written: Any) -> None:
    fields = GGUFReader(written("gemma2")[1]).fields
    stated = {"attention.sliding_window": 5, "attn_logit_softcapping": 40.0, "final_logit_softcapping": 20.0,
              "attention.key_length": 24}  # fmt: skip
    assert {key: fields[f"gemma2.{key}"].contents() for key in stated} == stated
    fields = GGUFReader(written("gemma3_text")[1]).fields
    stated = {"attention.sliding_window": 5, "rope.freq_base": 1000000.0, "rope.freq_base_swa": 10000.0}
    assert {key: fields[f"gemma3.{key}"].contents() for key in stated} == stated
    assert "gemma3.final_logit_softcapping" not in fields


def test_gemmas_norms_have_one_added(written: Any) -> None:
    model, path = written("gemma3_text")
    (norm,) = (tensor.data for tensor in GGUFReader(path).tensors if tensor.name == "blk.0.attn_q_norm.weight")
    torch.testing.assert_close(
        torch.from_numpy(norm.copy()), model.model.layers[0].self_attn.q_norm.weight.detach() + 1
    )


def test_phi_states_no_more_context_than_its_window(written: Any) -> None:
    assert GGUFReader(written("phi3")[1]).fields["phi3.context_length"].contents() == 100


@pytest.mark.parametrize(
    ("kind", "changes", "line"),
    [
        ("mistral", {"sliding_window": 64}, "its sliding_window is 64 and its context 128: llama.cpp has no window"),
        ("mistral", {"sliding_window": 128}, ""),
        ("gemma2", {"query_pre_attn_scalar": 16}, "its query_pre_attn_scalar is 16, and llama.cpp computes with 24"),
        ("gemma2", {"num_hidden_layers": 46, "query_pre_attn_scalar": 16}, ""),
        ("gemma2", {"final_logit_softcapping": None}, "no final_logit_softcapping, and llama.cpp computes with 30.0"),
        ("gemma2", {"tie_word_embeddings": False}, "its tie_word_embeddings is False"),
        ("gemma3_text", {"layer_types": ["full_attention"] * 7}, r"its layer_types is \['full_attention'"),
        ("gemma3_text", {"attn_logit_softcapping": 30.0}, "its attn_logit_softcapping is 30.0"),
        ("gemma3_text", {"hidden_activation": "silu"}, "its hidden_activation is silu"),
        ("gemma3_text", {}, ""),
        ("phi3", {"rope_parameters": {"rope_type": "longrope"}}, "rotary embedding is of type longrope"),
        ("phi3", {"rope_parameters": None, "rope_scaling": {"type": "su"}}, "rotary embedding is of type su"),
        ("phi3", {"rope_parameters": {"partial_rotary_factor": 0.75}}, "turns 0.75 of each head"),
        ("llama", {"model_type": "mamba"}, r"type mamba cannot be written .*only gemma2, gemma3_text, llama, mistral"),
        ("llama", {"mlp_bias": True}, "its feed-forward layers have biases, which cannot be written"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(kind: str, changes: dict[str, Any], line: str) -> None:
    config = config_of(kind, num_hidden_layers=changes.get("num_hidden_layers", 7))
    said = writing.refusal(config | changes, "f32")
    assert re.search(line, said) if line else not said, said

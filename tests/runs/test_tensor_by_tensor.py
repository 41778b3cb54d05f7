"""Bases that are read tensor by tensor: what is merged and exported is, to the bit, what the whole model gives, in the
memory of a tensor."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
import torch
from finetooth_gguf.loader import GgufLoader, GgufOptions
from finetooth_hooks import Datum
from finetooth_kit.fake_context import FakeContext
from finetooth_lora.shards import fold_tensors
from finetooth_peftfiles.folding import merged
from finetooth_portable.quantizers import Int4Options, build_int4
from finetooth_torchshared.model_tensors import write_model_tensors
from finetooth_torchshared.packed_files import repack
from finetooth_torchshared.packing import FORMATS, pack_folder
from finetooth_torchshared.quantised import dequantise, stored_weights
from finetooth_torchshared.whole_weights import export_weights
from finetooth_transformers.builder import TransformersOptions
from finetooth_transformers.loader import TransformersLoader
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

Recipe = dict[str, Any]


def write_adapter(folder: Path, model: Any, **settings: Any) -> Path:
    """A LoRA of random numbers over each linear module of the decoder."""
    folder.mkdir()
    generator, tensors = torch.Generator().manual_seed(3), {}
    for path, module in model.named_modules():
        if path.endswith("_proj") and isinstance(module, torch.nn.Linear):
            outputs, inputs = module.weight.shape
            name = f"base_model.model.{path}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(4, inputs, generator=generator) / inputs
            tensors[f"{name}.lora_B.weight"] = torch.randn(outputs, 4, generator=generator)
            if settings.get("use_dora"):
                tensors[f"{name}.lora_magnitude_vector"] = torch.rand(outputs, generator=generator) + 0.5
    for path, module in model.named_modules():
        if path.endswith(".experts"):  # the layer over `down_proj` lies outermost, as peft puts them
            for end, weight in ((".base_layer", module.gate_up_proj), ("", module.down_proj)):
                experts, outputs, inputs = weight.shape
                name = f"base_model.model.{path}{end}"
                tensors[f"{name}.lora_A.weight"] = torch.randn(4 * experts, inputs, generator=generator) / inputs
                tensors[f"{name}.lora_B.weight"] = torch.randn(outputs, 4 * experts, generator=generator)
            settings = {**settings, "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = sorted({name.split(".")[-3] for name in tensors if "experts" not in name and "lora_A" in name})
    about = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "target_modules": targets, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


@pytest.fixture
def plain(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model in five files or so, bf16."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "plain", max_shard_size="60KB")
    assert len(list((tmp_path / "plain").glob("*.safetensors"))) > 3
    return tmp_path / "plain"


@pytest.fixture
def packed(plain: Path) -> Path:
    """The same, packed by compressed-tensors in 4 bits."""
    pack_folder(AutoModelForCausalLM.from_pretrained(plain), plain, FORMATS["int4"])
    return plain


@pytest.fixture
def additive(plain: Path) -> Path:
    """The same as AQLM stores it, of random codes."""

    def pack(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        if not name.endswith("_proj.weight"):
            return {name: weight}
        (outputs, inputs), path = weight.shape, name.removesuffix(".weight")
        parts = {
            "codes": torch.randint(-128, 128, (outputs, inputs // 8, 2), dtype=torch.int8),
            "codebooks": torch.randn(2, 256, 1, 8) / inputs**0.5,
            "scales": torch.rand(outputs, 1, 1, 1),
        }
        return {f"{path}.{part}": of.half() if of.is_floating_point() else of for part, of in parts.items()}

    said = {"quant_method": "aqlm", "in_group_size": 8, "num_codebooks": 2, "nbits_per_codebook": 8}
    repack(plain, pack, {"quantization_config": said})
    return plain


@pytest.fixture
def gguf(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model as a GGUF file of blocks in 8 bits."""
    from finetooth_gguf import writing

    spelling = writing.spelling_of(tiny_model, 4096)
    writing.write(tiny_model, spelling, "smollm", tmp_path / "tiny.gguf", "q8_0", "tiny")
    return tmp_path / "tiny.gguf"


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    """A mixture of experts, whose files name each matrix of each expert."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=320, hidden_size=64, intermediate_size=96, moe_intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_experts=4, num_experts_per_tok=2,
        max_position_embeddings=128,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen3MoeForCausalLM(config).save_pretrained(tmp_path / "mixture", max_shard_size="200KB")
    return tmp_path / "mixture"


def loader_of(case: str, folder: Path) -> Any:
    if case.startswith("gguf"):
        return GgufLoader(GgufOptions(keep_quantised=case == "gguf-kept"))
    return TransformersLoader(TransformersOptions(), FakeContext(folder))


def written(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(
    "case", ["packed", "additive", "gguf", "gguf-kept", "gguf-int4", "plain-int4", "mixture", "mixture-int4"]
)
@pytest.mark.parametrize("dora", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_is_written_is_what_the_whole_model_gives(
    request: pytest.FixtureRequest, tmp_path: Path, case: str, dora: bool
) -> None:
    base = str(request.getfixturevalue(case.partition("-")[0]))
    if dora and case.startswith("mixture"):
        pytest.skip("peft has no DoRA of experts")
    quantizer: Any = build_int4(Int4Options(), None) if case.endswith("int4") else None  # type: ignore[arg-type]
    loader, computed = (
        loader_of(case, tmp_path),
        "bf16" if case in ("packed", "additive", "gguf-kept") or quantizer else "fp32",
    )
    asked = {"framework": "torch", "precision": computed, "quantizer": quantizer}
    model = dequantise(loader.load(base, device="cpu", **asked), torch.float32).float()
    adapter = write_adapter(tmp_path / "adapter", model, use_dora=dora)
    export_weights(merged(model, adapter), tmp_path / "whole")
    tensors = loader.tensors(base, **asked)
    assert tensors is not None
    folded = fold_tensors(tensors, adapter)
    assert folded is not None
    (tmp_path / "out").mkdir()
    write_model_tensors(folded, tmp_path / "out", "fp32")
    wanted, found = written(tmp_path / "whole"), written(tmp_path / "out")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    names = {file.name for file in (tmp_path / "whole").iterdir() if file.suffix != ".safetensors"}
    for name in names - {"model.safetensors.index.json"}:
        assert json.loads((tmp_path / "out" / name).read_text()) == json.loads((tmp_path / "whole" / name).read_text())
    if case.startswith("gguf"):  # one file: the whole folder, byte for byte
        assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == {
            file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()
        }


def test_experts_in_files_of_their_own_are_stored_as_they_are_read(mixture: Path, tmp_path: Path) -> None:
    """The same codes as of the whole model, stored after it was loaded."""
    from finetooth_torchshared.quantised import quantise
    from finetooth_transformers.assembling import parts_of

    quantizer: Any = build_int4(Int4Options(), None)  # type: ignore[arg-type]
    loader = loader_of("mixture", tmp_path)
    found = loader.load(str(mixture), framework="torch", precision="fp32", device="cpu", quantizer=quantizer)
    wanted = quantise(AutoModelForCausalLM.from_pretrained(mixture, dtype=torch.float32), quantizer, "cpu")
    assert stored_weights(found) == stored_weights(wanted) > 0
    first, second = found.state_dict(), wanted.state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    made = parts_of(
        mixture, found.config, AutoModelForCausalLM, dtype=torch.float32, packing=None, trust_remote_code=False
    ).made["model.layers.1.mlp.experts.gate_up_proj"]  # fmt: skip
    assert len(made.parts) == 8  # two matrices of four experts


@pytest.mark.parametrize("case", ["packed", "additive"])
def test_a_run_over_a_packed_base_is_merged_and_exported_alike(
    case: str, request: pytest.FixtureRequest, recipe: Callable[..., Recipe], ft: Callable[..., Any], tmp_path: Path,
    tiny_model: Path,
) -> None:  # fmt: skip
    import shutil

    packed = request.getfixturevalue(case)
    for file in tiny_model.glob("token*"):
        shutil.copy(file, packed)
    session = finetooth.session(recipe(model=str(packed), train={"max_steps": 2, "batch_size": 8, "precision": "bf16"}))
    session.run()
    code, out, err = ft("merge", tmp_path / "run", "--output", tmp_path / "merged")
    assert code == 0 and "tensor by tensor" in out, out + err
    to = ("--to", "safetensors", "precision=fp32", "--output", tmp_path / "exported")
    code, out, err = ft("export", tmp_path / "run", *to)
    assert code == 0, out + err
    merged, exported = written(tmp_path / "merged"), written(tmp_path / "exported")
    assert merged.keys() == exported.keys() and all(torch.equal(merged[name], exported[name]) for name in merged)
    datum = Datum.from_tokens(list(range(20, 60)))
    sections = {"model": str(tmp_path / "merged"), "output": str(tmp_path / "next"), "train": {"precision": "fp32"}}
    found = finetooth.session(recipe(**sections)).engine.logprobs([datum])[0]
    np.testing.assert_allclose(found, session.engine.logprobs([datum])[0], atol=0.05)


PEAK = """
import resource, sys
from pathlib import Path
import torch, transformers
from finetooth_gguf.loader import GgufLoader, GgufOptions
from finetooth_kit.fake_context import FakeContext
from finetooth_lora.shards import fold_tensors
from finetooth_portable import modules, quantizers
from finetooth_torchshared.model_tensors import write_model_tensors
from finetooth_transformers.builder import TransformersOptions
from finetooth_transformers.loader import TransformersLoader

torch.set_num_threads(1)
case, base, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
quantizer = quantizers.build_int4(quantizers.Int4Options(), None) if case == "int4" else None
if case == "gguf":
    loader = GgufLoader(GgufOptions(keep_quantised=True))
else:
    loader = TransformersLoader(TransformersOptions(), FakeContext(folder))
def tensors():
    return loader.tensors(base, framework="torch", precision="bf16", quantizer=quantizer)
tensors().read("model.norm.weight")  # what reading brings into a process beside the weights
modules.Int4Linear(torch.nn.Linear(64, 64), 32).dequantised(torch.float32)
torch.randn(64, 4) @ torch.randn(4, 64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(folder / "out").mkdir()
write_model_tensors(fold_tensors(tensors(), folder / "adapter"), folder / "out", "bf16")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("case", ["packed", "gguf", "int4"])
def test_a_child_process_holds_no_more_than_a_few_tensors(tmp_path: Path, smollm2_tokenizer: Path, case: str) -> None:
    """Its peak grows by a few times the largest matrix as numbers, far from what it writes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=512, hidden_size=1024, intermediate_size=2816, num_hidden_layers=10, num_attention_heads=8,
        num_key_value_heads=8,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config).bfloat16()
    write_adapter(tmp_path / "adapter", model)
    model.save_pretrained(tmp_path / "base", max_shard_size="30MB")
    whole = sum(parameter.nbytes for parameter in model.parameters())
    largest = 4 * 1024 * 2816
    base = tmp_path / "base"
    if case == "packed":
        pack_folder(model, base, FORMATS["int8"])
    del model
    if case == "gguf":
        import shutil

        from finetooth_gguf import writing

        for file in smollm2_tokenizer.iterdir():
            if file.name.startswith(("token", "vocab", "merges", "special")):
                shutil.copy(file, base)
        spelling = writing.Spelling(tuple(f"t{i}" for i in range(512)), (1,) * 512, (), {}, False, None)
        writing.write(base, spelling, "smollm", tmp_path / "base.gguf", "q8_0", "base")
        base = tmp_path / "base.gguf"
    done = subprocess.run(
        [sys.executable, "-c", PEAK, case, str(base), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.split()[-1])
    out = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    assert out == pytest.approx(whole, rel=0.01)
    assert peak < 7 * largest < 0.35 * whole, (peak / 2**20, largest / 2**20, whole / 2**20)

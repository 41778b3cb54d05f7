"""`ft merge`: what it writes computes what the adapter did."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from finetooth_hooks import EngineError, UserError
from finetooth_hooks.entries import Loader
from finetooth_lora import merge
from finetooth_lora.adapter import LoraAdapter, LoraOptions
from finetooth_peftfiles.folding import merged
from finetooth_saving.artifact import verify_folder
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Tokenizer:
    pad_id = None

    def save(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")


@dataclass
class Commands:
    """A command context over the tiny model, which notes what it was asked."""

    make: Any
    tied: bool = False
    asked: list[Any] = field(default_factory=list)
    runs: dict[str, Path] = field(default_factory=dict)

    def load(self, recipe: Any, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
        self.asked.append(Path(recipe).name)
        return {"model": "tiny"}

    @property
    def catalog(self) -> Any:
        entry = Loader(name="toy", build="toy:build", names=("tiny",), claims=lambda reference: None)
        return SimpleNamespace(all=lambda kind: (SimpleNamespace(entry=entry),))

    def run_folder(self, reference: str) -> Path | None:
        return self.runs.get(reference)

    def context(self, recipe: Any) -> Any:
        self.asked.append(recipe)

        def load(reference: str, *, framework: str, precision: str, device: str, quantizer: Any = None) -> Any:
            assert (reference, framework, device) == ("tiny", "torch", "cpu")
            return self.make(tied=self.tied).model.to(DTYPES[precision])

        described = SimpleNamespace(stored=None, revision="", files=())
        loader = SimpleNamespace(
            load=load, tokenizer=lambda reference: Tokenizer(), describe=lambda reference: described,
            capabilities=frozenset(),
        )  # fmt: skip
        return SimpleNamespace(loader=loader)


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens).logits.float()


@pytest.fixture
def run(tiny, tmp_path):
    """Makes (run folder, adapted model)."""

    def make(tied: bool = False, **options: Any) -> tuple[Path, Any]:
        made = tiny(tied=tied)
        adapter = LoraAdapter(LoraOptions(rank=4, **options))
        model = adapter.apply(made.model, made.facts, np.random.default_rng(0)).eval()
        generator = torch.Generator().manual_seed(3)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data + 0.05 * torch.randn(parameter.shape, generator=generator)
        adapter.export(model, tmp_path / "run" / "artifact", made.info)
        (tmp_path / "run" / "recipe.yaml").write_text("model: tiny\n")
        return tmp_path / "run", model

    return make


def invoke(obj, *arguments):
    return CliRunner().invoke(merge.command, [str(a) for a in arguments], obj=obj, catch_exceptions=False)


@pytest.mark.parametrize("options", [{}, {"dora": True}, {"rslora": True}, {"targets": ["lm_head", "q_proj"]}], ids=str)
@pytest.mark.parametrize("tied", [False, True])
def test_merged_model_computes_what_the_adapter_did(run, tiny, tokens, options, tied):
    folder, model = run(tied=tied, **options)
    result = invoke(Commands(tiny, tied), folder)
    assert result.exit_code == 0
    assert str(folder / "merged") in result.output
    loaded = AutoModelForCausalLM.from_pretrained(folder / "merged").eval()
    assert (logits(loaded, tokens) - logits(tiny(tied=tied).model, tokens)).abs().max() > 1e-2
    torch.testing.assert_close(logits(loaded, tokens), logits(model, tokens), atol=1e-5, rtol=1e-5)
    assert (folder / "merged" / "tokenizer.json").exists()
    assert len({path.stat().st_mode for path in (folder / "merged").iterdir()}) == 1
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


ENDS: dict[str, dict[str, Any]] = {
    "a whole head": {"modules_to_save": ["lm_head"]},
    "a whole embedding": {"modules_to_save": ["embed_tokens"]},
    "both whole": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "tokens": {"trainable_token_indices": [33, 41]},
    "tokens of the head": {"trainable_token_indices": {"lm_head": [33, 41]}},
    "tokens of each": {"trainable_token_indices": {"embed_tokens": [33, 41], "lm_head": [33, 15]}},
    "tokens, and an addition to the head": {"trainable_token_indices": [33, 41], "target_modules": ["lm_head"]},
}
"""What peft trains of embedding and head. The last is refused by peft itself where they are two weights."""


@pytest.mark.parametrize(
    ("tied", "ends"), [(tied, ends) for tied in (False, True) for ends in ENDS if tied or "addition" not in ends]
)
def test_embedding_and_head_of_a_foreign_adapter_are_merged_as_peft_computes_them(tiny, tokens, tmp_path, ends, tied):
    config = LoraConfig(**{"r": 4, "target_modules": ["q_proj"], **ENDS[ends]})
    adapted, generator = get_peft_model(tiny(tied=tied).model, config).eval(), torch.Generator().manual_seed(3)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data + 0.1 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(tmp_path / "adapter")
    merged(tiny(tied=tied).model, tmp_path / "adapter").save_pretrained(tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert (logits(loaded, tokens) - logits(tiny(tied=tied).model, tokens)).abs().max() > 1e-2
    torch.testing.assert_close(logits(loaded, tokens), logits(adapted, tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 3e-2), ("fp16", 4e-3)])
def test_precision_is_that_of_the_file(run, tiny, tokens, precision, bound):
    folder, model = run()
    assert invoke(Commands(tiny), folder, "--precision", precision).exit_code == 0
    loaded = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype="auto").eval()
    assert loaded.dtype == DTYPES[precision]
    expected = logits(model, tokens)
    assert (logits(loaded, tokens) - expected).abs().max() < bound * expected.abs().max()


def test_what_was_merged_is_named_by_its_digest(run, tiny, tmp_path):
    """And the registry's record of the run goes along, if it came from one."""
    folder, _ = run()
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "artifact").iterdir()}
    manifest = folder / "artifact/manifest.json"
    manifest.write_text(json.dumps({"files": files}))
    (folder / "plan.json").write_text('{"picks": {}, "options": {}, "train": {}}')
    (folder / "record.dsse.json").write_text("{}")
    assert invoke(Commands(tiny), folder, "--output", tmp_path / "out").exit_code == 0
    about = verify_folder(tmp_path / "out")
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    assert about["origin"] == {"run": str(folder), "artifact": digest, "record": "{}"}
    assert "model.safetensors" in about["files"]


def test_an_adapter_folder_alone_names_its_base(run, tiny, tmp_path):
    folder, _ = run()
    adapter = tmp_path / "lonely"
    (folder / "artifact").rename(adapter)
    commands = Commands(tiny)
    assert invoke(commands, adapter).exit_code == 0
    assert commands.asked == [{"model": "tiny", "backend": "torch"}]
    assert (tmp_path / "lonely-merged" / "config.json").exists()


def test_an_artifact_alone_is_merged_into_what_it_was_trained_on(run, tiny, tmp_path):
    """Its manifest keeps the name in the recipe: others may load something like it by another one."""
    folder, _ = run()
    adapter = tmp_path / "lonely"
    (folder / "artifact").rename(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "org/like-tiny"}))
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in adapter.iterdir()}
    (adapter / "manifest.json").write_text(json.dumps({"step": 1, "model": "tiny", "files": files}))
    commands = Commands(tiny)
    assert invoke(commands, adapter).exit_code == 0
    assert commands.asked == [{"model": "tiny", "backend": "torch"}]
    assert "into tiny: " in invoke(Commands(tiny), adapter, "--output", tmp_path / "again").output


def test_artifact_of_a_run_uses_the_runs_recipe(run, tiny, tmp_path):
    folder, _ = run()
    commands = Commands(tiny)
    assert invoke(commands, folder / "artifact", "--output", tmp_path / "there" / "model").exit_code == 0
    assert commands.asked[0] == "recipe.yaml"
    assert (tmp_path / "there" / "model" / "model.safetensors").exists()


def test_a_run_goes_by_its_name_and_what_is_none_is_said(run, tiny):
    folder, _ = run()
    result = invoke(Commands(tiny, runs={"mine": folder}), "mine")
    assert result.exit_code == 0 and (folder / "merged" / "config.json").exists()
    with pytest.raises(UserError, match="mine: no run has this name"):
        invoke(Commands(tiny), "mine")


def test_existing_output_is_left_alone(run, tiny):
    folder, _ = run()
    (folder / "merged").mkdir()
    (folder / "merged" / "mine").write_text("x")
    with pytest.raises(UserError, match="merged exists"):
        invoke(Commands(tiny), folder)
    assert (folder / "merged" / "mine").read_text() == "x"


def test_output_that_cannot_be_made_is_bad_input_before_anything_is_read(run, tiny, tmp_path):
    folder, _ = run()
    (tmp_path / "rows.jsonl").write_text("{}")
    commands = Commands(tiny)
    with pytest.raises(UserError, match=r"output: .*rows.jsonl cannot be written: Not a directory"):
        invoke(commands, folder, "--output", tmp_path / "rows.jsonl" / "merged")
    assert not commands.asked


def test_whole_weights_and_empty_folders_are_refused(tmp_path, tiny):
    (tmp_path / "artifact").mkdir()
    with pytest.raises(UserError, match="no adapter_config"):
        merge.find(tmp_path, None)
    (tmp_path / "artifact" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="nothing to merge"):
        merge.find(tmp_path, None)
    (tmp_path / "artifact" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors"):
        merge.find(tmp_path, None)
    (tmp_path / "artifact" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="names no base"):
        merge.find(tmp_path, None)


@pytest.mark.parametrize("damage", ["missing", "shape"])
def test_adapter_of_another_model_is_refused(run, tiny, damage):
    from safetensors.torch import load_file, save_file

    folder, _ = run()
    path = folder / "artifact" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    if damage == "missing":
        tensors.pop(name)
    else:
        tensors[name] = torch.zeros(3, 5)
    save_file(tensors, path)
    with pytest.raises(UserError, match="does not fit"):
        invoke(Commands(tiny), folder)
    assert not (folder / "merged").exists()


def cut_in_half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def keep_manifest(artifact: Path) -> None:
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in artifact.iterdir()}
    (artifact / "manifest.json").write_text(json.dumps({"step": 1, "files": files}))


def test_nothing_but_its_own_lines_is_shown(run, tiny):
    folder, _ = run()
    assert re.fullmatch(r"loading tiny in fp32\nmerged .*\n", invoke(Commands(tiny), folder).output)


@pytest.mark.parametrize("manifest", [True, False])
def test_half_a_file_is_named(run, tiny, manifest):
    folder, _ = run()
    if manifest:
        keep_manifest(folder / "artifact")
    cut_in_half(folder / "artifact" / "adapter_model.safetensors")
    reason = "differs from its SHA-256" if manifest else "cannot be read"
    with pytest.raises(UserError, match=rf"artifact/adapter_model\.safetensors {reason}"):
        invoke(Commands(tiny), folder)
    assert not (folder / "merged").exists()


def test_artifact_is_checked_against_its_manifest(run, tiny):
    folder, _ = run()
    artifact = folder / "artifact"
    (artifact / "letters.txt").write_text("a")
    keep_manifest(artifact)
    assert invoke(Commands(tiny), folder).exit_code == 0
    (artifact / "letters.txt").unlink()
    with pytest.raises(UserError, match=r"letters\.txt is missing"):
        merge.find(folder, folder / "other")
    (artifact / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json is not a readable manifest"):
        merge.find(folder, folder / "other")


def test_failure_while_writing_leaves_nothing(run, tiny, monkeypatch):
    folder, _ = run()

    def fail(self, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Tokenizer, "save", fail)
    with pytest.raises(EngineError, match="No space left"):
        invoke(Commands(tiny), folder)
    assert sorted(path.name for path in folder.iterdir()) == ["artifact", "recipe.yaml"]


def test_config_that_is_no_json_is_named(run):
    folder, _ = run()
    (folder / "artifact" / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        merge.find(folder, None)
    (folder / "artifact" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "b"}))
    assert merge.find(folder, None).base == "b"


def test_a_base_in_fewer_bits_is_refused_whoever_loaded_it(run, tiny):
    """A loader that did not say so: the sum would be written into bytes that mean nothing without their scales."""
    folder, _ = run()
    base = tiny().model
    weight = base.model.layers[0].mlp.up_proj.weight
    base.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(weight.data.to(torch.float8_e4m3fn), False)
    with pytest.raises(UserError, match="its base is quantised") as caught:
        merge.merged(base, folder / "artifact")
    assert caught.value.exit_code == 2

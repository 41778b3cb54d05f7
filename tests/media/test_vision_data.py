"""Rows with images on their way: shown, counted, kept, refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import pytest
from finetooth_hooks import DataError, RecipeError
from finetooth_rows import lazy_examples
from finetooth_rows.storage.cache import DataCache
from PIL import Image

Recipe = Callable[..., dict[str, Any]]


@pytest.fixture
def recipe(qwen_vl: Path, captions: Path) -> Recipe:
    def make(train: Path = captions, model: Path = qwen_vl, **data: Any) -> dict[str, Any]:
        return {
            "model": str(model),
            "data": {"train": str(train), **data},
            "train": {"max_steps": 1, "batch_size": 18, "max_length": 1024},
        }

    return make


@pytest.fixture
def own(captions: Path, tmp_path: Path) -> Path:
    """The same data in a folder of our own."""
    shutil.copytree(captions.parent / "images", tmp_path / "data" / "images")
    for file in (tmp_path / "data" / "images").iterdir():
        file.chmod(0o644)
    (tmp_path / "data" / "images").chmod(0o755)
    shutil.copyfile(captions, tmp_path / "data" / "captions.jsonl")
    return tmp_path / "data" / "captions.jsonl"


def prepared(recipe: dict[str, Any]) -> Any:
    session = finetooth.session(recipe)
    how = session.job.context.data.prepared_as["train"]
    return session, session.job.context.prepare("train", how.rendering, how.limit).data


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    from finetooth_core.cli import main

    assert main(arguments) == 0
    return capsys.readouterr().out


def test_pixel_limits_change_the_number_of_tokens(recipe: Recipe) -> None:
    lengths = []
    for most in (28 * 28, 112 * 112, 224 * 224):
        processor = {"name": "auto", "image": {"max_pixels": most}}
        _, rows = prepared(recipe(processor=processor, cache="off"))
        lengths.append([image.length for of_row in rows.media for image in of_row])
        assert all(length * 28 * 28 <= most for length in lengths[-1])
    assert sum(lengths[0]) < sum(lengths[1]) < sum(lengths[2])


def test_an_unknown_processor_argument_is_named(recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match=r"data.processor.image: .* knows no 'max_pixel'"):
        prepared(recipe(processor={"name": "auto", "image": {"max_pixel": 100}}))


def test_preview_and_check_show_images(recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(recipe()))
    shown = said(capsys, "data", "preview", str(tmp_path / "recipe.json"), "--row", "4")
    assert re.search(r"\[image 320x213 -> \d+ tokens\]", " ".join(shown.split()))
    turned = said(capsys, "data", "preview", str(tmp_path / "recipe.json"), "--row", "14", "--json")
    (image,) = [piece for piece in json.loads(turned[turned.index("[") :])[0]["pieces"] if piece["medium"]]
    assert image["text"].startswith("[image 320x213 -> ") and not any(image["weights"])
    assert "images: 18 in 17 rows" in said(capsys, "data", "check", str(tmp_path / "recipe.json"))


@pytest.mark.parametrize(
    ("name", "problems"),
    [
        ("path_traversal_images", ["leaves the data folder", "absolute path", "never fetched"]),
        ("broken_images", ["cannot be read", "is not an image", "cut off or damaged", "exceeds limit"]),
    ],
)
def test_shared_bad_images_are_refused_by_row(recipe: Recipe, bad_data: Path, name: str, problems: list[str]) -> None:
    path = bad_data / f"{name}.jsonl"
    count = len(path.read_text().splitlines())
    with pytest.raises(DataError, match=f"{count} of {count} rows cannot be used") as caught:
        prepared(recipe(path))
    for number in range(1, min(count, 5) + 1):
        assert f"{path.as_posix()}:{number}: " in str(caught.value)
    assert all(problem in str(caught.value) for problem in problems)


def test_a_model_of_text_refuses_images_by_one_line(captions: Path, tmp_path: Path, qwen_vl: Path) -> None:
    import transformers

    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(qwen_vl)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "text")
    tokenizer.save_pretrained(tmp_path / "text")
    for renderer in ("jinja", "chatml"):  # no other renderer would help
        with pytest.raises(DataError, match=r"it has 1 image, and .* takes neither images nor sound") as caught:
            prepared({"model": str(tmp_path / "text"), "data": {"train": str(captions), "renderer": renderer}})
        assert "captions.jsonl:1, " in str(caught.value) and "data.renderer" not in str(caught.value)


@pytest.mark.usefixtures("cache")
class TestCache:
    @pytest.fixture(autouse=True)
    def _a_few_rows_are_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lazy_examples, "SMALL_ROWS", 4)

    @pytest.mark.slow
    def test_another_image_is_another_key(self, recipe: Recipe, own: Path) -> None:
        _, rows = prepared(recipe(own))
        before = rows[0].media[0][1].data
        (entry,) = DataCache().entries()
        prepared(recipe(own))
        assert [one.key for one in DataCache().entries()] == [entry.key]
        image = own.parent / "images" / "astronaut.jpg"
        Image.open(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(image)
        _, rows = prepared(recipe(own))
        keys = {one.key for one in DataCache().entries()}
        assert len(keys) == 2 and entry.key in keys
        assert rows[0].media[0][1].data == image.read_bytes() != before

    def test_a_missing_image_is_told_by_its_row(self, recipe: Recipe, own: Path) -> None:
        prepared(recipe(own))
        (own.parent / "images" / "coffee.jpg").unlink()
        with pytest.raises(DataError, match=r"captions\.jsonl:6: image images/coffee\.jpg: it cannot be read"):
            prepared(recipe(own))

    def test_the_cache_holds_no_image(self, recipe: Recipe, own: Path) -> None:
        prepared(recipe(own))
        (entry,) = DataCache().entries()
        assert entry.bytes < 40_000 < sum(file.stat().st_size for file in (own.parent / "images").iterdir())

    @pytest.mark.slow
    def test_workers_give_the_same(self, recipe: Recipe, own: Path) -> None:
        _, alone = prepared(recipe(own, workers=0, cache="off"))
        _, together = prepared(recipe(own, workers=2, cache="off"))
        assert len(alone) == len(together) == 18
        for ours, theirs in zip(together, alone, strict=True):
            assert ours.id == theirs.id and ours.placeholder_tokens.tolist() == theirs.placeholder_tokens.tolist()
            assert [(at, image.data) for at, image in ours.media] == [(at, image.data) for at, image in theirs.media]

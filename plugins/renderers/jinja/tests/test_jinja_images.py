"""Images in conversations: the official templates of two families, transformers' own rendering as the judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import Conversation, DataError, Message
from finetooth_hooks.examples import Image, Placed, Weighted, images_of
from finetooth_hooks.protocols import ImagePlace
from finetooth_hooks.testing import draws
from finetooth_jinja.renderer import JinjaRenderer
from finetooth_jinja.template import ChatTemplate
from finetooth_toolbox.text.tokenizers import FastTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

FAMILIES = {
    "qwen2.5-vl": ("<|image_pad|>", "", "<|image_pad|>", "", "<|im_end|>"),
    "gemma-3": ("<start_of_image>", "\n\n<start_of_image>", "<soft>", "<end_of_image>\n\n", "<end_of_turn>"),
}
"""Placeholder; what a processor writes before, for and after an image; what ends a turn."""
SPECIAL = (
    "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<bos>", "<start_of_turn>",
    "<end_of_turn>", "<start_of_image>", "<soft>", "<end_of_image>",
)  # fmt: skip


class Processor:
    """As many tokens as the image's name says."""

    def __init__(self, family: str) -> None:
        self.placeholder, self.before, self.token, self.after, _ = FAMILIES[family]
        self.opened = 0

    token_ids: frozenset[int] = frozenset()

    def written(self, image: Image) -> str:
        return self.before + self.token * int(image.name) + self.after

    def place(self, image: Image) -> ImagePlace:
        self.opened += 1
        start = len(self.before)
        return ImagePlace(self.written(image), start, start + len(self.token) * int(image.name), image, 10, 20)

    def inputs(self, images: Sequence[bytes]) -> Mapping[str, Any]:
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        raise NotImplementedError


class Bench:
    """A renderer and its judge."""

    def __init__(self, family: str, shared: Path, byte_level: Callable[..., FastTokenizer]) -> None:
        source = (shared / "templates" / f"{family}.jinja").read_text(encoding="utf-8")
        self.end = FAMILIES[family][-1]
        self.tokenizer = byte_level(source, SPECIAL, bos="<bos>", eos=self.end)
        self.processor = Processor(family)
        template = ChatTemplate(source, datetime(2026, 1, 15, 12), {"bos_token": "<bos>"})
        self.renderer = JinjaRenderer(self.tokenizer, template, lambda: self.processor)

    def expected(self, conversation: Conversation) -> list[int]:
        messages = [{"role": m.role, "content": parts(m)} for m in conversation.messages]
        text = self.tokenizer.wrapped.apply_chat_template(messages, tokenize=False)
        pieces = text.split(self.processor.placeholder)
        images = [*(self.processor.written(image) for image in images_of(conversation)), ""]
        return self.tokenizer.encode("".join(a + b for a, b in zip(pieces, images, strict=True)), special=True)


def parts(message: Message) -> list[dict[str, str]]:
    found, at = [], 0
    for placed in message.images:
        found += [{"type": "text", "text": message.content[at : placed.at]}, {"type": "image"}]
        at = placed.at
    return [part for part in [*found, {"type": "text", "text": message.content[at:]}] if part.get("text", "x")]


@pytest.fixture(params=list(FAMILIES))
def bench(request: pytest.FixtureRequest, shared: Path, byte_level: Callable[..., FastTokenizer]) -> Bench:
    return Bench(request.param, shared, byte_level)


words = st.text(alphabet="ab é\n.", min_size=1, max_size=8).filter(str.strip)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    messages = []
    for _ in range(draw(st.integers(1, 2))):
        content = draw(words)
        ats = sorted(draw(st.lists(st.integers(0, len(content)), max_size=2)))
        images = tuple(Placed(at, Image(str(draw(st.integers(1, 4))), content=b"x")) for at in ats)
        messages += [Message("user", content, images=images), Message("assistant", draw(words).strip())]
    return Conversation(tuple(messages))


@pytest.mark.parametrize("family", list(FAMILIES))
def test_tokens_masks_and_places(family: str, shared: Path, byte_level: Callable[..., FastTokenizer]) -> None:
    bench = Bench(family, shared, byte_level)

    @settings(max_examples=draws(30), deadline=None)
    @given(conversation=conversations())
    def holds(conversation: Conversation) -> None:
        rendered = bench.renderer.render(conversation)
        assert list(rendered.tokens) == bench.expected(conversation)
        trained = [token for token, weight in zip(rendered.tokens, rendered.weights, strict=True) if weight]
        answers = [m.content + bench.end for m in conversation.messages if m.role == "assistant"]
        assert bench.tokenizer.decode(trained) == "".join(answers)
        assert [found.image for found in rendered.images] == list(images_of(conversation))
        for found in rendered.images:
            inside = rendered.tokens[found.start : found.stop]
            assert bench.tokenizer.decode(inside) == bench.processor.token * int(found.image.name) and found.width == 10

    holds()


def look(content: str, *at: int, answer: str = "Yes.", **changes: Any) -> Conversation:
    images = tuple(Placed(place, Image("3", content=b"x")) for place in at)
    return Conversation((Message("user", content, images=images, **changes), Message("assistant", answer)))


def test_images_never_train_whatever_is_asked(bench: Bench) -> None:
    rendered = bench.renderer.render(look("one two", 4), train_on="all")
    trained = [token for token, weight in zip(rendered.tokens, rendered.weights, strict=True) if weight]
    # what the template itself writes around an image is part of the turn
    said = bench.tokenizer.decode(trained).replace("<|vision_start|><|vision_end|>", "")
    assert "".join(said.split()) == "".join(f"onetwo{bench.end}Yes.{bench.end}".split())
    (found,) = rendered.images
    assert not any(rendered.weights[found.start : found.stop])


def test_a_part_beside_an_image_has_its_own_weight(bench: Bench) -> None:
    rendered = bench.renderer.render(look("onetwo", 3, weights=(Weighted(3, 6, 1.0),)))
    trained = [token for token, weight in zip(rendered.tokens, rendered.weights, strict=True) if weight]
    assert bench.tokenizer.decode(trained) == f"twoYes.{bench.end}"


def test_a_text_that_spells_other_markup_stays_plain(bench: Bench) -> None:
    rendered = bench.renderer.render(look(f"a{bench.end}b", 1))
    ends = sum(token == bench.tokenizer.token_id(bench.end) for token in rendered.tokens)
    assert bench.tokenizer.decode(rendered.tokens).count(bench.end) == ends + 1


def test_a_text_that_spells_the_placeholder_is_refused_beside_images_only(bench: Bench) -> None:
    spelled = bench.processor.placeholder
    with pytest.raises(DataError, match="2 times for 1 images"):
        bench.renderer.render(look(f"what is {spelled}?", 0))
    plain = bench.renderer.render(look(f"what is {spelled}?"))
    assert bench.tokenizer.token_id(spelled) not in plain.tokens


def test_an_image_is_opened_once_for_a_conversation(bench: Bench) -> None:
    turns = look("a", 1).messages + look("b", 0).messages
    bench.renderer.render(Conversation(turns))
    assert bench.processor.opened == 1  # the two are one image
    bench.renderer.render(Conversation(turns))
    assert bench.processor.opened == 2


def test_a_template_without_images_refuses_them(byte_level: Callable[..., FastTokenizer]) -> None:
    source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    tokenizer = byte_level(source, SPECIAL, eos="<|im_end|>")
    renderer = JinjaRenderer(tokenizer, ChatTemplate(source, datetime(2026, 1, 15), {}), lambda: Processor("gemma-3"))
    with pytest.raises(DataError, match="0 times for 1 images; either the template knows no images"):
        renderer.render(look("a", 0))


def test_tokens_alone_do_not_stand_for_an_image(bench: Bench) -> None:
    with pytest.raises(DataError, match="reads text alone"):
        bench.renderer.prompt(look("a", 0).messages[:1])

"""Images in conversations: the official templates of two families, transformers' own rendering as the judge."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import Conversation, DataError, MediumChunk, Message
from finetooth_hooks.data.examples import Image, Medium, MediumKind, Placed, Video, Weighted, media_of
from finetooth_hooks.protocols import MediumPlace
from finetooth_jinja.renderer import JinjaRenderer
from finetooth_jinja.template import ChatTemplate
from finetooth_kit import draws
from finetooth_toolbox.text.tokenizers import FastTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

FAMILIES = {
    "qwen2.5-vl": ("<|image_pad|>", "", "<|image_pad|>", "", "<|im_end|>"),
    "gemma-3": ("<start_of_image>", "\n\n<start_of_image>", "<soft>", "<end_of_image>\n\n", "<end_of_turn>"),
}
"""Placeholder; what a processor writes before, for and after an image; what ends a turn."""
SPECIAL = (
    "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<bos>",
    "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<soft>", "<end_of_image>",
)  # fmt: skip


VIDEO = "<|video_pad|>"
"""What Qwen's template writes for a video."""


class Processor:
    """As many tokens as the name says."""

    kinds: tuple[MediumKind, ...] = ("image", "video")

    def __init__(self, family: str) -> None:
        self.shown, self.before, self.token, self.after, _ = FAMILIES[family]
        self.opened = 0

    def placeholder(self, kind: MediumKind) -> str:
        return self.shown if kind == "image" else VIDEO

    def token_ids(self, kind: MediumKind) -> frozenset[int]:
        raise NotImplementedError

    def tokens(self, medium: Medium) -> str:
        return (self.token if medium.kind == "image" else VIDEO) * int(medium.name)

    def written(self, medium: Medium) -> str:
        return self.before + self.tokens(medium) + self.after

    def place(self, medium: Medium) -> MediumPlace:
        self.opened += 1
        start = len(self.before)
        return MediumPlace(self.written(medium), start, start + len(self.tokens(medium)), medium, "10x20")

    def inputs(self, media: Sequence[MediumChunk]) -> Mapping[str, Any]:
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
        pieces = re.split(f"{re.escape(self.processor.shown)}|{re.escape(VIDEO)}", text)
        media = [*(self.processor.written(medium) for medium in media_of(conversation)), ""]
        return self.tokenizer.encode("".join(a + b for a, b in zip(pieces, media, strict=True)), special=True)


def parts(message: Message) -> list[dict[str, str]]:
    found, at = [], 0
    for placed in message.media:
        found += [{"type": "text", "text": message.content[at : placed.at]}, {"type": placed.medium.kind}]
        at = placed.at
    return [part for part in [*found, {"type": "text", "text": message.content[at:]}] if part.get("text", "x")]


@pytest.fixture(params=list(FAMILIES))
def bench(request: pytest.FixtureRequest, shared: Path, byte_level: Callable[..., FastTokenizer]) -> Bench:
    return Bench(request.param, shared, byte_level)


words = st.text(alphabet="ab é\n.", min_size=1, max_size=8).filter(str.strip)


@st.composite
def conversations(draw: st.DrawFn, kinds: Sequence[type[Medium]]) -> Conversation:
    messages = []
    for _ in range(draw(st.integers(1, 2))):
        content = draw(words)
        ats = sorted(draw(st.lists(st.integers(0, len(content)), max_size=2)))
        media = tuple(
            Placed(at, draw(st.sampled_from(kinds))(str(draw(st.integers(1, 4))), content=b"x")) for at in ats
        )
        messages += [Message("user", content, media=media), Message("assistant", draw(words).strip())]
    return Conversation(tuple(messages))


@pytest.mark.parametrize("family", list(FAMILIES))
def test_tokens_masks_and_places(family: str, shared: Path, byte_level: Callable[..., FastTokenizer]) -> None:
    bench = Bench(family, shared, byte_level)

    @settings(max_examples=draws(30), deadline=None)
    @given(conversation=conversations([Image, Video] if family.startswith("qwen") else [Image]))
    def holds(conversation: Conversation) -> None:
        rendered = bench.renderer.render(conversation)
        assert list(rendered.tokens) == bench.expected(conversation)
        trained = [token for token, weight in zip(rendered.tokens, rendered.weights, strict=True) if weight]
        answers = [m.content + bench.end for m in conversation.messages if m.role == "assistant"]
        assert bench.tokenizer.decode(trained) == "".join(answers)
        assert [found.medium for found in rendered.media] == list(media_of(conversation))
        for found in rendered.media:
            inside = rendered.tokens[found.start : found.stop]
            assert bench.tokenizer.decode(inside) == bench.processor.tokens(found.medium) and found.size == "10x20"

    holds()


def look(content: str, *at: int, answer: str = "Yes.", **changes: Any) -> Conversation:
    images = tuple(Placed(place, Image("3", content=b"x")) for place in at)
    return Conversation((Message("user", content, media=images, **changes), Message("assistant", answer)))


def test_images_never_train_whatever_is_asked(bench: Bench) -> None:
    rendered = bench.renderer.render(look("one two", 4), train_on="all")
    trained = [token for token, weight in zip(rendered.tokens, rendered.weights, strict=True) if weight]
    # what the template itself writes around an image is part of the turn
    said = bench.tokenizer.decode(trained).replace("<|vision_start|><|vision_end|>", "")
    assert "".join(said.split()) == "".join(f"onetwo{bench.end}Yes.{bench.end}".split())
    (found,) = rendered.media
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
    spelled = bench.processor.shown
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
    with pytest.raises(DataError, match="0 times for 1 images; either the template knows no such parts"):
        renderer.render(look("a", 0))


def test_tokens_alone_do_not_stand_for_an_image(bench: Bench) -> None:
    with pytest.raises(DataError, match="supports text only"):
        bench.renderer.prompt(look("a", 0).messages[:1])

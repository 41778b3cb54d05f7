"""Checks of renderers, over a tokenizer of bytes."""

from __future__ import annotations

from itertools import pairwise

from finetooth_hooks.data.examples import Conversation, Message
from finetooth_hooks.errors import DataError
from finetooth_hooks.protocols import Renderer

from finetooth_kit.checks import EntryCase, check_for, expect, expect_instance

_ASKED = Message("user", "What is 2 plus 2?")
_ONE = Conversation((_ASKED, Message("assistant", "It is 4.")))
_TWO = Conversation((*_ONE.messages, Message("user", "And 3 plus 3?"), Message("assistant", "Six, é and 😀.")))
_SYSTEM = Conversation((Message("system", "Be brief."), *_TWO.messages))


def _conversations(renderer: Renderer) -> list[Conversation]:
    """Those the family can say: some have no system role."""
    try:
        renderer.render(_SYSTEM)
    except DataError:
        return [_ONE, _TWO]
    return [_ONE, _TWO, _SYSTEM]


@check_for("renderer")
def weights_match_tokens(case: EntryCase) -> None:
    """As many weights as tokens, 0 or more, ids inside the vocabulary, spans in order, and the same a second time."""
    context = case.context()
    renderer = case.build(context)
    for conversation in _conversations(renderer):
        rendered = renderer.render(conversation)
        called = f"render({len(conversation.messages)} messages)"
        lengths = (len(rendered.tokens), len(rendered.weights))
        expect(lengths[0] == lengths[1] > 0, called, f"{lengths[0]} tokens, {lengths[1]} weights", "as many of each")
        inside = all(0 <= token < context.tokenizer.vocab_size for token in rendered.tokens)
        expect(inside, called, f"ids up to {max(rendered.tokens)}", f"below {context.tokenizer.vocab_size}")
        expect(all(weight >= 0 for weight in rendered.weights), called, min(rendered.weights), "weights of 0 or more")
        flat = [place for span in rendered.spans for place in span]
        expect(all(a <= b for a, b in pairwise(flat)), called, rendered.spans, "spans in order, not overlapping")
        expect(renderer.render(conversation) == rendered, f"{called}, a second time", "other tokens", "the same")


@check_for("renderer")
def only_trained_messages_weigh(case: EntryCase) -> None:
    """Assistant content trains and what the user says does not; `last` trains the last answer only, a message's own
    `train` overrides."""
    context = case.context()
    renderer = case.build(context)

    def trained(conversation: Conversation, train_on: str = "assistant") -> str:
        rendered = renderer.render(conversation, train_on=train_on)
        tokens = [token for token, weight in zip(rendered.tokens, rendered.weights, strict=True) if weight > 0]
        return context.tokenizer.decode(tokens, skip_special=True)

    text = trained(_TWO)
    expect("It is 4." in text and "Six, é and 😀." in text, "trained text of render(...)", repr(text), "both answers")
    expect("plus" not in text, "trained text of render(...)", repr(text), "nothing the user said")
    last = trained(_TWO, "last")
    expect("It is 4." not in last and "Six" in last, "render(train_on='last')", repr(last), "the last answer only")
    messages = (_ASKED, Message("assistant", "It is 4.", train=False), *_TWO.messages[2:])
    overridden = trained(Conversation(messages))
    expect(
        "It is 4." not in overridden and "Six" in overridden, "a message with train=False", repr(overridden), "left out"
    )


@check_for("renderer")
def prompt_is_a_prefix(case: EntryCase) -> None:
    """What the model is asked with is how the training text begins, and nothing of it trains."""
    renderer = case.build()
    for conversation in _conversations(renderer):
        rendered = renderer.render(conversation, train_on="last")
        prompt = renderer.prompt(conversation.messages[:-1])
        n = len(prompt)
        called = f"prompt({len(conversation.messages) - 1} messages)"
        start = rendered.tokens[:n]
        expect(0 < n < len(rendered.tokens) and start == prompt, called, f"{prompt[-12:]}", f"a prefix: {start[-12:]}")
        expect(not any(rendered.weights[:n]), "weights of the prompt", rendered.weights[:n], "0")
        expect(rendered.weights[n] > 0, "weight of the answer's first token", rendered.weights[n], "above 0")


@check_for("renderer")
def parse_reads_back(case: EntryCase) -> None:
    """What was rendered as the last answer is read back: same text, `stop` with its end token, `length` without."""
    renderer = case.build()
    expect_instance(renderer.stop_ids, tuple, "stop_ids")
    expect(renderer.stop_ids, "stop_ids", "()", "at least one id")
    for conversation in _conversations(renderer):
        rendered = renderer.render(conversation, train_on="last")
        n = len(renderer.prompt(conversation.messages[:-1]))
        answer = [t for t, w in zip(rendered.tokens[n:], rendered.weights[n:], strict=True) if w > 0]
        expect(answer[-1] in renderer.stop_ids, "last trained token", answer[-1], f"of stop_ids {renderer.stop_ids}")
        parsed = renderer.parse(answer)
        wanted = conversation.messages[-1].content
        expect(parsed.message.content == wanted, "parse(answer)", repr(parsed.message.content), repr(wanted))
        expect((parsed.message.role, parsed.stop) == ("assistant", "stop"), "parse(answer)", parsed, "assistant, stop")
        cut = renderer.parse(answer[:-1])
        expect((cut.message.content, cut.stop) == (wanted, "length"), "parse(answer without its end)", cut, "length")

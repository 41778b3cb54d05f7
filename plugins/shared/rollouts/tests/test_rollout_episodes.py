"""Episodes: calls within a time limit, and sequences of tokens of which none is made twice."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from finetooth_hooks import DataError, Message, Observation, RecipeError, Rollout, UserError
from finetooth_hooks.data.examples import Conversation, Rendered, TrainOn
from finetooth_kit import ByteTokenizer
from finetooth_kit.fake_context import PlainRenderer
from finetooth_rollouts.advantages import for_each, group_relative, last_of_episodes, leave_one_out
from finetooth_rollouts.calls import Failure, Returned, call_all
from finetooth_rollouts.data import data_of, with_logprobs
from finetooth_rollouts.judging import WeightedEnvironment, judged
from finetooth_rollouts.sequences import Sequences


def fails(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize("together", [True, False])
def test_what_comes_of_calls_in_their_order(together: bool) -> None:
    calls = [lambda: 1, lambda: fails(OSError("gone\nfor good")), lambda: 3, lambda: fails(TimeoutError())]
    assert call_all(calls, 60, together=together) == [
        Returned(1),
        Failure("error", "OSError: gone for good"),
        Returned(3),
        Failure("error", "TimeoutError: the environment's own time limit"),
    ]


def test_a_call_that_does_not_return_is_left() -> None:
    never = threading.Event()
    assert call_all([never.wait] * 3, 0.01, together=True) == [Failure("timeout", "no answer within 0.01 s")] * 3
    never.set()


def test_calls_run_together_where_they_may() -> None:
    """Each waits for the others."""
    barrier = threading.Barrier(3)
    found = call_all([barrier.wait] * 3, 60, together=True)
    assert sorted(one.value for one in found if isinstance(one, Returned)) == [0, 1, 2]


def test_what_the_user_gave_wrongly_is_nobodys_outcome() -> None:
    with pytest.raises(UserError, match="no number"):
        call_all([lambda: fails(DataError("row 1", "no number"))], 60, together=False)


class Extending(PlainRenderer):
    """Writes every conversation so that it only grows, which it does."""

    extension = True


def rollout(prompt: Sequence[int], tokens: Sequence[int], outcome: Any = "stop") -> Rollout:
    count = len(tokens)
    return Rollout("a", "g", tuple(prompt), tuple(tokens), (-1.0,) * count, (3,) * count, "", outcome)


def user(text: str) -> Observation:
    return Observation((Message("user", text),))


@pytest.fixture
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


def test_a_turn_stays_as_it_was_drawn(tokenizer: ByteTokenizer) -> None:
    """The turn's tokens decode to text that encodes otherwise (a token of several letters, a stop token in the middle
    of nothing): they are in the sequence as they were drawn, and what follows is the markup's alone."""
    renderer = Extending(tokenizer)
    (end,) = renderer.stop_ids
    sequences = Sequences(renderer)
    sequences.see(user("Hi"))
    first = sequences.prompt
    assert first == tuple(renderer.prompt([Message("user", "Hi")]))
    odd = (*tokenizer.encode("so"), 300, *tokenizer.encode("!"), end)  # 300 is no byte
    sequences.wrote(rollout(first, odd))
    sequences.see(user("And?"))
    between = (*tokenizer.encode("user: And?"), end, *tokenizer.encode("assistant: "))
    assert sequences.prompt == (*first, *odd, *between)
    sequences.wrote(rollout(sequences.prompt, (7, end)))
    (one,) = sequences.rollouts()
    assert one.prompt == first and one.tokens == (*odd, *between, 7, end)
    assert one.own == (True,) * len(odd) + (False,) * len(between) + (True,) * 2
    assert one.of_policy(one.tokens) == (*odd, 7, end) and one.length == len(odd) + 2
    assert set(one.of_policy(one.versions)) == {3} and one.versions.count(-1) == len(between)
    (datum,) = data_of([one], [0.5])
    targets = [int(t) for t, counts in zip(datum.targets, datum.mask, strict=True) if counts]
    assert targets == [*odd, 7, end] and datum.fields["token_weights"].sum() == pytest.approx(0.5 * one.length)
    other = with_logprobs(one, range(one.length))
    assert other.of_policy(other.logprobs) == tuple(range(one.length)) and sum(other.logprobs) == sum(range(one.length))


def test_a_turn_that_a_text_ended_is_closed_by_the_markup(tokenizer: ByteTokenizer) -> None:
    renderer = Extending(tokenizer)
    sequences = Sequences(renderer)
    sequences.see(user("Hi"))
    sequences.wrote(rollout(sequences.prompt, (65, 66)))
    sequences.see(user("And?"))
    sequences.wrote(rollout(sequences.prompt, (67, *renderer.stop_ids)))
    (one,) = sequences.rollouts()
    assert one.tokens[2] == renderer.stop_ids[0] and not one.own[2]


def test_the_end_of_the_document_is_no_part_of_the_next_prompt(tokenizer: ByteTokenizer) -> None:
    """Phi-3 writes one behind the last turn, which a prompt that goes on does not have."""

    class Ending(Extending):
        def render(self, conversation: Conversation, *, train_on: TrainOn = "assistant") -> Rendered:
            plain = super().render(conversation, train_on=train_on)
            return Rendered((*plain.tokens, 299), (*plain.weights, 0.0), plain.spans)

        def prompt(self, messages: Any, tools: Any = ()) -> tuple[int, ...]:
            return Extending(tokenizer).prompt(messages, tools)

    said = []
    for kind in (Extending, Ending):
        sequences = Sequences(kind(tokenizer))
        sequences.see(user("Hi"))
        sequences.wrote(rollout(sequences.prompt, (65, *kind(tokenizer).stop_ids)))
        sequences.see(user("And?"))
        said.append(sequences.prompt)
    assert said[0] == said[1] and len(said[0]) > 20


def test_turns_are_apart_where_the_conversation_is_written_anew(tokenizer: ByteTokenizer) -> None:
    """The odd token is not what the turn's text encodes to; a turn that comes out the same goes on."""
    renderer = PlainRenderer(tokenizer)
    (end,) = renderer.stop_ids
    sequences = Sequences(renderer)
    sequences.see(user("Hi"))
    sequences.wrote(rollout(sequences.prompt, (*tokenizer.encode("so"), end)))
    sequences.see(user("And?"))
    sequences.wrote(rollout(sequences.prompt, (300, end)))
    sequences.see(user("So?"))
    third = sequences.prompt
    sequences.wrote(rollout(third, (66, end)))
    one, other = sequences.rollouts()
    assert one.length == 5 and one.own.count(False) > 0
    assert other.prompt == third and other.tokens == (66, end) and other.own == ()


def test_an_environment_may_write_tokens(tokenizer: ByteTokenizer) -> None:
    sequences = Sequences(PlainRenderer(tokenizer))
    sequences.see(Observation(tokens=(1, 2)))
    sequences.wrote(rollout((1, 2), (3, 4)))
    sequences.see(Observation(tokens=(1, 2, 3, 4, 9)))
    sequences.wrote(rollout(sequences.prompt, (5,)))
    sequences.see(Observation(tokens=(8, 8)))
    sequences.wrote(rollout(sequences.prompt, (6,)))
    found = [(one.prompt, one.tokens, one.own) for one in sequences.rollouts()]
    assert found == [((1, 2), (3, 4, 9, 5), (True, True, False, True)), ((8, 8), (6,), ())]
    with pytest.raises(DataError, match="shows nothing"):
        sequences.see(Observation())


def test_a_renderer_that_does_not_extend_is_found_out(tokenizer: ByteTokenizer) -> None:
    class Lying(Extending):
        def prompt(self, messages: Any, tools: Any = ()) -> tuple[int, ...]:
            return (len(messages), *super().prompt(messages, tools))

    sequences = Sequences(Lying(tokenizer))
    sequences.see(user("Hi"))
    sequences.wrote(rollout(sequences.prompt, (65,)))
    with pytest.raises(DataError, match=r"data\.renderer.*extend"):
        sequences.see(user("And?"))


def scored(episode: str, reward: float, tokens: int = 2) -> Rollout:
    count = tokens
    return Rollout("a", "g", (1,), (2,) * count, (-1.0,) * count, (0,) * count, "", "stop", reward=reward,
                   episode=episode)  # fmt: skip


def test_an_algorithm_judges_episodes_once() -> None:
    """An episode of three rollouts counts no more than one of a single one."""
    rollouts = [scored("x", 1.0), scored("x", 1.0), scored("x", 1.0), scored("y", 0.0), scored("z", 0.5)]
    alone = [rollouts[2], rollouts[3], rollouts[4]]
    assert last_of_episodes(rollouts) == alone
    expected = leave_one_out(alone).tolist()
    assert list(for_each(leave_one_out, rollouts)) == [expected[0]] * 3 + expected[1:]
    assert list(for_each(group_relative, alone)) == group_relative(alone).tolist()
    with pytest.raises(RecipeError, match="an advantage of its own"):
        for_each(lambda given: [[1.0, 2.0] for _ in given], rollouts)


def test_rewards_beside_the_environment(tokenizer: ByteTokenizer) -> None:
    """The weighted sum; what failed is judged by nobody, and has what the recipe says."""
    from finetooth_hooks import Task
    from finetooth_rollouts.scoring import WeightedReward

    game = WeightedEnvironment("game", None, 2.0)  # type: ignore[arg-type]
    failed = Rollout("a", "g", (1,), (2,), (-1.0,), (0,), "", "error", episode="f", failure="gone")
    episodes = [[scored("x", 1.5), scored("x", 1.5)], [failed]]
    asked: list[int] = []

    def letters(prompts: Any, answers: Any, columns: Any) -> list[float | None]:
        asked.append(len(answers))
        return [10.0] * len(answers)

    rewards = (WeightedReward("letters", letters, 0.5),)
    found = judged(episodes, {"a": Task("?")}, rewards, game, "leave_out")
    assert [one.reward for one in found] == [8.0, 8.0, None] and asked == [1]
    assert found[0].rewards == {"game": 1.5, "letters": 10.0} and found[2].rewards == {"game": None, "letters": None}
    assert judged(episodes, {"a": Task("?")}, rewards, game, -1.0)[2].reward == -1.0

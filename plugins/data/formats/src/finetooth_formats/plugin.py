"""Formats: how a row becomes an example."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Format, hookimpl

FORMATS = (
    Format(
        name="chat",
        build="finetooth_formats.chat:build",
        summary="messages with role and content, or ShareGPT conversations",
        elsewhere={name: {} for name in ("sharegpt", "openai", "messages", "conversation", "chat_template", "chatml")},
        rank=10,
        example_rows=(
            {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]},
            {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
            {
                "messages": '[{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": null, '
                '"tool_calls": [{"function": {"name": "add", "arguments": "{}"}}]}]',
                "tools": '[{"type": "function", "function": {"name": "add"}}]',
            },
        ),
    ),
    Format(
        name="instruction",
        build="finetooth_formats.instruction:build",
        summary="instruction, input and output (Alpaca)",
        elsewhere={"alpaca": {}},
        rank=20,
        example_rows=(
            {"instruction": "Add.", "input": "2, 2", "output": "4"},
            {"instruction": "Add.", "context": "2, 2", "response": "4", "category": "closed_qa"},
        ),
    ),
    Format(
        name="prompt_completion",
        build="finetooth_formats.prompt_completion:build",
        summary="two columns, such as prompt and completion or question and answer",
        rank=30,
        example_rows=({"prompt": "2+2?", "completion": "4"}, {"question": "2+2?", "answer": "4"}),
    ),
    Format(
        name="text",
        build="finetooth_formats.text:build",
        summary="documents in the column text",
        elsewhere={"completion": {}, "pretraining": {}},
        rank=40,
        example_rows=({"text": "Once upon a time."},),
    ),
    Format(
        name="segments",
        build="finetooth_formats.segments:SegmentsFormat",
        summary="text in pieces, each marked whether it trains, without chat markup (axolotl's input_output)",
        elsewhere={"input_output": {}},
        rank=5,
        example_rows=({"segments": [{"text": "<s>2+2?", "label": False}, {"text": "4</s>", "label": True}]},),
    ),
    Format(
        name="preference",
        build="finetooth_formats.preference:build",
        summary="a chosen and a rejected answer, with or without their prompt; or several ranked answers",
        elsewhere={"dpo": {}, "pairs": {}, "ranking": {}},
        rank=6,
        example_rows=(
            {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
            {"chosen": "\n\nHuman: 2+2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2+2?\n\nAssistant: 5"},
            {"question": "2+2?", "responses": ["5", "4", "3"], "scores": [2, 10, 1]},
        ),
    ),
    Format(
        name="stepwise",
        build="finetooth_formats.stepwise:build",
        summary="an answer in steps, each with a label; also PRM800K, and rows that name the first wrong step",
        rank=7,
        example_rows=(
            {"prompt": "2+2*2?", "completions": ["2*2 is 4.", "2+4 is 7."], "labels": [True, False]},
            {"input": "2+2*2?", "steps": ["2*2 is 4.", "2+4 is 7.", "So 7."], "mistake_index": 1},
            {
                "question": {"problem": "2+2?"},
                "label": {"steps": [{"completions": [{"text": "4", "rating": 1}], "chosen_completion": 0}]},
            },
        ),
    ),
    Format(
        name="labelled",
        build="finetooth_formats.labelled:build",
        summary="an answer that is marked desirable or undesirable, or that has a score",
        elsewhere={"kto": {}},
        rank=8,
        example_rows=({"prompt": "2+2?", "completion": "4", "label": True},),
    ),
    Format(
        name="labelled_text",
        build="finetooth_formats.labelled:build_text",
        summary="a text with a number, or true or false, in the column label; for methods that score texts",
        rank=45,
        example_rows=({"text": "Thank you, it works.", "label": 0.9},),
    ),
    Format(
        name="task",
        build="finetooth_formats.task:build",
        summary="a prompt without an answer; the rewards read the other columns",
        rank=50,
        example_rows=({"prompt": "2+2?", "solution": "4"},),
    ),
)


@hookimpl
def ft_formats() -> Iterator[Format]:
    yield from FORMATS

"""The renderer `glm5`.

    [gMASK]<sop><|system|>Reasoning Effort: Max<|user|>Hello?<|assistant|><think>A greeting.</think>Yes.<|user|>

As `glm4_7`, with three differences: the conversation says how much the model shall think, every answer has a think
block, and tools are described without the frame of OpenAI's API.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from finetooth_hooks.context import Context
from finetooth_hooks.protocols import Tokenizer
from finetooth_rendering.page import Page
from finetooth_toolbox.messages.chat_templates import default_system

from finetooth_glm.renderer import GLM47, MASK, OPENING, SYSTEM, THINK, THOUGHT, GLMOptions, Thought, noted

EFFORT = re.compile(re.escape(f"{MASK}{OPENING}{SYSTEM}Reasoning Effort: ") + r"(\w+)")
UNSEEN = ("defer_loading", "strict")
"""What the description of a tool leaves out."""


class GLM5Options(GLMOptions):
    """Options of `glm5`."""

    thinking: bool = True
    """If false, the prompt for an answer holds an empty think block, as with the template's `enable_thinking`, and an
    answer with reasoning is refused, since no prompt would lead to it. GLM-5.3 always thinks."""
    effort: Literal["auto", "none", "low", "high", "max"] = "auto"
    """How much the model is told to think, as with the template's `reasoning_effort`; `none` says nothing. `auto`
    follows the model's own template, and is `max` without one."""


def build(options: GLM5Options, context: Context) -> GLM5:
    """Builds the renderer of GLM-5.2 and 5.3, and notes where the chat template differs.

    Raises:
        RecipeError: the tokenizer has no GLM tokens.
    """
    asked = {} if options.effort in ("auto", "none") else {"reasoning_effort": options.effort}
    return noted(GLM5(context.tokenizer, options), options, context, "GLM-5.2 and 5.3 speak as glm5", **asked)


class GLM5(GLM47):
    """GLM-5.2 and GLM-5.3.

    Normalisation: as `GLM4Moe`, but reasoning keeps the blanks around it. The prompt opens the think block. An answer
    trains its reasoning and `</think>`, also that of an empty block which the model closes at once; the empty block in
    place of reasoning that is left out does not train.
    """

    name = "glm5"
    trims = False

    def __init__(self, tokenizer: Tokenizer, options: GLM5Options) -> None:
        super().__init__(tokenizer, options)
        template, effort = tokenizer.chat_template, options.effort
        if effort == "auto":
            said = "Max" if template is None else default_system(template, EFFORT)
        else:
            said = effort.capitalize() * (effort != "none")
        self.preface = f"{SYSTEM}Reasoning Effort: {said}" if said and options.thinking else ""

    def described(self, tool: Mapping[str, Any]) -> Mapping[str, Any]:
        return {key: value for key, value in tool.get("function", tool).items() if key not in UNSEEN}

    def _asks(self) -> str:
        return THINK if self._options.thinking else THINK + THOUGHT

    def _block(self, page: Page, thought: Thought, trains: bool, thinks: bool, own: bool) -> None:
        page.markup(THINK)
        if thinks:
            self._say_thought(page, thought, trains)
        page.markup(THOUGHT, trains and self._options.thinking and (thinks or not own))

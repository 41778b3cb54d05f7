"""The exporter `gguf`: writes the file, reads it back, and compares tensors, tokenizer and predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from finetooth_hooks import Exported, ExporterBase, ExportSource, Message, Options, UserError
from finetooth_hooks.protocols import Tokenizer
from finetooth_modelfiles.gguf import container
from finetooth_modelfiles.gguf.package import GGML_QUANT_SIZES, dequantize
from finetooth_modelfiles.gguf.sentence_pieces import PREFIXES
from finetooth_toolbox.messages import openings
from finetooth_toolbox.messages.chat_templates import render_template
from finetooth_toolbox.messages.shipped import check
from finetooth_toolbox.messages.written_templates import named_tokens
from finetooth_toolbox.text.tokenizers import FastTokenizer
from finetooth_torchshared.whole_weights import quiet_library
from pydantic import Field

from finetooth_gguf import places, writing

FILE = "model.gguf"

PROBES = (
    "Hello, world!  Two  blanks, a tab\tand 12345 digits.",
    "don't can't I'LL we've\n\n  def f(x):\n    return x**2 - 1_000.5\r\n",
    "Größe naïve 東京 Привет שלום \U0001f600 e\u0301 ½ ﬁ",
    "   leading and trailing   ",
)
"""Texts that ways to cut text differ in: runs of blanks, digits, apostrophes, scripts, characters of several forms."""

QUESTIONS = ("What is the capital of France?", "Write a haiku about rain.", "2 + 2 =")

ROUNDING = {"F32": 0.0, "F16": 2.0**-10, "BF16": 2.0**-7, "Q8_0": 0.008, "Q6_K": 0.05, "Q5_1": 0.04, "Q5_0": 0.07,
            "Q4_K": 0.2, "Q4_1": 0.075, "Q4_0": 0.13}  # fmt: skip
"""Largest error of a weight by the largest weight of its block: half a step of the type, and its scale's rounding; of
the K types also what their levels leave out of a part's range."""

DIVERGENCE = {"f32": 1e-4, "f16": 1e-3, "bf16": 1e-2, "q8_0": 5e-2, "q6_k": 0.1, "q5_1": 0.25, "q5_0": 0.3,
              "q4_k_m": 0.4, "q4_1": 0.6, "q4_0": 0.7}  # fmt: skip
"""Largest mean divergence (Kullback and Leibler's, in nats) of predictions from the run's."""


class GgufOptions(Options):
    """Options of `gguf` and `ollama`."""

    stored: Literal["f32", "f16", "bf16", "q8_0", "q6_k", "q5_1", "q5_0", "q4_k_m", "q4_1", "q4_0"] = "q8_0"
    """How matrices are stored. `q4_k_m` is llama.cpp's mix of 4 and 6 bits; rows that blocks of 256 do not fill take
    `q5_0` and `q8_0` in their place, as they do there."""
    compare: bool = True
    """Whether predictions of the file are compared with those of the run; it takes both in memory, in fp32."""
    tokens: int = Field(default=12, ge=1)
    """How many tokens of an answer are compared."""


class GgufExporter(ExporterBase):
    """See `GgufOptions`."""

    def __init__(self, options: GgufOptions) -> None:
        self.options = options

    def check(self, source: ExportSource) -> None:
        """Checks that the model can be written as GGUF.

        Raises:
            UserError: the model is of a kind that cannot be written, or blocks do not fill its rows.
        """
        self._check_config(source, source.context.model.config)

    def export(self, source: ExportSource, folder: Path) -> Exported:
        """Write `model.gguf`.

        Raises:
            UserError: the tokenizer cannot be written, or the file, read back, differs by more than the format's
                rounding.
        """
        weights = source.weights("fp32")
        target = folder / FILE
        config = json.loads((weights / "config.json").read_text(encoding="utf-8"))
        self._check_config(source, config)
        spelling = _begun(source, writing.spelling_of(weights, int(config["vocab_size"])))
        splitting, said = self._splitting(source, weights, spelling)
        tensors = writing.write(weights, spelling, splitting, target, self.options.stored, source.run.name)
        checks = [f"{tensors} tensors read back within the rounding of {self.options.stored}", *said]
        self._check_tensors(weights, target, config)
        if self.options.compare:
            checks.append(self._predictions(source, weights, target))
        return Exported(use="ft chat {folder}/" + FILE, checks=tuple(checks), model=FILE)

    def _check_config(self, source: ExportSource, config: Mapping[str, Any]) -> None:
        if why := writing.refusal(config, self.options.stored):
            raise UserError(f"{source.run}: {why}", action="export it with --to safetensors")

    def _splitting(self, source: ExportSource, weights: Path, spelling: writing.Spelling) -> tuple[str, list[str]]:
        """The first splitting rule that agrees with the tokenizer's, and the comparison in words.

        Raises:
            UserError: no rule agrees, or a reader of the file begins or ends answers differently.
        """
        from finetooth_modelfiles.gguf.tokenizer import SPLITTINGS, build_tokenizer

        usual = places.layout_of(source.context.model.config).splitting
        ways = tuple(PREFIXES) if spelling.scores else sorted(
            SPLITTINGS, key=lambda name: (SPLITTINGS[name].whole_words != spelling.whole_words, name != usual)
        )  # fmt: skip
        refused = UserError(
            f"{source.run}: its tokenizer splits text in a way that finetooth cannot name in a GGUF file (it "
            f"knows {', '.join(ways)})",
            action="export it with --to safetensors",
        )
        head = source.scratch / "vocabulary.gguf"
        for splitting in ways:
            writing.write_vocabulary(weights, spelling, splitting, head, self.options.stored, source.run.name)
            made: Tokenizer = FastTokenizer(build_tokenizer(container.read(head)))
            compared = _compared(source.context.tokenizer, made, spelling)
            try:
                if compared:
                    return splitting, [compared, *filter(None, [_spoken(source, head)])]
            except UserError as error:
                refused = error
        raise refused

    def _check_tensors(self, weights: Path, target: Path, config: dict[str, Any]) -> None:
        """
        Raises:
            UserError: a tensor is missing, or differs by more than its format rounds.
        """
        read, placed = container.read(target), places.places(weights)
        if read.tensors.keys() != placed.keys():
            odd = sorted(read.tensors.keys() ^ placed.keys())
            raise UserError(f"{target}: {odd[0]} is in only one of the file and the model", action="report it")
        for name, place in placed.items():
            wanted, shape = writing.laid_out(places.read_tensor(place), name, config), place.shape
            entry = read.tensors[name]
            stored = dequantize(read.blocks(entry), entry.ggml_type).reshape(shape)
            bound, size = ROUNDING[entry.ggml_type.name], max(32, GGML_QUANT_SIZES[entry.ggml_type][0])
            block = size if wanted.shape[-1] % size == 0 and len(shape) > 1 else wanted.shape[-1]
            scale = np.abs(wanted.reshape(-1, block)).max(axis=1, keepdims=True)
            error = np.abs(stored.reshape(-1, block) - wanted.reshape(-1, block))
            if not (error <= bound * scale + 1e-7).all():
                raise UserError(
                    f"{target}: {name} differs from what was trained by {error.max():.3g}", action="report it"
                )

    def _predictions(self, source: ExportSource, weights: Path, target: Path) -> str:
        """How alike answers of the file and of the run are.

        Raises:
            UserError: predictions differ by more than `DIVERGENCE`.
        """
        import torch
        from transformers import AutoModelForCausalLM

        from finetooth_gguf.weights import build_config, build_model

        file = container.read(target)
        renderer = source.context.renderer
        opening = openings.read_opening(source.artifact)
        prompts = [renderer.prompt(opening.before((Message("user", text),))) for text in QUESTIONS]
        with quiet_library():
            run: Any = AutoModelForCausalLM.from_pretrained(str(weights), dtype=torch.float32)
        run.eval()
        whole = [_answer(run, prompt, self.options.tokens, renderer.stop_ids) for prompt in prompts]
        wanted = [_log_probabilities(run, tokens) for tokens in whole]
        del run
        model: Any = build_model(file, build_config(file), torch.float32)
        from_file = [_log_probabilities(model, tokens) for tokens in whole]
        difference = float(
            np.mean([(a.exp() * (a - b)).sum(-1).mean().item() for a, b in zip(wanted, from_file, strict=True)])
        )
        bound = DIVERGENCE[self.options.stored]
        if not difference <= bound:
            raise UserError(
                f"{target}: its predictions are {difference:.3g} nats from the run's, more than {bound:g} for "
                f"{self.options.stored}",
                action="choose stored=q8_0 or f16",
            )
        places = [
            (a[len(p) - 1 : -1].argmax(-1) == b[len(p) - 1 : -1].argmax(-1))
            for a, b, p in zip(wanted, from_file, prompts, strict=True)
        ]
        same, of = sum(int(place.sum()) for place in places), sum(len(place) for place in places)
        return f"{same} of {of} tokens of {len(prompts)} greedy answers are the run's; {difference:.2g} nats apart"


def _compared(own: Tokenizer, made: Tokenizer, spelling: writing.Spelling) -> str:
    """The kinds of texts that the file's tokenizer splits like the run's; empty: not even texts of a chat.

    llama.cpp puts a blank before a text either always, also behind special tokens, or never. transformers' tokenizers
    of SentencePiece's kind leave it out before another blank, and some have it at the very beginning only: chats never
    begin like that, so such a tokenizer is written as it cuts what stands behind a special token.
    """
    start = next((spelling.tokens[spelling.ids[role]] for role in ("bos", "eos") if role in spelling.ids), "")

    def same(before: str, texts: Sequence[str]) -> bool:
        asked = [(before + text, bool(before)) for text in texts]
        return all(own.encode(text, special=is_) == made.encode(text, special=is_) for text, is_ in asked)

    unblanked = [text.lstrip() for text in PROBES]
    if same("", PROBES) and (not spelling.scores or same(start, PROBES)):
        return f"{len(PROBES)} texts are cut into the same tokens"
    if not spelling.scores or not same(start, unblanked):
        return ""
    gets = [] if same("", unblanked) else ["gets no blank before it if no special token does"]
    gets += [] if same(start, PROBES) else ["gets one more if it begins with blanks"]
    return f"{len(PROBES)} texts are cut into the same tokens behind {start}; in llama.cpp a text {' and '.join(gets)}"


def _begun(source: ExportSource, spelling: writing.Spelling) -> writing.Spelling:
    """With a beginning-of-text token before every text only if the run's conversations begin with one: llama.cpp puts
    it before what the template writes."""
    if not spelling.adds_bos or not (source.artifact / openings.FILE).is_file():
        return spelling
    question = openings.read_opening(source.artifact).before((Message("user", QUESTIONS[0]),))
    begins = source.context.renderer.prompt(question)[:1] == (spelling.ids["bos"],)
    return replace(spelling, adds_bos=begins)


def _spoken(source: ExportSource, target: Path) -> str:
    """Compare how a reader of the file opens and ends answers with the run.

    Raises:
        UserError: it does so in another way.
    """
    from finetooth_modelfiles.gguf.tokenizer import build_tokenizer

    file = container.read(target)
    tokenizer = FastTokenizer(build_tokenizer(file))
    ids = [file.metadata.get(f"tokenizer.ggml.{role}_token_id") for role in ("eos", "eot", "eom")]

    def prompt(messages: Sequence[Mapping[str, Any]]) -> list[int] | None:
        text = render_template(tokenizer.chat_template or "", messages, prompt=True, **named_tokens(tokenizer))
        return None if text is None else tokenizer.encode(text, special=True)

    return check(source.artifact, source.context.renderer, prompt, [int(id_) for id_ in ids if id_ is not None])


def _answer(model: Any, prompt: tuple[int, ...], most: int, stops: tuple[int, ...]) -> list[int]:
    """The prompt with its greedy answer."""
    import torch

    tokens = list(prompt)
    for _ in range(most):
        with torch.no_grad():
            following = int(model(torch.tensor([tokens])).logits[0, -1].argmax())
        tokens.append(following)
        if following in stops:
            break
    return tokens


def _log_probabilities(model: Any, tokens: list[int]) -> Any:
    """Log-probabilities of the next token at each position."""
    import torch

    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([tokens])).logits[0].double(), -1)

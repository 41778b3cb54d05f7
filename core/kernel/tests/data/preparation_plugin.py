"""A local plugin with what data preparation needs: rows of text lines, bytes as tokens, and rows that go wrong."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from finetooth_hooks import Claim, Family, Format, Loader, Options, Renderer, Row, Source, hookimpl
from finetooth_hooks.bases import SourceBase

HERE = __name__
PARENT = os.getpid()


class LinesOptions(Options):
    """Of both sources."""

    path: str
    """The file."""
    portion: int = 40
    """Bytes of a portion."""


class TextOptions(Options):
    """Of the format and the renderer."""

    suffix: str = ""
    """Appended to every text; or a file that holds what is."""


@hookimpl
def ft_loaders():
    yield Loader(name="toy", build=f"{HERE}:build_loader", claims=lambda ref: Claim(2, "toy") if ref == "toy" else None)


@hookimpl
def ft_families():
    yield Family(name="toy", build=f"{HERE}:build_family", model_types=frozenset({"llama"}))


@hookimpl
def ft_renderers():
    yield Renderer(name="toy", build=f"{HERE}:build_renderer")


@hookimpl
def ft_sources():
    yield Source(name="toy_portions", build=f"{HERE}:build_portions")
    yield Source(name="toy_plain", build=f"{HERE}:build_plain")


@hookimpl
def ft_formats():
    yield Format(name="toy_lines", build=f"{HERE}:build_format", rank=0)


def build_loader(options: TextOptions, context):
    from finetooth_kit import ByteTokenizer
    from finetooth_kit.fake_context import FakeLoader

    return FakeLoader(ByteTokenizer(special=("<|pad|>", "<|begin|>", "<|im_end|>", "<|im_start|>")))


def build_family(options: TextOptions, context):
    from dataclasses import replace

    from finetooth_kit.fake_context import FACTS

    class Toy:
        def facts(self, config):
            return replace(FACTS, renderer="toy")

    return Toy()


def build_renderer(options: TextOptions, context):
    from finetooth_kit.fake_context import PlainRenderer

    return PlainRenderer(context.tokenizer)


class Plain(SourceBase):
    def __init__(self, options):
        self.path = Path(options.path)

    def files(self):
        return (self.path,)

    def rows(self):
        for number, line in enumerate(self.path.read_text().splitlines(), start=1):
            yield Row(f"{self.path.name}:{number}", {"text": line})


def build_plain(options: LinesOptions, context):
    return Plain(options)


class Portions(Plain):
    """Lines beginning with `!` are broken."""

    capabilities = frozenset({"portions"})

    def __init__(self, options):
        super().__init__(options)
        self.size = options.portion

    def rows(self):
        raise AssertionError("its portions are read")

    def portions(self):
        from finetooth_hooks.protocols import Portion

        number = 1
        with self.path.open("rb") as file:
            while lines := file.readlines(self.size):
                yield Portion(b"".join(lines), (number,))
                number += len(lines)

    def read(self, portion):
        from finetooth_hooks import DataError

        for number, line in enumerate(portion.content.decode().splitlines(), start=portion.place[0]):
            id_ = f"{self.path.name}:{number}"
            if line.startswith("="):  # takes the id of another row
                id_ = f"{self.path.name}:{line[1:]}"
            yield DataError(id_, "broken", action="mend it") if line.startswith("!") else Row(id_, {"text": line})

    def refusal(self, broken, good):
        from finetooth_hooks import DataError

        return DataError(
            self.path.name, f"{broken.count} broken, {good} good: {broken.first[0].where}", action="mend it"
        )


def build_portions(options: LinesOptions, context):
    return Portions(options)


class Lines:
    def __init__(self, suffix, note):
        self.suffix, self.note = suffix, note

    def detect(self, values):
        return "has text"

    def read(self, row):
        from finetooth_hooks import DataError, Text
        from finetooth_hooks.data.examples import LeftOut

        text = row.values["text"]
        if text.startswith(">"):  # several, of which those that are a dash are left out
            return [LeftOut("a dash") if part == "-" else Text(part + self.suffix) for part in text[1:].split("|")]
        if text.startswith("?"):
            raise DataError(row.id, "malformed", action="rewrite it")
        if text.startswith("note "):
            self.note(f"{text} first seen in {row.id}", topic=text)
        return Text(text + self.suffix)


def build_format(options: TextOptions, context):
    file = Path(options.suffix) if options.suffix else None
    return Lines(file.read_text() if file is not None and file.is_file() else options.suffix, context.note)


def rendering(options, context):
    """Bytes; a dot does not train."""
    from finetooth_hooks import DataError, Rendered

    log = os.environ.get("FT_TEST_LOG")

    def render(example):
        text = example.text
        if log:
            with open(log, "a") as file:  # noqa: PTH123
                file.write(f"{os.getpid()}\n")
        if text.startswith("bad"):
            raise DataError("content", f"cannot say {text}", action="rephrase it")
        if text.startswith("bug"):
            raise TypeError("a bug in the renderer")
        if text.startswith("die") and os.environ.get("FT_TEST_MAIN") != str(os.getpid()):
            os.kill(os.getpid(), signal.SIGKILL)
        if text.startswith("slow"):
            time.sleep(60)
        tokens = tuple(text.encode())
        remarks = ("shouts",) if text.isupper() else ()
        return Rendered(tokens, tuple(0.0 if byte == 46 else 1.0 + (byte == 33) for byte in tokens), remarks=remarks)

    return render

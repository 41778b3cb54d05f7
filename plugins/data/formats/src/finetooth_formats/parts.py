"""Texts of messages: plain, in parts that each have a flag, or with ranges of characters that have one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from finetooth_hooks.data.examples import Placed, Weighted

from finetooth_formats.columns import kind, shown, unspeakable
from finetooth_formats.media import PART_TYPES, RowMedia

PART_TEXTS = ("text", "content", "value")
"""Where a part of a content has its text."""

THOUGHTS = (("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<reasoning>", "</reasoning>"))
"""Marks around reasoning inside a content."""


@dataclass(frozen=True)
class Content:
    """A text, ranges of it with a weight of their own, and the images, sounds and videos in it."""

    text: str
    weights: tuple[Weighted, ...] = ()
    media: tuple[Placed, ...] = ()

    def part(self, start: int, stop: int) -> Content:
        """Some of its characters, with their ranges and the media between them; one at an end
        belongs to what follows."""
        moved = [Weighted(max(w.start, start) - start, min(w.stop, stop) - start, w.weight) for w in self.weights]
        last = stop == len(self.text)
        inside = (placed for placed in self.media if start <= placed.at < stop or (last and placed.at == stop))
        media = tuple(replace(placed, at=placed.at - start) for placed in inside)
        return Content(self.text[start:stop], tuple(w for w in moved if w.start < w.stop), media)


NOTHING = Content("")


def read_flag(path: str, item: Mapping[str, Any], key: str, problems: list[str]) -> bool | None:
    """`train: true|false`, or OpenAI's `weight: 0|1`; None without either, a problem if they contradict each other."""
    own, weight = item.get(key), item.get("weight")
    if isinstance(own, bool) and weight in (0, 1) and bool(weight) != own:
        problems.append(f"{path} has {key}: {str(own).lower()} and weight: {weight}, which contradict each other")
        return None
    key = key if own is not None else "weight"
    flag = item.get(key)
    if flag is None or isinstance(flag, bool):
        return flag
    if isinstance(flag, int | float) and flag in (0, 1) and key == "weight":
        return bool(flag)
    problems.append(f"{path}.{key} is {shown(flag)}, accepted are {'0 or 1' if key == 'weight' else 'true or false'}")
    return None


def read_parts(
    path: str, parts: Sequence[Any], problems: list[str], row_media: RowMedia | None = None
) -> Content | None:
    """Content given in parts of text, each with a flag of its own or none, and images, sounds and videos between them;
    the texts are joined as they are.

    Args:
        row_media: those of the row; without them there may be none.

    Raises:
        MediumProblem: one cannot be used.
    """
    text = ""
    weights: list[Weighted] = []
    media: list[Placed] = []
    for i, part in enumerate(parts):
        type_ = part.get("type") if isinstance(part, Mapping) else kind(part)
        if isinstance(type_, str) and type_ in PART_TYPES and row_media is not None:
            media.append(Placed(len(text), row_media.part(f"{path}[{i}]", part)))
            continue
        keys = [key for key in PART_TEXTS if isinstance(part, Mapping) and isinstance(part.get(key), str)]
        if type_ != "text" or not keys:
            readable = "only text, images, audio and video can be read"
            if row_media is None:
                readable = "in rows of this format only text can be read, images and sounds in conversations"
            problems.append(f"{path}[{i}] is a part of type {shown(type_)}; {readable}")
            return None
        part_text = part[keys[0]]
        if problem := unspeakable(part_text):
            problems.append(f"{path}[{i}].{keys[0]} {problem}")
        flag = read_flag(f"{path}[{i}]", part, "train", problems)
        if flag is not None and part_text:
            weights.append(Weighted(len(text), len(text) + len(part_text), float(flag)))
        text += part_text
    return Content(text, tuple(weights), tuple(media))


def thoughts_apart(item: Mapping[str, Any], content: str, reasoning: Sequence[str]) -> Mapping[str, Any]:
    """A message whose content begins with parts `{type: thinking, thinking: ...}`, as Mistral's API has them, with
    these as its reasoning; any other message as it is.

    Args:
        content, reasoning: keys; a message that has one of the latter keeps its parts.
    """
    parts = item.get(content)
    if not isinstance(parts, list | tuple) or any(key in item for key in reasoning):
        return item
    thoughts: list[Any] = []
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") != "thinking":
            break
        thoughts.append(part)
    if not thoughts:
        return item
    pieces: list[Any] = []
    for part in thoughts:
        inside = part.get("thinking")
        flags = {key: part[key] for key in ("train", "weight") if key in part}
        for piece in inside if isinstance(inside, list | tuple) else [{"type": "text", "text": inside}]:
            pieces.append({**flags, **piece} if isinstance(piece, Mapping) else piece)
    return {**item, content: parts[len(thoughts) :], reasoning[0]: pieces}


def read_ranges(path: str, ranges: Any, text: str, problems: list[str]) -> tuple[Weighted, ...]:
    """Weights of a text from `[{begin_offset, end_offset, train}]`: both ends belong to a range, and what lies in none
    does not train."""
    if not isinstance(ranges, list | tuple):
        problems.append(f"{path} is {kind(ranges)}, not a list of ranges")
        return ()
    flags: list[tuple[int, int, bool]] = []
    for i, item in enumerate(ranges):
        entry: Mapping[str, Any] = item if isinstance(item, Mapping) else {}
        begin, end, train = (entry.get(key) for key in ("begin_offset", "end_offset", "train"))
        if type(begin) is not int or type(end) is not int or not isinstance(train, bool):
            problems.append(f"{path}[{i}] is not of the kind {{begin_offset: 0, end_offset: 4, train: true}}")
        elif not 0 <= begin <= end < len(text):
            problems.append(f"{path}[{i}] is {begin} to {end}, and the text has the characters 0 to {len(text) - 1}")
        else:
            flags.append((begin, end + 1, train))
    flags.sort()
    for before, after in pairwise(flags):
        if after[0] < before[1]:
            problems.append(f"{path} has ranges that overlap at character {after[0]}")
            return ()
    return _filled(flags, len(text))


def _filled(flags: Sequence[tuple[int, int, bool]], length: int) -> tuple[Weighted, ...]:
    """The ranges, and between them others that weigh nothing."""
    ranges: list[Weighted] = []
    at = 0
    for start, stop, train in (*flags, (length, length, False)):
        if at < start:
            ranges.append(Weighted(at, start, 0.0))
        if start < stop:
            ranges.append(Weighted(start, stop, float(train)))
        at = stop
    return tuple(ranges)


def split_thought(content: Content) -> tuple[Content, Content]:
    """Reasoning that opens a content, and the content after it. Line feeds around the reasoning and before the rest
    are markup of the family, which its renderer writes: they belong to neither."""
    text = content.text
    begin = len(text) - len(text.lstrip())
    for opening, closing in THOUGHTS:
        end = text.find(closing, begin)
        if not text.startswith(opening, begin) or end < 0:
            continue
        start, stop = begin + len(opening), end
        start += len(text[start:stop]) - len(text[start:stop].lstrip("\n"))
        stop -= len(text[start:stop]) - len(text[start:stop].rstrip("\n"))
        rest = end + len(closing)
        rest += len(text[rest:]) - len(text[rest:].lstrip("\n"))
        return content.part(start, stop), content.part(rest, len(text))
    return NOTHING, content

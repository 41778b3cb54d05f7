"""Images and sounds in messages: parts `image_url` with a data URL, and parts `input_audio`. The server fetches nothing
and opens no file."""

from __future__ import annotations

import base64
import binascii
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from finetooth_hooks import FinetoothError, Message
from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import PLURALS, Audio, Image
from finetooth_hooks.sampling import ShownPrompt
from finetooth_toolbox.messages.media import chunks

from finetooth_openai.faults import Fault

MOST = 16
"""Most images and sounds of a request."""

LARGEST = 20 * 10**6
"""Most bytes of an image or sound file."""

EMBED = "send the image itself: data:image/png;base64,..."
PLAY = "send the sound itself, in base64"
SOUNDS = ("wav", "mp3", "flac", "ogg")
"""Formats of `input_audio`; all but wav need finetooth[media] on the server."""

_OPENING = threading.Lock()
"""Only one request at a time opens images and sounds, which bounds their memory; threads must not share a processor."""


def image_of(part: Any, where: str) -> Image:
    """The image of a part of a message.

    Args:
        part: its `image_url`.
        where: the part's place, for messages.

    Raises:
        Fault: the text is not a data URL with an image in base64, or too large.
    """
    if not isinstance(part, Mapping) or not isinstance(part.get("url"), str):
        raise Fault("an image is not of the form {url: TEXT}", action=EMBED, param=where)
    if others := sorted(set(part) - {"url", "detail"}):
        raise Fault(f"image_url: {others[0]} is not offered here", action="leave it out", param=where)
    if part.get("detail") not in (None, "auto"):
        raise Fault("image_url.detail is not supported", action="leave it out, or say auto", param=where)
    head, comma, text = part["url"].partition(",")
    scheme = head.partition(":")[0].lower()
    if scheme != "data" or ":" not in head:
        kind = f"addresses that begin with {scheme[:10]}:" if ":" in head else "names of files"
        raise Fault(f"image_url: {kind} are not followed here", action=EMBED, param=where)
    kind, *more = head.partition(":")[2].lower().split(";")
    if not comma or not kind.startswith("image/") or more[-1:] != ["base64"]:
        raise Fault("image_url: the data URL holds no image in base64", action=EMBED, param=where)
    if len(text) * 3 // 4 > LARGEST + 2:
        raise Fault(f"an image has more than {LARGEST // 10**6} MB", action="scale it down", param=where)
    return Image(where, content=_decoded(text, "image_url", EMBED, where))


def sound_of(part: Any, where: str) -> Audio:
    """The sound of a part of a message.

    Args:
        part: its `input_audio`.
        where: the part's place, for messages.

    Raises:
        Fault: it is not of the form `{data: BASE64, format: wav}`, or too large.
    """
    if not isinstance(part, Mapping) or not isinstance(part.get("data"), str):
        raise Fault("a sound is not of the form {data: BASE64, format: wav}", action=PLAY, param=where)
    if others := sorted(set(part) - {"data", "format"}):
        raise Fault(f"input_audio: {others[0]} is not offered here", action="leave it out", param=where)
    if part.get("format") not in SOUNDS:
        known = ", ".join(SOUNDS)
        raise Fault(f"input_audio: the format is none of {known}", action="convert it", param=where)
    if len(part["data"]) * 3 // 4 > LARGEST + 2:
        raise Fault(f"a sound has more than {LARGEST // 10**6} MB", action="cut it", param=where)
    return Audio(where, content=_decoded(part["data"], "input_audio", PLAY, where))


def _decoded(text: str, field: str, action: str, where: str) -> bytes:
    """The bytes of a text in base64.

    Raises:
        Fault: the text is not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Fault(f"{field}: its base64 cannot be read", action=action, param=where) from error


def shown_prompt(
    context: Context, model: str, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
) -> Sequence[int]:
    """The prompt of messages with images or sounds.

    Args:
        model: its name, for messages.

    Raises:
        Fault: there are too many, the model does not accept a kind, or one cannot be opened.
    """
    kinds = [placed.medium.kind for message in messages for placed in message.media]
    if len(kinds) > MOST:
        several = " and ".join(PLURALS[kind] for kind in dict.fromkeys(kinds))
        raise Fault(f"{len(kinds)} {several} in one request, {MOST} are taken", action="send fewer", param="messages")
    with _OPENING:
        for kind in dict.fromkeys(kinds):
            try:
                context.processor.placeholder(kind)  # loads what reads it
            except FinetoothError as error:
                problem = f"the model {model} takes no {PLURALS[kind]}"
                raise Fault(problem, action="ask in text", param="messages") from error
        try:
            read = context.renderer.shown_prompt(messages, tools)
            return ShownPrompt(read.tokens, tuple(chunks(read.media, "messages")))
        except FinetoothError as error:
            raise Fault(str(error), param="messages") from error

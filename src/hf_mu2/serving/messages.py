"""Read OpenAI's chat messages: one volume, the question of the last turn, earlier turns as text.

The volume is a part of any user message: `{"type": "file", "file": {"file_id": ...}}` for an upload, or
`{"type": "file", "file": {"file_data": "data:...;base64,..."}}` inline; `image_url` with such a URL is taken too. It
goes with the last question, whichever turn brought it: the mu2 tokenizer reads the question of the turn that holds the
volume.
"""

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from hf_mu2.reporting.streaming import Messages

from .errors import Refusal

_OTHER_ROLES = ("system", "developer", "tool", "function")  # of the API; words of a client are not said back


class ChatMessage(BaseModel):
    """One message of a conversation."""

    role: str
    content: str | list[dict[str, Any]]


class ChatRequest(BaseModel):
    """What is read of a request for a chat completion; other fields of the API are ignored, except those below."""

    model_config = ConfigDict(extra="ignore")

    messages: list[ChatMessage]
    model: str | None = None
    stream: bool = False
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    n: int | None = None


@dataclass(frozen=True)
class Conversation:
    """A conversation about one volume, given by the id of an upload or by its bytes."""

    file_id: str | None
    data: bytes | None
    question: str
    history: Messages


def read_conversation(request: ChatRequest) -> Conversation:
    """Take a request apart.

    Raises:
        Refusal: 400 if it asks for what there is not, or holds not exactly one volume.
    """
    if request.temperature not in (None, 0):
        raise Refusal(400, "Reports are greedy: `temperature` must be 0 or left out. Leave it out.")
    if request.n not in (None, 1):
        raise Refusal(400, f"There is one answer per request, `n` is {request.n}. Ask several times.")
    if not request.messages or request.messages[-1].role != "user":
        raise Refusal(400, "The last message must be the user's question. Append it.")
    volumes: list[dict[str, Any]] = []
    history: Messages = []
    for message in request.messages:
        if message.role not in ("user", "assistant"):
            role = f"`{message.role}`" if message.role in _OTHER_ROLES else "another role"
            raise Refusal(
                400, f"Messages are of `user` and `assistant`, got {role}. The model has no other roles."
            )
        parts = message.content if isinstance(message.content, list) else [_text(message.content)]
        volumes += [part for part in parts if part.get("type") != "text"]
        words = "\n".join(str(part.get("text", "")) for part in parts if part.get("type") == "text")
        try:
            words.encode()
        except UnicodeEncodeError:
            raise Refusal(
                400, "Text must be Unicode, this one holds half a letter. Encode it again."
            ) from None
        history.append({"role": message.role, "content": words.strip()})
    if len(volumes) != 1:
        raise Refusal(400, f"A conversation is about one volume, this one holds {len(volumes)}. Attach one.")
    file_id, data = _volume(volumes[0])
    return Conversation(
        file_id, data, history.pop()["content"], [turn for turn in history if turn["content"]]
    )


def _text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


def _volume(part: dict[str, Any]) -> tuple[str | None, bytes | None]:
    kind = part.get("type")
    given = part.get(kind) if kind in ("file", "image_url") else None
    if not isinstance(given, dict):
        raise Refusal(
            400, "A volume is a part of type `file` with a `file_id` or `file_data`. Upload it, or inline it."
        )
    if isinstance(file_id := given.get("file_id"), str):
        return file_id, None
    url = given.get("file_data") or given.get("url")
    header, _, encoded = str(url).partition(",")
    if not header.startswith("data:") or not header.endswith(";base64"):
        raise Refusal(
            400, "An inline volume is a `data:...;base64,...` URL; other URLs are not fetched. Upload it."
        )
    try:
        return None, base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise Refusal(400, "An inline volume must be base64, this one is not. Encode it again.") from error

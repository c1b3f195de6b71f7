"""Hand on an answer about a volume while it is written.

The volume goes with the last question: the mu2 tokenizer reads the question of the turn that holds the volume, so each
question draws its own tokens from the CT. Earlier turns stay as text.

Reads: a checkpoint, a volume, a question and earlier turns.
Writes: nothing.
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from hf_mu2.model.volume_mu2 import Volume
from hf_mu2.reporting.inference import Reader

Messages = list[dict[str, Any]]


@dataclass
class Reply:
    """What one model says in one turn.

    Args:
        model (`str`): Name of the checkpoint.
        text (`str`): The answer so far.
        finish_reason (`str`): `"eos"`, `"length"`, `"stopped"` by the asker, `""` while it is written.
        seconds (`float`): How long it took.
    """

    model: str
    text: str = ""
    finish_reason: str = ""
    seconds: float = 0.0


class _Stop(StoppingCriteria):
    """Ends generation at the next token once the visitor wants it to end."""

    def __init__(self, event: threading.Event):
        self.event = event

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.event.is_set(), dtype=torch.bool, device=input_ids.device)


def stream_reply(
    reader: Reader, volume: Volume, question: str, history: Messages, max_new_tokens: int
) -> Iterator[Reply]:
    """Yield the reply as it grows; the last one says why it ended. Greedy, as everywhere.

    Closing the iterator stops the model.

    Raises:
        Whatever the model raised.
    """
    started = time.perf_counter()
    inputs = reader.prepare([[*history, *reader.processor.build_messages(volume, question=question)]])
    streamer = TextIteratorStreamer(reader.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    stop = threading.Event()
    done: dict[str, Any] = {}

    def generate() -> None:
        try:
            with torch.inference_mode():
                done["ids"] = reader.model.generate(
                    **inputs,
                    do_sample=False,
                    num_beams=1,
                    max_new_tokens=max_new_tokens,
                    streamer=streamer,
                    stopping_criteria=StoppingCriteriaList([_Stop(stop)]),
                )
        except Exception as error:  # raised again where the answer is awaited
            done["error"] = error
        finally:
            streamer.on_finalized_text("", stream_end=True)

    thread = threading.Thread(target=generate, name="generate", daemon=True)
    thread.start()
    text = ""
    try:
        for piece in streamer:
            text += piece
            if piece:
                yield Reply(reader.name, text.lstrip(), seconds=time.perf_counter() - started)
    finally:
        stop.set()
        thread.join()
    if "error" in done:
        raise done["error"]
    ended = torch.tensor(reader.model.generation_config.eos_token_id).reshape(-1).tolist()
    reason = "eos" if int(done["ids"][0, -1]) in ended else "length"
    yield Reply(reader.name, text.strip(), reason, time.perf_counter() - started)

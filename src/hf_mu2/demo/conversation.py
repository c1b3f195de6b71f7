"""Ask about a volume, turn by turn, and hand on the answer while it is written.

Every turn shows the volume again beside its own question: the mu2 tokenizer reads the question of the turn that holds
the volume, so each question draws its own tokens from the CT. Earlier turns stay as text.
"""

import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from hf_mu2.explain.confidence import AssessedSentence, Calibration, describe_report
from hf_mu2.explain.evidence import Explanation
from hf_mu2.model.processing_mu2 import DEFAULT_QUESTION
from hf_mu2.model.volume_mu2 import Volume
from hf_mu2.reporting.inference import Reader

Messages = list[dict[str, Any]]


@dataclass
class Reply:
    """What one model says in one turn.

    Args:
        model (`str`): Name of the checkpoint.
        text (`str`): The answer so far.
        finish_reason (`str`): `"eos"`, `"length"`, `"stopped"` by the visitor, `""` while it is written.
        seconds (`float`): How long it took.
        evidence (`Explanation`, *optional*): What its sentences rest on, once that is known.
        assessed (`list[AssessedSentence]`): How sure to be of its sentences, once that is known.
    """

    model: str
    text: str = ""
    finish_reason: str = ""
    seconds: float = 0.0
    evidence: Explanation | None = None
    assessed: list[AssessedSentence] = field(default_factory=list)


@dataclass
class Turn:
    """One question, and a reply per model."""

    question: str
    replies: list[Reply] = field(default_factory=list)


def history_of(turns: list[Turn], model: str) -> Messages:
    """Write the earlier turns as one model heard them, in text alone."""
    messages: Messages = []
    for turn in turns:
        for reply in turn.replies:
            if reply.model == model and reply.text:
                messages.append({"role": "user", "content": turn.question})
                messages.append({"role": "assistant", "content": reply.text})
    return messages


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


def assess_reply(
    reader: Reader,
    calibration: Calibration | None,
    num_samples: int,
    volume: Volume,
    question: str,
    answer: str,
    history: Messages,
) -> list[AssessedSentence]:
    """Say how sure to be of each sentence of a reply, as [`~hf_mu2.explain.confidence.assess_report`] does."""
    prompt = reader.prepare([[*history, *reader.processor.build_messages(volume, question=question)]])
    num_samples = num_samples if calibration is None else calibration.num_samples
    return [
        AssessedSentence(
            sentence.text,
            sentence.span,
            # Fitted on reports: it says nothing about other questions, or about a turn that follows others.
            calibration.confidence(sentence)
            if calibration and question == DEFAULT_QUESTION and not history
            else None,
            sentence.agreement,
            math.exp(sentence.mean_log_probability),
            [],
        )
        for sentence in describe_report(reader, prompt, answer, num_samples=num_samples)
    ]

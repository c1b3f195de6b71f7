"""A conversation about a volume, turn by turn, and what is known of the sentences of its answers."""

from dataclasses import dataclass, field

from hf_mu2.explain.confidence import AssessedSentence, Calibration, assess_sentence, describe_report
from hf_mu2.explain.evidence import Explanation
from hf_mu2.model.processing_mu2 import DEFAULT_QUESTION
from hf_mu2.model.volume_mu2 import Volume
from hf_mu2.reporting.inference import Reader
from hf_mu2.reporting.streaming import Messages, Reply


@dataclass
class ShownReply(Reply):
    """A reply with what is known of its sentences.

    Args:
        evidence (`Explanation`, *optional*): What its sentences rest on, once that is known.
        assessed (`list[AssessedSentence]`): How sure to be of its sentences, once that is known.
    """

    evidence: Explanation | None = None
    assessed: list[AssessedSentence] = field(default_factory=list)


@dataclass
class Turn:
    """One question, and a reply per model."""

    question: str
    replies: list[ShownReply] = field(default_factory=list)


def history_of(turns: list[Turn], model: str) -> Messages:
    """Write the earlier turns as one model heard them, in text alone."""
    messages: Messages = []
    for turn in turns:
        for reply in turn.replies:
            if reply.model == model and reply.text:
                messages.append({"role": "user", "content": turn.question})
                messages.append({"role": "assistant", "content": reply.text})
    return messages


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
    # Fitted on reports: it says nothing about other questions, or about a turn that follows others.
    fitting = calibration if question == DEFAULT_QUESTION and not history else None
    return [
        assess_sentence(sentence, fitting)
        for sentence in describe_report(reader, prompt, answer, num_samples=num_samples)
    ]

"""How sure to be of each sentence of a report: what the model's own probabilities and its agreement with itself tell.

Reads: a checkpoint, a volume in its prompt; for fitting, references.
Writes: nothing; `confidence_runs.py` writes.

A sentence has three features: the mean and the lowest log-probability of its tokens, and its agreement, the share of
sampled reports that state the same (self-consistency, https://huggingface.co/papers/2203.11171, by finding instead of
by answer). A logistic regression fitted on validation studies turns them into the probability that the sentence is
right (Platt, 1999). Right is what `is_right` says; a sentence without a finding that the reader knows has none.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import cached_file

from hf_mu2.files import replace_text
from hf_mu2.model.volume_mu2 import Volume
from hf_mu2.reporting.inference import Answer, Reader
from hf_mu2.reporting.sampling import sample_seeded, sampling_config
from hf_mu2.scoring.regions import read_findings

from .evidence import Explanation, check_explainable, explain_report
from .forced import tokenize_sentences

CALIBRATION_FILE = "confidence.json"  # beside the weights of a checkpoint
FEATURES = ("mean_log_probability", "lowest_log_probability", "agreement", "affirms")


@dataclass(frozen=True)
class Statement:
    """A finding as a sentence states it: hedged findings count as affirmed."""

    organ: str
    finding: str
    is_affirmed: bool
    side: str | None


@dataclass(frozen=True)
class SentenceFeatures:
    """What a sentence states and how the model came to it.

    Args:
        span (`tuple[int, int]`): Start and end in the report.
        mean_log_probability, lowest_log_probability (`float`): Over the tokens of the sentence, in nats.
        agreement (`float`, *optional*): Share of sampled reports that state the same, `None` where it states nothing.
    """

    text: str
    span: tuple[int, int]
    statements: tuple[Statement, ...]
    mean_log_probability: float
    lowest_log_probability: float
    agreement: float | None

    def to_dict(self) -> dict[str, Any]:
        """Lay out the features, with `affirms`: whether the sentence states that something is there."""
        affirms = any(statement.is_affirmed for statement in self.statements)
        return asdict(self) | {"affirms": affirms}


def read_statements(text: str, region: str) -> list[tuple[tuple[int, int], Statement]]:
    """Read the findings of a text, with where each stands."""
    return [
        (found.span, Statement(found.organ, found.head, found.polarity != "negative", found.side))
        for found in read_findings(text, region=region)
    ]


def is_right(statements: Sequence[Statement], other: Iterable[Statement]) -> bool | None:
    """Say whether all of a sentence's statements hold in another report.

    What the other report does not mention is absent there. Sides are compared where both reports name one.

    Returns:
        `None` if there is no statement.
    """
    if not statements:
        return None
    affirmed: dict[tuple[str, str], set[str | None]] = {}
    for statement in other:
        if statement.is_affirmed:
            affirmed.setdefault((statement.organ, statement.finding), set()).add(statement.side)

    def holds(statement: Statement) -> bool:
        sides = affirmed.get((statement.organ, statement.finding))
        if sides is None or not statement.is_affirmed:
            return (sides is None) is not statement.is_affirmed
        return statement.side is None or bool(sides & {statement.side, None, "both"})

    return all(map(holds, statements))


def answer_with_features(
    reader: Reader,
    prompt: Mapping[str, torch.Tensor],
    *,
    num_samples: int = 8,
    seed: int = 0,
    max_new_tokens: int = 512,
) -> tuple[Answer, list[SentenceFeatures]]:
    """Generate a report greedily and describe each sentence; the tower runs once.

    Args: those of [`describe_report`].
    """
    prompt = encode_volumes(reader, prompt)
    answer = reader.answer(prompt, max_new_tokens)[0]
    return answer, describe_report(
        reader, prompt, answer.text, num_samples=num_samples, seed=seed, max_new_tokens=max_new_tokens
    )


def describe_report(
    reader: Reader,
    prompt: Mapping[str, torch.Tensor],
    report: str,
    *,
    num_samples: int = 8,
    seed: int = 0,
    max_new_tokens: int = 512,
) -> list[SentenceFeatures]:
    """Describe each sentence of a report, after sampling others of the same volume.

    Args:
        prompt (`Mapping[str, torch.Tensor]`): One conversation of `Reader.prepare`.
        num_samples (`int`): Reports sampled at temperature 1 and `top_p` 0.9.
        seed (`int`): Of the samples; the global generator is left alone.
    """
    prompt = encode_volumes(reader, prompt)
    config = sampling_config(reader, max_new_tokens=max_new_tokens)
    samples = sample_seeded(reader, prompt, num_samples, config, seed)[0]
    return describe_sentences(reader, prompt, report, [sample.text for sample in samples])


@torch.inference_mode()
def encode_volumes(reader: Reader, prompt: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Run the vision tower, and put what it returns in the place of the voxels."""
    encoded = dict(prompt)
    if "pixel_values" in encoded:
        encoded["vision_hidden_states"] = reader.model.model.vision_tower(
            encoded.pop("pixel_values"), encoded["pixel_attention_mask"]
        ).last_hidden_state
    return encoded


@torch.inference_mode()
def describe_sentences(
    reader: Reader, prompt: Mapping[str, torch.Tensor], report: str, samples: Sequence[str]
) -> list[SentenceFeatures]:
    """Describe the sentences of a report under a prompt, given other reports of the same volume."""
    if not report.strip():
        return []
    region = reader.model.config.body_region or ""
    ids, spans, sentence_tokens = tokenize_sentences(reader.processor.tokenizer, report)
    input_ids = torch.cat([prompt["input_ids"], ids.to(prompt["input_ids"].device)], dim=1)
    inputs = {**prompt, "input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    logits = reader.model(**inputs, logits_to_keep=ids.shape[1] + 1).logits[:, :-1].float()
    tokens = logits.log_softmax(dim=-1).gather(2, input_ids[:, -ids.shape[1] :, None])[0, :, 0].cpu()
    said = read_statements(report, region)
    others = [[statement for _, statement in read_statements(sample, region)] for sample in samples]
    described = []
    for span, is_mine in zip(spans, sentence_tokens.bool()):
        statements = tuple(s for (start, _), s in said if span[0] <= start < span[1])
        votes = [is_right(statements, other) for other in others]
        described.append(
            SentenceFeatures(
                report[slice(*span)],
                span,
                statements,
                float(tokens[is_mine].mean()),
                float(tokens[is_mine].min()),
                float(np.mean([bool(vote) for vote in votes])) if statements and votes else None,
            )
        )
    return described


@dataclass(frozen=True)
class Calibration:
    """A logistic regression from features to the probability that a sentence is right.

    Args:
        weights (`tuple[float, ...]`): One for each of `FEATURES`, on their own scale.
        intercept (`float`): Its constant.
        weights_digest (`str`): Of the checkpoint whose sentences it was fitted on, see [`digest_weights`].
        num_samples (`int`): Reports sampled for the agreement.
        fitted_on (`dict`): Numbers of studies and sentences, and the dataset's digest.
    """

    weights: tuple[float, ...]
    intercept: float
    weights_digest: str
    num_samples: int
    fitted_on: dict[str, Any]

    def confidence(self, sentence: SentenceFeatures) -> float | None:
        """Return the probability that a sentence is right, `None` where it states nothing."""
        if sentence.agreement is None:
            return None
        logit = self.intercept + float(np.dot(self.weights, feature_row(sentence.to_dict())))
        return float(1 / (1 + np.exp(-logit)))

    def save(self, path: str | Path) -> None:
        replace_text(path, json.dumps(asdict(self), indent=2) + "\n")


def feature_row(sentence: Mapping[str, Any]) -> list[float]:
    """Lay out the features of a sentence in the order of `FEATURES`."""
    return [float(sentence[name]) for name in FEATURES]


def digest_weights(reader: Reader) -> str:
    """Hash the weights of a checkpoint by content: a calibration holds for these and travels with them."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in reader.folder.iterdir() if path.suffix in (".safetensors", ".bin")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def find_calibration(reader: Reader, path: str | Path | None = None) -> Calibration | None:
    """Load a calibration, by default that of the checkpoint; `None` where it has none.

    Raises:
        ValueError: if it is of another checkpoint.
    """
    if path is None:
        is_cached = (
            reader.folder.name == reader.revision
        )  # from the Hub, which may hold more than was fetched
        source = reader.name if is_cached else str(reader.folder)
        path = cached_file(source, CALIBRATION_FILE, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return None
    calibration = load_calibration(path)
    if calibration.weights_digest != digest_weights(reader):
        raise ValueError(
            f"A calibration holds for its checkpoint, `{Path(path).name}` is of another one than "
            f"`{reader.name}`. Fit one: `hf-mu2 confidence collect`, then `fit`."
        )
    return calibration


def load_calibration(path: str | Path) -> Calibration:
    """Read a calibration.

    Raises:
        ValueError: if the file is something else.
    """
    try:
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
        calibration = Calibration(**fields | {"weights": tuple(fields["weights"])})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"A calibration is what `hf-mu2 confidence fit` writes, `{path}` is something else. Fit one."
        ) from error
    if len(calibration.weights) != len(FEATURES):
        raise ValueError(
            f"A calibration weighs {len(FEATURES)} features, `{path}` has {len(calibration.weights)}. Fit it again."
        )
    return calibration


@dataclass(frozen=True)
class AssessedSentence:
    """A sentence of a report with how sure to be of it and where in the volume it looks.

    Args:
        span (`tuple[int, int]`): Start and end in the report.
        confidence (`float`, *optional*): Calibrated probability that it is right; `None` without a calibration, or
            where the sentence states no finding that the reader knows.
        agreement (`float`, *optional*): Share of sampled reports that state the same.
        probability (`float`): Geometric mean of the probabilities of its tokens.
        key_slices (`list[int]`): Axial slices of the volume with most evidence for it, most first.
    """

    text: str
    span: tuple[int, int]
    confidence: float | None
    agreement: float | None
    probability: float
    key_slices: list[int]


def assess_report(
    reader: Reader,
    volume: Volume,
    question: str,
    report: str,
    calibration: Calibration | None,
    *,
    explanation: Explanation | None = None,
    num_samples: int = 8,
    seed: int = 0,
) -> list[AssessedSentence]:
    """Assess each sentence of a report.

    Args:
        question (`str`): What was asked, as the model read it.
        calibration (`Calibration`, *optional*): Of this checkpoint; its number of samples replaces `num_samples`.
        explanation (`Explanation`, *optional*): Of this report, where it is at hand; made here otherwise.

    Raises:
        ValueError: if the checkpoint's evidence cannot be traced, see [`check_explainable`].
    """
    check_explainable(reader)
    prompt = reader.prepare([reader.processor.build_messages(volume, question=question)])
    num_samples = num_samples if calibration is None else calibration.num_samples
    sentences = describe_report(reader, prompt, report, num_samples=num_samples, seed=seed)
    if not sentences:
        return []
    if explanation is None:  # its slices are wanted, not the test of its maps
        explanation = explain_report(reader, volume, question, report, num_draws=0)
    return [
        assess_sentence(sentence, calibration, place.key_slices)
        for sentence, place in zip(sentences, explanation.sentences, strict=True)
    ]


def assess_sentence(
    sentence: SentenceFeatures, calibration: Calibration | None, key_slices: Sequence[int] = ()
) -> AssessedSentence:
    """Say of a described sentence how sure to be of it."""
    return AssessedSentence(
        sentence.text,
        sentence.span,
        None if calibration is None else calibration.confidence(sentence),
        sentence.agreement,
        float(np.exp(sentence.mean_log_probability)),
        list(key_slices),
    )

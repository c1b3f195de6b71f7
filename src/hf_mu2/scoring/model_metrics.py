"""Metrics that need a model of their own: BERTScore, RadGraph-F1, RaTEScore, RadBERT-CT, CRIMSON.

Each comes from the package that maintains it, through an extra outside `all`, imported when it is called: `bertscore`
for BERTScore, `radeval` for the others. radeval brings spaCy, stanza and many more, switches Python's warnings off, and
asks the network for NLTK data when it is imported: give it an environment of its own. Models are fetched from the Hub
unless they are in its cache; reports never leave this machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

CRIMSON_JUDGE = "rajpurkarlab/medgemma-4b-it-crimson"
# What radeval 2.2 loads; other versions may load others.
_RADEVAL = "2.2"
_RADEVAL_MODELS = {
    "radgraph": ("StanfordAIMI/RRG_scorers:radgraph-xl",),
    "ratescore": ("Angelakeke/RaTE-NER-Deberta", "FremyCompany/BioLORD-2023-C"),
    "f1radbert_ct": ("IAMJB/RadBERT-CT",),
}


@dataclass(frozen=True)
class ModelScores:
    """Scores of a metric that needs a model.

    Args:
        scores (`dict[str, float | None]`): One number per name over all reports, `None` where none could be scored.
        per_report (`dict[str, list[float | None]]`): The same per report, in order; `None` where there is none.
        models (`tuple[str, ...]`): Which models gave them.
        signature (`str`): What the numbers depend on.
    """

    scores: dict[str, float | None]
    per_report: dict[str, list[float | None]]
    models: tuple[str, ...]
    signature: str


def bertscore(
    references: Sequence[str],
    candidates: Sequence[str],
    *,
    model: str = "roberta-large",
    num_layers: int | None = None,
    is_rescaled: bool = False,
    batch_size: int = 64,
    device: str | None = None,
) -> ModelScores:
    """Compute BERTScore: how well the tokens of two reports match in a language model's hidden states.

    Reports are cut at what the model takes, 512 tokens for the usual ones. An empty report scores 0. Insensitive to
    clinical errors: a flipped negation still scores about .9. For comparison with published tables only.

    Args:
        model (`str`): Hub id or folder.
        num_layers (`int`, *optional*): Which layer's hidden states; `bert-score` knows it for the usual models.
        is_rescaled (`bool`): Rescale with the published baseline of the model, so that chance is about 0.
    """
    _check(references, candidates)
    try:
        import bert_score
    except ImportError as error:
        raise ImportError('BERTScore needs its package: `pip install "hf_mu2[bertscore]"`.') from error

    scorer = bert_score.BERTScorer(
        model_type=model,
        num_layers=num_layers,
        batch_size=batch_size,
        device=device,
        lang="en" if is_rescaled else None,
        rescale_with_baseline=is_rescaled,
    )
    # bert-score 0.3.13 encodes an empty text by a method that transformers 5 has removed.
    written = [
        i for i, texts in enumerate(zip(references, candidates)) if all(text.strip() for text in texts)
    ]
    rows = {name: [0.0] * len(references) for name in ("precision", "recall", "f1")}
    if written:
        measured = scorer.score([candidates[i] for i in written], [references[i] for i in written])
        for name, values in zip(rows, measured):
            for i, value in zip(written, values.tolist()):
                rows[name][i] = value
    signature = "|".join(
        [
            "bertscore",
            f"model:{model}",
            f"layer:{scorer.num_layers}",
            "idf:no",
            f"rescaled:{'yes' if is_rescaled else 'no'}",
            f"bert-score:{version('bert-score')}",
            f"transformers:{version('transformers')}",
            f"n:{len(references)}",
        ]
    )
    per_report: dict[str, list[float | None]] = {
        f"bertscore_{name}": list(values) for name, values in rows.items()
    }
    return ModelScores(_means(per_report), per_report, (model,), signature)


def radgraph_f1(references: Sequence[str], candidates: Sequence[str]) -> ModelScores:
    """Compute RadGraph-F1: agreement of entities (simple), with relations (partial), with both (complete).

    Its model was trained on chest X-ray reports.
    """
    return _radeval("radgraph", references, candidates)


def ratescore(references: Sequence[str], candidates: Sequence[str]) -> ModelScores:
    """Compute RaTEScore: agreement of medical entities, synonyms allowed. A pair without entities scores 0.5."""
    return _radeval("ratescore", references, candidates)


def radbert_ct_f1(references: Sequence[str], candidates: Sequence[str]) -> ModelScores:
    """Compute F1 over the 18 CT-RATE labels as RadBERT reads them: a second opinion beside our own labeler.

    Per report there is `f1radbert_ct_sample_acc`; the averages are over all reports.
    """
    rows = _radeval("f1radbert_ct", references, candidates)
    averages = _evaluate("f1radbert_ct", {}, references, candidates, per_report=False)
    return ModelScores({**rows.scores, **averages}, rows.per_report, rows.models, rows.signature)


def crimson(
    references: Sequence[str], candidates: Sequence[str], *, judge: str = CRIMSON_JUDGE
) -> ModelScores:
    """Compute CRIMSON in (-1, 1]: a language model on this machine weighs errors by their clinical importance.

    Its rubric is one for chest X-rays: experimental on CT. A report whose judgement could not be read has no score.
    """
    options = {"provider": "hf", "model_name": judge}
    return _radeval("crimson", references, candidates, options, models=(judge,))


def _radeval(
    name: str,
    references: Sequence[str],
    candidates: Sequence[str],
    options: dict[str, Any] | None = None,
    models: tuple[str, ...] | None = None,
) -> ModelScores:
    _check(references, candidates)
    models = _RADEVAL_MODELS[name] if models is None else models
    found = _evaluate(name, options or {}, references, candidates, per_report=True)
    per_report = {
        key: [None if value is None or math.isnan(value) else float(value) for value in values]
        for key, values in found.items()
    }
    signature = "|".join(
        [
            name,
            *(f"model:{model}" for model in models),
            f"radeval:{version('radeval')}",
            f"transformers:{version('transformers')}",
            f"n:{len(references)}",
        ]
    )
    return ModelScores(_means(per_report), per_report, models, signature)


def _evaluate(
    name: str,
    options: dict[str, Any],
    references: Sequence[str],
    candidates: Sequence[str],
    *,
    per_report: bool,
) -> dict[str, Any]:
    try:
        from radeval import RadEval
    except ImportError as error:
        raise _missing(name, error) from error
    if not version("radeval").startswith(f"{_RADEVAL}."):
        raise ImportError(
            f"The models behind `{name}` are known for radeval {_RADEVAL}, installed is {version('radeval')}. "
            'Install the one that was tested: `pip install "hf_mu2[radeval]"`.'
        )
    try:
        evaluator = RadEval(metrics={name: options}, per_sample=per_report, show_progress=False)
    except ImportError as error:  # radeval imports what a metric needs when the metric is made
        raise _missing(name, error) from error
    return evaluator(refs=list(references), hyps=list(candidates))


def _missing(name: str, error: ImportError) -> ImportError:
    return ImportError(
        f"The metric `{name}` needs radeval with all it depends on ({error}): "
        '`pip install "hf_mu2[radeval]"`, best in an environment of its own.'
    )


def _check(references: Sequence[str], candidates: Sequence[str]) -> None:
    if len(references) != len(candidates) or not references:
        raise ValueError(
            f"Every reference needs one candidate, got {len(references)} and {len(candidates)}. "
            "Pair them by study first."
        )


def _means(per_report: dict[str, list[float | None]]) -> dict[str, float | None]:
    known = {name: [value for value in values if value is not None] for name, values in per_report.items()}
    return {name: sum(values) / len(values) if values else None for name, values in known.items()}

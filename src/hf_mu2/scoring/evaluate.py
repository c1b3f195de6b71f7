"""Score a system's reports: every metric with its signature, interval and floors, and what the reports look like.

Reads: predictions, references and, for the floors, training references, as files or rows.
Returns: an `Evaluation`, which `evaluate_report.write_evaluation` writes as JSON, Markdown and pictures.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from . import clinical, floors
from .clinical import MacroOver, clinical_columns, clinical_scores
from .degeneracy import degeneracy, template_sentences, without_template
from .findings import Findings, read_findings
from .labels import LABELS, VERSION
from .lexical import LexicalScorer, Protocol
from .resampling import bootstrap, interval, paired_randomisation, total
from .rows import Pairs, Report, Rows, Section, pair_reports, read_references, read_rows

NOTICE = "Research software, not a medical device. Scores compare words and rule-read findings, not clinical quality."
_PACKAGES = ("hf-mu2", "sacrebleu", "rouge-score", "nltk", "numpy")


@dataclass(frozen=True)
class Evaluation:
    """What was measured. Every part but `studies` is free of report text and study ids.

    Args:
        settings (`dict`): What was compared with what, and how: protocol, section, numbers of studies and patients,
            source of the labels, versions.
        signatures (`dict`): Per metric, everything that moves its number.
        hygiene (`dict`): What was left out, mended or counted as empty.
        scores (`dict`, *optional*): Per metric `value`, `low` and `high` (95 % interval over patients); `None` where
            nothing can be said. Absent when only floors were asked for.
        floors (`dict`): The same for `constant_normal`, `random` and `nearest_by_labels`; `None` for a floor that
            needs training references and has none.
        labels (`dict`): Per finding label precision, recall, F1 with interval, support; and F1 of each floor.
        degeneracy (`dict`): How varied, long, normal and templated the candidates are.
        comparison (`dict`, *optional*): Per metric, this system against another: both values, difference with
            interval, p-value of the paired randomisation test.
        studies (`list[dict]`): Per study: texts, scores, labels with the words that are their evidence. Stays local.
    """

    settings: dict[str, Any]
    signatures: dict[str, str]
    hygiene: dict[str, int]
    scores: dict[str, Any] | None
    floors: dict[str, Any]
    labels: dict[str, Any]
    degeneracy: dict[str, Any] | None
    comparison: dict[str, Any] | None
    studies: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return everything that holds no report text and no study id, ready for JSON."""
        return {
            "notice": NOTICE,
            "settings": self.settings,
            "signatures": self.signatures,
            "hygiene": self.hygiene,
            "scores": self.scores,
            "floors": self.floors,
            "labels": self.labels,
            "degeneracy": self.degeneracy,
            "comparison": self.comparison,
        }


def evaluate_reports(
    predictions: Rows | None,
    references: Rows | None = None,
    *,
    training_references: Rows | None = None,
    compare_with: Rows | None = None,
    protocol: Protocol = "default",
    section: Section = "both",
    use_given_labels: bool = True,
    macro_over: MacroOver = "occurring",
    num_resamples: int = 1000,
    num_shuffles: int = 10_000,
    seed: int = 0,
    java: bool = False,
) -> Evaluation:
    """Score candidate reports against reference reports, with the floors and intervals they need to be read.

    Args:
        predictions (`Rows`, *optional*): File or rows with `study_id` and `candidate`. `None` measures the floors only.
        references (`Rows`, *optional*): File or rows with `study_id`, `reference` and, where known, `patient_id` and
            the 18 labels. Left out, the predictions carry them.
        training_references (`Rows`, *optional*): Reports to build floors and templates from. May be the references
            themselves: nobody is given a report of their own patient.
        compare_with (`Rows`, *optional*): Predictions of another system on the same studies.
        protocol (`str`): `"default"`, `"u2"` or `"coco"`; see `lexical`.
        section (`str`): What is compared: `"both"`, `"findings"` or `"impression"`.
        use_given_labels (`bool`): Take the references' labels from their rows where they have them, else by rules.
        macro_over (`str`): Macro averages over labels that are `"occurring"` in the references, or over `"all"`.
        num_resamples (`int`): Bootstrap resamples of patients.
        num_shuffles (`int`): Swaps of the paired randomisation test.
        seed (`int`): Decides resamples, random floor and ties.
        java (`bool`): Tokenize for `coco` with pycocoevalcap's Java tokenizer.
    """
    if predictions is None and references is None:
        raise ValueError("Scoring needs predictions or references, got neither. Give at least `references`.")
    if predictions is not None:
        predictions = read_rows(predictions)
        references = read_rows(references) if references is not None else predictions
        pairs = pair_reports(predictions, references, section=section)
    else:
        assert references is not None
        kept, counts = read_references(references, section=section)
        pairs = Pairs(kept, [], [], counts)
    if not pairs.references:
        raise ValueError(
            "Scoring needs references, got only empty ones. Check the column of the reference text."
        )
    read = cache(read_findings)
    patients = [report.patient_id for report in pairs.references]
    reference_findings = [_findings(report, read, use_given_labels) for report in pairs.references]
    scorer = LexicalScorer([report.text for report in pairs.references], protocol=protocol, java=java)

    def columns_of(texts: Sequence[str]) -> dict[str, np.ndarray]:
        findings = [read(text) for text in texts]
        return scorer.columns(texts) | clinical_columns(reference_findings, findings)

    def scores_of(sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return scorer.scores(sums) | clinical_scores(sums, macro_over=macro_over)

    def measure(columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
        drawn = bootstrap(columns, patients, scores_of, num_resamples=num_resamples, seed=seed)
        return {
            name: _score(value, *interval(drawn[name])) for name, value in scores_of(total(columns)).items()
        }

    training: list[Report] = []
    if training_references is not None:
        training, _ = read_references(training_references, section=section)
    training_labels = np.array([_findings(report, read, use_given_labels).labels for report in training])
    floor_texts = _floor_texts(reference_findings, patients, training, training_labels, seed)
    floor_columns = {name: columns_of(texts) for name, texts in floor_texts.items()}
    measured_floors = {
        name: measure(floor_columns[name]) if name in floor_columns else None for name in floors.FLOORS
    }
    template = template_sentences([report.text for report in training]) if training else None

    scores: dict[str, Any] | None = None
    reports_look: dict[str, Any] | None = None
    comparison: dict[str, Any] | None = None
    columns: dict[str, np.ndarray] = {}
    if pairs.candidates:
        columns = columns_of(pairs.candidates)
        scores = measure(columns)
        candidate_findings = [read(text) for text in pairs.candidates]
        reports_look = {
            **degeneracy(
                pairs.candidates,
                [report.text for report in pairs.references],
                candidate_findings,
                reference_findings,
                template,
            ),
            "remainder": _remainder(pairs, template, protocol, java) if template else None,
            "answered": _answered(pairs, columns, scores_of),
            "shuffled": _shuffled(reference_findings, candidate_findings, patients, seed),
        }
    if compare_with is not None and pairs.candidates:
        other = pair_reports(compare_with, references, section=section)
        comparison = _compare(
            columns, columns_of(other.candidates), patients, scores_of, num_resamples, num_shuffles, seed
        )
    labels = _label_section(columns, floor_columns, patients, num_resamples, seed)
    return Evaluation(
        settings={
            "protocol": protocol,
            "section": section,
            "studies": len(pairs.references),
            "patients": len(set(patients)),
            "training_studies": len(training),
            "labeler": VERSION,
            "labels_given": sum(report.labels is not None for report in pairs.references) * use_given_labels,
            "labeler_against_given": _labeler_agreement(pairs.references, read) if use_given_labels else None,
            "macro_over": macro_over,
            "num_resamples": num_resamples,
            "seed": seed,
            "python": platform.python_version(),
            "versions": _versions(),
        },
        signatures=scorer.signatures | _clinical_signatures(macro_over, use_given_labels, pairs.references),
        hygiene=pairs.counts,
        scores=scores,
        floors=measured_floors,
        labels=labels,
        degeneracy=reports_look,
        comparison=comparison,
        studies=_study_rows(pairs, reference_findings, columns, scores_of, read) if pairs.candidates else [],
    )


def _findings(report: Report, read: Callable[[str], Findings], use_given_labels: bool) -> Findings:
    findings = read(report.text)
    return (
        replace(findings, labels=report.labels)
        if use_given_labels and report.labels is not None
        else findings
    )


def _floor_texts(
    wanted: Sequence[Findings],
    patients: Sequence[str],
    training: Sequence[Report],
    training_labels: np.ndarray,
    seed: int,
) -> dict[str, list[str]]:
    if not training:
        return {"constant_normal": [floors.NORMAL_REPORT] * len(patients)}
    return floors.floor_reports(
        np.array([findings.labels for findings in wanted]),
        patients,
        [report.text for report in training],
        training_labels,
        [report.patient_id for report in training],
        seed=seed,
    )


def _remainder(pairs: Pairs, template: set[str], protocol: Protocol, java: bool) -> dict[str, Any] | None:
    """Score what is left of both texts without template sentences, where the reference has something left."""
    left = [
        (without_template(candidate, template)[0], rest)
        for candidate, report in zip(pairs.candidates, pairs.references)
        if (rest := without_template(report.text, template)[0])
    ]
    if not left:
        return None
    candidates, references = zip(*left)
    scorer = LexicalScorer(references, protocol=protocol, java=java)
    scores = scorer.scores(total(scorer.columns(candidates)))
    return {"studies": len(left)} | {name: _number(value) for name, value in scores.items()}


def _answered(
    pairs: Pairs, columns: Mapping[str, np.ndarray], scores_of: Callable[..., dict[str, np.ndarray]]
) -> dict[str, Any]:
    """Score the studies that the system answered; the headline counts the others as empty reports."""
    answered = np.array([bool(text) for text in pairs.candidates])
    scores = scores_of(total({name: column[answered] for name, column in columns.items()}))
    return {"studies": int(answered.sum())} | {name: _number(value) for name, value in scores.items()}


def _shuffled(
    references: Sequence[Findings], candidates: Sequence[Findings], patients: Sequence[str], seed: int
) -> dict[str, Any] | None:
    """Measure how much of macro-F1 is lost when candidates are dealt to other studies, where all labels are known."""
    reference = np.array([findings.labels for findings in references])
    candidate = np.array([findings.labels for findings in candidates]) == 1
    known = ~np.isnan(reference).any(axis=1)
    if known.sum() < 2:
        return None
    return clinical.shuffled_gap(
        reference[known],
        candidate[known],
        np.asarray(patients)[known].tolist(),
        num_shuffles=20,
        num_bootstraps=200,
        seed=seed,
    )


def _compare(
    mine: Mapping[str, np.ndarray],
    other: Mapping[str, np.ndarray],
    patients: Sequence[str],
    scores_of: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]],
    num_resamples: int,
    num_shuffles: int,
    seed: int,
) -> dict[str, Any]:
    # The same seed draws the same patients for both systems.
    drawn = bootstrap(mine, patients, scores_of, num_resamples=num_resamples, seed=seed)
    others = bootstrap(other, patients, scores_of, num_resamples=num_resamples, seed=seed)
    p_values = paired_randomisation(mine, other, patients, scores_of, num_shuffles=num_shuffles, seed=seed)
    theirs = scores_of(total(other))
    return {
        name: {"a": _number(value), "b": _number(theirs[name]), "p": _number(np.asarray(p_values[name]))}
        | {
            key.replace("value", "difference"): number
            for key, number in _score(value - theirs[name], *interval(drawn[name] - others[name])).items()
        }
        for name, value in scores_of(total(mine)).items()
    }


def _label_section(
    columns: Mapping[str, np.ndarray],
    floor_columns: Mapping[str, Mapping[str, np.ndarray]],
    patients: Sequence[str],
    num_resamples: int,
    seed: int,
) -> dict[str, Any]:
    floor_tables = {name: clinical.label_rows(total(of)) for name, of in floor_columns.items()}
    support = next(iter(floor_tables.values()))
    table: dict[str, Any] = {label: {"support": support[label]["support"]} for label in LABELS}
    if columns:
        counts = {name: columns[name] for name in ("hits", "support", "predicted")}

        def f1(sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            both = sums["support"] + sums["predicted"]
            return {"f1": np.where(both > 0, 2 * sums["hits"] / np.maximum(both, 1), 0.0)}

        drawn = bootstrap(counts, patients, f1, num_resamples=num_resamples, seed=seed)["f1"]
        for index, (label, row) in enumerate(clinical.label_rows(total(columns)).items()):
            low, high = interval(drawn[:, index])
            table[label] = row | {"f1_low": low, "f1_high": high}
    for name, rows in floor_tables.items():
        for label in LABELS:
            table[label][f"f1_{name}"] = rows[label]["f1"]
    return table


def _labeler_agreement(
    references: Sequence[Report], read: Callable[[str], Findings]
) -> dict[str, Any] | None:
    """Compare the rules with the labels that came with the references, over cells that both know."""
    given = [report for report in references if report.labels is not None]
    if not given:
        return None
    by_hand = [_findings(report, read, True) for report in given]
    scores = clinical_scores(total(clinical_columns(by_hand, [read(report.text) for report in given])))
    names = ("micro_f1", "macro_f1", "accuracy")
    return {"studies": len(given)} | {name: _number(scores[name]) for name in names}


def _study_rows(
    pairs: Pairs,
    references: Sequence[Findings],
    columns: Mapping[str, np.ndarray],
    scores_of: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]],
    read: Callable[[str], Findings],
) -> list[dict[str, Any]]:
    per_study = scores_of(dict(columns))
    rows = []
    for index, (report, candidate, status) in enumerate(
        zip(pairs.references, pairs.candidates, pairs.statuses)
    ):
        mine, theirs = read(candidate), references[index]
        rows.append(
            {
                "study_id": report.study_id,
                "patient_id": report.patient_id,
                "status": status,
                "scores": {name: _number(values[index]) for name, values in per_study.items()},
                "missed": _named((theirs.labels == 1) & (mine.labels != 1)),
                "invented": _named((mine.labels == 1) & (theirs.labels == 0)),
                "reference_evidence": _evidence(theirs),
                "candidate_evidence": _evidence(mine),
                "reference": report.text,
                "candidate": candidate,
            }
        )
    return rows


def _named(chosen: np.ndarray) -> list[str]:
    return [LABELS[index] for index in np.flatnonzero(chosen)]


def _evidence(findings: Findings) -> list[dict[str, Any]]:
    return [
        {"label": item.label, "status": item.status, "span": list(item.span), "text": item.text}
        for item in findings.evidence
    ]


def _clinical_signatures(
    macro_over: MacroOver, use_given_labels: bool, references: Sequence[Report]
) -> dict[str, str]:
    given = sum(report.labels is not None for report in references) * use_given_labels
    source = "rules" if not given else "given" if given == len(references) else f"given:{given}+rules"
    end = f"labels:18|reference:{source}|candidate:{VERSION}|uncertain:positive|n:{len(references)}"
    own = {"crg": "arXiv:2505.17167"} | dict.fromkeys(("coverage", "accuracy"), "own definition")
    own |= {"side_agreement": "same word", "size_agreement": "2 mm or 20 %"}
    signatures = {}
    for name in clinical.METRICS:
        extra = f"|macro:{macro_over}" if name.startswith("macro") else ""
        signatures[name] = f"{name}|{own.get(name, 'hf_mu2')}{extra}|{end}"
    return signatures


def _score(value: np.ndarray, low: float, high: float) -> dict[str, float | None]:
    return {"value": _number(value), "low": _number(low), "high": _number(high)}


def _number(value: np.ndarray | float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # the package runs from its source tree
            continue
    return found

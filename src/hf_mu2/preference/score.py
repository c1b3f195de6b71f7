"""Score sampled candidates against their references: label-F1, CRG, ROUGE-L, GREEN, or a weighted mean of these.

Reads: rows of `hf-mu2 sample`, references in any form that `scoring/rows.py` reads; a judge for GREEN.
Writes: the same rows with scores, JSONL or Parquet by the ending of the file, and `<stem>.manifest.json` beside it. The
replies of a judge are kept in `<out>.replies` as they come, so that a run that was killed, or whose judge failed, asks
for the missing ones only.

A row keeps its fields and gains `reference` (null without one), `signature` (what its scores depend on) and `egress` as
both files say. A candidate gains

    "scores": {"label_f1": 0.5, "green": 0.25, "total": 0.325}     null where there is no score
    "status": "ok" or why there is no total, in the words of `STATUSES`
    "judge": {"status": "ok", "matched": 1, "significant": {"a": 3, ...}, "error": null}    GREEN, null if not asked

`total` is the weighted mean of what was asked for. It is null if any of its parts is missing: a failed judge is neither
0 nor 1, and a mean over fewer parts is another score. `label_f1` is always there, for ties.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from hf_mu2.files import replace_file
from hf_mu2.reporting.environment import describe_command, library_versions
from hf_mu2.reporting.inference import process_state, to_json
from hf_mu2.scoring import labels
from hf_mu2.scoring.findings import read_findings
from hf_mu2.scoring.green import GreenResult, Judge, Pair, joint_egress, judge_on_all_processes
from hf_mu2.scoring.hygiene import clean_candidate, is_chinese, study_of
from hf_mu2.scoring.lexical import rouge_l
from hf_mu2.scoring.rewards import crg_reward, label_f1_reward
from hf_mu2.scoring.rows import Report, Section, read_references, take_section
from hf_mu2.tables import read_rows, write_rows

from .sample import check_ending

Differing = Literal["text", "labels"]
SCORERS = ("label_f1", "crg", "rouge_l", "green")
STATUSES = {
    "ok": "scored",
    "no_reference": "the study has no reference",
    "unreadable_reference": "the finding labeler cannot read the reference",
    "not_differing": "the candidates of the study do not differ, so the judge was not asked",
    "empty": "the candidate says nothing, so the judge was not asked",
    "judge_failed": "the judge gave no reply",
    "judge_truncated": "the judge's reply was cut off",
    "judge_unparsed": "the judge's reply could not be read",
    "judge_empty": "the judge's reply was empty",
}
_FROM_WORDS: dict[str, Callable[[Sequence[str], Sequence[str]], list[float]]] = {
    "label_f1": label_f1_reward,
    "crg": crg_reward,
    "rouge_l": rouge_l,
}


@dataclass(frozen=True)
class Scored:
    """What a finished run left behind; `failed` says why, per study with candidates that the judge gave no reply on."""

    out: Path
    manifest: Path
    summary: dict[str, Any]
    failed: dict[str, str]


@dataclass(frozen=True)
class _Candidate:
    """One candidate as it is scored, and where it stands; `reference` is `""` where there is none."""

    row: int
    place: int
    text: str
    reference: str
    egress: bool | None


def read_weights(by: Sequence[str]) -> dict[str, float]:
    """Read `["green=0.7", "label_f1=0.3"]` or `["label_f1"]` as weights that sum to 1.

    Raises:
        ValueError: if a scorer is unknown, comes twice, or has a weight that is not above 0.
    """
    weights: dict[str, float] = {}
    for part in by:
        name, _, weight = part.partition("=")
        try:
            number = float(weight or 1)
        except ValueError:
            number = math.nan
        if name not in SCORERS or name in weights or not (0 < number < math.inf):
            raise ValueError(
                f"A score is made of {', '.join(SCORERS)}, each once and with a weight above 0, got `{part}` in "
                f"{list(by)}. Write e.g. `--by green=0.7 --by label_f1=0.3`."
            )
        weights[name] = number
    if not weights:
        raise ValueError(f"A score is made of at least one of {', '.join(SCORERS)}, got none. Name one.")
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def score(
    candidates: str | Path,
    out: str | Path,
    weights: Mapping[str, float],
    *,
    references: str | Path | None = None,
    judge: Judge | None = None,
    only_differing: Differing | None = None,
    section: Section = "both",
    cache: str | Path | None = None,
) -> Scored:
    """Score every candidate for itself and write the rows in their order.

    A finished file is scored again only with the same inputs and signature, to ask a judge for what it lacks. Run
    under `accelerate launch` or torchrun, each process asks for its share of the judge's replies.

    Args:
        candidates (`str` or `Path`): Rows of `hf-mu2 sample`, with `reference` unless `references` is given.
        out (`str` or `Path`): File to write, `.jsonl` or `.parquet`.
        weights (`Mapping[str, float]`): From `read_weights`.
        references (`str` or `Path`, *optional*): One row per study: `study_id` and `reference`, or `findings` and
            `impression`. Studies without one keep their row and get no score.
        judge (`Judge`, *optional*): For `green`.
        only_differing (`str`, *optional*): Ask the judge only about studies whose candidates differ, case and spaces
            aside (`"text"`), or in the labels they report (`"labels"`): others make no pair.
        section (`str`): What is compared, on both sides, see `pair_reports`.
        cache (`str` or `Path`, *optional*): Folder of replies, by default `<out>.replies`.

    Raises:
        ValueError: if inputs cannot be read, no candidate has a reference, `green` is weighted without a judge, a text
            may not go where the judge is, or `out` holds other scores.
        ConnectionError: if the judge's endpoint keeps failing; replies so far are kept.
    """
    candidates, out, state = Path(candidates), Path(out), process_state()
    check_ending(out)
    if ("green" in weights) != (judge is not None):
        raise ValueError(
            f"GREEN needs a judge, and only GREEN does, got {'one' if judge else 'none'} for {', '.join(weights)}. "
            "Add `--by green` and `--judge MODEL`, or leave both out."
        )
    signature = _signature(weights, judge, section)
    source = {
        "signature": signature,
        "candidates_sha256": _hash(candidates),
        "references_sha256": None if references is None else _hash(Path(references)),
        "only_differing": only_differing,
    }
    manifest = out.with_name(f"{out.stem}.manifest.json")
    _refuse_others(out, manifest, source)
    rows = _read_candidates(candidates)
    found = _references(rows, references, section)
    listed = _list_candidates(rows, found, section)
    scores = _score_words(listed, {"label_f1", *weights})
    asked: dict[int, GreenResult] = {}
    if judge is not None:
        to_ask = _worth_asking(listed, only_differing)
        pairs = [Pair(listed[index].reference, listed[index].text, listed[index].egress) for index in to_ask]
        folder = out.with_name(f"{out.name}.replies") if cache is None else cache
        asked = dict(zip(to_ask, judge_on_all_processes(pairs, judge, folder)))
    scored = [
        {
            **row,
            "egress": joint_egress(row.get("egress"), report.egress if report else None),
            "reference": report.text if report else None,
            "signature": signature,
            "candidates": [dict(candidate) for candidate in row["candidates"]],
        }
        for row, report in zip(rows, found)
    ]
    for index, candidate in enumerate(listed):
        result = asked.get(index)
        parts = {name: column[index] for name, column in scores.items()}
        if judge is not None:
            parts["green"] = result.score if result is not None and result.status == "ok" else None
        facts = scored[candidate.row]["candidates"][candidate.place]
        facts["scores"] = parts | {"total": _total(parts, weights)}
        facts["status"] = _status(candidate, parts, weights, result)
        if judge is not None:
            facts["judge"] = None if result is None else _reading(result)
    summary = _summarise(scored, len(asked), sum(bool(candidate.reference) for candidate in listed))
    failed = {
        rows[listed[index].row]["study_id"]: result.error
        for index, result in asked.items()
        if result.error is not None
    }
    if state.is_main_process:
        options = {"by": [f"{name}={weight:g}" for name, weight in weights.items()], "section": section}
        record = {
            "command": describe_command("hf-mu2 score CANDIDATES --out FILE", options),
            **source,
            "judge": None if judge is None else judge.identity,
            "summary": summary,
            "failed": failed,
            "num_processes": state.num_processes,
            "versions": library_versions(),
        }
        # The manifest first: scores that a killed run left without one would be taken for those of another.
        replace_file(manifest, to_json(record))
        write_rows(out, scored)
    state.wait_for_everyone()
    return Scored(out, manifest, summary, failed)


def _read_candidates(path: Path) -> list[dict[str, Any]]:
    rows = list(read_rows(path, ["study_id", "candidates"]))
    for row in rows:
        listed = row["candidates"]
        if not isinstance(listed, list) or not all(
            isinstance(candidate, dict) and isinstance(candidate.get("text"), str) for candidate in listed
        ):
            raise ValueError(
                f"`candidates` is a list of objects with `text`, study `{row['study_id']}` of `{path.name}` has "
                "something else. Write them with `hf-mu2 sample`."
            )
    return rows


def _references(
    rows: list[dict[str, Any]], references: str | Path | None, section: Section
) -> list[Report | None]:
    """Find the reference of every row, in the file or in the rows themselves."""
    if references is None:
        own = [row for row in rows if isinstance(row.get("reference"), str)]
        reports = read_references(own, section=section)[0]
    else:
        reports = read_references(references, section=section)[0]
    known = {report.study_id: report for report in reports}
    found = [known.get(study_of(row["study_id"])) for row in rows]
    if not any(found):
        raise ValueError(
            f"Scoring needs references, none of {len(rows)} studies has one: candidates start with "
            f"`{rows[0]['study_id']}`, references with `{next(iter(known), 'nothing')}`. Pass a file with the same "
            "`study_id`s: `--references FILE`."
        )
    return found


def _list_candidates(
    rows: list[dict[str, Any]], found: list[Report | None], section: Section
) -> list[_Candidate]:
    return [
        _Candidate(
            number,
            place,
            take_section(clean_candidate(candidate["text"])[0], section),
            report.text if report else "",
            joint_egress(row.get("egress"), report.egress if report else None),
        )
        for number, (row, report) in enumerate(zip(rows, found))
        for place, candidate in enumerate(row["candidates"])
    ]


def _score_words(listed: list[_Candidate], names: set[str]) -> dict[str, list[float | None]]:
    """Score by what needs no judge; `None` where there is no reference, or none that the labeler can read."""
    columns: dict[str, list[float | None]] = {}
    for name, scorer in _FROM_WORDS.items():
        if name not in names:
            continue
        columns[name] = [None] * len(listed)
        readable = [
            index
            for index, candidate in enumerate(listed)
            if candidate.reference and (name == "rouge_l" or not is_chinese(candidate.reference))
        ]
        if readable:
            texts = [listed[index].text for index in readable]
            values = scorer(texts, [listed[index].reference for index in readable])
            for index, value in zip(readable, values):
                columns[name][index] = value
    return columns


def _worth_asking(listed: list[_Candidate], only_differing: Differing | None) -> list[int]:
    """Choose the candidates for the judge: those that say something, of studies with a reference that differ."""
    said: dict[int, set[Any]] = {}
    if only_differing is not None:
        for candidate in listed:
            said.setdefault(candidate.row, set()).add(_likeness(candidate.text, only_differing))
    return [
        index
        for index, candidate in enumerate(listed)
        if candidate.reference and candidate.text and (only_differing is None or len(said[candidate.row]) > 1)
    ]


def _likeness(text: str, only_differing: Differing) -> Any:
    if only_differing == "text":
        return " ".join(text.lower().split())
    return read_findings(text).labels.tobytes()


def _total(parts: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    total = 0.0
    for name, weight in weights.items():
        part = parts[name]
        if part is None:
            return None
        total += weight * part
    return total


def _status(
    candidate: _Candidate,
    parts: Mapping[str, float | None],
    weights: Mapping[str, float],
    result: GreenResult | None,
) -> str:
    """Say why there is no total, in one of `STATUSES`."""
    if not candidate.reference:
        return "no_reference"
    missing = {name for name in weights if parts[name] is None}
    if missing - {"green"}:
        return "unreadable_reference"
    if not missing:
        return "ok"
    if result is not None:
        return f"judge_{result.status}"
    return "not_differing" if candidate.text else "empty"


def _reading(result: GreenResult) -> dict[str, Any]:
    return {
        "status": result.status,
        "matched": result.matched,
        "significant": result.significant,
        "error": result.error,
    }


def _summarise(scored: list[dict[str, Any]], num_asked: int, num_referenced: int) -> dict[str, Any]:
    """Count statuses, and say what the totals are and how far those of one study lie apart."""
    totals = [
        [total for candidate in row["candidates"] if (total := candidate["scores"]["total"]) is not None]
        for row in scored
    ]
    every = [total for row in totals for total in row]
    spreads = [max(row) - min(row) for row in totals if row]
    statuses = Counter(candidate["status"] for row in scored for candidate in row["candidates"])
    return {
        "num_studies": len(scored),
        "num_candidates": statuses.total(),
        "num_with_reference": num_referenced,
        "num_judged": num_asked,
        "status": dict(sorted(statuses.items())),
        "mean": statistics.fmean(every) if every else None,
        "mean_spread": statistics.fmean(spreads) if spreads else None,
        "studies_without_reference": [row["study_id"] for row in scored if row["reference"] is None],
    }


def _signature(weights: Mapping[str, float], judge: Judge | None, section: Section) -> str:
    """State in one line what a total depends on."""
    signatures = {
        "label_f1": f"label_f1|labels:{labels.VERSION}",
        "crg": f"crg|labels:{labels.VERSION}",
        "rouge_l": f"rouge_l|rouge-score:{version('rouge-score')}|f1|stem:porter"
        if "rouge_l" in weights
        else "",
        "green": "" if judge is None else judge.signature,
    }
    parts = " + ".join(f"{weight:g}*{signatures[name]}" for name, weight in weights.items())
    return f"{parts}|section:{section}"


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_others(out: Path, manifest: Path, source: dict[str, Any]) -> None:
    """Refuse to replace scores unless they are those of the same candidates, scored the same way."""
    if not out.exists():
        return
    found = json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else {}
    different = [name for name, value in source.items() if found.get(name) != value]
    if different:
        raise ValueError(
            f"Different scores are not mixed: `{out}` holds scores with another {', '.join(different)}. Name another "
            "file; the replies of a judge can be shared with `--cache`."
        )

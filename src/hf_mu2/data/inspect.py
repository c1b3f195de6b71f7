"""Count what a corpus holds, without opening a volume: for `hf-mu2 data inspect` and dataset cards.

Reads: the archive of a corpus. Writes: nothing.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from hf_mu2.model.volume_mu2 import parse_reference

from .build import corpus_info, survey_corpus
from .study import FINDING_LABELS, SPLITS, TEXTS


def inspect_corpus(name: str, root: str | Path, **options: Any) -> dict[str, Any]:
    """Count the studies of a corpus, its texts, labels and files, and account for what is left out.

    Args:
        name (`str`): One of `CORPORA`.
        root (`str` or `Path`): Folder of the archive.
        options: Options of the builder, see its `read_studies`.

    Returns:
        `dict` that JSON can hold:

        - `corpus`, `title`, `url`, `citation`, `licence`, `terms`, `egress`, `redistributable`, `split_policy`;
        - `splits`: studies, patients and volumes of each split;
        - `prevalence`: share of each label among the studies where it is known, and `prevalence_by_split`;
        - `texts`: of each section, the studies that have it and their words (median, longest); studies with findings
          and impression both; sections by name; questions;
        - `regions`: studies of each region;
        - `missing_files`: entries of `images` that are not on disk (count, first study ids);
        - `drops`, `notes`: what was left out, and what is unusual and kept (count, first ids of each).

    Raises:
        CorpusError: if the tree is not what the corpus's layout says.
    """
    info = corpus_info(name)
    tally = _Tally()
    survey = survey_corpus(name, root, tally.add, **options)
    account = survey.drops.to_dict()
    straddling = [patient for patient, splits in tally.splits_of.items() if len(splits) > 1]
    if straddling:
        account["notes"]["patients in more than one split"] = {
            "count": len(straddling),
            "examples": straddling[:5],
        }
    return {
        "corpus": info.name,
        "title": info.title,
        "url": info.url,
        "citation": info.citation,
        "licence": info.licence,
        "terms": info.terms,
        "egress": tally.egress == {True},
        "redistributable": info.redistributable,
        "split_policy": info.split_policy,
        "splits": {
            split: {
                "studies": tally.studies[split],
                "patients": sum(split in splits for splits in tally.splits_of.values()),
                "volumes": tally.volumes[split],
            }
            for split in survey.studies
        },
        "prevalence": tally.prevalence(SPLITS),
        "prevalence_by_split": {split: tally.prevalence([split]) for split in survey.studies},
        "texts": {name: _lengths(words) for name, words in tally.words.items() if words}
        | {
            "findings and impression": {"studies": tally.complete},
            "sections": dict(tally.sections.most_common()),
            "questions": tally.questions,
        },
        "regions": dict(tally.regions.most_common()),
        "missing_files": {"count": tally.num_missing, "examples": tally.missing},
        "drops": account["drops"],
        "notes": account["notes"],
    }


def describe(facts: Mapping[str, Any]) -> str:
    """Write the result of `inspect_corpus` for people."""
    lines = [f"{facts['title']} ({facts['corpus']})", f"  licence    {facts['licence']}. {facts['terms']}"]
    lines.append(f"  egress     text {'may' if facts['egress'] else 'must not'} be sent to another machine")
    lines += [
        f"  splits     {facts['split_policy']}",
        "",
        f"  {'split':12}{'studies':>10}{'patients':>10}{'volumes':>10}",
    ]
    for split, counts in facts["splits"].items():
        lines.append(
            f"  {split:12}" + "".join(f"{counts[key]:>10,}" for key in ("studies", "patients", "volumes"))
        )
    texts = dict(facts["texts"])
    sections, questions, both = (
        texts.pop("sections"),
        texts.pop("questions"),
        texts.pop("findings and impression"),
    )
    lines += ["", f"  {'text':12}{'studies':>10}{'median':>10}{'longest':>10}  words"]
    for name, counts in texts.items():
        lines.append(
            f"  {name:12}"
            + "".join(f"{counts[key]:>10,}" for key in ("studies", "median_words", "max_words"))
        )
    lines.append(f"  findings and impression both: {both['studies']:,}; questions: {questions:,}")
    if sections:
        lines.append(f"  other sections: {_list(sections)}")
    if facts["regions"]:
        lines.append(f"  regions: {_list(facts['regions'])}")
    if facts["prevalence"]:
        lines += ["", f"  {'label':36}{'of all':>8}" + "".join(f"{split:>12}" for split in facts["splits"])]
    for label, share in facts["prevalence"].items():
        by_split = (facts["prevalence_by_split"][split].get(label) for split in facts["splits"])
        cells = "".join(f"{'-' if part is None else f'{part:.1%}':>12}" for part in by_split)
        lines.append(f"  {label:36}{share:>8.1%}{cells}")
    missing = {"missing files": facts["missing_files"]} if facts["missing_files"]["count"] else {}
    for title, account in (("left out", facts["drops"]), ("kept, but", facts["notes"] | missing)):
        if account:
            lines += ["", f"  {title}"]
        for reason, cases in account.items():
            lines.append(f"  {cases['count']:>10,}  {reason} ({', '.join(cases['examples'])})")
    return "\n".join(lines)


class _Tally:
    """Counts over the rows of a corpus."""

    def __init__(self) -> None:
        self.studies, self.volumes = Counter[str](), Counter[str]()
        self.splits_of: dict[str, set[str]] = {}
        self.words: dict[str, Counter[int]] = {name: Counter() for name in TEXTS}
        self.present, self.known = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        self.regions, self.sections = Counter[str](), Counter[str]()
        self.questions = self.complete = self.num_missing = 0
        self.missing: list[str] = []
        self.egress: set[bool] = set()

    def add(self, row: Mapping[str, Any]) -> None:
        split = row["split"]
        self.studies[split] += 1
        self.volumes[split] += len(row["images"])
        self.splits_of.setdefault(row["patient_id"], set()).add(split)
        for name, counts in self.words.items():
            if row[name]:
                counts[len(row[name].split())] += 1
        self.complete += bool(row["findings"] and row["impression"])
        self.questions += len(row["questions"])
        self.sections.update(section["name"] for section in row["sections"])
        if row["region"]:
            self.regions[row["region"]] += 1
        for label, value in row["labels"].items():
            if value is not None:
                self.known[split, label] += 1
                self.present[split, label] += value
        for entry in row["images"]:
            reference = parse_reference(entry)
            if not Path(entry if reference is None else reference.path).exists():
                self.num_missing += 1
                self.missing = [*self.missing, row["study_id"]][:5]
        self.egress.add(row["egress"])

    def prevalence(self, splits: Sequence[str]) -> dict[str, float]:
        known = {label: sum(self.known[split, label] for split in splits) for label in FINDING_LABELS}
        return {
            label: sum(self.present[split, label] for split in splits) / count
            for label, count in known.items()
            if count
        }


def _lengths(words: Counter[int]) -> dict[str, int]:
    return {
        "studies": words.total(),
        "median_words": round(median(words.elements())),
        "max_words": max(words),
    }


def _list(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in list(counts.items())[:12])

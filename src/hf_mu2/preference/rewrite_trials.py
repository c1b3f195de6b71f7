"""Measure the check of rewrites: rewordings that it should accept, and edits that it must refuse, made by program.

Reports of PhantomCT are told twice in other words, which changes nothing; then one thing is changed in the second
telling. Reports of a table are reworded lightly and changed in the same ways.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from hf_mu2.data.phantom import make_phantom
from hf_mu2.data.phantom.regions import BODY_REGIONS
from hf_mu2.data.phantom.report import Finding, capitalize, tell
from hf_mu2.data.phantom.vocabulary import Vocabulary
from hf_mu2.scoring.measures import find_sides, find_sizes
from hf_mu2.scoring.regions import RegionFinding, read_findings

from .rewrite_check import compare_sections, reader_region

Sections = dict[str, str]
Change = Callable[[str, random.Random, str], str | None]

_DENIALS = (
    "No {nouns}.",
    "There is no {nouns}.",
    "No evidence of {nouns}.",
    "No {nouns} is seen.",
    "{Nouns} is not detected.",
    "There is no sign of {nouns}.",
)
_GUESS = re.compile(r"may |possible|suggest|suspici")  # skeletons that say more than the finding
# What phantoms deny of a label in words that deny something else: a dilated bowel need not be obstructed.
_OTHER = ("volume loss", "dilated small bowel", "colonic wall thickening")
_SENTENCE = re.compile(r"(?<=[.;])\s+")


@dataclass(frozen=True)
class Trial:
    """A report, a rewriting of it, and what was done to it: `"faithful"` or one of `CHANGES`."""

    kind: str
    region: str
    original: Sections
    rewrite: Sections


def phantom_trials(seeds: Iterable[int], region: str = "chest") -> Iterator[Trial]:
    """Tell the findings of phantoms twice, and change one thing in the second telling, in every way that applies."""
    body = BODY_REGIONS[region]
    for seed in seeds:
        findings = make_phantom(seed, spacing=(12, 12, 12), region=region).findings
        original, rewrite = (
            _tell_report(findings, body.vocabulary, random.Random(f"{seed}:{turn}")) for turn in range(2)
        )
        yield from _with_changes(original, rewrite, body.parts, random.Random(f"{seed}:changes"))


def table_trials(reports: Iterable[str], region: str = "chest") -> Iterator[Trial]:
    """Reword real reports lightly, and change one thing in the rewording, in every way that applies."""
    for number, report in enumerate(reports):
        rng = random.Random(number)
        original = {"findings": report}
        yield from _with_changes(original, {"findings": _reword(report, rng)}, region, rng)


def run_trials(trials: Iterable[Trial]) -> dict[str, Counter[str]]:
    """Count by kind of trial how often a rewrite was `"checked"`, `"unchecked"` or `"refused"`."""
    counts: dict[str, Counter[str]] = {}
    for trial in trials:
        verdict = compare_sections(trial.original, trial.rewrite, trial.region)
        counts.setdefault(trial.kind, Counter())[verdict.status] += 1
    return counts


def to_table(counts: Mapping[str, Counter[str]]) -> str:
    """Lay the counts out: how many trials of each kind, and the share that was refused, left unchecked and passed."""
    lines = ["| trial | n | refused | unchecked | checked |", "|---|---|---|---|---|"]
    changed = sum((found for kind, found in counts.items() if kind != "faithful"), Counter())
    for kind, found in [*((kind, counts[kind]) for kind in ("faithful", *CHANGES) if kind in counts),
                        ("all changes", changed)]:  # fmt: skip
        shares = (f"{found[status] / found.total():.3f}" for status in ("refused", "unchecked", "checked"))
        lines.append(f"| {kind} | {found.total()} | {' | '.join(shares)} |")
    return "\n".join(lines)


def _with_changes(original: Sections, rewrite: Sections, region: str, rng: random.Random) -> Iterator[Trial]:
    """Yield the rewording, and the changes of one that the check lets pass: others would be refused as they are."""
    yield Trial("faithful", region, original, rewrite)
    if compare_sections(original, rewrite, region).status == "refused":
        return
    reader, _ = reader_region(region)
    for kind, change in CHANGES.items():
        for name in rng.sample(sorted(rewrite), len(rewrite)):
            changed = change(rewrite[name], rng, reader)
            if changed is not None and changed != rewrite[name]:
                yield Trial(kind, region, original, rewrite | {name: changed})
                break


def _tell_report(findings: Sequence[Finding], words: Vocabulary, rng: random.Random) -> Sections:
    """State every finding, deny every other label, in words and an order of this telling."""
    present = {finding.label for finding in findings}
    told = [tell(_plain(words.positives[finding.label]), finding, rng) for finding in findings]
    for organ in words.organs:
        absent = [
            rng.choice([noun for noun in words.nouns[label] if noun not in _OTHER])
            for label in organ.labels
            if label not in present
        ]
        if absent:
            nouns = ", ".join(absent[:-1]) + (" or " if absent[1:] else "") + absent[-1]
            told.append(rng.choice(_DENIALS).format(nouns=nouns, Nouns=capitalize(nouns)))
    rng.shuffle(told)
    concluded = [tell(_plain(words.impressions[finding.label]), finding, rng) for finding in findings[:3]]
    rng.shuffle(concluded)
    return {
        name: _in_centimetres(" ".join(part), rng)
        for name, part in (("findings", told), ("impression", concluded))
        if part
    }


def _plain(skeletons: Sequence[str]) -> tuple[str, ...]:
    return tuple(skeleton for skeleton in skeletons if not _GUESS.search(skeleton)) or tuple(skeletons)


def _in_centimetres(text: str, rng: random.Random) -> str:
    def convert(match: re.Match[str]) -> str:
        return f"{float(match[1]) / 10:g} cm" if rng.random() < 0.3 else match[0]

    return re.sub(r"(?<![\w.])(\d+(?:\.\d)?) mm", convert, text)


_SAME = (
    (r"\bwas observed\b", "is seen"),
    (r"\bwere observed\b", "are seen"),
    (r"\b(is|are|was|were) detected\b", r"\1 identified"),
    (r"\bis observed\b", "is noted"),
    (r"\bare observed\b", "are noted"),
    (r"\bNo (.{4,60}) (?:was|is) (?:seen|observed|detected)\.", r"There is no \1."),
    (r"\bin both lungs\b", "bilaterally in the lungs"),
)


def _reword(text: str, rng: random.Random) -> str:
    for pattern, other in _SAME:
        if rng.random() < 0.7:
            text = re.sub(pattern, other, text)
    return _in_centimetres(text, rng)


# --- one thing changed ----------------------------------------------------------------------------------------------


def _turn_side(text: str, rng: random.Random, _: str) -> str | None:
    spans = [
        mention.span
        for mention in find_sides(text)
        if text[slice(*mention.span)].lower() in ("left", "right")
    ]
    if not spans:
        return None
    start, end = rng.choice(spans)
    other = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}.get(text[start:end])
    return None if other is None else text[:start] + other + text[end:]


def _resize(text: str, rng: random.Random, _: str) -> str | None:
    sizes = find_sizes(text)
    if not sizes:
        return None
    start, end = rng.choice(sizes).span
    return text[:start] + re.sub(r"\d+(?:[.,]\d+)?", _half_again, text[start:end], count=1) + text[end:]


def _half_again(number: re.Match[str]) -> str:
    return f"{round(float(number[0].replace(',', '.')) * 1.5, 1):g}"


def _add(text: str, rng: random.Random, reader: str) -> str | None:
    words = BODY_REGIONS["chest" if reader == "chest" else "abdomen"].vocabulary
    stated = {
        finding.head for finding in read_findings(text, region=reader) if finding.polarity != "negative"
    }
    nouns = [words.nouns[label][0] for label in words.labels]
    new = [
        noun
        for noun in nouns
        if not stated & {finding.head for finding in read_findings(f"There is {noun}.", region=reader)}
    ]
    return f"{text} There is {rng.choice(new)}." if new else None


def _lose(text: str, rng: random.Random, reader: str) -> str | None:
    return _without(text, rng, reader, lambda finding: finding.polarity != "negative")


def _lose_denial(text: str, rng: random.Random, reader: str) -> str | None:
    return _without(text, rng, reader, lambda finding: finding.polarity == "negative")


def _without(
    text: str, rng: random.Random, reader: str, is_meant: Callable[[RegionFinding], bool]
) -> str | None:
    """Leave out a sentence whose findings are all meant, and said nowhere else."""
    parts = _SENTENCE.split(text)
    read = [set(read_findings(part, region=reader)) for part in parts]
    meant = [
        i
        for i, found in enumerate(read)
        if found and all(map(is_meant, found))
        and not found & set().union(*(other for j, other in enumerate(read) if j != i))
    ]  # fmt: skip
    if not meant or len(parts) < 2:
        return None
    gone = rng.choice(meant)
    return " ".join(part for i, part in enumerate(parts) if i != gone)


_AFFIRMED = (
    (r"\b[Nn]o (?:evidence|sign) of ", "evidence of "),
    (r"\b([Tt]here is) no ", r"\1 "),
    (r"\b[Nn]o (?=[a-z])", ""),
    (r"\b(is|are|was|were) not (?=seen|detected|observed|enlarged|dilated)", r"\1 "),
    (r"\bwithout ", "with "),
)
_DENIED = (
    (r"\b([Tt]here (?:is|are)) (?:an? )?(?!no\b)", r"\1 no "),
    (
        r"\b(is|are|was|were) (?=seen|noted|detected|observed|identified|enlarged|dilated|thickened)",
        r"\1 not ",
    ),
    (r"^(?!There|No|In|The|It)([A-Z])(?=[a-z -]+\.)", r"No \1"),
)
_NEGATION = re.compile(
    r"\b(?:no|not|without|nor|free|normal|natural|open|regress\w*|previous\w*|optimal\w*)\b", re.I
)


def _affirm(text: str, rng: random.Random, _: str) -> str | None:
    return _substitute(text, rng, _AFFIRMED)


def _deny(text: str, rng: random.Random, reader: str) -> str | None:
    """Deny a sentence that states findings and nothing that is normal or absent."""
    parts = _SENTENCE.split(text)
    rng.shuffle(order := list(range(len(parts))))
    for i in order:
        found = read_findings(parts[i], region=reader)
        if (
            not found
            or any(finding.polarity != "positive" for finding in found)
            or _NEGATION.search(parts[i])
        ):
            continue
        if (changed := _substitute(parts[i], rng, _DENIED)) is not None:
            return " ".join([*parts[:i], changed, *parts[i + 1 :]])
    return None


_ORGANS = (
    (r"\bpleural (?=effusion|fluid)", "pericardial "),
    (r"\bpericardial (?=effusion|fluid)", "pleural "),
    (r"\bliver\b", "spleen"),
    (r"\bspleen\b", "liver"),
    (r"\bkidney\b", "adrenal gland"),
    (r"\badrenal gland\b", "kidney"),
    (r"\bpancreas\b", "liver"),
    (r"\bgallbladder\b", "kidney"),
    (r"\bcoronary arter(?:y|ies)\b", "aorta"),
    (r"\baort(?:a|ic)\b", "coronary artery"),
    (r"\bheart\b", "thyroid"),
)
_PLACES = (
    (r"\bupper (?=lobe)", "lower "),
    (r"\blower (?=lobe)", "upper "),
    (r"\bmiddle (?=lobe)", "lower "),
    (r"\baxillary\b", "hilar"),
    (r"\bhilar\b", "axillary"),
    (r"\bdescending\b", "ascending"),
)
_SEVERITIES = (
    (r"\bmild(?=\b|ly\b)", "severe"),
    (r"\bmoderate(?=\b|ly\b)", "mild"),
    (r"\bsevere(?=\b|ly\b)", "mild"),
)
_COUNTS = ((r"\b[Tt]wo\b", "four"), (r"\b[Tt]hree\b", "two"), (r"\b[Ff]our\b", "three"))


def _elsewhere(text: str, rng: random.Random, _: str) -> str | None:
    return _substitute(text, rng, _ORGANS)


def _in_other_lobe(text: str, rng: random.Random, _: str) -> str | None:
    return _substitute(text, rng, _PLACES)


def _regrade(text: str, rng: random.Random, _: str) -> str | None:
    return _substitute(text, rng, _SEVERITIES)


def _recount(text: str, rng: random.Random, _: str) -> str | None:
    return _substitute(text, rng, _COUNTS)


def _substitute(text: str, rng: random.Random, patterns: Sequence[tuple[str, str]]) -> str | None:
    """Replace one occurrence of one of the patterns."""
    found = [(match, other) for pattern, other in patterns for match in re.finditer(pattern, text)]
    if not found:
        return None
    match, other = rng.choice(found)
    return text[: match.start()] + match.expand(other) + text[match.end() :]


CHANGES: dict[str, Change] = {
    "side turned": _turn_side,
    "size changed": _resize,
    "finding added": _add,
    "finding lost": _lose,
    "denial lost": _lose_denial,
    "denial affirmed": _affirm,
    "finding denied": _deny,
    "another organ": _elsewhere,
    "another lobe or station": _in_other_lobe,
    "another severity": _regrade,
    "another count": _recount,
}

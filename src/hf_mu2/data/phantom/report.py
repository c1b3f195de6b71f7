"""Write the report that follows from a phantom's findings.

A report is put together from sentence skeletons. In a skeleton `{slot}` is a fact of the finding and `[...]` is left
out when a slot inside it is unknown; a skeleton whose slots outside brackets are unknown is not eligible. Among the
eligible skeletons the writer draws from those that tell most of what is known, so side, lobe, number and size in mm
reach the text whenever the finding has them. Every sentence here was written for this package.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .sentences import (
    GROUPS,
    IMPORTANCE,
    IMPRESSION_ALSO,
    IMPRESSION_NORMAL,
    IMPRESSIONS,
    LABEL_NOUNS,
    NEGATIVE_FRAMES,
    POSITIVES,
)

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SEVERITIES = ("mild", "moderate", "severe")
_LOBES = ("upper lobe", "middle lobe", "lingula", "lower lobe")
_LUNG_LABELS = frozenset(
    (
        "Emphysema",
        "Atelectasis",
        "Lung nodule",
        "Lung opacity",
        "Pulmonary fibrotic sequela",
        "Mosaic attenuation pattern",
        "Peribronchial thickening",
        "Consolidation",
        "Bronchiectasis",
        "Interlobular septal thickening",
    )
)
_SLOT = re.compile(r"\{(\w+)\}")
_OPTION = re.compile(r"\[([^\[\]]*)\]")
_NUM_NAMED = 3  # findings with a sentence of their own in the impression; the rest share one


@dataclass(frozen=True)
class Finding:
    """One finding of a phantom, as the renderer drew it.

    Args:
        label (`str`): One of the label table of its region: the 18 CT-RATE labels or `ABDOMEN_LABELS`.
        side (`str`, *optional*): `"left"`, `"right"` or `"bilateral"`.
        region (`str`, *optional*): Lobe, nodal station, vessel; free text is used verbatim.
        count (`int`): Number of lesions, 1 if not countable.
        size_mm (`float`, *optional*): Largest diameter or thickness.
        severity (`str`, *optional*): `"mild"`, `"moderate"` or `"severe"`.
        kind (`str`, *optional*): Subtype, e.g. `"central venous catheter"` or `"centrilobular"`; used verbatim.
    """

    label: str
    side: str | None
    region: str | None
    count: int
    size_mm: float | None
    severity: str | None
    kind: str | None = None


@dataclass(frozen=True)
class PhantomReport:
    """A report in two sections."""

    findings: str
    impression: str

    @property
    def text(self) -> str:
        """Return both sections as one string, in the form the model learns to write."""
        return f"Findings: {self.findings}\nImpression: {self.impression}"


def write_report(findings: Sequence[Finding], seed: int) -> PhantomReport:
    """Write findings and impression for one phantom; the same findings and seed give the same words."""
    for finding in findings:
        if finding.label not in LABEL_NOUNS:
            raise ValueError(
                f"A finding must carry one of the 18 CT-RATE labels, got {finding.label!r}. "
                f"Use one of: {', '.join(LABEL_NOUNS)}."
            )
    rng = random.Random(seed)
    ordered = sorted(
        findings, key=lambda f: (f.label, -(f.size_mm or 0.0), f.side or "", f.region or "", f.kind or "")
    )
    by_label: dict[str, list[Finding]] = {}
    for finding in ordered:
        by_label.setdefault(finding.label, []).append(finding)
    sentences = []
    for labels, normals in GROUPS:
        for label in labels:
            sentences += [tell(POSITIVES[label], finding, rng) for finding in by_label.get(label, [])]
        absent = [label for label in labels if label not in by_label]
        if len(absent) == len(labels):
            sentences.append(rng.choice(normals))
        elif absent:
            nouns = [rng.choice(LABEL_NOUNS[label]) for label in absent]
            sentences.append(
                capitalize(rng.choice(NEGATIVE_FRAMES).replace("{nouns}", _enumerate(nouns, "or")))
            )
    return PhantomReport(" ".join(sentences), _impression(by_label, rng))


def _impression(by_label: dict[str, list[Finding]], rng: random.Random) -> str:
    if not by_label:
        return rng.choice(IMPRESSION_NORMAL)
    merged = [_merge(by_label[label]) for label in IMPORTANCE if label in by_label]
    sentences = [tell(IMPRESSIONS[finding.label], finding, rng) for finding in merged[:_NUM_NAMED]]
    if others := [LABEL_NOUNS[finding.label][0] for finding in merged[_NUM_NAMED:]]:
        sentences.append(
            capitalize(rng.choice(IMPRESSION_ALSO).replace("{nouns}", _enumerate(others, "and")))
        )
    return " ".join(sentences)


def _merge(findings: Sequence[Finding]) -> Finding:
    """Describe several findings of one label as one: total number, largest size, what they have in common."""
    sides = {f.side for f in findings}
    severities = [f.severity for f in findings if f.severity in _SEVERITIES]
    return Finding(
        label=findings[0].label,
        side=sides.pop() if len(sides) == 1 else "bilateral" if sides >= {"left", "right"} else None,
        region=_common(f.region for f in findings),
        count=sum(f.count for f in findings),
        size_mm=max((f.size_mm for f in findings if f.size_mm is not None), default=None),
        severity=max(severities, key=_SEVERITIES.index, default=None),
        kind=_common(f.kind for f in findings),
    )


def _common(values: Iterable[str | None]) -> str | None:
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None


def tell(skeletons: Sequence[str], finding: Finding, rng: random.Random) -> str:
    """Write a sentence about a finding: one of the skeletons that tell most of what is known of it."""
    slots = _slots(finding)
    known = {name for name in ("side", "region", "n", "size", "severity", "kind") if slots[name] is not None}
    best: list[str] = []
    most = -1
    for skeleton in skeletons:
        required = _SLOT.findall(_OPTION.sub("", skeleton))
        if any(slots[name] is None for name in required):
            continue
        text, told = _fill(skeleton, slots)
        num_told = len(told & known)
        if num_told > most:
            best, most = [], num_told
        if num_told == most:
            best.append(text)
    return capitalize(_article(rng.choice(best)))


def _fill(skeleton: str, slots: dict[str, str | None]) -> tuple[str, set[str]]:
    """Fill a skeleton; return the text and the facts it tells."""

    def option(match: re.Match[str]) -> str:
        return match[1] if all(slots[name] is not None for name in _SLOT.findall(match[1])) else ""

    kept = _OPTION.sub(option, skeleton)
    told = set(_SLOT.findall(kept))
    if told & {"place", "where"}:
        told |= {"side", "region"}
    if "measuring" in told:
        told.add("size")
    return _SLOT.sub(lambda match: str(slots[match[1]]), kept), told


def _slots(finding: Finding) -> dict[str, str | None]:
    plural = finding.count > 1 or finding.side == "bilateral"
    where = _where(finding)
    size = None if finding.size_mm is None else f"{round(finding.size_mm, 1):g} mm"
    return {
        "a": None if plural else "a",
        "n": None if not plural else _NUMBERS[finding.count] if 1 < finding.count < 10 else "multiple",
        "s": "s" if plural else "",
        "y": "ies" if plural else "y",
        "is": "are" if plural else "is",
        "side": finding.side,
        "region": finding.region,
        "where": where,
        "place": _place(finding.side, where),
        "size": size,
        "measuring": None
        if size is None
        else f"the largest measuring {size}"
        if plural
        else f"measuring {size}",
        "severity": finding.severity,
        "kind": finding.kind,
    }


def _place(side: str | None, where: str | None) -> str | None:
    if where is not None:
        return f"in {where}" if where.startswith(("both ", "segment ")) else f"in the {where}"
    return None if side is None else "on both sides" if side == "bilateral" else f"on the {side}"


def _where(finding: Finding) -> str | None:
    """Name the place, e.g. `right upper lobe`, `both lungs`, `left hilar region`, `aortic arch`."""
    side, region = finding.side, finding.region
    if region is None:
        if side is None or finding.label not in _LUNG_LABELS:
            return None
        return "both lungs" if side == "bilateral" else f"{side} lung"
    if region.endswith(("al", "ar", "ary", "ic")):  # an adjective such as "hilar"
        region = f"{region} region"
    if side is None or side in region.split() or region == "lingula":
        return region
    if side != "bilateral":
        return f"{side} {region}"
    return f"both {region}s" if region in _LOBES or region.endswith("region") else f"{region} bilaterally"


def _enumerate(nouns: Sequence[str], conjunction: str) -> str:
    return nouns[0] if len(nouns) == 1 else f"{', '.join(nouns[:-1])} {conjunction} {nouns[-1]}"


def _article(text: str) -> str:
    """Turn `a` into `an` where the next word is spoken with a vowel (an 8 mm, an 11 mm, an 18 mm, an 80 mm)."""
    return re.sub(r"\b([Aa]) (?=[aeio]|8|11\b|18\b|11\.|18\.)", r"\1n ", text)


def capitalize(text: str) -> str:
    return text[0].upper() + text[1:]

"""What a clinical document says of a report, the same in every format.

Reads: a [`Report`].
Writes: nothing.
"""

import re
from dataclasses import dataclass
from datetime import datetime

from hf_mu2.data.sections import split_sections
from hf_mu2.reporting.report import Report

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")  # all but tabs and line ends
_HEADING = re.compile(r"\b(findings|impression)\s*:", re.IGNORECASE)
_UNNAMED = ("findings", "report", "preamble", "last_paragraph")


@dataclass(frozen=True)
class Document:
    """A report in its sections, and where it came from.

    Args:
        study_id (`str`): Name of the volume by content; says nothing of the patient.
        model, revision (`str`): Which checkpoint wrote it: name or Hub id, and commit or digest of the files.
        created (`datetime`): When it was written, with a time zone.
    """

    notice: str
    study_id: str
    findings: str
    impression: str
    warnings: tuple[str, ...]
    model: str
    revision: str
    created: datetime

    @property
    def sections(self) -> list[tuple[str, str]]:
        """List the filled sections as (heading, text)."""
        named = [("Findings", self.findings), ("Impression", self.impression)]
        return [(heading, text) for heading, text in named if text]


def make_document(report: Report, created: datetime | None = None) -> Document:
    """Lay out a report. What is neither findings nor impression stands with the findings, so that nothing is lost.

    Control characters, which no format carries, are left out.

    Args:
        created (`datetime`, *optional*): With a time zone; by default now, in this machine's zone.

    Raises:
        ValueError: if the report is empty.
    """
    text = _CONTROL.sub("", report.text).strip()
    headings = [name.lower() for name in _HEADING.findall(text)]
    sections = split_sections(text) if len(set(headings)) == len(headings) else [("report", text)]
    impression = dict(sections).get("impression", "")
    findings = "\n".join(
        content if name in _UNNAMED else f"{name.capitalize()}: {content}"
        for name, content in sections
        if name != "impression"
    )
    if not findings and not impression:
        raise ValueError(
            f"A document needs a report with text, that of `{report.study_id}` is empty. Ask the model again, e.g. "
            "without `--question`."
        )
    return Document(
        notice=report.notice,
        study_id=report.study_id,
        findings=findings,
        impression=impression,
        warnings=tuple(report.warnings),
        model=report.run["model"],
        revision=report.run["model_revision"],
        created=created or datetime.now().astimezone(),
    )


def refuse_synthetic(report: Report, what: str) -> None:
    """Refuse to make a file for clinical systems out of what a checkpoint trained on synthetic volumes says.

    Raises:
        ValueError: if the checkpoint's configuration says that it saw nothing but synthetic volumes.
    """
    if report.run["trained_on_synthetic_only"]:
        raise ValueError(
            f"A {what} may enter clinical systems, and `{report.run['model']}` was trained on synthetic CT only: what "
            "it says of a patient is meaningless. Use a checkpoint trained on CT (`--model`), or pass `--allow-demo` "
            "to try the format."
        )

"""The named endpoints for programs: report, labels, explain. Nothing of a request stays once it is answered.

Reads: an upload of `gradio_client`'s `handle_file`, or text.
Writes: nothing.
"""

import base64
from collections.abc import Iterator
from typing import Any

import gradio as gr
from isal import igzip

from hf_mu2.explain.evidence import as_nifti

from .desk import Desk
from .downloads import run_record
from .page import labels_of
from .problems import told_to_clients


def add_endpoints(desk: Desk) -> None:
    """Add `/report`, `/labels` and `/explain` to the `gr.Blocks` that is being built."""

    def report(
        volume: gr.FileData, question: str = "", model: str = "", series: str = ""
    ) -> Iterator[dict[str, Any]]:
        """Answer a question about a CT volume, by default for the report.

        Args:
            volume: NIfTI, DICOM file or zip of one DICOM series.
            question: What to ask.
            model: Name of the model; by default the first.
            series: Series number, where a zip holds several.

        Yields the answer as it grows; the last result is the record of the run.
        """
        with desk.sessions.passing() as session, told_to_clients():
            desk.open_upload(session, _path(volume), series)
            for turn in desk.ask(session, question, [model] if model else None):
                yield {"report": turn.replies[0].text, "finish_reason": turn.replies[0].finish_reason}
            reply = turn.replies[0]
            yield {
                "report": reply.text,
                "finish_reason": reply.finish_reason,
                "labels": labels_of(reply.text),
                **run_record(desk, session),
            }

    def labels(report: str) -> dict[str, str]:
        """Read the 18 CT-RATE findings from a chest CT report.

        Args:
            report: Findings, impression or both.
        """
        with told_to_clients():
            desk.refuse_long(report, "A report")
            return labels_of(report)

    def explain(
        volume: gr.FileData, answer: str, question: str = "", model: str = "", series: str = ""
    ) -> dict[str, Any]:
        """Say what of a volume an answer rests on: key slices per sentence, and a heat map on the volume's grid.

        Args:
            volume: NIfTI, DICOM file or zip of one DICOM series.
            answer: The text to explain, the model's or anyone's.
            question: What was asked; by default for the report.
            model: Name of the model; by default the first.
            series: Series number, where a zip holds several.
        """
        with desk.sessions.passing() as session, told_to_clients():
            desk.open_upload(session, _path(volume), series)
            evidence = desk.explain_text(session, question, answer, model or None)
            heat = igzip.compress(as_nifti(evidence.heat, evidence.volume).to_bytes(), compresslevel=1)
            return evidence.to_dict() | {"heat_map_nii_gz_base64": base64.b64encode(heat).decode()}

    for function, group in ((report, "model"), (explain, "model"), (labels, "labels")):
        gr.api(function, api_name=function.__name__, concurrency_id=group, concurrency_limit=1)


def _path(volume: Any) -> str:
    """Return where an upload lies; what clients send is not checked by gradio here, and by `read_upload` is."""
    return str(volume.get("path", "")) if isinstance(volume, dict) else ""

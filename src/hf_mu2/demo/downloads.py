"""What a visitor can take along: the text, a PDF, the heat map and the record of the run. None names a file or person.

Reads: a `Session` with answers.
Writes: bytes, made when they are fetched.
"""

from datetime import datetime
from typing import Any

from isal import igzip

from hf_mu2.data.sections import split_sections
from hf_mu2.explain.evidence import as_nifti
from hf_mu2.explain.key_slices import picture_key_slices
from hf_mu2.model.processing_mu2 import DEFAULT_QUESTION
from hf_mu2.reporting.document import Document
from hf_mu2.reporting.environment import library_versions
from hf_mu2.reporting.inference import to_json
from hf_mu2.reporting.pdf import render_pdf

from .conversation import ShownReply
from .desk import Desk
from .sessions import Session


def available(session: Session) -> tuple[str, ...]:
    """Name what can be downloaded now."""
    last = _last_replies(session)
    if not last:
        return ()
    has_evidence = any(reply.evidence is not None for reply in last)
    return ("report.txt", "report.pdf", *(["heat_map.nii.gz"] if has_evidence else []), "run.json")


def make_download(desk: Desk, session: Session, name: str) -> bytes | None:
    """Make a file of `available`; `None` for any other name.

    Raises:
        ValueError: if an answer holds letters that the PDF's font has not.
    """
    if name not in available(session):
        return None
    make = {
        "report.txt": lambda: _text(desk, session).encode(),
        "report.pdf": lambda: _pdf(desk, session),
        "heat_map.nii.gz": lambda: _heat_map(session),
        "run.json": lambda: to_json(run_record(desk, session)).encode(),
    }
    return make[name]()


def run_record(desk: Desk, session: Session) -> dict[str, Any]:
    """Say how the answers came about; questions, which may name a person, are told from the default one only."""
    assert session.volume is not None
    turns = []
    for turn in session.turns:
        for reply in turn.replies:
            evidence = [] if reply.evidence is None else reply.evidence.to_dict()["sentences"]
            for sentence, assessed in zip(evidence, reply.assessed):
                sentence |= {"confidence": assessed.confidence, "agreement": assessed.agreement}
            turns.append(
                {
                    "model": reply.model,
                    "model_revision": desk.readers[reply.model].revision,
                    "question": turn.question if turn.question == DEFAULT_QUESTION else "QUESTION",
                    "report": reply.text,
                    "finish_reason": reply.finish_reason,
                    "seconds": round(reply.seconds, 3),
                    "sentences": evidence,
                }
            )
    return {
        "notice": desk.notice,
        "study_id": session.study_id,
        "warnings": session.caveats,
        "volume": session.volume.provenance,
        "turns": turns,
        "versions": library_versions(),
    }


def _text(desk: Desk, session: Session) -> str:
    parts = [desk.notice, f"Study {session.study_id}", *session.caveats]
    for turn in session.turns:
        parts.append(f"Question: {turn.question}")
        parts += [f"{reply.model}:\n{reply.text}" for reply in turn.replies]
    return "\n\n".join(parts) + "\n"


def _pdf(desk: Desk, session: Session) -> bytes:
    """Lay out the reply of the chosen sentence, else the first of the last turn, with its key slices."""
    if session.selected is not None:
        turn, column, _ = session.selected
        reply = session.turns[turn].replies[column]
    else:
        reply = _last_replies(session)[0]
    pictures = [] if reply.evidence is None else picture_key_slices(reply.evidence)[1]
    sections = dict(split_sections(reply.text))
    findings, impression = sections.get("findings", ""), sections.get("impression", "")
    document = Document(
        notice=desk.readers[reply.model].notice,
        study_id=session.study_id,
        findings=findings if findings or impression else reply.text.strip(),
        impression=impression,
        warnings=tuple(session.caveats),
        model=reply.model,
        revision=desk.readers[reply.model].revision,
        created=datetime.now().astimezone(),
    )
    return render_pdf(document, pictures)


def _heat_map(session: Session) -> bytes:
    """Write the map of the chosen sentence, else of the last answer, on the grid of the file that was opened."""
    assert session.volume is not None
    if session.selected is not None:
        turn, reply, sentence = session.selected
        evidence = session.turns[turn].replies[reply].evidence
        assert evidence is not None  # a sentence can be chosen only then
        heat = evidence.sentences[sentence].heat
    else:
        heat = next(reply.evidence for reply in _last_replies(session) if reply.evidence is not None).heat
    return igzip.compress(as_nifti(heat, session.volume).to_bytes(), compresslevel=1)


def _last_replies(session: Session) -> list[ShownReply]:
    if session.volume is None or not session.turns:
        return []
    return [reply for reply in session.turns[-1].replies if reply.finish_reason and reply.text]

"""Turn a visitor's session into what the page shows: the viewer's value, the conversation, the links to download.

Reads: a `Session`.
Writes: JSON-able values and HTML in which everything a model or visitor said is escaped.
"""

from html import escape
from typing import Any

import numpy as np

from hf_mu2.explain.evidence_figure import PLANES
from hf_mu2.model.processing_mu2 import DEFAULT_QUESTION
from hf_mu2.scoring.labels import find_labels

from .conversation import ShownReply, Turn
from .sessions import Session
from .slices import PRESETS, browser_steps

# Questions offered beside an open study.
SUGGESTIONS = (
    ("Write the report", DEFAULT_QUESTION),
    ("Pleural effusion?", "Is there a pleural effusion?"),
    ("Heart size?", "Is the heart enlarged?"),
)
_AERATED_HU = -400.0
DOWNLOADS = (
    ("report.txt", "Text"),
    ("report.pdf", "PDF"),
    ("heat_map.nii.gz", "Heat map"),
    ("run.json", "Run record"),
)


def viewer_value(session: Session, has_niivue: bool, focus: dict[str, int] | None = None) -> dict[str, Any]:
    """Say what the viewer shows: the volume behind the session's key, the slices to go to, the heat map if any.

    Without a `focus` it stays where it is, or starts in the middle of a new volume.
    """
    value: dict[str, Any] = {"presets": PRESETS, "planes": None, "heat": None, "caption": ""}
    volume = session.volume
    if volume is None:
        return value
    axes = (2, 1, 0)  # of (x, y, z), for (axial, coronal, sagittal)
    middle = np.append((np.array(volume.array.shape[::-1]) - 1) / 2, 1.0)
    planes = {}
    for plane, axis, count, step_mm in zip(PLANES, axes, volume.array.shape, volume.spacing):
        first = middle.copy()
        first[axis] = 0
        planes[plane] = {
            "count": count,
            "first_mm": float((volume.affine @ first)[axis]),
            "step_mm": float(step_mm),
        }
    size = " × ".join(str(count) for count in volume.array.shape[::-1])
    spacing = " × ".join(f"{mm:.2f}" for mm in volume.spacing[::-1])
    shown = ""
    if has_niivue and (steps := browser_steps(volume)) != (1, 1, 1):
        thinned = (f"{mm * step:.2f}" for mm, step in zip(volume.spacing[::-1], steps[::-1]))
        shown = f", shown at {' × '.join(thinned)} mm"
    return value | {
        "key": session.key,
        "study": f"{session.key[:6]}-{session.study_id}",
        "revision": session.revision,
        "planes": planes,
        "focus": focus,
        "heat": _heat(session),
        "has_niivue": has_niivue,
        "caption": f"{session.study_id}   {size} voxels of {spacing} mm{shown}",
    }


def _heat(session: Session) -> dict[str, Any] | None:
    """Say of the sentence whose heat is shown where it rests most, and whether the map passed its check."""
    if session.selected is None:
        return None
    turn, reply, sentence = session.selected
    evidence = session.turns[turn].replies[reply].evidence
    if evidence is None:
        return None
    chosen = evidence.sentences[sentence]
    return {
        "slices": chosen.key_slices[:3],
        "check": None if chosen.faithfulness is None else chosen.faithfulness.describe(),
        "is_confirmed": chosen.faithfulness is not None and chosen.faithfulness.is_confirmed,
        "preset": _preset_for(session, chosen.key_slices[:1]),
    }


def _preset_for(session: Session, key_slices: list[int]) -> str | None:
    """Choose the window in which what the evidence lies on can be seen: lung, or soft tissue."""
    if session.volume is None or session.heat is None or not key_slices:
        return None
    heat, hu = session.heat[key_slices[0]].astype(np.float32), session.volume.array[key_slices[0]]
    return "Lung" if float((heat * hu).sum()) < _AERATED_HU * float(heat.sum()) else "Mediastinum"


def talk_html(session: Session, working: str = "", problem: str = "") -> str:
    """Write the conversation; `working` says what is being done, `problem` what went wrong."""
    if session.volume is None:
        return f'<div class="mu2-talk">{_problem(problem)}{_WELCOME}</div>'
    parts = [f'<p class="mu2-caveat">{escape(text)}</p>' for text in session.caveats]
    if session.truth is not None:
        parts.append(
            '<details class="mu2-truth"><summary>The true report of this phantom</summary>'
            f"<p>{_lines(session.truth)}</p></details>"
        )
    for place, turn in enumerate(session.turns):
        parts.append(_turn(session, place, turn))
    if working:
        parts.append(f'<p class="mu2-working" role="status">{escape(working)}</p>')
    parts.append(_problem(problem))
    if not working:
        parts.append(_suggestions(asked=bool(session.turns)))
    return f'<div class="mu2-talk" aria-live="polite">{"".join(parts)}</div>'


def downloads_html(session: Session, names: tuple[str, ...]) -> str:
    """Write the links to what can be downloaded."""
    links = "".join(
        f'<a href="files/{session.key}/{name}?v={session.revision}" download="{name}">{title}</a>'
        for name, title in DOWNLOADS
        if name in names
    )
    return f'<nav class="mu2-downloads" aria-label="Downloads">{links}</nav>' if links else ""


def labels_of(text: str) -> dict[str, str]:
    """Name the findings of a text with what it says of each: `"positive"` wins over `"uncertain"` over `"negative"`."""
    ranks = ("negative", "uncertain", "positive")
    found: dict[str, str] = {}
    for mention in find_labels(text):
        found[mention.label] = max(found.get(mention.label, "negative"), mention.status, key=ranks.index)
    return found


_WELCOME = (
    '<div class="mu2-welcome"><h3>Look, ask, check</h3><ol>'
    "<li>Drop a CT, or pick a phantom whose truth is known.</li>"
    "<li>Ask for the report, then ask on: every question reads the volume anew.</li>"
    "<li>Choose a sentence to see the voxels it rests on.</li></ol></div>"
)


def _problem(text: str) -> str:
    return f'<p class="mu2-problem" role="alert">{escape(text)}</p>' if text else ""


def _suggestions(asked: bool) -> str:
    buttons = "".join(
        f'<button type="button" class="mu2-suggestion" data-question="{escape(question)}">{escape(title)}</button>'
        for title, question in SUGGESTIONS[int(asked) :]
    )
    return f'<div class="mu2-suggestions">{buttons}</div>'


def _turn(session: Session, place: int, turn: Turn) -> str:
    question = "Write the report." if turn.question == DEFAULT_QUESTION else turn.question
    truth = session.truth if turn.question == DEFAULT_QUESTION else None
    replies = "".join(
        _reply(session, place, column, reply, truth) for column, reply in enumerate(turn.replies)
    )
    return (
        f'<article class="mu2-turn"><p class="mu2-question">{escape(question)}</p>'
        f'<div class="mu2-replies" data-count="{len(turn.replies)}">{replies}</div></article>'
    )


def _reply(session: Session, place: int, column: int, reply: ShownReply, truth: str | None) -> str:
    ends = {"eos": f"{reply.seconds:.1f} s", "length": "cut off at the longest length", "stopped": "stopped"}
    state = ends.get(reply.finish_reason, "writing" if reply.text else "waiting")
    if reply.evidence is None:
        text = _headings(_lines(reply.text)) + (
            "" if reply.finish_reason else '<span class="mu2-caret"></span>'
        )
    else:
        text = _sentences(session, place, column, reply)
    chips = _chips(reply.text, truth) if reply.finish_reason else ""
    return (
        f'<section class="mu2-reply"><header><b>{escape(reply.model)}</b><span>{state}</span></header>'
        f'<p class="mu2-text">{text}</p>{_legend(reply)}{chips}</section>'
    )


def _sentences(session: Session, place: int, column: int, reply: ShownReply) -> str:
    """Write the answer with each sentence as a button that shows what it rests on."""
    assert reply.evidence is not None
    parts, at = [], 0
    for index, sentence in enumerate(reply.evidence.sentences):
        start, end = sentence.span
        is_chosen = session.selected == (place, column, index)
        parts.append(_headings(_lines(reply.text[at:start])))
        parts.append(
            f'<span class="mu2-sentence" role="button" tabindex="0" aria-pressed="{str(is_chosen).lower()}" '
            f'data-turn="{place}" data-reply="{column}" data-sentence="{index}" '
            f'title="Shows what this sentence rests on: {sentence.share:.0%} of what the answer draws from the CT">'
            f"{_lines(reply.text[start:end])}</span>{_sureness(reply, sentence.span)}"
        )
        at = end
    return "".join(parts) + _lines(reply.text[at:])


def _sureness(reply: ShownReply, span: tuple[int, int]) -> str:
    """Show the calibrated confidence of a sentence, or how many of the sampled reports agree with it."""
    assessed = next((sentence for sentence in reply.assessed if sentence.span == span), None)
    if assessed is None or assessed.agreement is None:  # it states nothing that can be compared
        return ""
    agreement = f"{assessed.agreement:.0%} of the reports sampled from the model state the same"
    if assessed.confidence is None:
        share, says = assessed.agreement, f"{agreement}. Not a calibrated confidence."
    else:
        share = assessed.confidence
        says = (
            f"Confidence {share:.0%}: how often such sentences were right on validation studies. {agreement}."
        )
    level = "high" if share >= 0.8 else "middle" if share >= 0.5 else "low"
    return f'<sup class="mu2-sure {level}" title="{says}" aria-label="{says}">{share:.0%}</sup>'


def _legend(reply: ShownReply) -> str:
    """Say what the numbers behind the sentences are."""
    stating = [sentence for sentence in reply.assessed if sentence.agreement is not None]
    if not stating:
        return ""
    says = "how often such sentences were right on validation studies"
    if any(sentence.confidence is None for sentence in stating):
        says = "how many of the reports sampled from the model state the same; not a calibrated confidence"
    return f'<p class="mu2-legend">Numbers: {says}.</p>'


def _chips(text: str, truth: str | None) -> str:
    """Show the findings of an answer; against the truth where that is known."""
    said = labels_of(text)
    drawn = (
        None
        if truth is None
        else {label for label, status in labels_of(truth).items() if status != "negative"}
    )
    chips = []
    for label, status in said.items():
        if status == "negative":
            continue
        verdict = "" if drawn is None else " hit" if label in drawn else " false"
        hint = {"": status, " hit": f"{status}, drawn", " false": f"{status}, not drawn"}[verdict]
        chips.append(f'<li class="{status}{verdict}" title="{hint}">{escape(label)}</li>')
    for label in sorted((drawn or set()) - {label for label, status in said.items() if status != "negative"}):
        chips.append(f'<li class="missed" title="drawn, not reported">{escape(label)}</li>')
    denied = [label for label, status in said.items() if status == "negative"]
    if denied:
        chips.append(f'<li class="denied" title="{escape(", ".join(denied))}">{len(denied)} denied</li>')
    return (
        f'<ul class="mu2-chips" aria-label="Findings read from the answer">{"".join(chips)}</ul>'
        if chips
        else ""
    )


def _lines(text: str) -> str:
    return escape(text).replace("\n", "<br>")


def _headings(text: str) -> str:
    for name in ("Findings:", "Impression:"):
        text = text.replace(name, f"<strong>{name[:-1]}</strong>")
    return text

"""Multiple-choice questions about a phantom, answered by what was drawn: presence, side and size of a finding.

Answers are balanced, so that nothing is gained by knowing how phantoms are made: as many findings are present as are
not, each about as often on both sides of that; left and right are equally frequent; and of four sizes each is the true
one as often. What a model gets right beyond that it has seen.
"""

import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

from .regions import BODY_REGIONS

_STEP = 1.6  # from one size to the next
_NUM_SIZES = 4
_SMALLEST_MM = 7.0  # below 6.9, two of the sizes may be the same number of millimetres


def ask_questions(study_id: str, truth: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Ask up to four questions: a finding that is there, one that is not, one's side, one's size.

    A study without findings gets none, which keeps presence balanced; findings in several places have no one side or
    size and are not asked for it.

    Args:
        study_id (`str`): Decides which findings are asked about, and the order of options.
        truth (`Mapping`): Of [`~hf_mu2.data.phantom.Phantom.truth`].

    Returns:
        `list[dict]`: `question`, `options`, `answer`, `kind` (`"presence"`, `"side"`, `"size"`), as in a study row.
    """
    rng = random.Random(f"questions:{study_id}")
    findings = truth["findings"]
    times = Counter(finding["label"] for finding in findings)
    if not times:
        return []
    single = [finding for finding in findings if times[finding["label"]] == 1]
    prevalence = BODY_REGIONS[truth["region"]].prevalence
    absent = {label: share / (1 - share) for label, share in prevalence.items() if label not in times}
    questions = [_presence(rng, rng.choice(sorted(times)), "Yes")]
    if absent:
        # By their odds: a finding is then asked about as often where it is absent as where it is present.
        questions.append(_presence(rng, rng.choices(list(absent), list(absent.values()))[0], "No"))
    sided = [finding for finding in single if finding["side"] in ("left", "right")]
    if sided:
        questions.append(_side(rng, rng.choice(sided)))
    sized = [
        finding for finding in single if finding["count"] == 1 and (finding["size_mm"] or 0) >= _SMALLEST_MM
    ]
    if sized:
        questions.append(_size(rng, rng.choice(sized)))
    return questions


def _presence(rng: random.Random, label: str, answer: str) -> dict[str, Any]:
    options = rng.sample(["Yes", "No"], 2)
    return _question("presence", f"Is this finding present: {label.lower()}?", options, answer)


def _side(rng: random.Random, finding: Mapping[str, Any]) -> dict[str, Any]:
    options = rng.sample(["Left", "Right"], 2)
    question = f"On which side is this finding: {finding['label'].lower()}?"
    return _question("side", question, options, finding["side"].capitalize())


def _size(rng: random.Random, finding: Mapping[str, Any]) -> dict[str, Any]:
    rank = rng.randrange(_NUM_SIZES)
    sizes = [round(finding["size_mm"] * _STEP ** (step - rank)) for step in range(_NUM_SIZES)]
    options = [f"{size} mm" for size in sizes]
    return _question(
        "size", f"How large is this finding: {finding['label'].lower()}?", options, options[rank]
    )


def _question(kind: str, question: str, options: list[str], answer: str) -> dict[str, Any]:
    return {"question": question, "options": options, "answer": answer, "kind": kind}

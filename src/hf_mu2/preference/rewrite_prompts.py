"""What a language model is asked when a corpus is expanded: a report in other words, or questions about it.

The prompts are our own. The official code asks for eight paraphrases of a report in one style; here each of the eight
asks for another style, so that equal requests are never sent twice and the answers differ for a reason.
"""

import hashlib

STYLES = (
    "Write complete sentences.",
    "Write short phrases, as they are dictated.",
    "Begin every statement with the organ or region it is about.",
    "Begin every statement with the finding, and say after it where it is.",
    "Join statements that belong together into longer sentences.",
    "Give every statement a sentence of its own.",
    "Use other common radiological words wherever they mean exactly the same.",
    "Describe the organs in another order than the original.",
)
KINDS = ("presence", "location", "size", "open", "choice")

_PARAPHRASE = """\
Put the radiology report below into other words. It must say exactly the same: every finding and every denial that it \
states, with the same organ, side, place, number, size, severity and certainty, and nothing else. Do not shorten it by \
leaving something out, do not conclude, compare, explain or recommend anything that it does not. {style}{version}
Answer with the report alone, as plain text in English, laid out as it is, with {headings}.

{report}"""

_QUESTIONS = """\
Write {count} questions about a CT study, with their answers. The report of the study is below; ask only what it \
answers, and answer with what it says and nothing else. Neither question nor answer mentions the report. Kinds:
"presence": is something there; the answer is "Yes" or "No".
"location": where is it; "size": how large is it; the answer is a short phrase.
"open": any other question; the answer is one sentence.
"choice": four "options" of which exactly one is true; the answer repeats it word for word.
Use every kind that the report allows.
Answer with a JSON array alone: [{{"kind": "...", "question": "...", "answer": "..."}}, ...]; "choice" has "options" \
too.

{report}"""


def paraphrase_prompt(report: str, number: int) -> str:
    """Ask for the paraphrase of a report with this number, from 1; each number has a prompt of its own.

    Args:
        report (`str`): As `report_text` writes it, "Findings: ...\\nImpression: ...".
    """
    turn, style = divmod(number - 1, len(STYLES))
    version = (
        f" This is version {turn + 1} in this style; word it in another way than before." if turn else ""
    )
    names = [name for name in ("Findings:", "Impression:") if f"\n{name}" in f"\n{report}"]
    headings = " and ".join(f'a line that begins "{name}"' for name in names)
    return _PARAPHRASE.format(style=STYLES[style], version=version, headings=headings, report=report)


def questions_prompt(report: str, count: int) -> str:
    """Ask for `count` question-answer pairs about a report, as a JSON array."""
    return _QUESTIONS.format(count=count, report=report)


def prompts_sha256() -> str:
    """Name the prompts by their content, reports aside."""
    return hashlib.sha256("\0".join((_PARAPHRASE, *STYLES, _QUESTIONS)).encode()).hexdigest()

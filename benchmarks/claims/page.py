"""Write the page of the claims from the result file, and from nothing else.

Reads: the result as `docs/results/claims.json` holds it.
Writes: `docs/results/claims.md`.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hf_mu2.files import replace_text

from .figures import clears_bar, floors_of
from .names import CLAIM_TITLES, CORPUS_TITLES, FLOOR_TITLES, MEASURE_TITLES, reports_of

TABLES = {
    "Findings": ("macro_f1", "report_f1", "coverage", "accuracy", "accuracy_all_negative", "crg"),
    "Lesions by size": (
        "coverage_under_3mm",
        "coverage_3_to_6mm",
        "coverage_6_to_10mm",
        "coverage_over_10mm",
    ),
    "Words": ("bleu1", "bleu4", "rouge1", "rougeL", "meteor"),
    "Does it look": (
        "paired_change",
        "changed_finding",
        "side_agreement",
        "size_agreement",
        "image_dependence",
        "unique",
        "words",
    ),
}
ANSWERS = {"no difference": "no difference inside the seed spread"}
CHANCE = 0.05  # of a 95 % interval to leave out zero where there is nothing


def write_page(result: dict[str, Any], path: str | Path) -> None:
    """Write the page. Rows that were not run and measures that cannot be taken are said to be so.

    The pictures are linked as `../figures/claims_strip.png` and, where the result has an example,
    `../figures/claims_example.png`.
    """
    parts = [
        "# Do the papers' claims hold?",
        _opening(result),
        "Research use, not a medical device: nothing here is evidence about patients.",
        *_provenance(result),
        "![All rows of the grid: value, floors and the lookup bar for eight measures](../figures/claims_strip.png)",
        "*Dots: mean over seeds, with the interval over patients. Colour: against the row that it is compared with. "
        "Grey ticks: floors; thick black tick: the lookup bar. A dot left of it scores less than a report that was "
        "looked up.*",
        "## The claims",
        _claims(result),
        "## Does any generator clear the bar?",
        *_bar(result),
        *_example(result),
        "## All rows",
        "Each cell: mean over seeds ± standard deviation over seeds, [95 % interval over patients of the mean]. Higher "
        "is better but for words, which has no better; the accuracy of no finding is what a report without any finding "
        "gets. A dash: nothing can be said, such as no lesion of that size, or not run.",
        *_letters(result),
        "## Differences",
        *_differences(result),
        "## How settings were chosen",
        *_choices(result),
        "## What was not run",
        _not_run(result),
    ]
    replace_text(path, "\n\n".join(part.strip() for part in parts if part) + "\n")


def _opening(result: dict[str, Any]) -> str:
    protocol = result["protocol"]["name"]
    size = "of two CPU cores" if protocol == "tiny" else f"of the protocol `{protocol}`"
    return (
        "PhantomCT is synthetic CT: the one corpus here with volumes and reports of which the truth is known and all "
        f"may be published. Everything on this page was trained and measured at the size {size}, so that a claim "
        "which fails here may hold for larger models and more studies, and the other way round."
    )


def number(value: float | None, measure: str = "", *, sign: bool = False) -> str:
    """Write a score as `.431`, a number of words as `62.3`, nothing as `-`."""
    if value is None:
        return "-"
    if measure == "words":
        return f"{value:{'+' if sign else ''}.1f}"
    text = f"{value:{'+' if sign else ''}.3f}"
    return re.sub(r"^([+-]?)0\.", r"\1.", "0.000" if text == "-0.000" else text)


def score_text(score: dict[str, Any] | None, measure: str = "") -> str:
    """Write `.431 ± .012 [.409, .452]`; without a spread where there is one seed."""
    if score is None or score.get("mean", score.get("value")) is None:
        return "-"
    text = number(score.get("mean", score.get("value")), measure)
    if score.get("spread") is not None:
        text += f" ± {number(score['spread'], measure)}"
    return text + _interval(score["low"], score["high"], measure, " ")


def _interval(low: float | None, high: float | None, measure: str, before: str = "") -> str:
    if low is None or high is None:
        return "" if before else "-"
    return f"{before}[{number(low, measure)}, {number(high, measure)}]"


def _provenance(result: dict[str, Any]) -> list[str]:
    facts = result["provenance"] | {"run_minutes": number(result["provenance"]["run_minutes"], "words")}
    facts |= {"command": f"`{facts['command']}`", "protocol": result["protocol"]}
    return [
        _table(("provenance", ""), [(name.replace("_", " "), _plain(value)) for name, value in facts.items()])
    ]


def _claims(result: dict[str, Any]) -> str:
    rows = [
        (
            f"{claim['claim']} ({claim['paper']})",
            f"**{ANSWERS.get(claim['answer'], claim['answer'])}**",
            claim["measured"],
            claim["changed"],
        )
        for claim in result["claims"]
    ]
    return _table(("claim", "answer here", "what was measured", "what we changed because of it"), rows)


def _bar(result: dict[str, Any]) -> list[str]:
    """Say of every measure that was held against the bar which rows clear it, and that the others do not."""
    measures = dict.fromkeys(name for row in result["rows"].values() for name in row["clears_lookup"] or {})
    parts = [
        "The bar is the lookup that wins challenges today: a linear probe reads the labels from the frozen vision "
        "tower, and the training report with the nearest labels is the answer. It writes nothing, and it always has "
        "all training studies to look in. A row clears the bar in a measure if its difference to the lookup is "
        '"higher" by the rule below, under Differences.',
    ]
    if not measures:
        return [*parts, "No row was held against the bar yet."]
    lines = []
    for measure in measures:
        clear, judged = clears_bar(result, measure)
        failed = [name for name in judged if name not in clear]
        name = MEASURE_TITLES[measure]
        if not judged:
            continue
        if not clear:
            lines.append(f"- {name}: **no generator clears the bar** (0 of {len(judged)} rows).")
        elif not failed:
            lines.append(f"- {name}: **every generator clears the bar** ({len(judged)} rows).")
        else:
            lines.append(
                f"- {name}: **{len(clear)} of {len(judged)} rows clear the bar**: {_titles(result, clear)}. "
                f"Does not clear it: {_titles(result, failed)}."
            )
    return [*parts, "\n".join(lines)]


def _example(result: dict[str, Any]) -> list[str]:
    example = result.get("example")
    if not example:
        return []
    texts = [("Reference", example["references"])]
    texts += [
        (result["rows"][name]["title"] if name in result["rows"] else "Lookup", reports)
        for name, reports in example["reports"].items()
    ]
    quotes = [
        f"**{name}**, `{study}`\n\n> " + report.strip().replace("\n", "\n>\n> ")
        for name, reports in texts
        for study, report in zip(example["study_ids"], reports, strict=True)
    ]
    return [
        "## One pair",
        f"![{example['label']} on one side and on the other, and what is written of it]"
        "(../figures/claims_example.png)",
        "*Both studies are of one patient and differ in one finding, outlined here and not for the models. Quoted are "
        "the sentences that name it.*",
        "<details><summary>The whole reports</summary>\n\n" + "\n\n".join(quotes) + "\n\n</details>",
    ]


def _letters(result: dict[str, Any]) -> list[str]:
    parts = []
    for letter, title in CLAIM_TITLES.items():
        rows = {name: row for name, row in result["rows"].items() if row["claim"] == letter}
        if not rows:
            continue
        corpora = list(dict.fromkeys(reports_of(row["corpus"]) for row in rows.values()))
        facts = [
            (
                f"**{row['title']}**",
                f"{row['about']} {_bold(row['note'])}".strip()
                + (f" Not run: {row['not_run']}" if row["not_run"] else ""),
                CORPUS_TITLES[row["corpus"]],
                _title(result, row["against"]) if row["against"] else "-",
                len(row["seeds"] or []),
                "-" if row["seconds"] is None else f"{row['seconds']:.0f}",
                _bar_cell(row),
            )
            for row in rows.values()
        ]
        parts.append(f"### ({letter}) {title}")
        heads = (
            "row",
            "what it is",
            "corpus",
            "compared with",
            "seeds",
            "s per run",
            "clears the bar (macro-F1)",
        )
        parts.append(_table(heads, facts))
        for name, measures in TABLES.items():
            cells: list[tuple[Any, ...]] = [
                (
                    row["title"],
                    *(score_text(row["measures"].get(m), m).replace(" [", "<br>[") for m in measures),
                )
                for row in rows.values()
            ]
            for corpus in corpora:
                suffix = f", {CORPUS_TITLES[corpus]}" if len(corpora) > 1 else ""
                for floor, scores in floors_of(result, corpus).items():
                    floor_title = FLOOR_TITLES[floor]
                    values = (score_text(scores.get(m), m).replace(" [", "<br>[") for m in measures)
                    cells.append((f"*{floor_title}{suffix}*", *values))
            parts.append(_table((name, *(MEASURE_TITLES[measure] for measure in measures)), cells))
    return parts


def _bar_cell(row: dict[str, Any]) -> str:
    held = (row["clears_lookup"] or {}).get("macro_f1")
    if not held:
        return "-"
    interval = _interval(held["low"], held["high"], "")
    answer = "yes" if held["verdict"] == "higher" else f"no ({held['verdict']})"
    return f"{answer}, {number(held['difference'], sign=True)} {interval}"


def _differences(result: dict[str, Any]) -> list[str]:
    all_lines: dict[str, list[tuple[Any, ...]]] = {}
    found: list[tuple[Any, ...]] = []
    total = 0
    for row in result["rows"].values():
        for measure, difference in row["differences"].items():
            if difference is None:
                continue
            total += 1
            line = (
                row["title"],
                _title(result, row["against"]),
                MEASURE_TITLES[measure],
                number(difference["difference"], measure, sign=True),
                _interval(difference["seed_low"], difference["seed_high"], measure),
                _interval(difference["low"], difference["high"], measure),
                difference["verdict"],
            )
            all_lines.setdefault(row["claim"], []).append(line)
            if difference["verdict"] != "no difference":
                found.append((*line[:-1], f"**{difference['verdict']}**"))
    heads = (
        "row",
        "against",
        "measure",
        "difference",
        "interval over seeds",
        "interval over patients",
        "verdict",
    )
    parts = [
        "A difference is a row less the row that it is compared with, on the same seeds and the same studies. "
        '"Higher" or "lower" needs two intervals that leave out zero: the 95 % t interval over seeds (of differences '
        "seed by seed where both rows start from one checkpoint, else with the pooled deviation), and the 95 % paired "
        'bootstrap over patients. Everything else is printed as "no difference": this grid cannot tell the two apart, '
        "which does not make them equal. Rows of one seed have no interval over seeds, and so no verdict but that.",
    ]
    if not total:
        return [*parts, "No two rows can be compared yet."]
    parts.append(
        f'**{len(found)} of {total} verdicts are not "no difference".** If no row differed from any other, one '
        f"interval of 95 % would leave out zero about {round(CHANCE * total)} times by chance; two at once do so less "
        "often. The measures of a row move together, so chance findings come in groups."
    )
    parts.append(_table(heads, found))
    for letter, lines in all_lines.items():
        summary = (
            f"<details><summary>({letter}) {CLAIM_TITLES[letter]}: all {len(lines)} differences</summary>"
        )
        parts.append(f"{summary}\n\n{_table(heads, lines)}\n\n</details>")
    return parts


def _choices(result: dict[str, Any]) -> list[str]:
    """Say what validation studies were asked; the test studies are read once, by the reports above."""
    found = result.get("choices")
    if not found:
        return ["No validation loss is there yet."]
    rates = sorted({each["learning_rate"] for each in found})
    losses = {(each["row"], each["learning_rate"]): each["validation_loss"] for each in found}
    lines = [
        [title, *(number(losses.get((name, rate))) for rate in rates)]
        for name, title in (("all", "all of mu2"), ("baseline", "baseline (LinVT)"))
    ]
    taken = result["protocol"]["learning_rate"]
    return [
        f"Loss of the validation studies on the first seed, by learning rate. {taken:g} was set before the grid ran, "
        "for every row that starts from a fresh tokenizer; the other rates say what it might have cost. The rates of "
        "the other rows are those of the demonstrations. How long the start of the arms and the towers of claim f "
        "learn was set on trial runs, by whether they learn at all.",
        _table(["row", *(f"{rate:g}" for rate in rates)], lines),
    ]


def _not_run(result: dict[str, Any]) -> str:
    lines = [f"- {row['title']}: {row['not_run']}" for row in result["rows"].values() if row["not_run"]]
    lines += [
        f"- {claim['claim']} ({claim['paper']}): {claim['answer']}. {claim['measured']}".rstrip()
        for claim in result["claims"]
        if claim["answer"] in ("cannot be tested here", "not run")
    ]
    return "\n".join(lines) or "Every row of the grid was run."


def _title(result: dict[str, Any], name: str) -> str:
    return result["rows"][name]["title"] if name in result["rows"] else name


def _titles(result: dict[str, Any], names: Iterable[str]) -> str:
    return ", ".join(_title(result, name) for name in names)


def _bold(text: str | None) -> str:
    return f"**{text}**" if text else ""


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items()) or "as the preset"
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _table(heads: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """Write a table; nothing without rows."""
    lines = [[str(cell).replace("|", r"\|").replace("\n", " ") for cell in row] for row in rows]
    if not lines:
        return ""
    heads = list(heads)
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *lines])

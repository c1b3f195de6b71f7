"""Split a report into its sections by their headings.

The rules are those of the MIMIC-CXR code repository (MIT-LCP/mimic-cxr, txt/section_parser.py): headings in capitals at
the start of a line, names made uniform through synonyms, headings that name the view count as findings, the last
filled section of a name wins, and a report without findings and impression has a `last_paragraph`. Wider than there: a
known heading may be written "Findings:" or "## Findings", and stand behind a full stop; misspelt ones are recognised by
likeness instead of a list of misspellings.
"""

import re
from difflib import get_close_matches

MAIN = ("findings", "impression", "indication", "technique", "comparison", "examination", "history")
_SYNONYMS = {
    "findings": ("finding", "reference findings", "observations"),
    "impression": (
        "impressions",
        "conclusion",
        "conclusions",
        "summary",
        "opinion",
        "findings and impression",
        "findings/impression",
        "findings/ impression",
    ),
    "indication": (
        "clinical indication",
        "reason for examination",
        "reason for exam",
        "reason for study",
        "indications",
    ),
    "history": ("clinical history", "patient history", "clinical information", "pfi"),
    "technique": ("techniques", "protocol", "procedure"),
    "comparison": ("comparisons", "comparison film", "comparison exam", "reference exam", "prior studies"),
    "examination": ("exam", "type of examination", "study"),
    "recommendations": ("recommendation", "recommendation(s)"),
    "notification": ("notifications",),
    "wet read": ("wetread",),
    "addendum": ("addenda",),
}
_NAME_OF = {name: main for main, names in _SYNONYMS.items() for name in (main, *names)}
_VIEW = re.compile(
    r"\b(chest|portable|ribs|bone window|(one|two) views?|(pa|ap|lateral|frontal) (and|view|upright|semi-upright))"
)
_HEADING = re.compile(
    r"(?:^[ \t#*]*|(?<=[.!?]\s))(?P<name>[A-Za-z][A-Za-z ()/,&-]{1,60}?)(?P<end>[ \t*]*:[ \t*]*|[ \t*]*$)",
    re.MULTILINE,
)


def split_sections(text: str) -> list[tuple[str, str]]:
    """Return (name, text) of every filled section in reading order, each name once.

    What stands before the first heading is the `preamble`. A text without headings is one section, `report`; like any
    report without findings and impression it also gets a `last_paragraph`, if it has more than one.
    """
    headings = [match for match in _HEADING.finditer(text) if _is_heading(match, text)]
    starts = [0, *(match.end() for match in headings)]
    ends = [*(match.start() for match in headings), len(text)]
    names = ["preamble" if headings else "report", *(section_name(match["name"]) for match in headings)]
    filled = [
        (name, text[start:end].strip())
        for name, start, end in zip(names, starts, ends)
        if text[start:end].strip()
    ]
    sections: dict[str, str] = {}
    for name, content in filled:
        sections.pop(name, None)  # the last of a name wins, and stands where it stood
        sections[name] = content
    if filled and not {"findings", "impression"} & set(sections):
        name, content = filled[-1]
        first, *later = re.split(r"\n\s*\n", content)
        if later:
            sections[name], sections["last_paragraph"] = first.strip(), "\n\n".join(later).strip()
    return list(sections.items())


def section_name(heading: str) -> str:
    """Make the name of a section uniform: `"IMPRESSON"` is an impression, `"PORTABLE CHEST, AP VIEW"` findings."""
    name = " ".join(heading.lower().replace("*", "").split())
    if name in _NAME_OF:
        return _NAME_OF[name]
    close = get_close_matches(name, MAIN, n=1, cutoff=0.82)
    if close:
        return close[0]
    return "findings" if _VIEW.search(name) else name


def _is_heading(match: re.Match[str], text: str) -> bool:
    """Accept capitals before a colon at the start of a line, and known names however they are written."""
    name, has_colon = match["name"], ":" in match["end"]
    known = section_name(name) in _SYNONYMS and " ".join(name.lower().split()) in _NAME_OF
    line_start = text.rfind("\n", 0, match.start("name")) + 1
    before = text[line_start : match.start("name")]
    if before.strip(" \t#*"):  # behind a full stop
        return has_colon and known and name[0].isupper() and section_name(name) in MAIN[:2]
    if has_colon:
        return name.isupper() or (known and name[0].isupper())
    return known and ("#" in before or "*" in before)  # "## Findings", "**Findings**"

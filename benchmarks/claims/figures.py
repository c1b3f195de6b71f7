"""Draw the claims: all rows as a heat strip with floors as ticks, and what is written of one pair of phantoms.

Reads: the result as `docs/results/claims.json` holds it; the phantoms of its example are computed from their seed.
Writes: one PNG each.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from hf_mu2.data.phantom import make_pair
from hf_mu2.data.phantom.generate import Phantom
from hf_mu2.files import replacing
from hf_mu2.reporting.montage import WINDOWS, window_hu
from hf_mu2.scoring.findings import read_findings
from hf_mu2.scoring.measures import find_sides

from .names import CLAIM_TITLES, FLOOR_TITLES, MEASURE_TITLES, reports_of

HEADLINE = (
    "macro_f1",
    "coverage",
    "crg",
    "changed_finding",
    "side_agreement",
    "rougeL",
    "image_dependence",
    "unique",
)

# Blue and vermilion of the Okabe-Ito palette, which colour-blind readers tell apart; triangles say the same.
_CELLS = {"higher": "#5aa9e0", "lower": "#e98a4b", "no difference": "#e6e6e6"}
_MARKS = {"higher": "▲", "lower": "▼"}
_TICKS = {
    "constant_normal": "#9a9a9a",
    "random": "#9a9a9a",
    "nearest_by_labels": "#9a9a9a",
    "lookup": "black",
}
_STYLES: dict[str, Any] = {"constant_normal": ":", "random": "--", "nearest_by_labels": "-.", "lookup": "-"}


def draw_strip(result: dict[str, Any], path: str | Path) -> None:
    """Draw one line per row and one column per headline measure.

    The colour of a cell is the verdict against the row that it is compared with; the dot is the mean over seeds, its
    line the 95 % interval over patients; ticks are the floors, the thick one the lookup bar.
    """
    places, headings, height = _places(result)
    rows, (clear, _) = result["rows"], clears_bar(result, "macro_f1")
    figure = Figure(figsize=(11, 1.75 + 0.235 * height), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    all_axes = figure.subplots(1, len(HEADLINE), sharey=True)
    for measure, axes in zip(HEADLINE, all_axes, strict=True):
        _draw_column(axes, measure, result, places)
        axes.set_ylim(height - 0.4, -0.5)
    titles = [rows[name]["title"] + ("  ✔" if name in clear else "") for name, _ in places]
    all_axes[0].set_yticks([y for _, y in places], titles, fontsize=9.5)
    beside = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
    for letter, y in headings:
        text = f"({letter})  {CLAIM_TITLES[letter]}"
        all_axes[0].annotate(text, (0, y), (-4, 0), ha="right", fontsize=9.5, fontweight="bold", **beside)
    for name, y in places:
        against = rows[name]["against"]
        if against:
            text = f"vs {rows[against]['title'] if against in rows else against}"
            all_axes[-1].annotate(text, (1, y), (5, 0), fontsize=7.5, color="#666666", **beside)
    figure.legend(handles=_legend(), loc="outside lower center", ncols=4, frameon=False, fontsize=9.5)
    figure.suptitle(_headline(result), fontsize=12.5, fontweight="bold", x=0.01, ha="left")
    figure.set_dpi(130)
    canvas.draw()
    with replacing(path) as partial:
        Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(64).save(
            partial, optimize=True
        )


def _places(result: dict[str, Any]) -> tuple[list[tuple[str, float]], list[tuple[str, float]], float]:
    """Put the rows under the heading of their claim; return rows, headings and the height in lines."""
    places: list[tuple[str, float]] = []
    headings: list[tuple[str, float]] = []
    y = 0.0
    for letter in CLAIM_TITLES:
        names = [name for name, row in result["rows"].items() if row["claim"] == letter]
        if not names:
            continue
        headings.append((letter, y))
        places += [(name, y + 1 + number) for number, name in enumerate(names)]
        y += len(names) + 1.25
    return places, headings, y


def _draw_column(axes: Any, measure: str, result: dict[str, Any], places: list[tuple[str, float]]) -> None:
    low, high = _range(result, measure)
    for name, y in places:
        row = result["rows"][name]
        score = row["measures"].get(measure)
        verdict = (row["differences"].get(measure) or {}).get("verdict")
        colour = _CELLS[verdict] if verdict else "white"
        axes.add_patch(Rectangle((low, y - 0.46), high - low, 0.92, facecolor=colour, linewidth=0, zorder=1))
        if row["not_run"] or score is None or score["mean"] is None:
            text = "not run" if row["not_run"] else "none"
            axes.text((low + high) / 2, y, text, ha="center", va="center", fontsize=7.5, color="#999999")
            continue
        for floor, value in _ticks(result, row["corpus"], measure):
            width = 2.6 if floor == "lookup" else 1.5
            axes.plot(
                [value] * 2,
                [y - 0.5, y + 0.5],
                color=_TICKS[floor],
                linestyle=_STYLES[floor],
                linewidth=width,
                zorder=2,
            )
        if score["low"] is not None:
            axes.plot([score["low"], score["high"]], [y, y], color="#111111", linewidth=1.3, zorder=3)
        axes.plot(score["mean"], y, "o", color="#111111", markeredgecolor="white", markersize=6, zorder=4)
        if verdict in _MARKS:
            axes.text(
                1.0,
                y,
                _MARKS[verdict],
                transform=axes.get_yaxis_transform(),
                ha="right",
                va="center",
                fontsize=8,
            )
    axes.set_xlim(low, high)
    axes.set_title(MEASURE_TITLES[measure].replace(" ", "\n"), fontsize=9.5)
    ticks = [tick for tick in MaxNLocator(3).tick_values(low, high) if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:.4g}".replace("0.", ".") for tick in ticks])
    axes.tick_params(length=0, labelsize=8.5)
    axes.spines[:].set_visible(False)


def _range(result: dict[str, Any], measure: str) -> tuple[float, float]:
    """Return the ends of a measure's axis: all that is drawn on it, and a little air."""
    values: list[float] = []
    for row in result["rows"].values():
        score = row["measures"].get(measure)
        if score and score["mean"] is not None:
            values += [score[key] for key in ("mean", "low", "high") if score[key] is not None]
            values += [value for _, value in _ticks(result, row["corpus"], measure)]
    if not values:
        return 0.0, 1.0
    air = 0.08 * (max(values) - min(values)) or 0.05
    return min(values) - air, max(values) + 2 * air  # the right has the triangle


def _ticks(result: dict[str, Any], corpus: str, measure: str) -> Iterator[tuple[str, float]]:
    for floor, scores in floors_of(result, corpus).items():
        if scores.get(measure):
            yield floor, scores[measure]["value"]


def _legend() -> list[Any]:
    ticks = [
        Line2D(
            [],
            [],
            color=_TICKS[floor],
            linestyle=_STYLES[floor],
            linewidth=2.6 if floor == "lookup" else 1.5,
            label=title.replace("bar: lookup", "lookup: the bar (✔ clears it)"),
        )
        for floor, title in FLOOR_TITLES.items()
    ]
    return [
        ticks[3],
        Line2D([], [], marker="o", color="#111111", label="mean, 95 % interval"),
        Patch(color=_CELLS["higher"], label="▲ higher"),
        ticks[0],
        Patch(color=_CELLS["lower"], label="▼ lower"),
        ticks[1],
        Patch(color=_CELLS["no difference"], label="no difference"),
        ticks[2],
    ]


def _headline(result: dict[str, Any]) -> str:
    verdicts = [
        (row["differences"].get(measure) or {}).get("verdict")
        for row in result["rows"].values()
        for measure in HEADLINE
    ]
    verdicts = [verdict for verdict in verdicts if verdict is not None]
    clear, judged = clears_bar(result, "macro_f1")
    return (
        f"{len(clear)} of {len(judged)} generators clear the lookup bar in macro-F1.  "
        f"No difference in {verdicts.count('no difference')} of {len(verdicts)} cells that compare."
    )


def floors_of(result: dict[str, Any], corpus: str) -> dict[str, dict[str, Any]]:
    """Return the floors and the bar of a corpus; how its volumes are prepared changes no report."""
    floors = result["floors"].get(reports_of(corpus)) or {}
    return {name: floors.get(name) or {} for name in FLOOR_TITLES}


def clears_bar(result: dict[str, Any], measure: str) -> tuple[list[str], list[str]]:
    """Return the rows that clear the lookup bar in a measure, and all that were held against it."""
    verdicts = {
        name: row["clears_lookup"][measure]["verdict"]
        for name, row in result["rows"].items()
        if (row["clears_lookup"] or {}).get(measure)
    }
    return [name for name, verdict in verdicts.items() if verdict == "higher"], list(verdicts)


# Findings of the lung itself; all others are seen in the mediastinal window.
_LUNG = {
    "Atelectasis",
    "Bronchiectasis",
    "Consolidation",
    "Emphysema",
    "Interlobular septal thickening",
    "Lung nodule",
    "Lung opacity",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Pulmonary fibrotic sequela",
}
_WIDTH, _MARGIN, _NAME, _GAP = 1200, 24, 150, 28
_COLUMN = (_WIDTH - 2 * _MARGIN - _NAME - _GAP) // 2
_PICTURE = 300  # height of the slices
_INK, _FAINT, _RULE = (17, 17, 17), (120, 120, 120), (215, 215, 215)
_GOOD, _BAD, _NONE = (0, 90, 160), (190, 70, 0), (90, 90, 90)
_GOOD_FILL, _BAD_FILL, _NONE_FILL = (205, 229, 247), (252, 222, 200), (236, 236, 236)
OUTLINE = (255, 190, 70)


class Judgement(NamedTuple):
    """What a report says of one finding.

    Args:
        verdict (`str`): `"right"`, `"wrong"`, `"no side"` or `"not named"`.
        says (`str`): The same for a reader.
        spans (`list[tuple[int, int]]`): The words that name the finding and its side.
    """

    verdict: str
    says: str
    spans: list[tuple[int, int]]


def judge_side(report: str, label: str, side: str) -> Judgement:
    """Read which side a report gives a finding, and compare it with the true one; to deny the finding is wrong."""
    found = read_findings(report)
    mentions = [item for item in found.evidence if item.label == label]
    named = [item.span for item in mentions if item.status != "negative"]
    if not named:
        denied = [item.span for item in mentions]
        return (
            Judgement("wrong", "says none", denied) if denied else Judgement("not named", "not mentioned", [])
        )
    spans = list(named)
    for start, end in _sentences(report):
        inside = [span for span in named if start <= span[0] < end]
        if inside:
            sides = [(start + item.span[0], start + item.span[1]) for item in find_sides(report[start:end])]
            spans += [item for item in sides if _is_nearest(item, inside, found.evidence)]
    said = found.sides.get(label)
    if said is None:
        return Judgement("no side", "no side given", sorted(spans))
    return Judgement("right" if said == side else "wrong", f"says {said}", sorted(spans))


def draw_example(result: dict[str, Any], path: str | Path) -> None:
    """Draw a pair whose finding is on one side and on the other, and what is written of both.

    Sentences that name the finding are quoted, with its words marked: blue and ticked with the true side, orange and
    crossed with another. Others are left out; of a report that does not name it, the beginning is shown.
    A result without an example has no picture.
    """
    example = result.get("example")
    if not example:
        return
    pair = make_pair(example["seed"], example["label"], example["change"], spacing=example["spacing"])
    label, phantoms = example["label"], (pair.first, pair.second)
    sides = [
        next(item.side or "" for item in phantom.findings if item.label == label) for phantom in phantoms
    ]
    canvas = Image.new("RGB", (_WIDTH, 4000), "white")
    draw = ImageDraw.Draw(canvas)
    lefts = [_MARGIN + _NAME, _MARGIN + _NAME + _COLUMN + _GAP]
    draw.text(
        (_MARGIN, 18), "One patient, two studies: only the side differs", fill=_INK, font=_font(27, True)
    )
    top = 66
    for left, phantom, side in zip(lefts, phantoms, sides, strict=True):
        draw.text((left, top), f"{label} on the {side}", fill=_INK, font=_font(21, True))
        canvas.paste(draw_slice(phantom, label), (left, top + 34))
    top += 34 + _PICTURE + 16
    lines = [("Reference", example["references"])]
    lines += [
        (result["rows"][name]["title"] if name in result["rows"] else "Lookup", texts)
        for name, texts in example["reports"].items()
    ]
    for name, texts in lines:
        draw.line([(_MARGIN, top), (_WIDTH - _MARGIN, top)], fill=_RULE, width=2)
        _write_flow(draw, (_MARGIN, top + 14), _NAME - 12, [(name, _INK, None)], _font(20, True))
        bottoms = [
            _write_report(draw, (left, top + 14), text, label, side)
            for left, text, side in zip(lefts, texts, sides, strict=True)
        ]
        top = max([*bottoms, top + 70]) + 14
    with replacing(path) as partial:
        canvas.crop((0, 0, _WIDTH, top)).save(partial, optimize=True)


def _write_report(draw: ImageDraw.ImageDraw, xy: tuple[int, int], text: str, label: str, side: str) -> int:
    """Write the verdict and what the report says of the finding; return where it ends."""
    judged = judge_side(text, label, side)
    colour, fill, symbol = {
        "right": (_GOOD, _GOOD_FILL, "✔"),
        "wrong": (_BAD, _BAD_FILL, "✘"),
        "no side": (_NONE, _NONE_FILL, "?"),
        "not named": (_NONE, _NONE_FILL, "–"),
    }[judged.verdict]
    draw.text(xy, f"{symbol}  {judged.says}", fill=colour, font=_font(21, True))
    pieces: list[tuple[str, tuple[int, int, int], tuple[int, int, int] | None]] = []
    sentences = _sentences(text)
    if not judged.spans:
        pieces = [(text[start:end].strip(), _FAINT, None) for start, end in sentences[:2]]
        pieces += [("[…]", _FAINT, None)] if len(sentences) > 2 else []
        sentences = []
    for start, end in sentences:
        marks = [span for span in judged.spans if start <= span[0] < end]
        if not marks:
            if not pieces or pieces[-1][0] != "[…]":
                pieces.append(("[…]", _FAINT, None))
            continue
        at = start
        for mark_start, mark_end in marks:
            if mark_start >= at:
                pieces += [(text[at:mark_start], _INK, None), (text[mark_start:mark_end], colour, fill)]
                at = mark_end
        pieces.append((text[at:end], _INK, None))
    return _write_flow(draw, (xy[0], xy[1] + 32), _COLUMN, pieces, _font(18))


def _write_flow(
    draw: ImageDraw.ImageDraw,
    xy: tuple[int, int],
    width: int,
    pieces: list[tuple[str, tuple[int, int, int], tuple[int, int, int] | None]],
    font: ImageFont.FreeTypeFont,
) -> int:
    """Write pieces of text, each with its colour and that behind it, wrapped to a width; return where they end."""
    x, y = float(xy[0]), xy[1]
    line = round(font.size * 1.42)
    space = font.getlength(" ")
    for text, colour, fill in pieces:
        for number, word in enumerate(text.split()):
            long = font.getlength(word)
            is_glued = number == 0 and word[0] in ".,;:" and x > xy[0]
            if x + long > xy[0] + width and not is_glued:
                x, y = float(xy[0]), y + line
            if is_glued:
                x -= space
            if fill is not None:
                draw.rectangle([x - 2, y - 1, x + long + 2, y + line - 5], fill=fill)
            draw.text((x, y), word, fill=colour, font=font)
            x += long + space
    return y + line


def draw_slice(phantom: Phantom, label: str) -> Image.Image:
    """Draw the axial slice that holds most of a finding, the patient's right on the picture's left, and outline it."""
    mask = phantom.mask(label)
    if not mask.any():
        raise ValueError(
            f"The finding of an example must fill a voxel, {label!r} of `{phantom.study_id}` fills none at "
            f"{phantom.spacing} mm. Take a larger one, or a smaller spacing."
        )
    z = int(mask.sum(axis=(1, 2)).argmax())
    hu, inside = phantom.volume[z][::-1, ::-1], mask[z][::-1, ::-1]
    name = "Lung" if label in _LUNG else "Mediastinum"
    size = round(hu.shape[1] * phantom.spacing[2] / (hu.shape[0] * phantom.spacing[1]) * _PICTURE), _PICTURE
    grey = Image.fromarray(window_hu(hu, *WINDOWS[name])).resize(size, Image.Resampling.BICUBIC)
    filled = Image.fromarray(inside.astype(np.uint8) * 255).resize(size, Image.Resampling.BICUBIC)
    area = np.asarray(filled) > 127
    # Outside the finding, so that a small one is still seen.
    around = np.asarray(Image.fromarray(area).convert("L").filter(ImageFilter.MaxFilter(7))) > 0
    pixels = np.array(grey.convert("RGB"))
    pixels[around & ~area] = OUTLINE
    tile = Image.new("RGB", (_COLUMN, _PICTURE), (12, 13, 16))
    tile.paste(Image.fromarray(pixels), ((_COLUMN - size[0]) // 2, 0))
    draw = ImageDraw.Draw(tile)
    for x, letter, anchor in ((12, "R", "lm"), (_COLUMN - 12, "L", "rm")):
        draw.text((x, _PICTURE // 2), letter, fill="white", font=_font(28, True), anchor=anchor)
    level, width = WINDOWS[name]
    draw.text(
        (12, _PICTURE - 10),
        f"{name}  L {level:.0f}  W {width:.0f}",
        fill="white",
        font=_font(14),
        anchor="ld",
    )
    return tile


def _sentences(report: str) -> list[tuple[int, int]]:
    """Bound the sentences of a report, and of its two sections."""
    bounds, start = [], 0
    for at, letter in enumerate(report):
        is_end = letter in ".!?" and (at + 1 == len(report) or report[at + 1].isspace())
        if is_end or letter == "\n" or at + 1 == len(report):
            if report[start : at + 1].strip():
                bounds.append((start, at + 1))
            start = at + 1
    return bounds


def _is_nearest(side: tuple[int, int], inside: list[tuple[int, int]], evidence: Any) -> bool:
    """Say whether a side belongs to these mentions, and not to a nearer one of another finding."""

    def distance(span: tuple[int, int]) -> int:
        return max(span[0] - side[1], side[0] - span[1], 0)

    return min(map(distance, inside)) <= min(distance(item.span) for item in evidence)


def _font(size: int, is_bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return the font that matplotlib ships, which has the symbols."""
    return ImageFont.truetype(
        findfont(FontProperties(family="DejaVu Sans", weight="bold" if is_bold else 400)), size
    )

"""Draw an evaluation: every metric with its floors as ticks, and one strip of F1 per finding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .published import PublishedValue

_ROWS = (
    ("macro_f1", "macro-F1"),
    ("micro_f1", "micro-F1"),
    ("crg", "CRG"),
    ("coverage", "Coverage"),
    ("accuracy", "Accuracy"),
    ("side_agreement", "side agreement"),
    ("size_agreement", "size agreement"),
    ("rouge1", "ROUGE-1"),
    ("rougeL", "ROUGE-L"),
    ("meteor", "METEOR"),
    ("bleu1", "BLEU-1"),
    ("bleu4", "BLEU-4"),
    ("chrf", "chrF"),
)
_FLOORS = (
    ("constant_normal", "constant normal report", "#9a9a9a"),
    ("random", "random other report", "#5f5f5f"),
    ("nearest_by_labels", "nearest report by true labels (oracle)", "#1f1f1f"),
)
_MEASURED = "#c8102e"
_PUBLISHED = "#1f4e8c"
_MARKERS = "Ds^vP*"


def draw_evaluation(
    result: dict[str, Any], path: str | Path, *, published: Sequence[PublishedValue] = (), title: str = ""
) -> None:
    """Write the picture of an evaluation.

    Measured values are filled points with their interval, published ones hollow marks, floors grey ticks.

    Args:
        result (`dict`): `Evaluation.to_dict()`, or the JSON it was written to.
        path (`str` or `Path`): Where to write; the ending decides the format.
        published (`Sequence[PublishedValue]`): Values to show beside the measured ones.
        title (`str`): What was measured.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'Pictures need the package `matplotlib`, which is not installed. Run `pip install "hf_mu2[report]"`.'
        ) from error
    some = result["scores"] or next(floor for floor in result["floors"].values() if floor)
    rows = [(name, text) for name, text in _ROWS if name in some]
    figure = Figure(figsize=(13, 2.6 + 0.34 * len(rows) + 1.9), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, height_ratios=[len(rows) + 2.0, 5.2])
    _draw_metrics(top, rows, result, published)
    _draw_strip(bottom, result)
    settings = result["settings"]
    figure.suptitle(
        f"{title or 'Evaluation'}  ·  {settings['studies']:,} studies of {settings['patients']:,} patients  ·  "
        f"protocol {settings['protocol']}  ·  labels: {_label_source(settings)}",
        fontsize=11,
        x=0.01,
        ha="left",
    )
    figure.savefig(path, dpi=130)


def _draw_metrics(
    axes: Any, rows: list[tuple[str, str]], result: dict[str, Any], published: Sequence[PublishedValue]
) -> None:
    systems = list(dict.fromkeys(value.system for value in published))
    for place, (name, _) in enumerate(rows):
        axes.axhline(place, color="#eeeeee", linewidth=0.8, zorder=0)
        for floor, _, colour in _FLOORS:
            value = (result["floors"].get(floor) or {}).get(name, {}).get("value")
            if value is not None:
                axes.plot([value, value], [place - 0.32, place + 0.32], color=colour, linewidth=2.4, zorder=2)
        score = (result["scores"] or {}).get(name)
        if score and score["value"] is not None:
            if score["low"] is not None:
                axes.plot(
                    [score["low"], score["high"]], [place, place], color=_MEASURED, linewidth=2, zorder=3
                )
            axes.plot(score["value"], place, "o", color=_MEASURED, markersize=7, zorder=4)
            axes.text(1.015, place, f"{score['value']:.3f}", va="center", fontsize=9, color=_MEASURED)
        else:
            axes.text(1.015, place, "not run", va="center", fontsize=8, color="#999999")
        for value in published:
            if value.metric == name:
                marker = _MARKERS[systems.index(value.system) % len(_MARKERS)]
                axes.plot(value.value, place, marker, color="none", markeredgecolor=_PUBLISHED, zorder=3)
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.4, -0.6))
    axes.set_yticks(range(len(rows)), [text for _, text in rows])
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    for _, text, colour in _FLOORS:
        axes.plot([], [], "|", color=colour, markersize=11, markeredgewidth=2.4, label=f"floor: {text}")
    if result["scores"]:
        axes.plot([], [], "o-", color=_MEASURED, label="measured, 95 % interval over patients")
    for index, system in enumerate(systems):
        marker = _MARKERS[index % len(_MARKERS)]
        axes.plot([], [], marker, color="none", markeredgecolor=_PUBLISHED, label=f"published: {system}")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.06), ncols=3, frameon=False, fontsize=8.5)
    protocol = result["settings"]["protocol"]
    badges = dict.fromkeys(
        f"published, {value.source}: {value.badge}"
        + ("" if value.protocol == protocol else f" — not protocol {protocol}, not comparable")
        for value in published
    )
    axes.set_title("\n".join(badges), loc="left", fontsize=8.5, color=_PUBLISHED)


def _draw_strip(axes: Any, result: dict[str, Any]) -> None:
    labels = result["labels"]
    columns = [("f1", "measured")] if result["scores"] else []
    columns += [
        (f"f1_{floor}", text.partition(" (")[0]) for floor, text, _ in _FLOORS if result["floors"].get(floor)
    ]
    values = np.array([[row.get(key, np.nan) for row in labels.values()] for key, _ in columns])
    axes.imshow(values, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        colour = "black" if value > 0.55 else "white"
        text = f"{value:.2f}".removeprefix("0") if value < 1 else "1"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    names = [f"{name}  ({row['support']})" for name, row in labels.items()]
    axes.set_xticks(range(len(names)), names, rotation=38, ha="right", fontsize=8)
    axes.set_yticks(range(len(columns)), [text for _, text in columns], fontsize=9)
    axes.set_title("F1 per finding (positive references in brackets)", fontsize=9, loc="left")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _label_source(settings: dict[str, Any]) -> str:
    given, studies = settings["labels_given"], settings["studies"]
    source = "rules" if not given else "given" if given == studies else f"{given:,} given, else rules"
    return f"references {source}, candidates {settings['labeler']}"

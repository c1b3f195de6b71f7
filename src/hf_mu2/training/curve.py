"""Draw the course of a training run.

Reads: the log history of a trainer, or `run.json`.
Writes: `curve.png`: training and evaluation loss, and below it the image dependence with its standard error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from hf_mu2.files import replace_file

INK, BLUE, ORANGE, GREY = "#1f2933", "#1b6ca8", "#c8553d", "#b8c0c8"


def draw_curve(history: Sequence[Mapping[str, Any]], out: str | Path, title: str = "") -> Path:
    """Draw losses and image dependence over steps.

    Args:
        history: Entries with `step` and any of `loss`, `eval_loss`, `eval_image_dependence`, as a trainer logs them.
        out (`str` or `Path`): PNG to write.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Drawing needs matplotlib: pip install "hf_mu2[report]"') from error

    def series(name: str) -> tuple[list[float], list[float]]:
        points = [(entry["step"], entry[name]) for entry in history if name in entry]
        return [step for step, _ in points], [value for _, value in points]

    train, evaluation, dependence = (series(name) for name in ("loss", "eval_loss", "eval_image_dependence"))
    errors = series("eval_image_dependence_se")[1]
    has_dependence = bool(dependence[0])
    figure = Figure(figsize=(7.2, 4.8 if has_dependence else 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        1 + has_dependence, 1, sharex=True, squeeze=False, height_ratios=[3, 2][: 1 + has_dependence]
    )
    top = axes[0, 0]
    top.plot(*train, color=GREY, linewidth=1, label="training, each log")
    smooth = _running_mean(train[1], max(3, len(train[1]) // 10))
    top.plot(train[0], smooth, color=BLUE, linewidth=1.8, label="training, running mean")
    if evaluation[0]:
        top.plot(*evaluation, color=ORANGE, marker="o", markersize=4, linewidth=1.4, label="evaluation")
    top.set_ylabel("loss, nats per answer token")
    top.set_title(title, loc="left", fontsize=10, color=INK)
    top.legend(frameon=False, fontsize=8)
    if has_dependence:
        bottom = axes[1, 0]
        bottom.axhline(0, color=GREY, linewidth=1)
        bottom.errorbar(
            *dependence, yerr=errors, color=ORANGE, marker="o", markersize=4, linewidth=1.4, capsize=2
        )
        bottom.set_ylabel("image dependence,\nnats per answer token")
    axes[-1, 0].set_xlabel("step")
    for axis in axes[:, 0]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    replace_file(out, picture.getvalue())
    return Path(out)


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    means = []
    for index in range(len(values)):
        window = values[max(0, index - width + 1) : index + 1]
        means.append(sum(window) / len(window))
    return means

"""Does a checkpoint look at its volumes? The loss of references under their own volume against a neighbour's.

Reads: a checkpoint, a folder of the `sft` view.
Writes: nothing.
"""

from pathlib import Path
from typing import Any

from transformers import AutoModelForImageTextToText, AutoProcessor
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from .monitor import answer_of, measure_image_dependence, order_by_findings
from .recipe import RecipeArguments, open_studies


def measure_dependence(
    checkpoint: str | Path,
    dataset: str | Path,
    *,
    split: str = "test",
    limit: int | None = None,
    batch_size: int = 8,
) -> dict[str, Any]:
    """Measure the image dependence of a checkpoint on a folder of training rows with one volume each.

    Studies are ordered by their findings, so that each is read beside a study that is alike and the wrong volume is not
    wrong by its size or region alone.

    Returns:
        `dict`: That of [`measure_image_dependence`], with `studies`.

    Raises:
        ValueError: if there are fewer than two rows.
    """
    rows = list(open_studies(RecipeArguments(dataset_name=str(dataset)), split, limit))
    if len(rows) < 2:
        raise ValueError(
            f"Every study needs another one's volume, got {len(rows)} rows. Measure two or more."
        )
    model = AutoModelForImageTextToText.from_pretrained(checkpoint).eval()
    processor = AutoProcessor.from_pretrained(checkpoint)
    collator = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)
    order = order_by_findings([answer_of(row) for row in rows])
    measured = measure_image_dependence(model, collator, [rows[index] for index in order], batch_size)
    return {**measured, "studies": len(rows), "split": split, "batch_size": batch_size}

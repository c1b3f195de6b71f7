"""How many tokens a study costs a Qwen-VL model, counted before anything is trained, and what to change if too many.

Reads: rows with `images` and text (`prompt` and `completion`, or `messages`), or volumes alone.
Writes: nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from .slices_image import Layout, SliceImageProcessor
from .slices_video import SliceVideoProcessor


@dataclass(frozen=True)
class TokenBudget:
    """Tokens of some studies against the longest sequence.

    Args:
        visual, text (`tuple[int, ...]`): Of each study that was counted.
        grid (`tuple[int, int, int]`): (t, h, w) in patches of the first volume's first group.
        groups (`int`): Of the first volume.
        limit (`int`): The longest sequence.
        limited_by (`str`): What sets the limit.
    """

    visual: tuple[int, ...]
    text: tuple[int, ...]
    grid: tuple[int, int, int]
    groups: int
    limit: int
    limited_by: str

    @property
    def longest(self) -> int:
        """Tokens of the longest study."""
        return max(visual + text for visual, text in zip(self.visual, self.text))

    @property
    def fits(self) -> bool:
        return self.longest <= self.limit

    def to_dict(self) -> dict[str, Any]:
        return {
            "studies": len(self.visual),
            "visual_tokens": {"least": min(self.visual), "most": max(self.visual)},
            "text_tokens": {"least": min(self.text), "most": max(self.text)},
            "longest": self.longest,
            "grid": list(self.grid),
            "groups": self.groups,
            "limit": self.limit,
            "limited_by": self.limited_by,
            "fits": self.fits,
        }


def measure_budget(
    processor: SliceVideoProcessor,
    rows: Iterable[Mapping[str, Any]],
    config: PreTrainedConfig,
    max_length: int | None = None,
) -> TokenBudget:
    """Count the tokens of each row; volumes are opened, not resampled.

    Args:
        processor (`SliceVideoProcessor`): Whose settings decide.
        rows (`Iterable[Mapping]`): Rows with `images`, and text if there is some; some of a dataset are enough.
        config (`PreTrainedConfig`): Of the model, which bounds the length.
        max_length (`int`, *optional*): Where training cuts sequences.

    Raises:
        ValueError: if there is no row.
    """
    visual: list[int] = []
    text: list[int] = []
    first: list[Layout] = []
    for row in rows:
        sources = row["images"]
        sources = sources if isinstance(sources, (list, tuple)) else [sources]
        layouts = [processor.image_processor.plan(source) for source in sources]
        first = first or layouts[0]
        visual.append(sum(_count(processor, processor.placeholders(layout)) for layout in layouts))
        text.append(_count_text(processor, row) + 2 * len(sources))  # start and end of vision
    if not first:
        raise ValueError("A budget needs at least one row with a volume, got none. Check the split.")
    limits = {"the model's `max_position_embeddings`": config.get_text_config().max_position_embeddings}
    if max_length is not None:
        limits["`max_length`"] = max_length
    limited_by = min(limits, key=lambda name: limits[name])
    return TokenBudget(tuple(visual), tuple(text), first[0].grid, len(first), limits[limited_by], limited_by)


def describe_budget(budget: TokenBudget, processor: SliceImageProcessor) -> str:
    """Say in a few lines what a study costs, and what to change where it is too long."""
    steps, height, width = budget.grid
    per_step = height * width // processor.merge_size**2
    lines = [
        f"{budget.groups} group{'s' if budget.groups > 1 else ''} of {processor.num_slices} slices of "
        f"{height * processor.patch_size} x {width * processor.patch_size} pixels: {steps} steps of {per_step} tokens",
        f"{len(budget.visual)} studies: {min(budget.visual):,} to {max(budget.visual):,} visual tokens, "
        f"{min(budget.text):,} to {max(budget.text):,} of text, {budget.longest:,} at most; "
        f"{budget.limited_by} is {budget.limit:,}",
    ]
    if not budget.fits:
        lines += [f"- {suggestion}" for suggestion in suggest(budget, processor)]
    return "\n".join(lines)


def suggest(budget: TokenBudget, processor: SliceImageProcessor) -> list[str]:
    """Name the settings that would make the longest study fit, one at a time."""
    text, visual = max(budget.text), max(budget.visual)
    room = budget.limit - text
    if room < visual // max(1, budget.grid[0] * budget.groups):
        return [f"raise {budget.limited_by}: the text alone has up to {text:,} tokens"]
    share = room / visual
    pixels = budget.grid[1] * budget.grid[2] * processor.patch_size**2
    suggestions = [
        f"`max_pixels: {max(int(pixels * share), (processor.patch_size * processor.merge_size) ** 2)}`"
    ]
    if processor.coverage == "stride":
        suggestions.append(f"`stride: {-int(-processor.stride / share // 1)}`")
    elif share * processor.num_slices >= processor.temporal_patch_size:
        step = processor.temporal_patch_size
        suggestions.append(f"`num_slices: {int(share * processor.num_slices) // step * step}`")
    suggestions.append(f"a coarser `spacing`: {1 / share**0.5:.2f} times the millimetres along y and x")
    if budget.limited_by == "`max_length`":
        suggestions.append(f"`max_length: {budget.longest}`, where memory allows")
    return suggestions


def check_budget(
    processor: SliceVideoProcessor,
    rows: Iterable[Mapping[str, Any]],
    config: PreTrainedConfig,
    max_length: int | None = None,
) -> str:
    """Return what a study costs, for the log of a run.

    Raises:
        ValueError: if a study is longer than the longest sequence: its end, the answer, would be cut off.
    """
    budget = measure_budget(processor, rows, config, max_length)
    text = describe_budget(budget, processor.image_processor)
    if not budget.fits:
        raise ValueError(
            f"A study must fit into {budget.limited_by}, {budget.limit:,} tokens, one has {budget.longest:,}. Change "
            f"one of the settings below.\n{text}"
        )
    return text


def _count(processor: SliceVideoProcessor, text: str) -> int:
    return len(processor.tokenizer(text, add_special_tokens=False)["input_ids"])


def _count_text(processor: SliceVideoProcessor, row: Mapping[str, Any]) -> int:
    """Count the tokens of a row without its volumes: of its longest answer, where it has several."""
    if "messages" in row:
        return _count(processor, processor.apply_chat_template(row["messages"], tokenize=False))
    answers = [row[name] for name in ("completion", "chosen", "rejected") if name in row] or [[]]
    conversations = [[*row.get("prompt", []), *answer] for answer in answers]
    return max(
        _count(processor, processor.apply_chat_template(turns, tokenize=False)) for turns in conversations
    )

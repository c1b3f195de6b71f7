"""The grid: which rows there are, what each changes, and what it is compared against.

A row is one recipe or several in turn, on every seed. Everything it does not name is `Protocol` and `recipe` of
`run.py`, so that two rows differ in what they say here and nothing else.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Protocol:
    """Sizes of the grid. The rows of `choices` hold the learning rate against others, on validation studies.

    Args:
        train, validation, test (`int`): Studies of ordinary reports.
        pairs (`int`): Pairs of studies that are one finding apart.
        epochs (`int`): Of a run that starts from a fresh tokenizer.
        negative_train, negative_test (`int`): Studies of the negative rows, whose reports come with many or few words
            that can be learned without the volume.
        scan_train, scan_test (`int`): Studies at the spacings of claim f.
        tokenizer (`dict`): Sizes of the tokenizer that differ from the preset `tiny`.
    """

    name: str
    train: int
    validation: int
    test: int
    pairs: int
    epochs: int
    batch_size: int
    learning_rate: float
    preference_studies: int
    online_steps: int
    negative_train: int
    negative_test: int
    scan_train: int
    scan_test: int
    tokenizer: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "seeds": list(SEEDS)}


TINY = Protocol(
    name="tiny", train=480, validation=100, test=200, pairs=48, epochs=2, batch_size=8, learning_rate=1e-3,
    preference_studies=128, online_steps=24, negative_train=192, negative_test=100, scan_train=480, scan_test=100,
)  # fmt: skip
# Taken where there is a GPU: more studies, and a tokenizer with four refiner layers, where the published one collapses.
LARGE = Protocol(
    name="large", train=4000, validation=400, test=800, pairs=256, epochs=6, batch_size=32, learning_rate=1e-3,
    preference_studies=1000, online_steps=200, negative_train=2000, negative_test=400, scan_train=4000, scan_test=400,
    tokenizer={
        "num_refiner_layers": 4, "num_aggregator_layers": 4, "num_selected_tokens": 256, "num_query_tokens": 64,
        "scale_queries": (32, 16, 16),
    },
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the tables.

    Args:
        claim (`str`): Letter of the group of claims.
        against (`str`, *optional*): The row it is compared with.
        tokenizer (`dict`): Fields of `Mu2TokenizerConfig` of the fresh tokenizer.
        steps (`tuple`): Fields of one recipe after the other, each from where the one before it ended.
        start (`str`, *optional*): The row whose checkpoint of the same seed it starts from, or of its first where that
            is shared; a fresh tokenizer if none.
        corpus (`str`): Whose studies and reports, see `ground.py`.
        share (`float`): Share of the training studies.
        prepare (`str`, *optional*): `"pairs"`: sample, score and pair candidates of the start first.
        judged_by (`str`, *optional*): The measure that the row was optimised for.
        is_choice (`bool`): Whether only the loss of validation studies is read, to choose a setting by.
        is_shared (`bool`): Whether all seeds of what starts from it start from its first.
    """

    name: str
    claim: str
    title: str
    about: str
    against: str | None = None
    tokenizer: dict[str, Any] = field(default_factory=dict)
    steps: tuple[dict[str, Any], ...] = ({},)
    start: str | None = None
    corpus: str = "ordinary"
    share: float = 1.0
    prepare: str | None = None
    judged_by: str | None = None
    is_choice: bool = False
    is_shared: bool = False

    @property
    def seeds(self) -> tuple[int, ...]:
        """One seed for a choice and for a shared start, else all."""
        return SEEDS[:1] if self.is_choice or self.is_shared else SEEDS


BASELINE = {"position": "absolute", "selection": "topk", "pooling": "fixed"}


def ablation() -> list[Row]:
    """Table 2 of mu2, and what we changed of the published code."""

    def row(name: str, title: str, about: str, against: str = "baseline", **tokenizer: Any) -> Row:
        return Row(name, "a", title, about, None if name == "baseline" else against, tokenizer)

    relative = {"position": "3d"}
    return [
        row("all", "all of mu2", "RPE, DTS and DMTP together: our default."),
        row(
            "baseline",
            "baseline (LinVT)",
            "Absolute positions, hard top-k selection, scales without gates.",
            **BASELINE,
        ),
        row("rpe", "+ RPE", "The baseline with a relative positional bias.", **{**BASELINE, **relative}),
        row(
            "dts", "+ DTS", "The baseline with differentiable selection.", **{**BASELINE, "selection": "soft"}
        ),
        row("dmtp", "+ DMTP", "The baseline with gated scales.", **{**BASELINE, "pooling": "gated"}),
        row(
            "published_refiner",
            "published refiner",
            "All of mu2, its refiner without residual and norm as in the published code.",
            "all",
            refiner="published",
        ),
        row(
            "bias_1d",
            "1-D bias",
            "All of mu2 with the paper's bias over the token index.",
            "all",
            position="1d",
        ),
        row(
            "published_gate",
            "published gate",
            "All of mu2 with the published gate, which is constant.",
            "all",
            pooling="published",
        ),
        row(
            "not_kept_apart",
            "queries not kept apart",
            "All of mu2 with scores of whole tokens and norms after the sums, as published.",
            "all",
            keep_apart=False,
        ),
    ]


def limited_data() -> list[Row]:
    """From little data."""
    rows = []
    for percent in (1, 5, 10, 25):
        for name, tokenizer in (("all", {}), ("baseline", BASELINE)):
            against = f"baseline_{percent}" if name == "all" else None
            title = f"{percent} % of the studies, {'mu2' if name == 'all' else 'baseline'}"
            about = "As many steps as a quarter of the studies gives, at least; the lowest validation loss is kept."
            rows.append(Row(f"{name}_{percent}", "b", title, about, against, tokenizer, share=percent / 100))
    return rows


def preference() -> list[Row]:
    """Against a judge."""
    return [
        Row(
            "dpo",
            "c",
            "all + DPO",
            "Best against worst of eight candidates by label-F1.",
            "all",
            steps=({"objective": "dpo", "beta": 0.1, "num_train_epochs": 4, "learning_rate": 1e-4},),
            start="all",
            prepare="pairs",
            judged_by="report_f1",
        ),
        Row(
            "grpo",
            "c",
            "all + GRPO",
            "Eight completions per study, rewarded by label-F1.",
            "all",
            steps=({"objective": "grpo", "reward_funcs": ["label_f1_reward"], "learning_rate": 1e-4},),
            start="all",
            judged_by="report_f1",
        ),
    ]


def negative_constraint() -> list[Row]:
    """With negatives, from a model that writes such reports already."""
    rows = []
    for corpus in ("low", "high"):
        words = "reports that say what is there" if corpus == "low" else "reports that are mostly template"
        start = f"{corpus}_start"
        learn = {"num_train_epochs": 8, "learning_rate": 1e-3, "per_device_train_batch_size": 4}
        rows.append(
            Row(
                start, "d", f"start of the arms; shortcut {corpus}", f"SFT on {words}; one for all seeds.",
                steps=(learn,), start="all", corpus=corpus, is_shared=True,
            )
        )  # fmt: skip
        arms = [
            ("origin", "Origin", None, 0.0),
            ("gauss_0.05", "Gauss, beta .05", "gauss", 0.05),
            ("gauss", "Gauss, beta .1", "gauss", 0.1),
            ("gauss_0.2", "Gauss, beta .2", "gauss", 0.2),
            ("heter", "Heter, beta .1", "paper", 0.1),
            ("heter_balanced", "Heter-balanced, beta .1", "balanced", 0.1),
            ("hard", "Hard, beta .1", "hard", 0.1),
        ]
        for name, title, negatives, beta in arms:
            step: dict[str, Any] = {"objective": "negative", "beta": beta, "num_train_epochs": 1}
            step |= {"learning_rate": 5e-4, "per_device_train_batch_size": 4}
            if negatives is not None:
                step["negatives"] = negatives
            against = None if name == "origin" else f"{corpus}_origin"
            rows.append(
                Row(
                    f"{corpus}_{name}", "d", f"{title}; shortcut {corpus}", f"On {words}.", against,
                    steps=(step,), start=start, corpus=corpus,
                )
            )  # fmt: skip
    return rows


def two_stage() -> list[Row]:
    """Two stages against one of the same length."""
    return [
        Row(
            "two_stage", "e", "two stages", "The tokenizer for a frozen language model, then both.", "all",
            steps=({"stage": "tokenizer"}, {"stage": "frozen_tower"}),
        )
    ]  # fmt: skip


def preprocessing() -> list[Row]:
    """Our preprocessing against the published one, on slices of 1 to 8 mm; each has a tower tuned to it."""
    return [
        Row(
            "scans_ours", "f", "our preprocessing", "Target spacing, one HU window, masks.", "scans_published",
            corpus="scans",
        ),
        Row(
            "scans_published", "f", "published preprocessing", "Percentiles, spacing ignored, empty frames.",
            corpus="scans_published",
        ),
    ]  # fmt: skip


def choices() -> list[Row]:
    """Other learning rates of the two ends of the ablation, read on validation studies alone."""
    return [
        Row(
            f"{name}_rate_{rate:g}", "v", f"{name}, learning rate {rate:g}", "Validation loss alone.",
            tokenizer=tokenizer, steps=({"learning_rate": rate},), is_choice=True,
        )
        for name, tokenizer in (("all", {}), ("baseline", BASELINE))
        for rate in (5e-4, 2e-3)
    ]  # fmt: skip


ROWS: dict[str, Row] = {
    row.name: row
    for group in (
        ablation(),
        two_stage(),
        preference(),
        limited_data(),
        negative_constraint(),
        preprocessing(),
        choices(),
    )
    for row in group
}


def start_of(name: str, seed: int) -> tuple[str, int] | None:
    """Return the run that a run starts from, if any."""
    start = ROWS[name].start
    if start is None:
        return None
    return start, seed if seed in ROWS[start].seeds else ROWS[start].seeds[0]

"""Turn scored candidates into preference pairs that `load_dataset` and TRL open without this package.

Reads: rows of `hf-mu2 score` (see the head of `sample.py`), JSONL or Parquet; volumes are named, never opened.
Writes: a folder:

    README.md  manifest.json                  what it is, how it was made
    data/train-00000-of-00001.parquet         prompt, chosen, rejected, images, scores, margin, signature, source, ...
    report/pairs.json, pairs.md, pairs.png    length bias, what the chosen reports have right more often, margins

`images` holds paths (`List(Nifti())`) or volume references as text, whichever the candidates had. The folder appears
whole or not at all: a run that was killed is begun again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from tqdm import tqdm

from hf_mu2.data.build import is_nifti_path
from hf_mu2.data.corpus import cut_validation, share_of
from hf_mu2.files import check_new_folder, new_folder, replace_text
from hf_mu2.reporting.environment import describe_command, library_versions
from hf_mu2.tables import read_rows

from .pairs_filters import FilterRules, count_words, keep_candidates, why_filtered
from .pairs_folder import Couple, PairFile, digest_file, write_card
from .pairs_report import Statistics, write_report

if TYPE_CHECKING:
    from .pairs_sources import OtherPatients

Policy = Literal["best-worst", "best-random", "all"]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class PairRules:
    """How candidates become pairs.

    Candidates are ranked by their total score, equal ones by label-F1, then by how near their length is to that of the
    reference.

    Args:
        policy (`str`): `"best-worst"`, one pair per study, as published for mu2; `"best-random"`, the best against one
            drawn from those below it; `"all"` pairs, the widest first.
        min_margin (`float`): The least difference of scores. At 0 label-F1 alone may tell two candidates apart.
        chosen_above (`float`): The chosen one scores more than this; 0 in the official code of mu2.
        max_pairs (`int`): At most so many pairs of sampled candidates per study.
        filters (`FilterRules`): What a candidate must be.
        seed (`int`): Decides the draws of `"best-random"`, the patients of the validation split, and whose report is
            another patient's.
    """

    policy: Policy = "best-worst"
    min_margin: float = 0.15
    chosen_above: float = 0.0
    max_pairs: int = 4
    filters: FilterRules = field(default_factory=FilterRules)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.policy not in get_args(Policy):
            raise ValueError(
                f"`policy` is one of {', '.join(get_args(Policy))}, got {self.policy!r}. Choose one."
            )
        if self.min_margin < 0 or self.max_pairs < 1:
            raise ValueError(
                "A margin is not negative and a study may have a pair, got a least margin of "
                f"{self.min_margin} and at most {self.max_pairs} pairs. Raise them."
            )


@dataclass
class Account:
    """What became of studies and candidates: nothing is left out without being counted.

    Args:
        filtered: Candidates by the status or the first of `FILTERS` that took them.
        without_pair: Studies without a pair of sampled candidates, by the reason.
    """

    studies: int = 0
    candidates: int = 0
    filtered: Counter[str] = field(default_factory=Counter)
    without_pair: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def to_dict(self) -> dict[str, Any]:
        """Return the counts, as JSON holds them."""
        return {
            "studies": self.studies,
            "candidates": self.candidates,
            "filtered": dict(self.filtered),
            "without_pair": dict(self.without_pair),
            "notes": dict(self.notes),
        }

    def sentence(self) -> str:
        """Say which filter took how many."""
        filtered = [f"{count:,} {name} ({why_filtered(name)})" for name, count in self.filtered.most_common()]
        without = [f"{count:,} {reason}" for reason, count in self.without_pair.most_common()]
        return (
            f"Of {self.candidates:,} candidates the filters took {sum(self.filtered.values()):,}: "
            f"{', '.join(filtered) or 'none'}. Of {self.studies:,} studies {sum(self.without_pair.values()):,} gave no "
            f"pair: {', '.join(without) or 'none'}."
        )


@dataclass(frozen=True)
class PairSet:
    """What was written: the folder, pairs per split, the account and the summary of `report/pairs.json`."""

    folder: Path
    num_pairs: dict[str, int]
    account: Account
    summary: dict[str, Any]


def make_pairs(
    scored: str | Path,
    out: str | Path,
    rules: PairRules | None = None,
    *,
    validation_share: float = 0.1,
    noise: str | Path | None = None,
    other_patient_differences: int | None = None,
    with_figure: bool = True,
) -> PairSet:
    """Write the preference pairs of scored candidates; equal inputs and settings give equal rows.

    Args:
        scored (`str` or `Path`): Rows of `hf-mu2 score`, all with one signature.
        out (`str` or `Path`): Folder to write, new or empty.
        rules (`PairRules`, *optional*): How candidates become pairs.
        validation_share (`float`): Share of the patients, cut by a hash of each, that make the split `validation`.
        noise (`str` or `Path`, *optional*): Rows of [`~hf_mu2.preference.pairs_sources.write_noise_reports`]: adds a
            pair of the best candidate and the model's report on noise, source `"noise"`.
        other_patient_differences (`int`, *optional*): Adds a pair of the study's reference and that of a patient who
            differs in at least so many of the 18 labels, source `"other_patient"`.
        with_figure (`bool`): Draw `report/pairs.png`, which needs matplotlib.

    Raises:
        ValueError: if rows are not scored or by several judges, `out` holds something, or no pair is left; the message
            then says what took how many.
    """
    from .pairs_sources import OtherPatients, read_noise_reports

    rules = PairRules() if rules is None else rules
    scored, out = Path(scored), Path(out)
    if not 0 <= validation_share < 1:
        raise ValueError(f"`validation_share` is at least 0 and below 1, got {validation_share}. E.g. 0.1.")
    check_new_folder(out)
    signature, is_lazy = _survey(scored)
    noise_reports = None if noise is None else read_noise_reports(noise)
    others = None
    if other_patient_differences is not None:
        others = OtherPatients(read_rows(scored), other_patient_differences, rules.seed)
    account, statistics = Account(), Statistics()
    with new_folder(out) as folder:
        counts: Counter[str] = Counter()
        with ExitStack() as stack:
            files = {
                split: stack.enter_context(
                    PairFile(folder / "data" / f"{split}-00000-of-00001.parquet", is_lazy)
                )
                for split in ("train", "validation")
            }
            for couple in _all_couples(scored, rules, account, noise_reports, others):
                split = cut_validation(couple.patient_id, validation_share, rules.seed)
                files[split].add(couple)
                counts[split] += 1
                statistics.add(couple)
        if not counts["train"]:
            raise ValueError(_empty(account, rules, counts))
        summary = {"signature": signature, "account": account.to_dict(), **statistics.summary()}
        facts = {
            "command": describe_command(
                "hf-mu2 pairs SCORED --out DIR",
                {name: value for name, value in asdict(rules).items() if name != "filters"}
                | asdict(rules.filters)
                | {"validation_share": validation_share, "other_patient": other_patient_differences},
            ),
            "rules": asdict(rules),
            "validation_share": validation_share,
            "other_patient_differences": other_patient_differences,
            "has_noise": noise is not None,
            "signature": signature,
            "input_digest": digest_file(scored),
            "pairs": dict(counts),
            "versions": library_versions(),
        }
        write_report(folder / "report", summary, statistics, with_figure=with_figure)
        replace_text(folder / "manifest.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        replace_text(folder / "README.md", write_card(folder, counts, signature, account.sentence()))
    return PairSet(out, dict(counts), account, summary)


def pairs_of_study(row: Row, rules: PairRules, account: Account) -> list[Couple]:
    """Pair the candidates of one study, the widest pair first, and count what is left out."""
    account.studies += 1
    account.candidates += len(row["candidates"])
    reference = row["reference"] or ""
    kept, failed = keep_candidates(row["candidates"], reference, rules.filters)
    account.filtered.update(failed)
    if row["images"] is None:
        account.without_pair["volumes inside the data set, which pairs cannot name"] += 1
        return []
    if len(kept) < 2:
        account.without_pair["fewer than two candidates left"] += 1
        return []
    ranked = sorted(kept, key=lambda candidate: _rank(candidate, reference))
    couples = _couples(row["study_id"], ranked, rules)
    if not couples:
        best, _ = _scores(ranked[0])
        reason = (
            f"best score not above {rules.chosen_above:g}"
            if best <= rules.chosen_above
            else f"no two candidates {rules.min_margin:g} apart"
        )
        account.without_pair[reason] += 1
    return [Couple(row, "sampled", chosen, rejected) for chosen, rejected in couples]


def best_candidate(row: Row, rules: PairRules) -> Row | None:
    """Return the best candidate that passes the filters and scores above `chosen_above`."""
    reference = row["reference"] or ""
    kept, _ = keep_candidates(row["candidates"], reference, rules.filters)
    kept = [candidate for candidate in kept if _scores(candidate)[0] > rules.chosen_above]
    return min(kept, key=lambda candidate: _rank(candidate, reference), default=None)


def _survey(scored: Path) -> tuple[str, bool]:
    """Check that all rows are scored by one judge; tell its signature and whether every volume is a NIfTI path."""
    signature: str | None = None
    is_lazy = True
    for row in read_rows(scored, ("study_id", "candidates", "images", "prompt")):
        if "signature" not in row or "reference" not in row:
            raise ValueError(
                f"Pairs are made of scored candidates, `{scored.name}` has none: study `{row['study_id']}` has no "
                "signature. Score it first: `hf-mu2 score`."
            )
        signature = row["signature"] if signature is None else signature
        if row["signature"] != signature:
            raise ValueError(
                f"Scores of different judges are not mixed, `{scored.name}` has `{signature}` and, in study "
                f"`{row['study_id']}`, `{row['signature']}`. Score all candidates with one."
            )
        is_lazy &= all(is_nifti_path(image) for image in row["images"] or ())
    return signature or "", is_lazy


def _all_couples(
    scored: Path,
    rules: PairRules,
    account: Account,
    noise_reports: Mapping[str, str] | None,
    others: OtherPatients | None,
) -> Iterator[Couple]:
    """Yield the couples of every source, study by study."""
    for row in tqdm(read_rows(scored), desc="pairs", unit=" studies", disable=None):
        yield from pairs_of_study(row, rules, account)
        if row["images"] is None:
            continue
        if noise_reports is not None:
            best, said = best_candidate(row, rules), noise_reports.get(row["study_id"])
            if said is None or best is None or said == best["text"]:
                account.notes["no pair with a report on noise"] += 1
            else:
                yield Couple(row, "noise", best, {"text": said})
        if others is not None:
            other = others.report_for(row)
            if other is None:
                account.notes["no patient with other findings"] += 1
            else:
                yield Couple(row, "other_patient", {"text": row["reference"]}, {"text": other})


def _couples(study_id: str, ranked: Sequence[Row], rules: PairRules) -> list[tuple[Row, Row]]:
    """List the allowed couples of ranked candidates, best first, that the policy asks for."""

    def is_allowed(chosen: Row, rejected: Row) -> bool:
        margin = _scores(chosen)[0] - _scores(rejected)[0]
        # A margin such as 0.3 - 0.2 is just below 0.1 in binary.
        is_wide = margin >= rules.min_margin - 1e-9
        return is_wide and _scores(chosen) > _scores(rejected) and _scores(chosen)[0] > rules.chosen_above

    best = ranked[0]
    if rules.policy == "best-worst":
        return [(best, ranked[-1])] if is_allowed(best, ranked[-1]) else []
    if rules.policy == "best-random":
        below = [candidate for candidate in ranked if is_allowed(best, candidate)]
        drawn = int(share_of(f"pair:{study_id}", rules.seed) * len(below))
        return [(best, below[drawn])] if below else []
    couples = [
        (chosen, rejected)
        for place, chosen in enumerate(ranked)
        for rejected in ranked[place + 1 :]
        if is_allowed(chosen, rejected)
    ]
    couples.sort(key=lambda couple: _scores(couple[1])[0] - _scores(couple[0])[0])
    return couples[: rules.max_pairs]


def _rank(candidate: Row, reference: str) -> tuple[float, float, int, int]:
    """Sort the best first; of equals the one that is nearest the reference in length, then the first."""
    words_apart = abs(count_words(candidate["text"]) - count_words(reference))
    total, label_f1 = _scores(candidate)
    return -total, -label_f1, words_apart, candidate["index"]


def _scores(candidate: Row) -> tuple[float, float]:
    """Return what candidates are compared by: the total, then label-F1, which a Chinese reference leaves unknown."""
    return candidate["scores"]["total"], candidate["scores"]["label_f1"] or 0.0


def _empty(account: Account, rules: PairRules, counts: Counter[str]) -> str:
    if counts["validation"]:
        return (
            f"Training needs pairs, all {counts['validation']:,} are of patients of the validation split. Lower "
            "`--validation-share`, or sample more studies."
        )
    return (
        f"A preference set needs a pair, none is left. {account.sentence()} Lower `--min-margin` (now "
        f"{rules.min_margin:g}), loosen the filter that took most, or sample more candidates at a higher temperature."
    )

"""Open every volume of a dataset and write down what is wrong with it.

Reads: rows with `images`, and the volumes they name.
Writes: `volumes.jsonl`, one record per volume; `defects.csv`, those that a model cannot or should not read;
`summary.md`, their counts; `.plan/`, the work list and one file of records per task, for resuming.
Nothing is mended and nothing replaced.
"""

from __future__ import annotations

import csv
import json
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_mu2.files import replace_text, replacing
from hf_mu2.model.volume_mu2 import OutOfDomainWarning, guess_body_region, load_volume

from .executors import run_tasks
from .work_list import Plan, fingerprint, to_line, undecoded, write_plan

COLUMNS = ("study_id", "image", "severity", "defect", "message", "advice")
VOLUMES_PER_TASK = 64
# The class of a defect by words of its message, first match first.
_DEFECTS = (
    ("spacing", ("voxel spacing", "Voxel spacing")),
    ("missing file", ("nothing is at", "has no file")),
    ("git-LFS pointer", ("git-LFS pointer",)),
    (
        "damaged file",
        ("ends early", "ends after", "goes on after", "is damaged", "damaged one", "header must be readable"),
    ),
    ("rescaled twice", ("applied twice", "rescaled twice", "second rescale")),
    ("not a volume", ("is none of these",)),
    ("not HU", ("in HU", "must be HU", "one value in HU")),
    ("not one volume", ("is 3-D", "has 3 axes", "2-D", "`channel`", "at least one voxel", "several series")),
    ("not finite", ("must be finite",)),
    ("tilted", ("must be perpendicular", "tilted")),
    ("too large", ("holds at most",)),
    ("thick slices", ("mm apart",)),
    ("oblique", ("is oblique",)),
    ("no orientation", ("names no orientation",)),
)
_CLOSE_REGIONS = {
    "chest": {"chest", "abdomen"},
    "abdomen": {"abdomen", "pelvis", "chest"},
    "head": {"head", "neck"},
}


@dataclass(frozen=True)
class Checked:
    """What a check found: volumes opened, and how many have each defect, by severity."""

    folder: Path
    is_finished: bool
    num_volumes: int = 0
    defects: tuple[tuple[str, str, int], ...] = ()  # severity, defect, count

    @property
    def num_errors(self) -> int:
        return sum(count for severity, _, count in self.defects if severity == "error")


def check_volumes(
    rows: Iterable[Mapping[str, Any]],
    out: str | Path,
    *,
    workers: int = 1,
    executor: str = "local",
    options: Mapping[str, Any] | None = None,
) -> Checked:
    """Open every volume through `load_volume`, guess its region and write a table of defects.

    Calling it again resumes after the last volume of each task that was written down. A volume whose file changed is
    opened again.

    Args:
        rows (`Iterable[Mapping]`): Rows with `images`, and `study_id` and `region` where there are any.
        out (`str` or `Path`): Folder to write.
        workers (`int`): Processes, or tasks at a time on a cluster.
        executor (`str`), options (`Mapping`, *optional*): Where it runs, see [`~hf_mu2.data.executors.run_tasks`].
    """
    out = Path(out).absolute()
    plan = write_plan(undecoded(rows), out / ".plan", VOLUMES_PER_TASK)
    is_finished = run_tasks(
        _CheckTask(plan),
        plan.num_shards,
        plan.folder / "logs",
        is_done=lambda number: len(_Part(plan, number).read()) == len(plan.shard(number)),
        finish=_Finish(out, plan),
        executor=executor,
        workers=workers,
        options=options,
        progress=" tasks",
    )
    if not is_finished:
        return Checked(out, False)
    with (out / "defects.csv").open(encoding="utf-8", newline="") as lines:
        counts = Counter((row["severity"], row["defect"]) for row in csv.DictReader(lines))
    return Checked(
        out, True, plan.num_volumes, tuple((*kind, count) for kind, count in sorted(counts.items()))
    )


def check_volume(volume: Mapping[str, Any]) -> dict[str, Any]:
    """Open one volume; return its geometry and region, or why it cannot be read, and what is unusual about it.

    Args:
        volume (`Mapping`): `source`, `study_id`, `image` (its number in the study) and `region`, as stated.
    """
    record: dict[str, Any] = {name: volume[name] for name in ("study_id", "image", "source")}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", OutOfDomainWarning)
        try:
            loaded = load_volume(volume["source"])
        except (ValueError, OSError) as error:
            return record | {"defects": [_defect("error", str(error))]}
    notes = [_defect("warning", str(w.message)) for w in caught if issubclass(w.category, OutOfDomainWarning)]
    region = guess_body_region(loaded)
    stated = set(volume["region"].split("+")) - {""}
    if stated and region in _CLOSE_REGIONS and not stated & _CLOSE_REGIONS[region]:
        notes.append(
            {
                "severity": "warning",
                "defect": "other region",
                "message": f"A volume shows what its study says, this one looks like {region}, not {volume['region']}.",
                "advice": "Look at it; leave the study out if the volume belongs to another.",
            }
        )
    facts = {
        name: loaded.provenance[name] for name in ("shape", "spacing_mm", "hu_range", "orientation_on_disk")
    }
    return record | facts | {"body_region": region, "defects": notes}


def _defect(severity: str, text: str) -> dict[str, str]:
    """Sort a message of the loader into a class, and part its advice, the last sentences, from the rule."""
    kind = next((name for name, words in _DEFECTS if any(word in text for word in words)), "unreadable")
    message, _, advice = text.partition(". ")
    return {"severity": severity, "defect": kind, "message": message, "advice": advice}


@dataclass(frozen=True)
class _Part:
    """The records of one task: a line that states what it was made from, then one line per volume, appended."""

    plan: Plan
    number: int

    @property
    def path(self) -> Path:
        return self.plan.folder / "parts" / f"{self.number:05d}.jsonl"

    def head(self) -> str:
        return to_line({"fingerprint": fingerprint(self.plan.shard(self.number), {})})

    def read(self) -> list[str]:
        """Return the whole lines; none if the part was made from other volumes. A killed task may leave half a line."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        if not lines or lines[0] != self.head():
            return []
        return [line for line in lines[1:] if line.endswith("\n")]


@dataclass(frozen=True)
class _CheckTask:
    """The task of one rank: its part of the volumes, going on after the last whole line."""

    plan: Plan

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        part = _Part(self.plan, rank)
        done = part.read()
        replace_text(part.path, part.head() + "".join(done))  # without half a line
        with part.path.open("a", encoding="utf-8") as stream:
            for line in self.plan.shard(rank)[len(done) :]:
                stream.write(to_line(check_volume(json.loads(line))))
                stream.flush()


@dataclass(frozen=True)
class _Finish:
    """The last task: all records in order, the table of defects and its summary."""

    out: Path
    plan: Plan

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        counts: Counter[tuple[str, str]] = Counter()
        examples: dict[tuple[str, str], dict[str, str]] = {}
        num_sound = 0
        with (
            replacing(self.out / "volumes.jsonl") as records_path,
            replacing(self.out / "defects.csv") as table_path,
            records_path.open("w", encoding="utf-8") as records,
            table_path.open("w", encoding="utf-8", newline="") as stream,
        ):
            table = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            table.writeheader()
            for line in self._lines():
                records.write(line)
                record = json.loads(line)
                num_sound += not record["defects"]
                for defect in record["defects"]:
                    row = {"study_id": record["study_id"], "image": record["image"], **defect}
                    table.writerow(row)
                    kind = defect["severity"], defect["defect"]
                    counts[kind] += 1
                    examples.setdefault(kind, row)
        replace_text(self.out / "summary.md", _summary(self.plan.num_volumes, num_sound, counts, examples))

    def _lines(self) -> Iterator[str]:
        for number in range(self.plan.num_shards):
            yield from _Part(self.plan, number).read()


def _summary(
    num_volumes: int,
    num_sound: int,
    counts: Mapping[tuple[str, str], int],
    examples: Mapping[tuple[str, str], Any],
) -> str:
    lines = ["# Volumes checked", "", f"{num_volumes:,} volumes opened, {num_sound:,} without a remark.", ""]
    if counts:
        lines += ["| severity | defect | volumes | first study | what to do |", "|---|---|---|---|---|"]
    for kind, count in sorted(counts.items(), key=lambda item: (item[0][0], -item[1], item[0][1])):
        example = examples[kind]
        advice = example["advice"].replace("|", "\\|")
        lines.append(f"| {kind[0]} | {kind[1]} | {count:,} | {example['study_id']} | {advice} |")
    return "\n".join(lines) + "\n"

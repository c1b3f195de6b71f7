"""Every corpus as a tree of three studies without voxels, and ways to spoil it: the table of docs/corpora/index.md.

Print the table: python -m tests.data.bad_trees
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hf_mu2.data.build import read_corpus
from hf_mu2.data.corpus import Drops
from hf_mu2.data.study import FINDING_LABELS

COLUMNS = {
    "missing": "index missing",
    "column": "wrong column",
    "no_report": "volume without report",
    "no_volume": "report without volume",
    "twice": "id twice",
    "encoding": "not UTF-8",
    "path": "path leaves the root",
    "link": "link out of the root",
}


@dataclass(frozen=True)
class Layout:
    """Where a corpus keeps its index and volumes, and how its index says things; `{i}` is 1, 2 or 3."""

    index: str
    record: str
    volume: str = ""
    head: str = ""
    tail: str = ""
    between: str = "\n"
    text_column: str = "report"
    name: str = ""  # what names the volume in a record, where a path can stand
    others: tuple[tuple[str, str], ...] = ()
    escape: str = "../../"
    has_many_rows: bool = False  # several rows of one study are the rule

    def write(self, root: Path) -> None:
        records = [self.record.replace("{i}", str(i)) for i in (1, 2, 3)]
        files = {self.index: self.head + self.between.join(records) + self.tail}
        files |= dict(self.others) | {
            self.volume.replace("{i}", str(i)): "" for i in (1, 2, 3) if self.volume
        }
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(content)

    def spoil(self, root: Path, defect: str) -> bool:
        """Make the second study bad; return whether a tree of this corpus can be bad in this way."""
        index = root / self.index
        volume = root / self.volume.replace("{i}", "2") if self.volume else None
        second = self.record.replace("{i}", "2")
        text = index.read_text()
        if defect == "missing":
            index.unlink()
        elif defect == "column":
            index.write_text(text.replace(self.text_column, "oddly"))
        elif defect == "no_report" and (volume or self.others):
            index.write_text(text.replace(self.between + second, ""))
        elif defect == "no_volume" and volume:
            volume.unlink()
        elif defect == "twice" and not self.has_many_rows:
            index.write_text(text.replace(second, second + self.between + second))
        elif defect == "encoding":
            for path in (index, *(root / name for name, _ in self.others)):
                path.write_bytes(path.read_bytes().replace(b"mass 2", b"mass \xff"))
        elif defect == "path" and self.name:
            name = self.name.replace("{i}", "2")
            index.write_text(text.replace(name, self.escape + name))
        elif defect == "link" and volume:
            outside = root.parent / "outside"
            outside.touch()
            volume.unlink()
            volume.symlink_to(outside)
        else:
            return False
        return True


_AMOS = {
    "image": "./imagesTr/amos_500{i}.nii.gz",
    "labels": {"report": {"findings": {"chest": "mass {i}"}}, "qa": []},
}
_M3D = {"image": "ct_case/{i}/Axial.npy", "text": "ct_case/{i}/text.txt"}
_PHANTOM = {
    "images_file_names": ["ct{i}.nii.gz"],
    "study_id": "s{i}",
    "patient_id": "p{i}",
    "findings": "mass {i}",
    "impression": "",
    "labels": dict.fromkeys(FINDING_LABELS, 0),
    "region": "chest",
    "metadata": "{}",
}
_LISTS = "".join(f"BDMAP_0000000{i}\n" for i in (1, 2, 3))
LAYOUTS = {
    "ct_rate": Layout(
        index="dataset/radiology_text_reports/train_reports.csv",
        head="VolumeName,Findings_EN,Impressions_EN\n",
        record="train_{i}_a_1.nii.gz,mass {i},",
        volume="dataset/train_fixed/train_{i}/train_{i}_a/train_{i}_a_1.nii.gz",
        text_column="Findings_EN",
        name="train_{i}_a_1.nii.gz",
    ),
    "radgenome": Layout(
        index="dataset/radgenome_files/train_region_report.csv",
        head="Volumename,Anatomy,Sentence\n",
        record="train_{i}_a_1.nii.gz,lung,mass {i}",
        volume="dataset/train_preprocessed/train_{i}/train_{i}a/train_{i}_a_1.nii.gz",
        text_column="Sentence",
        name="train_{i}_a_1.nii.gz",
        has_many_rows=True,
    ),
    "amos_mm": Layout(
        index="report_generation_train_val.json",
        head='{"training": [',
        record=json.dumps(_AMOS),
        tail='], "validation": []}',
        between=", ",
        volume="imagesTr/amos_500{i}.nii.gz",
        text_column="findings",
        name="./imagesTr/amos_500{i}.nii.gz",
        others=(("vqa_train_val.json", json.dumps({"training": [_AMOS]}).replace("{i}", "1")),),
    ),
    "abdomen_atlas": Layout(
        index="AbdomenAtlas3.0MiniWithMeta.csv",
        head="BDMAP ID,narrative report\n",
        record="BDMAP_0000000{i},mass {i}",
        volume="BDMAP_0000000{i}/ct.nii.gz",
        text_column="narrative report",
        name="BDMAP_0000000{i}",
        others=(
            ("TrainTestIDS/IID_train.csv", "BDMAP ID\n" + _LISTS),
            ("TrainTestIDS/IID_test.csv", "BDMAP ID\nBDMAP_00000009\n"),
        ),
    ),
    "m3d_cap": Layout(
        index="M3D_Cap.json",
        head='{"train": [',
        record=json.dumps(_M3D),
        tail="]}",
        between=", ",
        volume="nifti/ct_case/{i}/Axial.nii.gz",
        text_column='"text"',
        name="ct_case/{i}/Axial.npy",
        escape="ct_case/../../",
        others=(
            ("nifti/manifest.json", "{}"),
            *((f"ct_case/{i}/text.txt", f"study_findings: a mass {i}") for i in (1, 2, 3)),
        ),
    ),
    "phantom_ct": Layout(
        index="train/metadata.jsonl",
        record=json.dumps(_PHANTOM),
        tail="\n",
        volume="train/ct{i}.nii.gz",
        text_column="findings",
        name="ct{i}.nii.gz",
    ),
    "folder": Layout(
        index="metadata.csv",
        head="study_id,volume,report\n",
        record="s{i},ct{i}.nii.gz,mass {i}",
        volume="ct{i}.nii.gz",
        text_column="report",
        name="ct{i}.nii.gz",
    ),
    "openi": Layout(
        index="indiana_reports.csv",
        head="uid,MeSH,Problems,indication,comparison,findings,impression\n",
        record="{i},,,,,mass {i},",
        text_column="findings",
    ),
    "mimic_cxr": Layout(
        index="mimic_cxr_sectioned.csv",
        head="study,impression,findings,last_paragraph,comparison\n",
        record="s5000000{i},mass {i},,,",
        text_column="findings",
        others=(
            (
                "mimic-cxr-2.0.0-split.csv",
                "dicom_id,study_id,subject_id,split\n"
                + "".join(f"d{i},5000000{i},1000000{i},train\n" for i in (1, 2, 3)),
            ),
        ),
    ),
}


def outcome(corpus: str, defect: str, folder: Path) -> str:
    """Return what the builder makes of the defect, as the table says it."""
    root = folder / "root"
    layout = LAYOUTS[corpus]
    layout.write(root)
    clean = Drops()
    num_clean = len(list(read_corpus(corpus, root, clean)))
    assert num_clean == 3, (corpus, num_clean, clean)
    if not layout.spoil(root, defect):
        return ""
    drops = Drops()
    try:
        num_left = len(list(read_corpus(corpus, root, drops)))
    except ValueError as error:
        assert "Traceback" not in str(error) and len(str(error)) > 40
        return "error"
    told = [f"drop: {reason}" for reason in drops.reasons - clean.reasons]
    told = told or [f"note: {remark}" for remark in drops.notes - clean.notes]
    return "; ".join(told) or f"{num_left} studies, and nothing is said"


def table(cell: Callable[[str, str], str]) -> str:
    """Write the table, a row per defect."""
    lines = [
        "| tree | " + " | ".join(f"`{corpus}`" for corpus in LAYOUTS) + " |",
        "|---" * (len(LAYOUTS) + 1) + "|",
    ]
    for defect, title in COLUMNS.items():
        lines.append(f"| {title} | " + " | ".join(cell(corpus, defect) or "–" for corpus in LAYOUTS) + " |")
    return "\n".join(lines)


def _in_new_folder(corpus: str, defect: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        return outcome(corpus, defect, Path(folder))


if __name__ == "__main__":
    print(table(_in_new_folder))

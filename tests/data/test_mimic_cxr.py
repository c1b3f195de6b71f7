"""MIMIC-CXR: the tree and the sectioned table, the split table, broken trees; and the parser of sections."""

import csv
import gzip
from pathlib import Path

import pytest

from hf_mu2.data.build import read_corpus
from hf_mu2.data.corpus import CorpusError, Drops
from hf_mu2.data.sections import section_name, split_sections
from hf_mu2.tables import TableError
from tests.paths import shared_data_or_skip

REPORT = "\n".join(
    (
        "                                 FINAL REPORT",
        " EXAMINATION:  CHEST (PA AND LAT)",
        " ",
        " INDICATION:  ___ with cough",
        " ",
        " FINDINGS: ",
        " ",
        " The lungs are",
        " clear.",
        " ",
        " IMPRESSION: ",
        " ",
        " Normal.",
        "",
    )
)
SPLIT = """\
dicom_id,study_id,subject_id,split
a,50000001,10000001,validate
b,50000001,10000001,validate
c,50000002,10000002,test
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for patient, study in (("10000001", "50000001"), ("10000002", "50000002")):
        folder = tmp_path / "files" / "p10" / f"p{patient}"
        folder.mkdir(parents=True)
        (folder / f"s{study}.txt").write_text(REPORT)
    (tmp_path / "mimic-cxr-2.0.0-split.csv").write_text(SPLIT)
    return tmp_path


def test_the_tree_gives_studies_with_the_official_split(root):
    first, second = read_corpus("mimic_cxr", root)
    assert (first["study_id"], first["patient_id"], first["split"]) == (
        "s50000001",
        "p10000001",
        "validation",
    )
    assert second["split"] == "test"
    assert (first["findings"], first["impression"], first["indication"]) == (
        "The lungs are clear.",
        "Normal.",
        "___ with cough",
    )
    assert first["sections"] == [{"name": "examination", "text": "CHEST (PA AND LAT)"}]
    assert not first["egress"] and first["images"] == []


def test_the_sectioned_table_and_a_packed_split_table_give_the_same_texts(root, tmp_path_factory):
    other = tmp_path_factory.mktemp("sectioned")
    with gzip.open(other / "mimic-cxr-2.0.0-split.csv.gz", "wt") as stream:
        stream.write(SPLIT)
    with (other / "mimic_cxr_sectioned.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["study", "impression", "findings", "last_paragraph", "comparison"])
        for study in ("s50000001", "s50000002"):
            writer.writerow([study, "Normal.", "The lungs are\n clear.", "", ""])
    kept = ("study_id", "patient_id", "split", "findings", "impression")
    tree, table = ([{k: row[k] for k in kept} for row in read_corpus("mimic_cxr", r)] for r in (root, other))
    assert tree == table


def test_what_has_no_partner_is_counted(root):
    folder = root / "files" / "p10" / "p10000001"
    (folder / "s50000009.txt").write_text(REPORT)
    (folder / "s5.txt").write_text(REPORT)
    (folder / "s50000008.txt").write_bytes(b"\xff\xfe")
    (folder / "s50000007.txt").write_text("\n INDICATION: cough\n")
    with (root / "mimic-cxr-2.0.0-split.csv").open("a") as table:
        table.write("d,50000003,10000003,train\ne,50000004,10000003,other\nf,50000007,10000001,validate\n")
    drops = Drops()
    assert len(list(read_corpus("mimic_cxr", root, drops))) == 2
    assert drops.reasons == {
        "report that the split table does not name": 1,
        "text file whose name is not that of a report": 1,
        "report that is not UTF-8": 1,
        "without findings, impression and last paragraph": 1,
        "named by the split table, no report": 1,
        "picture with a split that is none of train, validate and test": 1,
    }


def test_a_split_by_patient_needs_no_table_and_keeps_patients_together(root):
    (root / "mimic-cxr-2.0.0-split.csv").unlink()
    folder = root / "files" / "p11" / "p11000000"
    folder.mkdir(parents=True)
    for i in range(5):
        (folder / f"s5000001{i}.txt").write_text(REPORT)
    rows = list(read_corpus("mimic_cxr", root, split_by="patient", validation_share=0.4, test_share=0.4))
    assert len({row["split"] for row in rows if row["patient_id"] == "p11000000"}) == 1


def _no_split(root: Path) -> None:
    (root / "mimic-cxr-2.0.0-split.csv").unlink()


def _wrong_column(root: Path) -> None:
    (root / "mimic-cxr-2.0.0-split.csv").write_text("dicom_id,study,split\na,1,train\n")


def _contradiction(root: Path) -> None:
    with (root / "mimic-cxr-2.0.0-split.csv").open("a") as table:
        table.write("d,50000001,10000001,train\n")


def _not_utf8(root: Path) -> None:
    (root / "mimic-cxr-2.0.0-split.csv").write_bytes(SPLIT.encode() + b"\xff,5,1,train\n")


def _no_reports(root: Path) -> None:
    (root / "files").rename(root / "elsewhere")


def _link_out(root: Path) -> None:
    outside = root.parent / "outside.txt"
    outside.write_text(REPORT)
    (root / "files" / "p10" / "p10000001" / "s50000009.txt").symlink_to(outside)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_no_split, "needs `mimic-cxr-2.0.0-split.csv`"),
        (_wrong_column, r"\['study_id', 'subject_id'\]"),
        (_contradiction, "`s50000001` is in several"),
        (_not_utf8, "is not UTF-8 after row"),
        (_no_reports, "found neither under"),
        (_link_out, "stay inside"),
    ],
)
def test_a_bad_tree_gives_one_clear_error(root, spoil, message):
    spoil(root)
    with pytest.raises((CorpusError, TableError), match=message):
        list(read_corpus("mimic_cxr", root))


def test_the_published_example_parses():
    sections = dict(
        split_sections(shared_data_or_skip("reports", "mimic_cxr_format_example.txt").read_text())
    )
    assert set(sections) == {
        "preamble",
        "examination",
        "indication",
        "technique",
        "comparison",
        "findings",
        "impression",
    }
    assert sections["impression"] == "Large left pleural effusion"
    assert sections["findings"].startswith("Cardiac size") and sections["findings"].endswith("thoracic spine")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n FINDINGS: a\n FINDINGS: b\n", {"findings": "b"}),
        ("\n FINDINGS: a\n FINDINGS: \n", {"findings": "a"}),
        ("\n IMPRESSON: x\n COMPARISION: y\n", {"impression": "x", "comparison": "y"}),
        ("\n CONCLUSION: x\n REASON FOR EXAM: y\n", {"impression": "x", "indication": "y"}),
        ("\n PORTABLE CHEST: Clear.\n", {"findings": "Clear."}),
        (
            "\n INDICATION: cough\n \n Clear.\n \n Old.\n",
            {"indication": "cough", "last_paragraph": "Clear.\n\n Old."},
        ),
        ("One.\n\nTwo.", {"report": "One.", "last_paragraph": "Two."}),
        (
            "Findings: a nodule. Stable. Impression: benign.",
            {"findings": "a nodule. Stable.", "impression": "benign."},
        ),
        (
            "## Findings\nA nodule.\n**Impression**\nBenign.",
            {"findings": "A nodule.", "impression": "Benign."},
        ),
        ("Findings: size:\nNote: the impression: x", {"findings": "size:\nNote: the impression: x"}),
        ("", {}),
    ],
)
def test_sections_are_found_by_their_headings(text, expected):
    assert dict(split_sections(text)) == expected


def test_names_are_made_uniform():
    assert section_name("FINDINGS/IMPRESSION") == "impression"
    assert section_name("PA AND LATERAL VIEWS") == "findings"
    assert section_name("NDICATION") == "indication"
    assert section_name("WETREAD") == "wet read" and section_name("Left breast") == "left breast"

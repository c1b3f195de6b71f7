"""OpenI: archive, extracted files and table; repeated reports; broken files."""

import csv
import io
import tarfile
from collections import defaultdict
from pathlib import Path

import pytest

from hf_mu2.data.build import load_corpus, read_corpus
from hf_mu2.data.corpus import CorpusError, Drops
from hf_mu2.data.views import view_dataset
from tests.paths import shared_data_or_skip

REPORTS = [
    (1, "No XXXX effusion.", "Normal."),
    (2, "", "Normal."),
    (10, "", ""),
    (12, "No XXXX effusion.", "Clear."),
]


def write_xml(folder: Path, reports=REPORTS) -> Path:
    folder.mkdir(parents=True)
    for number, findings, impression in reports:
        (folder / f"{number}.xml").write_text(
            f'<eCitation><uId id="CXR{number}"/><Abstract><AbstractText Label="FINDINGS">{findings}</AbstractText>'
            f'<AbstractText Label="IMPRESSION">{impression}</AbstractText>'
            '<AbstractText Label="COMPARISON">None.</AbstractText><AbstractText Label="INDICATION">Cough</AbstractText>'
            "</Abstract><MeSH><major>normal</major></MeSH></eCitation>"
        )
    return folder


def write_table(
    root: Path, reports=REPORTS, header="uid,MeSH,Problems,indication,comparison,findings,impression"
) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header.split(","))
    for number, findings, impression in reports:
        writer.writerow([number, "normal", "", "Cough", "None.", findings, impression])
    (root / "indiana_reports.csv").write_text(text.getvalue())


def test_archive_files_and_table_give_the_same_studies(tmp_path):
    folder = write_xml(tmp_path / "xml" / "ecgen-radiology")
    (tmp_path / "tgz").mkdir()
    with tarfile.open(tmp_path / "tgz" / "NLMCXR_reports.tgz", "w:gz") as archive:
        archive.add(folder, "ecgen-radiology")
    (tmp_path / "csv").mkdir()
    write_table(tmp_path / "csv")
    accounts = [Drops() for _ in range(3)]
    forms = [
        list(read_corpus("openi", tmp_path / form, drops))
        for form, drops in zip(("xml", "tgz", "csv"), accounts)
    ]
    assert (
        forms[0]
        == forms[1]
        == forms[2]
        == list(read_corpus("openi", tmp_path / "tgz" / "NLMCXR_reports.tgz"))
    )
    assert [row["study_id"] for row in forms[0]] == ["CXR1", "CXR2", "CXR12"]
    assert all(drops.reasons == {"without findings and impression": 1} for drops in accounts)
    row = forms[0][0]
    assert (row["findings"], row["impression"], row["indication"]) == (
        "No XXXX effusion.",
        "Normal.",
        "Cough",
    )
    assert row["images"] == [] and row["sections"] == [{"name": "comparison", "text": "None."}]


def test_reports_with_the_same_findings_share_their_split(tmp_path):
    write_table(tmp_path, [(i, f"No effusion {i % 40}!", "") for i in range(400)])
    splits = defaultdict(set)
    for row in read_corpus("openi", tmp_path, validation_share=0.3, test_share=0.3):
        splits[row["findings"]].add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert set.union(*splits.values()) == {"train", "validation", "test"}


def test_the_marker_of_what_was_taken_out_can_be_replaced(tmp_path):
    write_table(tmp_path)
    assert next(read_corpus("openi", tmp_path, marker=""))["findings"] == "No effusion."
    assert next(read_corpus("openi", tmp_path, marker="___"))["findings"] == "No ___ effusion."


def test_broken_files_are_counted(tmp_path):
    folder = write_xml(tmp_path / "ecgen-radiology")
    (folder / "3.xml").write_bytes(b"<eCitation>\xff</eCitation>")
    (folder / "4.xml").write_text("<eCitation/>")
    (tmp_path / "5.xml").write_text("<eCitation/>")
    (folder / "5.xml").symlink_to(tmp_path / "5.xml")
    drops = Drops()
    assert len(list(read_corpus("openi", tmp_path, drops))) == 3
    assert drops.reasons == {
        "without findings and impression": 1,
        "not well-formed XML in UTF-8": 1,
        "XML without a `uId`": 1,
        "a link out of the folder": 1,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "needs `NLMCXR_reports.tgz` or `ecgen-radiology`"),
        (b"uid,findings\n1,a\n", "must have the columns"),
        (b"uid,MeSH,Problems,indication,comparison,findings,impression\n1,,,,,\xff,\n", "not UTF-8"),
        (
            b"uid,MeSH,Problems,indication,comparison,findings,impression\n1,,,,,a,\n1,,,,,b,\n",
            "comes 2 times",
        ),
    ],
)
def test_a_bad_tree_gives_one_clear_error(tmp_path, content, message):
    if content is not None:
        (tmp_path / "indiana_reports.csv").write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        list(read_corpus("openi", tmp_path))


def test_a_damaged_archive_and_a_report_that_comes_twice_are_refused(tmp_path):
    (tmp_path / "NLMCXR_reports.tgz").write_bytes(b"\x1f\x8bhalf")
    with pytest.raises(CorpusError, match="damaged"):
        list(read_corpus("openi", tmp_path))
    folder = write_xml(tmp_path / "twice" / "ecgen-radiology")
    (folder / "1b.xml").write_bytes((folder / "1.xml").read_bytes())
    with pytest.raises(CorpusError, match="`CXR1` comes again"):
        list(read_corpus("openi", tmp_path / "twice"))


def test_the_real_archive_has_3955_reports_and_3419_with_both_sections(tmp_path):
    root = shared_data_or_skip("reports", "NLMCXR_reports.tgz").parent
    drops = Drops()
    rows = list(read_corpus("openi", root, drops))
    assert len(rows) + drops.reasons.total() == 3955 and drops.reasons.total() == 28
    assert (
        sum(bool(row["findings"]) for row in rows) == 3425
        and sum(bool(row["impression"]) for row in rows) == 3921
    )
    assert sum("XXXX" in row["findings"] for row in rows) == 1486
    splits = defaultdict(set)
    for row in rows:
        splits[row["findings"]].add(row["split"])
    assert all(len(found) == 1 for findings, found in splits.items() if findings)
    impressions = view_dataset(load_corpus("openi", root, cache_dir=tmp_path), "impression")
    assert sum(map(len, impressions.values())) == 3419

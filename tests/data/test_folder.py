"""A corpus of one's own: tables, columns, volumes, splits, bad trees."""

import gzip
import json
from pathlib import Path

import nibabel as nib
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_mu2.data.build import load_corpus, read_corpus
from hf_mu2.data.corpus import CorpusError, Drops
from hf_mu2.data.phantom import write_phantoms
from hf_mu2.model.volume_mu2 import load_volume
from hf_mu2.tables import TableError
from tests.data.corpora import write_folder, write_table
from tests.tiny import tiny_nifti


def rows_of(root: Path, drops: Drops | None = None, **options) -> list[dict]:
    return list(read_corpus("folder", root, drops, **options))


def test_a_csv_beside_volumes_gives_studies(tmp_path):
    rows = rows_of(write_folder(tmp_path))
    assert [row["study_id"] for row in rows] == [f"s{i}" for i in range(6)]
    assert [row["split"] for row in rows] == ["train"] * 4 + ["test"] * 2
    row = rows[1]
    assert row["patient_id"] == "p0" and row["images"] == [str(tmp_path / "ct1.nii.gz")]
    assert row["findings"] == "Nodule of 4 mm, no effusion." and row["impression"] == "Nodule 1."
    assert row["labels"]["Emphysema"] == 1 and row["labels"]["Atelectasis"] is None
    assert not row["egress"] and rows_of(tmp_path, egress=True)[0]["egress"]


def test_every_kind_of_table_gives_the_same_studies(tmp_path):
    root = write_folder(tmp_path)
    expected, text = rows_of(root), (root / "metadata.csv").read_text()
    table = [dict(zip(line[0], line[1])) for line in _cells(text)]
    (root / "metadata.csv").rename(root / "away")
    forms = {
        "studies.tsv": "\n".join(
            "\t".join(line) for line in [list(table[0]), *map(dict.values, table)]
        ).encode(),
        "metadata.csv.gz": gzip.compress(b"\xef\xbb\xbf" + text.encode()),
        "metadata.jsonl": "".join(json.dumps(row) + "\n" for row in table).encode(),
    }
    for name, content in forms.items():
        (root / name).write_bytes(content)
        assert rows_of(root) == expected, name
        (root / name).unlink()
    pq.write_table(pa.Table.from_pylist(table), root / "metadata.parquet")
    assert rows_of(root) == expected


def _cells(text: str) -> list[tuple[list[str], list[str]]]:
    import csv

    header, *lines = csv.reader(text.splitlines())
    return [(header, line) for line in lines]


def test_a_report_column_is_split_into_its_sections(tmp_path):
    report = "HISTORY: cough\nTECHNIQUE: 1 mm\nCOMPARISON: none\nFINDINGS: A mass.\nIMPRESSION: Cancer."
    write_table(tmp_path, [{"study_id": "a", "report": report}, {"study_id": "b", "report": "Just\n\ntext."}])
    first, second = rows_of(tmp_path)
    assert (first["findings"], first["impression"]) == ("A mass.", "Cancer.")
    assert (first["indication"], first["technique"]) == ("cough", "1 mm")
    assert first["sections"] == [{"name": "comparison", "text": "none"}]
    assert second["findings"] == "Just\n\ntext." and second["sections"] == []


def test_a_volume_is_found_by_the_name_of_its_study(tmp_path):
    for name in ("a.nii.gz", "b.nii"):
        nib.save(tiny_nifti(), tmp_path / name)
    (tmp_path / "c").mkdir()
    write_table(tmp_path, [{"study_id": name, "report": "A mass."} for name in "abcd"])
    drops = Drops()
    found = [row["images"] for row in rows_of(tmp_path, drops)]
    assert found == [[str(tmp_path / "a.nii.gz")], [str(tmp_path / "b.nii")], [str(tmp_path / "c")], []]
    assert drops.notes == {"without a volume, text only": 1}


def test_several_volumes_and_a_series_or_channel_are_named_in_the_row(tmp_path):
    nib.save(
        nib.Nifti1Image(
            tiny_nifti().get_fdata()[..., None].repeat(2, 3).astype("int16"), tiny_nifti().affine
        ),
        tmp_path / "four.nii",
    )
    nib.save(tiny_nifti(), tmp_path / "a.nii")
    rows = [
        {"study_id": "two", "volumes": "a.nii; four.nii", "report": "A mass."},
        {"study_id": "list", "images": ["a.nii"], "report": "A mass."},
        {"study_id": "one", "volume": "four.nii", "channel": 1, "report": "A mass."},
    ]
    two, listed, one = (row["images"] for row in rows_of(write_table(tmp_path, rows)))
    assert two == [str(tmp_path / "a.nii"), str(tmp_path / "four.nii")] and listed == [
        str(tmp_path / "a.nii")
    ]
    assert json.loads(one[0]) == {"path": str(tmp_path / "four.nii"), "channel": 1}
    assert load_volume(one[0]).array.shape == (12, 40, 44)


def test_labels_and_questions_may_be_objects_or_json_in_a_cell(tmp_path):
    question = {"question": "Where?", "answer": "left"}
    labels = {"emphysema": True, "Atelectasis": "", "Liver lesion": 1}
    write_table(tmp_path, [{"study_id": "a", "labels": labels, "questions": [question]}])
    drops = Drops()
    (row,) = rows_of(tmp_path, drops)
    assert row["labels"]["Emphysema"] == 1 and row["labels"]["Atelectasis"] is None
    assert row["questions"][0]["answer"] == "left"
    assert "labels that are none of the 18 left out" in drops.notes
    cells = [json.dumps(value).replace('"', '""') for value in (labels, [question])]
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text('study_id,labels,questions\na,"{}","{}"\n'.format(*cells))
    assert rows_of(tmp_path) == [row]


def test_other_columns_come_along_only_when_asked_for(tmp_path):
    write_table(tmp_path, [{"study_id": "a", "report": "A mass.", "Age": 40, "name": "N. N."}])
    assert rows_of(tmp_path)[0]["metadata"] == "{}"
    assert rows_of(tmp_path, keep=["Age"])[0]["metadata"] == '{"Age": 40}'


def test_without_a_split_column_patients_are_cut_by_hash_and_stay_together(tmp_path):
    write_table(
        tmp_path, [{"study_id": f"s{i}", "patient_id": f"p{i // 3}", "report": "A."} for i in range(600)]
    )
    rows = rows_of(tmp_path)
    assert len({(row["patient_id"], row["split"]) for row in rows}) == 200
    assert {row["split"] for row in rows} == {"train", "validation", "test"}


def test_the_words_for_a_split_are_understood(tmp_path):
    write_table(
        tmp_path, [{"study_id": word, "split": word, "report": "A."} for word in ("Train", "val", "TEST")]
    )
    assert [row["split"] for row in rows_of(tmp_path)] == ["train", "validation", "test"]


def test_a_folder_that_load_dataset_opens_is_a_corpus_too(tmp_path):
    write_phantoms(tmp_path / "phantoms", 2, spacing=(12.0, 6.0, 6.0))
    rows = load_corpus("folder", tmp_path / "phantoms", "train", cache_dir=tmp_path / "cache")
    assert len(rows) == 2 and rows[0]["images"][0].shape and rows[0]["findings"]
    assert set(rows[0]["labels"].values()) <= {0, 1}


def test_what_has_no_partner_is_counted(tmp_path):
    root = write_folder(tmp_path)
    (root / "ct0.nii.gz").unlink()
    nib.save(tiny_nifti(), root / "alone.nii.gz")
    with (root / "metadata.csv").open("a") as table:
        table.write("s8,p8,train,ct1.nii.gz,,,\n")
    drops = Drops()
    assert len(rows_of(root, drops)) == 5
    assert drops.to_dict()["drops"] == {
        "report without volume": {"count": 1, "examples": ["s0"]},
        "volume without report, questions and labels": {"count": 1, "examples": ["s8"]},
        "volume that no row names": {"count": 1, "examples": ["alone"]},
    }


ROW = {"study_id": "a", "report": "A mass."}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"name": "a", "report": "A mass."}], r"column `study_id` or one of .*'name'"),
        ([ROW | {"volume": "../ct.nii.gz"}], "stay inside"),
        ([ROW | {"volume": "/ct.nii.gz"}], "stay inside"),
        ([ROW | {"volume": "out.nii.gz"}], "stay inside"),
        ([ROW, ROW], "`a` comes again"),
        ([ROW | {"split": "tune"}], "`split` is one of .*`tune` in row 1"),
        ([ROW | {"Emphysema": 0.4}], "1, 0 or empty, got `0.4` for `Emphysema` in row 1"),
        ([ROW | {"labels": "x"}], "hold JSON"),
        ([ROW | {"labels": [1]}], "is an object"),
        ([ROW | {"volume": "a", "images": ["b"]}], "uses 2. Keep one"),
        (
            [ROW | {"patient_id": "p", "split": s, "study_id": s} for s in ("train", "test")],
            "is in train and test",
        ),
    ],
)
def test_a_bad_row_gives_one_clear_error(tmp_path, rows, message):
    root = tmp_path / "root"
    write_table(root, rows)
    nib.save(tiny_nifti(), tmp_path / "ct.nii.gz")
    (root / "out.nii.gz").symlink_to(tmp_path / "ct.nii.gz")
    with pytest.raises((CorpusError, TableError), match=message):
        rows_of(root)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has one table, `metadata.csv`.*found none"),
        ({"a.csv": b"study_id\na\n", "b.csv": b"study_id\na\n"}, r"found \['a.csv', 'b.csv'\]"),
        ({"metadata.csv": b"study_id,report\na,\xff\n"}, "not UTF-8"),
        ({"metadata.csv": b"study_id,report\na,b,c\n"}, "has 3 for 2 columns"),
        ({"metadata.csv": b'study_id,report\na,"open\n'}, "damaged"),
        ({"metadata.csv": b"study_id,study_id\na,b\n"}, "A column comes once"),
        ({"metadata.csv": b"study_id,report\n"}, "must have rows"),
        ({"metadata.csv.gz": b"\x1f\x8b\x08\x00"}, "damaged"),
        ({"metadata.jsonl": b'{"study_id": "a"'}, "damaged"),
        ({"metadata.jsonl": b"[1]\n"}, "is an object"),
        ({"metadata.parquet": b"PAR1"}, "cannot be read as Parquet"),
    ],
)
def test_a_bad_table_gives_one_clear_error(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises((CorpusError, TableError), match=message):
        rows_of(tmp_path)

"""`hf-mu2 embed --layer tower` and `hf-mu2 lookup`, from phantoms to scores."""

import json

import numpy as np
import pytest

from tests.scoring.synthetic import make_references


@pytest.fixture
def tables(tmp_path):
    """Write what `lookup` reads: 60 training studies, 20 to answer, features that count the words of the report."""
    rows = make_references(80)
    vectors = np.array([[len(row["reference"]), row["reference"].count("No ")] for row in rows], dtype=float)
    for name, part in (("train", slice(0, 60)), ("test", slice(60, 80))):
        ids = np.array([row["study_id"] for row in rows[part]])
        np.savez(tmp_path / f"{name}.npz", study_id=ids, embedding=vectors[part], layer="tower")
        lines = "".join(json.dumps(row) + "\n" for row in rows[part])
        (tmp_path / f"{name}.jsonl").write_text(lines)
    return tmp_path


def arguments(folder, **changed) -> list:
    given = {
        "embeddings": folder / "test.npz",
        "training-embeddings": folder / "train.npz",
        "training-references": folder / "train.jsonl",
        "out": folder / "out.jsonl",
    } | {name.replace("_", "-"): value for name, value in changed.items()}
    return [
        given.pop("embeddings"),
        *(word for name, value in given.items() for word in (f"--{name}", value)),
    ]


def test_predictions_of_a_lookup_are_scored_as_any_systems(cli, tables):
    result = cli("lookup", *arguments(tables), "--json")
    assert result.code == 0, result.err
    facts = json.loads(result.out)
    assert (facts["studies"], facts["training_studies"]) == (20, 60)
    rows = [json.loads(line) for line in (tables / "out.jsonl").read_text().splitlines()]
    assert [set(row) for row in rows] == [{"study_id", "candidate"}] * 20
    options = ("--num-resamples", 20, "--json")
    scored = cli("evaluate", tables / "out.jsonl", "--references", tables / "test.jsonl", *options)
    assert scored.code == 0, scored.err
    result = json.loads(scored.out)
    assert result["settings"]["studies"] == 20 and result["hygiene"]["missing_candidates"] == 0
    assert result["scores"]["macro_f1"]["value"] > 0


def test_a_seed_gives_the_same_predictions(cli, tables):
    for name in ("one", "two"):
        assert cli("lookup", *arguments(tables, out=tables / f"{name}.jsonl", seed=5)).code == 0
    assert (tables / "one.jsonl").read_text() == (tables / "two.jsonl").read_text()


def test_what_was_left_out_is_said(cli, tables):
    lines = (tables / "train.jsonl").read_text().splitlines(keepends=True)
    (tables / "train.jsonl").write_text("".join(lines[:50]))
    result = cli("lookup", *arguments(tables, patients=tables / "test.jsonl"))
    assert result.code == 0 and "10 training embeddings have no report" in result.err
    assert "training patients" not in result.err


def test_vectors_of_another_layer_are_refused_before_anything_is_written(cli, tables):
    with np.load(tables / "train.npz") as arrays:
        np.savez(tables / "other.npz", **(dict(arrays) | {"layer": "soft_prompts"}))
    result = cli("lookup", *arguments(tables, training_embeddings=tables / "other.npz"))
    assert result.code == 2 and "layer `tower` and `soft_prompts`" in result.err
    result = cli("lookup", *arguments(tables, out=tables / "out.csv"))
    assert result.code == 2 and ".jsonl or .parquet" in result.err
    result = cli("lookup", *arguments(tables, embeddings=tables / "train.npz"))
    assert result.code == 2 and "60 of 60 are" in result.err
    assert not (tables / "out.jsonl").exists()


def test_phantoms_are_embedded_and_answered(cli, checkpoint, tmp_path):
    for name, number, seed in (("train", 8, 1), ("test", 3, 100)):
        folder = tmp_path / name
        size = ("--spacing", 7, 7, 7)
        assert cli("phantom", "--n", number, "--out", folder, "--seed", seed, *size).code == 0
        made = cli("embed", folder, "--out", f"{folder}.npz", "--model", checkpoint, "--layer", "tower")
        assert made.code == 0, made.err
    metadata = next((tmp_path / "train").rglob("metadata.jsonl"))
    result = cli("lookup", *arguments(tmp_path, training_references=metadata))
    assert result.code == 0, result.err
    assert "3 reports of 8 training studies" in result.out
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and all(row["candidate"] for row in rows)

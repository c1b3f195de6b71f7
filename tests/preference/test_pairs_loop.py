"""From prepared volumes to pairs with what each stage writes for the next."""

import json

import datasets
import nibabel as nib
import pytest
from transformers import AutoProcessor

from hf_mu2.data.prepare import prepare
from hf_mu2.preference.pairs import PairRules, make_pairs
from hf_mu2.preference.sample import sample
from hf_mu2.preference.score import score
from hf_mu2.reporting.inference import load_reader
from hf_mu2.reporting.studies import open_studies
from hf_mu2.tables import read_rows
from tests.preference.candidate_rows import REFERENCE
from tests.tiny import tiny_nifti

pytest.importorskip("datatrove")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, checkpoint):
    """Six studies with references, their volumes prepared for the checkpoint."""
    folder, rows = tmp_path_factory.mktemp("volumes"), []
    for number in range(6):
        path = folder / f"{number}.nii.gz"
        nib.save(tiny_nifti(number), path)
        rows.append(
            {
                "study_id": f"study-{number}",
                "patient_id": f"patient-{number // 2}",
                "images": [str(path)],
                "prompt": [{"role": "user", "content": f"Write report {number}."}],
                "reference": REFERENCE,
                "egress": True,
            }
        )
    processor = AutoProcessor.from_pretrained(checkpoint).image_processor
    return prepare(rows, folder / "prepared", processor).folder


def test_prepared_volumes_are_sampled_scored_and_paired(prepared, checkpoint, tmp_path):
    reader = load_reader(checkpoint, device="cpu")
    sampled = tmp_path / "candidates.parquet"
    run = sample(open_studies(prepared), sampled, reader, num_candidates=4, batch_size=3, max_new_tokens=12)
    assert (run.num_studies, run.failed) == (6, {})
    assert [row["prompt"][0]["content"] for row in read_rows(sampled)] == [
        f"Write report {number}." for number in range(6)
    ]
    scored = tmp_path / "scored.parquet"
    score(sampled, scored, {"rouge_l": 1.0}, references=prepared / "train.jsonl")
    with pytest.raises(ValueError, match=r"24 candidates.*truncation"):  # a model that never learned to stop
        make_pairs(scored, tmp_path / "none", with_figure=False)
    rows = list(read_rows(scored))
    for row in rows:
        for place, candidate in enumerate(row["candidates"]):
            candidate["finish_reason"] = "eos"
            candidate["text"] = f"{REFERENCE} {candidate['text'][:5]} {place}"
            candidate["scores"]["total"] = place / 4
    edited = tmp_path / "edited.jsonl"
    edited.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = make_pairs(edited, tmp_path / "pairs", PairRules(), validation_share=0, with_figure=False)
    pairs = datasets.load_dataset(str(made.folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(pairs) == 6 and pairs["patient_id"] == [f"patient-{number // 2}" for number in range(6)]
    assert all('"prepared"' in images[0] for images in pairs["images"])
    assert set(pairs["margin"]) == {0.75}

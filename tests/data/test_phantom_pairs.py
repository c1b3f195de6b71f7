"""Pairs of phantoms: one finding apart in the volume, in the truth and in the words, and equal elsewhere."""

import json
import re

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from hf_mu2.data.phantom import make_pair, pair_labels, write_pairs
from hf_mu2.data.phantom.report import PhantomReport

SPACING = (6.0, 5.0, 5.0)
CASES = [(region, change, label) for region in ("chest", "abdomen") for change in ("presence", "side", "size")
         for label in pair_labels(change, region)]  # fmt: skip


def sentences(report: PhantomReport) -> list[str]:
    return [part for text in (report.findings, report.impression) for part in re.split(r"(?<=\.) ", text)]


def check_apart(pair) -> None:
    """Compare the two studies of a pair voxel by voxel, finding by finding, sentence by sentence."""
    first, second, label = pair.first, pair.second, pair.label
    either = first.mask(label) | second.mask(label)
    apart = first.volume != second.volume
    assert apart[either].any()
    far = distance_transform_edt(~either, sampling=first.spacing) > pair.reach_mm
    assert not apart[far].any()
    rest = [[f for f in phantom.findings if f.label != label] for phantom in (first, second)]
    assert rest[0] == rest[1]
    told = [sentences(phantom.report) for phantom in (first, second)]
    changed = [[s for s in one if s not in other] for one, other in (told, told[::-1])]
    # One sentence of the findings and one of the impression; an organ that becomes normal says so instead.
    assert len(changed[1]) <= 2 and len(changed[0]) <= 2 and changed[0] + changed[1]


@pytest.mark.parametrize(("region", "change", "label"), CASES[::3])
def test_the_studies_of_a_pair_are_one_finding_apart(region, change, label):
    check_apart(make_pair(21, label, change, spacing=SPACING, region=region))


@pytest.mark.slow
@pytest.mark.parametrize(("region", "change", "label"), CASES)
def test_every_kind_of_pair_is_one_finding_apart(region, change, label):
    for seed in (3, 40):
        check_apart(make_pair(seed, label, change, spacing=SPACING, region=region))


@pytest.mark.parametrize(("label", "region"), [("Lung nodule", "chest"), ("Renal stone", "abdomen")])
def test_a_pair_of_presence_lacks_and_has_the_finding(label, region):
    pair = make_pair(5, label, spacing=SPACING, region=region)
    assert (pair.first.labels[label], pair.second.labels[label]) == (0, 1)
    assert not pair.first.mask(label).any() and pair.second.mask(label).any()


@pytest.mark.parametrize(("label", "region"), [("Pleural effusion", "chest"), ("Renal cyst", "abdomen")])
def test_a_pair_of_sides_swaps_them_in_truth_volume_and_words(label, region):
    pair = make_pair(6, label, "side", spacing=SPACING, region=region)
    (first,), (second,) = ([f for f in p.findings if f.label == label] for p in (pair.first, pair.second))
    assert {first.side, second.side} == {"left", "right"}
    assert (first.size_mm, first.count) == (second.size_mm, second.count)
    for phantom, finding in ((pair.first, first), (pair.second, second)):
        x = phantom.affine[0, 3] + phantom.affine[0, 0] * np.argwhere(phantom.mask(label))[:, 2].mean()
        assert (x > 0) == (finding.side == "right")
        assert finding.side in phantom.report.text.lower()


@pytest.mark.parametrize(("label", "region"), [("Lung nodule", "chest"), ("Liver lesion", "abdomen")])
def test_a_pair_of_sizes_shrinks_the_finding_at_its_place(label, region):
    pair = make_pair(7, label, "size", spacing=(4.0, 3.0, 3.0), region=region)
    (large,), (small,) = ([f for f in p.findings if f.label == label] for p in (pair.first, pair.second))
    assert small.size_mm == pytest.approx(0.6 * large.size_mm, abs=0.9)  # both are rounded
    assert (small.side, small.region, small.count) == (large.side, large.region, large.count)
    masks = [phantom.mask(label) for phantom in (pair.first, pair.second)]
    assert (masks[1] & ~masks[0]).sum() <= 0.02 * masks[1].sum()
    assert masks[1].sum() < 0.5 * masks[0].sum()


def test_what_changes_the_whole_organ_makes_no_pair():
    for label, change in (("Cardiomegaly", "presence"), ("Cardiomegaly", "side"), ("Emphysema", "size")):
        with pytest.raises(ValueError, match="takes one of"):
            make_pair(1, label, change)
    with pytest.raises(ValueError, match="change"):
        make_pair(1, "Lung nodule", "colour")


def test_a_folder_of_pairs_names_both_studies_and_continues(tmp_path):
    folder = write_pairs(tmp_path / "pairs", 2, 30, change="side", spacing=(12, 12, 12), region="abdomen")
    before = (folder / "test" / "metadata.jsonl").read_text()
    rows = [json.loads(line) for line in before.splitlines()]
    assert len(rows) == 4
    for row, other in zip(rows, [rows[1], rows[0], rows[3], rows[2]], strict=True):
        facts = json.loads(row["metadata"])
        assert facts["pair"]["other"] == other["study_id"] and facts["pair"]["change"] == "side"
        assert row["patient_id"] == other["patient_id"]
        assert facts["pair"]["label"] in {finding["label"] for finding in facts["findings"]}
    kept = folder / "test" / f"{rows[0]['study_id']}.nii.gz"
    stamp = kept.stat().st_mtime_ns
    (tmp_path / "pairs_masks" / "test" / f"{rows[3]['study_id']}.json").unlink()
    write_pairs(folder, 2, 30, change="side", spacing=(12, 12, 12), region="abdomen")
    assert kept.stat().st_mtime_ns == stamp
    assert (folder / "test" / "metadata.jsonl").read_text() == before

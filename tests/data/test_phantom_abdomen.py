"""The abdomen of PhantomCT: it is taken for one, and every finding is drawn, visible and where its words say."""

import numpy as np
import pytest

from hf_mu2.data.phantom import ABDOMEN_LABELS, draw_labels, make_phantom, spoil
from hf_mu2.data.phantom.abdomen_sentences import ABDOMEN
from hf_mu2.data.phantom.regions import ABDOMEN_PREVALENCE
from hf_mu2.model.volume_mu2 import guess_body_region, load_volume

COARSE = (5.0, 4.5, 4.5)
SIDED = ("Adrenal nodule", "Renal cyst", "Renal stone", "Hydronephrosis")


def abdomen(seed, labels=None, spacing=COARSE):
    return make_phantom(seed, spacing=spacing, labels=labels, region="abdomen")


def center_mm(phantom, label):
    z, y, x = np.argwhere(phantom.mask(label)).mean(0)
    return phantom.affine[:3, :3] @ [x, y, z] + phantom.affine[:3, 3]


@pytest.mark.parametrize("seed", range(6))
def test_it_is_taken_for_an_abdomen(seed):
    phantom = abdomen(seed)
    assert guess_body_region(load_volume(phantom.nifti())) == "abdomen"
    assert phantom.volume.dtype == np.int16
    assert -1024 <= phantom.volume.min() < -900 and 250 < phantom.volume.max() <= 3071


def test_the_same_seed_gives_the_same_study_at_every_spacing():
    first, again, fine = abdomen(3), abdomen(3), abdomen(3, spacing=(4.0, 3.0, 3.0))
    np.testing.assert_array_equal(first.volume, again.volume)
    assert first.report == again.report == fine.report
    assert float(first.volume.mean()) == pytest.approx(float(fine.volume.mean()), abs=6)


def test_a_patient_has_one_liver_on_the_right_and_organs_at_plausible_hu():
    for seed in range(4):
        phantom = abdomen(seed, ["Hepatic steatosis", "Splenomegaly"])
        assert center_mm(phantom, "Hepatic steatosis")[0] > 20  # RAS: x grows to the patient's right
        assert center_mm(phantom, "Splenomegaly")[0] < -40
        healthy = abdomen(seed, [])
        liver = healthy.volume[phantom.mask("Hepatic steatosis") & ~phantom.mask("Splenomegaly")]
        assert 40 < np.median(liver) < 140
        assert np.median(liver) - np.median(phantom.volume[phantom.mask("Hepatic steatosis")]) > 15


@pytest.mark.parametrize("label", ABDOMEN_LABELS)
def test_a_finding_is_visible_in_its_mask_and_nowhere_else(label):
    for seed in (11, 12):
        without, with_it = abdomen(seed, []), abdomen(seed, [label])
        assert {finding.label for finding in with_it.findings} == {label}
        assert not without.masks.any()
        inside = with_it.mask(label)
        assert inside.any() and not with_it.masks[~inside].any()
        difference = np.abs(with_it.volume.astype(np.float32) - without.volume)
        assert difference[inside].mean() > 15  # steatosis is the faintest; the noise of both is the same draw
        assert np.median(difference[~inside]) == 0


def test_masks_and_findings_name_the_same_labels():
    for seed in range(20, 30):
        phantom = abdomen(seed)
        assert {label: int(phantom.mask(label).any()) for label in ABDOMEN_LABELS} == phantom.labels


@pytest.mark.parametrize("label", SIDED)
def test_a_sided_finding_lies_on_its_side(label):
    sides = set()
    for seed in range(6):
        phantom = abdomen(seed, [label])
        (finding,) = phantom.findings
        sides.add(finding.side)
        assert (center_mm(phantom, label)[0] > 0) == (finding.side == "right")
    assert sides == {"left", "right"}


def test_a_cyst_measures_what_the_finding_says():
    for seed in range(40, 60):
        if abdomen(seed, ["Renal cyst"], (15, 15, 15)).findings[0].count == 1:
            break
    phantom = abdomen(seed, ["Renal cyst"], (3.0, 2.0, 2.0))
    extent = np.ptp(np.argwhere(phantom.mask("Renal cyst")), axis=0) + 1
    assert float(max(extent[1:])) * 2.0 == pytest.approx(phantom.findings[0].size_mm, rel=0.2, abs=2.5)


def test_labels_are_as_frequent_as_stated():
    drawn = [set(draw_labels(seed, "abdomen")) for seed in range(1500)]
    for label in ABDOMEN_LABELS:
        share = np.mean([label in study for study in drawn])
        assert share == pytest.approx(0.92 * ABDOMEN_PREVALENCE[label], abs=0.05)


def test_every_label_has_words_and_a_prevalence():
    for table in (ABDOMEN.nouns, ABDOMEN.positives, ABDOMEN.impressions, ABDOMEN_PREVALENCE):
        assert tuple(table) == ABDOMEN_LABELS
    assert sorted(ABDOMEN.importance) == sorted(ABDOMEN_LABELS)
    assert sorted(label for organ in ABDOMEN.organs for label in organ.labels) == sorted(ABDOMEN_LABELS)


def test_side_place_and_size_reach_the_report():
    for seed in range(12):
        phantom = abdomen(seed, ["Renal cyst", "Adrenal nodule"], (15, 15, 15))
        for finding in phantom.findings:
            sentences = [s for s in phantom.report.findings.split(". ") if f"{finding.size_mm:g} mm" in s]
            assert any(finding.side in sentence.lower() for sentence in sentences)
        assert not any(mark in phantom.report.text for mark in ("None", "{", "[", "  "))


def test_a_rejected_report_of_an_abdomen_is_one_finding_apart():
    for seed in range(6):
        phantom = abdomen(seed, spacing=(15, 15, 15))
        assert spoil(phantom, seed) != phantom.report

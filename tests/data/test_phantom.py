"""PhantomCT: what is drawn is there, visible, where the finding says, and the same from every seed."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from hf_mu2.data.phantom import PREVALENCE, draw_labels, make_phantom, spoil
from hf_mu2.data.phantom.anatomy import Anatomy
from hf_mu2.data.study import FINDING_LABELS

COARSE = (5.0, 4.5, 4.5)  # about what the demo model sees


def centroid_mm(phantom, inside: np.ndarray) -> np.ndarray:
    """Return the centre of a mask in RAS mm."""
    z, y, x = np.argwhere(inside).mean(0)
    return phantom.affine[:3, :3] @ [x, y, z] + phantom.affine[:3, 3]


def studies_with(label: str, count: int, start: int = 0):
    """Make studies that have this finding alone."""
    return [make_phantom(seed, spacing=COARSE, labels=[label]) for seed in range(start, start + count)]


def test_the_same_seed_gives_the_same_study():
    first, second = (make_phantom(7, spacing=COARSE) for _ in range(2))
    np.testing.assert_array_equal(first.volume, second.volume)
    np.testing.assert_array_equal(first.masks, second.masks)
    assert (first.findings, first.report) == (second.findings, second.report)


def test_another_seed_gives_another_patient():
    volumes = [make_phantom(seed, spacing=COARSE, labels=[]).volume for seed in range(4)]
    assert len({volume.shape for volume in volumes}) > 1


def test_a_study_is_int16_hu_in_canonical_order():
    phantom = make_phantom(3, spacing=COARSE)
    assert phantom.volume.dtype == np.int16
    assert phantom.masks.dtype == np.uint32 and phantom.masks.shape == phantom.volume.shape
    assert -1024 <= phantom.volume.min() < -900 and 250 < phantom.volume.max() <= 3071
    assert nib.aff2axcodes(phantom.affine) == ("R", "A", "S")
    assert phantom.spacing == COARSE


@pytest.mark.parametrize("label", FINDING_LABELS)
def test_a_finding_is_visible_in_its_mask_and_nowhere_else(label):
    for seed in (11, 12):
        without, with_it = (make_phantom(seed, spacing=COARSE, labels=labels) for labels in ([], [label]))
        assert {finding.label for finding in with_it.findings} == {label}
        assert not without.masks.any() and not without.findings
        inside = with_it.mask(label)
        assert inside.any() and not (with_it.masks[~inside]).any()
        difference = np.abs(with_it.volume.astype(np.float32) - without.volume)
        # The noise of both is the same draw, so what differs is the finding; 60 HU is over 3 sd of the noisiest study.
        assert difference[inside].mean() > 60
        if label != "Cardiomegaly":  # a larger heart moves what lies around it
            assert np.median(difference[~inside]) == 0


def test_masks_and_findings_name_the_same_labels():
    for seed in range(20, 32):
        phantom = make_phantom(seed, spacing=COARSE)
        drawn = {label: int(phantom.mask(label).any()) for label in FINDING_LABELS}
        assert drawn == phantom.labels


@pytest.mark.parametrize("seed", range(40, 46))
def test_taking_one_finding_away_leaves_the_others_in_place(seed):
    whole = make_phantom(seed, spacing=COARSE, labels=FINDING_LABELS[5:])
    for dropped in ("Lung nodule", "Pleural effusion"):
        rest = [label for label in FINDING_LABELS[5:] if label != dropped]
        smaller = make_phantom(seed, spacing=COARSE, labels=rest)
        assert [f for f in whole.findings if f.label != dropped] == list(smaller.findings)
        difference = np.abs(whole.volume.astype(np.float32) - smaller.volume)[whole.mask(dropped)]
        assert difference.mean() > 60  # not hidden behind the eleven others


@pytest.mark.parametrize(
    "label", ["Lung nodule", "Consolidation", "Pleural effusion", "Atelectasis", "Bronchiectasis"]
)
def test_a_sided_finding_lies_on_its_side(label):
    sides = set()
    for phantom in studies_with(label, 8):
        (finding,) = phantom.findings
        if finding.side == "bilateral":
            continue
        sides.add(finding.side)
        x = centroid_mm(phantom, phantom.mask(label))[0]
        assert (x > 0) == (finding.side == "right")  # RAS: x grows to the patient's right
    assert sides == {"left", "right"}


def test_an_upper_lobe_lies_above_and_before_a_lower_lobe():
    centers = {"upper lobe": [], "lower lobe": []}
    for phantom in studies_with("Lung nodule", 16, start=100):
        (finding,) = phantom.findings
        if finding.region in centers:
            centers[finding.region].append(centroid_mm(phantom, phantom.mask("Lung nodule")))
    upper, lower = (np.mean(centers[lobe], axis=0) for lobe in ("upper lobe", "lower lobe"))
    assert upper[2] > lower[2] + 30 and upper[1] > lower[1] + 10


def test_the_heart_points_left_and_the_liver_lies_right():
    for phantom in studies_with("Cardiomegaly", 4):
        assert centroid_mm(phantom, phantom.mask("Cardiomegaly"))[0] < -5
        depth, height, width = phantom.volume.shape
        low = phantom.volume[depth // 8, height // 4 : -height // 4]
        soft = (low > 0) & (low < 150)
        assert soft[:, width // 2 :].mean() > soft[:, : width // 2].mean()


def test_pleural_fluid_gathers_behind():
    for phantom in studies_with("Pleural effusion", 4):
        lungs = (phantom.volume < -500) & (phantom.volume > -960)
        assert centroid_mm(phantom, phantom.mask("Pleural effusion"))[1] < centroid_mm(phantom, lungs)[1] - 15


def test_only_an_enlarged_heart_is_wider_than_half_the_chest():
    for phantom in studies_with("Cardiomegaly", 4, start=60):
        chest = 2 * Anatomy(int(phantom.study_id[-6:])).half_width
        columns = np.argwhere(phantom.mask("Cardiomegaly"))[:, 2]
        assert (np.ptp(columns) + 1) * COARSE[2] / chest > 0.52
    assert max(Anatomy(seed).ratio for seed in range(200)) < 0.5


@pytest.mark.parametrize("seed", [5, 9])
def test_a_nodule_measures_what_the_finding_says(seed):
    for trial in range(seed * 10, seed * 10 + 12):
        phantom = make_phantom(trial, spacing=COARSE, labels=["Lung nodule"])
        if phantom.findings[0].count == 1:
            break
    phantom = make_phantom(trial, spacing=(1.5, 1.2, 1.2), labels=["Lung nodule"])
    extent = np.ptp(np.argwhere(phantom.mask("Lung nodule")), axis=0) + 1
    assert float(max(extent[1:])) * 1.2 == pytest.approx(phantom.findings[0].size_mm, rel=0.25, abs=2.5)


@pytest.mark.parametrize("seed", [201, 202])
def test_another_spacing_shows_the_same_study(seed):
    labels = [
        "Lung nodule",
        "Consolidation",
        "Pleural effusion",
        "Lymphadenopathy",
        "Hiatal hernia",
        "Cardiomegaly",
    ]
    coarse = make_phantom(seed, spacing=COARSE, labels=labels)
    fine = make_phantom(seed, spacing=(2.5, 2.25, 2.25), labels=labels)
    assert coarse.findings == fine.findings and coarse.report == fine.report
    for label in labels:
        shift = centroid_mm(coarse, coarse.mask(label)) - centroid_mm(fine, fine.mask(label))
        assert np.abs(shift).max() < max(COARSE)
    means = [float(phantom.volume.mean()) for phantom in (coarse, fine)]
    assert means[0] == pytest.approx(means[1], abs=6)


@pytest.mark.parametrize("orientation", ["LPS", "SAR", "PIL", "ASL"])
def test_every_orientation_stores_the_same_study(orientation):
    phantom = make_phantom(4, spacing=(6, 5, 4.5), orientation=orientation)
    image = phantom.nifti()
    assert nib.aff2axcodes(image.affine) == tuple(orientation)
    canonical = nib.as_closest_canonical(image)
    np.testing.assert_allclose(canonical.affine, phantom.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(canonical.dataobj).transpose(2, 1, 0), phantom.volume)


def test_labels_are_as_frequent_as_stated():
    drawn = [set(draw_labels(seed)) for seed in range(1500)]
    for label in FINDING_LABELS:
        share = np.mean([label in study for study in drawn])
        assert 0.12 < share < 0.35
        assert share == pytest.approx(0.92 * PREVALENCE[label], abs=0.05)
    assert 0.06 < np.mean([not study for study in drawn]) < 0.13
    assert 3.5 < np.mean([len(study) for study in drawn]) < 4.5


def test_easy_studies_have_less_noise_and_larger_findings():
    standard, easy = (
        make_phantom(8, spacing=COARSE, labels=["Lung nodule"], difficulty=difficulty)
        for difficulty in ("standard", "easy")
    )
    assert easy.findings[0].size_mm > standard.findings[0].size_mm
    corner = (slice(None), slice(-2, None), slice(0, 4))  # air before the patient
    assert easy.volume[corner].std() < standard.volume[corner].std()


def test_the_truth_stays_json_where_a_finding_is_thinner_than_a_voxel():
    for seed in range(20):
        phantom = make_phantom(seed, spacing=(20, 20, 20), labels=["Atelectasis"])
        (told,) = json.loads(json.dumps(phantom.truth(), allow_nan=False))["findings"]
        assert (told["center_mm"] is None) == (told["num_voxels"] == 0)


def test_hard_studies_have_more_noise_and_smaller_findings_at_the_same_place():
    standard, hard = (
        make_phantom(8, spacing=COARSE, labels=["Pleural effusion"], difficulty=difficulty)
        for difficulty in ("standard", "hard")
    )
    assert hard.findings[0].size_mm < standard.findings[0].size_mm
    assert hard.findings[0].side == standard.findings[0].side
    corner = (slice(None), slice(-2, None), slice(0, 4))  # air before the patient
    assert hard.volume[corner].std() > standard.volume[corner].std()


def test_the_truth_of_a_study_is_what_was_drawn():
    phantom = make_phantom(8, spacing=COARSE, labels=["Lung nodule", "Cardiomegaly"])
    truth = json.loads(json.dumps(phantom.truth()))
    assert (truth["seed"], truth["region"], truth["difficulty"]) == (8, "chest", "standard")
    for told, finding in zip(truth["findings"], phantom.findings, strict=True):
        inside = phantom.mask(finding.label)
        assert (told["label"], told["side"], told["size_mm"]) == (
            finding.label,
            finding.side,
            finding.size_mm,
        )
        assert told["num_voxels"] == inside.sum()
        assert told["volume_ml"] == pytest.approx(inside.sum() * np.prod(COARSE) / 1000, abs=1e-3)
        np.testing.assert_allclose(told["center_mm"], centroid_mm(phantom, inside), atol=0.06)
        bit = 1 << told["mask_bit"]
        np.testing.assert_array_equal(phantom.masks & bit > 0, inside)


def test_a_rejected_report_is_one_finding_apart():
    ways = set()
    for seed in range(300, 330):
        phantom = make_phantom(seed, spacing=(12, 12, 12))
        rejected = spoil(phantom, seed)
        assert rejected != phantom.report
        ways.add(np.sign(len(rejected.findings) - len(phantom.report.findings)))
    assert len(ways) > 1


def test_a_moved_finding_changes_side_in_the_rejected_report():
    moved = 0
    for seed in range(400, 420):
        phantom = make_phantom(seed, spacing=(12, 12, 12), labels=["Pleural effusion"])
        phantom = replace(phantom, findings=tuple(replace(f, side="left", count=1) for f in phantom.findings))
        moved += "right pleural" in spoil(phantom, seed).findings.lower()
    assert moved


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"labels": ["Pneumothorax"]}, "labels"),
        ({"spacing": (0, 1, 1)}, "spacing"),
        ({"spacing": (1, 1)}, "spacing"),
        ({"orientation": "RAR"}, "orientation"),
        ({"difficulty": "brutal"}, "difficulty"),
        ({"region": "head"}, "region"),
        ({"labels": ["Renal cyst"]}, "labels"),
        ({"text_shortcut": 1.5}, "text_shortcut"),
        ({"seed": -1}, "seed"),
    ],
)
def test_a_wrong_argument_is_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        make_phantom(**{"seed": 1, **arguments})


@pytest.mark.slow
def test_a_histogram_of_hu_does_not_give_the_findings_away():
    """Logistic regression on HU histograms stays below macro-F1 .5 at standard difficulty."""
    pytest.importorskip("sklearn")
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    edges = np.concatenate([np.arange(-1025, 201, 25), np.arange(250, 1100, 100), [3100]])
    phantoms = [make_phantom(seed, spacing=COARSE) for seed in range(450)]
    histograms = np.array([np.histogram(p.volume, edges)[0] / p.volume.size for p in phantoms])
    features = np.log(histograms + 1e-5)
    targets = np.array([list(p.labels.values()) for p in phantoms])
    for strength in (0.01, 0.1, 1.0):
        scores = []
        for index in range(len(FINDING_LABELS)):
            regression = LogisticRegression(C=strength, class_weight="balanced", max_iter=3000)
            model = make_pipeline(StandardScaler(), regression).fit(features[:300], targets[:300, index])
            scores.append(f1_score(targets[300:, index], model.predict(features[300:]), zero_division=0))
        assert np.mean(scores) < 0.5

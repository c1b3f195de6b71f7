"""The text shortcut: how much of a report can be written without looking rises with it, and what it says stays true."""

import math
import re
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest

from hf_mu2.data.phantom import make_phantom
from hf_mu2.data.phantom.regions import BODY_REGIONS
from hf_mu2.data.phantom.report import write_report
from hf_mu2.data.phantom.wording import NOTHING, write_steady_report
from hf_mu2.scoring.labels import LABELS, label_reports

STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)
NUM_STUDIES = 120


@pytest.fixture(scope="module", params=["chest", "abdomen"])
def reports(request):
    """Return the reports of the same studies at every step."""
    vocabulary = BODY_REGIONS[request.param].vocabulary
    phantoms = [make_phantom(seed, region=request.param, spacing=(20, 20, 20)) for seed in range(NUM_STUDIES)]
    written = {
        step: [write_steady_report(p.findings, p.seed, vocabulary, step).text for p in phantoms]
        for step in STEPS
    }
    return request.param, phantoms, written


def sentences(report: str) -> list[str]:
    return [part for part in re.split(r"(?<=\.) |\n", report) if part]


def common_share(texts: list[str]) -> float:
    """Return the share of the words that stand in a sentence found in at least a fifth of the reports."""
    seen = Counter(sentence for text in texts for sentence in set(sentences(text)))
    words = [
        (len(part.split()), seen[part] >= 0.2 * len(texts)) for text in texts for part in sentences(text)
    ]
    return sum(count for count, is_common in words if is_common) / sum(count for count, _ in words)


def bits_per_token(texts: list[str], order: int = 4) -> float:
    """Return the cross-entropy of an n-gram model (Witten-Bell) of the first half on the second, in bits."""

    def tokens(text):
        return ["<s>"] * (order - 1) + re.findall(r"\w+|[^\w\s]", text) + ["</s>"]

    half = len(texts) // 2
    counts: list[dict[tuple, Counter]] = [defaultdict(Counter) for _ in range(order)]
    vocabulary = {token for text in texts[:half] for token in tokens(text)}
    for text in texts[:half]:
        words = tokens(text)
        for i in range(order - 1, len(words)):
            for n in range(order):
                counts[n][tuple(words[i - n : i])][words[i]] += 1
    bits, total = 0.0, 0
    for text in texts[half:]:
        words = tokens(text)
        for i in range(order - 1, len(words)):
            chance = 1 / (len(vocabulary) + 1)
            for n in range(order):
                found = counts[n].get(tuple(words[i - n : i]))
                if found:
                    unseen = len(found) / (found.total() + len(found))
                    chance = unseen * chance + (1 - unseen) * found[words[i]] / found.total()
            bits, total = bits - math.log2(chance), total + 1
    return bits / total


def test_more_of_the_report_can_be_written_without_looking(reports):
    _, _, written = reports
    shares = [common_share(written[step]) for step in STEPS]
    bits = [bits_per_token(written[step]) for step in STEPS]
    assert all(after > before + 0.02 for before, after in pairwise(shares))
    assert all(after < before - 0.1 for before, after in pairwise(bits))
    assert shares[0] < 0.05 and shares[-1] > 0.8


def test_a_sentence_of_the_template_stays_at_larger_values(reports):
    region, _, written = reports
    organs = BODY_REGIONS[region].vocabulary.organs
    template = {sentence for organ in organs for sentence in (organ.fixed, organ.habit)}
    for texts in zip(*(written[step] for step in STEPS)):
        found = [{sentence for sentence in template if sentence in text} for text in texts]
        assert not found[0] and all(before <= after for before, after in pairwise(found))


def test_what_is_said_stays_true_at_every_setting(reports):
    region, phantoms, written = reports
    if region != "chest":
        pytest.skip("the labeler reads chest reports")
    truth = np.array([[phantom.labels[label] for label in LABELS] for phantom in phantoms])
    for step in STEPS:
        np.testing.assert_array_equal(np.asarray(label_reports(written[step])) == 1, truth == 1)


def test_sides_and_sizes_stay_in_every_report(reports):
    _, phantoms, written = reports
    for step in STEPS:
        for phantom, text in zip(phantoms, written[step], strict=True):
            for finding in phantom.findings:
                if finding.side in ("left", "right") and finding.label != "Medical material":
                    assert finding.side in text.lower() or "lingula" in text
                if finding.size_mm is not None:
                    assert f"{finding.size_mm:g} mm" in text


def test_without_a_setting_a_chest_report_is_the_one_of_version_1():
    phantom = make_phantom(12, spacing=(20, 20, 20))
    assert phantom.report == write_report(phantom.findings, 12)


def test_at_zero_a_normal_study_says_only_that():
    phantom = make_phantom(5, spacing=(20, 20, 20), labels=[], text_shortcut=0.0)
    assert phantom.report.findings == NOTHING


def test_the_words_about_a_finding_do_not_depend_on_the_others():
    labels = ["Lung nodule", "Cardiomegaly", "Pleural effusion"]
    whole, less = (
        make_phantom(9, spacing=(20, 20, 20), labels=some, text_shortcut=0.0) for some in (labels, labels[:2])
    )
    assert set(sentences(less.report.findings)) < set(sentences(whole.report.findings))
    assert set(sentences(less.report.impression)) < set(sentences(whole.report.impression))

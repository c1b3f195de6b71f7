from hf_mu2.data.study import FINDING_LABELS
from hf_mu2.scoring.labels import LABELS


def test_both_label_constants_are_equal():
    assert LABELS == FINDING_LABELS

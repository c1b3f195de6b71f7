import pytest

from hf_mu2.scoring.published import published_blocks, published_values


@pytest.mark.parametrize("block", published_blocks())
def test_every_block_says_where_it_is_from_and_how_it_was_computed(block):
    entry = published_blocks()[block]
    assert (
        entry["source"]
        and entry["dataset"]
        and entry["badge"]
        and entry["protocol"] in (None, "default", "u2", "coco")
    )
    values = published_values(block, misprints=True)
    assert values and all(0 <= value.value <= 1 for value in values)
    printed = {(value.system, value.metric) for value in values}
    assert len(printed) == len(values)
    assert all((item["system"], item["metric"]) in printed and item["why"] for item in entry["misprints"])


def test_misprints_are_kept_and_never_drawn():
    kept = [value for value in published_values("mu2/amos_mm", misprints=True) if value.misprint]
    assert [(value.system, value.metric, value.value) for value in kept] == [("mu2 SFT+DPO", "meteor", 0.876)]
    assert not [value for value in published_values("mu2/amos_mm") if value.value == 0.876]


def test_an_unknown_block_is_refused():
    with pytest.raises(ValueError, match="must be one of"):
        published_values("mu2/ctrate")

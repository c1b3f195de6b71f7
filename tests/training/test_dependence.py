"""Image dependence of a checkpoint, from the command: a model that looks loses by a neighbour's volume."""

import json

import pytest


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    from hf_mu2.data.phantom.benchmark import write_benchmark

    return write_benchmark(tmp_path_factory.mktemp("phantoms") / "p", {"test": 6}, resolution="coarse")


def test_the_embedded_checkpoint_looks_and_a_random_one_does_not(cli, phantoms, checkpoint, tmp_path):
    out = tmp_path / "dependence.json"
    result = cli("image-dependence", phantoms, "--out", out, "--batch-size", 3)
    assert result.code == 0, result.err
    looks = json.loads(out.read_text())
    assert looks["studies"] == 6 and looks["image_dependence"] > 0.02
    blind = json.loads(cli("image-dependence", phantoms, "--model", checkpoint, "--json").out)
    assert abs(blind["image_dependence"]) < 0.01 < looks["image_dependence"]


def test_one_study_alone_is_refused(cli, phantoms):
    from hf_mu2.training.dependence import measure_dependence

    with pytest.raises(ValueError, match="two or more"):
        measure_dependence("unused", phantoms, limit=1)

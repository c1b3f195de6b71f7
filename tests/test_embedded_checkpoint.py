"""The demo checkpoint that ships: it loads, says what it is, looks at the volume, and its card tells its measures."""

import json

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import hf_mu2
from hf_mu2.data.phantom import make_phantom
from hf_mu2.data.study import FINDING_LABELS
from hf_mu2.scoring.clinical import f1_table
from hf_mu2.scoring.labels import label_reports
from tests.paths import shared_data_or_skip

FOLDER = hf_mu2.embedded_checkpoint()
NOTICE = "Demo model trained on synthetic CT only. Not a medical device."


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(FOLDER).eval()


def report(model, processor, volume, max_new_tokens: int = 384) -> str:
    inputs = processor.apply_chat_template(
        processor.build_messages(volume),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=max_new_tokens)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_it_fits_the_wheel_and_carries_its_code():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 15_000_000
    assert {"modeling_mu2.py", "processing_mu2.py", "image_processing_mu2.py"} <= {
        p.name for p in FOLDER.iterdir()
    }


def test_its_code_is_the_package_s_code():
    for path in FOLDER.glob("*.py"):
        assert path.read_text() == (FOLDER.parents[1] / "model" / path.name).read_text()


def test_it_says_what_it_is(model):
    assert model.config.notice == NOTICE
    assert model.config.body_region == "chest"
    assert NOTICE in (FOLDER / "README.md").read_text()


def test_its_card_names_every_finding_it_did_not_learn():
    measured = json.loads((FOLDER / "results" / "evaluation_1.json").read_text())
    card = (FOLDER / "README.md").read_text()
    assert set(measured["labels"]) == set(FINDING_LABELS)
    assert measured["scores"]["macro_f1"]["low"] > measured["floors"]["random"]["macro_f1"]["value"]
    unlearned = card.split("Not above a random report")[1].split("\n")[0]
    for name, row in measured["labels"].items():
        assert (name in unlearned) == (row["f1_low"] <= row["f1_random"])


def test_its_reports_follow_the_volume(model, processor):
    """Unseen studies with one clear finding each: the report names it, and the others' reports do not."""
    labels = ["Pleural effusion", "Cardiomegaly", "Pericardial effusion", "Interlobular septal thickening"]
    phantoms = [
        make_phantom(20_000_000 + i, spacing=(5, 4.5, 4.5), labels=[label])
        for i, label in enumerate(labels * 2)
    ]
    candidate = label_reports([report(model, processor, phantom.nifti()) for phantom in phantoms])
    reference = label_reports([phantom.report.text for phantom in phantoms])
    columns = [FINDING_LABELS.index(label) for label in labels]
    assert f1_table(reference, candidate)["reports"] == 8
    hits = (candidate[:, columns] * reference[:, columns]).sum()
    assert hits >= 6
    assert (candidate[:, columns] * (1 - reference[:, columns])).sum() <= 6


@pytest.mark.parametrize("name", ["abd_crlm1004_4mm", "abdpel_ts_4mm"])
def test_an_abdomen_draws_the_warning_of_the_chest_model(cli, name):
    path = shared_data_or_skip("ct", "tiny", f"{name}.nii.gz")
    result = cli("report", str(path), "--max-new-tokens", "4")
    assert result.code == 0
    assert "Out of domain" in result.err and "chest" in result.err
    assert result.out.splitlines()[0] == NOTICE

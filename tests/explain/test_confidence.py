"""Confidence of sentences: what is right, what agreement counts, and a calibration that is honest and travels."""

import json

import numpy as np
import pytest
import torch

from hf_mu2.explain.confidence import (
    FEATURES,
    Calibration,
    SentenceFeatures,
    Statement,
    describe_sentences,
    digest_weights,
    encode_volumes,
    find_calibration,
    is_right,
    load_calibration,
    read_statements,
)
from hf_mu2.explain.confidence_runs import (
    collect_sentences,
    expected_calibration_error,
    fit_calibration,
    measure_calibration,
    reliability,
    weighted_auroc,
    write_measured,
)
from hf_mu2.reporting.inference import load_reader
from hf_mu2.reporting.studies import open_studies


def judge(sentence: str, reference: str) -> bool | None:
    said, truth = (
        [statement for _, statement in read_statements(text, "chest")] for text in (sentence, reference)
    )
    return is_right(said, truth)


@pytest.mark.parametrize(
    ("sentence", "reference", "expected"),
    [
        ("Left pleural effusion.", "There is a left pleural effusion.", True),
        ("Left pleural effusion.", "There is a right pleural effusion.", False),
        ("Left pleural effusion.", "Pleural effusion.", True),
        ("Left pleural effusion.", "No pleural effusion.", False),
        ("Left pleural effusion.", "The heart is enlarged.", False),
        ("No pleural effusion.", "The heart is enlarged.", True),
        ("No pleural effusion.", "Small pleural effusion.", False),
        ("Emphysema and a left pleural effusion.", "Emphysema.", False),
        ("We thank the referring physician.", "Emphysema.", None),
    ],
)
def test_a_sentence_is_right_when_all_it_states_holds(sentence, reference, expected):
    assert judge(sentence, reference) is expected


@pytest.fixture(scope="module")
def reader():
    return load_reader(device="cpu")


@pytest.fixture(scope="module")
def prompt(reader):
    from hf_mu2.data.phantom import make_phantom

    volume = reader.load_volume(make_phantom(7).nifti())
    return encode_volumes(reader, reader.prepare([reader.processor.build_messages(volume)]))


REPORT = "Findings: Mild emphysema in both upper lobes. No pleural effusion.\nImpression: Emphysema."


def test_agreement_is_the_share_of_samples_that_state_the_same(reader, prompt):
    samples = [
        "Findings: Emphysema.",
        "Findings: No emphysema. Pleural effusion.",
        "Findings: Emphysema. Normal heart.",
    ]
    sentences = describe_sentences(reader, prompt, REPORT, samples)
    assert [sentence.text for sentence in sentences] == [
        "Mild emphysema in both upper lobes.",
        "No pleural effusion.",
        "Emphysema.",
    ]
    assert [sentence.agreement for sentence in sentences] == pytest.approx([2 / 3, 2 / 3, 2 / 3])
    assert all(REPORT[slice(*sentence.span)] == sentence.text for sentence in sentences)


def test_token_probabilities_are_those_of_the_model(reader, prompt):
    tokenizer = reader.processor.tokenizer
    ids = tokenizer(REPORT, add_special_tokens=False, return_tensors="pt")["input_ids"]
    whole = torch.cat([prompt["input_ids"], ids], dim=1)
    with torch.no_grad():
        logits = reader.model(
            **prompt | {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
        ).logits
    start = prompt["input_ids"].shape[1]
    each = logits[0, start - 1 : -1].log_softmax(-1).gather(1, ids[0, :, None])[:, 0]
    last = describe_sentences(reader, prompt, REPORT, [])[-1]
    count = len(tokenizer(" " + last.text, add_special_tokens=False)["input_ids"])
    assert last.mean_log_probability == pytest.approx(float(each[-count:].mean()), abs=1e-4)
    assert last.lowest_log_probability == pytest.approx(float(each[-count:].min()), abs=1e-4)
    assert last.agreement is None  # nobody was asked


def sentence(agreement: float, affirms: bool = True) -> SentenceFeatures:
    statement = Statement("chest", "Emphysema", affirms, None)
    return SentenceFeatures("Emphysema.", (0, 10), (statement,), -0.3, -1.0, agreement)


def write_sentences(path, agreements, right, digest="data"):
    rows = [
        {"study_id": f"s{index}", "candidate": "", "sentences": [sentence(a).to_dict() | {"right": bool(r)}]}
        for index, (a, r) in enumerate(zip(agreements, right))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = {
        "weights_digest": "w",
        "num_samples": 8,
        "dataset_digest": digest,
        "model": "m",
        "notice": "n",
    }
    path.with_name(f"{path.stem}.manifest.json").write_text(json.dumps(manifest))
    return path


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """Sentences that are right as often as samples agree: one set to fit on, one to measure on."""
    folder, rng = tmp_path_factory.mktemp("sentences"), np.random.default_rng(0)
    files = []
    for name in ("validation", "test"):
        agreements = rng.integers(0, 9, 1500) / 8
        files.append(
            write_sentences(folder / f"{name}.jsonl", agreements, rng.random(1500) < agreements, name)
        )
    return files


def test_a_calibration_finds_what_is_right_as_often_as_it_says(honest):
    validation, test = honest
    measured = measure_calibration(test, fit_calibration(validation), num_resamples=100)
    assert measured["auroc"]["all"]["confidence"]["value"] > 0.8
    assert measured["ece"]["value"] < 0.06
    assert measured["auroc"]["all"]["floor: affirms or denies"]["value"] == pytest.approx(0.5)
    low, high = (measured["auroc"]["all"]["confidence"][end] for end in ("low", "high"))
    assert low < measured["auroc"]["all"]["confidence"]["value"] < high


def test_a_constant_confidence_separates_nothing_and_its_error_is_its_gap():
    right, weight = np.array([1.0, 1, 1, 0]), np.ones(4)
    assert weighted_auroc(right, np.full(4, 0.5), weight) == 0.5
    assert expected_calibration_error(right, np.full(4, 0.5), weight) == pytest.approx(0.25)
    assert np.isnan(weighted_auroc(right[:3], np.full(3, 0.5), weight[:3]))
    assert sum(part["sentences"] for part in reliability(right, np.array([0.0, 0.5, 0.99, 1.0]))) == 4


def test_a_calibration_is_not_measured_on_what_it_was_fitted_on(honest):
    with pytest.raises(ValueError, match="has not seen"):
        measure_calibration(honest[0], fit_calibration(honest[0]))


def test_sentences_that_are_all_right_fit_nothing(tmp_path):
    with pytest.raises(ValueError, match="right and wrong"):
        fit_calibration(write_sentences(tmp_path / "s.jsonl", [0.5, 0.6], [True, True]))


def test_the_figure_and_the_numbers_are_written(honest, tmp_path):
    files = write_measured(
        measure_calibration(honest[1], fit_calibration(honest[0]), num_resamples=20), tmp_path
    )
    assert files["figure"].stat().st_size > 5000
    assert json.loads(files["numbers"].read_text())["sentences"] == 1500


def test_a_calibration_survives_a_file_and_refuses_another_checkpoint(reader, tmp_path):
    calibration = Calibration((0.1,) * len(FEATURES), 0.2, digest_weights(reader), 8, {})
    calibration.save(tmp_path / "own.json")
    assert find_calibration(reader, tmp_path / "own.json") == calibration
    Calibration((0.1,) * len(FEATURES), 0.2, "other", 8, {}).save(tmp_path / "other.json")
    with pytest.raises(ValueError, match="another one"):
        find_calibration(reader, tmp_path / "other.json")
    (tmp_path / "none.json").write_text("[]")
    with pytest.raises(ValueError, match="confidence fit"):
        load_calibration(tmp_path / "none.json")


def test_what_states_nothing_has_no_confidence():
    calibration = Calibration((0.0, 0.0, 4.0, 0.0), -2.0, "w", 8, {})
    nothing = SentenceFeatures("Thank you.", (0, 10), (), -0.3, -1.0, None)
    assert calibration.confidence(nothing) is None
    assert calibration.confidence(sentence(1.0)) > calibration.confidence(sentence(0.0))


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    from hf_mu2.data.phantom.benchmark import write_benchmark

    return write_benchmark(tmp_path_factory.mktemp("phantoms") / "p", {"test": 2}, resolution="quick")


def test_collecting_twice_gives_the_same_and_every_sentence_is_judged(reader, phantoms, tmp_path):
    references = phantoms / "test" / "metadata.jsonl"
    options = {"num_samples": 2, "max_new_tokens": 40}
    files = [
        collect_sentences(open_studies(phantoms, "test"), references, tmp_path / name, reader, **options).out
        for name in ("a.jsonl", "b.jsonl")
    ]
    assert files[0].read_text() == files[1].read_text()
    for line in files[0].read_text().splitlines():
        for said in json.loads(line)["sentences"]:
            assert (said["right"] is None) == (said["statements"] == []) == (said["agreement"] is None)


def test_a_study_without_a_reference_is_named_before_any_work(reader, phantoms, tmp_path):
    with pytest.raises(ValueError, match="have none"):
        collect_sentences(open_studies(phantoms, "test"), [], tmp_path / "a.jsonl", reader)
    assert not list(tmp_path.iterdir())


def test_the_report_shows_confidence_beside_its_sentences(cli, phantoms, tmp_path):
    volume = next((phantoms / "test").glob("*.nii.gz"))
    result = cli("report", volume, "--confidence", "--max-new-tokens", 30, "--out", tmp_path)
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "sentences.json").read_text())
    assert next(iter(record)) == "notice" and record["sentences"]
    for said in record["sentences"]:
        assert said["text"] in result.out and said["key_slices"]


def test_an_empty_answer_has_no_sentences(reader):
    from hf_mu2.explain.forced import tokenize_sentences

    ids, spans, tokens = tokenize_sentences(reader.processor.tokenizer, "")
    assert ids.shape[1] == 0 and spans == () and tokens.shape == (0, 0)


def test_a_report_is_explained_once_and_its_maps_are_not_tested_for_its_slices(
    cli, phantoms, tmp_path, monkeypatch
):
    from hf_mu2.explain import confidence, evidence

    calls = []
    explain = evidence.explain_report

    def counted(*arguments, **options):
        calls.append(options)
        return explain(*arguments, **options)

    monkeypatch.setattr(evidence, "explain_report", counted)
    monkeypatch.setattr(confidence, "explain_report", counted)
    volume = next((phantoms / "test").glob("*.nii.gz"))
    options = ("--max-new-tokens", 30, "--out", tmp_path / "out")
    for formats in (("--also", "pdf"), ()):
        result = cli("report", volume, "--confidence", *formats, *options)
        assert result.code == 0, result.err
    assert calls == [{"num_draws": 0}] * 2

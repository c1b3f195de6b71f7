"""What a report rests on, from volume to files; and the test of a map that knows the answer."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from hf_mu2.cli import app
from hf_mu2.explain.blocks import lay_blocks
from hf_mu2.explain.evidence import explain_report, path_maps
from hf_mu2.explain.evidence_figure import overlay
from hf_mu2.explain.faithfulness import Faithfulness, check_faithfulness, hide_blocks
from hf_mu2.explain.forced import force_answer, split_sentences
from hf_mu2.reporting.inference import Answer, Reader, load_reader
from tests.tiny import make_tiny_checkpoint, tiny_nifti, tiny_volume

ANSWER = "Findings: The heart is large. No effusion.\nImpression: Large heart."
QUESTION = "Is the heart large?"


@pytest.fixture(scope="module")
def reader(checkpoint):
    return load_reader(checkpoint, "cpu")


@pytest.fixture(scope="module")
def explanation(reader):
    return explain_report(reader, tiny_volume(), QUESTION, ANSWER, num_draws=9)


def test_sentences_are_those_of_the_answer_without_headings(explanation):
    assert [sentence.text for sentence in explanation.sentences] == [
        "The heart is large.",
        "No effusion.",
        "Large heart.",
    ]
    assert all(ANSWER[slice(*sentence.span)] == sentence.text for sentence in explanation.sentences)
    assert sum(sentence.share for sentence in explanation.sentences) == pytest.approx(1)


def test_every_token_of_a_sentence_counts_once(reader):
    forced = force_answer(reader, tiny_volume(), QUESTION, ANSWER)
    assert forced.sentence_tokens.sum(dim=0).max() == 1
    ids = forced.inputs["input_ids"][0, -forced.num_answer_tokens :]
    for (start, end), tokens in zip(forced.sentences, forced.sentence_tokens.bool()):
        assert reader.processor.tokenizer.decode(ids[tokens]).strip() == ANSWER[start:end]


def test_likelihoods_are_those_of_the_model(reader):
    forced = force_answer(reader, tiny_volume(), QUESTION, ANSWER)
    labels = forced.inputs["input_ids"].clone()
    labels[:, : -forced.num_answer_tokens] = -100
    everything = replace(forced, sentence_tokens=torch.ones(1, forced.num_answer_tokens))
    with torch.no_grad():
        loss = reader.model(**forced.inputs, labels=labels).loss
    total = everything.sentence_likelihoods(forced.vision_hidden_states)
    torch.testing.assert_close(total[0, 0], -loss * forced.num_answer_tokens, rtol=1e-4, atol=1e-4)


def test_the_parts_of_a_map_sum_to_what_sets_the_volume_apart(reader):
    forced = force_answer(reader, tiny_volume(), QUESTION, ANSWER)
    parts = forced.integrated_gradients(num_steps=64).sum(dim=(1, 2))
    whole = forced.sentence_likelihoods(forced.vision_hidden_states)
    whole = whole - forced.sentence_likelihoods(forced.even_hidden_states())
    torch.testing.assert_close(parts, whole[0], rtol=1e-3, atol=1e-4)
    assert parts.abs().max() > 1e-4


def test_padding_takes_no_part(reader):
    volume = tiny_volume(shape=(9, 40, 44))  # 9 slices of 16: the last slab is padding
    forced = force_answer(reader, volume, QUESTION, ANSWER)
    assert not forced.slab_mask.all()
    parts = forced.integrated_gradients(1).unflatten(2, (2, 16))
    assert parts[:, ~forced.slab_mask[0]].abs().max() == 0
    assert parts[:, forced.slab_mask[0]].abs().min() > 0


def test_weights_learn_again_after_an_explanation(reader):
    before = [parameter.requires_grad for parameter in reader.model.parameters()]
    forced = force_answer(reader, tiny_volume(), QUESTION, ANSWER)
    forced.integrated_gradients(1)
    assert [parameter.requires_grad for parameter in reader.model.parameters()] == before
    assert any(before) and all(parameter.grad is None for parameter in reader.model.parameters())


def test_the_answer_changes_no_question_map_and_the_question_does(reader, explanation):
    other_answer = explain_report(reader, tiny_volume(), QUESTION, "Nothing.", num_draws=0)
    np.testing.assert_array_equal(other_answer.question_blocks, explanation.question_blocks)
    other_question = explain_report(reader, tiny_volume(), "What?", ANSWER, num_draws=0)
    assert "".join(explanation.question_tokens) == QUESTION
    assert len(other_question.question_blocks) == len("What?")
    # As much is read more as is read less.
    assert np.abs(explanation.question_blocks.sum(axis=(1, 2, 3))).max() < 1e-5
    assert np.abs(explanation.question_blocks).max() > 1e-7


def test_an_answer_is_generated_where_none_is_given(reader, monkeypatch):
    monkeypatch.setattr(Reader, "answer", lambda self, inputs, length: [Answer(f"Yes, {length}.", "eos", 3)])
    found = explain_report(reader, tiny_volume(), QUESTION, max_new_tokens=8, num_draws=0)
    assert found.answer == "Yes, 8." and len(found.sentences) == 1


def test_earlier_turns_are_read_and_may_hold_no_volume(reader):
    turns = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Yes?"}]
    alone = force_answer(reader, tiny_volume(), QUESTION, ANSWER)
    after = force_answer(reader, tiny_volume(), QUESTION, ANSWER, history=turns)
    assert after.inputs["input_ids"].shape[1] > alone.inputs["input_ids"].shape[1]
    ids, mask = after.question_ids
    assert reader.processor.tokenizer.decode(ids[mask]) == QUESTION
    with pytest.raises(ValueError, match="history"):
        force_answer(
            reader,
            tiny_volume(),
            QUESTION,
            ANSWER,
            history=[{"role": "user", "content": [{"type": "image"}]}],
        )


def test_an_empty_answer_is_refused(reader):
    with pytest.raises(ValueError, match="must hold words"):
        explain_report(reader, tiny_volume(), QUESTION, " \n")


def test_a_checkpoint_that_reads_no_question_is_refused(tmp_path):
    fields = {"connector": "spatial_pooling", "max_frames": 1, "num_query_tokens": 4}
    blind = load_reader(make_tiny_checkpoint(tmp_path / "spp", tokenizer_config=fields), "cpu")
    with pytest.raises(ValueError, match="spatial_pooling"):
        explain_report(blind, tiny_volume(), QUESTION, ANSWER)


def test_path_maps_lie_on_the_same_blocks(reader):
    forced = force_answer(reader, tiny_volume(), QUESTION, ANSWER)
    grid = lay_blocks(forced.volume, reader.processor.image_processor, (4, 8, 8))
    assert path_maps(forced, grid).shape == (3, *grid.shape)


@pytest.mark.parametrize("text", ["", "FINDINGS:\n\nIMPRESSION:", "Findings: "])
def test_headings_alone_are_no_sentences(text):
    assert split_sentences(text) == ()


# ------------------------------------------------------------------------------------------------- faithfulness


class OneBlock:
    """A model whose likelihood is the mean of the pixels in one block."""

    def __init__(self, forced, place):
        self.forced, self.place = forced, place

    def sentence_likelihoods(self, pixels):
        frame, slab, row, column = self.place
        slices = pixels[:, frame, slab * 4 : slab * 4 + 4]
        block = slices[:, :, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
        return block.mean(dim=(1, 2, 3))[:, None]


def test_a_map_is_confirmed_where_its_block_decides_and_not_elsewhere(reader, monkeypatch):
    forced = force_answer(reader, tiny_volume(), QUESTION, "Large.")
    grid = lay_blocks(forced.volume, reader.processor.image_processor, (4, 8, 8))
    pixels = forced.inputs["pixel_values"].clone()
    pixels[0, 0, 0:4, 8:16, 16:24] = 5.0  # one block unlike its neighbours decides
    model = OneBlock(forced, (0, 0, 1, 2))
    monkeypatch.setattr(
        "hf_mu2.explain.faithfulness.occluded_likelihoods",
        lambda forced, grid, hidden: model.sentence_likelihoods(
            hide_blocks(pixels, torch.from_numpy(hidden), grid, reader.model.config.vision_config)
        ).numpy(),
    )
    monkeypatch.setattr(type(forced), "vision_hidden_states", pixels)
    monkeypatch.setattr(
        type(forced), "sentence_likelihoods", lambda self, pixels: model.sentence_likelihoods(pixels)
    )
    right, wrong = np.zeros((2, 1, *grid.shape), np.float32)
    right[0, 0, 1, 2] = 1
    wrong[0, 1, 2, 1] = 1
    confirmed, whole = check_faithfulness(forced, grid, right, num_draws=19)
    assert confirmed.is_confirmed and confirmed.top > 3 and whole.top == pytest.approx(confirmed.top)
    refuted = check_faithfulness(forced, grid, wrong, num_draws=19)[0]
    assert not refuted.is_confirmed and "NOT CONFIRMED" in refuted.describe()


def test_a_map_that_does_no_better_than_chance_is_not_confirmed():
    assert Faithfulness(3, 1.0, (0.1,) * 19).is_confirmed
    assert not Faithfulness(3, 1.0, (0.1,) * 10 + (2.0,) * 9).is_confirmed
    assert not Faithfulness(3, -1.0, (-2.0,) * 19).is_confirmed  # hiding it helps
    assert not Faithfulness(3, 0.05, (0.01,) * 19).is_confirmed  # it hardly matters


def test_too_few_draws_are_refused(reader):
    with pytest.raises(ValueError, match="at least 9"):
        explain_report(reader, tiny_volume(), QUESTION, ANSWER, num_draws=3)


def test_hidden_blocks_take_the_mean_of_visible_neighbours_and_nothing_else_moves(reader):
    forced = force_answer(reader, tiny_volume(), QUESTION, ANSWER)
    grid = lay_blocks(forced.volume, reader.processor.image_processor, (4, 8, 8))
    config = reader.model.config.vision_config
    pixels = torch.full_like(forced.inputs["pixel_values"], 0.25)
    hidden = torch.zeros(2, *grid.shape, dtype=torch.bool)
    hidden[1, 1, 1, 2] = True
    pixels[0, 0, 4:8, 8:16, 16:24] = 0.9
    same, changed = hide_blocks(pixels, hidden, grid, config)
    torch.testing.assert_close(same, pixels[0])
    torch.testing.assert_close(changed, torch.full_like(changed, 0.25))


# --------------------------------------------------------------------------------------------- pictures and files


def test_the_overlay_shows_heat_on_the_side_where_it_is():
    volume = tiny_volume()
    heat = np.zeros(volume.array.shape, np.float32)
    heat[6, 5:10, 2:8] = 1  # posterior and left in RAS: low in the picture, and on its right
    picture = np.asarray(overlay(volume, heat, "axial", 6), float)
    warmth = picture[..., 0] - picture[..., 2]
    row, column = np.unravel_index(warmth.argmax(), warmth.shape)
    assert row > 0.6 * warmth.shape[0] and column > 0.6 * warmth.shape[1]
    without = np.asarray(overlay(volume, heat, "axial", 2), float)
    assert np.ptp(without, axis=-1).max() == 0  # grey


def test_overlays_keep_the_proportions_of_the_patient():
    volume = tiny_volume(shape=(12, 40, 44), spacing=(3.0, 2.0, 1.0))
    heat = np.zeros(volume.array.shape, np.float32)
    sizes = {
        plane: overlay(volume, heat, plane, 5, size=300).size for plane in ("axial", "coronal", "sagittal")
    }
    assert sizes == {"axial": (165, 300), "coronal": (300, 245), "sagittal": (300, 135)}


@pytest.mark.parametrize(
    ("plane", "index", "shape"), [("oblique", 0, None), ("axial", 12, None), ("axial", 0, (2, 2, 2))]
)
def test_an_impossible_overlay_is_refused(plane, index, shape):
    volume = tiny_volume()
    heat = np.zeros(shape or volume.array.shape, np.float32)
    with pytest.raises(ValueError):
        overlay(volume, heat, plane, index)


def test_saved_maps_are_those_of_the_explanation(explanation, tmp_path):
    files = explanation.save(tmp_path / "out")
    stored = nib.load(files["sentence_01.nii.gz"])
    heat = explanation.sentences[0].heat
    np.testing.assert_allclose(
        stored.get_fdata().transpose(2, 1, 0), heat, atol=np.abs(heat).max() / 30000 + 1e-9
    )
    with Image.open(files["answer.png"]) as picture:
        assert picture.width > 900
    record = json.loads(files["evidence.json"].read_text())
    assert next(iter(record)) == "notice" and len(record["sentences"]) == 3
    assert record["sentences"][0]["faithfulness"]["num_draws"] == 9
    assert QUESTION not in files["evidence.json"].read_text()  # people's own words may name a patient


def test_the_command_prints_a_test_of_every_map(checkpoint, tmp_path):
    nib.save(tiny_nifti(), tmp_path / "volume.nii.gz")
    (tmp_path / "answer.txt").write_text(ANSWER)
    arguments = ["explain", str(tmp_path / "volume.nii.gz"), "--out", str(tmp_path / "out")]
    arguments += ["--model", str(checkpoint), "--answer", str(tmp_path / "answer.txt"), "--draws", "9"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.output.count("top blocks costs") == 4
    assert {"answer.nii.gz", "sentence_03.png", "evidence.json", "soft_prompts.md", "soft_prompts.png"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }

"""A visit: open a study, ask, ask on, see what a sentence rests on, take files along."""

import dataclasses
import gzip
import itertools
import json

import nibabel as nib
import numpy as np
import pytest

from hf_mu2.demo.conversation import history_of
from hf_mu2.demo.desk import Desk
from hf_mu2.demo.downloads import available, make_download, run_record
from hf_mu2.demo.page import downloads_html, labels_of, talk_html, viewer_value
from hf_mu2.model.processing_mu2 import DEFAULT_QUESTION
from hf_mu2.model.volume_mu2 import VolumeError, load_volume

from .conftest import LIMITS

QUESTION = "Is the heart of Jane Doe enlarged?"


def finish(steps) -> list:
    return list(steps)


@pytest.fixture(scope="module")
def visit(desk, phantom_bytes):
    """A visitor who asked for the report and then asked on."""
    session = desk.sessions.of("visit")
    path = desk.sessions.uploads / "visit" / "DOE_JANE.nii"
    path.parent.mkdir()
    path.write_bytes(phantom_bytes)
    desk.open_upload(session, path)
    finish(desk.ask(session, ""))
    finish(desk.explain(session))
    finish(desk.ask(session, QUESTION))
    finish(itertools.islice(desk.explain(session), 2))  # the maps, without their check
    return session


def test_the_answer_grows_and_is_that_of_the_command_line(desk, reader, upload, phantom_bytes):
    session = desk.sessions.of("growing")
    desk.open_upload(session, upload())
    texts = [turn.replies[0].text for turn in desk.ask(session, "")]
    assert len(set(texts)) > 5 and all(
        later.startswith(earlier.strip()) for earlier, later in itertools.pairwise(texts)
    )
    volume = load_volume(phantom_bytes)
    prompt = reader.prepare([reader.processor.build_messages(volume)])
    answer = reader.answer(prompt, LIMITS.max_new_tokens)[0]
    assert texts[-1] == answer.text
    assert session.turns[0].replies[0].finish_reason == answer.finish_reason


def test_a_follow_up_shows_the_volume_again_beside_its_own_question(desk, reader, visit):
    history = history_of(visit.turns[:1], reader.name)
    assert [message["role"] for message in history] == ["user", "assistant"]
    assert (
        history[0]["content"] == DEFAULT_QUESTION and history[1]["content"] == visit.turns[0].replies[0].text
    )
    conversation = [*history, *reader.processor.build_messages(visit.volume, question=QUESTION)]
    inputs = reader.prepare([conversation])
    rows, mask = reader.model.model.find_questions(inputs["input_ids"], 1)
    assert reader.processor.tokenizer.decode(rows[0][mask[0]]).strip() == QUESTION
    expected = reader.answer(inputs, LIMITS.max_new_tokens)[0]
    assert visit.turns[1].replies[0].text == expected.text


def test_whoever_stops_keeps_what_was_said(desk, upload):
    session = desk.sessions.of("stopping")
    desk.open_upload(session, upload())
    answers = desk.ask(session, "")
    while not next(answers).replies[0].text:
        pass
    answers.close()
    for turn in desk.ask(session, ""):
        if turn.replies[0].text:
            session.stop.set()
    for reply in (turn.replies[0] for turn in session.turns):
        assert 0 < len(reply.text) < 60 and reply.finish_reason == "stopped"
    assert finish(desk.explain(session)) == []


def test_two_models_answer_side_by_side_each_with_its_own_history(reader, phantom_bytes):
    other = dataclasses.replace(reader, name="another")
    desk = Desk([reader, other], LIMITS)
    try:
        session = desk.sessions.of("comparing")
        path = desk.sessions.uploads / "0" / "volume.nii"
        path.parent.mkdir()
        path.write_bytes(phantom_bytes)
        desk.open_upload(session, path)
        finish(desk.ask(session, "", desk.models))
        first, second = session.turns[0].replies
        assert (first.model, second.model) == (reader.name, "another") and first.text == second.text != ""
        assert len(history_of(session.turns, "another")) == 2
        assert 'data-count="2"' in talk_html(session)
    finally:
        desk.close()


def test_a_sentence_leads_to_its_slices_and_its_heat(desk, visit):
    sentence, focus = desk.select(visit, 0, 0, 1)
    assert focus["axial"] == sentence.key_slices[0]
    in_slice = sentence.heat[focus["axial"]]
    assert in_slice[focus["coronal"], focus["sagittal"]] == pytest.approx(in_slice.max(), rel=0.02)
    assert visit.heat.shape == visit.volume.array.shape and visit.heat.max() == 255
    value = viewer_value(visit, True, focus)
    assert value["focus"] == focus and value["heat"]["slices"] == sentence.key_slices[:3]
    assert "hiding its" in value["heat"]["check"]  # no map without its check
    assert 'aria-pressed="true"' in talk_html(visit)
    json.dumps(value)


@pytest.mark.parametrize("place", [(0, 0, 999), (-1, 0, 0), (9, 0, 0), (0, 3, 0)])
def test_a_sentence_that_is_not_there_is_refused(desk, visit, place):
    with pytest.raises(ValueError, match="A sentence must belong"):
        desk.select(visit, *place)


def test_every_sentence_that_states_a_finding_has_a_confidence_or_an_agreement(visit):
    reply = visit.turns[0].replies[0]
    assert [sentence.span for sentence in reply.assessed] == [s.span for s in reply.evidence.sentences]
    assert any(sentence.agreement is not None for sentence in reply.assessed)
    assert "mu2-sure" in talk_html(visit)


def test_downloads_hold_the_answer_and_neither_a_name_nor_a_path(desk, visit):
    desk.select(visit, 0, 0, 0)
    files = {name: make_download(desk, visit, name) for name in available(visit)}
    assert set(files) == {"report.txt", "report.pdf", "heat_map.nii.gz", "run.json"}
    answer = visit.turns[0].replies[0].text
    assert answer in files["report.txt"].decode() and desk.notice in files["report.txt"].decode()
    assert files["report.pdf"].startswith(b"%PDF")
    heat = nib.Nifti1Image.from_bytes(gzip.decompress(files["heat_map.nii.gz"]))
    assert nib.aff2axcodes(heat.affine) == ("L", "P", "S")  # the grid of the file that came
    record = json.loads(files["run.json"])
    assert record["turns"][0]["question"] == DEFAULT_QUESTION and record["turns"][1]["question"] == "QUESTION"
    for name in ("report.pdf", "heat_map.nii.gz", "run.json"):
        assert b"DOE_JANE" not in files[name] and str(visit.folder).encode() not in files[name]
    assert make_download(desk, visit, "volume.npy") is None and make_download(desk, visit, "../x") is None


def test_a_study_without_an_answer_offers_nothing(desk, upload):
    session = desk.sessions.of("silent")
    desk.open_upload(session, upload())
    assert available(session) == () and downloads_html(session, ()) == ""


def test_a_refused_upload_leaves_no_study_and_no_file(desk, upload):
    session = desk.sessions.of("refused")
    desk.open_upload(session, upload())
    path = upload(b"nonsense")
    with pytest.raises(VolumeError):
        desk.open_upload(session, path)
    assert session.volume is None and not path.exists() and list(session.folder.iterdir()) == []
    with pytest.raises(ValueError, match="must be open"):
        finish(desk.ask(session, ""))


def test_what_is_said_is_shown_as_text_never_as_markup(desk, visit):
    session = dataclasses.replace(visit, caveats=["<img src=x onerror=alert(1)>"])
    session.turns = [dataclasses.replace(visit.turns[0], question="<script>alert(1)</script>", replies=[])]
    page = talk_html(session, problem='"><b>x')
    assert "<script>" not in page and "<img" not in page and "<b>" not in page


def test_questions_are_limited_and_models_are_known(desk, upload):
    session = desk.sessions.of("asking")
    desk.open_upload(session, upload())
    with pytest.raises(ValueError, match="characters"):
        finish(desk.ask(session, "x" * (LIMITS.question_chars + 1)))
    with pytest.raises(ValueError, match="A model must be one of"):
        finish(desk.ask(session, "", ["nobody"]))
    assert session.turns == []


def test_a_volume_of_another_region_is_shown_with_a_warning(desk):
    session = desk.sessions.of("elsewhere")
    volume = load_volume(
        np.pad(np.full((12, 30, 40), 40, np.int16), 5, constant_values=-1000), spacing=(4, 8, 8)
    )
    desk._show(session, volume, None, [])
    assert any("Out of domain" in caveat for caveat in session.caveats) and "Out of domain" in talk_html(
        session
    )


def test_labels_say_the_strongest_that_is_said():
    labels = labels_of("No pleural effusion on the left. Right pleural effusion. Possible emphysema.")
    assert labels["Pleural effusion"] == "positive" and labels["Emphysema"] == "uncertain"


def test_the_record_names_model_revision_and_versions(desk, reader, visit):
    record = run_record(desk, visit)
    assert record["turns"][0]["model_revision"] == reader.revision and "torch" in record["versions"]
    assert record["notice"] == desk.notice

"""The question files of CT-RATE: read in blocks, taken apart, damage told."""

import json
import tracemalloc

import pytest

from hf_mu2.data.corpus import CorpusError, Drops
from hf_mu2.data.ct_rate_names import volume_key
from hf_mu2.data.ct_rate_vqa import VqaIndex, read_item
from hf_mu2.data.json_records import JsonRecords


def item(question: str, answer: str, kind: str = "", image: str = "train_1_a_1.nii.gz") -> dict:
    asked = {"from": "human", "type": kind, "value": f"<image>\n{question}"}
    return {"id": "0", "image": image, "conversations": [asked, {"from": "gpt", "value": answer}]}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_places_are_bytes_whatever_the_letters_and_however_blocks_fall(tmp_path, indent, bom):
    items = [item(f"Größe {n} µ² “{'x' * (n * 3_701 % 90_000)}”?", "ğ" * (n % 7) + ".") for n in range(120)]
    content = bom + json.dumps(items, ensure_ascii=False, indent=indent).encode()
    assert len(content) > 3 * 2**20  # several blocks
    (tmp_path / "x.json").write_bytes(content)
    with JsonRecords(tmp_path / "x.json") as records:
        assert [records.read(span) for _, span, _ in records.places()] == items


def test_lists_have_their_names_and_what_is_no_record_is_passed_over(tmp_path):
    document = {
        "licence": "x",
        "größe": {"a": [1]},
        "número": 12,
        "train": [{"n": 1}],
        "test": ["a", {"n": 2}],
    }
    (tmp_path / "x.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    with JsonRecords(tmp_path / "x.json") as records:
        assert [(name, record) for name, _, record in records.places()] == [
            ("train", {"n": 1}),
            ("test", {"n": 2}),
        ]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"1",
        b"[1]",
        b'[{"id": 1}',
        b'[{"id": 1}, {"id',
        b'[{"id": nought}]',
        b'{"train": [{"id": 1}]',
        b'{"train": [{"id": 1}}',
        b'{"train": [{"id": 1}], "te',
    ],
)
def test_a_damaged_file_is_told(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with (
        pytest.raises(CorpusError, match=r"complete JSON, in `x.json`"),
        VqaIndex(tmp_path / "x.json", volume_key, Drops()),
    ):
        pass


def test_a_large_file_is_never_held(tmp_path):
    path = tmp_path / "train_vqa.json"
    with path.open("w") as stream:
        stream.write("[")
        for n in range(4_000):
            stream.write(
                (n > 0) * ","
                + json.dumps(item("Where? " * 500, f"Here {n}.", image=f"train_{n + 1}_a_1.nii.gz"))
            )
        stream.write("]")
    assert path.stat().st_size > 14e6
    tracemalloc.start()
    with VqaIndex(path, volume_key, Drops()) as index:
        assert index.questions(["train_4000_a_1"])[0]["answer"] == "Here 3999."
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6


def test_questions_of_all_reconstructions_come_once_and_articles_are_noted(tmp_path):
    items = [
        item("Is it big?", "No."),
        item("Is it big?", "No.", image="train_1_a_2.nii.gz"),
        item("Where?", "Left.", image="train_1_a_2.nii.gz"),
        item("Other?", "Yes.", image="train_1_b_1.nii.gz"),
        {"id": "article_1", "conversations": []},
    ]
    (tmp_path / "vqa.json").write_text(json.dumps(items))
    drops = Drops()
    with VqaIndex(tmp_path / "vqa.json", volume_key, drops) as index:
        assert [q["question"] for q in index.questions(["train_1_a_1", "train_1_a_2"])] == [
            "Is it big?",
            "Where?",
        ]
        assert index.questions(["train_9_a_1"]) == []
    assert drops.notes == {"questions about an article, without a volume": 1}


def test_marks_go_and_kinds_stay():
    (question,) = read_item(item("Is there\n an effusion?<short_answer>", " Yes. "))
    assert question == {"question": "Is there an effusion?", "answer": "Yes.", "kind": "short_answer"}
    (question,) = read_item(item("Describe.<long_answer>", "Long.", kind="free_response"))
    assert question["kind"] == "long_answer"
    assert read_item(item("", "Yes.")) == [] and read_item(item("Is it?", " ")) == []


def test_a_conversation_gives_a_question_per_turn():
    turns = [
        ("human", "<image>\nWhat?"),
        ("gpt", "A nodule."),
        ("human", "Where?"),
        ("gpt", "Left."),
        ("human", "So?"),
    ]
    conversation = [{"from": who, "type": "conversation", "value": text} for who, text in turns]
    questions = read_item({"conversations": conversation})
    assert [(q["question"], q["answer"], q["kind"]) for q in questions] == [
        ("What?", "A nodule.", "long_answer"),
        ("Where?", "Left.", "long_answer"),
    ]


@pytest.mark.parametrize("answer", ["(b) Left lung", "b) Left lung", "(B)", "b", "Left lung"])
def test_a_multiple_choice_is_taken_apart(answer):
    text = "Where is it? (a) Right lung, (b) Left lung, (c) Heart<multiple_choice>"
    (question,) = read_item(item(text, answer, kind="multiple_choice"))
    assert question == {
        "question": "Where is it?",
        "options": ["Right lung", "Left lung", "Heart"],
        "answer": "Left lung",
        "kind": "multiple_choice",
    }


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Where? (a) Right (b) Left", "(d) Heart"),
        ("Where? (a) Right (c) Left", "(a) Right"),
        ("Where? (a) Right (b) Right", "(a) Right"),
        ("Where? Right or left", "Right"),
    ],
)
def test_a_multiple_choice_written_otherwise_stays_as_it_is(text, answer):
    (question,) = read_item(item(text, answer, kind="multiple_choice"))
    assert question == {"question": text, "answer": answer, "kind": "multiple_choice"}

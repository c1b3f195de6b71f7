"""The processor: every form of volume, placeholders, questions, and templates that cannot be told from answers."""

import json
from importlib.resources import files

import nibabel as nib
import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from PIL import Image

from hf_mu2.hub.chat_template import adapt_chat_template
from hf_mu2.model import processing_mu2
from hf_mu2.model.processing_mu2 import DEFAULT_QUESTION, Mu2Processor, find_question_end
from tests.tiny import (
    tiny_config,
    tiny_model,
    tiny_nifti,
    tiny_processor,
    tiny_tokenizer,
    tiny_volume,
)

KEYS = {"input_ids", "attention_mask", "pixel_values", "pixel_attention_mask"}


@pytest.fixture(scope="module")
def processor() -> Mu2Processor:
    return tiny_processor()


def encode(processor, *conversations, **kwargs):
    return processor.apply_chat_template(
        list(conversations),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, **kwargs},
    )


def turn(*volumes, text="Any nodule?", role="user"):
    return {
        "role": role,
        "content": [*({"type": "image", "image": v} for v in volumes), {"type": "text", "text": text}],
    }


def answer(text="No."):
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


# ------------------------------------------------------------------------------------------------ volumes and keys


def test_every_form_of_a_volume_gives_the_same_pixels(processor, tmp_path):
    image = tiny_nifti()
    nib.save(image, tmp_path / "ct.nii.gz")
    content = (tmp_path / "ct.nii.gz").read_bytes()
    forms = [
        image,
        tmp_path / "ct.nii.gz",
        str(tmp_path / "ct.nii.gz"),
        content,
        {"bytes": content, "path": None},
        {"bytes": None, "path": str(tmp_path / "ct.nii.gz")},
    ]
    expected = encode(processor, [turn(tiny_volume())])
    for form in forms:
        batch = encode(processor, [turn(form)])
        assert set(batch) == KEYS
        for key in KEYS:
            torch.testing.assert_close(batch[key], expected[key])


def test_a_part_may_name_its_volume_by_path(processor, tmp_path):
    nib.save(tiny_nifti(), tmp_path / "ct.nii.gz")
    part = {"type": "image", "path": str(tmp_path / "ct.nii.gz")}
    batch = encode(processor, [{"role": "user", "content": [part, {"type": "text", "text": "Any nodule?"}]}])
    torch.testing.assert_close(
        batch["pixel_values"], encode(processor, [turn(tiny_volume())])["pixel_values"]
    )


def test_the_nifti_feature_of_datasets_passes(processor, tmp_path):
    datasets = pytest.importorskip("datasets")
    nib.save(tiny_nifti(), tmp_path / "ct.nii.gz")
    features = datasets.Features({"images": datasets.List(datasets.Nifti())})
    rows = datasets.Dataset.from_dict({"images": [[str(tmp_path / "ct.nii.gz")]]}, features=features)
    batch = processor(images=[rows[0]["images"]], text=["<|image|>x"], return_tensors="pt")
    torch.testing.assert_close(
        batch["pixel_values"], encode(processor, [turn(tiny_volume())])["pixel_values"]
    )


def test_arrays_take_their_spacing_from_the_call(processor):
    volume = tiny_volume()
    for array in (np.asarray(volume.array), torch.tensor(volume.array), volume.array.tolist()):
        batch = processor(
            images=[[array]], text=["<|image|>x"], return_tensors="pt", array_spacing=volume.spacing
        )
        expected = processor(images=[[volume]], text=["<|image|>x"], return_tensors="pt")
        torch.testing.assert_close(batch["pixel_values"], expected["pixel_values"])


def test_pillow_images_pass_as_one_slice(processor):
    batch = encode(processor, [turn(Image.new("RGB", (16, 16)))])
    assert batch["pixel_attention_mask"].sum() == 1


def test_rows_may_hold_no_one_or_two_volumes(processor):
    batch = encode(
        processor,
        [turn(text="Hello")],
        [turn(tiny_volume())],
        [turn(tiny_volume(1)), answer(), turn(tiny_volume(2), text="And now?")],
    )
    assert set(batch) == KEYS
    assert len(batch["pixel_values"]) == 3
    num_placeholders = (batch["input_ids"] == processor.image_token_id).sum(1)
    assert num_placeholders.tolist() == [0, 8, 16]
    assert not batch["attention_mask"][0, 0] and batch["attention_mask"][:, -1].all()  # padded on the left


def test_text_alone_gives_no_pixels(processor):
    assert set(encode(processor, [turn()], [turn(text="Longer question?")])) == {
        "input_ids",
        "attention_mask",
    }
    assert set(processor(text="abc", images=[], padding=True)) == {"input_ids", "attention_mask"}
    assert set(processor(text=["a", "b"], images=[[], []])) == {"input_ids", "attention_mask"}


def test_volumes_alone_give_pixels(processor):
    assert set(processor(images=tiny_volume(), return_tensors="pt")) == {
        "pixel_values",
        "pixel_attention_mask",
    }


def test_augmentation_and_provenance_reach_the_image_processor(processor):
    inputs = {"images": [tiny_volume()], "text": ["<|image|>x"], "return_tensors": "pt"}
    plain = processor(**inputs)["pixel_values"]
    augmented = processor(**inputs, augment=True, seed=1, epoch=2, study_ids=["a"], return_provenance=True)
    assert not torch.equal(plain, augmented["pixel_values"])
    assert "augmentation" in augmented["provenance"][0]


@pytest.mark.parametrize(
    ("images", "text", "message"),
    [
        ([tiny_volume()], ["no placeholder"], "0 for 1 volumes"),
        (None, ["<|image|>"], "1 for 0 volumes"),
        ([[tiny_volume(), tiny_volume()], []], ["<|image|>", "<|image|>"], "2 volumes in row 0"),
        ([[None], [tiny_volume()]], ["<|image|>", "<|image|>"], "holds `None`"),
        (None, None, "got neither"),
        (None, [[{"role": "user", "content": "x"}]], "apply_chat_template"),
    ],
)
def test_mismatches_are_refused_and_named(processor, images, text, message):
    with pytest.raises(ValueError, match=message):
        processor(images=images, text=text)


def test_truncated_placeholders_are_refused(processor):
    with pytest.raises(ValueError, match="max_length"):
        processor(images=[tiny_volume()], text=["<|image|>x"], truncation=True, max_length=4)


def test_a_placeholder_of_several_tokens_is_refused(processor):
    with pytest.raises(ValueError, match="must be one token"):
        Mu2Processor(processor.image_processor, tiny_tokenizer(), image_token="<im_patch>")


# ----------------------------------------------------------------------------------------------------- conversations


def test_context_stands_between_the_volume_and_the_question(processor):
    messages = processor.build_messages(
        tiny_volume(), indication=" Cough. ", technique="No contrast.", prior_report="Clear."
    )
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert text == (
        "<|bos|><|user|><|image|>Indication: Cough.\nTechnique: No contrast.\nPrior report: Clear.\n"
        f"{DEFAULT_QUESTION}<|end|><|assistant|>"
    )
    messages = processor.build_messages([tiny_volume(), tiny_volume(1)], question="What changed?")
    assert [part["type"] for part in messages[0]["content"]] == ["image", "image", "text"]
    assert messages[0]["content"][-1]["text"] == "What changed?"


def test_content_may_be_a_string_or_parts(processor):
    as_strings = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes"},
    ]
    as_parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in as_strings]
    expected = "<|bos|><|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>Yes<|end|>"
    assert processor.apply_chat_template(as_strings) == expected
    assert processor.apply_chat_template(as_parts) == expected


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18"),
    reason="transformers misplaces the mask behind a volume",
)
def test_the_answer_mask_covers_answers_and_their_ends_only(processor):
    conversation = [turn(tiny_volume()), answer("One."), turn(text="Sure?"), answer("Two.")]
    batch = processor.apply_chat_template(
        conversation,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
    )
    marked = batch["input_ids"][batch["assistant_masks"].bool()]
    assert processor.tokenizer.decode(marked) == "One.<|end|>Two.<|end|>"


def test_the_answer_mask_is_refused_where_transformers_misplaces_it(processor, monkeypatch):
    conversation = [turn(tiny_volume()), answer("One.")]
    monkeypatch.setattr(transformers, "__version__", "5.17.3")
    with pytest.raises(ValueError, match=r"needs transformers 5\.18 .* got 5\.17\.3\. Upgrade"):
        processor.apply_chat_template(conversation, tokenize=True, return_assistant_tokens_mask=True)
    assert "One." in processor.apply_chat_template(conversation)


def test_returned_questions_are_those_the_model_finds(processor):
    model = tiny_model()
    conversations = [
        [turn(text="No volume")],
        [turn(tiny_volume())],
        [turn(tiny_volume(1), text="First?"), answer(), turn(tiny_volume(2), text="And then?")],
        [turn(tiny_volume(1), tiny_volume(2), text="Both?")],
    ]
    batch = encode(processor, *conversations, return_question_ids=True)
    rows, mask = model.model.find_questions(batch["input_ids"], len(batch["pixel_values"]))
    for i in range(len(rows)):
        expected = rows[i][mask[i]].tolist()
        found = batch["question_input_ids"][i][batch["question_attention_mask"][i].bool()].tolist()
        assert found == expected and expected
    with torch.inference_mode():
        given = model(**batch).logits
        batch.pop("question_input_ids"), batch.pop("question_attention_mask")
        torch.testing.assert_close(model(**batch).logits, given)


def test_the_template_is_read_once_and_again_when_it_changes(monkeypatch):
    processor, reads = tiny_processor(), []
    read = processing_mu2._read_question_end
    monkeypatch.setattr(processing_mu2, "_read_question_end", lambda *args: reads.append(1) or read(*args))
    inputs = {"images": [tiny_volume()], "text": ["<|user|><|image|>x<|end|><|assistant|>"]}
    for _ in range(3):
        questions = processor(**inputs, return_question_ids=True)["question_input_ids"]
    assert len(reads) == 1 and processor.tokenizer.decode(questions[0]) == "x"
    processor.chat_template = processor.chat_template.replace("<|assistant|>", "<|system|>")
    with pytest.raises(ValueError, match="Restore the template"):
        processor(**inputs, return_question_ids=True)


# ---------------------------------------------------------------------------------------------- the end of a question


def published_template(name: str) -> str:
    """A language model's own template, as TRL ships it."""
    pytest.importorskip("trl")
    return (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def tokenizer_with(template: str, special: list[str], eos: str, bos: str | None = None):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(special, special_tokens=True)
    tokenizer.chat_template, tokenizer.eos_token, tokenizer.bos_token = template, eos, bos
    return tokenizer


LLAMA = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
FORMATS = {
    "llama3_2": (LLAMA, "<|eot_id|>", "<|begin_of_text|>"),
    "llama3": (LLAMA, "<|eot_id|>", "<|begin_of_text|>"),
    "qwen3": (["<|im_start|>", "<|im_end|>", "<think>", "</think>"], "<|im_end|>", None),
    "qwen3_instruct_2507": (["<|im_start|>", "<|im_end|>"], "<|im_end|>", None),
    "phi3": (["<|user|>", "<|end|>", "<|assistant|>", "<|endoftext|>"], "<|endoftext|>", None),
    "gemma": (["<bos>", "<start_of_turn>", "<end_of_turn>"], "<bos>", "<bos>"),
}
TALK = [
    {"role": "user", "content": "How is\nthe heart?"},
    {"role": "assistant", "content": "Large."},
    {"role": "user", "content": "Sure?"},
]


@pytest.mark.parametrize("name", FORMATS)
def test_adapted_templates_write_what_the_language_model_expects(name):
    tokenizer = tokenizer_with(published_template(name), *FORMATS[name])
    template = adapt_chat_template(tokenizer)

    def render(messages, chat_template=None, **kwargs):
        return tokenizer.apply_chat_template(
            messages, chat_template=chat_template, tokenize=False, date_string="26 Jul 2024", **kwargs
        )

    if (
        name == "qwen3"
    ):  # its own template drops the empty block of thoughts from earlier turns, ours keeps it
        own = render(TALK[:1], add_generation_prompt=True, enable_thinking=False)
        assert render(TALK[:1], template, add_generation_prompt=True) == own
        assert render(TALK[:2], template) == render(TALK[:2])
    else:
        assert render(TALK, template, add_generation_prompt=True) == render(TALK, add_generation_prompt=True)
        assert render(TALK[:2], template) == render(TALK[:2]).removesuffix("<|endoftext|>")
    if name != "gemma":
        system = [{"role": "system", "content": "Be brief."}, *TALK[:1]]
        assert render(system, template) == render(system).removesuffix("<|endoftext|>")
    # A prompt is a prefix of every conversation that goes on from it.
    for length in (1, 3):
        whole = [*TALK[:length], {"role": "assistant", "content": "Yes."}]
        prompt = render(TALK[:length], template, add_generation_prompt=True)
        assert render(whole, template).startswith(prompt)


@pytest.mark.parametrize("name", FORMATS)
def test_the_end_of_a_question_never_ends_an_answer(name):
    tokenizer = tokenizer_with(published_template(name), *FORMATS[name])
    template = adapt_chat_template(tokenizer)
    end = find_question_end(tokenizer, template)
    assert len(end) >= 2

    def count(messages, **kwargs):
        ids = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=True, return_dict=False, **kwargs
        )
        return sum(ids[i : i + len(end)] == end for i in range(len(ids)))

    assert count(TALK[:1], add_generation_prompt=True) == 1
    assert count(TALK[:2]) == 1
    assert count(TALK, add_generation_prompt=True) == 2
    for text in ("\n\nstarts with space", "1", " ", "<think>"):
        assert count([TALK[0], {"role": "assistant", "content": text}]) == 1
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    assert end[0] in special


def test_the_presets_hold_the_end_that_is_found():
    assert find_question_end(tiny_processor()) == list(tiny_config().question_end_token_ids)


def test_a_base_model_gets_a_plain_template():
    tokenizer = tokenizer_with(None, ["<|endoftext|>"], "<|endoftext|>")
    tokenizer.chat_template = None
    template = adapt_chat_template(tokenizer)
    text = tokenizer.apply_chat_template(
        TALK, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert text.startswith("User: How is") and text.endswith("<|endoftext|>\nAssistant: ")
    assert tokenizer.decode(find_question_end(tokenizer, template)).startswith("<|endoftext|>\nA")
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="special token"):
        adapt_chat_template(tokenizer)


TEMPLATES_WITHOUT_AN_END = {
    "nothing opens the answer": (
        "{% for m in messages %}{{ m['content'] + '<|end|>' }}{% endfor %}",
        "something between a question and its answer",
    ),
    "the turn ends in plain text": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + ' END ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
        "must end in a special token",
    ),
    "answers are followed by what follows questions": (
        "{% for m in messages %}{{ '<|user|>' + m['content'] + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|user|>' }}{% endif %}",
        "never follows an answer",
    ),
    "the turns are plain text": (
        "{% for m in messages %}{{ m['content'] + '\\n' }}{% endfor %}",
        "must end in a special token",
    ),
}


@pytest.mark.parametrize("name", TEMPLATES_WITHOUT_AN_END)
def test_a_template_without_a_valid_end_is_refused_at_save(processor, tmp_path, name):
    template, message = TEMPLATES_WITHOUT_AN_END[name]
    broken = Mu2Processor(processor.image_processor, tiny_tokenizer(), 8, None, chat_template=template)
    with pytest.raises(ValueError, match=message):
        broken.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stored", [[4], [4, 2], [4, 3, 9]])
def test_stored_ids_that_contradict_the_template_are_refused_at_save(processor, tmp_path, stored):
    broken = Mu2Processor(
        processor.image_processor, tiny_tokenizer(), 8, stored, chat_template=processor.chat_template
    )
    with pytest.raises(ValueError, match="question_end_token_ids"):
        broken.save_pretrained(tmp_path)


def test_what_is_saved_is_what_was_made(processor, tmp_path):
    processor.save_pretrained(tmp_path / "first")
    saved = json.loads((tmp_path / "first" / "processor_config.json").read_text())
    assert saved["num_query_tokens"] == 8 and saved["question_end_token_ids"] == [4, 3]
    again = Mu2Processor.from_pretrained(tmp_path / "first")
    again.save_pretrained(tmp_path / "second")
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name
    batch, expected = (encode(p, [turn(tiny_volume())]) for p in (again, processor))
    for key in KEYS:
        torch.testing.assert_close(batch[key], expected[key])

"""The whole model: questions from `input_ids`, masks, merging, memory and compilation."""

from functools import partial

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError

from hf_mu2.model.configuration_mu2 import PRESETS, Mu2Config
from hf_mu2.model.modeling_mu2 import Mu2ForConditionalGeneration, Mu2Model
from hf_mu2.model.modeling_mu2_vision import Mu2VisionModel
from tests.tiny import tiny_config

# Ids of the tiny tokenizer: padding 0, start 1, user 2, assistant 3, end of turn 4, volume 5, text from 7.
PAD, BOS, USER, ASSISTANT, END = 0, 1, 2, 3, 4
VOLUME = [5] * 8
QUESTION, OTHER_QUESTION, ANSWER, OTHER_ANSWER = [20, 21, 22], [30, 31], [40, 41, 42, 43], [50, 51]


def ids(*parts) -> torch.Tensor:
    return torch.tensor([[token for part in parts for token in (part if isinstance(part, list) else [part])]])


@pytest.fixture
def model() -> Mu2ForConditionalGeneration:
    torch.manual_seed(0)
    return Mu2ForConditionalGeneration(tiny_config()).eval()


def volumes(count: int, frames: int = 2) -> torch.Tensor:
    return torch.rand(count, frames, 8, 32, 32, generator=torch.Generator().manual_seed(1))


def questions(model, input_ids: torch.Tensor, count: int = 1) -> list[list[int]]:
    rows, mask = model.model.find_questions(input_ids, count)
    return [row[m].tolist() for row, m in zip(rows, mask)]


@pytest.mark.parametrize(
    ("input_ids", "count", "expected"),
    [
        (ids(BOS, USER, VOLUME, QUESTION, END, ASSISTANT, ANSWER, END), 1, [QUESTION]),
        (ids(PAD, PAD, BOS, USER, VOLUME, QUESTION, END, ASSISTANT), 1, [QUESTION]),
        # Text before the volume is no question; text between two volumes of a turn is.
        (ids(BOS, USER, OTHER_QUESTION, VOLUME, QUESTION, END, ASSISTANT), 1, [QUESTION]),
        (ids(USER, VOLUME, OTHER_QUESTION, VOLUME, QUESTION, END, ASSISTANT), 2, [OTHER_QUESTION + QUESTION, QUESTION]),
        # Each volume takes the question of its own turn.
        (
            ids(USER, VOLUME, QUESTION, END, ASSISTANT, ANSWER, END, USER, VOLUME, OTHER_QUESTION, END, ASSISTANT),
            2,
            [QUESTION, OTHER_QUESTION],
        ),
        # A plain prompt, a truncated one, and prompts that lack an end of turn: nothing that follows may be read.
        (ids(BOS, VOLUME, QUESTION, ANSWER), 1, [[]]),
        (ids(BOS, USER, VOLUME, QUESTION), 1, [[]]),
        (ids(BOS, USER, VOLUME, QUESTION, END), 1, [[]]),
        (ids(BOS, USER, VOLUME, QUESTION, ANSWER, END), 1, [[]]),
        (ids(BOS, USER, VOLUME, QUESTION, ASSISTANT, ANSWER, END), 1, [[]]),
        (ids(USER, VOLUME, QUESTION, ANSWER, END, USER, OTHER_QUESTION, END, ASSISTANT, OTHER_ANSWER), 1, [[]]),
    ],
)  # fmt: skip
def test_the_question_is_the_rest_of_the_user_turn_or_nothing(model, input_ids, count, expected):
    assert questions(model, input_ids, count) == expected


LEAK_CASES = {
    "plain chat": (ids(BOS, USER, VOLUME, QUESTION, END, ASSISTANT, ANSWER, END), 1, [ANSWER]),
    "no end of turn": (ids(BOS, USER, VOLUME, QUESTION, ASSISTANT, ANSWER, END), 1, [ANSWER]),
    "no template": (ids(BOS, VOLUME, QUESTION, ANSWER, END), 1, [ANSWER]),
    "truncated before the turn ends": (ids(BOS, USER, VOLUME, QUESTION[:2]), 1, []),
    "two volumes in two turns": (
        ids(
            [USER, *VOLUME, *QUESTION, END, ASSISTANT, *ANSWER, END],
            [USER, *VOLUME, *OTHER_QUESTION, END, ASSISTANT, *OTHER_ANSWER],
        ),
        2,
        [ANSWER, OTHER_ANSWER],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LEAK_CASES)
def test_no_answer_token_moves_the_visual_tokens(model, name):
    """The gradient of V' with respect to every answer token is exactly zero."""
    input_ids, count, answers = LEAK_CASES[name]
    embeds = model.get_input_embeddings()(input_ids).detach().requires_grad_()
    model.model.language_model.set_input_embeddings(FixedEmbedding(input_ids, embeds))
    rows, mask = model.model.find_questions(input_ids, count)
    features = model.model.get_image_features(volumes(count), None, rows, mask)
    features.square().sum().backward()
    gradient = torch.zeros_like(embeds) if embeds.grad is None else embeds.grad
    moved = {token for token, g in zip(input_ids[0].tolist(), gradient[0]) if g.abs().sum() > 0}
    assert moved.isdisjoint({token for answer in answers for token in answer})
    assert moved == {token for row, m in zip(rows, mask) for token in row[m].tolist()}


class FixedEmbedding(torch.nn.Module):
    """Embeds rows of one sequence by position, so that gradients of its tokens can be read one by one."""

    def __init__(self, input_ids, embeds):
        super().__init__()
        self.input_ids, self.embeds = input_ids, embeds
        self.weight = torch.nn.Parameter(torch.zeros(1, embeds.shape[-1]))

    def forward(self, input_ids):
        assert (input_ids == self.input_ids).all()
        return self.embeds.expand(len(input_ids), -1, -1)


def test_another_question_moves_the_visual_tokens(model):
    prompts = [ids(USER, VOLUME, question, END, ASSISTANT) for question in (QUESTION, QUESTION[::-1] + [60])]
    aggregator = model.model.mu2_tokenizer.aggregator
    with torch.no_grad():
        for attention in (aggregator.layers[0].text_attention, aggregator.aggregation):
            attention.query.weight *= 20  # attention is nearly uniform at initialisation
        one, other = (model.model.embed_inputs(prompt, volumes(1))[1] for prompt in prompts)
    assert (one - other).abs().max() > 1e-4


def test_the_output_has_the_length_of_the_input(model):
    input_ids = ids(BOS, USER, VOLUME, QUESTION, END, ASSISTANT, ANSWER, END)
    output = model.model(input_ids=input_ids, pixel_values=volumes(1))
    assert output.last_hidden_state.shape[1] == input_ids.shape[1]
    assert output.image_hidden_states.shape == (1, 8, 64)


@pytest.mark.parametrize("input_ids", [ids(USER, VOLUME[:5], QUESTION), ids(USER, VOLUME, VOLUME, QUESTION)])
def test_placeholders_that_do_not_fit_the_volumes_are_refused(model, input_ids):
    with pytest.raises(ValueError, match="Image features and image tokens do not match"):
        model(input_ids=input_ids, pixel_values=volumes(1))


def test_placeholders_without_volumes_are_refused(model):
    prompt = ids(BOS, USER, VOLUME, QUESTION, END, ASSISTANT)
    for call in (model, model.model, partial(model.generate, max_new_tokens=2)):
        with pytest.raises(ValueError, match=r"Image features .* features: 0 .*dropped `images` column"):
            call(input_ids=prompt)


def test_text_alone_and_a_prompt_given_again_with_its_cache_pass(model):
    prompt = ids(BOS, USER, VOLUME, QUESTION, END, ASSISTANT)
    with torch.no_grad():
        model(input_ids=ids(BOS, USER, QUESTION, END), labels=ids(BOS, USER, QUESTION, END))
        cache = model(input_ids=prompt, pixel_values=volumes(1), use_cache=True).past_key_values
        model(input_ids=prompt, past_key_values=cache)


def test_frames_of_another_size_are_refused(model):
    with pytest.raises(ValueError, match="image processor saved beside this checkpoint"):
        model(input_ids=ids(USER, VOLUME), pixel_values=torch.rand(1, 2, 8, 16, 16))


def test_a_padded_frame_or_slab_changes_no_logit_even_when_it_holds_nan(model):
    rows = torch.cat([ids(BOS, USER, VOLUME, QUESTION, END, ASSISTANT, ANSWER)] * 2)
    pixels, mask = volumes(2, frames=3), torch.ones(2, 3, 2, dtype=torch.bool)
    mask[1, 1, 1] = mask[1, 2] = False
    pixels[1, 1, 4:] = pixels[1, 2] = float("nan")
    with torch.no_grad():
        batch = model(input_ids=rows, pixel_values=pixels, pixel_attention_mask=mask).logits
        alone = model(
            input_ids=rows[1:], pixel_values=pixels[1:, :2], pixel_attention_mask=mask[1:, :2]
        ).logits
        first = model(input_ids=rows[:1], pixel_values=pixels[:1]).logits
    torch.testing.assert_close(batch[1:], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(batch[:1], first, atol=1e-5, rtol=1e-5)


def test_masked_slabs_leave_every_gradient_finite(model):
    pixels, mask = volumes(1, frames=2), torch.ones(1, 2, 2, dtype=torch.bool)
    mask[0, 1] = False
    pixels[0, 1] = float("nan")
    input_ids = ids(BOS, USER, VOLUME, QUESTION, END, ASSISTANT, ANSWER)
    model(
        input_ids=input_ids, pixel_values=pixels, pixel_attention_mask=mask, labels=input_ids
    ).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("frames_per_chunk", [1, 2, 5])
def test_chunks_of_frames_change_nothing(model, frames_per_chunk):
    tower: Mu2VisionModel = model.model.vision_tower
    pixels = volumes(2, frames=3)
    with torch.no_grad():
        whole = tower(pixels).last_hidden_state
        tower.config.frames_per_chunk = frames_per_chunk
        torch.testing.assert_close(tower(pixels).last_hidden_state, whole, atol=1e-5, rtol=1e-5)


def saved_bytes(tower: Mu2VisionModel, frames: int) -> int:
    """Bytes that autograd keeps for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        tower(volumes(1, frames=frames)).last_hidden_state.sum()
    return sum(kept.values())


def test_checkpointed_vision_keeps_frames_but_no_activations_for_the_backward_pass(model):
    """What is kept per frame is its input and output, not the activations of its layers."""
    tower = model.model.vision_tower.train()
    tower.config.frames_per_chunk = 1
    plain = saved_bytes(tower, 8) - saved_bytes(tower, 4)
    tower.gradient_checkpointing_enable({"use_reentrant": False})
    kept = saved_bytes(tower, 8) - saved_bytes(tower, 4)
    frame = 4 * (8 * 32 * 32 + 32 * 32) * 4  # four frames: voxels in, tokens out, float32
    assert kept <= 3 * frame
    assert kept < plain / 3


def test_gradient_checkpointing_gives_the_same_gradients():
    input_ids = ids(BOS, USER, VOLUME, QUESTION, END, ASSISTANT, ANSWER)
    gradients = []
    for is_checkpointed in (False, True):
        torch.manual_seed(0)
        model = Mu2ForConditionalGeneration(tiny_config()).train()
        if is_checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(input_ids=input_ids, pixel_values=volumes(1), labels=input_ids, use_cache=False).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other)


def test_the_whole_model_compiles_to_one_graph(model):
    inputs = {
        "input_ids": ids(BOS, USER, VOLUME, QUESTION, END, ASSISTANT, ANSWER),
        "pixel_values": volumes(1),
        "pixel_attention_mask": torch.ones(1, 2, 2, dtype=torch.bool),
    }
    with torch.no_grad():
        expected = model(**inputs, use_cache=False).logits
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs, use_cache=False).logits
    torch.testing.assert_close(compiled, expected, atol=1e-5, rtol=1e-5)


def test_bfloat16_runs_forward_and_backward():
    torch.manual_seed(0)
    model = Mu2ForConditionalGeneration(tiny_config()).to(torch.bfloat16)
    input_ids = ids(BOS, USER, VOLUME, QUESTION, END, ASSISTANT, ANSWER)
    output = model(input_ids=input_ids, pixel_values=volumes(1), labels=input_ids)
    output.loss.backward()
    assert output.logits.dtype == torch.bfloat16
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_cached_tower_features_give_the_same_logits(model):
    input_ids = ids(BOS, USER, VOLUME, QUESTION, END, ASSISTANT, ANSWER)
    with torch.no_grad():
        features = model.model.vision_tower(volumes(1)).last_hidden_state
        cached = model(input_ids=input_ids, vision_hidden_states=features).logits
        torch.testing.assert_close(cached, model(input_ids=input_ids, pixel_values=volumes(1)).logits)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_and_have_the_stated_number_of_visual_tokens(name):
    config = Mu2Config.from_preset(name)
    with torch.device("meta"):
        model = Mu2Model(config)
    expected = {"mu2-1b": 256, "mu2-1b-paper": 1024, "official": 256, "tiny": 32}[name]
    assert config.tokenizer_config.num_query_tokens == expected
    assert model.mu2_tokenizer.aggregator.query_tokens.shape[1] == expected
    if name == "mu2-1b-paper":
        size = sum(p.numel() for p in model.mu2_tokenizer.parameters())
        assert 50e6 < size < 60e6


def test_a_question_end_of_one_id_is_refused():
    with pytest.raises(StrictDataclassClassValidationError, match="would leak the answer"):
        tiny_config(question_end_token_ids=[4])

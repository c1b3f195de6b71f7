import inspect
import math
from types import SimpleNamespace

import numpy as np
import pytest

from hf_mu2.scoring.rewards import (
    batch_crg_reward,
    crg_reward,
    label_f1_reward,
    length_penalty,
    make_compute_metrics,
    repetition_penalty,
    report_metrics,
)

NODULE, EFFUSION, NORMAL = "There is a lung nodule.", "There is a pleural effusion.", "No lung nodule."


def test_label_f1_rewards_what_the_report_says():
    assert label_f1_reward([NODULE, NORMAL, EFFUSION, NORMAL], [NODULE, NODULE, NODULE, NORMAL]) == [
        1,
        0,
        0,
        1,
    ]
    both = f"{NODULE} {EFFUSION}"
    assert label_f1_reward([both], [NODULE]) == pytest.approx([2 / 3])


def test_crg_rewards_one_report_for_itself():
    rewards = crg_reward([NODULE, NORMAL, NORMAL, NODULE], [NODULE, NODULE, NORMAL, NORMAL])
    assert rewards[0] == rewards[2] == 1 and rewards[1] == pytest.approx(1 / 3) and 1 / 3 < rewards[3] < 1


def test_a_report_gains_for_its_batch_what_it_gets_right():
    references = [NODULE, EFFUSION, NORMAL, NORMAL]
    good, missed = (
        batch_crg_reward([first, EFFUSION, NORMAL, NORMAL], references) for first in (NODULE, NORMAL)
    )
    assert good[0] > missed[0]
    assert batch_crg_reward([NODULE], [NODULE]) == [1]


def test_silence_and_another_script_earn_nothing_even_of_a_normal_study():
    chinese = "双肺纹理清晰，未见明显结节。"
    for reward in (label_f1_reward, crg_reward):
        assert reward(["", "<think>no end", chinese], [NORMAL] * 3) == [0, 0, 0]


@pytest.mark.parametrize("silence", ["", "<think>no end", "双肺纹理清晰，未见明显结节。"])
def test_silence_costs_a_batch_more_than_any_words_even_of_a_normal_study(silence):
    references = [NODULE, EFFUSION, NORMAL, NORMAL]
    gains = {
        text: batch_crg_reward([NODULE, EFFUSION, text, NORMAL], references)
        for text in (silence, NORMAL, NODULE, EFFUSION)
    }
    assert gains[silence][2] == min(gains[silence]) < 0
    assert all(gains[silence][2] < gains[text][2] for text in (NORMAL, NODULE, EFFUSION))
    assert batch_crg_reward([silence], [NORMAL]) == [0]


def test_messages_and_reasoning_are_read_as_their_answer():
    messages = [{"role": "assistant", "content": f"<think>{EFFUSION}</think>{NODULE}"}]
    parts = [{"role": "assistant", "content": [{"type": "text", "text": NODULE}]}]
    assert label_f1_reward([messages, parts], [NODULE, NODULE]) == [1, 1]


def test_length_costs_the_same_too_long_as_too_short():
    reference = "one two three four"
    penalties = length_penalty([reference, f"{reference} {reference}", "one two", "one", ""], [reference] * 5)
    assert penalties == [0, -1, -1, -1, -1]
    assert length_penalty(["a b c d e"], [reference]) == pytest.approx([-math.log2(5 / 4)])


def test_a_loop_is_punished_and_a_report_is_not():
    loop, report = repetition_penalty(
        ["no nodule is seen " * 50, "The heart is normal in size and the lungs are clear"]
    )
    assert loop < -0.95 and report == 0 and repetition_penalty([""]) == [0]


@pytest.mark.parametrize(
    "reward", [label_f1_reward, crg_reward, batch_crg_reward, length_penalty, repetition_penalty]
)
def test_rewards_take_what_trl_passes(reward):
    keywords = {
        "prompts": ["p", "p"],
        "completions": [NODULE, EFFUSION],
        "completion_ids": [[1], [2]],
        "reference": [NODULE, NODULE],
        "trainer_state": None,
    }
    rewards = reward(**keywords)
    assert len(rewards) == 2 and all(isinstance(value, float) for value in rewards)
    assert inspect.signature(reward).return_annotation == "list[float]"


def test_a_missing_reference_is_refused():
    with pytest.raises(ValueError, match="needs its reference"):
        label_f1_reward([NODULE, NODULE], [NODULE])


class Tokenizer:
    pad_token_id = 0
    words = ("", "There", "is", "a", "lung", "nodule.", "No")

    def batch_decode(self, ids, skip_special_tokens):
        return [
            " ".join(self.words[token] for token in row if token or not skip_special_tokens) for row in ids
        ]


def test_the_trainer_gets_the_numbers_of_the_evaluation():
    compute_metrics = make_compute_metrics(Tokenizer())
    labels = np.array([[1, 2, 3, 4, 5], [-100, -100, 6, 4, 5]])
    metrics = compute_metrics(SimpleNamespace(predictions=np.where(labels < 0, 0, labels), label_ids=labels))
    assert metrics == report_metrics([NODULE, NORMAL], [NODULE, NORMAL])
    assert metrics["micro_f1"] == metrics["rouge1"] == 1 and all(
        math.isfinite(value) for value in metrics.values()
    )


def test_logits_are_refused():
    logits = SimpleNamespace(predictions=np.zeros((2, 5, 7)), label_ids=np.zeros((2, 5)))
    with pytest.raises(ValueError, match="generated token ids"):
        make_compute_metrics(Tokenizer())(logits)

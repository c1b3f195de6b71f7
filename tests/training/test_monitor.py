"""Monitoring: image dependence is a property of the model, and watching changes nothing."""

import pytest
import torch
import torch.nn.functional as F

from hf_mu2.training.monitor import (
    SpeedMeter,
    answer_losses,
    as_answered,
    measure_image_dependence,
    order_by_findings,
    watch_tokenizer,
)
from tests.tiny import tiny_model, tiny_processor, tiny_volume


def collate(rows):
    processor = tiny_processor()
    conversations = [processor.build_messages(row["images"][0]) for row in rows]
    batch = processor.apply_chat_template(
        conversations,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        processor_kwargs={"return_tensors": "pt", "padding": True},
    )
    answer = 7 + torch.arange(3 * len(rows)).reshape(len(rows), 3)  # each study its own
    labels = torch.cat([torch.full_like(batch["input_ids"], -100), answer], dim=1)
    batch["input_ids"] = torch.cat([batch["input_ids"], answer], dim=1)
    batch["attention_mask"] = torch.cat([batch["attention_mask"], torch.ones_like(answer)], dim=1)
    return {**batch, "labels": labels}


ROWS = [{"images": [tiny_volume(seed)]} for seed in range(5)]


def test_a_model_that_ignores_the_volume_has_no_image_dependence():
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.model.mu2_tokenizer.projector.parameters():
            parameter.zero_()
    found = measure_image_dependence(model, collate, ROWS, batch_size=2)
    assert found["image_dependence"] == 0 and found["image_dependence_se"] == 0


def test_a_model_that_reads_the_volume_has_a_loss_of_its_own_for_another_one():
    model = tiny_model()
    found = measure_image_dependence(model, collate, ROWS, batch_size=4)
    assert found["loss_other"] == pytest.approx(found["loss_right"] + found["image_dependence"], abs=1e-6)
    assert found["image_dependence"] != 0


def test_measuring_leaves_the_mode_of_the_model_alone():
    model = tiny_model().train()
    measure_image_dependence(model, collate, ROWS[:2], batch_size=2)
    assert model.training


def test_the_loss_of_a_row_is_the_mean_over_its_answer_in_fp32():
    logits, labels = (
        torch.randn(2, 5, 11).bfloat16(),
        torch.tensor([[-100, -100, 3, 4, -100], [-100, 2, 2, 2, 2]]),
    )
    expected = torch.stack(
        [
            F.cross_entropy(logits[0, 1:3].float(), labels[0, 2:4]),
            F.cross_entropy(logits[1, :4].float(), labels[1, 1:]),
        ]
    )
    torch.testing.assert_close(answer_losses(logits, labels), expected)


def test_neighbours_have_about_as_many_findings():
    answers = ["Emphysema. Pleural effusion.", "Normal.", "Emphysema.", "No finding."]
    order = order_by_findings(answers)
    assert order == [1, 3, 2, 0]


def test_the_tokenizer_shows_its_selection_and_gates_without_being_changed():
    model, batch = tiny_model().eval(), collate(ROWS[:2])
    batch.pop("labels")
    plain = model(**batch).logits
    with watch_tokenizer(model) as seen:
        watched = model(**batch).logits
    assert torch.equal(plain, watched)
    found = seen.summary()
    config = model.config.tokenizer_config
    assert found["effective_tokens"] >= 1
    gates = [found[f"gate_{index}"] for index in range(len(config.scales))]
    assert sum(gates) == pytest.approx(1.0)
    model(**batch)
    assert len(seen.gates) == 1, "nothing is watched afterwards"


def test_speed_counts_what_was_seen_since_the_last_log():
    meter = SpeedMeter()
    assert meter.read(1) == {}
    meter.saw(4, 100)
    meter.saw(4, 100)
    one = meter.read(1)
    assert one["tokens_per_second"] == pytest.approx(25 * one["studies_per_second"], rel=1e-2)
    assert "mfu" not in one and meter.read(1) == {}


def test_rows_of_every_objective_are_watched_as_prompt_and_answer():
    turn, images = [{"role": "user", "content": "Report?"}], ["ct.nii"]
    answer = [{"role": "assistant", "content": "A mass."}]
    rows = [
        {"prompt": turn, "completion": answer},
        {"prompt": turn, "chosen": answer, "rejected": turn},
        {"prompt": turn, "reference": "A mass."},
        {"messages": turn + answer},
    ]
    expected = {"images": images, "prompt": turn, "completion": answer}
    assert all(as_answered({"images": images, "study_id": "s", **row}) == expected for row in rows)
    with pytest.raises(ValueError, match="Rename the column"):
        as_answered({"images": images, "prompt": turn})
